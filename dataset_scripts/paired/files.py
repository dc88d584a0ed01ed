"""Write paired clips as files: in the layouts of AVSBench, as a folder of videos, or as parquet.

The layouts of AVSBench have fixed classes, so the class map names the category (`s4`) or class (`avss`) of AVSBench that
each class becomes. A folder of videos and parquet keep the classes. Only parquet keeps void pixels (255); in the other
layouts they are background.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets.arrow_writer import ParquetWriter
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from modeling_pcmanet.configuration_pcmanet import AVSBENCH_SEMANTIC_LABELS
from modeling_pcmanet.media_writing_pcmanet import encode_wav, write_audio, write_video
from pcmanet.dataset_scripts import SHARD_SPLITS, SPLITS
from pcmanet.dataset_scripts.avsbench.layouts import (
    BACKGROUND,
    BINARY_LABELS,
    FOLDER_CLASSES,
    FOLDER_TABLE,
    OBJECT_SECONDS,
    OFF_SCREEN,
    S4_CATEGORIES,
    SECONDS_OF_SUBSET,
)
from pcmanet.dataset_scripts.avsbench.rows import row_features
from pcmanet.dataset_scripts.metrics.segmentation import IGNORE_INDEX
from pcmanet.dataset_scripts.problems import DatasetError, Problem
from pcmanet.dataset_scripts.sounding_shapes.files import (
    OBJECT_SIZE,
    TREES,
    video_id,
    write_object_images,
    write_semantic_images,
    write_table,
)
from pcmanet.files import atomic_folder, write_text

from .clips import TASKS, PairedClip, PairedClips
from .library import UNKNOWN, Library
from .settings import PairedSettings


TREE_LAYOUTS = (*TASKS, "folder")
FRAME_RATE = 16  # of written videos: the frame of second l, taken at l + 15/16, is one of the video's
CLIPS_PER_SHARD = 250
JPEG_QUALITY = 95
SEMANTIC_SUBSETS = {SECONDS_OF_SUBSET[subset]: subset for subset in ("v1m", "v2")}

CARD = """---
pretty_name: Paired photos and recordings
license: other
configs:
- config_name: {task}
  data_files:
{splits}---

# Paired photos and recordings: one mask of the sounding objects per second

Written by `python -m pcmanet.dataset_scripts.paired parquet`. Frames show photos; the audio is mixed from recordings.
The rights of their sources apply. The columns are those of an AVSBench export. Masks are class indices; 255 is
ignored.

