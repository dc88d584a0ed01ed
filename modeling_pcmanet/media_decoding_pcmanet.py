"""Decoded frames -> pictures as a player shows them: upright, with square pixels, without combs and transparency."""

import io
import logging
import math
import os
import ssl
import stat
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
    for packet in _packets(container, streams, notes):
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


def _packets(
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


# Wide film on narrow video is 2 or less; what is beyond 4 was never meant.
LARGEST_PIXEL_ASPECT = 4


class PictureMaker:
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
