"""The only code of the project that opens media: file, URL, bytes or file object -> frames and sound, and back.

Four verbs, two in each direction:

- [`read_media`]: the frames that a network looks at and the sound, on one clock;
- [`iterate_frames`]: every frame of a video, one at a time;
- [`read_audio`]: the sound alone;
- [`write_video`] and [`write_audio`]: H.264 + AAC mp4 and 16-bit PCM wav, whole or not at all.

The clock of a video starts at 0 with its first frame. Sample 0 of the sound is at time 0 of that clock.
"""

import io
import math
import os
import secrets
import shutil
import ssl
import tempfile
import wave
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.stream import Disposition
from av.video.stream import VideoStream


MediaSource = str | Path | bytes | BinaryIO

# AVSBench looks at each second this far into it.
SAMPLING_OFFSET = 15 / 16

# AVSBench's clips are 5 or 10 s long; longer videos go by their timestamps alone (see _FrameSampler).
PUBLISHED_CLIP_SECONDS = 10

# Matroska rounds timestamps to 1 ms, so two moments closer than half of it and a little are the same.
TIMESTAMP_TOLERANCE_SECONDS = 0.0006

# Smaller holes and overlaps between two chunks of sound are jitter of the container, not silence.
JITTER_SECONDS = 0.02

# A clock that jumps back, or forward by more than this, was spliced or is broken: time goes on from the last frame.
LONGEST_GAP_SECONDS = 600.0

# FFmpeg's AAC at its default rate leaves audible holes in pure tones; it clamps this to what a sampling rate allows.
AAC_BITS_PER_CHANNEL = 128_000

NETWORK_TIMEOUT_SECONDS = 30.0
FALLBACK_FRAME_RATE = Fraction(25)
SOUND_REMEDY = "Pass the sound as `audio=` (a waveform) with its `sampling_rate=`."
CHANNEL_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}


class MediaError(ValueError):
    """Media that cannot be used. The message names the source, what is wrong and what to do about it."""


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
    if not (frames_per_second > 0 and math.isfinite(frames_per_second)):
        raise ValueError(f"frames_per_second must be a positive number, got {frames_per_second!r}.")
    with _open(source) as (container, name):
        video = _video_stream(container, name)
        streams = (video, _audio_stream(container, name)) if audio else (video,)
        clock, sampler, sound = _VideoClock(video), _FrameSampler(video, frames_per_second), _Sound()
        for frame in _decode(container, streams):
            if isinstance(frame, av.AudioFrame):
                sound.add(frame)
            else:
                sampler.add(frame, clock.read(frame))
        frames, timestamps = sampler.finish(clock.end, name)
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
    with _open(source) as (container, name):
        sound = _Sound()
        for frame in _decode(container, (_audio_stream(container, name),)):
            sound.add(frame)
        declared_seconds = (container.duration or 0) / av.time_base
        return sound.finish(sound.first_second, declared_seconds, name)


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
    with _open(source) as (container, name):
        video = _video_stream(container, name)
        clock, size = _VideoClock(video), None
        for frame in _decode(container, (video,)):
            size = size or (frame.width, frame.height)
            yield clock.read(frame), _picture(frame, size)
        if size is None:
            raise _no_frames(name)


class _VideoClock:
    """Turns the timestamps of frames into seconds since the first frame that never go back.

    Attributes:
        period: Seconds per frame, on the average.
        origin: Time of the first frame in the container, seconds.
        end: When the last frame read leaves the screen, seconds since the first frame.
    """

    def __init__(self, video: VideoStream) -> None:
        self.period = float(1 / _frame_rate(video))
        self.origin = 0.0
        self.end = 0.0
        self._start = -math.inf
        self._shift = 0.0

    def read(self, frame: av.VideoFrame) -> float:
        """Returns the frame's moment in seconds since the first frame."""
        stamp = frame.time
        if self._start == -math.inf:
            self.origin = self._shift = stamp or 0.0

        # Without a stamp, or after a splice, the frame follows the one before.
        seconds = self.end if stamp is None else stamp - self._shift
        if not self._start < seconds <= self.end + LONGEST_GAP_SECONDS:
            seconds = self.end
            self._shift = self._shift if stamp is None else stamp - seconds

        length = float((frame.duration or 0) * frame.time_base) if frame.time_base else 0.0
        self._start = seconds
        self.end = seconds + (length if 0 < length <= LONGEST_GAP_SECONDS else self.period)
        return seconds


