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
"""Visual backbones: EfficientNet-Lite, and building any backbone from its configuration.

EfficientNet-Lite is EfficientNet without squeeze-and-excitation and with ReLU6. It is ours and not timm's, because the
default network must load quickly and with nothing but transformers, also as code that is saved with its weights.
"""

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoBackbone
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BackboneOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .configuration_backbones import EfficientNetLiteConfig


class SamePaddingConvolution(nn.Conv2d):
    """Convolution with the "same" padding of TensorFlow, which with stride 2 and an even size pads less at the start."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, groups: int = 1):
        padding = (kernel_size - 1) // 2
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (frames, in_channels, height, width) to (frames, out_channels, ceil(height / stride), ...)."""
        if self.stride == (1, 1):
            return super().forward(input)
        # One zero before the weights moves the kernel by a pixel, without a padded copy of the feature map.
        moved_down, moved_right = (1 - size % 2 for size in input.shape[2:])
        return self._conv_forward(input, functional.pad(self.weight, (moved_right, 0, moved_down, 0)), self.bias)


class ConvolutionNormActivation(nn.Sequential):
    """Convolution without bias, BatchNorm and, unless it is a projection, ReLU6."""

    def __init__(self, config: EfficientNetLiteConfig, convolution: nn.Conv2d, *, has_activation: bool = True):
        norm = nn.BatchNorm2d(convolution.out_channels, eps=config.batch_norm_eps, momentum=0.01)
        super().__init__(convolution, norm, *([nn.ReLU6(inplace=True)] if has_activation else []))


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, project; the input is added where shapes allow it."""

    def __init__(
        self,
        config: EfficientNetLiteConfig,
        in_channels: int,
        out_channels: int,
        *,
        expansion: int,
        kernel_size: int,
        stride: int,
    ):
        super().__init__()
        expanded = in_channels * expansion
        self.expansion = (
            ConvolutionNormActivation(config, SamePaddingConvolution(in_channels, expanded))
            if expansion > 1
            else nn.Identity()
        )
        depthwise = SamePaddingConvolution(expanded, expanded, kernel_size, stride, groups=expanded)
        self.depthwise = ConvolutionNormActivation(config, depthwise)
        projection = SamePaddingConvolution(expanded, out_channels)
        self.projection = ConvolutionNormActivation(config, projection, has_activation=False)
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Map (frames, in_channels, height, width) to (frames, out_channels, height / stride, width / stride)."""
        update = self.projection(self.depthwise(self.expansion(feature_map)))
        return feature_map + update if self.has_residual else update


class EfficientNetLiteBackbone(BackboneMixin, PreTrainedModel):
    """EfficientNet-Lite without its classifier, for `AutoBackbone`: feature maps at strides 2, 4, 8, 16 and 32."""

    config: EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    has_attentions = False
    _no_split_modules = ["InvertedResidual"]

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__(config)
        config.validate()  # fields may have been assigned since, as by `from_pretrained(..., field=value)`
        stem = SamePaddingConvolution(config.num_channels, config.stem_channels, kernel_size=3, stride=2)
        self.embedder = ConvolutionNormActivation(config, stem)
        self.num_features = [config.stem_channels, *(stage[-1].out_channels for stage in config.stages)]
        self.stages = nn.ModuleList(
            _build_stage(config, index, in_channels) for index, in_channels in enumerate(self.num_features[:-1])
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out")

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **_: Any
    ) -> BackboneOutput:
        """Compute the feature maps that `config.out_features` names.

        Args:
            pixel_values: (frames, num_channels, height, width), any height and width.
            output_hidden_states: Whether to return all five feature maps too.
        """
        feature_map = self.embedder(pixel_values)
        feature_maps = [feature_map]
        for stage in self.stages:
            feature_map = stage(feature_map)
            feature_maps.append(feature_map)
        return BackboneOutput(
            feature_maps=tuple(feature_maps[index] for index in self.out_indices),
            hidden_states=tuple(feature_maps) if output_hidden_states else None,
        )


def _build_stage(config: EfficientNetLiteConfig, index: int, in_channels: int) -> nn.Sequential:
    """Build the blocks of one stage."""
    blocks = []
    for group in config.stages[index]:
        for block in range(group.blocks):
            blocks.append(
                InvertedResidual(
                    config,
                    in_channels,
                    group.out_channels,
                    expansion=group.expansion,
                    kernel_size=group.kernel_size,
                    stride=group.stride if block == 0 else 1,
                )
            )
            in_channels = group.out_channels
    return nn.Sequential(*blocks)


# Building.


def build_backbone(config: PreTrainedConfig) -> Any:
    """Build a backbone with random weights: ours, or one of transformers.

    Args:
        config: Configuration of the backbone.

    Returns:
        A `BackboneMixin`: the classes of transformers' backbones have no common typed base.
    """
    # By name and not by class: a checkpoint with code has its own copy of the class, which AutoBackbone does not know.
    if config.model_type == EfficientNetLiteConfig.model_type:
        return EfficientNetLiteBackbone(cast(EfficientNetLiteConfig, config))
    return AutoBackbone.from_config(config)


__all__ = ["EfficientNetLiteBackbone", "build_backbone"]
