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
"""Exact 3x3 convolutions with fewer multiplications, for float32 and float64 on CPUs, in training and inference.

A feature map that was only upsampled is convolved before the upsampling, and other convolutions use Winograd's F(4x4,
3x3). All steps around the products over channels are products with small constant matrices. They are as fast as the
matrix products of the machine, and exact at the borders for any size. docs/benchmarks/inference.md and
docs/benchmarks/training_cost.md contain the measurements behind each rule.
"""

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval


class Convolution(nn.Conv2d):
    """A convolution that, in training, uses fewer multiplications for the same values and gradients if that is faster.

    In evaluation mode, it is PyTorch's convolution. The optimized model uses [`FoldedConvolution`].
    """

    def forward(self, input: torch.Tensor, size: tuple[int, ...] | None = None) -> torch.Tensor:
        """Convolve a feature map.

        Args:
            input: (frames, in channels, height, width).
            size: (height, width) to which it is first resized bilinearly; None convolves it as it is.

        Returns:
            (frames, out channels, new height, new width).
        """
        is_rearranged = self.training and is_supported(self)
        if size is not None and tuple(input.shape[2:]) != tuple(size):
            if is_rearranged and is_worth_mixing_first(input, size):
                return convolve_upsampled(input, size, self.weight, self.bias)
            input = resize(input, size)
        # The number of frames may be symbolic in an exported program, so it is read only in training.
        if (
            is_rearranged
            and input.numel() >= _TRAINED_PIXELS * input.shape[1]
            and is_worth_transforming(input, self.weight)
        ):
            return cast(torch.Tensor, _TransformedConvolution.apply(input, self.weight, self.bias))
        return super().forward(input)


class FoldedConvolution(nn.Module):
    """A convolution with its BatchNorm folded in, computed by Winograd's algorithm where that is faster.

    Args:
        convolution: The convolution; it is not modified.
        batch_norm: The BatchNorm after it.
        activation: The activation after both; defaults to an in-place ReLU.

    Attributes:
        transformed_weight: Input of Winograd's algorithm, or None if the algorithm does not apply.
    """

    transformed_weight: torch.Tensor | None

    def __init__(self, convolution: nn.Conv2d, batch_norm: nn.BatchNorm2d, activation: nn.Module | None = None):
        super().__init__()
        self.convolution = fold_batch_norm(convolution, batch_norm)
        self.activation = nn.ReLU(inplace=True) if activation is None else activation
        transformed = transform_weight(self.convolution.weight) if is_supported(convolution) else None
        self.register_buffer("transformed_weight", transformed, persistent=False)
        self.register_load_state_dict_post_hook(_transform_loaded_weight)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Convolve (frames, in channels, height, width)."""
        transformed = self.transformed_weight
        if transformed is not None and is_worth_transforming(feature_map, self.convolution.weight):
            return self.activation(convolve_transformed(feature_map, transformed, self.bias))
        return self.activation(self.convolution(feature_map))

    @property
    def bias(self) -> torch.Tensor:
        """Bias of the convolution; folding adds one if there was none."""
        return cast(torch.Tensor, self.convolution.bias)


def _transform_loaded_weight(module: nn.Module, _incompatible_keys: Any) -> None:
    """Compute the transformed weight of a [`FoldedConvolution`] again."""
    folded = cast(FoldedConvolution, module)
    if folded.transformed_weight is not None:
        folded.transformed_weight = transform_weight(folded.convolution.weight)


def fold_batch_norm(convolution: nn.Conv2d, batch_norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Fold a BatchNorm in evaluation mode into a copy of the convolution before it, in float64."""
    folded = fuse_conv_bn_eval(copy.deepcopy(convolution).double().eval(), copy.deepcopy(batch_norm).double().eval())
    return folded.to(convolution.weight.dtype)


def fold_block(block: nn.Sequential) -> FoldedConvolution:
    """Copy and fold the convolution, BatchNorm and ReLU at the start of a chain."""
    convolution, batch_norm = cast(nn.Conv2d, block[0]), cast(nn.BatchNorm2d, block[1])
    return FoldedConvolution(convolution, batch_norm)


