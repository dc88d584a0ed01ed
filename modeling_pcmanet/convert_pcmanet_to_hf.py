"""Convert published weights: PCMANet in all six variants, audio encoders and visual backbones.

    python -m modeling_pcmanet.convert_pcmanet_to_hf --checkpoint S4_pvt.pth --audio-checkpoint vggish.pth --output pcmanet
    python -m modeling_pcmanet.convert_pcmanet_to_hf --checkpoint vggish.pth --output vggish
    python -m modeling_pcmanet.convert_pcmanet_to_hf --checkpoint pvt_v2_b5.pth --output pvt-v2-b5

The format of a file is recognized from its keys. Every key must be accounted for: it is either mapped or dropped for a
stated reason. Otherwise, the conversion fails and lists it.

This module is ordered from the converter to its parts: conversion, reading files, map of names, command line.
"""

import argparse
import csv
import pickle
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoBackbone, PvtV2Config, ResNetConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from modeling_pcmanet import save_code_with_weights
from pcmanet.files import atomic_folder

from .configuration_encoders import AudioMobileNetConfig, EfficientNetLiteConfig, VGGishConfig
from .configuration_pcmanet import AVSBENCH_SEMANTIC_LABELS, PIPELINE_TAG, PCMANetConfig
from .feature_extraction_pcmanet import AudioMobileNetFeatureExtractor, PCMANetFeatureExtractor
from .hub_upload_pcmanet import upload_folder
from .image_processing_pcmanet import PCMANetImageProcessor
from .modeling_audio_encoders import AudioMobileNetModel, VGGishModel
from .modeling_backbones import EfficientNetLiteBackbone
from .modeling_pcmanet import PCMANetForAudioVisualSegmentation, make_weights_readable
from .processing_pcmanet import PCMANetProcessor


StateDict = Mapping[str, torch.Tensor]

_AUDIO_ENCODER = "model.audio_encoder."
_BACKBONE_OUTPUTS: dict[str, Any] = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}

# Hidden sizes, depths, MLP ratios of the published PVT-v2 networks B0 to B5 (arXiv 2106.13797, table 1).
_PVT_V2_SIZES: dict[str, tuple[list[int], list[int], list[int]]] = {
    "B0": ([32, 64, 160, 256], [2, 2, 2, 2], [8, 8, 4, 4]),
    "B1": ([64, 128, 320, 512], [2, 2, 2, 2], [8, 8, 4, 4]),
    "B2": ([64, 128, 320, 512], [3, 4, 6, 3], [8, 8, 4, 4]),
    "B3": ([64, 128, 320, 512], [3, 4, 18, 3], [8, 8, 4, 4]),
    "B4": ([64, 128, 320, 512], [3, 8, 27, 3], [8, 8, 4, 4]),
    "B5": ([64, 128, 320, 512], [3, 6, 40, 3], [4, 4, 4, 4]),
}

_CARD = """---
library_name: transformers
license: other
{task}tags: [audio-visual-segmentation, pcmanet]
---

# {title}, converted

Published weights under the names of `{name}`, with unchanged values. Run `import pcmanet` before loading them with transformers,
which does not know all of these architectures. The license is that of the published file. Output of
`python -m modeling_pcmanet.convert_pcmanet_to_hf`:

```text
{description}
```
"""


@dataclass(frozen=True)
class Conversion:
    """A converted file.

    Attributes:
        title: What was recognized, for example `"PCMANet for S4 with PVT-v2-B5"`.
        model: Our model with its configuration.
        dropped: Maps a published key, or a slice of one, to the reason why it was dropped.
        notes: Notes for users of the model.
        has_audio_encoder: False for a PCMANet with a random audio encoder, which `save` does not write.
    """

    title: str
    model: PreTrainedModel
    dropped: Mapping[str, str]
    notes: tuple[str, ...] = ()
    has_audio_encoder: bool = True

    def save(self, output: Path) -> None:
        """Write the model, its card and its processor or feature extractor to a folder that is complete or absent.

        Raises:
            FileExistsError: If `output` exists and is not an empty folder.
        """
        weights = self.model.state_dict()
        if not self.has_audio_encoder:
            weights = {name: weight for name, weight in weights.items() if not name.startswith(_AUDIO_ENCODER)}
        with atomic_folder(output) as folder:
            self.model.save_pretrained(folder, state_dict=weights)
            make_weights_readable(folder)  # the encoders' own save_pretrained does not do this
            if isinstance(self.model.config, PCMANetConfig):
                # AVSS fills up clips that are too short with silence, the other two tasks with their last second.
                short_clip = "zeros" if cast(int, self.model.config.num_labels) > 1 else "repeat_last"
                extractor = PCMANetFeatureExtractor(short_clip=short_clip)
                PCMANetProcessor(PCMANetImageProcessor(), extractor).save_pretrained(folder)
            elif isinstance(self.model.config, AudioMobileNetConfig):
                AudioMobileNetFeatureExtractor().save_pretrained(folder)
            elif not isinstance(self.model.config, VGGishConfig):
                PCMANetImageProcessor.from_backbone(self.model.config).save_pretrained(folder)
            (folder / "README.md").write_text(self.card(), encoding="utf-8")

    def describe(self) -> str:
        """Return a few lines on what was recognized, what was dropped and why, and the notes."""
        keys_by_reason: dict[str, list[str]] = {}
        for key, reason in self.dropped.items():
            keys_by_reason.setdefault(reason, []).append(key)
        lines = [f"Recognized: {self.title}."]
        for reason, keys in keys_by_reason.items():
            shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
            lines.append(f"Dropped {len(keys)} ({reason}): {shown}")
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])

    def card(self) -> str:
        """Return the model card."""
        is_complete = isinstance(self.model.config, PCMANetConfig)
        task = f"pipeline_tag: {PIPELINE_TAG}\n" if is_complete else ""
        return _CARD.format(task=task, title=self.title, name=type(self.model).__name__, description=self.describe())


