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
import ssl
import stat
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream


logger = logging.getLogger(__name__)


class MediaNotes:
    """What was done to use one source although it is odd; `str()` of it is what messages call the source.

    A note goes to the log of this module when it is made, as a warning: whoever runs a program sees it, and
    `logging.getLogger("modeling_pcmanet").setLevel(logging.ERROR)` silences it. What the file itself asks for (turn the
    picture, stretch its pixels) is no warning but information.

    Args:
        name: What messages call the source.

    Attributes:
        texts: The notes made so far, each once, in order.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.texts: list[str] = []
        self._counts: Counter[str] = Counter()

    def __str__(self) -> str:
        return self.name

    def add(self, text: str, level: int = logging.WARNING) -> None:
        """Makes a note, unless it is made already."""
        if text not in self.texts:
            self.texts.append(text)
            logger.log(level, "%s: %s", self.name, text)

    def count(self, what: str) -> None:
        """Counts something that is to be noted with its number, once, when all is read."""
        self._counts[what] += 1

    def has_counted(self, what: str) -> bool:
        """Tells whether something was counted since the last [`finish`]."""
        return self._counts[what] > 0

    def finish(self) -> None:
        """Makes the notes of what was counted."""
        for what, number in self._counts.items():
            self.add(f"{what}: {number}")
        self._counts.clear()


MediaSource = str | Path | bytes | BinaryIO

# To open an address, and again for each read from it.
NETWORK_TIMEOUT_SECONDS = 30.0

# The formats of cameras, phones, browsers, broadcasts, editors and recorders. FFmpeg knows 300 more, of old games and
# machines, in which most of its faults lie, and takes any text for one of them.
MEDIA_FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,asf,ogg,mxf,nut,dv,rm,mjpeg,yuv4mpegpipe,"
    "vc1,gif,apng,webp_pipe,jpeg_pipe,png_pipe,bmp_pipe,tiff_pipe,"
    "wav,w64,aiff,au,caf,flac,mp3,aac,loas,ac3,eac3,dts,amr,voc,ape,tta,wv,nistsphere,dsf"
)

# 8192x8192: 8K and 12K film pass. A decoder holds up to 20 pictures at once, at this size 2 GB.
LARGEST_PICTURE_PIXELS = 2**26

# What comes through a pipe is kept in a temporary file first.
LARGEST_PIPED_BYTES = 16 * 2**30
PIPED_PIECE_BYTES = 2**20

# Damaged places in a row after which the rest of a file is given up.
MOST_UNREADABLE_IN_A_ROW = 1000

# What a sound may claim, hertz (Hz): ultrasound recorders reach 384,000.
LOWEST_SAMPLING_RATE = 1_000
HIGHEST_SAMPLING_RATE = 768_000

DAMAGED = "damaged or missing packets of data left out"

SOUND_REMEDY = "Pass the sound as `audio=` (a waveform) with its `sampling_rate=`."

# Where neither the container nor the codec tells a frame rate, or a damaged one tells of frames that last for hours.
FALLBACK_FRAME_RATE = Fraction(25)
LOWEST_FRAME_RATE = Fraction(1, 600)


class MediaError(ValueError):
    """Media that cannot be used. The message names the source, what is wrong and what to do about it."""


@contextmanager
def open_media(source: MediaSource) -> Iterator[tuple[InputContainer, MediaNotes]]:
    """Opens a source for decoding.

    Args:
        source: Path, http(s) URL, the bytes of a file, or a binary file object (read from its start, left open).

    Yields:
        The container, and the notes on it, whose `str()` is what error messages call the source.

    Raises:
        FileNotFoundError: There is no such file.
        MediaError: The source is no file, empty, no media, or does not answer; also for what goes wrong later on.
    """
    notes = MediaNotes(source_name(source))
    with ExitStack() as stack:
        try:
            if _is_url(source):
                container = _open_url(source)
            else:
                container = _open_file(stack.enter_context(_seekable_file(source, notes.name)))
            yield stack.enter_context(container), notes
        except av.error.ExitError as error:
            raise MediaError(f"{notes} gave no answer for {NETWORK_TIMEOUT_SECONDS} s. Download it first.") from error
        except av.FFmpegError as error:
            check = "the address, its certificate, and that it gives" if _is_url(source) else "that it is"
            raise MediaError(
                f"{notes} cannot be read as audio or video: {error.strerror or error}. "
                f"Check {check} a whole media file (mp4, mkv, webm, wav, mp3, ...) that plays elsewhere."
            ) from error


def copy_pipe(source: BinaryIO, file: BinaryIO) -> None:
    """Copies what comes through a pipe to a file, or raises MediaError if it does not end."""
    while piece := source.read(PIPED_PIECE_BYTES):
        file.write(piece)
        if file.tell() > LARGEST_PIPED_BYTES:
            raise MediaError(
                f"{source_name(source)} gave more than {LARGEST_PIPED_BYTES / 2**30:.3g} GiB and does not end. "
                "Write it to a file and pass its path."
            )


def decode(
    container: InputContainer,
    streams: tuple[VideoStream | AudioStream, ...],
    notes: MediaNotes,
    skips: Callable[[av.Packet], bool] = lambda _: False,
) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """Decodes streams side by side in the order of the file; damaged packets are left out and counted in the notes.

    Args:
        container: The open file.
        streams: What of it to decode.
        notes: Where damage is counted.
        skips: Asked for each packet of pictures in turn: whether its frame can be left out, if no other frame refers to
            it. In a file that turns out to be damaged none is left out from there on.

    Raises:
        MediaError: The streams are encrypted.
    """
    is_whole = True
    for stream in streams:
        stream.thread_type = "AUTO"
        if isinstance(stream, VideoStream):
            stream.codec_context.options = {"max_pixels": str(LARGEST_PICTURE_PIXELS)}
    for packet in demux(container, streams, notes):
        if packet.has_sidedata("encryption_info"):
            raise MediaError(f"{notes} is encrypted (DRM). Get a copy without protection.")
        if isinstance(packet.stream, VideoStream):
            is_whole = is_whole and not packet.is_corrupt
            is_skipped = skips(packet) and is_whole and not notes.has_counted(DAMAGED)
            packet.stream.codec_context.skip_frame = "NONREF" if is_skipped else "DEFAULT"
        try:
            for frame in packet.decode():
                is_whole = is_whole and not frame.is_corrupt
                yield frame
        except av.FFmpegError:
            notes.count(DAMAGED)
    notes.finish()


def video_stream(container: InputContainer, notes: MediaNotes) -> VideoStream:
    """Returns the video stream that a player would show (the cover picture of a song is none) or raises MediaError."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise MediaError(f"{notes} has no video stream. Pass a video; pass sound alone as `audio=`.")
    video = _best_stream(container, streams, "video", notes)
    check_picture_size(video.codec_context.width, video.codec_context.height, notes.name)
    return video


