"""Names of published weights and ours: the map of `convert_pcmanet_to_hf` as data, and what applies it.

A row is `(pattern, replacement)`: a regular expression for the start of a published key, and our start of it; the rest
(`0.weight`, `running_mean`) stays as it is. The first row that fits counts. Where one published matrix holds several of
ours, the replacement is a tuple with one name per equal slice of rows, None for a slice that computes nothing.
"""

import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


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


__all__ = [
    "ConversionError",
    "PCMANET",
    "PVT_V2",
    "PublishedFormat",
    "RESNET_50",
    "RenamedWeights",
    "StateDict",
    "VGGISH",
    "read_state_dict",
    "recognise",
    "refuse_any",
    "rename_keys",
    "without_wrappers",
]
