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
"""Convolutions for inference: folded with their norms, and exact at low resolution where the map was only upsampled."""

import torch
from torch import nn
from torch.nn import functional

from .inference_backbone_pcmanet import fold_batch_norm


def folded_block(block: nn.Sequential) -> nn.Sequential:
    """Copy a convolution, BatchNorm, ReLU block as a convolution and a ReLU."""
    convolution, batch_norm, _ = block
    return nn.Sequential(fold_batch_norm(convolution, batch_norm), nn.ReLU(inplace=True))


def resize(feature_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize (frames, channels, height, width) bilinearly."""
    return functional.interpolate(feature_map, size=size, mode="bilinear", align_corners=False)


def interpolation_taps(length: int, resized: int, like: torch.Tensor) -> torch.Tensor:
    """Write bilinear interpolation as a matrix, as each of the three taps of a zero-padded convolution sees it.

    Returns:
        (resized, length, 3): entry [:, :, k] maps `length` samples to the `resized` ones moved by k - 1, with zeros
        beyond the border.
    """
    samples = torch.eye(length, dtype=like.dtype, device=like.device)[None]
    weights = functional.interpolate(samples, size=resized, mode="linear", align_corners=False)[0].T
    padded = functional.pad(weights, (0, 0, 1, 1))
    return torch.stack([padded[tap : tap + resized] for tap in range(3)], dim=2)


class UpsampledConvolution(nn.Module):
    """The 3x3 convolution, BatchNorm, ReLU of a bilinearly upsampled map, exact without ever upsampling the input.

    Upsampling is linear and alike for all channels, so the channels may be mixed before it: nine 1x1 convolutions run at
    the low resolution, a quarter of the work at a factor of two, and their results are upsampled, moved by one pixel each
    way and added by two products with small constant matrices, first along the rows, then along the columns.
    """

    def __init__(self, block: nn.Sequential):
        super().__init__()
        self.convolution = fold_batch_norm(block[0], block[1])

    def forward(self, feature_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Go from (frames, channels, height, width) to (frames, out channels, *size)."""
        height, width = feature_map.shape[-2:]
        # Half precision has matrix units so fast that moving the results costs more than the work saved, and where
        # nothing is enlarged there is nothing to save (docs/inference.md).
        is_fast = feature_map.is_cpu and feature_map.dtype in (torch.float32, torch.float64)
        if is_fast and 2 * height * width <= size[0] * size[1]:
            return functional.relu_(self._mix_then_upsample(feature_map, size))
        if (height, width) != tuple(size):
            feature_map = resize(feature_map, size)
        return functional.relu_(self.convolution(feature_map))

    def _mix_then_upsample(self, feature_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        frames, channels, height, width = feature_map.shape
        weight, bias = self.convolution.weight, self.convolution.bias
        out_channels = len(bias)
        tokens = feature_map.permute(0, 2, 3, 1)

        # One product per row of the kernel: (frames, 3 rows, height, width, 3 columns * out channels).
        kernel_rows = weight.permute(2, 3, 0, 1).reshape(3, 3 * out_channels, channels)
        mixed = torch.stack([functional.linear(tokens, row) for row in kernel_rows], dim=1)

        # Along the width, all rows of all frames as one batch: (frames * 3 rows * height, new width, out channels).
        across = interpolation_taps(width, size[1], feature_map).flatten(1)
        mixed = mixed.reshape(frames * 3 * height, width * 3, out_channels)
        mixed = torch.bmm(across.expand(len(mixed), -1, -1), mixed)

        # Along the height: (frames, new height, new width * out channels), starting from the bias.
        down = interpolation_taps(height, size[0], feature_map).transpose(1, 2).flatten(1)
        mixed = mixed.reshape(frames, 3 * height, size[1] * out_channels)
        mixed = torch.baddbmm(bias.repeat(size[1]), down.expand(frames, -1, -1), mixed)
        return mixed.unflatten(2, (size[1], out_channels)).permute(0, 3, 1, 2)


__all__ = ["UpsampledConvolution", "folded_block", "resize"]