def audio_stream(container: InputContainer, notes: MediaNotes) -> AudioStream:
    """Returns the sound track that a player would play or raises MediaError."""
    if not container.streams.audio:
        raise MediaError(f"{notes} has no sound track. {SOUND_REMEDY}")
    audio = _best_stream(container, container.streams.audio, "audio", notes)
    if not LOWEST_SAMPLING_RATE <= audio.codec_context.sample_rate <= HIGHEST_SAMPLING_RATE:
        raise MediaError(
            f"{notes}: its sound claims {audio.codec_context.sample_rate} samples per second, expected "
            f"{LOWEST_SAMPLING_RATE} to {HIGHEST_SAMPLING_RATE}. {SOUND_REMEDY}"
        )
    return audio


def declared_seconds(video: VideoStream) -> tuple[float, float]:
    """Returns how long a video stream and its whole file last by what the file wrote down, 0 where it did not.

    Broadcasts write nothing down, and only mp4 and its relatives write down how long each stream is.
    """
    container = video.container
    if container.format.name in ("mpegts", "mpeg"):
        return 0.0, 0.0
    is_told = "mp4" in container.format.name and video.duration
    return float(video.duration * video.time_base) if is_told else 0.0, (container.duration or 0) / av.time_base


def check_picture_size(width: int, height: int, name: str) -> None:
    """Raises MediaError for a picture of so many pixels that decoding it would fill the memory."""
    if width * height > LARGEST_PICTURE_PIXELS:
        raise MediaError(
            f"{name}: its picture is {width}x{height}, {width * height / 1e6:.0f} million pixels, more than the "
            f"{LARGEST_PICTURE_PIXELS / 1e6:.0f} million that are decoded. Make it smaller first, for instance with "
            "`ffmpeg -i INPUT -vf scale=1920:-2 OUTPUT.mp4`."
        )


