"""Published weights into ours: PCMANet of all six variants, and VGGish, PVT-v2 and ResNet-50 files.

    python -m modeling_pcmanet.convert_pcmanet_to_hf --checkpoint S4_pvt.pth --audio-checkpoint vggish.pth --output pcmanet
    python -m modeling_pcmanet.convert_pcmanet_to_hf --checkpoint vggish.pth --output vggish
    python -m modeling_pcmanet.convert_pcmanet_to_hf --checkpoint pvt_v2_b5.pth --output pvt-v2-b5

What a file holds is recognised from its keys. Every key is accounted for: mapped, or dropped for a stated reason, or the
conversion fails and lists it. `weight_file_pcmanet` opens files, `weight_map_pcmanet` holds the map.
"""

import argparse
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoBackbone, PvtV2Config, ResNetConfig
from transformers.modeling_utils import PreTrainedModel

from modeling_pcmanet import save_code_with_weights

from .configuration_pcmanet import AVSBENCH_SEMANTIC_LABELS, PCMANetConfig, VGGishConfig
from .feature_extraction_pcmanet import PCMANetFeatureExtractor
from .hub_upload_pcmanet import upload_folder
from .image_processing_pcmanet import PCMANetImageProcessor
from .modeling_pcmanet import PCMANetForAudioVisualSegmentation
from .modeling_vggish import VGGishModel
from .processing_pcmanet import PCMANetProcessor


StateDict = Mapping[str, torch.Tensor]


class ConversionError(ValueError):
    """A file that cannot be converted; the message says why and lists every key in question."""


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint without executing anything in it.

    Args:
        path: A `.safetensors` file or one that `torch.save` wrote, in which the state dict may lie below other names
            (`state_dict`, `model`, ...).

    Raises:
        FileNotFoundError: If there is no such file.
        ConversionError: If the file is damaged, holds more than plain data, or not exactly one state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    try:
        if path.suffix == ".safetensors":
            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message recommends to switch the protection off, so only the name of the culprit is taken over.
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        raise ConversionError(
            f"{path} was refused and nothing in it was executed: it holds more than tensors"
            f"{f' (it asks for {culprit[1]})' if culprit else ''}. If you trust its author, load it where it was made, "
            "write the tensors alone with torch.save(model.state_dict(), 'plain.pth'), and convert that file."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, LookupError) as error:
        raise ConversionError(f"{path} is damaged or no checkpoint: {error or type(error).__name__}.") from error
    return _find_state_dict(loaded, path)


def _find_state_dict(loaded: object, path: Path) -> dict[str, torch.Tensor]:
    """Return the one state dict in what a file holds, at whatever depth."""
    found = dict(_walk(loaded, "the file"))
    if len(found) != 1:
        raise ConversionError(
            f"{path} must hold exactly one state dict (names with dots to tensors), found {', '.join(found) or 'none'}. "
            "Write the one you mean to a file of its own with torch.save and convert that."
        )
    return dict(next(iter(found.values())))


def _walk(value: object, place: str) -> Iterator[tuple[str, StateDict]]:
    """Yield every state dict below a value; the state of an optimizer has no dots in its names and is none."""
    if not isinstance(value, Mapping):
        return
    if all(torch.is_tensor(item) for item in value.values()) and any("." in str(key) for key in value):
        yield place, value
        return
    for key, item in value.items():
        yield from _walk(item, f"{place}[{key!r}]")


def without_wrappers(state_dict: StateDict) -> dict[str, torch.Tensor]:
    """Strip what DataParallel and torch.compile put before every key."""
    wrapper = re.compile(r"(?:module\.|_orig_mod\.)+")
    if all(wrapper.match(key) for key in state_dict):
        return {wrapper.sub("", key, count=1): tensor for key, tensor in state_dict.items()}
    return dict(state_dict)


Replacement = str | tuple[str | None, ...]
Row = tuple[str, Replacement]

