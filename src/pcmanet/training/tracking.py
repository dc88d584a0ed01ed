"""Writes down how a training goes, where people look for it: TensorBoard or another tracker, and a plain file.

    accelerator = Accelerator()
    tracker = Tracker(accelerator, "runs/first", recipe)
    tracker.log_step(10, {"loss": 0.31, "learning_rate": 1e-4, "gradient_norm": 0.8})
    tracker.log_evaluation(10, {"official": {"miou": 0.71, "fscore": 0.82}, "kept_ratio": {"stage_4": 0.4}})
    tracker.log_overlays(10, frames, masks, labels, id2label=model.config.id2label)

Everything goes to `log.jsonl` in the run's folder first, one JSON object per line: `{"step": 10, "training": {"loss": ...}}`;
it holds no times, so that a run that was killed and resumed leaves the same file as one that was not. The pictures lie under
`overlays/`, TensorBoard's files under `tensorboard/`. To watch: `tensorboard --logdir runs`.
"""

import dataclasses
import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from PIL import Image

from pcmanet.pipelines.panel import draw_panel


PROJECT = "pcmanet"  # what trackers that collect runs file them under
LOG_NAME = "log.jsonl"
OVERLAYS_FOLDER = "overlays"
TENSORBOARD_FOLDER = "tensorboard"


