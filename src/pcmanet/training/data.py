"""The data of a training run: its clips, which clips belong to which step, and the batches starting at any step.

    datasets = load_datasets(recipe)
    data = TrainingData(recipe, datasets, processor, binary=len(class_names(recipe)) == 1, num_processes=1)
    for batches in data.training_batches(0, data.plan.steps, process=0, device=device):
        ...  # one optimizer step: a batch for each part of gradient accumulation

The batches of a step do not depend on the step at which a run starts.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import BatchFeature, PreTrainedModel

from modeling_pcmanet import PCMANetProcessor
from modeling_pcmanet.modeling_audio_encoders import digest_weights, embed_windows
from pcmanet.dataset_scripts.augmentation import crop
from pcmanet.dataset_scripts.avsbench import BINARY_LABELS, find_clips, label_names, load_avsbench
from pcmanet.dataset_scripts.avsbench.rows import fingerprint
from pcmanet.dataset_scripts.clips import ClipArrays, to_arrays
from pcmanet.dataset_scripts.collation import AudioFeatureCache, ClipCollator
from pcmanet.dataset_scripts.paired import Library, PairedClip, PairedClips, read_settings
from pcmanet.dataset_scripts.sounding_shapes.clips import SoundingShapes
from pcmanet.dataset_scripts.sounding_shapes.scene import CLASSES

from .recipe import DEFAULT_IMAGE_SIZE, FILES, PLACE, Recipe


Batch: TypeAlias = dict[str, torch.Tensor]  # see the table in the processor's module docstring
Collate: TypeAlias = Callable[[Sequence[Any]], BatchFeature]
Clips: TypeAlias = Any  # an indexable dataset with a length: SoundingShapes, PairedClips, or rows of load_avsbench


def class_names(recipe: Recipe) -> list[str]:
    """Return the names of the classes of a recipe's data, background first; a single one for binary masks."""
    if recipe.paired_data is not None:
        return list(read_settings(recipe.paired_data).class_names) if recipe.task == "avss" else list(BINARY_LABELS)
    if recipe.data is not None:
        return list(label_names(recipe.data, recipe.task, binary=recipe.binary))
    return ["background", *CLASSES] if recipe.task == "avss" else ["sounding"]


def load_datasets(
    recipe: Recipe, size: tuple[int, int] | None = None, *, needs_test: bool = False
) -> tuple[Clips, Clips]:
    """Load the training and validation clips; generated ones come from separate random streams.

    Args:
        recipe: The recipe.
        size: Height and width of Sounding Shapes in pixels; by default those that the recipe says, for a new network.
        needs_test: Whether the test split is needed too: files are read, and paired data must have photos for it.

    Returns:
        Both datasets. With `recipe.pair_audio` the first one has half of the training clips, see [`TrainingClips`].

    Raises:
        ValueError: If a split has no clip, or none of its frames is annotated.
        DatasetError: If files are missing or damaged; the message names all of them.
    """
    if recipe.paired_data is not None:
        library = Library(read_settings(recipe.paired_data, recipe.paired_clips), progress=True)
        lengths = {"train": recipe.clips, "val": recipe.evaluation_clips}
        training, validation = (
            PairedClips(library, recipe.task, split, length=length, seed=recipe.seed)
            for split, length in lengths.items()
        )
        if needs_test:
            _require_test_photos(library, recipe.task)
        return training, validation
    if recipe.data is not None:
        options = {"on_error": recipe.on_error, "num_proc": recipe.num_workers or None, **vars(recipe.row_settings)}
        loaded = {}
        for split in (*(["test"] if needs_test else []), "train", "val"):
            loaded[split] = load_avsbench(recipe.data, recipe.task, split=split, **options)
            _require_annotated_frame(loaded[split], split, recipe.data)
        return loaded["train"], loaded["val"]
    height, width = size or [recipe.image_size or DEFAULT_IMAGE_SIZE] * 2
    repeats = 2 if recipe.pair_audio else 1
    training = SoundingShapes(
        recipe.task,
        "train",
        length=recipe.clips // repeats,
        # The second clip of a pair is never negative, so the first one is negative twice as often.
        negative_fraction=repeats * recipe.negative_fraction,
        negative_kinds=recipe.negative_kinds,
        height=height,
        width=width,
        seed=recipe.seed,
    )
    validation = SoundingShapes(
        recipe.task, "val", length=recipe.evaluation_clips, height=height, width=width, seed=recipe.seed
    )
    return training, validation


