"""The results of `pcmanet segment`: the folder that receives them, the records of a video, and the archive of many videos.

    OUTPUT/pcmanet_settings.json      checkpoint and settings with which the folder was created
    OUTPUT/<video>/                   results of one video: masks, records, overlay, contact sheet
    OUTPUT/segments-*.parquet         an archive: the rows of many videos, each shard with the rows of complete videos
    OUTPUT/README.md                  card of an archive, so that `datasets.load_dataset` reads the shards

Files and folders appear only when complete. One run at a time writes to a folder; it may have several processes.
"""

import fcntl
import hashlib
import json
import re
import shutil
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
from PIL import Image
from pycocotools import mask as coco

from pcmanet.files import (
    TEMPORARY,
    check_settings,
    is_system_file,
    read_json,
    recover,
    replace_file,
    replace_folder,
    temporary_path,
    write_text,
)


# The folder of a run.

SETTINGS = "pcmanet_settings.json"
CARD = "README.md"
LOCK = ".pcmanet.lock"
SHARDS = "segments-*.parquet"

# The folder of a video.
OVERLAY, CONTACT_SHEET, MASKS, RECORDS = "overlay.mp4", "contact_sheet.png", "masks", "segments.jsonl"
SOURCE = "video.json"  # which video it is

REMEDY = "Give another --output, or --overwrite to remove these results."

_VIDEO_FILES = (
    rf"{re.escape(OVERLAY)}|{re.escape(CONTACT_SHEET)}|{re.escape(RECORDS)}|{re.escape(SOURCE)}|"
    rf"{MASKS}/\d+_at_[\d.]+s\.png"
)
_ALL_FILES = (
    rf"{re.escape(SETTINGS)}|{re.escape(CARD)}|{SHARDS.replace('.', '[.]').replace('*', '[0-9a-f]{16}')}|"
    rf"{re.escape(TEMPORARY)}.*|{re.escape(LOCK)}|.+/({_VIDEO_FILES})"
)


Row: TypeAlias = Mapping[str, Any]


def differs(earlier: str | None, content: str | None) -> bool:
    """Return whether two contents of [`Videos.fingerprint`] differ; False if one of them is not known."""
    return None not in (earlier, content) and earlier != content