def convert_state_dict(
    published: StateDict,
    audio: StateDict | None = None,
    *,
    without_audio_encoder: bool = False,
    labels: Sequence[str] | None = None,
) -> Conversion:
    """Convert published weights without copying those that are already float32.

    Args:
        published: State dict of a PCMANet, VGGish, AudioMobileNet ("mn" of EfficientAT), PVT-v2 (names of its authors,
            timm or transformers), ResNet-50 (names of torchvision, timm or transformers) or EfficientNet-Lite0 (names of
            efficientnet-pytorch or timm); all keys may have the prefix `module.` or `_orig_mod.`.
        audio: State dict of a VGGish, for a PCMANet that does not contain one; published ones do not.
        without_audio_encoder: Convert a PCMANet without VGGish, which then accepts only `audio_embeds`.
        labels: Class names of an AudioMobileNet, in order (see [`read_audioset_labels`]).

    Returns:
        The model in evaluation mode, with its title, dropped keys and notes.

    Raises:
        ValueError: If the format is unknown, if a key or weight on either side is left over or has a different shape,
            or if the audio encoder of a PCMANet is not given exactly once.
    """
    published = _strip_prefixes(published)
    name = _recognize(published)
    weights, origins, dropped = _rename_keys(published, name)
    if labels is not None and name != _AUDIO_MOBILENET:
        raise ValueError(f"Class names are for an AudioMobileNet file, got a {name} file: leave them out.")
    if name == _PCMANET:
        config = _pcmanet_config(weights)
        dropped |= _add_audio_encoder(weights, audio, without_audio_encoder)
        with torch.device("meta"):
            model = PCMANetForAudioVisualSegmentation(config)
        title, notes = _pcmanet_title(published, config), _pcmanet_notes(without_audio_encoder)
    elif audio is not None or without_audio_encoder:
        raise ValueError(f"The audio encoder options are for a PCMANet file, got a {name} file: leave them out.")
    else:
        with torch.device("meta"):
            title, model = _build_backbone(name, weights, labels)
        notes = (_PVT_V2_NOTE,) if name == _PVT_V2 else ()
    _load_weights(model, weights, origins)
    return Conversion(title, model, dropped, notes, has_audio_encoder=not without_audio_encoder)


_PVT_V2_NOTE = (
    "PVT-v2 expects eps 1e-5 in its patch-embedding and spatial-reduction norms. PCMANet sets it; AutoBackbone on its own "
    "uses 1e-6, which changes the outputs by 1e-4."
)


def _build_backbone(name: str, weights: StateDict, labels: Sequence[str] | None) -> tuple[str, PreTrainedModel]:
    """Build the network of a file that does not contain a PCMANet; return its title and the network."""
    if name == _VGGISH:
        return name, VGGishModel(VGGishConfig())
    if name == _AUDIO_MOBILENET:
        config = _audio_mobilenet_config(weights, labels)
        return f"{name} mn{round(10 * config.width_multiplier):02}", AudioMobileNetModel(config)
    if name == _RESNET_50:
        return name, AutoBackbone.from_config(ResNetConfig(**_BACKBONE_OUTPUTS))
    if name == _EFFICIENTNET_LITE_0:
        return name, EfficientNetLiteBackbone(EfficientNetLiteConfig(**_BACKBONE_OUTPUTS))
    size, config = _pvt_v2_config(weights)
    return f"{name}-{size}", AutoBackbone.from_config(config)