# Published names count from one where ours count from zero; the paper's coarsest decoder level is 4, ours is 0.
_NUMBERINGS: dict[str, Callable[[int], int]] = {
    "level": lambda number: 4 - number,
    "stage": lambda number: number - 1,
    "layer": lambda number: number - 1,
}


@dataclass(frozen=True)
class PublishedFormat:
    """What one kind of published file looks like.

    Attributes:
        name: `"PCMANet"`, `"VGGish"`, `"PVT-v2"` or `"ResNet-50"`.
        marker: Regular expression for the start of a key that only this kind of file has.
        rows: Its map.
    """

    name: str
    marker: str
    rows: tuple[Row, ...]


def _our_names(key: str, rows: tuple[Row, ...]) -> tuple[str | None, ...]:
    """Translate a published key.

    Args:
        key: Published key.
        rows: The map of its format.

    Returns:
        Our name for every equal slice of rows of the weight (mostly one), None for a slice that computes nothing;
        empty if no row fits.
    """
    for pattern, replacement in rows:
        match = re.match(pattern, key)
        if match:
            numbers = {name: _NUMBERINGS.get(name, int)(int(number)) for name, number in match.groupdict().items()}
            starts = (replacement,) if isinstance(replacement, str) else replacement
            return tuple(None if start is None else start.format(**numbers) + key[match.end() :] for start in starts)
    return ()


def _reason_to_drop(key: str) -> str | None:
    """Say why a published key is left behind, or None for one that is not."""
    return next((reason for pattern, reason in _DROPPED_KEYS if re.match(pattern, key)), None)


def _below(rows: tuple[Row, ...], published: str, ours: str) -> tuple[Row, ...]:
    """Put both sides of every row below a module."""

    def extended(replacement: Replacement) -> Replacement:
        if isinstance(replacement, str):
            return ours + replacement
        return tuple(None if start is None else ours + start for start in replacement)

    return tuple((published + pattern, extended(replacement)) for pattern, replacement in rows)


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
    # The audio token of the finest level goes nowhere: the audio query is not built there.
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

_VGGISH_ROWS: tuple[Row, ...] = ((r"features\.", "features."), (r"embeddings\.", "embeddings."))

_PCMANET_ROWS: tuple[Row, ...] = (
    *_below(_DECODER_ROWS, "", "model."),
    *_below(_PVT_ROWS, r"encoder_backbone\.", "model.backbone."),
    *_below(_RESNET_ROWS, r"resnet\.", "model.backbone."),
    # Published checkpoints leave the frozen VGGish out; one that has it may name it in any way.
    *_below(_VGGISH_ROWS, r"(?:\w+\.)*?", "model.audio_encoder."),
)

_CLASSIFICATION_HEAD = "classification head"
_FINEST_AUDIO_TOKEN = "the audio token of the finest level goes nowhere"
_DROPPED_KEYS: tuple[tuple[str, str], ...] = (
    (r"gf4\.seq2\.", "the coarsest level has no coarser map to project"),
    (rf"qsca1\.{_ATTENTION}v_to_kv\.", _FINEST_AUDIO_TOKEN),
    (r"qsca[1-4]\.attn\.to_patch_embedding\.0\.", "computes nothing in the published code"),
    (r"resnet\.layer[34]_2\.", "unused copy of a ResNet stage"),
    (r"(?:encoder_backbone\.)?head\.", _CLASSIFICATION_HEAD),
    (r"(?:resnet\.)?fc\.", _CLASSIFICATION_HEAD),
    (r"classifier\.", _CLASSIFICATION_HEAD),
    (r"(?:\w+\.)*?pproc\.", "VGGish's quantising postprocessor, which audio-visual segmentation does not use"),
)

PCMANET = PublishedFormat("PCMANet", r"avga4\.", _PCMANET_ROWS)
VGGISH = PublishedFormat("VGGish", r"embeddings\.0\.", _VGGISH_ROWS)
PVT_V2 = PublishedFormat(
    "PVT-v2", r"patch_embed1?\.proj\.|(?:pvt_v2\.)?encoder\.layers\.0\.patch_embedding\.", _PVT_ROWS
)
RESNET_50 = PublishedFormat("ResNet-50", r"layer1\.0\.|(?:resnet\.)?encoder\.stages\.0\.", _RESNET_ROWS)
_PUBLISHED_FORMATS = (PCMANET, VGGISH, PVT_V2, RESNET_50)


