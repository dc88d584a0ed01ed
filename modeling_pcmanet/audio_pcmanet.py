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
"""Prepare audio: check it, reduce it to one channel, resample it, and buffer audio that arrives in chunks."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from typing import Any, cast

import numpy as np
import torch
from torch.nn.functional import pad
from torchaudio.transforms import Resample


SAMPLING_RATE = 16_000  # hertz, of the published log-mel features
LOWEST_SAMPLING_RATE = 1_000  # hertz; a lower value is probably in kilohertz
MAX_FLOAT_AMPLITUDE = 100.0  # above it, floating-point audio holds integers that were not divided by their full scale

# The "kaiser_best" filter of resampy, which AVSBench was made with, as parameters of torchaudio's
# "sinc_interp_kaiser". On white noise, the log-mel is within 0.022 of the original; with torchaudio's defaults it is
# off by up to 0.5.
RESAMPLING_ZEROS = 50  # zero crossings of the sinc on either side
RESAMPLING_ROLLOFF = 0.917347  # cut-off as a fraction of the lower Nyquist frequency
RESAMPLING_BETA = 12.9846  # shape of the Kaiser window
# The number of rows of a kernel is a term of the reduced ratio of the rates. Common rates need at most 640 (11,025
# Hz). 44,101 Hz would need 16,000 and gigabytes of memory, so ratios beyond the limit are replaced by the nearest one
# within it (time shifts by 0.5 ms/s at most).
MAX_RATIO_TERM = 1000
RESAMPLING_ROWS = 32  # minimum: 48 kHz needs 1 row, but a product of two matrices is far faster
BLOCKS_AT_ONCE = 4096  # bounds the memory that an hour of audio needs

# How patches are aligned with the frames of a video: one after another regardless of the frames, each centered on its
# frame, or each ending at its frame.
AUDIO_ALIGNMENTS = ("consecutive", "center", "end")
SHORTEST_WINDOW = 0.25  # seconds; shorter content at the start of the audio would become a hum when repeated


def check_audio_alignment(audio_alignment: Any) -> None:
    """Raise ValueError for an unknown audio alignment."""
    if audio_alignment not in AUDIO_ALIGNMENTS:
        raise ValueError(f"Expected audio_alignment as one of {AUDIO_ALIGNMENTS}, got {audio_alignment!r}.")


def to_mono(audio: Any, is_chunk: bool = False) -> torch.Tensor:
    """Check the audio of one clip and reduce it to one channel.

    Args:
        audio: numpy array or torch tensor, (samples,) or (channels, samples); float in [-1, 1], or int16 or int32,
            which are divided by their full scale.
        is_chunk: Whether this is only a part of the audio; a part may have fewer samples than channels.

    Returns:
        (samples,), float64, the mean of the channels.

    Raises:
        ValueError: For an unsupported type, shape or dtype, audio without samples, values that are not finite, and
            float values that can only be unscaled integers.
    """
    array = _as_array(audio)
    if not is_chunk:
        _check_shape(array.shape)
    _check_values(array)
    full_scale = 1.0 if array.dtype.kind == "f" else 2.0 ** (8 * array.dtype.itemsize - 1)
    mono = array.reshape(-1, array.shape[-1]).mean(axis=0, dtype=np.float64)
    return torch.from_numpy(mono / full_scale)


def _as_array(audio: Any) -> np.ndarray:
    """Convert an array or tensor to numpy, or raise ValueError for anything else."""
    if isinstance(audio, torch.Tensor):
        audio = audio.detach().cpu()
        # numpy has no bfloat16
        return (audio.double() if audio.is_floating_point() else audio).numpy()
    if not isinstance(audio, np.ndarray):
        raise ValueError(
            "Expected audio as a numpy array or torch tensor of shape (samples,) or (channels, samples), got "
            f"{type(audio).__name__}."
        )
    return audio


def _check_shape(shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the shape is (samples,) or (channels, samples) with at least one sample."""
    if len(shape) not in (1, 2):
        raise ValueError(
            f"Expected audio of shape (samples,) or (channels, samples), one clip at a time, got {shape}."
        )
    if 0 in shape:
        raise ValueError(f"Expected audio with at least one sample, got shape {shape}. Pass zeros for a silent clip.")
    if len(shape) == 2 and shape[0] > shape[1]:
        raise ValueError(
            f"Expected audio of shape (channels, samples), got {shape}, more channels than samples. Transpose it with "
            "audio.T."
        )


