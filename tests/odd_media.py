"""Write small videos of any kind: every second has its own color, and a tone starts at second 1.

[`write_odd_video`] writes one in any container, codec, pixel format, timing and with any audio tracks. [`shown_colors`] and
[`onset`] read the colors and the start of the tone back.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream


SECONDS = 4
FRAMES_PER_SECOND = 10
WIDTH, HEIGHT = 64, 48
ONSET_SECONDS = 1.0
SAMPLING_RATE = 16000

# One color per second, of different brightness, so that they can be distinguished in gray too.
COLORS = {"R": (180, 30, 30), "G": (60, 220, 60), "B": (30, 30, 150), "W": (235, 235, 235)}
COLOR_TOLERANCE = 45

Painter = Callable[[float], np.ndarray]


@dataclass(frozen=True)
class Track:
    """One audio track: silence, then a tone from second 1 of the video.

    Attributes:
        codec: FFmpeg's name of the encoder.
        sampling_rate: In hertz (Hz).
        layout: FFmpeg's name of the channels' places.
        start: When it starts, seconds; the tone keeps its place in the video.
        seconds: How long it lasts.
        pitch: Of the tone, in hertz (Hz).
        language: Three letters, for files that tell.
    """

    codec: str = "aac"
    sampling_rate: int = SAMPLING_RATE
    layout: str = "mono"
    start: float = 0.0
    seconds: float = SECONDS
    pitch: float = 440.0
    language: str | None = None

    def samples(self) -> np.ndarray:
        """Return the audio of one channel, float32 (samples,)."""
        times = self.start + np.arange(round(self.seconds * self.sampling_rate)) / self.sampling_rate
        tone = 0.5 * np.sin(2 * np.pi * self.pitch * times)
        return np.where(times >= ONSET_SECONDS, tone, 0.0).astype(np.float32)


def color_at(seconds: float) -> str:
    """Return the letter of the color that is on screen."""
    return "".join(COLORS)[int(seconds + 1e-6) % len(COLORS)]


def flat_frame(seconds: float) -> np.ndarray:
    """Return a frame (HEIGHT, WIDTH, 3) of the second's color."""
    return np.full((HEIGHT, WIDTH, 3), COLORS[color_at(seconds)], np.uint8)


def every(period: float = 1 / FRAMES_PER_SECOND, seconds: float = SECONDS, start: float = 0.0) -> list[float]:
    """Return evenly spaced timestamps in seconds."""
    return [start + period * index for index in range(round(seconds / period))]


def write_odd_video(
    path: Path,
    *,
    times: Sequence[float] = tuple(every()),
    paint: Painter = flat_frame,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    configure: Callable[[VideoStream], None] | None = None,
    colors: tuple[Colorspace, int, ColorRange] = (Colorspace.ITU601, 6, ColorRange.MPEG),
    tracks: Sequence[Track] = (Track(),),
    audio_first: bool = False,
    rate: int = FRAMES_PER_SECOND,
    container_options: Mapping[str, str] | None = None,
) -> Path:
    """Write a video; the suffix of the path selects the container.

    Args:
        path: The file.
        times: When each frame appears on screen, in seconds.
        paint: Makes the frame at a time in seconds: uint8 RGB (height, width, 3) or RGBA (height, width, 4).
        codec: FFmpeg's name of the encoder.
        pixel_format: FFmpeg's name of the pixel format.
        options: For the encoder.
        configure: Called with the video stream before the first frame.
        colors: Of the file: for the conversion, and the number of the matrix and the range that the file declares.
        tracks: The audio.
        audio_first: Whether all audio is before the frames in the file.
        rate: Frames per second that the file declares.
        container_options: For the muxer.
    """
    first = paint(times[0])
    with av.open(str(path), "w", container_options=dict(container_options or {})) as container:
        video = container.add_stream(codec, rate=rate, options=dict(options or {}))
        video.height, video.width, video.pix_fmt = *first.shape[:2], pixel_format
        if codec != "gif":
            is_timed = codec in TIMED_CODECS and path.suffix != ".avi"  # which has a constant rate
            video.codec_context.time_base = Fraction(1, 1000 if is_timed else rate)
        video.colorspace, video.color_range = colors[1], colors[2]
        if configure:
            configure(video)
        sounds = [_add_track(container, track) for track in tracks]
        writers = [lambda: _write_frames(container, video, times, paint, pixel_format, colors)]
        writers += [lambda pair=pair: _write_audio(container, *pair) for pair in zip(sounds, tracks, strict=True)]
        for write in reversed(writers) if audio_first else writers:
            write()
    return path


# Encoders that accept frames at any time; the others expect a constant rate.
TIMED_CODECS = {"libx264", "libx265", "libvpx-vp9", "libvpx", "ffv1", "prores_ks", "qtrle", "mjpeg", "png"}