def frame_rate(video: VideoStream) -> Fraction:
    """Returns the average number of frames per second."""
    rate = video.average_rate or video.guessed_rate
    return rate if rate and rate >= LOWEST_FRAME_RATE else FALLBACK_FRAME_RATE


def no_frames(name: str) -> MediaError:
    """Returns the error for a video of which no frame could be decoded."""
    return MediaError(
        f"{name}: no frame of its video stream could be decoded. Check that the file is whole and plays, and that its "
        f"picture has no more than {LARGEST_PICTURE_PIXELS / 1e6:.0f} million pixels."
    )


def finite_waveform(waveform: np.ndarray, name: str) -> np.ndarray:
    """Returns the waveform (channels, samples) if every sample is a number, or raises MediaError."""
    bad = np.flatnonzero(~np.isfinite(waveform).all(axis=0))
    if bad.size:
        raise MediaError(
            f"{name}: {bad.size} samples of the sound are NaN or infinite, the first is number {bad[0]}. "
            "Export the sound again, or replace them and pass the waveform as `audio=`."
        )
    return waveform


def _is_url(source: MediaSource) -> bool:
    """Tells whether a source is an http(s) address."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def _open_file(file: BinaryIO) -> InputContainer:
    """Opens a file object."""
    # A playlist may name other files of this machine: nothing beside the source itself is opened.
    return av.open(file, "r", options=_open_options(MEDIA_FORMATS, "none"), metadata_errors="replace")


def _open_url(url: str) -> InputContainer:
    """Opens an address; certificates are checked, redirections to anything but http(s) refused."""
    options = {**_open_options(f"{MEDIA_FORMATS},hls", "http,https,tcp,tls"), "tls_verify": "1"}
    trusted = ssl.get_default_verify_paths().cafile
    if trusted:
        options["ca_file"] = trusted
    return av.open(url, "r", options=options, metadata_errors="replace", timeout=NETWORK_TIMEOUT_SECONDS)


def _open_options(formats: str, protocols: str) -> dict[str, str]:
    """Returns FFmpeg's options for opening: it decodes first pictures already to know what is in the file."""
    return {
        "format_whitelist": formats,
        "protocol_whitelist": protocols,
        "max_pixels": str(LARGEST_PICTURE_PIXELS),
    }


@contextmanager
def _seekable_file(source: str | Path | bytes | BinaryIO, name: str) -> Iterator[BinaryIO]:
    """Gives a file object at its start with every byte within reach: the index of an mp4 often stands at its end."""
    with ExitStack() as stack:
        if isinstance(source, (str, Path)):
            file = stack.enter_context(_open_path(Path(source)))
        elif isinstance(source, bytes):
            file = io.BytesIO(source)
        elif hasattr(source, "seekable") and source.seekable():
            file = source
        else:
            file = stack.enter_context(tempfile.TemporaryFile())
            copy_pipe(source, file)

        if file.seek(0, os.SEEK_END) == 0:
            raise MediaError(f"{name} is empty (0 bytes). Pass a whole media file.")
        file.seek(0)
        yield file