def _pvt_v2_config(weights: StateDict) -> tuple[str, PvtV2Config]:
    """Find the published size of a PVT-v2; a file without its last blocks matches none."""
    widths = [_shape(weights, f"encoder.layers.{stage}.patch_embedding.proj.weight")[0] for stage in range(4)]
    matches = (re.match(r"encoder\.layers\.(\d)\.blocks\.(\d+)\.", name) for name in weights)
    blocks = {match.groups() for match in matches if match}
    depths = [sum(block[0] == str(stage) for block in blocks) for stage in range(4)]
    for size, (hidden_sizes, published_depths, mlp_ratios) in _PVT_V2_SIZES.items():
        if (widths, depths) == (hidden_sizes, published_depths):
            return size, PvtV2Config(
                hidden_sizes=hidden_sizes,
                depths=depths,
                mlp_ratios=mlp_ratios,
                num_attention_heads=[1, 2, 5, 8],
                sr_ratios=[8, 4, 2, 1],
                layer_norm_eps=1e-6,
                drop_path_rate=0.1,
                **_BACKBONE_OUTPUTS,
            )
    raise ValueError(
        f"Expected the widths and depths of a published PVT-v2, got widths {widths} and depths {depths}. Check that the "
        "file is complete."
    )


def _audio_mobilenet_config(weights: StateDict, labels: Sequence[str] | None) -> AudioMobileNetConfig:
    """Find the published width of an AudioMobileNet, and name its classes."""
    embedding_size = _shape(weights, "classifier_dense.weight")[1]
    num_labels = _shape(weights, "classifier.weight")[0]
    if labels is not None and len(labels) != num_labels:
        raise ValueError(f"Expected {num_labels} class names, one per output of the file, got {len(labels)}.")
    names: dict[str, Any] = {"num_labels": num_labels}
    if labels is not None:
        names = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    for width in _AUDIO_MOBILENET_WIDTHS:
        config = AudioMobileNetConfig(width_multiplier=width, **names)
        if config.embedding_size == embedding_size:
            return config
    raise ValueError(
        f"Expected the embedding size of a published width ({', '.join(map(str, _AUDIO_MOBILENET_WIDTHS))}), got "
        f"{embedding_size}. Check that the file is complete."
    )


def _pcmanet_config(weights: StateDict) -> PCMANetConfig:
    """Infer from the shapes what differs between the variants: backbone, groups and classes."""
    width, group_width = _shape(weights, "model.stages.0.group_attention.visual_projection.0.weight")[:2]
    num_labels = _shape(weights, "model.stages.3.head.3.weight")[0]
    labels: dict[str, Any] = {"num_labels": num_labels}
    if num_labels == len(AVSBENCH_SEMANTIC_LABELS):
        names = dict(enumerate(AVSBENCH_SEMANTIC_LABELS))
        labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    is_pvt = any(name.startswith("model.backbone.encoder.layers.") for name in weights)
    return PCMANetConfig.from_preset(
        "pvt_v2_b5" if is_pvt else "resnet50",
        num_groups=width // group_width,
        # As the weights were trained; PCMANetConfig explains each of these values next to its default.
        token_layout="scrambled",
        masked_query_gradients=False,
        padded_frames="zeroed" if num_labels > 1 else "excluded",
        **labels,
    )


def _pcmanet_title(published: StateDict, config: PCMANetConfig) -> str:
    """Name the variant; the two binary settings differ only in the names and numbers compared here."""
    is_pvt = cast(PreTrainedConfig, config.backbone_config).model_type == "pvt_v2"
    is_multi_source = "aud_fc.weight" in published if is_pvt else config.num_groups != 4
    binary_setting = "MS3" if is_multi_source else "S4"
    setting = binary_setting if config.num_labels == 1 else "AVSS"
    return f"PCMANet for {setting} with {'PVT-v2-B5' if is_pvt else 'ResNet-50'}"


def _pcmanet_notes(without_audio_encoder: bool) -> tuple[str, ...]:
    """Return the notes of a converted PCMANet."""
    notes = ["token_layout, masked_query_gradients and padded_frames are set as the weights were trained."]
    if without_audio_encoder:
        notes.append("The audio encoder has random weights: pass audio_embeds, not input_features.")
    return tuple(notes)


