"""Find the photos and recordings of a paired data set, decode them, and divide them into splits.

Layouts of photos; every option is a path:

| layout | options | files |
|---|---|---|
| folder | path | images/ID.jpg (or png), masks/ID.png, photos.csv (id, optionally group, split), classes.txt or mask_values.json |
| coco | images, annotations | an instances file of COCO and the folder of its images |
| voc | path, optionally masks, list | JPEGImages/ID.jpg, SegmentationClass/ID.png (or `masks`), a text file of ids |

classes.txt has a name per mask value, from 0; mask_values.json has {"id": "name"} where the mask value is id + 1. In masks 0
is background and 255 is void.

Layouts of recordings:

| layout | options | files |
|---|---|---|
| table | path | a csv with the columns file, class and optionally group, split; paths relative to it |
| folders | path | one folder per class |
| esc50 | path | meta/esc50.csv, audio/ |
| fsd50k | path | FSD50K.ground_truth/{dev,eval}.csv, FSD50K.dev_audio/, FSD50K.eval_audio/ |
| vggsound | path, audio | vggsound.csv and the folder of ID_SECONDS files |

Any source may have `split: train`, val or test, for all of its files. Photos or recordings of one group (the photo itself,
the source recording, the speaker) are never in two splits.
"""

import csv
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_masks

from modeling_pcmanet.audio_pcmanet import resample
from modeling_pcmanet.media_pcmanet import read_audio
from pcmanet.dataset_scripts.avsbench.layouts import SPLITS, Problem
from pcmanet.dataset_scripts.metrics.segmentation import IGNORE_INDEX


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo and its annotation.

    Attributes:
        id: Its name in its source.
        image: The image file.
        mask: The mask file, or of COCO the annotations of the photo: category id, segmentation and size (height, width).
        labels: Label of each mask value or category id.
        group: Photos of a group are in one split.
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
        labels: What sounds in it.
        group: Recordings of a group are in one split.
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
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def _folder_photos(source: Mapping[str, Any]) -> Iterator[Photo]:
    root = Path(source["path"])
    labels, suffixes = _folder_labels(root), {path.stem: path.name for path in sorted((root / "images").iterdir())}
    for row in _read_table(root / "photos.csv", ("id",)):
        name = row["id"]
        image, mask = root / "images" / suffixes.get(name, f"{name}.jpg"), root / "masks" / f"{name}.png"
        yield Photo(name, str(image), str(mask), labels, row.get("group") or name, _split(row, source))


def _folder_labels(root: Path) -> dict[int, str]:
    """Read the label of each mask value."""
    values = root / "mask_values.json"
    if values.is_file():
        return {int(key) + 1: str(name) for key, name in json.loads(values.read_text(encoding="utf-8")).items()}
    names = [line.strip() for line in (root / "classes.txt").read_text(encoding="utf-8").splitlines() if line.strip()]
    return dict(enumerate(names[1:], start=1))


def _voc_photos(source: Mapping[str, Any]) -> Iterator[Photo]:
    root = Path(source["path"])
    masks, labels = Path(source.get("masks") or root / "SegmentationClass"), dict(enumerate(VOC_LABELS[1:], start=1))
    names = sorted(path.stem for path in masks.iterdir() if path.suffix == ".png")
    if source.get("list"):
        names = Path(source["list"]).read_text(encoding="utf-8").split()
    for name in names:
        image, mask = root / "JPEGImages" / f"{name}.jpg", masks / f"{name}.png"
        yield Photo(name, str(image), str(mask), labels, name, source.get("split"))


