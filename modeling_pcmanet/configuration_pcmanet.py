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
"""Configuration of PCMANet and of its VGGish audio encoder: the hyperparameters of the paper, typed and validated."""

import copy
import difflib
from dataclasses import fields
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig


NUM_STAGES = 4

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

# Keywords that transformers itself writes to config.json or passes on; any other unknown keyword is a mistake.
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
        "quantization_config",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)

# The two visual backbones of the paper and the small one of the demo, as `AutoConfig` dictionaries.
_PVT_V2_B5 = {
    "model_type": "pvt_v2",
    "hidden_sizes": [64, 128, 320, 512],
    "depths": [3, 6, 40, 3],
    "num_attention_heads": [1, 2, 5, 8],
    "mlp_ratios": [4, 4, 4, 4],
    "sr_ratios": [8, 4, 2, 1],
    "qkv_bias": True,
    "layer_norm_eps": 1e-6,
    "drop_path_rate": 0.1,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_RESNET_50 = {"model_type": "resnet", "out_features": ["stage1", "stage2", "stage3", "stage4"]}
_RESNET_TINY = {
    "model_type": "resnet",
    "embedding_size": 24,
    "hidden_sizes": [24, 48, 96, 128],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}

_PRESETS: dict[str, dict[str, Any]] = {
    "pvt_v2_b5": {"backbone_config": _PVT_V2_B5},
    "resnet50": {"backbone_config": _RESNET_50},
    "tiny": {
        "backbone_config": _RESNET_TINY,
        # A VGGish of a hundredth of the size; the training script pretrains it on sound classes before it is frozen.
        "audio_config": {"block_channels": [[24], [48], [96], [96]], "hidden_size": 256, "embedding_size": 128},
        "hidden_size": 64,
        # 32 channels per group, as in the paper (256 / 8): the width in which AVGA compares image and audio.
        "num_groups": 2,
        "num_attention_heads": 4,
        "head_channels": 32,
    },
}


def _check_keywords(config: PreTrainedConfig, keywords: dict[str, Any]) -> None:
    """Raise a ValueError for a keyword that neither the configuration nor transformers defines, such as a typo."""
    known = {field.name for field in fields(config)}
    for keyword in keywords:
        if keyword.startswith("_") or keyword in _FRAMEWORK_KEYWORDS:
            continue
        close = difflib.get_close_matches(keyword, known, n=1)
        accepted = ", ".join(sorted(type(config).__annotations__))
        hint = f"Did you mean `{close[0]}`?" if close else f"Accepted keywords are {accepted}."
        raise ValueError(f"{type(config).__name__} got the unknown keyword `{keyword}`. {hint}")


def _require(condition: bool, message: str) -> None:
    """Raise a ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


@strict
class VGGishConfig(PreTrainedConfig):
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

    def __post_init__(self, **kwargs: Any) -> None:
        _check_keywords(self, kwargs)
        super().__post_init__(**kwargs)

    @property
    def flattened_size(self) -> int:
        """Number of values per patch that the last pooling passes to the fully connected layers."""
        shrink = 2 ** len(self.block_channels)
        return (self.num_mel_frames // shrink) * (self.num_mel_bins // shrink) * self.block_channels[-1][-1]

    def validate_sizes(self) -> None:
        """Raise if a size is not positive or a patch is too small for the pooling layers."""
        for name in ("num_mel_frames", "num_mel_bins", "hidden_size", "embedding_size"):
            _require(getattr(self, name) > 0, f"`{name}` must be positive, got {getattr(self, name)}.")
        flat = [channels for block in self.block_channels for channels in block]
        _require(
            all(self.block_channels) and all(channels > 0 for channels in flat),
            f"`block_channels` must be a list of non-empty lists of positive widths, got {self.block_channels}.",
        )
        shrink = 2 ** len(self.block_channels)
        _require(
            min(self.num_mel_frames, self.num_mel_bins) >= shrink,
            f"`num_mel_frames` and `num_mel_bins` must be at least {shrink}, because each of the "
            f"{len(self.block_channels)} blocks halves the patch, got {self.num_mel_frames} and {self.num_mel_bins}.",
        )


@strict
class PCMANetConfig(PreTrainedConfig):
    """Configuration of [`PCMANetModel`] and [`PCMANetForAudioVisualSegmentation`].

    Defaults are the paper's PVT-v2-B5 network for one binary output (arXiv 2406.02345);
    [`PCMANetConfig.from_preset`] builds the other sizes. Lists with one value per stage are ordered from coarse (stage 4
    of the paper, stride 32) to fine (stage 1, stride 4), the order in which the decoder runs.

    Args:
        backbone_config: Any `AutoBackbone` configuration with four feature maps at strides 4, 8, 16, 32.
        audio_config: Configuration of the VGGish audio encoder.
        hidden_size: Width C of the neck, the decoder stages and the projected audio.
        num_groups: Channel groups G of the audio-visual group attention (AVGA).
        num_attention_heads: Heads of the query-selected cross-attention (QSCA).
        token_grid_sizes: Side s of the s x s grid of visual tokens of QSCA, coarse to fine.
        head_channels: Width between the two convolutions of a segmentation head.
        confidence_threshold: Confidence-induced masking (CIM) keeps a pixel as uncertain where its probability is in
            `[threshold, 1 - threshold]`; 0 keeps every pixel, so that nothing is masked.
        cross_attention: Whether the stages have a QSCA; without it the fusion has no guidance (for ablations).
        stage_loss_weights: Weight of each supervised output in the loss, coarse to fine.
        ignore_index: Label of pixels that the loss and the metrics ignore.
        freeze_audio_encoder: Whether the audio encoder is frozen and stays in evaluation mode, as published.
        layer_norm_eps: Epsilon of QSCA's LayerNorm.
        patch_embedding_layer_norm_eps: Epsilon of the patch-embedding and spatial-reduction norms of a PVT-v2 backbone.
        token_layout: `"spatial"` puts every token back in its position; `"scrambled"` reshapes as published.
        masked_query_gradients: Whether gradients flow through the attention of stages that select their queries.
        padded_frames: `"excluded"` computes only real frames; `"zeroed"` multiplies their feature maps by zero as
            published.
        gather_queries: Whether QSCA computes only the selected queries instead of multiplying by the mask.
    """

    model_type = "pcmanet"
    sub_configs: ClassVar[dict[str, type]] = {"backbone_config": AutoConfig, "audio_config": VGGishConfig}
    # Trainer gathers all outputs that are not listed here; these are diagnostics, not predictions.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "stage_logits",
        "confidence_masks",
        "kept_ratios",
        "hidden_states",
        "attentions",
    ]

    backbone_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 256
    # The published ResNet-50 network for S4 uses 4 groups; all five others use 8.
    num_groups: int = 8
    num_attention_heads: int = 8
    token_grid_sizes: list[int] | tuple[int, ...] = (7, 7, 14, 28)
    head_channels: int = 128
    confidence_threshold: float | int = 0.01
    cross_attention: bool = True
    stage_loss_weights: list[float | int] | tuple[float | int, ...] = (1.0, 1.0, 1.0, 1.0)
    ignore_index: int = 255
    freeze_audio_encoder: bool = True
    layer_norm_eps: float = 1e-5
    # transformers' PvtV2 uses 1e-6 everywhere, published PVT-v2 weights expect 1e-5 in these two kinds of norm.
    patch_embedding_layer_norm_eps: float = 1e-5
    # The published code reshapes tokens (s*s, C) straight to (C, s, s), which scatters each token over the map.
    token_layout: str = "spatial"
    # The published code writes the attention of selected queries under no_grad, so QSCA 3, 2 and 1 are never trained.
    masked_query_gradients: bool = True
    # The published AVSS code leaves padded frames in attention and BatchNorm, where they change the real frames.
    padded_frames: str = "excluded"
    # Gives the same values as multiplying by the mask with less work, but copies one count per batch to the host.
    gather_queries: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        _check_keywords(self, kwargs)
        if not isinstance(self.backbone_config, PreTrainedConfig):
            self.backbone_config = AutoConfig.for_model(**copy.deepcopy(self.backbone_config or _PVT_V2_B5))
        if not isinstance(self.audio_config, PreTrainedConfig):
            self.audio_config = VGGishConfig(**copy.deepcopy(self.audio_config or {}))
        num_labels = kwargs.get("num_labels", 1)
        if self.id2label is None:
            names = ["background", *(f"class {index}" for index in range(1, num_labels))]
            self.id2label = {0: "sounding"} if num_labels == 1 else dict(enumerate(names))
            self.label2id = {name: index for index, name in self.id2label.items()}
        super().__post_init__(**kwargs)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "PCMANetConfig":
        """Build the configuration of a named size.

        Args:
            name: `"pvt_v2_b5"` or `"resnet50"` (the two networks of the paper) or `"tiny"` (the demo model).
            **overrides: Any field of the configuration, for example `num_labels=71`.

        Raises:
            ValueError: If the preset is unknown.
        """
        if name not in _PRESETS:
            raise ValueError(f"Expected a preset out of {', '.join(sorted(_PRESETS))}, got {name!r}.")
        return cls(**{**_PRESETS[name], **overrides})

    @property
    def num_hidden_layers(self) -> int:
        """Number of decoder stages."""
        return NUM_STAGES

    def validate_widths(self) -> None:
        """Raise if a width is not positive or does not divide into its groups or heads."""
        for name in ("hidden_size", "num_groups", "num_attention_heads", "head_channels"):
            _require(getattr(self, name) > 0, f"`{name}` must be positive, got {getattr(self, name)}.")
        for name in ("num_groups", "num_attention_heads"):
            _require(
                self.hidden_size % getattr(self, name) == 0,
                f"`{name}` must divide `hidden_size`, got {getattr(self, name)} and {self.hidden_size}.",
            )

    def validate_stages(self) -> None:
        """Raise unless every per-stage list has one valid value for each of the four stages."""
        for name in ("token_grid_sizes", "stage_loss_weights"):
            values = getattr(self, name)
            _require(
                len(values) == NUM_STAGES and min(values) >= 0,
                f"`{name}` must have {NUM_STAGES} non-negative values, coarse to fine, got {list(values)}.",
            )
        _require(min(self.token_grid_sizes) > 0, f"`token_grid_sizes` must be positive, got {self.token_grid_sizes}.")

    def validate_choices(self) -> None:
        """Raise if an option has an unknown value or the threshold is out of range."""
        choices = {"token_layout": ("spatial", "scrambled"), "padded_frames": ("excluded", "zeroed")}
        for name, allowed in choices.items():
            _require(
                getattr(self, name) in allowed, f"`{name}` must be one of {allowed}, got {getattr(self, name)!r}."
            )
        _require(
            0 <= self.confidence_threshold < 0.5,
            f"`confidence_threshold` must be in [0, 0.5), got {self.confidence_threshold}.",
        )

    def validate_labels(self) -> None:
        """Raise if the number of labels is not positive."""
        _require(
            (self.num_labels or 0) > 0,
            f"`num_labels`, the length of `id2label`, must be positive, got {self.num_labels}.",
        )

    def validate_backbone(self) -> None:
        """Raise unless the backbone returns one feature map per decoder stage."""
        out_features = getattr(self.backbone_config, "out_features", None) or []
        _require(
            len(out_features) == NUM_STAGES,
            f"`backbone_config` must name {NUM_STAGES} feature maps (strides 4, 8, 16, 32) in `out_features`, "
            f"got {out_features} from {type(self.backbone_config).__name__}.",
        )


__all__ = ["AVSBENCH_SEMANTIC_LABELS", "PCMANetConfig", "VGGishConfig"]
