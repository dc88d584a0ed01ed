"""examples/segment_live.py: a file played as live input, and devices: FFmpeg's generated ones, missing and lost ones."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from odd_media import Track, every, onset, write_odd_video

from modeling_pcmanet.media_pcmanet import iterate_frames
from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.examples import segment_live


ROOT = Path(__file__).parent.parent
MODEL = ROOT / "examples" / "demo_model_semantic"
SCRIPT = ROOT / "examples" / "segment_live.py"
MICROPHONE = "lavfi", "sine,arealtime"


def camera(options: str) -> tuple[str, str]:
    """A generated camera of FFmpeg, in real time also with pauses of more than the 2 s at which `realtime` stops waiting."""
    return "lavfi", f"testsrc=size=64x48:{options},realtime=limit=60"


def record(*devices: tuple[str, str], seconds: float | None = None) -> tuple[segment_live.Recorder, list[Any]]:
    """Record from a camera and a microphone until the input ends."""
    with closing(segment_live.Devices(*devices)) as opened:
        recorder = segment_live.Recorder(opened.chunks(), seconds, keeps_frames=True)
        return recorder, list(recorder.chunks())


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_file_is_played_as_live_input(tmp_path: Path):
    output = tmp_path / "live.mp4"
    result = run(
        "--input", ROOT / "examples" / "demo.mp4", "--model", MODEL, "--output", output, "--frames-per-second", 1
    )
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines() if " ago " in line]
    timestamps = [float(line[0]) for line in lines]
    assert timestamps == sorted(timestamps)
    assert timestamps[-1] > 4
    assert "gridded-cross" in result.stdout
    frames = [frame for _, frame in iterate_frames(output)]
    assert len(frames) == 5
    assert frames[0].shape == (256, 256, 3)


@pytest.mark.slow
def test_stops_after_the_given_time():
    result = run("--input", ROOT / "examples" / "demo.mp4", "--seconds", 2)
    assert result.returncode == 0, result.stderr
    timestamps = [float(line.split()[0]) for line in result.stdout.splitlines() if " ago " in line]
    assert max(timestamps) < 2


@pytest.mark.parametrize(
    ("times", "track", "start"),
    [
        (every(), Track(), 1.0),
        (every(), Track(start=2.0, seconds=2.0), 2.0),
        (every(), Track(start=2.5, seconds=9.0), 2.5),
        (every(start=2.0), Track(seconds=6.0), 0.0),
        (every(start=0.5), Track(seconds=4.0), 0.5),
    ],
)
def test_frames_and_audio_of_a_file_are_on_one_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: list[float], track: Track, start: float
):
    """Also if one of them starts late. Audio arrives as from a microphone, or up to a second late where there is a hole."""
    path = write_odd_video(tmp_path / "clip.mkv", times=times, tracks=[track])
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, sleep=lambda seconds: advance(seconds))

    def advance(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(segment_live, "time", clock)
    pieces, seconds = [], []
    with segment_live.play(path) as (chunks, rate):
        for frames, timestamps, samples in chunks:
            seconds += timestamps
            if frames:
                assert len(frames) == 1 and clock.now == pytest.approx(timestamps[0])
            else:
                pieces.append(samples)
                heard = sum(piece.shape[1] for piece in pieces) / rate
                assert clock.now - 1.3 <= heard <= clock.now
    assert max(piece.shape[1] for piece in pieces) <= 0.1 * rate
    np.testing.assert_allclose(seconds, every(), atol=0.002)
    assert onset(np.concatenate(pieces, axis=1), rate) == pytest.approx(start, abs=0.05)


def test_devices_give_frames_and_audio_on_one_clock():
    recorder, chunks = record(camera("rate=8"), MICROPHONE, seconds=1)
    assert recorder.failure is None
    times = [seconds for _, timestamps, _ in chunks for seconds in timestamps]
    assert times == sorted(times)
    assert 4 <= len(times) <= 10
    samples = sum(len(audio) for _, _, audio in chunks if audio is not None)
    assert samples / 44100 == pytest.approx(times[-1], abs=0.5)


def test_a_lost_device_ends_the_input_with_its_name():
    recorder, chunks = record(camera("rate=8:duration=0.5"), MICROPHONE)
    assert chunks
    assert str(recorder.failure) == "The camera stopped: it has ended. Check its connection and start again."


def test_a_device_that_gives_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(segment_live, "LONGEST_PAUSE_SECONDS", 0.5)
    monkeypatch.setattr(segment_live, "SECONDS_TO_END", 0.1)
    recorder, _ = record(camera("rate=1/5"), MICROPHONE, seconds=60)
    assert str(recorder.failure).startswith("The camera sent no data for 0.5 s. Check that it is connected")


def test_a_device_of_another_kind_is_an_error():
    with pytest.raises(OSError, match="is not a microphone. Choose one with --microphone"):
        segment_live.Devices(camera("rate=8"), camera("rate=8"))


def test_damaged_frames_and_empty_devices_do_not_end_the_input():
    def damaged() -> Any:
        raise av.error.InvalidDataError(1, "damaged")

    tries: list[int] = []

    def demux(_: Any) -> Iterator[Any]:
        tries.append(1)
        yield SimpleNamespace(decode=damaged)
        yield SimpleNamespace(decode=lambda: [len(tries)])
        if len(tries) == 1:
            raise av.error.BlockingIOError(errno.EAGAIN, "no frame yet")

    assert list(segment_live.device_frames(SimpleNamespace(demux=demux), None)) == [1, 2]


def test_recorder_releases_the_frames_before_the_one_drawn():
    chunks = [([np.full((1, 1, 3), number)], [float(number)], None) for number in range(6)]
    recorder = segment_live.Recorder(iter(chunks), None, keeps_frames=True)
    list(recorder.chunks())
    assert recorder.now == 5
    assert recorder.frame_at(3.2)[0, 0, 0] == 3
    assert recorder.frame_at(0.0)[0, 0, 0] == 3


@pytest.mark.parametrize(("output", "message"), [("a.avi", "end in .mp4"), ("missing/a.mp4", "create it first")])
def test_output_is_checked_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, output: str, message: str
):
    monkeypatch.setattr(sys, "argv", ["segment_live.py", "--output", output])
    with pytest.raises(SystemExit, match="2"):
        segment_live.parse_args()
    assert message in capsys.readouterr().err


def test_the_input_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    clip, link = tmp_path / "clip.MP4", tmp_path / "link.mp4"
    clip.write_bytes(b"a video")
    link.symlink_to(clip)
    monkeypatch.chdir(tmp_path)
    for output in (clip, link, Path("clip.MP4")):
        monkeypatch.setattr(sys, "argv", ["segment_live.py", "--input", str(clip), "--output", str(output)])
        with pytest.raises(SystemExit, match="2"):
            segment_live.parse_args()
        assert f"--output {str(output)!r} is the file of --input" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["segment_live.py", "--input", str(clip), "--output", "other.MP4"])
    assert segment_live.parse_args().output == Path("other.MP4")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_input_and_completes_the_video(tmp_path: Path, number: signal.Signals):
    output = tmp_path / "live.mp4"
    formats = ["--camera-format", "lavfi", "--microphone-format", "lavfi"]
    names = ["--camera", camera("rate=8")[1], "--microphone", MICROPHONE[1]]
    command = [sys.executable, SCRIPT, *formats, *names, "--model", MODEL, "--output", output]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert " ago " in process.stdout.readline()
        time.sleep(1)
        os.kill(process.pid, number)
        shown, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert "Stopped." in errors
    assert f"Overlay: {output}" in shown
    assert list(iterate_frames(output))


@pytest.mark.slow
def test_silent_file_ends_with_a_remedy(tmp_path: Path):
    write_video(tmp_path / "silent.mp4", np.zeros((8, 48, 64, 3), np.uint8), 8)
    result = run("--input", tmp_path / "silent.mp4")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith("Pass a file with audio to --input.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--microphone", "no-such-device"], "Cannot open the microphone no-such-device.*--microphone"),
        (["--input", "nowhere.mp4"], "nowhere.mp4"),
    ],
)
def test_missing_device_or_file_ends_with_a_remedy(arguments: list[str], message: str):
    result = run(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert np.all([part in line for part in message.split(".*")])
