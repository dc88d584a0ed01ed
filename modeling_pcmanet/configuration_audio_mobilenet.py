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
"""Configuration of AudioMobileNet: MobileNetV3-Large over log-mel spectrograms, in any width (EfficientAT, 2023)."""

from typing import Any, NamedTuple

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig


class BlockSize(NamedTuple):
    """Sizes of one inverted-residual block.

    Attributes:
        in_channels: Channels of the input.
        expanded_channels: Channels of the depthwise convolution.
        out_channels: Channels of the output.
        kernel_size: Of the depthwise convolution.
        stride: Of the depthwise convolution, over frequency and time.
        squeeze_excitation: Whether the block reweights its channels.
        hard_swish: Whether the activation is hard-swish; ReLU otherwise.
    """

    in_channels: int
    expanded_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    squeeze_excitation: bool
    hard_swish: bool


# MobileNetV3-Large at width 1 (Howard et al. 2019, table 1).
_BLOCKS = (
    BlockSize(16, 16, 16, 3, 1, False, False),
    BlockSize(16, 64, 24, 3, 2, False, False),
    BlockSize(24, 72, 24, 3, 1, False, False),
    BlockSize(24, 72, 40, 5, 2, True, False),
    BlockSize(40, 120, 40, 5, 1, True, False),
    BlockSize(40, 120, 40, 5, 1, True, False),
    BlockSize(40, 240, 80, 3, 2, False, True),
    BlockSize(80, 200, 80, 3, 1, False, True),
    BlockSize(80, 184, 80, 3, 1, False, True),
    BlockSize(80, 184, 80, 3, 1, False, True),
    BlockSize(80, 480, 112, 3, 1, True, True),
    BlockSize(112, 672, 112, 3, 1, True, True),
    BlockSize(112, 672, 160, 5, 2, True, True),
    BlockSize(160, 960, 160, 5, 1, True, True),
    BlockSize(160, 960, 160, 5, 1, True, True),
)
_CLASSIFIER_CHANNELS = 1280  # hidden width of the classifier at width 1
_CHANNEL_MULTIPLE = 8

AUDIOSET_CLASSES = 527


def round_channels(channels: float) -> int:
    """Round a number of channels to a multiple of 8, and never below 90 % of it.

    Args:
        channels: Any positive number.

    Returns:
        The rounded number, at least 8.
    """
    half = _CHANNEL_MULTIPLE / 2
    rounded = max(_CHANNEL_MULTIPLE, int(channels + half) // _CHANNEL_MULTIPLE * _CHANNEL_MULTIPLE)
    return rounded if rounded >= 0.9 * channels else rounded + _CHANNEL_MULTIPLE


@strict
class AudioMobileNetConfig(PreTrainedConfig):
    """Configuration of [`AudioMobileNetModel`].

    The defaults are mn04 of EfficientAT ("Efficient Large-Scale Audio Tagging via Transformer-to-CNN Knowledge
    Distillation", Schmid et al. 2023): 0.98 M parameters, 527 AudioSet classes.

    Args:
        width_multiplier: Factor of all widths of MobileNetV3-Large; published are 0.4, 0.5, 1, 2, 3 and 4.
        num_mel_bins: Mel bands of a spectrogram. The network accepts any number of bands and of time frames.
        classifier_dropout: Dropout before the last layer of the classifier, in [0, 1).
        batch_norm_eps: Added to the variance in every BatchNorm.
        initializer_range: Standard deviation of newly initialized linear layers.
    """

    model_type = "audio_mobilenet"
    base_config_key = "audio_config"

    width_multiplier: float = 0.4
    num_mel_bins: int = 128
    classifier_dropout: float = 0.2
    batch_norm_eps: float = 1e-3
    initializer_range: float = 0.01

    def __post_init__(self, **kwargs: Any) -> None:
        if self.id2label is None and "num_labels" not in kwargs:
            kwargs["num_labels"] = AUDIOSET_CLASSES
        super().__post_init__(**kwargs)

    @property
    def blocks(self) -> tuple[BlockSize, ...]:
        """Sizes of the inverted-residual blocks at this width."""
        return tuple(
            block._replace(
                in_channels=round_channels(block.in_channels * self.width_multiplier),
                expanded_channels=round_channels(block.expanded_channels * self.width_multiplier),
                out_channels=round_channels(block.out_channels * self.width_multiplier),
            )
            for block in _BLOCKS
        )

    @property
    def embedding_size(self) -> int:
        """Width of the embedding: six times that of the last block."""
        return 6 * self.blocks[-1].out_channels

    @property
    def classifier_size(self) -> int:
        """Width of the classifier's hidden layer."""
        return round_channels(_CLASSIFIER_CHANNELS * self.width_multiplier)

    def validate_sizes(self) -> None:
        """Raise if a size is out of its range."""
        for name in ("width_multiplier", "num_mel_bins", "batch_norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        if not 0 <= self.classifier_dropout < 1:
            raise ValueError(f"`classifier_dropout` must be in [0, 1), got {self.classifier_dropout}.")


__all__ = ["AudioMobileNetConfig"]