class UpsampledConvolution(nn.Module):
    """Convolution (3x3), BatchNorm and ReLU of a bilinearly upsampled feature map."""

    def __init__(self, block: nn.Sequential):
        super().__init__()
        self.block = fold_block(block)

    def forward(self, feature_map: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        """Map (frames, channels, height, width) to (frames, out channels, *size)."""
        height, width = feature_map.shape[2:]
        if is_worth_mixing_first(feature_map, size):
            weight, bias = self.block.convolution.weight, self.block.bias
            (mixed,) = in_chunks(
                lambda part: (convolve_upsampled(part, size, weight, bias),),
                9 * height * width * len(weight),
                feature_map,
            )
            return self.block.activation(mixed)
        if (height, width) != tuple(size):
            feature_map = resize(feature_map, size)
        return self.block(feature_map)


def is_supported(convolution: nn.Conv2d) -> bool:
    """Return whether a convolution has 3x3 taps, keeps height and width, and mixes all channels."""
    geometry = (convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation)
    is_mixing_all = convolution.groups == 1 and convolution.padding_mode == "zeros"
    return is_mixing_all and geometry == ((3, 3), (1, 1), (1, 1), (1, 1))


_TRAINED_PIXELS = 3000  # for fewer, transforming weights that change with every step takes longer than it saves
CHUNK_VALUES = 2_400_000  # upper limit of values in the largest tensor of a chunk of frames: 9.6 MB in float32


def in_chunks(
    function: Callable[..., tuple[torch.Tensor, ...]], values_per_frame: int | None, *inputs: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    """Apply a function to a few frames at a time, so that its intermediate tensors are small and stay in the cache.

    This happens only on a CPU. On a GPU, the parts would be too small to occupy it, and each would launch its own
    kernels.

    Args:
        function: Maps tensors (frames, ...) to tensors (frames, ...), each frame independently.
        values_per_frame: Size of the largest tensor that the function creates, per frame. None processes all frames at
            once.
        *inputs: Arguments of the function. All except the first may be None, which is passed on.
    """
    # A compiled or exported graph must not depend on the number of frames.
    first = cast(torch.Tensor, inputs[0])
    if values_per_frame is None or not first.is_cpu or torch.compiler.is_compiling():
        return function(*inputs)
    chunk, frames = max(1, CHUNK_VALUES // values_per_frame), len(first)
    if frames <= chunk:
        return function(*inputs)
    parts = [
        function(*(None if values is None else values[start : start + chunk] for values in inputs))
        for start in range(0, frames, chunk)
    ]
    return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))


def resize(feature_map: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Resize (frames, channels, height, width) bilinearly."""
    return functional.interpolate(feature_map, size=size, mode="bilinear", align_corners=False)


def multiplications_are_expensive(tensor: torch.Tensor) -> bool:
    """Return whether fewer multiplications outweigh more memory traffic: not in half precision and not on GPUs.

    Compilers and other runtimes have their own convolutions, and their graphs should stay small.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    is_plain = type(tensor) in (torch.Tensor, nn.Parameter)  # the constant matrices are kept, and must not be fake
    return is_plain and tensor.is_cpu and tensor.dtype in (torch.float32, torch.float64)


# Convolution before upsampling. Upsampling is linear and the same for all channels, so the channels may be mixed
# before it: nine 1x1 convolutions run at the low resolution, which is a quarter of the work for a factor of two. Two
# products with small constant matrices, first along the rows, then along the columns, upsample their results, shift
# them by one pixel in each direction and add them.


def is_worth_mixing_first(feature_map: torch.Tensor, size: tuple[int, ...]) -> bool:
    """Compare the products per value of the mixing and both interpolations with those of the convolution."""
    channels, height, width = feature_map.shape[1:]
    shrinking = height * width / (size[0] * size[1])
    instead = 9 * channels * shrinking + 9 * width * height / size[0] + 3 * height
    return 1.4 * instead <= 9 * channels and multiplications_are_expensive(feature_map)


def convolve_upsampled(
    feature_map: torch.Tensor, size: tuple[int, ...], weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Convolve a bilinearly upsampled feature map without upsampling it.

    Args:
        feature_map: (frames, channels, height, width).
        size: The height and width to which it is upsampled.
        weight: (out channels, channels, 3, 3).
        bias: (out channels,), or None.

    Returns:
        (frames, out channels, *size).
    """
    frames, channels, height, width = feature_map.shape
    out_channels, kind = len(weight), (feature_map.dtype, feature_map.device)
    tokens = feature_map.permute(0, 2, 3, 1)

    # One product per row of the kernel: (frames, 3 rows, height, width, 3 columns * out channels).
    kernel_rows = weight.permute(2, 3, 0, 1).reshape(3, 3 * out_channels, channels)
    mixed = torch.stack([functional.linear(tokens, row) for row in kernel_rows], dim=1)

    # Along the width, all rows of all frames as one batch: (frames * 3 rows * height, new width, out channels).
    across = _interpolation_taps(width, size[1], *kind).flatten(1)
    mixed = mixed.view(frames * 3 * height, width * 3, out_channels)
    mixed = torch.bmm(across.expand(len(mixed), -1, -1), mixed)

    # Along the height, added to the bias: (frames, new height, new width * out channels).
    down = _interpolation_taps(height, size[0], *kind).transpose(1, 2).flatten(1)
    mixed = mixed.view(frames, 3 * height, size[1] * out_channels)
    mixed = _add_product(bias, size[1], down.expand(frames, -1, -1), mixed)
    return mixed.unflatten(2, (size[1], out_channels)).permute(0, 3, 1, 2)


def _add_product(bias: torch.Tensor | None, repeats: int, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the batch of products plus the repeated bias."""
    return torch.bmm(first, second) if bias is None else torch.baddbmm(bias.repeat(repeats), first, second)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # training uses the cached matrices too
def _interpolation_taps(length: int, resized: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Build bilinear interpolation along one axis as a matrix for each of the three taps of a zero-padded convolution.

    Cached, because a network has feature maps of only a few sizes.

    Returns:
        (resized, length, 3): entry [:, :, k] maps `length` samples to the `resized` ones shifted by k - 1, with zeros
        outside the border.
    """
    samples = torch.eye(length, dtype=dtype, device=device)[None]
    weights = functional.interpolate(samples, size=resized, mode="linear", align_corners=False)[0].T
    padded = functional.pad(weights, (0, 0, 1, 1))
    return torch.stack([padded[tap : tap + resized] for tap in range(3)], dim=2)


# Winograd's F(4x4, 3x3) as matrices: along each axis 6 products give 4 values of a convolution with 3 taps (Lavin and Gray,
# "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308). The points 0, 2/3, -2/3, 3/2, -3/2 and infinity
# keep the error in float32 five times below that of the usual 0, 1, -1, 2, -2. A transform is one matrix for a complete
# axis, including all its tiles and the zero padding, so that applying it is one matrix product.

_TILE = 4
_WINDOW = 6  # values that the 3 taps read around the 4 of a tile
_NUM_PRODUCTS = 6

_P, _Q = 2 / 3, 3 / 2
_SUM = _P**2 + _Q**2
_AT_P, _AT_Q = -81 / 130, 8 / 65
# From the values of a window to the factors of its products, (products, window).
_INPUT_TRANSFORM = (
    (1, 0, -_SUM, 0, 1, 0),
    (0, -_Q, -(_Q**2), _P, 1, 0),
    (0, _Q, -(_Q**2), -_P, 1, 0),
    (0, -_P, -(_P**2), _Q, 1, 0),
    (0, _P, -(_P**2), -_Q, 1, 0),
    (0, 1, 0, -_SUM, 0, 1),
)
# From the three weights to the other factors, (products, taps).
_WEIGHT_TRANSFORM = (
    (1, 0, 0),
    (_AT_P, _AT_P * _P, _AT_P * _P**2),
    (_AT_P, -_AT_P * _P, _AT_P * _P**2),
    (_AT_Q, _AT_Q * _Q, _AT_Q * _Q**2),
    (_AT_Q, -_AT_Q * _Q, _AT_Q * _Q**2),
    (0, 0, 1),
)
# From the products to the convolution, (tile, products).
_OUTPUT_TRANSFORM = (
    (1, 1, 1, 1, 1, 0),
    (0, _P, -_P, _Q, -_Q, 0),
    (0, _P**2, _P**2, _Q**2, _Q**2, 0),
    (0, _P**3, -(_P**3), _Q**3, -(_Q**3), 1),
)


def is_worth_transforming(feature_map: torch.Tensor, weight: torch.Tensor) -> bool:
    """Compare the savings (channels times channels) with the transforms (channels times the side of the map)."""
    out_channels, in_channels = weight.shape[:2]
    saved = in_channels * out_channels / (in_channels + out_channels)
    return saved >= 1.7 * max(feature_map.shape[2:]) and multiplications_are_expensive(feature_map)


def transform_weight(weight: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Map (out channels, in channels, 3, 3) to (36 products, in channels, out channels); computed in `dtype`."""
    out_channels, in_channels = weight.shape[:2]
    taps = weight.detach().to(dtype).permute(2, 3, 1, 0).reshape(9, in_channels * out_channels)
    products = _weight_matrix(dtype, weight.device) @ taps
    return products.to(weight.dtype).view(-1, in_channels, out_channels)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # training uses the cached matrices too
def _weight_matrix(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Build the transform of the taps along both axes, (36 products, 9 taps)."""
    matrix = torch.tensor(_WEIGHT_TRANSFORM, dtype=dtype, device=device)
    return torch.kron(matrix, matrix)


def convolve_transformed(
    feature_map: torch.Tensor, transformed_weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Convolve (frames, in channels, height, width) with the result of `transform_weight`, a few frames at a time."""
    (convolved,) = in_chunks(
        lambda part: (_convolve_transformed(part, transformed_weight, bias),),
        _largest_tensor(feature_map, transformed_weight),
        feature_map,
    )
    return convolved


def _largest_tensor(feature_map: torch.Tensor, transformed_weight: torch.Tensor) -> int:
    """Return the number of values per frame of the largest intermediate tensor."""
    tiles = _num_tiles(feature_map.shape[2]) * _num_tiles(feature_map.shape[3])
    return _NUM_PRODUCTS**2 * tiles * max(transformed_weight.shape[1:])


def _convolve_transformed(
    feature_map: torch.Tensor, transformed_weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    frames, _, height, width = feature_map.shape
    kind, out_channels = (feature_map.dtype, feature_map.device), transformed_weight.shape[2]
    rows, columns = _num_tiles(height), _num_tiles(width)
    input_down, output_down = _transform_matrices(height, *kind)
    input_across, output_across = _transform_matrices(width, *kind)

    # Over the channels, for each of the 36 products of all tiles of all frames.
    states = torch.bmm(_to_products(feature_map, input_down, input_across), transformed_weight)
    states = states.view(_NUM_PRODUCTS, _NUM_PRODUCTS, frames, rows, columns, out_channels)

    # Output transform along the width, then along the height, added to the bias: (frames, height, width, channels).
    states = states.permute(2, 0, 3, 1, 4, 5)
    states = states.reshape(frames * _NUM_PRODUCTS * rows, _NUM_PRODUCTS * columns, out_channels)
    states = torch.bmm(output_across.expand(len(states), -1, -1), states)
    states = states.view(frames, _NUM_PRODUCTS * rows, width * out_channels)
    states = _add_product(bias, width, output_down.expand(frames, -1, -1), states)
    return states.view(frames, height, width, out_channels).permute(0, 3, 1, 2)


def _to_products(feature_map: torch.Tensor, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """Transform a feature map along both axes.

    Args:
        feature_map: (frames, channels, height, width).
        down: (6 products * tile rows, height).
        across: (6 products * tile columns, width).

    Returns:
        (36 products, frames * tiles, channels).
    """
    frames, channels, height, width = feature_map.shape
    rows, columns = len(down) // _NUM_PRODUCTS, len(across) // _NUM_PRODUCTS

    # Along the height, then along the width: (frames, products, rows, products, columns, channels).
    states = feature_map.permute(0, 2, 3, 1).reshape(frames, height, width * channels)
    states = torch.bmm(down.expand(frames, -1, -1), states)
    states = states.view(frames * _NUM_PRODUCTS * rows, width, channels)
    states = torch.bmm(across.expand(len(states), -1, -1), states)
    states = states.view(frames, _NUM_PRODUCTS, rows, _NUM_PRODUCTS, columns, channels)
    return states.permute(1, 3, 0, 2, 4, 5).reshape(_NUM_PRODUCTS**2, frames * rows * columns, channels)


class _TransformedConvolution(torch.autograd.Function):
    """Winograd's algorithm, also for the gradients; only the input is kept, as for PyTorch's convolution."""

    @staticmethod
    def forward(ctx: Any, feature_map: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Convolve (frames, in channels, height, width)."""
        ctx.save_for_backward(feature_map, weight)
        return convolve_transformed(feature_map, transform_weight(weight, weight.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Return the gradients of feature map, weight and bias, given that of the output."""
        feature_map, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        mirrored = transform_weight(weight.transpose(0, 1).flip(2, 3), weight.dtype) if needs_input else None
        return (
            None if mirrored is None else convolve_transformed(gradient, mirrored, None),
            _weight_gradient(feature_map, gradient) if needs_weight else None,
            gradient.sum((0, 2, 3)) if needs_bias else None,
        )


def _weight_gradient(feature_map: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return the gradient (out channels, in channels, 3, 3) for a feature map and the gradient of its convolution."""
    kind = (feature_map.dtype, feature_map.device)
    input_down, output_down = _transform_matrices(feature_map.shape[2], *kind)
    input_across, output_across = _transform_matrices(feature_map.shape[3], *kind)
    products = feature_map.new_zeros(_NUM_PRODUCTS**2, feature_map.shape[1], gradient.shape[1])
    chunk = max(1, CHUNK_VALUES // _largest_tensor(feature_map, products))
    for inputs, gradients in zip(feature_map.split(chunk), gradient.split(chunk), strict=True):
        transformed = _to_products(inputs, input_down, input_across)
        of_products = _to_products(gradients, output_down.T, output_across.T)
        products.baddbmm_(transformed.transpose(1, 2), of_products)
    taps = _weight_matrix(*kind).T @ products.flatten(1)
    return taps.view(3, 3, feature_map.shape[1], gradient.shape[1]).permute(3, 2, 0, 1)


def _num_tiles(length: int) -> int:
    """Return the number of tiles that cover an axis."""
    return -(-length // _TILE)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # training uses the cached matrices too
def _transform_matrices(length: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Build the transforms along one axis of a feature map; cached, as a network has feature maps of few sizes.

    Args:
        length: Size of the axis.
        dtype: Data type of the feature map.
        device: Device of the feature map.

    Returns:
        The input transform (products * tiles, length) and the output transform (length, products * tiles).
    """
    options: dict[str, Any] = {"dtype": dtype, "device": device}
    tiles = _num_tiles(length)
    # One zero before the first value, and as many after the last value as the last tile needs.
    padded = functional.pad(torch.eye(length, **options), (1, _TILE * tiles + 1 - length))
    windows = padded.unfold(1, _WINDOW, _TILE)
    inputs = torch.einsum("pw,ltw->ptl", torch.tensor(_INPUT_TRANSFORM, **options), windows).flatten(0, 1)
    outputs = torch.einsum("op,tu->topu", torch.tensor(_OUTPUT_TRANSFORM, **options), torch.eye(tiles, **options))
    return inputs, outputs.flatten(2).flatten(0, 1)[:length]


__all__ = [
    "Convolution",
    "FoldedConvolution",
    "UpsampledConvolution",
    "fold_batch_norm",
    "fold_block",
    "in_chunks",
    "is_worth_mixing_first",
    "is_worth_transforming",
    "resize",
]
