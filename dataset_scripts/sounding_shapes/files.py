"""Write Sounding Shapes as files: a clip as a video, or a dataset in the layouts of AVSBench."""

import csv
import hashlib
import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from modeling_pcmanet.configuration_pcmanet import AVSBENCH_SEMANTIC_LABELS as AVSBENCH_CLASSES
from modeling_pcmanet.media_writing_pcmanet import write_audio, write_video
from pcmanet.dataset_scripts import SPLITS
from pcmanet.files import atomic_folder

from .clips import TASKS, SoundingShapes, SyntheticClip


# Names of the classes in AVSBench-semantic and in S4, in the order of `CLASSES`. Names with hyphens and underscores are
# included on purpose, because some loaders fail on them.
AVSBENCH_NAMES = (
    ("helicopter", "helicopter"),
    ("violin", "playing_violin"),
    ("tabla", "playing_tabla"),
    ("piano", "playing_piano"),
    ("woman", "female_singing"),
    ("keyboard", "typing_on_computer_keyboard"),
    ("emergency-car", "ambulance_siren"),
    ("horse", "horse_clip-clop"),
    ("mower", "lawn_mowing"),
    ("guitar", "playing_acoustic_guitar"),
    ("bus", "driving_buses"),
    ("dog", "dog_barking"),
)

TABLES = {
    "s4": ("s4_meta_data.csv", ("name", "start", "category", "split")),
    "ms3": ("ms3_meta_data.csv", ("video_id", "split")),
    "avss": ("metadata.csv", ("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label")),
}
TREES = {"s4": "Single-source", "ms3": "Multi-sources", "avss": "AVSBench_semantic"}
AVSS_SUBSETS = (("v1s", "s4", 5), ("v1m", "ms3", 5), ("v2", "avss", 10))  # subset, task, seconds
AVSS_SIZES = (
    (240, 320),
    (256, 256),
    (320, 240),
    (270, 360),
)  # height, width: they vary like those of downloaded videos
OBJECT_SIZE = (224, 224)
RAW_FRAME_RATE = 16  # at 16 per second, AVSBench's frame of second l, int((l + 15/16) * 16), is a frame of the video


def write_clip(
    dataset: SoundingShapes,
    index: int,
    path: str | Path,
    *,
    clip: SyntheticClip | None = None,
    frames_per_second: float = 25.0,
) -> None:
    """Write a clip as an mp4 (H.264 and AAC) in which the objects move smoothly.

    Args:
        dataset: Source of the clip.
        index: Index of the clip.
        path: The file to write, ending in ".mp4"; it appears only when it is complete.
        clip: The clip whose audio to write, such as `dataset.swap_audio(index)`; None for the clip at the index.
        frames_per_second: Frame rate in hertz.

    Raises:
        IndexError: If the index is not in the dataset.
        FileNotFoundError: If the folder does not exist.
        MediaError: If the file cannot be written.
    """
    clip = dataset[index] if clip is None else clip
    frames = dataset.render_video_frames(index, frames_per_second)
    write_video(path, frames, frames_per_second, clip.waveform, clip.sampling_rate)


def write_avsbench_tree(
    root: str | Path, task: str, counts: Mapping[str, int], *, seed: int = 0, progress: bool = False
) -> Path:
    """Write clips in the layout of the AVSBench download, without log-mel pickles.

    The folder `Single-source`, `Multi-sources` or `AVSBench_semantic` appears in `root` only when it is complete.
    Trees of all three tasks may share a root; with the same seed, they share clips as in AVSBench. Semantic trees
    alternate between the subsets v1s, v1m and v2 (10 seconds). The classes have the AVSBench names of `AVSBENCH_NAMES`.

    Args:
        root: Folder; it is created if it does not exist.
        task: "s4", "ms3" or "avss".
        counts: Clips per split, such as `{"train": 8, "val": 2, "test": 2}`.
        seed: Seed of the clips.
        progress: Whether to show a progress bar.

    Returns:
        The folder of the tree.

    Raises:
        ValueError: If the task or a split is unknown or a count is negative.
        FileExistsError: If the tree already exists.
    """
    if task not in TREES:
        raise ValueError(f"Expected one of {TASKS} as task, got {task!r}")
    if wrong := {split: count for split, count in counts.items() if split not in SPLITS or count < 0}:
        raise ValueError(f"Expected counts of at least 0 for splits of {SPLITS}, got {wrong}")
    target = Path(root) / TREES[task]
    if target.exists():
        raise FileExistsError(f"{target} already exists. Remove it or choose another root.")
    jobs = [(split, index) for split, count in counts.items() for index in range(count)]
    # An interrupted run leaves no incomplete tree.
    with atomic_folder(target, durable=False) as tree:
        writer = {"s4": _write_single, "ms3": _write_multiple, "avss": _write_semantic}[task]
        rows = [
            writer(tree, split, index, seed)
            for split, index in tqdm(jobs, desc=f"writing {target}", unit="clip", disable=not progress)
        ]
        write_table(tree, task, rows)
    return target


def _write_single(tree: Path, split: str, index: int, seed: int) -> tuple[str, ...]:
    """Write one S4 clip with the annotation of its split and return its row."""
    dataset = _dataset("s4", split, index, seed)
    clip, name = dataset[index], _video_id("s4", split, index, seed)
    label = clip.object_classes[int(np.argmax(clip.sounding[0]))]
    category = AVSBENCH_NAMES[label - 1][1]
    place = f"{split}/{category}/{name}"
    data = tree / "s4_data"
    stems = data / "visual_frames" / place / name, data / "gt_masks" / place / name
    write_object_images(clip.frames, clip.binary, clip.annotated_frames, *stems)
    _write_audio(clip, data / "audio_wav" / f"{place}.wav")
    _write_raw_video(dataset, index, clip, data / "raw_videos" / f"{place}.mp4")
    return name, "0", category, split