Classes: {classes}.
"""


def read_clips(clips: Dataset[PairedClip], num_workers: int, title: str, progress: bool) -> Iterator[PairedClip]:
    """Generate clips in order, in worker processes, with a progress bar."""
    loader = DataLoader(clips, batch_size=None, num_workers=num_workers, collate_fn=_unchanged)
    yield from tqdm(loader, desc=title, unit="clip", disable=not progress)


def _unchanged(clip: Any) -> Any:
    """Keep a clip as it is; without this, a loader turns its fields into tensors."""
    return clip


def _list_objects(clip: PairedClip, names: Sequence[str]) -> list[str]:
    """Return the names of the visible objects that sound, and what else sounds in the terms of AVSBench-semantic.

    Args:
        clip: The clip.
        names: Names by class index.

    Returns:
        The names, with "off-the-screen" if another object also sounds; ["background"] if no object sounds.
    """
    visible = clip.sounding_objects()
    listed = sorted({names[index] for index in visible})
    if clip.sound == UNKNOWN or any(one.stand_in or one.index not in (0, *visible) for one in clip.events):
        listed.append(OFF_SCREEN)
    return listed or [BACKGROUND]


# Parquet


def to_row(clip: PairedClip) -> dict[str, Any]:
    """Convert a clip to a row with the columns of `load_avsbench`; avsbench/rows.py documents them."""
    waveform = np.zeros((1, 0)) if clip.waveform is None else clip.waveform
    return {
        "id": clip.name,
        "category": None,
        "objects": _list_objects(clip, clip.class_names),
        "subset": clip.sound,
        "frames": list(clip.frames),
        "timestamps": clip.timestamps.tolist(),
        "masks": [mask if seen else None for mask, seen in zip(clip.masks, clip.annotated_frames, strict=True)],
        "annotated_frames": clip.annotated_frames.tolist(),
        "audio": {"path": None, "bytes": encode_wav(waveform, clip.sampling_rate or 1)},
    }


def write_parquet(
    library: Library,
    output: str | Path,
    task: str,
    counts: Mapping[str, int],
    *,
    seed: int = 0,
    num_workers: int = 0,
    progress: bool = False,
) -> Path:
    """Write clips as parquet with the columns of an AVSBench export, for `load_dataset(output, task)`.

    Args:
        library: The photos and recordings.
        output: Folder; it must be empty or not exist, and appears when it is complete.
        task: The rule for the masks: "s4", "ms3" or "avss".
        counts: Clips per split.
        seed: Seed of the clips.
        num_workers: Processes that generate; 0 for this one.
        progress: Whether to show a progress bar.

    Returns:
        The folder.

    Raises:
        ValueError: If the task or a split is unknown, or a split has no photos.
        FileExistsError: If the folder is not empty.
    """
    parts = _datasets(library, task, counts, seed)
    with atomic_folder(Path(output), durable=False) as folder:
        (folder / task).mkdir()
        for split, clips in parts.items():
            generated = read_clips(clips, num_workers, f"writing {split}", progress)
            shards = -(-len(clips) // CLIPS_PER_SHARD)
            for number in range(shards):
                size = min(CLIPS_PER_SHARD, len(clips) - number * CLIPS_PER_SHARD)
                path = folder / task / f"{split}-{number:05d}-of-{shards:05d}.parquet"
                _write_shard(path, (next(generated) for _ in range(size)))
        files = "".join(f"  - split: {SHARD_SPLITS[split]}\n    path: {task}/{split}-*.parquet\n" for split in parts)
        names = library.settings.class_names if task == "avss" else ("silent", *BINARY_LABELS)
        classes = ", ".join(f"{index} {name}" for index, name in enumerate(names))
        write_text(folder / "README.md", CARD.format(task=task, splits=files, classes=classes))
    return Path(output)


def _write_shard(path: Path, clips: Iterable[PairedClip]) -> None:
    features = row_features()
    with ParquetWriter(features=features, path=str(path), writer_batch_size=8) as writer:
        for clip in clips:
            row = to_row(clip)
            row["frames"] = [_encode(frame, "JPEG") for frame in row["frames"]]
            row["masks"] = [None if mask is None else _encode(mask, "PNG") for mask in row["masks"]]
            writer.write(cast(dict[str, Any], features.encode_example(row)))
        writer.finalize()


def _encode(pixels: np.ndarray, file_format: str) -> dict[str, Any]:
    """Encode an image as a column of images stores it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, quality=JPEG_QUALITY)  # png ignores the quality
    return {"path": None, "bytes": buffer.getvalue()}


def _datasets(library: Library, task: str, counts: Mapping[str, int], seed: int) -> dict[str, PairedClips]:
    """Return the clips of each split to write."""
    if wrong := {split: count for split, count in counts.items() if split not in SPLITS or count < 0}:
        raise ValueError(f"Expected counts of at least 0 for splits of {SPLITS}, got {wrong}")
    return {
        split: PairedClips(library, task, split, length=count, seed=seed) for split, count in counts.items() if count
    }


# Trees


