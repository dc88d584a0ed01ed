"""Checkpoints from which a run goes on bit for bit: written aside, whole or not at all, and checked before they are read.

A checkpoint holds what Accelerate saves (weights, optimizer, gradient scaler, random numbers of every process, the weight
average) and `state.json`: the step, the best figures, what early stopping counts, the tracker's place, and the recipe.
The place in the data follows from the step. There is no half-filled accumulation: checkpoints are written after a step.
"""

import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from pcmanet.files import DamagedFolderError, finish_aside, recover, remove_folder, start_aside, verify, write_manifest

from .recipe import Recipe
from .record import describe_launcher


FOLDER = "checkpoints"
STATE = "state.json"
FORMAT = 1  # of state.json


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read or gone on from; the message names the last good one and the way on."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        accelerator: With the prepared network and optimizer, and everything registered for checkpointing.
        output: The run's folder.
        recipe: The run's recipe.
        data: What of the clips must be the same for a run to go on, by name.
    """

    def __init__(self, accelerator: Accelerator, output: Path, recipe: Recipe, data: Mapping[str, Any]) -> None:
        self.accelerator, self.recipe = accelerator, recipe
        self.folder = output / FOLDER
        # What, besides the recipe, must be the same for the steps to go on the same.
        self.circumstances = {"processes": accelerator.num_processes, **data}

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint, then remove those beyond `save_total_limit`; all processes call this.

        Args:
            step: Optimizer steps done.
            state: The rest of what the run needs to go on, for `state.json`.

        Raises:
            CheckpointError: If the disk does not take it.
        """
        target = self.folder / f"step-{step:08d}"
        aside = self.folder / f".writing-{target.name}"
        try:
            if self.accelerator.is_main_process:
                start_aside(target)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(aside))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                self._finish(aside, target, {"step": step, **state})
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            remedy = "Free some space, or set save_total_limit or OUTPUT to a larger disk"
            raise CheckpointError(
                f"the checkpoint {target} could not be written: {_first_line(error)}. {remedy}. {self.resume_hint()}"
            ) from error
        self.accelerator.wait_for_everyone()

    def _finish(self, aside: Path, target: Path, state: dict[str, Any]) -> None:
        """Complete a checkpoint on the main process."""
        whole = {"format": FORMAT, "recipe": self.recipe.to_dict(), "circumstances": self.circumstances, **state}
        (aside / STATE).write_text(json.dumps(whole, indent=2) + "\n")
        write_manifest(aside)
        finish_aside(aside, target)
        limit = self.recipe.save_total_limit
        for old in [] if limit is None else self.all()[:-limit]:
            remove_folder(old)

    def all(self) -> list[Path]:
        """The checkpoints, oldest first, whole or not."""
        return sorted(self.folder.glob("step-*"))

    def load(self, asked: str) -> dict[str, Any] | None:
        """Put everything back as it was; all processes call this.

        Args:
            asked: A checkpoint's folder, or "latest".

        Returns:
            The state that was saved with it; None if "latest" finds nothing because the run was killed before the first.

        Raises:
            CheckpointError: If the checkpoint is damaged or of another run.
        """
        if self.accelerator.is_main_process and self.folder.is_dir():
            recover(self.folder)
        self.accelerator.wait_for_everyone()
        found = self.all()
        if asked == "latest" and not found:
            return None
        checkpoint = found[-1] if asked == "latest" else Path(asked)
        state = self._read_state(checkpoint)
        self._check_fit(checkpoint, state)
        try:
            self.accelerator.load_state(str(checkpoint))
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"the checkpoint {checkpoint} cannot be loaded: {_first_line(error)}. {self.resume_hint(checkpoint)}"
            ) from error
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            # What was written after it belongs to a course of the run that is now left.
            for later in (other for other in found if other.name > checkpoint.name):
                remove_folder(later)
        return state

    def _read_state(self, checkpoint: Path) -> dict[str, Any]:
        """Check that a checkpoint is whole and read its state."""
        if not checkpoint.is_dir():
            raise CheckpointError(f"there is no checkpoint {checkpoint}. {self.resume_hint()}")
        try:
            # One process reads everything to check it; the others would only wait for the same disk.
            if self.accelerator.is_main_process:
                verify(checkpoint)
            self.accelerator.wait_for_everyone()
            return json.loads((checkpoint / STATE).read_text())
        except (DamagedFolderError, OSError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint {checkpoint} is damaged: {error}. {self.resume_hint(checkpoint)}"
            ) from error

    def _check_fit(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Refuse to go on with another recipe, other data or another number of processes."""
        if state.get("format") != FORMAT:
            raise CheckpointError(
                f"{checkpoint} has the format {state.get('format')}, this program reads {FORMAT}: go on with the "
                "version of pcmanet that wrote it, or start anew in another --output."
            )
        differences = self.recipe.differences(state["recipe"])
        for name, value in self.circumstances.items():
            if (before := state["circumstances"].get(name)) != value:
                differences.append(f"{name} is {value}, was {before}")
        if differences:
            listed = "\n  ".join(differences)
            raise CheckpointError(
                f"the run in {self.folder.parent} was begun differently:\n  {listed}\n"
                "Give the same values to go on, or start anew in another --output (from these weights with "
                "--set initialize_from=FOLDER)."
            )

    def resume_hint(self, damaged: Path | None = None) -> str:
        """Name the last checkpoint that is whole and the command that goes on from it."""
        if not self.all():
            return f"There is no checkpoint yet; begin again with: {resume_command()}"
        for checkpoint in reversed(self.all()):
            try:
                if checkpoint != damaged:
                    verify(checkpoint)
                    return f"The last good one is {checkpoint}; go on from it with: {resume_command(checkpoint)}"
            except DamagedFolderError:
                continue
        return "There is no good one; start anew in another --output."


def resume_command(checkpoint: Path | None = None) -> str:
    """The command of this process with `--resume`, or `--resume CHECKPOINT`, and to the end of the run."""
    words = _without_option(_without_option(sys.argv, "--resume"), "--max-steps")
    option = ["--resume", *([] if checkpoint is None else [str(checkpoint)])]
    launcher = describe_launcher()
    if launcher is None:
        return f"the same launch command with {shlex.join(option)}"
    return f"{launcher} {shlex.join(words + option)}"


def _without_option(words: list[str], option: str) -> list[str]:
    """Leave an option with at most one value out of a command line."""
    kept: list[str] = []
    for position, word in enumerate(words):
        is_value = position > 0 and words[position - 1] == option and not word.startswith("-")
        if word != option and not word.startswith(f"{option}=") and not is_value:
            kept.append(word)
    return kept


def _first_line(error: Exception) -> str:
    """What an error says, without the traceback that torch puts into some messages."""
    return str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__
