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
"""PCMANet: Progressive Confident Masking Attention Network for audio-visual segmentation (arXiv 2406.02345).

In reading order: AudioVisualGroupAttention (AVGA), QuerySelectedCrossAttention (QSCA), ConfidenceInducedMasking (CIM),
GuidedFusion (GF), one DecoderStage walked coarse to fine, the network and the head with the loss.

Inside, clips lie behind each other as real frames only, (frames, channels, height, width); `ClipLayout` knows which
frame belongs to which clip and is asked only where a clip's frames meet: in the cross-attention and at the output.
"""

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoBackbone, AutoConfig
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_pcmanet import NUM_STAGES, PCMANetConfig
from .loss_pcmanet import deeply_supervised_loss
from .modeling_vggish import VGGishModel


# What transformers' decorators take from, or add to, the keywords of a forward call.
CAPTURE_KEYWORDS = frozenset({"output_attentions", "output_hidden_states", "return_dict", "use_cache"})
MINIMUM_IMAGE_SIZE = 32  # the stride of the coarsest backbone map: below it that map would be empty


@dataclass
class PCMANetModelOutput(ModelOutput):
    """Output of [`PCMANetModel`]; all maps at their stage's own size, padded frames hold zeros.

    Attributes:
        last_hidden_state: (batch, frames, hidden_size, height / 4, width / 4), the finest fused map.
        stage_logits: Four tensors (batch, frames, num_labels, stage height, stage width), coarse to fine.
        confidence_masks: Three bool tensors (batch, frames, stage height, stage width) of the three coarser stages,
            True where the network is still unsure and the next stage asks on.
        kept_ratios: (3,), share of the real frames' pixels that each of these masks keeps.
        hidden_states: On request the input of the decoder (stage 4's neck map) and the fused map of every stage,
            (real frames, hidden_size, stage height, stage width), coarse to fine.
        attentions: On request and with `attn_implementation="eager"`, the attention weights of QSCA in order of
            computation: audio to visual, then visual to audio, stage by stage (stage 1 has only the latter).
    """

    last_hidden_state: torch.FloatTensor | None = None
    stage_logits: tuple[torch.FloatTensor, ...] | None = None
    confidence_masks: tuple[torch.BoolTensor, ...] | None = None
    kept_ratios: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class PCMANetOutput(ModelOutput):
    """Output of [`PCMANetForAudioVisualSegmentation`].

    Attributes:
        loss: Scalar, when labels were given.
        logits: (batch, frames, num_labels, height, width), the finest stage at the input size. Padded frames hold 0.
        stage_logits: The logits of all four stages at the input size, coarse to fine; the last one is `logits`.
        confidence_masks: See [`PCMANetModelOutput`].
        kept_ratios: See [`PCMANetModelOutput`].
        hidden_states: See [`PCMANetModelOutput`].
        attentions: See [`PCMANetModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    stage_logits: tuple[torch.FloatTensor, ...] | None = None
    confidence_masks: tuple[torch.BoolTensor, ...] | None = None
    kept_ratios: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass(frozen=True)
class ClipLayout:
    """Which clip every computed frame belongs to.

    Attributes:
        batch: Number of clips.
        frames: Number of frames per clip, padding included.
        real: (batch, frames) bool, False for frames that are not computed; None when all are.
    """

    batch: int
    frames: int
    real: torch.BoolTensor | None

    def to_frames(self, clips: torch.Tensor) -> torch.Tensor:
        """Go from (batch, frames, ...) to the computed frames only, (computed frames, ...)."""
        return clips.flatten(0, 1) if self.real is None else clips[self.real]

    def to_clips(self, frames: torch.Tensor) -> torch.Tensor:
        """Go from (computed frames, ...) to (batch, frames, ...); frames that were not computed become zeros."""
        if self.real is None:
            return frames.unflatten(0, (self.batch, self.frames))
        clips = frames.new_zeros(self.batch, self.frames, *frames.shape[1:])
        clips[self.real] = frames
        return clips

    def key_mask(self, tokens_per_frame: int, dtype: torch.dtype) -> torch.Tensor | None:
        """Additive attention mask (batch, 1, 1, frames * tokens_per_frame) that hides frames that are not computed."""
        if self.real is None:
            return None
        hidden = torch.zeros(self.real.shape, dtype=dtype, device=self.real.device)
        hidden = hidden.masked_fill(~self.real, torch.finfo(dtype).min)
        return hidden.repeat_interleave(tokens_per_frame, dim=1)[:, None, None, :]


class ConvolutionBlock(nn.Sequential):
    """Convolution, BatchNorm, ReLU at an unchanged size."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, groups: int = 1):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )


