"""Tests of docs/guides/archives.md: its Python code runs on an archive, and its commands exist."""

import re
from pathlib import Path

import pytest
from command_runs import save_checkpoint, write_clip

from pcmanet.cli.arguments import parse_arguments
from pcmanet.cli.main import main


PAGE = (Path(__file__).parents[1] / "docs" / "guides" / "archives.md").read_text()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an archive called results, in which one video failed."""
    folder = tmp_path_factory.mktemp("page")
    save_checkpoint(folder / "model")
    write_clip(folder / "clips" / "good.mp4", seconds=2)
    write_clip(folder / "clips" / "silent.mp4", silent=True)
    options = ["--model", str(folder / "model"), "--output", str(folder / "results"), "--format", "parquet"]
    assert main(["segment", str(folder / "clips"), *options]) == 1
    return folder


def test_python_of_the_page_runs(results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(results)
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str({str(results / "clips" / "silent.mp4")})
    assert [line.split()[1:3] + line.split()[4:6] for line in lines[1:3]] == [
        [second, "sounding", "(48,", "64)"] for second in ("0.9", "1.9")
    ]
    assert {"label": "sounding", "count_all": 2} in eval(lines[-1])


def test_commands_are_valid():
    commands = re.findall(r"pcmanet (segment .*?)(?: +#.*)?$", PAGE, flags=re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        assert parse_arguments(command.split()).format == "parquet"
