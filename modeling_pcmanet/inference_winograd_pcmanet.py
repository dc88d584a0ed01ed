# Copyright 2026 The pcmanet contributors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Winograd's F(4x4, 3x3) as matrices: along each axis 6 products make 4 values of a convolution with 3 taps.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308, at other points: 0, 2/3, -2/3, 3/2,
-3/2 and infinity keep the error in float32 five times below that of the usual 0, 1, -1, 2, -2. A transform is one
matrix for a whole axis, all its tiles and the zero padding included, so that applying it is one matrix product.
"""

from functools import lru_cache

import torch
from torch.nn import functional


TILE = 4
WINDOW = 6  # values that the 3 taps see around the 4 of a tile
NUM_PRODUCTS = 6

_P, _Q = 2 / 3, 3 / 2
_SUM = _P**2 + _Q**2
_AT_P, _AT_Q = -81 / 130, 8 / 65
# From the values of a window to the factors of its products, (products, window).
_VALUES = (
    (1, 0, -_SUM, 0, 1, 0),
    (0, -_Q, -(_Q**2), _P, 1, 0),
    (0, _Q, -(_Q**2), -_P, 1, 0),
    (0, -_P, -(_P**2), _Q, 1, 0),
    (0, _P, -(_P**2), -_Q, 1, 0),
    (0, 1, 0, -_SUM, 0, 1),
)
# From the three weights to the other factors, (products, taps).
_WEIGHTS = (
    (1, 0, 0),
    (_AT_P, _AT_P * _P, _AT_P * _P**2),
    (_AT_P, -_AT_P * _P, _AT_P * _P**2),
    (_AT_Q, _AT_Q * _Q, _AT_Q * _Q**2),
    (_AT_Q, -_AT_Q * _Q, _AT_Q * _Q**2),
    (0, 0, 1),
)
# From the products to the convolution, (tile, products).
_BACK = (
    (1, 1, 1, 1, 1, 0),
    (0, _P, -_P, _Q, -_Q, 0),
    (0, _P**2, _P**2, _Q**2, _Q**2, 0),
    (0, _P**3, -(_P**3), _Q**3, -(_Q**3), 1),
)


def num_tiles(length: int) -> int:
    """Number of tiles that cover an axis."""
    return -(-length // TILE)


def transform_weight(weight: torch.Tensor) -> torch.Tensor:
    """Go from (out channels, in channels, 3, 3) to (36 products, in channels, out channels); computed in float64."""
    matrix = torch.tensor(_WEIGHTS, dtype=torch.float64, device=weight.device)
    products = torch.einsum("px,qy,oixy->pqio", matrix, matrix, weight.detach().double())
    return products.flatten(0, 1).to(weight.dtype).contiguous()


@lru_cache(maxsize=64)
def transform_matrices(length: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices of the transforms of values along one axis of a map; kept, because a network has few sizes of maps.

    Args:
        length: Size of the axis.
        dtype: Data type of the map.
        device: Where it lies.

    Returns:
        There, (products * tiles, length), and back, (length, products * tiles).
    """
    options = {"dtype": dtype, "device": device}
    tiles = num_tiles(length)
    # One zero before the first value, and as many behind the last as the last tile reaches.
    padded = functional.pad(torch.eye(length, **options), (1, TILE * tiles + 1 - length))
    windows = padded.unfold(1, WINDOW, TILE)
    there = torch.einsum("pw,ltw->ptl", torch.tensor(_VALUES, **options), windows).flatten(0, 1)
    back = torch.einsum("op,tu->topu", torch.tensor(_BACK, **options), torch.eye(tiles, **options))
    return there, back.flatten(2).flatten(0, 1)[:length]


__all__ = ["NUM_PRODUCTS", "num_tiles", "transform_matrices", "transform_weight"]
