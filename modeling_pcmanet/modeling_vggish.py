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
"""VGGish, the audio encoder of AVSBench and PCMANet (Hershey et al. 2017), usable on its own."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_pcmanet import VGGishConfig


@dataclass
class VGGishOutput(ModelOutput):
    """Output of [`VGGishModel`].

    Attributes:
        audio_embeds: (patches, embedding_size), non-negative because the last layer ends in a ReLU.
    """

    audio_embeds: torch.Tensor | None = None


class VGGishModel(PreTrainedModel):
    """VGGish: log-mel patches to embeddings by blocks of 3x3 convolutions and three fully connected layers."""

    config: VGGishConfig
    base_model_prefix = "vggish"
    main_input_name = "input_features"
    input_modalities = ["audio"]
    _no_split_modules = []

    def __init__(self, config: VGGishConfig):
        super().__init__(config)
        config.validate()  # fields may have been assigned since, as by `from_pretrained(..., field=value)`
        layers: list[nn.Module] = []
        in_channels = 1
        for block in config.block_channels:
            for channels in block:
                layers += [nn.Conv2d(in_channels, channels, kernel_size=3, padding=1), nn.ReLU()]
                in_channels = channels
            layers.append(nn.MaxPool2d(kernel_size=2))
        # trf-ignore: TRF036 published weights are numbered by position in these two chains
        self.features = nn.Sequential(*layers)
        # trf-ignore: TRF036
        self.embeddings = nn.Sequential(
            nn.Linear(config.flattened_size, config.hidden_size),
            nn.ReLU(),
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.ReLU(),
            nn.Linear(config.hidden_size, config.embedding_size),
            nn.ReLU(),
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # Every layer ends in a ReLU, so He initialization preserves the variance; a standard deviation of 0.02 does not.
        if isinstance(module, nn.Conv2d | nn.Linear):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            init.zeros_(cast(torch.Tensor, module.bias))

    @can_return_tuple
    def forward(self, input_features: torch.Tensor) -> VGGishOutput:
        """Embed log-mel patches.

        Args:
            input_features: (patches, 1, num_mel_frames, num_mel_bins), natural logarithm of mel magnitudes.

        Raises:
            ValueError: If the patches do not have the configured size.
        """
        expected = (1, self.config.num_mel_frames, self.config.num_mel_bins)
        if input_features.ndim != 4 or tuple(input_features.shape[1:]) != expected:
            raise ValueError(
                f"`input_features` must be (patches, {', '.join(map(str, expected))}), got {tuple(input_features.shape)}."
            )
        feature_map = self.features(input_features)
        # Published weights expect the flattened order (patches, frames, bins, channels).
        flattened = feature_map.permute(0, 2, 3, 1).flatten(1)
        return VGGishOutput(audio_embeds=self.embeddings(flattened))


__all__ = ["VGGishModel", "VGGishOutput"]