def _require_annotated_frame(rows: Clips, split: str, data: str) -> None:
    """Raise ValueError if no frame of a split is annotated; its loss would be 0, and it would have no metrics."""
    if not any(map(any, rows["annotated_frames"])):
        raise ValueError(
            f"Expected annotated frames in split {split!r} of {data}, got none in its {len(rows)} clips. Add their masks, or "
            "move annotated clips to this split."
        )


def _require_test_photos(library: Library, task: str) -> None:
    """Raise ValueError if paired data have no photos in their test split."""
    try:
        PairedClips(library, task, "test", length=0)
    except ValueError as error:
        raise ValueError(f"--test: {error} Set `splits` in that file, or leave out --test.") from error


class TrainingData:
    """The clips of a run and the batches that they become.

    In its batches, `annotated_frames` marks the frames that count for the loss. They are annotated, not padded, and
    not part of a clip that is only repeated so that every process has a batch.

    Args:
        recipe: The recipe.
        datasets: Training and validation clips, see [`load_datasets`].
        processor: Computes the inputs of the network.
        binary: Whether labels are 0 and 1 instead of class indices.
        num_processes: Number of processes that share a step.
        audio_encoder: The audio encoder on the CPU, if its weights never change; otherwise None. With `recipe.audio_cache`, and
            for paired data with stand-ins, batches contain its outputs, `audio_embeds`, in place of `input_features`. Those
            of stand-ins are changed accordingly (see [`exchange_stand_ins`]).

    Raises:
        ValueError: If the processes cannot share a step evenly, there are no clips, or stand-ins lack their audio encoder.
    """

    def __init__(
        self,
        recipe: Recipe,
        datasets: tuple[Clips, Clips],
        processor: PCMANetProcessor,
        *,
        binary: bool,
        num_processes: int,
        audio_encoder: PreTrainedModel | None = None,
    ) -> None:
        training, self._validation_clips = datasets
        self._recipe = recipe
        self._binary = binary
        self._num_processes = num_processes
        self._training_clips = TrainingClips(training, pair_audio=recipe.pair_audio)
        self.plan = BatchPlan(
            num_clips=len(self._training_clips),
            batch_size=recipe.batch_size,
            parts=recipe.gradient_accumulation,
            processes=num_processes,
            epochs=recipe.epochs,
            # A generated clip is drawn from its index, so the order is already random.
            shuffle=recipe.data is not None and recipe.paired_data is None,
            seed=recipe.seed,
        )
        self._num_windows = len(processor.audio_windows or [None])
        is_used = recipe.audio_cache is not None or _has_stand_ins(training)
        # A copy, because the network's audio encoder is moved to the training device.
        self._audio_encoder = copy.deepcopy(audio_encoder).eval() if audio_encoder is not None and is_used else None
        cache = self._open_cache(processor)
        augmentation = recipe.training_augmentation
        exchange = functools.partial(exchange_stand_ins, training, self._audio_encoder, self._num_windows)
        self._collate, self._embed = exchange(
            ClipCollator(processor, binary, augmentation=augmentation, audio_cache=cache)
        )
        self._collate_validation, _ = exchange(ClipCollator(processor, binary, audio_cache=cache))

    def _open_cache(self, processor: PCMANetProcessor) -> AudioFeatureCache | None:
        """Return the cache of audio features, or of embeddings if the audio encoder is frozen."""
        folder, encoder = self._recipe.audio_cache, self._audio_encoder
        if folder is None or encoder is None:
            return None if folder is None else AudioFeatureCache(processor, folder)
        # Not a closure, because it is pickled for workers that are not forked.
        embed = functools.partial(embed_windows, encoder, num_windows=self._num_windows)
        return AudioFeatureCache(processor, folder, embed=embed, encoder=digest_weights(encoder))

    @property
    def dataset_ids(self) -> list[str]:
        """Ids of the datasets on the Hub that the clips are generated from."""
        clips = self._training_clips.clips
        return clips.library.settings.dataset_ids if isinstance(clips, PairedClips) else []

    def identity(self) -> dict[str, Any]:
        """Return by name what must be unchanged in the clips to resume a run; `PLACE` may differ for moved data."""
        recipe, count = self._recipe, {"clips": self.plan.num_clips}
        if recipe.data is None:
            return count  # the recipe determines the rest
        if recipe.paired_data is not None:
            return count | {PLACE: self._training_clips.clips.identity}
        tree = find_clips(recipe.data, recipe.task, recipe.row_settings)
        paths = [path for clip in tree.clips if clip.split in ("train", "val") for path in clip.paths]
        return count | {FILES: fingerprint(tree.table, paths, moved=True), PLACE: fingerprint(tree.table, paths)}

    def training_batches(self, first: int, last: int, process: int, device: torch.device) -> Iterator[list[Batch]]:
        """Yield the batches of one process, step by step.

        Args:
            first: The first step, from 0.
            last: The step before which to end.
            process: Index of the process.
            device: The device of the batches.

        Yields:
            The batches of one optimizer step, one for each part of gradient accumulation.
        """
        loader = DataLoader(
            self._training_clips,
            batch_sampler=self.plan.micro_batches(first, last, process),
            # Not a closure, because it is pickled for workers that are not forked.
            collate_fn=functools.partial(_collate_training, self._collate, self._binary, self._recipe),
            num_workers=self._recipe.num_workers,
            pin_memory=device.type == "cuda",
            # By default, a loader draws from the generator that dropout also uses, each time it starts.
            generator=torch.Generator().manual_seed(self._recipe.seed),
        )
        self._place_encoder(device)
        batches = iter(loader)
        for step in range(first, last):
            parts = [next(batches) for _ in self.plan.share(step, process)]
            yield [self._to_device(batch, device) for batch in parts]

    def validation_indices(self, process: int) -> list[list[int]]:
        """Return the clips of each validation batch of a process; the batches do not depend on the number of processes."""
        clips, size = range(len(self._validation_clips)), self._recipe.evaluation_batch_size
        batches = [list(clips[first : first + size]) for first in range(0, len(clips), size)]
        return batches[process :: self._num_processes]

    def validation_batches(self, indices: Sequence[list[int]], device: torch.device) -> Iterator[Batch]:
        """Yield validation batches of these clips, see [`validation_indices`]."""
        loader = DataLoader(
            self._validation_clips,
            batch_sampler=indices,
            collate_fn=self._collate_validation,
            num_workers=min(self._recipe.num_workers, len(indices)),
            # By default, a loader draws from the generator that dropout also uses.
            generator=torch.Generator().manual_seed(0),
        )
        self._place_encoder(device)
        for batch in loader:
            yield self._to_device(batch, device)

    def _place_encoder(self, device: torch.device) -> None:
        """Move the audio encoder to the device of the batches, unless the processes that load data run it."""
        if self._audio_encoder is not None and self._recipe.audio_cache is None:
            cast(torch.nn.Module, self._audio_encoder).to(device)

    def _to_device(self, batch: Batch, device: torch.device) -> Batch:
        """Move a batch, and encode its audio where scores are exchanged."""
        return self._embed({name: values.to(device, non_blocking=True) for name, values in batch.items()})


