"""The folder of results: whose it is, with which settings it was begun, and that one run at a time writes to it."""

import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from .parquet import ASIDE, SHARDS, describe_columns, remove_errors, replace_durably


def encode_mask(mask: Image.Image) -> dict[str, Any]:
    """Encodes a mask in COCO's compressed run-length code.

    Args:
        mask: Picture of mode "L": 255 inside, 0 outside.

    Returns:
        `{"size": [height, width], "counts": str}`.
    """
    code = coco.encode(np.asfortranarray(np.asarray(mask) > 0, dtype=np.uint8))
    return {"size": [int(length) for length in code["size"]], "counts": code["counts"].decode("ascii")}


def decode_mask(segmentation: Mapping[str, Any]) -> Image.Image:
    """Decodes what [`encode_mask`] made.

    Args:
        segmentation: `{"size": [height, width], "counts": str}`.

    Returns:
        Picture of mode "L": 255 inside, 0 outside.
    """
    return Image.fromarray(coco.decode(dict(segmentation)) * np.uint8(255))


class RecordedResults(Sequence[dict[str, Any]]):
    """The results of a pipeline for one video, in a file, read back one network frame at a time.

    Args:
        path: The file; written by [`write`].
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Only where each line begins is held: 8 bytes per network frame.
        self._starts = array("Q")

    def write(self, results: Iterable[Mapping[str, Any]], size: tuple[int, int]) -> None:
        """Writes results down as they come.

        Args:
            results: `{"timestamp", "segments"}` dictionaries of a pipeline, in order of time.
            size: (height, width) of the video, which frames without any segment do not tell.
        """
        with self.path.open("wb") as file:
            for number, result in enumerate(results):
                record = {"frame": number, "timestamp": result["timestamp"], "height": size[0], "width": size[1]}
                record["segments"] = [_encoded(segment) for segment in result["segments"]]
                self._starts.append(file.tell())
                file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def records(self) -> Iterator[dict[str, Any]]:
        """Yields the lines as they stand in the file, masks encoded."""
        with self.path.open("rb") as file:
            yield from map(json.loads, file)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> dict[str, Any]:
        with self.path.open("rb") as file:
            file.seek(self._starts[number])
            record = json.loads(file.readline())
        segments = [
            {"score": found["score"], "label": found["label"], "mask": decode_mask(found["segmentation"])}
            for found in record["segments"]
        ]
        return {"timestamp": record["timestamp"], "segments": segments}


def _encoded(segment: Mapping[str, Any]) -> dict[str, Any]:
    """Encodes a segment of a pipeline for JSON."""
    return {"label": segment["label"], "score": segment["score"], "segmentation": encode_mask(segment["mask"])}


SHOWN_FRAMES = 60  # so that what is printed of a long video stays on a few screens


@dataclass(frozen=True)
class Outcome:
    """How it went with one video.

    Attributes:
        video: Its name.
        frames: Network frames.
        labels: What was found, and in how many of them, most frequent first.
        error: Why it could not be segmented, if so.
    """

    video: str
    frames: int = 0
    labels: tuple[tuple[str, int], ...] = ()
    error: str | None = None

    @property
    def line(self) -> str:
        """Says it in one line."""
        if self.error is not None:
            return f"failed: {self.video}: {self.error}"
        found = ", ".join(f"{label} {number}" for label, number in self.labels) or "nothing sounds"
        return f"{self.video}: {found} ({self.frames} frames)"


def summarize(video: str, results: RecordedResults) -> Outcome:
    """Counts what was found in a video."""
    labels: Counter[str] = Counter()
    frames = 0
    for record in results.records():
        frames += 1
        labels.update({segment["label"] for segment in record["segments"]})
    return Outcome(video, frames, tuple(labels.most_common()))


def format_table(results: RecordedResults) -> str:
    """Writes what was found: a line for each segment, with its score and its share of the picture."""
    shown = [results[number] for number in range(min(len(results), SHOWN_FRAMES))]
    width = max([len("what sounds"), *(len(segment["label"]) for result in shown for segment in result["segments"])])
    lines = [f"{'second':>8}  {'what sounds':<{width}}  score  share of the picture"]
    for result in shown:
        time = f"{result['timestamp']:8.2f}"
        for found in result["segments"]:
            area = np.asarray(found["mask"]).mean() / 255
            lines.append(f"{time}  {found['label']:<{width}}  {found['score']:5.2f}  {area:20.1%}")
            time = " " * 8
        if not result["segments"]:
            lines.append(f"{time}  nothing")
    if len(results) > SHOWN_FRAMES:
        lines.append(f"     ...  and {len(results) - SHOWN_FRAMES} more frames")
    return "\n".join(lines)


SETTINGS = "pcmanet_settings.json"
CARD = "README.md"
LOCK = ".pcmanet.lock"
OVERLAY, CONTACT_SHEET, MASKS, RECORDS = "overlay.mp4", "contact_sheet.png", "masks", "segments.jsonl"
SOURCE = "video.json"  # in the folder of a video: which one it is

_OF_A_VIDEO = (
    rf"{re.escape(OVERLAY)}|{re.escape(CONTACT_SHEET)}|{re.escape(RECORDS)}|{re.escape(SOURCE)}|"
    rf"{MASKS}/\d+_at_[\d.]+s\.png"
)
_RESULT = (
    rf"{re.escape(SETTINGS)}|{re.escape(CARD)}|{SHARDS.replace('.', '[.]').replace('*', '[0-9a-f]{16}')}|"
    rf"{re.escape(ASIDE)}.*|{re.escape(LOCK)}|.+/({_OF_A_VIDEO})"
)

# `configs` is what load_dataset reads: the shards are the data, whatever else lies in the folder.
CARD_TEXT = f"""---
configs:
- config_name: default
  data_files: {SHARDS}
