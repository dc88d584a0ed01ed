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
"""Configuration of PCMANet: the hyperparameters of the paper, typed and validated."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from .configuration_encoders import (
    ALL_STAGES,
    EFFICIENTNET_LITE_0,
    PVT_V2_B5,
    RESNET_50,
    RESNET_TINY,
    SMALL_AUDIO_CONFIG,
    TINY_AUDIO_CONFIG,
    CheckedConfig,
    audio_embedding_size,
    build_audio_config,
    build_backbone_config,
    is_plain_vit,
    require,
)


NUM_STAGES = 4

# The Hub task of a model that maps a video to masks for each of its frames. transformers has no pipeline of this name
# that could be mistaken for ours, unlike for `image-segmentation` and `video-classification`.
PIPELINE_TAG = "video-to-video"

# The 71 classes of AVSBench-semantic: background, then 70 sound sources in plain ASCII order (index = label2idx - 1).
# fmt: off
AVSBENCH_SEMANTIC_LABELS = (
    "background", "accordion", "airplane", "axe", "baby", "bassoon", "bell", "bird", "boat", "boy", "bus", "car",
    "cat", "cello", "clarinet", "clipper", "clock", "dog", "donkey", "drum", "duck", "elephant", "emergency-car",
    "erhu", "flute", "frying-food", "girl", "goose", "guitar", "gun", "guzheng", "hair-dryer", "handpan", "harmonica",
    "harp", "helicopter", "hen", "horse", "keyboard", "leopard", "lion", "man", "marimba", "missile-rocket",
    "motorcycle", "mower", "parrot", "piano", "pig", "pipa", "saw", "saxophone", "sheep", "sitar", "sorna", "squirrel",
    "tabla", "tank", "tiger", "tractor", "train", "trombone", "truck", "trumpet", "tuba", "ukulele", "utv",
    "vacuum-cleaner", "violin", "wolf", "woman",
)
# fmt: on

_PRESETS: dict[str, dict[str, Any]] = {
    "pvt_v2_b5": {"backbone_config": PVT_V2_B5},
    "resnet50": {"backbone_config": RESNET_50},
    "tiny": {
        "backbone_config": RESNET_TINY,
        "audio_config": TINY_AUDIO_CONFIG,
        "hidden_size": 64,
        # 32 channels per group, as in the paper (256 / 8): the width in which AVGA compares image and audio.
        "num_groups": 2,
        "num_attention_heads": 4,
        "head_channels": 32,
    },
    "small": {
        "backbone_config": EFFICIENTNET_LITE_0,
        "audio_config": SMALL_AUDIO_CONFIG,
        # The narrowest width with more than one group of 32 channels; 96 halves the speed of the decoder.
        "hidden_size": 64,
        "num_groups": 2,
        "num_attention_heads": 4,
        "head_channels": 32,
    },
}


def _label_names(num_labels: int) -> dict[int, str]:
    """Return names for classes without names."""
    names = ["sounding"] if num_labels == 1 else ["background", *(f"class {index}" for index in range(1, num_labels))]
    return dict(enumerate(names))


def _invert(id2label: Mapping[Any, str]) -> dict[str, int]:
    """Return the index of each class; the keys of a file are strings."""
    return {name: int(index) for index, name in id2label.items()}


@strict
class PCMANetConfig(CheckedConfig):
    """Configuration of [`PCMANetModel`] and [`PCMANetForAudioVisualSegmentation`].

    Defaults are the paper's PVT-v2-B5 network for one binary output (arXiv 2406.02345);
    [`PCMANetConfig.from_preset`] builds the other sizes. Lists with one value per stage are ordered from coarse (stage 4
    of the paper, stride 32) to fine (stage 1, stride 4), the order in which the decoder runs.

    Args:
        backbone_config: Any `AutoBackbone` configuration with four feature maps at strides 4, 8, 16, 32, or with one
            (see `neck`).
        neck: `"convolution"` for a backbone with four feature maps; `"feature_pyramid"` computes them from the single
            map of a plain vision transformer (ViTDet, arXiv 2203.16527).
        audio_config: Configuration of the audio encoder, by default the published one (see [`build_audio_config`]).
        num_audio_windows: Number of audio windows per frame that the audio encoder embeds; their embeddings are
            concatenated.
        audio_softmax: Whether the network also receives the softmax over the embedding of each window (see
            [`audio_inputs`]). For embeddings that are class scores (`score_groups` of the audio encoder). Not in the
            paper.
        audio_classifier: Whether two linear layers score the classes from the audio of a frame alone. In every stage,
            these logits are added to those of all pixels of the frame, so a class that is not heard gets no mask. Not
            in the paper.
        hidden_size: Width C of the neck, the decoder stages and the projected audio.
        num_groups: Channel groups G of the audio-visual group attention (AVGA).
        num_attention_heads: Heads of the query-selected cross-attention (QSCA).
        token_grid_sizes: Side s of the s x s grid of visual tokens of QSCA, coarse to fine.
        head_channels: Width between the two convolutions of a segmentation head.
        confidence_threshold: Confidence-induced masking (CIM) keeps a pixel as uncertain if its probability is in
            `[threshold, 1 - threshold]`; 0 keeps every pixel, so nothing is masked.
        group_attention: Name of the block that weights the feature maps of a stage by the audio: `"avga"` as
            published, `"sounding_maps"`, or, as in the next two fields, a block registered with `register_block`.
        cross_attention: Name of the block that exchanges information between frames and audio: `"qsca"`. With None
            (for ablations) there is no such block, and the fusion has no guidance.
        fusion: Name of the block that fuses the feature maps: `"guided"`.
        stage_loss_weights: Weight of each supervised output in the loss, coarse to fine.
        semantic_iou_weight: Weight of the soft IoU loss in the loss of semantic masks; the loss of binary masks always
            includes it. 0 is the published loss, in which small objects count little.
        distillation_weight: Weight of the distillation loss, in which the predictions of the coarser stages learn from
            that of the finest stage; 0 adds none, as published.
        feature_distillation_weight: Weight of the same loss between the fused feature maps; 0 adds none.
        ignore_index: Label of pixels that the loss and the metrics ignore.
        freeze_audio_encoder: Whether the audio encoder is frozen and stays in evaluation mode, as published.
        layer_norm_eps: Epsilon of QSCA's LayerNorm.
        patch_embedding_layer_norm_eps: Epsilon of the patch-embedding and spatial-reduction norms of a PVT-v2 backbone.
        token_layout: `"spatial"` puts every token back in its position; `"scrambled"` reshapes as published.
        masked_query_gradients: Whether gradients flow through the attention of stages that select their queries.
        padded_frames: `"excluded"` computes only real frames; `"zeroed"` multiplies the feature maps of padded frames
            by zero, as published.
        gather_queries: Whether QSCA computes only the selected queries instead of multiplying by the mask.
        description: One sentence about what the trained network knows and does not know. The command and the page show
            it.
        bfloat16_agreement: Mean IoU, in [0, 1], of the masks in bfloat16 with those in float32, as measured by
            `pcmanet.agreement` for trained weights; None if unknown. At 0.99 or more, `dtype="auto"` may choose
            bfloat16. Training sets it to None, because it is valid only for the weights that it was measured with.
    """

    model_type = "pcmanet"
    sub_configs: ClassVar[dict[str, type]] = {"backbone_config": AutoConfig, "audio_config": AutoConfig}
    # Trainer gathers all outputs that are not listed here; these are diagnostics, not predictions.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "stage_logits",
        "confidence_masks",
        "kept_ratios",
        "hidden_states",
        "attentions",
        "audio_embeds",
    ]

    backbone_config: dict | PreTrainedConfig | None = None
    neck: str = "convolution"
    audio_config: dict | PreTrainedConfig | None = None
    num_audio_windows: int = 1
    audio_softmax: bool = False
    audio_classifier: bool = False
    hidden_size: int = 256
    # The published ResNet-50 network for S4 uses 4 groups; all five others use 8.
    num_groups: int = 8
    num_attention_heads: int = 8
    token_grid_sizes: list[int] | tuple[int, ...] = (7, 7, 14, 28)
    head_channels: int = 128
    confidence_threshold: float | int = 0.01
    group_attention: str = "avga"
    cross_attention: str | None = "qsca"
    fusion: str = "guided"
    stage_loss_weights: list[float | int] | tuple[float | int, ...] = (1.0, 1.0, 1.0, 1.0)
    semantic_iou_weight: float | int = 0.0
    distillation_weight: float | int = 0.0
    feature_distillation_weight: float | int = 0.0
    ignore_index: int = 255
    freeze_audio_encoder: bool = True
    layer_norm_eps: float = 1e-5
    # transformers' PvtV2 uses 1e-6 everywhere; published PVT-v2 weights expect 1e-5 in these two kinds of norm.
    patch_embedding_layer_norm_eps: float = 1e-5
    # The published code reshapes tokens (s*s, C) straight to (C, s, s), which scatters each token over the map.
    token_layout: str = "spatial"
    # The published code writes the attention of selected queries under no_grad, so QSCA 3, 2 and 1 are never trained.
    masked_query_gradients: bool = True
    # The published AVSS code leaves padded frames in attention and BatchNorm, where they change the real frames.
    padded_frames: str = "excluded"
    # Gives the same values as multiplying by the mask with less work, but copies one count per batch to the host.
    gather_queries: bool = False
    description: str | None = None
    bfloat16_agreement: float | int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.backbone_config = build_backbone_config(self.backbone_config)
        self.audio_config = build_audio_config(self.audio_config)
        num_labels = kwargs.get("num_labels", 1)
        if self.id2label is None and self.label2id is not None:
            self.id2label = {int(index): name for name, index in self.label2id.items()}
        if self.id2label is None:
            self.id2label = _label_names(num_labels)
        self.label2id = self.label2id or _invert(self.id2label)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a configuration from a dictionary as transformers does.

        In checkpoints saved before the blocks had names, `cross_attention` is true or false. New `num_labels` or `id2label`
        replace all names of the classes.
        """
        names, num_labels = kwargs.get("id2label"), kwargs.get("num_labels")
        if names is None and num_labels not in (None, len(config_dict.get("id2label") or ())):
            names = _label_names(num_labels)
        if names is not None:
            config_dict = {**config_dict, "id2label": names, "label2id": _invert(names)}
        saved = config_dict.get("cross_attention")
        if isinstance(saved, bool):
            config_dict = {**config_dict, "cross_attention": "qsca" if saved else None}
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields except the folders or Hub ids of the encoders, whose weights have changed since."""
        values = super().to_dict()
        for part in self.sub_configs:
            (values.get(part) or {}).pop("_name_or_path", None)
        return values

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "PCMANetConfig":
        """Build the configuration of a named size.

        Args:
            name: `"pvt_v2_b5"` or `"resnet50"` (the two networks of the paper), `"small"` (for CPUs) or `"tiny"` (the demo
                models).
            **overrides: Any field of the configuration, for example `num_labels=71`.

        Raises:
            ValueError: If the preset is unknown.
        """
        if name not in _PRESETS:
            raise ValueError(f"Expected one of the presets {', '.join(sorted(_PRESETS))}, got {name!r}.")
        return cls(**{**_PRESETS[name], **overrides})

    @property
    def audio_embeds_size(self) -> int:
        """Width of `audio_embeds`: the embeddings of all windows of a frame."""
        return self.num_audio_windows * audio_embedding_size(cast(PreTrainedConfig, self.audio_config))

    @property
    def audio_inputs_size(self) -> int:
        """Width of the audio input of the network: the embeddings, and with `audio_softmax` also their softmax."""
        return (1 + int(self.audio_softmax)) * self.audio_embeds_size

    @property
    def num_hidden_layers(self) -> int:
        """Number of decoder stages."""
        return NUM_STAGES

    def validate_widths(self) -> None:
        """Raise if a width is not positive or not divisible by its number of groups or heads."""
        for name in ("hidden_size", "num_groups", "num_attention_heads", "head_channels", "num_audio_windows"):
            require(getattr(self, name) > 0, f"`{name}` must be positive, got {getattr(self, name)}.")
        for name in ("num_groups", "num_attention_heads"):
            require(
                self.hidden_size % getattr(self, name) == 0,
                f"`{name}` must divide `hidden_size`, got {getattr(self, name)} and {self.hidden_size}.",
            )

    def validate_stages(self) -> None:
        """Raise unless every per-stage list has one valid value for each of the four stages."""
        for name in ("token_grid_sizes", "stage_loss_weights"):
            values = getattr(self, name)
            require(
                len(values) == NUM_STAGES and all(0 <= value < float("inf") for value in values),
                f"`{name}` must have {NUM_STAGES} finite, non-negative values, coarse to fine, got {list(values)}.",
            )
        require(
            any(self.stage_loss_weights),
            "`stage_loss_weights` must not all be 0, because nothing would be trained. Set at least one to a positive value.",
        )
        require(min(self.token_grid_sizes) > 0, f"`token_grid_sizes` must be positive, got {self.token_grid_sizes}.")

    def validate_choices(self) -> None:
        """Raise if an option has an unknown value, or a number is out of range."""
        choices = {
            "neck": ("convolution", "feature_pyramid"),
            "token_layout": ("spatial", "scrambled"),
            "padded_frames": ("excluded", "zeroed"),
        }
        for name, allowed in choices.items():
            require(getattr(self, name) in allowed, f"`{name}` must be one of {allowed}, got {getattr(self, name)!r}.")
        require(
            0 <= self.confidence_threshold < 0.5,
            f"`confidence_threshold` must be in [0, 0.5), got {self.confidence_threshold}.",
        )
        for name in ("layer_norm_eps", "patch_embedding_layer_norm_eps"):
            epsilon = getattr(self, name)
            require(0 < epsilon < float("inf"), f"`{name}` must be finite and positive, got {epsilon}.")
        for name in ("semantic_iou_weight", "distillation_weight", "feature_distillation_weight"):
            weight = getattr(self, name)
            require(0 <= weight < float("inf"), f"`{name}` must be finite and at least 0, got {weight}.")
        require(
            0 <= (self.bfloat16_agreement or 0) <= 1,
            f"`bfloat16_agreement` is a mean IoU in [0, 1] or None, got {self.bfloat16_agreement}.",
        )

    def validate_labels(self) -> None:
        """Raise unless there is at least one label, and the labels name every index from 0 on."""
        require(
            (self.num_labels or 0) > 0,
            f"`num_labels`, the length of `id2label`, must be positive, got {self.num_labels}.",
        )
        indices = list(self.id2label or {})
        require(
            set(indices) == set(range(len(indices))),
            f"`id2label` must name the classes 0 to {len(indices) - 1} without a gap, got the indices {indices}.",
        )

    def validate_backbone(self) -> None:
        """Raise unless the backbone returns the feature maps that the neck needs, as far as its configuration says."""
        config = cast(PreTrainedConfig, self.backbone_config)
        # The names of timm's feature maps are not known before the network is built.
        outputs = list(getattr(config, "out_features", None) or getattr(config, "out_indices", None) or [])
        got = f"got {outputs} from {type(config).__name__}"
        if self.neck == "feature_pyramid":
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
            len(outputs) == NUM_STAGES and "stem" not in outputs,
            f"`backbone_config` must name {NUM_STAGES} feature maps at strides 4, 8, 16, 32 in `out_features`, in most "
            f"backbones {ALL_STAGES}, {got}.",
        )


__all__ = ["AVSBENCH_SEMANTIC_LABELS", "PIPELINE_TAG", "PCMANetConfig"]
