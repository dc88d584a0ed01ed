"""The rows of a data set for audio-visual segmentation: their columns, and how the files of a clip become one.

| column | type | meaning |
|---|---|---|
| `id` | string | name of the clip |
| `category` | string or null | S4's category |
| `objects` | list of strings or null | what sounds somewhere in the clip; null where the data do not tell |
| `subset` | string | "s4", "ms3", "v1s", "v1m", "v2" or "folder" |
| `frames` | list of pictures | as stored |
| `timestamps` | list of float64 | moment of each frame, seconds from the start of the sound |
| `masks` | list of pictures or nulls | class indexes (binary: 0 and 1), null where the frame is not annotated |
| `annotated_frames` | list of bool | which frames are annotated |
| `audio` | struct of `path` and `bytes` | the sound, a wav; null if there are only log-mel features |
| `log_mel` | float32 (frames, 1, 96, 64) | the published features, only if asked for |
"""

import io
import math
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from datasets import Array4D, Features, Image, List, Value

from modeling_pcmanet.media_pcmanet import SAMPLING_OFFSET

from .files import read_picture
from .layouts import SECONDS_OF_SUBSET, AVSBenchError, ClipFiles, Problem
from .masks import (
    LABEL_NOISE_RULES,
    decode_binary,
    decode_colours,
    decode_indexes,
    encode_indexes,
    filter_label_noise,
    find_systematic_mistake,
)


PATCH_SHAPE = (1, 96, 64)  # of VGGish
LARGEST_FILE = 16 * 2**20  # bytes; a published file holds 5 patches, 123 kB


def read_log_mel(path: str | Path, frames: int) -> np.ndarray:
    """Read one `audio_log_mel` file.

    Args:
        path: Of a pickled tensor.
        frames: How many patches it must hold.

    Returns:
        float32 (frames, 1, 96, 64).

    Raises:
        ValueError: If the file is large, damaged, asks for anything but a tensor, or holds another shape or values
            that are not finite. Nothing of it has run then.
    """
    if Path(path).stat().st_size > LARGEST_FILE:
        raise ValueError(f"has more than {LARGEST_FILE} bytes; a log-mel file holds {frames} patches of 24 kB")
    try:
        tensor = _TensorUnpickler(io.BytesIO(Path(path).read_bytes())).load()
    # A damaged pickle fails in any way at all.
    except Exception as error:
        raise ValueError(f"is no pickled tensor, and was not run ({error}); use the wav") from error
    if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != (frames, *PATCH_SHAPE):
        came = f"a tensor {tuple(tensor.shape)}" if isinstance(tensor, torch.Tensor) else f"a {type(tensor).__name__}"
        raise ValueError(f"holds {came}, expected a tensor {(frames, *PATCH_SHAPE)}; use the wav")
    if not torch.isfinite(tensor).all():
        raise ValueError("holds values that are not finite; use the wav")
    return tensor.detach().to(torch.float32).numpy()


class _TensorUnpickler(pickle.Unpickler):
    """Knows the names by which a tensor is pickled and refuses every other."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle may call."""
        allowed = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch.storage", "_load_from_bytes"): _load_storage,
            ("collections", "OrderedDict"): OrderedDict,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return allowed[module, name]


def _rebuild_tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> torch.Tensor:
    """Put a tensor on its storage; unlike torch's own function of this name it never makes the storage larger."""
    values = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
    return values.as_strided(size, stride, offset)


def _load_storage(data: bytes) -> Any:
    """Load the pickled storage inside a pickled tensor; torch's own unpickler is restricted as well."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own message advises to switch the restriction off.
        raise pickle.UnpicklingError("its storage holds more than numbers") from error


def _encode(text: str, encoding: str) -> bytes:
    """Write bytes as the pickle protocols before the third spell them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}")
    return text.encode("latin1")


Result = TypeVar("Result")


@dataclass(frozen=True)
class RowSettings:
    """What may be chosen about rows.

    Attributes:
        label_noise: AVSS only, what becomes of pixels whose class `a_obj` does not name: "keep", "background", "ignore".
        log_mel: Whether to read the published log-mel files (S4, MS3) beside the wav, which may then be missing.
        frames_per_second: One's own videos only, at which rate frames are taken, in hertz.

    Raises:
        ValueError: If the rule is none of these, or the rate no positive number.
    """

    label_noise: str = "keep"
    log_mel: bool = False
    frames_per_second: float = 1.0

    def __post_init__(self) -> None:
        if self.label_noise not in LABEL_NOISE_RULES:
            raise ValueError(f"label_noise is {self.label_noise!r}; choose one of {LABEL_NOISE_RULES}")
        if not 0 < self.frames_per_second < math.inf:
            raise ValueError(f"frames_per_second is {self.frames_per_second}; expected a positive number")


def row_features(log_mel: bool = False) -> Features:
    """Types of the columns, with or without `log_mel`."""
    features = {
        "id": Value("string"),
        "category": Value("string"),
        "objects": List(Value("string")),
        "subset": Value("string"),
        "frames": List(Image()),
        "timestamps": List(Value("float64")),
        "masks": List(Image()),
        "annotated_frames": List(Value("bool")),
        "audio": {"path": Value("string"), "bytes": Value("binary")},
    }
    return Features({**features, "log_mel": Array4D((None, *PATCH_SHAPE), "float32")} if log_mel else features)


