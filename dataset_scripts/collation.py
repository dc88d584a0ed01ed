"""Collate clips or rows of a data set to the batch of the model, through the processor."""

import copy
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from modeling_pcmanet.audio_pcmanet import AudioBuffer
from modeling_pcmanet.feature_extraction_pcmanet import PCMANetFeatureExtractor
from modeling_pcmanet.media_pcmanet import SAMPLING_OFFSET
from pcmanet.dataset_scripts.sounding_shapes.clips import SyntheticClip
from pcmanet.dataset_scripts.sounding_shapes.sound import SAMPLING_RATE
from pcmanet.files import atomic_file

from .augmentation import Augmentation
from .clips import ClipArrays, to_arrays


# Collation


TIME_TOLERANCE = 1e-3  # seconds within which two times are equal
AUDIO_AFTER_LAST_FRAME = 1.0  # seconds of audio kept after the clip; no patch of any frame extends farther


class ClipCollator:
    """Collate function that passes clips to the processor, which builds the batch (see its module docstring).

    Args:
        processor: A `PCMANetProcessor`; it determines the image size and the audio features.
        binary: Whether labels are 0 (silent) and 1 (sounding), or class indexes.
        augmentation: Changes of training clips; None for evaluation. Its generator is seeded from torch's generator, which
            differs between workers and epochs and follows `set_seed`.
        log_mel_cache: Folder that stores log-mel features, so that they are computed once. It cannot be combined with an
            augmentation that changes audio, because no two augmented clips are equal.

    Raises:
        ValueError: If a cache is combined with an augmentation that changes audio.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        binary: bool,
        *,
        augmentation: Augmentation | None = None,
        log_mel_cache: str | Path | None = None,
    ) -> None:
        if log_mel_cache is not None and augmentation is not None and augmentation.changes_audio:
            raise ValueError(
                "Expected an augmentation without audio changes together with log_mel_cache. Set loudness, mixing and "
                "replacement of the augmentation to 0, or leave out the cache."
            )
        if log_mel_cache is not None:
            processor = copy.copy(processor)
            processor.feature_extractor = LogMelCache(processor.feature_extractor, log_mel_cache)
        self.processor = processor
        self.binary = binary
        self.augmentation = augmentation

    def __call__(self, clips: Sequence[SyntheticClip | Mapping[str, Any] | ClipArrays]) -> BatchFeature:
        """Build one batch; `annotated_frames` marks the annotated frames.

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
        audio = [_crop_audio(clip) for clip in arrays]
        process = cast(Callable[..., BatchFeature], self.processor)  # of PCMANetProcessor
        try:
            batch = process(
                videos=[clip.frames for clip in arrays],
                audio=[waveform for waveform, _ in audio],
                sampling_rate=[rate for _, rate in audio],
                timestamps=[None if _has_regular_timestamps(clip) else clip.timestamps for clip in arrays],
                segmentation_maps=[_segmentation_maps(clip) for clip in arrays],
                return_tensors="pt",
            )
        except ValueError as error:
            raise ValueError(f"In the batch of clips {[clip.name for clip in arrays]}: {error}") from error
        for features, clip in zip(batch["input_features"], arrays, strict=True):
            if clip.log_mel is not None:
                features[: len(clip.frames)] = torch.from_numpy(clip.log_mel)
        return batch


def _has_regular_timestamps(clip: ClipArrays) -> bool:
    """Return whether the frames have the timestamps of AVSBench, for which the processor handles short audio itself."""
    times = np.arange(len(clip.timestamps)) + SAMPLING_OFFSET
    return bool((np.abs(clip.timestamps - times) < TIME_TOLERANCE).all())


def _crop_audio(clip: ClipArrays) -> tuple[np.ndarray, int]:
    """Return the audio up to the last sample that any frame needs; silence where features replace the audio."""
    if clip.waveform is None or clip.sampling_rate is None:
        return np.zeros(len(clip.frames) * SAMPLING_RATE, dtype=np.float32), SAMPLING_RATE
    end = clip.timestamps.max() - SAMPLING_OFFSET + 1.0 + AUDIO_AFTER_LAST_FRAME
    return clip.waveform[:, : max(1, round(end * clip.sampling_rate))], clip.sampling_rate


def _segmentation_maps(clip: ClipArrays) -> list[np.ndarray | None]:
    """Return one mask per frame, None where the frame is not annotated."""
    return [mask if annotated else None for mask, annotated in zip(clip.masks, clip.annotated_frames, strict=True)]


# The cache of log-mel features


CACHE_VERSION = 1  # of the computed features; a higher version makes all earlier files unused


class LogMelCache:
    """Feature extractor that computes the features of a clip once and reads them afterwards.

    Several processes may share a folder. A file appears when it is complete; a damaged file is written again.

    Args:
        extractor: The feature extractor that computes.
        folder: Folder of the features, 24 kB per frame; it is created if it does not exist.
    """

    def __init__(self, extractor: PCMANetFeatureExtractor, folder: str | Path) -> None:
        self.extractor = extractor
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the features."""
        return self.extractor.model_input_names

    @property
    def sampling_rate(self) -> int:
        """Sampling rate of the features, in hertz."""
        return self.extractor.sampling_rate

    def audio_patches(
        self, frames: Iterable[tuple[Any, ...]], audio: AudioBuffer, audio_alignment: str
    ) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
        """Add its patch to each frame of a clip, as the extractor does.

        Args:
            frames: Tuples that begin with a timestamp in seconds since the start of the audio. All of them are read first.
            audio: The audio of the clip.
            audio_alignment: As for the extractor.

        Yields:
            Each frame with its log-mel patch, float32 (1, 96, 64).

        Raises:
            ValueError: As the extractor.
        """
        frames = list(frames)
        audio.reaches(sys.maxsize)
        samples = audio.cut(0, audio.length).numpy()
        path = self._path(samples, [frame[0] for frame in frames], audio_alignment)
        features = _read_features(path)
        if features is None:
            patches = [patch.numpy() for _, patch in self.extractor.audio_patches(frames, audio, audio_alignment)]
            features = np.stack(patches)
            path.parent.mkdir(exist_ok=True)
            with atomic_file(path, durable=False) as temporary:
                np.save(temporary, features, allow_pickle=False)
        yield from zip(frames, torch.from_numpy(features), strict=True)

    def _path(self, samples: np.ndarray, timestamps: Sequence[float], audio_alignment: str) -> Path:
        """Return the file of a clip, named after a hash of samples and settings."""
        settings = {
            "version": CACHE_VERSION,
            "extractor": self.extractor.to_dict(),
            "samples": [samples.dtype.str, samples.shape],
            "timestamps": timestamps,
            "audio_alignment": audio_alignment,
        }
        digest = hashlib.sha256(
            json.dumps(settings, sort_keys=True, default=lambda value: np.asarray(value).tolist()).encode()
        )
        digest.update(np.ascontiguousarray(samples).data)
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name}.npy"


def _read_features(path: Path) -> np.ndarray | None:
    """Read features, or return None if they do not exist or are damaged."""
    try:
        return np.load(path, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
