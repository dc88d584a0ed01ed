"""The limits of the servers in this folder: inspect an upload without decoding it, and refuse what exceeds a limit."""

from dataclasses import dataclass

import numpy as np
from av.container import InputContainer
from av.stream import Stream
from av.video.stream import VideoStream

from modeling_pcmanet.media_pcmanet import (
    AUDIO_MARGIN_SECONDS,
    MediaReader,
    MediaSource,
    audio_stream,
    frame_rate,
    open_media,
    pixel_aspect,
    shown_size,
    video_stream,
)


BYTES_PER_LOGIT = 4
DURATION_TOLERANCE = 0.5  # seconds by which a video may exceed the limit


class RefusedVideoError(ValueError):
    """A video that the server does not accept. The message is for the user: the reason, and what to do."""


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file.

    Attributes:
        seconds: Duration of the video stream.
        frames: Number of frames, at least 1.
        width: Width of a displayed frame, with square pixels.
        height: Its height.
    """

    seconds: float
    frames: int
    width: int
    height: int


@dataclass(frozen=True)
class Limits:
    """What the server accepts.

    Attributes:
        megabytes: Largest upload, in MB of 10^6 bytes.
        seconds: Longest video, and longest audio of a video.
        pixels: Largest frame, as it is displayed.
        held_bytes: Maximum memory for the logits of a video, and again for its masks.
    """

    megabytes: int = 100
    seconds: float = 60.0
    pixels: int = 4096 * 2304
    held_bytes: int = 2**29

    def check_memory(self, info: VideoInfo, rate: float, logits_per_frame: int) -> None:
        """Refuse a video whose results exceed the memory limit.

        Args:
            info: The video.
            rate: Network frames per second.
            logits_per_frame: Number of logits per network frame.

        Raises:
            RefusedVideoError: If they do.
        """
        bytes_per_frame = max(info.width * info.height, logits_per_frame * BYTES_PER_LOGIT)
        held = max(1.0, info.seconds * rate) * bytes_per_frame
        if held > self.held_bytes:
            raise RefusedVideoError(
                f"{info.seconds:.0f} s at {rate:g} masks per second and {info.width}x{info.height} pixels exceed the "
                "memory limit of this server. Choose fewer masks per second, or cut the video to "
                f"{max(1.0, info.seconds * self.held_bytes / held):.0f} s."
            )


def probe_video(source: MediaSource, name: str, limits: Limits, *, needs_audio: bool = True) -> VideoInfo:
    """Read the packets of a video without decoding them, so that no content can use much time or memory.

    Args:
        source: Path or binary file object.
        name: The user's name for the file.
        limits: The limits of the server.
        needs_audio: Whether the video must have an audio track.

    Returns:
        The properties of the video.

    Raises:
        RefusedVideoError: If the file has no audio track or exceeds a limit.
        ValueError: If the file is not a video.
    """
    with open_media(source, name) as (container, notes):
        video = video_stream(container, notes)
        audio = container.streams.best("audio")
        if audio is None and needs_audio:
            raise RefusedVideoError(f"{name} has no audio track. Upload a video with audio.")
        ends, packets = _read_packets(container, [video] if audio is None else [video, audio])
        stored = video.codec_context.width, video.codec_context.height
        info = VideoInfo(ends[0], max(1, packets), *shown_size(*stored, pixel_aspect(video, notes)))
    _check_seconds(info.seconds, name, limits)
    _check_seconds(ends[-1], f"The audio of {name}", limits)
    check_pixels(info.width, info.height, name, limits)
    return info


def probe_audio(source: MediaSource, name: str, limits: Limits) -> float:
    """Read the packets of an audio file, as [`probe_video`] does those of a video.

    Args:
        source: Path or binary file object.
        name: The user's name for the file.
        limits: The limits of the server.

    Returns:
        Its duration in seconds.

    Raises:
        RefusedVideoError: If it is too long.
        ValueError: If the file has no audio.
    """
    with open_media(source, name) as (container, notes):
        ends, _ = _read_packets(container, [audio_stream(container, notes)])
    _check_seconds(ends[0], name, limits)
    return ends[0]


def read_audio_within(reader: MediaReader, limits: Limits) -> tuple[np.ndarray, int]:
    """Decode the audio of a reader whose frames, if any, have all been read.

    Args:
        reader: The reader. Its name is the user's name for the file.
        limits: The limits of the server.

    Returns:
        The waveform (channels, samples), and its sampling rate in hertz (Hz).

    Raises:
        RefusedVideoError: If it is longer than its timestamps declare, and too long.
        ValueError: If it cannot be decoded.
    """
    pieces, samples, sampling_rate = [], 0, 0
    for piece, sampling_rate in reader.audio():
        if piece is not None:
            pieces.append(piece)
            samples += piece.shape[1]
            check_decoded(
                samples / sampling_rate - AUDIO_MARGIN_SECONDS, limits.seconds, f"The audio of {reader.name}"
            )
    return np.concatenate(pieces, axis=1), sampling_rate


def check_decoded(seconds: float, most: float, name: str, condition: str = "") -> None:
    """Refuse a file if more of it is decoded than is accepted, although its probed timestamps declare less.

    Args:
        seconds: Seconds that were decoded.
        most: Seconds that are accepted.
        name: The user's name for the file.
        condition: Condition under which so many are accepted, after the number of seconds in the message.

    Raises:
        RefusedVideoError: If there are more, except by rounding.
    """
    if seconds > most + DURATION_TOLERANCE:
        raise RefusedVideoError(
            f"{name} is longer than its timestamps declare: {seconds:.1f} s of it were decoded, and this server accepts up to "
            f"{most:.4g} s{condition}. Convert it to mp4 again, or cut it."
        )


def check_pixels(width: int, height: int, name: str, limits: Limits) -> None:
    """Refuse frames that are too large."""
    if width * height > limits.pixels:
        raise RefusedVideoError(
            f"{name} has frames of {width}x{height} pixels as displayed. This server accepts up to {limits.pixels / 1e6:.1f} million "
            "pixels. Reduce the size of the video."
        )


def _read_packets(container: InputContainer, streams: list[Stream]) -> tuple[list[float], int]:
    """Return where each stream ends, in seconds since its start, and the number of packets of the first one."""
    starts = [float((stream.start_time or 0) * (stream.time_base or 0)) for stream in streams]
    periods = [float(1 / frame_rate(stream)) if isinstance(stream, VideoStream) else 0.0 for stream in streams]
    places = {stream.index: place for place, stream in enumerate(streams)}
    ends, packets = [0.0] * len(streams), 0
    for packet in container.demux(*streams):
        place = places[packet.stream.index]
        packets += place == 0 and packet.size > 0
        length = float(packet.duration * packet.time_base) if packet.duration else periods[place]
        if packet.pts is not None:
            ends[place] = max(ends[place], float(packet.pts * packet.time_base) - starts[place] + length)
        elif (
            packet.size
        ):  # a stream without a container, as in a .h264 file, has no times: its frames follow each other
            ends[place] += length
    return ends, packets


def _check_seconds(seconds: float, name: str, limits: Limits) -> None:
    """Refuse media that are too long."""
    if seconds > limits.seconds + DURATION_TOLERANCE:
        raise RefusedVideoError(
            f"{name} is {seconds:.0f} s long. This server accepts up to {limits.seconds:.0f} s. Cut it, or run "
            "`pcmanet segment` on your own computer, which accepts any length."
        )
