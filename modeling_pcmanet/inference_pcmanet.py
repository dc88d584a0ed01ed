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
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_pcmanet import NUM_STAGES
from .modeling_pcmanet_decoder import ClipLayout, resize_nearest, unit_length_eps, validate_inputs


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


def inference_backbone(backbone: nn.Module) -> nn.Module:
    """Turn a transformers backbone in evaluation mode into a module from frames to a list of feature maps.

    Args:
        backbone: Any `AutoBackbone`; it is left as it is. ResNet and PVT-v2 get a form of their own, any other is copied.

    Returns:
        A module that takes (frames, 3, height, width) and gives the feature maps fine to coarse.
    """
    # CODEPATH: PVT-v2 with linear attention shares nothing with this form, no published checkpoint of ours uses it.
    if backbone.config.model_type == "pvt_v2" and not backbone.config.linear_attention:
        return PyramidVisionTransformer(backbone)
    # CODEPATH: the second backbone of the paper.
    if backbone.config.model_type == "resnet":
        return ResidualNetwork(backbone)
    return UnchangedBackbone(backbone)


class UnchangedBackbone(nn.Module):
    """A copy of a backbone that has no form of its own."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = copy.deepcopy(backbone)

    def forward(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """Give the feature maps, fine to coarse, of (frames, 3, height, width)."""
        return list(self.backbone(frames).feature_maps)


class ResidualNetwork(nn.Module):
    """ResNet with folded BatchNorms."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        folded = copy.deepcopy(backbone)
        for module in folded.modules():
            if isinstance(getattr(module, "normalization", None), nn.BatchNorm2d):
                module.convolution = Convolution(module.convolution, module.normalization, nn.Identity())
                module.normalization = nn.Identity()
        self.embedder = folded.embedder
        self.stages = folded.encoder.stages
        self.is_output = [name in backbone.out_features for name in backbone.stage_names[-len(self.stages) :]]

    def forward(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """Give the feature maps, fine to coarse, of (frames, 3, height, width)."""
        feature_map = self.embedder(frames)
        maps = []
        for stage, is_output in zip(self.stages, self.is_output, strict=True):
            feature_map = stage(feature_map)
            if is_output:
                maps.append(feature_map)
        return maps


class PyramidVisionTransformer(nn.Module):
    """PVT-v2 with its tokens in the order (frames, height, width, channels)."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.stages = nn.ModuleList(TransformerStage(layer) for layer in backbone.encoder.layers)
        self.is_output = [name in backbone.out_features for name in backbone.stage_names[-len(self.stages) :]]

    def forward(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """Give the feature maps, fine to coarse, of (frames, 3, height, width)."""
        feature_map = frames
        maps = []
        for stage, is_output in zip(self.stages, self.is_output, strict=True):
            feature_map = stage(feature_map)
            if is_output:
                maps.append(feature_map)
        return maps


def to_tokens(feature_map: torch.Tensor) -> torch.Tensor:
    """See a channels_last map (frames, channels, height, width) as tokens (frames, height, width, channels)."""
    return feature_map.permute(0, 2, 3, 1)


def to_map(tokens: torch.Tensor) -> torch.Tensor:
    """See tokens (frames, height, width, channels) as a channels_last map (frames, channels, height, width)."""
    return tokens.permute(0, 3, 1, 2)


class TransformerStage(nn.Module):
    """Patch embedding, blocks and norm of one scale."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.projection = copy.deepcopy(layer.patch_embedding.proj)
        self.projection_norm = copy.deepcopy(layer.patch_embedding.layer_norm)
        self.blocks = nn.ModuleList(TransformerBlock(block) for block in layer.blocks)
        self.layer_norm = copy.deepcopy(layer.layer_norm)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Go from the map of the finer scale, (frames, channels, height, width), to the map of this one."""
        tokens = self.projection_norm(to_tokens(self.projection(feature_map)))
        for block in self.blocks:
            tokens = block(tokens)
        return to_map(self.layer_norm(tokens))


class TransformerBlock(nn.Module):
    """Attention to the spatially reduced map, then the feed-forward layers around a depthwise convolution."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.attention_norm = copy.deepcopy(block.layer_norm_1)
        self.attention = ReducedAttention(block.attention)
        self.feed_forward_norm = copy.deepcopy(block.layer_norm_2)
        self.expansion = copy.deepcopy(block.mlp.dense1)
        self.depthwise_convolution = copy.deepcopy(block.mlp.dwconv.dwconv)
        self.activation = copy.deepcopy(block.mlp.intermediate_act_fn)
        self.contraction = copy.deepcopy(block.mlp.dense2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Keep the shape (frames, height, width, channels)."""
        tokens = tokens + self.attention(self.attention_norm(tokens))
        hidden = self.expansion(self.feed_forward_norm(tokens))
        # Step by step: each result takes the place of the one before, the largest tensors of the backbone.
        hidden = self.depthwise_convolution(to_map(hidden))
        hidden = self.activation(hidden)
        return tokens + self.contraction(to_tokens(hidden))


class ReducedAttention(nn.Module):
    """Multi-head attention of every token to a map that is smaller by the spatial reduction."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.head_size = attention.attention_head_size
        self.query = copy.deepcopy(attention.query)
        self.key_value = stack_linear(attention.key, attention.value)
        self.output_projection = copy.deepcopy(attention.proj)
        self.is_reducing = attention.spatial_reduction_ratio > 1
        if self.is_reducing:
            self.spatial_reduction = copy.deepcopy(attention.spatial_reduction)
            self.reduction_norm = copy.deepcopy(attention.layer_norm)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Keep the shape (frames, height, width, channels)."""
        context = tokens
        if self.is_reducing:
            context = self.reduction_norm(to_tokens(self.spatial_reduction(to_map(tokens))))
        key, value = self._split_heads(self.key_value(context)).chunk(2, dim=1)
        gathered = functional.scaled_dot_product_attention(self._split_heads(self.query(tokens)), key, value)
        return self.output_projection(gathered.transpose(1, 2).reshape(tokens.shape))

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """Go from (frames, height, width, channels) to (frames, heads, height * width, head size)."""
        return states.flatten(1, 2).unflatten(-1, (-1, self.head_size)).transpose(1, 2)


def stack_linear(*layers: nn.Linear) -> nn.Linear:
    """Join linear layers of the same input into one whose outputs lie behind each other."""
    stacked = copy.deepcopy(layers[0])
    stacked.out_features = sum(layer.out_features for layer in layers)
    stacked.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]))
    if layers[0].bias is not None:
        stacked.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]))
    return stacked


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


@dataclass
class PCMANetInferenceOutput(ModelOutput):
    """Output of [`PCMANetInferenceModel`].

    Attributes:
        logits: (batch, frames, num_labels, height, width) at the input size. Padded frames hold 0.
        confidence_masks: Three bool tensors (batch, frames, stage height, stage width) of the three coarser stages,
            True where the network was still unsure and the next stage asked on. False where a frame had stopped before.
        stages_used: (batch, frames) int64, the stage whose logits each frame got, 1 (coarsest) to 4; 0 for padding that
            was not computed. Only with an `early_exit_threshold`.
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
        early_exit_threshold: float | None = None,
    ) -> PCMANetInferenceOutput:
        """Segment what sounds; takes what the model takes and, without a budget, gives the same logits.

        Args:
            pixel_values: (batch, frames, 3, height, width), ImageNet-normalised, height and width from 32 up.
            input_features: (batch, frames, 1, 96, 64) log-mel patches.
            audio_embeds: (batch, frames, 128) VGGish embeddings, in place of `input_features`.
            frame_mask: (batch, frames) bool, False for padding.
            early_exit_threshold: Share of a frame's pixels, in [0, 1], that may be uncertain for it to stop: it gets the
                logits of that stage, and the finer ones go on without it, as if it were not part of the clip. Counted at
                the next stage's size, by the thresholds of the confidence masks. 0 stops frames without any such pixel,
                1 all of them at the first stage. None computes every stage of every frame. Not for one compiled or
                exported graph, because how much is computed depends on what is in the frames.

        Raises:
            ValueError: If a shape is wrong, not exactly one of the two forms of sound is given, or the budget is no share
                or has nothing to go by.
        """
        validate_inputs(pixel_values, input_features, audio_embeds, frame_mask, self.config.audio_config)
        if early_exit_threshold is not None:
            self._validate_budget(early_exit_threshold)
        embeddings = self._embed_audio(input_features, audio_embeds, frame_mask)
        segment = self._segment_each if self._walks_clips(pixel_values) else self._segment
        return segment(pixel_values, embeddings, frame_mask, early_exit_threshold)

    def _validate_budget(self, budget: float) -> None:
        """Raise a ValueError where frames cannot stop early."""
        if not 0 <= budget <= 1:
            raise ValueError(f"`early_exit_threshold` is a share of a frame's pixels between 0 and 1, got {budget}.")
        # CODEPATH: only an ablated network masks nothing.
        if self.config.confidence_threshold == 0:
            raise ValueError(
                "`early_exit_threshold` goes by the pixels that confident masking leaves, but this network has "
                "`confidence_threshold` 0: it is never sure of a pixel, so no frame would stop. Leave it out."
            )
        if torch.compiler.is_compiling():
            raise ValueError(
                "`early_exit_threshold` cannot be part of a compiled or exported graph, because how much is computed depends "
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
        early_exit_threshold: float | None,
    ) -> PCMANetInferenceOutput:
        """Compute clip after clip."""
        logits, masks, stages_used = None, [], []
        for clip in range(len(pixel_values)):
            own = slice(clip, clip + 1)
            own_mask = None if frame_mask is None else frame_mask[own]
            output = self._segment(pixel_values[own], embeddings[own], own_mask, early_exit_threshold)
            if logits is None:
                # The largest tensor of all where there are many classes: written in place, not joined at the end.
                logits = output.logits.new_empty(len(pixel_values), *output.logits.shape[1:])
            logits[own] = output.logits
            masks.append(output.confidence_masks)
            stages_used.append(output.stages_used)
        return PCMANetInferenceOutput(
            logits=logits,
            confidence_masks=tuple(torch.cat(stage) for stage in zip(*masks, strict=True)),
            stages_used=None if early_exit_threshold is None else torch.cat(stages_used),
        )

    def _segment(
        self,
        pixel_values: torch.Tensor,
        embeddings: torch.Tensor,
        frame_mask: torch.Tensor | None,
        early_exit_threshold: float | None,
    ) -> PCMANetInferenceOutput:
        """Compute some clips at once."""
        layout = self._layout(pixel_values, frame_mask)
        pixels = layout.to_frames(pixel_values).to(self.dtype).contiguous(memory_format=torch.channels_last)
        embeddings, zeroing = layout.to_frames(embeddings), None
        if frame_mask is not None and layout.real is None:
            zeroing = frame_mask.flatten().to(embeddings.dtype)[:, None, None, None]
            embeddings = embeddings * zeroing[:, :, 0, 0]
        maps, audio, size = self.backbone(pixels), self.audio_projection(embeddings), pixel_values.shape[-2:]
        if early_exit_threshold is None:
            logits, masks = self._decode(maps, audio, layout, zeroing)
            logits, stages_used = resize(logits.contiguous(), size), None
        else:
            logits, masks, stages_used = self._decode_until_sure(
                maps, audio, layout, zeroing, size, early_exit_threshold
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


__all__ = [
    "Convolution",
    "InferenceStage",
    "NUM_PRODUCTS",
    "PCMANetInferenceModel",
    "PCMANetInferenceOutput",
    "UpsampledConvolution",
    "fold_batch_norm",
    "folded_block",
    "in_chunks",
    "inference_backbone",
    "num_tiles",
    "resize",
    "transform_matrices",
    "transform_weight",
]