@dataclass(frozen=True)
class RenamedWeights:
    """Published weights under our names.

    Attributes:
        weights: Our name to weight.
        origins: Our name to the published key.
        dropped: Published key, or part of one, to the reason why it was left behind.
    """

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


def recognise(state_dict: StateDict) -> PublishedFormat:
    """Tell the format of a file from its keys."""
    for known in _PUBLISHED_FORMATS:
        if any(re.match(known.marker, key) for key in state_dict):
            return known
    raise ConversionError(
        f"The keys belong to none of {', '.join(known.name for known in _PUBLISHED_FORMATS)}; the first ones are "
        f"{', '.join(list(state_dict)[:8])}."
    )


def rename_keys(state_dict: StateDict, known: PublishedFormat) -> RenamedWeights:
    """Apply the map of a format to every key."""
    renamed = RenamedWeights()
    unknown, repeated = [], []
    for key, tensor in state_dict.items():
        names = _our_names(key, known.rows)
        if (reason := _reason_to_drop(key)) is not None:
            renamed.dropped[key] = reason
        elif not names:
            unknown.append(key)
        elif any(name in renamed.weights for name in names):
            repeated.append(key)
        else:
            _store_slices(renamed, key, tensor, names)
    refuse_any({"keys that the map does not know": unknown, "keys whose weight another key has brought": repeated})
    return renamed


def _store_slices(renamed: RenamedWeights, key: str, tensor: torch.Tensor, names: tuple[str | None, ...]) -> None:
    """Store the equal slices of rows of a published weight under our names, in float32."""
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    # Copies, because slices that share memory could not be saved.
    slices = [tensor] if len(names) == 1 else [part.clone() for part in tensor.tensor_split(len(names))]
    for number, (name, part) in enumerate(zip(names, slices, strict=True), start=1):
        if name is None:
            renamed.dropped[f"{key} (slice {number} of {len(names)})"] = _FINEST_AUDIO_TOKEN
        else:
            renamed.weights[name], renamed.origins[name] = part, key


def refuse_any(keys_by_problem: Mapping[str, Sequence[str]]) -> None:
    """Raise if there is any key with a problem, and list them all."""
    found = {problem: keys for problem, keys in keys_by_problem.items() if keys}
    if found:
        listed = (f"{len(keys)} {problem}:\n  " + "\n  ".join(keys) for problem, keys in found.items())
        raise ConversionError("The file does not fit, so nothing was converted.\n" + "\n".join(listed))


_AUDIO_ENCODER = "model.audio_encoder."
_STAGES = ["stage1", "stage2", "stage3", "stage4"]

# Hidden sizes, depths, MLP ratios of the published PVT-v2 networks B0 to B5 (arXiv 2106.13797, table 1).
_PVT_V2_SIZES: dict[str, tuple[list[int], list[int], list[int]]] = {
    "B0": ([32, 64, 160, 256], [2, 2, 2, 2], [8, 8, 4, 4]),
    "B1": ([64, 128, 320, 512], [2, 2, 2, 2], [8, 8, 4, 4]),
    "B2": ([64, 128, 320, 512], [3, 4, 6, 3], [8, 8, 4, 4]),
    "B3": ([64, 128, 320, 512], [3, 4, 18, 3], [8, 8, 4, 4]),
    "B4": ([64, 128, 320, 512], [3, 8, 27, 3], [8, 8, 4, 4]),
    "B5": ([64, 128, 320, 512], [3, 6, 40, 3], [4, 4, 4, 4]),
}


CARD = """---
library_name: transformers
license: other
{task}tags: [audio-visual-segmentation, pcmanet]
---

# {title}, converted

Published weights under the names of `{name}`; none was changed. The rights are those of the published file. Written by
`python -m modeling_pcmanet.convert_pcmanet_to_hf`, which says:

```text
{description}
```
"""


