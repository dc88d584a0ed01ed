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
"""Audio encoders: VGGish, AudioMobileNet, and one way to build, load and run these and any audio model of transformers.

An audio encoder is a `PreTrainedModel` with one embedding per window of audio. Its feature extractor turns a window of
waveform into its input (feature_extraction_pcmanet.py).

Sections: VGGish, AudioMobileNet, the registry, loading.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional
from transformers import MODEL_MAPPING, AutoConfig
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import CONFIG_NAME, ModelOutput, cached_file, logging
from transformers.utils.generic import can_return_tuple

from .configuration_encoders import (
    AudioMobileNetConfig,
    BlockSize,
    VGGishConfig,
    build_audio_config,
)


logger = logging.get_logger(__name__)

Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass
class AudioEncoderOutput(ModelOutput):
    """Output of [`VGGishModel`], which has `audio_embeds` only, and of [`AudioMobileNetModel`].

    Attributes:
        last_hidden_state: (windows, embedding_size, mel bands / 32, time frames / 32), the last feature map.
        pooler_output: (windows, embedding_size), its mean over frequency and time: the embedding.
        logits: (windows, num_labels), class scores before the sigmoid; only if `output_logits` is set or the configuration
            has `score_groups`.
        audio_embeds: For VGGish, (patches, embedding_size), the embedding, which is non-negative because the last
            layer ends in a ReLU. For AudioMobileNet, (windows, groups), the standardized scores of `score_groups`, in
            [-4, 12]; only with groups.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None


# VGGish (Hershey et al. 2017).


class VGGishModel(PreTrainedModel):
    """VGGish: maps log-mel patches to embeddings with blocks of 3x3 convolutions and three fully connected layers."""

    config: VGGishConfig
    base_model_prefix = "vggish"
    main_input_name = "input_features"
    input_modalities = ["audio"]
    _no_split_modules = []

    def __init__(self, config: VGGishConfig):
        super().__init__(config)
        config.validate()  # fields may have been assigned since, e.g. by `from_pretrained(..., field=value)`
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
    def forward(self, input_features: torch.Tensor) -> AudioEncoderOutput:
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
        return AudioEncoderOutput(audio_embeds=self.embeddings(flattened))


# AudioMobileNet: EfficientAT's "mn" family (Schmid et al. 2023).


_SCORE_RANGE = (-4.0, 12.0)  # standard deviations; scores beyond it are clamped


def _build_convolution(
    config: AudioMobileNetConfig,
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = None,
) -> nn.Sequential:
    """Build a convolution without bias, BatchNorm, and an activation if one is given."""
    padding = (kernel_size - 1) // 2
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels, eps=config.batch_norm_eps, momentum=0.01),
    ]
    # trf-ignore: TRF036 a plain chain, called once; published weights are numbered by position
    return nn.Sequential(*layers, *([] if activation is None else [activation(inplace=True)]))


class SqueezeExcitation(nn.Module):
    """Reweight channels by factors computed from their means over frequency and time."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
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
            _build_convolution(config, size.in_channels, expanded, activation=activation)
            if expanded != size.in_channels
            else nn.Identity()
        )
        self.depthwise = _build_convolution(
            config,
            expanded,
            expanded,
            kernel_size=size.kernel_size,
            stride=size.stride,
            groups=expanded,
            activation=activation,
        )
        squeezed = size.squeezed_channels
        self.squeeze_excitation = SqueezeExcitation(expanded, squeezed) if squeezed else nn.Identity()
        self.projection = _build_convolution(config, expanded, size.out_channels)
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
        config.validate()  # fields may have been assigned since, e.g. by `from_pretrained(..., field=value)`
        blocks = config.blocks
        self.stem = _build_convolution(
            config, 1, blocks[0].in_channels, kernel_size=3, stride=2, activation=nn.Hardswish
        )
        self.blocks = nn.ModuleList([InvertedResidual(config, size) for size in blocks])
        self.head = _build_convolution(config, blocks[-1].out_channels, config.feature_size, activation=nn.Hardswish)
        self.classifier_dense = nn.Linear(config.feature_size, config.classifier_size)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.classifier_size, config.num_labels or 1)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out")

    @can_return_tuple
    def forward(self, input_features: torch.Tensor, output_logits: bool = False) -> AudioEncoderOutput:
        """Encode log-mel spectrograms.

        Args:
            input_features: (windows, 1, mel bands, time frames), as [`AudioMobileNetFeatureExtractor`] computes them.
            output_logits: Whether to compute class scores too.

        Raises:
            ValueError: If the spectrograms have the wrong number of dimensions or mel bands.
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
        logits = audio_embeds = None
        # CODEPATH: the scores of published checkpoints, on request, and their groups as embedding of paired data.
        if output_logits or self.config.score_groups:
            logits = self.classifier(self.dropout(functional.hardswish(self.classifier_dense(embedding))))
        # CODEPATH: checkpoints of examples/paired_data/make_audio_encoder.py.
        if self.config.score_groups:
            audio_embeds = self._score_groups(cast(torch.Tensor, logits))
        return AudioEncoderOutput(
            last_hidden_state=feature_map, pooler_output=embedding, logits=logits, audio_embeds=audio_embeds
        )

    def _score_groups(self, logits: torch.Tensor) -> torch.Tensor:
        """Map class scores (windows, num_labels) to the standardized scores of the groups, (windows, groups)."""
        groups = cast(dict[str, list[int]], self.config.score_groups)
        scores = torch.stack([logits[:, indices].logsumexp(dim=1) for indices in groups.values()], dim=1)
        means, scales = (scores.new_tensor(values) for values in (self.config.score_means, self.config.score_scales))
        return ((scores - means) / scales).clamp(*_SCORE_RANGE)


