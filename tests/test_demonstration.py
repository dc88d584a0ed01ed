"""Tests of command/demonstration.py: the demo in the repository, and from a wheel where no repository is."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from stranger import WITHOUT_EDITABLE_INSTALL

from pcmanet.command.main import main


ROOT = Path(__file__).parents[1]
FOUND = ["striped-disc", "speckled-heart", "gridded-cross"]


def assert_shown(output: Path, printed: str, folder: Path = Path()) -> None:
    assert sorted(path.name for path in (folder / output / "demo").iterdir()) == [
        "contact_sheet.png",
        "masks",
        "overlay.mp4",
        "segments.jsonl",
        "video.json",
    ]
    assert all(name in printed for name in FOUND)
    assert [line.split()[-1] for line in printed.splitlines()[-3:]] == [
        str(output / "demo" / name) for name in ("overlay.mp4", "masks", "contact_sheet.png")
    ]


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["demo", "--output", str(tmp_path / "demo_output")]) == 0
    assert_shown(tmp_path / "demo_output", capsys.readouterr().out)


@pytest.mark.slow
def test_demo_from_a_wheel(tmp_path: Path):
    """The wheel unpacked elsewhere, and nothing of the repository within reach."""
    source, site, work = tmp_path / "source", tmp_path / "site", tmp_path / "work"
    work.mkdir()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, tmp_path, source], check=True)
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(site)

    code = (
        f"{WITHOUT_EDITABLE_INSTALL}"
        "sys.path.insert(0, sys.argv[1])\n"
        "import pcmanet.command.main as command\n"
        "assert command.__file__.startswith(sys.argv[1]), command.__file__\n"
        "sys.exit(command.main(['demo']))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)], cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert_shown(Path("pcmanet_demo"), done.stdout, work)
