"""A video and its sound, read side by side in memory that does not grow with their length.

The frames that a network looks at and the sound come by the clock of `media_clock_pcmanet.py`, as from [`read_media`].
Pictures and sound are read through two doors into the same file, so that neither waits for the other, however the file
interleaves them.
"""

import heapq
import io
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

import av
import numpy as np
from av.video.stream import VideoStream

from .media_decoding_pcmanet import (
    SAMPLING_OFFSET,
    SOUND_REMEDY,
    FrameSampler,
    FrameSkipper,
    MediaError,
    MediaNotes,
    MediaSource,
    PictureMaker,
    SoundConverter,
    SoundLine,
    VideoClock,
    audio_stream,
    copy_pipe,
    declared_seconds,
    decode,
    finite_waveform,
    no_frames,
    number_of_moments,
    open_media,
    source_name,
    video_stream,
)
from .media_writing_pcmanet import write_audio, write_video


# More than this is not held at once: an hour of full HD at one frame a second is 22 GB.
LARGEST_FRAMES_BYTES = 8 * 2**30

# Three hours of stereo at 48 kHz.
LARGEST_SOUND_BYTES = 4 * 2**30

# Sound is kept for so long after the last picture; pictures and sound may differ by so much before it is noted.
SOUND_MARGIN_SECONDS = 1.0

# Silence that was filled in is noted from here on: codecs and containers differ by less.
NOTED_SILENCE_SECONDS = 0.25


@dataclass(frozen=True, eq=False)
class Media:
    """Frames and sound of one video on one clock.

    Attributes:
        frames: uint8 array (frames, height, width, 3), RGB, at the video's own size and as a player shows them: upright
            (rotation metadata applied), with square pixels, transparent parts on black, interlaced frames rebuilt from
            one of their fields.
        timestamps: float64 array (frames,), seconds since the video's first frame. A picture that stands still for
            longer than a frame is stamped with the moment at which it was looked at.
        waveform: float32 array (channels, samples), full scale is [-1, 1], sample 0 at time 0; `None` if not asked for.
        sampling_rate: Samples per second of the waveform in hertz (Hz); `None` without a waveform.
        name: What error messages call the source.
        notes: What was done to use the source although it is odd or damaged, one sentence each; they were logged too.
    """

    frames: np.ndarray
    timestamps: np.ndarray
    waveform: np.ndarray | None
    sampling_rate: int | None
    name: str
    notes: tuple[str, ...] = ()


def read_media(source: MediaSource, *, frames_per_second: float = 1.0, audio: bool = True) -> Media:
    """Reads the frames that a network looks at, and the sound.

    Second `l` gives the frame that AVSBench takes: number `int((l + 15/16) * round(fps))`, the last one if there are
    fewer (AVSBench protocol, "Preparation from raw video"). At `r` frames per second the moments are
    `(k + 15/16) / r`. There are `max(1, round(duration * r))` frames, where the duration is that of the decoded frames.

    Args:
        source: Path, http(s) URL, the bytes of a file, or a binary file object (read from its start, left open).
        frames_per_second: Frames to take per second of video.
        audio: Whether to read the sound as well.

    Returns:
        The frames with their timestamps, and the waveform at its own rate, aligned with them: sound that starts
        late is padded with zeros, sound from before the first frame is cut, holes are filled with zeros, and so is
        the end where more than a second is missing; what comes more than a second after the picture is cut.
        Of a truncated or damaged file, what can be decoded. `notes` says what was done.

    Raises:
        FileNotFoundError: There is no such file.
        MediaError: The source is no video, holds no frame, or holds no usable sound although `audio` is true.
        ValueError: `frames_per_second` is not a positive number.
    """
    if not 0 < frames_per_second < math.inf:
        raise ValueError(f"frames_per_second must be a positive number, got {frames_per_second!r}.")
    with open_media(source) as (container, notes):
        video = video_stream(container, notes)
        streams = (video, audio_stream(container, notes)) if audio else (video,)
        clock, sampler, sound = VideoClock(video), FrameSampler.of(video, frames_per_second), _Sound(notes)
        frames = _Frames(sampler, PictureMaker(video, notes))
        for frame in decode(container, streams, notes, FrameSkipper(clock, [sampler]).skips):
            if isinstance(frame, av.AudioFrame):
                sound.add(frame)
            else:
                frames.add(frame, clock.read(frame))
        pictures, timestamps = frames.finish(clock.end)
        note_missing_end(video, clock.end, notes, sound.end if audio else None)
        waveform, sampling_rate = sound.finish_with(clock) if audio else (None, None)
        notes.finish()
    return Media(pictures, timestamps, waveform, sampling_rate, notes.name, tuple(notes.texts))


