"""Train decoders on photos and recordings with cached features of frozen encoders; used by ablation.py.

The visual backbone and the audio encoder are frozen, so their outputs for fixed lists of clips of the paired data
(dataset_scripts/paired) are computed once. Because neither depends on the other, each picture can then be combined with each
recording: a training clip is one picture with three recordings, most of which belong to an object in view. Masks are
binary, as in S4 and MS3, unless the network has more than two labels. A run trains only the neck and decoder, which
takes a minute on one core.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import real_world
import torch
import yaml
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PreTrainedConfig

from modeling_pcmanet import PCMANetConfig, PCMANetForAudioVisualSegmentation, PCMANetProcessor
from modeling_pcmanet.modeling_backbones import compute_feature_maps
from pcmanet.agreement import to_masks
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.metrics.segmentation import IGNORE_INDEX
from pcmanet.dataset_scripts.paired import Library, PairedClips, read_settings
from pcmanet.files import keep_settings
from pcmanet.training.data import collate_with_order, embed_with_order
from pcmanet.training.recipe import Recipe
from pcmanet.training.run import build_optimizer, set_learning_rate, start_average, update_average


SIZE = 192  # side of the frames, in pixels
MAP_SIZES = (12, 6, 3, 2)  # sides to which the feature maps are averaged, fine to coarse: a quarter of their own
TOKEN_GRIDS = [2, 2, 3, 6]  # coarse to fine; each as many times smaller as in a network for 224x224 pixels
MASK_SIZE = 32  # side of the logits and masks, in pixels; the smallest size of frames that the network accepts
CLIPS, FRAMES = 8, 3  # clips of a training step and frames of a clip; cross-attention needs several to choose from
MATCHING = 0.65  # fraction of the frames whose recording belongs to an object in view
MINIMUM_AREA = 0.01  # of an object that a clip is about, as a fraction of the frame
COMPUTED = 16  # clips whose features are computed at once
SEEDS = {"train": 6, "val": 5}  # of the clips of each split

# Clips of one second: a picture and a recording.
SETTINGS = real_world.ONE_FRAME | {
    "pictures": {"single": 0.3, "mosaic": 0.6, "paste": 0.1},
    "sounds": {"matching": 0.6, "absent": 0.2, "unknown": 0.12, "background": 0.06, "silence": 0.02},
    "background": 0.3,
    "still": 0.0,
}


class Features(NamedTuple):
    """Pictures and recordings with the outputs of the frozen encoders.

    Attributes:
        maps: Four float16 tensors (pictures, channels, height, width), fine to coarse.
        visible: uint8 (pictures, height, width), class index of every visible object; 255 is void.
        audio: (recordings, windows * width), outputs of the audio encoder with exchanged scores.
        sounding: int64 (recordings,), class index that each recording has in the second of the frame; 0 if it belongs to no
            class or pauses there.
    """

    maps: list[torch.Tensor]
    visible: np.ndarray
    audio: torch.Tensor
    sounding: np.ndarray


class Encoders:
    """The frozen encoders and the processor that makes their inputs.

    Args:
        model: Folder or Hub id of the checkpoint whose encoders they are.
    """

    def __init__(self, model: str) -> None:
        self.network = PCMANetForAudioVisualSegmentation.from_pretrained(model).eval()
        self.processor = PCMANetProcessor.from_pretrained(model)
        self.processor.image_processor.size = {"height": SIZE, "width": SIZE}

    def build_network(self, fields: Mapping[str, Any]) -> PCMANetForAudioVisualSegmentation:
        """Build a network with a random decoder that gets feature maps in place of frames."""
        given = {name: getattr(self.network.config, name) for name in ("audio_config", "num_audio_windows")}
        config = PCMANetConfig.from_preset("small", **given, token_grid_sizes=TOKEN_GRIDS, **fields)
        network = PCMANetForAudioVisualSegmentation(config)
        network.model.backbone = CachedBackbone(self.network.model.backbone)
        return network

    @torch.no_grad()
    def compute(self, clips: PairedClips) -> Features:
        """Compute the features of all clips."""
        model, collate = self.network.model, ClipCollator(self.processor, binary=False)
        groups = list(model.audio_encoder.config.score_groups)
        maps: list[list[torch.Tensor]] = [[], [], [], []]
        audio, visible, sounding = [], [], []
        for first in tqdm(range(0, len(clips), COMPUTED), desc=f"features, {clips.split}", file=sys.stderr):
            part = [clips[index] for index in range(first, min(first + COMPUTED, len(clips)))]
            batch = dict(collate_with_order(collate, groups, part))
            batch = embed_with_order(model.audio_encoder, model.config.num_audio_windows, batch)
            levels = compute_feature_maps(model.backbone, model.pyramid, batch["pixel_values"][:, 0])
            for collected, level, size in zip(maps, levels, MAP_SIZES, strict=True):
                collected.append(functional.adaptive_avg_pool2d(level, size).half())
            audio.append(batch["audio_embeds"][:, 0])
            visible += [_reduce(clip.visible[0]) for clip in part]
            sounding += [max(real_world.find_heard(clip), default=0) for clip in part]
        pooled = [torch.cat(level) for level in maps]
        return Features(pooled, np.stack(visible), torch.cat(audio), np.array(sounding))


def _reduce(visible: np.ndarray) -> np.ndarray:
    """Reduce a mask to a square of `MASK_SIZE`, by nearest neighbor."""
    rows, columns = (np.arange(MASK_SIZE) * side // MASK_SIZE for side in visible.shape)
    return visible[rows[:, None], columns]


def load_features(args: argparse.Namespace, encoders: Encoders) -> tuple[Features, Features]:
    """Return the features of the training and of the validation split, computed unless their files exist.

    Args:
        args: `output`, `data`, `model`, `clips` and `test_clips` of the command.
        encoders: The frozen encoders, those of `model`.

    Raises:
        ValueError: If the folder `output` was created with other data, another model or other numbers of clips.
    """
    given = {name: getattr(args, name) for name in ("model", "clips", "test_clips")}
    settings = {
        **given,
        "data": yaml.safe_load(Path(args.data).read_text(encoding="utf-8")),
        "clip_settings": SETTINGS,
    }
    keep_settings(args.output / "settings.json", settings, "Give another --output, or remove the folder.")
    loaded, library = [], None
    for split, length in (("train", args.clips), ("val", args.test_clips)):
        path = args.output / f"features_{split}_{length}.pt"
        if not path.exists():
            library = library or Library(read_settings(args.data, SETTINGS), progress=True)
            features = encoders.compute(PairedClips(library, "avss", split, length=length, seed=SEEDS[split]))
            torch.save(tuple(features), path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)
        loaded.append(Features(*torch.load(path, weights_only=False)))
    return loaded[0], loaded[1]


class Combinations:
    """Clips: pictures, each under several recordings.

    Args:
        features: Pictures and recordings.
        seed: Seed of the order of the images and their recordings.
        binary: Whether the labels are 0 and 1, not class indices.
    """

    def __init__(self, features: Features, seed: int, *, binary: bool = True) -> None:
        self.features, self.binary, self.generator = features, binary, np.random.default_rng(seed)
        self.recordings = {
            int(index): np.flatnonzero(features.sounding == index) for index in np.unique(features.sounding)
        }

    def training_batches(self, steps: int) -> Iterator[dict[str, torch.Tensor]]:
        """Yield a batch for each step, for passes over the images in random order."""
        order: list[int] = []
        for _ in range(steps):
            if len(order) < CLIPS:
                order = self.generator.permutation(len(self.features.visible)).tolist()
            pictures, order = order[:CLIPS], order[CLIPS:]
            yield self.batch(pictures, [self._draw(picture) for picture in pictures])

    def _draw(self, picture: int) -> list[int]:
        """Draw the recordings of the frames of a clip."""
        matching = self.generator.uniform(size=FRAMES) < MATCHING
        classes = self.visible_classes(picture)
        return [
            self.draw_recording(int(self.generator.choice(classes)) if matches and classes else None)
            for matches in matching
        ]

    def visible_classes(self, picture: int) -> list[int]:
        """Return the classes of a picture that are large enough and have recordings."""
        indices, counts = np.unique(self.features.visible[picture], return_counts=True)
        large = indices[counts >= MINIMUM_AREA * MASK_SIZE**2]
        return [int(index) for index in large if index and index in self.recordings]

    def draw_recording(self, index: int | None) -> int:
        """Draw a recording in which a class sounds (0: none of the classes), or any."""
        return int(self.generator.choice(len(self.features.audio) if index is None else self.recordings[index]))

    def batch(self, pictures: list[int], recordings: list[list[int]]) -> dict[str, torch.Tensor]:
        """Combine pictures and the recordings of their frames into a batch for [`CachedBackbone`]."""
        features, frames = self.features, len(recordings[0])
        visible, sounding = features.visible[pictures][:, None], features.sounding[recordings][..., None, None]
        # Void pixels may belong to the object that sounds.
        ignored = (visible == IGNORE_INDEX) & (sounding > 0)
        labels = np.where(ignored, IGNORE_INDEX, (visible == sounding) * (sounding > 0 if self.binary else sounding))
        frames_of_pictures = torch.tensor(pictures, dtype=torch.float32).view(-1, 1, 1, 1, 1)
        return {
            "pixel_values": frames_of_pictures.expand(-1, frames, 3, MASK_SIZE, MASK_SIZE),
            "audio_embeds": features.audio[torch.tensor(recordings)],
            "labels": torch.from_numpy(labels),
        }


class CachedBackbone(nn.Module):
    """Stands in for a backbone: a frame whose first value is n gets the feature maps of picture n.

    Args:
        backbone: The backbone.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.config, self.channels = PreTrainedConfig(), backbone.channels
        self.maps: list[torch.Tensor] = []

    def forward(self, frames: torch.Tensor) -> SimpleNamespace:
        """Return the feature maps."""
        pictures = frames[:, 0, 0, 0].long()
        maps = (level[pictures].float().contiguous(memory_format=torch.channels_last) for level in self.maps)
        return SimpleNamespace(feature_maps=tuple(maps))

    def __deepcopy__(self, _memo: dict) -> "CachedBackbone":
        """Return the module itself: its maps are large, so the copies of a network share them."""
        return self


