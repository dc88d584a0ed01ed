"""Windows, blends and the thread, without files and networks."""

import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pcmanet.pipelines.windows import (
    FrameLogits,
    ReadAhead,
    Window,
    batch_of,
    blend_windows,
    check_overlap,
    fading_weights,
    logits_at_masks,
    overlapping_windows,
    read_ahead,
    return_freed_memory,
    up_to_last,
)


def frames(number: int) -> list[dict]:
    return [
        {
            "timestamp": float(index),
            "original_size": (4, 6),
            "mask_timestamps": (float(index),),
            "pixel_values": torch.full((3, 2, 2), float(index)),
            "input_features": torch.full((1, 96, 64), float(index)),
        }
        for index in range(number)
    ]


def cut(number: int, length: int, overlap: int) -> list[list[int]]:
    windows = list(overlapping_windows(iter(frames(number)), length, overlap))
    assert [window.is_last for window in windows] == [False] * (len(windows) - 1) + [True]
    assert sum(window.fresh for window in windows) == number
    return [[int(frame["timestamp"]) for frame in window.frames] for window in windows]


@pytest.mark.parametrize(
    ("number", "length", "overlap", "starts"),
    [
        (1, 10, 2, [0]),
        (10, 10, 2, [0]),
        (11, 10, 2, [0, 1]),
        (18, 10, 2, [0, 8]),
        (19, 10, 2, [0, 8, 9]),
        (26, 10, 2, [0, 8, 16]),
        (6, 3, 0, [0, 3]),
        (7, 3, 0, [0, 3, 4]),
        (5, 4, 3, [0, 1]),
        (3, 1, 0, [0, 1, 2]),
    ],
)
def test_windows_cover_a_clip(number: int, length: int, overlap: int, starts: list[int]):
    expected = [list(range(start, min(start + length, number))) for start in starts]
    assert cut(number, length, overlap) == expected


def test_a_fifth_is_shared_by_default():
    windows = list(overlapping_windows(iter(frames(18)), 10))
    assert [(window.fresh, window.overlap) for window in windows] == [(10, 2), (8, 2)]


def test_windows_share_fewer_frames_than_they_have():
    check_overlap(4, 3)
    with pytest.raises(ValueError, match="window_overlap is .*fewer than the 4 of a window, got 4"):
        check_overlap(4, 4)


def test_no_frames_are_no_windows():
    assert list(overlapping_windows(iter([]), 10, 2)) == []


@pytest.mark.parametrize("number", [1, 3, 4, 5, 8, 9, 23])
def test_equal_windows_blend_to_themselves(number: int):
    values = torch.randn(number, 2, 3, 3, dtype=torch.float64)
    windows = overlapping_windows(iter(frames(number)), 4, 2)
    outputs = ((window, torch.stack([values[int(f["timestamp"])] for f in window.frames])) for window in windows)
    blended = list(blend_windows(outputs))
    assert [frame.timestamp for frame in blended] == [float(index) for index in range(number)]
    torch.testing.assert_close(torch.stack([frame.logits for frame in blended]), values)


def test_a_seam_becomes_a_slope():
    windows = list(overlapping_windows(iter(frames(8)), 5, 2))
    levels = [torch.full((5, 1, 1, 1), float(level)) for level in range(2)]
    blended = [frame.logits.item() for frame in blend_windows(zip(windows, levels, strict=True))]
    assert blended == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1])
    assert fading_weights(5, 2) == pytest.approx([1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])


def test_frames_are_given_as_soon_as_no_window_can_change_them():
    windows, seen = list(overlapping_windows(iter(frames(8)), 5, 2)), []

    def outputs() -> Iterator[tuple[Window, torch.Tensor]]:
        for number, window in enumerate(windows):
            seen.append(number)
            yield window, torch.zeros(5, 1, 1, 1)

    after = [(frame.timestamp, len(seen)) for frame in blend_windows(outputs())]
    assert after == [(0.0, 2), (1.0, 2), (2.0, 2), (3.0, 2), (4.0, 2), (5.0, 2), (6.0, 2), (7.0, 2)]


