# Copyright 2026 The pcmanet contributors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Sound that comes in chunks -> the log-mel patch of each frame, in memory that does not grow with the sound."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from typing import Any, Protocol, TypeVar

import numpy as np
import torch


SAMPLING_RATE = 16_000  # hertz, of VGGish
LOWEST_SAMPLING_RATE = 1_000  # hertz: what is below was meant in kilohertz
MAX_FLOAT_AMPLITUDE = 100.0  # beyond this, float audio is integer audio that nobody divided by its full scale

# resampy's "kaiser_best" filter, with which AVSBench was made, in the terms of torchaudio's "sinc_interp_kaiser": within
# 0.022 of the original log-mel on white noise, where torchaudio's own defaults are off by up to 0.5.
RESAMPLING_ZEROS = 50  # zero crossings of the sinc on either side
RESAMPLING_ROLLOFF = 0.917347  # cut-off as a fraction of the lower Nyquist frequency
RESAMPLING_BETA = 12.9846  # shape of the Kaiser window
# A kernel has one row per term of the reduced ratio of rates. Common rates need at most 640 (11,025 Hz); 44,101 Hz would
# need 16,000 and gigabytes, so beyond the limit the nearest ratio within it is taken (time bends by 0.5 ms/s at most).
MAX_RATIO_TERM = 1000
RESAMPLING_ROWS = 32  # at least: 48 kHz needs 1 row, but a product of two matrices is far faster
BLOCKS_AT_ONCE = 4096  # bounds the memory that an hour of sound needs


def to_mono(audio: Any) -> torch.Tensor:
    """Check one clip's sound and reduce it to one channel.

    Args:
        audio: numpy array or torch tensor, (samples,) or (channels, samples); float in [-1, 1], or int16 or int32,
            which are divided by their full scale.

    Returns:
        (samples,), float64, the mean of the channels.

    Raises:
        ValueError: For another type, shape or dtype, no samples at all, values that are not finite, and float values
            that can only be integers of another scale.
    """
    array = _as_array(audio)
    _check_shape(array.shape)
    _check_values(array)
    full_scale = 1.0 if array.dtype.kind == "f" else 2.0 ** (8 * array.dtype.itemsize - 1)
    mono = array.reshape(-1, array.shape[-1]).mean(axis=0, dtype=np.float64)
    return torch.from_numpy(mono / full_scale)


def _as_array(audio: Any) -> np.ndarray:
    """Bring an array or tensor to numpy, or raise ValueError for anything else."""
    if isinstance(audio, torch.Tensor):
        audio = audio.detach().cpu()
        # numpy has no bfloat16
        return (audio.double() if audio.is_floating_point() else audio).numpy()
    if not isinstance(audio, np.ndarray):
        raise ValueError(
            f"audio is a {type(audio).__name__}: give a numpy array or torch tensor of shape (samples,) or "
            "(channels, samples)."
        )
    return audio