def read_audio(source: MediaSource) -> tuple[np.ndarray, int]:
    """Reads the sound of an audio or video file.

    Args:
        source: Path, http(s) URL, the bytes of a file, or a binary file object (read from its start, left open).

    Returns:
        The waveform, float32 (channels, samples) with full scale [-1, 1], and its sampling rate in hertz (Hz).

    Raises:
        FileNotFoundError: There is no such file.
        MediaError: The source holds no sound, or sound with NaN or infinite samples.
    """
    with open_media(source) as (container, notes):
        sound = _Sound(notes)
        for frame in decode(container, (audio_stream(container, notes),), notes):
            sound.add(frame)
        waveform, sampling_rate = sound.finish(sound.first_second, (container.duration or math.inf) / av.time_base)
        notes.finish()
    return waveform, sampling_rate


def iterate_frames(source: MediaSource) -> Iterator[tuple[float, np.ndarray]]:
    """Yields every frame of a video with its timestamp, in constant memory.

    Args:
        source: Path, http(s) URL, the bytes of a file, or a binary file object (read from its start, left open).

    Yields:
        Seconds since the first frame, and the frame, uint8 RGB (height, width, 3), upright.

    Raises:
        FileNotFoundError: There is no such file.
        MediaError: The source is no video, or holds no frame.
    """
    with open_media(source) as (container, notes):
        video = video_stream(container, notes)
        clock, pictures = VideoClock(video), PictureMaker(video, notes)
        seconds = None
        for frame in decode(container, (video,), notes):
            seconds = clock.read(frame)
            yield seconds, pictures.make(frame)
        if seconds is None:
            raise no_frames(notes.name)
        note_missing_end(video, clock.end, notes)


def note_missing_end(video: VideoStream, end: float, notes: MediaNotes, sound_end: float | None = None) -> None:
    """Notes where a video ends before the time that it declares itself: a download that broke off, a lost tail.

    Args:
        video: The stream that was read.
        end: When its last frame leaves the screen, seconds.
        notes: Where to say it.
        sound_end: When the sound ends, seconds; None if it was not read.
    """
    own, whole = declared_seconds(video)
    if not own and (sound_end is not None or len(video.container.streams) == 1):
        own = whole if whole > max(end, sound_end or 0.0) + SOUND_MARGIN_SECONDS else 0.0
    if own > end + SOUND_MARGIN_SECONDS:
        notes.add(f"its picture ends at {end:.2f} s, but it declares {own:.2f} s; what is there is used")


