"""`pcmanet train` in two real processes: the steps of one, uneven batches, killed workers, and exact resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate import Accelerator
from float64_training import in_float64
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from written_trees import write_trees

from modeling_pcmanet import PCMANetConfig, PCMANetForAudioVisualSegmentation, PCMANetProcessor, VGGishModel
from pcmanet.dataset_scripts.avsbench import load_avsbench
from pcmanet.training.data import TrainingData
from pcmanet.training.recipe import read_recipe
from pcmanet.training.run import evaluate


pytestmark = pytest.mark.slow

FLOAT64_TRAINING = Path(__file__).parent / "float64_training.py"
RECORD_WRITTEN_FILES = Path(__file__).parent / "record_written_files.py"
TRAINING_CLIPS = (
    7  # not a multiple of the batch size: the last step of an epoch has 3 clips, 2 for one process and 1 for the other
)
VALIDATION_CLIPS = 3
STEPS = 4
TIMEOUT = 900  # seconds; a process that takes longer hangs, even on a busy machine

# Large steps, so that a difference would show. BatchNorm is frozen, because each process has its own statistics.
RECIPE = {
    "task": "ms3",
    "image_size": 32,
    "batch_size": 4,
    "epochs": 2,
    "evaluations": 2,
    "evaluation_batch_size": 2,
    "checkpoint_steps": 1,
    "learning_rate": 1e-3,
    "schedule": "constant",
    "warmup_fraction": 0.0,
    "batch_norm": "frozen",
    "mixed_precision": "none",
    "num_workers": 0,
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    torch.manual_seed(0)
    VGGishModel(PCMANetConfig.from_preset("tiny").audio_config).save_pretrained(root / "vggish")
    return write_trees(root, ms3={"train": TRAINING_CLIPS, "val": VALIDATION_CLIPS})


def start(tree: Path, output: Path, processes: int, *arguments: str, script: Path | None = None, **fields: Any):
    """Start the command, or a script in its place, on the recipe with other fields."""
    recipe = output.with_suffix(".yaml")
    recipe.write_text(json.dumps(RECIPE | {"audio_encoder": str(tree / "vggish")} | fields))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    program = ["-m", "pcmanet"] if script is None else [str(script)]
    command = [sys.executable, *(launcher if processes > 1 else []), *program, "train"]
    command += ["--recipe", str(recipe), "--data", str(tree), "--output", str(output), *arguments]
    environment = {"HF_HOME": str(tree / "cache"), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | environment, **pipes)


def finish(process: subprocess.Popen) -> tuple[str, str]:
    """Wait for the end of a process and return its output and its errors."""
    try:
        return process.communicate(timeout=TIMEOUT)
    finally:
        for child in (
            [*psutil.Process(process.pid).children(recursive=True), process] if process.poll() is None else []
        ):
            child.kill()


def run(tree: Path, output: Path, processes: int, *arguments: str, script: Path | None = None, **fields: Any) -> str:
    process = start(tree, output, processes, *arguments, script=script, **fields)
    printed, errors = finish(process)
    assert process.returncode == 0, errors[-4000:]
    return printed


def records(output: Path, kind: str) -> list[dict[str, float]]:
    """Return the records of a kind in the log, step by step."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [{"step": line["step"]} | line[kind] for line in lines if kind in line]


def weights(output: Path) -> dict[str, torch.Tensor]:
    """Load the averaged weights at the end."""
    return load_file(output / "last" / "model.safetensors")


