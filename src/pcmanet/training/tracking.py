"""Log a training run to TensorBoard or another tracker, and to a plain file.

    accelerator = Accelerator()
    tracker = Tracker(accelerator, "runs/first", recipe)
    tracker.log_step(10, {"loss": 0.31, "learning_rate": 1e-4, "gradient_norm": 0.8})
    tracker.log_evaluation(10, {"official": {"miou": 0.71, "fscore": 0.82}, "kept_ratio": {"stage_4": 0.4}})
    tracker.log_overlays(10, frames, masks, labels, id2label=model.config.id2label)

Everything is first written to `log.jsonl` in the run's folder, one JSON object per line: `{"step": 10, "training": {"loss":
...}}`. The file contains no times, so a run that was killed and resumed leaves the same file as an uninterrupted one.
Images are in `overlays/`, TensorBoard's files in `tensorboard/`. To view them: `tensorboard --logdir runs`.
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
from accelerate.utils import LoggerType
from PIL import Image

from pcmanet.files import atomic_file, naming_disk_errors, synchronize
from pcmanet.pipelines.panel import draw_panel


PROJECT = "pcmanet"  # name of the project in trackers that collect runs
LOG_NAME = "log.jsonl"
OVERLAYS_FOLDER = "overlays"
TENSORBOARD_FOLDER = "tensorboard"


class Tracker:
    """The log of one run. Only the main process writes; calls in the others have no effect.

    Records before the loaded [`state_dict`] are kept. Records that a killed run wrote after it are removed when the resumed
    run writes for the first time, so no step occurs twice. A run that loads no state starts a new log.

    Args:
        accelerator: Starts the trackers; its `end_training()` closes them.
        folder: The run's folder.
        recipe: The settings of the run, a dataclass or a mapping; written to the trackers as text.
        names: Installed trackers that Accelerate supports (`"tensorboard"`, `"wandb"`, ...), or instances of its
            `GeneralTracker`. If empty, only `log.jsonl` is written.

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
        self._names: list[str | LoggerType | GeneralTracker] = list(names)
        _check_installed(self._names)
        self._started = False
        self._step = 0
        self._records = 0
        self._run_id = secrets.token_hex(8)

    def log_step(self, step: int, values: Mapping[str, Any]) -> None:
        """Log an optimizer step: loss, learning rates, norm of the gradient.

        Args:
            step: Steps done so far, at least that of the previous call.
            values: Numbers (of Python or NumPy, or tensors with one element), or mappings of them.

        Raises:
            TypeError: If a value is none of these.
            ValueError: If the step is less than that of the previous call.
        """
        self._log(step, "training", values)

    def log_evaluation(self, step: int, values: Mapping[str, Any]) -> None:
        """Log an evaluation: metrics by protocol, metrics and kept ratios of all stages.

        Args:
            step: Steps done so far, at least that of the previous call.
            values: As for [`log_step`].

        Raises:
            TypeError: If a value is not a number.
            ValueError: If the step is less than that of the previous call.
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
        """Log a panel of overlays, see [`draw_panel`], to the trackers and as a PNG file in `overlays/`.

        Args:
            step: Steps done so far, at least that of the previous call.
            frames: See [`draw_panel`].
            masks: See [`draw_panel`].
            labels: See [`draw_panel`].
            id2label: See [`draw_panel`].

        Raises:
            ValueError: If the step is less than that of the previous call, or the arrays do not match each other.
        """
        if self._accelerator.is_main_process:
            self._start(step)
            path = Path(OVERLAYS_FOLDER, f"step_{step:08d}.png")
            (self.folder / OVERLAYS_FOLDER).mkdir(exist_ok=True)
            with atomic_file(self.folder / path, durable=False) as temporary:
                draw_panel(frames, masks, labels, id2label).save(temporary)
            self._write({"step": step, "overlays": path.as_posix()})

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; the log is on the disk when this returns."""
        if self._started:
            synchronize(self.folder / LOG_NAME)
        return {"step": self._step, "records": self._records, "run_id": self._run_id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state from a checkpoint, before anything is logged.

        Raises:
            RuntimeError: If something was logged already.
        """
        if self._started:
            raise RuntimeError(
                "Expected a state before the first record, got one after it. Load the checkpoint first."
            )
        self._step, self._records, self._run_id = state["step"], state["records"], state["run_id"]

    def _log(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        if self._accelerator.is_main_process:
            self._start(step)
            self._write({"step": step, kind: _plain(values)})

    def _start(self, step: int) -> None:
        """Truncate the log to the loaded state and start the trackers, at the first call that writes."""
        if step < self._step:
            raise ValueError(f"Expected a step of at least {self._step}, got {step}.")
        if self._started:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = _truncate(self.folder, self._records)
        self._started = True
        self._accelerator.log_with = self._names
        self._accelerator.project_configuration.logging_dir = str(self.folder / TENSORBOARD_FOLDER)
        # TensorBoard purges its records from a step on, so the kept records of that step are sent again.
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
        """Append a record to the log, then send it to the trackers."""
        path = self.folder / LOG_NAME
        with naming_disk_errors(path), path.open("a") as log:
            log.write(json.dumps(record, allow_nan=False) + "\n")
        self._step = record["step"]
        self._records += 1
        self._send(record)

    def _send(self, record: dict[str, Any]) -> None:
        """Send a record to the trackers: numbers as `training/loss`, images to those that support them."""
        for kind, content in record.items():
            if kind == "overlays":
                self._send_image(record["step"], self.folder / content)
            elif kind != "step":
                named = {f"{kind}/{name}": float(value) for name, value in content.items()}
                self._accelerator.log(named, step=record["step"])

    def _send_image(self, step: int, path: Path) -> None:
        with Image.open(path) as image:
            batch = np.asarray(image)[None]
        for tracker in self._accelerator.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"overlays": batch}, step=step, **layout)


def _as_mapping(recipe: Any) -> dict[str, Any]:
    """Convert a recipe to plain data, and values that YAML does not support to text."""
    fields = dict(recipe) if isinstance(recipe, Mapping) else dataclasses.asdict(recipe)
    return json.loads(json.dumps(fields, default=str))


def _check_installed(names: Iterable[str | LoggerType | GeneralTracker]) -> None:
    """Raise an error for trackers that Accelerate would skip silently."""
    installed = [str(name) for name in get_available_trackers()]
    for name in names:
        if not isinstance(name, GeneralTracker) and name not in installed:
            remedy = (
                "Install its package, or leave it out: --set trackers=[]."
                if name in LOGGER_TYPE_TO_CLASS
                else "Accelerate does not support it."
            )
            raise ValueError(f"Expected installed trackers, one or more of {installed}, got {name!r}. {remedy}")


def _plain(values: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str]:
    """Flatten nested mappings, joining names with a slash; numbers that JSON does not support become "nan", "inf"."""
    plain: dict[str, int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            plain |= _plain(value, f"{prefix}{name}/")
            continue
        number = (
            value.item() if isinstance(value, torch.Tensor | np.ndarray | np.generic) and _is_single(value) else value
        )
        if not isinstance(number, int | float):
            raise TypeError(f"Expected a single number as {prefix + name!r}, got {type(value).__name__}: {value!r}.")
        plain[f"{prefix}{name}"] = number if math.isfinite(number) else str(number)
    return plain


def _is_single(values: torch.Tensor | np.ndarray | np.generic) -> bool:
    return math.prod(values.shape) == 1


def _truncate(folder: Path, keep: int) -> list[dict[str, Any]]:
    """Truncate the log to its first records and return them; remove the images of the others.

    Raises:
        ValueError: If the log has fewer records than the checkpoint counts, or a line is not valid JSON.
    """
    log = folder / LOG_NAME
    # A line without a line break was incomplete when the run was killed.
    lines = [line for line in log.read_bytes().splitlines(True) if line.endswith(b"\n")] if log.exists() else []
    if len(lines) < keep:
        raise ValueError(
            f"Expected at least {keep} records in {log}, as when the checkpoint was written, got {len(lines)}. Restore the "
            "log of this run, or start a new run in another folder."
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
        raise ValueError(f"{log}, line {number} is not valid JSON: {line[:80]!r}. Correct the line.") from error