---

# What sounds in these videos

Written by `pcmanet segment`; `{SETTINGS}` holds the checkpoint and the settings. A row is a segment; a network frame in
which nothing sounds is a row without label, and a video that could not be segmented a row with its error. The rows of a
video lie together, in order of time.

{describe_columns()}"""


class OutputFolder:
    """The folder of results, opened for one run, which may consist of several processes.

    Args:
        path: The folder; made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: BinaryIO | None = None

    def begin(
        self,
        model: str,
        settings: Mapping[str, Any],
        *,
        is_archive: bool,
        overwrite: bool = False,
        retry_failed: bool = False,
    ) -> None:
        """Makes the folder ready; called by one process before any other [`join`]s.

        Args:
            model: What the checkpoint was called, for whoever reads the results.
            settings: Everything on which the results depend, as JSON has it.
            is_archive: Whether there will be shards: a card then tells `datasets` that they are the data.
            overwrite: Whether to remove earlier results.
            retry_failed: Whether to forget which videos could not be segmented.

        Raises:
            FileExistsError: If the path is a file, or a folder with anything but our results.
            ValueError: If the folder was begun with other settings.
            BlockingIOError: If another run is at work there.
        """
        check_ours(self.path, thoroughly=overwrite)
        self.path.mkdir(parents=True, exist_ok=True)
        self._acquire(fcntl.LOCK_EX)
        self._remove_leftovers()
        if overwrite or not self._holds_results():
            self._clear()
        self._check_settings(settings)
        self._write(SETTINGS, json.dumps({"model": model, "settings": settings}, indent=2) + "\n")
        if is_archive:
            self._write(CARD, CARD_TEXT)
        if retry_failed:
            remove_errors(self.path)
        self._acquire(fcntl.LOCK_SH)

    def join(self) -> None:
        """Takes part in a run that was begun: while one of its processes lives, no other run can begin."""
        self._acquire(fcntl.LOCK_SH)

    def leave(self) -> None:
        """Ends this process's part in the run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @contextmanager
    def aside(self) -> Iterator[Path]:
        """Gives a hidden folder in this one, which is gone in the end."""
        with tempfile.TemporaryDirectory(prefix=ASIDE, dir=self.path, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def publish(self, whole: Path, name: str, video: Mapping[str, str | None]) -> None:
        """Puts a whole folder of one video's results in its place: it is there when they are whole, not before.

        Args:
            whole: A folder that lies [`aside`].
            name: What it is called from now on.
            video: Which video it is, as [`Videos.identify`] says it.

        Raises:
            FileExistsError: If something of others has that place.
        """
        (whole / SOURCE).write_text(json.dumps(video, indent=2) + "\n", encoding="utf-8")
        for file in whole.rglob("*"):
            if file.is_file():
                _flush(file)
        target = self.path / name
        if target.exists():  # of parquet: the rows were lost after this was written
            _check_files(target, _OF_A_VIDEO, self.path)
            target.rename(whole.with_name("earlier"))
        whole.rename(target)

    def holds(self, name: str) -> bool:
        """Tells whether a folder of results is there."""
        return (self.path / name / SOURCE).is_file()

    def check_video(self, name: str, video: Mapping[str, str | None]) -> None:
        """Refuses, with a ValueError, a folder that holds the results of another video or of another sound."""
        earlier = json.loads((self.path / name / SOURCE).read_text(encoding="utf-8"))
        if earlier != video:
            held, wanted = (" with the sound of ".join(filter(None, each.values())) for each in (earlier, video))
            raise ValueError(
                f"{self.path / name} holds the results of {held}, not of {wanted}. Give another --output, or --overwrite "
                "to start anew."
            )

    def _acquire(self, kind: int) -> None:
        """Locks the folder, or changes the lock that this process holds; the system frees it even after kill -9."""
        if self._lock is None:
            self._lock = (self.path / LOCK).open("a+b")
        try:
            fcntl.flock(self._lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            self.leave()
            raise BlockingIOError(
                f"Another pcmanet is writing to {self.path}. Wait for it, end it (`fuser {self.path / LOCK}` names its "
                "processes), or give another --output."
            ) from None

    def _holds_results(self) -> bool:
        """Tells whether there is anything that other settings would spoil: a run may have ended before its first video."""
        return any(path.name not in (LOCK, SETTINGS, CARD) for path in self.path.iterdir())

    def _clear(self) -> None:
        """Removes earlier results; nothing else is there."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    def _remove_leftovers(self) -> None:
        """Removes what a killed process had not finished."""
        for path in self.path.glob(f"{ASIDE}*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        """Refuses settings other than those that the results here were made with."""
        file = self.path / SETTINGS
        earlier = json.loads(file.read_text(encoding="utf-8"))["settings"] if file.is_file() else settings
        if changed := sorted(key for key in {*earlier, *settings} if earlier.get(key) != settings.get(key)):
            named = ", another ".join(key.replace("_", " ") for key in changed)
            raise ValueError(
                f"{self.path} was begun with another {named}. Give another --output, or --overwrite to start anew."
            )

    def _write(self, name: str, text: str) -> None:
        """Writes a small file, whole or not at all."""
        aside = self.path / f"{ASIDE}{secrets.token_hex(8)}"
        aside.write_text(text, encoding="utf-8")
        replace_durably(aside, self.path / name)


def check_ours(folder: Path, *, thoroughly: bool = False) -> None:
    """Refuses a folder that holds things of others.

    Args:
        folder: Where results are to be written.
        thoroughly: Whether to look at every file in it, because they will be removed.

    Raises:
        FileExistsError: If it is a file, or a folder with anything but our results.
    """
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"{path} is a file. Give another --output.")
    if folder.is_dir() and not (folder / SETTINGS).is_file():
        for path in folder.iterdir():
            if not path.name.startswith((ASIDE, LOCK)):
                raise FileExistsError(
                    f"{folder} holds {path.name}, which pcmanet did not write. Give another --output, such as "
                    f"{folder / 'segmented'}."
                )
    if thoroughly:
        _check_files(folder, _RESULT, folder)


def _check_files(folder: Path, pattern: str, output: Path) -> None:
    """Refuses a folder with a file whose name does not match, because all of it will be removed."""
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file, which pcmanet did not write. Give another --output.")
    for path in folder.rglob("*"):
        if not path.is_dir() and not re.fullmatch(pattern, path.relative_to(folder).as_posix()):
            name = path.relative_to(output).as_posix()
            raise FileExistsError(f"{output} holds {name}, which pcmanet did not write. Give another --output.")


def _flush(file: Path) -> None:
    """Brings the content of a file to the disk."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
