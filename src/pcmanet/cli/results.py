"""The folder of results: whose it is, with which settings it was begun, and that one run at a time writes to it."""

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from pycocotools import mask as coco


SEGMENTATION = pyarrow.struct([("size", pyarrow.list_(pyarrow.int32())), ("counts", pyarrow.string())])

# Name -> type and meaning; docs/archives.md and the card of every archive say the same.
COLUMNS: dict[str, tuple[pyarrow.DataType, str]] = {
    "video": (pyarrow.string(), "path, URL or name of the video, as it was given"),
    "frame": (pyarrow.int32(), "number of the network frame, from 0; null in a row that is an error"),
    "timestamp": (pyarrow.float64(), "its time in the video, seconds"),
    "height": (pyarrow.int32(), "of the video, pixels"),
    "width": (pyarrow.int32(), "of the video, pixels"),
    "label": (pyarrow.string(), "what sounds; null where nothing does"),
    "score": (pyarrow.float32(), "mean probability inside the mask, 0 to 1"),
    "segmentation": (SEGMENTATION, "the mask in COCO's run-length code: `size` (height, width) and `counts`"),
    "error": (pyarrow.string(), "why the video could not be segmented; null if it could"),
}
SCHEMA = pyarrow.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])

# Frames to a batch: even full of segments it stays at a few megabytes.
FRAMES_PER_BATCH = 256


def rows_of_video(video: str, records: Iterable[Mapping[str, Any]]) -> Iterator[pyarrow.RecordBatch]:
    """Turns the records of one video into rows.

    Args:
        video: What the column `video` says.
        records: The lines of its file of records, in order of time.

    Yields:
        Batches of [`SCHEMA`], each with the rows of some hundred network frames.
    """
    rows: list[dict[str, Any]] = []
    for number, record in enumerate(records, start=1):
        frame = {"video": video, **{name: record[name] for name in ("frame", "timestamp", "height", "width")}}
        rows += [frame | dict(segment) for segment in record["segments"]] or [frame]
        if number % FRAMES_PER_BATCH == 0:
            yield pyarrow.RecordBatch.from_pylist(rows, SCHEMA)
            rows = []
    if rows:
        yield pyarrow.RecordBatch.from_pylist(rows, SCHEMA)


def row_of_error(video: str, error: str) -> pyarrow.RecordBatch:
    """Makes the one row of a video that could not be segmented."""
    return pyarrow.RecordBatch.from_pylist([{"video": video, "error": error}], SCHEMA)


def describe_columns() -> str:
    """Writes the columns as a Markdown table."""
    lines = [
        f"| `{name}` | {kind if name != 'segmentation' else 'struct'} | {meaning} |"
        for name, (kind, meaning) in COLUMNS.items()
    ]
    return "\n".join(["| column | type | what it is |", "|---|---|---|", *lines]) + "\n"


SHARDS = "segments-*.parquet"
ASIDE = ".pcmanet-"  # what a hidden file begins with that a killed process may have left behind

# A row group is held in memory until it is whole. Readers hold one at a time as well.
ROW_GROUP_BYTES = 16 * 2**20
ROW_GROUP_ROWS = 20_000
SHARD_BYTES = 512 * 2**20  # in memory; about a fifth of it on disk


