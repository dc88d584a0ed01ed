"""Files, URLs, bytes or file objects -> frames and sound on one clock, and back: the door to all media of the project.

- [`read_media`]: the frames that a network looks at, and the sound;
- [`iterate_frames`]: every frame of a video, one at a time;
- [`read_audio`]: the sound alone;
- [`write_video`] and [`write_audio`]: mp4 and wav, whole or not at all.

The clock of a video starts at 0 with its first frame. Sample 0 of the sound is at time 0 of that clock.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np

from .media_clock_pcmanet import FrameSampler, SoundConverter, SoundLine, VideoClock, number_of_moments
from .media_source_pcmanet import (
    SOUND_REMEDY,
    MediaError,
    MediaSource,
    audio_stream,
    decode,
    finite_waveform,
    no_frames,
    open_media,
    upright_picture,
    video_stream,
)
from .media_writing_pcmanet import write_audio, write_video


__all__ = [
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


@dataclass(frozen=True, eq=False)
class Media:
    """Frames and sound of one video on one clock.

    Attributes:
        frames: uint8 array (frames, height, width, 3), RGB, upright (rotation metadata applied), at the video's own size.
        timestamps: float64 array (frames,), seconds since the video's first frame. A picture that stands still for
            longer than a frame is stamped with the moment at which it was looked at.
        waveform: float32 array (channels, samples), full scale is [-1, 1], sample 0 at time 0; `None` if not asked for.
        sampling_rate: Samples per second of the waveform in hertz (Hz); `None` without a waveform.
        name: What error messages call the source.
    """

    frames: np.ndarray
    timestamps: np.ndarray
    waveform: np.ndarray | None
    sampling_rate: int | None
    name: str


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
        late is padded with zeros, sound from before the first frame is cut, holes are filled with zeros.
        Of a truncated or damaged file, what can be decoded.

    Raises:
        FileNotFoundError: There is no such file.
        MediaError: The source is no video, holds no frame, or holds no usable sound although `audio` is true.
        ValueError: `frames_per_second` is not a positive number.
    """
    if not 0 < frames_per_second < math.inf:
        raise ValueError(f"frames_per_second must be a positive number, got {frames_per_second!r}.")
    with open_media(source) as (container, name):
        video = video_stream(container, name)
        streams = (video, audio_stream(container, name)) if audio else (video,)
        clock, frames, sound = VideoClock(video), _Frames(FrameSampler(video, frames_per_second), name), _Sound()
        for frame in decode(container, streams):
            if isinstance(frame, av.AudioFrame):
                sound.add(frame)
            else:
                frames.add(frame, clock.read(frame))
        pictures, timestamps = frames.finish(clock.end)
        waveform, sampling_rate = sound.finish(clock.origin, clock.end, name) if audio else (None, None)
    return Media(pictures, timestamps, waveform, sampling_rate, name)


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
    with open_media(source) as (container, name):
        sound = _Sound()
        for frame in decode(container, (audio_stream(container, name),)):
            sound.add(frame)
        return sound.finish(sound.first_second, (container.duration or math.inf) / av.time_base, name)


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
    with open_media(source) as (container, name):
        video = video_stream(container, name)
        clock, size = VideoClock(video), None
        for frame in decode(container, (video,)):
            size = size or (frame.width, frame.height)
            yield clock.read(frame), upright_picture(frame, size)
        if size is None:
            raise no_frames(name)


class _Frames:
    """Gathers the frames that a sampler chooses, upright."""

    def __init__(self, sampler: FrameSampler, name: str) -> None:
        self._sampler = sampler
        self._name = name
        self._pictures: list[np.ndarray] = []
        self._timestamps: list[float] = []
        self._size: tuple[int, int] | None = None
        self._last: av.VideoFrame | None = None

    def add(self, frame: av.VideoFrame, seconds: float) -> None:
        """Takes the next decoded frame, which comes on screen at `seconds`."""
        self._gather(self._sampler.add(frame, seconds))
        self._size = self._size or (frame.width, frame.height)

    def finish(self, end: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the frames (frames, height, width, 3) and timestamps (frames,) of a video that lasted `end` seconds."""
        if self._size is None:
            raise no_frames(self._name)
        self._gather(self._sampler.finish(end))
        number = number_of_moments(end, self._sampler.frames_per_second)
        return np.stack(self._pictures[:number]), np.array(self._timestamps[:number], dtype=np.float64)

    def _gather(self, chosen: list[tuple[float, av.VideoFrame]]) -> None:
        """Keeps chosen frames; one that is chosen several times is converted once."""
        for timestamp, frame in chosen:
            picture = self._pictures[-1] if frame is self._last else upright_picture(frame, self._size)
            if (len(self._pictures) + 1) * picture.nbytes > LARGEST_FRAMES_BYTES:
                height, width = picture.shape[:2]
                raise MediaError(
                    f"{self._name} gives more than {len(self._pictures)} frames of {width}x{height}, too much to hold at "
                    "once. Cut it into parts, make it smaller, or take fewer `frames_per_second`."
                )
            self._last = frame
            self._timestamps.append(timestamp)
            self._pictures.append(picture)


class _Sound:
    """Gathers decoded sound and lays it on the clock of the video."""

    def __init__(self) -> None:
        self._converter = SoundConverter()
        self._chunks: list[tuple[float | None, np.ndarray]] = []

    @property
    def first_second(self) -> float:
        """Time of the first chunk in the container, seconds."""
        return self._converter.first_second

    def add(self, frame: av.AudioFrame) -> None:
        """Takes the next decoded chunk."""
        self._chunks += self._converter.convert(frame)

    def finish(self, origin: float, end: float, name: str) -> tuple[np.ndarray, int]:
        """Returns the waveform (channels, samples) and its sampling rate in hertz (Hz).

        Args:
            origin: Time of sample 0 in the container, seconds.
            end: Seconds after which nothing is awaited: what comes after a hole that reaches there is left out.
            name: The source, for error messages.
        """
        rate = self._converter.sampling_rate
        line = SoundLine(origin, rate)
        pieces: list[np.ndarray] = []
        for stamp, samples in self._chunks:
            hole = line.hole_before(stamp)
            if hole > 0 and line.position + hole > end * rate:
                break
            pieces += line.lay(samples, hole)
        if line.position == 0:
            raise MediaError(f"{name}: its sound track holds no sound. {SOUND_REMEDY}")
        return finite_waveform(np.concatenate(pieces, axis=1), name), rate
