"""Shards: parquet files of rows that appear whole or not at all, and hold every video's rows in one file.

A shard is written aside under a hidden name, brought to the disk and renamed. What is done is read from the shards alone:
there is no second record that could disagree with them. A shard is named after the videos in it, so that work done twice
by machines that lost sight of each other replaces itself and is never there twice.
"""

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet


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
