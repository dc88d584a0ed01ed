"""Tests of the metrics inside a Trainer, in one process and in two, against the accumulators."""

import doctest
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import EvalPrediction, Trainer, TrainingArguments

from pcmanet.dataset_scripts.metrics import (
    BinaryMetrics,
    ClipMetrics,
    SemanticMetrics,
    TrainerMetrics,
    ignore_unscored_frames,
)
from pcmanet.dataset_scripts.metrics import trainer as trainer_module


FRAMES = (5, 3, 5, 2, 4, 3, 1)
SIZE = 8


def make_clip(index: int, num_labels: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(index)
    logits = torch.randn(FRAMES[index], num_labels, SIZE, SIZE, generator=generator)
    labels = torch.randint(0, max(num_labels, 2), (FRAMES[index], SIZE, SIZE), generator=generator)
    annotated_frames = torch.arange(FRAMES[index]) != 1
    return {"logits": logits, "labels": labels, "annotated_frames": annotated_frames}


class Echo(torch.nn.Module):
    """A model that returns its input logits twice, so that the output is a tuple of several tensors."""

    def forward(
        self, logits: Tensor, labels: Tensor, frame_mask: Tensor, annotated_frames: Tensor | None = None
    ) -> dict[str, Tensor]:
        loss = (
            logits[frame_mask].mean()
            + labels.float().mean()
            + (0.0 if annotated_frames is None else annotated_frames.float().mean())
        )
        return {"loss": loss, "logits": logits, "stage_logits": logits}


def collate(clips: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    padded = {
        name: torch.nn.utils.rnn.pad_sequence([clip[name] for clip in clips], batch_first=True) for name in clips[0]
    }
    lengths = torch.tensor([len(clip["logits"]) for clip in clips])
    return padded | {"frame_mask": torch.arange(int(lengths.max())) < lengths[:, None]}


def collate_without_masks(clips: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return ignore_unscored_frames(collate(clips))


def evaluate_with_trainer(metrics: TrainerMetrics, folder: Path, num_labels: int) -> dict[str, float]:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_eval_batch_size=2,
        batch_eval_metrics=True,
        label_names=list(metrics.label_names),
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
    )
    trainer = Trainer(
        model=Echo(),
        args=arguments,
        data_collator=collate if "frame_mask" in metrics.label_names else collate_without_masks,
        eval_dataset=[make_clip(index, num_labels) for index in range(len(FRAMES))],
        compute_metrics=metrics,
        preprocess_logits_for_metrics=metrics.preprocess_logits_for_metrics,
    )
    trainer.evaluate()
    return {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}


def count_directly(metrics: ClipMetrics) -> dict[str, float]:
    for index in range(len(FRAMES)):
        batch = collate([make_clip(index, metrics.num_labels)])
        metrics.update(batch["logits"], batch["labels"], batch["frame_mask"], batch["annotated_frames"])
    return metrics.compute()


def test_docstring_examples():
    result = doctest.testmod(trainer_module)
    assert result.attempted >= 2
    assert result.failed == 0
    (snippet,) = re.findall(r"```python\n(.*?)\n```\n", inspect.getdoc(TrainerMetrics), re.DOTALL)
    assert "Trainer(" in snippet and compile(snippet, "the docstring", "exec")


@pytest.mark.parametrize("label_names", [("labels", "frame_mask", "annotated_frames"), ("labels",)])
@pytest.mark.parametrize("num_labels", [1, 3])
def test_trainer_matches_the_accumulator(tmp_path: Path, num_labels: int, label_names: tuple[str, ...]):
    build = {1: BinaryMetrics, 3: lambda: SemanticMetrics(3)}[num_labels]
    scores = evaluate_with_trainer(TrainerMetrics(build(), label_names), tmp_path, num_labels)
    expected = count_directly(build())
    assert {name: scores[name] for name in expected} == expected


@pytest.mark.slow
def test_two_processes_match_one(tmp_path: Path):
    # Two processes get clips of different lengths, so the Trainer pads labels with -100 and repeats clips to fill the last step.
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        __file__,
        str(tmp_path),
    ]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    scores = json.loads((tmp_path / "scores.json").read_text())
    expected = count_directly(BinaryMetrics())
    assert {name: scores[name] for name in expected} == expected


def test_rows_replace_the_logits():
    metrics = TrainerMetrics(BinaryMetrics())
    batch = collate([make_clip(0, 1), make_clip(1, 1)])
    rows = metrics.preprocess_logits_for_metrics(
        (batch["logits"], batch["logits"]), tuple(batch[name] for name in metrics.label_names)
    )
    assert rows.shape == (2, 772)
    assert metrics(EvalPrediction(predictions=rows, label_ids=batch["labels"]), compute_result=False) == {}
    assert len(metrics.metrics) == 2


def test_labels_without_masks_are_a_tensor():
    metrics = TrainerMetrics(BinaryMetrics(), label_names=["labels"])
    clip = make_clip(0, 1)
    rows = metrics.preprocess_logits_for_metrics(clip["logits"][None], clip["labels"][None])
    scores = metrics(EvalPrediction(predictions=rows.numpy(), label_ids=clip["labels"].numpy()))
    direct = BinaryMetrics()
    direct.update(clip["logits"][None], clip["labels"][None])
    assert scores == direct.compute()
    assert len(metrics.metrics) == 0


def test_masks_padded_by_the_trainer_raise():
    metrics, batch = TrainerMetrics(BinaryMetrics()), collate([make_clip(0, 1)])
    with pytest.raises(ValueError, match="Expected bool masks, got .*torch.int64.*ignore_unscored_frames"):
        metrics.preprocess_logits_for_metrics(
            batch["logits"], (batch["labels"], batch["frame_mask"].long(), batch["annotated_frames"])
        )


def test_wrong_label_names_raise():
    clip = make_clip(0, 1)
    with pytest.raises(ValueError, match=r"'frame_mask', 'annotated_frames'.*got 1 .*TrainingArguments"):
        TrainerMetrics(BinaryMetrics()).preprocess_logits_for_metrics(clip["logits"][None], clip["labels"][None])
    with pytest.raises(ValueError, match=r"label_names.*got \('masks',\)"):
        TrainerMetrics(BinaryMetrics(), label_names=["masks"])


def test_full_size_predictions_raise():
    with pytest.raises(ValueError, match="Pass preprocess_logits_for_metrics to the Trainer"):
        TrainerMetrics(BinaryMetrics())(
            EvalPrediction(predictions=torch.zeros(1, 5, 1, 8, 8), label_ids=torch.zeros(1))
        )


if __name__ == "__main__":
    output = Path(sys.argv[1])
    results = evaluate_with_trainer(TrainerMetrics(BinaryMetrics(), ["labels"]), output, num_labels=1)
    assert torch.distributed.get_world_size() == 2
    if torch.distributed.get_rank() == 0:
        (output / "scores.json").write_text(json.dumps(results))