class OutputFolder:
    """The folder of results, opened by one process of a run.

    Args:
        path: The folder. [`begin`] creates it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: BinaryIO | None = None

    def check(self, *, overwrite: bool = False) -> None:
        """Check that the folder contains nothing but results, before anything is computed.

        Args:
            overwrite: Whether all of its files are to be removed, in which case each of them is checked.

        Raises:
            FileExistsError: If it is a file, or a folder with files that pcmanet did not write.
        """
        for path in (self.path, *self.path.parents):
            if path.exists() and not path.is_dir():
                raise FileExistsError(f"{path} is a file. Give another --output.")
        if self.path.is_dir() and not (self.path / SETTINGS).is_file():
            for path in self.path.iterdir():
                if not path.name.startswith((TEMPORARY, LOCK)) and not is_system_file(path.name):
                    raise FileExistsError(
                        f"{self.path} contains {path.name}, which pcmanet did not write. Give another --output, such as "
                        f"{self.path / 'segmented'}."
                    )
        if overwrite:
            self._check_files(self.path, _ALL_FILES)

    def begin(
        self,
        model: str,
        settings: Mapping[str, Any],
        *,
        is_archive: bool,
        overwrite: bool = False,
        is_stale: Callable[[Row], bool] | None = None,
    ) -> None:
        """Prepare the folder. One process calls this before the others [`join`].

        Args:
            model: Name of the checkpoint, for readers of the results.
            settings: Everything on which the results depend, as JSON-serializable values.
            is_archive: Whether to write the card of an archive.
            overwrite: Whether to remove earlier results.
            is_stale: Called with the first row of each video of the archive; the rows of those for which it returns true are
                removed.

        Raises:
            FileExistsError: If the path is a file, or a folder with files that pcmanet did not write.
            ValueError: If the folder was created with other settings.
            BlockingIOError: If another run is writing to it.
            OSError: If its file system does not support locks.
        """
        self.check(overwrite=overwrite)
        self.path.mkdir(parents=True, exist_ok=True)
        self._acquire(fcntl.LOCK_EX)
        recover(self.path)
        if overwrite or not self._results():  # a run may have ended before its first video
            self._clear()
        file = self.path / SETTINGS
        if file.is_file():
            check_settings(self.path, settings, read_json(file, REMEDY)["settings"], REMEDY)
        write_text(file, json.dumps({"model": model, "settings": settings}, indent=2) + "\n")
        if is_archive:
            write_text(self.path / CARD, _card())
        if is_stale is not None:
            remove_videos(self.path, is_stale)
        self._acquire(fcntl.LOCK_SH)

    def join(self, *, first: bool = False) -> None:
        """Join a run. No other run can begin while one of its processes is alive.

        Args:
            first: Whether the run has not begun: this is the first process of a run that has no need to [`begin`].

        Raises:
            BlockingIOError: If another run is writing to the folder.
            OSError: If its file system does not support locks.
        """
        if first:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire(fcntl.LOCK_EX)
        self._acquire(fcntl.LOCK_SH)

    def leave(self) -> None:
        """Leave the run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def publish(self, folder: Path, name: str, video: Mapping[str, str | None]) -> None:
        """Move the complete folder of a video to its place.

        Args:
            folder: A temporary folder in the same file system.
            name: Its new name.
            video: Which video it is, from [`Videos.identify`].

        Raises:
            FileExistsError: If a file that pcmanet did not write has that name, or is in the folder with that name.
            ValueError: If the folder with that name contains the results of another video.
        """
        (folder / SOURCE).write_text(json.dumps(video, indent=2) + "\n", encoding="utf-8")
        target = self.path / name
        if target.exists():  # for example, when the shard with the rows of the video was deleted
            self._check_files(target, _VIDEO_FILES)
            if self.has_video(name):
                # It must not be another video whose name differs only in case, on a case-insensitive disk.
                self.has_changed(name, video)
        replace_folder(folder, target)

    def has_others(self, name: str, video: str | None) -> bool:
        """Return whether there are results other than those of one video in the folder with this name."""
        results = self._results()
        is_known = not results or (self.has_video(name) and self._read_video(name)["video"] == video)
        return not (results <= {name} and is_known)

    def has_video(self, name: str) -> bool:
        """Return whether the folder of a video exists."""
        return (self.path / name / SOURCE).is_file()

    def has_changed(self, name: str, video: Mapping[str, str | None]) -> bool:
        """Return whether the content of a video differs from that of the results in its folder.

        Raises:
            ValueError: If the folder contains the results of another video, or of the video with other audio.
        """
        earlier = self._read_video(name)
        found, given = (
            " with the audio of ".join(filter(None, (each["video"], each["audio"]))) for each in (earlier, video)
        )
        if found != given:
            raise ValueError(f"{self.path / name} contains the results of {found}, not of {given}. {REMEDY}")
        return differs(earlier["content"], video["content"])

    def _read_video(self, name: str) -> dict[str, str | None]:
        """Read which video the results in a folder belong to."""
        return read_json(self.path / name / SOURCE, REMEDY)

    def _acquire(self, kind: int) -> None:
        """Lock the folder, or change the lock of this process. The system releases it even after kill -9."""
        if self._lock is None:
            self._lock = (self.path / LOCK).open("a+b")
        try:
            fcntl.flock(self._lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            self.leave()
            raise BlockingIOError(
                f"Another pcmanet is writing to {self.path}. Wait for it, stop it (`fuser {self.path / LOCK}` lists its "
                "processes), or give another --output."
            ) from None
        except OSError as error:
            self.leave()
            raise OSError(
                f"{self.path / LOCK} cannot be locked: {error.strerror}. One run at a time writes to a folder, so its file "
                "system must support `flock`. Give an --output on another disk, or mount this one with support for locks."
            ) from error

    def _results(self) -> set[str]:
        """Return the names of the shards, and of the folders of videos."""
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        others = (LOCK, SETTINGS, CARD)
        return {name for name in names if not (name in others or name.startswith(TEMPORARY) or is_system_file(name))}

    def _clear(self) -> None:
        """Remove everything but the lock; [`check`] made sure that these are results."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    def _check_files(self, folder: Path, pattern: str) -> None:
        """Raise FileExistsError if a file in a folder that is to be removed does not match a pattern."""
        if folder.is_file():
            raise FileExistsError(f"{folder} is a file that pcmanet did not write. Give another --output.")
        for path in folder.rglob("*"):
            is_known = path.is_dir() or is_system_file(path.name)
            if not is_known and not re.fullmatch(pattern, path.relative_to(folder).as_posix()):
                name = path.relative_to(self.path).as_posix()
                raise FileExistsError(
                    f"{self.path} contains {name}, which pcmanet did not write. Give another --output."
                )


def _card() -> str:
    """Write the card of an archive. `configs` makes `load_dataset` read the shards and no other file."""
    return f"""---
configs:
- config_name: default
  data_files: {SHARDS}
---

# Sounding objects in videos

Written by `pcmanet segment`. `{SETTINGS}` contains the checkpoint and the settings. A row is a segment. A network frame
without sounding objects is a row without a label, and a failed video is a row with its error. The rows of a video are
consecutive and in chronological order.

{describe_columns()}"""


# The records of a video.


class RecordedResults(Sequence[dict[str, Any]]):
    """The results of a pipeline for one video, in a file that is read one network frame at a time.

    Args:
        path: The file, which [`add`] creates.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = array("Q")  # where each line begins: only these 8 bytes per network frame are in memory

    def add(self, result: Mapping[str, Any], size: tuple[int, int]) -> None:
        """Write the next result.

        Args:
            result: `{"timestamp", "segments"}` dictionary of a pipeline.
            size: (height, width) of the video in pixels.
        """
        record = describe_result(len(self), result, size)
        with self.path.open("ab") as file:
            self._starts.append(file.tell())
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the file, with encoded masks."""
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


def describe_result(number: int, result: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Describe one result as JSON-serializable values.

    Args:
        number: Index of the network frame.
        result: `{"timestamp", "segments"}` dictionary of a pipeline.
        size: (height, width) of the video in pixels.

    Returns:
        `{"frame", "timestamp", "height", "width", "segments"}` with `{"label", "score", "segmentation"}` of each segment, its mask from
        [`encode_mask`], and `"heard"` if the result has it.
    """
    record = {"frame": number, "timestamp": result["timestamp"], "height": size[0], "width": size[1]}
    record["segments"] = [
        {"label": segment["label"], "score": segment["score"], "segmentation": encode_mask(segment["mask"])}
        for segment in result["segments"]
    ]
    return record | ({"heard": result["heard"]} if "heard" in result else {})


def encode_mask(mask: Image.Image) -> dict[str, Any]:
    """Encode a mask in COCO's compressed run-length encoding.

    Args:
        mask: Image of mode "L": 255 inside, 0 outside.

    Returns:
        `{"size": [height, width], "counts": str}`.
    """
    code: Any = coco.encode(np.asfortranarray(np.asarray(mask) > 0, dtype=np.uint8))
    return {"size": [int(length) for length in code["size"]], "counts": code["counts"].decode("ascii")}


def decode_mask(segmentation: Mapping[str, Any]) -> Image.Image:
    """Decode a mask from [`encode_mask`].

    Args:
        segmentation: `{"size": [height, width], "counts": str}`.

    Returns:
        Image of mode "L": 255 inside, 0 outside.
    """
    code: Any = dict(segmentation)
    return Image.fromarray(coco.decode(code) * np.uint8(255))


# The archive of many videos.

SEGMENTATION = pyarrow.struct([("size", pyarrow.list_(pyarrow.int32())), ("counts", pyarrow.string())])

# Name -> type and meaning, as in docs/reference/results.md and in the card of every archive.
COLUMNS: dict[str, tuple[pyarrow.DataType, str]] = {
    "video": (pyarrow.string(), "path, URL or name of the video, as it was given"),
    "frame": (pyarrow.int32(), "index of the network frame, from 0; null in the row of a failed video"),
    "timestamp": (pyarrow.float64(), "time of the frame in the video, in seconds"),
    "height": (pyarrow.int32(), "height of the video, in pixels"),
    "width": (pyarrow.int32(), "width of the video, in pixels"),
    "label": (pyarrow.string(), "class of the sounding object; null if nothing sounds"),
    "score": (pyarrow.float32(), "mean probability inside the mask, 0 to 1"),
    "segmentation": (SEGMENTATION, "the mask in COCO run-length encoding: `size` (height, width) and `counts`"),
    "error": (pyarrow.string(), "why the video failed; null if it was segmented"),
    "origin": (
        pyarrow.string(),
        "digest of the absolute path, URL or dataset row for which the name in `video` stands",
    ),
    "content": (pyarrow.string(), "size, time and digest of the file and of its `--audio`; null for a URL"),
}
SCHEMA = pyarrow.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])