def _add_audio_encoder(
    weights: dict[str, torch.Tensor], audio: StateDict | None, without_audio_encoder: bool
) -> Mapping[str, str]:
    """Add the weights of the audio encoder to those of a PCMANet; return the keys that were dropped, with reasons."""
    is_included = any(name.startswith(_AUDIO_ENCODER) for name in weights)
    if is_included + (audio is not None) + without_audio_encoder != 1:
        raise ValueError(
            "Expected exactly one source of audio encoder weights. Published PCMANet checkpoints do not contain them: pass "
            "published VGGish weights with --audio-checkpoint, or --without-audio-encoder if you will pass only "
            f"audio_embeds. Got a checkpoint {'with' if is_included else 'without'} VGGish, "
            f"{'no --audio-checkpoint' if audio is None else 'an --audio-checkpoint'} and "
            f"{'' if without_audio_encoder else 'no '}--without-audio-encoder."
        )
    if is_included:
        return {}
    dropped: Mapping[str, str] = {}
    if audio is None:
        model: PreTrainedModel = VGGishModel(VGGishConfig())
    else:
        conversion = convert_state_dict(audio)
        model, dropped = conversion.model, conversion.dropped
        if not isinstance(model, VGGishModel):
            raise ValueError(f"Expected VGGish weights in the audio checkpoint, got {conversion.title}.")
    weights |= {_AUDIO_ENCODER + name: weight for name, weight in model.state_dict().items()}
    return dropped


def _shape(weights: StateDict, name: str) -> torch.Size:
    """Return the shape of a weight that determines the configuration."""
    if name not in weights:
        _raise_for_keys({"missing weights": [name]})
    return weights[name].shape


def _load_weights(model: PreTrainedModel, weights: StateDict, origins: Mapping[str, str]) -> None:
    """Assign weights to a model on the meta device, all of them and no others, and set evaluation mode.

    Args:
        model: The model.
        weights: Our name to weight.
        origins: Our name to published key.
    """
    expected, weights = model.state_dict(), dict(weights)
    # Files from before PyTorch 0.4.1, such as the first ResNet-50 of torchvision, have no batch counts. Nothing reads them.
    if not any(name.endswith(".num_batches_tracked") for name in weights):
        weights |= {name: torch.tensor(0) for name in expected if name.endswith(".num_batches_tracked")}
    _raise_for_keys(
        {
            "missing weights": [name for name in expected if name not in weights],
            "keys without a weight in the model": [origins[name] for name in weights if name not in expected],
            "keys of another shape": [
                f"{origins[name]} {tuple(weights[name].shape)}, expected {name} {tuple(tensor.shape)}"
                for name, tensor in expected.items()
                if name in weights and weights[name].shape != tensor.shape
            ],
        }
    )
    model.load_state_dict(weights, assign=True)
    model.eval()


def _raise_for_keys(keys_by_problem: Mapping[str, Sequence[str]]) -> None:
    """Raise a ValueError that lists all keys with a problem, if there are any."""
    found = {problem: keys for problem, keys in keys_by_problem.items() if keys}
    if found:
        listed = (f"{len(keys)} {problem}:\n  " + "\n  ".join(keys) for problem, keys in found.items())
        raise ValueError("The file does not match the model, so nothing was converted.\n" + "\n".join(listed))


# Reading files. Nothing in them is executed.


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint.

    Args:
        path: A `.safetensors` file, or a file written by `torch.save` with a state dict at any depth (`state_dict`,
            `model`, ...).

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is damaged, contains objects other than plain data, or does not contain exactly one
            state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Checkpoint file {path} not found.")
    try:
        if path.suffix == ".safetensors":
            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message recommends turning off the protection, so only the name of the object is taken from it.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path} was rejected and nothing in it was executed: it contains objects other than tensors"
            f"{f' ({refused[1]})' if refused else ''}. If you trust its author, load it where it was written, save the "
            "tensors alone with torch.save(model.state_dict(), 'plain.pth'), and convert that file."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, LookupError) as error:
        raise ValueError(f"{path} is damaged or not a checkpoint: {error or type(error).__name__}.") from error
    return _find_state_dict(loaded, path)


def _find_state_dict(loaded: object, path: Path) -> dict[str, torch.Tensor]:
    """Return the only state dict in the content of a file, at any depth."""
    found = dict(_iterate_state_dicts(loaded, "the file"))
    if len(found) != 1:
        raise ValueError(
            f"Expected exactly one state dict (names with dots to tensors) in {path}, found {', '.join(found) or 'none'}. "
            "Save the one to convert to a separate file with torch.save."
        )
    return dict(next(iter(found.values())))


def _iterate_state_dicts(value: object, location: str) -> Iterator[tuple[str, StateDict]]:
    """Yield every state dict in a value with its location; optimizer states, whose names have no dots, are skipped."""
    if not isinstance(value, Mapping):
        return
    if all(torch.is_tensor(item) for item in value.values()) and any("." in str(key) for key in value):
        yield location, value
        return
    for key, item in value.items():
        yield from _iterate_state_dicts(item, f"{location}[{key!r}]")


