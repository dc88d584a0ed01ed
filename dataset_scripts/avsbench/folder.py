"""One's own clips: a folder of videos, a folder of masks for each, and a table, read into the rows of AVSBench.

    clips.csv           a header and one line per clip: video,split and, if wanted, masks,objects
    classes.txt         only for semantic masks: one class per line, the first is the background
    videos/dog.mp4      any video with sound
    masks/dog/0.png     the mask of the frame in second 0; seconds without a file are not annotated

`video` and `masks` are paths inside the folder, `objects` names joined by `_`. Without classes.txt masks hold 0 and 255
(or 0 and 1), with it class indexes. Masks have the size of the video.
"""

import os
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from modeling_pcmanet.media_pcmanet import Media, read_media

from .files import picture_problem, read_picture
from .layouts import SPLITS, AVSBenchError, Problem, Tree, read_lines, read_text, require_choice, require_columns
from .masks import decode_binary, decode_indexes
from .rows import ProblemCollector, RowSettings, make_row


TABLE = "clips.csv"
CLASSES = "classes.txt"
REQUIRED_COLUMNS, OPTIONAL_COLUMNS = ("video", "split"), ("masks", "objects")
MOST_CLASSES = 255  # 255 itself means "ignore"
PCM16_FULL_SCALE = 32768


@dataclass(frozen=True)
class VideoFiles:
    """Where the files of one's own clip lie.

    Attributes:
        id: The path of the video inside the folder, in its shortest form.
        video: The same, as AVSBench's clips have it.
        split: "train", "val" or "test".
        subset: "folder".
        objects: Names of what sounds, None if the table has none.
        path: Of the video.
        masks: Folder of the masks, None if no frame is annotated.
        num_classes: Of semantic masks; 0 for binary ones.
    """

    id: str
    video: str
    split: str
    subset: str
    objects: tuple[str, ...] | None
    path: str
    masks: str | None
    num_classes: int

    @property
    def paths(self) -> list[str]:
        """All files of the clip."""
        return [self.path, *self.mask_files.values()]

    @property
    def mask_files(self) -> dict[str, str]:
        """Path of each mask by its name without suffix, which is the number of its frame."""
        names = sorted(os.listdir(self.masks)) if self.masks and os.path.isdir(self.masks) else []
        return {os.path.splitext(name)[0]: os.path.join(self.masks or "", name) for name in names if name[0] != "."}


def find_folder(root: str | Path) -> Tree:
    """List the clips of one's own folder.

    Args:
        root: The folder that holds clips.csv.

    Returns:
        The tree, all splits.

    Raises:
        AVSBenchError: If the table is missing or cannot be used; every bad line is named.
    """
    table = Path(root).resolve() / TABLE
    if not table.is_file():
        raise AVSBenchError([Problem("", str(table), f"missing; it needs the columns {', '.join(REQUIRED_COLUMNS)}")])
    (header_line, header), *lines = read_lines(table)
    allowed = {*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS}
    if not set(REQUIRED_COLUMNS) <= set(header) <= allowed or len(set(header)) != len(header):
        problem = f"the header is {','.join(header)!r}; expected {','.join(REQUIRED_COLUMNS)} and, if wanted, "
        raise AVSBenchError([Problem("", f"{table}, line {header_line}", problem + ",".join(OPTIONAL_COLUMNS))])
    require_columns(table, lines, header)
    num_classes = len(read_class_names(root) or ())
    clips: dict[str, VideoFiles] = {}
    faults = []
    for line, values in lines:
        try:
            clip = _place(table.parent, dict(zip(header, values, strict=True)), num_classes)
        except ValueError as error:
            faults.append(Problem("", f"{table}, line {line}", str(error)))
            continue
        if clips.setdefault(clip.id, clip) is not clip:
            faults.append(
                Problem(clip.id, f"{table}, line {line}", f"video {clip.id!r} stands in another line already")
            )
    if faults:
        raise AVSBenchError(faults)
    return Tree(table.parent, table, list(clips.values()))


def read_class_names(root: str | Path) -> tuple[str, ...] | None:
    """Read classes.txt.

    Args:
        root: The folder.

    Returns:
        The names in the order of the class indexes, the first is the background; None for binary masks.

    Raises:
        AVSBenchError: If the file is there but not UTF-8, or holds fewer than two names, more than 255, or one twice.
    """
    path = Path(root) / CLASSES
    if not path.is_file():
        return None
    names = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    if not 2 <= len(names) <= MOST_CLASSES or len(set(names)) != len(names):
        problem = f"holds {len(names)} names; expected 2 to {MOST_CLASSES} different ones, the background first"
        raise AVSBenchError([Problem("", str(path), problem)])
    return names


