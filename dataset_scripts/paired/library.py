"""The photos and recordings of a paired data set, checked, divided into splits and ready to be drawn.

Every file is decoded once. With a cache folder the decoded arrays are kept in two files that all processes map into
memory; without it the files are decoded again for every clip.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from pcmanet.dataset_scripts.avsbench.layouts import AVSBenchError, Problem
from pcmanet.dataset_scripts.avsbench.rows import IMAGE_ERRORS
from pcmanet.dataset_scripts.metrics.segmentation import IGNORE_INDEX
from pcmanet.files import atomic_folder

from .settings import PairedSettings, suggest
from .sources import (
    PHOTO_LAYOUTS,
    RECORDING_LAYOUTS,
    Photo,
    Recording,
    assign_splits,
    decode_photo,
    decode_recording,
    rarest_labels,
    read_sources,
)


VERSION = 1  # of the cached arrays
BATCH = 64  # files decoded at a time, which are held in memory
PHOTOS, RECORDINGS, INDEX = "photos.bin", "recordings.bin", "index.json"
UNKNOWN, BACKGROUND = "unknown", "background"  # roles of recordings that belong to no class


class Library:
    """The photos and recordings of a paired data set.

    Args:
        settings: The settings.
        progress: Whether to show progress bars.
        num_threads: Threads that decode.

    Attributes:
        settings: The settings.
        photos: Photos with at least one object of a class.
        recordings: Recordings with a role.
        photo_splits: Split of each photo.
        recording_splits: Split of each recording.
        areas: Of each photo, the fraction of its pixels that each class has, by class index.
        roles: Of each recording, the class index, or `UNKNOWN` or `BACKGROUND`.
        identity: Changes with the settings on which decoding depends and with the state of any file.

    Raises:
        AVSBenchError: If sources, labels or files cannot be used; the error lists all problems.
    """

    def __init__(self, settings: PairedSettings, *, progress: bool = False, num_threads: int = 2) -> None:
        self.settings = settings
        photos, photo_problems = read_sources(settings.photos, PHOTO_LAYOUTS)
        recordings, recording_problems = read_sources(settings.recordings, RECORDING_LAYOUTS)
        problems = [*photo_problems, *recording_problems]
        if not problems:
            problems = list(_find_unknown_labels(settings, photos, recordings))
        if problems:
            raise AVSBenchError(problems)
        with_roles = [(one, role) for one in recordings if (role := _role(one, settings)) is not None]
        recordings, self.roles = [one for one, _ in with_roles], [role for _, role in with_roles]
        self.identity = _identify(settings, photos, recordings)
        index = self._prepare(photos, recordings, progress, num_threads)
        self._photo_places = [entry for entry in index["photos"] if entry["areas"]]
        self._recording_places = index["recordings"]
        self.photos = [photos[entry["number"]] for entry in self._photo_places]
        self.recordings = recordings
        self.areas = [{int(key): area for key, area in entry["areas"].items()} for entry in self._photo_places]
        self.photo_splits, self.recording_splits = self._split()

    def photo(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a photo and its mask.

        Args:
            number: Position in `photos`.

        Returns:
            uint8 (height, width, 3), RGB, and uint8 (height, width): class index, 0 background, 255 void. Read-only.
        """
        if self.settings.cache is None:
            return decode_photo(self.photos[number], self._photo_labels, self.settings.clips.image_size)
        place = self._photo_places[number]
        start, (height, width) = place["start"], place["size"]
        pixels = height * width
        image = self._photo_file[start : start + 3 * pixels].reshape(height, width, 3)
        return image, self._photo_file[start + 3 * pixels : start + 4 * pixels].reshape(height, width)

    def recording(self, number: int) -> np.ndarray:
        """Return a recording, int16 (samples,), by its position in `recordings`. Read-only."""
        clips = self.settings.clips
        if self.settings.cache is None:
            return decode_recording(self.recordings[number], clips.sampling_rate, clips.recording_seconds)
        start, count = self._recording_places[number]
        return self._recording_file[start : start + count]

    @cached_property
    def _photo_labels(self) -> dict[str, int]:
        return {label: k for k, one in enumerate(self.settings.classes, start=1) for label in one.photos}

    @property
    def _folder(self) -> Path:
        return Path(self.settings.cache or "") / self.identity

    @cached_property
    def _photo_file(self) -> np.ndarray:
        return np.memmap(self._folder / PHOTOS, dtype=np.uint8, mode="r")

    @cached_property
    def _recording_file(self) -> np.ndarray:
        return np.memmap(self._folder / RECORDINGS, dtype=np.int16, mode="r")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the mapped files, which a worker that is not forked opens itself."""
        return {key: value for key, value in vars(self).items() if key not in ("_photo_file", "_recording_file")}

    def _prepare(
        self, photos: Sequence[Photo], recordings: Sequence[Recording], progress: bool, threads: int
    ) -> dict[str, Any]:
        """Decode every file, write the cache if there is one, and return the index."""
        if self.settings.cache is None:
            return self._decode_all(photos, recordings, None, progress, threads)
        if not (self._folder / INDEX).is_file():
            with atomic_folder(self._folder, durable=False) as folder:
                index = self._decode_all(photos, recordings, folder, progress, threads)
                (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
        return json.loads((self._folder / INDEX).read_text(encoding="utf-8"))

    def _decode_all(
        self,
        photos: Sequence[Photo],
        recordings: Sequence[Recording],
        folder: Path | None,
        progress: bool,
        threads: int,
    ) -> dict[str, Any]:
        """Decode every file and return where its arrays are; AVSBenchError lists all files that cannot be used."""
        clips, problems = self.settings.clips, []
        shown = partial(tqdm, disable=not progress, unit="file")
        paths = [folder and folder / name for name in (PHOTOS, RECORDINGS)]
        read_photo = partial(decode_photo, indexes=self._photo_labels, size=clips.image_size)
        read_recording = partial(decode_recording, sampling_rate=clips.sampling_rate, seconds=clips.recording_seconds)
        photo_places, recording_places = [], []
        with _Appending(paths[0]) as file:
            done = _decode(photos, read_photo, threads)
            for number, result in enumerate(shown(done, desc="reading photos", total=len(photos))):
                if isinstance(result, Exception):
                    problems.append(Problem(photos[number].id, photos[number].image, str(result)))
                    continue
                image, mask = result
                areas = _areas(mask)
                start = file.append(image, mask) if areas else 0
                photo_places.append({"number": number, "start": start, "size": mask.shape, "areas": areas})
        with _Appending(paths[1]) as file:
            done = _decode(recordings, read_recording, threads)
            for number, result in enumerate(shown(done, desc="reading recordings", total=len(recordings))):
                if isinstance(result, Exception):
                    problems.append(Problem("", recordings[number].file, str(result)))
                    continue
                recording_places.append((file.append(result) // 2, len(result)))
        if problems:
            raise AVSBenchError(problems)
        return {"photos": photo_places, "recordings": recording_places}

    def _split(self) -> tuple[list[str], list[str]]:
        """Return the split of each photo and of each recording."""
        fractions, names = self.settings.splits, self.settings.class_names
        strata = rarest_labels([[names[index] for index in areas] for areas in self.areas])
        photo_splits, mixed_photos = assign_splits(self.photos, strata, fractions)
        labels = [role if isinstance(role, str) else names[role] for role in self.roles]
        # Of a role with several labels (speech, sneezes), every label is in every split.
        strata = [f"{label}/{one.labels[0]}" for label, one in zip(labels, self.recordings, strict=True)]
        recording_splits, mixed = assign_splits(self.recordings, strata, fractions)
        if groups := [*mixed_photos, *mixed]:
            path = str(self.settings.path)
            problem = "The group has files in several splits. Give all of them one split."
            raise AVSBenchError([Problem(group, f"{path}, group {group}", problem) for group in groups])
        return photo_splits, recording_splits


class _Appending:
    """Append arrays to a file, or to nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.position = 0
        self.file: BinaryIO | None = None

    def __enter__(self) -> "_Appending":
        self.file = self.path.open("wb") if self.path else None
        return self

    def __exit__(self, *error: object) -> None:
        if self.file:
            self.file.close()

    def append(self, *arrays: np.ndarray) -> int:
        """Append arrays and return the position of the first one in bytes."""
        start = self.position
        for array in arrays:
            if self.file:
                self.file.write(np.ascontiguousarray(array).data)
            self.position += array.nbytes
        return start