class ShardWriter:
    """Writes the rows of videos into one shard after another.

    Args:
        folder: Where the shards appear.
        seconds: After how many seconds a shard with something in it is published; 0 publishes after each video.
        clock: Tells the time in seconds.
    """

    def __init__(self, folder: Path, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self.seconds = seconds
        self._clock = clock
        self._open: _OpenShard | None = None
        self._begun = 0.0

    def add(self, video: str, rows: Iterable[pyarrow.RecordBatch]) -> None:
        """Adds all rows of one video; they are published together with those of its neighbours.

        Args:
            video: What the column `video` says.
            rows: All its rows, a batch at a time. If they break off with an error, the shard is given up, and with it
                the other videos since the last publication.
        """
        if self._open is None:
            self._open, self._begun = _OpenShard(self.folder), self._clock()
        try:
            self._open.add(video, rows)
        except BaseException:
            self.discard()
            raise
        if self._clock() - self._begun >= self.seconds or self._open.bytes >= SHARD_BYTES:
            self.publish()

    def add_error(self, video: str, error: str) -> None:
        """Adds the row of a video that could not be segmented."""
        self.add(video, [row_of_error(video, error)])

    def publish(self) -> None:
        """Lets the open shard appear, if there is one."""
        shard, self._open = self._open, None
        if shard is not None:
            shard.publish()

    def discard(self) -> None:
        """Gives the open shard up, if there is one."""
        shard, self._open = self._open, None
        if shard is not None:
            shard.discard()


class _OpenShard:
    """A shard under its hidden name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes = 0
        self.videos: list[str] = []
        self._aside = folder / f"{ASIDE}{secrets.token_hex(8)}.parquet"
        self._writer = pyarrow.parquet.ParquetWriter(self._aside, SCHEMA, compression="zstd")
        self._waiting: list[pyarrow.RecordBatch] = []

    def add(self, video: str, rows: Iterable[pyarrow.RecordBatch]) -> None:
        """Adds the rows of one video."""
        self.videos.append(video)
        for batch in rows:
            self._waiting.append(batch)
            self.bytes += batch.nbytes
            if sum(waiting.nbytes for waiting in self._waiting) >= ROW_GROUP_BYTES:
                self._write_group()

    def publish(self) -> None:
        """Brings the shard to the disk and gives it its name."""
        self._write_group()
        self._writer.close()
        replace_durably(self._aside, self.folder / shard_name(self.videos))

    def discard(self) -> None:
        """Removes what was written."""
        self._writer.close()
        self._aside.unlink(missing_ok=True)

    def _write_group(self) -> None:
        """Writes the waiting rows as one row group."""
        if self._waiting:
            self._writer.write_table(pyarrow.Table.from_batches(self._waiting), row_group_size=ROW_GROUP_ROWS)
            self._waiting = []


def shard_name(videos: Iterable[str]) -> str:
    """Names a shard after the videos in it."""
    digest = hashlib.sha256("\0".join(videos).encode("utf-8", "surrogateescape"))
    return SHARDS.replace("*", digest.hexdigest()[:16])


def replace_durably(aside: Path, path: Path) -> None:
    """Renames a file only after its content, and returns only after its name, have reached the disk.

    Args:
        aside: A closed file in the same file system.
        path: Its name from now on.
    """
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_done(folder: Path) -> dict[str, bool]:
    """Reads from the shards which videos are done.

    Args:
        folder: Where the shards lie.

    Returns:
        Every video in the shards, and whether it was segmented (else its row is an error).

    Raises:
        ValueError: If a shard cannot be read, is no shard of ours, or a video is in two of them.
    """
    done: dict[str, bool] = {}
    for path in sorted(folder.glob(SHARDS)):
        mine: dict[str, bool] = {}
        for table in _row_groups(path, ["video", "error"]):
            mine |= dict(zip(table["video"].to_pylist(), table["error"].is_null().to_pylist(), strict=True))
        if twice := sorted(mine.keys() & done.keys()):
            raise ValueError(
                f"{path} holds {twice[0]}, which another shard of {folder} holds too. Remove one of the two shards and "
                "start again: its other videos are then done anew."
            )
        done |= mine
    return done


def remove_errors(folder: Path) -> int:
    """Takes the rows that are errors out of the shards, so that their videos are tried again.

    Args:
        folder: Where the shards lie.

    Returns:
        How many there were.
    """
    removed = 0
    for path in sorted(folder.glob(SHARDS)):
        errors = sum(table.num_rows - table["error"].null_count for table in _row_groups(path, ["error"]))
        if errors:
            _rewrite_without_errors(path)
        removed += errors
    return removed


def _rewrite_without_errors(path: Path) -> None:
    """Replaces a shard by its rows that are no errors, in one step."""
    aside = path.with_name(f"{ASIDE}{secrets.token_hex(8)}.parquet")
    kept = 0
    with pyarrow.parquet.ParquetWriter(aside, SCHEMA, compression="zstd") as writer:
        for table in _row_groups(path, SCHEMA.names):
            good = table.filter(table["error"].is_null())
            writer.write_table(good)
            kept += good.num_rows
    if kept:
        replace_durably(aside, path)
    else:
        path.unlink()
        aside.unlink()


def _row_groups(path: Path, columns: list[str]) -> Iterator[pyarrow.Table]:
    """Reads columns of a shard, a row group at a time."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if not file.schema_arrow.equals(SCHEMA):
                raise ValueError(f"its columns are {', '.join(file.schema_arrow.names)}")
            for number in range(file.num_row_groups):
                yield file.read_row_group(number, columns)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is no whole shard of this program: {error}. Remove it and start again: its videos are then done anew."
        ) from error


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
