"""Fine-tuning with transformers' Trainer: choice of classes, collation, loss, learning rates, verified checkpoints."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from pcmanet.dataset_scripts.collation import real_frames
from pcmanet.files import verify, write_manifest

from .checkpoints import explain_full_disk, resume_hint
from .data import Batch, Collate
from .record import RECORD


RESUME = "--resume_from_checkpoint"
LABEL_VALUES = 256  # masks are uint8; 255 is ignored


def choose_classes(known: Sequence[str], chosen: Sequence[str] = ()) -> tuple[list[str], torch.Tensor]:
    """Choose some classes of the data; all others become background.

    Args:
        known: Names of the data's classes, background first; a single one for binary masks.
        chosen: Names of the classes of the model, in its order; all of them if empty.

    Returns:
        Names of the model's classes, background first, and a table that maps the values of the data's masks to those of
        the model: long (256,).

    Raises:
        ValueError: If a class is not in the data, or is given twice.

    Example:
        >>> names, table = choose_classes(["background", "dog", "cat", "car"], ["car", "dog"])
        >>> names, table[:4].tolist()
        (['background', 'car', 'dog'], [0, 2, 0, 1])
    """
    if unknown := [name for name in chosen if name not in known[1:]]:
        listed = ", ".join(known[1:]) or "none, the masks are binary"
        raise ValueError(f"Classes {unknown} not found in the data. Its classes are: {listed}.")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"Expected different classes, got {list(chosen)}.")
    table = torch.arange(LABEL_VALUES, device="cpu")
    if not chosen:
        return list(known), table
    names = [known[0], *chosen]
    table[: len(known)] = table.new_tensor([names.index(name) if name in names else 0 for name in known])
    return names, table


def collate_for_trainer(collate: Collate, table: torch.Tensor, clips: Sequence[Any]) -> Batch:
    """Make a batch with the chosen classes.

    Args:
        collate: Makes a batch of clips.
        table: See [`choose_classes`].
        clips: The clips.
    """
    batch = dict(collate(clips))
    return batch | {"labels": table[batch["labels"]]}


def open_output(arguments: TrainingArguments) -> Path | None:
    """Check that the output folder is free, or find the checkpoint to resume from. Call this before a Trainer is built.

    Args:
        arguments: The Trainer's arguments; `resume_from_checkpoint` is a folder or "latest".

    Returns:
        The checkpoint; None to start a run, also if the run to resume was killed before its first checkpoint.

    Raises:
        FileExistsError: If the folder contains a run that is not to be resumed, or one without checkpoints that is.
        OSError: If the checkpoint is not found or damaged; the message names the last good one.
    """
    output, name = Path(cast(str, arguments.output_dir)), arguments.resume_from_checkpoint
    checkpoints = _find_checkpoints(output)
    if name is None or (name == "latest" and not checkpoints):
        found = [path.name for path in (*checkpoints, output / SAFE_WEIGHTS_NAME, output / RECORD) if path.exists()]
        if found:
            remedy = f"Resume it with {RESUME} latest, or choose" if checkpoints else "It has no checkpoints. Choose"
            raise FileExistsError(
                f"{output} already contains a run ({', '.join(found)}). {remedy} another --output_dir."
            )
        return None
    checkpoint = checkpoints[-1] if name == "latest" else Path(name)
    try:
        verify(checkpoint)
    except ValueError as error:
        hint = resume_hint([other for other in checkpoints if other != checkpoint], RESUME)
        raise OSError(f"Checkpoint {checkpoint} is damaged: {error}. {hint}") from error
    return checkpoint


def _find_checkpoints(output: Path) -> list[Path]:
    """Return the checkpoints of a Trainer, oldest first, damaged ones included."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    steps = {path: path.name.removeprefix(prefix) for path in output.glob(f"{prefix}*")}
    return sorted((path for path in steps if steps[path].isdecimal()), key=lambda path: int(steps[path]))


