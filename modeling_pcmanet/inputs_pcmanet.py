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


MINIMUM_IMAGE_SIZE = 32  # the stride of the coarsest backbone map: below it that map would be empty


def validate_inputs(
    pixel_values: torch.Tensor,
    input_features: torch.Tensor | None,
    audio_embeds: torch.Tensor | None,
    frame_mask: torch.Tensor | None,
) -> None:
    """Raise a ValueError that says what came and what was expected."""
    if pixel_values.ndim != 5 or pixel_values.shape[2] != 3 or min(pixel_values.shape[-2:]) < MINIMUM_IMAGE_SIZE:
        raise ValueError(
            "`pixel_values` must be (batch, frames, 3, height, width) with height and width of at least "
            f"{MINIMUM_IMAGE_SIZE}, got {tuple(pixel_values.shape)}."
        )
    if (input_features is None) == (audio_embeds is None):
        given = "neither" if input_features is None else "both"
        raise ValueError(f"Give exactly one of `input_features` (log-mel) and `audio_embeds` (VGGish), got {given}.")
    clips = tuple(pixel_values.shape[:2])
    named = {"input_features": input_features, "audio_embeds": audio_embeds, "frame_mask": frame_mask}
    for name, tensor in named.items():
        if tensor is not None and tuple(tensor.shape[:2]) != clips:
            raise ValueError(
                f"`{name}` must start with (batch, frames) = {clips} like `pixel_values`, got {tuple(tensor.shape)}."
            )


__all__ = ["MINIMUM_IMAGE_SIZE", "validate_inputs"]