class _FrameSampler:
    """Keeps, of the frames that pass by, those on screen at the moments `(k + 15/16) / frames_per_second`.

    AVSBench counts frames as if the rate were a whole number. For whole rates that is the frame on screen at the
    moment; for others (29.97 taken for 30) the count runs away from the time. So the published count is used where it
    was: for steady clips of the published length. Anything else goes by timestamps.
    """

    def __init__(self, video: VideoStream, frames_per_second: float) -> None:
        self.frames_per_second = frames_per_second
        self.rate = float(_frame_rate(video))
        duration = float(video.duration * video.time_base) if video.duration and video.time_base else None
        self.counts = round(self.rate) >= 1 and duration is not None and duration < PUBLISHED_CLIP_SECONDS + 0.5
        self.pictures: list[np.ndarray] = []
        self.timestamps: list[float] = []
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

    def finish(self, end: float, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the frames (frames, height, width, 3) and timestamps (frames,) of a video that lasted `end` seconds."""
        if self._held is None:
            raise _no_frames(name)
        number = max(1, math.floor(end * self.frames_per_second + 0.5))
        while len(self.pictures) < number:
            self._take(end)
        return np.stack(self.pictures[:number]), np.array(self.timestamps[:number], dtype=np.float64)

    def _moment(self) -> float:
        """Returns the next moment at which a frame is wanted, seconds."""
        return (len(self.pictures) + SAMPLING_OFFSET) / self.frames_per_second

    def _published_clock(self, seconds: float) -> float:
        """Returns the time at which AVSBench's count of frames puts the next frame."""
        self.counts = self.counts and abs(self._seen - seconds * self.rate) <= 0.5
        return self._seen / round(self.rate) if self.counts else seconds

    def _take(self, held_end: float) -> None:
        """Takes the held frame, which is on screen until `held_end` seconds, for the next moment."""
        if self._held_picture is None:
            self._held_picture = _picture(self._held, self._size)
        moment = self._moment()
        stands_still = self._held_start + 1 / self.rate < moment <= held_end
        self.timestamps.append(moment if stands_still else self._held_start)
        self.pictures.append(self._held_picture)


class _Sound:
    """Gathers decoded sound and lays it on the clock of the video.

    Attributes:
        first_second: Time of the first chunk in the container, seconds.
    """

    def __init__(self) -> None:
        self.first_second = 0.0
        self._chunks: list[tuple[float | None, np.ndarray]] = []
        self._layout: str | None = None
        self._rate = 0
        self._converter: av.AudioResampler | None = None
        self._converts: tuple[str, str, int] | None = None

    def add(self, frame: av.AudioFrame) -> None:
        """Takes the next decoded chunk."""
        if self._layout is None:
            self._layout, self._rate, self.first_second = frame.layout.name, frame.sample_rate, frame.time or 0.0

        # A converter is made for one kind of frame; a broadcast may change from mono to 5.1 under way.
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._converts:
            self._converts = kind
            self._converter = av.AudioResampler(format="fltp", layout=self._layout, rate=self._rate)
        self._chunks.extend((chunk.time, chunk.to_ndarray()) for chunk in self._converter.resample(frame))

    def finish(self, origin: float, end: float, name: str) -> tuple[np.ndarray, int]:
        """Returns the waveform (channels, samples) whose sample 0 is at `origin` in the container, and its rate.

        Args:
            origin: Time 0 of the video, seconds in the container.
            end: Length of the video in seconds: sound that begins after a hole beyond it is left out.
            name: The source, for error messages.
        """
        pieces, position, shift = [], 0, origin
        for stamp, samples in self._chunks:
            gap = 0 if stamp is None else round((stamp - shift) * self._rate) - position
            if abs(gap) > LONGEST_GAP_SECONDS * self._rate:
                shift, gap = shift + gap / self._rate, 0
            if position > 0 and abs(gap) <= JITTER_SECONDS * self._rate:
                gap = 0
            if gap > 0 and position + gap > end * self._rate:
                break
            if gap > 0:
                pieces.append(np.zeros((samples.shape[0], gap), dtype=np.float32))
            pieces.append(samples[:, max(0, -gap) :])
            position += max(0, gap) + pieces[-1].shape[1]
        if position == 0:
            raise MediaError(f"{name} has a sound track without sound. {SOUND_REMEDY}")
        return _finite(np.concatenate(pieces, axis=1), name), self._rate


def _finite(waveform: np.ndarray, name: str) -> np.ndarray:
    """Returns the waveform (channels, samples) if every sample is a number."""
    bad = np.flatnonzero(~np.isfinite(waveform).all(axis=0))
    if bad.size:
        raise MediaError(
            f"{name}: {bad.size} samples of the sound are NaN or infinite, the first is number {bad[0]}. "
            "Export the sound again, or replace them and pass the waveform as `audio=`."
        )
    return waveform


@contextmanager
def _open(source: MediaSource) -> Iterator[tuple[InputContainer, str]]:
    """Opens a source for decoding; gives the container and the name for error messages."""
    name = _name(source)
    with ExitStack() as stack:
        file, options = _input(source, name, stack)
        try:
            container = stack.enter_context(av.open(file, "r", options=options, timeout=NETWORK_TIMEOUT_SECONDS))
            yield container, name
        except av.FFmpegError as error:
            raise MediaError(
                f"{name} cannot be read as audio or video: {error.strerror or error}. "
                "Check that it is a whole media file (mp4, mkv, webm, wav, mp3, ...) and plays elsewhere."
            ) from error


def _input(source: MediaSource, name: str, stack: ExitStack) -> tuple[str | BinaryIO, dict[str, str]]:
    """Returns what PyAV opens for a source, and FFmpeg's options for it."""
    if _is_url(source):
        certificates = ssl.get_default_verify_paths().cafile
        trust = {"ca_file": certificates} if certificates else {}
        return source, {"protocol_whitelist": "http,https,tcp,tls", "tls_verify": "1", **trust}
    if isinstance(source, (str, Path)):
        # "file:" keeps FFmpeg from reading a protocol into a name with a colon.
        return f"file:{_checked_path(Path(source))}", {"protocol_whitelist": "file"}

    file = stack.enter_context(_seekable(source))
    if file.seek(0, os.SEEK_END) == 0:
        raise MediaError(f"{name} is empty (0 bytes). Pass a whole media file.")
    file.seek(0)
    return file, {"protocol_whitelist": ""}


@contextmanager
def _seekable(source: bytes | BinaryIO) -> Iterator[BinaryIO]:
    """Gives a file object with every byte within reach: the index of an mp4 often stands at its end."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif hasattr(source, "seekable") and source.seekable():
        yield source
    else:
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(source, copy)
            yield copy


def _is_url(source: MediaSource) -> bool:
    """Tells whether a source is an http(s) address."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def _name(source: MediaSource) -> str:
    """Returns what error messages call a source."""
    if isinstance(source, (str, Path)):
        return str(source)
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if hasattr(source, "read"):
        return str(getattr(source, "name", f"<{type(source).__name__}>"))
    raise MediaError(
        f"Media must be a path, an http(s) URL, bytes or a binary file object, got {type(source).__name__}."
    )


def _checked_path(path: Path) -> Path:
    """Returns the path if it is a file with something in it."""
    if not path.exists():
        raise FileNotFoundError(f"No such media file: {path}. Check the path (working directory: {Path.cwd()}).")
    if path.is_dir():
        raise MediaError(f"{path} is a directory. Pass the path of one media file in it.")
    if path.is_file() and path.stat().st_size == 0:
        raise MediaError(f"{path} is empty (0 bytes). Pass a whole media file.")
    return path


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    """Returns the video stream that a player would show; the cover picture of a song is none."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    best = container.streams.best("video")
    if not streams:
        raise MediaError(f"{name} has no video stream. Pass a video; for sound alone use `audio=`.")
    return best if best in streams else streams[0]


def _audio_stream(container: InputContainer, name: str) -> AudioStream:
    """Returns the sound track that a player would play."""
    stream = container.streams.best("audio")
    if stream is None:
        raise MediaError(f"{name} has no sound track. {SOUND_REMEDY}")
    return stream


def _no_frames(name: str) -> MediaError:
    """Returns the error for a video of which no frame could be decoded."""
    return MediaError(
        f"{name}: no frame of its video stream could be decoded. Check that the file is whole and plays."
    )


def _frame_rate(video: VideoStream) -> Fraction:
    """Returns the average number of frames per second."""
    return video.average_rate or video.guessed_rate or FALLBACK_FRAME_RATE


def _decode(
    container: InputContainer, streams: tuple[VideoStream | AudioStream, ...]
) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """Decodes streams side by side, in the order of the file. Damaged packets are left out, a broken tail ends it."""
    for stream in streams:
        stream.thread_type = "AUTO"
    for packet in _packets(container, streams):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            continue


def _packets(container: InputContainer, streams: tuple[VideoStream | AudioStream, ...]) -> Iterator[av.Packet]:
    """Yields the packets of the streams up to the end or to where the file breaks, then one that empties each decoder."""
    try:
        yield from container.demux(streams)
    except (av.error.InvalidDataError, av.error.EOFError):
        for stream in streams:
            flush = av.Packet()
            flush.stream = stream
            yield flush


def _picture(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """Returns a frame as uint8 RGB (height, width, 3), upright; `size` is (width, height) before it is turned."""
    picture = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    display_matrix = frame.side_data.get("DISPLAYMATRIX")
    if display_matrix is None:
        return picture

    # x' = a x + c y and y' = b x + d y, in steps of 90 degrees and mirrored or not.
    a, b, _, c, d = np.frombuffer(bytes(display_matrix), dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    frames_per_second: float,
    waveform: np.ndarray | None = None,
    sampling_rate: int | None = None,
) -> None:
    """Writes an mp4 (H.264, yuv420p, CRF 18; AAC), whole or not at all, the same bytes for the same input.

    Args:
        path: The file to write, ending in ".mp4". It is replaced only when everything is written.
        frames: uint8 RGB arrays (height, width, 3), all of one size. Odd sizes are padded to even by repeating the edge.
        frames_per_second: Frame rate.
        waveform: float (channels, samples) or (samples,) with full scale [-1, 1]; `None` for a silent film.
        sampling_rate: Samples per second of the waveform in hertz (Hz), one that AAC knows.

    Raises:
        FileNotFoundError: The folder does not exist.
        MediaError: No frames, frames of unequal size or of another dtype, a waveform that is not finite or not floating.
    """
    sound = None if waveform is None else _checked_waveform(waveform, sampling_rate)
    with (
        _written_aside(Path(path), ".mp4") as aside,
        av.open(str(aside), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        container.flags |= av.container.Flags.bitexact.value
        _encode(
            container,
            _checked_frames(frames),
            Fraction(frames_per_second).limit_denominator(1001),
            sound,
            sampling_rate,
        )


def write_audio(path: str | Path, waveform: np.ndarray, sampling_rate: int) -> None:
    """Writes a 16-bit PCM wav, whole or not at all. What is beyond full scale is cut to it.

    Args:
        path: The file to write, ending in ".wav". It is replaced only when everything is written.
        waveform: float (channels, samples) or (samples,) with full scale [-1, 1].
        sampling_rate: Samples per second in hertz (Hz).

    Raises:
        FileNotFoundError: The folder does not exist.
        MediaError: The waveform is not finite, not floating or of the wrong shape.
    """
    sound = _checked_waveform(waveform, sampling_rate)
    with _written_aside(Path(path), ".wav") as aside, wave.open(str(aside), "wb") as file:
        file.setnchannels(sound.shape[0])
        file.setsampwidth(2)
        file.setframerate(sampling_rate)
        file.writeframes(np.round(sound.T * 32768.0).clip(-32768, 32767).astype("<i2").tobytes())


@contextmanager
def _written_aside(path: Path, suffix: str) -> Iterator[Path]:
    """Gives a name beside `path` to write to, and renames it to `path` at the end, or removes it after an error."""
    if path.suffix.lower() != suffix:
        raise MediaError(f"{path} does not end in {suffix!r}, which is what would be written. Change the name.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"No such folder: {path.parent}. Make it before writing {path.name}.")
    aside = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.part")
    try:
        yield aside
        os.replace(aside, path)
    except av.FFmpegError as error:
        raise MediaError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        aside.unlink(missing_ok=True)


def _encode(
    container: OutputContainer,
    frames: Iterator[np.ndarray],
    rate: Fraction,
    sound: np.ndarray | None,
    sampling_rate: int | None,
) -> None:
    """Encodes frames and sound side by side, so that a player finds both at once."""
    first = next(frames)
    video = container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast", "threads": "1"})
    video.height, video.width, video.pix_fmt = *first.shape[:2], "yuv420p"
    pieces = iter(())
    if sound is not None:
        audio = container.add_stream("aac", rate=sampling_rate, layout=CHANNEL_LAYOUTS[sound.shape[0]])
        audio.bit_rate = AAC_BITS_PER_CHANNEL * sound.shape[0]
        pieces = _sound_pieces(sound, sampling_rate, rate)

    # One piece of sound goes with each frame; what is left over follows the last one.
    for index, picture in enumerate(chain([first], frames)):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = index, 1 / rate
        container.mux(video.encode(frame))
        for piece in islice(pieces, 1):
            container.mux(audio.encode(piece))
    container.mux(video.encode())
    for piece in pieces:
        container.mux(audio.encode(piece))
    if sound is not None:
        container.mux(audio.encode())


def _sound_pieces(sound: np.ndarray, sampling_rate: int, rate: Fraction) -> Iterator[av.AudioFrame]:
    """Yields the sound (channels, samples) in pieces as long as a frame of the video."""
    position, index = 0, 0
    while position < sound.shape[1]:
        index += 1
        end = max(position + 1, math.floor(index * sampling_rate / rate))
        piece = np.ascontiguousarray(sound[:, position:end])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=CHANNEL_LAYOUTS[sound.shape[0]])
        frame.sample_rate, frame.pts, frame.time_base = sampling_rate, position, Fraction(1, sampling_rate)
        yield frame
        position = end


def _checked_frames(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields frames that can be encoded together, padded to even height and width, at least one."""
    shape = None
    for index, frame in enumerate(frames):
        shape = shape or np.shape(frame)
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise MediaError(
                f"Frame {index} must be a uint8 array (height, width, 3), got "
                f"{getattr(frame, 'dtype', type(frame).__name__)} {np.shape(frame)}."
            )
        if frame.shape != shape:
            raise MediaError(f"Frame {index} is {frame.shape}, but frame 0 is {shape}. Resize all to one size.")
        yield np.pad(frame, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
    if shape is None:
        raise MediaError("There are no frames to write. Pass at least one.")


def _checked_waveform(waveform: np.ndarray, sampling_rate: int | None) -> np.ndarray:
    """Returns a waveform as float32 (channels, samples)."""
    waveform = np.atleast_2d(waveform)
    if (
        not np.issubdtype(waveform.dtype, np.floating)
        or waveform.ndim != 2
        or waveform.shape[0] not in CHANNEL_LAYOUTS
    ):
        raise MediaError(
            f"The waveform must be a floating array (channels, samples) with {list(CHANNEL_LAYOUTS)} channels, "
            f"got {waveform.dtype} {waveform.shape}. Divide integers by their full scale."
        )
    if not isinstance(sampling_rate, int) or sampling_rate <= 0:
        raise MediaError(f"A waveform needs its `sampling_rate` in hertz, a positive int, got {sampling_rate!r}.")
    return _finite(waveform, "The waveform").astype(np.float32)
