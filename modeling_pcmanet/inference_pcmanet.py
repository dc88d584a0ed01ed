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
"""PCMANet for inference: the logits of [`PCMANetForAudioVisualSegmentation`] from a network that can no longer learn.

BatchNorms are folded, maps are channels_last, only the finest stage's logits are brought to the input size, padded
frames are never computed, and clips are computed one after the other on a CPU, so that their maps stay in its cache.
`model.for_inference()` builds it; docs/inference.md says what each part brings. On request frames stop at a coarse stage
that is sure of them (docs/anytime.md).
"""

import copy
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_pcmanet import NUM_STAGES
from .inference_backbone_pcmanet import inference_backbone
from .inference_convolution_pcmanet import resize
from .inference_decoder_pcmanet import InferenceStage
from .inputs_pcmanet import validate_inputs
from .modeling_pcmanet_decoder import ClipLayout


@dataclass
class PCMANetInferenceOutput(ModelOutput):
    """Output of [`PCMANetInferenceModel`].

    Attributes:
        logits: (batch, frames, num_labels, height, width) at the input size. Padded frames hold 0.
        confidence_masks: Three bool tensors (batch, frames, stage height, stage width) of the three coarser stages,
            True where the network was still unsure and the next stage asked on. False where a frame had stopped before.
        stages_used: (batch, frames) int64, the stage whose logits each frame got, 1 (coarsest) to 4; 0 for padding that
            was not computed. Only with an `uncertainty_budget`.
    """

    logits: torch.FloatTensor | None = None
    confidence_masks: tuple[torch.BoolTensor, ...] | None = None
    stages_used: torch.LongTensor | None = None