def _strip_prefixes(state_dict: StateDict) -> dict[str, torch.Tensor]:
    """Remove the prefix that DataParallel or torch.compile adds to every key."""
    prefix = re.compile(r"(?:module\.|_orig_mod\.)+")
    if all(prefix.match(key) for key in state_dict):
        return {prefix.sub("", key, count=1): tensor for key, tensor in state_dict.items()}
    return dict(state_dict)


def read_audioset_labels(path: str | Path) -> list[str]:
    """Read the class names of AudioSet from its `class_labels_indices.csv`.

    Args:
        path: A CSV file with the columns `index` and `display_name`.

    Returns:
        The names, in order of their index.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If a column is missing or the indices do not count up from 0.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"index", "display_name"} <= rows[0].keys():
        raise ValueError(
            f"Expected the columns index and display_name in {path}, got {list(rows[0]) if rows else 'no rows'}."
        )
    if [row["index"] for row in rows] != [str(number) for number in range(len(rows))]:
        raise ValueError(f"Expected the indices 0 to {len(rows) - 1} in order in {path}.")
    return [row["display_name"] for row in rows]


# Map of names. A row is `(pattern, replacement)`: a regular expression for the start of a published key, and the start
# of our name; the rest (`0.weight`, `running_mean`) is kept. The first row that matches is used. If one published
# matrix contains several of ours, the replacement is a tuple with one name per equal slice of rows, or None for a
# slice that is not used.


def _recognize(state_dict: StateDict) -> str:
    """Return the name of the format of a state dict."""
    for name, (marker, _) in _FORMATS.items():
        if any(re.match(marker, key) for key in state_dict):
            return name
    raise ValueError(
        f"Expected the keys of one of {', '.join(_FORMATS)}, got keys such as {', '.join(list(state_dict)[:8])}."
    )


def _rename_keys(state_dict: StateDict, name: str) -> tuple[dict[str, torch.Tensor], dict[str, str], dict[str, str]]:
    """Apply the map of a format to every key.

    Args:
        state_dict: Published weights.
        name: Name of the format.

    Returns:
        Three mappings, from our name to weight in float32, from our name to published key, and from dropped key (or
        slice of one) to reason.
    """
    weights: dict[str, torch.Tensor] = {}
    origins: dict[str, str] = {}
    dropped: dict[str, str] = {}
    unknown, repeated = [], []
    for key, tensor in state_dict.items():
        names = _our_names(key, _FORMATS[name][1])
        # AudioMobileNet keeps its classifier, which gives class scores on request.
        if name != _AUDIO_MOBILENET and (reason := _reason_to_drop(key)) is not None:
            dropped[key] = reason
        elif not names:
            unknown.append(key)
        elif any(ours in weights for ours in names):
            repeated.append(key)
        else:
            for number, (ours, part) in enumerate(zip(names, _split_rows(tensor, len(names)), strict=True), start=1):
                if ours is None:
                    dropped[f"{key} (slice {number} of {len(names)})"] = _FINEST_AUDIO_TOKEN
                else:
                    weights[ours], origins[ours] = part, key
    _raise_for_keys({"unknown keys": unknown, "keys with the same name in the model as another key": repeated})
    return weights, origins, dropped


def _split_rows(tensor: torch.Tensor, parts: int) -> list[torch.Tensor]:
    """Split a weight, in float32, into equal slices of rows."""
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    # Copies, because slices that share memory cannot be saved.
    return [tensor] if parts == 1 else [part.clone() for part in tensor.tensor_split(parts)]


Replacement = str | tuple[str | None, ...]
Row = tuple[str, Replacement]

# Published names count from one where ours count from zero; the paper's coarsest decoder level is 4, ours is 0.
_NUMBERINGS: dict[str, Callable[[int], int]] = {
    "level": lambda number: 4 - number,
    "stage": lambda number: number - 1,
    "layer": lambda number: number - 1,
}


def _our_names(key: str, rows: tuple[Row, ...]) -> tuple[str | None, ...]:
    """Translate a published key.

    Args:
        key: Published key.
        rows: The map of its format.

    Returns:
        Our name for every equal slice of rows of the weight (usually one), or None for a slice that is not used; empty
        if no row matches.
    """
    for pattern, replacement in rows:
        match = re.match(pattern, key)
        if match:
            numbers = {name: _NUMBERINGS.get(name, int)(int(number)) for name, number in match.groupdict().items()}
            starts = (replacement,) if isinstance(replacement, str) else replacement
            return tuple(None if start is None else start.format(**numbers) + key[match.end() :] for start in starts)
    return ()


def _reason_to_drop(key: str) -> str | None:
    """Return the reason to drop a published key, or None for a key to convert."""
    return next((reason for pattern, reason in _DROPPED_KEYS if re.match(pattern, key)), None)


def _below(rows: tuple[Row, ...], published: str, ours: str) -> tuple[Row, ...]:
    """Prefix both sides of every row with the name of a module."""

    def extend(replacement: Replacement) -> Replacement:
        if isinstance(replacement, str):
            return ours + replacement
        return tuple(None if start is None else ours + start for start in replacement)

    return tuple((published + pattern, extend(replacement)) for pattern, replacement in rows)


_LEVEL = r"(?P<level>[1-4])\."
_ATTENTION = r"attn\.transformer\.layers\.0\.0\.fn\."
_CROSS_ATTENTION_ROWS: tuple[Row, ...] = (
    (r"aud_fc\.", "audio_embedding."),
    (r"attn\.to_patch_embedding\.1\.", "visual_embedding."),
    (r"attn\.transformer\.layers\.0\.0\.norm\.", "layer_norm."),
    (rf"{_ATTENTION}v_to_q\.", "visual_to_audio.query."),
    (rf"{_ATTENTION}v_to_kv\.", ("audio_to_visual.key.", "audio_to_visual.value.")),
    (
        rf"{_ATTENTION}a_to_qkv\.",
        ("audio_to_visual.query.", "visual_to_audio.key.", "visual_to_audio.value."),
    ),
    (rf"{_ATTENTION}to_out\.0\.", "output_projection."),
)

_DECODER_ROWS: tuple[Row, ...] = (
    (rf"conv{_LEVEL}", "neck.{level}."),
    (r"aud_fc1?\.", "audio_projection."),
    (rf"avga{_LEVEL}seq1\.", "stages.{level}.group_attention.visual_projection."),
    (rf"avga{_LEVEL}seq2\.", "stages.{level}.group_attention.output_projection."),
    (rf"avga{_LEVEL}fc\.", "stages.{level}.group_attention.audio_projection."),
    # Nothing reads the audio token of the finest level, so the audio query is not built there.
    (
        rf"qsca1\.{_ATTENTION}a_to_qkv\.",
        (None, "stages.3.cross_attention.visual_to_audio.key.", "stages.3.cross_attention.visual_to_audio.value."),
    ),
    *_below(_CROSS_ATTENTION_ROWS, rf"qsca{_LEVEL}", "stages.{level}.cross_attention."),
    # The coarsest level has no coarser map: its first projection is that of the guidance.
    (r"gf4\.seq1\.", "stages.0.fusion.guidance_projection."),
    (rf"gf{_LEVEL}seq1\.", "stages.{level}.fusion.coarser_projection."),
    (rf"gf{_LEVEL}seq2\.", "stages.{level}.fusion.guidance_projection."),
    (rf"gf{_LEVEL}seq3\.", "stages.{level}.fusion.output_projection."),
    (rf"output_conv{_LEVEL}", "stages.{level}.head."),
)

_PVT_BLOCK_ROWS: tuple[Row, ...] = (
    (r"norm(?P<norm>[12])\.", "layer_norm_{norm}."),
    (r"attn\.q\.", "attention.query."),
    (r"attn\.kv\.", ("attention.key.", "attention.value.")),
    (r"attn\.proj\.", "attention.proj."),
    (r"attn\.sr\.", "attention.spatial_reduction."),
    (r"attn\.norm\.", "attention.layer_norm."),
    (r"mlp\.fc(?P<dense>[12])\.", "mlp.dense{dense}."),
    (r"mlp\.dwconv\.(?:dwconv\.)?", "mlp.dwconv.dwconv."),
)
_PATCH_EMBEDDING_ROWS: tuple[Row, ...] = ((r"proj\.", "proj."), (r"norm\.", "layer_norm."))
_PVT_STAGE = "encoder.layers.{stage}."
_TIMM_STAGE = "encoder.layers.{index}."
_PVT_ROWS: tuple[Row, ...] = (
    # Published names.
    *_below(_PATCH_EMBEDDING_ROWS, r"patch_embed(?P<stage>\d)\.", _PVT_STAGE + "patch_embedding."),
    *_below(_PVT_BLOCK_ROWS, r"block(?P<stage>\d)\.(?P<block>\d+)\.", _PVT_STAGE + "blocks.{block}."),
    (r"norm(?P<stage>\d)\.", _PVT_STAGE + "layer_norm."),
    # timm's names.
    *_below(_PATCH_EMBEDDING_ROWS, r"patch_embed\.", "encoder.layers.0.patch_embedding."),
    *_below(_PATCH_EMBEDDING_ROWS, r"stages\.(?P<index>\d)\.downsample\.", _TIMM_STAGE + "patch_embedding."),
    *_below(_PVT_BLOCK_ROWS, r"stages\.(?P<index>\d)\.blocks\.(?P<block>\d+)\.", _TIMM_STAGE + "blocks.{block}."),
    (r"stages\.(?P<index>\d)\.norm\.", _TIMM_STAGE + "layer_norm."),
    # transformers' names.
    (r"(?:pvt_v2\.)?encoder\.", "encoder."),
)

_RESNET_BLOCK_ROWS: tuple[Row, ...] = (
    (r"conv(?P<layer>\d)\.", "layer.{layer}.convolution."),
    (r"bn(?P<layer>\d)\.", "layer.{layer}.normalization."),
    (r"downsample\.0\.", "shortcut.convolution."),
    (r"downsample\.1\.", "shortcut.normalization."),
)
_RESNET_ROWS: tuple[Row, ...] = (
    # Names of torchvision and timm; PCMANet's stages 3 and 4 carry the suffix `_1`.
    (r"conv1\.", "embedder.embedder.convolution."),
    (r"bn1\.", "embedder.embedder.normalization."),
    *_below(
        _RESNET_BLOCK_ROWS,
        r"layer(?P<stage>\d)(?:_1)?\.(?P<block>\d+)\.",
        "encoder.stages.{stage}.layers.{block}.",
    ),
    # transformers' names.
    (r"(?:resnet\.)?embedder\.", "embedder."),
    (r"(?:resnet\.)?encoder\.", "encoder."),
)


def _efficientnet_lite_rows() -> Iterator[Row]:
    """Yield the rows of EfficientNet-Lite0: efficientnet-pytorch numbers all blocks, timm the groups and their blocks."""
    groups = [(stage, size) for stage, sizes in enumerate(EfficientNetLiteConfig().stages) for size in sizes]
    blocks = [
        (stage, rf"blocks\.{group}\.{block}\.", size.expansion > 1)
        for group, (stage, size) in enumerate(groups)
        for block in range(size.blocks)
    ]
    positions: Counter[int] = Counter()
    for number, (stage, timm, has_expansion) in enumerate(blocks):
        ours = f"stages.{stage}.{positions[stage]}."
        yield from _efficientnet_lite_block_rows(rf"_blocks\.{number}\.", timm, ours, has_expansion)
        positions[stage] += 1


def _efficientnet_lite_block_rows(flat: str, timm: str, ours: str, has_expansion: bool) -> Iterator[Row]:
    """Yield the rows of one block; only timm's numbering of norms skips an absent one."""
    modules = (
        ("expansion", "expand", "pw"),
        ("depthwise", "depthwise", "dw"),
        ("projection", "project", "pwl" if has_expansion else "pw"),
    )
    absent = 0 if has_expansion else 1
    for number, (module, name, timm_name) in enumerate(modules[absent:]):
        yield rf"{flat}_{name}_conv\.", f"{ours}{module}.0."
        yield rf"{flat}_bn{number + absent}\.", f"{ours}{module}.1."
        yield rf"{timm}conv_{timm_name}\.", f"{ours}{module}.0."
        yield rf"{timm}bn{number + 1}\.", f"{ours}{module}.1."