def _write_multiple(tree: Path, split: str, index: int, seed: int) -> tuple[str, ...]:
    """Write one MS3 clip and return its row."""
    dataset = _dataset("ms3", split, index, seed)
    clip, name = dataset[index], _video_id("ms3", split, index, seed)
    data = tree / "ms3_data"
    stems = data / "visual_frames" / name / f"{name}.mp4", data / "gt_masks" / split / name / name
    write_object_images(clip.frames, clip.binary, clip.annotated_frames, *stems)
    _write_audio(clip, data / "audio_wav" / split / f"{name}.wav")
    _write_raw_video(dataset, index, clip, data / "raw_videos" / f"{name}.mp4")
    return name, split


def _write_semantic(tree: Path, split: str, index: int, seed: int) -> tuple[str, ...]:
    """Write one AVSS clip of the next subset and return its row."""
    subset, task, seconds = AVSS_SUBSETS[index % len(AVSS_SUBSETS)]
    dataset = _dataset(task, split, index, seed, AVSS_SIZES[index % len(AVSS_SIZES)], seconds)
    clip, name = dataset[index], _video_id(task, split, index, seed)
    start = 0 if subset == "v1m" else index % 60
    # The names of v1m are used unchanged; the others get the start and end of the clip in milliseconds.
    uid = name if subset == "v1m" else f"{name}_{start * 1000}_{(start + seconds) * 1000}"
    to_avsbench = np.array([0, *(AVSBENCH_CLASSES.index(name) for name, _ in AVSBENCH_NAMES)], dtype=np.uint8)
    write_semantic_images(clip.frames, to_avsbench[clip.masks], clip.annotated_frames, tree / subset / uid)
    _write_audio(clip, tree / subset / uid / "audio.wav")
    names = [AVSBENCH_NAMES[clip.object_classes[k] - 1][0] for k in np.flatnonzero(clip.sounding.any(axis=0))]
    return name, uid, "0", str(start), "_".join(sorted(names)) or "background", split, subset


def _dataset(
    task: str, split: str, index: int, seed: int, size: tuple[int, int] = OBJECT_SIZE, seconds: int = 5
) -> SoundingShapes:
    height, width = size
    return SoundingShapes(task, split, length=index + 1, seed=seed, height=height, width=width, num_frames=seconds)


def _video_id(task: str, split: str, index: int, seed: int) -> str:
    """Return the name of a clip; every second MS3 id has a suffix."""
    name = video_id(f"{task}/{split}/{seed}/{index}")
    return f"{name}_{index}" if task == "ms3" and index % 2 == 0 else name


def video_id(text: str) -> str:
    """Return a YouTube-like id of 11 characters, a hash of a text, which may begin with `_` or `-`."""
    return urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()[:11]


def write_object_images(
    frames: np.ndarray, masks: np.ndarray, annotated_frames: np.ndarray, frame_stem: Path, mask_stem: Path
) -> None:
    """Write the images of S4 or MS3, `{stem}_{1..}.png`: every frame, and masks of 0 and 255 for annotated frames.

    Args:
        frames: uint8 (frames, height, width, 3).
        masks: uint8 (frames, height, width), 0 and 1.
        annotated_frames: bool (frames,).
        frame_stem: Path of the frames without number and suffix.
        mask_stem: Path of the masks without number and suffix.
    """
    for number, frame in enumerate(frames, start=1):
        _save_image(frame_stem.with_name(f"{frame_stem.name}_{number}.png"), frame)
    for number in np.flatnonzero(annotated_frames) + 1:
        _save_image(mask_stem.with_name(f"{mask_stem.name}_{number}.png"), masks[number - 1] * np.uint8(255))


def write_semantic_images(frames: np.ndarray, masks: np.ndarray, annotated_frames: np.ndarray, folder: Path) -> None:
    """Write the images of AVSS: frames as jpg and, for annotated frames, the class indices and their colors as png.

    Args:
        frames: uint8 (frames, height, width, 3).
        masks: uint8 (frames, height, width), class indices of AVSBench-semantic.
        annotated_frames: bool (frames,).
        folder: The folder of the clip.
    """
    # Importing avsbench loads `datasets`, which nothing else here needs (0.5 s, 85 MB).
    from pcmanet.dataset_scripts.avsbench.masks import voc_palette

    for number, frame in enumerate(frames):
        _save_image(folder / "frames" / f"{number}.jpg", frame)
    for number in np.flatnonzero(annotated_frames):
        _save_image(folder / "labels_semantic" / f"{number}.png", masks[number])
        _save_image(folder / "labels_rgb" / f"{number}.png", voc_palette()[masks[number]])


def _save_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)  # png ignores the quality


def _write_audio(clip: SyntheticClip, path: Path) -> None:
    """Write a 16-bit stereo wav with two equal channels, as AVSBench has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, np.stack([clip.waveform, clip.waveform]), clip.sampling_rate)


def _write_raw_video(dataset: SoundingShapes, index: int, clip: SyntheticClip, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(dataset, index, path, clip=clip, frames_per_second=RAW_FRAME_RATE)


def write_table(tree: Path, task: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Write the table of clips and, for the semantic task, the class numbers, which AVSBench counts from 1.

    Args:
        tree: The folder of the dataset.
        task: "s4", "ms3" or "avss".
        rows: The values of each clip, in the order of the columns in `TABLES`.
    """
    name, header = TABLES[task]
    with (tree / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    if task == "avss":
        numbers = {name: number for number, name in enumerate(AVSBENCH_CLASSES, start=1)}
        (tree / "label2idx.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