def write_tree(
    library: Library,
    root: str | Path,
    layout: str,
    counts: Mapping[str, int],
    *,
    seed: int = 0,
    num_workers: int = 0,
    progress: bool = False,
) -> Path:
    """Write clips in a layout of AVSBench, or as a folder of videos with the classes of the class map.

    Args:
        library: The photos and recordings.
        root: Folder; it is created if it does not exist.
        layout: "s4" (the folder Single-source appears in the root, with clips in which a visible object sounds), "ms3"
            (Multi-sources), "avss" (AVSBench_semantic) or "folder" (videos, masks with the classes of the class map).
        counts: Clips per split.
        seed: Seed of the clips.
        num_workers: Processes that generate; 0 for this one.
        progress: Whether to show a progress bar.

    Returns:
        The folder of the tree.

    Raises:
        ValueError: If an argument is unknown, or the clips have a different length from the layout.
        DatasetError: If classes have no name in the layout; the error lists all of them.
        FileExistsError: If the tree already exists.
    """
    if layout not in TREE_LAYOUTS:
        raise ValueError(f"Expected one of {TREE_LAYOUTS} as layout, got {layout!r}")
    _check_layout(library.settings, layout)
    target = Path(root) / TREES.get(layout, layout)
    parts = _datasets(library, "avss" if layout == "folder" else layout, counts, seed)
    writer = {"s4": _write_single, "ms3": _write_multiple, "avss": _write_semantic, "folder": _write_video}[layout]
    rows = []
    with atomic_folder(target, durable=False) as tree:
        for split, clips in parts.items():
            usable = _with_visible_sound(clips) if layout == "s4" else clips
            written = read_clips(usable, num_workers, f"writing {split}", progress)
            rows += [writer(tree, split, clip, library.settings) for clip in written]
        if layout == "folder":
            _write_folder_tables(tree, library.settings, rows)
        else:
            write_table(tree, layout, rows)
    return target


def _check_layout(settings: PairedSettings, layout: str) -> None:
    """Check that the clips fit a layout: their length, and a name for every class."""
    seconds = {"s4": (OBJECT_SECONDS,), "ms3": (OBJECT_SECONDS,), "avss": tuple(SEMANTIC_SUBSETS)}.get(layout)
    if seconds and (settings.clips.seconds not in seconds or settings.clips.context_seconds):
        expected = " or ".join(map(str, seconds))
        raise ValueError(
            f"Expected clips of {expected} seconds without context for {layout}, got {settings.clips.seconds} and "
            f"{settings.clips.context_seconds} of context. Set seconds and context_seconds in {settings.path}."
        )
    known = {"s4": S4_CATEGORIES, "avss": AVSBENCH_SEMANTIC_LABELS}.get(layout, ())
    wrong = [one for one in settings.classes if known and getattr(one, layout) not in known]
    if wrong := [one for one in wrong if layout != "s4" or one.sounds]:
        problem = "Expected a {} of AVSBench as `{}`, got {!r}"
        kind = "category" if layout == "s4" else "class"
        raise DatasetError(
            [
                Problem("", f"{settings.path}, class {one.name!r}", problem.format(kind, layout, getattr(one, layout)))
                for one in wrong
            ]
        )


def _with_visible_sound(clips: PairedClips) -> Subset[PairedClip]:
    """Select clips in which a visible object sounds, as in every clip of S4; as many as `clips` has."""
    more, chosen = _with_length(clips, 20 * clips.length), []
    for index in range(more.length):
        if len(chosen) < clips.length and more[index].sounding_objects():
            chosen.append(index)
    if len(chosen) < clips.length:
        raise ValueError(
            f"Found {len(chosen)} clips with a visible sounding object among {more.length}. Ask for fewer."
        )
    return Subset(more, chosen)


def _with_length(clips: PairedClips, length: int) -> PairedClips:
    """Return the same clips with another length."""
    return PairedClips(clips.library, clips.task, clips.split, length=length, seed=clips.seed)


def _write_single(tree: Path, split: str, clip: PairedClip, settings: PairedSettings) -> tuple[str, ...]:
    """Write one S4 clip and return its row."""
    name = video_id(f"s4/{clip.name}")
    category = str(settings.classes[clip.sounding_objects()[0] - 1].s4)
    data, place = tree / "s4_data", f"{split}/{category}/{name}"
    stems = data / "visual_frames" / place / name, data / "gt_masks" / place / name
    write_object_images(*_object_arrays(clip), clip.annotated_frames, *stems)
    _write_wav(clip, data / "audio_wav" / f"{place}.wav")
    return name, "0", category, split


