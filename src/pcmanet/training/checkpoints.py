"""Checkpoints for exact resume: a resumed run ends with bit-identical weights. They are complete or absent, and verified.

A checkpoint contains what Accelerate saves (weights, optimizer, gradient scaler, random number generators of every process,
weight average) and `state.json`: the step, the best metrics, the counter of early stopping, the state of the tracker, and
the recipe. The position in the data follows from the step. Checkpoints are written after an optimizer step, so there is
never a partial gradient accumulation.
"""

import contextlib
import json
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from modeling_pcmanet.modeling_pcmanet import make_weights_readable
from pcmanet.files import (
    TEMPORARY,
    check_settings,
    recover,
    remove_folder,
    replace_folder,
    verify,
    write_manifest,
)

from .recipe import PLACE, Recipe
from .record import resume_command


FOLDER = "checkpoints"
STATE = "state.json"
FORMAT = 2  # of state.json
# What may differ on request, and how the run then differs from an uninterrupted one.
ALLOWED = {"processes": ("processes",), "data": ("data", PLACE)}
EFFECTS = {
    "processes": "batch statistics and random numbers of the processes differ, and sums in their last digits",
    "data": "training continues exactly only if the files have the same content; only names and sizes were compared",
}


class Checkpoints:
    """The checkpoints of one run.

    Args:
        accelerator: Has the prepared network and optimizer, and everything registered for checkpointing.
        output: The run's folder.
        recipe: The run's recipe.
        data: What must be unchanged in the clips for a run to resume, by name.
        allow: What may still differ: "processes" (their number), "data" (their place, and the times of the files).
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output: Path,
        recipe: Recipe,
        data: Mapping[str, Any],
        allow: Sequence[str] = (),
    ) -> None:
        self.accelerator, self.recipe, self.allow = accelerator, recipe, allow
        self.folder = output / FOLDER
        # What must be the same in addition to the recipe, so that the resumed steps are identical.
        self.circumstances = {"processes": accelerator.num_processes, **data}

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint, then remove those beyond `save_total_limit`. All processes must call this.

        Args:
            step: Optimizer steps done.
            state: What else the run needs to resume, for `state.json`.

        Raises:
            OSError: If it cannot be written; the message names the last good checkpoint and the command to resume.
        """
        target = self.folder / f"step-{step:08d}"
        temporary = self.folder / f"{TEMPORARY}{target.name}"  # every process writes to it
        with self.explain_full_disk(target):
            if self.accelerator.is_main_process:
                _create_folder(temporary)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(temporary))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                self._finish(temporary, target, {"step": step, **state})
        self.accelerator.wait_for_everyone()

    def explain_full_disk(self, target: Path) -> contextlib.AbstractContextManager[None]:
        """Explain disk errors in a block that writes a folder of weights, see [`explain_full_disk`]."""
        remedy = "Free some disk space, lower save_total_limit, or move OUTPUT to a larger disk"
        return explain_full_disk(target, self.folder / f"{TEMPORARY}{target.name}", remedy, self.resume_hint)

    def _finish(self, temporary: Path, target: Path, state: dict[str, Any]) -> None:
        """Complete a checkpoint on the main process."""
        complete = {"format": FORMAT, "recipe": self.recipe.to_dict(), "circumstances": self.circumstances, **state}
        (temporary / STATE).write_text(json.dumps(complete, indent=2) + "\n", encoding="utf-8")
        make_weights_readable(temporary)
        write_manifest(temporary)
        replace_folder(temporary, target)
        limit = self.recipe.save_total_limit
        for old in [] if limit is None else self.all()[:-limit]:
            remove_folder(old)

    def all(self) -> list[Path]:
        """Return the checkpoints, oldest first, damaged ones included."""
        return sorted(self.folder.glob("step-*"))

    def load(self, name: str) -> dict[str, Any] | None:
        """Restore weights, optimizer, random number generators and weight average. All processes must call this.

        Args:
            name: The folder of a checkpoint, or "latest".

        Returns:
            The state that was saved with it; None for "latest" if the run was killed before its first checkpoint.

        Raises:
            OSError: If the checkpoint is not found or damaged; the message names the last good one.
            ValueError: If it belongs to another run, or to a run with other settings.
        """
        if self.accelerator.is_main_process and self.folder.is_dir():
            recover(self.folder)
        self.accelerator.wait_for_everyone()
        found = self.all()
        if name == "latest" and not found:
            return None
        checkpoint = found[-1] if name == "latest" else Path(name)
        state = self._read_state(checkpoint)
        self._check_settings(checkpoint, state)
        try:
            self.accelerator.load_state(str(checkpoint))
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise OSError(
                f"Checkpoint {checkpoint} cannot be loaded: {_first_line(error)}. {self.resume_hint(checkpoint)}"
            ) from error
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            # Later checkpoints belong to steps that are now repeated.
            for later in (other for other in found if other.name > checkpoint.name):
                remove_folder(later)
        return state

    def _read_state(self, checkpoint: Path) -> dict[str, Any]:
        """Verify a checkpoint and read its state."""
        if not checkpoint.is_dir():
            raise OSError(f"Checkpoint {checkpoint} not found. {self.resume_hint()}")
        if checkpoint.resolve().parent != self.folder.resolve():
            raise ValueError(
                f"Expected a checkpoint in {self.folder}, got {checkpoint} of another run. Give its run as --output."
            )
        try:
            # One process reads all files to verify them; the others would only wait for the same disk.
            if self.accelerator.is_main_process:
                verify(checkpoint)
            self.accelerator.wait_for_everyone()
            return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OSError(f"Checkpoint {checkpoint} is damaged: {error}. {self.resume_hint(checkpoint)}") from error

    def _check_settings(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Check that recipe, data and number of processes are those of the checkpoint."""
        if state.get("format") != FORMAT:
            raise OSError(
                f"Expected format {FORMAT} of checkpoint {checkpoint}, got {state.get('format')}. Resume with the version of "
                "pcmanet that wrote it, or start a new run in another --output."
            )
        settings = {**self.recipe.settings(), **self.circumstances}
        earlier = {**state["recipe"], **state["circumstances"]}
        for kind in self.allow:
            different = [name for name in ALLOWED[kind] if settings.get(name) != earlier.get(name)]
            if different:
                self.accelerator.print(f"Resuming with other {kind}: {EFFECTS[kind]}.")
            settings |= {name: earlier.get(name) for name in different}
        remedy = (
            "Give the same values to resume, allow another number of processes or moved data (--allow processes data), or "
            "start a new run in another --output (from these weights with --set initialize_from=FOLDER)."
        )
        check_settings(self.folder.parent, settings, {name: earlier.get(name) for name in settings}, remedy)

    def resume_hint(self, damaged: Path | None = None) -> str:
        """Return a sentence with the last good checkpoint and the command that resumes from it."""
        if not self.all():
            return f"No checkpoint was written yet. Start again with: {resume_command()}"
        return resume_hint([checkpoint for checkpoint in self.all() if checkpoint != damaged])


@contextlib.contextmanager
def explain_full_disk(target: Path, incomplete: Path | None, remedy: str, hint: Callable[[], str]) -> Iterator[None]:
    """Raise disk errors in a block that writes a folder of weights with what to do and how to resume.

    Args:
        target: The folder.
        incomplete: Folder that is removed after such an error.
        remedy: What to do.
        hint: Returns how to resume.

    Raises:
        OSError: In place of a disk error. Other errors are raised unchanged.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if (reason := _disk_error(error)) is None:
            raise
        if incomplete is not None:
            shutil.rmtree(incomplete, ignore_errors=True)
        raise OSError(f"Checkpoint {target} could not be written: {reason}. {remedy}. {hint()}") from error


def _disk_error(error: Exception) -> str | None:
    """Return the message of a disk error; None for other errors, such as those of an upload."""
    if isinstance(error, RuntimeError):
        # The errors of torch.save have no error number.
        frames = traceback.walk_tb(error.__traceback__)
        is_of_writer = any(frame.f_globals.get("__name__") == "torch.serialization" for frame, _ in frames)
        return "a file was only partly written" if is_of_writer else None
    of_system = isinstance(error, SafetensorError) or (isinstance(error, OSError) and error.errno is not None)
    return _first_line(error) if of_system else None


def resume_hint(checkpoints: Sequence[Path], option: str = "--resume") -> str:
    """Return a sentence with the last good one of these checkpoints and the command that resumes from it.

    Args:
        checkpoints: Folders with manifests, oldest first.
        option: The option of the command to resume from a checkpoint.
    """
    for checkpoint in reversed(checkpoints):
        try:
            verify(checkpoint)
        except ValueError:
            continue
        return f"The last good checkpoint is {checkpoint}. Resume with: {resume_command(checkpoint, option)}"
    return "No good checkpoint was found. Start a new run in another folder."


def _create_folder(temporary: Path) -> None:
    """Create the folder that a checkpoint is written to, and remove one that a killed run left."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)


def _first_line(error: Exception) -> str:
    """Return the message of an error without the traceback that torch adds to some messages."""
    return str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__
