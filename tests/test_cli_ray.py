"""Tests of src/pcmanet/cli/ray.py: the job on a real Ray cluster of two nodes, and without Ray."""

import sys
from pathlib import Path

import pytest
from command_runs import save_checkpoint, write_clip
from test_cli_segment import published, rows

from pcmanet.cli.main import main
from pcmanet.cli.parquet import SHARDS


VIDEOS = 9


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a checkpoint and a folder of clips."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "model")
    for number in range(VIDEOS - 1):
        write_clip(tmp_path / "clips" / f"{number}.mp4", seconds=1 + number % 2, seed=number)
    (tmp_path / "clips" / "broken.mp4").write_bytes(b"this is no video")
    return tmp_path


def command(output: str, *options: str) -> list[str]:
    return ["segment", "clips", "--model", "model", "--output", output, *options]


def test_without_ray(here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(command("out", "--format", "parquet", "--ray", "auto")) == 2
    assert (
        'error: --ray needs Ray Data, but ray is not installed. Install it with pip install "pcmanet[archive]".'
        in (capsys.readouterr().err)
    )
    assert not (here / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_no_cluster_there(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(command("out", "--format", "parquet", "--ray", "auto")) == 2
    assert "There is no Ray cluster at auto" in capsys.readouterr().err


@pytest.mark.slow
def test_two_nodes(here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Two machines of one core each give the rows of one process; after a loss the job goes on; folders work too."""
    # Read when Ray is imported: its workers are as nice as can be, and would wait for every other test.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    from ray.cluster_utils import Cluster

    assert main(command("whole", "--format", "parquet")) == 1
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        options = ("--format", "parquet", "--ray", cluster.address)
        assert main(command("out", *options)) == 1
        assert rows(here / "out").equals(rows(here / "whole"))
        assert published(here / "out") >= 2
        assert "failed: clips/broken.mp4: " in capsys.readouterr().err

        next((here / "out").glob(SHARDS)).unlink()
        assert main(command("out", *options)) == 1
        assert rows(here / "out").equals(rows(here / "whole"))

        assert main(command("folders", "--overlay", "--ray", cluster.address, "--ray-workers", "2")) == 1
        made = sorted(path.name for path in (here / "folders").iterdir() if path.is_dir())
        assert made == [str(number) for number in range(VIDEOS - 1)]
        assert (here / "folders" / "3" / "overlay.mp4").is_file()
    finally:
        import ray

        ray.shutdown()
        cluster.shutdown()
