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
"""Decoder of PCMANet, and the inputs, outputs and clip layout that the model and the optimized model share.

Modules, with the names of arXiv 2406.02345: AudioVisualGroupAttention (AVGA), QuerySelectedCrossAttention (QSCA),
ConfidenceInducedMasking (CIM), GuidedFusion (GF), and the DecoderStage that combines them. SoundingMaps, which is not
in the paper, can replace AVGA, and custom blocks can replace AVGA, QSCA and GF (see `register_block`).

All modules process the real frames of all clips as one batch, (frames, channels, height, width). `ClipLayout` maps frames
to clips where the frames of a clip interact: in the cross-attention and at the output.
"""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar, cast

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from .configuration_pcmanet import NUM_STAGES, PCMANetConfig
from .convolutions_pcmanet import Convolution, resize


_NUM_SOUNDING_MAPS = 16
_SOFTMAX_SCALE = 4.0  # of `audio_inputs`: the softmax then varies as much as standardized scores do
_MINIMUM_IMAGE_SIZE = 32  # pixels, the stride of the coarsest feature map, which would be empty for smaller images


# Inputs, outputs and the layout of clips.


def validate_inputs(
    pixel_values: torch.Tensor,
    input_features: torch.Tensor | None,
    audio_embeds: torch.Tensor | None,
    frame_mask: torch.Tensor | None,
    config: PCMANetConfig,
) -> None:
    """Check the inputs of a forward call.

    Args:
        pixel_values: (batch, frames, 3, height, width).
        input_features: (batch, frames, ...) or (batch, frames, windows, ...), or None. The audio encoder checks the rest.
        audio_embeds: (batch, frames, windows * embedding size), or None.
        frame_mask: (batch, frames), or None.
        config: Configuration of the network.

    Raises:
        ValueError: If a shape is wrong or not exactly one of the two audio inputs is given.
    """
    shape = _shape(pixel_values)
    if len(shape) != 5 or 0 in shape[:2] or shape[2] != 3 or min(shape[-2:]) < _MINIMUM_IMAGE_SIZE:
        raise ValueError(
            "`pixel_values` must be (batch, frames, 3, height, width) with at least one clip, one frame, and height "
            f"and width of at least {_MINIMUM_IMAGE_SIZE}, got {shape or type(pixel_values).__name__}."
        )
    if (input_features is None) == (audio_embeds is None):
        given = "neither" if input_features is None else "both"
        raise ValueError(
            "Expected exactly one of `input_features` (from the processor) and `audio_embeds` (outputs of the audio encoder), "
            f"got {given}."
        )
    windows = config.num_audio_windows
    several = (windows,) if windows > 1 else ()
    expected = {
        "input_features": (
            input_features,
            "batch, frames, windows, ..." if several else "batch, frames, ...",
            several,
        ),
        "audio_embeds": (audio_embeds, "batch, frames, embedding size", (config.audio_embeds_size,)),
        "frame_mask": (frame_mask, "batch, frames", ()),
    }
    for name, (tensor, axes, own) in expected.items():
        leading = (*shape[:2], *own)
        has_more = name == "input_features"
        if tensor is None or (_shape(tensor)[: len(leading)] == leading and (tensor.ndim > len(leading)) == has_more):
            continue
        more = ", ..." if has_more else ""
        raise ValueError(
            f"`{name}` must be ({axes}) = ({', '.join(map(str, leading))}{more}) to match `pixel_values`, got "
            f"{_shape(tensor) or type(tensor).__name__}."
        )