def test_logits_between_frames_are_in_proportion_to_time():
    def frame(timestamp: float, level: float, *moments: float) -> FrameLogits:
        return FrameLogits(timestamp, torch.tensor([level]), (1, 1), moments)

    given = [frame(1.0, 10.0, 0.0, 1.0), frame(3.0, 20.0, 1.5, 2.0), frame(3.0, 40.0, 2.9), frame(4.0, 0.0, 3.5, 4.5)]
    levels = [(each.timestamp, each.logits.item()) for each in logits_at_masks(given)]
    assert levels == [(0.0, 10.0), (1.0, 10.0), (1.5, 12.5), (2.0, 15.0), (2.9, 40.0), (3.5, 20.0), (4.5, 0.0)]


def test_windows_of_several_clips_are_told_apart():
    windows = [Window((), 0, 0, is_last) for is_last in (False, True, True, False)]
    outputs = iter([(window, torch.zeros(0)) for window in windows])
    assert [len(list(up_to_last(outputs))) for _ in range(3)] == [2, 1, 1]


def test_a_batch_pads_shorter_windows():
    batch = batch_of([frames(3), frames(2)], torch.float16)
    assert batch["frame_mask"].tolist() == [[True] * 3, [True, True, False]]
    assert batch["pixel_values"].shape == (2, 3, 3, 2, 2)
    assert batch["pixel_values"].dtype == batch["input_features"].dtype == torch.float16
    assert batch["pixel_values"][1, :, 0, 0, 0].tolist() == [0.0, 1.0, 0.0]


class TestReadAhead:
    def test_gives_everything_in_order(self):
        assert list(ReadAhead((number for number in range(50)), 3)) == list(range(50))

    def test_runs_only_so_far_ahead(self):
        made = []

        def items() -> Iterator[int]:
            for number in range(100):
                made.append(number)
                yield number

        reader = ReadAhead(items(), 3)
        assert next(reader) == 0
        time.sleep(0.3)
        assert len(made) <= 5
        reader.close()

    def test_an_error_comes_in_its_place(self):
        def items() -> Iterator[int]:
            yield 1
            raise OSError("the disk went away")

        reader = ReadAhead(items(), 3)
        assert next(reader) == 1
        with pytest.raises(OSError, match="disk went away"):
            next(reader)
        assert list(reader) == []

    def test_closing_ends_thread_and_generator(self):
        ended = threading.Event()

        def items() -> Iterator[int]:
            try:
                while True:
                    yield 0
            finally:
                ended.set()

        reader = ReadAhead(items(), 1)
        next(reader)
        reader.close()
        reader.close()
        assert ended.is_set()
        assert list(reader) == []

    def test_takes_all_that_waits(self):
        reader = ReadAhead((number for number in range(5)), 10)
        reader._thread.join()
        assert reader.take_waiting() == [0, 1, 2, 3, 4]
        assert reader.take_waiting() == []

    @pytest.mark.parametrize("at_once", [1, 2, 5])
    def test_clips_come_one_after_the_other(self, at_once: int):
        clips = ((clip * 10 + number for number in range(3)) for clip in range(4))
        expected = [clip * 10 + number for clip in range(4) for number in range(3)]
        assert list(read_ahead(clips, at_once, 2)) == expected

    def test_closing_the_chain_closes_every_thread(self):
        clips = ((number for number in range(100)) for _ in range(4))
        chain = read_ahead(clips, 3, 2)
        next(chain)
        chain.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_freed_memory_goes_back_to_the_system():
    # Blocks small enough for the heap, and one at its end in use: glibc alone returns nothing of what is before it.
    blocks = [bytes(64 * 1024) for _ in range(640)]
    last = blocks[-1]
    del blocks
    before = resident_bytes() if platform.libc_ver()[0] == "glibc" else 0
    return_freed_memory()
    if before:
        assert before - resident_bytes() > 20 * 2**20
    assert len(last) == 64 * 1024


def test_freed_memory_goes_back_after_each_window(monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    monkeypatch.setattr("pcmanet.pipelines.windows._TRIM", calls.append)
    windows = overlapping_windows(iter(frames(8)), 5, 2)
    after = [(frame.timestamp, len(calls)) for frame in blend_windows((w, torch.zeros(5, 1, 1, 1)) for w in windows)]
    assert after == [(float(index), 2) for index in range(8)]
    assert calls == [0, 0]