FRAMES_PER_BATCH = 256  # a few megabytes, even if every frame has many segments
ROW_GROUP_BYTES = 16 * 2**20  # a row group is in memory until it is complete; readers also hold one at a time
ROW_GROUP_ROWS = 20_000
SHARD_BYTES = 512 * 2**20  # in memory; about a fifth of it on the disk


def describe_columns() -> str:
    """Return the columns as a Markdown table."""
    lines = [
        f"| `{name}` | {kind if name != 'segmentation' else 'struct'} | {meaning} |"
        for name, (kind, meaning) in COLUMNS.items()
    ]
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *lines]) + "\n"


def rows_of_video(identity: Row, records: Iterable[Mapping[str, Any]]) -> Iterator[pyarrow.RecordBatch]:
    """Convert the records of a video to rows.

    Args:
        identity: Values of the columns `video`, `origin` and `content`.
        records: The lines of [`RecordedResults`], in chronological order.

    Yields:
        Batches of [`SCHEMA`], each with the rows of up to 256 network frames.
    """
    rows: list[dict[str, Any]] = []
    for number, record in enumerate(records, start=1):
        frame = {**identity, **{name: record[name] for name in ("frame", "timestamp", "height", "width")}}
        rows += [frame | dict(segment) for segment in record["segments"]] or [frame]
        if number % FRAMES_PER_BATCH == 0:
            yield pyarrow.RecordBatch.from_pylist(rows, SCHEMA)
            rows = []
    if rows:
        yield pyarrow.RecordBatch.from_pylist(rows, SCHEMA)