@dataclass(frozen=True)
class Conversion:
    """A converted file.

    Attributes:
        title: What was recognised, for example `"PCMANet for S4 with PVT-v2-B5"`.
        model: Ours, with its configuration.
        dropped: Published key, or part of one, to the reason why it was left behind.
        notes: What a user of the result has to know.
        has_audio_encoder: False for a PCMANet whose audio encoder is random; `save` leaves that one out.
    """

    title: str
    model: PreTrainedModel
    dropped: Mapping[str, str]
    notes: tuple[str, ...] = ()
    has_audio_encoder: bool = True

    def save(self, output: Path) -> None:
        """Write model, card and, for a PCMANet, the processor into a folder that appears complete or not at all.

        Raises:
            FileExistsError: If the folder exists and is not empty.
        """
        weights = self.model.state_dict()
        if not self.has_audio_encoder:
            weights = {name: weight for name, weight in weights.items() if not name.startswith(_AUDIO_ENCODER)}
        with _written_aside(output) as folder:
            self.model.save_pretrained(folder, state_dict=weights)
            if isinstance(self.model.config, PCMANetConfig):
                PCMANetProcessor(PCMANetImageProcessor(), PCMANetFeatureExtractor()).save_pretrained(folder)
            (folder / "README.md").write_text(self.card(), encoding="utf-8")

    def describe(self) -> str:
        """Say in a few lines what was recognised, what was dropped and why, and what to know."""
        keys_by_reason: dict[str, list[str]] = {}
        for key, reason in self.dropped.items():
            keys_by_reason.setdefault(reason, []).append(key)
        lines = [f"Recognised: {self.title}."]
        for reason, keys in keys_by_reason.items():
            shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
            lines.append(f"Dropped {len(keys)} ({reason}): {shown}")
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])

    def card(self) -> str:
        """Write the model card."""
        task = "pipeline_tag: image-segmentation\n" if isinstance(self.model.config, PCMANetConfig) else ""
        return CARD.format(task=task, title=self.title, name=type(self.model).__name__, description=self.describe())


# The network that the shapes ask for.


def convert_state_dict(
    published: StateDict, audio: StateDict | None = None, *, without_audio_encoder: bool = False
) -> Conversion:
    """Convert published weights, without copying those that are float32 already.

    Args:
        published: State dict of a PCMANet, VGGish, PVT-v2 (names of its authors, timm or transformers) or ResNet-50
            (names of torchvision, timm or transformers); all keys may lie below `module.` or `_orig_mod.`.
        audio: State dict of a VGGish, for a PCMANet that does not bring its own; published ones do not.
        without_audio_encoder: Convert a PCMANet without VGGish; then only `audio_embeds` may be given to it.

    Returns:
        The model in eval mode and what there is to say about it.

    Raises:
        ConversionError: If the format is not known, a key or weight on either side is left over or has another shape,
            or a PCMANet's audio encoder comes from nowhere or from two places.
    """
    published = without_wrappers(published)
    known = recognise(published)
    renamed = rename_keys(published, known)
    if known is PCMANET:
        return _convert_pcmanet(published, renamed, audio, without_audio_encoder)
    if audio is not None or without_audio_encoder:
        raise ConversionError(f"A {known.name} file has no audio encoder to choose; leave the audio options out.")
    with torch.device("meta"):
        title, model = _build_backbone(known, renamed)
    notes = ()
    if known is PVT_V2:
        notes = (
            "PVT-v2 expects eps 1e-5 in its patch-embedding and spatial-reduction norms. PCMANet sets it; AutoBackbone "
            "alone computes with 1e-6, 1e-4 off.",
        )
    return Conversion(title, _filled(model, renamed), renamed.dropped, notes)