class _Frames:
    """Gathers the pictures of the frames that a sampler chooses."""

    def __init__(self, sampler: FrameSampler, maker: PictureMaker) -> None:
        self._sampler = sampler
        self._maker = maker
        self._pictures: list[np.ndarray] = []
        self._timestamps: list[float] = []
        self._is_empty = True

    def add(self, frame: av.VideoFrame, seconds: float) -> None:
        """Takes the next decoded frame, which comes on screen at `seconds`."""
        self._maker.measure(frame)
        self._gather(self._sampler.add(frame, seconds))
        self._is_empty = False

    def finish(self, end: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the frames (frames, height, width, 3) and timestamps (frames,) of a video that lasted `end` seconds."""
        if self._is_empty:
            raise no_frames(self._maker.name)
        self._gather(self._sampler.finish(end))

        # Filled one by one and let go, so that all of them are not held twice.
        pictures = np.empty((len(self._pictures), *self._pictures[0].shape), np.uint8)
        for index, picture in enumerate(self._pictures):
            pictures[index], self._pictures[index] = picture, pictures[index]
        return pictures, np.array(self._timestamps, dtype=np.float64)

    def _gather(self, chosen: list[tuple[float, av.VideoFrame]]) -> None:
        """Keeps chosen frames; one that is chosen several times is one array."""
        for timestamp, frame in chosen:
            picture = self._maker.make(frame)
            if (len(self._pictures) + 1) * picture.nbytes > LARGEST_FRAMES_BYTES:
                height, width = picture.shape[:2]
                raise MediaError(
                    f"{self._maker.name} gives more than {len(self._pictures)} frames of {width}x{height}, too much to "
                    "hold at once. Cut it into parts, make it smaller, or take fewer `frames_per_second`."
                )
            self._timestamps.append(timestamp)
            self._pictures.append(picture)


class _Sound:
    """Gathers decoded sound and lays it on the clock of the video."""

    def __init__(self, notes: MediaNotes) -> None:
        self._notes = notes
        self._converter = SoundConverter()
        self._chunks: list[tuple[float | None, np.ndarray]] = []
        self._bytes = 0

    @property
    def first_second(self) -> float:
        """Time of the first chunk in the container, seconds."""
        return self._converter.first_second

    @property
    def end(self) -> float:
        """How long the sound lasts that was decoded, without holes, seconds."""
        return sum(samples.shape[1] for _, samples in self._chunks) / max(1, self._converter.sampling_rate)

    def add(self, frame: av.AudioFrame) -> None:
        """Takes the next decoded chunk."""
        for stamp, samples in self._converter.convert(frame):
            self._bytes += samples.nbytes
            self._check_bytes(self._bytes)
            self._chunks.append((stamp, samples))

    def finish_with(self, clock: VideoClock) -> tuple[np.ndarray, int]:
        """Returns the waveform (channels, samples) of a video and its sampling rate, about as long as the picture."""
        waveform, rate = self.finish(clock.origin, clock.end)
        wanted, margin = round(clock.end * rate), round(SOUND_MARGIN_SECONDS * rate)
        surplus = waveform.shape[1] - wanted
        if surplus > margin:
            self._notes.add(f"its sound goes on for {surplus / rate:.2f} s after its picture; this is left out")
            waveform = waveform[:, : wanted + margin].copy()
        if surplus < -margin:
            self._notes.add(f"its sound ends {-surplus / rate:.2f} s before its picture; silence is filled in")
            self._check_bytes(wanted * len(waveform) * waveform.itemsize)
            waveform = np.pad(waveform, ((0, 0), (0, -surplus)))
        return waveform, rate

    def finish(self, origin: float, end: float) -> tuple[np.ndarray, int]:
        """Returns the waveform (channels, samples) and its sampling rate in hertz (Hz).

        Args:
            origin: Time of sample 0 in the container, seconds.
            end: Seconds after which nothing is awaited: what comes after a hole that reaches there is left out.
        """
        rate = self._converter.sampling_rate
        line = SoundLine(origin, rate)
        placed = list(self._place(line, end * rate))
        if line.position == 0:
            raise MediaError(f"{self._notes}: its sound track holds no sound. {SOUND_REMEDY}")

        # Filled one by one and let go, so that all of them are not held twice.
        waveform = np.zeros((len(placed[0][1]), line.position), np.float32)
        self._chunks.clear()
        while placed:
            start, samples = placed.pop()
            waveform[:, start : start + samples.shape[1]] = samples
        return finite_waveform(waveform, self._notes.name), rate

    def _place(self, line: SoundLine, end: float) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the first sample of each chunk and what of the chunk (channels, samples) is new; notes holes."""
        for stamp, samples in self._chunks:
            hole = line.hole_before(stamp)
            if hole > 0 and line.position + hole > end:
                self._notes.add("its sound goes on after a hole that reaches past the picture; this is left out")
                break
            self._note_hole(hole, line)
            start, fresh = line.position + max(0, hole), samples[:, max(0, -hole) :]
            line.position = start + fresh.shape[1]
            self._check_bytes(line.position * len(samples) * samples.itemsize)
            yield start, fresh

    def _note_hole(self, hole: int, line: SoundLine) -> None:
        """Notes silence that is filled in, and sound that comes too early."""
        seconds = abs(hole) / self._converter.sampling_rate
        if seconds < NOTED_SILENCE_SECONDS:
            return
        if line.position:
            self._notes.count("holes in its sound filled with silence" if hole > 0 else "overlaps in its sound cut")
        elif hole > 0:
            self._notes.add(f"its sound starts {seconds:.2f} s after its picture; silence is filled in")
        else:
            self._notes.add("its sound starts before its picture; this is left out", logging.INFO)

    def _check_bytes(self, number: int) -> None:
        """Raises MediaError for more sound than is held at once."""
        if number > LARGEST_SOUND_BYTES:
            raise MediaError(
                f"{self._notes} gives more than {LARGEST_SOUND_BYTES / 2**30:.3g} GiB of sound, too much to hold at once. "
                "Cut it into parts, or give the sound of one part as `audio=`."
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


__all__ = [
    "Media",
    "MediaError",
    "MediaSource",
    "SAMPLING_OFFSET",
    "iterate_frames",
    "read_audio",
    "read_media",
    "write_audio",
    "write_video",
]