def _place(root: Path, values: dict[str, str], num_classes: int) -> VideoFiles:
    """Turn one line of the table into a clip."""
    video, masks, objects = _require_inside(values["video"], "video"), values.get("masks"), values.get("objects")
    return VideoFiles(
        id=video,
        video=video,
        split=require_choice(values["split"], "split", SPLITS),
        subset="folder",
        objects=tuple(objects.split("_")) if objects else None,
        path=str(root / video),
        masks=str(root / _require_inside(masks, "masks")) if masks else None,
        num_classes=num_classes,
    )


def _require_inside(text: str, what: str) -> str:
    """Return a path that stays in the folder in its shortest form, or raise ValueError."""
    path = PurePosixPath(text)
    if not path.parts or path.is_absolute() or ".." in path.parts or any(sign in text for sign in ("\\", "\0", ":")):
        raise ValueError(f"{what} is {text!r}; expected a path inside the folder, with / between its parts")
    return str(path)


def inspect_videos(clips: Sequence[VideoFiles]) -> list[Problem]:
    """Find all videos and masks that are missing or truncated.

    Args:
        clips: Which.

    Returns:
        The faults in the order of the clips.
    """
    return [Problem(clip.id, path, problem) for clip in clips for path, problem in _inspect(clip)]


def _inspect(clip: VideoFiles) -> Iterator[tuple[str, str]]:
    """Find the faults of one clip."""
    if not os.path.isfile(clip.path):
        yield clip.path, "missing"
    elif not os.path.getsize(clip.path):
        yield clip.path, "is empty (0 bytes)"
    if clip.masks and not clip.mask_files:
        yield clip.masks, "holds no masks; leave the column empty for a clip without annotation"
    for number, path in clip.mask_files.items():
        if not (number.isascii() and number.isdecimal() and str(int(number)) == number):
            yield path, "is not named after the number of its frame, such as 0.png for second 0"
        elif problem := picture_problem(path):
            yield path, problem


def read_video_row(clip: VideoFiles, settings: RowSettings) -> dict[str, Any]:
    """Decode a video and its masks.

    Args:
        clip: Where they are; `inspect_videos` has found them.
        settings: At which rate to take frames.

    Returns:
        One row; frames are PNG, the sound is a 16-bit wav at its own rate.

    Raises:
        AVSBenchError: Naming every file of the clip that cannot be used.
    """
    attempts = ProblemCollector(clip.id)
    media = attempts.run(partial(read_media, frames_per_second=settings.frames_per_second), clip.path)
    masks = {number: attempts.run(_read_mask, path, clip) for number, path in clip.mask_files.items()}
    if media is not None:
        for number, path in clip.mask_files.items():
            attempts.run(_check_mask, path, int(number), masks[number], media)
    attempts.finish()
    return make_row(
        clip.id,
        clip.subset,
        frames=[{"path": f"{number}.png", "bytes": _encode_frame(frame)} for number, frame in enumerate(media.frames)],
        timestamps=media.timestamps,
        masks=[masks.get(str(number)) for number in range(len(media.frames))],
        audio={"path": f"{Path(clip.path).stem}.wav", "bytes": encode_wav(media.waveform, media.sampling_rate)},
        objects=clip.objects,
    )


def _read_mask(path: str, clip: VideoFiles) -> np.ndarray:
    """Read a mask as uint8 (height, width), class indexes."""
    data, _ = read_picture(path)
    return decode_indexes(data, clip.num_classes) if clip.num_classes else decode_binary(data)


def _check_mask(_: str, number: int, mask: np.ndarray | None, media: Media) -> None:
    """Raise ValueError if a mask belongs to no frame or is of another size."""
    if number >= len(media.frames):
        raise ValueError(f"the video has {len(media.frames)} frames, numbered from 0; there is none for this mask")
    if mask is not None and mask.shape != media.frames.shape[1:3]:
        raise ValueError(f"the mask is {mask.shape}, but the video is {media.frames.shape[1:3]} (height, width)")


def _encode_frame(frame: np.ndarray) -> bytes:
    """Write a frame uint8 (height, width, 3) as PNG."""
    file = BytesIO()
    Image.fromarray(frame).save(file, "PNG", compress_level=1)
    return file.getvalue()


def encode_wav(waveform: np.ndarray, sampling_rate: int) -> bytes:
    """Write sound as a 16-bit wav.

    Args:
        waveform: float (channels, samples), full scale is [-1, 1]; what is beyond is clipped.
        sampling_rate: In hertz.

    Returns:
        The bytes of the file.
    """
    samples = np.clip(np.rint(waveform * PCM16_FULL_SCALE), -PCM16_FULL_SCALE, PCM16_FULL_SCALE - 1).astype("<i2")
    file = BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(len(samples))
        writer.setsampwidth(2)
        writer.setframerate(sampling_rate)
        writer.writeframes(samples.T.tobytes())
    return file.getvalue()
