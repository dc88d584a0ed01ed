"""The rows of an archive: what they are, in one place, and how a video's records become rows.

Every segment is a row. A network frame in which nothing sounds is one row without label, score and segmentation, and a
video that could not be segmented is one row with an error, so that every video that was looked at has a row.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow


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
