"""The limits of the page of app.py: inspect an upload without decoding it, and refuse what exceeds a limit."""

from dataclasses import dataclass
from pathlib import Path

from av.stream import Stream

from modeling_pcmanet.media_pcmanet import open_media, video_stream


BYTES_PER_LOGIT = 4
DURATION_TOLERANCE = 0.5  # seconds by which a video may exceed the limit


class RefusedVideoError(ValueError):
    """A video that the page does not accept. The message is for the user: the reason, and what to do."""


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file.

    Attributes:
        seconds: Duration of the video stream.
        frames: Number of frames, at least 1.
        width: Width of a frame in pixels.
        height: Height of a frame in pixels.
    """

    seconds: float
    frames: int
    width: int
    height: int


@dataclass(frozen=True)
class Limits:
    """What the page accepts.

    Attributes:
        megabytes: Largest upload, in MB of 10^6 bytes.
        seconds: Longest video, and longest audio of a video.
        pixels: Largest frame.
        held_bytes: Most memory for the logits of a video, and again for its masks.
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
                "memory limit of this page. Choose fewer masks per second, or cut the video to "
                f"{max(1.0, info.seconds * self.held_bytes / held):.0f} s."
            )


def probe_video(path: Path, name: str, limits: Limits) -> VideoInfo:
    """Read the packets of a file without decoding them, so that no content can use much time or memory.

    Args:
        path: The file.
        name: The user's name of the file.
        limits: The limits of the page.

    Returns:
        The properties of the video.

    Raises:
        RefusedVideoError: If the file has no audio track or exceeds a limit.
        ValueError: If the file is not a video.
    """
    with open_media(path) as (container, notes):
        video = video_stream(container, notes)
        audio = container.streams.best("audio")
        if audio is None:
            raise RefusedVideoError(f"{name} has no audio track. Upload a video with audio.")
        ends, frames = {video.index: 0.0, audio.index: 0.0}, 0
        starts = {stream.index: _start(stream) for stream in (video, audio)}
        for packet in container.demux(video, audio):
            index = packet.stream.index
            frames += index == video.index and packet.size > 0
            if packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - starts[index]
                ends[index] = max(ends[index], end)
        info = VideoInfo(ends[video.index], max(1, frames), video.codec_context.width, video.codec_context.height)
        audio_seconds = ends[audio.index]
    _check_limits(info, audio_seconds, name, limits)
    return info


def _start(stream: Stream) -> float:
    """Return the start time of a stream in seconds."""
    return float((stream.start_time or 0) * stream.time_base)


def _check_limits(info: VideoInfo, audio_seconds: float, name: str, limits: Limits) -> None:
    """Refuse a video that exceeds a limit."""
    longest = max(info.seconds, audio_seconds)
    if longest > limits.seconds + DURATION_TOLERANCE:
        subject = name if info.seconds == longest else f"The audio of {name}"
        raise RefusedVideoError(
            f"{subject} is {longest:.0f} s long. This page accepts up to {limits.seconds:.0f} s. Cut the video, or run "
            "`pcmanet segment` on your own computer, which accepts any length."
        )
    if info.width * info.height > limits.pixels:
        raise RefusedVideoError(
            f"{name} has frames of {info.width}x{info.height} pixels. This page accepts up to "
            f"{limits.pixels / 1e6:.1f} million pixels. Reduce the size of the video."
        )