def exchange_stand_ins(
    clips: Clips, audio_encoder: PreTrainedModel | None, num_windows: int, collate: Collate
) -> tuple[Collate, Callable[[Batch], Batch]]:
    """Exchange the scores of classes for which recordings of other classes stand in, see [`order_scores`].

    Args:
        clips: The clips; nothing changes unless they are paired data with stand-ins.
        audio_encoder: The audio encoder of the network if it is frozen; otherwise None.
        num_windows: Windows of audio per frame.
        collate: Makes a batch of clips.

    Returns:
        The collate function to use, and a function for its batches on the device of the audio encoder.

    Raises:
        ValueError: If stand-ins lack a frozen audio encoder that scores every class.
    """
    if not _has_stand_ins(clips):
        return collate, lambda batch: batch
    groups = _check_groups(audio_encoder, clips)
    embed = functools.partial(embed_with_order, cast(PreTrainedModel, audio_encoder), num_windows)
    return functools.partial(collate_with_order, collate, groups), embed


def _has_stand_ins(clips: Clips) -> bool:
    """Return whether recordings of other classes stand in for those of classes without any."""
    return isinstance(clips, PairedClips) and clips.settings.stand_ins


def _check_groups(audio_encoder: PreTrainedModel | None, clips: PairedClips) -> list[str]:
    """Return the groups of the audio encoder's scores; raise ValueError unless they include every class of the data."""
    groups = getattr(getattr(audio_encoder, "config", None), "score_groups", None) or {}
    missing = [name for name in clips.library.settings.class_names[1:] if name not in groups]
    if audio_encoder is None or missing:
        raise ValueError(
            f"{clips.library.settings.path} has stand_ins, which exchange scores of classes in the output of the audio encoder. "
            f"Expected a frozen audio encoder with score_groups for all classes, got none for {', '.join(missing)}. Use one "
            "that examples/paired_data/make_audio_encoder.py writes, or a checkpoint that was trained with it, or set "
            "stand_ins to false."
        )
    return list(groups)