def _check_shape(shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the shape is (samples,) or (channels, samples) with at least one sample."""
    if len(shape) not in (1, 2):
        raise ValueError(f"audio has shape {shape}: expected (samples,) or (channels, samples), one clip at a time.")
    if 0 in shape:
        raise ValueError(f"audio has shape {shape}, no samples at all: give zeros if the clip is silent.")
    if len(shape) == 2 and shape[0] > shape[1]:
        raise ValueError(
            f"audio has shape {shape}, more channels than samples: expected (channels, samples), so transpose it with "
            "audio.T."
        )


def _check_values(array: np.ndarray) -> None:
    """Raise ValueError for a dtype whose full scale is unknown, for NaN and infinity, and for unscaled integers."""
    if array.dtype.kind == "i" and array.dtype.itemsize in (2, 4):
        return
    if array.dtype.kind != "f":
        raise ValueError(
            f"audio has dtype {array.dtype}: expected floats in [-1, 1], int16 or int32. Convert it to one of these."
        )
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
        raise ValueError(
            f"audio has {bad} of {array.size} values that are NaN or infinite: repair the source, or replace them with "
            "numpy.nan_to_num if they are meant to be silent."
        )
    peak = max(float(array.max()), -float(array.min()))
    if peak > MAX_FLOAT_AMPLITUDE:
        raise ValueError(
            f"audio is float and reaches {peak:g}, but full scale is 1.0: int16 samples stored as float must be "
            "divided by 32768, int32 samples by 2147483648."
        )


def check_sampling_rate(sampling_rate: Any) -> int:
    """Check a sampling rate.

    Args:
        sampling_rate: In hertz.

    Returns:
        The same as int.

    Raises:
        ValueError: If it is missing, no whole number, or too low to be one in hertz.
    """
    if sampling_rate is None:
        raise ValueError("sampling_rate is missing: give the rate of the audio in hertz, e.g. sampling_rate=16000.")
    try:
        whole = int(sampling_rate)
    except (TypeError, ValueError, OverflowError):  # no number, NaN, infinity
        whole = 0
    if whole < LOWEST_SAMPLING_RATE or whole != sampling_rate:
        raise ValueError(
            f"sampling_rate is {sampling_rate!r}: expected a whole number of hertz from {LOWEST_SAMPLING_RATE} up, e.g. "
            "16000."
        )
    return whole


def check_timestamps(timestamps: Any, num_frames: int | None) -> np.ndarray:
    """Check the moments of a clip's frames.

    Args:
        timestamps: (frames,), seconds from the start of the sound.
        num_frames: How many there must be; any number if None.

    Returns:
        (frames,), float64.

    Raises:
        ValueError: If they are not finite seconds from 0 up, one per frame.
    """
    times = np.asarray(timestamps, dtype=np.float64)
    if times.ndim != 1 or not times.size or not np.isfinite(times).all() or times.min() < 0:
        raise ValueError(f"timestamps must be finite seconds from 0 up, one per frame; got {timestamps!r}.")
    if num_frames is not None and num_frames != len(times):
        raise ValueError(f"{len(times)} timestamps for {num_frames} frames: give one per frame.")
    return times


@lru_cache(maxsize=4)
def _resampling_kernel(down: int, up: int) -> torch.Tensor:
    """Build the filter that takes `down` samples to `up`: (up, down + 2 * reach), float64, one row per output sample."""
    cutoff = RESAMPLING_ROLLOFF * min(down, up)
    reach = math.ceil(RESAMPLING_ZEROS * down / cutoff)
    taps = torch.arange(-reach, reach + down, dtype=torch.float64) / down
    outputs = torch.arange(up, dtype=torch.float64)[:, None] / up
    crossings = ((taps - outputs) * cutoff).clamp(-RESAMPLING_ZEROS, RESAMPLING_ZEROS)
    beta = torch.tensor(RESAMPLING_BETA, dtype=torch.float64)
    window = torch.i0(beta * torch.sqrt(1 - (crossings / RESAMPLING_ZEROS) ** 2)) / torch.i0(beta)
    return torch.sinc(crossings) * window * (cutoff / down)


def _ratio(sampling_rate: int, target_rate: int) -> Fraction:
    """Return the ratio of two rates, or the nearest of few enough terms."""
    return Fraction(sampling_rate, target_rate).limit_denominator(MAX_RATIO_TERM)


def resampled_rate(sampling_rate: int, target_rate: int = SAMPLING_RATE) -> float:
    """Return how many samples a second of sound becomes.

    Args:
        sampling_rate: Of the sound, in hertz.
        target_rate: Wanted, in hertz.

    Returns:
        The wanted rate, or a little beside it where the ratio of the rates has too many terms, in hertz. Who looks for a
        moment in a long sound counts with this.
    """
    return float(sampling_rate / _ratio(sampling_rate, target_rate))


class Resampler:
    """Resamples a waveform that comes in chunks with the filter of AVSBench's tools, without seams.

    It is `torchaudio.functional.resample` with AVSBench's arguments, equal to 1e-6 (torchaudio rounds beta to float32).
    Written as a product of matrices, because torchaudio's float64 convolution takes longer than all else together.

    Args:
        sampling_rate: Of the waveform, in hertz.
        target_rate: Wanted, in hertz.

    Attributes:
        rate: What a second of the waveform becomes, in hertz: see [`resampled_rate`].
    """

    def __init__(self, sampling_rate: int, target_rate: int = SAMPLING_RATE) -> None:
        self._ratio = _ratio(sampling_rate, target_rate)
        self.rate = resampled_rate(sampling_rate, target_rate)
        repeats = math.ceil(RESAMPLING_ROWS / self._ratio.denominator)
        self._down = repeats * self._ratio.numerator
        self._kernel = _resampling_kernel(self._down, repeats * self._ratio.denominator)
        self._reach = (self._kernel.shape[1] - self._down) // 2
        self._waiting = torch.zeros(self._reach, dtype=torch.float64)
        self._taken = self._given = 0
        self._changes = sampling_rate != target_rate

    def add(self, chunk: torch.Tensor) -> torch.Tensor:
        """Takes the next chunk, (samples,), float64, and returns as much of the result as is certain, (samples,)."""
        if not self._changes:
            return chunk
        self._taken += len(chunk)
        self._waiting = torch.cat([self._waiting, chunk])
        count = max(0, (len(self._waiting) - self._kernel.shape[1]) // self._down + 1)
        if not count:
            return chunk[:0]
        blocks = self._waiting.unfold(0, self._kernel.shape[1], self._down)
        resampled = torch.cat([some @ self._kernel.T for some in blocks.split(BLOCKS_AT_ONCE)]).flatten()
        self._waiting = self._waiting[count * self._down :].clone()
        self._given += len(resampled)
        return resampled

    def finish(self) -> torch.Tensor:
        """Returns what is left: in all there are ceil(samples / ratio of the rates)."""
        silence = torch.zeros(self._reach + self._down, dtype=torch.float64)
        if not self._changes:
            return silence[:0]
        length = math.ceil(self._taken * self._ratio.denominator / self._ratio.numerator)
        missing = length - self._given
        return self.add(silence)[:missing]


def resample(waveform: torch.Tensor, sampling_rate: int, target_rate: int = SAMPLING_RATE) -> torch.Tensor:
    """Resample a waveform with the filter of AVSBench's tools: see [`Resampler`].

    Args:
        waveform: (samples,), float64.
        sampling_rate: Of the waveform, in hertz.
        target_rate: Wanted, in hertz.

    Returns:
        (ceil(samples * target_rate / sampling_rate),), float64.
    """
    if sampling_rate == target_rate:
        return waveform
    resampler = Resampler(sampling_rate, target_rate)
    return torch.cat([resampler.add(waveform), resampler.finish()])


PIECE_SECONDS = 10  # sound that is in memory already is taken in pieces of about this length


class Timed(Protocol):
    """Anything with a moment.

    Attributes:
        timestamp: Seconds from the start of the sound.
    """

    timestamp: float


TimedFrame = TypeVar("TimedFrame", bound=Timed)


class AudioBuffer:
    """One channel of sound at the rate of the features, read as far as it is needed, kept as far as it may be again.

    Args:
        chunks: Samples (channels, samples) or (samples,) in the way of [`to_mono`], which follow each other without holes,
            each with its rate in hertz, which is the same for all.
        target_rate: Rate of the features, in hertz.

    Attributes:
        length: Samples read so far, at the rate of the features.
    """

    def __init__(self, chunks: Iterable[tuple[Any, int]], target_rate: int) -> None:
        self.length = 0
        self._chunks = iter(chunks)
        self._target_rate = target_rate
        self._resampler: Resampler | None = None
        self._kept = torch.zeros(0, dtype=torch.float64)
        self._has_ended = False

    def reaches(self, stop: int) -> bool:
        """Reads on to sample `stop`; tells whether there is sound up to it."""
        while self.length < stop and not self._has_ended:
            self._read()
        return self.length >= stop

    def position(self, seconds: float) -> int:
        """Returns the sample at a moment.

        Raises:
            ValueError: There is no sound at all, and so no rate.
        """
        if self._resampler is None:
            self._read()
        if self._resampler is None:
            raise ValueError("no sound came with the frames: give zeros where it is silent.")
        return round(seconds * self._resampler.rate)

    def seconds(self) -> float:
        """Returns how long the sound is that was read so far."""
        return self.length / self._resampler.rate if self._resampler else 0.0

    def cut(self, start: int, stop: int) -> torch.Tensor:
        """Returns the samples from `start` to `stop`, (stop - start,); what was not read is silence.

        Raises:
            IndexError: `start` is before what was forgotten.
        """
        first = self.length - len(self._kept)
        if start < first:
            raise IndexError(f"sample {start} was forgotten, samples from {first} on are kept.")
        samples = self._kept[start - first : stop - first]
        return torch.cat([samples, samples.new_zeros(stop - start - len(samples))])

    def forget(self, start: int) -> None:
        """Gives up what is before sample `start`."""
        surplus = start - (self.length - len(self._kept))
        if surplus > 0:
            self._kept = self._kept[surplus:].clone()

    def fill(self, seconds: float) -> None:
        """Fills up with silence to a moment, once the sound has ended."""
        missing = self.position(seconds) - self.length
        if self._has_ended and missing > 0:
            self._keep(self._kept.new_zeros(missing))

    def _read(self) -> None:
        """Reads the next chunk, at the end what the resampler held back."""
        chunk, rate = next(self._chunks, (None, None))
        if chunk is not None:
            self._resampler = self._resampler or Resampler(check_sampling_rate(rate), self._target_rate)
            new = self._resampler.add(to_mono(chunk))
        else:
            self._has_ended = True
            new = self._resampler.finish() if self._resampler else self._kept[:0]
        self._keep(new)

    def _keep(self, samples: torch.Tensor) -> None:
        """Takes samples for later."""
        self._kept = torch.cat([self._kept, samples])
        self.length += len(samples)


def in_pieces(waveform: Any, sampling_rate: int) -> Iterator[tuple[Any, int]]:
    """Yields a waveform (samples,) or (channels, samples) piece by piece, each with the rate."""
    number = max(1, waveform.shape[-1] // (PIECE_SECONDS * sampling_rate))
    edges = np.linspace(0, waveform.shape[-1], number + 1).astype(int).tolist()
    for start, stop in zip(edges, edges[1:], strict=False):
        yield waveform[..., start:stop], sampling_rate


def audio_patches(
    frames: Iterable[TimedFrame], sound: AudioBuffer, extractor: Any, audio_alignment: str
) -> Iterator[tuple[TimedFrame, torch.Tensor]]:
    """Adds to each frame what is heard with it, the same as a [`PCMANetFeatureExtractor`] hears in the whole sound.

    Args:
        frames: In order of time.
        sound: Read as far as the frames need it.
        extractor: A `PCMANetFeatureExtractor`.
        audio_alignment: `"consecutive"`, `"center"` or `"end"`.

    Returns:
        An iterator over the frames, each with its log-mel patch (1, patch_frames, num_mel_bins), float32.
    """
    if audio_alignment == "consecutive":
        return _hear_side_by_side(frames, sound, extractor)
    return _hear_at_moments(frames, sound, extractor, extractor.samples_before(audio_alignment))


def _features(sound: AudioBuffer, extractor: Any, start: int) -> torch.Tensor:
    """Compute the patch that starts at a sample."""
    return extractor.log_mel_patches(sound.cut(start, start + extractor.patch_length)[None])[0]


def _hear_side_by_side(
    frames: Iterable[TimedFrame], sound: AudioBuffer, extractor: Any
) -> Iterator[tuple[TimedFrame, torch.Tensor]]:
    """Cut patches one after another, whatever the moments of the frames; past the last whole one, the rule for it."""
    patch, start, waiting = None, 0, deque()
    for frame in chain(frames, [None]):
        if frame is not None:
            waiting.append(frame)
        while waiting:
            if sound.reaches(start + extractor.patch_length) or patch is None:
                sound.forget(start)
                patch = _features(sound, extractor, start)
            elif frame is not None:
                break  # where the sound is much shorter than the frames, it is going to be filled up
            elif extractor.short_clip == "zeros":
                patch = torch.zeros_like(patch)
            yield waiting.popleft(), patch
            start += extractor.patch_stride


def _hear_at_moments(
    frames: Iterable[TimedFrame], sound: AudioBuffer, extractor: Any, before: int
) -> Iterator[tuple[TimedFrame, torch.Tensor]]:
    """Cut a patch around each frame, so many samples before it.

    At the end of the sound a patch depends on the frames that follow: the sound counts as silent up to the last one, and
    patches are moved to lie inside it. So frames wait there until that is known.
    """
    length, waiting, last = extractor.patch_length, deque(), 0
    for frame in chain(frames, [None]):
        if frame is not None:
            last = sound.position(frame.timestamp)
            waiting.append((frame, max(0, last - before)))
        while waiting:
            start = waiting[0][1]
            if not sound.reaches(start + length):
                if frame is not None and last < start + length:
                    break
                start = min(start, max(sound.length, last, length) - length)
            sound.forget(start)
            yield waiting.popleft()[0], _features(sound, extractor, start)
