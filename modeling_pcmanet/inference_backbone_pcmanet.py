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
"""Visual backbones for inference: the same four feature maps from fewer and better laid out operations.

ResNet: every BatchNorm is folded into the convolution before it. PVT-v2: the tokens stay where the convolutions want
them, (frames, height, width, channels), so that nothing is ever transposed; keys and values come from one matrix product
and attention is PyTorch's fused one.
"""

import copy

import torch
from torch import nn
from torch.nn import functional

from .inference_convolution_pcmanet import Convolution


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


__all__ = ["inference_backbone"]