def _open_path(path: Path) -> BinaryIO:
    """Opens a file of this machine."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise MediaError(f"{path} is a directory. Pass the path of one media file in it.")
        if not stat.S_ISREG(mode):
            # To open a pipe can take for ever, and a device such as /dev/zero never ends.
            raise MediaError(f"{path} is a pipe or a device, no file. Pass what `open(..., 'rb')` gives for it.")
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        message = f"No such media file: {path}. Check the path (working directory: {Path.cwd()})."
        raise FileNotFoundError(message) from error
    except OSError as error:
        raise MediaError(f"{path} cannot be opened: {error.strerror}. Check its permissions.") from error


def source_name(source: MediaSource) -> str:
    """Returns what error messages call a source, or raises MediaError for what is none."""
    if isinstance(source, (str, Path)):
        if source == "":
            raise MediaError("The path of the media is empty. Pass the path of one media file.")
        return str(source)
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if hasattr(source, "read") and not isinstance(source, io.TextIOBase):
        return str(getattr(source, "name", f"<{type(source).__name__}>"))
    raise MediaError(
        f"Media must be a path, an http(s) URL, bytes or a file object opened with 'rb', got {type(source).__name__}."
    )


def _best_stream(
    container: InputContainer, streams: Sequence[VideoStream | AudioStream], kind: str, notes: MediaNotes
) -> VideoStream | AudioStream:
    """Returns the stream that a player takes, of those that can be decoded, and notes it where there is a choice."""
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise MediaError(
            f"{notes}: its {kind} is in a codec that is not known here. Convert it to H.264 and AAC first."
        )
    best = container.streams.best(kind)
    chosen = best if best in known else known[0]
    if len(streams) > 1:
        language = chosen.language if chosen.language not in (None, "und") else "no language given"
        notes.add(f"of its {len(streams)} {kind} tracks number {streams.index(chosen) + 1} ({language}) is taken")
    return chosen


def demux(
    container: InputContainer, streams: tuple[VideoStream | AudioStream, ...], notes: MediaNotes
) -> Iterator[av.Packet]:
    """Yields packets to the end, past places that cannot be read, and then one per stream, which empties its decoder."""
    failures = 0
    while failures < MOST_UNREADABLE_IN_A_ROW:
        try:
            for packet in container.demux(streams):
                failures = 0
                yield packet
            return
        except (av.error.InvalidDataError, av.error.EOFError):
            failures += 1
            notes.count(DAMAGED)
        except IndexError:
            # PyAV (18.1) fails after the last packet if a broadcast has added a stream under way.
            break
    for stream in streams:
        last = av.Packet()
        last.stream = stream
        yield last


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


class AudioConverter:
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


class AudioTimeline:
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

    def append(self, samples: np.ndarray, hole: int) -> Iterator[np.ndarray]:
        """Yields the silence before a chunk (channels, samples), a second at most at a time, and what of it is new."""
        for start in range(0, hole, self._rate):
            silence = np.zeros((len(samples), min(self._rate, hole - start)), np.float32)
            self.position += silence.shape[1]
            yield silence
        rest = samples[:, max(0, -hole) :]
        self.position += rest.shape[1]
        if rest.size:
            yield rest


# Wide film on narrow video is 2 or less; what is beyond 4 was never meant.
LARGEST_PIXEL_ASPECT = 4


class FrameConverter:
    """Turns the decoded frames of one video into RGB pictures of one size, that which a player shows.

    Args:
        video: The stream that the frames come from.
        notes: Where to say what was done to them.

    Attributes:
        name: What error messages call the source.
    """

    def __init__(self, video: VideoStream, notes: MediaNotes) -> None:
        self.name = notes.name
        self._notes = notes
        self._aspect = _pixel_aspect(video, notes)
        self._stored_size: tuple[int, int] | None = None
        self._size = (0, 0)
        self._reformatter = VideoReformatter()
        self._frame: av.VideoFrame | None = None
        self._picture: np.ndarray | None = None

    def measure(self, frame: av.VideoFrame) -> None:
        """Takes the size of all pictures from the first frame; later frames of another size are resized to it."""
        size = (frame.width, frame.height)
        if self._stored_size is None:
            self._stored_size, self._size = size, shown_size(*size, self._aspect)
            check_picture_size(*self._size, self.name)
        elif size != self._stored_size:
            width, height = self._stored_size
            self._notes.add(
                f"its picture is {width}x{height} at first and {size[0]}x{size[1]} later; it keeps the first size"
            )

    def make(self, frame: av.VideoFrame) -> np.ndarray:
        """Returns a frame as uint8 RGB (height, width, 3), what a player shows; twice the same frame, the same array."""
        self.measure(frame)
        if frame is not self._frame:
            self._frame, self._picture = frame, self._make(frame)
        return self._picture

    def _make(self, frame: av.VideoFrame) -> np.ndarray:
        """Converts a frame."""
        try:
            picture = self._combed_picture(frame) if frame.interlaced_frame else self._convert(frame, self._size)
        except ValueError as error:
            raise MediaError(
                f"{self._notes}: its pixel format {frame.format.name} cannot be turned into RGB ({error}). "
                "Convert the video to H.264 first."
            ) from error
        return _turn(picture, frame)

    def _convert(self, frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
        """Returns a frame in RGB at (width, height), transparent parts on black."""
        is_transparent = any(component.is_alpha for component in frame.format.components)
        form = "rgba" if is_transparent else "rgb24"

        # One thread: PyAV's own conversion threads outlive the call, and a forked loader process waits for them for ever.
        picture = self._reformatter.reformat(frame, width=size[0], height=size[1], format=form, threads=1).to_ndarray()
        if not is_transparent:
            return picture
        if (picture[..., 3] < 255).any():
            self._notes.add("its picture is transparent in parts; these are shown on black", logging.INFO)
        colours, alpha = picture[..., :3].astype(np.uint16), picture[..., 3:].astype(np.uint16)
        return ((colours * alpha + 127) // 255).astype(np.uint8)

    def _combed_picture(self, frame: av.VideoFrame) -> np.ndarray:
        """Returns an interlaced frame in RGB: its upper field, the rows between rebuilt from their neighbours.

        The two fields are two moments; shown as one picture, all that moves has combs for edges.
        """
        self._notes.add("its picture is interlaced; one field of each frame is shown", logging.INFO)
        picture = np.array(self._convert(frame, (frame.width, frame.height)))
        upper = picture[::2]
        below = np.concatenate([upper[1:], upper[-1:]])
        rebuilt = (upper.astype(np.uint16) + below + 1) // 2
        picture[1::2] = rebuilt[: len(picture) // 2]
        if self._size == (frame.width, frame.height):
            return picture
        return self._convert(av.VideoFrame.from_ndarray(picture, format="rgb24"), self._size)


def shown_size(width: int, height: int, pixel_aspect: Fraction) -> tuple[int, int]:
    """Returns width and height with square pixels, so that nothing gets smaller (as browsers do).

    Args:
        width: Of the stored picture, in pixels.
        height: Of the stored picture, in pixels.
        pixel_aspect: Width of a pixel divided by its height.
    """
    if pixel_aspect > 1:
        return round(width * pixel_aspect), height
    return width, round(height / pixel_aspect)


def _pixel_aspect(video: VideoStream, notes: MediaNotes) -> Fraction:
    """Returns the width of a pixel divided by its height, 1 where the video does not tell or cannot mean what it tells."""
    aspect = video.sample_aspect_ratio or Fraction(1)
    if not Fraction(1, LARGEST_PIXEL_ASPECT) <= aspect <= LARGEST_PIXEL_ASPECT:
        notes.add(
            f"its pixel aspect of {aspect.numerator}:{aspect.denominator} cannot be meant; pixels are taken as square"
        )
        return Fraction(1)
    if aspect != 1:
        notes.add(
            f"its pixels are {aspect.numerator}:{aspect.denominator}; pictures are stretched to square ones",
            logging.INFO,
        )
    return aspect


def _turn(picture: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Turns and mirrors a picture (height, width, 3) by quarter turns as the metadata of its frame say."""
    try:
        display_matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV (18.1) knows no EXIF data, which photographs bring along, and then shows no side data at all: the angle
        # is left, whether the picture is mirrored as well is not told.
        return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))
    if display_matrix is None:
        return np.ascontiguousarray(picture)

    # x' = a x + c y and y' = b x + d y: quarter turns, mirrored or not.
    a, b, _, c, d = np.frombuffer(bytes(display_matrix), dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


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
        frames = _Frames(sampler, FrameConverter(video, notes))
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
        clock, pictures = VideoClock(video), FrameConverter(video, notes)
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

    def __init__(self, sampler: FrameSampler, maker: FrameConverter) -> None:
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
        self._converter = AudioConverter()
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
        line = AudioTimeline(origin, rate)
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

    def _place(self, line: AudioTimeline, end: float) -> Iterator[tuple[int, np.ndarray]]:
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

    def _note_hole(self, hole: int, line: AudioTimeline) -> None:
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
            clock, maker = VideoClock(video), FrameConverter(video, notes)
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
    maker: FrameConverter,
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


def iterate_audio(source: MediaSource, video: VideoReader | None = None) -> Iterator[tuple[np.ndarray, int]]:
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
    converter, line = AudioConverter(), None
    with open_media(source) as (container, notes):
        for frame in decode(container, (audio_stream(container, notes),), notes):
            for stamp, samples in converter.convert(frame):
                if line is None:
                    origin = converter.first_second if video is None else video.origin
                    line = AudioTimeline(origin, converter.sampling_rate)
                place = f"{notes}, from sample {line.position} of its sound on"
                for piece in line.append(samples, line.hole_before(stamp)):
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
def open_twice(source: MediaSource) -> Iterator[tuple[MediaSource, MediaSource]]:
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
]
