"""Shared set-up: one thread a process (tests run side by side), no network, and the keys of published checkpoints."""

import gc
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Containers often set PYTHONDONTWRITEBYTECODE. Without the cache, pytest rewrites every assertion again in each process of
# each run: a third of the time to collect.
sys.dont_write_bytecode = False
# Imports and collected tests stay: searching the million of their objects for garbage again and again takes a third of the
# time to collect, and half a second of every full search afterwards.
gc.disable()

PUBLISHED_KEYS = json.loads((Path(__file__).parent / "fixtures" / "published_keys.json").read_text())


def pytest_collection_finish() -> None:
    """Search for garbage again, but only among the objects of running tests, and less often: a twentieth of their time."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def expand_braces(template: str) -> list[str]:
    """Write out `{0-39}` and `{weight,bias}` in a name, all combinations."""
    match = re.search(r"{(?:(\d+)-(\d+)|([^{}]*))}", template)
    if match is None:
        return [template]
    options = match[3].split(",") if match[3] else [str(n) for n in range(int(match[1]), int(match[2]) + 1)]
    return [
        name
        for option in options
        for name in expand_braces(template[: match.start()] + option + template[match.end() :])
    ]


@pytest.fixture(scope="session")
def published_shapes() -> Callable[[str, str], dict[str, list[int]]]:
    """Key to shape of a published checkpoint, by setting (S4, MS3, AVSS) and backbone (pvt, resnet)."""

    def shapes(setting: str, backbone: str) -> dict[str, list[int]]:
        variant = PUBLISHED_KEYS["variants"][f"{setting}_{backbone}"]
        return {
            key.replace("audio_projection", variant["audio_projection"]): [variant["sizes"].get(n, n) for n in shape]
            for section in variant["sections"]
            for template, shape in PUBLISHED_KEYS["keys"][section]
            for key in expand_braces(template)
        }

    return shapes
