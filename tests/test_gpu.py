"""benchmarks/gpu.py on a CPU: one table with every measurement, and a failure or a short budget costs only its own rows."""

import os
import subprocess
import sys

import gpu
import pytest


SMALL = ("--device", "cpu", "--clips", "1", "--size", "64", "--rounds", "2", "--video-seconds", "1")
ALL_BUT_COMPILED = ("inference", "synchronizations", "equality", "training", "video")


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: str) -> list:
    """Return the rows of the table, each as a dictionary."""
    monkeypatch.setattr(sys, "argv", [gpu.__file__, *SMALL, "--budget", "1e6", *arguments])
    gpu.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert set(cells[1]) == {"---"}
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


@pytest.mark.slow
def test_every_section_is_measured(monkeypatch, capsys, tmp_path):
    output = tmp_path / "gpu.md"
    arguments = ("--presets", "tiny", "--sections", *ALL_BUT_COMPILED, "--output", str(output))
    rows = run(monkeypatch, capsys, *arguments)
    assert {row["measurement"] for row in rows} == set(ALL_BUT_COMPILED)
    assert not [row for row in rows if "Error" in row["remarks"]]
    for row in rows:
        is_timed = row["measurement"] in ("inference", "training")
        assert bool(row["ms"]) == is_timed
        assert not is_timed or float(row["frames/s"]) > 0
    exact = [row["remarks"] for row in rows if row["measurement"] == "equality" and row["data type"] == "float32"]
    assert exact[0].startswith("100.0000% of the pixels equal")
    assert sum(line.startswith("|") for line in output.read_text().splitlines()) == len(rows) + 2


def test_a_failure_is_a_row_and_the_others_go_on(monkeypatch, capsys):
    arguments = ("--presets", "unknown", "tiny", "--sections", "equality")
    failed, *_, measured = run(monkeypatch, capsys, *arguments)
    assert failed["remarks"].startswith("ValueError: Expected one of the presets")
    assert "pixels equal" in measured["remarks"]


def test_what_the_budget_has_no_time_for_is_skipped(monkeypatch, capsys):
    rows = run(monkeypatch, capsys, "--presets", "tiny", "--budget", "0")
    assert {row["measurement"] for row in rows} == set(gpu.SECTIONS)
    assert {row["remarks"] for row in rows} == {"skipped, the budget is used up"}


def test_a_measurement_ends_with_the_budget():
    with pytest.raises(TimeoutError), gpu.time_limit(0.05):
        while True:
            pass


def test_missing_packages_are_listed_with_the_command(tmp_path):
    hiding = "import sys; sys.modules['av'] = None; sys.modules['tqdm'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(hiding)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, gpu.__file__, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 1
    assert "-m pip install --no-deps av tqdm" in result.stderr