def _coco_photos(source: Mapping[str, Any]) -> Iterator[Photo]:
    values = json.loads(Path(source["annotations"]).read_text(encoding="utf-8"))
    labels = {category["id"]: category["name"] for category in values["categories"]}
    annotations = defaultdict(list)
    for annotation in values["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    for image in values["images"]:
        path, size = Path(source["images"]) / image["file_name"], (image["height"], image["width"])
        # Small objects stand in front of large ones.
        parts = sorted(annotations[image["id"]], key=lambda part: -part["area"])
        mask = [{"category": part["category_id"], "shape": part["segmentation"], "size": size} for part in parts]
        yield Photo(path.stem, str(path), mask, labels, path.stem, source.get("split"))


# Recordings


def _table_recordings(source: Mapping[str, Any]) -> Iterator[Recording]:
    table = Path(source["path"])
    for row in _read_table(table, ("file", "class")):
        group = row.get("group") or Path(row["file"]).stem
        yield Recording(str(table.parent / row["file"]), (row["class"],), group, _split(row, source))


def _folder_recordings(source: Mapping[str, Any]) -> Iterator[Recording]:
    for path in sorted(Path(source["path"]).glob("*/*")):
        if path.is_file() and not path.name.startswith("."):
            yield Recording(str(path), (path.parent.name,), path.stem, source.get("split"))


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
    suffixes = {path.stem: path.name for path in sorted(folder.iterdir())}
    for row in _read_table(Path(source["path"]), columns, header=False):
        name = f"{row['video']}_{int(row['start']):06d}"
        file = folder / suffixes.get(name, f"{name}.wav")
        yield Recording(str(file), (row["label"],), row["video"], _split(row, source))


def _read_table(path: Path, columns: Sequence[str], *, header: bool = True) -> list[dict[str, str]]:
    """Read a csv file; ValueError if it lacks a column."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, None if header else list(columns))
        if missing := sorted(set(columns) - set(rows.fieldnames or ())):
            raise ValueError(f"Expected the columns {', '.join(columns)}, got no {', '.join(missing)}")
        return [{key: (value or "").strip() for key, value in row.items() if key} for row in rows]


def _split(row: Mapping[str, str], source: Mapping[str, Any]) -> str | None:
    """Return the split of a row; ValueError for an unknown one."""
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
    """List the photos or recordings of all sources; files may be missing.

    Args:
        sources: Layout and options of each source.
        layouts: `PHOTO_LAYOUTS` or `RECORDING_LAYOUTS`.

    Returns:
        The photos or recordings, and the problems of sources that cannot be read.
    """
    found: list[Any] = []
    problems: list[Problem] = []
    for source in sources:
        place = source.get("annotations") or source.get("path") or source["layout"]
        if wrong := _option_problem(source, layouts):
            problems.append(Problem("", str(place), wrong))
            continue
        try:
            found += layouts[source["layout"]][0](source)
        except FileNotFoundError as error:
            problems.append(Problem("", str(error.filename), f"Missing; layout {source['layout']} needs it"))
        except (ValueError, OSError, KeyError, TypeError) as error:
            text = f"no {error}" if isinstance(error, KeyError) else str(error)
            problems.append(Problem("", str(place), f"Not in the layout {source['layout']}: {text}"))
    return found, problems


def _option_problem(source: Mapping[str, Any], layouts: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the layout or the options of a source."""
    if source["layout"] not in layouts:
        return f"Unknown layout {source['layout']!r}. Expected one of {', '.join(layouts)}."
    _, required, optional = layouts[source["layout"]]
    given = set(source) - {"layout", "split"}
    if given - {*required, *optional} or set(required) - given:
        options = ", ".join((*required, *(f"optionally {name}" for name in optional)))
        return f"Expected the options {options} of the layout {source['layout']}, got {', '.join(sorted(given))}"
    return None


# Splits


def assign_splits(
    items: Sequence[Photo] | Sequence[Recording], strata: Sequence[str], fractions: Mapping[str, float]
) -> tuple[list[str], list[str]]:
    """Divide photos or recordings into splits, the same way in whatever order they come.

    Groups with a split of their own keep it. The others are ordered by a hash of their name and divided by the fractions,
    separately for each class, so that rare classes are in every split. If no item has the split "val", groups with the
    split "train" are divided too.

    Args:
        items: The items.
        strata: Class of each item.
        fractions: Fraction of "val" and "test".

    Returns:
        The split of each item, and the names of groups whose items have different splits of their own.
    """
    fixed: dict[str, set[str]] = defaultdict(set)
    strata_of_group: dict[str, set[str]] = defaultdict(set)
    for item, stratum in zip(items, strata, strict=True):
        fixed[item.group] |= {item.split} - {None}
        strata_of_group[item.group].add(stratum)
    contradicting = sorted(group for group, splits in fixed.items() if len(splits) > 1)
    complete = any("val" in splits for splits in fixed.values())
    splits = {group: min(own) for group, own in fixed.items() if own and (complete or own != {"train"})}
    pools: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for group in sorted(fixed.keys() - splits.keys(), key=_hash):
        pools[min(strata_of_group[group]), bool(fixed[group])].append(group)
    for (_, is_training), groups in pools.items():
        splits |= _divide(groups, fractions.get("val", 0), 0 if is_training else fractions.get("test", 0))
    return [splits[item.group] for item in items], contradicting


def _divide(groups: Sequence[str], val: float, test: float) -> dict[str, str]:
    """Divide ordered groups; of few groups one each is in test and val, as long as one remains for training."""
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
    """Return of each item's labels the one that the fewest items have; empty texts for items without labels."""
    counts = Counter(label for one in labels for label in set(one))
    return [min(one, key=lambda label: (counts[label], label), default="") for one in labels]


# Decoding


def decode_photo(photo: Photo, indexes: Mapping[str, int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode a photo and its mask at the working size.

    Args:
        photo: The photo.
        indexes: Class index of each label that belongs to a class.
        size: Longest side in pixels; smaller photos keep their size.

    Returns:
        uint8 (height, width, 3), RGB, and uint8 (height, width): class index, 0 background, 255 void.

    Raises:
        OSError: If a file is missing or cannot be decoded.
        ValueError: If the mask has another size than the photo, or is not one channel.
    """
    values = {value: indexes[label] for value, label in photo.labels.items() if label in indexes}
    with Image.open(photo.image) as image:
        width, height = image.size
        scale = min(1.0, size / max(width, height))
        target = max(1, round(width * scale)), max(1, round(height * scale))
        image.draft("RGB", target)
        frame = np.asarray(image.convert("RGB").resize(target, Image.Resampling.BILINEAR))
    mask = _read_mask(photo.mask, values) if isinstance(photo.mask, str) else _draw_mask(photo.mask, values)
    if mask is None:
        return frame, np.zeros(frame.shape[:2], dtype=np.uint8)
    if mask.shape != (height, width):
        raise ValueError(f"The mask is {mask.shape[1]}x{mask.shape[0]} pixels, the photo {width}x{height}")
    return frame, np.asarray(Image.fromarray(mask).resize(target, Image.Resampling.NEAREST))


def _read_mask(path: str, values: Mapping[int, int]) -> np.ndarray:
    """Read a mask file of one channel and translate its values to class indexes."""
    with Image.open(path) as image:
        if image.mode not in ("L", "P", "1"):
            raise ValueError(f"Expected one channel of class indexes in {path}, got an image of mode {image.mode}")
        mask = np.asarray(image).astype(np.uint8)
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
        shapes = coco_masks.frPyObjects(part["shape"], height, width)
        shape = coco_masks.merge(shapes) if isinstance(shapes, list) else shapes
        drawn[coco_masks.decode(shape) > 0] = values[part["category"]]
    return drawn


def decode_recording(recording: Recording, sampling_rate: int, seconds: float) -> np.ndarray:
    """Decode the beginning of a recording in mono.

    Args:
        recording: The recording.
        sampling_rate: In hertz.
        seconds: Maximum length.

    Returns:
        int16 (samples,).

    Raises:
        OSError: If the file is missing.
        ValueError: If it has no audio that can be decoded, or is silent.
    """
    waveform, rate = read_audio(recording.file)
    mono = torch.from_numpy(waveform[:, : round(seconds * rate)].mean(axis=0, dtype=np.float64))
    samples = resample(mono, rate, sampling_rate).numpy()
    values = np.rint(samples * 32767).clip(-32768, 32767).astype(np.int16)
    if not values.any():
        raise ValueError("The recording is silent")
    return values
