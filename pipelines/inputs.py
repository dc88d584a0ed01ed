"""What a user may call a video -> the arguments of the processor."""

from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset


def share(name: str, value: Any) -> float | None:
    """Checks a share of a whole, or a probability.

    Args:
        name: Of the argument.
        value: What came.

    Returns:
        The same as float.

    Raises:
        ValueError: If it is no number in [0, 1].
    """
    if value is None:
        return None
    if not _is_number(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"{name} is a share between 0 and 1, got {value!r}.")
    return float(value)


def whole_number(name: str, value: Any, least: int) -> int | None:
    """Checks a number of things.

    Args:
        name: Of the argument.
        value: What came.
        least: The smallest number that makes sense.

    Returns:
        The same as int.

    Raises:
        ValueError: If it is no whole number, or a smaller one.
    """
    if value is None:
        return None
    if not _is_number(value, Integral) or value < least:
        raise ValueError(f"{name} is a whole number, {least} at least, got {value!r}.")
    return int(value)


def _is_number(value: Any, kind: type) -> bool:
    """Tells whether a value is a number of a kind; for Python True and False are some, too."""
    return isinstance(value, kind) and not isinstance(value, bool)


VideoSource: TypeAlias = str | Path | bytes | BinaryIO | np.ndarray | torch.Tensor
INPUT_KEYS = ("video", "audio", "sampling_rate", "timestamps")


def list_or_generator(inputs: Any) -> Any:
    """Brings several inputs to a list or, where they come one by one, to a generator; one input stays as it is."""
    if isinstance(inputs, list | tuple):
        # transformers looks at the first of a list; of a generator that gives nothing it makes an empty list.
        return list(inputs) or (each for each in ())
    if isinstance(inputs, Dataset) and hasattr(inputs, "__len__"):
        # A torch data set need not say where it ends but by its length.
        return (inputs[index] for index in range(len(inputs)))
    # A file object goes through its lines, an array through its frames: they are one input all the same.
    is_one = isinstance(inputs, str | bytes | bytearray | Mapping | np.ndarray | torch.Tensor) or hasattr(
        inputs, "read"
    )
    is_several = isinstance(inputs, Iterable | Dataset) and not is_one
    return (each for each in inputs) if is_several else inputs


def clip_arguments(
    inputs: VideoSource | Mapping[str, Any],
    audio: VideoSource | Mapping[str, Any] | None = None,
    sampling_rate: int | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Brings every form of input to the arguments of the processor's `stream`."""
    if not isinstance(inputs, Mapping) or "path" in inputs or "bytes" in inputs:
        inputs = {"video": inputs}
    unknown = sorted(set(inputs) - set(INPUT_KEYS))
    if unknown or "video" not in inputs:
        raise ValueError(f'A dictionary of one video has "video" and may have {INPUT_KEYS[1:]}, got {sorted(inputs)}.')

    clip = {"audio": audio, "sampling_rate": sampling_rate, **inputs}
    if isinstance(clip["audio"], Mapping) and "array" in clip["audio"]:
        clip |= {
            "audio": clip["audio"]["array"],
            "sampling_rate": clip["audio"].get("sampling_rate", clip["sampling_rate"]),
        }
    files = {"video": _file_of(clip["video"]), "audio": _file_of(clip["audio"])}
    return {**kwargs, **clip, **files}


def _file_of(source: VideoSource | Mapping[str, Any] | None) -> VideoSource | None:
    """Takes the bytes, or else the path, out of a `datasets` column's `{"path", "bytes"}`."""
    if not isinstance(source, Mapping):
        return source
    found = [source[key] for key in ("bytes", "path") if source.get(key) is not None]
    if not found:
        raise ValueError(f'A dictionary of one file has "bytes" or "path", got {dict(source)}.')
    return found[0]