_EFFICIENTNET_LITE_ROWS: tuple[Row, ...] = (
    (r"_?conv_stem\.", "embedder.0."),
    (r"_bn0\.|bn1\.", "embedder.1."),
    *_efficientnet_lite_rows(),
)

_VGGISH_ROWS: tuple[Row, ...] = ((r"features\.", "features."), (r"embeddings\.", "embeddings."))

# Every published width has the same modules.
_AUDIO_MOBILENET_WIDTHS = (0.1, 0.4, 0.5, 1.0, 2.0, 3.0, 4.0)


def _audio_mobilenet_block_rows() -> Iterator[Row]:
    """Yield the rows of the inverted-residual blocks, whose published numbering skips absent modules."""
    for number, block in enumerate(AudioMobileNetConfig().blocks):
        modules = ["expansion."] if block.expanded_channels != block.in_channels else []
        modules += ["depthwise.", *(["squeeze_excitation."] if block.squeeze_excitation else []), "projection."]
        for position, module in enumerate(modules):
            published, ours = rf"features\.{number + 1}\.block\.{position}\.", f"blocks.{number}.{module}"
            if module == "squeeze_excitation.":
                yield rf"{published}conc_se_layers\.0\.fc1\.", f"{ours}reduce."
                yield rf"{published}conc_se_layers\.0\.fc2\.", f"{ours}expand."
            else:
                yield published, ours


