"""Opening and decoding: whatever a user calls a video -> a container, its streams and their decoded frames.

`media_pcmanet.py` stands on top and is what others import; this file is where FFmpeg meets files of unknown origin.
"""

import io
import os
import ssl
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from .media_notes_pcmanet import MediaNotes


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