# The registry.

# Our own audio encoders; transformers' Auto classes know all others. By model type, because code from the Hub may
# import a file twice, which creates two classes of the same name.
_AUDIO_ENCODERS: dict[str, type[PreTrainedModel]] = {
    VGGishConfig.model_type: VGGishModel,
    AudioMobileNetConfig.model_type: AudioMobileNetModel,
}
_AUDIO_INPUTS = ("input_features", "input_values")  # names of the main input of audio models
# Outputs that are one vector per window, in order of preference.
_POOLED_OUTPUTS = ("audio_embeds", "pooler_output")


def build_audio_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """Build an audio encoder with random weights.

    Args:
        config: Configuration of the encoder, as [`build_audio_config`] returns it.

    Raises:
        ValueError: If it is not the configuration of an audio model.
    """
    # In the data type of the network, not in that of the checkpoint that the configuration comes from.
    model = cast(Any, _model_class(config))._from_config(config, dtype=torch.get_default_dtype())
    return _audio_part(model, config)


def load_audio_encoder(name: str | PathLike[str]) -> PreTrainedModel:
    """Load a pretrained audio encoder.

    Args:
        name: Hub id or folder of one of our encoders or of an audio model of transformers; for a model with other
            parts, such as CLAP or Whisper, the audio part is used.

    Returns:
        The encoder in evaluation mode.

    Raises:
        OSError: If the weights are not found.
        ValueError: If it is not an audio model, or weights are missing.
    """
    complete = AutoConfig.from_pretrained(name)
    config = build_audio_config(complete)
    return _audio_part(load_strict(_model_class(complete), name), config).eval()


def embed_audio(encoder: PreTrainedModel, inputs: torch.Tensor) -> torch.Tensor:
    """Compute one embedding per window of audio.

    Args:
        encoder: Any audio encoder.
        inputs: (windows, ...), what its feature extractor computes from each window.

    Returns:
        (windows, width): the pooled output of the encoder, or else the mean of its last hidden states.

    Raises:
        ValueError: If the encoder has neither.
    """
    others = {}
    # CODEPATH: CLAP with fusion needs to know which windows are longer than its input; windows around a frame never are.
    if getattr(encoder.config, "enable_fusion", False):
        others["is_longer"] = inputs.new_zeros(len(inputs), 1, dtype=torch.bool)
    output: Any = encoder(**{encoder.main_input_name: inputs}, **others, return_dict=True)
    for name in _POOLED_OUTPUTS:
        if (pooled := getattr(output, name, None)) is not None:
            return pooled
    if (states := getattr(output, "last_hidden_state", None)) is not None:
        return states.mean(dim=1)
    raise ValueError(
        f"Expected an audio encoder whose output has last_hidden_state or {' or '.join(_POOLED_OUTPUTS)}, got "
        f"{type(encoder).__name__}, whose output has {', '.join(output)}."
    )


def embed_windows(encoder: PreTrainedModel, inputs: torch.Tensor, num_windows: int) -> torch.Tensor:
    """Compute the embedding of the audio of every frame.

    Args:
        encoder: Any audio encoder.
        inputs: (frames, ...) for one window per frame, (frames, num_windows, ...) for several.
        num_windows: Windows per frame.

    Returns:
        (frames, num_windows * width), the concatenated embeddings of the windows.
    """
    if num_windows == 1:
        return embed_audio(encoder, inputs)
    return embed_audio(encoder, inputs.flatten(0, 1)).unflatten(0, (-1, num_windows)).flatten(1)


