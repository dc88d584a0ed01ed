"""Augment training clips: frames with their masks, and audio with the masks that it requires.

One draw applies to all frames of a clip, which preserves its motion. Each transform is a function that takes its
parameters as arguments; `Augmentation` draws them from the generator that it receives. Evaluation uses no
augmentation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pcmanet.dataset_scripts.avsbench.layouts import have_disjoint_objects
from pcmanet.dataset_scripts.sounding_shapes.sound import render_noise

from .clips import ClipArrays


LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # weights of red, green, blue in gray (ITU-R BT.601)
REPLACEMENTS = ("silence", "noise", "other")
FRACTIONS = ("flips", "crops", "crop_area", "photometric", "color_strength", "loudness", "mixing", "replacement")
RANGES = dict.fromkeys(FRACTIONS, (0, 1)) | {"crop_ratio": (1, math.inf), "decibels": (0, math.inf)}
CROP_ATTEMPTS = 10
SILENCE = 1e-6  # root mean square below which audio counts as silent and has no loudness to compare with


# Transforms of frames


def flip(clip: ClipArrays) -> ClipArrays:
    """Mirror frames and masks left to right."""
    return replace(clip, frames=clip.frames[:, :, ::-1], masks=clip.masks[:, :, ::-1])


def crop(clip: ClipArrays, top: int, left: int, height: int, width: int) -> ClipArrays:
    """Crop all frames and masks to a window, in pixels; the processor resizes it to the size of the model input."""
    rows, columns = slice(top, top + height), slice(left, left + width)
    return replace(clip, frames=clip.frames[:, rows, columns], masks=clip.masks[:, rows, columns])


def adjust_colors(clip: ClipArrays, brightness: float, contrast: float, saturation: float) -> ClipArrays:
    """Scale brightness, contrast about the mean gray of the clip, and saturation about gray; 1 keeps each unchanged."""
    # All three are linear in the colors, so one matrix and one offset apply them together.
    to_gray = np.repeat(LUMA[:, None], 3, axis=1)
    matrix = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * to_gray
    mean = float(clip.frames.reshape(-1, 3).mean(axis=0) @ LUMA)
    frames = clip.frames.astype(np.float32) @ (np.float32(brightness * contrast) * matrix)
    frames += np.float32(brightness * (1 - contrast) * mean)
    return replace(clip, frames=np.clip(np.rint(frames), 0, 255).astype(np.uint8))


# Transforms of audio


def amplify(clip: ClipArrays, decibels: float) -> ClipArrays:
    """Change the loudness by a gain in decibels, which is reduced if the audio would exceed full scale."""
    waveform = _require_waveform(clip)
    peak = float(np.abs(waveform).max())
    gain = 10 ** (decibels / 20)
    gain = min(gain, max(1.0, 1 / peak)) if peak else gain
    return _with_audio(clip, waveform * np.float32(gain))


def mix_audio(clip: ClipArrays, other: ClipArrays, decibels: float) -> ClipArrays:
    """Add the audio of another clip as an off-screen sound; the masks do not change.

    Args:
        clip: The clip.
        other: Another clip; see `has_unrelated_audio`.
        decibels: Loudness of the other audio relative to the clip's.

    Returns:
        The clip with the mixed audio; unchanged if either clip is silent.
    """
    waveform, added = _require_waveform(clip), _fit(other, clip)
    loudness, other_loudness = _loudness(waveform), _loudness(added)
    if min(loudness, other_loudness) < SILENCE:
        return clip
    return _with_audio(clip, waveform + added * np.float32(loudness / other_loudness * 10 ** (decibels / 20)))


def replace_audio(clip: ClipArrays, waveform: np.ndarray) -> ClipArrays:
    """Replace the audio of a clip with audio that belongs to no visible object: the masks of all frames become empty.

    Frames without annotation stay unannotated, although their masks are now known. Losses are means over annotated
    frames, so the clip would otherwise have a larger weight than with its original audio (in S4, five times).

    Args:
        clip: The clip.
        waveform: float32 (channels, samples), at the clip's rate.

    Returns:
        The clip with this audio and empty masks.
    """
    masks = np.where(clip.annotated_frames[:, None, None], np.uint8(0), clip.masks)
    return replace(_with_audio(clip, waveform), masks=masks, objects=None)


def has_unrelated_audio(other: ClipArrays, clip: ClipArrays) -> bool:
    """Return whether the audio of another clip has the same rate and belongs to no object of this clip.

    See `have_disjoint_objects`.
    """
    if other.waveform is None or other.sampling_rate != clip.sampling_rate:
        return False
    return have_disjoint_objects(other.objects, clip.objects)


def _require_waveform(clip: ClipArrays) -> np.ndarray:
    """Return the waveform; raise ValueError if the clip has none."""
    if clip.waveform is None:
        raise ValueError(f"Clip {clip.name!r} has features but no audio. Set loudness, mixing and replacement to 0.")
    return clip.waveform


def _with_audio(clip: ClipArrays, waveform: np.ndarray) -> ClipArrays:
    """Replace the waveform and remove the features, which belong to the original audio."""
    return replace(clip, waveform=waveform, log_mel=None)


def _fit(other: ClipArrays, clip: ClipArrays) -> np.ndarray:
    """Return the audio of one clip in mono, repeated or cropped to the length of another: float32 (1, samples)."""
    return np.resize(_require_waveform(other).mean(axis=0), (1, _require_waveform(clip).shape[-1]))


def _loudness(waveform: np.ndarray) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


# Random augmentation


def _is_finite(value: Any) -> bool:
    """Return whether a value is a number, neither infinite nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training clips and their probabilities.

    Attributes:
        flips: Fraction of clips that are mirrored, in [0, 1].
        crops: Fraction of clips that are cropped.
        crop_area: Minimum fraction of the frame area that a crop keeps, above 0.
        crop_ratio: Maximum change of the aspect ratio by a crop, at least 1.
        photometric: Fraction of clips whose colors change.
        color_strength: Maximum change of brightness, contrast and saturation, relative to 1.
        loudness: Fraction of clips whose loudness changes.
        decibels: Maximum change of the loudness, at least 0.
        mixing: Fraction of clips to which the audio of another clip of the batch is added.
        mixing_decibels: Minimum and maximum loudness of the added audio relative to the clip's.
        replacement: Fraction of clips whose audio is replaced by one of `replacements`, with empty masks.
        replacements: Some of "silence", "noise" and "other" (the audio of another clip).

    Another clip is a clip of the same batch that shares no object according to the data; see `has_unrelated_audio`. If
    there is none, nothing is mixed, and "other" becomes silence.

    Raises:
        ValueError: If a value has the wrong type or is out of range.
    """

    flips: float = 0.5
    crops: float = 0.5
    crop_area: float = 0.5
    crop_ratio: float = 4 / 3
    photometric: float = 0.8
    color_strength: float = 0.3
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
                raise ValueError(f"Expected a finite number from {least} to {most} as {name}, got {value!r}")
        if not self.crop_area:
            raise ValueError("Expected a number above 0 as crop_area, got 0")
        pair, kinds = self.mixing_decibels, self.replacements
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(map(_is_finite, pair)) or pair[0] > pair[1]:
            raise ValueError(f"Expected minimum and maximum as mixing_decibels, got {pair!r}")
        if not isinstance(kinds, Sequence) or not kinds or any(kind not in REPLACEMENTS for kind in kinds):
            raise ValueError(f"Expected some of {', '.join(REPLACEMENTS)} as replacements, got {kinds!r}")

    @property
    def changes_audio(self) -> bool:
        """Whether audio may change."""
        return max(self.loudness, self.mixing, self.replacement) > 0

    def __call__(self, clips: Sequence[ClipArrays], generator: np.random.Generator) -> list[ClipArrays]:
        """Change the clips of a batch.

        Args:
            clips: The clips; their arrays are not modified.
            generator: Source of all randomness: the same state gives the same clips.

        Returns:
            The changed clips.

        Raises:
            ValueError: If audio may change and a clip has none.
        """
        if self.changes_audio and (missing := [clip.name for clip in clips if clip.waveform is None]):
            raise ValueError(f"Clips {missing} have features but no audio. Set loudness, mixing and replacement to 0.")
        return [self._change_audio(self._change_frames(clip, generator), clip, clips, generator) for clip in clips]

    def _change_frames(self, clip: ClipArrays, generator: np.random.Generator) -> ClipArrays:
        if generator.uniform() < self.flips:
            clip = flip(clip)
        if generator.uniform() < self.crops:
            height, width = clip.frames.shape[1:3]
            clip = crop(clip, *self._draw_window(height, width, generator))
        if generator.uniform() < self.photometric:
            clip = adjust_colors(clip, *generator.uniform(1 - self.color_strength, 1 + self.color_strength, 3))
        return clip

    def _change_audio(
        self, clip: ClipArrays, original: ClipArrays, clips: Sequence[ClipArrays], generator: np.random.Generator
    ) -> ClipArrays:
        others = [other for other in clips if has_unrelated_audio(other, original)]
        other = others[generator.integers(len(others))] if others else None
        if generator.uniform() < self.replacement:
            return replace_audio(clip, self._draw_replacement(clip, other, generator))
        if generator.uniform() < self.mixing and other is not None:
            clip = mix_audio(clip, other, generator.uniform(*self.mixing_decibels))
        if generator.uniform() < self.loudness:
            clip = amplify(clip, generator.uniform(-self.decibels, self.decibels))
        return clip

    def _draw_replacement(
        self, clip: ClipArrays, other: ClipArrays | None, generator: np.random.Generator
    ) -> np.ndarray:
        """Draw audio that belongs to no visible object, as long as the audio of the clip: float32 (1, samples)."""
        samples = _require_waveform(clip).shape[-1]
        kind = self.replacements[generator.integers(len(self.replacements))]
        if kind == "noise":
            return render_noise(generator, samples)[None]
        if kind == "other" and other is not None:
            return _fit(other, clip)
        return np.zeros((1, samples), dtype=np.float32)

    def _draw_window(self, height: int, width: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
        """Draw top, left, height and width of a crop; the complete frame if no draw fits into it."""
        for _ in range(CROP_ATTEMPTS):
            area = generator.uniform(self.crop_area, 1.0)
            stretch = np.exp(generator.uniform(-1, 1) * np.log(self.crop_ratio))
            rows, columns = round(height * np.sqrt(area / stretch)), round(width * np.sqrt(area * stretch))
            if 0 < rows <= height and 0 < columns <= width:
                top, left = generator.integers(height - rows + 1), generator.integers(width - columns + 1)
                return int(top), int(left), int(rows), int(columns)
        return 0, 0, height, width
