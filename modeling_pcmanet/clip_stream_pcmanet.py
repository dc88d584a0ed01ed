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
"""One clip as the user gives it -> its frames and its sound as streams, checked that they belong together."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from numbers import Real
from typing import Any

import numpy as np

from .clip_pcmanet import LENGTH_TOLERANCE, is_media, read_clip, stack_frames
from .feature_extraction_pcmanet import check_patching
from .media_clock_pcmanet import FrameSampler
from .media_pcmanet import SOUND_MARGIN_SECONDS
from .media_stream_pcmanet import (
    EVERY_FRAME,
    StreamedFrame,
    VideoReader,
    iterate_sound,
    join_moments,
    stream_array,
    two_doors,
)
from .sound_stream_pcmanet import SoundStream, in_pieces
from .waveform_pcmanet import check_sampling_rate, check_timestamps


CAMERA_RATE = (
    1.0  # frames per second: a live picture that stands still for longer is stamped with the moment it is taken
)


def check_settings(
    frames_per_second: float | str = 1.0, masks_per_second: float | str | None = None, patching: str | None = None
) -> tuple[float | str, float | str | None]:
    """Check what can be checked of the way in which a clip is streamed before it is opened.

    Args:
        frames_per_second: In hertz, or `"video"`.
        masks_per_second: In hertz, or `"video"`; or None.
        patching: How the sound is cut, or None.

    Returns:
        The two rates, numbers as float.

    Raises:
        ValueError: If a rate is none, or there is no such patching.
    """
    if patching is not None:
        check_patching(patching)
    if masks_per_second is not None:
        masks_per_second = check_rate("masks_per_second", masks_per_second, EVERY_FRAME)
    return check_rate("frames_per_second", frames_per_second, EVERY_FRAME), masks_per_second


def check_rate(name: str, rate: Any, word: str | None = None) -> float | str:
    """Return a rate in hertz as float, or the word that may stand in its place; raise ValueError for anything else."""
    if isinstance(rate, str) and rate == word:
        return rate
    if not isinstance(rate, Real) or isinstance(rate, bool) or not 0 < rate < math.inf:
        other = "" if word is None else f', or "{word}" for every frame'
        raise ValueError(f"{name} is {rate!r}: expected a number above 0{other}.")
    return float(rate)


@contextmanager
def open_clip(
    video: Any,
    audio: Any = None,
    *,
    sampling_rate: int | None = None,
    timestamps: Any = None,
    frames_per_second: float | str = 1.0,
    masks_per_second: float | str | None = None,
    target_rate: int,
) -> Iterator[tuple[Iterator[StreamedFrame], SoundStream]]:
    """Open one clip, given in any of the ways of [`read_clip`], as streams.

    Args:
        video: Path, http(s) URL, bytes or binary file object of a video; or frames.
        audio: The sound, if it is not the video's own: array, tensor or file.
        sampling_rate: Of an array in `audio`, in hertz.
        timestamps: (frames,), seconds from the start of the sound in order of time, for frames.
        frames_per_second: At which a video is sampled, `"video"` for every frame; or at which frames were sampled.
        masks_per_second: How many moments of masks the frames bring along: see [`StreamedFrame`].
        target_rate: Rate of the sound, in hertz.

    Yields:
        The frames in order of time, and the sound. Reading either may raise what [`read_clip`] raises.
    """
    rates = {"frames_per_second": frames_per_second, "masks_per_second": masks_per_second}
    with ExitStack() as stack:
        if not is_media(video):
            yield _open_array(video, audio, sampling_rate, timestamps, target_rate, **rates)
            return
        if timestamps is not None:
            raise ValueError("timestamps are for clips given as frames, a video brings its own: leave them out.")
        picture_door, sound_door = stack.enter_context(two_doors(video))
        reader = VideoReader(picture_door, **rates)
        frames = stack.enter_context(closing(iter(reader)))
        if audio is None:
            chunks = iterate_sound(sound_door, reader)
        elif is_media(audio):
            chunks = iterate_sound(audio)
        else:
            chunks = in_pieces(audio, check_sampling_rate(sampling_rate))
        sound = SoundStream(stack.enter_context(closing(chunks)), target_rate)
        if audio is None:
            yield _with_silent_end(frames, sound, reader), sound
        else:
            yield _with_checked_sound(frames, sound, frames_per_second), sound


def _open_array(
    video: Any,
    audio: Any,
    sampling_rate: int | None,
    timestamps: Any,
    target_rate: int,
    frames_per_second: float | str,
    masks_per_second: float | str | None,
) -> tuple[Iterator[StreamedFrame], SoundStream]:
    """Open frames that are in memory."""
    if frames_per_second == EVERY_FRAME:
        raise ValueError(
            f'frames_per_second="{EVERY_FRAME}" is for video files. Frames are all taken anyhow: say at how many per second '
            "they were sampled."
        )
    clip = read_clip(video, audio, sampling_rate, timestamps, frames_per_second)
    if (np.diff(clip.timestamps) < 0).any():
        raise ValueError("timestamps go back in time: give the frames in order of time.")
    seconds = max(len(clip.frames) / frames_per_second, float(clip.timestamps[-1]))
    frames = stream_array(clip.frames, clip.timestamps, seconds, masks_per_second)
    return frames, SoundStream(in_pieces(clip.waveform, clip.sampling_rate), target_rate)


def _with_silent_end(
    frames: Iterable[StreamedFrame], sound: SoundStream, reader: VideoReader
) -> Iterator[StreamedFrame]:
    """Pass frames on; where the sound ends long before them, it is silent up to the end of the video."""

    def fill(seconds: float) -> None:
        if not sound.reaches(sound.position(seconds - SOUND_MARGIN_SECONDS)):
            sound.fill(seconds)

    for frame in frames:
        fill(frame.timestamp)
        yield frame
    fill(reader.end)


def _with_checked_sound(
    frames: Iterable[StreamedFrame], sound: SoundStream, frames_per_second: float | str
) -> Iterator[StreamedFrame]:
    """Pass frames on, and raise ValueError as soon as the sound given beside them turns out too short, or too long."""
    count, previous, last = 0, 0.0, 0.0
    for frame in frames:
        count, previous, last = count + 1, last, frame.timestamp
        period = last - previous if frames_per_second == EVERY_FRAME else 1 / frames_per_second
        if not sound.reaches(sound.position(last - 2 * period - LENGTH_TOLERANCE)):
            break
        yield frame

    # Only so much is read as tells that there is too much.
    duration = last + period if frames_per_second == EVERY_FRAME else count * period
    tolerance = period + LENGTH_TOLERANCE
    sound.reaches(sound.position(duration + tolerance) + 1)
    if abs(sound.seconds() - duration) > tolerance:
        raise ValueError(
            f"{count} frames last {duration:.3f} s or longer, but the sound lasts {sound.seconds():.3f} s or longer. Cut the "
            "longer one, or correct sampling_rate."
        )


class LiveClip:
    """Frames and sound that come together in chunks, as from a camera and a microphone.

    Args:
        chunks: Triples of frames (uint8 array (frames, height, width, 3) or a list of PIL images; may be empty or None),
            their timestamps (frames,) in seconds from the start of the sound, and the next piece of sound, (samples,) or
            (channels, samples), or None.
        sampling_rate: Of the sound, in hertz.
        frames_per_second: Frames per second for the network.
        target_rate: Rate of the sound for the network, in hertz.

    Attributes:
        frames: Iterator over the frames for the network.
        sound: The sound.
    """

    def __init__(
        self, chunks: Iterable[tuple[Any, Any, Any]], sampling_rate: int, frames_per_second: float, target_rate: int
    ) -> None:
        self._chunks = iter(chunks)
        self._sampling_rate = check_sampling_rate(sampling_rate)
        self._pictures: deque[tuple[float, np.ndarray]] = deque()
        self._pieces: deque[Any] = deque()
        self._sampler = FrameSampler(frames_per_second, CAMERA_RATE)
        self.frames = join_moments(self._chosen(), holds=False)
        self.sound = SoundStream(self._heard(), target_rate)

    def _read(self) -> bool:
        """Reads the next chunk; tells whether there was one."""
        for chunk in self._chunks:
            if not isinstance(chunk, list | tuple) or len(chunk) != 3:
                got = f"{len(chunk)} things" if isinstance(chunk, list | tuple) else f"a {type(chunk).__name__}"
                raise ValueError(
                    f"a chunk is frames, their timestamps and sound (None where there is none), got {got}."
                )
            frames, timestamps, samples = chunk
            if frames is not None and len(frames):
                pictures = stack_frames(frames)
                self._pictures += zip(check_timestamps(timestamps, len(pictures)).tolist(), pictures, strict=True)
            if samples is not None and 0 not in np.shape(samples):
                self._pieces.append(samples)
            return True
        return False

    def _chosen(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yields the frames on screen at the moments of the network, as soon as the next one has come."""
        last = None
        while self._pictures or self._read():
            while self._pictures:
                last, picture = self._pictures.popleft()
                yield from self._sampler.add(picture, last)
        if last is not None:
            yield from self._sampler.finish(last)

    def _heard(self) -> Iterator[tuple[Any, int]]:
        """Yields the sound."""
        while self._pieces or self._read():
            while self._pieces:
                yield self._pieces.popleft(), self._sampling_rate
