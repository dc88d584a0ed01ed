"""Tests of src/pcmanet/cli/progress.py."""

import contextlib
import io
import logging
import time

import pytest

from pcmanet.cli.progress import MAXIMUM_NAME_LENGTH, Progress


def test_videos_and_time_left(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress("segmenting", 4, 1) as progress:
        progress.finish_one()
        progress.print("a.mp4: dog 3")
        progress.print("failed: b.mp4: no audio", failed=True)
    captured = capsys.readouterr()
    assert captured.out == "a.mp4: dog 3\n"
    assert "failed: b.mp4: no audio\n" in captured.err
    assert "segmenting:  50%" in captured.err
    assert "2/4" in captured.err


def test_time_left_after_a_resume(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress("segmenting", 100, 97) as progress:
        progress._bar.start_t -= 40
        progress._bar.last_print_t -= 40
        progress.finish_one()
    # Two videos are left, of which each takes 40 s; the 97 of the earlier run took no time of this one.
    assert "98/100 [00:40<01:20" in capsys.readouterr().err


def test_single_video_has_no_bar_of_videos(capsys: pytest.CaptureFixture):
    with Progress("segmenting", 1) as progress:
        progress.finish_one()
    assert capsys.readouterr().err == ""


def test_log_file_gets_a_line_per_minute(capsys: pytest.CaptureFixture):
    now = [0.0]
    with Progress("segmenting", 10, 2, clock=lambda: now[0]) as progress:
        for _ in range(8):
            now[0] += 20.0
            progress.finish_one()
    lines = capsys.readouterr().err.split("\n")
    assert lines == [
        "segmenting: 2 of 10 videos",
        "segmenting: 5 of 10 videos, 01:40 left",
        "segmenting: 8 of 10 videos, 00:40 left",
        "segmenting: 10 of 10 videos",
        "",
    ]


def test_stage_on_a_terminal(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("pcmanet.cli.progress.SECONDS_BEFORE_SHOWN", 0)
    with Progress("segmenting", 1) as progress, progress.stage("x" * 50, 20.0) as advance:
        for second in (5.0, 4.0, 10.0, 25.0):  # never backwards, and not beyond what the video declares
            time.sleep(0.12)  # tqdm draws every 0.1 s
            advance(second)
    shown = capsys.readouterr().err
    assert "100% 20 of 20 s [" in shown
    assert f"...{'x' * (MAXIMUM_NAME_LENGTH - 3)}: " in shown
    assert "of 20 s [" in shown


def test_long_video_gets_a_line_per_minute_in_a_log_file(capsys: pytest.CaptureFixture):
    now = [0.0]
    with Progress("segmenting", 1, clock=lambda: now[0]) as progress:
        for name, seconds in (("a.mp4", 1200.0), ("b.mp4", None)):
            with progress.stage(name, seconds) as advance:
                for position in (100.9375, 200.9375, 300.9375, 400.9375):
                    now[0] += 30.0
                    advance(position)
    assert capsys.readouterr().err.splitlines() == [
        "a.mp4:  17% 200 of 1200 s [01:00<05:00,  3.33s/s]",
        "a.mp4:  33% 400 of 1200 s [02:00<04:00,  3.33s/s]",
        "b.mp4: 200s [01:00,  3.33s/s]",
        "b.mp4: 400s [02:00,  3.33s/s]",
    ]


def test_short_or_hidden_stage_in_a_log_file(capsys: pytest.CaptureFixture):
    now = [0.0]
    for hidden, seconds in ((False, 59.0), (True, 100.0)):
        with (
            Progress("segmenting", 9, hidden=hidden, clock=lambda: now[0]) as progress,
            progress.stage("a.mp4", None) as advance,
        ):
            now[0] += seconds
            advance(3.0)
    assert "a.mp4" not in capsys.readouterr().err


def test_notes_are_printed_above_the_bars(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress("segmenting", 4) as progress:
        progress.finish_one()
        logging.getLogger("modeling_pcmanet.media_pcmanet").warning("a.mp4: its audio starts late")
    lines = [line.split("\r")[-1] for line in capsys.readouterr().err.split("\n")]
    assert "a.mp4: its audio starts late" in lines


def test_a_full_disk_of_the_output_is_named(monkeypatch: pytest.MonkeyPatch):
    with open("/dev/full", "w") as output, Progress("segmenting", 1) as progress:
        monkeypatch.setattr("sys.stdout", output)
        with pytest.raises(OSError, match="No space left on device: 'standard output'"):
            progress.print("a.mp4: dog 3")
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            output.close()


def test_lines_reach_a_log_file_at_once(monkeypatch: pytest.MonkeyPatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw))
    with Progress("segmenting", 4) as progress:
        progress.print("a.mp4: dog 3")
        assert raw.getvalue() == b"a.mp4: dog 3\n"
