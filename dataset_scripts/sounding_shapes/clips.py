"""The clips of Sounding Shapes, made on the fly, in which what sounds can only be known by listening.

Two to four objects of different classes move over a textured background; each second some of them sound and some are
silent. A class is a look family (shape and texture) and a sound family (pitch, timbre and envelope). A sound belongs to
whole seconds: `sounding[l, k]` holds from second l to l + 1, and the picture of second l is taken at l + 15/16, as
AVSBench does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset

from .scene import CLASSES, Scene, draw_scene, render_scene
from .sound import SAMPLING_RATE, draw_voice, render_noise, render_room, render_source


MIXTURE = (0.15, 0.4, 0.3, 0.15)  # chance that none, one, two or three classes sound in a second


class SoundMixtures(Dataset[tuple[np.ndarray, np.ndarray]]):
    """Sounds made on the fly, each with the classes heard in every second; an index always gives the same bytes.

    The random streams are disjoint from those of `SoundingShapes`.

    Args:
        length: Number of sounds.
        seed: From 0 up.
        num_seconds: Duration of each.
    """

    def __init__(self, length: int, *, seed: int = 0, num_seconds: int = 5) -> None:
        self.length, self.seed, self.num_seconds = length, seed, num_seconds

    def __len__(self) -> int:
        """Number of sounds."""
        return self.length

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One sound.

        Returns:
            float32 (num_seconds * 16000,), mono in [-1, 1), and bool (num_seconds, 12): which class is heard when.

        Raises:
            IndexError: If the index is not in [0, length).
        """
        if not 0 <= index < self.length:
            raise IndexError(f"sound {index} was asked for, but there are sounds 0 to {self.length - 1}")
        generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(index,)))
        heard = np.zeros((self.num_seconds, len(CLASSES)), dtype=bool)
        present = generator.permutation(len(CLASSES))[:4]
        for second in heard:
            second[generator.permutation(present)[: generator.choice(len(MIXTURE), p=MIXTURE)]] = True
        dry = np.zeros(self.num_seconds * SAMPLING_RATE, dtype=np.float32)
        for label in present:
            dry += render_source(int(label), draw_voice(generator), heard[:, label])
        return render_room(generator, dry), heard


TASKS = ("s4", "ms3", "avss")
SPLITS = ("train", "val", "test")
NEGATIVE_KINDS = ("silence", "noise", "absent_class")
FRAME_OFFSET = 15.0 / 16.0  # seconds into each second, AVSBench's moment
SILENT_SECONDS = 0.12  # share of the seconds in which nothing sounds
REPEATED_SECONDS = 0.3  # share of the seconds that keep what sounded before

# Names of the random streams of one index; each is independent of all others.
SCENE, SOUND, SWAP, NEGATIVE, CHOICE = range(5)


