"""Plain formulation of PCMANet, module by module as published: the baseline of the benchmarks.

Nothing is folded, regrouped or skipped because it is zero: every group of AVGA is a separate tensor, all clips of a batch
share one score matrix whose entries between clips are minus infinity, all four outputs are resized to the input size, and
padded frames are computed like real ones and set to zero after the neck. Tokens are reshaped to the feature map in the
published order. It shares the weights of one of our models and returns the same logits, if the configuration of that
model selects the published behavior: `token_layout="scrambled"` and `padded_frames="zeroed"` (see
tests/test_plain_pcmanet.py).

Three parts of the published code whose results are not used are not in our checkpoints, and therefore not here: the
audio-to-visual branch of the finest stage, a convolution of the coarsest fusion and copies of two ResNet stages. The
baseline is slightly faster than the published code for that reason.
"""

import torch
from torch import nn
from torch.nn import functional

from modeling_pcmanet import PCMANetForAudioVisualSegmentation
from modeling_pcmanet.modeling_audio_encoders import embed_audio


UNIT_LENGTH_EPS = 1e-12


class PlainGroupAttention(nn.Module):
    """AVGA: one similarity map for each group of channels, group after group."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.num_groups = attention.num_groups
        self.visual_projection = attention.visual_projection
        self.audio_projection = attention.audio_projection
        self.output_projection = attention.output_projection

    def forward(self, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Weight (frames, channels, height, width) by (frames, channels)."""
        audio_vector = functional.normalize(self.audio_projection(audio), dim=1, eps=UNIT_LENGTH_EPS)[:, :, None, None]
        weighted = []
        for group in self.visual_projection(visual).chunk(self.num_groups, dim=1):
            visual_vector = functional.normalize(group, dim=1, eps=UNIT_LENGTH_EPS)
            weighted.append((visual_vector * audio_vector).sum(dim=1, keepdim=True) * group)
        return self.output_projection(torch.cat(weighted, dim=1))


class PlainCrossAttention(nn.Module):
    """QSCA: the sequence of a frame is its audio token and its visual tokens; scores are computed between all clips."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.grid = attention.token_grid_size
        self.audio_embedding = attention.audio_embedding
        self.visual_embedding = attention.visual_embedding
        self.layer_norm = attention.layer_norm
        self.audio_to_visual = attention.audio_to_visual
        self.visual_to_audio = attention.visual_to_audio
        self.output_projection = attention.output_projection

    def forward(
        self, visual: torch.Tensor, audio: torch.Tensor, mask: torch.Tensor | None, clips: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the guidance, at the size of `visual`, and the next audio token."""
        pooled = functional.adaptive_avg_pool2d(visual, self.grid).flatten(2).transpose(1, 2)
        sequence = torch.cat([self.audio_embedding(audio)[:, None], self.visual_embedding(pooled)], dim=1)
        audio_states, visual_states = self.layer_norm(sequence).split([1, self.grid**2], dim=1)

        # Rows and columns of the score matrix are the tokens of all clips.
        frames = len(audio) // clips
        audio_clip = torch.arange(clips, device=audio.device).repeat_interleave(frames)
        visual_clip = audio_clip.repeat_interleave(self.grid**2)
        audio_states, visual_states = audio_states.flatten(0, 1), visual_states.flatten(0, 1)

        update = torch.zeros_like(sequence)
        if self.audio_to_visual is not None:
            update[:, 0] = attend(self.audio_to_visual, audio_states, visual_states, audio_clip, visual_clip)
        selected = torch.ones_like(visual_clip, dtype=torch.bool) if mask is None else mask.flatten()
        visual_update = torch.zeros_like(visual_states)
        attended = attend(
            self.visual_to_audio, visual_states[selected], audio_states, visual_clip[selected], audio_clip
        )
        # Under autocast the attention has another data type than the LayerNorm.
        visual_update[selected] = attended.to(visual_update.dtype)
        update[:, 1:] = visual_update.view(len(audio), -1, visual_update.shape[-1])
        sequence = sequence + self.output_projection(update)

        # The published order: tokens (frames, grid * grid, channels) are read as (frames, channels, grid, grid).
        tokens = sequence[:, 1:].reshape(len(audio), -1, self.grid, self.grid)
        return resize(tokens, visual.shape[-2:]), sequence[:, 0]


