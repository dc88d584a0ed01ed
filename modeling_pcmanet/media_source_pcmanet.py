"""Opening and decoding: whatever a user calls a video -> a container, its streams and their decoded frames.

`media_pcmanet.py` stands on top and is what others import; this file is where FFmpeg meets files of unknown origin.
"""

import io
import os
import shutil
import ssl
import tempfile
from collections.abc import Iterator
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


MediaSource = str | Path | bytes | BinaryIO

# To open an address, and again for each read from it.
NETWORK_TIMEOUT_SECONDS = 30.0

SOUND_REMEDY = "Pass the sound as `audio=` (a waveform) with its `sampling_rate=`."

# Where neither the container nor the codec tells a frame rate, or a damaged one tells of frames that last for hours.
FALLBACK_FRAME_RATE = Fraction(25)
LOWEST_FRAME_RATE = Fraction(1, 600)


class MediaError(ValueError):
    """Media that cannot be used. The message names the source, what is wrong and what to do about it."""


@contextmanager
def open_media(source: MediaSource) -> Iterator[tuple[InputContainer, str]]:
    """Opens a source for decoding.

    Args:
        source: Path, http(s) URL, the bytes of a file, or a binary file object (read from its start, left open).

    Yields:
        The container, and what error messages call the source.

    Raises:
        FileNotFoundError: There is no such file.
        MediaError: The source is a directory, empty, no media, or does not answer; also for what goes wrong later on.
    """
    name = _name(source)
    with ExitStack() as stack:
        try:
            if _is_url(source):
                container = _open_url(source)
            else:
                # A playlist may name other files of this machine: nothing beside the source itself is opened.
                file = stack.enter_context(_seekable_file(source, name))
                container = av.open(file, "r", options={"protocol_whitelist": "none"}, metadata_errors="replace")
            yield stack.enter_context(container), name
        except av.error.ExitError as error:
            raise MediaError(f"{name} gave no answer for {NETWORK_TIMEOUT_SECONDS} s. Download it first.") from error
        except av.FFmpegError as error:
            check = "the address, its certificate, and that it gives" if _is_url(source) else "that it is"
            raise MediaError(
                f"{name} cannot be read as audio or video: {error.strerror or error}. "
                f"Check {check} a whole media file (mp4, mkv, webm, wav, mp3, ...) that plays elsewhere."
            ) from error


def decode(
    container: InputContainer, streams: tuple[VideoStream | AudioStream, ...]
) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """Decodes streams side by side in the order of the file; damaged packets are left out, a broken tail ends it."""
    for stream in streams:
        stream.thread_type = "AUTO"
    for packet in _packets(container, streams):
        try:
            yield from packet.decode()
        except (av.error.InvalidDataError, av.error.EOFError):
            continue


def video_stream(container: InputContainer, name: str) -> VideoStream:
    """Returns the video stream that a player would show (the cover picture of a song is none) or raises MediaError."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise MediaError(f"{name} has no video stream. Pass a video; pass sound alone as `audio=`.")
    best = container.streams.best("video")
    return best if best in streams else streams[0]


def audio_stream(container: InputContainer, name: str) -> AudioStream:
    """Returns the sound track that a player would play or raises MediaError."""
    stream = container.streams.best("audio")
    if stream is None:
        raise MediaError(f"{name} has no sound track. {SOUND_REMEDY}")
    return stream


def frame_rate(video: VideoStream) -> Fraction:
    """Returns the average number of frames per second."""
    rate = video.average_rate or video.guessed_rate
    return rate if rate and rate >= LOWEST_FRAME_RATE else FALLBACK_FRAME_RATE


def no_frames(name: str) -> MediaError:
    """Returns the error for a video of which no frame could be decoded."""
    return MediaError(
        f"{name}: no frame of its video stream could be decoded. Check that the file is whole and plays."
    )


def upright_picture(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """Returns a frame as uint8 RGB (height, width, 3), turned as its metadata say.

    Args:
        frame: Decoded frame.
        size: Width and height before turning, those of the video's first frame; a frame of another size is resized.
    """
    # One thread: PyAV's own conversion threads outlive the call, and a forked loader process waits for them for ever.
    picture = frame.to_ndarray(format="rgb24", width=size[0], height=size[1], threads=1)
    display_matrix = frame.side_data.get("DISPLAYMATRIX")
    if display_matrix is None:
        return picture

    # x' = a x + c y and y' = b x + d y: quarter turns, mirrored or not.
    a, b, _, c, d = np.frombuffer(bytes(display_matrix), dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


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


def _open_url(url: str) -> InputContainer:
    """Opens an address; certificates are checked, redirections to anything but http(s) refused."""
    options = {"protocol_whitelist": "http,https,tcp,tls", "tls_verify": "1"}
    trusted = ssl.get_default_verify_paths().cafile
    if trusted:
        options["ca_file"] = trusted
    return av.open(url, "r", options=options, metadata_errors="replace", timeout=NETWORK_TIMEOUT_SECONDS)


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
            shutil.copyfileobj(source, file)

        if file.seek(0, os.SEEK_END) == 0:
            raise MediaError(f"{name} is empty (0 bytes). Pass a whole media file.")
        file.seek(0)
        yield file


def _open_path(path: Path) -> BinaryIO:
    """Opens a file of this machine."""
    if not path.exists():
        raise FileNotFoundError(f"No such media file: {path}. Check the path (working directory: {Path.cwd()}).")
    if path.is_dir():
        raise MediaError(f"{path} is a directory. Pass the path of one media file in it.")
    try:
        return path.open("rb")
    except OSError as error:
        raise MediaError(f"{path} cannot be opened: {error.strerror}. Check its permissions.") from error


def _name(source: MediaSource) -> str:
    """Returns what error messages call a source, or raises MediaError for what is none."""
    if isinstance(source, (str, Path)):
        return str(source)
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if hasattr(source, "read") and not isinstance(source, io.TextIOBase):
        return str(getattr(source, "name", f"<{type(source).__name__}>"))
    raise MediaError(
        f"Media must be a path, an http(s) URL, bytes or a file object opened with 'rb', got {type(source).__name__}."
    )


def _packets(container: InputContainer, streams: tuple[VideoStream | AudioStream, ...]) -> Iterator[av.Packet]:
    """Yields packets to the end, or to where the file breaks and then one more per stream, which empties its decoder."""
    try:
        yield from container.demux(streams)
    except (av.error.InvalidDataError, av.error.EOFError, IndexError):
        # IndexError: PyAV (18.1) fails after the last packet if a broadcast has added a stream under way.
        for stream in streams:
            last = av.Packet()
            last.stream = stream
            yield last