@dataclass(frozen=True, eq=False)
class SyntheticClip:
    """One clip: one picture and one mask per second, and the sound of all of them.

    Attributes:
        frames: uint8 (frames, height, width, 3), RGB.
        masks: uint8 (frames, height, width), class index 1..12 where a sounding object is visible, else 0.
        objects: uint8 (frames, height, width), class index of every visible object, sounding or not.
        waveform: float32 (frames * sampling_rate,), mono in [-1, 1), on the 16-bit grid.
        sampling_rate: Hz.
        sounding: bool (frames, objects), which object sounds from second l to l + 1.
        object_classes: Class index 1..12 of each object, from the rearmost to the foremost.
        annotated_frames: bool (frames,), which frames are annotated; in s4's train split only the first.
        timestamps: float64 (frames,), seconds.
        negative: Kind of a sound that belongs to no object of the picture, one of `NEGATIVE_KINDS`, or None.
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
        """uint8 (frames, height, width), 1 where anything that sounds is visible: the target of s4 and ms3."""
        return (self.masks > 0).astype(np.uint8)


class SoundingShapes(Dataset[SyntheticClip]):
    """Clips made on the fly; an index always gives the same bytes, whatever was made before it.

    A clip depends on `(task, split, seed, index)`, the number of frames and the shape of the picture alone. Splits share
    no random numbers.

    Args:
        task: "s4" (one object sounds throughout), "ms3" (several, switched every second) or "avss" (as ms3).
        split: "train", "val" or "test".
        length: Number of clips.
        seed: From 0 up.
        height: Pixels.
        width: Pixels.
        num_frames: Seconds per clip, one frame each.
        negative_fraction: Share of clips, in [0, 1], whose sound belongs to nothing in the picture.
        negative_kinds: The kinds, out of `NEGATIVE_KINDS`, from which these sounds are drawn.

    Raises:
        ValueError: If an argument is out of its range.
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
        _require(task in TASKS, f"task is {task!r}; choose one of {TASKS}")
        _require(split in SPLITS, f"split is {split!r}; choose one of {SPLITS}")
        _require(length >= 0 and seed >= 0, f"length {length} and seed {seed} must both be 0 or more")
        _require(min(height, width) >= 32, f"clips of {height}x{width} pixels are too small; use 32x32 or more")
        _require(num_frames >= 1, f"num_frames is {num_frames}; a clip has at least one second")
        _require(0.0 <= negative_fraction <= 1.0, f"negative_fraction is {negative_fraction}; it must lie in [0, 1]")
        _require(
            len(negative_kinds) > 0 and set(negative_kinds) <= set(NEGATIVE_KINDS),
            f"negative_kinds is {tuple(negative_kinds)}; choose from {NEGATIVE_KINDS}",
        )
        self.task, self.split, self.length, self.seed = task, split, length, seed
        self.height, self.width, self.num_frames = height, width, num_frames
        self.negative_fraction, self.negative_kinds = negative_fraction, tuple(negative_kinds)

    def __len__(self) -> int:
        """Number of clips."""
        return self.length

    def __getitem__(self, index: int) -> SyntheticClip:
        """The clip at an index; a negative one where the draw of `negative_fraction` says so.

        Raises:
            IndexError: If the index is not in [0, length).
        """
        choice = self._generator(index, CHOICE)
        if choice.uniform() < self.negative_fraction:
            return self.negative(index, self.negative_kinds[int(choice.integers(len(self.negative_kinds)))])
        generator = self._generator(index, SOUND)
        scene = self.scene(index)
        sounding = self._draw_sounding(generator, len(scene.objects))
        return self._assemble(scene, sounding, self._render_sound(generator, _labels(scene), sounding))

    def swap_sounds(self, index: int) -> SyntheticClip:
        """The same pictures under another schedule and other sounds, with the masks of the new sounds.

        In every second another set of objects sounds than in `self[index]` without negatives.
        """
        scene = self.scene(index)
        before = self._draw_sounding(self._generator(index, SOUND), len(scene.objects))
        generator = self._generator(index, SWAP)
        sounding = self._draw_sounding(generator, len(scene.objects), unlike=before)
        return self._assemble(scene, sounding, self._render_sound(generator, _labels(scene), sounding))

    def negative(self, index: int, kind: str = "silence") -> SyntheticClip:
        """The same pictures under a sound that belongs to nothing in them: the right masks are empty.

        Args:
            index: In [0, length).
            kind: "silence" (digital), "noise" (white, pink or brown) or "absent_class" (one or two classes that are not
                in the picture).

        Raises:
            ValueError: If the kind is none of these.
        """
        _require(kind in NEGATIVE_KINDS, f"kind of negative sound is {kind!r}; choose one of {NEGATIVE_KINDS}")
        scene, generator = self.scene(index), self._generator(index, NEGATIVE)
        waveform = np.zeros(self.num_frames * SAMPLING_RATE, dtype=np.float32)
        if kind == "noise":
            waveform = render_noise(generator, len(waveform))
        if kind == "absent_class":
            absent = generator.permutation([k for k in range(len(CLASSES)) if k not in _labels(scene)])[:2]
            heard = self._draw_sounding(generator, len(absent))
            waveform = self._render_sound(generator, absent, heard)
        nothing = np.zeros((self.num_frames, len(scene.objects)), dtype=bool)
        return replace(self._assemble(scene, nothing, waveform), negative=kind)

    def scene(self, index: int) -> Scene:
        """What the pictures of an index show; it renders at any moment and size."""
        # Besides the frames' own moments, half-way ones keep a video from hiding an object for long.
        moments = np.concatenate([self.timestamps, self.timestamps - 0.5])
        return draw_scene(self._generator(index, SCENE), self.width / self.height, moments)

    @property
    def timestamps(self) -> np.ndarray:
        """float64 (frames,), the moment of each frame in seconds."""
        return np.arange(self.num_frames) + FRAME_OFFSET

    def render_at(self, index: int, timestamps: Sequence[float]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the picture and the objects in it at any moments of the clip.

        Args:
            index: In [0, length).
            timestamps: Seconds.

        Yields:
            uint8 (height, width, 3), and uint8 (height, width) with the class index of every visible object;
            `mask_sounding` turns the latter into a mask.
        """
        scene = self.scene(index)
        classes = np.array([0, *(label + 1 for label in _labels(scene))], dtype=np.uint8)
        for time in timestamps:
            frame, positions = render_scene(scene, self.height, self.width, time)
            yield frame, classes[positions]

    def render_video_frames(self, index: int, frames_per_second: float = 25.0) -> Iterator[np.ndarray]:
        """Yield every frame of the whole clip as a video, uint8 (height, width, 3)."""
        count = round(self.num_frames * frames_per_second)
        return (frame for frame, _ in self.render_at(index, [k / frames_per_second for k in range(count)]))

    def _generator(self, index: int, stream: int) -> np.random.Generator:
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} was asked for, but this dataset has clips 0 to {self.length - 1}")
        key = (SPLITS.index(self.split), TASKS.index(self.task), int(index), stream)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def _draw_sounding(
        self, generator: np.random.Generator, count: int, unlike: np.ndarray | None = None
    ) -> np.ndarray:
        """Which of `count` objects sound in each second, different from `unlike` in each: bool (frames, count)."""
        if self.task == "s4":
            choices = np.arange(count) if unlike is None else np.flatnonzero(~unlike[0])
            return np.tile(np.arange(count) == generator.choice(choices), (self.num_frames, 1))
        rows: list[np.ndarray] = []
        while len(rows) < self.num_frames:
            row = rows[-1] if rows and generator.uniform() < REPEATED_SECONDS else _draw_second(generator, count)
            if unlike is None or (row != unlike[len(rows)]).any():
                rows.append(row)
        return np.stack(rows)

    def _render_sound(self, generator: np.random.Generator, labels: Sequence[int], sounding: np.ndarray) -> np.ndarray:
        """The mixture of what sounds, in a room: float32 (samples,)."""
        dry = np.zeros(self.num_frames * SAMPLING_RATE, dtype=np.float32)
        for label, seconds in zip(labels, sounding.T, strict=True):
            dry += render_source(int(label), draw_voice(generator), seconds)
        return render_room(generator, dry)

    def _assemble(self, scene: Scene, sounding: np.ndarray, waveform: np.ndarray) -> SyntheticClip:
        """Render the frames of a scene and put the masks of what sounds beside them."""
        rendered = [render_scene(scene, self.height, self.width, time) for time in self.timestamps]
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
    """Keep of the visible objects those that sound.

    Args:
        objects: uint8 (height, width), class index of every visible object, 0 where there is none.
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
    """Which of `count` objects sound in one second: none, or one to three, bool (count,)."""
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
