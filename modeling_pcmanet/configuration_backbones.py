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
"""Configurations of visual backbones: EfficientNet-Lite and any backbone of transformers.

Sections: EfficientNet-Lite, the backbones of the presets, the registry.
"""

import copy
import math
from typing import Any, NamedTuple

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from .configuration_audio_encoders import require, round_channels


# EfficientNet-Lite.


class BlockGroup(NamedTuple):
    """Sizes of a group of inverted-residual blocks; all but the first have stride 1.

    Attributes:
        blocks: Number of blocks.
        out_channels: Channels of the output.
        expansion: Channels of the depthwise convolution over those of the input.
        kernel_size: Of the depthwise convolution.
        stride: Of the first block.
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
class EfficientNetLiteConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of [`EfficientNetLiteBackbone`], a backbone for small and fast networks.

    The defaults are EfficientNet-Lite0. Width and depth of the others: Lite1 1.0 and 1.1, Lite2 1.1 and 1.2, Lite3 1.2
    and 1.4, Lite4 1.4 and 1.8.

    Args:
        width_multiplier: Factor of the channels of every block; the stem keeps its own.
        depth_multiplier: Factor of the number of blocks of every group but the first and the last.
        num_channels: Channels of the input.
        stem_channels: Channels of the stem.
        batch_norm_eps: Added to the variance in every BatchNorm.
        out_features: Names out of `stem` (stride 2) and `stage1` to `stage4` (strides 4, 8, 16, 32); defaults to the last.
        out_indices: Their indexes, in place of the names.
    """

    model_type = "efficientnet_lite"

    width_multiplier: float = 1.0
    depth_multiplier: float = 1.0
    num_channels: int = 3
    stem_channels: int = 32
    batch_norm_eps: float = 1e-3

    def __post_init__(self, **kwargs: Any) -> None:
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


# The registry.

# Our own backbones by model type. Any other model type is looked up in transformers.
BACKBONE_CONFIGS: dict[str, type[PreTrainedConfig]] = {EfficientNetLiteConfig.model_type: EfficientNetLiteConfig}


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
    fields = copy.deepcopy(settings or PVT_V2_B5)
    model_type = fields.pop("model_type", None)
    if model_type in BACKBONE_CONFIGS:
        return BACKBONE_CONFIGS[model_type](**fields)
    try:
        return AutoConfig.for_model(model_type, **fields)
    except ValueError as error:
        raise ValueError(
            f"Expected `backbone_config` with the `model_type` of a backbone, {', '.join(BACKBONE_CONFIGS)} or one of "
            f"transformers such as pvt_v2, resnet, swin or timm_backbone, got {model_type!r}."
        ) from error


# What the network needs of a backbone.


def is_plain_vit(config: PreTrainedConfig) -> bool:
    """Return whether all feature maps of a backbone have the stride of its patches, as in DINOv2 and ViTDet."""
    stages = len(getattr(config, "stage_names", None) or ())
    return not hasattr(config, "depths") and stages == (getattr(config, "num_hidden_layers", None) or 0) + 1


def validate_backbone_config(config: PreTrainedConfig, neck: str) -> None:
    """Raise unless a backbone returns the feature maps that the neck needs, as far as its configuration says.

    Args:
        config: Configuration of the backbone.
        neck: `"convolution"`, for four feature maps, or `"feature_pyramid"`, for one.

    Raises:
        ValueError: If the number of feature maps is wrong, or their strides cannot be 4, 8, 16 and 32.
    """
    named = getattr(config, "out_features", None)
    # The names of timm's feature maps are not known before the network is built.
    outputs = list(named or getattr(config, "out_indices", None) or [])
    got = f"got {outputs} from {type(config).__name__}"
    if neck == "feature_pyramid":
        require(
            len(outputs) == 1,
            f'`neck="feature_pyramid"` makes all feature maps from one: expected one name in `out_features`, {got}.',
        )
        return
    require(
        not is_plain_vit(config),
        f"{type(config).__name__} is a plain vision transformer, whose feature maps all have the same stride. Set "
        '`neck="feature_pyramid"` and `out_features` to its last stage.',
    )
    require(
        len(outputs) == len(ALL_STAGES) and "stem" not in outputs,
        f"`backbone_config` must name {len(ALL_STAGES)} feature maps at strides 4, 8, 16, 32 in `out_features`, in most "
        f"backbones {ALL_STAGES}, {got}.",
    )


__all__ = [
    "ALL_STAGES",
    "BACKBONE_CONFIGS",
    "EFFICIENTNET_LITE_0",
    "EfficientNetLiteConfig",
    "PVT_V2_B5",
    "RESNET_50",
    "RESNET_TINY",
    "build_backbone_config",
    "is_plain_vit",
    "validate_backbone_config",
]