_AUDIO_MOBILENET_ROWS: tuple[Row, ...] = (
    (r"features\.0\.", "stem."),
    *_audio_mobilenet_block_rows(),
    (r"features\.16\.", "head."),
    (r"classifier\.2\.", "classifier_dense."),
    (r"classifier\.5\.", "classifier."),
)

_PCMANET_ROWS: tuple[Row, ...] = (
    *_below(_DECODER_ROWS, "", "model."),
    *_below(_PVT_ROWS, r"encoder_backbone\.", "model.backbone."),
    *_below(_RESNET_ROWS, r"resnet\.", "model.backbone."),
    # Published checkpoints do not contain the frozen VGGish; others may store it under any prefix.
    *_below(_VGGISH_ROWS, r"(?:\w+\.)*?", "model.audio_encoder."),
)

_CLASSIFICATION_HEAD = "classification head"
_FINEST_AUDIO_TOKEN = "nothing reads the audio token of the finest level"
_DROPPED_KEYS: tuple[tuple[str, str], ...] = (
    (r"gf4\.seq2\.", "the coarsest level has no coarser map to project"),
    (rf"qsca1\.{_ATTENTION}v_to_kv\.", _FINEST_AUDIO_TOKEN),
    (r"qsca[1-4]\.attn\.to_patch_embedding\.0\.", "computes nothing in the published code"),
    (r"resnet\.layer[34]_2\.", "unused copy of a ResNet stage"),
    (r"(?:encoder_backbone\.)?head\.", _CLASSIFICATION_HEAD),
    (r"(?:resnet\.)?fc\.", _CLASSIFICATION_HEAD),
    (r"classifier\.", _CLASSIFICATION_HEAD),
    (r"_?conv_head\.|_bn1\.|bn2\.|_fc\.", _CLASSIFICATION_HEAD),
    (r"(?:\w+\.)*?pproc\.", "VGGish's quantizing postprocessor, which audio-visual segmentation does not use"),
)