def _decode(items: Sequence[Any], read: Callable[[Any], Any], threads: int) -> Iterator[Any]:
    """Yield what each item decodes to, or the error that tells why it cannot be used."""

    def attempt(item: Any) -> Any:
        try:
            return read(item)
        except (*IMAGE_ERRORS, Image.DecompressionBombError) as error:
            return FileNotFoundError(f"Missing: {error.filename}") if isinstance(error, FileNotFoundError) else error

    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(items), BATCH):
            yield from pool.map(attempt, items[first : first + BATCH])


def _areas(mask: np.ndarray) -> dict[int, float]:
    """Return the fraction of the pixels that each class has."""
    counts = np.bincount(mask.ravel(), minlength=256)
    counts[IGNORE_INDEX] = 0
    return {int(index): float(counts[index] / mask.size) for index in np.flatnonzero(counts[1:]) + 1}


def _role(recording: Recording, settings: PairedSettings) -> int | str | None:
    """Return the class index of a recording, `UNKNOWN` or `BACKGROUND`; None if it has no role, or those of two classes."""
    labels = set(recording.labels)
    classes = [k for k, one in enumerate(settings.classes, start=1) if labels & set(one.sounds)]
    if classes:
        return classes[0] if len(classes) == 1 else None
    return UNKNOWN if labels & set(settings.unknown) else BACKGROUND if labels & set(settings.background) else None


