"""Tests of command/archive_rows.py."""

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from pcmanet.command.archive_rows import (
    COLUMNS,
    FRAMES_PER_BATCH,
    SCHEMA,
    describe_columns,
    row_of_error,
    rows_of_video,
)
from pcmanet.command.records import encode_mask


def record(number: int, *labels: str) -> dict:
    mask = Image.new("L", (4, 3))
    mask.paste(255, (1, 0, 3, 2))
    segments = [{"label": label, "score": 0.5, "segmentation": encode_mask(mask)} for label in labels]
    return {"frame": number, "timestamp": number + 0.9375, "height": 3, "width": 4, "segments": segments}


def test_a_row_per_segment_and_one_for_silence():
    (batch,) = rows_of_video("a.mp4", [record(0, "dog", "cat"), record(1)])
    assert batch.schema.equals(SCHEMA)
    dog, cat, silence = batch.to_pylist()
    assert (dog["video"], dog["frame"], dog["timestamp"], dog["label"]) == ("a.mp4", 0, 0.9375, "dog")
    assert cat == dog | {"label": "cat"}
    expected = np.array([[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    assert (coco.decode(dog["segmentation"]) == expected).all()
    empty = {"label": None, "score": None, "segmentation": None, "error": None}
    assert silence == {"video": "a.mp4", "frame": 1, "timestamp": 1.9375, "height": 3, "width": 4, **empty}


def test_long_videos_come_in_batches():
    batches = list(rows_of_video("a.mp4", (record(number) for number in range(FRAMES_PER_BATCH * 2 + 1))))
    assert [batch.num_rows for batch in batches] == [FRAMES_PER_BATCH, FRAMES_PER_BATCH, 1]
    assert [row["frame"] for batch in batches for row in batch.to_pylist()] == list(range(FRAMES_PER_BATCH * 2 + 1))


def test_an_error_is_a_row():
    (row,) = row_of_error("b.mp4", "no sound track").to_pylist()
    assert row.pop("video") == "b.mp4"
    assert row.pop("error") == "no sound track"
    assert set(row.values()) == {None}


def test_every_column_is_described():
    table = describe_columns()
    assert [line.split("`")[1] for line in table.splitlines()[2:]] == list(COLUMNS) == SCHEMA.names
    assert "| `timestamp` | double |" in table
