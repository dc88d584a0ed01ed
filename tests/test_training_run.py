"""When to evaluate, what is the best, and when to stop. How a process of a run starts, and what it leaves in the run's folder."""

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from tiny_model import tiny_model
from training_runs import TINY_RUN

from modeling_pcmanet import PCMANetFeatureExtractor, PCMANetImageProcessor, PCMANetProcessor
from pcmanet.training import run as run_module
from pcmanet.training.recipe import Recipe
from pcmanet.training.run import (
    Progress,
    build_plan,
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
        # Published for AVSS: every second of 60 epochs, here of two steps, from epoch 15 on.
        (120, 30, 0.25, set(range(32, 121, 4))),
        (100, 4, 1.0, {100}),
    ],
)
def test_evaluations_are_evenly_spaced_and_end_at_the_end(steps, evaluations, evaluate_from, expected):
    assert evaluation_steps(steps, evaluations, evaluate_from) == expected


def test_the_best_is_kept_and_patience_counts_from_it():
    progress = Progress()
    taken = []
    for step, miou in enumerate([0.3, 0.5, 0.5, 0.4], start=1):
        progress.step = step
        taken.append((progress.take({"miou": miou}, patience=2), progress.stale, progress.stopped))
    assert taken == [(True, 0, False), (True, 0, False), (False, 1, False), (False, 2, True)]
    assert (progress.best, progress.best_step) == ({"miou": 0.5}, 2)
    assert (progress.figures, progress.evaluated_step) == ({"miou": 0.4}, 4)
    assert Progress(**progress.to_dict()) == progress


def test_without_patience_a_run_never_stops_early():
    progress = Progress()
    for _ in range(50):
        progress.take({"miou": 0.0}, patience=None)
    assert not progress.stopped


@pytest.fixture
def accelerator(monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield start_accelerator(Recipe(**TINY_RUN))
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_process_starts_on_the_cpu_if_it_is_told_to(accelerator):
    assert (accelerator.device.type, accelerator.num_processes) == ("cpu", 1)
    assert accelerator.mixed_precision == "no"
    # A step goes through its rounds by itself, so Accelerate has nothing to divide by.
    assert accelerator.gradient_accumulation_steps == 1


@pytest.mark.parametrize("name", ["recipe.yaml", "checkpoints", "best", "last"])
def test_a_used_folder_is_refused_unless_it_is_gone_on_with(name, accelerator, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(FileExistsError, match=rf"already holds a run \({name}\): go on with it by adding --resume"):
        open_output(tmp_path, False, accelerator)
    open_output(tmp_path, True, accelerator)


def test_a_folder_is_made_late_and_tidied_up_early(accelerator, tmp_path):
    open_output(tmp_path / "run", False, accelerator)
    assert not (tmp_path / "run").exists()
    recipe = Recipe(**TINY_RUN)
    write_recipe(tmp_path / "run", recipe, accelerator)
    assert Recipe(**yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())) == recipe
    (tmp_path / "run" / ".replaced-best").mkdir()
    (tmp_path / "run" / ".writing-last").mkdir()
    open_output(tmp_path / "run", True, accelerator)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best", "recipe.yaml"]


def test_saved_weights_load_and_are_replaced_as_a_whole(tmp_path):
    processor = PCMANetProcessor(PCMANetImageProcessor(), PCMANetFeatureExtractor())
    for seed in (1, 2):
        model = tiny_model(seed=seed)
        save_model(tmp_path / "best", model, processor, {"step": seed})
        loaded = type(model).from_pretrained(tmp_path / "best").state_dict()
        assert all(torch.equal(values, loaded[name]) for name, values in model.state_dict().items())
        assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert '"step": 2' in (tmp_path / "best" / "metrics.json").read_text()


def test_deepspeed_gets_what_it_reads_off_loaders_and_does_itself(monkeypatch):
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


@pytest.mark.parametrize("data, shuffled", [(None, False), ("AVSBench", True)])
def test_only_data_on_a_disk_are_shuffled(data, shuffled):
    plan = build_plan(
        Recipe(**{**TINY_RUN, "negative_fraction": 0.0, "data": data, "freeze": []}), num_clips=40, processes=2
    )
    order = [draw.clip for step in range(20) for draw in sorted(plan.share(step, 0)[0] + plan.share(step, 1)[0])]
    assert sorted(order) == list(range(40))
    assert (order == list(range(40))) is not shuffled
