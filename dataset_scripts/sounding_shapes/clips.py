"""Generate the clips of Sounding Shapes, in which only the audio identifies the sounding objects.

Two to four objects of different classes move over a textured background; each second some of them sound and some are
silent. A class has a shape, a texture and a sound family (pitch, timbre and envelope). A sound lasts complete seconds:
`sounding[l, k]` describes the time from second l to l + 1, and the frame of second l is taken at l + 15/16, as in AVSBench.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset

from pcmanet.dataset_scripts import SPLITS

from .scene import CLASSES, Scene
from .sound import SAMPLING_RATE, render_mixture, render_noise


TASKS = ("s4", "ms3", "avss")
NEGATIVE_KINDS = ("silence", "noise", "absent_class")
FRAME_OFFSET = 15.0 / 16.0  # seconds into each second, as in AVSBench
SILENT_SECONDS = 0.12  # fraction of the seconds in which nothing sounds
REPEATED_SECONDS = 0.3  # fraction of the seconds in which the same objects sound as in the previous second

# The random streams of one index; each is independent of all others.
SCENE, AUDIO, SWAP, NEGATIVE, CHOICE = range(5)


@dataclass(frozen=True, eq=False)
class SyntheticClip:
    """One clip: one frame and one mask per second, and the audio.

    Attributes:
        frames: uint8 (frames, height, width, 3), RGB.
        masks: uint8 (frames, height, width), class index 1..12 where a sounding object is visible, else 0.
        objects: uint8 (frames, height, width), class index of every visible object, sounding or silent.
        waveform: float32 (frames * sampling_rate,), mono in [-1, 1), on the 16-bit grid.
        sampling_rate: Sampling rate of the waveform, in hertz.
        sounding: bool (frames, objects), whether object k sounds from second l to l + 1.
        object_classes: Class index 1..12 of each object, from back to front.
        annotated_frames: bool (frames,), which frames are annotated: in the train split of s4 only the first.
        timestamps: float64 (frames,), time of each frame in seconds.
        negative: Kind of audio that belongs to no visible object, one of `NEGATIVE_KINDS`, or None.
    """

    frames: np.ndarray
    masks: np.ndarray
    objects: np.ndarray
    waveform: np.ndarray
    sampling_rate: int
    sounding: np.ndarray
    object_classes: tuple[int, ...]
    annotated_frames: np.ndarray
    timestamps: np.ndarray
    negative: str | None

    @property
    def binary(self) -> np.ndarray:
        """Masks of s4 and ms3: uint8 (frames, height, width), 1 where a sounding object is visible."""
        return (self.masks > 0).astype(np.uint8)


class SoundingShapes(Dataset[SyntheticClip]):
    """Clips generated on the fly.

    An index always gives the same bytes: a clip depends only on `(task, split, seed, index)`, the number of frames and
    the frame size. Splits share no random numbers.

    Args:
        task: "s4" (one object sounds throughout), "ms3" (several, changing every second) or "avss" (as ms3).
        split: "train", "val" or "test".
        length: Number of clips.
        seed: Seed of the clips, 0 or more.
        height: Pixels.
        width: Pixels.
        num_frames: Seconds per clip, one frame each.
        negative_fraction: Fraction of clips, in [0, 1], whose audio belongs to no visible object.
        negative_kinds: Kinds of this audio, some of `NEGATIVE_KINDS`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        task: str = "ms3",
        split: str = "train",
        *,
        length: int = 1000,
        seed: int = 0,
        height: int = 112,
        width: int = 112,
        num_frames: int = 5,
        negative_fraction: float = 0.0,
        negative_kinds: Sequence[str] = NEGATIVE_KINDS,
    ) -> None:
        _require(task in TASKS, f"Expected one of {TASKS} as task, got {task!r}")
        _require(split in SPLITS, f"Expected one of {SPLITS} as split, got {split!r}")
        _require(length >= 0 and seed >= 0, f"Expected length and seed of at least 0, got {length} and {seed}")
        _require(min(height, width) >= 32, f"Expected height and width of at least 32 pixels, got {height}x{width}")
        _require(num_frames >= 1, f"Expected at least 1 as num_frames, got {num_frames}")
        _require(
            0.0 <= negative_fraction <= 1.0,
            f"Expected a number in [0, 1] as negative_fraction, got {negative_fraction}",
        )
        _require(
            len(negative_kinds) > 0 and set(negative_kinds) <= set(NEGATIVE_KINDS),
            f"Expected some of {NEGATIVE_KINDS} as negative_kinds, got {tuple(negative_kinds)}",
        )
        self.task, self.split, self.length, self.seed = task, split, length, seed
        self.height, self.width, self.num_frames = height, width, num_frames
        self.negative_fraction, self.negative_kinds = negative_fraction, tuple(negative_kinds)

    def __len__(self) -> int:
        """Return the number of clips."""
        return self.length

    def __getitem__(self, index: int) -> SyntheticClip:
        """Return the clip at an index; a fraction `negative_fraction` of the clips is negative.

        Raises:
            IndexError: If the index is not in [0, length).
        """
        choice = self._generator(index, CHOICE)
        if choice.uniform() < self.negative_fraction:
            return self.negative(index, self.negative_kinds[int(choice.integers(len(self.negative_kinds)))])
        generator = self._generator(index, AUDIO)
        scene = self.scene(index)
        sounding = self._draw_sounding(generator, len(scene.objects))
        return self._assemble(scene, sounding, render_mixture(generator, _labels(scene), sounding))

    def swap_audio(self, index: int) -> SyntheticClip:
        """Return the same frames with other audio and the masks for that audio.

        In every second, a different set of objects sounds than in `self[index]` without negative audio.
        """
        scene = self.scene(index)
        original = self._draw_sounding(self._generator(index, AUDIO), len(scene.objects))
        generator = self._generator(index, SWAP)
        sounding = self._draw_sounding(generator, len(scene.objects), unlike=original)
        return self._assemble(scene, sounding, render_mixture(generator, _labels(scene), sounding))

    def negative(self, index: int, kind: str = "silence") -> SyntheticClip:
        """Return the same frames with audio that belongs to no visible object and with empty masks.

        Args:
            index: In [0, length).
            kind: "silence" (digital), "noise" (white, pink or brown) or "absent_class" (one or two classes that are not
                visible).

        Raises:
            ValueError: If the kind is unknown.
        """
        _require(kind in NEGATIVE_KINDS, f"Expected one of {NEGATIVE_KINDS} as kind, got {kind!r}")
        scene, generator = self.scene(index), self._generator(index, NEGATIVE)
        waveform = np.zeros(self.num_frames * SAMPLING_RATE, dtype=np.float32)
        if kind == "noise":
            waveform = render_noise(generator, len(waveform))
        if kind == "absent_class":
            absent = generator.permutation([k for k in range(len(CLASSES)) if k not in _labels(scene)])[:2]
            waveform = render_mixture(generator, absent, self._draw_sounding(generator, len(absent)))
        silent = np.zeros((self.num_frames, len(scene.objects)), dtype=bool)
        return replace(self._assemble(scene, silent, waveform), negative=kind)

    def scene(self, index: int) -> Scene:
        """Return the scene of an index, which can be rendered at any time and size."""
        # Times halfway between frames are included, so that a video does not hide an object for long.
        times = np.concatenate([self.timestamps, self.timestamps - 0.5])
        return Scene.draw(self._generator(index, SCENE), self.width / self.height, times)

    @property
    def timestamps(self) -> np.ndarray:
        """Time of each frame in seconds, float64 (frames,)."""
        return np.arange(self.num_frames) + FRAME_OFFSET

    def render_at(self, index: int, timestamps: Sequence[float]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the frame and its visible objects at the given times of the clip.

        Args:
            index: In [0, length).
            timestamps: Seconds.

        Yields:
            uint8 (height, width, 3), and uint8 (height, width) with the class index of every visible object;
            `mask_sounding` turns the second array into a mask.
        """
        scene = self.scene(index)
        classes = np.array([0, *(label + 1 for label in _labels(scene))], dtype=np.uint8)
        for time in timestamps:
            frame, positions = scene.render(self.height, self.width, time)
            yield frame, classes[positions]

    def render_video_frames(self, index: int, frames_per_second: float = 25.0) -> Iterator[np.ndarray]:
        """Yield every frame of a video of the clip, uint8 (height, width, 3)."""
        count = round(self.num_frames * frames_per_second)
        return (frame for frame, _ in self.render_at(index, [k / frames_per_second for k in range(count)]))

    def _generator(self, index: int, stream: int) -> np.random.Generator:
        if not 0 <= index < self.length:
            raise IndexError(f"Expected an index from 0 to {self.length - 1}, got {index}")
        key = (SPLITS.index(self.split), TASKS.index(self.task), int(index), stream)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def _draw_sounding(
        self, generator: np.random.Generator, count: int, unlike: np.ndarray | None = None
    ) -> np.ndarray:
        """Draw which of `count` objects sound in each second, different from `unlike` in each: bool (frames, count)."""
        if self.task == "s4":
            choices = np.arange(count) if unlike is None else np.flatnonzero(~unlike[0])
            return np.tile(np.arange(count) == generator.choice(choices), (self.num_frames, 1))
        rows: list[np.ndarray] = []
        while len(rows) < self.num_frames:
            row = rows[-1] if rows and generator.uniform() < REPEATED_SECONDS else _draw_second(generator, count)
            if unlike is None or (row != unlike[len(rows)]).any():
                rows.append(row)
        return np.stack(rows)

    def _assemble(self, scene: Scene, sounding: np.ndarray, waveform: np.ndarray) -> SyntheticClip:
        """Render the frames of a scene and the masks of its sounding objects."""
        rendered = [scene.render(self.height, self.width, time) for time in self.timestamps]
        object_classes = tuple(label + 1 for label in _labels(scene))
        objects = np.array([0, *object_classes], dtype=np.uint8)[np.stack([positions for _, positions in rendered])]
        annotated_frames = np.ones(self.num_frames, dtype=bool)
        annotated_frames[1:] = not (self.task == "s4" and self.split == "train")
        return SyntheticClip(
            frames=np.stack([frame for frame, _ in rendered]),
            masks=np.stack([mask_sounding(*pair, object_classes) for pair in zip(objects, sounding, strict=True)]),
            objects=objects,
            waveform=waveform,
            sampling_rate=SAMPLING_RATE,
            sounding=sounding,
            object_classes=object_classes,
            annotated_frames=annotated_frames,
            timestamps=self.timestamps,
            negative=None,
        )


def mask_sounding(objects: np.ndarray, sounding: np.ndarray, object_classes: Sequence[int]) -> np.ndarray:
    """Keep the visible objects that sound.

    Args:
        objects: uint8 (height, width), class index of every visible object, 0 elsewhere.
        sounding: bool (objects,), which object sounds in this second.
        object_classes: Class index of each object.

    Returns:
        uint8 (height, width), class index where a sounding object is visible, else 0.
    """
    kept = np.zeros(len(CLASSES) + 1, dtype=np.uint8)
    for label, sounds in zip(object_classes, sounding, strict=True):
        kept[label] = label if sounds else 0
    return kept[objects]


def _draw_second(generator: np.random.Generator, count: int) -> np.ndarray:
    """Draw which of `count` objects sound in one second: none, or one to three, bool (count,)."""
    if generator.uniform() < SILENT_SECONDS:
        return np.zeros(count, dtype=bool)
    most = min(count, 3)
    sounds = int(generator.choice(np.arange(1, most + 1), p={1: (1.0,), 2: (0.6, 0.4), 3: (0.45, 0.35, 0.2)}[most]))
    return generator.permutation(np.arange(count) < sounds)


def _labels(scene: Scene) -> list[int]:
    return [shape.label for shape in scene.objects]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
