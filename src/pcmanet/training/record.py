"""The record of a training run next to its weights (`metrics.json`), so that others can judge and reproduce the run.

    record = {"validation": metrics, "clips": 3200, "minutes": 5.1, "recipe": {"task": "ms3", "data": None}}
    write_record(folder, record)  # adds the command and the environment

A record may contain more. The model card uses `validation` (metrics under the official protocol), `clips`, `minutes`,
`recipe` or `arguments` (settings; `task` and `data` describe the training data), `datasets` (ids of the data on the
Hub), `command` and `environment`.
"""

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


RECORD = "metrics.json"
PACKAGES = ("pcmanet", "torch", "transformers", "accelerate", "datasets")


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a record next to the weights, with the command and the environment of this process.

    Args:
        folder: The folder of the weights.
        record: See the docstring of this module. If it contains `command` or `environment`, these are kept.
    """
    command = _launch_command(sys.argv) or f"{_shell_words(sys.argv)}  # the options of the launcher are not known"
    complete = {"command": command, "environment": describe_environment(), **record}
    (folder / RECORD).write_text(json.dumps(complete, indent=2, default=str) + "\n", encoding="utf-8")


def describe_environment() -> dict[str, str]:
    """Return the versions, the machine and the devices of this process."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None and accelerator.type == "cuda":
        device = f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})"
    else:
        device = "CPU" if accelerator is None else accelerator.type
    return {
        **{name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"{device}, {processes} process{'' if processes == 1 else 'es'}",
    }


def resume_command(checkpoint: Path | None = None, option: str = "--resume") -> str:
    """Return the command of this process with `--resume`, or `--resume CHECKPOINT`, and without `--max-steps`.

    Args:
        checkpoint: The folder; None for the latest.
        option: The option in place of `--resume`.
    """
    words = _without_option(_without_option(sys.argv, option), "--max-steps")
    added = [option, *([] if checkpoint is None else [str(checkpoint)])]
    return _launch_command([*words, *added]) or f"the same launch command with {shlex.join(added)}"


def _launch_command(words: Sequence[str]) -> str | None:
    """Return the shell command that starts a process with this `sys.argv`, or None if the launcher's options are unknown.

    They are unknown with `accelerate launch`, and on several machines.
    """
    each_machine = os.environ.get("LOCAL_WORLD_SIZE")
    several_machines = os.environ.get("WORLD_SIZE", each_machine) != each_machine
    if several_machines or "ACCELERATE_MIXED_PRECISION" in os.environ:  # which `accelerate launch` always sets
        return None
    if each_machine is not None:
        return f"torchrun --nproc_per_node {each_machine} {_shell_words(words)}"
    is_command = Path(words[0]).suffix != ".py"  # installed in bin/, which is in the search path
    return _shell_words(words) if is_command else f"python {_shell_words(words)}"


def _shell_words(words: Sequence[str]) -> str:
    """Return a command line for the shell; a package or command is called by its name, not by its path."""
    program = Path(words[0])
    if program.name == "__main__.py":
        return shlex.join(["-m", program.parent.name, *words[1:]])
    return shlex.join([words[0] if program.suffix == ".py" else program.name, *words[1:]])


def _without_option(words: Sequence[str], option: str) -> list[str]:
    """Return a command line without an option that has at most one value."""
    kept: list[str] = []
    for position, word in enumerate(words):
        is_value = position > 0 and words[position - 1] == option and not word.startswith("-")
        if word != option and not word.startswith(f"{option}=") and not is_value:
            kept.append(word)
    return kept