def audio_inputs(embeddings: torch.Tensor, config: PCMANetConfig) -> torch.Tensor:
    """Return what the network projects to its width: audio embeddings, and with `audio_softmax` also their softmax.

    Not in the paper. The audio reaches the blocks through linear layers, and a weighted sum of class scores cannot
    tell which class has the highest score; the softmax over the scores of a window can. docs/benchmarks/ablation.md
    measures the gain.

    Args:
        embeddings: (frames, windows * width), outputs of the audio encoder.
        config: Configuration of the network.

    Returns:
        (frames, windows * width), with `audio_softmax` (frames, 2 * windows * width).
    """
    # CODEPATH: published networks get the embeddings alone; the softmax is for audio encoders that score classes.
    if not config.audio_softmax:
        return embeddings
    probabilities = embeddings.unflatten(-1, (config.num_audio_windows, -1)).softmax(dim=-1).flatten(-2)
    return torch.cat([embeddings, _SOFTMAX_SCALE * probabilities], dim=-1)


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the shape, or an empty one for other types, such as NumPy arrays from a call without `return_tensors`."""
    return tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else ()


@dataclass
class PCMANetOutput(ModelOutput):
    """Output of [`PCMANetForAudioVisualSegmentation`] and of the optimized model.

    The optimized model returns `logits`, `confidence_masks`, `stages_used` and `audio_embeds` only.

    Attributes:
        loss: Scalar, if labels were given.
        logits: (batch, frames, num_labels, height, width), the finest stage at the input size. Padded frames are 0,
            except with `padded_frames="zeroed"`, which computes them.
        stage_logits: The logits of all four stages at the input size, coarse to fine; the last one is `logits`. None
            in training mode with labels, because the loss needs only a few frames of them at a time.
        confidence_masks: Three uint8 tensors (batch, frames, stage height, stage width) of the three coarser stages, 1 where
            the prediction is uncertain and the next stage selects queries, else 0. 0 at stages that a frame did not reach
            because of an early exit.
        kept_ratios: See [`PCMANetModelOutput`].
        hidden_states: See [`PCMANetModelOutput`].
        attentions: See [`PCMANetModelOutput`].
        stages_used: (batch, frames) int64, the stage that computed the logits of each frame, 1 (coarsest) to 4, or 0
            for padding that was not computed. Only with an `early_exit_threshold`.
        audio_embeds: (batch, frames, windows * width), outputs of the audio encoder.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    stage_logits: tuple[torch.Tensor, ...] | None = None
    confidence_masks: tuple[torch.Tensor, ...] | None = None
    kept_ratios: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    stages_used: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None


@dataclass(frozen=True)
class ClipLayout:
    """The clip to which each computed frame belongs.

    Attributes:
        batch: Number of clips.
        frames: Number of frames per clip, padding included.
        real: (batch, frames) bool, False for frames that are not computed; None if all frames are computed.
        positions: (computed frames,) int64, position of each computed frame among those of all clips; None if all frames
            are computed.
    """

    batch: int
    frames: int
    real: torch.Tensor | None
    positions: torch.Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.real is not None:
            # Found once: the number of computed frames depends on values, and on a GPU each query for it waits for
            # them.
            positions = self.real.flatten().nonzero()[:, 0]
            object.__setattr__(self, "positions", positions)
            if torch.compiler.is_compiling():
                torch._check(positions.shape[0] > 0)  # BatchNorm in a graph checks whether it is empty

    def to_frames(self, clips: torch.Tensor) -> torch.Tensor:
        """Select the computed frames: (batch, frames, ...) to (computed frames, ...)."""
        frames = clips.flatten(0, 1)
        return frames if self.positions is None else frames.index_select(0, self.positions)

    def to_clips(self, frames: torch.Tensor) -> torch.Tensor:
        """Restore the clips: (computed frames, ...) to (batch, frames, ...), with zeros for frames that were not computed."""
        if self.positions is not None:
            padded = frames.new_zeros(self.batch * self.frames, *frames.shape[1:])
            frames = padded.index_copy(0, self.positions, frames)
        return frames.unflatten(0, (self.batch, self.frames))

    def key_mask(self, tokens_per_frame: int, dtype: torch.dtype) -> torch.Tensor | None:
        """Return an additive mask (batch, 1, 1, frames * tokens_per_frame) that hides frames that are not computed."""
        if self.real is None:
            return None
        hidden = torch.zeros(self.real.shape, dtype=dtype, device=self.real.device)
        hidden = hidden.masked_fill(~self.real, torch.finfo(dtype).min)
        return hidden.repeat_interleave(tokens_per_frame, dim=1)[:, None, None, :]


