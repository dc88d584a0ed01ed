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

EfficientNet-Lite is EfficientNet without squeeze-and-excitation and with ReLU6. It is implemented here and not taken
from timm, because the default network must load quickly and with transformers alone, also as code that is saved with
its weights.
"""

import math
from collections.abc import Callable
from os import PathLike
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoBackbone, AutoConfig
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BackboneOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import cached_file
from transformers.utils.generic import can_return_tuple
from transformers.utils.import_utils import requires_backends

from .configuration_encoders import ALL_STAGES, EfficientNetLiteConfig, is_plain_vit
from .modeling_audio_encoders import load_strict


class SamePaddingConvolution(nn.Conv2d):
    """Convolution with the "same" padding of TensorFlow, which with stride 2 and an even size pads less at the start."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, groups: int = 1):
        padding = (kernel_size - 1) // 2
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (frames, in_channels, height, width) to (frames, out_channels, ceil(height / stride), ...)."""
        if self.stride == (1, 1):
            return super().forward(input)
        moved_down, moved_right = (1 - size % 2 for size in input.shape[2:])
        # CODEPATH: onnxruntime 1.32 does not load a graph that pads weights.
        if torch.compiler.is_exporting():
            (down, right), (stride, _) = cast(tuple[int, int], self.padding), self.stride
            padded = functional.pad(input, (right - moved_right, right, down - moved_down, down))
            return functional.conv2d(padded, self.weight, self.bias, stride, groups=self.groups)
        # One zero before the weights shifts the kernel by a pixel, without a padded copy of the feature map.
        return self._conv_forward(input, functional.pad(self.weight, (moved_right, 0, moved_down, 0)), self.bias)


def _add_norm(config: EfficientNetLiteConfig, convolution: nn.Conv2d, *, has_activation: bool = True) -> nn.Sequential:
    """Build a convolution with BatchNorm and, unless it is a projection, ReLU6."""
    norm = nn.BatchNorm2d(convolution.out_channels, eps=config.batch_norm_eps, momentum=0.01)
    # trf-ignore: TRF036 a plain chain, called once
    return nn.Sequential(convolution, norm, *([nn.ReLU6(inplace=True)] if has_activation else []))


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
            _add_norm(config, SamePaddingConvolution(in_channels, expanded)) if expansion > 1 else nn.Identity()
        )
        depthwise = SamePaddingConvolution(expanded, expanded, kernel_size, stride, groups=expanded)
        self.depthwise = _add_norm(config, depthwise)
        projection = SamePaddingConvolution(expanded, out_channels)
        self.projection = _add_norm(config, projection, has_activation=False)
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
    input_modalities = ["image"]
    has_attentions = False
    _no_split_modules = ["InvertedResidual"]

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__(config)
        config.validate()  # fields may have been assigned since, e.g. by `from_pretrained(..., field=value)`
        stem = SamePaddingConvolution(config.num_channels, config.stem_channels, kernel_size=3, stride=2)
        self.embedder = _add_norm(config, stem)
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
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BackboneOutput:
        """Compute the feature maps that `config.out_features` names.

        Args:
            pixel_values: (frames, num_channels, height, width), any height and width.
            **_: `output_hidden_states`, to also return all five feature maps, and `return_dict`.
        """
        feature_map = self.embedder(pixel_values)
        feature_maps = [feature_map]
        for stage in self.stages:
            feature_map = stage(feature_map)
            feature_maps.append(feature_map)
        return BackboneOutput(
            feature_maps=tuple(feature_maps[index] for index in self.out_indices), hidden_states=tuple(feature_maps)
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
    # trf-ignore: TRF036 a plain chain, called once
    return nn.Sequential(*blocks)


# Building.


def build_backbone(config: PreTrainedConfig) -> Any:
    """Build a backbone with random weights: ours, or one of transformers.

    Args:
        config: Configuration of the backbone.

    Returns:
        A `BackboneMixin`. The classes of transformers' backbones have no common typed base class.
    """
    # CODEPATH: the preset `small`. By name and not by class: a checkpoint with code has its own copy of the class, which
    # AutoBackbone does not know.
    if config.model_type == EfficientNetLiteConfig.model_type:
        return EfficientNetLiteBackbone(cast(EfficientNetLiteConfig, config))
    # In the data type of the network, not in that of the checkpoint that the configuration comes from.
    return AutoBackbone.from_config(config, dtype=torch.get_default_dtype())


def build_pyramid(backbone: Any, neck: str) -> "FeaturePyramid | None":
    """Build the feature pyramid of a plain vision transformer, with random weights.

    Args:
        backbone: Any backbone whose configuration [`PCMANetConfig`] accepts for the neck.
        neck: `"feature_pyramid"`, or `"convolution"` for a backbone with four feature maps, which needs none.

    Returns:
        The feature pyramid; None for `"convolution"`.

    Raises:
        ValueError: If four feature maps have strides other than 4, 8, 16 and 32.
    """
    if neck == "feature_pyramid":
        return FeaturePyramid(backbone)
    strides = feature_strides(backbone)
    if strides != STRIDES:
        raise ValueError(
            f"The feature maps of {type(backbone).__name__}, {list(backbone.out_features)}, have the strides {strides}, but "
            f"the decoder needs {STRIDES}. Name other feature maps in `out_features` (`out_indices` for timm). If all have "
            'the same stride, name only the last one and set `neck="feature_pyramid"`.'
        )
    return None


def feature_strides(backbone: Any) -> list[int]:
    """Return the strides of the feature maps of a backbone, fine to coarse."""
    config = backbone.config
    # CODEPATH: timm knows them.
    if config.model_type == "timm_backbone":
        return list(backbone._backbone.feature_info.reduction())
    # CODEPATH: the backbones of the presets, which should start fast.
    if config.model_type in _STRIDES:
        strides = dict(zip(config.stage_names, _STRIDES[config.model_type](config), strict=True))
        return [strides[name] for name in config.out_features]
    sizes, weight = getattr(config, "image_size", 64), next(backbone.parameters())
    height, width = (sizes, sizes) if isinstance(sizes, int) else sizes
    channels = getattr(config, "num_channels", 3)  # TextNet and others have no such field
    frames = torch.zeros(1, channels, height, width, dtype=weight.dtype, device=weight.device)
    was_training = backbone.training
    with torch.no_grad():
        feature_maps = backbone.eval()(frames).feature_maps
    backbone.train(was_training)
    return [width // feature_map.shape[-1] for feature_map in feature_maps]


STRIDES = [4, 8, 16, 32]

# Strides of all stages by model type.
_STRIDES: dict[str, Callable[[Any], list[int]]] = {
    "efficientnet_lite": lambda _: [2, *STRIDES],
    "pvt_v2": lambda config: [math.prod(config.strides[: index + 1]) for index in range(len(config.strides))],
    "resnet": lambda config: [4, *(stride * (1 + config.downsample_in_first_stage) for stride in STRIDES)],
}


# Loading.


def load_backbone(name: str | PathLike[str]) -> PreTrainedModel:
    """Load a pretrained visual backbone with the feature maps that the network needs.

    Classification checkpoints of Swin, ConvNeXt and Hiera lack the norms of the backbone's outputs. These are newly
    initialized, with a warning.

    Args:
        name: Hub id or folder of a model that `AutoBackbone` knows, or of a timm model.

    Returns:
        The backbone in evaluation mode, with four feature maps, or the last one of a plain vision transformer.

    Raises:
        OSError: If the weights are not found.
        ValueError: If it is not a visual backbone, or weights are missing.
        ImportError: If it is a timm model and timm is not installed.
    """
    config = AutoConfig.from_pretrained(name)
    # CODEPATH: checkpoints as timm publishes them.
    if config.model_type == "timm_wrapper":
        return _load_timm_model(name, config)
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise ValueError(
            f"Expected the Hub id or folder of a visual backbone, such as OpenGVLab/pvt_v2_b5 or microsoft/resnet-50, got "
            f"{name}, which is a {config.model_type}."
        )
    # CODEPATH: backbones of timm that were saved by transformers.
    if config.model_type == "timm_backbone":
        return _load_saved_timm_backbone(name, config)
    config.out_features = config.stage_names[-1:] if is_plain_vit(config) else ALL_STAGES
    # Not AutoBackbone.from_pretrained, which looks the name up on the Hub and so rejects local folders.
    backbone_class = cast(type[PreTrainedModel], MODEL_FOR_BACKBONE_MAPPING[type(config)])
    return load_strict(backbone_class, name, new_weights="hidden_states_norms.", config=config)


def _load_timm_model(name: str | PathLike[str], config: Any) -> PreTrainedModel:
    """Load a model as timm publishes it, with its feature maps at strides 4 to 32, or the last one of a ViT."""
    requires_backends(load_backbone, "timm")
    # If timm is installed, this imports it and torchvision, which takes seconds.
    from transformers import TimmBackbone, TimmBackboneConfig

    config_class: Any = TimmBackboneConfig  # `out_indices` is a property, which its type does not show
    with torch.device("meta"):
        probe: Any = TimmBackbone(config_class(backbone=config.architecture, out_indices=[-1]))
    reductions = [level["reduction"] for level in probe._backbone.feature_info.info]
    indices = [reductions.index(stride) for stride in STRIDES] if set(STRIDES) <= set(reductions) else [-1]
    timm_config = config_class(backbone=config.architecture, out_indices=indices)
    file = cached_file(name, "model.safetensors")
    return TimmBackbone(timm_config, pretrained=True, pretrained_cfg_overlay={"file": file}).eval()


def _load_saved_timm_backbone(name: str | PathLike[str], config: PreTrainedConfig) -> PreTrainedModel:
    """Load a saved `TimmBackbone`, whose `from_pretrained` would take the name for that of a timm model."""
    backbone = build_backbone(config)
    try:
        backbone.load_state_dict(load_file(cast(str, cached_file(name, "model.safetensors"))))
    except RuntimeError as error:
        raise ValueError(f"{name} does not have the weights of its configuration: {error}") from error
    return backbone.eval()


# The feature pyramid of a plain vision transformer.


class FeaturePyramid(nn.Module):
    """The simple feature pyramid of ViTDet (Li et al. 2022, arXiv 2203.16527): four feature maps from one.

    Transposed convolutions compute the two finer ones, max pooling the coarsest.

    Args:
        backbone: A backbone with one feature map.

    Attributes:
        channels: Channels of the four feature maps, fine to coarse.
        patch_size: Stride of the backbone in pixels.
    """

    def __init__(self, backbone: Any):
        super().__init__()
        channels = backbone.channels[-1]
        self.patch_size = _patch_size(backbone)
        # Steps of two from the stride of the patches to that of each map: 2, 1, 0, -1 for patches of 14 or 16 pixels.
        steps = [round(math.log2(self.patch_size / stride)) for stride in STRIDES]
        self.channels = [channels >> max(0, step) for step in steps]
        self.levels = nn.ModuleList(_build_level(channels, step) for step in steps)

    def fit(self, frames: torch.Tensor) -> torch.Tensor:
        """Resize (frames, 3, height, width) up to a multiple of the patch size, because a ViT would cut the rest off."""
        size = [-(-side // self.patch_size) * self.patch_size for side in frames.shape[-2:]]
        if size == list(frames.shape[-2:]):
            return frames
        return functional.interpolate(frames, size=size, mode="bilinear", align_corners=False)

    def forward(self, feature_map: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map (frames, channels, height, width) to four feature maps, fine to coarse."""
        return tuple(level(feature_map) for level in self.levels)