def row_of_error(identity: Row, error: str) -> pyarrow.RecordBatch:
    """Return the row of a failed video, see [`rows_of_video`]."""
    return pyarrow.RecordBatch.from_pylist([{**identity, "error": error}], SCHEMA)


class ShardWriter:
    """Write the rows of videos to one shard after another. A shard appears only when it is complete.

    Args:
        folder: The folder of the shards.
        seconds: Time after which a shard with rows is published; 0 publishes after each video.
        clock: Returns the time in seconds.
    """

    def __init__(self, folder: Path, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self.seconds = seconds
        self._clock = clock
        self._writer: pyarrow.parquet.ParquetWriter | None = None  # of the open shard

    def add(self, video: str, rows: Iterable[pyarrow.RecordBatch]) -> None:
        """Add all rows of a video. They are published together.

        Args:
            video: Value of the column `video`.
            rows: All of its rows, one batch at a time. If they end with an error, the open shard is discarded, and with it
                the other videos since the last publication.
        """
        writer = self._writer or self._open()
        try:
            self._videos.append(video)
            for batch in rows:
                self._waiting.append(batch)
                self._bytes += batch.nbytes
                if sum(waiting.nbytes for waiting in self._waiting) >= ROW_GROUP_BYTES:
                    self._write_group(writer)
        except BaseException:
            self.discard()
            raise
        if self._clock() - self._begun >= self.seconds or self._bytes >= SHARD_BYTES:
            self.publish()

    def add_error(self, identity: Row, error: str) -> None:
        """Add the row of a failed video, see [`rows_of_video`]."""
        self.add(identity["video"], [row_of_error(identity, error)])

    def publish(self) -> None:
        """Complete the open shard and give it its name, if there is one."""
        writer, self._writer = self._writer, None  # no shard is open, even after an error
        if writer is not None:
            self._write_group(writer)
            writer.close()
            replace_file(self._temporary, self.folder / shard_name(self._videos))

    def discard(self) -> None:
        """Remove the open shard, if there is one."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            self._temporary.unlink(missing_ok=True)

    def _open(self) -> pyarrow.parquet.ParquetWriter:
        """Open a shard under a temporary name."""
        self._temporary = temporary_path(self.folder / SHARDS)
        self._writer = pyarrow.parquet.ParquetWriter(self._temporary, SCHEMA, compression="zstd")
        self._begun = self._clock()
        self._bytes = 0
        self._videos: list[str] = []
        self._waiting: list[pyarrow.RecordBatch] = []
        return self._writer

    def _write_group(self, writer: pyarrow.parquet.ParquetWriter) -> None:
        """Write the waiting rows as one row group."""
        if self._waiting:
            writer.write_table(pyarrow.Table.from_batches(self._waiting), row_group_size=ROW_GROUP_ROWS)
            self._waiting = []


def shard_name(videos: Iterable[str]) -> str:
    """Return the name of a shard, a hash of its videos in any order, so the same videos replace it."""
    digest = hashlib.sha256("\0".join(sorted(videos)).encode("utf-8", "surrogateescape"))
    return SHARDS.replace("*", digest.hexdigest()[:16])


def read_archive(folder: Path) -> dict[str, bool]:
    """Read which videos are in the shards.

    Args:
        folder: The folder of the shards.

    Returns:
        The values of `video` and of `origin`, and for both whether the video was segmented (otherwise it failed).

    Raises:
        ValueError: If a shard cannot be read or has other columns, or a video is in two of them.
    """
    done: dict[str, bool] = {}
    origins: dict[str, bool] = {}
    for path in sorted(folder.glob(SHARDS)):
        videos: dict[str, bool] = {}
        for table in _row_groups(path, ["video", "origin", "error"]):
            segmented = table["error"].is_null().to_pylist()
            videos |= dict(zip(table["video"].to_pylist(), segmented, strict=True))
            origins |= {
                key: ok for key, ok in zip(table["origin"].to_pylist(), segmented, strict=True) if key is not None
            }
        if twice := sorted(videos.keys() & done.keys()):
            raise ValueError(
                f"{path} contains {twice[0]}, which another shard in {folder} contains too. Remove one of the two shards "
                "and run the same command again; its other videos are then segmented again."
            )
        done |= videos
    return origins | done


def remove_videos(folder: Path, is_stale: Callable[[Row], bool]) -> int:
    """Remove videos from the shards, so that they are processed again.

    Args:
        folder: The folder of the shards.
        is_stale: Called with `video`, `origin`, `content` and `error` of each video: whether to remove it. If it raises an
            error, no video is removed.

    Returns:
        The number of videos removed.
    """
    stale: dict[Path, set[str]] = {}
    for path in sorted(folder.glob(SHARDS)):
        for table in _row_groups(path, ["video", "origin", "content", "error"]):
            rows = table.group_by(table.column_names).aggregate([]).to_pylist()
            stale.setdefault(path, set()).update(row["video"] for row in rows if is_stale(row))
    for path, videos in stale.items():
        if videos:
            _rewrite_without(path, videos)
    return sum(map(len, stale.values()))


def _rewrite_without(path: Path, videos: set[str]) -> None:
    """Replace a shard, in one step, with its rows of all but some videos."""
    temporary = temporary_path(path)
    kept = 0
    with pyarrow.parquet.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        for table in _row_groups(path, SCHEMA.names):
            rest = table.filter(~pyarrow.compute.field("video").isin(list(videos)))
            writer.write_table(rest)
            kept += rest.num_rows
    if kept:
        replace_file(temporary, path)
    else:
        path.unlink()
        temporary.unlink()


def _row_groups(path: Path, columns: list[str]) -> Iterator[pyarrow.Table]:
    """Yield columns of a shard, one row group at a time."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if not file.schema_arrow.equals(SCHEMA):
                raise ValueError(f"its columns are {', '.join(file.schema_arrow.names)}")
            for number in range(file.num_row_groups):
                yield file.read_row_group(number, columns)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not a complete shard of pcmanet: {str(error).rstrip('.')}. Remove it and run the same command again; its videos are "
            "then segmented again."
        ) from error
