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
from av.video.stream import VideoStream

from .media_source_pcmanet import (
    SOUND_REMEDY,
    MediaError,
    MediaSource,
    audio_stream,
    decode,
    finite_waveform,
    frame_rate,
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

# AVSBench looks at each second this far into it.
SAMPLING_OFFSET = 15 / 16

# AVSBench's clips are 5 or 10 s long; longer videos go by their timestamps alone (see _FrameSampler).
PUBLISHED_CLIP_SECONDS = 10

# Matroska rounds timestamps to 1 ms, so two moments closer than half of it and a little are the same.
TIMESTAMP_TOLERANCE_SECONDS = 0.0006

# Smaller holes and overlaps between two chunks of sound are jitter of the container, not silence.
JITTER_SECONDS = 0.02

# A clock that jumps further than this was spliced or is broken: time goes on from what came last.
LONGEST_HOLE_SECONDS = 600.0
LONGEST_OVERLAP_SECONDS = 1.0

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
        clock, sampler, sound = _VideoClock(video), _FrameSampler(video, frames_per_second, name), _Sound()
        for frame in decode(container, streams):
            if isinstance(frame, av.AudioFrame):
                sound.add(frame)
            else:
                sampler.add(frame, clock.read(frame))
        frames, timestamps = sampler.finish(clock.end)
        waveform, sampling_rate = sound.finish(clock.origin, clock.end, name) if audio else (None, None)
    return Media(frames, timestamps, waveform, sampling_rate, name)


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
        clock, size = _VideoClock(video), None
        for frame in decode(container, (video,)):
            size = size or (frame.width, frame.height)
            yield clock.read(frame), upright_picture(frame, size)
        if size is None:
            raise no_frames(name)


class _VideoClock:
    """Turns the timestamps of frames into seconds since the first frame that never go back.

    Attributes:
        period: Seconds per frame, on the average.
        origin: Time of the first frame in the container, seconds.
        end: When the last frame read leaves the screen, seconds since the first frame.
    """

    def __init__(self, video: VideoStream) -> None:
        self.period = float(1 / frame_rate(video))
        self.origin = 0.0
        self.end = 0.0
        self._start = -math.inf
        self._shift = 0.0

    def read(self, frame: av.VideoFrame) -> float:
        """Returns the frame's moment in seconds since the first frame."""
        stamp = frame.time
        if self._start == -math.inf:
            self.origin = self._shift = stamp or 0.0

        # A frame without a stamp, or one that does not come after the last, follows it; so does one after a splice.
        seconds = self.end if stamp is None else stamp - self._shift
        if seconds > self.end + LONGEST_HOLE_SECONDS:
            self._shift += seconds - self.end
        if not self._start < seconds <= self.end + LONGEST_HOLE_SECONDS:
            seconds = self.end

        length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
        self._start = seconds
        self.end = seconds + (length if 0 < length <= LONGEST_HOLE_SECONDS else self.period)
        return seconds


class _FrameSampler:
    """Keeps, of the frames that pass by, those on screen at the moments `(k + 15/16) / frames_per_second`.

    AVSBench counts frames as if the rate were a whole number. For whole rates that is the frame on screen at the
    moment; for others (29.97 taken for 30) the count runs away from the time. So the published count is used where it
    was: at one frame per second of steady clips of the published length. Anything else goes by timestamps.
    """

    def __init__(self, video: VideoStream, frames_per_second: float, name: str) -> None:
        self._name = name
        self.frames_per_second = frames_per_second
        self.rate = float(frame_rate(video))
        self.pictures: list[np.ndarray] = []
        self.timestamps: list[float] = []
        is_published = frames_per_second == 1 and _declared_seconds(video) < PUBLISHED_CLIP_SECONDS + 0.5
        self._counts = is_published and round(self.rate) >= 1
        self._seen = 0
        self._size = (0, 0)
        self._held: av.VideoFrame | None = None
        self._held_start = 0.0
        self._held_picture: np.ndarray | None = None

    def add(self, frame: av.VideoFrame, seconds: float) -> None:
        """Takes the next frame, which comes on screen at `seconds`, and drops the one before unless it was wanted."""
        clock = self._published_clock(seconds)
        while self._held is not None and clock > self._moment() + TIMESTAMP_TOLERANCE_SECONDS:
            self._take(seconds)
        self._size = self._size if self._seen else (frame.width, frame.height)
        self._held, self._held_start, self._held_picture = frame, seconds, None
        self._seen += 1

    def finish(self, end: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the frames (frames, height, width, 3) and timestamps (frames,) of a video that lasted `end` seconds."""
        if self._held is None:
            raise no_frames(self._name)
        number = max(1, math.floor(end * self.frames_per_second + 0.5))
        while len(self.pictures) < number:
            self._take(end)
        return np.stack(self.pictures[:number]), np.array(self.timestamps[:number], dtype=np.float64)

    def _moment(self) -> float:
        """Returns the next moment at which a frame is wanted, seconds."""
        return (len(self.pictures) + SAMPLING_OFFSET) / self.frames_per_second

    def _published_clock(self, seconds: float) -> float:
        """Returns the time at which AVSBench's count of frames puts the next frame."""
        self._counts = self._counts and abs(self._seen - seconds * self.rate) <= 0.5
        return self._seen / round(self.rate) if self._counts else seconds

    def _take(self, held_end: float) -> None:
        """Takes the held frame, which is on screen until `held_end` seconds, for the next moment."""
        if self._held_picture is None:
            self._held_picture = upright_picture(self._held, self._size)
        if (len(self.pictures) + 1) * self._held_picture.nbytes > LARGEST_FRAMES_BYTES:
            height, width = self._held_picture.shape[:2]
            raise MediaError(
                f"{self._name} gives more than {len(self.pictures)} frames of {width}x{height}, too much to hold at once. "
                "Cut it into parts, make it smaller, or take fewer `frames_per_second`."
            )
        moment = self._moment()
        stands_still = self._held_start + 1 / self.rate < moment <= held_end
        self.timestamps.append(moment if stands_still else self._held_start)
        self.pictures.append(self._held_picture)


def _declared_seconds(video: VideoStream) -> float:
    """Returns how long a video lasts by its own account."""
    if video.duration:
        return float(video.duration * video.time_base)
    return (video.container.duration or math.inf) / av.time_base


class _Sound:
    """Gathers decoded sound and lays it on the clock of the video.

    Attributes:
        first_second: Time of the first chunk in the container, seconds.
    """

    def __init__(self) -> None:
        self.first_second = 0.0
        self._origin = 0.0
        self._chunks: list[tuple[float | None, np.ndarray]] = []
        self._layout: str | None = None
        self._rate = 0
        self._converter: av.AudioResampler | None = None
        self._converts: tuple[str, str, int] | None = None

    def add(self, frame: av.AudioFrame) -> None:
        """Takes the next decoded chunk."""
        if self._layout is None:
            self._layout, self._rate, self.first_second = frame.layout.name, frame.sample_rate, frame.time or 0.0

        # A converter is made for one kind of frame; a broadcast may change from mono to 5.1 under way. It makes packed
        # samples, because PyAV (18.1) reads past the end of planar frames of 8 channels.
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._converts:
            self._converts = kind
            self._converter = av.AudioResampler(format="flt", layout=self._layout, rate=self._rate)
        for chunk in self._converter.resample(frame):
            self._chunks.append((chunk.time, chunk.to_ndarray().reshape(chunk.samples, -1).T))

    def finish(self, origin: float, end: float, name: str) -> tuple[np.ndarray, int]:
        """Returns the waveform (channels, samples) and its sampling rate in hertz (Hz).

        Args:
            origin: Time of sample 0 in the container, seconds.
            end: Seconds after which nothing is awaited: what comes after a hole that reaches there is left out.
            name: The source, for error messages.
        """
        self._origin = origin
        pieces: list[np.ndarray] = []
        position = 0
        for stamp, samples in self._chunks:
            hole = 0 if stamp is None else self._hole(stamp, position)
            if hole > 0 and position + hole > end * self._rate:
                break
            pieces += [np.zeros((len(samples), max(0, hole)), np.float32), samples[:, max(0, -hole) :]]
            position += pieces[-2].shape[1] + pieces[-1].shape[1]
        if position == 0:
            raise MediaError(f"{name}: its sound track holds no sound. {SOUND_REMEDY}")
        return finite_waveform(np.concatenate(pieces, axis=1), name), self._rate

    def _hole(self, stamp: float, position: int) -> int:
        """Returns how many samples are missing before a chunk, or, below 0, how many of it are there already."""
        hole = round((stamp - self._origin) * self._rate) - position
        longest_overlap = LONGEST_OVERLAP_SECONDS if position else math.inf
        if not -longest_overlap <= hole / self._rate <= LONGEST_HOLE_SECONDS:
            self._origin += hole / self._rate
            return 0
        is_jitter = position > 0 and abs(hole) <= JITTER_SECONDS * self._rate
        return 0 if is_jitter else hole
