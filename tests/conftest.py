"""Shared set-up: one thread a process (tests run side by side), no network, an empty cache, and checkpoints loaded once."""

import copy
import functools
import gc
import operator
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Prepared datasets and code of checkpoints: tests neither depend on what the user has cached nor leave anything there.
if not IS_WORKER:
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="pcmanet_tests_")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Containers often set PYTHONDONTWRITEBYTECODE. Without the cache, pytest rewrites every assertion again in each process of
# each run: a third of the time to collect.
sys.dont_write_bytecode = False
# Imports and collected tests stay: searching the million of their objects for garbage again and again takes a third of the
# time to collect, and half a second of every full search afterwards.
gc.disable()


def pytest_collection_finish() -> None:
    """Search for garbage again, but only among the objects of running tests, and less often: a twentieth of their time."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed all random numbers before the fixtures of each test, so that a failure repeats when the test runs alone."""
    random.seed(0)
    for name, seed in (("numpy", "random.seed"), ("torch", "manual_seed")):
        # Only what the test modules have imported.
        if name in sys.modules:
            operator.attrgetter(seed)(sys.modules[name])(0)


def pytest_unconfigure() -> None:
    """Remove the cache after all workers have ended."""
    if not IS_WORKER:
        shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def no_waits_for_the_disk() -> Iterator[None]:
    """Let `os.fsync` return at once, thousands of times: only a power failure, and tests/test_files.py, tell the difference."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(os, "fsync", lambda _: None)
        yield


LOADED: dict[tuple, tuple[Any, Any]] = {}


@pytest.fixture
def checkpoints_are_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every command in this process the model that the first one loaded, and its optimized copy; none changes them.

    Both take two thirds of the time of a command with a tiny model and a short clip. A changed folder is loaded again.
    """
    from pcmanet import checkpoints
    from pcmanet.cli import evaluate

    load = checkpoints.load_model

    def load_once(name: str) -> tuple[Any, Any]:
        if not Path(name).is_dir():
            return load(name)
        checkpoints.silence_transformers()
        files = sorted((path.name, path.stat().st_mtime_ns) for path in Path(name).iterdir())
        key = (name, Path(name).resolve(), *files)
        if key not in LOADED:
            LOADED[key] = load(name)
            LOADED[key][0].for_inference = functools.cache(LOADED[key][0].for_inference)
        model, processor = LOADED[key]
        return model, copy.deepcopy(processor)

    monkeypatch.setattr(checkpoints, "load_model", load_once)
    monkeypatch.setattr(evaluate, "load_model", load_once)
