"""The parts of a run: evaluation steps and metrics, progress and early stopping, start of Accelerate, the output folder."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from tiny_model import tiny_config, tiny_model
from training_runs import TINY_RUN, TRAINED_NETWORK

from modeling_pcmanet import (
    PCMANetFeatureExtractor,
    PCMANetForAudioVisualSegmentation,
    PCMANetImageProcessor,
    PCMANetProcessor,
)
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.metrics import BinaryMetrics, SemanticMetrics
from pcmanet.dataset_scripts.sounding_shapes.clips import SoundingShapes
from pcmanet.training import run as run_module
from pcmanet.training.data import TrainingData
from pcmanet.training.recipe import Recipe
from pcmanet.training.run import (
    Progress,
    build_processor,
    evaluate,
    evaluation_steps,
    open_output,
    save_model,
    start_accelerator,
    write_recipe,
)


@pytest.mark.parametrize(
    ("steps", "evaluations", "evaluate_from", "expected"),
    [
        (100, 4, 0.0, {25, 50, 75, 100}),
        (10, 3, 0.0, {3, 7, 10}),
        (3, 10, 0.0, {1, 2, 3}),
        (1, 1, 0.0, {1}),
        # Published for AVSS: every second one of 60 epochs, here of two steps, from epoch 15 on.
        (120, 30, 0.25, set(range(32, 121, 4))),
        (100, 4, 1.0, {100}),
        (100, 100, 0.07, set(range(7, 101))),  # 100 * 0.07 is more than 7
    ],
)
def test_evaluations_are_evenly_spaced_and_the_last_is_at_the_end(steps, evaluations, evaluate_from, expected):
    assert evaluation_steps(steps, evaluations, evaluate_from) == expected


def test_best_metrics_are_kept_and_patience_counts_from_them():
    progress = Progress()
    updates = []
    for step, miou in enumerate([0.3, 0.5, 0.5, 0.4], start=1):
        progress.step = step
        better = progress.update({"miou": miou}, patience=2)
        updates.append((better, progress.patience_counter, progress.stopped))
    assert updates == [(True, 0, False), (True, 0, False), (False, 1, False), (False, 2, True)]
    assert (progress.best, progress.best_step) == ({"miou": 0.5}, 2)
    assert (progress.metrics, progress.evaluated_step) == ({"miou": 0.4}, 4)
    assert Progress(**asdict(progress)) == progress


def test_without_patience_a_run_never_stops_early():
    progress = Progress()
    for _ in range(50):
        progress.update({"miou": 0.0}, patience=None)
    assert not progress.stopped


@pytest.fixture
def accelerator(monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield start_accelerator(Recipe(**TINY_RUN))
    AcceleratorState._reset_state(reset_partial_state=True)


def test_process_starts_on_the_cpu_on_request(accelerator):
    assert (accelerator.device.type, accelerator.num_processes) == ("cpu", 1)
    assert accelerator.mixed_precision == "no"
    # The training loop weights the batches of a step itself, so Accelerate must not divide the loss.
    assert accelerator.gradient_accumulation_steps == 1


@pytest.mark.parametrize("name", ["recipe.yaml", "checkpoints", "best"])
def test_used_folder_is_refused_unless_it_is_resumed(name, accelerator, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError, match=rf"already contains a run \({name}\). Resume it by adding --resume"):
        open_output(tmp_path, False, accelerator)
    open_output(tmp_path, True, accelerator)


@pytest.mark.parametrize("resume", [False, True])
def test_run_that_ended_without_checkpoints_does_not_start_again(resume, accelerator, tmp_path):
    (tmp_path / "last").mkdir()
    (tmp_path / "checkpoints" / ".pcmanet-step-00000002").mkdir(parents=True)  # left by a killed process
    message = (
        rf"already contains a run \(checkpoints, last\). It has no checkpoint.*initialize_from={tmp_path / 'last'}"
    )
    with pytest.raises(FileExistsError, match=message):
        open_output(tmp_path, resume, accelerator)


def test_folder_is_created_with_the_recipe_and_recovered_on_resume(accelerator, tmp_path):
    open_output(tmp_path / "run", False, accelerator)
    assert not (tmp_path / "run").exists()
    recipe = Recipe(**TINY_RUN)
    write_recipe(tmp_path / "run", recipe, accelerator)
    assert Recipe(**yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())) == recipe
    (tmp_path / "run" / ".pcmanet-replaced-best").mkdir()
    (tmp_path / "run" / ".pcmanet-last").mkdir()
    open_output(tmp_path / "run", True, accelerator)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best", "recipe.yaml"]


def test_saved_model_loads_and_is_replaced_completely(tmp_path):
    processor = PCMANetProcessor(PCMANetImageProcessor(), PCMANetFeatureExtractor())
    for seed in (1, 2):
        model = tiny_model(seed=seed)
        save_model(tmp_path / "best", model, processor, {"step": seed})
        loaded = type(model).from_pretrained(tmp_path / "best").state_dict()
        assert all(torch.equal(values, loaded[name]) for name, values in model.state_dict().items())
        assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert '"step": 2' in (tmp_path / "best" / "metrics.json").read_text()


def test_deepspeed_receives_batch_size_and_gradient_clipping(monkeypatch):
    class Plugin:
        deepspeed_config: dict = {}

    class Launched:
        def __init__(self, **settings):
            self.settings, self.num_processes = settings, 2
            self.state = type("State", (), {"deepspeed_plugin": Plugin})

    monkeypatch.setattr(run_module, "Accelerator", Launched)
    settings = {"batch_size": 8, "gradient_accumulation": 2, "mixed_precision": "bf16", "compile": True}
    launched = start_accelerator(Recipe(**{**TINY_RUN, **settings}))
    assert Plugin.deepspeed_config == {"train_micro_batch_size_per_gpu": 2, "gradient_clipping": 1.0}
    assert launched.settings["mixed_precision"] == "bf16"
    assert launched.settings["dynamo_plugin"].to_dict()["dynamic"] is False


def tiny_validation(clips, num_labels: int) -> tuple[TrainingData, PCMANetProcessor]:
    recipe = Recipe(**{**TINY_RUN, "evaluation_batch_size": 2, "task": "ms3" if num_labels == 1 else "avss"})
    processor = build_processor(recipe)
    return TrainingData(recipe, (clips, clips), processor, binary=num_labels == 1, num_processes=1), processor


@pytest.mark.parametrize("task", ["ms3", "avss"])
def test_evaluation_computes_the_metrics_of_every_stage(task, accelerator):
    labels = 1 if task == "ms3" else 13
    torch.manual_seed(0)
    network = PCMANetForAudioVisualSegmentation(tiny_config(**TRAINED_NETWORK, num_labels=labels)).eval()
    with torch.no_grad():
        for stage in network.model.stages:
            stage.head[-1].weight.mul_(5.0)  # so that the stages differ and some pixels are certain
    clips = SoundingShapes(task, "val", length=3, height=32, width=32, num_frames=2)
    data, processor = tiny_validation(clips, labels)

    state = torch.get_rng_state()
    metrics, panel = evaluate(network, data, processor, accelerator)
    assert torch.equal(torch.get_rng_state(), state)

    collate = ClipCollator(processor, binary=labels == 1)
    losses, kept = [], []
    stages = [BinaryMetrics() if labels == 1 else SemanticMetrics(labels) for _ in range(4)]
    with torch.no_grad():
        for clip in clips:
            batch = collate([clip])
            outputs = network(**batch)
            losses.append(outputs.loss.item())
            kept.append(outputs.kept_ratios)
            for stage, logits in zip(stages, outputs.stage_logits, strict=True):
                stage.update(logits, batch["labels"])
    expected = stages[-1].compute()
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["frames"] == 6
    assert metrics["loss"] == pytest.approx(sum(losses) / 3)
    found = [metrics[f"stage_{number}/miou"] for number in (4, 3, 2, 1)]
    assert found == pytest.approx([stage.compute()["miou"] for stage in stages])
    assert found[-1] == metrics["miou"]
    ratios = [metrics[f"stage_{number}/kept_ratio"] for number in (4, 3, 2)]
    assert ratios == pytest.approx(torch.stack(kept).mean(0).tolist())

    assert panel["frames"].shape == (2, 32, 32, 3)
    # The input of the network is the frame itself, except for the rounding of the normalization.
    assert abs(panel["frames"].astype(int) - clips[0].frames).max() <= 1
    assert (panel["labels"] == (clips[0].binary if labels == 1 else clips[0].masks)).all()
    assert panel["masks"].shape == panel["labels"].shape and panel["masks"].max() < max(labels, 2)


def test_validation_clips_without_masks_are_refused(accelerator):
    network = PCMANetForAudioVisualSegmentation(tiny_config(**TRAINED_NETWORK)).eval()
    clip = SoundingShapes("ms3", "val", length=1, height=32, width=32, num_frames=2)[0]
    unannotated = replace(clip, annotated_frames=np.zeros(2, dtype=bool))
    data, processor = tiny_validation([unannotated], 1)
    with pytest.raises(ValueError, match="Expected annotated validation frames, got none"):
        evaluate(network, data, processor, accelerator)
