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
"""The decoder stage of PCMANet for inference: the parts of modeling_pcmanet_decoder.py, rearranged to do less.

Maps are channels_last throughout, so that seeing them as tokens or as groups of channels copies nothing.
"""

import copy

import torch
from torch import nn
from torch.nn import functional

from .inference_convolution_pcmanet import UpsampledConvolution, folded_block, in_chunks
from .modeling_pcmanet_decoder import ClipLayout, resize_nearest, unit_length_eps


class InferenceGroupAttention(nn.Module):
    """AVGA with all groups at once; a group is weighted by dot product over length, no unit vector is ever written."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.num_groups = attention.num_groups
        self.visual_projection = folded_block(attention.visual_projection)
        self.audio_projection = copy.deepcopy(attention.audio_projection)
        self.output_projection = folded_block(attention.output_projection)

    def forward(self, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Weight a map (frames, channels, height, width) by the sound (frames, channels)."""
        eps = unit_length_eps(visual.dtype)
        sound = functional.normalize(self.audio_projection(audio), dim=-1, eps=eps)
        # (frames, height, width, groups, channels of a group)
        groups = self.visual_projection(visual).permute(0, 2, 3, 1).unflatten(-1, (self.num_groups, -1))
        similarity = groups @ sound[:, None, None, :, None]
        length = torch.linalg.vector_norm(groups, dim=-1, keepdim=True).clamp_min(eps)
        weighted = groups * (similarity / length)
        return self.output_projection(weighted.flatten(3).permute(0, 3, 1, 2))