def _build_backbone(known: PublishedFormat, renamed: RenamedWeights) -> tuple[str, PreTrainedModel]:
    """Build the network of a VGGish, ResNet-50 or PVT-v2 file and name it."""
    if known is VGGISH:
        return known.name, VGGishModel(VGGishConfig())
    if known is RESNET_50:
        return known.name, AutoBackbone.from_config(ResNetConfig(out_features=_STAGES))
    size, config = _pvt_v2_config(renamed)
    return f"{known.name}-{size}", AutoBackbone.from_config(config)


def _pvt_v2_config(renamed: RenamedWeights) -> tuple[str, PvtV2Config]:
    """Find the published size that a PVT-v2 has; a file that lost its last blocks has none."""
    widths = [_shape(renamed, f"encoder.layers.{stage}.patch_embedding.proj.weight")[0] for stage in range(4)]
    matches = (re.match(r"encoder\.layers\.(\d)\.blocks\.(\d+)\.", name) for name in renamed.weights)
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
                out_features=_STAGES,
            )
    raise ConversionError(f"No published PVT-v2 has widths {widths} and depths {depths}; is the file complete?")


def _convert_pcmanet(
    published: StateDict, renamed: RenamedWeights, audio: StateDict | None, without_audio_encoder: bool
) -> Conversion:
    """Convert a PCMANet of any of the six variants."""
    config = _pcmanet_config(renamed)
    _add_audio_encoder(renamed, audio, without_audio_encoder)
    with torch.device("meta"):
        model = PCMANetForAudioVisualSegmentation(config)
    notes = ["token_layout, masked_query_gradients and padded_frames are set as the weights were trained."]
    if without_audio_encoder:
        notes.append("There is no audio encoder: give audio_embeds, because input_features would meet random weights.")
    return Conversion(
        _pcmanet_title(published, config),
        _filled(model, renamed),
        renamed.dropped,
        tuple(notes),
        has_audio_encoder=not without_audio_encoder,
    )


def _pcmanet_config(renamed: RenamedWeights) -> PCMANetConfig:
    """Read from the shapes what the variants differ in: backbone, groups and classes."""
    width, group_width = _shape(renamed, "model.stages.0.group_attention.visual_projection.0.weight")[:2]
    num_labels = _shape(renamed, "model.stages.3.head.3.weight")[0]
    labels = {"num_labels": num_labels}
    if num_labels == len(AVSBENCH_SEMANTIC_LABELS):
        names = dict(enumerate(AVSBENCH_SEMANTIC_LABELS))
        labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    is_pvt = any(name.startswith("model.backbone.encoder.layers.") for name in renamed.weights)
    return PCMANetConfig.from_preset(
        "pvt_v2_b5" if is_pvt else "resnet50",
        num_groups=width // group_width,
        # How the weights were trained; the configuration says beside each default what is wrong with it.
        token_layout="scrambled",
        masked_query_gradients=False,
        padded_frames="zeroed" if num_labels > 1 else "excluded",
        **labels,
    )


def _pcmanet_title(published: StateDict, config: PCMANetConfig) -> str:
    """Name the variant; the two binary settings differ only in the names and numbers asked for here."""
    is_pvt = config.backbone_config.model_type == "pvt_v2"
    is_multi_source = "aud_fc.weight" in published if is_pvt else config.num_groups != 4
    binary_setting = "MS3" if is_multi_source else "S4"
    setting = binary_setting if config.num_labels == 1 else "AVSS"
    return f"PCMANet for {setting} with {'PVT-v2-B5' if is_pvt else 'ResNet-50'}"


def _add_audio_encoder(renamed: RenamedWeights, audio: StateDict | None, without_audio_encoder: bool) -> None:
    """Complete a PCMANet's weights with those of the audio encoder, from exactly one place."""
    is_inside = any(name.startswith(_AUDIO_ENCODER) for name in renamed.weights)
    if is_inside + (audio is not None) + without_audio_encoder != 1:
        raise ConversionError(
            "The audio encoder must come from exactly one place. Published PCMANet checkpoints do not hold it: give "
            "published VGGish weights with --audio-checkpoint, or --without-audio-encoder if you will pass only "
            f"audio_embeds. Here the checkpoint {'holds' if is_inside else 'does not hold'} VGGish, --audio-checkpoint is "
            f"{'not ' if audio is None else ''}given, --without-audio-encoder is "
            f"{'' if without_audio_encoder else 'not '}given."
        )
    if is_inside:
        return
    if audio is None:
        weights = VGGishModel(VGGishConfig()).state_dict()
    else:
        audio_encoder = convert_state_dict(audio)
        if not isinstance(audio_encoder.model, VGGishModel):
            raise ConversionError(f"The audio checkpoint must hold VGGish, it holds {audio_encoder.title}.")
        weights = audio_encoder.model.state_dict()
        renamed.dropped.update(audio_encoder.dropped)
    renamed.weights.update({_AUDIO_ENCODER + name: weight for name, weight in weights.items()})


