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
"""Convolutions for inference: folded with their norms, and with fewer multiplications where these are dear.

Two exact rearrangements for float32 and float64 on a CPU: a map that was only upsampled is convolved before the
upsampling, and other 3x3 convolutions run as Winograd's F(4x4, 3x3). Whatever surrounds the products over channels is a
product with a small constant matrix, as fast as the matrix products of the machine and right at borders of any size.
docs/inference.md has the measurements behind each rule.
"""

import copy
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval


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


CHUNK_VALUES = 2_400_000  # most values of the largest tensor of a chunk of frames: 9.6 MB in float32


def fold_batch_norm(convolution: nn.Conv2d, batch_norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Merge a BatchNorm in evaluation mode into a copy of the convolution before it; computed in float64."""
    copies = (copy.deepcopy(module).double().eval() for module in (convolution, batch_norm))
    return fuse_conv_bn_eval(*copies).to(convolution.weight.dtype)


def resize(feature_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize (frames, channels, height, width) bilinearly."""
    return functional.interpolate(feature_map, size=size, mode="bilinear", align_corners=False)


def multiplications_are_dear(tensor: torch.Tensor) -> bool:
    """Whether saving products is worth moving data: not in half precision and on GPUs, whose matrix units are fast.

    Compilers and other run times bring convolutions of their own, and their graphs are to stay small.
    """
    is_full = tensor.dtype in (torch.float32, torch.float64)
    return is_full and tensor.is_cpu and not torch.compiler.is_compiling()


def in_chunks(
    function: Callable[..., tuple[torch.Tensor, ...]], values_per_frame: int, *inputs: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    """Apply a function to a few frames at a time, so that what it makes on the way is small and stays in the cache.

    Args:
        function: Goes from tensors (frames, ...) to tensors (frames, ...), each frame for itself.
        values_per_frame: Size of the largest tensor that the function makes, per frame.
        *inputs: What it takes; None is handed on.
    """
    # A compiled or exported graph must not depend on the number of frames.
    if torch.compiler.is_compiling():
        return function(*inputs)
    chunk, frames = max(1, CHUNK_VALUES // values_per_frame), len(inputs[0])
    if frames <= chunk:
        return function(*inputs)
    parts = [
        function(*(None if values is None else values[start : start + chunk] for values in inputs))
        for start in range(0, frames, chunk)
    ]
    return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))


class Convolution(nn.Module):
    """A convolution with its BatchNorm folded in; where it is dear, Winograd does it with a quarter of the products.

    Args:
        convolution: The convolution, which is copied.
        batch_norm: The BatchNorm behind it.
        activation: What follows, an in-place ReLU if not given.
    """

    def __init__(self, convolution: nn.Conv2d, batch_norm: nn.BatchNorm2d, activation: nn.Module | None = None):
        super().__init__()
        self.convolution = fold_batch_norm(convolution, batch_norm)
        self.activation = nn.ReLU(inplace=True) if activation is None else activation
        geometry = (convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation)
        is_usual = geometry == ((3, 3), (1, 1), (1, 1), (1, 1)) and convolution.groups == 1
        transformed = transform_weight(self.convolution.weight) if is_usual else None
        self.register_buffer("transformed_weight", transformed, persistent=False)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Convolve (frames, in channels, height, width)."""
        if self._is_worth_transforming(feature_map):
            tiles = num_tiles(feature_map.shape[2]) * num_tiles(feature_map.shape[3])
            values = NUM_PRODUCTS**2 * tiles * max(self.transformed_weight.shape[1:])
            (feature_map,) = in_chunks(self._multiply_transformed, values, feature_map)
            return self.activation(feature_map)
        return self.activation(self.convolution(feature_map))

    def _is_worth_transforming(self, feature_map: torch.Tensor) -> bool:
        """Weigh what is saved, channels times channels, against the transforms, channels times the side of the map."""
        if self.transformed_weight is None or not multiplications_are_dear(feature_map):
            return False
        out_channels, in_channels = self.convolution.weight.shape[:2]
        saved = in_channels * out_channels / (in_channels + out_channels)
        return saved >= 1.7 * max(feature_map.shape[2:])

    def _multiply_transformed(self, feature_map: torch.Tensor) -> tuple[torch.Tensor]:
        frames, in_channels, height, width = feature_map.shape
        bias, out_channels = self.convolution.bias, len(self.convolution.bias)
        rows, columns = num_tiles(height), num_tiles(width)
        kind = (feature_map.dtype, feature_map.device)
        there_down, back_down = transform_matrices(height, *kind)
        there_across, back_across = transform_matrices(width, *kind)

        # Along the height, then along the width: (frames, products, rows, products, columns, channels).
        states = feature_map.permute(0, 2, 3, 1).reshape(frames, height, width * in_channels)
        states = torch.bmm(there_down.expand(frames, -1, -1), states)
        states = states.view(frames * NUM_PRODUCTS * rows, width, in_channels)
        states = torch.bmm(there_across.expand(len(states), -1, -1), states)
        states = states.view(frames, NUM_PRODUCTS, rows, NUM_PRODUCTS, columns, in_channels)

        # Over the channels, for each of the 36 products of all tiles of all frames.
        states = states.permute(1, 3, 0, 2, 4, 5).reshape(NUM_PRODUCTS**2, frames * rows * columns, in_channels)
        states = torch.bmm(states, self.transformed_weight)
        states = states.view(NUM_PRODUCTS, NUM_PRODUCTS, frames, rows, columns, out_channels)

        # And back, starting from the bias: (frames, height, width, channels).
        states = states.permute(2, 0, 3, 1, 4, 5)
        states = states.reshape(frames * NUM_PRODUCTS * rows, NUM_PRODUCTS * columns, out_channels)
        states = torch.bmm(back_across.expand(len(states), -1, -1), states)
        states = states.view(frames, NUM_PRODUCTS * rows, width * out_channels)
        states = torch.baddbmm(bias.repeat(width), back_down.expand(frames, -1, -1), states)
        return (states.view(frames, height, width, out_channels).permute(0, 3, 1, 2),)


def folded_block(block: nn.Sequential) -> Convolution:
    """Copy a convolution, BatchNorm, ReLU block."""
    return Convolution(block[0], block[1])


@lru_cache(maxsize=64)
def interpolation_taps(length: int, resized: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Write bilinear interpolation as a matrix, as each of the three taps of a zero-padded convolution sees it.

    Kept, because a network has few sizes of maps.

    Returns:
        (resized, length, 3): entry [:, :, k] maps `length` samples to the `resized` ones moved by k - 1, with zeros
        beyond the border.
    """
    samples = torch.eye(length, dtype=dtype, device=device)[None]
    weights = functional.interpolate(samples, size=resized, mode="linear", align_corners=False)[0].T
    padded = functional.pad(weights, (0, 0, 1, 1))
    return torch.stack([padded[tap : tap + resized] for tap in range(3)], dim=2)


class UpsampledConvolution(nn.Module):
    """The 3x3 convolution, BatchNorm, ReLU of a bilinearly upsampled map, exact without upsampling its input.

    Upsampling is linear and alike for all channels, so the channels may be mixed before it: nine 1x1 convolutions run at
    the low resolution, a quarter of the work at a factor of two, and their results are upsampled, moved by one pixel each
    way and added by two products with small constant matrices, first along the rows, then along the columns.
    """

    def __init__(self, block: nn.Sequential):
        super().__init__()
        self.block = folded_block(block)

    def forward(self, feature_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Go from (frames, channels, height, width) to (frames, out channels, *size)."""
        height, width = feature_map.shape[2:]
        if self._is_worth_mixing_first(feature_map, size):
            values = 9 * height * width * len(self.block.convolution.bias)
            (mixed,) = in_chunks(lambda part: self._mix_then_upsample(part, size), values, feature_map)
            return self.block.activation(mixed)
        if (height, width) != tuple(size):
            feature_map = resize(feature_map, size)
        return self.block(feature_map)

    def _is_worth_mixing_first(self, feature_map: torch.Tensor, size: tuple[int, int]) -> bool:
        """Weigh products per value: of the mixing and of both interpolations against those of the convolution."""
        channels, height, width = feature_map.shape[1:]
        shrinking = height * width / (size[0] * size[1])
        instead = 9 * channels * shrinking + 9 * width * height / size[0] + 3 * height
        return 1.4 * instead <= 9 * channels and multiplications_are_dear(feature_map)

    def _mix_then_upsample(self, feature_map: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor]:
        frames, channels, height, width = feature_map.shape
        weight, bias = self.block.convolution.weight, self.block.convolution.bias
        out_channels, kind = len(bias), (feature_map.dtype, feature_map.device)
        tokens = feature_map.permute(0, 2, 3, 1)

        # One product per row of the kernel: (frames, 3 rows, height, width, 3 columns * out channels).
        kernel_rows = weight.permute(2, 3, 0, 1).reshape(3, 3 * out_channels, channels)
        mixed = torch.stack([functional.linear(tokens, row) for row in kernel_rows], dim=1)

        # Along the width, all rows of all frames as one batch: (frames * 3 rows * height, new width, out channels).
        across = interpolation_taps(width, size[1], *kind).flatten(1)
        mixed = mixed.view(frames * 3 * height, width * 3, out_channels)
        mixed = torch.bmm(across.expand(len(mixed), -1, -1), mixed)

        # Along the height, starting from the bias: (frames, new height, new width * out channels).
        down = interpolation_taps(height, size[0], *kind).transpose(1, 2).flatten(1)
        mixed = mixed.view(frames, 3 * height, size[1] * out_channels)
        mixed = torch.baddbmm(bias.repeat(size[1]), down.expand(frames, -1, -1), mixed)
        return (mixed.unflatten(2, (size[1], out_channels)).permute(0, 3, 1, 2),)


__all__ = [
    "Convolution",
    "NUM_PRODUCTS",
    "UpsampledConvolution",
    "fold_batch_norm",
    "folded_block",
    "in_chunks",
    "num_tiles",
    "resize",
    "transform_matrices",
    "transform_weight",
]