class InferenceAttention(nn.Module):
    """Multi-head attention of the tokens of one modality to those of the other, fused."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.head_size = attention.head_size
        self.query = copy.deepcopy(attention.query)
        self.key = copy.deepcopy(attention.key)
        self.value = copy.deepcopy(attention.value)

    def forward(self, tokens: torch.Tensor, context: torch.Tensor, key_mask: torch.Tensor | None) -> torch.Tensor:
        """Attend from (batch, queries, channels) to (batch, keys, channels), additive mask (batch, 1, 1, keys)."""
        query, key, value = (
            layer(states).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for layer, states in ((self.query, tokens), (self.key, context), (self.value, context))
        )
        gathered = functional.scaled_dot_product_attention(query, key, value, attn_mask=key_mask)
        return gathered.transpose(1, 2).flatten(2)


class InferenceCrossAttention(nn.Module):
    """QSCA that hands out its tokens as a small map: the fusion brings it to size where that is cheapest."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.token_grid_size = attention.token_grid_size
        self.token_layout = attention.token_layout
        self.audio_embedding = copy.deepcopy(attention.audio_embedding)
        self.visual_embedding = copy.deepcopy(attention.visual_embedding)
        self.layer_norm = copy.deepcopy(attention.layer_norm)
        self.audio_to_visual = None
        # CODEPATH: nothing asks for the audio token of the finest stage.
        if attention.audio_to_visual is not None:
            self.audio_to_visual = InferenceAttention(attention.audio_to_visual)
        self.visual_to_audio = InferenceAttention(attention.visual_to_audio)
        self.output_projection = copy.deepcopy(attention.output_projection)

    def forward(
        self, visual: torch.Tensor, audio: torch.Tensor, uncertain: torch.Tensor | None, layout: ClipLayout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Exchange between the modalities within each clip.

        Args:
            visual: (frames, channels, height, width).
            audio: (frames, channels), the projected sound or the audio token of the stage before.
            uncertain: (frames, height, width) bool, any size: only these pixels ask; None lets all ask.
            layout: Which frame belongs to which clip.

        Returns:
            The guidance (frames, channels, token grid, token grid) and the audio token (frames, channels).
        """
        grid = (self.token_grid_size, self.token_grid_size)
        pooled = functional.adaptive_avg_pool2d(visual, grid).permute(0, 2, 3, 1).flatten(1, 2)
        visual_tokens, audio_token = self.visual_embedding(pooled), self.audio_embedding(audio)
        sequence = layout.to_clips(self.layer_norm(visual_tokens)).flatten(1, 2)
        sound = layout.to_clips(self.layer_norm(audio_token))

        gathered = self.visual_to_audio(sequence, sound, layout.key_mask(1, sound.dtype))
        gathered = layout.to_frames(gathered.unflatten(1, (layout.frames, -1)))
        if uncertain is not None:
            gathered = gathered * resize_nearest(uncertain, grid).flatten(1)[..., None]
        visual_tokens = visual_tokens + self.output_projection(gathered)
        if self.audio_to_visual is not None:
            update = self.audio_to_visual(sound, sequence, layout.key_mask(pooled.shape[1], sound.dtype))
            audio_token = audio_token + self.output_projection(layout.to_frames(update))
        return self._to_map(visual_tokens), audio_token

    def _to_map(self, tokens: torch.Tensor) -> torch.Tensor:
        """Go from tokens (frames, grid * grid, channels) to a map (frames, channels, grid, grid)."""
        frames, _, channels = tokens.shape
        grid = (self.token_grid_size, self.token_grid_size)
        if self.token_layout == "scrambled":
            return tokens.reshape(frames, channels, *grid).contiguous(memory_format=torch.channels_last)
        return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


class InferenceFusion(nn.Module):
    """GF whose convolutions of upsampled maps run at the maps' own resolution."""

    def __init__(self, fusion: nn.Module):
        super().__init__()
        # CODEPATH: an ablated network has no guidance, the coarsest stage nothing coarser.
        blocks = (fusion.guidance_projection, fusion.coarser_projection)
        self.guidance_projection, self.coarser_projection = (
            None if block is None else UpsampledConvolution(block) for block in blocks
        )
        self.output_projection = folded_block(fusion.output_projection)

    def forward(
        self, visual: torch.Tensor, guidance: torch.Tensor | None, coarser: torch.Tensor | None
    ) -> torch.Tensor:
        """Fuse `visual` (frames, channels, height, width) with maps of any smaller size."""
        size = visual.shape[-2:]
        fused = visual
        if guidance is not None:
            fused = self.guidance_projection(guidance, size).add_(fused)
        if coarser is not None:
            fused = self.coarser_projection(coarser, size).add_(fused)
        return self.output_projection(fused)


class InferenceStage(nn.Module):
    """One scale of the neck and its stage of the decoder: AVGA, QSCA, GF and a segmentation head.

    Only QSCA lets frames meet; what comes before and after it goes through a few frames at a time, so that the largest
    maps of the network never exist for all of them.

    Args:
        neck: The neck's block for this scale.
        stage: The [`DecoderStage`] to rearrange; like the neck it is left as it is.
        is_finest: Whether nobody needs the fused map.
    """

    def __init__(self, neck: nn.Module, stage: nn.Module, is_finest: bool):
        super().__init__()
        self.is_finest = is_finest
        self.neck = folded_block(neck)
        self.group_attention = InferenceGroupAttention(stage.group_attention)
        self.cross_attention = None
        # CODEPATH: only an ablated network has none.
        if stage.cross_attention is not None:
            self.cross_attention = InferenceCrossAttention(stage.cross_attention)
        self.fusion = InferenceFusion(stage.fusion)
        *block, classifier = stage.head
        self.head = nn.Sequential(folded_block(block), copy.deepcopy(classifier))

    def forward(
        self,
        feature_map: torch.Tensor,
        audio: torch.Tensor,
        audio_token: torch.Tensor,
        coarser: torch.Tensor | None,
        uncertain: torch.Tensor | None,
        layout: ClipLayout,
        zeroing: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """Refine the coarser stage's map at this stage's size.

        Args:
            feature_map: (frames, backbone channels, height, width).
            audio: (frames, channels), the projected sound.
            audio_token: (frames, channels), the audio token of the stage before, at first the projected sound.
            coarser: (frames, channels, coarser height, coarser width), the fused map of the stage before, or None.
            uncertain: (frames, coarser height, coarser width) bool, the mask of the stage before, or None.
            layout: Which frame belongs to which clip.
            zeroing: (frames, 1, 1, 1), 0 for frames whose neck map is to be zeroed as published, else 1; or None.

        Returns:
            The fused map (frames, channels, height, width), None at the finest stage; the logits (frames, num_labels,
            height, width); and the audio token (frames, channels).
        """
        values = len(self.neck.convolution.bias) * feature_map.shape[2] * feature_map.shape[3]
        (visual,) = in_chunks(self._listen, values, feature_map, audio, zeroing)
        guidance = None
        if self.cross_attention is not None:
            guidance, audio_token = self.cross_attention(visual, audio_token, uncertain, layout)
        # What the fusion mixes at half the resolution has nine values for each of its own.
        *fused, logits = in_chunks(self._fuse, values * 9 // 4, visual, guidance, coarser)
        return fused[0] if fused else None, logits, audio_token

    def _listen(
        self, feature_map: torch.Tensor, audio: torch.Tensor, zeroing: torch.Tensor | None
    ) -> tuple[torch.Tensor]:
        """Go from the backbone's map to the map weighted by the sound."""
        visual = self.neck(feature_map)
        if zeroing is not None:
            visual = visual * zeroing
        return (self.group_attention(visual, audio),)

    def _fuse(
        self, visual: torch.Tensor, guidance: torch.Tensor | None, coarser: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        """Go on to the fused map, if anybody needs it, and the logits."""
        fused = self.fusion(visual, guidance, coarser)
        logits = self.head(fused)
        return (logits,) if self.is_finest else (fused, logits)


__all__ = ["InferenceStage"]
