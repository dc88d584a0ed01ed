"""What a user may call a video -> the arguments of the processor."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset


VideoSource: TypeAlias = str | Path | bytes | BinaryIO | np.ndarray | torch.Tensor
INPUT_KEYS = ("video", "audio", "sampling_rate", "timestamps")


def each_input(inputs: Iterable[Any]) -> Iterator[Any]:
    """Goes through several inputs. A torch data set need not say where it ends but by its length."""
    if isinstance(inputs, Dataset) and hasattr(inputs, "__len__"):
        return (inputs[index] for index in range(len(inputs)))
    return iter(inputs)


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
        clip |= {"audio": clip["audio"]["array"], "sampling_rate": clip["audio"]["sampling_rate"]}
    files = {"video": _file_of(clip["video"]), "audio": _file_of(clip["audio"])}
    return {**kwargs, **clip, **files}


def _file_of(source: VideoSource | Mapping[str, Any] | None) -> VideoSource | None:
    """Takes the bytes, or else the path, out of a `datasets` column's `{"path", "bytes"}`."""
    if not isinstance(source, Mapping):
        return source
    return source["bytes"] if source.get("bytes") is not None else source["path"]
