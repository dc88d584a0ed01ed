"""Clips of a recipe on their way to the network: data sets, seeded collation, loaders that start at any step."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from modeling_pcmanet import PCMANetProcessor
from pcmanet.dataset_scripts.augmentation import Augmentation, crop
from pcmanet.dataset_scripts.avsbench import find_clips, label_names, load_avsbench
from pcmanet.dataset_scripts.avsbench.files import fingerprint
from pcmanet.dataset_scripts.avsbench.rows import RowSettings
from pcmanet.dataset_scripts.clips import ClipArrays
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.sounding_shapes.clips import SoundingShapes, SyntheticClip
from pcmanet.dataset_scripts.sounding_shapes.scene import CLASSES

from .recipe import Recipe


class Draw(NamedTuple):
    """One clip of a step.

    Attributes:
        clip: Its position in the data set.
        place: Its place in the whole training, from which its augmentation is seeded.
        counts: Whether it is trained on; False where it only gives a process something to do beside the others.
    """

    clip: int
    place: int
    counts: bool = True


@dataclass(frozen=True)
class BatchPlan:
    """The clips of every step.

    Attributes:
        num_clips: Clips of the data set.
        batch_size: Clips per optimizer step, over all processes; the last step of an epoch may have fewer.
        rounds: Parts in which each process goes through its share of a step (gradient accumulation).
        processes: How many share a step.
        epochs: Passes over the data.
        shuffle: Whether every epoch has another order; else all have the order of the data set.
        seed: Of the orders.

    Raises:
        ValueError: If a step cannot be dealt out evenly, or there are no clips.
    """

    num_clips: int
    batch_size: int
    rounds: int
    processes: int
    epochs: int
    shuffle: bool
    seed: int

    def __post_init__(self) -> None:
        if self.batch_size % (self.rounds * self.processes):
            raise ValueError(
                f"batch_size is {self.batch_size} clips, which {self.processes} processes times {self.rounds} "
                "gradient_accumulation cannot share evenly; make it a multiple of both."
            )
        if self.num_clips < 1:
            raise ValueError("there are no training clips; check the table of the data set.")

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per pass over the data."""
        return -(-self.num_clips // self.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * self.steps_per_epoch

    def clips_before(self, step: int) -> int:
        """How many clips were trained on before a step."""
        epoch, number = divmod(step, self.steps_per_epoch)
        return epoch * self.num_clips + min(number * self.batch_size, self.num_clips)

    def share(self, step: int, process: int) -> list[list[Draw]]:
        """The clips of one process in one step, round by round.

        Args:
            step: From 0 up.
            process: From 0 up.

        Returns:
            At most `rounds` lists of at least one clip. All processes have as many rounds, so that each joins in every
            exchange of gradients; who has no clip left in the last one repeats the step's first, which does not count.
        """
        epoch, number = divmod(step, self.steps_per_epoch)
        first = number * self.batch_size
        clips = _epoch_order(self.num_clips, self.shuffle, self.seed, epoch)[first : first + self.batch_size]
        draws = [Draw(clip, epoch * self.num_clips + first + offset) for offset, clip in enumerate(clips)]
        size = self.batch_size // self.rounds
        dealt = [draws[start : start + size][process :: self.processes] for start in range(0, len(draws), size)]
        return [mine or [draws[0]._replace(counts=False)] for mine in dealt]

    def micro_batches(self, first_step: int, last_step: int, process: int) -> Iterator[list[Draw]]:
        """Yield the rounds of one process from one step up to another, as a batch sampler does."""
        for step in range(first_step, last_step):
            yield from self.share(step, process)


@functools.lru_cache(maxsize=2)
def _epoch_order(num_clips: int, shuffle: bool, seed: int, epoch: int) -> list[int]:
    """The order of the clips in an epoch."""
    if not shuffle:
        return list(range(num_clips))
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_clips, generator=generator).tolist()


Batch = dict[str, torch.Tensor]  # the batch of the processor's table


