"""Which clips are in which optimizer step: a pure function of the seed, so that a run can start at any step.

A step is `batch_size` clips over all processes. They are cut into rounds, one per gradient accumulation, and each round
is dealt out to the processes; one process or several see the same clips in the same step.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch


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
