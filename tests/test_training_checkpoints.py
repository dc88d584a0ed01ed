"""Checkpoints: exact resume after kills, damaged checkpoints, their number, and errors with the command to resume."""

import json
import os
import random
import resource
import shutil
import signal
from pathlib import Path

import pytest
from safetensors import SafetensorError
from training_runs import (
    assert_same_weights,
    die_at_call,
    replaced_argv,
    steps_logged,
    train,
    train_in_process,
    weights,
)
from written_trees import write_trees

from pcmanet import files
from pcmanet.training import checkpoints as checkpoints_module
from pcmanet.training import run as run_module
from pcmanet.training.record import resume_command


def die_in_step(number: int) -> None:
    die_at_call(run_module.Run, "finish_step", number)


def die_while_writing(name: str, number: int = 1) -> None:
    """Die when the nth checkpoint is begun, before its manifest is written, or before it is renamed."""
    die_at_call(checkpoints_module, name, number)


def die_on_the_disk(number: int) -> None:
    """Die at the nth time that a file or folder of a checkpoint or of the best weights is synchronized to the disk."""
    die_at_call(files, "synchronize", number)


def limit_file_size(size: int) -> None:
    """Limit the size of files, which fails as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    """An uninterrupted run: six steps, checkpoints after 2, 4 and 6, evaluations after 3 and 6."""
    folder = tmp_path_factory.mktemp("complete") / "run"
    train(folder)
    return folder


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    """The same run, stopped after its first checkpoint."""
    folder = tmp_path_factory.mktemp("two_steps") / "run"
    train(folder, "--max-steps", "2")
    return folder


@pytest.fixture
def stopped(two_steps, tmp_path) -> Path:
    """A copy of the stopped run, to be resumed."""
    return shutil.copytree(two_steps, tmp_path / "run")


@pytest.fixture
def run(complete, tmp_path) -> Path:
    """A copy of the complete run, to be damaged."""
    return shutil.copytree(complete, tmp_path / "run")


def error_of(capsys, output: Path, *words: str, **settings) -> str:
    with pytest.raises(SystemExit) as caught:
        train(output, *words, **settings)
    assert caught.value.code == 2
    return capsys.readouterr().err


def checkpoints(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_who_can_read_a_run_can_read_its_weights(complete):
    files = list(complete.rglob("*.safetensors"))
    assert {path.parent.name for path in files} >= {"best", "last"} and len(files) > 2
    assert all(path.stat().st_mode & 0o444 == path.parent.stat().st_mode & 0o444 for path in files)


def test_killed_run_resumes_exactly(complete, tmp_path):
    output = tmp_path / "run"
    code, _ = train_in_process(output, prepare=die_in_step, arguments=(4,))
    assert code == -9
    # Three steps are done and logged; the last checkpoint is that of the second.
    assert steps_logged(output) == [1, 2, 3]
    assert checkpoints(output) == ["step-00000002"]
    train(output, "--resume")
    assert steps_logged(output) == [1, 2, 3, 4, 5, 6]
    assert_same_weights(complete, output)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_run_that_is_killed_many_times_resumes_exactly(seed, tmp_path):
    # Everything that has state: workers, accumulation, several epochs, augmentation, dropout.
    generator = random.Random(seed)
    settings = {
        "num_workers": 2,
        "gradient_accumulation": 2,
        "batch_size": 4,
        "clips": 18,
        "epochs": 2,
        "augmentation": {"mixing": 0.3, "replacement": 0.3},
        "early_stopping_patience": 3,
        "evaluations": 5,
        "checkpoint_steps": generator.choice([1, 3]),
    }
    assert train_in_process(tmp_path / "complete", **settings)[0] == 0
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
    assert_same_weights(tmp_path / "complete", output)


@pytest.mark.slow
@pytest.mark.parametrize("function", ["replace_folder", "_create_folder", "write_manifest"])
def test_kill_while_writing_loses_only_the_steps_since_the_last_checkpoint(function, complete, stopped):
    code, _ = train_in_process(stopped, "--resume", prepare=die_while_writing, arguments=(function,))
    assert code == -9
    assert checkpoints(stopped)[-1] == "step-00000002"
    assert steps_logged(stopped) == [1, 2, 3, 4]
    train(stopped, "--resume")
    assert_same_weights(complete, stopped)
    assert checkpoints(stopped) == ["step-00000004", "step-00000006"]


def test_run_can_be_stopped_between_checkpoints_and_resumed(complete, stopped, capsys):
    train(stopped, "--resume", "--max-steps", "3")
    printed = capsys.readouterr().out
    assert "Stopped after step 3 of 6. Resume with: pcmanet train" in printed
    assert "--max-steps" not in printed
    assert checkpoints(stopped) == ["step-00000002", "step-00000003"]
    train(stopped, "--resume")
    assert_same_weights(complete, stopped)


def test_finished_run_is_unchanged_on_resume(complete, run, capsys):
    train(run, "--resume")
    assert "Finished after 6 steps" in capsys.readouterr().out
    assert_same_weights(complete, run)


@pytest.mark.slow
def test_run_that_is_killed_before_its_first_checkpoint_starts_again(complete, tmp_path):
    output = tmp_path / "run"
    assert train_in_process(output, prepare=die_in_step, arguments=(1,))[0] == -9
    train(output, "--resume")
    assert_same_weights(complete, output)


@pytest.mark.parametrize("limit, kept", [(1, [6]), (None, [2, 4, 6])])
def test_only_the_newest_checkpoints_are_kept(limit, kept, stopped, complete):
    train(stopped, "--resume", save_total_limit=limit)
    assert checkpoints(stopped) == [f"step-{step:08d}" for step in kept]
    assert checkpoints(complete) == ["step-00000004", "step-00000006"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: os.truncate(folder / "optimizer.bin", 100), "optimizer.bin has 100 bytes instead of"),
        (lambda folder: (folder / "random_states_0.pkl").unlink(), "random_states_0.pkl cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "model.safetensors has 1 bytes instead of"),
        (lambda folder: (folder / "manifest.json").write_text(""), "manifest.json cannot be read"),
    ],
)
def test_damaged_checkpoint_is_refused_with_the_command_to_resume(damage, message, run, capsys):
    damage(run / "checkpoints" / "step-00000006")
    error = error_of(capsys, run, "--resume")
    good = run / "checkpoints" / "step-00000004"
    assert f"Checkpoint {run / 'checkpoints' / 'step-00000006'} is damaged" in error
    assert message in error
    assert f"The last good checkpoint is {good}. Resume with: pcmanet train" in error
    assert f"--resume {good}" in error


def test_run_resumes_exactly_from_an_earlier_checkpoint(complete, run):
    good = run / "checkpoints" / "step-00000004"
    (run / "checkpoints" / "step-00000006" / "state.json").write_text("{")
    train(run, "--resume", str(good))
    assert_same_weights(complete, run)
    assert checkpoints(run) == ["step-00000004", "step-00000006"]


def test_checkpoint_of_another_run_is_refused_and_none_is_removed(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    before = checkpoints(run)
    error = error_of(capsys, run, "--resume", str(other / "checkpoints" / "step-00000004"))
    assert (
        f"Expected a checkpoint in {run / 'checkpoints'}, got {other}" in error and "Give its run as --output" in error
    )
    assert checkpoints(run) == before == ["step-00000004", "step-00000006"]


def test_run_whose_best_weights_were_removed_resumes(run, capsys):
    shutil.rmtree(run / "best")
    train(run, "--resume")
    printed = capsys.readouterr().out
    assert f"{run / 'best'} not found: the best weights are chosen from the remaining evaluations" in printed
    assert f"Weights: {run / 'last'}" in printed


def test_best_weights_of_steps_that_are_repeated_are_not_reported(stopped, monkeypatch, capsys):
    """As on a GPU, where repeated steps give other weights."""

    def score(*mious: float) -> None:
        scores, evaluate = iter(mious), original
        monkeypatch.setattr(run_module, "evaluate", lambda *a: (evaluate(*a)[0] | {"miou": next(scores)}, None))

    original = run_module.evaluate
    score(0.5, 0.6)
    train(stopped, "--resume", save_total_limit=None)
    score(0.4)
    train(stopped, "--resume", str(stopped / "checkpoints" / "step-00000004"), save_total_limit=None)
    printed = capsys.readouterr().out
    assert (
        f"{stopped / 'best'} has the weights of step 6, which is repeated: the best weights are chosen from" in printed
    )
    assert "Best mIoU on validation: 0.4000 (after step 6)" in printed
    record = json.loads((stopped / "best" / "metrics.json").read_text())
    assert (record["step"], record["validation"]["miou"]) == (6, 0.4)


def test_ended_run_without_checkpoints_is_not_overwritten(run, capsys):
    before = weights(run)
    shutil.rmtree(run / "checkpoints")
    error = error_of(capsys, run, "--resume")
    assert f"{run} already contains a run (recipe.yaml, best, last). It has no checkpoint to resume from" in error
    after = weights(run)
    assert all((after[name] == before[name]).all() for name in before)


def test_new_run_is_announced_where_none_can_be_resumed(tmp_path, capsys):
    train(tmp_path / "run", "--resume", "--max-steps", "1", checkpoint_steps=1)
    printed = capsys.readouterr().out
    assert f"No checkpoint found in {tmp_path / 'run' / 'checkpoints'}: a new run begins" in printed
    assert "Resuming" not in printed


def test_run_resumes_exactly_on_request_after_the_data_were_moved(tmp_path, capsys):
    first = write_trees(tmp_path / "first", ms3={"train": 4, "val": 1})
    settings = {"task": "ms3", "freeze": [], "negative_fraction": 0.0, "evaluations": 1}
    train(tmp_path / "complete", **settings, data=str(first))
    train(tmp_path / "run", "--max-steps", "1", **settings, data=str(first))
    second = first.rename(tmp_path / "second")
    for path in second.rglob("*.png"):
        os.utime(path)
    error = error_of(capsys, tmp_path / "run", "--resume", **settings, data=str(second))
    assert f"data is '{second}', was '{first}'; the place and times of the clips' files is " in error
    assert "moved data (--allow processes data)" in error
    train(tmp_path / "run", "--resume", "--allow", "data", **settings, data=str(second))
    printed = capsys.readouterr().out
    assert (
        printed.count("Resuming with other data: training continues exactly only if the files have the same content")
        == 1
    )
    assert_same_weights(tmp_path / "complete", tmp_path / "run")

    mask = next(second.rglob("*.png"))
    mask.write_bytes(mask.read_bytes() + b" ")
    error = error_of(capsys, tmp_path / "run", "--resume", "--allow", "data", **settings, data=str(second))
    assert "the names and sizes of the clips' files is " in error and "data is" not in error
    assert "--allow requires --resume" in error_of(capsys, tmp_path / "run", "--allow", "data")


def test_error_without_a_good_checkpoint(run, capsys):
    for folder in (run / "checkpoints").iterdir():
        (folder / "state.json").write_text("{")
    assert "No good checkpoint was found. Start a new run in another folder." in error_of(capsys, run, "--resume")
    error = error_of(capsys, run, "--resume", "elsewhere")
    assert "Checkpoint elsewhere not found" in error


def test_full_disk_is_an_error_with_the_command_to_resume(complete, stopped):
    # The largest file of a checkpoint is that of the optimizer; all others are small enough.
    size = (stopped / "checkpoints" / "step-00000002" / "optimizer.bin").stat().st_size - 1
    code, printed = train_in_process(stopped, "--resume", prepare=limit_file_size, arguments=(size,))
    assert code == 2
    target = stopped / "checkpoints" / "step-00000004"
    assert f"Checkpoint {target} could not be written: a file was only partly written. Free" in printed
    good = stopped / "checkpoints" / "step-00000002"
    assert (
        "Free some disk space" in printed
        and f"The last good checkpoint is {good}. Resume with: pcmanet train" in printed
    )
    assert "Traceback" not in printed
    assert checkpoints(stopped) == ["step-00000002"]
    train(stopped, "--resume")
    assert_same_weights(complete, stopped)


def test_full_disk_while_the_best_weights_are_written_is_an_error_with_the_command_to_resume(
    stopped, capsys, monkeypatch
):
    def fail(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(run_module.PCMANetForAudioVisualSegmentation, "save_pretrained", fail)
    error = error_of(capsys, stopped, "--resume")
    assert f"Checkpoint {stopped / 'best'} could not be written: Error while serializing" in error
    good = stopped / "checkpoints" / "step-00000002"
    assert "Free some disk space" in error and f"The last good checkpoint is {good}. Resume with: pcmanet" in error
    assert not (stopped / "best").exists()


def test_other_settings_are_refused_with_their_names(run, capsys):
    error = error_of(capsys, run, "--resume", learning_rate=1e-3, clips=14, num_workers=1, augmentation={})
    assert "learning_rate is 0.001, was 0.002" in error
    assert "clips is 14, was 12" in error
    assert "augmentation is {}, was not set" in error  # all defaults, which is not the same as none
    assert "num_workers" not in error
    state = json.loads((run / "checkpoints" / "step-00000006" / "state.json").read_text())
    state["circumstances"] |= {"processes": 2, "clips": 14}
    (run / "checkpoints" / "step-00000006" / "state.json").write_text(json.dumps(state))
    (run / "checkpoints" / "step-00000006" / "manifest.json").unlink()
    files.write_manifest(run / "checkpoints" / "step-00000006")
    error = error_of(capsys, run, "--resume")
    assert "processes is 1, was 2" in error and "clips is 12, was 14" in error


def interrupt_step(number: int) -> None:
    """Interrupt as Ctrl-C does before the nth step is finished."""
    finish_step, calls = run_module.Run.finish_step, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == number:
            raise KeyboardInterrupt
        finish_step(*args)

    run_module.Run.finish_step = interrupted


@pytest.mark.parametrize("step", [2, 4])
def test_interrupted_run_prints_the_command_to_resume(step, complete, tmp_path):
    output = tmp_path / "run"
    code, printed = train_in_process(output, prepare=interrupt_step, arguments=(step,))
    assert code == 130
    assert "Traceback" not in printed
    good = output / "checkpoints" / "step-00000002"
    expected = {
        2: "Interrupted. No checkpoint was written yet. Start again with: pcmanet train",
        4: f"Interrupted. The last good checkpoint is {good}. Resume with: pcmanet train",
    }
    assert expected[step] in printed
    train(output, "--resume")
    assert_same_weights(complete, output)


def test_folder_with_a_run_is_not_overwritten(run, capsys):
    before = weights(run)
    error = error_of(capsys, run)
    assert (
        f"{run} already contains a run (recipe.yaml, checkpoints, best, last). Resume it by adding --resume" in error
    )
    after = weights(run)
    assert all((after[name] == before[name]).all() for name in before)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["t.py", "--output", "a b"], "python t.py --output 'a b' --resume c"),
        (["t.py", "--resume", "--output", "x"], "python t.py --output x --resume c"),
        (["t.py", "--resume", "old", "--output", "x"], "python t.py --output x --resume c"),
        (["t.py", "--max-steps", "3", "--output", "x"], "python t.py --output x --resume c"),
        (["t.py", "--resume=old", "--output", "x"], "python t.py --output x --resume c"),
        (["/opt/bin/pcmanet", "train", "--output", "x"], "pcmanet train --output x --resume c"),
        (["/lib/pcmanet/__main__.py", "train", "--output", "x"], "python -m pcmanet train --output x --resume c"),
    ],
)
def test_resume_command(words, expected, monkeypatch):
    for name in ("ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with replaced_argv(words):
        assert resume_command(Path("c")) == expected
        assert resume_command() == expected.removesuffix(" c")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with replaced_argv(words):
        plain = expected.removeprefix("python ")
        assert resume_command(Path("c")) == f"torchrun --nproc_per_node 2 {plain}"
        # The configuration of Accelerate and the rank of a machine are not known to the process.
        for name, value in (("ACCELERATE_MIXED_PRECISION", "no"), ("WORLD_SIZE", "4")):
            with monkeypatch.context() as patch:
                patch.setenv(name, value)
                assert resume_command(Path("c")) == "the same launch command with --resume c"
