"""Tests of src/pcmanet/cli/info.py."""

import json
import shutil
from pathlib import Path

import pytest
from command_runs import save_checkpoint
from transformers import ResNetConfig

from modeling_pcmanet import PCMANetForAudioVisualSegmentation
from pcmanet.cli.main import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(
        tmp_path_factory.mktemp("checkpoint"),
        num_labels=3,
        id2label={0: "background", 1: "dog", 2: "cat"},
        token_layout="scrambled",
    )


def table(capsys: pytest.CaptureFixture) -> dict[str, str]:
    lines = capsys.readouterr().out.splitlines()
    return dict(line.split("  ", 1) for line in lines if "  " in line)


def test_semantic_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture):
    (checkpoint / "metrics.json").write_text(json.dumps({"test": {"miou": 0.5, "f_score": 0.25}, "clips": 3}))
    (checkpoint / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A model\n")
    assert main(["info", str(checkpoint)]) == 0
    lines = {name.strip(): value.strip() for name, value in table(capsys).items()}
    total = sum(
        values.numel() for values in PCMANetForAudioVisualSegmentation.from_pretrained(checkpoint).parameters()
    )
    assert lines["task"] == "semantic: the class of each sounding object, 2 classes and the background"
    assert lines["classes"] == "dog, cat"
    assert lines["frames"].startswith("32x32")
    assert lines["backbone"] == "resnet"
    assert lines["parameters"].startswith(f"{total / 1e6:.2f} M (audio encoder ")
    assert lines["token layout"] == "scrambled"
    assert (lines["cross attention"], lines["gather queries"]) == ("qsca", "off")
    assert lines["license"] == "cc-by-4.0"
    assert lines["test"] == "miou 0.5, f score 0.25"
    assert "clips" not in lines


def test_binary_checkpoint_without_a_card(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["info", str(save_checkpoint(tmp_path))]) == 0
    lines = {name.strip(): value.strip() for name, value in table(capsys).items()}
    assert lines["task"] == "binary: the pixels of sounding objects"
    assert lines["license"] == "not specified"


def test_missing_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["info", str(tmp_path / "nowhere")]) == 2
    assert "error: Checkpoint folder" in capsys.readouterr().err
    assert main(["info", str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("README.md", b"---\nlicense: [a\n---\n", "is not a model card: while parsing a flow sequence"),
        ("README.md", b"---\nlicense: \xff\n---\n", "is not a model card: 'utf-8' codec can't decode"),
        ("README.md", b"---\n- a\n---\n", "is not a model card: "),
        ("metrics.json", b"[1, 2]", "is damaged: expected a JSON object, got list"),
        ("metrics.json", b'{"a": ', "is damaged: Expecting value"),
        ("metrics.json", b"\xff", "is damaged: 'utf-8' codec can't decode"),
    ],
)
def test_damaged_files_are_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, content: bytes, problem: str
):
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_bytes(content)
    assert main(["info", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / name} {problem}") and "or remove it." in error


def test_checkpoint_of_another_architecture(tmp_path: Path, capsys: pytest.CaptureFixture):
    ResNetConfig().save_pretrained(tmp_path)
    assert main(["info", str(tmp_path)]) == 2
    assert "Expected a checkpoint of pcmanet" in capsys.readouterr().err
