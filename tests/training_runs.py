"""Runs of examples/train_pcmanet.py on a network and clips small enough for any test, in this process or in one to kill."""

import contextlib
import importlib.util
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from tiny_model import TINY_NETWORK


SCRIPT = Path(__file__).parent.parent / "examples" / "train_pcmanet.py"
RECIPES = SCRIPT.parent / "recipes"

TRAINED_NETWORK: dict[str, Any] = {
    **TINY_NETWORK,
    "audio_config": {"block_channels": [[4], [4], [4]], "hidden_size": 8, "embedding_size": 10},
    "token_grid_sizes": [1, 2, 2, 4],
}
# Two evaluations, a checkpoint after every second step, and no step like another.
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


def load_script() -> ModuleType:
    """The training script as a module."""
    spec = importlib.util.spec_from_file_location("train_pcmanet", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assignments(**settings: Any) -> list[str]:
    """`--set` with a tiny run's settings and those given."""
    return ["--set", *(f"{key}={json.dumps(value)}" for key, value in {**TINY_RUN, **settings}.items())]


def train(output: Path, *words: str, recipe: Path | None = None, **settings: Any) -> None:
    """Run the script in this process to its end; raises SystemExit where the script exits."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.set_num_threads(1)
    command = [str(SCRIPT), "--output", str(output), *words, *assignments(**settings)]
    command += [] if recipe is None else ["--recipe", str(recipe)]
    with replaced_argv(command):
        load_script().main()


@contextlib.contextmanager
def replaced_argv(words: list[str]) -> Iterator[None]:
    """Run under another command line."""
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before


def die_at_call(owner: Any, name: str, number: int) -> None:
    """Make a function kill its process, as `kill -9` does, when it is called for the nth time."""
    function, calls = getattr(owner, name), []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, dying)


def _work(log: str, prepare: Callable[..., None] | None, arguments: tuple, output: Path, words: tuple, settings: dict):
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if prepare is not None:
        prepare(*arguments)
    train(output, *words, **settings)


def train_in_process(
    output: Path, *words: str, prepare: Callable[..., None] | None = None, arguments: tuple = (), **settings: Any
) -> tuple[int, str]:
    """Run the script in a process of its own and return its exit code (-9: killed) and what it printed.

    `prepare(*arguments)` is called in that process first. All libraries are imported once for all such processes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pcmanet.training.run", "training_runs"])
    log = output.with_name(f"{output.name}.log")
    process = context.Process(target=_work, args=(str(log), prepare, arguments, output, words, settings))
    process.start()
    process.join()
    return process.exitcode, log.read_text()


def weights(output: Path, folder: str = "last") -> dict[str, torch.Tensor]:
    """The weights that a run left."""
    return load_file(output / folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    """Hold the last weights, the best weights and the logs of two runs against each other, bit for bit."""
    for folder in ("last", "best"):
        first, second = weights(one, folder), weights(other, folder)
        assert first.keys() == second.keys()
        assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert (one / "log.jsonl").read_text() == (other / "log.jsonl").read_text()


def steps_logged(output: Path) -> list[int]:
    """The steps in a run's log."""
    records = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if "training" in record]