def _write_multiple(tree: Path, split: str, clip: PairedClip, _settings: PairedSettings) -> tuple[str, ...]:
    """Write one MS3 clip and return its row."""
    name, data = video_id(f"ms3/{clip.name}"), tree / "ms3_data"
    stems = data / "visual_frames" / name / f"{name}.mp4", data / "gt_masks" / split / name / name
    write_object_images(*_object_arrays(clip), clip.annotated_frames, *stems)
    _write_wav(clip, data / "audio_wav" / split / f"{name}.wav")
    return name, split


def _write_semantic(tree: Path, split: str, clip: PairedClip, settings: PairedSettings) -> tuple[str, ...]:
    """Write one AVSS clip and return its row."""
    seconds = len(clip.frames)
    subset, name = SEMANTIC_SUBSETS[seconds], video_id(f"avss/{clip.name}")
    uid = f"{name}_0_{seconds * 1000}" if subset == "v2" else name
    to_avsbench = np.zeros(256, dtype=np.uint8)
    names = [AVSBENCH_SEMANTIC_LABELS[0], *(str(one.avss) for one in settings.classes)]
    to_avsbench[: len(names)] = [AVSBENCH_SEMANTIC_LABELS.index(one) for one in names]
    write_semantic_images(clip.frames, to_avsbench[clip.masks], clip.annotated_frames, tree / subset / uid)
    _write_wav(clip, tree / subset / uid / "audio.wav")
    return name, uid, "0", "0", "_".join(_list_objects(clip, names)), split, subset


def _write_video(tree: Path, split: str, clip: PairedClip, _settings: PairedSettings) -> tuple[str, ...]:
    """Write one clip as a video and its masks, and return its row."""
    name = video_id(f"folder/{clip.name}")
    for part in ("videos", f"masks/{name}"):
        (tree / part).mkdir(parents=True, exist_ok=True)
    # H.264 requires even sizes; the masks have the size of the video.
    height, width = (size - size % 2 for size in clip.frames.shape[1:3])
    repeated = (frame[:height, :width] for frame in clip.frames for _ in range(FRAME_RATE))
    write_video(tree / "videos" / f"{name}.mp4", repeated, FRAME_RATE, clip.waveform, clip.sampling_rate)
    for number in np.flatnonzero(clip.annotated_frames):
        mask = np.where(clip.masks[number] == IGNORE_INDEX, np.uint8(0), clip.masks[number])
        Image.fromarray(mask[:height, :width]).save(tree / "masks" / name / f"{number}.png")
    return f"videos/{name}.mp4", split, f"masks/{name}", "_".join(_list_objects(clip, clip.class_names))


def _write_folder_tables(tree: Path, settings: PairedSettings, rows: Sequence[tuple[str, ...]]) -> None:
    """Write the table of clips and the names of the classes of a folder of videos."""
    with (tree / FOLDER_TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("video", "split", "masks", "objects"))
        writer.writerows(rows)
    write_text(tree / FOLDER_CLASSES, "\n".join(settings.class_names) + "\n")


def _object_arrays(clip: PairedClip) -> tuple[np.ndarray, np.ndarray]:
    """Return frames and masks of 0 and 1 at the size of S4 and MS3, to which AVSBench squashes its frames."""
    height, width = OBJECT_SIZE
    size = width, height
    frames = [Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR) for frame in clip.frames]
    binary = (clip.masks == 1).astype(np.uint8)
    masks = [Image.fromarray(mask).resize(size, Image.Resampling.NEAREST) for mask in binary]
    return np.stack([np.asarray(one) for one in frames]), np.stack([np.asarray(one) for one in masks])


def _write_wav(clip: PairedClip, path: Path) -> None:
    """Write a 16-bit stereo wav with two equal channels, as AVSBench has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waveform = np.zeros((1, 0)) if clip.waveform is None else clip.waveform
    write_audio(path, np.repeat(waveform, 2, axis=0), clip.sampling_rate or 1)
