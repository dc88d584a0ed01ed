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

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from .waveform_pcmanet import Resampler, check_sampling_rate, to_mono


PIECE_SECONDS = 10  # sound that is in memory already is taken in pieces of about this length


class Timed(Protocol):
    """Anything with a moment.

    Attributes:
        timestamp: Seconds from the start of the sound.
    """

    timestamp: float


TimedFrame = TypeVar("TimedFrame", bound=Timed)


class SoundStream:
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


def hear(
    frames: Iterable[TimedFrame], sound: SoundStream, extractor: Any, patching: str
) -> Iterator[tuple[TimedFrame, torch.Tensor]]:
    """Adds to each frame what is heard with it, the same as a [`PCMANetFeatureExtractor`] hears in the whole sound.

    Args:
        frames: In order of time.
        sound: Read as far as the frames need it.
        extractor: A `PCMANetFeatureExtractor`.
        patching: `"consecutive"`, `"aligned"` or `"trailing"`.

    Returns:
        An iterator over the frames, each with its log-mel patch (1, patch_frames, num_mel_bins), float32.
    """
    if patching == "consecutive":
        return _hear_side_by_side(frames, sound, extractor)
    return _hear_at_moments(frames, sound, extractor, extractor.samples_before(patching))


def _features(sound: SoundStream, extractor: Any, start: int) -> torch.Tensor:
    """Compute the patch that starts at a sample."""
    return extractor.log_mel_patches(sound.cut(start, start + extractor.patch_length)[None])[0]


def _hear_side_by_side(
    frames: Iterable[TimedFrame], sound: SoundStream, extractor: Any
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
    frames: Iterable[TimedFrame], sound: SoundStream, extractor: Any, before: int
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
