"""Find, decode and check the photos and recordings of a paired dataset, and divide them into splits.

Every file is decoded once. With a cache folder the decoded arrays are kept in two files that all processes map into
memory; without it the files are decoded again for every clip.

Layouts of photos; every option is a path:

| layout | options | files |
|---|---|---|
| folder | path | images/ID.jpg (or png), masks/ID.png, photos.csv (id, optionally group, split), classes.txt or mask_values.json |
| coco | images, annotations | an instances file of COCO and the folder of its images |
| voc | path, optionally masks, list | JPEGImages/ID.jpg, SegmentationClass/ID.png (or `masks`), a text file of ids |

classes.txt has a name per mask value, from 0, which is `background`; mask_values.json has {"id": "name"} where the mask
value is id + 1. In masks, 0 is background and 255 is void; a mask of 0 and 255 only, or with a value that has no name, is
a problem.

Layouts of recordings:

| layout | options | files |
|---|---|---|
| table | path | a csv with the columns file, class and optionally group, split; paths relative to it |
| folders | path | one folder per class |
| esc50 | path | meta/esc50.csv, audio/ |
| fsd50k | path | FSD50K.ground_truth/{dev,eval}.csv, FSD50K.dev_audio/, FSD50K.eval_audio/ |
| vggsound | path, audio | vggsound.csv and the folder of ID_SECONDS files, some of which may be missing |

Any source may have `split: train`, val or test, for all of its files. Photos or recordings of one group (the source
recording, the speaker) are never in two splits. A file without a group in its table is a group of its own, together with
files in the same folder whose names differ only in the suffix.

Any source may be in a dataset on the Hub that holds these files: `repo: owner/name`, optionally with `revision`. Its
paths are relative to the root of the dataset, which is `.` in YAML. The files under these paths (for a table, all
files in its folder) are downloaded once, to the cache of huggingface_hub.
"""

import csv
import errno
import hashlib
import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from pycocotools import mask as coco_masks
from tqdm import tqdm

from modeling_pcmanet.audio_pcmanet import resample
from modeling_pcmanet.image_processing_pcmanet import PCMANetImageProcessor
from modeling_pcmanet.media_pcmanet import VIDEO_SUFFIXES, read_audio
from pcmanet.dataset_scripts import SPLITS
from pcmanet.dataset_scripts.avsbench.layouts import FOLDER_CLASSES, read_class_names
from pcmanet.dataset_scripts.metrics.segmentation import IGNORE_INDEX
from pcmanet.dataset_scripts.problems import IMAGE_ERRORS, DatasetError, Problem, suggest
from pcmanet.files import atomic_folder

from .settings import NO_PATHS, PairedSettings


logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo and its annotation.

    Attributes:
        id: Its name in its source.
        image: The image file.
        mask: The mask file, or for COCO the annotations of the photo: category id, segmentation and size (height,
            width).
        labels: Label of each mask value or category id.
        group: Photos of a group are in one split: the group in the table, or the path of the image without its suffix.
        split: "train", "val" or "test" if the source has splits.
    """

    id: str
    image: str
    mask: str | Sequence[Mapping[str, Any]]
    labels: Mapping[int, str]
    group: str
    split: str | None


@dataclass(frozen=True)
class Recording:
    """A recording and its labels.

    Attributes:
        file: The audio (or video) file.
        labels: The classes of its sounds.
        group: Recordings of a group are in one split: the group in the table, or the path of the file without its suffix.
        split: "train", "val" or "test" if the source has splits.
    """

    file: str
    labels: tuple[str, ...]
    group: str
    split: str | None


# Photos


VOC_LABELS = (
    *(
        "background",
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
    ),
    *("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def _folder_photos(source: Mapping[str, Any]) -> Iterator[Photo]:
    root = Path(source["path"])
    labels, suffixes = _folder_labels(root), _names_by_stem(root / "images", Image.registered_extensions())
    for row in _read_table(root / "photos.csv", ("id",)):
        name = row["id"]
        image, mask = root / "images" / suffixes.get(name, f"{name}.jpg"), root / "masks" / f"{name}.png"
        group = row.get("group") or str(root / "images" / name)
        yield Photo(name, str(image), str(mask), labels, group, _split(row, source))


def _folder_labels(root: Path) -> dict[int, str]:
    """Read the label of each mask value."""
    values = root / "mask_values.json"
    if not values.is_file():
        if (names := read_class_names(root)) is None:
            raise FileNotFoundError(errno.ENOENT, "Missing", str(root / FOLDER_CLASSES))
        return dict(enumerate(names[1:], start=1))
    labels = {int(key) + 1: str(name) for key, name in dict(json.loads(values.read_text(encoding="utf-8"))).items()}
    if wrong := [value - 1 for value in labels if not 0 < value < IGNORE_INDEX]:
        raise ValueError(f"Expected ids from 0 to {IGNORE_INDEX - 2} in {values.name}, got {wrong}")
    return labels


def _voc_photos(source: Mapping[str, Any]) -> Iterator[Photo]:
    root = Path(source["path"])
    masks, labels = Path(source.get("masks") or root / "SegmentationClass"), dict(enumerate(VOC_LABELS[1:], start=1))
    names = list(_names_by_stem(masks, (".png",)))
    if source.get("list"):
        names = Path(source["list"]).read_text(encoding="utf-8").split()
    for name in names:
        image, mask = root / "JPEGImages" / f"{name}.jpg", masks / f"{name}.png"
        yield Photo(name, str(image), str(mask), labels, str(image.with_suffix("")), source.get("split"))


def _coco_photos(source: Mapping[str, Any]) -> Iterator[Photo]:
    values = json.loads(Path(source["annotations"]).read_text(encoding="utf-8"))
    labels = {category["id"]: category["name"] for category in values["categories"]}
    annotations = defaultdict(list)
    for annotation in values["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    for image in values["images"]:
        path, size = Path(source["images"]) / image["file_name"], (image["height"], image["width"])
        # Small objects are in front of large ones.
        parts = sorted(annotations[image["id"]], key=lambda part: -part["area"])
        mask = [{"category": part["category_id"], "shape": part["segmentation"], "size": size} for part in parts]
        yield Photo(path.stem, str(path), mask, labels, str(path.with_suffix("")), source.get("split"))


# Recordings


AUDIO_SUFFIXES = (".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma")
MEDIA_SUFFIXES = VIDEO_SUFFIXES.union(AUDIO_SUFFIXES)


def _table_recordings(source: Mapping[str, Any]) -> Iterator[Recording]:
    table = Path(source["path"])
    for row in _read_table(table, ("file", "class")):
        file = table.parent / row["file"]
        yield Recording(str(file), (row["class"],), row.get("group") or str(file.with_suffix("")), _split(row, source))


def _folder_recordings(source: Mapping[str, Any]) -> Iterator[Recording]:
    for folder in sorted(path for path in Path(source["path"]).iterdir() if path.is_dir()):
        for path in sorted(folder.iterdir()):
            if _has_suffix(path, MEDIA_SUFFIXES):
                yield Recording(str(path), (folder.name,), str(path.with_suffix("")), source.get("split"))


def _esc50_recordings(source: Mapping[str, Any]) -> Iterator[Recording]:
    root = Path(source["path"])
    for row in _read_table(root / "meta" / "esc50.csv", ("filename", "category", "src_file")):
        file = str(root / "audio" / row["filename"])
        yield Recording(file, (row["category"],), row["src_file"], source.get("split"))


def _fsd50k_recordings(source: Mapping[str, Any]) -> Iterator[Recording]:
    root = Path(source["path"])
    for part in ("dev", "eval"):
        for row in _read_table(root / "FSD50K.ground_truth" / f"{part}.csv", ("fname", "labels")):
            file = root / f"FSD50K.{part}_audio" / f"{row['fname']}.wav"
            split = _split(row, source) if part == "dev" else source.get("split") or "test"
            yield Recording(str(file), tuple(row["labels"].split(",")), row["fname"], split)


def _vggsound_recordings(source: Mapping[str, Any]) -> Iterator[Recording]:
    folder, columns = Path(source["audio"]), ("video", "start", "label", "split")
    files = _names_by_stem(folder, MEDIA_SUFFIXES)
    rows = _read_table(Path(source["path"]), columns, header=False)
    names = [f"{row['video']}_{int(row['start']):06d}" for row in rows]
    missing = [name for name in names if name not in files]
    if len(missing) == len(names):
        raise ValueError(f"Expected files such as {names[0]}.wav in {folder}, got none" if names else "Empty table")
    if missing:
        # No copy is complete, because some of the videos are no longer online.
        logger.warning("%d of the %d recordings of %s are not in %s", len(missing), len(names), source["path"], folder)
    for row, name in zip(rows, names, strict=True):
        if name in files:
            yield Recording(str(folder / files[name]), (row["label"],), row["video"], _split(row, source))


def _names_by_stem(folder: Path, suffixes: Collection[str]) -> dict[str, str]:
    """Return the files in a folder that have one of the suffixes, sorted: stem -> file name."""
    return {path.stem: path.name for path in sorted(folder.iterdir()) if _has_suffix(path, suffixes)}


def _has_suffix(path: Path, suffixes: Collection[str]) -> bool:
    """Return whether a file has one of the suffixes, in any case, and is not one that a system adds (`._photo.jpg`)."""
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def _read_table(path: Path, columns: Sequence[str], *, header: bool = True) -> list[dict[str, str]]:
    """Read a csv file; raise ValueError if it lacks a column."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, None if header else list(columns))
        if missing := sorted(set(columns) - set(rows.fieldnames or ())):
            raise ValueError(f"Expected the columns {', '.join(columns)}, got no {', '.join(missing)}")
        return [{key: (value or "").strip() for key, value in row.items() if key} for row in rows]