def compute_feature_maps(
    backbone: nn.Module, pyramid: FeaturePyramid | None, frames: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Compute the four feature maps, fine to coarse, of (frames, 3, height, width)."""
    # CODEPATH: most backbones have four feature maps of their own.
    if pyramid is None:
        return _channels_first(backbone, backbone(frames).feature_maps)
    return pyramid(_channels_first(backbone, backbone(pyramid.fit(frames)).feature_maps)[-1])


def _channels_first(backbone: Any, feature_maps: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Return feature maps as (frames, channels, height, width)."""
    # CODEPATH: transformers does not transpose the feature maps of a timm Swin, (frames, height, width, channels).
    if getattr(getattr(backbone, "_backbone", None), "output_fmt", None) == "NHWC":
        return tuple(feature_map.permute(0, 3, 1, 2) for feature_map in feature_maps)
    return feature_maps


def _build_level(channels: int, step: int) -> nn.Sequential:
    """Build the layers that double (`step` times, halving the channels) or halve (`-step` times) height and width."""
    layers: list[nn.Module] = []
    for index in range(step):
        # CODEPATH: between two transposed convolutions.
        if index > 0:
            layers += [ChannelNorm(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2))
        channels //= 2
    layers += [nn.MaxPool2d(kernel_size=2, ceil_mode=True) for _ in range(-step)]
    # trf-ignore: TRF036 a plain chain, called once
    return nn.Sequential(*layers)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a feature map."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize (frames, channels, height, width)."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _patch_size(backbone: Any) -> int:
    """Return the stride in pixels of a backbone with one feature map."""
    size = getattr(backbone.config, "patch_size", None) or feature_strides(backbone)[-1]
    return size if isinstance(size, int) else size[0]


__all__ = [
    "EfficientNetLiteBackbone",
    "FeaturePyramid",
    "build_backbone",
    "build_pyramid",
    "compute_feature_maps",
    "feature_strides",
    "load_backbone",
]