class PairedSounds(Dataset[SyntheticClip]):
    """Every picture twice in a row, under different sounds, so that looking alone never explains both masks.

    Clip 2i is clip i of the data set (or a negative one), clip 2i + 1 the same pictures with other sounds.
    """

    def __init__(self, clips: SoundingShapes) -> None:
        self.clips = clips

    def __len__(self) -> int:
        """Twice as many as there are pictures."""
        return 2 * len(self.clips)

    def __getitem__(self, index: int) -> SyntheticClip:
        """The clip at an index."""
        return self.clips.swap_sounds(index // 2) if index % 2 else self.clips[index // 2]


class DrawnClips(Dataset[tuple[Any, Draw]]):
    """A data set asked by draws, which travel along to the collation."""

    def __init__(self, clips: Dataset[Any]) -> None:
        self.clips = clips

    def __getitem__(self, draw: Draw) -> tuple[Any, Draw]:
        """The clip of a draw, and the draw."""
        return self.clips[draw.clip], draw


@dataclass(frozen=True)
class TrainingTransform:
    """What happens to training clips before the processor: `Augmentation`'s interface, with AVSS's crop before it.

    Attributes:
        centre_crop: Whether frames and masks are cut to their middle square.
        augmentation: What follows, or None.
    """

    centre_crop: bool
    augmentation: Augmentation | None

    @property
    def changes_sound(self) -> bool:
        """Whether any sound may change."""
        return self.augmentation is not None and self.augmentation.changes_sound

    def __call__(self, clips: Sequence[ClipArrays], generator: np.random.Generator) -> list[ClipArrays]:
        """Change the clips of a batch; randomness comes from the generator alone."""
        if self.centre_crop:
            clips = [cut_to_square(clip) for clip in clips]
        return list(clips) if self.augmentation is None else self.augmentation(clips, generator)


def cut_to_square(clip: ClipArrays) -> ClipArrays:
    """Keep the middle square of all pictures and masks of a clip."""
    height, width = clip.frames.shape[1:3]
    side = min(height, width)
    return crop(clip, (height - side) // 2, (width - side) // 2, side, side)


@dataclass(frozen=True)
class SeededCollator:
    """Makes a training batch; what is drawn depends on the seed and the places of its clips, not on who draws.

    Attributes:
        collate: From clips to a batch.
        seed: Of the run.
    """

    collate: ClipCollator
    seed: int

    def __call__(self, drawn: Sequence[tuple[Any, Draw]]) -> Batch:
        """Make one batch; clips that do not count come without annotation."""
        draws = [draw for _, draw in drawn]
        state = np.random.SeedSequence((self.seed, draws[0].place)).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(state[0] >> np.uint64(1)))
            batch = dict(self.collate([clip for clip, _ in drawn]))
        batch["annotated_frames"] = scored_frames(batch) & torch.tensor([draw.counts for draw in draws])[:, None]
        return batch


def scored_frames(batch: Batch) -> torch.Tensor:
    """Tell which frames are real and annotated: bool (batch, frames)."""
    annotated_frames = batch.get("annotated_frames")
    return batch["frame_mask"] if annotated_frames is None else batch["frame_mask"] & annotated_frames


def class_names(recipe: Recipe) -> list[str]:
    """Names of the classes of a recipe's data, background first; binary data have one."""
    if recipe.data is not None:
        return list(label_names(recipe.data, recipe.task))
    return ["sounding"] if recipe.binary else ["background", *CLASSES]


def build_datasets(recipe: Recipe) -> tuple[Dataset[Any], Dataset[Any]]:
    """Make the training and validation clips; those of Sounding Shapes come from separate random streams.

    Raises:
        ValueError: If a split has no clip.
        AVSBenchError: Naming all files that are missing or damaged.
    """
    if recipe.data is not None:
        options = {"label_noise": recipe.label_noise, "frames_per_second": recipe.frames_per_second}
        training, validation = (
            load_avsbench(recipe.data, recipe.task, split=split, **options) for split in ("train", "val")
        )
        return training, validation
    settings = {"height": recipe.image_size, "width": recipe.image_size, "seed": recipe.seed}
    sounds_per_picture = 2 if recipe.pair_sounds else 1
    shapes = SoundingShapes(
        recipe.task,
        "train",
        length=recipe.clips // sounds_per_picture,
        # The second clip of a pair is never negative, so the first is twice as often.
        negative_fraction=sounds_per_picture * recipe.negative_fraction,
        negative_kinds=recipe.negative_kinds,
        **settings,
    )
    validation = SoundingShapes(recipe.task, "val", length=recipe.evaluation_clips, **settings)
    return PairedSounds(shapes) if recipe.pair_sounds else shapes, validation


def describe_clips(recipe: Recipe, num_clips: int) -> dict[str, Any]:
    """Tell what of the clips must be the same for a run to go on with them.

    Args:
        recipe: Its fields alone say what Sounding Shapes are.
        num_clips: For training.

    Returns:
        What it is called, and its value.
    """
    if recipe.data is None:
        return {"clips": num_clips}
    settings = RowSettings(label_noise=recipe.label_noise, frames_per_second=recipe.frames_per_second)
    tree = find_clips(recipe.data, recipe.task, settings)
    paths = [path for clip in tree.clips if clip.split in ("train", "val") for path in clip.paths]
    return {"clips": num_clips, "the state of the clips' files": fingerprint(tree.table, paths)}


def training_batches(
    clips: Dataset[Any],
    plan: BatchPlan,
    steps: tuple[int, int],
    process: int,
    collate: SeededCollator,
    num_workers: int,
    device: torch.device,
) -> Iterator[list[Batch]]:
    """Yield what one process trains on, step by step.

    Args:
        clips: The data set.
        plan: Which clips are in which step.
        steps: The first step and the one before which to end.
        process: Of which process.
        collate: Makes a batch.
        num_workers: Processes that read ahead.
        device: Where the batches go.

    Yields:
        The batches of one optimizer step, one per round of gradient accumulation.
    """
    loader = DataLoader(
        DrawnClips(clips),
        batch_sampler=plan.micro_batches(*steps, process),
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        # Left to itself a loader draws from the generator of the network's dropout, once per start.
        generator=torch.Generator().manual_seed(plan.seed),
    )
    batches = iter(loader)
    for step in range(*steps):
        rounds = [next(batches) for _ in plan.share(step, process)]
        yield [{name: values.to(device, non_blocking=True) for name, values in batch.items()} for batch in rounds]


def validation_batches(num_clips: int, batch_size: int, process: int, processes: int) -> list[list[int]]:
    """Deal out the validation clips; which clips share a batch does not depend on the number of processes."""
    batches = [list(range(num_clips))[first : first + batch_size] for first in range(0, num_clips, batch_size)]
    return batches[process::processes]


def build_collators(recipe: Recipe, processor: PCMANetProcessor, binary: bool) -> tuple[SeededCollator, ClipCollator]:
    """Make the collation of training and of validation."""
    transform = TrainingTransform(recipe.centre_crop, recipe.training_augmentation)
    cache = recipe.log_mel_cache
    changes = recipe.centre_crop or recipe.augmentation is not None
    training = ClipCollator(processor, binary, augmentation=transform if changes else None, log_mel_cache=cache)
    return SeededCollator(training, recipe.seed), ClipCollator(processor, binary, log_mel_cache=cache)


__all__ = [
    "Batch",
    "scored_frames",
    "build_collators",
    "build_datasets",
    "class_names",
    "describe_clips",
    "training_batches",
    "validation_batches",
]