def _split(row: Mapping[str, str], source: Mapping[str, Any]) -> str | None:
    """Return the split of a row; raise ValueError if it is unknown."""
    split = source.get("split") or row.get("split") or None
    if split not in (None, *SPLITS):
        raise ValueError(f"Expected one of {', '.join(SPLITS)} in the column split, got {split!r}")
    return split


# All sources


PHOTO_LAYOUTS: dict[str, tuple[Callable[[Mapping[str, Any]], Iterator[Photo]], tuple[str, ...], tuple[str, ...]]] = {
    "folder": (_folder_photos, ("path",), ()),
    "coco": (_coco_photos, ("images", "annotations"), ()),
    "voc": (_voc_photos, ("path",), ("masks", "list")),
}
RECORDING_LAYOUTS: dict[
    str, tuple[Callable[[Mapping[str, Any]], Iterator[Recording]], tuple[str, ...], tuple[str, ...]]
] = {
    "table": (_table_recordings, ("path",), ()),
    "folders": (_folder_recordings, ("path",), ()),
    "esc50": (_esc50_recordings, ("path",), ()),
    "fsd50k": (_fsd50k_recordings, ("path",), ()),
    "vggsound": (_vggsound_recordings, ("path", "audio"), ()),
}


def read_sources(sources: Sequence[Mapping[str, Any]], layouts: Mapping[str, Any]) -> tuple[list[Any], list[Problem]]:
    """List the photos or recordings of all sources; files may be missing, unless they are downloaded here.

    Args:
        sources: Layout and options of each source.
        layouts: `PHOTO_LAYOUTS` or `RECORDING_LAYOUTS`.

    Returns:
        The photos or recordings, and the problems of sources that cannot be read.
    """
    found: list[Any] = []
    problems: list[Problem] = []
    for source in sources:
        place = source.get("repo") or source.get("annotations") or source.get("path") or source["layout"]
        if wrong := _option_problem(source, layouts):
            problems.append(Problem("", str(place), wrong))
            continue
        try:
            local = _download(source) if "repo" in source else source
        except (OSError, ValueError) as error:
            problems.append(Problem("", str(place), _download_problem(error)))
            continue
        try:
            found += layouts[source["layout"]][0](local)
        except DatasetError as error:
            problems += error.problems
        except FileNotFoundError as error:
            owner = f" in the dataset {source['repo']}" if "repo" in source else ""
            problems.append(Problem("", str(error.filename), f"Missing; layout {source['layout']} needs it{owner}"))
        except (ValueError, OSError, KeyError, TypeError) as error:
            text = f"no {error}" if isinstance(error, KeyError) else str(error)
            problems.append(Problem("", str(place), f"Not in the layout {source['layout']}: {text}"))
    return found, problems