def attend(
    attention: nn.Module, queries: torch.Tensor, keys: torch.Tensor, query_clip: torch.Tensor, key_clip: torch.Tensor
) -> torch.Tensor:
    """Attend from (queries, channels) to (keys, channels) with one score matrix, minus infinity between clips."""
    query, key, value = (
        layer(states).unflatten(1, (-1, attention.head_size)).transpose(0, 1)
        for layer, states in ((attention.query, queries), (attention.key, keys), (attention.value, keys))
    )
    scores = query @ key.transpose(1, 2) * attention.head_size**-0.5
    scores = scores.masked_fill(query_clip[:, None] != key_clip[None, :], float("-inf"))
    return (scores.softmax(dim=-1) @ value).transpose(0, 1).flatten(1)


def resize(feature_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize bilinearly."""
    return functional.interpolate(feature_map, size=size, mode="bilinear", align_corners=False)


class PlainFusion(nn.Module):
    """GF: every feature map is projected at the size of the stage."""

    def __init__(self, fusion: nn.Module):
        super().__init__()
        self.guidance_projection = fusion.guidance_projection
        self.coarser_projection = fusion.coarser_projection
        self.output_projection = fusion.output_projection

    def forward(self, visual: torch.Tensor, guidance: torch.Tensor, coarser: torch.Tensor | None) -> torch.Tensor:
        """Fuse three feature maps into one of the size of `visual`."""
        fused = visual + self.guidance_projection(guidance)
        if coarser is not None:
            fused = fused + self.coarser_projection(resize(coarser, visual.shape[-2:]))
        return self.output_projection(fused)


class PlainPCMANet(nn.Module):
    """The complete network for one batch of clips.

    Args:
        model: One of our models; the weights are shared, not copied.
    """

    def __init__(self, model: PCMANetForAudioVisualSegmentation):
        super().__init__()
        network = model.model
        self.threshold = model.config.confidence_threshold
        self.backbone = network.backbone
        self.audio_encoder = network.audio_encoder
        self.audio_projection = network.audio_projection
        self.neck = network.neck
        self.group_attention = nn.ModuleList(PlainGroupAttention(stage.group_attention) for stage in network.stages)
        self.cross_attention = nn.ModuleList(PlainCrossAttention(stage.cross_attention) for stage in network.stages)
        self.fusion = nn.ModuleList(PlainFusion(stage.fusion) for stage in network.stages)
        self.heads = nn.ModuleList(stage.head for stage in network.stages)

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_features: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Return the four outputs at the input size, coarse to fine; the inputs are those of our model."""
        clips, frames = pixel_values.shape[:2]
        if audio_embeds is None:
            embeddings = embed_audio(self.audio_encoder, input_features.flatten(0, 1))
        else:
            embeddings = audio_embeds.flatten(0, 1)
        maps = self.backbone(pixel_values.flatten(0, 1)).feature_maps[::-1]
        maps = [neck(feature_map) for neck, feature_map in zip(self.neck, maps, strict=True)]
        if frame_mask is not None:
            real = frame_mask.flatten().to(embeddings.dtype)
            embeddings, maps = embeddings * real[:, None], [x * real[:, None, None, None] for x in maps]
        outputs = self.decode(maps, self.audio_projection(embeddings), clips)
        return tuple(resize(x, pixel_values.shape[-2:]).unflatten(0, (clips, frames)) for x in outputs)

    def decode(self, maps: list[torch.Tensor], audio: torch.Tensor, clips: int) -> list[torch.Tensor]:
        """Run the four stages coarse to fine; return their logits at their own size."""
        outputs: list[torch.Tensor] = []
        token, fused, mask = audio, None, None
        for index, visual in enumerate(maps):
            visual = self.group_attention[index](visual, audio)
            queries = None if mask is None else resize_mask(mask, (self.cross_attention[index].grid,) * 2)
            guidance, token = self.cross_attention[index](visual, token, queries, clips)
            fused = self.fusion[index](visual, guidance, fused)
            outputs.append(self.heads[index](fused))
            if index < len(maps) - 1:
                mask = self.uncertain(outputs[-1], mask)
        return outputs

    def uncertain(self, logits: torch.Tensor, coarser: torch.Tensor | None) -> torch.Tensor:
        """CIM: mark the pixels (frames, height, width) whose prediction is uncertain."""
        confidence = logits.sigmoid()[:, 0] if logits.shape[1] == 1 else logits.softmax(dim=1).amax(dim=1)
        uncertain = (confidence >= self.threshold) & (confidence <= 1 - self.threshold)
        return uncertain if coarser is None else uncertain & resize_mask(coarser, uncertain.shape[-2:])


def resize_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize a bool mask (frames, height, width) by nearest neighbor."""
    return functional.interpolate(mask[:, None].float(), size=size, mode="nearest")[:, 0].bool()
