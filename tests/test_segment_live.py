"""examples/segment_live.py: a file played as live input, and missing devices."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modeling_pcmanet.media_pcmanet import iterate_frames
from modeling_pcmanet.media_writing_pcmanet import write_video


ROOT = Path(__file__).parent.parent
MODEL = ROOT / "examples" / "demo_model_semantic"
SCRIPT = ROOT / "examples" / "segment_live.py"


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