def _check_values(array: np.ndarray) -> None:
    """Raise ValueError for a dtype whose full scale is unknown, for NaN and infinity, and for unscaled integers."""
    if array.dtype.kind == "i" and array.dtype.itemsize in (2, 4):
        return
    if array.dtype.kind != "f":
        raise ValueError(f"Expected audio as floats in [-1, 1], int16 or int32, got {array.dtype}. Convert it.")
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
        raise ValueError(
            f"Audio has {bad} of {array.size} values that are NaN or infinite. Repair the source, or replace them with "
            "numpy.nan_to_num if they represent silence."
        )
    peak = max(float(array.max()), -float(array.min()))
    if peak > MAX_FLOAT_AMPLITUDE:
        raise ValueError(
            f"Expected floating-point audio with full scale 1.0, got values up to {peak:g}. Divide int16 samples that "
            "are stored as float by 32768, int32 samples by 2147483648."
        )


def check_sampling_rate(sampling_rate: Any) -> int:
    """Check a sampling rate.

    Args:
        sampling_rate: In hertz.

    Returns:
        The rate as int.

    Raises:
        ValueError: If it is missing, not an integer, or too low for a value in hertz.
    """
    if sampling_rate is None:
        raise ValueError(
            "The sampling_rate is missing. Pass the rate of the audio in hertz, e.g. sampling_rate=16000."
        )
    try:
        integer = int(sampling_rate)
    except (TypeError, ValueError, OverflowError):  # not a number, NaN, infinity
        integer = 0
    if integer < LOWEST_SAMPLING_RATE or integer != sampling_rate:
        raise ValueError(
            f"Expected sampling_rate as an integer of at least {LOWEST_SAMPLING_RATE} hertz, e.g. 16000, got "
            f"{sampling_rate!r}."
        )
    return integer


def check_timestamps(timestamps: Any, num_frames: int | None) -> np.ndarray:
    """Check the timestamps of a clip's frames.

    Args:
        timestamps: (frames,), seconds from the start of the audio.
        num_frames: The number of frames; any number if None.

    Returns:
        (frames,), float64.

    Raises:
        ValueError: If they are not finite seconds of at least 0, one per frame.
    """
    times = np.asarray(timestamps, dtype=np.float64)
    if times.ndim != 1 or not times.size or not np.isfinite(times).all() or times.min() < 0:
        raise ValueError(f"Expected timestamps as finite seconds of at least 0, one per frame, got {timestamps!r}.")
    if num_frames is not None and num_frames != len(times):
        raise ValueError(f"Got {len(times)} timestamps for {num_frames} frames. Pass one per frame.")
    return times


def _ratio(sampling_rate: int, target_rate: int) -> Fraction:
    """Return the ratio of two rates, or the nearest one with terms up to the limit."""
    return Fraction(sampling_rate, target_rate).limit_denominator(MAX_RATIO_TERM)


def resampled_rate(sampling_rate: int, target_rate: int = SAMPLING_RATE) -> float:
    """Return how many samples one second of audio has after resampling.

    Args:
        sampling_rate: Rate of the audio, in hertz.
        target_rate: Requested rate, in hertz.

    Returns:
        The requested rate, or a rate close to it if the terms of the ratio of the rates are too large, in hertz. Use
        it to convert a timestamp in long audio to a sample.
    """
    return float(sampling_rate / _ratio(sampling_rate, target_rate))


@lru_cache(maxsize=4)
def _resampling_kernel(down: int, up: int, repeats: int) -> torch.Tensor:
    """Return torchaudio's filter from `down` to `up` samples, repeated for blocks of `repeats` times as many.

    Returns:
        (repeats * up, repeats * down + 2 * reach), float64, one row per output sample.
    """
    with torch.device("cpu"):  # not the default device, on which torchaudio would create some of its tensors
        torchaudio_resample = Resample(
            down, up, "sinc_interp_kaiser", RESAMPLING_ZEROS, RESAMPLING_ROLLOFF, RESAMPLING_BETA, dtype=torch.float64
        )
    kernel = cast(torch.Tensor, torchaudio_resample.kernel)[:, 0]
    return torch.cat([pad(kernel, (each * down, (repeats - 1 - each) * down)) for each in range(repeats)])


