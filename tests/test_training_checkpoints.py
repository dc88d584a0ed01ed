"""Checkpoints: exact, whole or refused, limited in number, and errors that name the way on."""

import json
import os
import random
import resource
import shutil
import signal
from pathlib import Path

import pytest
from training_runs import (
    assert_same_weights,
    die_at_call,
    replaced_argv,
    steps_logged,
    train,
    train_in_process,
    weights,
)

from pcmanet import files
from pcmanet.training import checkpoints as checkpoints_module
from pcmanet.training import run as run_module
from pcmanet.training.checkpoints import resume_command


def die_in_step(number: int) -> None:
    die_at_call(run_module.Run, "finish_step", number)


def die_while_writing(name: str, number: int = 1) -> None:
    """Die when the nth checkpoint is begun (`start_aside`), before its manifest, or before it is named (`finish_aside`)."""
    die_at_call(checkpoints_module, name, number)


def die_on_the_disk(number: int) -> None:
    """Die at the nth time that a file or folder is brought to the disk, of a checkpoint or of the best weights."""
    die_at_call(files, "_synchronize", number)


def limit_file_size(size: int) -> None:
    """Let no file grow beyond a size, as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nobody disturbed: six steps, checkpoints after 2, 4 and 6, evaluations after 3 and 6."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return folder


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    """The same run, stopped after its first checkpoint."""
    folder = tmp_path_factory.mktemp("two_steps") / "run"
    train(folder, "--max-steps", "2")
    return folder


@pytest.fixture
def begun(two_steps, tmp_path) -> Path:
    """A copy of the stopped run, to be gone on with."""
    return shutil.copytree(two_steps, tmp_path / "run")


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A copy of that run, to be damaged."""
    return shutil.copytree(whole, tmp_path / "run")


def refusal(capsys, output: Path, *words: str, **settings) -> str:
    with pytest.raises(SystemExit) as caught:
        train(output, *words, **settings)
    assert caught.value.code == 2
    return capsys.readouterr().err