_PCMANET, _VGGISH, _PVT_V2, _RESNET_50 = "PCMANet", "VGGish", "PVT-v2", "ResNet-50"
_AUDIO_MOBILENET, _EFFICIENTNET_LITE_0 = "AudioMobileNet", "EfficientNet-Lite0"

# Maps the name of each format to a regular expression for the start of a key that only this format has, and to its
# map.
_FORMATS: dict[str, tuple[str, tuple[Row, ...]]] = {
    _PCMANET: (r"avga4\.", _PCMANET_ROWS),
    _VGGISH: (r"embeddings\.0\.", _VGGISH_ROWS),
    _AUDIO_MOBILENET: (r"features\.\d+\.block\.", _AUDIO_MOBILENET_ROWS),
    _EFFICIENTNET_LITE_0: (r"_blocks\.0\._depthwise_conv\.|blocks\.0\.0\.conv_dw\.", _EFFICIENTNET_LITE_ROWS),
    _PVT_V2: (r"patch_embed1?\.proj\.|(?:pvt_v2\.)?encoder\.layers\.0\.patch_embedding\.", _PVT_ROWS),
    _RESNET_50: (r"layer1\.0\.|(?:resnet\.)?encoder\.stages\.0\.", _RESNET_ROWS),
}


# Command line.


def _parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_pcmanet.convert_pcmanet_to_hf",
        description=(__doc__ or "").partition("\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="published weights, .pth or .safetensors")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument("--audio-checkpoint", type=Path, help="published VGGish weights for a PCMANet")
    parser.add_argument(
        "--without-audio-encoder",
        action="store_true",
        help="convert a PCMANet that will only get audio_embeds (VGGish embeddings computed elsewhere)",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="CSV",
        help="class names of an AudioMobileNet: AudioSet's class_labels_indices.csv",
    )
    parser.add_argument("--push-to-hub", metavar="ID", help="also upload to this model repository, with our code")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = _parse_args(arguments)
    try:
        if options.push_to_hub:
            validate_repo_id(options.push_to_hub)
        audio = None if options.audio_checkpoint is None else read_state_dict(options.audio_checkpoint)
        conversion = convert_state_dict(
            read_state_dict(options.checkpoint),
            audio,
            without_audio_encoder=options.without_audio_encoder,
            labels=None if options.labels is None else read_audioset_labels(options.labels),
        )
        with save_code_with_weights(options.push_to_hub is not None):
            conversion.save(options.output)
        sys.stdout.write(f"{conversion.describe()}\nWritten to {options.output}\n")
        if options.push_to_hub:
            address = upload_folder(options.output, options.push_to_hub, message=f"Convert {conversion.title}")
            sys.stdout.write(f"Pushed to {address}\n")
    except (ValueError, OSError) as error:  # a wrong repository name is a ValueError too
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()


__all__ = ["Conversion", "StateDict", "convert_state_dict", "main", "read_audioset_labels", "read_state_dict"]