def build_layout(clips: torch.Tensor, frame_mask: torch.Tensor | None, config: PCMANetConfig) -> ClipLayout:
    """Build the layout of a batch.

    Args:
        clips: (batch, frames, ...).
        frame_mask: (batch, frames), False for padding; None if nothing is padded.
        config: Configuration of the network; published networks compute padded frames as well.
    """
    real = None
    # CODEPATH: the published network for AVSS computes padded frames ("zeroed"); all other checkpoints leave them out.
    if frame_mask is not None and config.padded_frames == "excluded":
        real = frame_mask.bool()
    return ClipLayout(*clips.shape[:2], real=real)


# Modules.


class ConvolutionBlock(nn.Sequential):
    """Convolution, BatchNorm and ReLU that keep the height and width."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, groups: int = 1):
        super().__init__(
            Convolution(in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )

    def forward(self, input: torch.Tensor, size: tuple[int, ...] | None = None) -> torch.Tensor:
        """Map (frames, in channels, height, width), first resized to `size` if it is given."""
        convolution, batch_norm, activation = self
        if size is not None and not isinstance(convolution, Convolution):  # replaced, as by LoRA
            return activation(batch_norm(convolution(resize(input, size))))
        return activation(batch_norm(convolution(input, size)))


class AudioVisualGroupAttention(nn.Module):
    """AVGA: weights every group of channels by its cosine similarity to the audio."""

    def __init__(self, config: PCMANetConfig, _index: int):
        super().__init__()
        self.num_groups = config.num_groups
        channels = config.hidden_size
        self.visual_projection = ConvolutionBlock(channels, channels, kernel_size=1, groups=config.num_groups)
        # Two linear layers without an activation between them, as published.
        # trf-ignore: TRF036 a plain chain, called once
        self.audio_projection = nn.Sequential(
            nn.Linear(channels, channels), nn.Linear(channels, channels // config.num_groups), nn.ReLU()
        )
        self.output_projection = ConvolutionBlock(channels, channels, kernel_size=1)

    def forward(self, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Weight a feature map by the audio.

        Args:
            visual: (frames, channels, height, width).
            audio: (frames, channels).

        Returns:
            (frames, channels, height, width).
        """
        groups, eps = self.visual_projection(visual).unflatten(1, (self.num_groups, -1)), unit_length_eps(visual.dtype)
        # One audio vector for all groups: (frames, 1, channels / groups, 1, 1).
        audio_vector = functional.normalize(self.audio_projection(audio), dim=-1, eps=eps)[:, None, :, None, None]
        similarity = (functional.normalize(groups, dim=2, eps=eps) * audio_vector).sum(2, keepdim=True)
        return self.output_projection((similarity * groups).flatten(1, 2))