def _option_problem(source: Mapping[str, Any], layouts: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the layout or the options of a source."""
    if source["layout"] not in layouts:
        return f"Unknown layout {source['layout']!r}. Expected one of {', '.join(layouts)}."
    _, required, optional = layouts[source["layout"]]
    given = set(source) - set(NO_PATHS)
    if given - {*required, *optional} or set(required) - given:
        options = ", ".join((*required, *(f"optionally {name}" for name in optional)))
        return f"Expected the options {options} of the layout {source['layout']}, got {', '.join(sorted(given))}"
    return None


def _download(source: Mapping[str, Any]) -> dict[str, Any]:
    """Download the files of a source from its dataset on the Hub, and return the source with local paths."""
    paths = {key: PurePosixPath(value) for key, value in source.items() if key not in NO_PATHS}
    # The files that a table lists are next to it.
    needed = [path.parent if source["layout"] == "table" else path for path in paths.values()]
    patterns = [f"{path}{end}" for path in needed for end in ("", "/*")]
    folder = snapshot_download(
        source["repo"],
        repo_type="dataset",
        revision=source.get("revision"),
        allow_patterns=None if PurePosixPath() in needed else patterns,
    )
    return {**source, **{key: str(Path(folder) / path) for key, path in paths.items()}}


def _download_problem(error: Exception) -> str:
    """Return why the files of a dataset on the Hub are not available, and what to do."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"Not downloaded from the Hub's datasets: {reason} Check repo and revision, log in with `hf auth login` if the data "
        "set is gated or private, or leave out repo and give local paths."
    )


# Splits


def assign_splits(
    items: Sequence[Photo] | Sequence[Recording], strata: Sequence[str], fractions: Mapping[str, float]
) -> tuple[list[str], list[str]]:
    """Divide photos or recordings into splits, independently of their order.

    Groups that already have a split keep it. The others are ordered by a hash of their name, without the folder for
    groups that are paths, and divided by the fractions, separately for each class, so that rare classes are in every
    split. If no item has the split "val", groups with the split "train" are divided too.

    Args:
        items: The items.
        strata: Class of each item.
        fractions: Fraction of "val" and "test".

    Returns:
        The split of each item, and the names of groups whose items already have different splits.
    """
    fixed: dict[str, set[str]] = defaultdict(set)
    strata_of_group: dict[str, set[str]] = defaultdict(set)
    for item, stratum in zip(items, strata, strict=True):
        fixed[item.group] |= {item.split} if item.split else set()
        strata_of_group[item.group].add(stratum)
    contradicting = sorted(group for group, splits in fixed.items() if len(splits) > 1)
    complete = any("val" in splits for splits in fixed.values())
    splits = {group: min(own) for group, own in fixed.items() if own and (complete or own != {"train"})}
    pools: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for group in sorted(fixed.keys() - splits.keys(), key=lambda group: (_hash(PurePath(group).name), group)):
        pools[min(strata_of_group[group]), bool(fixed[group])].append(group)
    for (_, is_training), groups in pools.items():
        splits |= _divide(groups, fractions.get("val", 0), 0 if is_training else fractions.get("test", 0))
    return [splits[item.group] for item in items], contradicting


def _divide(groups: Sequence[str], val: float, test: float) -> dict[str, str]:
    """Divide ordered groups; test and val get at least one each, as long as one remains for training."""
    count = len(groups)
    tests = min(count - 1, max(round(count * test), 1)) if test else 0
    vals = min(count - 1 - tests, max(round(count * val), 1)) if val else 0
    return {
        group: "test" if place < tests else "val" if place < tests + vals else "train"
        for place, group in enumerate(groups)
    }


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def rarest_labels(labels: Sequence[Sequence[str]]) -> list[str]:
    """Return, for each item, its label that the fewest items have; an empty text for an item without labels."""
    counts = Counter(label for one in labels for label in set(one))
    return [min(one, key=lambda label: (counts[label], label), default="") for one in labels]


# Decoding


