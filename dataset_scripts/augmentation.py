"""Augmentation of training clips: pictures with their masks, and sounds with what their masks then must be.

One draw holds for all frames of a clip, so that its motion stays. Each kind is a function that changes a clip by given
numbers; `Augmentation` draws the numbers from the generator that it is handed and from nothing else. Evaluation uses none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pcmanet.dataset_scripts.avsbench.layouts import share_nothing
from pcmanet.dataset_scripts.sounding_shapes.sound import render_noise

from .clips import ClipArrays


LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # weights of red, green, blue in grey (ITU-R BT.601)
REPLACEMENTS = ("silence", "noise", "other")
SHARES = ("flips", "crops", "crop_area", "photometric", "colour_strength", "loudness", "mixing", "replacement")
RANGES = dict.fromkeys(SHARES, (0, 1)) | {"crop_ratio": (1, math.inf), "decibels": (0, math.inf)}
CROP_ATTEMPTS = 10
QUIETEST = 1e-6  # root mean square below which a sound is silence and has no loudness to compare with


def flip(clip: ClipArrays) -> ClipArrays:
    """Mirror the pictures and masks left to right."""
    return replace(clip, frames=clip.frames[:, :, ::-1], masks=clip.masks[:, :, ::-1])


def crop(clip: ClipArrays, top: int, left: int, height: int, width: int) -> ClipArrays:
    """Cut a window, in pixels, out of all pictures and masks; the processor brings it to the network's size."""
    rows, columns = slice(top, top + height), slice(left, left + width)
    return replace(clip, frames=clip.frames[:, rows, columns], masks=clip.masks[:, rows, columns])


def recolour(clip: ClipArrays, brightness: float, contrast: float, saturation: float) -> ClipArrays:
    """Scale brightness, contrast about the mean grey of the clip, and saturation about grey; 1 leaves each as it is."""
    # All three are linear in the colours, so that one matrix and one offset do them at once.
    to_grey = np.repeat(LUMA[:, None], 3, axis=1)
    matrix = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * to_grey
    mean = float(clip.frames.reshape(-1, 3).mean(axis=0) @ LUMA)
    frames = clip.frames.astype(np.float32) @ (np.float32(brightness * contrast) * matrix)
    frames += np.float32(brightness * (1 - contrast) * mean)
    return replace(clip, frames=np.clip(np.rint(frames), 0, 255).astype(np.uint8))


def amplify(clip: ClipArrays, decibels: float) -> ClipArrays:
    """Make the sound louder or softer, but no louder than full scale."""
    peak = float(np.abs(clip.waveform).max())
    gain = 10 ** (decibels / 20)
    gain = min(gain, max(1.0, 1 / peak)) if peak else gain
    return _with_sound(clip, clip.waveform * np.float32(gain))


def mix(clip: ClipArrays, other: ClipArrays, decibels: float) -> ClipArrays:
    """Add the sound of another clip as something that sounds outside the picture; the masks stay.

    Args:
        clip: The clip.
        other: Another, see `may_lend`.
        decibels: Loudness of the other sound against the clip's own.

    Returns:
        The clip with both sounds; as it is, if one of them is silence.
    """
    added = _fit(other, clip)
    own, theirs = _loudness(clip.waveform), _loudness(added)
    if min(own, theirs) < QUIETEST:
        return clip
    return _with_sound(clip, clip.waveform + added * np.float32(own / theirs * 10 ** (decibels / 20)))


def replace_sound(clip: ClipArrays, waveform: np.ndarray) -> ClipArrays:
    """Put a sound that belongs to nothing in the picture under a clip: the right mask of every frame is empty.

    Frames that were not annotated stay so, although their masks are known too: losses are means over annotated frames,
    in which the clip would otherwise weigh more than with its own sound (in S4, five times as much).

    Args:
        clip: The clip.
        waveform: float32 (channels, samples), at the clip's rate.

    Returns:
        The clip with that sound and empty masks.
    """
    masks = np.where(clip.annotated_frames[:, None, None], np.uint8(0), clip.masks)
    return replace(_with_sound(clip, waveform), masks=masks, objects=None)


def may_lend(other: ClipArrays, clip: ClipArrays) -> bool:
    """Tell whether another clip has a sound that fits under a clip and belongs to nothing in it, see `share_nothing`."""
    if other.waveform is None or other.sampling_rate != clip.sampling_rate:
        return False
    return share_nothing(other.objects, clip.objects)


def _with_sound(clip: ClipArrays, waveform: np.ndarray) -> ClipArrays:
    """A clip with another sound, which the features that came with the data are not of."""
    return replace(clip, waveform=waveform, log_mel=None)


def _fit(other: ClipArrays, clip: ClipArrays) -> np.ndarray:
    """One clip's sound in mono, repeated or cut to another's length: float32 (1, samples)."""
    return np.resize(other.waveform.mean(axis=0), (1, clip.waveform.shape[-1]))


