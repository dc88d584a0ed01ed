"""examples/segment_live.py: a file played as if it were live, and devices that are not there."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modeling_pcmanet.media_pcmanet import iterate_frames
from modeling_pcmanet.media_writing_pcmanet import write_video


ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "segment_live.py"


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_a_file_is_followed_live(tmp_path: Path):
    output = tmp_path / "live.mp4"
    answer = run("--input", ROOT / "examples" / "demo.mp4", "--output", output, "--frames-per-second", 1)
    assert answer.returncode == 0, answer.stderr
    lines = [line.split() for line in answer.stdout.splitlines() if " ago " in line]
    taken = [float(line[0]) for line in lines]
    assert taken == sorted(taken)
    assert taken[-1] > 4
    assert "gridded-cross" in answer.stdout
    frames = [frame for _, frame in iterate_frames(output)]
    assert len(frames) == 5
    assert frames[0].shape == (256, 256, 3)


@pytest.mark.slow
def test_it_stops_in_time():
    answer = run("--input", ROOT / "examples" / "demo.mp4", "--seconds", 2)
    assert answer.returncode == 0, answer.stderr
    taken = [float(line.split()[0]) for line in answer.stdout.splitlines() if " ago " in line]
    assert max(taken) < 2


@pytest.mark.slow
def test_a_silent_file_is_an_error_with_a_remedy(tmp_path: Path):
    write_video(tmp_path / "silent.mp4", np.zeros((8, 48, 64, 3), np.uint8), 8)
    answer = run("--input", tmp_path / "silent.mp4")
    assert answer.returncode == 2
    assert answer.stderr.splitlines()[-1].endswith("has no sound track. Give a file with sound as --input.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--microphone", "no-such-device"], "no microphone no-such-device.*--microphone"),
        (["--input", "nowhere.mp4"], "nowhere.mp4"),
    ],
)
def test_what_is_not_there_is_an_error_with_a_remedy(arguments: list[str], message: str):
    answer = run(*arguments)
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    assert np.all([part in line for part in message.split(".*")])
