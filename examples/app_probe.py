"""What the page of app.py takes: looks at an upload without decoding it, and refuses what would be too much."""

from dataclasses import dataclass
from pathlib import Path

from av.stream import Stream

from modeling_pcmanet.media_pcmanet import open_media, video_stream


BYTES_PER_LOGIT = 4


class RefusedVideoError(ValueError):
    """A video that the page does not take. The message is for the visitor: what is wrong, and what to do."""


@dataclass(frozen=True)
class Facts:
    """What a file says of its video.

    Attributes:
        seconds: Duration of the video stream.
        frames: How many frames it holds, 1 at least.
        width: Pixels.
        height: Pixels.
    """

    seconds: float
    frames: int
    width: int
    height: int


@dataclass(frozen=True)
class Limits:
    """How much one visitor may ask for.

    Attributes:
        megabytes: Largest upload, in MB of 10^6 bytes.
        seconds: Longest video, and longest sound under it.
        pixels: Largest picture.
        held_bytes: Most memory for the logits of a video, and again for its masks.
    """

    megabytes: int = 100
    seconds: float = 60.0
    pixels: int = 4096 * 2304
    held_bytes: int = 2**29

    def check_work(self, facts: Facts, rate: float, logits_per_frame: int) -> None:
        """Refuses what would not fit into memory at `rate` network frames per second.

        Raises:
            RefusedVideoError: If it is too much at once.
        """
        bytes_per_frame = max(facts.width * facts.height, logits_per_frame * BYTES_PER_LOGIT)
        held = max(1.0, facts.seconds * rate) * bytes_per_frame
        if held > self.held_bytes:
            share = self.held_bytes / held
            raise RefusedVideoError(
                f"{facts.seconds:.0f} s at {rate:g} masks a second are too much for this page at "
                f"{facts.width}x{facts.height} pixels. Choose fewer masks a second, or cut the video to "
                f"{max(1.0, facts.seconds * share):.0f} s."
            )


def probe_video(path: Path, name: str, limits: Limits) -> Facts:
    """Reads through a file without decoding it, so that nothing in it can take long or fill the memory.

    Args:
        path: The file.
        name: What the visitor calls it.
        limits: What the page takes.

    Returns:
        What is in it.

    Raises:
        RefusedVideoError: If it has no sound or breaks a limit.
        ValueError: If it is no video.
    """
    with open_media(path) as (container, notes):
        video = video_stream(container, notes)
        sound = container.streams.best("audio")
        if sound is None:
            raise RefusedVideoError(
                f"{name} has no sound. The network finds what sounds, so it needs a video with a sound track."
            )
        ends, frames = {video.index: 0.0, sound.index: 0.0}, 0
        starts = {stream.index: _start(stream) for stream in (video, sound)}
        for packet in container.demux(video, sound):
            index = packet.stream.index
            frames += index == video.index and packet.size > 0
            if packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - starts[index]
                ends[index] = max(ends[index], end)
        facts = Facts(ends[video.index], max(1, frames), video.codec_context.width, video.codec_context.height)
        sound_seconds = ends[sound.index]
    _check(facts, sound_seconds, name, limits)
    return facts


def _start(stream: Stream) -> float:
    """Returns when a stream starts, in seconds."""
    return float((stream.start_time or 0) * stream.time_base)


def _check(facts: Facts, sound_seconds: float, name: str, limits: Limits) -> None:
    """Refuses a video that breaks a limit."""
    longest = max(facts.seconds, sound_seconds)
    if longest > limits.seconds + 0.5:
        what = "" if facts.seconds == longest else "The sound of "
        raise RefusedVideoError(
            f"{what}{name} lasts {longest:.0f} s. This page takes up to {limits.seconds:.0f} s: cut it, or run "
            "`pcmanet segment` on your own machine, which takes any length."
        )
    if facts.width * facts.height > limits.pixels:
        raise RefusedVideoError(
            f"{name} has pictures of {facts.width}x{facts.height} pixels. This page takes up to "
            f"{limits.pixels / 1e6:.1f} million pixels: make it smaller."
        )
