"""What is on screen when, and where each sound belongs: the clock of a video, read one frame at a time.

[`read_media`] gathers with it, [`stream_media`] passes on with it.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream

from .media_source_pcmanet import frame_rate


# AVSBench looks at each second this far into it.
SAMPLING_OFFSET = 15 / 16

# AVSBench's clips are 5 or 10 s long; longer videos go by their timestamps alone (see FrameSampler).
PUBLISHED_CLIP_SECONDS = 10

# Matroska rounds timestamps to 1 ms, so two moments closer than half of it and a little are the same.
TIMESTAMP_TOLERANCE_SECONDS = 0.0006

# Smaller holes and overlaps between two chunks of sound are jitter of the container, not silence.
JITTER_SECONDS = 0.02

# A clock that jumps further than this was spliced or is broken: time goes on from what came last.
LONGEST_HOLE_SECONDS = 600.0
LONGEST_OVERLAP_SECONDS = 1.0

# Decoding times of a whole video rise by less than this from packet to packet.
LONGEST_STEADY_STEP_SECONDS = 10.0

# No codec moves a frame by more than 16 places between decoding and screen.
REMEMBERED_PACKETS = 32


def number_of_moments(seconds: float, frames_per_second: float) -> int:
    """Returns how many frames are taken from a video of so many seconds: one at least."""
    return max(1, math.floor(seconds * frames_per_second + 0.5))


class VideoClock:
    """Turns the timestamps of frames into seconds since the first frame that never go back.

    Attributes:
        period: Seconds per frame, on the average.
        origin: Time of the first frame in the container, seconds.
        end: When the last frame read leaves the screen, seconds since the first frame; 0 before the first.
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
        seconds = self.place(stamp)
        if seconds is None:
            seconds = self.end
            if stamp is not None and stamp - self._shift > self.end:
                self._shift = stamp - self.end

        length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
        self._start = seconds
        self.end = seconds + (length if 0 < length <= LONGEST_HOLE_SECONDS else self.period)
        return seconds

    def place(self, stamp: float | None) -> float | None:
        """Returns where a time in the container lies, seconds since the first frame; None where the clock goes by order.

        It does so for frames without a time, that do not come after the last one read, or that come long after it.
        """
        seconds = -math.inf if stamp is None else stamp - self._shift
        return seconds if self._start < seconds <= self.end + LONGEST_HOLE_SECONDS else None


class FrameSampler:
    """Chooses, of the frames that pass by, those on screen at the moments `(k + 15/16) / frames_per_second`.

    AVSBench counts frames as if the rate were a whole number. For whole rates that is the frame on screen at the
    moment; for others (29.97 taken for 30) the count runs away from the time. So the published count is used where it
    was: at one frame per second of steady clips of the published length. Anything else goes by timestamps.

    Args:
        frames_per_second: Frames to take per second of video.
        rate: Frames per second of the video itself, on the average.
        counts: Whether the published count may be used.

    Attributes:
        taken: How many frames were chosen so far.
    """

    def __init__(self, frames_per_second: float, rate: float, counts: bool = False) -> None:
        self.frames_per_second = frames_per_second
        self.rate = rate
        self.taken = 0
        self._counts = counts and frames_per_second == 1 and round(rate) >= 1
        self._seen = 0
        self._held: Any = None
        self._held_start = 0.0

    @classmethod
    def of(cls, video: VideoStream, frames_per_second: float) -> "FrameSampler":
        """Makes the sampler of a video stream."""
        is_published = _declared_seconds(video) < PUBLISHED_CLIP_SECONDS + 0.5
        return cls(frames_per_second, float(frame_rate(video)), counts=is_published)

    def add(self, frame: Any, seconds: float) -> list[tuple[float, Any]]:
        """Takes the next frame, decoded or not, which comes on screen at `seconds`.

        Returns:
            Timestamp and frame for every moment that the frame before was on screen.
        """
        clock, chosen = self._published_clock(seconds), []
        while self._held is not None and clock > self._moment() + TIMESTAMP_TOLERANCE_SECONDS:
            chosen.append(self._take(seconds))
        self._held, self._held_start = frame, seconds
        self._seen += 1
        return chosen

    def finish(self, end: float) -> list[tuple[float, Any]]:
        """Returns timestamp and frame for the moments that are left of a video that lasted `end` seconds."""
        missing = number_of_moments(end, self.frames_per_second) - self.taken
        return [self._take(end) for _ in range(missing)] if self._held is not None else []

    def looks_between(self, start: float, end: float) -> bool:
        """Tells whether a frame that is on screen from `start` to `end` seconds may be chosen."""
        if self._counts:
            return True
        # The first moment that is not over at the start, with room for rounding on both sides.
        number = math.ceil((start - 2 * TIMESTAMP_TOLERANCE_SECONDS) * self.frames_per_second - SAMPLING_OFFSET)
        return (number + SAMPLING_OFFSET) / self.frames_per_second <= end + 2 * TIMESTAMP_TOLERANCE_SECONDS

    def _moment(self) -> float:
        """Returns the next moment at which a frame is wanted, seconds."""
        return (self.taken + SAMPLING_OFFSET) / self.frames_per_second

    def _published_clock(self, seconds: float) -> float:
        """Returns the time at which AVSBench's count of frames puts the next frame."""
        self._counts = self._counts and abs(self._seen - seconds * self.rate) <= 0.5
        # A count that is further ahead of the time would reach moments that the video does not.
        self._counts = self._counts and self._seen / round(self.rate) - seconds <= SAMPLING_OFFSET - 0.5
        return self._seen / round(self.rate) if self._counts else seconds

    def _take(self, held_end: float) -> tuple[float, Any]:
        """Takes the held frame, which is on screen until `held_end` seconds, for the next moment."""
        moment = self._moment()
        stands_still = self._held_start + 1 / self.rate < moment <= held_end
        self.taken += 1
        return (moment if stands_still else self._held_start), self._held