def decode_photo(photo: Photo, indices: Mapping[str, int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode a photo and its mask at the working size.

    Args:
        photo: The photo.
        indices: Class index of each label that belongs to a class.
        size: Longest side in pixels; smaller photos keep their size.

    Returns:
        uint8 (height, width, 3), RGB, and uint8 (height, width): class index, 0 background, 255 void.

    Raises:
        OSError: If a file is missing or cannot be decoded.
        ValueError: If the photo has more than 8 bits per channel, or its mask has another size, several channels, values
            without a label, or only 0 and 255.
    """
    values = {value: indices[label] for value, label in photo.labels.items() if label in indices}
    with Image.open(photo.image) as image:
        width, height = image.size
        scale = min(1.0, size / max(width, height))
        target = max(1, round(width * scale)), max(1, round(height * scale))
        image.draft("RGB", target)
        frame = np.asarray(PCMANetImageProcessor.to_rgb(image).resize(target, Image.Resampling.BILINEAR))
    if isinstance(photo.mask, str):
        mask = _read_mask(photo.mask, photo.labels, values)
    else:
        mask = _draw_mask(photo.mask, values)
    if mask is None:
        return frame, np.zeros(frame.shape[:2], dtype=np.uint8)
    if mask.shape != (height, width):
        raise ValueError(f"The mask is {mask.shape[1]}x{mask.shape[0]} pixels, the photo {width}x{height}")
    return frame, np.asarray(Image.fromarray(mask).resize(target, Image.Resampling.NEAREST))


def _read_mask(path: str, labels: Mapping[int, str], values: Mapping[int, int]) -> np.ndarray:
    """Read a mask file of one channel and translate its values to class indices; each value must have a label."""
    with Image.open(path) as image:
        if image.mode not in ("L", "P", "1"):
            raise ValueError(f"Expected one channel of class indices in {path}, got an image of mode {image.mode}")
        mask = np.asarray(image).astype(np.uint8)
    is_used = np.zeros(256, dtype=bool)
    is_used[mask] = True
    used = set(np.flatnonzero(is_used).tolist()) - {0}
    if used == {IGNORE_INDEX}:
        raise ValueError(
            f"Got only 0 (background) and 255 (void) in {path}, as in a binary mask. Write the mask value of the object's "
            "label, or leave out the photo if all of the object is void."
        )
    if unnamed := sorted(used - {IGNORE_INDEX, *labels}):
        named = ", ".join(f"{value} {label}" for value, label in labels.items())
        raise ValueError(f"Got mask values without a label in {path}: {unnamed}. Labels are {named:.400}.")
    table = np.zeros(256, dtype=np.uint8)
    table[list(values)] = list(values.values())
    table[IGNORE_INDEX] = IGNORE_INDEX
    return table[mask]


def _draw_mask(parts: Sequence[Mapping[str, Any]], values: Mapping[int, int]) -> np.ndarray | None:
    """Draw the annotations of COCO whose category is a class; None if there are none."""
    drawn = None
    for part in parts:
        if part["category"] not in values:
            continue
        height, width = part["size"]
        drawn = np.zeros((height, width), dtype=np.uint8) if drawn is None else drawn
        drawn[_decode_shape(part["shape"], height, width, part["category"])] = values[part["category"]]
    return drawn


def _decode_shape(shape: Any, height: int, width: int, category: int) -> np.ndarray:
    """Return bool (height, width), the pixels of polygons, or of a run-length encoding that may be compressed."""
    if isinstance(shape, list) and shape and all(isinstance(one, list) and len(one) >= 6 for one in shape):
        return coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(shape, height, width))) > 0
    if isinstance(shape, dict) and isinstance(shape.get("counts"), list | str) and "size" in shape:
        if list(shape["size"]) != [height, width]:
            raise ValueError(
                f"The run-length encoding is for {shape['size'][::-1]} pixels, the photo has {[width, height]}"
            )
        encoded: Any = shape
        if isinstance(shape["counts"], list):
            encoded = coco_masks.frPyObjects(encoded, height, width)
        return coco_masks.decode(encoded) > 0
    expected = "polygons of three points or more, or a run-length encoding with counts and size"
    raise ValueError(f"Expected {expected}, as segmentation of an object of category {category}, got {shape!r:.80}")


def decode_recording(recording: Recording, sampling_rate: int, seconds: float) -> np.ndarray:
    """Decode the beginning of a recording as mono.

    Args:
        recording: The recording.
        sampling_rate: In hertz.
        seconds: Maximum length.

    Returns:
        int16 (samples,).

    Raises:
        OSError: If the file is missing.
        ValueError: If it has no audio that can be decoded, or what is decoded is silent.
    """
    waveform, rate = read_audio(recording.file)
    mono = torch.from_numpy(waveform[:, : round(seconds * rate)].mean(axis=0, dtype=np.float64))
    samples = resample(mono, rate, sampling_rate).numpy()
    values = np.rint(samples * 32767).clip(-32768, 32767).astype(np.int16)
    if not values.any():
        if waveform.shape[1] <= round(seconds * rate):
            raise ValueError("The recording is silent")
        raise ValueError(
            f"The first {seconds:g} s of the recording are silent, and the rest is not used (recording_seconds of clips). Cut "
            "the silence at its start, or set a larger recording_seconds."
        )
    return values


# The library


VERSION = 1  # of the cached arrays
BATCH = 64  # files decoded at a time, which are held in memory
PHOTOS, RECORDINGS, INDEX = "photos.bin", "recordings.bin", "index.json"
UNKNOWN, BACKGROUND = "unknown", "background"  # roles of recordings that belong to no class


class Library:
    """The photos and recordings of a paired dataset.

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
        areas: For each photo, the fraction of its pixels that each class covers, by class index.
        roles: For each recording, the class index, or `UNKNOWN` or `BACKGROUND`.
        identity: Changes with the settings on which decoding depends, with the state of any file, and with what the
            tables say about it: labels, group and split.

    Raises:
        DatasetError: If sources, labels or files cannot be used; the error lists all problems.
    """

    def __init__(self, settings: PairedSettings, *, progress: bool = False, num_threads: int = 2) -> None:
        self.settings = settings
        photos, photo_problems = read_sources(settings.photos, PHOTO_LAYOUTS)
        recordings, recording_problems = read_sources(settings.recordings, RECORDING_LAYOUTS)
        problems = [*photo_problems, *recording_problems]
        if not problems:
            problems = list(_find_unknown_labels(settings, photos, recordings))
        if problems:
            raise DatasetError(problems)
        with_roles = [(one, role) for one in recordings if (role := _role(one, settings)) is not None]
        recordings, self.roles = [one for one, _ in with_roles], [role for _, role in with_roles]
        self._cache_name = _name_cache(settings, photos, recordings)
        self.identity = _identify(self._cache_name, photos, recordings)
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
        return Path(self.settings.cache or "") / self._cache_name

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
        """Decode every file and return where its arrays are; DatasetError lists all files that cannot be used."""
        clips, problems = self.settings.clips, []
        shown = partial(tqdm, disable=not progress, unit="file")
        # Without a cache, the files are checked and indexed, and their arrays are discarded.
        paths = [folder / name if folder else Path(os.devnull) for name in (PHOTOS, RECORDINGS)]
        read_photo = partial(decode_photo, indices=self._photo_labels, size=clips.image_size)
        read_recording = partial(decode_recording, sampling_rate=clips.sampling_rate, seconds=clips.recording_seconds)
        photo_places, recording_places = [], []
        with paths[0].open("wb") as file:
            done = _decode(photos, read_photo, threads)
            for number, result in enumerate(shown(done, desc="reading photos", total=len(photos))):
                if isinstance(result, Exception):
                    problems.append(Problem(photos[number].id, photos[number].image, str(result)))
                    continue
                image, mask = result
                areas = _areas(mask)
                photo_places.append({"number": number, "start": file.tell(), "size": mask.shape, "areas": areas})
                if areas:
                    file.write(image.tobytes() + mask.tobytes())
        with paths[1].open("wb") as file:
            done = _decode(recordings, read_recording, threads)
            for number, result in enumerate(shown(done, desc="reading recordings", total=len(recordings))):
                if isinstance(result, Exception):
                    problems.append(Problem("", recordings[number].file, str(result)))
                    continue
                recording_places.append((file.tell() // result.itemsize, len(result)))
                file.write(result.tobytes())
        if problems:
            raise DatasetError(problems)
        return {"photos": photo_places, "recordings": recording_places}

    def _split(self) -> tuple[list[str], list[str]]:
        """Return the split of each photo and of each recording."""
        fractions, names = self.settings.splits, self.settings.class_names
        strata = rarest_labels([[names[index] for index in areas] for areas in self.areas])
        photo_splits, mixed_photos = assign_splits(self.photos, strata, fractions)
        labels = [role if isinstance(role, str) else names[role] for role in self.roles]
        # If a role has several labels (speech, sneezes), every label is in every split.
        strata = [f"{label}/{one.labels[0]}" for label, one in zip(labels, self.recordings, strict=True)]
        recording_splits, mixed = assign_splits(self.recordings, strata, fractions)
        files = {
            group: [(one.image, one.split) for one in self.photos if one.group == group] for group in mixed_photos
        }
        files |= {group: [(one.file, one.split) for one in self.recordings if one.group == group] for group in mixed}
        if files:
            path = self.settings.path
            raise DatasetError(
                [Problem(group, f"{path}, group {group}", _describe_mixed(named)) for group, named in files.items()]
            )
        return photo_splits, recording_splits


def _describe_mixed(files: Sequence[tuple[str, str | None]]) -> str:
    """Describe the problem of a group whose files have different splits, with a file of each split."""
    examples = {split: file for file, split in files if split}
    listed = ", ".join(f"{file} in {split}" for split, file in examples.items())
    return f"The group has files in several splits: {listed}. Give all of them one split."


def _decode(items: Sequence[Any], read: Callable[[Any], Any], threads: int) -> Iterator[Any]:
    """Yield what each item decodes to, or the error that says why it cannot be used."""

    def attempt(item: Any) -> Any:
        try:
            return read(item)
        except (*IMAGE_ERRORS, Image.DecompressionBombError) as error:
            if not isinstance(error, FileNotFoundError):
                return error
            return FileNotFoundError(f"Missing: {error.filename}" if error.filename else "Missing")

    for first in range(0, len(items), BATCH):
        yield from _thread_pool(threads).map(attempt, items[first : first + BATCH])


@cache
def _thread_pool(threads: int) -> ThreadPoolExecutor:
    """Return threads that are kept for the next call.

    MKL frees the memory of finished threads after they are joined. A process that is forked at that moment waits
    forever in its next matrix product.
    """
    return ThreadPoolExecutor(threads, thread_name_prefix="decode")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_thread_pool.cache_clear)  # a forked process has no threads


def _areas(mask: np.ndarray) -> dict[int, float]:
    """Return the fraction of the pixels that each class covers."""
    counts = np.bincount(mask.ravel(), minlength=256)
    counts[IGNORE_INDEX] = 0
    return {int(index): float(counts[index] / mask.size) for index in np.flatnonzero(counts[1:]) + 1}


def _role(recording: Recording, settings: PairedSettings) -> int | str | None:
    """Return the class index of a recording, `UNKNOWN` or `BACKGROUND`; None if it has no role or two classes."""
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
    entries = [("class", one) for one in settings.classes] + [("other sound", one) for one in settings.other_sounds]
    used = [
        (f"{kind} {one.name!r}, {name}", label, known)
        for name, known in (("photos", photo_labels), ("sounds", sound_labels), ("similar", sound_labels))
        for kind, one in entries
        for label in getattr(one, name)
    ]
    used += [(name, label, sound_labels) for name in (UNKNOWN, BACKGROUND) for label in getattr(settings, name)]
    for place, label, known in used:
        if label not in known:
            yield Problem(
                "", str(settings.path), f"{place}: no source has the label {label!r}. {suggest(label, known)}"
            )


def _identify(cache_name: str, photos: Sequence[Photo], recordings: Sequence[Recording]) -> str:
    """Return a name for the decoded arrays with their labels, groups and splits: 32 hexadecimal digits."""
    rows = [(one.group, one.split) for one in photos] + [(one.labels, one.group, one.split) for one in recordings]
    return hashlib.sha256(repr((cache_name, rows)).encode()).hexdigest()[:32]


def _name_cache(settings: PairedSettings, photos: Sequence[Photo], recordings: Sequence[Recording]) -> str:
    """Return a name for the decoded arrays: 32 hexadecimal digits."""
    clips = settings.clips
    decoding = [VERSION, clips.image_size, clips.sampling_rate, clips.recording_seconds]
    decoding += [[one.name, one.photos, one.sounds] for one in settings.classes]
    # Photos of a source share their labels.
    decoding += [list(labels.items()) for labels in {id(one.labels): one.labels for one in photos}.values()]
    paths = [path for one in photos for path in (one.image, *([one.mask] if isinstance(one.mask, str) else []))]
    # The path of a downloaded photo contains the commit, which determines its annotations too.
    paths += [str(one["annotations"]) for one in settings.photos if "annotations" in one and "repo" not in one]
    digest = hashlib.sha256(json.dumps(decoding).encode())
    for path in (*paths, *(one.file for one in recordings)):
        state = os.stat(path) if os.path.exists(path) else None
        line = f"{path}\0{state and (state.st_size, state.st_mtime_ns)}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]
