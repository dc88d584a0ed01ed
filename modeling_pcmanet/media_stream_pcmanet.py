"""A video and its sound, read side by side in memory that does not grow with their length.

The frames that a network looks at and the sound come by the clock of `media_clock_pcmanet.py`, as from [`read_media`].
Pictures and sound are read through two doors into the same file, so that neither waits for the other, however the file
interleaves them.
"""

import heapq
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

import av
import numpy as np

from .media_clock_pcmanet import (
    SAMPLING_OFFSET,
    FrameSampler,
    FrameSkipper,
    SoundConverter,
    SoundLine,
    VideoClock,
    number_of_moments,
)
from .media_pcmanet import note_missing_end
from .media_picture_pcmanet import PictureMaker
from .media_source_pcmanet import (
    SOUND_REMEDY,
    MediaError,
    MediaSource,
    audio_stream,
    copy_pipe,
    decode,
    finite_waveform,
    no_frames,
    open_media,
    source_name,
    video_stream,
)


EVERY_FRAME = "video"  # in place of a rate: every frame of the video, at its own time

# One event of a stream: a frame with its time, or, without a picture, a time at which a mask is wanted.
Event = tuple[float, np.ndarray | None]


@dataclass(frozen=True, eq=False)
class StreamedFrame:
    """One frame for the network.

    Attributes:
        timestamp: Seconds since the video's first frame.
        picture: (height, width, 3), uint8, RGB, upright.
        mask_timestamps: The moments at which masks are wanted since the frame before, seconds; for the last frame also
            those after it.
    """

    timestamp: float
    picture: np.ndarray
    mask_timestamps: tuple[float, ...]


class VideoReader:
    """Iterates, once, over the frames of a video that a network looks at.

    Args:
        source: The video.
        frames_per_second: Frames per second for the network, or `"video"`: every one.
        masks_per_second: Masks per second, or `"video"`; None is one per frame of the network.

    Attributes:
        origin: Time of the first frame in the container, seconds; known when that was read.
        end: When the last frame read leaves the screen, seconds since the first frame.
    """

    def __init__(
        self,
        source: MediaSource,
        frames_per_second: float | str = 1.0,
        masks_per_second: float | str | None = None,
    ) -> None:
        self.origin = self.end = 0.0
        self._source = source
        self._holds = masks_per_second is not None
        self._rates = [frames_per_second, masks_per_second] if self._holds else [frames_per_second]

    def __iter__(self) -> Iterator[StreamedFrame]:
        """Yields the frames in order of time.

        Raises:
            FileNotFoundError: There is no such file.
            MediaError: The source is no video, or holds no frame.
        """
        return join_moments(self._events(), self._holds)

    def _events(self) -> Iterator[Event]:
        """Yields frames for the network, and before each the moments of masks up to it."""
        with open_media(self._source) as (container, notes):
            video = video_stream(container, notes)
            clock, maker = VideoClock(video), PictureMaker(video, notes)
            samplers = [_EveryFrame() if rate == EVERY_FRAME else FrameSampler.of(video, rate) for rate in self._rates]
            seconds = None
            for frame in decode(container, (video,), notes, FrameSkipper(clock, samplers).skips):
                seconds = clock.read(frame)
                self.origin, self.end = clock.origin, clock.end
                maker.measure(frame)
                yield from _chosen(maker, *(sampler.add(frame, seconds) for sampler in samplers))
            if seconds is None:
                raise no_frames(notes.name)
            yield from _chosen(maker, *(sampler.finish(clock.end) for sampler in samplers))
            note_missing_end(video, clock.end, notes)
            notes.finish()


def _chosen(
    maker: PictureMaker,
    frames: list[tuple[float, av.VideoFrame]],
    masks: Sequence[tuple[float, av.VideoFrame]] = (),
) -> Iterator[Event]:
    """Yields the moments and the pictures that samplers chose."""
    yield from ((moment, None) for moment, _ in masks)
    for timestamp, frame in frames:
        yield timestamp, maker.make(frame)


class _EveryFrame:
    """Chooses every frame at its own time; used like a [`FrameSampler`]."""

    def add(self, frame: av.VideoFrame, seconds: float) -> list[tuple[float, av.VideoFrame]]:
        """Returns timestamp and frame as they came."""
        return [(seconds, frame)]

    def looks_between(self, _start: float, _end: float) -> bool:
        """Tells that every frame is chosen."""
        return True

    def finish(self, _end: float) -> list[tuple[float, av.VideoFrame]]:
        """Returns nothing: no frame was held back."""
        return []


