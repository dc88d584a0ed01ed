"""Tests of command/records.py."""

import json

import numpy as np
import pytest
from PIL import Image

from pcmanet.command.records import RecordedResults, decode_mask, encode_mask


def mask(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 2, (5, 7), dtype=np.uint8) * 255)


@pytest.mark.parametrize("value", [0, 255])
def test_mask_of_one_value(value: int):
    plain = Image.new("L", (7, 5), value)
    code = encode_mask(plain)
    assert code["size"] == [5, 7]
    assert decode_mask(code).getextrema() == (value, value)


def test_mask_comes_back():
    assert decode_mask(encode_mask(mask(0))).tobytes() == mask(0).tobytes()


def test_results_come_back_one_by_one(tmp_path):
    results = [
        {"timestamp": 0.92, "segments": [{"score": 0.75, "label": "chien \u00e9tonn\u00e9", "mask": mask(1)}]},
        {"timestamp": 1.92, "segments": []},
        {"timestamp": 2.92, "segments": [{"score": 0.5, "label": label, "mask": mask(2)} for label in ("a", "b")]},
    ]
    recorded = RecordedResults(tmp_path / "segments.jsonl")
    recorded.write(iter(results), (5, 7))
    assert len(recorded) == 3
    for number in (2, 0, 1, -1):
        back, original = recorded[number], results[number]
        assert back["timestamp"] == original["timestamp"]
        for found, expected in zip(back["segments"], original["segments"], strict=True):
            assert found.pop("mask").tobytes() == expected["mask"].tobytes()
            assert found == {"score": expected["score"], "label": expected["label"]}
    assert [len(result["segments"]) for result in recorded] == [1, 0, 2]
    with pytest.raises(IndexError):
        recorded[3]


def test_lines_are_json_that_others_read(tmp_path):
    recorded = RecordedResults(tmp_path / "segments.jsonl")
    recorded.write([{"timestamp": 0.5, "segments": [{"score": 1.0, "label": "dog", "mask": mask(3)}]}], (5, 7))
    (line,) = (tmp_path / "segments.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record == next(recorded.records())
    assert {name: record[name] for name in ("frame", "timestamp", "height", "width")} == {
        "frame": 0,
        "timestamp": 0.5,
        "height": 5,
        "width": 7,
    }
    assert decode_mask(record["segments"][0]["segmentation"]).tobytes() == mask(3).tobytes()