def _shape(renamed: RenamedWeights, name: str) -> torch.Size:
    """Look up a shape that decides the configuration."""
    if name not in renamed.weights:
        refuse_any({"weights of ours that the file lacks": [name]})
    return renamed.weights[name].shape


def _filled(model: PreTrainedModel, renamed: RenamedWeights) -> PreTrainedModel:
    """Give a model on the meta device its weights, all of them and no others."""
    expected, weights = model.state_dict(), dict(renamed.weights)
    # Files from before PyTorch 0.4.1, torchvision's first ResNet-50 among them, do not count batches; nothing reads it.
    if not any(name.endswith(".num_batches_tracked") for name in weights):
        weights |= {name: torch.tensor(0) for name in expected if name.endswith(".num_batches_tracked")}
    refuse_any(
        {
            "weights of ours that the file lacks": [name for name in expected if name not in weights],
            "keys that ours has no place for": [renamed.origins[name] for name in weights if name not in expected],
            "keys of another shape": [
                f"{renamed.origins[name]} {tuple(weights[name].shape)}, ours is {name} {tuple(tensor.shape)}"
                for name, tensor in expected.items()
                if name in weights and weights[name].shape != tensor.shape
            ],
        }
    )
    model.load_state_dict(weights, assign=True)
    return model.eval()


# Writing.


@contextmanager
def _written_aside(output: Path) -> Iterator[Path]:
    """Give a folder to write into that gets its final name only when all is written."""
    output = output.resolve()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is no empty folder; give another --output or remove it.")
    folder = output.with_name(f".{output.name}.{os.getpid()}")
    folder.mkdir(parents=True)
    try:
        yield folder
        folder.replace(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_pcmanet.convert_pcmanet_to_hf", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="published weights, .pth or .safetensors")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument("--audio-checkpoint", type=Path, help="published VGGish weights for a PCMANet")
    parser.add_argument(
        "--without-audio-encoder",
        action="store_true",
        help="convert a PCMANet that will only get audio_embeds (VGGish features computed elsewhere)",
    )
    parser.add_argument("--push-to-hub", metavar="ID", help="also upload to this model repository, with our code")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert a file as the command line says."""
    options = _parse_args(arguments)
    try:
        if options.push_to_hub:
            validate_repo_id(options.push_to_hub)
        audio = None if options.audio_checkpoint is None else read_state_dict(options.audio_checkpoint)
        conversion = convert_state_dict(
            read_state_dict(options.checkpoint), audio, without_audio_encoder=options.without_audio_encoder
        )
        with save_code_with_weights(options.push_to_hub is not None):
            conversion.save(options.output)
        sys.stdout.write(f"{conversion.describe()}\nWritten to {options.output}\n")
        if options.push_to_hub:
            address = upload_folder(options.output, options.push_to_hub, message=f"Convert {conversion.title}")
            sys.stdout.write(f"Pushed to {address}\n")
    except (ConversionError, HFValidationError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()


__all__ = [
    "Conversion",
    "ConversionError",
    "PCMANET",
    "PVT_V2",
    "PublishedFormat",
    "RESNET_50",
    "RenamedWeights",
    "StateDict",
    "VGGISH",
    "convert_state_dict",
    "read_state_dict",
    "recognise",
    "refuse_any",
    "rename_keys",
    "without_wrappers",
]