def _find_unknown_labels(
    settings: PairedSettings, photos: Sequence[Photo], recordings: Sequence[Recording]
) -> Iterable[Problem]:
    """Yield a problem for each label of the settings that no source has."""
    vocabularies = {id(one.labels): one.labels for one in photos}.values()
    photo_labels = sorted({label for labels in vocabularies for label in labels.values()})
    sound_labels = sorted({label for one in recordings for label in one.labels})
    used = [(f"class {one.name!r}, photos", label, photo_labels) for one in settings.classes for label in one.photos]
    used += [(f"class {one.name!r}, sounds", label, sound_labels) for one in settings.classes for label in one.sounds]
    used += [(name, label, sound_labels) for name in (UNKNOWN, BACKGROUND) for label in getattr(settings, name)]
    for place, label, known in used:
        if label not in known:
            yield Problem(
                "", str(settings.path), f"{place}: no source has the label {label!r}. {suggest(label, known)}"
            )


def _identify(settings: PairedSettings, photos: Sequence[Photo], recordings: Sequence[Recording]) -> str:
    """Return a name for the decoded arrays: 32 hexadecimal digits."""
    clips = settings.clips
    decoding = [VERSION, clips.image_size, clips.sampling_rate, clips.recording_seconds]
    decoding += [[one.name, one.photos, one.sounds] for one in settings.classes]
    paths = [path for one in photos for path in (one.image, *([one.mask] if isinstance(one.mask, str) else []))]
    paths += [str(source["annotations"]) for source in settings.photos if "annotations" in source]
    digest = hashlib.sha256(json.dumps(decoding).encode())
    for path in (*paths, *(one.file for one in recordings)):
        state = os.stat(path) if os.path.exists(path) else None
        line = f"{path}\0{state and (state.st_size, state.st_mtime_ns)}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]