class PCMANetInferenceModel(nn.Module):
    """The network of a [`PCMANetModel`] in evaluation mode, rearranged for speed.

    Args:
        network: The network whose weights to copy; it is left as it is.
        dtype: Data type of the copy.
        audio_dtype: Data type of its audio encoder.
    """

    def __init__(self, network: PreTrainedModel, dtype: torch.dtype, audio_dtype: torch.dtype):
        super().__init__()
        self.config = copy.deepcopy(network.config)
        self.backbone = inference_backbone(network.backbone)
        self.audio_encoder = copy.deepcopy(network.audio_encoder)
        self.audio_projection = copy.deepcopy(network.audio_projection)
        self.stages = nn.ModuleList(
            InferenceStage(neck, stage, is_finest=index == NUM_STAGES - 1)
            for index, (neck, stage) in enumerate(zip(network.neck, network.stages, strict=True))
        )
        self.confidence_masking = copy.deepcopy(network.confidence_masking)
        self.requires_grad_(False).to(dtype, memory_format=torch.channels_last)
        self.audio_encoder.to(audio_dtype)
        super().train(False)
        for module in self.modules():
            # Half precision and GPUs multiply so fast that they have no use for these, four times the weights themselves.
            if (dtype.itemsize < 4 or self.device.type != "cpu") and hasattr(module, "transformed_weight"):
                module.transformed_weight = None

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights, that of the audio encoder aside, and of the logits."""
        return self.audio_projection.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.audio_projection.weight.device

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode.

        Raises:
            RuntimeError: If training is asked for.
        """
        if mode:
            raise RuntimeError(
                "The inference form cannot be trained: its BatchNorms are folded away. Train the model that "
                "`for_inference()` was called on, then call it again."
            )
        return super().train(False)

    @torch.no_grad()
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        input_features: torch.FloatTensor | None = None,
        audio_embeds: torch.FloatTensor | None = None,
        frame_mask: torch.BoolTensor | None = None,
        uncertainty_budget: float | None = None,
    ) -> PCMANetInferenceOutput:
        """Segment what sounds; takes what the model takes and, without a budget, gives the same logits.

        Args:
            pixel_values: (batch, frames, 3, height, width), ImageNet-normalised, height and width from 32 up.
            input_features: (batch, frames, 1, 96, 64) log-mel patches.
            audio_embeds: (batch, frames, 128) VGGish embeddings, in place of `input_features`.
            frame_mask: (batch, frames) bool, False for padding.
            uncertainty_budget: Share of a frame's pixels, in [0, 1], that may be uncertain for it to stop: it gets the
                logits of that stage, and the finer ones go on without it, as if it were not part of the clip. Counted at
                the next stage's size, by the thresholds of the confidence masks. 0 stops frames without any such pixel,
                1 all of them at the first stage. None computes every stage of every frame. Not for one compiled or
                exported graph, because how much is computed depends on what is in the frames.

        Raises:
            ValueError: If a shape is wrong, not exactly one of the two forms of sound is given, or the budget is no share
                or has nothing to go by.
        """
        validate_inputs(pixel_values, input_features, audio_embeds, frame_mask, self.config.audio_config)
        if uncertainty_budget is not None:
            self._validate_budget(uncertainty_budget)
        embeddings = self._embed_audio(input_features, audio_embeds, frame_mask)
        segment = self._segment_each if self._walks_clips(pixel_values) else self._segment
        return segment(pixel_values, embeddings, frame_mask, uncertainty_budget)

    def _validate_budget(self, budget: float) -> None:
        """Raise a ValueError where frames cannot stop early."""
        if not 0 <= budget <= 1:
            raise ValueError(f"`uncertainty_budget` is a share of a frame's pixels between 0 and 1, got {budget}.")
        # CODEPATH: only an ablated network masks nothing.
        if self.config.confidence_threshold == 0:
            raise ValueError(
                "`uncertainty_budget` goes by the pixels that confident masking leaves, but this network has "
                "`confidence_threshold` 0: it is never sure of a pixel, so no frame would stop. Leave it out."
            )
        if torch.compiler.is_compiling():
            raise ValueError(
                "`uncertainty_budget` cannot be part of a compiled or exported graph, because how much is computed depends "
                "on what is in the frames. Leave it out, or call the inference form uncompiled."
            )

    def _walks_clips(self, pixel_values: torch.Tensor) -> bool:
        """Whether clips are computed one by one; a compiled or exported graph must not depend on their number."""
        return not torch.compiler.is_compiling() and pixel_values.is_cpu and len(pixel_values) > 1

    def _layout(self, clips: torch.Tensor, frame_mask: torch.Tensor | None) -> ClipLayout:
        """Which frames of (batch, frames, ...) are computed."""
        excluded = frame_mask is not None and self.config.padded_frames == "excluded"
        return ClipLayout(*clips.shape[:2], frame_mask.bool() if excluded else None)

    def _embed_audio(
        self, input_features: torch.Tensor | None, audio_embeds: torch.Tensor | None, frame_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Go from either form of sound to embeddings, (batch, frames, embedding_size)."""
        if audio_embeds is not None:
            return audio_embeds.to(self.dtype)
        # All frames of all clips at once: a single clip's are so few that VGGish would mostly read its weights.
        layout = self._layout(input_features, frame_mask)
        patches = layout.to_frames(input_features).to(self.audio_encoder.dtype)
        return layout.to_clips(self.audio_encoder(patches).audio_embeds.to(self.dtype))

    def _segment_each(
        self,
        pixel_values: torch.Tensor,
        embeddings: torch.Tensor,
        frame_mask: torch.Tensor | None,
        uncertainty_budget: float | None,
    ) -> PCMANetInferenceOutput:
        """Compute clip after clip."""
        logits, masks, stages_used = None, [], []
        for clip in range(len(pixel_values)):
            own = slice(clip, clip + 1)
            own_mask = None if frame_mask is None else frame_mask[own]
            output = self._segment(pixel_values[own], embeddings[own], own_mask, uncertainty_budget)
            if logits is None:
                # The largest tensor of all where there are many classes: written in place, not joined at the end.
                logits = output.logits.new_empty(len(pixel_values), *output.logits.shape[1:])
            logits[own] = output.logits
            masks.append(output.confidence_masks)
            stages_used.append(output.stages_used)
        return PCMANetInferenceOutput(
            logits=logits,
            confidence_masks=tuple(torch.cat(stage) for stage in zip(*masks, strict=True)),
            stages_used=None if uncertainty_budget is None else torch.cat(stages_used),
        )

    def _segment(
        self,
        pixel_values: torch.Tensor,
        embeddings: torch.Tensor,
        frame_mask: torch.Tensor | None,
        uncertainty_budget: float | None,
    ) -> PCMANetInferenceOutput:
        """Compute some clips at once."""
        layout = self._layout(pixel_values, frame_mask)
        pixels = layout.to_frames(pixel_values).to(self.dtype).contiguous(memory_format=torch.channels_last)
        embeddings, zeroing = layout.to_frames(embeddings), None
        if frame_mask is not None and layout.real is None:
            zeroing = frame_mask.flatten().to(embeddings.dtype)[:, None, None, None]
            embeddings = embeddings * zeroing[:, :, 0, 0]
        maps, audio, size = self.backbone(pixels), self.audio_projection(embeddings), pixel_values.shape[-2:]
        if uncertainty_budget is None:
            logits, masks = self._decode(maps, audio, layout, zeroing)
            logits, stages_used = resize(logits.contiguous(), size), None
        else:
            logits, masks, stages_used = self._decode_until_sure(
                maps, audio, layout, zeroing, size, uncertainty_budget
            )
        return PCMANetInferenceOutput(
            logits=layout.to_clips(logits),
            confidence_masks=tuple(layout.to_clips(mask) for mask in masks),
            stages_used=None if stages_used is None else layout.to_clips(stages_used),
        )

    def _decode(
        self, maps: list[torch.Tensor], audio: torch.Tensor, layout: ClipLayout, zeroing: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Walk the stages coarse to fine; returns the finest logits and the three confidence masks."""
        logits = fused = uncertain = None
        audio_token = audio
        masks = []
        for stage in self.stages:
            # Taken off the list, so that a map that has been read is freed.
            fused, logits, audio_token = stage(maps.pop(), audio, audio_token, fused, uncertain, layout, zeroing)
            if not stage.is_finest:
                uncertain = self.confidence_masking(logits, uncertain)
                masks.append(uncertain)
        return logits, masks

    def _decode_until_sure(
        self,
        maps: list[torch.Tensor],
        audio: torch.Tensor,
        layout: ClipLayout,
        zeroing: torch.Tensor | None,
        size: tuple[int, int],
        budget: float,
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Walk the stages as `_decode` does, each frame only until few enough of its pixels are uncertain.

        A walk of its own, because that of `_decode` is a graph that does not depend on what is in the frames.

        Returns:
            The logits at the input size, the three confidence masks, and how many stages each frame went through.
        """
        masks = [audio.new_zeros(len(audio), *coarser.shape[-2:], dtype=torch.bool) for coarser in maps[:0:-1]]
        logits = audio.new_empty(len(audio), self.config.num_labels, *size)
        going = torch.arange(len(audio), device=audio.device)  # the frames that are not done
        stages_used = torch.full_like(going, NUM_STAGES)
        fused = uncertain = None
        audio_token = audio
        for index, stage in enumerate(self.stages):
            feature_map, sound, own_zeroing = (x if x is None else x[going] for x in (maps.pop(), audio, zeroing))
            fused, found, audio_token = stage(feature_map, sound, audio_token, fused, uncertain, layout, own_zeroing)
            if stage.is_finest:
                logits[going] = resize(found.contiguous(), size)
                break
            uncertain = self.confidence_masking(found, uncertain)
            masks[index][going] = uncertain
            # At its own size a stage can be sure of every pixel while the outline of an object runs between them.
            doubtful = self.confidence_masking(resize(found, maps[-1].shape[-2:]), None)
            goes_on = doubtful.float().mean(dim=(1, 2)) > budget
            if goes_on.all():
                continue
            done = going[~goes_on]
            logits[done], stages_used[done] = resize(found[~goes_on].contiguous(), size), index + 1
            layout = without_others(layout, goes_on)
            going, fused, audio_token, uncertain = (x[goes_on] for x in (going, fused, audio_token, uncertain))
            if not len(going):
                break
        return logits, masks, stages_used


def without_others(layout: ClipLayout, kept: torch.Tensor) -> ClipLayout:
    """Lay out some of the computed frames (computed frames,) bool as clips that hold nothing but them.

    Frames move up, which changes nothing, because no part of the network knows their order.
    """
    counts = layout.to_clips(kept).sum(dim=1)
    frames = int(counts.max())
    real = torch.arange(frames, device=kept.device) < counts[:, None]
    return ClipLayout(layout.batch, frames, None if real.all() else real)


__all__ = ["PCMANetInferenceModel", "PCMANetInferenceOutput"]