def trained(output: Path, step: int) -> dict[str, torch.Tensor]:
    """Load the trained weights after a step, without average."""
    return load_file(output / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


@pytest.fixture(scope="module")
def one(tree, tmp_path_factory) -> Path:
    """A run in one process, in float64 as the two that are compared with it."""
    output = tmp_path_factory.mktemp("one") / "run"
    run(tree, output, 1, script=FLOAT64_TRAINING)
    return output


@pytest.fixture(scope="module")
def two(tree, tmp_path_factory) -> Path:
    """A run in two processes, each of which records the files that it writes."""
    output = tmp_path_factory.mktemp("two") / "run"
    run(tree, output, 2, script=RECORD_WRITTEN_FILES)
    return output


@pytest.fixture(scope="module")
def two_with_accumulation(tree, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("accumulation") / "run"
    run(tree, output, 2, script=FLOAT64_TRAINING, gradient_accumulation=2)
    return output


@pytest.mark.parametrize("name", ["two", "two_with_accumulation"])
def test_two_processes_take_the_steps_of_one(name, one, request):
    other = request.getfixturevalue(name)
    steps = records(one, "training")
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert len({step["loss"] for step in steps}) == STEPS
    for first, second in zip(steps, records(other, "training"), strict=True):
        assert second == pytest.approx(first, rel=1e-6)  # computed in float64, logged in float32
    first, second = trained(one, STEPS), trained(other, STEPS)
    changes = [weight - trained(one, STEPS - 1)[key] for key, weight in first.items()]
    assert max(change.abs().max().item() for change in changes) > 5e-4
    for key in first:
        assert torch.allclose(first[key], second[key], rtol=0, atol=1e-10), key


def test_two_processes_compute_the_metrics_of_one(tree, one, two):
    for first, second in zip(records(one, "evaluation"), records(two, "evaluation"), strict=True):
        assert second == pytest.approx(first, rel=1e-6)
        assert first["frames"] == second["frames"] == VALIDATION_CLIPS * 5
    # The same weights, evaluated in this process alone: no clip is lost or counted twice.
    network = in_float64(PCMANetForAudioVisualSegmentation.from_pretrained(two / "last", dtype=torch.float64)).eval()
    processor = PCMANetProcessor.from_pretrained(two / "last")
    validation = load_avsbench(tree, "ms3", split="val")
    recipe = read_recipe(two / "recipe.yaml")
    data = TrainingData(recipe, (validation, validation), processor, binary=True, num_processes=1)
    expected = json.loads((two / "last" / "metrics.json").read_text())
    assert expected["validation_step"] == STEPS and expected["processes"] == 2
    metrics, _ = evaluate(network, data, processor, Accelerator(cpu=True))
    assert metrics == pytest.approx(expected["validation"], rel=1e-6)


def test_every_file_has_one_writer(two):
    written = {rank: set((two.parent / f"written_by_{rank}.txt").read_text().split()) for rank in (0, 1)}
    inside = {rank: {path for path in paths if path.startswith(str(two) + "/")} for rank, paths in written.items()}
    # The second process writes the state of its random number generators only.
    assert {Path(path).name for path in inside[1]} == {"random_states_1.pkl"}
    assert not inside[0] & inside[1]
    # The lists contain all files, so none was written in a way that is not recorded.
    recorded = {Path(path).name for path in inside[0] | inside[1]}
    assert {path.name for path in two.rglob("*") if path.is_file()} <= recorded


def test_every_step_is_logged_once(two):
    (events,) = (two / "tensorboard").rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events.parent)).Reload()
    assert [event.step for event in accumulator.Scalars("training/loss")] == [1, 2, 3, 4]
    assert [event.step for event in accumulator.Scalars("evaluation/miou")] == [2, 4]