@torch.no_grad()
def embed_with_order(encoder: PreTrainedModel, num_windows: int, batch: Batch) -> Batch:
    """Encode the audio of a batch to scores of groups, with the scores of stand-ins exchanged (see [`order_scores`]).

    Args:
        encoder: A frozen audio encoder with `score_groups`, on the device of the batch.
        num_windows: Windows of audio per frame.
        batch: Result of [`collate_with_order`]; without `input_features` if it has the `audio_embeds` of a cache.

    Returns:
        The batch with exchanged `audio_embeds` in place of features and orders.
    """
    rest = {name: values for name, values in batch.items() if name not in ("input_features", "score_order")}
    if "input_features" in batch:
        features = batch["input_features"]
        scores = embed_windows(encoder, features.flatten(0, 1), num_windows).unflatten(0, features.shape[:2])
    else:
        scores = batch["audio_embeds"]
    scores = scores.unflatten(-1, (num_windows, -1))
    exchanged = scores.gather(-1, batch["score_order"][:, None, None].expand_as(scores))
    return rest | {"audio_embeds": exchanged.flatten(2)}


def collate_with_order(collate: Collate, groups: Sequence[str], clips: Sequence[PairedClip]) -> BatchFeature:
    """Collate clips, with `score_order`, int64 (batch, groups): which score of its audio each group of a clip gets."""
    batch = collate(clips)
    batch["score_order"] = torch.tensor([order_scores(clip, groups) for clip in clips], device="cpu")
    return batch


def order_scores(clip: PairedClip, groups: Sequence[str]) -> list[int]:
    """Exchange the scores of two classes where a recording of one stands in for the other, which has no recordings.

    An audio tagger that knows both classes gives a sound of the other class the same scores, except for this exchange.

    Args:
        clip: Its `events` name the recordings that stand in.
        groups: Names of the groups.

    Returns:
        For each group, the position of the group whose score it gets.
    """
    order = list(range(len(groups)))
    for event in clip.events:
        if event.stand_in is not None:
            first, second = groups.index(event.label), groups.index(event.stand_in)
            order[first], order[second] = order[second], order[first]
    return order


class Draw(NamedTuple):
    """One clip of a step.

    Attributes:
        clip: Its index in the dataset.
        position: Its position in the complete training, which seeds its augmentation.
        counts: Whether it counts for the loss; False if it is repeated so that a process has a batch.
    """

    clip: int
    position: int
    counts: bool = True


