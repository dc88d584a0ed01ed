"""From clips or rows of a data set to the batch of the model, through the processor."""

import copy
import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from modeling_pcmanet.feature_extraction_pcmanet import PCMANetFeatureExtractor
from modeling_pcmanet.media_pcmanet import SAMPLING_OFFSET
from pcmanet.dataset_scripts.sounding_shapes.files import SyntheticClip
from pcmanet.dataset_scripts.sounding_shapes.sound import SAMPLING_RATE

from .augmentation import Augmentation
from .clips import ClipArrays, to_arrays


VERSION = 1  # of how features are computed; a higher one makes all files of an older one unknown


class LogMelCache:
    """A feature extractor that computes the features of a sound once, and reads them from then on.

    Several processes may share a folder. A file is written aside and renamed; a damaged one is written again.

    Args:
        extractor: What computes.
        folder: Where features are kept, 24 kB per frame; made if there is none.
    """

    def __init__(self, extractor: PCMANetFeatureExtractor, folder: str | Path) -> None:
        self.extractor = extractor
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def model_input_names(self) -> list[str]:
        """What the extractor gives."""
        return self.extractor.model_input_names

    def __call__(
        self, audio: Any, sampling_rate: int | None = None, *, return_tensors: str | None = None, **options: Any
    ) -> BatchFeature:
        """Give the features of one sound.

        Args:
            audio: As the extractor takes it, one clip.
            sampling_rate: Of the audio, in hertz.
            return_tensors: As for the extractor.
            **options: All else that the extractor takes.

        Returns:
            `input_features` (frames, 1, 96, 64), float32.

        Raises:
            ValueError: What the extractor raises.
        """
        path = self._path(audio, sampling_rate, options)
        features = _read(path)
        if features is None:
            features = np.asarray(self.extractor(audio, sampling_rate, **options)["input_features"], dtype=np.float32)
            _write(path, features)
        return BatchFeature({"input_features": features}, tensor_type=return_tensors)

    def _path(self, audio: Any, sampling_rate: int | None, options: dict[str, Any]) -> Path:
        """Name the file of a sound."""
        samples = np.ascontiguousarray(audio)
        settings = {
            "version": VERSION,
            "extractor": self.extractor.to_dict(),
            "sampling_rate": sampling_rate,
            "samples": [samples.dtype.str, samples.shape],
            "options": options,
        }
        digest = hashlib.sha256(
            json.dumps(settings, sort_keys=True, default=lambda value: np.asarray(value).tolist()).encode()
        )
        digest.update(samples)
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name}.npy"


def _read(path: Path) -> np.ndarray | None:
    """Read features, or return None if they are not there or damaged."""
    try:
        return np.load(path, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None


def _write(path: Path, features: np.ndarray) -> None:
    """Write features aside and rename."""
    path.parent.mkdir(exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}.npy")
    np.save(aside, features, allow_pickle=False)
    os.replace(aside, path)


TIME_TOLERANCE = 1e-3  # seconds: closer moments are the same
SOUND_AFTER_LAST_FRAME = 1.0  # seconds beyond the clip that are kept; no patch of any frame reaches farther


class ClipCollator:
    """Collate function that hands clips to the processor, which makes the batch (see its module docstring).

    Args:
        processor: A `PCMANetProcessor`; it sets the picture size and the audio features.
        binary: True if labels are 0 silent and 1 sounding, False if they are class indexes.
        augmentation: What to change, for training; None for evaluation. It is drawn from torch's generator, which
            differs per worker and epoch and follows `set_seed`.
        log_mel_cache: Folder that keeps log-mel features, so that they are computed once; not with an augmentation that
            changes sounds, of which no two are the same.

    Raises:
        ValueError: If a cache is asked for although sounds change.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        binary: bool,
        *,
        augmentation: Augmentation | None = None,
        log_mel_cache: str | Path | None = None,
    ) -> None:
        if log_mel_cache is not None and augmentation is not None and augmentation.changes_sound:
            raise ValueError(
                "log_mel_cache needs sounds that stay as they are: set loudness, mixing and replacement of the "
                "augmentation to 0, or leave the cache out."
            )
        if log_mel_cache is not None:
            processor = copy.copy(processor)
            processor.feature_extractor = LogMelCache(processor.feature_extractor, log_mel_cache)
        self.processor = processor
        self.binary = binary
        self.augmentation = augmentation

    def __call__(self, clips: Sequence[SyntheticClip | Mapping[str, Any]]) -> BatchFeature:
        """Make one batch; frames without annotation reach the model through `annotated_frames`.

        Args:
            clips: Clips of Sounding Shapes, or rows of `load_avsbench` or of its export, of any lengths.

        Returns:
            The batch.

        Raises:
            ValueError: If a clip cannot be used; the message names it.
        """
        arrays = [to_arrays(clip, self.binary) for clip in clips]
        if self.augmentation is not None:
            arrays = self.augmentation(arrays, np.random.default_rng(int(torch.randint(2**63 - 1, ()))))
        sounds = [_sound(clip) for clip in arrays]
        try:
            batch = self.processor(
                videos=[clip.frames for clip in arrays],
                audio=[waveform for waveform, _ in sounds],
                sampling_rate=[rate for _, rate in sounds],
                timestamps=[None if _is_regular(clip) else clip.timestamps for clip in arrays],
                segmentation_maps=[_maps(clip) for clip in arrays],
                return_tensors="pt",
            )
        except ValueError as error:
            raise ValueError(f"in the batch of clips {[clip.name for clip in arrays]}: {error}") from error
        for features, clip in zip(batch["input_features"], arrays, strict=True):
            if clip.log_mel is not None:
                features[: len(clip.frames)] = torch.from_numpy(clip.log_mel)
        return batch


def _is_regular(clip: ClipArrays) -> bool:
    """Tell whether frames were taken as AVSBench takes them, of which the processor knows what short sounds mean."""
    moments = np.arange(len(clip.timestamps)) + SAMPLING_OFFSET
    return bool((np.abs(clip.timestamps - moments) < TIME_TOLERANCE).all())


def _sound(clip: ClipArrays) -> tuple[np.ndarray, int]:
    """The sound of a clip, cut where nothing of it matters; silence where features stand in for it."""
    if clip.waveform is None:
        return np.zeros(len(clip.frames) * SAMPLING_RATE, dtype=np.float32), SAMPLING_RATE
    end = clip.timestamps.max() - SAMPLING_OFFSET + 1.0 + SOUND_AFTER_LAST_FRAME
    return clip.waveform[:, : max(1, round(end * clip.sampling_rate))], clip.sampling_rate


def _maps(clip: ClipArrays) -> list[np.ndarray | None]:
    """One mask per frame, None where the frame is not annotated."""
    return [mask if annotated else None for mask, annotated in zip(clip.masks, clip.annotated_frames, strict=True)]