class SoundingMaps(nn.Module):
    """Compare pixels with several queries computed from the audio, and add a projection of these maps and the pixels.

    Not in the paper. To choose between two visible objects by the audio, a block has to multiply the features of a
    pixel by the audio, and the product has to be small at both objects if the audio belongs to neither. AVGA has one
    such product for each of its groups; this block has more of them, each with its own weights.
    docs/benchmarks/ablation.md compares both.
    """

    def __init__(self, config: PCMANetConfig, _index: int):
        super().__init__()
        channels = config.hidden_size
        self.queries = nn.Linear(channels, _NUM_SOUNDING_MAPS * channels)
        # Cosine similarities differ little at first. The norm makes the differences as large as those of the features.
        self.batch_norm = nn.BatchNorm2d(_NUM_SOUNDING_MAPS)
        self.output_projection = ConvolutionBlock(channels + _NUM_SOUNDING_MAPS, channels, kernel_size=1)

    def forward(self, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Add to a feature map (frames, channels, height, width) what the audio (frames, channels) selects."""
        maps = self.batch_norm(self.compare(visual, audio))
        return visual + self.output_projection(torch.cat([visual, maps], dim=1))

    def compare(self, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Return the cosine similarities of pixels and queries, (frames, maps, height, width) in [-1, 1]."""
        eps = unit_length_eps(visual.dtype)
        queries = functional.normalize(self.queries(audio).unflatten(1, (_NUM_SOUNDING_MAPS, -1)), dim=-1, eps=eps)
        pixels = functional.normalize(visual, dim=1, eps=eps).flatten(2)
        return (queries @ pixels).unflatten(2, visual.shape[-2:])


def unit_length_eps(dtype: torch.dtype) -> float:
    """Return the smallest norm to divide by: the published 1e-12 is 0 in float16, which turns zero vectors into NaN."""
    return max(1e-12, torch.finfo(dtype).tiny)


def eager_attention_forward(
    _module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention without a fused kernel; query, key and value are (batch, heads, tokens, head size)."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class CrossAttention(nn.Module):
    """Multi-head attention from the tokens of one modality to those of the other, without an output projection."""

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
            key_mask: Additive mask (batch, 1, 1, keys), or None.

        Returns:
            The attention output (batch, queries, channels), and the attention weights if the implementation returns them.
        """
        query, key, value = (
            layer(states).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for layer, states in ((self.query, tokens), (self.key, context), (self.value, context))
        )
        attention: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            cast(str, self.config._attn_implementation), eager_attention_forward
        )
        output, weights = attention(self, query, key, value, key_mask, scaling=self.head_size**-0.5)
        return output.flatten(2), weights


class QuerySelectedCrossAttention(nn.Module):
    """QSCA: cross-attention in both directions, for the visual tokens whose prediction is uncertain."""

    def __init__(self, config: PCMANetConfig, index: int):
        super().__init__()
        self.token_grid_size = config.token_grid_sizes[index]
        self.token_layout = config.token_layout
        self.masked_query_gradients = config.masked_query_gradients
        self.gather_queries = config.gather_queries
        self.audio_embedding = nn.Linear(config.hidden_size, config.hidden_size)
        self.visual_embedding = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        # No stage reads the audio token of the finest stage, so the branch that updates it is not built there.
        self.audio_to_visual = None if index == NUM_STAGES - 1 else CrossAttention(config)
        self.visual_to_audio = CrossAttention(config)
        self.output_projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, visual: torch.Tensor, audio: torch.Tensor, uncertain: torch.Tensor | None, layout: ClipLayout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Update visual tokens and audio token from each other within each clip.

        Args:
            visual: (frames, channels, height, width).
            audio: (frames, channels), the projected audio or the audio token of the previous stage.
            uncertain: (frames, height, width) bool, any size; only these pixels are queries. None selects all pixels.
            layout: The clip of each frame.

        Returns:
            The guidance (frames, channels, token grid, token grid), which the fusion resizes, and the audio token (frames,
            channels).
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
        return self._to_map(visual_tokens), audio_token

    def _attend(
        self, visual: torch.Tensor, audio: torch.Tensor, selected: torch.Tensor | None, layout: ClipLayout
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend in both directions; visual is (batch, frames, tokens, channels), audio (batch, frames, channels)."""
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
        """Attend from the selected visual tokens (batch, tokens) of each clip to the audio; the others get zeros."""
        if selected is None:
            return self.visual_to_audio(sequence, audio, key_mask)[0]
        if not self.gather_queries:
            return self.visual_to_audio(sequence, audio, key_mask)[0] * selected[..., None]
        # Selected tokens first, as many as in the clip with the most of them, so that one tensor contains all clips.
        # At least one, because attention does not accept an empty tensor; the mask below sets its output to zero
        # again.
        most = max(1, int(selected.sum(1).max()))
        positions = selected.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        queries = sequence.take_along_dim(positions[..., None], dim=1)
        update, _ = self.visual_to_audio(queries, audio, key_mask)
        update = update * selected.take_along_dim(positions, dim=1)[..., None]
        index = positions[..., None].expand_as(update)
        return torch.zeros_like(sequence, dtype=update.dtype).scatter(1, index, update)

    def _selected_queries(self, uncertain: torch.Tensor | None, layout: ClipLayout) -> torch.Tensor | None:
        """Resize the mask to the token grid by nearest neighbor, (batch, frames * tokens) bool."""
        if uncertain is None:
            return None
        grid = (self.token_grid_size, self.token_grid_size)
        if uncertain.shape[-2:] != grid:
            uncertain = resize_nearest(uncertain, grid)
        return layout.to_clips(uncertain.flatten(1)).flatten(1)

    def _to_map(self, tokens: torch.Tensor) -> torch.Tensor:
        """Reshape tokens (frames, s * s, channels) to a feature map (frames, channels, s, s)."""
        if self.token_layout == "scrambled":
            tokens = tokens.reshape(tokens.shape[0], tokens.shape[2], tokens.shape[1])
        else:
            tokens = tokens.transpose(1, 2)
        return tokens.unflatten(2, (self.token_grid_size, self.token_grid_size))


def resize_nearest(mask: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Resize a bool mask (frames, height, width) to another size by nearest neighbor."""
    return functional.interpolate(mask[:, None].float(), size=size, mode="nearest")[:, 0].bool()


class ConfidenceInducedMasking(nn.Module):
    """CIM: marks the pixels whose prediction is uncertain, among those of the previous stage."""

    def __init__(self, config: PCMANetConfig):
        super().__init__()
        self.threshold = config.confidence_threshold

    @torch.no_grad()
    def forward(self, logits: torch.Tensor, coarser: torch.Tensor | None) -> torch.Tensor:
        """Mark uncertain pixels.

        Args:
            logits: (frames, num_labels, height, width).
            coarser: (frames, coarser height, coarser width) bool, the mask of the previous stage, or None.

        Returns:
            (frames, height, width) bool.
        """
        if logits.shape[1] == 1:
            confidence = logits[:, 0].float().sigmoid()
        else:
            confidence = logits.float().softmax(dim=1).amax(dim=1)
        uncertain = (confidence >= self.threshold) & (confidence <= 1 - self.threshold)
        return uncertain if coarser is None else uncertain & resize_nearest(coarser, uncertain.shape[-2:])


class GuidedFusion(nn.Module):
    """GF: adds the guidance and the coarser fused feature map to the feature map of a stage."""

    def __init__(self, config: PCMANetConfig, index: int):
        super().__init__()
        channels = config.hidden_size
        # CODEPATH: without cross-attention (an ablation) the fusion has no guidance.
        self.guidance_projection = None if config.cross_attention is None else ConvolutionBlock(channels, channels)
        self.coarser_projection = None if index == 0 else ConvolutionBlock(channels, channels)
        self.output_projection = ConvolutionBlock(channels, channels)

    def forward(
        self, visual: torch.Tensor, guidance: torch.Tensor | None, coarser: torch.Tensor | None
    ) -> torch.Tensor:
        """Fuse feature maps.

        Args:
            visual: (frames, channels, height, width).
            guidance: (frames, channels, any height, any width), or None in a network without cross-attention.
            coarser: (frames, channels, coarser height, coarser width), or None at the coarsest stage.

        Returns:
            (frames, channels, height, width).
        """
        fused, size = visual, visual.shape[-2:]
        if guidance is not None and self.guidance_projection is not None:
            fused = fused + self.guidance_projection(guidance, size)
        if coarser is not None and self.coarser_projection is not None:
            fused = fused + self.coarser_projection(coarser, size)
        return self.output_projection(fused)


# The blocks of a decoder stage by kind and name. The kind is both the field of the configuration and the attribute of
# the stage.
_BLOCKS: dict[str, dict[str, type[nn.Module]]] = {
    "group_attention": {"avga": AudioVisualGroupAttention, "sounding_maps": SoundingMaps},
    "cross_attention": {"qsca": QuerySelectedCrossAttention},
    "fusion": {"guided": GuidedFusion},
}
_PUBLISHED_BLOCKS = (AudioVisualGroupAttention, QuerySelectedCrossAttention, GuidedFusion)

Block = TypeVar("Block", bound=type[nn.Module])


def register_block(kind: str, name: str) -> Callable[[Block], Block]:
    """Register a custom block of the decoder stages, so that a configuration can select it by name.

    The class is constructed once for each stage as `Block(config, index)` with the [`PCMANetConfig`] and the index of the
    stage, 0 (coarsest, stride 32) to 3 (finest, stride 4). Its `forward` depends on the kind; all tensors are
    (frames, ...) with the frames of all clips as one batch, and channels are `config.hidden_size`:

    - `group_attention`: `(visual, audio)` to the feature map weighted by the audio. `visual` is (frames, channels, height,
      width), the output of the neck, and keeps its shape; `audio` is (frames, channels), the projected audio embeddings.
    - `cross_attention`: `(visual, audio_token, uncertain, layout)` to `(guidance, audio_token)`. `visual` is the
      output of the group attention; `guidance` has its shape. `audio_token`, (frames, channels), is that of the
      previous stage, or the projected audio at the first. `uncertain` is (frames, coarser height, coarser width) bool,
      True where the previous stage is uncertain, or None at the first. `layout` is a [`ClipLayout`]. The frames of a
      clip may interact only through it.
    - `fusion`: `(visual, guidance, coarser)` to the fused feature map, of the shape of `visual`. `guidance` is None
      without cross-attention; `coarser` is (frames, channels, coarser height, coarser width), the fused map of the
      previous stage, or None at the first.

    Example:
    ```python
    @register_block("fusion", "gated")
    class GatedFusion(nn.Module): ...


    config = PCMANetConfig.from_preset("tiny", fusion="gated")
    ```

    Args:
        kind: `"group_attention"`, `"cross_attention"` or `"fusion"`.
        name: The value that selects the block in the field of [`PCMANetConfig`] for this kind.

    Returns:
        A decorator that registers a class and returns it.

    Raises:
        ValueError: If the kind is unknown or the name is registered for another class.
        TypeError: If the decorated object is not an `nn.Module` class.
    """
    if kind not in _BLOCKS:
        raise ValueError(f"Expected kind to be one of {', '.join(_BLOCKS)}, got {kind!r}.")

    def register(block: Block) -> Block:
        if not (isinstance(block, type) and issubclass(block, nn.Module)):
            raise TypeError(f"Expected an nn.Module class to register as {kind} {name!r}, got {block!r}.")
        registered = _BLOCKS[kind].setdefault(name, block)
        # Running a notebook cell again defines its class again.
        if (registered.__module__, registered.__qualname__) != (block.__module__, block.__qualname__):
            raise ValueError(
                f"The {kind} {name!r} is already {registered.__module__}.{registered.__qualname__}. "
                "Register the block with another name."
            )
        _BLOCKS[kind][name] = block
        return block

    return register


def _build_block(kind: str, config: PCMANetConfig, index: int) -> nn.Module:
    """Build the block that a configuration selects.

    Raises:
        ValueError: If its name is unknown.
    """
    name, known = getattr(config, kind), _BLOCKS[kind]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"The configuration has the unknown {kind} {name!r}.{hint} Known are {', '.join(map(repr, known))}. If it is a "
            "custom block, import the module that registers it with `register_block` before building or loading the model."
        )
    return known[name](config, index)


def build_head(config: PCMANetConfig) -> nn.Sequential:
    """Build a segmentation head, which computes the logits of a stage from its fused feature map."""
    # trf-ignore: TRF036 a plain chain, called once
    return nn.Sequential(
        *ConvolutionBlock(config.hidden_size, config.head_channels),
        nn.Conv2d(config.head_channels, cast(int, config.num_labels), kernel_size=1),
    )


class DecoderStage(GradientCheckpointingLayer):
    """Decoder stage: AVGA, QSCA, GF, or the blocks that the configuration names instead, and a segmentation head."""

    def __init__(self, config: PCMANetConfig, index: int):
        super().__init__()
        self.index = index
        self.group_attention = _build_block("group_attention", config, index)
        self.cross_attention = None
        # CODEPATH: every published network has QSCA; only the ablation in docs/benchmarks/ablation.md does not.
        if config.cross_attention is not None:
            self.cross_attention = _build_block("cross_attention", config, index)
        self.fusion = _build_block("fusion", config, index)
        self.head = build_head(config)

    def forward(
        self,
        visual: torch.Tensor,
        audio: torch.Tensor,
        audio_token: torch.Tensor,
        coarser: torch.Tensor | None,
        uncertain: torch.Tensor | None,
        layout: ClipLayout,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Refine the fused feature map of the coarser stage at the size of this stage.

        Args:
            visual: (frames, channels, height, width), output of the neck.
            audio: (frames, channels), the projected audio.
            audio_token: (frames, channels), the audio token of the previous stage; for the first, the projected audio.
            coarser: (frames, channels, coarser height, coarser width), fused map of the previous stage, or None.
            uncertain: (frames, coarser height, coarser width) bool, mask of the previous stage, or None.
            layout: The clip of each frame.

        Returns:
            The fused map (frames, channels, height, width), the logits (frames, num_labels, height, width) and the
            audio token (frames, channels).
        """
        # CODEPATH: with gradient checkpointing the backward pass computes the stage again.
        is_repeated = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() >= 0
        with _unchanged_statistics(self) if is_repeated else nullcontext():
            visual = self.group_attention(visual, audio)
            guidance = None
            if self.cross_attention is not None:
                guidance, audio_token = self.cross_attention(visual, audio_token, uncertain, layout)
                # CODEPATH: custom blocks get the guidance in the size of the feature map.
                if type(self.fusion) is not GuidedFusion:
                    guidance = resize(guidance, visual.shape[-2:])
            fused = self.fusion(visual, guidance, coarser)
            return fused, self.head(fused), audio_token

    def initialize_custom_blocks(self, config: PCMANetConfig) -> None:
        """Set the weights of custom blocks that were not loaded to those that their `__init__` gives them.

        transformers reinitializes every layer, and leaves other parameters that a checkpoint lacks uninitialized.
        """
        for kind in _BLOCKS:
            block = getattr(self, kind)
            if block is None or type(block) in _PUBLISHED_BLOCKS:
                continue
            initial = _build_block(kind, config, self.index)
            values = dict(chain(initial.named_parameters(), initial.named_buffers()))
            for name, value in chain(block.named_parameters(), block.named_buffers()):
                init.copy_(value, values[name])


@contextmanager
def _unchanged_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorms in training mode write their statistics to copies, until the end of the `with` block.

    Otherwise, they would count a batch twice if its feature maps are computed twice.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.training]
    kept = [(layer, dict(layer._buffers)) for layer in norms]
    for layer, buffers in kept:
        layer._buffers.update({name: None if value is None else value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for layer, buffers in kept:
            layer._buffers.update(buffers)


__all__ = [
    "AudioVisualGroupAttention",
    "ClipLayout",
    "ConfidenceInducedMasking",
    "ConvolutionBlock",
    "CrossAttention",
    "DecoderStage",
    "GuidedFusion",
    "PCMANetOutput",
    "QuerySelectedCrossAttention",
    "SoundingMaps",
    "audio_inputs",
    "build_head",
    "build_layout",
    "register_block",
    "resize_nearest",
    "unit_length_eps",
    "validate_inputs",
]
