"""The training script: its schedule, a run to its end as a real process, and a start from another checkpoint."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import tiny_config
from transformers import AutoBackbone

from modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetProcessor, VGGishConfig, VGGishModel
from pcmanet.dataset_scripts.synthetic import write_avsbench_tree


SCRIPT = Path(__file__).parent.parent / "examples" / "train_pcmanet.py"
QUICK = ["--clips", "8", "--batch-size", "2", "--evaluation-clips", "2", "--evaluations", "2", "--image-size", "32"]
QUICK += ["--num-workers", "0", "--mixed-precision", "no"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_pcmanet", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments: str, home: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *QUICK, *arguments]
    environment = os.environ | ({} if home is None else {"HF_HOME": str(home)})
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_learning_rate_rises_then_falls_to_zero(script):
    factors = [script.learning_rate_factor(step, 100, 0.1) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    result = run("--output", str(folder), "--listening-sounds", "16")
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"checkpoint: {folder}" in result.stdout
    return folder


def test_leaves_a_checkpoint_with_its_processor_and_figures(trained):
    model, loading = PCMANetForAudioVisualSegmentation.from_pretrained(trained, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert model.config.id2label == {0: "sounding"}
    processor = PCMANetProcessor.from_pretrained(trained)
    assert processor.image_processor.size == {"height": 32, "width": 32}
    record = json.loads((trained / "metrics.json").read_text())
    assert 0 <= record["validation"]["miou"] <= 1
    assert record["validation"]["frames"] == 10
    assert record["arguments"]["clips"] == 8


def test_the_same_seed_gives_the_same_weights(trained, tmp_path):
    result = run("--output", str(tmp_path / "again"), "--listening-sounds", "16")
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (load_file(folder / "model.safetensors") for folder in (trained, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_semantic_task_starts_from_the_binary_checkpoint(trained, tmp_path):
    result = run("--output", str(tmp_path / "semantic"), "--task", "avss", "--initialize-from", str(trained))
    assert result.returncode == 0, result.stderr[-3000:]
    model = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path / "semantic")
    assert model.config.num_labels == 13
    assert (model.config.id2label[0], model.config.id2label[12]) == ("background", "halved-capsule")
    # The frozen audio encoder is the one of the binary checkpoint, to the last bit.
    first, second = (load_file(folder / "model.safetensors") for folder in (trained, tmp_path / "semantic"))
    listening = [name for name in first if ".audio_encoder." in name]
    assert len(listening) == 14
    assert all(torch.equal(first[name], second[name]) for name in listening)


def test_avsbench_from_pretrained_backbones(tmp_path):
    tree = write_avsbench_tree(tmp_path, "s4", {"train": 2, "val": 1})
    config = tiny_config()
    AutoBackbone.from_config(config.backbone_config).save_pretrained(tmp_path / "visual")
    VGGishModel(VGGishConfig(block_channels=[[4], [4], [4]], hidden_size=8)).save_pretrained(tmp_path / "vggish")
    sizes = [
        "hidden_size=16",
        "num_groups=2",
        "num_attention_heads=4",
        "head_channels=8",
        "token_grid_sizes=[1,2,2,4]",
    ]
    result = run(
        *("--data", str(tree), "--task", "s4", "--epochs", "2", "--output", str(tmp_path / "checkpoint")),
        *("--visual-backbone", str(tmp_path / "visual"), "--audio-encoder", str(tmp_path / "vggish")),
        *("--override", *sizes),
        home=tmp_path,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    model = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path / "checkpoint")
    assert list(model.config.backbone_config.hidden_sizes) == [8, 12, 16, 24]
    assert json.loads((tmp_path / "checkpoint" / "metrics.json").read_text())["validation"]["frames"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "folder"], "--task folder needs --data FOLDER"),
        (["--visual-backbone", "x"], "--visual-backbone goes with --audio-encoder"),
        (["--override", "hidden_sise=3"], "did you mean `hidden_size`"),
    ],
)
def test_what_cannot_be_trained_is_refused(arguments, message, tmp_path):
    result = run("--output", str(tmp_path / "checkpoint"), *arguments)
    assert result.returncode != 0
    assert message in result.stderr
    assert not (tmp_path / "checkpoint").exists()