@dataclass(frozen=True)
class BatchPlan:
    """The clips of every step.

    Attributes:
        num_clips: Clips of the dataset.
        batch_size: Clips per optimizer step, over all processes; the last step of an epoch may have fewer.
        parts: Batches into which each process divides its clips of a step (gradient accumulation).
        processes: Number of processes that share a step.
        epochs: Passes over the data.
        shuffle: Whether every epoch has a different order. Otherwise all have the order of the dataset.
        seed: Seed of the orders.

    Raises:
        ValueError: If a step cannot be divided evenly, or there are no clips.
    """

    num_clips: int
    batch_size: int
    parts: int
    processes: int
    epochs: int
    shuffle: bool
    seed: int

    def __post_init__(self) -> None:
        if self.batch_size % (self.parts * self.processes):
            raise ValueError(
                f"batch_size is {self.batch_size}, which {self.processes} processes times {self.parts} "
                f"gradient_accumulation cannot share evenly. Set it to a multiple of {self.parts * self.processes}."
            )
        if self.num_clips < 1:
            raise ValueError("Expected training clips, got none. Check the table of the dataset.")

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per pass over the data."""
        return -(-self.num_clips // self.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps of the complete training."""
        return self.epochs * self.steps_per_epoch

    def clips_before(self, step: int) -> int:
        """Return how many clips were trained on before a step."""
        epoch, number = divmod(step, self.steps_per_epoch)
        return epoch * self.num_clips + min(number * self.batch_size, self.num_clips)

    def share(self, step: int, process: int) -> list[list[Draw]]:
        """Return the clips of one process in one step, batch by batch.

        Args:
            step: Index of the step, from 0.
            process: Index of the process, from 0.

        Returns:
            At most `parts` lists of at least one clip. All processes have the same number of batches, so each takes
            part in every exchange of gradients. A process without a clip in the last batch repeats the first clip of
            the step, which then does not count.
        """
        epoch, number = divmod(step, self.steps_per_epoch)
        first = number * self.batch_size
        clips = _epoch_order(self.num_clips, self.shuffle, self.seed, epoch)[first : first + self.batch_size]
        draws = [Draw(clip, epoch * self.num_clips + first + offset) for offset, clip in enumerate(clips)]
        size = self.batch_size // self.parts
        batches = [draws[start : start + size][process :: self.processes] for start in range(0, len(draws), size)]
        return [batch or [draws[0]._replace(counts=False)] for batch in batches]

    def micro_batches(self, first_step: int, last_step: int, process: int) -> Iterator[list[Draw]]:
        """Yield the batches of one process from one step up to another, as a batch sampler does."""
        for step in range(first_step, last_step):
            yield from self.share(step, process)


@functools.lru_cache(maxsize=2)
def _epoch_order(num_clips: int, shuffle: bool, seed: int, epoch: int) -> list[int]:
    """Return the order of the clips in an epoch."""
    if not shuffle:
        return list(range(num_clips))
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_clips, generator=generator, device="cpu").tolist()


class TrainingClips(Dataset[tuple[Any, Draw]]):
    """A dataset that is indexed by draws, and returns them with the clips for the collation.

    Args:
        clips: The clips.
        pair_audio: Whether every video occurs twice, with different audio, so that frames alone never explain both
            masks: draw 2i is clip i, draw 2i + 1 the same frames with other audio. Needs Sounding Shapes.
    """

    def __init__(self, clips: Clips, *, pair_audio: bool) -> None:
        self.clips = clips
        self.pair_audio = pair_audio

    def __len__(self) -> int:
        """Return the number of clips that can be drawn."""
        return len(self.clips) * (2 if self.pair_audio else 1)

    def __getitem__(self, draw: Draw) -> tuple[Any, Draw]:
        """Return the clip of a draw, and the draw."""
        if not self.pair_audio:
            return self.clips[draw.clip], draw
        index, second = divmod(draw.clip, 2)
        return (self.clips.swap_audio(index) if second else self.clips[index]), draw


def _collate_training(collate: Collate, binary: bool, recipe: Recipe, drawn: Sequence[tuple[Any, Draw]]) -> Batch:
    """Make a training batch whose augmentation depends only on the seed and the positions of its clips.

    Args:
        collate: Makes a batch of clips.
        binary: Whether labels are 0 and 1 instead of class indices.
        recipe: The seed, and whether to crop.
        drawn: Clips and their draws.
    """
    clips = [clip for clip, _ in drawn]
    if recipe.center_crop:
        clips = [crop_to_square(to_arrays(clip, binary)) for clip in clips]
    draws = [draw for _, draw in drawn]
    state = np.random.SeedSequence((recipe.seed, draws[0].position)).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(state[0] >> np.uint64(1)))
        batch = dict(collate(clips))
    batch["annotated_frames"] &= torch.tensor([draw.counts for draw in draws], device="cpu")[:, None]
    return batch


def crop_to_square(clip: ClipArrays) -> ClipArrays:
    """Crop all frames and masks of a clip to their central square."""
    height, width = clip.frames.shape[1:3]
    side = min(height, width)
    return crop(clip, (height - side) // 2, (width - side) // 2, side, side)
