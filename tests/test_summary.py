"""Tests of command/summary.py."""

from pathlib import Path

import numpy as np
from PIL import Image

from pcmanet.command.records import RecordedResults
from pcmanet.command.summary import SHOWN_FRAMES, Outcome, format_table, summarize


def recorded(path: Path, *found: tuple[str, ...]) -> RecordedResults:
    """One network frame per argument; every mask covers a quarter of the picture."""
    mask = Image.fromarray(np.kron([[1, 0], [0, 0]], np.ones((2, 3))).astype(np.uint8) * 255)
    results = RecordedResults(path / "segments.jsonl")
    frames = (
        {"timestamp": float(number), "segments": [{"label": label, "score": 0.5, "mask": mask} for label in labels]}
        for number, labels in enumerate(found)
    )
    results.write(frames, (4, 6))
    return results


def test_one_line(tmp_path: Path):
    results = recorded(tmp_path, ("dog",), (), ("cat", "dog"))
    assert summarize("a.mp4", results) == Outcome("a.mp4", 3, (("dog", 2), ("cat", 1)))
    assert summarize("a.mp4", results).line == "a.mp4: dog 2, cat 1 (3 frames)"
    assert summarize("b.mp4", recorded(tmp_path, (), ())).line == "b.mp4: nothing sounds (2 frames)"
    assert Outcome("c.mp4", error="no sound").line == "failed: c.mp4: no sound"


def test_table(tmp_path: Path):
    assert format_table(recorded(tmp_path, ("dog", "a very long label"), ())).splitlines() == [
        "  second  what sounds        score  share of the picture",
        "    0.00  dog                 0.50                 25.0%",
        "          a very long label   0.50                 25.0%",
        "    1.00  nothing",
    ]


def test_table_of_a_long_video_ends(tmp_path: Path):
    lines = format_table(recorded(tmp_path, *[()] * (SHOWN_FRAMES + 7))).splitlines()
    assert len(lines) == SHOWN_FRAMES + 2
    assert lines[-1].strip() == "...  and 7 more frames"