def write_odd_audio(path: Path, track: Track) -> Path:
    """Write an audio file."""
    with av.open(str(path), "w") as container:
        _write_audio(container, _add_track(container, track), track)
    return path


def _add_track(container: av.container.OutputContainer, track: Track) -> av.audio.stream.AudioStream:
    """Add an audio track."""
    stream = container.add_stream(track.codec, rate=track.sampling_rate, layout=track.layout)
    if track.language:
        stream.metadata["language"] = track.language
    return stream


def _write_frames(
    container: av.container.OutputContainer,
    video: VideoStream,
    times: Sequence[float],
    paint: Painter,
    pixel_format: str,
    colors: tuple[Colorspace, int, ColorRange],
) -> None:
    """Encode the frames."""
    for seconds in times:
        picture = paint(seconds)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24" if picture.shape[2] == 3 else "rgba")
        frame = frame.reformat(format=pixel_format, dst_colorspace=colors[0], dst_color_range=colors[2], threads=1)
        frame.time_base = Fraction(1, 1000)
        frame.pts = round(seconds * 1000)
        container.mux(video.encode(frame))
    container.mux(video.encode())


def _write_audio(container: av.container.OutputContainer, stream: av.audio.stream.AudioStream, track: Track) -> None:
    """Encode an audio track, the same in each channel."""
    samples = np.repeat(track.samples()[:, None], stream.codec_context.channels, axis=1)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.reshape(1, -1)), format="flt", layout=track.layout)
    frame.sample_rate, frame.time_base = track.sampling_rate, Fraction(1, track.sampling_rate)
    frame.pts = round(track.start * track.sampling_rate)
    container.mux([*stream.encode(frame), *stream.encode()])


def shown_colors(frames: np.ndarray, *, gray: bool = False) -> str:
    """Read back one letter per frame (frames, height, width, 3); `?` where the middle has none of the colors."""
    height, width = frames.shape[1:3]
    middles = frames[:, height // 3 : -height // 3, width // 3 : -width // 3].reshape(len(frames), -1, 3).mean(axis=1)
    palette = np.array(list(COLORS.values()), float)
    if gray:
        palette = np.repeat(palette @ [[0.299], [0.587], [0.114]], 3, axis=1)
    distances = np.abs(middles[:, None] - palette).max(axis=2)
    letters = np.array(list(COLORS))[distances.argmin(axis=1)]
    return "".join(np.where(distances.min(axis=1) <= COLOR_TOLERANCE, letters, "?"))


def onset(waveform: np.ndarray, sampling_rate: int) -> float:
    """Return when every channel of a waveform (channels, samples) has its first sound, in seconds."""
    firsts = {round(int((np.abs(channel) > 0.1).argmax()) / sampling_rate, 2) for channel in waveform}
    assert max(firsts) - min(firsts) <= 0.02, firsts
    return max(firsts)


def pitch(waveform: np.ndarray, sampling_rate: int) -> float:
    """Return the strongest frequency of the first channel, hertz (Hz)."""
    spectrum = np.abs(np.fft.rfft(waveform[0]))
    return float(spectrum.argmax() * sampling_rate / waveform.shape[1])


def overwrite(path: Path, start: float, stop: float, seed: int = 0) -> Path:
    """Fill a part of a file, from `start` to `stop` in [0, 1], with random bytes."""
    data = bytearray(path.read_bytes())
    first, last = int(start * len(data)), int(stop * len(data))
    data[first:last] = np.random.default_rng(seed).bytes(last - first)
    path.write_bytes(data)
    return path


def overwrite_packets(path: Path, *from_end: int) -> Path:
    """Fill packets of the video with 0xFF; 1 is the last packet of the file."""
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for number in from_end:
        position, size = packets[-number]
        data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    return path


def cut(path: Path, share: float) -> Path:
    """Keep only the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


def begin_late(path: Path, share: float) -> Path:
    """Remove the first part of a broadcast after its tables, as if a recorder was switched on later."""
    packets, tables = 188, 3
    data = path.read_bytes()
    start = packets * (tables + int(share * len(data)) // packets)
    path.write_bytes(data[: packets * tables] + data[start:])
    return path


def patch_box(path: Path, box: bytes, offset: int, values: bytes, count: int = -1) -> Path:
    """Overwrite bytes of every mp4 box of a kind, `offset` bytes after its name."""
    data = bytearray(path.read_bytes())
    position = data.find(box)
    assert position > 0, f"{path} has no {box!r}"
    while position > 0 and count:
        data[position + len(box) + offset : position + len(box) + offset + len(values)] = values
        position = data.find(box, position + 1)
        count -= 1
    path.write_bytes(data)
    return path


def big_endian(*numbers: int) -> bytes:
    """Return 32-bit numbers as mp4 writes them."""
    return struct.pack(f">{len(numbers)}I", *numbers)
