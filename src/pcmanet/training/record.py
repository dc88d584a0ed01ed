"""What is written down about a training beside its weights (`metrics.json`), so that others can judge and repeat it.

    record = {"validation": figures, "clips": 3200, "minutes": 5.1, "recipe": {"task": "ms3", "data": None}}
    write_record(folder, record)  # adds the command and the environment

A record may hold more; the model card uses `validation` (measures under the official protocol), `clips`, `minutes`,
`recipe` or `arguments` (settings, of which `task` and `data` say what was learned from), `command` and `environment`.
"""

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


RECORD = "metrics.json"
PACKAGES = ("pcmanet", "torch", "transformers", "accelerate", "datasets")


@dataclass(frozen=True)
class TrainingData:
    """What a model has learned from.

    Attributes:
        name: For headings, as `"AVSBench, s4"`.
        text: What a reader has to know of it.
        license: Of weights that learned from it, as the Hub abbreviates it.
        licence_text: The same in a sentence.
    """

    name: str
    text: str
    license: str
    licence_text: str


OTHER_LICENCE = (
    "The code that made these weights is under Apache-2.0. What they may be used for also depends on the data: look at "
    "the terms under which you got those."
)
SOUNDING_SHAPES = (
    "Sounding Shapes, made on the fly by `pcmanet.dataset_scripts.sounding_shapes.files`: moving shapes of twelve kinds, each with a "
    "kind of sound, of which only the sound tells which ones are active. The real world does not occur in it."
)
SUBSETS = {
    "s4": "its single-source clips: five seconds, masks of the one thing that sounds, in training of the first second only",
    "ms3": "its multi-source clips: five seconds, one mask a second of all that sounds",
    "avss": "its semantic clips: five or ten seconds, one map a second with the class of all that sounds",
}


def describe_data(settings: Mapping[str, Any]) -> TrainingData:
    """Tell what a training of these settings learned from.

    Args:
        settings: `task` and `data` as in a recipe.

    Returns:
        Its description.
    """
    task, data = settings.get("task"), settings.get("data")
    if task is None:
        text = "What the model learned from was not recorded."
        return TrainingData("unrecorded data", text, "other", OTHER_LICENCE)
    if data is None:
        text = "Apache-2.0, like the code and the data, which it makes."
        return TrainingData(f"Sounding Shapes, {task}", SOUNDING_SHAPES, "apache-2.0", text)
    if task == "folder":
        text = f"Clips of the author's own, in the folder `{Path(data).name}`, with a `clips.csv`."
        return TrainingData(f"own clips, {Path(data).name}", text, "other", OTHER_LICENCE)
    text = (
        f"[AVSBench](https://github.com/OpenNLPLab/AVSBench), {SUBSETS[task]}. It is given out on request, for research, "
        "and is not part of this repository."
    )
    return TrainingData(f"AVSBench, {task}", text, "other", OTHER_LICENCE)


def describe_environment() -> dict[str, str]:
    """Tell in what this process runs: versions, machine, devices."""
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


def describe_command() -> str:
    """Write down how this process was started, so that it can be started again."""
    launcher, words = describe_launcher(), shlex.join(sys.argv)
    return f"{words}  # by a launcher whose options were not recorded" if launcher is None else f"{launcher} {words}"


def describe_launcher() -> str | None:
    """Name what started this process; None if it cannot know the options, as with Accelerate's or on several machines."""
    each_machine = os.environ.get("LOCAL_WORLD_SIZE")
    several_machines = os.environ.get("WORLD_SIZE", each_machine) != each_machine
    if several_machines or "ACCELERATE_MIXED_PRECISION" in os.environ:  # which `accelerate launch` always sets
        return None
    return "python" if each_machine is None else f"torchrun --nproc_per_node {each_machine}"


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a record beside the weights, completed by the command and the environment of this process.

    Args:
        folder: Of the weights.
        record: See the top of this module; a command and an environment in it stay.
    """
    whole = {"command": describe_command(), "environment": describe_environment(), **record}
    (folder / RECORD).write_text(json.dumps(whole, indent=2, default=str) + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record beside the weights; an empty one if there is none.

    Raises:
        ValueError: The file is no JSON object.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); mend it, or remove it to publish without figures.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds {type(record).__name__}, expected an object such as training writes.")
    return record