def wait_for(output: Path, step: int, process: subprocess.Popen) -> None:
    """Wait until a run has logged a step."""
    deadline = time.monotonic() + TIMEOUT
    while not (output / "log.jsonl").exists() or len(records(output, "training")) < step:
        assert process.poll() is None, process.communicate()[1][-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def worker(process: subprocess.Popen, rank: int) -> psutil.Process:
    children = psutil.Process(process.pid).children()
    (found,) = [child for child in children if child.environ().get("RANK") == str(rank)]
    return found


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_worker_ends_the_job_which_resumes_exactly(rank, tree, tmp_path):
    fields = {"epochs": 6, "evaluations": 3, "batch_norm": "local", "average_decay": 0.9}
    # The killed run reads what the complete one has computed.
    fields["audio_cache"] = None if rank == 0 else str(tmp_path / "embeddings")
    run(tree, tmp_path / "complete", 2, **fields)

    output = tmp_path / "killed"
    process = start(tree, output, 2, **fields)
    wait_for(output, 3, process)
    worker(process, rank).send_signal(signal.SIGKILL)
    _, errors = finish(process)
    assert process.returncode != 0
    assert "SIGKILL" in errors
    assert not (output / "last").exists()

    assert "Finished after 12 steps" in run(tree, output, 2, "--resume", **fields)
    assert (output / "log.jsonl").read_bytes() == (tmp_path / "complete" / "log.jsonl").read_bytes()
    first, second = weights(tmp_path / "complete"), weights(output)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_error_in_one_process_ends_the_job(tree, tmp_path):
    output = tmp_path / "run"
    failing = tmp_path / "failing.py"
    # The third step of the second process fails.
    failing.write_text(
        "import os, sys\n"
        "from pcmanet.cli.main import main\n"
        "from pcmanet.training import run\n"
        "update = run.update_average\n"
        "def fail(average, network):\n"
        "    if os.environ['RANK'] == '1' and average.n_averaged == 2:\n"
        "        raise RuntimeError('the second process failed')\n"
        "    update(average, network)\n"
        "run.update_average = fail\n"
        "sys.exit(main())\n"
    )
    process = start(tree, output, 2, script=failing)
    _, errors = finish(process)
    assert process.returncode != 0
    assert "the second process failed" in errors
    assert [step["step"] for step in records(output, "training")][:2] == [1, 2]
    assert not (output / "last").exists()


def test_another_number_of_processes_is_refused_on_resume_and_possible_on_request(tree, tmp_path):
    output = tmp_path / "run"
    run(tree, output, 2, "--max-steps", "1")
    process = start(tree, output, 1, "--resume")
    _, errors = finish(process)
    assert process.returncode == 2
    assert "processes is 1, was 2" in errors
    printed = run(tree, output, 1, "--resume", "--allow", "processes")
    assert (
        printed.count("Resuming with other processes: batch statistics and random numbers of the processes differ")
        == 1
    )
    assert f"Finished after {STEPS} steps" in printed


def test_batch_that_cannot_be_shared_is_refused(tree, tmp_path):
    process = start(tree, tmp_path / "run", 2, batch_size=3)
    _, errors = finish(process)
    assert process.returncode != 0
    assert errors.count("batch_size is 3, which 2 processes times 1 gradient_accumulation cannot share evenly") == 1


@pytest.mark.parametrize("failing", ["0 1", "1"])
def test_an_error_of_the_input_is_printed_once(failing, tree, tmp_path):
    script = tmp_path / "failing.py"
    # In place of training, some processes fail on their input and the others wait until the launcher ends them.
    script.write_text(
        "import os, sys, time, types\n"
        "from pcmanet.cli import main\n"
        "def run(arguments):\n"
        f"    if os.environ['RANK'] not in {failing.split()}:\n"
        "        time.sleep(600)\n"
        "    raise ValueError('The recipe cannot be used.')\n"
        "main.COMMANDS['train'] = 'training'\n"
        "sys.modules['training'] = types.SimpleNamespace(run=run)\n"
        "sys.exit(main.main())\n"
    )
    process = start(tree, tmp_path / "run", 2, script=script)
    _, errors = finish(process)
    assert process.returncode != 0
    assert errors.count("error: The recipe cannot be used.") == 1
    assert 'cli/main.py", line' not in errors  # no traceback but that of the launcher


def test_network_with_parameters_without_gradient_trains_in_two_processes(tree, tmp_path):
    swin = {"model_type": "swin", "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2], "window_size": 2}
    configuration = {
        "backbone_config": {**swin, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
        "masked_query_gradients": False,
    }
    printed = run(tree, tmp_path / "run", 2, configuration=configuration, epochs=1)
    assert "Finished after 2 steps" in printed


def test_processes_wait_for_the_first_one_and_take_over_its_audio_encoder(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).parent / "unequal_processes.py"), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert second["entered"] > 8  # longer than the exchange of gradients may take
    assert first["before"] != second["before"] and first["after"] == second["after"]
