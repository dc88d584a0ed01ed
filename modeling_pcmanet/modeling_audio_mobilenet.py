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
"""AudioMobileNet, an audio encoder pretrained on AudioSet: the "mn" family of EfficientAT (Schmid et al. 2023)."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_audio_mobilenet import AudioMobileNetConfig, BlockSize, round_channels


@dataclass
class AudioMobileNetOutput(ModelOutput):
    """Output of [`AudioMobileNetModel`].

    Attributes:
        last_hidden_state: (windows, embedding_size, mel bands / 32, time frames / 32), the last feature map.
        pooler_output: (windows, embedding_size), its mean over frequency and time: the embedding.
        logits: (windows, num_labels), class scores before the sigmoid; only if `output_logits` is set.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class ConvolutionNormActivation(nn.Sequential):
    """Convolution without bias, BatchNorm, and an activation if one is given."""

    def __init__(
        self,
        config: AudioMobileNetConfig,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None = None,
    ):
        padding = (kernel_size - 1) // 2
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels, eps=config.batch_norm_eps, momentum=0.01),
        ]
        super().__init__(*layers, *([] if activation is None else [activation(inplace=True)]))


class SqueezeExcitation(nn.Module):
    """Reweight channels by what their means over frequency and time say together."""

    def __init__(self, channels: int):
        super().__init__()
        squeezed = round_channels(channels // 4)
        self.reduce = nn.Linear(channels, squeezed)
        self.expand = nn.Linear(squeezed, channels)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Scale a feature map (windows, channels, frequency, time) by one factor in [0, 1] per channel."""
        means = feature_map.mean(dim=(2, 3))
        factors = self.expand(self.reduce(means).relu()).sigmoid()
        return feature_map * factors[:, :, None, None]


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, reweight channels, project; the input is added where shapes allow it."""

    def __init__(self, config: AudioMobileNetConfig, size: BlockSize):
        super().__init__()
        activation = nn.Hardswish if size.hard_swish else nn.ReLU
        expanded = size.expanded_channels
        self.expansion = (
            ConvolutionNormActivation(config, size.in_channels, expanded, activation=activation)
            if expanded != size.in_channels
            else nn.Identity()
        )
        self.depthwise = ConvolutionNormActivation(
            config,
            expanded,
            expanded,
            kernel_size=size.kernel_size,
            stride=size.stride,
            groups=expanded,
            activation=activation,
        )
        self.squeeze_excitation = SqueezeExcitation(expanded) if size.squeeze_excitation else nn.Identity()
        self.projection = ConvolutionNormActivation(config, expanded, size.out_channels)
        self.has_residual = size.stride == 1 and size.in_channels == size.out_channels

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Map (windows, in_channels, frequency, time) to (windows, out_channels, frequency, time), each over stride."""
        update = self.projection(self.squeeze_excitation(self.depthwise(self.expansion(feature_map))))
        return feature_map + update if self.has_residual else update


class AudioMobileNetModel(PreTrainedModel):
    """MobileNetV3-Large over log-mel spectrograms: one embedding per window of audio, and class scores on request."""

    config: AudioMobileNetConfig
    base_model_prefix = "audio_mobilenet"
    main_input_name = "input_features"
    input_modalities = ["audio"]
    _no_split_modules = ["InvertedResidual"]

    def __init__(self, config: AudioMobileNetConfig):
        super().__init__(config)
        config.validate()  # fields may have been assigned since, as by `from_pretrained(..., field=value)`
        blocks = config.blocks
        self.stem = ConvolutionNormActivation(
            config, 1, blocks[0].in_channels, kernel_size=3, stride=2, activation=nn.Hardswish
        )
        self.blocks = nn.ModuleList([InvertedResidual(config, size) for size in blocks])
        self.head = ConvolutionNormActivation(
            config, blocks[-1].out_channels, config.embedding_size, activation=nn.Hardswish
        )
        self.classifier_dense = nn.Linear(config.embedding_size, config.classifier_size)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.classifier_size, config.num_labels or 1)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out")

    @can_return_tuple
    def forward(self, input_features: torch.Tensor, output_logits: bool = False) -> AudioMobileNetOutput:
        """Encode log-mel spectrograms.

        Args:
            input_features: (windows, 1, mel bands, time frames), as [`AudioMobileNetFeatureExtractor`] makes them.
            output_logits: Whether to compute class scores too.

        Raises:
            ValueError: If the spectrograms have another number of dimensions or of mel bands.
        """
        shape = tuple(input_features.shape)
        if len(shape) != 4 or shape[1] != 1 or shape[2] != self.config.num_mel_bins:
            raise ValueError(
                f"`input_features` must be (windows, 1, {self.config.num_mel_bins} mel bands, time frames), got {shape}. "
                "Compute them with this model's feature extractor."
            )
        feature_map = self.stem(input_features)
        for block in self.blocks:
            feature_map = block(feature_map)
        feature_map = self.head(feature_map)
        embedding = feature_map.mean(dim=(2, 3))
        logits = None
        if output_logits:
            logits = self.classifier(self.dropout(functional.hardswish(self.classifier_dense(embedding))))
        return AudioMobileNetOutput(last_hidden_state=feature_map, pooler_output=embedding, logits=logits)


__all__ = ["AudioMobileNetModel", "AudioMobileNetOutput"]
