"""Fine-tuning with transformers' Trainer: clips, classes (those of the data or some of them), batches, learning rates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer

from pcmanet.dataset_scripts.avsbench import label_names, load_avsbench
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.metrics.trainer import ignore_unscored_frames
from pcmanet.dataset_scripts.sounding_shapes.clips import SoundingShapes
from pcmanet.dataset_scripts.sounding_shapes.scene import CLASSES


LABEL_VALUES = 256  # masks are uint8; 255 is not scored


@dataclass(frozen=True)
class FineTuningData:
    """Where clips come from.

    Attributes:
        task: "s4", "ms3", "avss" or "folder".
        folder: Of AVSBench or of one's own clips; None makes Sounding Shapes.
        clips: Sounding Shapes: how many for training.
        evaluation_clips: Sounding Shapes: how many for validation.
        seed: Of Sounding Shapes.
    """

    task: str
    folder: str | None = None
    clips: int = 2000
    evaluation_clips: int = 64
    seed: int = 0

    @property
    def classes(self) -> list[str]:
        """Names of the classes of the masks, background first; a single one for binary masks."""
        if self.folder is not None:
            return list(label_names(self.folder, self.task))
        return ["background", *CLASSES] if self.task == "avss" else ["sounding"]

    def load(self, size: dict[str, int]) -> tuple[Dataset[Any], Dataset[Any]]:
        """Make the training and the validation clips.

        Args:
            size: Height and width of Sounding Shapes, in pixels; files have their own.
        """
        if self.folder is not None:
            training, validation = (load_avsbench(self.folder, self.task, split=split) for split in ("train", "val"))
            return training, validation
        lengths = {"train": self.clips, "val": self.evaluation_clips}
        training, validation = (
            SoundingShapes(self.task, split, length=length, seed=self.seed, **size)
            for split, length in lengths.items()
        )
        return training, validation


@dataclass(frozen=True)
class ChosenClasses:
    """Which classes a model has, and which of them every class of the data becomes.

    Attributes:
        names: Of the model's classes, background first; a single one for binary masks.
        table: long (256,): value of the data's masks to value of the model's.
    """

    names: list[str]
    table: torch.Tensor

    @property
    def labels(self) -> dict[str, dict]:
        """The names as a configuration holds them."""
        return {
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: index for index, name in enumerate(self.names)},
        }


def choose_classes(known: Sequence[str], wanted: Sequence[str] = ()) -> ChosenClasses:
    """Choose some of the classes of the data; all others become background.

    Args:
        known: Names of the data's classes, background first; a single one for binary masks.
        wanted: Those that the model shall tell apart, in its order; all if none is named.

    Raises:
        ValueError: A class that the data do not have, or one that is named twice.

    Example:
        >>> choose_classes(["background", "dog", "cat", "car"], ["car", "dog"]).table[:4].tolist()
        [0, 2, 0, 1]
    """
    if unknown := [name for name in wanted if name not in known[1:]]:
        listed = ", ".join(known[1:]) or "none, their masks are binary"
        raise ValueError(f"The classes {unknown} are not in the data; theirs are: {listed}.")
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"The classes {list(wanted)} are not all different.")
    table = torch.arange(LABEL_VALUES)
    if not wanted:
        return ChosenClasses(list(known), table)
    names = [known[0], *wanted]
    table[: len(known)] = torch.tensor([names.index(name) if name in names else 0 for name in known])
    return ChosenClasses(names, table)


@dataclass(frozen=True)
class TrainerCollator:
    """Makes batches with the chosen classes, whose labels alone say what is scored, as several processes need it.

    Attributes:
        collate: From clips to a batch.
        classes: What the labels become.
    """

    collate: ClipCollator
    classes: ChosenClasses

    def __call__(self, clips: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Make one batch."""
        batch = ignore_unscored_frames(dict(self.collate(clips)))
        return batch | {"labels": self.classes.table[batch["labels"]]}


class SegmentationTrainer(Trainer):
    """A Trainer that can give the visual backbone a learning rate of its own.

    Args:
        *args: As for `Trainer`.
        backbone_learning_rate: Peak of the schedule for the backbone; None takes that of the rest.
        **kwargs: As for `Trainer`.
    """

    def __init__(self, *args: Any, backbone_learning_rate: float | None = None, **kwargs: Any) -> None:
        self.backbone_learning_rate = backbone_learning_rate
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the Trainer's optimizer, each group of which (with and without weight decay) is then split in two."""
        optimizer = super().create_optimizer(model)
        if self.backbone_learning_rate is None:
            return optimizer
        named = (self.model if model is None else model).named_parameters()
        backbone = {id(weight) for name, weight in named if "backbone." in name}
        for group in list(optimizer.param_groups):
            own = [weight for weight in group["params"] if id(weight) in backbone]
            group["params"] = [weight for weight in group["params"] if id(weight) not in backbone]
            optimizer.add_param_group({**group, "params": own, "lr": self.backbone_learning_rate})
        return optimizer
