"""Collate clips or rows of a dataset into a batch for the model, with the processor."""

import copy
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

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


TIME_TOLERANCE = 1e-3  # seconds; times that differ by less are equal


class ClipCollator:
    """Collate function that passes clips to the processor, which builds the batch (see its module docstring).

    Args:
        processor: A `PCMANetProcessor`; it determines the image size and the audio features.
        binary: Whether labels are 0 (silent) and 1 (sounding), or class indices.
        augmentation: Changes to training clips; None for evaluation. Its generator is seeded from torch's generator,
            which differs between workers and epochs and follows `set_seed`.
        audio_cache: Stores audio features or embeddings, so that they are computed once. It cannot be combined with an
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
        audio_cache: "AudioFeatureCache | None" = None,
    ) -> None:
        if audio_cache is not None and augmentation is not None and augmentation.changes_audio:
            raise ValueError(
                "Expected an augmentation without audio changes together with audio_cache. Set loudness, mixing and "
                "replacement of the augmentation to 0, or leave out the cache."
            )
        self.processor: Any = copy.copy(processor)  # datasets do not import the processor
        if audio_cache is not None:
            self.processor.audio_features = audio_cache
        self.binary = binary
        self.augmentation = augmentation
        self.audio_cache = audio_cache

    def __call__(self, clips: Sequence[SyntheticClip | Mapping[str, Any] | ClipArrays]) -> BatchFeature:
        """Build one batch; `annotated_frames` marks the annotated frames.

        With a cache of embeddings, `audio_embeds` replace `input_features`.

        Args:
            clips: Clips of Sounding Shapes, or rows of `load_avsbench` or of its export, of any lengths.

        Returns:
            The batch.

        Raises:
            ValueError: If a clip cannot be used; the message names it.
        """
        arrays = [to_arrays(clip, self.binary) for clip in clips]
        if self.augmentation is not None:
            arrays = self.augmentation(arrays, np.random.default_rng(int(torch.randint(2**63 - 1, (), device="cpu"))))
        arrays = [self._with_padded_audio(clip) for clip in arrays]
        given = [self._given_features(clip) for clip in arrays]
        reach = self.processor.audio_reach
        audio = [_crop_audio(clip, features, reach) for clip, features in zip(arrays, given, strict=True)]
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
        for values, features in zip(batch["input_features"], given, strict=True):
            if features is not None:
                values[: len(features)] = features
        if self.audio_cache is not None and self.audio_cache.embed is not None:
            batch["audio_embeds"] = batch.pop("input_features")
        return batch

    # AVSBench's preparation keeps clips whose audio is too short. It repeats the last log-mel patch (S4, MS3) or
    # appends zeros (AVSS): the `short_clip` rule of the feature extractor. For other features, the missing audio is
    # silence.

    def _with_padded_audio(self, clip: ClipArrays) -> ClipArrays:
        """Append silence to audio that is too short, unless its features are log-mel patches."""
        missing = _missing_seconds(clip)
        if missing <= SHORT_AUDIO or self.processor.audio_windows is None:
            return clip
        samples = round(missing * (clip.sampling_rate or 1))
        return replace(clip, waveform=np.pad(cast(np.ndarray, clip.waveform), ((0, 0), (0, samples))))

    def _given_features(self, clip: ClipArrays) -> torch.Tensor | None:
        """Return features that replace the processor's, (frames, ...): from the dataset, or for short audio."""
        if clip.log_mel is not None:
            check_log_mel(self.processor)
            features = torch.from_numpy(clip.log_mel)
            return features if self.audio_cache is None else self.audio_cache.recall_given(features)
        if _missing_seconds(clip) <= SHORT_AUDIO:
            return None
        pieces = iter([(to_mono(cast(np.ndarray, clip.waveform)), clip.sampling_rate or 1)])
        sound = AudioBuffer(pieces, self.processor.feature_extractor.sampling_rate)
        frames = [(time,) for time in clip.timestamps.tolist()]
        return torch.stack([patch for _, patch in self.processor.audio_features(frames, sound, "consecutive")])


def check_log_mel(processor: Any) -> None:
    """Raise ValueError if the features of a processor cannot be replaced by the published log-mel features.

    Args:
        processor: A `PCMANetProcessor`.
    """
    if processor.audio_windows is not None:
        raise ValueError(
            "log_mel gives log-mel patches, but the audio encoder needs the features of "
            f"{type(processor.feature_extractor).__name__}. Leave log_mel out, or use an audio encoder for patches."
        )


