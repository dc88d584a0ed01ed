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
"""What a batch for PCMANet must look like; both forms of the network refuse anything else in the same words."""

import torch

from .configuration_pcmanet import VGGishConfig


MINIMUM_IMAGE_SIZE = 32  # the stride of the coarsest backbone map: below it that map would be empty


def validate_inputs(
    pixel_values: torch.Tensor,
    input_features: torch.Tensor | None,
    audio_embeds: torch.Tensor | None,
    frame_mask: torch.Tensor | None,
    audio_config: VGGishConfig,
) -> None:
    """Raise a ValueError that says what came and what was expected."""
    shape = _shape(pixel_values)
    if len(shape) != 5 or 0 in shape[:2] or shape[2] != 3 or min(shape[-2:]) < MINIMUM_IMAGE_SIZE:
        raise ValueError(
            "`pixel_values` must be (batch, frames, 3, height, width) with at least one clip, one frame, and height "
            f"and width of at least {MINIMUM_IMAGE_SIZE}, got {shape or type(pixel_values).__name__}."
        )
    if (input_features is None) == (audio_embeds is None):
        given = "neither" if input_features is None else "both"
        raise ValueError(f"Give exactly one of `input_features` (log-mel) and `audio_embeds` (VGGish), got {given}.")
    patch = (1, audio_config.num_mel_frames, audio_config.num_mel_bins)
    expected = {
        "input_features": (input_features, "batch, frames, 1, mel frames, mel bins", patch),
        "audio_embeds": (audio_embeds, "batch, frames, embedding size", (audio_config.embedding_size,)),
        "frame_mask": (frame_mask, "batch, frames", ()),
    }
    for name, (tensor, axes, own) in expected.items():
        if tensor is not None and _shape(tensor) != (*shape[:2], *own):
            raise ValueError(
                f"`{name}` must be ({axes}) = {(*shape[:2], *own)} to go with these `pixel_values`, got "
                f"{_shape(tensor) or type(tensor).__name__}."
            )


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """Give the shape; none for what is no tensor, such as the arrays of a processor that was not asked for tensors."""
    return tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else ()


__all__ = ["MINIMUM_IMAGE_SIZE", "validate_inputs"]
