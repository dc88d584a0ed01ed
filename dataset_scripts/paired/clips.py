"""Generate clips from photos and recordings: frames with visible objects, and one to three sounds in each second.

Seconds are counted as in AVSBench: the mask of second l shows the visible objects that sound from l to l + 1, and the frame
of second l is taken at l + 15/16. An object sounds in a second if its recording does, but not where the
recording pauses.

A photo is seen through a window that moves over it at constant speed. This is the motion of the clip. The window
always contains a point of the object that the photo was chosen for.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from modeling_pcmanet.media_pcmanet import SAMPLING_OFFSET
from pcmanet.dataset_scripts import SPLITS
from pcmanet.dataset_scripts.clips import ClipArrays
from pcmanet.dataset_scripts.metrics.segmentation import IGNORE_INDEX

from .library import BACKGROUND, UNKNOWN, Library
from .settings import ClipSettings


TASKS = ("s4", "ms3", "avss")
WINDOW = 0.1  # seconds over which the level of a recording is measured
ACTIVE = 10 ** (
    -25 / 20
)  # minimum level of a window, relative to the loudest, at which a recording counts as sounding there
AUDIBLE = 10 ** (
    -20 / 20
)  # minimum level of a window, relative to that of the sound, at which its second counts as sounding
PAUSE = (0.05, 0.5)  # seconds between two recordings of one sound
FADE = 0.01  # seconds of fading at both ends of a sound
FAINT_NOISE = (-75.0, -55.0)  # dBFS of the noise in half of the silent clips

ATTEMPTS = 8  # draws of a second photo that shares no class with the first
SHORT_SIDE = 0.75  # of a mosaic, relative to its long side
SIDE_BY_SIDE = 0.8  # fraction of the mosaics whose photos are side by side, not one above the other
DIVISION = (0.4, 0.6)  # where a mosaic is divided
PASTED_SIZE = (0.3, 0.65)  # of a pasted object, relative to the frame
POINT = (0.2, 0.8)  # where in the window the point of the object may be

# The random streams of one picture and of one clip; each is independent of all others.
PICTURE, KINDS, AUDIO = range(3)


@dataclass(frozen=True)
class SoundEvent:
    """A sound of a clip.

    Attributes:
        label: Name of its class, or a label of the recording if it belongs to no class.
        index: Class index, 0 if it belongs to no class.
        file: The recording; a sound that lasts longer continues with others of the same group.
        start: Seconds since the start of the audio.
        stop: Seconds since the start of the audio.
        decibels: Level of its parts that are not silent, relative to full scale.
        stand_in: Name of the class that the recording actually belongs to, if it stands in for one without recordings.
    """

    label: str
    index: int
    file: str
    start: float
    stop: float
    decibels: float
    stand_in: str | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class PairedClip(ClipArrays):
    """A clip and what it was made from. Its masks follow the rules of the task.

    Attributes:
        visible: uint8 (frames, height, width), class index of every visible object, sounding or silent; 255 is void.
        sounding: bool (frames, classes + 1), which class sounds in which second, visible or not.
        events: The sounds.
        class_names: Names of the classes by class index, the background first.
        picture: "single", "mosaic" or "paste".
        sound: "matching", "absent", "unknown", "background" or "silence".
    """

    visible: np.ndarray
    sounding: np.ndarray
    events: tuple[SoundEvent, ...]
    class_names: tuple[str, ...]
    picture: str
    sound: str

    def sounding_objects(self) -> list[int]:
        """Return the class indices of the visible objects that sound in any second, in ascending order."""
        seen = [
            set(np.unique(mask)) & set(np.flatnonzero(row))
            for mask, row in zip(self.visible, self.sounding, strict=True)
        ]
        return sorted(int(index) for index in set().union(*seen))


@dataclass(frozen=True)
class _Plan:
    """A sound before it is rendered.

    Attributes:
        role: The class index, `UNKNOWN` or `BACKGROUND`.
        pool: Numbers of the recordings to draw from.
        decibels: Level in dBFS.
        start: In seconds.
        stop: In seconds.
        stand_in: Whether the recordings are of other classes.
    """

    role: int | str
    pool: Sequence[int]
    decibels: float
    start: float
    stop: float
    stand_in: bool = False


class PairedClips(Dataset[PairedClip]):
    """Clips generated on the fly.

    An index always gives the same clip: it depends only on the settings, the files and `(task, split, seed, index)`.
    Consecutive `clips_per_picture` clips have the same frames with different sounds.

    Args:
        library: The photos and recordings.
        task: The rule for the masks: "s4" (one sound throughout, binary masks, in train only the first frame is
            annotated), "ms3" (binary masks of every frame) or "avss" (class indices).
        split: "train", "val" or "test".
        length: Number of clips.
        seed: Seed of the clips, 0 or more.

    Raises:
        ValueError: If an argument is out of range, or the split has no photo of any class.
    """

    def __init__(
        self, library: Library, task: str = "avss", split: str = "train", *, length: int = 1000, seed: int = 0
    ) -> None:
        if task not in TASKS or split not in SPLITS:
            raise ValueError(f"Expected one of {TASKS} as task and one of {SPLITS} as split, got {task!r}, {split!r}")
        if length < 0 or seed < 0:
            raise ValueError(f"Expected length and seed of at least 0, got {length} and {seed}")
        self.library, self.task, self.split, self.length, self.seed = library, task, split, length, seed
        self.settings: ClipSettings = library.settings.clips
        self.photos = self._photos_by_class()
        self.recordings: dict[int | str, list[int]] = {}
        for number, role in enumerate(library.roles):
            if library.recording_splits[number] == split:
                self.recordings.setdefault(role, []).append(number)
        if not self.photos:
            raise ValueError(f"No photos with an object of any class in split {split!r} of {library.settings.path}.")

    @property
    def binary(self) -> bool:
        """Whether masks hold 0 and 1 instead of class indices."""
        return self.task != "avss"

    @property
    def identity(self) -> str:
        """Text that changes with anything on which a clip of an index depends, except for the arguments of the dataset."""
        settings = self.library.settings
        return hashlib.sha256(repr((self.library.identity, replace(settings, cache=None))).encode()).hexdigest()[:32]

    def __len__(self) -> int:
        """Return the number of clips."""
        return self.length

    def __getitem__(self, index: int) -> PairedClip:
        """Return the clip at an index; raise IndexError if it is not in [0, length)."""
        if not 0 <= index < self.length:
            raise IndexError(f"Expected an index from 0 to {self.length - 1}, got {index}")
        group, variant = divmod(index, self.settings.clips_per_picture)
        generator = self._generator(group, PICTURE)
        picture, frames, visible = _draw_picture(generator, self.library, self.photos, self.settings)
        areas = _visible_areas(visible)
        kind, main = self._choose(self._generator(group, KINDS), areas, variant)
        generator = self._generator(index, AUDIO)
        waveform, sounding, events = self._render_audio(generator, self._plan(generator, kind, main, areas), kind)
        masks = np.stack([_mask_sounding(*pair) for pair in zip(visible, sounding, strict=True)])
        annotated_frames = np.ones(self.settings.seconds, dtype=bool)
        annotated_frames[1:] = not (self.task == "s4" and self.split == "train")
        masks[~annotated_frames] = IGNORE_INDEX
        names = self.library.settings.class_names
        return PairedClip(
            name=f"{self.split} {index} of {self.library.settings.path.name}",
            frames=frames,
            masks=np.where(masks == IGNORE_INDEX, masks, masks > 0).astype(np.uint8) if self.binary else masks,
            annotated_frames=annotated_frames,
            waveform=waveform[None],
            sampling_rate=self.settings.sampling_rate,
            timestamps=self.settings.context_seconds + np.arange(self.settings.seconds) + SAMPLING_OFFSET,
            # Audio that another clip may get must belong to no object that is visible or sounds here.
            objects=frozenset([*(names[k] for k in areas), *(event.label for event in events)]),
            visible=visible,
            sounding=sounding,
            events=events,
            class_names=names,
            picture=picture,
            sound=kind,
        )

    def _photos_by_class(self) -> dict[int, list[int]]:
        """Return the photos of the split by the class index of each object that is large enough."""
        photos: dict[int, list[int]] = {}
        for number, (areas, split) in enumerate(zip(self.library.areas, self.library.photo_splits, strict=True)):
            for index, area in areas.items():
                if split == self.split and area >= self.settings.minimum_area:
                    photos.setdefault(index, []).append(number)
        return dict(sorted(photos.items()))

    def _generator(self, number: int, stream: int) -> np.random.Generator:
        key = (SPLITS.index(self.split), TASKS.index(self.task), int(number), stream)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    # The choice of sounds

    def _choose(self, generator: np.random.Generator, areas: dict[int, float], variant: int) -> tuple[str, int]:
        """Choose the kind of sound of a clip, and the class index of its first matching sound (0: none).

        The kinds of the clips of one picture differ as much as their weights allow.
        """
        large = [index for index, area in areas.items() if area >= self.settings.minimum_area]
        classes = generator.permutation([index for index in sorted(large) if self._can_sound(index)])
        weights = self.settings.sounds
        kinds = {kind: weights[kind] for kind in weights if weights[kind] and self._is_possible(kind, areas)}
        count = self.settings.clips_per_picture
        contrast = len(classes) > 1 and generator.uniform() < self.settings.contrast
        shift, order = generator.uniform(), generator.permutation(count)
        if len(classes) and (contrast or not kinds):
            return "matching", int(classes[variant % len(classes)])
        if not len(classes):
            kinds.pop("matching", None)
        limits = np.cumsum(list(kinds.values()))
        place = (shift + order[variant] / count) % 1.0
        kind = list(kinds)[int(np.searchsorted(limits / limits[-1], place, side="right"))] if kinds else "silence"
        return kind, int(classes[variant % len(classes)]) if kind == "matching" else 0

    def _can_sound(self, index: int) -> bool:
        return index in self.recordings or bool(self.settings.stand_ins and self._stand_ins(index))

    def _stand_ins(self, index: int) -> list[int]:
        """Return the recordings of other classes than a given one."""
        return [
            number
            for role, numbers in self.recordings.items()
            if isinstance(role, int) and role != index
            for number in numbers
        ]

    def _is_possible(self, kind: str, areas: dict[int, float]) -> bool:
        """Return whether the split has recordings for a kind of sound."""
        if kind == "absent":
            return bool(self._absent(areas))
        needed = {"unknown": UNKNOWN, "background": BACKGROUND}.get(kind)
        return needed is None or needed in self.recordings

    def _absent(self, areas: dict[int, float]) -> list[int | str]:
        return [role for role in self.recordings if isinstance(role, int) and role not in areas]

    def _plan(self, generator: np.random.Generator, kind: str, main: int, areas: dict[int, float]) -> list[_Plan]:
        """Draw the sounds of a clip, in order."""
        settings, is_stand_in = self.settings, bool(main) and main not in self.recordings
        roles = [main] if is_stand_in else self._draw_all_roles(generator, kind, main, areas)
        pools = {role: self._stand_ins(main) if is_stand_in else self.recordings[role] for role in roles}
        if similar := self._draw_similar(generator, kind, areas):
            first, pool = similar
            pools = {first: pool} | {role: pools[role] for role in roles[1:] if role != first}
        level = generator.uniform(*settings.level_decibels)
        plans = []
        for number, (role, pool) in enumerate(pools.items()):
            relative = generator.uniform(*settings.balance_decibels) if number else 0.0
            plans.append(_Plan(role, pool, level + relative, *self._draw_span(generator, role), is_stand_in))
        with_background = bool(roles) and kind != BACKGROUND and BACKGROUND in self.recordings
        if generator.uniform() < settings.background and with_background:
            relative = generator.uniform(*settings.background_decibels)
            plans.append(_Plan(BACKGROUND, self.recordings[BACKGROUND], level + relative, 0.0, self._duration))
        return plans

    def _draw_all_roles(
        self, generator: np.random.Generator, kind: str, main: int, areas: dict[int, float]
    ) -> list[int | str]:
        """Draw the sounds of a clip, apart from an added background: at most three roles."""
        absent = self._absent(areas)
        if kind == "absent":
            first = self._draw_roles(generator, absent, 1)
            return first + self._draw_more(generator, [role for role in absent if role not in first])[:1]
        if kind != "matching":
            return [] if kind == "silence" else [kind]
        roles = [main, *self._draw_more(generator, [index for index in areas if index != main])]
        if generator.uniform() < self.settings.distractor and self.task != "s4":
            roles += self._draw_roles(generator, [*absent, UNKNOWN], 1)
        return roles[:3]

    def _draw_similar(
        self, generator: np.random.Generator, kind: str, areas: dict[int, float]
    ) -> tuple[int | str, list[int]] | None:
        """Draw a role with sounds that are easily confused with those of a visible class, and its recordings of them.

        Returns:
            None if this clip is to have none, or if there is no such recording for its kind of sound.
        """
        allowed = {"absent": self._absent(areas), "unknown": [UNKNOWN]}.get(kind, [])
        if not self.settings.similar_sounds or not allowed or generator.uniform() >= self.settings.similar_sounds:
            return None
        labels = {label for index in areas for label in self.library.settings.classes[index - 1].similar}
        numbers = {role: self._with_labels(role, labels) for role in allowed}
        roles = [role for role in allowed if numbers[role]]
        if not roles:
            return None
        role = roles[int(generator.integers(len(roles)))]
        return role, numbers[role]

    def _with_labels(self, role: int | str, labels: set[str]) -> list[int]:
        """Return the recordings of a role that have one of the labels."""
        recordings = self.library.recordings
        return [number for number in self.recordings.get(role, []) if not labels.isdisjoint(recordings[number].labels)]

    def _draw_more(self, generator: np.random.Generator, classes: Sequence[int | str]) -> list[int | str]:
        """Draw up to two more classes that also sound; none in s4."""
        if self.task == "s4" or generator.uniform() >= self.settings.second_sound:
            return []
        return self._draw_roles(generator, classes, 2 if generator.uniform() < self.settings.third_sound else 1)

    def _draw_roles(self, generator: np.random.Generator, roles: Sequence[int | str], count: int) -> list[int | str]:
        """Draw different roles that have recordings."""
        usable = [role for role in roles if role in self.recordings]
        return [usable[place] for place in generator.permutation(len(usable))[:count]]

    @property
    def _duration(self) -> float:
        """Seconds of audio."""
        return self.settings.seconds + 2 * self.settings.context_seconds

    def _draw_span(self, generator: np.random.Generator, role: int | str) -> tuple[float, float]:
        """Draw when a sound starts and stops; it fills at least half of each second of a frame that it touches."""
        context, seconds = self.settings.context_seconds, int(np.ceil(self._duration))
        steady = generator.uniform() < self.settings.steady or self.task == "s4" or role == BACKGROUND
        kind = int(generator.integers(3))
        first, last = sorted(int(value) for value in generator.integers(0, seconds, 2))
        early, late = generator.uniform(0, 0.5, 2)
        # The seconds of the frames are offset by the fraction of the context.
        offset = context % 1.0
        start = 0.0 if steady or kind == 0 else min(first + early + offset, self._duration - 0.5)
        stop = self._duration if steady or kind == 1 else min(last + 1 - late + offset, self._duration)
        return float(start), float(max(stop, start + 0.5))

    # Audio

    def _render_audio(
        self, generator: np.random.Generator, plans: Sequence[_Plan], kind: str
    ) -> tuple[np.ndarray, np.ndarray, tuple[SoundEvent, ...]]:
        """Mix the sounds: float32 (samples,), bool (frames, classes + 1), and the sounds with their final level."""
        rate, names = self.settings.sampling_rate, self.library.settings.class_names
        mixture = np.zeros(round(self._duration * rate), dtype=np.float32)
        sounding = np.zeros((self.settings.seconds, len(names)), dtype=bool)
        events = []
        for plan in plans:
            number = int(generator.choice(plan.pool))
            start, stop = round(plan.start * rate), min(round(plan.stop * rate), len(mixture))
            sound = np.zeros_like(mixture)
            sound[start:stop] = self._fill(generator, number, stop - start)
            mixture += sound * np.float32(10 ** (plan.decibels / 20))
            role, file = self.library.roles[number], self.library.recordings[number]
            label, index = (names[plan.role], plan.role) if isinstance(plan.role, int) else (file.labels[0], 0)
            sounding[:, index] |= self._is_heard(sound)
            stand_in = names[role] if plan.stand_in and isinstance(role, int) else None
            events.append(SoundEvent(label, index, file.file, plan.start, stop / rate, plan.decibels, stand_in))
        sounding[:, 0] = False
        if kind == "silence" and generator.uniform() < 0.5:
            level = np.float32(10 ** (generator.uniform(*FAINT_NOISE) / 20))
            mixture += level * generator.standard_normal(len(mixture), dtype=np.float32)
        return (*_limit(mixture, sounding, events),)

    def _fill(self, generator: np.random.Generator, number: int, samples: int) -> np.ndarray:
        """Return a sound of a given length at level 1, float32 (samples,), from a recording and others of its group."""
        rate, library = self.settings.sampling_rate, self.library
        group, role = library.recordings[number].group, library.roles[number]
        siblings = [k for k in self.recordings[role] if library.recordings[k].group == group]
        filled, position = np.zeros(samples, dtype=np.float32), 0
        while position < samples:
            recording = library.recording(number)
            level, active = measure(recording, rate)
            first = generator.choice(active) if position == 0 else active[0]
            part = recording[round(first * WINDOW * rate) :][: samples - position].astype(np.float32)
            filled[position : position + len(part)] = _fade(part / np.float32(level), rate)
            position += len(part) + round(generator.uniform(*PAUSE) * rate)
            number = int(generator.choice(siblings))
        return filled

    def _is_heard(self, sound: np.ndarray) -> np.ndarray:
        """Return in which seconds of the frames a sound at level 1 is heard, bool (frames,)."""
        rate, context = self.settings.sampling_rate, self.settings.context_seconds
        starts = [round((context + second) * rate) for second in range(self.settings.seconds)]
        return np.array([(_window_levels(sound[start : start + rate], rate) > AUDIBLE).any() for start in starts])


def _mask_sounding(visible: np.ndarray, sounding: np.ndarray) -> np.ndarray:
    """Keep the visible objects that sound.

    Args:
        visible: uint8 (height, width), class indices.
        sounding: bool (classes + 1,).

    Returns:
        uint8 (height, width). Void pixels are ignored if any class sounds, because they may belong to it.
    """
    table = np.zeros(256, dtype=np.uint8)
    indices = np.flatnonzero(sounding)
    table[indices] = indices
    table[IGNORE_INDEX] = IGNORE_INDEX if len(indices) else 0
    return table[visible]


def measure(recording: np.ndarray, sampling_rate: int) -> tuple[float, np.ndarray]:
    """Measure the level of a recording where it is not silent.

    Args:
        recording: int16 (samples,), not all zero.
        sampling_rate: In hertz.

    Returns:
        Root mean square of the windows that sound, in int16 steps, and the numbers of these windows.
    """
    levels = _window_levels(recording, sampling_rate)
    active = np.flatnonzero(levels >= levels.max() * ACTIVE)
    return float(np.sqrt(np.mean(np.square(levels[active])))), active


def _window_levels(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Return the root mean square of each window, the last one padded with zeros."""
    size = round(WINDOW * sampling_rate)
    padded = np.zeros(-(-len(samples) // size) * size, dtype=np.float32)
    padded[: len(samples)] = samples
    windows = padded.reshape(-1, size)
    return np.sqrt(np.einsum("ij,ij->i", windows, windows, dtype=np.float32) / size)


def _fade(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Fade in and out so that cuts do not click; change the samples in place."""
    count = min(round(FADE * sampling_rate), len(samples) // 2)
    ramp = np.linspace(0, 1, count, dtype=np.float32)
    samples[:count] *= ramp
    samples[len(samples) - count :] *= ramp[::-1]
    return samples


def _limit(
    mixture: np.ndarray, sounding: np.ndarray, events: Sequence[SoundEvent]
) -> tuple[np.ndarray, np.ndarray, tuple[SoundEvent, ...]]:
    """Attenuate a mixture that exceeds full scale, and lower the levels of its sounds accordingly."""
    peak = float(np.abs(mixture).max(initial=0.0))
    if peak <= 1:
        return mixture, sounding, tuple(events)
    lowered = [replace(one, decibels=one.decibels - 20 * np.log10(peak)) for one in events]
    return mixture / np.float32(peak), sounding, tuple(lowered)


# Pictures


def _draw_picture(
    generator: np.random.Generator, library: Library, photos: Mapping[int, Sequence[int]], settings: ClipSettings
) -> tuple[str, np.ndarray, np.ndarray]:
    """Draw and render the frames of a clip.

    Args:
        generator: Source of all randomness.
        library: The photos.
        photos: By class index, the photos (positions in the library) to draw from.
        settings: How clips are made.

    Returns:
        "single", "mosaic" or "paste", the frames, uint8 (frames, height, width, 3), and the class index of every visible
        object, uint8 (frames, height, width), 0 background, 255 void. The (first) photo is chosen equally often for
        every class.
    """
    kind = str(generator.choice(list(settings.pictures), p=_normalized(settings.pictures)))
    index = int(generator.choice(list(photos)))
    photo = int(generator.choice(photos[index]))
    other = None if kind == "single" else _draw_other(generator, library, photos, photo)
    if other is None:
        image, mask = library.photo(photo)
        height, width = mask.shape
        return "single", *_draw_view(generator, image, mask, index, (height, width), settings)
    if kind == "mosaic":
        return kind, *_draw_mosaic(generator, library, [(photo, index), other], settings)
    return kind, *_draw_paste(generator, library, (photo, index), other, settings)


def _resize(
    pixels: np.ndarray, height: int, width: int, box: np.ndarray | None, filter_: Image.Resampling
) -> np.ndarray:
    window = None if box is None else tuple(float(value) for value in box)
    return np.asarray(Image.fromarray(pixels).resize((width, height), filter_, box=window))  # pyright: ignore[reportArgumentType]


def _normalized(weights: Mapping[str, float]) -> np.ndarray:
    values = np.array(list(weights.values()), dtype=np.float64)
    return values / values.sum()


def _draw_other(
    generator: np.random.Generator, library: Library, photos: Mapping[int, Sequence[int]], photo: int
) -> tuple[int, int] | None:
    """Draw a second photo without any class of the first, and the class it is chosen for; None if there is none."""
    classes = [index for index in photos if index not in library.areas[photo]]
    for _ in range(ATTEMPTS if classes else 0):
        index = int(generator.choice(classes))
        other = int(generator.choice(photos[index]))
        if not library.areas[other].keys() & library.areas[photo].keys():
            return other, index
    return None


def _draw_view(
    generator: np.random.Generator,
    image: np.ndarray,
    mask: np.ndarray,
    index: int,
    size: tuple[int, int],
    settings: ClipSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Render a photo through a window that moves around a point of a class.

    Args:
        generator: Source of all randomness.
        image: uint8 (height, width, 3).
        mask: uint8 (height, width).
        index: The class.
        size: Height and width of the frames.
        settings: How clips are made.

    Returns:
        Frames, uint8 (frames, height, width, 3), and their masks, uint8 (frames, height, width).
    """
    height, width = mask.shape
    aspect = size[1] / size[0]
    points = np.flatnonzero(mask == index)
    row, column = divmod(int(generator.choice(points)), width)
    largest = np.array([min(width, height * aspect), min(height, width / aspect)])
    zooms = 1 + (settings.zoom - 1) * generator.uniform(0, 1, (2, 1)) ** 2
    sizes, places = largest / zooms, generator.uniform(*POINT, (2, 2))
    if generator.uniform() < settings.still:
        sizes[1], places[1] = sizes[0], places[0]
    corners = np.clip(np.array([column, row]) - sizes * places, 0, np.array([width, height]) - sizes)
    ends = np.concatenate([corners, corners + sizes], axis=1)
    boxes = np.linspace(ends[0], ends[1], settings.seconds)
    # Rounding must not move the window out of the photo.
    boxes = np.clip(boxes, 0, [width, height, width, height])
    is_mirrored = bool(generator.uniform() < settings.mirror)
    frames = _render_windows(image, size, boxes, Image.Resampling.BILINEAR, is_mirrored)
    return frames, _render_windows(mask, size, boxes, Image.Resampling.NEAREST, is_mirrored)


def _render_windows(
    pixels: np.ndarray, size: tuple[int, int], boxes: np.ndarray, filter_: Image.Resampling, is_mirrored: bool
) -> np.ndarray:
    """Resize the part of an image in each of the boxes (frames, 4); if the window does not move, only once."""
    is_still = bool((boxes == boxes[0]).all())
    step = -1 if is_mirrored else 1
    windows = [_resize(pixels, *size, box, filter_)[:, ::step] for box in (boxes[:1] if is_still else boxes)]
    return np.repeat(windows, len(boxes) if is_still else 1, axis=0)


def _draw_mosaic(
    generator: np.random.Generator, library: Library, tiles: Sequence[tuple[int, int]], settings: ClipSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Render two photos side by side or one above the other, in random order."""
    long, short = settings.image_size, round(settings.image_size * SHORT_SIDE)
    side_by_side = bool(generator.uniform() < SIDE_BY_SIDE)
    first = round(long * generator.uniform(*DIVISION))
    rendered = []
    for place, extent in zip(generator.permutation(2), (first, long - first), strict=True):
        photo, index = tiles[place]
        height, width = (short, extent) if side_by_side else (extent, short)
        rendered.append(_draw_view(generator, *library.photo(photo), index, (height, width), settings))
    axis = 2 if side_by_side else 1
    return np.concatenate([one[0] for one in rendered], axis), np.concatenate([one[1] for one in rendered], axis)


def _draw_paste(
    generator: np.random.Generator,
    library: Library,
    base: tuple[int, int],
    other: tuple[int, int],
    settings: ClipSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Render a photo over which an object of another photo moves."""
    image, mask = library.photo(base[0])
    height, width = mask.shape
    frames, visible = _draw_view(generator, image, mask, base[1], (height, width), settings)
    patch, cover = _cut_out(*library.photo(other[0]), other[1])
    scale = generator.uniform(*PASTED_SIZE) * min(height / cover.shape[0], width / cover.shape[1])
    size = max(1, round(cover.shape[0] * scale)), max(1, round(cover.shape[1] * scale))
    patch = _resize(patch, *size, None, Image.Resampling.BILINEAR)
    cover = _resize(cover, *size, None, Image.Resampling.BILINEAR)
    room = np.array([height - size[0], width - size[1]])
    corners = _draw_path(generator, room, visible[0] == base[1], size, settings)
    for frame, classes, (top, left) in zip(frames, visible, corners, strict=True):
        window = slice(top, top + size[0]), slice(left, left + size[1])
        alpha = cover[..., None].astype(np.float32) / 255
        frame[window] = np.rint(frame[window] * (1 - alpha) + patch * alpha).astype(np.uint8)
        classes[window] = np.where(cover > 127, np.uint8(other[1]), classes[window])
    return frames, visible


def _cut_out(image: np.ndarray, mask: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the part of a photo that holds a class, and uint8 255 where the class is, else 0."""
    rows, columns = np.flatnonzero((mask == index).any(axis=1)), np.flatnonzero((mask == index).any(axis=0))
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return image[part], np.where(mask[part] == index, np.uint8(255), np.uint8(0))


def _draw_path(
    generator: np.random.Generator,
    room: np.ndarray,
    kept: np.ndarray,
    size: tuple[int, int],
    settings: ClipSettings,
) -> np.ndarray:
    """Draw the corners (top, left) of a pasted object in each frame, int (frames, 2), where it hides the least.

    Args:
        generator: Source of all randomness.
        room: Largest possible corner.
        kept: bool (height, width), the object that must stay visible.
        size: Height and width of the pasted object.
        settings: How clips are made.
    """
    paths = generator.uniform(0, 1, (4, 2, 2)) * room
    if generator.uniform() < settings.still:
        paths[:, 1] = paths[:, 0]
    corners = np.rint(np.linspace(paths[:, 0], paths[:, 1], settings.seconds, axis=1)).astype(int)
    hidden = [
        max(kept[top : top + size[0], left : left + size[1]].sum() for top, left in (path[0], path[-1]))
        for path in corners
    ]
    return corners[int(np.argmin(hidden))]


def _visible_areas(visible: np.ndarray) -> dict[int, float]:
    """Return the largest fraction of a frame that each visible class covers, by class index.

    Args:
        visible: uint8 (frames, height, width).
    """
    areas: dict[int, float] = {}
    for mask in visible:
        counts = np.bincount(mask.ravel(), minlength=256)
        for index in np.flatnonzero(counts):
            if index not in (0, IGNORE_INDEX):
                areas[int(index)] = max(areas.get(int(index), 0.0), float(counts[index] / mask.size))
    return areas
