"""Tests of src/pcmanet/cli/info.py."""

import json
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


def test_what_a_checkpoint_is(checkpoint: Path, capsys: pytest.CaptureFixture):
    (checkpoint / "metrics.json").write_text(json.dumps({"test": {"miou": 0.5, "f_score": 0.25}, "clips": 3}))
    (checkpoint / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A model\n")
    assert main(["info", str(checkpoint)]) == 0
    lines = {name.strip(): value.strip() for name, value in table(capsys).items()}
    total = sum(
        values.numel() for values in PCMANetForAudioVisualSegmentation.from_pretrained(checkpoint).parameters()
    )
    assert lines["task"] == "semantic: what sounds where, 2 classes and the background"
    assert lines["classes"] == "dog, cat"
    assert lines["pictures"].startswith("32x32")
    assert lines["backbone"] == "resnet"
    assert lines["parameters"].startswith(f"{total / 1e6:.2f} M (audio encoder ")
    assert lines["token layout"] == "scrambled"
    assert (lines["cross attention"], lines["gather queries"]) == ("on", "off")
    assert lines["license"] == "cc-by-4.0"
    assert lines["test"] == "miou 0.5, f score 0.25"
    assert "clips" not in lines


def test_what_it_does_not_say(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["info", str(save_checkpoint(tmp_path))]) == 0
    lines = {name.strip(): value.strip() for name, value in table(capsys).items()}
    assert lines["task"] == "binary: where it sounds"
    assert lines["license"] == "not stated"


def test_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["info", str(tmp_path / "nowhere")]) == 2
    assert "error: There is no checkpoint folder" in capsys.readouterr().err
    assert main(["info", str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err


def test_a_checkpoint_of_others(tmp_path: Path, capsys: pytest.CaptureFixture):
    ResNetConfig().save_pretrained(tmp_path)
    assert main(["info", str(tmp_path)]) == 2
    assert "is a resnet checkpoint, not one of pcmanet" in capsys.readouterr().err
