"""Tests of the metrics inside a Trainer, in one process and in two, against the accumulators."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_batch, tiny_model
from torch import Tensor
from transformers import EvalPrediction, Trainer, TrainingArguments

from pcmanet.dataset_scripts.metrics import IGNORE_INDEX, BinaryMetrics, ClipMetrics, SemanticMetrics, TrainerMetrics


FRAMES = (5, 3, 5, 2, 4, 3, 1)
SIZE = 8


def make_clip(index: int, num_labels: int) -> dict[str, Tensor]:
    """Draw a clip whose second frame is not annotated."""
    generator = torch.Generator().manual_seed(index)
    logits = torch.randn(FRAMES[index], num_labels, SIZE, SIZE, generator=generator)
    labels = torch.randint(0, max(num_labels, 2), (FRAMES[index], SIZE, SIZE), generator=generator)
    labels[1:2] = IGNORE_INDEX
    return {"logits": logits, "labels": labels}


class Echo(torch.nn.Module):
    """A model that returns its input logits twice, so that the output is a tuple of several tensors."""

    def forward(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": logits.mean() + labels.float().mean(), "logits": logits, "stage_logits": logits}


def collate(clips: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    fill = {"logits": 0.0, "labels": IGNORE_INDEX}
    return {
        name: torch.nn.utils.rnn.pad_sequence([clip[name] for clip in clips], batch_first=True, padding_value=value)
        for name, value in fill.items()
    }


def evaluate_with_trainer(metrics: TrainerMetrics, folder: Path, num_labels: int) -> dict[str, float]:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_eval_batch_size=2,
        batch_eval_metrics=True,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
    )
    trainer = Trainer(
        model=Echo(),
        args=arguments,
        data_collator=collate,
        eval_dataset=[make_clip(index, num_labels) for index in range(len(FRAMES))],
        compute_metrics=metrics,
        preprocess_logits_for_metrics=metrics.preprocess_logits_for_metrics,
    )
    trainer.evaluate()
    return {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}


def count_directly(metrics: ClipMetrics) -> dict[str, float]:
    for index in range(len(FRAMES)):
        batch = collate([make_clip(index, metrics.num_labels)])
        metrics.update(batch["logits"], batch["labels"])
    return metrics.compute()


def test_docstring_example():
    (snippet,) = re.findall(r"```python\n(.*?)\n```\n", inspect.getdoc(TrainerMetrics), re.DOTALL)
    assert "Trainer(" in snippet and compile(snippet, "the docstring", "exec")


@pytest.mark.parametrize("num_labels", [1, 3])
def test_trainer_matches_the_accumulator(tmp_path: Path, num_labels: int):
    build = {1: BinaryMetrics, 3: lambda: SemanticMetrics(3)}[num_labels]
    scores = evaluate_with_trainer(TrainerMetrics(build()), tmp_path, num_labels)
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
    rows = metrics.preprocess_logits_for_metrics((batch["logits"], batch["logits"]), batch["labels"])
    assert rows.shape == (2, 772)
    assert metrics(EvalPrediction(predictions=rows, label_ids=batch["labels"]), compute_result=False) == {}
    assert len(metrics.metrics) == 2


def test_scores_are_those_of_the_accumulator_which_is_then_empty():
    metrics = TrainerMetrics(BinaryMetrics())
    clip = make_clip(0, 1)
    rows = metrics.preprocess_logits_for_metrics(clip["logits"][None], clip["labels"][None])
    scores = metrics(EvalPrediction(predictions=rows.numpy(), label_ids=clip["labels"].numpy()))
    direct = BinaryMetrics()
    direct.update(clip["logits"][None], clip["labels"][None])
    assert scores == direct.compute()
    assert len(metrics.metrics) == 0


def test_several_labels_raise():
    clip = make_clip(0, 1)
    labels = (clip["labels"][None], torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"labels of the batch alone, got 2 tensors.*label_names=\[\"labels\"\]"):
        TrainerMetrics(BinaryMetrics()).preprocess_logits_for_metrics(clip["logits"][None], labels)


@pytest.mark.parametrize("entries", [("labels",), ("labels", "annotated_frames")])
def test_stock_trainer_evaluates_the_batch_of_the_processor(tmp_path: Path, entries: tuple[str, ...]):
    """The Trainer takes every entry named like a label for one, and evaluates nothing where a batch lacks it."""
    model, batches = tiny_model(), [tiny_batch(clips=1, seed=seed) for seed in range(3)]
    for index, batch in enumerate(batches):
        batch["labels"] = torch.randint(0, 2, (1, 3, 48, 64), generator=torch.Generator().manual_seed(index))
        batch["labels"][:, 2] = IGNORE_INDEX
        batch["annotated_frames"] = torch.tensor([[True, True, False]])
    arguments = {"batch_eval_metrics": True, "remove_unused_columns": False, "report_to": [], "use_cpu": True}
    metrics = TrainerMetrics(BinaryMetrics())
    scores = Trainer(
        model,
        TrainingArguments(str(tmp_path), per_device_eval_batch_size=1, **arguments),
        data_collator=lambda clips: {name: clips[0][name] for name in ("pixel_values", "input_features", *entries)},
        eval_dataset=batches,
        compute_metrics=metrics,
        preprocess_logits_for_metrics=metrics.preprocess_logits_for_metrics,
    ).evaluate()
    expected, losses = BinaryMetrics(), []
    for batch in batches:
        used = {name: batch[name] for name in ("pixel_values", "input_features", *entries)}
        with torch.no_grad():
            outputs = model(**used)
        expected.update(outputs.logits, batch["labels"])
        losses.append(outputs.loss)
    assert scores["eval_loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)
    assert {name: scores[f"eval_{name}"] for name in expected.compute()} == expected.compute()


def test_full_size_predictions_raise():
    with pytest.raises(ValueError, match="Pass preprocess_logits_for_metrics to the Trainer"):
        TrainerMetrics(BinaryMetrics())(
            EvalPrediction(predictions=torch.zeros(1, 5, 1, 8, 8), label_ids=torch.zeros(1))
        )


if __name__ == "__main__":
    output = Path(sys.argv[1])
    results = evaluate_with_trainer(TrainerMetrics(BinaryMetrics()), output, num_labels=1)
    assert torch.distributed.get_world_size() == 2
    if torch.distributed.get_rank() == 0:
        (output / "scores.json").write_text(json.dumps(results))
