"""Files, URLs, bytes or file objects -> frames and sound on one clock, and back: the door to all media of the project.

- [`read_media`]: the frames that a network looks at, and the sound;
- [`iterate_frames`]: every frame of a video, one at a time;
- [`read_audio`]: the sound alone;
- [`write_video`] and [`write_audio`]: mp4 and wav, whole or not at all.

The clock of a video starts at 0 with its first frame. Sample 0 of the sound is at time 0 of that clock.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
from av.video.stream import VideoStream

from .media_clock_pcmanet import SAMPLING_OFFSET, FrameSampler, FrameSkipper, SoundConverter, SoundLine, VideoClock
from .media_notes_pcmanet import MediaNotes
from .media_picture_pcmanet import PictureMaker
from .media_source_pcmanet import (
    SOUND_REMEDY,
    MediaError,
    MediaSource,
    audio_stream,
    declared_seconds,
    decode,
    finite_waveform,
    no_frames,
    open_media,
    video_stream,
)
from .media_writing_pcmanet import write_audio, write_video


__all__ = [
    "SAMPLING_OFFSET",
    "Media",
    "MediaError",
    "MediaSource",
    "iterate_frames",
    "read_audio",
    "read_media",
    "write_audio",
    "write_video",
]

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