class FrameSkipper:
    """Finds, before they are decoded, frames that are on screen while no sampler looks.

    A frame stays until the next one. Which one that is can be told where a later frame was decoded first: so it is with
    B-frames, which are also those that no other frame refers to and that a decoder can leave out. Nothing else changes:
    the samplers choose the same frames.

    Args:
        clock: The clock by which the frames are read.
        samplers: What looks at them.
    """

    def __init__(self, clock: VideoClock, samplers: Sequence[Any]) -> None:
        self._clock = clock
        self._samplers = samplers
        self._last_decoding: float | None = None
        self._is_steady = True
        self._placed: deque[float] = deque(maxlen=REMEMBERED_PACKETS)

    def skips(self, packet: av.Packet) -> bool:
        """Tells whether the frame of the next packet, if no other refers to it, need not be decoded."""
        start = self._place(packet)
        if start is None:
            return False
        later = [placed for placed in self._placed if placed > start]
        self._placed.append(start)
        return bool(later) and not any(sampler.looks_between(start, min(later)) for sampler in self._samplers)

    def _place(self, packet: av.Packet) -> float | None:
        """Returns when the frame of a packet comes on screen, seconds on the clock; None if that cannot be trusted."""
        if packet.pts is None or packet.dts is None or packet.is_discard:
            return None
        decoding = float(packet.dts * packet.time_base)
        if self._last_decoding is not None:
            # After a splice the place of a frame depends on all those before it: from there on each is decoded.
            self._is_steady &= 0 < decoding - self._last_decoding < LONGEST_STEADY_STEP_SECONDS
        self._last_decoding = decoding
        is_placed = self._is_steady and self._clock.end > 0
        return self._clock.place(float(packet.pts * packet.time_base)) if is_placed else None


def _declared_seconds(video: VideoStream) -> float:
    """Returns how long a video lasts by its own account."""
    if video.duration:
        return float(video.duration * video.time_base)
    return (video.container.duration or math.inf) / av.time_base


class SoundConverter:
    """Turns decoded sound into float32 samples of one layout and rate, those of the first chunk.

    Attributes:
        first_second: Time of the first chunk in the container, seconds.
        sampling_rate: Samples per second in hertz (Hz).
    """

    def __init__(self) -> None:
        self.first_second = 0.0
        self.sampling_rate = 0
        self._layout: str | None = None
        self._converter: av.AudioResampler | None = None
        self._converts: tuple[str, str, int] | None = None

    def convert(self, frame: av.AudioFrame) -> list[tuple[float | None, np.ndarray]]:
        """Takes the next decoded chunk; returns times in the container and samples (channels, samples)."""
        if self._layout is None:
            self._layout, self.sampling_rate = frame.layout.name, frame.sample_rate
            self.first_second = frame.time or 0.0

        # A converter is made for one kind of frame; a broadcast may change from mono to 5.1 under way. It makes packed
        # samples, because PyAV (18.1) reads past the end of planar frames of 8 channels.
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._converts:
            self._converts = kind
            self._converter = av.AudioResampler(format="flt", layout=self._layout, rate=self.sampling_rate)
        return [
            (chunk.time, chunk.to_ndarray().reshape(chunk.samples, -1).T) for chunk in self._converter.resample(frame)
        ]


class SoundLine:
    """Lays chunks of sound on the clock of a video, one after another without holes.

    Args:
        origin: Time of sample 0 in the container, seconds.
        sampling_rate: In hertz (Hz).

    Attributes:
        position: Samples laid so far.
    """

    def __init__(self, origin: float, sampling_rate: int) -> None:
        self.position = 0
        self._origin = origin
        self._rate = sampling_rate

    def hole_before(self, stamp: float | None) -> int:
        """Returns how many samples are missing before a chunk, or, below 0, how many of it are there already."""
        if stamp is None:
            return 0
        hole = round((stamp - self._origin) * self._rate) - self.position
        longest_overlap = LONGEST_OVERLAP_SECONDS if self.position else math.inf
        if not -longest_overlap <= hole / self._rate <= LONGEST_HOLE_SECONDS:
            self._origin += hole / self._rate
            return 0
        is_jitter = self.position > 0 and abs(hole) <= JITTER_SECONDS * self._rate
        return 0 if is_jitter else hole

    def lay(self, samples: np.ndarray, hole: int) -> Iterator[np.ndarray]:
        """Yields the silence before a chunk (channels, samples), a second at most at a time, and what of it is new."""
        for start in range(0, hole, self._rate):
            silence = np.zeros((len(samples), min(self._rate, hole - start)), np.float32)
            self.position += silence.shape[1]
            yield silence
        rest = samples[:, max(0, -hole) :]
        self.position += rest.shape[1]
        if rest.size:
            yield rest