def iterate_sound(source: MediaSource, video: VideoReader | None = None) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the sound of a file in chunks that follow each other without holes.

    Args:
        source: The file.
        video: The video that the sound belongs to, of which the first frame was read: sample 0 is at its origin. By
            default the sound's own start.

    Yields:
        Samples (channels, samples), float32 with full scale [-1, 1], and their rate in hertz.

    Raises:
        FileNotFoundError: There is no such file.
        MediaError: There is no sound, or samples are NaN or infinite.
    """
    converter, line = SoundConverter(), None
    with open_media(source) as (container, notes):
        for frame in decode(container, (audio_stream(container, notes),), notes):
            for stamp, samples in converter.convert(frame):
                if line is None:
                    origin = converter.first_second if video is None else video.origin
                    line = SoundLine(origin, converter.sampling_rate)
                place = f"{notes}, from sample {line.position} of its sound on"
                for piece in line.lay(samples, line.hole_before(stamp)):
                    yield finite_waveform(piece, place), converter.sampling_rate
        if line is None or line.position == 0:
            raise MediaError(f"{notes}: its sound track holds no sound. {SOUND_REMEDY}")
        notes.finish()


def join_moments(events: Iterable[Event], holds: bool) -> Iterator[StreamedFrame]:
    """Yields the frames of a stream, each with the moments of masks that came since the one before.

    Args:
        events: Frames, and moments of masks, in order of time.
        holds: Whether there are moments to come: the last frame then waits for those after it. Otherwise every frame is
            the moment of its mask.
    """
    held, waiting = None, []
    for timestamp, picture in events:
        if picture is None:
            waiting.append(timestamp)
        elif not holds:
            yield StreamedFrame(timestamp, picture, (timestamp,))
        else:
            if held is not None:
                yield held
            past = tuple(moment for moment in waiting if moment <= timestamp)
            held, waiting = StreamedFrame(timestamp, picture, past), waiting[len(past) :]
    if held is not None:
        yield replace(held, mask_timestamps=(*held.mask_timestamps, *waiting))


def stream_array(
    frames: np.ndarray, timestamps: np.ndarray, seconds: float, masks_per_second: float | str | None
) -> Iterator[StreamedFrame]:
    """Yields frames that are in memory as a [`VideoReader`] yields those of a file.

    Args:
        frames: (frames, height, width, 3), uint8.
        timestamps: (frames,), seconds.
        seconds: How long the frames last.
        masks_per_second: Masks per second; None or `"video"` is one per frame.
    """
    pictures = zip(timestamps.tolist(), frames, strict=True)
    if masks_per_second in (None, EVERY_FRAME):
        return join_moments(pictures, holds=False)
    number = number_of_moments(seconds, masks_per_second)
    moments = (((index + SAMPLING_OFFSET) / masks_per_second, None) for index in range(number))
    return join_moments(heapq.merge(moments, pictures, key=lambda event: event[0]), holds=True)


@contextmanager
def two_doors(source: MediaSource) -> Iterator[tuple[MediaSource, MediaSource]]:
    """Gives a source twice, so that it can be read at two places at once.

    A path, address or bytes are simply opened twice; a file object is looked at from two places, after it was copied
    aside if it cannot go back. It is left open.
    """
    name = source_name(source)
    if not hasattr(source, "read"):
        yield source, source
    elif hasattr(source, "seekable") and source.seekable():
        yield _Door(source, name), _Door(source, name)
    else:
        with tempfile.TemporaryFile() as copy:
            copy_pipe(source, copy)
            yield _Door(copy, name), _Door(copy, name)


class _Door(io.RawIOBase):
    """A file object with its own place in another one's bytes."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._place = 0
        self.name = name

    def readable(self) -> bool:
        """Tells that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tells that it can be moved."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves the place."""
        bases = {os.SEEK_SET: lambda: 0, os.SEEK_CUR: lambda: self._place, os.SEEK_END: self._length}
        self._place = bases[whence]() + offset
        return self._place

    def tell(self) -> int:
        """Returns the place."""
        return self._place

    def readinto(self, buffer: memoryview) -> int:
        """Reads from the place on."""
        self._file.seek(self._place)
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def _length(self) -> int:
        """Returns how many bytes there are."""
        return self._file.seek(0, os.SEEK_END)