def _model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class of the model with this configuration."""
    # CODEPATH: our own audio encoders, which all presets have.
    if config.model_type in _AUDIO_ENCODERS:
        return _AUDIO_ENCODERS[config.model_type]
    if type(config) in MODEL_MAPPING:
        return cast(type[PreTrainedModel], MODEL_MAPPING[type(config)])
    # Parts of larger models, such as the audio part of CLAP, are classes of transformers without an Auto class.
    model_class = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)
    if model_class is None:
        raise ValueError(f"transformers has no model for {type(config).__name__}.")
    return model_class


def _audio_part(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Return the part of a model that encodes audio."""
    if getattr(model.config, "is_encoder_decoder", False):
        model = cast(PreTrainedModel, model.get_encoder())
    # CODEPATH: checkpoints of larger models, such as CLAP.
    elif model.config.model_type != config.model_type:
        parts = (part for part in model.modules() if isinstance(part, PreTrainedModel))
        model = next(part for part in parts if part.config.model_type == config.model_type)
    if model.main_input_name not in _AUDIO_INPUTS:
        raise ValueError(
            f"Expected an audio encoder, whose input is {' or '.join(_AUDIO_INPUTS)}, got {type(model).__name__} with "
            f"{model.main_input_name}."
        )
    return model


# Loading.

_LFS_POINTER = b"version https://git-lfs.github.com/"  # what a clone without Git LFS has in place of a large file


@contextmanager
def naming_damaged_weights(name: str | PathLike[str]) -> Iterator[None]:
    """Name a damaged file of weights, which the error of safetensors does not.

    Args:
        name: Hub id or folder of the weights that are loaded in the `with` block.

    Raises:
        ValueError: If a file is damaged.
    """
    try:
        yield
    except SafetensorError as error:
        raise ValueError(_find_damage(str(name)) or f"{name} has damaged weights: {error}.") from error


def _find_damage(name: str) -> str | None:
    """Return which file of weights in a folder or in the cache of a Hub id is damaged, and what to do; None if unknown."""
    try:
        folder = Path(cast(str, cached_file(name, CONFIG_NAME))).parent
    except OSError:  # of a subfolder
        return None
    for path in sorted(folder.glob("*.safetensors")):
        try:
            safe_open(path, "pt")
        except SafetensorError as error:
            with path.open("rb") as file:
                if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                    return f"{path} is a Git LFS pointer, not the weights. Run `git lfs pull`, or download the file again."
            return f"{path} is damaged or incomplete: {error}. Download or copy it again."
    return None


def load_strict(
    model_class: type[Model], name: str | PathLike[str], *, new_weights: str | None = None, **settings: Any
) -> Model:
    """Load pretrained weights and raise if some are missing or have a different shape.

    `from_pretrained` would initialize these weights randomly with only a warning.

    Args:
        model_class: Class of the model.
        name: Hub id or folder.
        new_weights: Prefix of the names of weights that may be missing; they are newly initialized, with a warning.
        **settings: Passed to `from_pretrained`.

    Returns:
        The model in evaluation mode.

    Raises:
        OSError: If the weights are not found.
        ValueError: If weights are missing or damaged, or have a different shape.
    """
    with naming_damaged_weights(name):
        loaded: Any = model_class.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    model, loading = loaded
    missing = sorted([*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])])
    new = [key for key in missing if new_weights is not None and key.startswith(new_weights)]
    if new:
        logger.warning(f"{name} has no {', '.join(new)}: newly initialized in the {model_class.__name__}.")
    if len(missing) > len(new):
        raise ValueError(
            f"{name} lacks weights of a {model_class.__name__}, such as {missing[0]} ({len(missing)} of "
            f"{len(model.state_dict())}). Give a folder or Hub id with all weights, as `save_pretrained` and "
            "`python -m modeling_pcmanet.convert_pcmanet_to_hf` write them."
        )
    return model.eval()


def digest_weights(model: PreTrainedModel, settings: str = "") -> str:
    """Return 32 hexadecimal digits that identify the weights and the configuration of a model, and further settings."""
    checksum = hashlib.sha256((model.config.to_json_string() + settings).encode())
    for values in model.state_dict().values():
        checksum.update(values.cpu().flatten().view(torch.uint8).numpy())
    return checksum.hexdigest()[:32]


__all__ = [
    "AudioMobileNetModel",
    "AudioEncoderOutput",
    "VGGishModel",
    "build_audio_encoder",
    "digest_weights",
    "embed_audio",
    "embed_windows",
    "load_audio_encoder",
    "load_strict",
    "naming_damaged_weights",
]
