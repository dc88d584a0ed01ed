"""Runs of `pcmanet train` with a tiny network and few clips, in this process or in one that can be killed."""

import contextlib
import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from tiny_model import TINY_NETWORK
from tqdm import tqdm

from pcmanet.cli.main import main
from pcmanet.dataset_scripts.paired import is_paired_data
from pcmanet.training import run as run_module
from pcmanet.training.recipe import GENERATED_ONLY, SHAPES_ONLY


RECIPES = Path(__file__).parent.parent / "examples" / "recipes"

TRAINED_NETWORK: dict[str, Any] = {
    **TINY_NETWORK,
    "audio_config": {"block_channels": [[4], [4], [4]], "hidden_size": 8, "embedding_size": 10},
    "token_grid_sizes": [1, 2, 2, 4],
}
# Two evaluations, a checkpoint after every second step, and different clips in every step.
TINY_RUN: dict[str, Any] = {
    "preset": "tiny",
    "configuration": TRAINED_NETWORK,
    "image_size": 32,
    "clips": 12,
    "batch_size": 2,
    "negative_fraction": 0.2,
    "evaluation_clips": 3,
    "evaluations": 2,
    "checkpoint_steps": 2,
    "num_workers": 0,
    "mixed_precision": "none",
    "average_decay": 0.9,
    "trackers": [],
}


def tiny_run(**settings: Any) -> dict[str, Any]:
    """Return the settings of a tiny run and those given, without the settings of generated clips where these are files."""
    data = settings.get("data")
    others = () if data is None else SHAPES_ONLY if is_paired_data(data) else (*SHAPES_ONLY, *GENERATED_ONLY)
    return {name: value for name, value in TINY_RUN.items() if name not in others} | settings


def assignments(**settings: Any) -> list[str]:
    """Return `--set` with the settings of [`tiny_run`]."""
    return ["--set", *(f"{key}={json.dumps(value)}" for key, value in tiny_run(**settings).items())]


def reset_accelerate() -> None:
    """Forget the precision and compilation of an earlier run in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def train(
    output: Path, *words: str, recipe: Path | None = None, measures_agreement: bool = False, **settings: Any
) -> None:
    """Run the command in this process; raise SystemExit if it fails.

    The comparison of data types at the end of a run takes as long as its steps, so it is left out unless it is tested.
    """
    reset_accelerate()
    torch.set_num_threads(1)
    command = ["pcmanet", "train", "--output", str(output), *words, *assignments(**settings)]
    command += [] if recipe is None else ["--recipe", str(recipe)]
    measure = run_module.measure_agreement if measures_agreement else lambda *_: 1.0
    with replaced_argv(command), mock.patch.object(run_module, "measure_agreement", measure):
        if code := main():
            raise SystemExit(code)


@contextlib.contextmanager
def replaced_argv(words: list[str]) -> Iterator[None]:
    """Replace the command line."""
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before


def die_at_call(owner: Any, name: str, number: int) -> None:
    """Make a function kill its process, as `kill -9` does, at its nth call."""
    function, calls = getattr(owner, name), []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, dying)


def _work(log: str, prepare: Callable[..., None] | None, arguments: tuple, output: Path, words: tuple, settings: dict):
    gc.freeze()  # to finalize what the parent of a forked process holds, such as its threads, would crash the child
    tqdm.set_lock(threading.RLock())  # forked processes would share the lock, which one that is killed never releases
    os.setpgid(0, 0)  # so that the parent can end what a killed run leaves
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = sys.stderr = os.fdopen(descriptor, "w", buffering=1)
    if prepare is not None:
        prepare(*arguments)
    train(output, *words, **settings)


def train_in_process(
    output: Path, *words: str, prepare: Callable[..., None] | None = None, arguments: tuple = (), **settings: Any
) -> tuple[int, str]:
    """Run the command in a separate process and return its exit code (-9: killed) and its output.

    `prepare(*arguments)` is called in that process first. A fork needs no imports, which take longer than the run. Where
    PyTorch finds a GPU, it cannot be forked after a backward pass.
    """
    context = multiprocessing.get_context("forkserver" if torch.cuda.is_available() else "fork")
    log = output.with_name(f"{output.name}.log")
    process = context.Process(target=_work, args=(str(log), prepare, arguments, output, words, settings))
    process.start()
    process.join()
    if process.exitcode < 0:
        # The loader workers of the killed run, or its fork server, each of half a gigabyte, would stay.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.exitcode, log.read_text()


def weights(output: Path, folder: str = "last") -> dict[str, torch.Tensor]:
    """Load the weights that a run saved."""
    return load_file(output / folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    """Check that the last weights, the best weights and the logs of two runs are bit-identical."""
    for folder in ("last", "best"):
        first, second = weights(one, folder), weights(other, folder)
        assert first.keys() == second.keys()
        assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert (one / "log.jsonl").read_text() == (other / "log.jsonl").read_text()


def steps_logged(output: Path) -> list[int]:
    """Return the steps in the log of a run."""
    records = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if "training" in record]