class Tracker:
    """Keeps the log of one run, on the main process alone; the others may call it and nothing happens.

    What is written before [`state_dict`] was taken stays; what a killed run wrote after that is taken away when the
    run that loaded this state writes for the first time. So no step is ever there twice. A run that loaded no state
    starts its log anew.

    Args:
        accelerator: Accelerate's; it starts the trackers, and its `end_training()` closes them.
        folder: The run's folder.
        recipe: What the run was started with, a dataclass or a mapping; written to the trackers as text.
        names: Trackers that Accelerate knows (`"tensorboard"`, `"wandb"`, ...) and that are installed, or
            instances of its `GeneralTracker`. None of them: only `log.jsonl`.

    Raises:
        ValueError: If a tracker is unknown or not installed.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: str | os.PathLike[str],
        recipe: Any,
        *,
        names: Iterable[str | GeneralTracker] = ("tensorboard",),
    ) -> None:
        self.folder = Path(folder)
        self._accelerator = accelerator
        self._recipe = _as_mapping(recipe)
        self._names = list(names)
        _check_installed(self._names)
        self._started = False
        self._step = 0
        self._records = 0
        self._run_id = secrets.token_hex(8)

    def log_step(self, step: int, values: Mapping[str, Any]) -> None:
        """Write down a step of the optimizer: loss, learning rates, norm of the gradient.

        Args:
            step: Steps done so far, never less than in the call before.
            values: Numbers (Python's, NumPy's or tensors with one element), or mappings of them.

        Raises:
            TypeError: If a value is none of these.
            ValueError: If the step is less than one before.
        """
        self._log(step, "training", values)

    def log_evaluation(self, step: int, values: Mapping[str, Any]) -> None:
        """Write down an evaluation: measures under their protocols, of all four stages, kept ratios.

        Args:
            step: Steps done so far, never less than in the call before.
            values: As for [`log_step`].

        Raises:
            TypeError: If a value is not a number.
            ValueError: If the step is less than one before.
        """
        self._log(step, "evaluation", values)

    def log_overlays(
        self,
        step: int,
        frames: np.ndarray | torch.Tensor,
        masks: np.ndarray | torch.Tensor,
        labels: np.ndarray | torch.Tensor,
        *,
        id2label: Mapping[int, str] | None = None,
    ) -> None:
        """Write a panel of overlays, see [`draw_panel`], to the trackers and as a PNG file under `overlays/`.

        Args:
            step: Steps done so far, never less than in the call before.
            frames: See [`draw_panel`].
            masks: See [`draw_panel`].
            labels: See [`draw_panel`].
            id2label: See [`draw_panel`].

        Raises:
            ValueError: If the step is less than one before, or the arrays do not fit each other.
        """
        if self._accelerator.is_main_process:
            self._start(step)
            path = Path(OVERLAYS_FOLDER, f"step_{step:08d}.png")
            (self.folder / OVERLAYS_FOLDER).mkdir(exist_ok=True)
            draw_panel(frames, masks, labels, id2label).save(self.folder / path)
            self._write({"step": step, "overlays": path.as_posix()})

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold for the log to go on; the log is on the disk when this returns."""
        if self._started:
            _synchronize(self.folder / LOG_NAME)
        return {"step": self._step, "records": self._records, "run_id": self._run_id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where [`state_dict`] was taken; to be called before anything is logged.

        Raises:
            RuntimeError: If something was logged already.
        """
        if self._started:
            raise RuntimeError("The tracker got a state after it had logged something: load the checkpoint first.")
        self._step, self._records, self._run_id = state["step"], state["records"], state["run_id"]

    def _log(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        if self._accelerator.is_main_process:
            self._start(step)
            self._write({"step": step, kind: _plain(values)})

    def _start(self, step: int) -> None:
        """Cut the log back to the loaded state and start the trackers, at the first call that writes."""
        if step < self._step:
            raise ValueError(f"Step {step} was logged after step {self._step}; a log only goes forward.")
        if self._started:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = _cut_back(self.folder, self._records)
        self._started = True
        self._accelerator.log_with = self._names
        self._accelerator.project_configuration.logging_dir = str(self.folder / TENSORBOARD_FOLDER)
        # TensorBoard forgets what it has from a step on, so what stays of that very step is given to it again.
        self._accelerator.init_trackers(
            PROJECT,
            init_kwargs={
                "tensorboard": {"purge_step": self._step},
                "wandb": {"id": self._run_id, "resume": "allow", "name": self.folder.name, "config": self._recipe},
            },
        )
        if self._step == 0:
            recipe = yaml.safe_dump(self._recipe, sort_keys=False)
            self._accelerator.log({"recipe": "".join(f"    {line}" for line in recipe.splitlines(True))}, step=0)
        for record in kept:
            if record["step"] == self._step:
                self._send(record)

    def _write(self, record: dict[str, Any]) -> None:
        """Append a record to the log, then give it to the trackers."""
        with (self.folder / LOG_NAME).open("a") as log:
            log.write(json.dumps(record, allow_nan=False) + "\n")
        self._step = record["step"]
        self._records += 1
        self._send(record)

    def _send(self, record: dict[str, Any]) -> None:
        """Give a record to the trackers: numbers as `training/loss`, pictures where a tracker takes them."""
        for kind, content in record.items():
            if kind == "overlays":
                self._send_picture(record["step"], self.folder / content)
            elif kind != "step":
                named = {f"{kind}/{name}": float(value) for name, value in content.items()}
                self._accelerator.log(named, step=record["step"])

    def _send_picture(self, step: int, path: Path) -> None:
        with Image.open(path) as picture:
            batch = np.asarray(picture)[None]
        for tracker in self._accelerator.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"overlays": batch}, step=step, **layout)


def _as_mapping(recipe: Any) -> dict[str, Any]:
    """Turn a recipe into plain data, what YAML does not know into text."""
    fields = dataclasses.asdict(recipe) if dataclasses.is_dataclass(recipe) else dict(recipe)
    return json.loads(json.dumps(fields, default=str))


def _check_installed(names: Iterable[str | GeneralTracker]) -> None:
    """Refuse what Accelerate would leave out with no word."""
    installed = [str(name) for name in get_available_trackers()]
    for name in names:
        if not isinstance(name, GeneralTracker) and name not in installed:
            known = "install its package" if name in LOGGER_TYPE_TO_CLASS else "Accelerate does not know it"
            raise ValueError(f"The tracker {name!r} is not there ({known}); installed are {installed}.")


def _plain(values: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str]:
    """Flatten mappings of numbers to one, joining names with a slash; what JSON has no number for becomes "nan", "inf"."""
    plain: dict[str, int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            plain |= _plain(value, f"{prefix}{name}/")
            continue
        number = (
            value.item() if isinstance(value, torch.Tensor | np.ndarray | np.generic) and _is_single(value) else value
        )
        if not isinstance(number, int | float):
            raise TypeError(
                f"The value {prefix + name!r} must be a single number, got {type(value).__name__}: {value!r}."
            )
        plain[f"{prefix}{name}"] = number if math.isfinite(number) else str(number)
    return plain


def _is_single(values: torch.Tensor | np.ndarray | np.generic) -> bool:
    return math.prod(values.shape) == 1


def _cut_back(folder: Path, keep: int) -> list[dict[str, Any]]:
    """Shorten the log to its first records and return these; pictures of the others go as well.

    Raises:
        ValueError: If the log has fewer records than the checkpoint counts, or a line that is none.
    """
    log = folder / LOG_NAME
    # A line without its end was being written when the run was killed.
    lines = [line for line in log.read_bytes().splitlines(True) if line.endswith(b"\n")] if log.exists() else []
    if len(lines) < keep:
        raise ValueError(
            f"{log} has {len(lines)} records, but the checkpoint was taken when it had {keep}: it is the log of another "
            "run, or was shortened. Put the one back that lay beside this checkpoint, or start a new run in a new folder."
        )
    records = [_parse(log, number, line) for number, line in enumerate(lines, start=1)]
    for record in records[keep:]:
        if "overlays" in record:
            (folder / record["overlays"]).unlink(missing_ok=True)
    if log.exists():
        os.truncate(log, sum(map(len, lines[:keep])))
    return records[:keep]


def _parse(log: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"{log}, line {number} is no JSON: {line[:80]!r}. Put the line right.") from error


def _synchronize(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