def real_frames(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return which frames of a batch are real, bool (batch, frames); without padding, the processor sets no mask."""
    pixels = batch["pixel_values"]
    return batch.get("frame_mask", torch.ones(pixels.shape[:2], dtype=torch.bool, device=pixels.device))


def _missing_seconds(clip: ClipArrays) -> float:
    """Return how much audio a clip of AVSBench lacks, in seconds; 0 for other clips and those with features."""
    if clip.log_mel is not None or clip.waveform is None or not _has_regular_timestamps(clip):
        return 0.0
    return len(clip.frames) - clip.waveform.shape[-1] / (clip.sampling_rate or 1)


def _has_regular_timestamps(clip: ClipArrays) -> bool:
    """Return whether the frames have the timestamps of AVSBench, for which the processor handles short audio itself."""
    times = np.arange(len(clip.timestamps)) + SAMPLING_OFFSET
    return bool((np.abs(clip.timestamps - times) < TIME_TOLERANCE).all())


def _crop_audio(clip: ClipArrays, features: torch.Tensor | None, reach: float) -> tuple[np.ndarray, int]:
    """Return the audio up to the last sample that any frame needs; silence if features are given.

    Args:
        clip: The clip.
        features: Its given features, or None.
        reach: How many seconds after a frame its audio extends.
    """
    if features is not None or clip.waveform is None or clip.sampling_rate is None:
        return np.zeros(len(clip.frames) * SAMPLING_RATE, dtype=np.float32), SAMPLING_RATE
    end = clip.timestamps.max() - SAMPLING_OFFSET + 1.0 + reach
    return clip.waveform[:, : max(1, round(end * clip.sampling_rate))], clip.sampling_rate


def _segmentation_maps(clip: ClipArrays) -> list[np.ndarray | None]:
    """Return one mask per frame, None where the frame is not annotated."""
    return [mask if annotated else None for mask, annotated in zip(clip.masks, clip.annotated_frames, strict=True)]


# The cache of audio features and embeddings


CACHE_VERSION = 3  # of the stored values; a higher version invalidates all earlier files
CHECKSUM_BYTES = hashlib.sha256().digest_size


class AudioFeatureCache:
    """Compute the audio features or embeddings of a clip once, then read them; replaces `processor.audio_features`.

    Several processes may share a folder. A file appears only when it is complete; a damaged file is written again.
    Embeddings are computed clip by clip, so they do not depend on the batch in which a clip first occurs.

    Args:
        processor: The `PCMANetProcessor` that computes the features.
        folder: Folder of the files, 24 kB per frame for log-mel patches; it is created if it does not exist.
        embed: Frozen audio encoder, which maps the features (frames, ...) to embeddings (frames, width) on the CPU.
            With it, the cache stores and returns embeddings, which take less space.
        encoder: Identifies the weights and settings of `embed`.
    """

    def __init__(
        self,
        processor: Any,
        folder: str | Path,
        *,
        embed: Callable[[torch.Tensor], torch.Tensor] | None = None,
        encoder: str | None = None,
    ) -> None:
        self._compute = processor.audio_features
        self._settings = {
            "version": CACHE_VERSION,
            "extractor": processor.feature_extractor.to_dict(),
            "windows": processor.audio_windows,
            "encoder": encoder,
        }
        self.embed = embed
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(
        self, frames: Iterable[tuple[Any, ...]], audio: AudioBuffer, audio_alignment: str | None
    ) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
        """Add its features or embedding to each frame of a clip, as the processor does.

        Args:
            frames: Tuples that begin with a timestamp in seconds since the start of the audio. All are read before any
                is yielded.
            audio: The audio of the clip.
            audio_alignment: As for the processor.

        Yields:
            Each frame with its features or embedding, float32.

        Raises:
            ValueError: As for the processor.
        """
        frames = list(frames)
        audio.reaches(sys.maxsize)
        settings = {"timestamps": [frame[0] for frame in frames], "audio_alignment": audio_alignment}
        values = self._recall(
            audio.cut(0, audio.length).numpy(),
            settings,
            lambda: torch.stack([one for _, one in self._compute(frames, audio, audio_alignment)]),
        )
        yield from zip(frames, values, strict=True)

    def recall_given(self, features: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of features that are part of a dataset, or the features themselves without `embed`.

        Args:
            features: (frames, ...), float32.
        """
        return features if self.embed is None else self._recall(features.numpy(), {}, lambda: features)

    @torch.no_grad()
    def _recall(
        self, content: np.ndarray, settings: dict[str, Any], compute: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """Read what is stored for audio samples or features; else compute and store features or embeddings."""
        path = self._path(content, settings)
        stored = _read(path)
        if stored is not None:
            return torch.from_numpy(stored)
        values = compute()
        values = values if self.embed is None else self.embed(values).float()
        _write(path, values.numpy())
        return values

    def _path(self, content: np.ndarray, settings: dict[str, Any]) -> Path:
        """Return the file of a clip, named after a hash of samples and settings."""
        settings = {**self._settings, "content": [content.dtype.str, content.shape], **settings}
        digest = hashlib.sha256(
            json.dumps(settings, sort_keys=True, default=lambda value: np.asarray(value).tolist()).encode()
        )
        digest.update(np.ascontiguousarray(content).data)
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name}.npy"


def _write(path: Path, values: np.ndarray) -> None:
    """Write an array and, after it, its checksum, which `np.load` does not read."""
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    path.parent.mkdir(exist_ok=True)
    with atomic_file(path, durable=False) as temporary:
        temporary.write_bytes(file.getvalue() + hashlib.sha256(file.getvalue()).digest())


def _read(path: Path) -> np.ndarray | None:
    """Read an array, or return None if it does not exist or is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    content, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if hashlib.sha256(content).digest() != checksum:
        return None
    return np.load(io.BytesIO(content), allow_pickle=False)