def checkpoints(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def test_a_killed_run_goes_on_bit_for_bit(whole, tmp_path):
    output = tmp_path / "run"
    code, _ = train_in_process(output, prepare=die_in_step, arguments=(4,))
    assert code == -9
    # Three steps are done and logged, the last checkpoint is that of the second.
    assert steps_logged(output) == [1, 2, 3]
    assert checkpoints(output) == ["step-00000002"]
    train(output, "--resume")
    assert steps_logged(output) == [1, 2, 3, 4, 5, 6]
    assert_same_weights(whole, output)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_run_killed_many_times_goes_on_bit_for_bit(seed, tmp_path):
    # Everything at once that keeps state: workers, accumulation, several epochs of shuffled clips, augmentation, dropout.
    generator = random.Random(seed)
    settings = {
        "num_workers": 2,
        "gradient_accumulation": 2,
        "batch_size": 4,
        "clips": 18,
        "epochs": 2,
        "augmentation": {"mixing": 0.3, "replacement": 0.3},
        "early_stopping": 3,
        "evaluations": 5,
        "checkpoint_steps": generator.choice([1, 3]),
    }
    assert train_in_process(tmp_path / "whole", **settings)[0] == 0
    output, kills = tmp_path / "killed", 0
    while True:
        prepare = generator.choice([die_in_step, die_on_the_disk])
        number = generator.randint(1, 3) if prepare is die_in_step else generator.randint(1, 40)
        code, printed = train_in_process(output, "--resume", prepare=prepare, arguments=(number,), **settings)
        assert code in (0, -9), printed
        kills += code == -9
        if code == 0 or kills > 8:
            break
    assert kills
    assert train_in_process(output, "--resume", **settings)[0] == 0
    assert steps_logged(output) == list(range(1, 11))
    assert_same_weights(tmp_path / "whole", output)


@pytest.mark.parametrize(
    "moment",
    ["finish_aside", *(pytest.param(name, marks=pytest.mark.slow) for name in ("start_aside", "write_manifest"))],
)
def test_a_kill_during_the_write_loses_only_the_steps_since_the_last_one(moment, whole, begun):
    code, _ = train_in_process(begun, "--resume", prepare=die_while_writing, arguments=(moment,))
    assert code == -9
    assert checkpoints(begun)[-1] == "step-00000002"
    assert steps_logged(begun) == [1, 2, 3, 4]
    train(begun, "--resume")
    assert_same_weights(whole, begun)
    assert checkpoints(begun) == ["step-00000004", "step-00000006"]


def test_a_run_may_be_stopped_between_checkpoints_and_resumed(whole, begun, capsys):
    train(begun, "--resume", "--max-steps", "3")
    printed = capsys.readouterr().out
    assert "stopped after step 3 of 6; go on with: python" in printed
    assert "--max-steps" not in printed
    assert checkpoints(begun) == ["step-00000002", "step-00000003"]
    train(begun, "--resume")
    assert_same_weights(whole, begun)


def test_a_resumed_run_that_is_done_stays_as_it_is(whole, run, capsys):
    train(run, "--resume")
    assert "finished after 6 steps" in capsys.readouterr().out
    assert_same_weights(whole, run)


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_anew(whole, tmp_path):
    output = tmp_path / "run"
    assert train_in_process(output, prepare=die_in_step, arguments=(1,))[0] == -9
    train(output, "--resume")
    assert_same_weights(whole, output)


@pytest.mark.parametrize("limit, kept", [(1, [6]), (None, [2, 4, 6])])
def test_only_the_newest_checkpoints_are_kept(limit, kept, begun, whole):
    train(begun, "--resume", save_total_limit=limit)
    assert checkpoints(begun) == [f"step-{step:08d}" for step in kept]
    assert checkpoints(whole) == ["step-00000004", "step-00000006"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: os.truncate(folder / "optimizer.bin", 100), "optimizer.bin has 100 bytes instead of"),
        (lambda folder: (folder / "random_states_0.pkl").unlink(), "random_states_0.pkl cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "model.safetensors has 1 bytes instead of"),
        (lambda folder: (folder / "manifest.json").write_text(""), "manifest.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_the_way_on(damage, message, run, capsys):
    damage(run / "checkpoints" / "step-00000006")
    error = refusal(capsys, run, "--resume")
    good = run / "checkpoints" / "step-00000004"
    assert f"the checkpoint {run / 'checkpoints' / 'step-00000006'} is damaged" in error
    assert message in error
    assert f"The last good one is {good}; go on from it with: python" in error
    assert f"--resume {good}" in error


def test_the_way_on_leads_to_the_same_weights(whole, run):
    good = run / "checkpoints" / "step-00000004"
    (run / "checkpoints" / "step-00000006" / "state.json").write_text("{")
    train(run, "--resume", str(good))
    assert_same_weights(whole, run)
    assert checkpoints(run) == ["step-00000004", "step-00000006"]


def test_without_a_good_checkpoint_the_error_says_so(run, capsys):
    for folder in (run / "checkpoints").iterdir():
        (folder / "state.json").write_text("{")
    assert "There is no good one; start anew in another --output." in refusal(capsys, run, "--resume")
    error = refusal(capsys, run, "--resume", "elsewhere")
    assert "there is no checkpoint elsewhere" in error


def test_a_full_disk_is_an_error_with_the_way_on(whole, begun):
    # The largest file of a checkpoint is the optimizer's; everything else still finds its place.
    size = (begun / "checkpoints" / "step-00000002" / "optimizer.bin").stat().st_size - 1
    code, printed = train_in_process(begun, "--resume", prepare=limit_file_size, arguments=(size,))
    assert code == 2
    assert f"the checkpoint {begun / 'checkpoints' / 'step-00000004'} could not be written" in printed
    good = begun / "checkpoints" / "step-00000002"
    assert "Free some space" in printed and f"The last good one is {good}; go on from it with: python" in printed
    assert "Traceback" not in printed
    assert checkpoints(begun) == ["step-00000002"]
    train(begun, "--resume")
    assert_same_weights(whole, begun)


def test_another_recipe_is_refused_with_the_fields(run, capsys):
    error = refusal(capsys, run, "--resume", learning_rate=1e-3, clips=14, num_workers=1)
    assert "learning_rate is 0.001, was 0.002" in error
    assert "clips is 14, was 12" in error
    assert "num_workers" not in error
    state = json.loads((run / "checkpoints" / "step-00000006" / "state.json").read_text())
    state["circumstances"] |= {"processes": 2, "clips": 14}
    (run / "checkpoints" / "step-00000006" / "state.json").write_text(json.dumps(state))
    (run / "checkpoints" / "step-00000006" / "manifest.json").unlink()
    files.write_manifest(run / "checkpoints" / "step-00000006")
    error = refusal(capsys, run, "--resume")
    assert "processes is 1, was 2" in error and "clips is 12, was 14" in error


def interrupt_step(number: int) -> None:
    """Press Ctrl-C before the nth step is finished."""
    finish_step, calls = run_module.Run.finish_step, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == number:
            raise KeyboardInterrupt
        finish_step(*args)

    run_module.Run.finish_step = interrupted


@pytest.mark.parametrize("step", [2, 4])
def test_an_interrupted_run_names_the_way_on(step, whole, tmp_path):
    output = tmp_path / "run"
    code, printed = train_in_process(output, prepare=interrupt_step, arguments=(step,))
    assert code == 130
    assert "Traceback" not in printed
    good = output / "checkpoints" / "step-00000002"
    expected = {
        2: "interrupted. There is no checkpoint yet; begin again with: python",
        4: f"interrupted. The last good one is {good}; go on from it with: python",
    }
    assert expected[step] in printed
    train(output, "--resume")
    assert_same_weights(whole, output)


def test_a_run_has_a_step(tmp_path, capsys):
    assert "--max-steps is -3; it starts at 1" in refusal(capsys, tmp_path / "run", "--max-steps", "-3")


def test_a_folder_with_a_run_is_not_written_over(run, capsys):
    before = weights(run)
    error = refusal(capsys, run)
    assert (
        f"{run} already holds a run (recipe.yaml, checkpoints, best, last): go on with it by adding --resume" in error
    )
    assert all((weights(run)[name] == before[name]).all() for name in before)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["t.py", "--output", "a b"], "python t.py --output 'a b' --resume c"),
        (["t.py", "--resume", "--output", "x"], "python t.py --output x --resume c"),
        (["t.py", "--resume", "old", "--output", "x"], "python t.py --output x --resume c"),
        (["t.py", "--max-steps", "3", "--output", "x"], "python t.py --output x --resume c"),
        (["t.py", "--resume=old", "--output", "x"], "python t.py --output x --resume c"),
    ],
)
def test_the_way_on_is_a_command(words, expected, monkeypatch):
    for name in ("ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with replaced_argv(words):
        assert resume_command(Path("c")) == expected
        assert resume_command() == expected.removesuffix(" c")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with replaced_argv(words):
        assert resume_command(Path("c")).startswith("torchrun --nproc_per_node 2 t.py")
        # Accelerate's configuration and the rank of a machine are not known in here.
        for name, value in (("ACCELERATE_MIXED_PRECISION", "no"), ("WORLD_SIZE", "4")):
            with monkeypatch.context() as patch:
                patch.setenv(name, value)
                assert resume_command(Path("c")) == "the same launch command with --resume c"