def read_row(clip: ClipFiles, settings: RowSettings) -> dict[str, Any]:
    """Read the files of a clip.

    Args:
        clip: Where they are; `inspect_clips` has found them whole.
        settings: What was chosen.

    Returns:
        One row. Frames and sound are the bytes of the files, masks are PNG of class indexes.

    Raises:
        AVSBenchError: Naming every file of the clip that cannot be used.
    """
    attempts = ProblemCollector(clip.id)
    pictures = [attempts.run(read_picture, path) for path in clip.frames]
    masks = [attempts.run(_read_mask, path, clip) if path else None for path in clip.masks]
    attempts.run(_check_sizes, clip.frames[0], clip, pictures, masks)
    attempts.run(_check_meaning, next(path for path in clip.masks if path), clip, masks)
    row = make_row(
        clip.id,
        clip.subset,
        frames=[
            {"path": os.path.basename(path), "bytes": picture and picture[0]}
            for path, picture in zip(clip.frames, pictures, strict=True)
        ],
        timestamps=np.arange(len(clip.frames)) + SAMPLING_OFFSET,
        masks=[_filter(mask, clip, settings) for mask in masks],
        audio=_read_audio(clip.audio),
        category=clip.category,
        objects=clip.objects,
    )
    if settings.log_mel and clip.log_mel:
        row["log_mel"] = attempts.run(read_log_mel, clip.log_mel, len(clip.frames))
    attempts.finish()
    return row


class ProblemCollector:
    """Runs what may fail on the files of one clip, so that all faults are known before any is raised."""

    def __init__(self, clip: str) -> None:
        self.clip = clip
        self.faults: list[Problem] = []

    def run(self, function: Callable[..., Result], path: str, *arguments: Any) -> Result | None:
        """Call a function on a file; a ValueError or OSError becomes a fault of it, and the result None."""
        try:
            return function(path, *arguments)
        except (ValueError, OSError) as error:
            self.faults.append(Problem(self.clip, path, str(error)))
        return None

    def finish(self) -> None:
        """Raise AVSBenchError if anything failed."""
        if self.faults:
            raise AVSBenchError(self.faults)


def make_row(
    name: str,
    subset: str,
    *,
    frames: Sequence[Any],
    timestamps: np.ndarray,
    masks: Sequence[np.ndarray | None],
    audio: dict[str, Any] | None,
    category: str | None = None,
    objects: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Put the parts of a clip under the names of the columns; masks are uint8 (height, width) class indexes."""
    return {
        "id": name,
        "category": category,
        "objects": None if objects is None else list(objects),
        "subset": subset,
        "frames": list(frames),
        "timestamps": timestamps.tolist(),
        "masks": [None if mask is None else {"path": None, "bytes": encode_indexes(mask)} for mask in masks],
        "annotated_frames": [mask is not None for mask in masks],
        "audio": audio,
    }


def _read_mask(path: str, clip: ClipFiles) -> np.ndarray:
    """Read a mask file of any of the three trees as uint8 (height, width), class indexes."""
    data, _ = read_picture(path)
    if clip.subset not in SECONDS_OF_SUBSET:
        return decode_binary(data)
    return decode_colours(data) if clip.colour_coded else decode_indexes(data)


def _check_sizes(_: str, clip: ClipFiles, pictures: Sequence[Any], masks: Sequence[np.ndarray | None]) -> None:
    """Raise ValueError unless all pictures and masks of a clip have one size."""
    sizes = {path: picture[1] for path, picture in zip(clip.frames, pictures, strict=True) if picture}
    sizes |= {path: mask.shape for path, mask in zip(clip.masks, masks, strict=True) if mask is not None}
    if len(set(sizes.values())) > 1:
        odd = ", ".join(f"{os.path.relpath(path, Path(clip.audio).parent)} {size}" for path, size in sizes.items())
        raise ValueError(f"frames and masks of the clip differ in (height, width): {odd}")


def _check_meaning(_: str, clip: ClipFiles, masks: Sequence[np.ndarray | None]) -> None:
    """Raise ValueError if the classes in the masks of an AVSS clip contradict its `a_obj` systematically."""
    known = [mask for mask in masks if mask is not None]
    mistake = find_systematic_mistake(known, clip.objects or ()) if clip.subset in SECONDS_OF_SUBSET else None
    if mistake:
        raise ValueError(mistake)


def _filter(mask: np.ndarray | None, clip: ClipFiles, settings: RowSettings) -> np.ndarray | None:
    if mask is None or clip.subset not in SECONDS_OF_SUBSET:
        return mask
    return filter_label_noise(mask, clip.objects or (), settings.label_noise)


def _read_audio(path: str) -> dict[str, Any] | None:
    """Read a wav as it is; None if it is missing, which is allowed where log-mel features stand in for it."""
    return {"path": os.path.basename(path), "bytes": Path(path).read_bytes()} if os.path.isfile(path) else None