def _loudness(waveform: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


def _is_finite(value: Any) -> bool:
    """Tell whether a value is a number, neither infinite nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for training clips, and how often.

    Attributes:
        flips: Share of clips that are mirrored, in [0, 1].
        crops: Share of clips that are cropped.
        crop_area: Least share of the picture that a crop keeps, above 0.
        crop_ratio: Most by which a crop stretches the picture, from 1 up.
        photometric: Share of clips whose colours change.
        colour_strength: Brightness, contrast and saturation are scaled by 1 plus or minus up to this.
        loudness: Share of clips whose loudness changes.
        decibels: By plus or minus up to this, from 0 up.
        mixing: Share of clips to which the sound of another clip of the batch is added.
        mixing_decibels: Least and most loudness of that against the clip's own.
        replacement: Share of clips whose sound is replaced by one of `replacements`, with empty masks.
        replacements: Out of "silence", "noise" and "other", which is another clip's sound.

    Another clip is one of the same batch of which the data tell that it shares no object, see `may_lend`; where there is
    none, nothing is mixed, and "other" becomes silence.

    Raises:
        ValueError: If a value is of another type or out of its range.
    """

    flips: float = 0.5
    crops: float = 0.5
    crop_area: float = 0.5
    crop_ratio: float = 4 / 3
    photometric: float = 0.8
    colour_strength: float = 0.3
    loudness: float = 0.5
    decibels: float = 6.0
    mixing: float = 0.0
    mixing_decibels: tuple[float, float] = (-15.0, -5.0)
    replacement: float = 0.0
    replacements: tuple[str, ...] = REPLACEMENTS

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if not _is_finite(value) or not least <= value <= most:
                raise ValueError(f"{name} is {value!r}; expected a finite number from {least} to {most}")
        if not self.crop_area:
            raise ValueError("crop_area is 0; a crop must keep something of the picture")
        pair, kinds = self.mixing_decibels, self.replacements
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(map(_is_finite, pair)) or pair[0] > pair[1]:
            raise ValueError(f"mixing_decibels is {pair!r}; expected two numbers, the least and the most")
        if not isinstance(kinds, Sequence) or not kinds or any(kind not in REPLACEMENTS for kind in kinds):
            raise ValueError(f"replacements is {kinds!r}; choose some out of {', '.join(REPLACEMENTS)}")

    @property
    def changes_sound(self) -> bool:
        """Whether any sound may change."""
        return max(self.loudness, self.mixing, self.replacement) > 0

    def __call__(self, clips: Sequence[ClipArrays], generator: np.random.Generator) -> list[ClipArrays]:
        """Change the clips of a batch.

        Args:
            clips: The clips; they are not written to.
            generator: From which everything is drawn: the same state gives the same clips.

        Returns:
            The changed clips.

        Raises:
            ValueError: If sounds are to change and a clip has none.
        """
        if self.changes_sound and (mute := [clip.name for clip in clips if clip.waveform is None]):
            raise ValueError(f"clips {mute} have features but no sound: set loudness, mixing and replacement to 0")
        return [self._sound(self._picture(clip, generator), clip, clips, generator) for clip in clips]

    def _picture(self, clip: ClipArrays, generator: np.random.Generator) -> ClipArrays:
        """Change what is seen."""
        if generator.uniform() < self.flips:
            clip = flip(clip)
        if generator.uniform() < self.crops:
            clip = crop(clip, *self._draw_window(*clip.frames.shape[1:3], generator))
        if generator.uniform() < self.photometric:
            clip = recolour(clip, *generator.uniform(1 - self.colour_strength, 1 + self.colour_strength, 3))
        return clip

    def _sound(
        self, clip: ClipArrays, original: ClipArrays, clips: Sequence[ClipArrays], generator: np.random.Generator
    ) -> ClipArrays:
        """Change what is heard."""
        others = [other for other in clips if may_lend(other, original)]
        other = others[generator.integers(len(others))] if others else None
        if generator.uniform() < self.replacement:
            return replace_sound(clip, self._draw_sound(clip, other, generator))
        if generator.uniform() < self.mixing and other is not None:
            clip = mix(clip, other, generator.uniform(*self.mixing_decibels))
        if generator.uniform() < self.loudness:
            clip = amplify(clip, generator.uniform(-self.decibels, self.decibels))
        return clip

    def _draw_sound(self, clip: ClipArrays, other: ClipArrays | None, generator: np.random.Generator) -> np.ndarray:
        """A sound that belongs to nothing in the picture, as long as the clip's own: float32 (1, samples)."""
        kind = self.replacements[generator.integers(len(self.replacements))]
        if kind == "noise":
            return render_noise(generator, clip.waveform.shape[-1])[None]
        if kind == "other" and other is not None:
            return _fit(other, clip)
        return np.zeros((1, clip.waveform.shape[-1]), dtype=np.float32)

    def _draw_window(self, height: int, width: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop; the whole picture if no draw fits into it."""
        for _ in range(CROP_ATTEMPTS):
            area = generator.uniform(self.crop_area, 1.0)
            stretch = np.exp(generator.uniform(-1, 1) * np.log(self.crop_ratio))
            rows, columns = round(height * np.sqrt(area / stretch)), round(width * np.sqrt(area * stretch))
            if 0 < rows <= height and 0 < columns <= width:
                top, left = generator.integers(height - rows + 1), generator.integers(width - columns + 1)
                return int(top), int(left), int(rows), int(columns)
        return 0, 0, height, width