class Resampler:
    """Resample a waveform that arrives in chunks, without seams, with the filter of AVSBench's tools.

    The filter is torchaudio's with AVSBench's arguments. It is applied as a matrix product, because torchaudio itself
    needs the complete waveform, and its float64 convolution takes longer than all other steps combined.

    Args:
        sampling_rate: Rate of the waveform, in hertz.
        target_rate: Requested rate, in hertz.

    Attributes:
        rate: Samples per second of the result, in hertz: see [`resampled_rate`].
    """

    def __init__(self, sampling_rate: int, target_rate: int = SAMPLING_RATE) -> None:
        self._ratio = _ratio(sampling_rate, target_rate)
        self.rate = resampled_rate(sampling_rate, target_rate)
        self._changes = self._ratio != 1
        if not self._changes:
            return
        repeats = math.ceil(RESAMPLING_ROWS / self._ratio.denominator)
        self._down = repeats * self._ratio.numerator
        self._kernel = _resampling_kernel(self._ratio.numerator, self._ratio.denominator, repeats)
        self._reach = (self._kernel.shape[1] - self._down) // 2
        self._pending = torch.zeros(self._reach, dtype=torch.float64, device="cpu")
        self._received = self._returned = 0

    def add(self, chunk: torch.Tensor) -> torch.Tensor:
        """Return as much of the result, (samples,), as is final after the next chunk, (samples,), float64."""
        if not self._changes:
            return chunk
        self._received += len(chunk)
        self._pending = torch.cat([self._pending, chunk])
        count = max(0, (len(self._pending) - self._kernel.shape[1]) // self._down + 1)
        if not count:
            return chunk[:0]
        blocks = self._pending.unfold(0, self._kernel.shape[1], self._down)
        resampled = torch.cat([some @ self._kernel.T for some in blocks.split(BLOCKS_AT_ONCE)]).flatten()
        self._pending = self._pending[count * self._down :].clone()
        self._returned += len(resampled)
        return resampled

    def finish(self) -> torch.Tensor:
        """Return the rest of the result, (samples,). The total is ceil(samples / ratio of the rates)."""
        if not self._changes:
            return torch.zeros(0, dtype=torch.float64, device="cpu")
        silence = torch.zeros(self._reach + self._down, dtype=torch.float64, device="cpu")
        length = math.ceil(self._received * self._ratio.denominator / self._ratio.numerator)
        missing = length - self._returned
        return self.add(silence)[:missing]


def resample(waveform: torch.Tensor, sampling_rate: int, target_rate: int = SAMPLING_RATE) -> torch.Tensor:
    """Resample a waveform with the filter of AVSBench's tools: see [`Resampler`].

    Args:
        waveform: (samples,), float64.
        sampling_rate: Rate of the waveform, in hertz.
        target_rate: Requested rate, in hertz.

    Returns:
        (ceil(samples * target_rate / sampling_rate),), float64.
    """
    if sampling_rate == target_rate:
        return waveform
    resampler = Resampler(sampling_rate, target_rate)
    return torch.cat([resampler.add(waveform), resampler.finish()])


class AudioBuffer:
    """One channel of audio at the rate of the features, read as far as needed and kept as long as needed.

    Args:
        chunks: Samples (channels, samples) or (samples,) as in [`to_mono`], each with its rate in hertz, which is the
            same for all. The chunks follow each other without gaps. `None` in place of samples means that more frames
            must be read before it is known how the audio continues.
        target_rate: Rate of the features, in hertz.

    Attributes:
        length: Samples read so far, at the rate of the features.
        is_waiting: Whether the last [`reaches`] stopped because more frames must be read first.
    """

    def __init__(self, chunks: Iterable[tuple[Any, int]], target_rate: int) -> None:
        self.length = 0
        self.is_waiting = False
        self._chunks = iter(chunks)
        self._target_rate = target_rate
        self._resampler: Resampler | None = None
        self._kept = torch.zeros(0, dtype=torch.float64, device="cpu")
        self._has_ended = False

    def reaches(self, stop: int) -> bool:
        """Read up to sample `stop`; return whether there is audio up to it."""
        self.is_waiting = False
        while self.length < stop and not self._has_ended and not self.is_waiting:
            self._read()
        return self.length >= stop

    def position(self, seconds: float) -> int:
        """Return the index of the sample at a time.

        Raises:
            ValueError: If there is no audio, so that the rate is unknown.
        """
        if self._resampler is None:
            self._read()
        if self._resampler is None:
            raise ValueError("Got frames without audio. Pass zeros where it is silent.")
        return round(seconds * self._resampler.rate)

    def seconds(self) -> float:
        """Return the duration of the audio read so far."""
        return self.length / self._resampler.rate if self._resampler else 0.0

    def cut(self, start: int, stop: int) -> torch.Tensor:
        """Return the samples from `start` to `stop`, (stop - start,); samples that were not read are silent.

        Raises:
            IndexError: If `start` is before the first sample that is kept.
        """
        first = self.length - len(self._kept)
        if start < first:
            raise IndexError(f"Sample {start} was dropped. Samples from {first} on are kept.")
        samples = self._kept[start - first : stop - first]
        missing = stop - start - len(samples)
        return torch.cat([samples, samples.new_zeros(missing)]) if missing else samples

    def drop(self, start: int) -> None:
        """Drop the samples before `start`."""
        surplus = start - (self.length - len(self._kept))
        if surplus > 0:
            self._kept = self._kept[surplus:].clone()

    def _read(self) -> None:
        """Read the next chunk, or, at the end, what remains in the resampler."""
        chunk = next(self._chunks, None)
        if chunk is None:
            self._has_ended = True
            if self._resampler is not None:
                self._keep(self._resampler.finish())
            return
        samples, rate = chunk
        self._resampler = self._resampler or Resampler(rate, self._target_rate)
        self.is_waiting = samples is None
        if samples is not None:
            self._keep(self._resampler.add(to_mono(samples, is_chunk=True)))

    def _keep(self, samples: torch.Tensor) -> None:
        """Append samples."""
        self._kept = torch.cat([self._kept, samples])
        self.length += len(samples)


def cut_windows(
    frames: Iterable[tuple[Any, ...]], audio: AudioBuffer, windows: Sequence[tuple[float, float]]
) -> Iterator[tuple[tuple[Any, ...], list[np.ndarray]]]:
    """Cut windows of audio around each frame of a stream.

    Only the part of a window within the audio is used, repeated up to the length of the longest window. No frame waits
    for audio after its windows, and all windows have the same length. From its end to the frame, the audio counts as
    silent. At the start of the audio, a window contains at least 0.25 s, or all of a shorter window.

    Args:
        frames: Tuples that begin with a timestamp in seconds from the start of the audio, in chronological order.
        audio: Read as far as the frames need it.
        windows: For each window the seconds before and after the frame.

    Yields:
        Each frame with its windows, float32 (samples,) in [-1, 1], at the rate of the buffer.
    """
    waiting: deque[tuple[Any, ...]] = deque()
    for frame in chain(frames, [None]):
        if frame is not None:
            waiting.append(frame)
        while waiting:
            bounds = [_window_bounds(audio, waiting[0][0], window) for window in windows]
            if not audio.reaches(max(stop for _, stop in bounds)) and audio.is_waiting and frame is not None:
                break
            timestamp = waiting[0][0]
            audio.drop(min(start for start, _ in bounds))
            heard = max(audio.length, audio.position(timestamp))
            longest = max(audio.position(before + after) for before, after in windows)
            yield waiting.popleft(), [_repeat(audio.cut(start, min(stop, heard)), longest) for start, stop in bounds]


def _window_bounds(audio: AudioBuffer, timestamp: float, window: tuple[float, float]) -> tuple[int, int]:
    """Return the first sample of a window and the one after its last, counted from the start of the audio."""
    before, after = window
    start = max(0, audio.position(timestamp - before)) if timestamp > before else 0
    shortest = audio.position(min(SHORTEST_WINDOW, before + after))
    return start, max(audio.position(timestamp + after), start + shortest)


def _repeat(samples: torch.Tensor, length: int) -> np.ndarray:
    """Repeat samples (some,) up to a length: float32 (length,); no samples give silence."""
    content = samples.to(torch.float32).numpy()
    return np.resize(content, length) if len(content) else np.zeros(length, np.float32)
