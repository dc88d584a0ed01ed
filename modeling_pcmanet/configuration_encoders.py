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
"""Configurations of the encoders: audio encoders and visual backbones, ours and those of transformers.

Sections: checks that all configurations of this folder share, VGGish (the published audio encoder), AudioMobileNet, the
registry of audio encoders, EfficientNet-Lite, the backbones of the presets, the registry of visual backbones.
"""

import copy
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from os import PathLike
from typing import Any, NamedTuple

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Checks.

# Keywords that transformers itself writes to config.json, passes on or reads; any other unknown keyword is a mistake.
_FRAMEWORK_KEYWORDS = frozenset(
    {
        "architectures",
        "attn_implementation",
        "auto_map",
        "custom_pipelines",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "pruned_heads",
        "quantization_config",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
_is_loading: ContextVar[bool] = ContextVar("is_loading", default=False)


@contextmanager
def loading_saved() -> Iterator[None]:
    """Let `check_keywords` warn instead of raise for keywords from a file, until the end of the `with` block.

    A file may contain attributes that a user added before saving, and keywords from later releases of transformers.
    """
    token = _is_loading.set(True)
    try:
        yield
    finally:
        _is_loading.reset(token)


def drop_code_entries(owner: type, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return saved settings without the entries that make transformers look for the code next to them.

    With these entries, saving again would point to code that is not there, and a pipeline would need
    `trust_remote_code`. Classes that are themselves loaded from a checkpoint keep them.

    Args:
        owner: The class that loads the settings.
        saved: The settings.
    """
    is_remote = owner.__module__.startswith("transformers_modules.")
    return {name: value for name, value in saved.items() if is_remote or name not in ("auto_map", "custom_pipelines")}


def check_keywords(owner: str, keywords: Iterable[str], known: Iterable[str], accepted: Iterable[str]) -> None:
    """Check that a class defines the keywords that it received.

    Args:
        owner: Name of the class.
        keywords: The keywords that it received in addition to its parameters.
        known: The keywords that may be suggested for a typo.
        accepted: The keywords that the error lists if no known keyword is similar.

    Raises:
        ValueError: For an unknown keyword, such as a typo. While a file is loaded (`loading_saved`), it is a warning.
    """
    known = set(known)
    for keyword in keywords:
        if keyword.startswith("_") or keyword in known:
            continue
        close = difflib.get_close_matches(keyword, known, n=1)
        hint = f" Did you mean `{close[0]}`?" if close else ""
        if not _is_loading.get():
            hint = hint or f" Accepted keywords are {', '.join(sorted(accepted))}."
            raise ValueError(f"{owner} got the unknown keyword `{keyword}`.{hint}")
        logger.warning_once(f"The saved {owner} has the unknown keyword `{keyword}`, which has no effect.{hint}")


@strict
class CheckedConfig(PreTrainedConfig):
    """Base class of the configurations: an unknown keyword is an error, or a warning when a file is loaded."""

    def __post_init__(self, **kwargs: Any) -> None:
        known = {field.name for field in fields(self)}
        check_keywords(
            type(self).__name__, kwargs, known | _FRAMEWORK_KEYWORDS, known & set(type(self).__annotations__)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a configuration from a saved dictionary as transformers does; unknown keywords stay attributes."""
        with loading_saved():
            return super().from_dict(drop_code_entries(cls, config_dict), **kwargs)

    @classmethod
    def from_json_file(cls, json_file: str | PathLike[str]) -> Any:
        """Build a configuration from a file as transformers does; unknown keywords stay attributes."""
        with loading_saved():
            return super().from_json_file(json_file)


def require(condition: bool, message: str) -> None:
    """Raise a ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def _build_config(
    name: str, settings: dict[str, Any], ours: Mapping[str, type[PreTrainedConfig]], examples: str
) -> PreTrainedConfig:
    """Build a configuration from its fields and their `model_type`; the dictionary is modified.

    Args:
        name: Field of [`PCMANetConfig`], for the error message.
        settings: The fields.
        ours: Our configurations by model type. Any other model type is looked up in transformers.
        examples: Examples from transformers, for the error message.

    Raises:
        ValueError: If the model type is unknown.
    """
    model_type = settings.pop("model_type", None)
    if model_type in ours:
        return ours[model_type](**settings)
    try:
        return AutoConfig.for_model(model_type, **settings)
    except ValueError as error:
        raise ValueError(
            f"Expected `{name}` with a known `model_type`, {', '.join(ours)} or {examples}, got {model_type!r}."
        ) from error


# VGGish.


@strict
class VGGishConfig(CheckedConfig):
    """Configuration of [`VGGishModel`], the audio encoder of AVSBench and PCMANet.

    The defaults are the published VGGish (Hershey et al. 2017): 72.14 M parameters and one embedding of
    width 128 per 0.96 s of audio.

    Args:
        num_mel_frames: Time frames of one log-mel patch (10 ms each).
        num_mel_bins: Mel bands of one log-mel patch.
        block_channels: Output channels of the 3x3 convolutions, block by block; each block ends with a 2x2 max pooling.
        hidden_size: Width of the two hidden fully connected layers.
        embedding_size: Width of the output embedding.
    """

    model_type = "vggish"
    base_config_key = "audio_config"

    num_mel_frames: int = 96
    num_mel_bins: int = 64
    block_channels: list[list[int]] | tuple[tuple[int, ...], ...] = ((64,), (128,), (256, 256), (512, 512))
    hidden_size: int = 4096
    embedding_size: int = 128

    @property
    def flattened_size(self) -> int:
        """Number of values per patch that the last pooling passes to the fully connected layers."""
        shrink = 2 ** len(self.block_channels)
        return (self.num_mel_frames // shrink) * (self.num_mel_bins // shrink) * self.block_channels[-1][-1]

    def validate_sizes(self) -> None:
        """Raise if a size is not positive or a patch is too small for the pooling layers."""
        for name in ("num_mel_frames", "num_mel_bins", "hidden_size", "embedding_size"):
            require(getattr(self, name) > 0, f"`{name}` must be positive, got {getattr(self, name)}.")
        flat = [channels for block in self.block_channels for channels in block]
        require(
            all(self.block_channels) and all(channels > 0 for channels in flat),
            f"`block_channels` must be a list of non-empty lists of positive widths, got {self.block_channels}.",
        )
        shrink = 2 ** len(self.block_channels)
        require(
            min(self.num_mel_frames, self.num_mel_bins) >= shrink,
            f"`num_mel_frames` and `num_mel_bins` must be at least {shrink}, because each of the "
            f"{len(self.block_channels)} blocks halves the patch, got {self.num_mel_frames} and {self.num_mel_bins}.",
        )


# AudioMobileNet.


class BlockSize(NamedTuple):
    """Sizes of one inverted-residual block.

    Attributes:
        in_channels: Channels of the input.
        expanded_channels: Channels of the depthwise convolution.
        out_channels: Channels of the output.
        kernel_size: Kernel size of the depthwise convolution.
        stride: Stride of the depthwise convolution over frequency and time.
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

    @property
    def squeezed_channels(self) -> int:
        """Width of the layer that computes the weights of the channels; 0 if the block has none."""
        return round_channels(self.expanded_channels // 4) if self.squeeze_excitation else 0


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
    """Round a number of channels to a multiple of 8, but never below 90% of the number.

    Args:
        channels: Any positive number.

    Returns:
        The rounded number, at least 8.
    """
    half = _CHANNEL_MULTIPLE / 2
    rounded = max(_CHANNEL_MULTIPLE, int(channels + half) // _CHANNEL_MULTIPLE * _CHANNEL_MULTIPLE)
    return rounded if rounded >= 0.9 * channels else rounded + _CHANNEL_MULTIPLE


@strict
class AudioMobileNetConfig(CheckedConfig):
    """Configuration of [`AudioMobileNetModel`].

    The defaults are mn04 of EfficientAT ("Efficient Large-Scale Audio Tagging via Transformer-to-CNN Knowledge
    Distillation", Schmid et al. 2023): 0.98 M parameters, 527 AudioSet classes.

    Args:
        width_multiplier: Factor for all widths of MobileNetV3-Large; published values are 0.4, 0.5, 1, 2, 3 and 4.
        num_mel_bins: Mel bands of a spectrogram. The network accepts any number of bands and of time frames.
        classifier_dropout: Dropout before the last layer of the classifier, in [0, 1).
        batch_norm_eps: Added to the variance in every BatchNorm.
        initializer_range: Standard deviation of newly initialized linear layers.
        score_groups: Groups of classes: class indices by group name, in alphabetical order, which is the order in
            saved files. With groups, the embedding has one value per group instead of the features before the
            classifier: how far the group scores above other sounds. It recognizes sounds for which a segmentation
            model saw few or no recordings in training.
        score_means: Mean score of each group over recordings of other groups; 0 by default.
        score_scales: Standard deviation of these scores; 1 by default.
    """

    model_type = "audio_mobilenet"
    base_config_key = "audio_config"

    width_multiplier: float = 0.4
    num_mel_bins: int = 128
    classifier_dropout: float = 0.2
    batch_norm_eps: float = 1e-3
    initializer_range: float = 0.01
    score_groups: dict[str, list[int]] | None = None
    score_means: list[float | int] | None = None
    score_scales: list[float | int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.score_groups is not None:
            self.score_means = self.score_means or [0.0] * len(self.score_groups)
            self.score_scales = self.score_scales or [1.0] * len(self.score_groups)
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
    def feature_size(self) -> int:
        """Channels of the last feature map: six times those of the last block."""
        return 6 * self.blocks[-1].out_channels

    @property
    def embedding_size(self) -> int:
        """Width of the embedding: the channels of the last feature map, or the number of groups of classes."""
        return self.feature_size if self.score_groups is None else len(self.score_groups)

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

    def validate_groups(self) -> None:
        """Raise unless every group has classes of the model, a mean and a positive scale, in the order of a saved file."""
        groups = self.score_groups or {}
        require(
            list(groups) == sorted(groups),
            f"`score_groups` must be sorted by name, because saved files are, got {list(groups)}. Sort `score_means` and "
            "`score_scales` likewise.",
        )
        for name, indices in groups.items():
            valid = bool(indices) and all(0 <= index < (self.num_labels or 0) for index in indices)
            require(
                valid, f"`score_groups` must have class indices below {self.num_labels}, got {indices} for {name}."
            )
        lengths = [len(values) for values in (self.score_means, self.score_scales) if values is not None]
        require(
            all(length == len(groups) for length in lengths) and min(self.score_scales or [1]) > 0,
            f"`score_means` and `score_scales` (positive) must have one value for each of {len(groups)} `score_groups`.",
        )


# The registry of audio encoders.

# Our own audio encoders by model type; the first is the default. Any other model type is looked up in transformers.
AUDIO_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    config.model_type: config for config in (VGGishConfig, AudioMobileNetConfig)
}
# The audio encoders of the presets that do not use the published one.
# A hundredth of the published size; training pretrains it on sound classes before it is frozen.
TINY_AUDIO_CONFIG = {"block_channels": [[24], [48], [96], [96]], "hidden_size": 256, "embedding_size": 128}
SMALL_AUDIO_CONFIG = {"model_type": AudioMobileNetConfig.model_type}

# Fields that hold the width of an embedding: ours, that of most models of transformers, that of encoder-decoders.
_WIDTH_FIELDS = ("embedding_size", "hidden_size", "d_model")


def build_audio_config(settings: PreTrainedConfig | dict[str, Any] | None) -> PreTrainedConfig:
    """Return the configuration of an audio encoder.

    Args:
        settings: A configuration, or its fields with `model_type`: one of ours (`"vggish"`, which is the default,
            or `"audio_mobilenet"`) or that of any audio model of transformers. For a model with an audio part, such as
            CLAP, the configuration of that part is returned.

    Raises:
        ValueError: If the model type is unknown, or the model does not have a single embedding width.
    """
    if isinstance(settings, PreTrainedConfig):
        config = settings
    else:
        fields_of_config = copy.deepcopy(settings or {})
        fields_of_config.setdefault("model_type", next(iter(AUDIO_CONFIGS)))
        examples = "an audio model of transformers such as audio-spectrogram-transformer or wav2vec2"
        config = _build_config("audio_config", fields_of_config, AUDIO_CONFIGS, examples)
    config = getattr(config, "audio_config", config)
    audio_embedding_size(config)
    return config


def audio_embedding_size(config: PreTrainedConfig) -> int:
    """Return the width of the embedding that an audio encoder with this configuration computes per window of audio.

    Raises:
        ValueError: If the configuration has no such width.
    """
    adapted = ("output_hidden_size",) if getattr(config, "add_adapter", False) else ()  # of wav2vec2 and its relatives
    for name in (*adapted, *_WIDTH_FIELDS):
        if isinstance(width := getattr(config, name, None), int):
            return width
    raise ValueError(
        f"{type(config).__name__} has none of {', '.join(_WIDTH_FIELDS)}, so it is not the configuration of one audio encoder."
    )


# EfficientNet-Lite.


class BlockGroup(NamedTuple):
    """Sizes of a group of inverted-residual blocks; all but the first have stride 1.

    Attributes:
        blocks: Number of blocks.
        out_channels: Channels of the output.
        expansion: Channels of the depthwise convolution divided by those of the input.
        kernel_size: Kernel size of the depthwise convolution.
        stride: Stride of the first block.
    """

    blocks: int
    out_channels: int
    expansion: int
    kernel_size: int
    stride: int


# EfficientNet-B0 (arXiv 1905.11946, table 1), by stage of the backbone: each inner tuple ends at stride 4, 8, 16 or 32.
_STAGES = (
    (BlockGroup(1, 16, 1, 3, 1), BlockGroup(2, 24, 6, 3, 2)),
    (BlockGroup(2, 40, 6, 5, 2),),
    (BlockGroup(3, 80, 6, 3, 2), BlockGroup(3, 112, 6, 5, 1)),
    (BlockGroup(4, 192, 6, 5, 2), BlockGroup(1, 320, 6, 3, 1)),
)


@strict
class EfficientNetLiteConfig(BackboneConfigMixin, CheckedConfig):
    """Configuration of [`EfficientNetLiteBackbone`], a backbone for small and fast networks.

    The defaults are EfficientNet-Lite0. Width and depth multipliers of the others: Lite1 1.0 and 1.1, Lite2 1.1 and
    1.2, Lite3 1.2 and 1.4, Lite4 1.4 and 1.8.

    Args:
        width_multiplier: Factor for the channels of every block; the stem is not scaled.
        depth_multiplier: Factor for the number of blocks of every group except the first and the last.
        num_channels: Channels of the input.
        stem_channels: Channels of the stem.
        batch_norm_eps: Added to the variance in every BatchNorm.
        out_features: Names of the feature maps to return: `stem` (stride 2), `stage1` to `stage4` (strides 4, 8, 16,
            32); defaults to the last one.
        out_indices: Indices of these feature maps, instead of their names.
    """

    model_type = "efficientnet_lite"

    width_multiplier: float = 1.0
    depth_multiplier: float = 1.0
    num_channels: int = 3
    stem_channels: int = 32
    batch_norm_eps: float = 1e-3

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("stage_names", None)  # from a saved file
        self.stage_names = ["stem", *(f"stage{index}" for index in range(1, len(_STAGES) + 1))]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @property
    def stages(self) -> tuple[tuple[BlockGroup, ...], ...]:
        """Groups of blocks of every stage at this width and depth."""
        first, last = _STAGES[0][0], _STAGES[-1][-1]
        return tuple(
            tuple(
                group._replace(
                    blocks=group.blocks if group in (first, last) else math.ceil(group.blocks * self.depth_multiplier),
                    out_channels=round_channels(group.out_channels * self.width_multiplier),
                )
                for group in stage
            )
            for stage in _STAGES
        )

    def validate_sizes(self) -> None:
        """Raise if a size is not positive."""
        for name in ("width_multiplier", "depth_multiplier", "num_channels", "stem_channels", "batch_norm_eps"):
            require(getattr(self, name) > 0, f"`{name}` must be positive, got {getattr(self, name)}.")


# The backbones of the presets.

# The names of the feature maps at strides 4, 8, 16 and 32 in nearly all backbones of transformers.
ALL_STAGES = ["stage1", "stage2", "stage3", "stage4"]
PVT_V2_B5 = {
    "model_type": "pvt_v2",
    "hidden_sizes": [64, 128, 320, 512],
    "depths": [3, 6, 40, 3],
    "num_attention_heads": [1, 2, 5, 8],
    "mlp_ratios": [4, 4, 4, 4],
    "sr_ratios": [8, 4, 2, 1],
    "qkv_bias": True,
    "layer_norm_eps": 1e-6,
    "drop_path_rate": 0.1,
    "out_features": ALL_STAGES,
}
RESNET_50 = {"model_type": "resnet", "out_features": ALL_STAGES}
RESNET_TINY = {
    "model_type": "resnet",
    "embedding_size": 24,
    "hidden_sizes": [24, 48, 96, 128],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ALL_STAGES,
}
EFFICIENTNET_LITE_0 = {"model_type": EfficientNetLiteConfig.model_type, "out_features": ALL_STAGES}


# The registry of visual backbones.

# Our own backbones by model type. Any other model type is looked up in transformers.
BACKBONE_CONFIGS: dict[str, type[PreTrainedConfig]] = {EfficientNetLiteConfig.model_type: EfficientNetLiteConfig}

# Mean and standard deviation per channel of the pixels (0 to 1) that a backbone is trained on, by model type; all
# others use those of ImageNet.
BACKBONE_NORMALIZATIONS: dict[str, dict[str, Any]] = {
    EfficientNetLiteConfig.model_type: {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
}


def build_backbone_config(settings: PreTrainedConfig | dict[str, Any] | None) -> PreTrainedConfig:
    """Return the configuration of a visual backbone.

    Args:
        settings: A configuration, or its fields with `model_type`: `"efficientnet_lite"` or any that `AutoBackbone` knows;
            None for the PVT-v2-B5 of the paper.

    Raises:
        ValueError: If the model type is unknown.
    """
    if isinstance(settings, PreTrainedConfig):
        return settings
    examples = "a backbone of transformers such as pvt_v2, resnet, swin or timm_backbone"
    return _build_config("backbone_config", copy.deepcopy(settings or PVT_V2_B5), BACKBONE_CONFIGS, examples)


def is_plain_vit(config: PreTrainedConfig) -> bool:
    """Return whether all feature maps of a backbone have the stride of its patches, as in DINOv2 and ViTDet.

    With `add_fpn=True`, BEiT has its own feature pyramid.
    """
    if getattr(config, "add_fpn", False):
        return False
    stages = len(getattr(config, "stage_names", None) or ())
    return not hasattr(config, "depths") and stages == (getattr(config, "num_hidden_layers", None) or 0) + 1


__all__ = [
    "ALL_STAGES",
    "AUDIO_CONFIGS",
    "AudioMobileNetConfig",
    "BACKBONE_CONFIGS",
    "BACKBONE_NORMALIZATIONS",
    "BlockSize",
    "CheckedConfig",
    "EFFICIENTNET_LITE_0",
    "EfficientNetLiteConfig",
    "PVT_V2_B5",
    "RESNET_50",
    "RESNET_TINY",
    "SMALL_AUDIO_CONFIG",
    "TINY_AUDIO_CONFIG",
    "VGGishConfig",
    "audio_embedding_size",
    "build_audio_config",
    "build_backbone_config",
    "check_keywords",
    "drop_code_entries",
    "is_plain_vit",
    "loading_saved",
    "require",
    "round_channels",
]