def train(
    encoders: Encoders, training: Features, fields: Mapping[str, Any], steps: int, seed: int
) -> PCMANetForAudioVisualSegmentation:
    """Train a decoder and return it with averaged weights, in evaluation mode.

    Args:
        encoders: The encoders that computed the features.
        training: The features.
        fields: Fields of the configuration that differ from those of the preset.
        steps: Number of steps.
        seed: Seed of the initial weights and of the clips, which do not depend on `fields`.
    """
    # The learning rate, its schedule and the rest are the defaults; the average fits a few hundred steps.
    recipe = Recipe(preset="small", average_decay=0.98)
    torch.manual_seed(seed)
    network = encoders.build_network(fields)
    network.to(memory_format=torch.channels_last).train()
    network.model.backbone.maps = training.maps
    optimizer, average = (
        build_optimizer(network, recipe),
        start_average(network, recipe.average_decay, torch.device("cpu")),
    )
    binary = cast(int, network.config.num_labels) <= 2
    batches = Combinations(training, seed, binary=binary).training_batches(steps)
    for step, batch in enumerate(tqdm(batches, total=steps, desc="training", file=sys.stderr, leave=False)):
        set_learning_rate(optimizer, recipe, step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        update_average(average, network)
    return average.module


@torch.no_grad()
def measure(
    network: PCMANetForAudioVisualSegmentation, validation: Features, early_exit_threshold: float | None = None
) -> dict[str, float]:
    """Measure a network on two clips of each validation image; a clip repeats the image in three frames.

    In the first clip, the frames have a recording of a visible object, of another visible object (of the same one if it
    is alone), and of a class that is not visible. In the second clip, no known class sounds in the three recordings.

    Args:
        network: The network.
        validation: The features.
        early_exit_threshold: Threshold of its optimized copy, see docs/benchmarks/early_exit.md.

    Returns:
        "mIoU": mean over the frames with an object that sounds; "both right": fraction of the images with two objects
        in which, with each recording, the mask covers at least half of the sounding object and less than half of the
        other; "FPR, silent": mean false-positive rate on the silent object; "FPR, absent": false-positive rate on the
        third frames; "FPR, unknown": false-positive rate on the second clips.
    """
    clips, unknown = Combinations(validation, seed=0), Combinations(validation, seed=1)
    results = _Results()
    network.model.backbone.maps = validation.maps
    optimized = network.for_inference()
    pictures = [picture for picture in range(len(validation.visible)) if clips.visible_classes(picture)]
    for first in range(0, len(pictures), CLIPS):
        part = pictures[first : first + CLIPS]
        pairs, recordings = zip(*(_choose(clips, picture) for picture in part), strict=True)
        truth, masks = _predict(optimized, clips.batch(part, list(recordings)), early_exit_threshold)
        for clip in zip(pairs, masks, truth, validation.visible[part], strict=True):
            results.add(*clip)
        sounds = [[unknown.draw_recording(0) for _ in range(FRAMES)] for _ in part]
        _, masks = _predict(optimized, unknown.batch(part, sounds), early_exit_threshold)
        results.add_unknown(masks)
    return results.compute()


def _predict(
    network: Any, batch: dict[str, torch.Tensor], early_exit_threshold: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of a batch and the predicted masks, both (clips, frames, height, width)."""
    truth = batch.pop("labels").numpy()
    return truth, to_masks(network(**batch, early_exit_threshold=early_exit_threshold).logits).numpy() > 0


class _Results:
    """Collects what [`measure`] returns."""

    def __init__(self) -> None:
        self.ious: list[float] = []
        self.right: list[bool] = []
        self.silent: list[float] = []
        self.absent: list[float] = []
        self.unknown: list[float] = []

    def add(self, pair: list[int], masks: np.ndarray, truth: np.ndarray, visible: np.ndarray) -> None:
        """Add a clip.

        Args:
            pair: The classes that sound in its first two frames.
            masks: bool (frames, height, width), predicted.
            truth: (frames, height, width), 0, 1 or ignored.
            visible: (height, width), class indices of all visible objects.
        """
        self.ious += [real_world.binary_iou(*frame) for frame in zip(masks[:2], truth[:2], strict=True)]
        self.absent.append(float(masks[2].mean()))
        if pair[0] == pair[1]:
            return
        own, other = (
            [float(masks[frame][visible == index].mean()) for frame, index in zip(frames, pair, strict=True)]
            for frames in ((0, 1), (1, 0))
        )
        self.right.append(min(own) >= 0.5 and max(other) < 0.5)
        self.silent += other

    def add_unknown(self, masks: np.ndarray) -> None:
        """Add the predicted masks, bool (clips, frames, height, width), of clips in which no known class sounds."""
        self.unknown += masks.mean((1, 2, 3)).tolist()

    def compute(self) -> dict[str, float]:
        """Return the means."""
        return {
            "mIoU": float(np.mean(self.ious)),
            "both right": float(np.mean(self.right)),
            "FPR, silent": float(np.mean(self.silent)),
            "FPR, absent": float(np.mean(self.absent)),
            "FPR, unknown": float(np.mean(self.unknown)),
        }


def _choose(clips: Combinations, picture: int) -> tuple[list[int], list[int]]:
    """Draw two objects in view, the same twice if there is one, and a recording of each and of a class not in view."""
    classes = clips.generator.permutation(clips.visible_classes(picture)).tolist()
    pair = [classes[0], classes[-1]]
    absent = np.flatnonzero(~np.isin(clips.features.sounding, [0, *np.unique(clips.features.visible[picture])]))
    return pair, [*map(clips.draw_recording, pair), int(clips.generator.choice(absent))]
