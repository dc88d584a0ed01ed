"""Collate clips or rows of a data set to the batch of the model, through the processor."""

import copy
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from modeling_pcmanet.audio_pcmanet import AudioBuffer, to_mono
from modeling_pcmanet.media_pcmanet import SAMPLING_OFFSET
from pcmanet.dataset_scripts.avsbench.rows import SHORT_AUDIO
from pcmanet.dataset_scripts.sounding_shapes.clips import SyntheticClip
from pcmanet.dataset_scripts.sounding_shapes.sound import SAMPLING_RATE
from pcmanet.files import atomic_file

from .augmentation import Augmentation
from .clips import ClipArrays, to_arrays


# Collation


TIME_TOLERANCE = 1e-3  # seconds within which two times are equal


class ClipCollator:
    """Collate function that passes clips to the processor, which builds the batch (see its module docstring).

    Args:
        processor: A `PCMANetProcessor`; it determines the image size and the audio features.
        binary: Whether labels are 0 (silent) and 1 (sounding), or class indexes.
        augmentation: Changes of training clips; None for evaluation. Its generator is seeded from torch's generator, which
            differs between workers and epochs and follows `set_seed`.
        audio_cache: Folder that stores audio features, so that they are computed once. It cannot be combined with an
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
        audio_cache: str | Path | None = None,
    ) -> None:
        if audio_cache is not None and augmentation is not None and augmentation.changes_audio:
            raise ValueError(
                "Expected an augmentation without audio changes together with audio_cache. Set loudness, mixing and "
                "replacement of the augmentation to 0, or leave out the cache."
            )
        self.processor: Any = copy.copy(processor)  # data sets do not import the processor
        if audio_cache is not None:
            self.processor.audio_features = AudioFeatureCache(processor, audio_cache)
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
        arrays = [self._with_features_of_short_audio(clip) for clip in arrays]
        audio = [_crop_audio(clip, self.processor.audio_reach) for clip in arrays]
        try:
            batch = self.processor(
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

    def _with_features_of_short_audio(self, clip: ClipArrays) -> ClipArrays:
        """Add the features of a clip of AVSBench whose audio is too short for the processor.

        AVSBench's preparation uses such clips and repeats the last log-mel patch (S4, MS3) or appends zeros (AVSS), which is
        the `short_clip` rule of the feature extractor. For other features the missing audio is silence.
        """
        if clip.log_mel is not None or clip.waveform is None or not _has_regular_timestamps(clip):
            return clip
        missing = len(clip.frames) - clip.waveform.shape[-1] / (clip.sampling_rate or 1)
        if missing <= SHORT_AUDIO:
            return clip
        if self.processor.audio_windows is not None:
            samples = round(missing * (clip.sampling_rate or 1))
            return replace(clip, waveform=np.pad(clip.waveform, ((0, 0), (0, samples))))
        pieces = iter([(to_mono(clip.waveform), clip.sampling_rate or 1)])
        sound = AudioBuffer(pieces, self.processor.feature_extractor.sampling_rate)
        frames = [(time,) for time in clip.timestamps.tolist()]
        patches = [patch.numpy() for _, patch in self.processor.audio_features(frames, sound, "consecutive")]
        return replace(clip, log_mel=np.stack(patches))


def real_frames(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return which frames of a batch are not padding, (batch, frames) bool; the processor says so only if some are."""
    pixels = batch["pixel_values"]
    return batch.get("frame_mask", torch.ones(pixels.shape[:2], dtype=torch.bool, device=pixels.device))


def _has_regular_timestamps(clip: ClipArrays) -> bool:
    """Return whether the frames have the timestamps of AVSBench, for which the processor handles short audio itself."""
    times = np.arange(len(clip.timestamps)) + SAMPLING_OFFSET
    return bool((np.abs(clip.timestamps - times) < TIME_TOLERANCE).all())


def _crop_audio(clip: ClipArrays, reach: float) -> tuple[np.ndarray, int]:
    """Return the audio up to the last sample that any frame needs; silence where features are given.

    Args:
        clip: The clip.
        reach: Seconds after a frame up to which its audio matters.
    """
    if clip.log_mel is not None or clip.waveform is None or clip.sampling_rate is None:
        return np.zeros(len(clip.frames) * SAMPLING_RATE, dtype=np.float32), SAMPLING_RATE
    end = clip.timestamps.max() - SAMPLING_OFFSET + 1.0 + reach
    return clip.waveform[:, : max(1, round(end * clip.sampling_rate))], clip.sampling_rate


def _segmentation_maps(clip: ClipArrays) -> list[np.ndarray | None]:
    """Return one mask per frame, None where the frame is not annotated."""
    return [mask if annotated else None for mask, annotated in zip(clip.masks, clip.annotated_frames, strict=True)]


# The cache of audio features


CACHE_VERSION = 2  # of the computed features; a higher version makes all earlier files unused


class AudioFeatureCache:
    """Compute the audio features of a clip once and read them afterwards, in place of `processor.audio_features`.

    Several processes may share a folder. A file appears when it is complete; a damaged file is written again.

    Args:
        processor: The `PCMANetProcessor` that computes.
        folder: Folder of the features, 24 kB per frame for log-mel patches; it is created if it does not exist.
    """

    def __init__(self, processor: Any, folder: str | Path) -> None:
        self._compute = processor.audio_features
        self._settings = {"extractor": processor.feature_extractor.to_dict(), "windows": processor.audio_windows}
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(
        self, frames: Iterable[tuple[Any, ...]], audio: AudioBuffer, audio_alignment: str | None
    ) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
        """Add its features to each frame of a clip, as the processor does.

        Args:
            frames: Tuples that begin with a timestamp in seconds since the start of the audio. All of them are read first.
            audio: The audio of the clip.
            audio_alignment: As for the processor.

        Yields:
            Each frame with its features, float32.

        Raises:
            ValueError: As the processor.
        """
        frames = list(frames)
        audio.reaches(sys.maxsize)
        samples = audio.cut(0, audio.length).numpy()
        path = self._path(samples, [frame[0] for frame in frames], audio_alignment)
        features = _read_features(path)
        if features is None:
            features = np.stack([one.numpy() for _, one in self._compute(frames, audio, audio_alignment)])
            path.parent.mkdir(exist_ok=True)
            with atomic_file(path, durable=False) as temporary:
                np.save(temporary, features, allow_pickle=False)
        yield from zip(frames, torch.from_numpy(features), strict=True)

    def _path(self, samples: np.ndarray, timestamps: Sequence[float], audio_alignment: str | None) -> Path:
        """Return the file of a clip, named after a hash of samples and settings."""
        settings = {
            "version": CACHE_VERSION,
            **self._settings,
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