def _count_annotated(batch: Batch) -> torch.Tensor:
    """Count the frames over which the loss of a batch is the mean."""
    real = real_frames(batch)
    return (batch.get("annotated_frames", real) & real).sum()


class SegmentationTrainer(Trainer):
    """A Trainer with the loss of `pcmanet train`, verified checkpoints and a learning rate of the visual backbone.

    The loss of a step is the mean over the annotated frames of all its batches and processes. Trainer alone would average
    the means of the batches. The loss of an evaluation is such an average.

    When a run is resumed, early stopping continues to count, with the patience that is now requested.

    Args:
        *args: As for `Trainer`.
        backbone_learning_rate: Peak learning rate of the backbone; None uses that of the rest.
        prepare_batch: Called with every batch on its device, see [`exchange_stand_ins`]; None leaves it unchanged.
        **kwargs: As for `Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        backbone_learning_rate: float | None = None,
        prepare_batch: Callable[[Batch], Batch] | None = None,
        **kwargs: Any,
    ) -> None:
        self.backbone_learning_rate, self.prepare_batch = backbone_learning_rate, prepare_batch
        super().__init__(*args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor]:
        """Collect the batches of a step, and count the annotated frames of all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.stack(
            [torch.zeros((), device=device), *(_count_annotated(batch).to(device) for batch in batches)]
        )
        return batches, cast(torch.Tensor, self.accelerator.reduce(count.sum(), "sum")).clamp(min=1)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Compute the loss of a batch, in training as its part of the mean over the annotated frames of the step.

        Args:
            model: The model, wrapped.
            inputs: The batch.
            return_outputs: Whether to return the outputs of the model too.
            num_items_in_batch: Annotated frames of the step; None in evaluation.
        """
        inputs = inputs if self.prepare_batch is None else self.prepare_batch(inputs)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if num_items_in_batch is not None:
            # Trainer divides the loss by the number of batches, and the gradients are averaged over the processes.
            parts = self.current_gradient_accumulation_steps * self.accelerator.num_processes
            loss = loss * (parts * _count_annotated(inputs) / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the Trainer's optimizer, and split each parameter group (with and without weight decay) in two."""
        optimizer = super().create_optimizer(model)
        if self.backbone_learning_rate is None:
            return optimizer
        trained = cast(torch.nn.Module, self.model if model is None else model)
        backbone = {id(weight) for name, weight in trained.named_parameters() if "backbone." in name}
        for group in list(optimizer.param_groups):
            inside = [weight for weight in group["params"] if id(weight) in backbone]
            group["params"] = [weight for weight in group["params"] if id(weight) not in backbone]
            optimizer.add_param_group({**group, "params": inside, "lr": self.backbone_learning_rate})
        return optimizer

    def explain_full_disk(
        self, target: Path, incomplete: Path | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Explain disk errors in a block that writes a folder of weights, see [`explain_full_disk`]."""
        remedy = "Free some disk space, lower --save_total_limit, or move --output_dir to a larger disk"
        output = Path(cast(str, self.args.output_dir))
        return explain_full_disk(target, incomplete, remedy, lambda: resume_hint(_find_checkpoints(output), RESUME))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save a checkpoint, with a manifest that shows later whether it is complete and unchanged."""
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with self.explain_full_disk(folder, incomplete=folder):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each process writes the state of its random numbers
            if self.args.should_save:
                write_manifest(folder)

    def _load_callback_state(self) -> None:
        """Restore only the counter of early stopping; transformers would also restore its patience."""
        super()._load_callback_state()
        saved = cast(dict[str, Any], self.state.stateful_callbacks)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                # A run without early stopping has saved none, and the next checkpoint expects an entry.
                state = saved.setdefault(type(callback).__name__, callback.state())
                callback.early_stopping_patience_counter = state["attributes"]["early_stopping_patience_counter"]