class AudioVisualGroupAttention(nn.Module):
    """AVGA (paper section 3.2): every group of channels is weighted by its cosine similarity to the sound."""

    def __init__(self, config: PCMANetConfig):
        super().__init__()
        self.num_groups = config.num_groups
        channels = config.hidden_size
        self.visual_projection = ConvolutionBlock(channels, channels, kernel_size=1, groups=config.num_groups)
        # Two linear layers with nothing between them, as published.
        # trf-ignore: TRF036 a plain chain, called once
        self.audio_projection = nn.Sequential(
            nn.Linear(channels, channels), nn.Linear(channels, channels // config.num_groups), nn.ReLU()
        )
        self.output_projection = ConvolutionBlock(channels, channels, kernel_size=1)

    def forward(self, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Weight a feature map by the sound.

        Args:
            visual: (frames, channels, height, width).
            audio: (frames, channels).

        Returns:
            (frames, channels, height, width).
        """
        groups = self.visual_projection(visual).unflatten(1, (self.num_groups, -1))
        # One audio vector serves all groups: (frames, 1, channels / groups, 1, 1).
        sound = _to_unit_length(self.audio_projection(audio), dim=-1)[:, None, :, None, None]
        similarity = (_to_unit_length(groups, dim=2) * sound).sum(2, keepdim=True)
        return self.output_projection((similarity * groups).flatten(1, 2))


def _to_unit_length(vectors: torch.Tensor, dim: int) -> torch.Tensor:
    """Divide by the L2 norm; the published epsilon of 1e-12 is zero in float16, where a silent vector became NaN."""
    return functional.normalize(vectors, dim=dim, eps=max(1e-12, torch.finfo(vectors.dtype).tiny))


def eager_attention_forward(
    _module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend in plain operations; query, key and value are (batch, heads, tokens, head size)."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class CrossAttention(nn.Module):
    """Multi-head attention of the tokens of one modality to those of the other, without its output projection."""

    is_causal = False

    def __init__(self, config: PCMANetConfig):
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, tokens: torch.Tensor, context: torch.Tensor, key_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend within each clip.

        Args:
            tokens: (batch, queries, channels).
            context: (batch, keys, channels).
            key_mask: Additive, (batch, 1, 1, keys), or None.

        Returns:
            What the queries gathered, (batch, queries, channels), and the weights where the implementation has them.
        """
        query, key, value = (
            layer(states).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for layer, states in ((self.query, tokens), (self.key, context), (self.value, context))
        )
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        gathered, weights = attention(self, query, key, value, key_mask, scaling=self.head_size**-0.5)
        return gathered.flatten(2), weights


class QuerySelectedCrossAttention(nn.Module):
    """QSCA (paper section 3.3): sound and picture exchange what they know, only where the picture is unsure."""

    def __init__(self, config: PCMANetConfig, token_grid_size: int, is_finest: bool):
        super().__init__()
        self.token_grid_size = token_grid_size
        self.token_layout = config.token_layout
        self.masked_query_gradients = config.masked_query_gradients
        self.gather_queries = config.gather_queries
        self.audio_embedding = nn.Linear(config.hidden_size, config.hidden_size)
        self.visual_embedding = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        # The finest stage's audio token would go nowhere, so the branch that updates it is not built there.
        self.audio_to_visual = None if is_finest else CrossAttention(config)
        self.visual_to_audio = CrossAttention(config)
        self.output_projection = nn.Linear(config.hidden_size, config.hidden_size)

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
            The guidance (frames, channels, height, width) and the audio token (frames, channels).
        """
        grid = self.token_grid_size
        pooled = functional.adaptive_avg_pool2d(visual, grid).flatten(2).transpose(1, 2)
        visual_tokens, audio_token = self.visual_embedding(pooled), self.audio_embedding(audio)
        visual_update, audio_update = self._attend(
            layout.to_clips(self.layer_norm(visual_tokens)),
            layout.to_clips(self.layer_norm(audio_token)),
            self._selected_queries(uncertain, layout),
            layout,
        )
        visual_tokens = visual_tokens + self.output_projection(layout.to_frames(visual_update))
        if audio_update is not None:
            audio_token = audio_token + self.output_projection(layout.to_frames(audio_update))
        guidance = functional.interpolate(
            self._to_map(visual_tokens), size=visual.shape[-2:], mode="bilinear", align_corners=False
        )
        return guidance, audio_token

    def _attend(
        self, visual: torch.Tensor, audio: torch.Tensor, selected: torch.Tensor | None, layout: ClipLayout
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend both ways; visual is (batch, frames, tokens, channels), audio (batch, frames, channels)."""
        num_tokens = visual.shape[2]
        sequence = visual.flatten(1, 2)
        audio_update = None
        if self.audio_to_visual is not None:
            audio_update, _ = self.audio_to_visual(audio, sequence, layout.key_mask(num_tokens, audio.dtype))
        visual_update = self._attend_selected(sequence, audio, selected, layout.key_mask(1, audio.dtype))
        if selected is not None and not self.masked_query_gradients:
            visual_update = visual_update.detach()
        return visual_update.unflatten(1, (-1, num_tokens)), audio_update

    def _attend_selected(
        self,
        sequence: torch.Tensor,
        audio: torch.Tensor,
        selected: torch.Tensor | None,
        key_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Let the selected visual tokens (batch, tokens) of each clip ask the sound; the others gather zeros."""
        if selected is None:
            return self.visual_to_audio(sequence, audio, key_mask)[0]
        if not self.gather_queries:
            return self.visual_to_audio(sequence, audio, key_mask)[0] * selected[..., None]
        # Selected tokens first; as many as the fullest clip of the batch has, so that one tensor holds all clips.
        most = int(selected.sum(1).max())
        places = selected.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        queries = sequence.take_along_dim(places[..., None], dim=1)
        gathered, _ = self.visual_to_audio(queries, audio, key_mask)
        gathered = gathered * selected.take_along_dim(places, dim=1)[..., None]
        index = places[..., None].expand_as(gathered)
        return torch.zeros_like(sequence, dtype=gathered.dtype).scatter(1, index, gathered)

    def _selected_queries(self, uncertain: torch.Tensor | None, layout: ClipLayout) -> torch.Tensor | None:
        """Resize the mask to the token grid (nearest) and lay it out as (batch, frames * tokens) bool."""
        if uncertain is None:
            return None
        grid = (self.token_grid_size, self.token_grid_size)
        if uncertain.shape[-2:] != grid:
            uncertain = _resize_nearest(uncertain, grid)
        return layout.to_clips(uncertain.flatten(1)).flatten(1)

    def _to_map(self, tokens: torch.Tensor) -> torch.Tensor:
        """Go from tokens (frames, s * s, channels) to a map (frames, channels, s, s)."""
        if self.token_layout == "scrambled":
            tokens = tokens.reshape(tokens.shape[0], tokens.shape[2], tokens.shape[1])
        else:
            tokens = tokens.transpose(1, 2)
        return tokens.unflatten(2, (self.token_grid_size, self.token_grid_size))


def _resize_nearest(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize a bool mask (frames, height, width) to another size by nearest neighbour."""
    return functional.interpolate(mask[:, None].float(), size=size, mode="nearest")[:, 0].bool()


class ConfidenceInducedMasking(nn.Module):
    """CIM (paper section 3.4): marks the pixels that a stage is not yet sure of, within those of the stage before."""

    def __init__(self, config: PCMANetConfig):
        super().__init__()
        self.threshold = config.confidence_threshold

    @torch.no_grad()
    def forward(self, logits: torch.Tensor, coarser: torch.Tensor | None) -> torch.Tensor:
        """Mark uncertain pixels.

        Args:
            logits: (frames, num_labels, height, width).
            coarser: (frames, coarser height, coarser width) bool, the mask of the stage before, or None.

        Returns:
            (frames, height, width) bool.
        """
        if logits.shape[1] == 1:
            confidence = logits[:, 0].float().sigmoid()
        else:
            confidence = logits.float().softmax(dim=1).amax(dim=1)
        uncertain = (confidence >= self.threshold) & (confidence <= 1 - self.threshold)
        return uncertain if coarser is None else uncertain & _resize_nearest(coarser, uncertain.shape[-2:])


class GuidedFusion(nn.Module):
    """GF (paper section 3.4): adds the guidance and the coarser fused map to a stage's own map."""

    def __init__(self, config: PCMANetConfig, is_coarsest: bool):
        super().__init__()
        channels = config.hidden_size
        # CODEPATH: without QSCA (an ablation) there is no guidance to project.
        self.guidance_projection = ConvolutionBlock(channels, channels) if config.cross_attention else None
        self.coarser_projection = None if is_coarsest else ConvolutionBlock(channels, channels)
        self.output_projection = ConvolutionBlock(channels, channels)

    def forward(
        self, visual: torch.Tensor, guidance: torch.Tensor | None, coarser: torch.Tensor | None
    ) -> torch.Tensor:
        """Fuse maps.

        Args:
            visual: (frames, channels, height, width).
            guidance: The same shape, or None in a network without QSCA.
            coarser: (frames, channels, coarser height, coarser width), or None at the coarsest stage.

        Returns:
            (frames, channels, height, width).
        """
        fused = visual
        if guidance is not None:
            fused = fused + self.guidance_projection(guidance)
        if coarser is not None:
            upsampled = functional.interpolate(coarser, size=visual.shape[-2:], mode="bilinear", align_corners=False)
            fused = fused + self.coarser_projection(upsampled)
        return self.output_projection(fused)


class DecoderStage(GradientCheckpointingLayer):
    """One stage of the decoder: AVGA, QSCA, GF and a segmentation head."""

    def __init__(self, config: PCMANetConfig, index: int):
        super().__init__()
        self.group_attention = AudioVisualGroupAttention(config)
        self.cross_attention = None
        # CODEPATH: every published network has QSCA; only the ablation of docs leaves it out.
        if config.cross_attention:
            self.cross_attention = QuerySelectedCrossAttention(
                config, token_grid_size=config.token_grid_sizes[index], is_finest=index == NUM_STAGES - 1
            )
        self.fusion = GuidedFusion(config, is_coarsest=index == 0)
        # trf-ignore: TRF036 a plain chain, called once
        self.head = nn.Sequential(
            *ConvolutionBlock(config.hidden_size, config.head_channels),
            nn.Conv2d(config.head_channels, config.num_labels, kernel_size=1),
        )

    def forward(
        self,
        visual: torch.Tensor,
        audio: torch.Tensor,
        audio_token: torch.Tensor,
        coarser: torch.Tensor | None,
        uncertain: torch.Tensor | None,
        layout: ClipLayout,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Refine the coarser stage's map at this stage's size.

        Args:
            visual: (frames, channels, height, width), the neck's map.
            audio: (frames, channels), the projected sound.
            audio_token: (frames, channels), the audio token of the stage before, at first the projected sound.
            coarser: (frames, channels, coarser height, coarser width), the fused map of the stage before, or None.
            uncertain: (frames, coarser height, coarser width) bool, the mask of the stage before, or None.
            layout: Which frame belongs to which clip.

        Returns:
            The fused map (frames, channels, height, width), the logits (frames, num_labels, height, width) and the
            audio token (frames, channels).
        """
        visual = self.group_attention(visual, audio)
        guidance = None
        if self.cross_attention is not None:
            guidance, audio_token = self.cross_attention(visual, audio_token, uncertain, layout)
        fused = self.fusion(visual, guidance, coarser)
        return fused, self.head(fused), audio_token


class PCMANetPreTrainedModel(PreTrainedModel):
    """What both PCMANet classes share: initialisation, loading and the switches of transformers."""

    config: PCMANetConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("video", "audio")
    supports_gradient_checkpointing = True
    # The loss is a mean over frames, so Trainer must not rescale it by the number of items in the batch.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _no_split_modules = ("DecoderStage",)
    _can_record_outputs = {
        "hidden_states": OutputRecorder(DecoderStage, index=0),
        "attentions": OutputRecorder(CrossAttention, index=1),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d | nn.Linear):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)


class PCMANetModel(PCMANetPreTrainedModel):
    """Backbone, neck, audio encoder and the four decoder stages: frames and sound to the logits of every stage."""

    def __init__(self, config: PCMANetConfig):
        super().__init__(config)
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        self._set_backbone_norm_eps()
        self.audio_encoder = VGGishModel(config.audio_config)
        self.audio_projection = nn.Linear(config.audio_config.embedding_size, config.hidden_size)
        coarse_to_fine = self.backbone.channels[::-1]
        self.neck = nn.ModuleList(ConvolutionBlock(channels, config.hidden_size) for channels in coarse_to_fine)
        self.stages = nn.ModuleList(DecoderStage(config, index) for index in range(NUM_STAGES))
        self.confidence_masking = ConfidenceInducedMasking(config)
        # CODEPATH: published networks keep VGGish fixed; whoever has no pretrained VGGish trains it along.
        if config.freeze_audio_encoder:
            self.audio_encoder.requires_grad_(False)
        self.post_init()

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; a frozen audio encoder stays in evaluation."""
        super().train(mode)
        # CODEPATH: as in __init__.
        if self.config.freeze_audio_encoder:
            self.audio_encoder.eval()
        return self

    def _set_backbone_norm_eps(self) -> None:
        """Give a PVT-v2 backbone the epsilon that published weights were trained with (see the config)."""
        # CODEPATH: PVT-v2 alone has these norms; ResNet and others need nothing.
        if self.config.backbone_config.model_type != "pvt_v2":
            return
        for name, module in self.backbone.named_modules():
            if name.endswith(("patch_embedding.layer_norm", "attention.layer_norm")):
                module.eps = self.config.patch_embedding_layer_norm_eps

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        input_features: torch.FloatTensor | None = None,
        audio_embeds: torch.FloatTensor | None = None,
        frame_mask: torch.BoolTensor | None = None,
        **kwargs: Any,
    ) -> PCMANetModelOutput:
        """Run the network.

        Args:
            pixel_values: (batch, frames, 3, height, width), ImageNet-normalised, height and width from 32 up.
            input_features: (batch, frames, 1, 96, 64) log-mel patches.
            audio_embeds: (batch, frames, 128) VGGish embeddings, in place of `input_features`.
            frame_mask: (batch, frames) bool, False for padding.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Raises:
            ValueError: If a shape is wrong or not exactly one of the two forms of sound is given.
            TypeError: If a keyword is unknown.
        """
        if unknown := kwargs.keys() - CAPTURE_KEYWORDS:
            raise TypeError(f"The model got the unknown keywords {sorted(unknown)}; see the batch of the processor.")
        _validate_inputs(pixel_values, input_features, audio_embeds, frame_mask)
        batch, frames = pixel_values.shape[:2]
        excluded = frame_mask is not None and self.config.padded_frames == "excluded"
        layout = ClipLayout(batch, frames, frame_mask.bool() if excluded else None)

        embeddings = self._embed_audio(input_features, audio_embeds, layout)
        maps = self.backbone(layout.to_frames(pixel_values)).feature_maps[::-1]
        maps = [neck(feature_map) for neck, feature_map in zip(self.neck, maps, strict=True)]
        if frame_mask is not None and not excluded:
            # As published the embeddings are zeroed, so that padded frames still carry the projection's bias.
            real = frame_mask.flatten().to(embeddings.dtype)
            embeddings, maps = embeddings * real[:, None], [x * real[:, None, None, None] for x in maps]
        audio = self.audio_projection(embeddings)

        fused, stage_logits, masks = self._decode(maps, audio, layout)
        return PCMANetModelOutput(
            last_hidden_state=layout.to_clips(fused),
            stage_logits=tuple(layout.to_clips(logits) for logits in stage_logits),
            confidence_masks=tuple(layout.to_clips(mask) for mask in masks),
            kept_ratios=torch.stack([mask.float().mean() for mask in masks]),
        )

    def _embed_audio(
        self, input_features: torch.Tensor | None, audio_embeds: torch.Tensor | None, layout: ClipLayout
    ) -> torch.Tensor:
        """Go from either form of sound to embeddings of the computed frames, (computed frames, embedding_size)."""
        if input_features is None:
            return layout.to_frames(audio_embeds)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_audio_encoder):
            return self.audio_encoder(layout.to_frames(input_features)).audio_embeds

    def _decode(
        self, maps: list[torch.Tensor], audio: torch.Tensor, layout: ClipLayout
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Walk the stages coarse to fine; returns the finest fused map, all logits and the three confidence masks."""
        fused = uncertain = None
        audio_token = audio
        stage_logits, masks = [], []
        for index, (stage, visual) in enumerate(zip(self.stages, maps, strict=True)):
            fused, logits, audio_token = stage(visual, audio, audio_token, fused, uncertain, layout)
            stage_logits.append(logits)
            if index < NUM_STAGES - 1:
                uncertain = self.confidence_masking(logits, uncertain)
                masks.append(uncertain)
        return fused, stage_logits, masks


class PCMANetForAudioVisualSegmentation(PCMANetPreTrainedModel):
    """PCMANet with logits at the input size and the paper's loss over all four stages.

    Example:
    ```python
    model = PCMANetForAudioVisualSegmentation.from_pretrained("examples/demo_model")
    outputs = model(**processor(videos="clip.mp4", return_tensors="pt"))
    masks = processor.post_process_semantic_segmentation(outputs)
    ```
    """

    def __init__(self, config: PCMANetConfig):
        super().__init__(config)
        self.model = PCMANetModel(config)
        self.post_init()

    @classmethod
    def from_pretrained_backbones(cls, visual: str | PathLike, audio: str | PathLike, **config: Any) -> Self:
        """Start a new model from published backbone weights; everything else is freshly initialised.

        Args:
            visual: Hub id or folder of a backbone that `AutoBackbone` loads, for example `OpenGVLab/pvt_v2_b5`.
            audio: Hub id or folder of a [`VGGishModel`].
            **config: Fields of [`PCMANetConfig`], for example `num_labels=71`.

        Raises:
            OSError: If there are no weights under one of the names.
        """
        stages = ["stage1", "stage2", "stage3", "stage4"]
        backbone_config = AutoConfig.from_pretrained(visual, out_features=stages)
        # Not AutoBackbone.from_pretrained: it asks the Hub whether the name exists, which no local folder does.
        backbone = MODEL_FOR_BACKBONE_MAPPING[type(backbone_config)].from_pretrained(visual, config=backbone_config)
        audio_encoder = VGGishModel.from_pretrained(audio)
        model = cls(PCMANetConfig(backbone_config=backbone.config, audio_config=audio_encoder.config, **config))
        model.model.backbone.load_state_dict(backbone.state_dict())
        model.model.audio_encoder.load_state_dict(audio_encoder.state_dict())
        return model

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        input_features: torch.FloatTensor | None = None,
        audio_embeds: torch.FloatTensor | None = None,
        frame_mask: torch.BoolTensor | None = None,
        labels: torch.LongTensor | None = None,
        label_mask: torch.BoolTensor | None = None,
        **kwargs: Any,
    ) -> PCMANetOutput:
        """Segment what sounds.

        Args:
            pixel_values: (batch, frames, 3, height, width), ImageNet-normalised, height and width from 32 up.
            input_features: (batch, frames, 1, 96, 64) log-mel patches.
            audio_embeds: (batch, frames, 128) VGGish embeddings, in place of `input_features`.
            frame_mask: (batch, frames) bool, False for padding.
            labels: (batch, frames, height, width), 0/1 or class indexes, 255 = ignore.
            label_mask: (batch, frames) bool, which frames are annotated; all real ones if not given.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Raises:
            ValueError: If a shape is wrong or not exactly one of the two forms of sound is given.
            TypeError: If a keyword is unknown.
        """
        outputs = self.model(pixel_values, input_features, audio_embeds, frame_mask, **kwargs)
        stage_logits = tuple(_resize_logits(logits, pixel_values.shape[-2:]) for logits in outputs.stage_logits)
        loss = None if labels is None else self._loss(stage_logits, labels, frame_mask, label_mask)
        return PCMANetOutput(
            loss=loss,
            logits=stage_logits[-1],
            stage_logits=stage_logits,
            confidence_masks=outputs.confidence_masks,
            kept_ratios=outputs.kept_ratios,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss(
        self,
        stage_logits: tuple[torch.Tensor, ...],
        labels: torch.Tensor,
        frame_mask: torch.Tensor | None,
        label_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Compute the loss over the annotated real frames."""
        expected = (*stage_logits[-1].shape[:2], *stage_logits[-1].shape[3:])
        if labels.shape != expected:
            raise ValueError(
                f"`labels` must be (batch, frames, height, width) = {tuple(expected)}, got {tuple(labels.shape)}."
            )
        annotated = torch.ones(labels.shape[:2], dtype=torch.bool, device=labels.device)
        for mask in (frame_mask, label_mask):
            annotated = annotated if mask is None else annotated & mask.bool()
        weights = self.config.stage_loss_weights
        return deeply_supervised_loss(stage_logits, labels, annotated, weights, self.config.ignore_index)


def _resize_logits(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize (batch, frames, num_labels, height, width) bilinearly to another height and width."""
    resized = functional.interpolate(logits.flatten(0, 1), size=size, mode="bilinear", align_corners=False)
    return resized.unflatten(0, logits.shape[:2])


def _validate_inputs(
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


__all__ = ["PCMANetForAudioVisualSegmentation", "PCMANetModel", "PCMANetModelOutput", "PCMANetOutput"]
