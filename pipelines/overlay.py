"""Draws what a pipeline found: masks on pictures, a video with its own sound, mask files.

    colors = class_colors(model.config.id2label)
    reader = VideoReader("clip.mp4", "video")
    frames = ((frame.timestamp, frame.picture) for frame in reader)
    write_overlay_video("overlay.mp4", frames, results, colors, sound="clip.mp4", clock=reader)

`results` is what the `audio-visual-segmentation` pipeline returns for one video. A class has the same colour
everywhere: in the video, the mask files and the contact sheet, whichever other classes are there.
"""

import heapq
import io
import itertools
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .colors import Color, class_colors, readable_on


SoundSource: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO

FILL_OPACITY = 0.4
HALO_OPACITY = 0.55
# Of the picture's shorter side: a contour to see, and text to read, at any size.
CONTOUR_SHARE = 1 / 140
FONT_SHARE = 1 / 20
MINIMUM_FONT_SIZE = 12

TICKS_PER_SECOND = 90_000
TIME_TOLERANCE = 1e-3  # of a network frame: 29 / 29 s may come as 0.9999 s
BT709 = 1  # the code of this standard for matrix, primaries and transfer alike (ITU-T H.273)
# Sound tracks that players expect in an mp4 file; any other one is encoded anew as AAC.
MP4_SOUND_CODECS = ("aac", "mp3", "ac3", "eac3", "alac", "opus")
AAC_SAMPLING_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
AAC_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1"}


class Clock(Protocol):
    """What reads the frames of a video.

    Attributes:
        origin: Time of the first frame in the file, seconds; known when that was read.
    """

    origin: float


def draw_segments(
    frame: Image.Image, segments: Sequence[Mapping[str, Any]], colors: Mapping[str, Color], *, labels: bool = True
) -> Image.Image:
    """Draws the segments of one network frame on a picture: soft fill, crisp contour, label.

    Args:
        frame: An RGB picture of any size; the masks are brought to it.
        segments: `{"score", "label", "mask"}` dictionaries, as the pipeline gives them.
        colors: The colour of every label, from [`class_colors`].
        labels: Whether to write label and score beside each mask.

    Returns:
        A new RGB picture.
    """
    picture = frame.convert("RGB")
    layer = _layer(picture.size, segments, colors, labels)
    picture.paste(layer, mask=layer)
    return picture


def write_overlay_video(
    path: str | os.PathLike[str],
    frames: Iterable[tuple[float, np.ndarray]],
    results: Iterable[Mapping[str, Any]],
    colors: Mapping[str, Color],
    *,
    frames_per_second: float | str = 1.0,
    sound: SoundSource | None = None,
    clock: Clock | None = None,
) -> None:
    """Writes a video with the masks drawn on it: H.264 in an mp4 file, and the sound as it was.

    Every frame is kept at its own time; network frame `k` gives its masks to the time from `k / frames_per_second`
    to `(k + 1) / frames_per_second`. The file is written aside and renamed: it is there whole or not at all.

    Args:
        path: The mp4 file to write.
        frames: The time of each frame in seconds, starting at 0, and the frame: uint8 (height, width, 3), RGB.
            `VideoReader` and `iterate_frames` of `modeling_pcmanet` read them from a file.
        results: The pipeline's result for this video, or its stream, which is taken as the frames need it.
        colors: The colour of every label, from [`class_colors`].
        frames_per_second: The rate of masks that `results` were made with; `"video"` is one per frame of the video.
        sound: The file (path, URL, bytes or binary file object) whose sound track the video gets: the video itself, or
            the sound that was given beside it. Copied as it is where an mp4 file can hold it, else encoded as AAC.
        clock: What reads `frames` from that same file, such as a `VideoReader`. Without it, the time 0 of the sound is
            where the file declares that its pictures begin, which those that can be decoded may do later.

    Raises:
        ValueError: If there is no frame, no result, or no sound track in `sound`.
    """
    path = Path(path)
    aside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part")
    try:
        with ExitStack() as stack:
            output = stack.enter_context(
                av.open(f"file:{aside}", "w", format="mp4", options={"movflags": "+faststart"})
            )
            source = None if sound is None else stack.enter_context(_open_sound(sound))
            painted = _painted(frames, results, colors, frames_per_second)
            _encode(output, painted, source, clock)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_masks(
    folder: str | os.PathLike[str],
    results: Sequence[Mapping[str, Any]],
    id2label: Mapping[int, str],
    size: tuple[int, int],
) -> list[Path]:
    """Writes one PNG file per network frame, named by its number and its time: `0003_at_3.938s.png`.

    The binary task gives pictures of mode "L", 255 where it sounds and 0 elsewhere. The semantic task gives pictures of
    mode "P" whose pixels are the class ids (0 is the background) and whose palette holds the colours of the classes.

    Args:
        folder: The folder to write to; made if it does not exist.
        results: The pipeline's result for one video.
        id2label: The model's `config.id2label`.
        size: (width, height) of the video, for the frames in which nothing sounds.

    Returns:
        The paths of the files, in order of time.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    colors = class_colors(id2label)
    class_ids = {label: index for index, label in id2label.items()}
    paths = []
    for number, result in enumerate(results):
        picture = Image.new("L" if len(id2label) == 1 else "P", size)
        for segment in result["segments"]:
            picture.paste(255 if len(id2label) == 1 else class_ids[segment["label"]], mask=segment["mask"])
        if len(id2label) > 1:
            palette = np.zeros((len(id2label), 3), np.uint8)
            palette[[class_ids[label] for label in colors]] = list(colors.values())
            picture.putpalette(palette.tobytes())
        paths.append(folder / f"{number:04d}_at_{result['timestamp']:.3f}s.png")
        picture.save(paths[-1])
    return paths


def _layer(
    size: tuple[int, int], segments: Sequence[Mapping[str, Any]], colors: Mapping[str, Color], labels: bool
) -> Image.Image:
    """Draws segments on a transparent RGBA layer, once for all the frames that it will lie on."""
    layer = Image.new("RGBA", size)
    segments = [segment for segment in segments if segment["mask"].getbbox() is not None]
    for segment in segments:
        halo, paint = _opacities(segment["mask"].resize(size, Image.Resampling.BILINEAR))
        for color, opacity in (((0, 0, 0), halo), (colors[segment["label"]], paint)):
            coat = Image.new("RGBA", size, color=color)
            coat.putalpha(Image.fromarray((opacity * 255).astype(np.uint8)))
            layer.alpha_composite(coat)
    if labels:
        _write_labels(layer, segments, colors)
    return layer


def _opacities(mask: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Turns a mask into opacities in [0, 1], (height, width): of a dark halo around it, of its fill and contour.

    The value of a blurred mask tells the distance to the edge, so that all come out smooth, without stairs.
    """
    width = max(1.5, min(mask.size) * CONTOUR_SHARE)
    blurred = np.asarray(mask.filter(ImageFilter.GaussianBlur(width)), dtype=np.float32) / 255
    # At the edge the blurred step rises by 1 / (sqrt(2 pi) width) per pixel.
    inward = (blurred - 0.5) * math.sqrt(2 * math.pi) * width
    halo = HALO_OPACITY * np.clip(width + inward, 0, 1) * (inward < 0)
    contour = np.clip(width / 2 + 0.5 - np.abs(inward), 0, 1)
    fill = FILL_OPACITY * np.clip(inward + 0.5, 0, 1)
    return halo, np.maximum(fill, contour)


def _write_labels(layer: Image.Image, segments: Sequence[Mapping[str, Any]], colors: Mapping[str, Color]) -> None:
    """Writes each segment's label and score on a plate of its colour, above its mask and clear of other plates."""
    draw = ImageDraw.Draw(layer)
    size = max(MINIMUM_FONT_SIZE, round(min(layer.size) * FONT_SHARE))
    font = ImageFont.load_default(size=size)
    plates: list[tuple[float, float, float, float]] = []
    for segment in sorted(segments, key=lambda segment: segment["mask"].getbbox()[1]):
        text = f"{segment['label']} {segment['score']:.0%}"
        scale = layer.height / segment["mask"].height
        left, top, right, _ = (edge * scale for edge in segment["mask"].getbbox())
        width, height = font.getlength(text) + size * 0.7, size * 1.35
        x = max(0.0, min((left + right - width) / 2, layer.width - width))
        y = max(0.0, top - height - size * 0.3)
        for other in plates:
            if x < other[2] and other[0] < x + width and y < other[3]:
                y = other[3] + 1
        plates.append((x, y, x + width, y + height))
        color = colors[segment["label"]]
        draw.rounded_rectangle(plates[-1], radius=size * 0.3, fill=color)
        draw.text((x + width / 2, y + height / 2), text, font=font, fill=readable_on(color), anchor="mm")


def _painted(
    frames: Iterable[tuple[float, np.ndarray]],
    results: Iterable[Mapping[str, Any]],
    colors: Mapping[str, Color],
    frames_per_second: float | str,
) -> Iterator[tuple[float, np.ndarray]]:
    """Lays the masks on every frame; the layer is drawn anew only when the next result's time comes."""
    results = iter(results)
    result = next(results, None)
    if result is None:
        raise ValueError("There are no results to draw: the pipeline gives one entry per network frame.")
    shown, layer, box = 0, None, None
    for number, (seconds, frame) in enumerate(frames):
        wanted = number if frames_per_second == "video" else int(seconds * frames_per_second + TIME_TOLERANCE)
        for following in itertools.islice(results, max(0, wanted - shown)):
            shown, result, layer = shown + 1, following, None
        if layer is None:
            layer = _layer(frame.shape[1::-1], result["segments"], colors, labels=True)
            box = layer.getbbox()
            layer = layer.crop(box)
        yield seconds, frame if box is None else _pasted(frame, layer, box)


def _pasted(frame: np.ndarray, layer: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    """Returns a frame (height, width, 3) with a layer on it; only what lies in the box is touched."""
    left, top, right, bottom = box
    picture = frame.copy()
    part = Image.fromarray(frame[top:bottom, left:right])
    part.paste(layer, mask=layer)
    picture[top:bottom, left:right] = part
    return picture


@contextmanager
def _open_sound(source: SoundSource) -> Iterator[InputContainer]:
    """Opens the file that holds the sound."""
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    elif hasattr(source, "read"):
        source.seek(0)
    elif not str(source).startswith(("http://", "https://")):
        source = f"file:{source}"  # without it FFmpeg takes a name with a colon for a protocol
    with av.open(source) as container:
        yield container


def _encode(
    output: OutputContainer,
    pictures: Iterator[tuple[float, np.ndarray]],
    source: InputContainer | None,
    clock: Clock | None,
) -> None:
    """Encodes the pictures and muxes them with the sound, in order of time, so that a player finds both at once."""
    start = list(itertools.islice(pictures, 2))
    if not start:
        raise ValueError("There is no frame to write. Pass every frame of the video with its time.")
    # The rate says how long the last frame stays; the others have their own times.
    period = start[-1][0] - start[0][0]
    rate = Fraction(1 / period).limit_denominator(1001) if period > 0 else 1
    video = output.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
    # H.264 holds colour at half the resolution, so both sides have to be even.
    height, width = start[0][1].shape[:2]
    video.width, video.height, video.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
    video.codec_context.time_base = Fraction(1, TICKS_PER_SECOND)

    packets = [_video_packets(video, itertools.chain(start, pictures))]
    if source is not None:
        packets.append(_sound_packets(output, source, clock))
    for packet in heapq.merge(*packets, key=lambda packet: packet.dts * packet.time_base):
        output.mux(packet)


def _video_packets(video: VideoStream, pictures: Iterable[tuple[float, np.ndarray]]) -> Iterator[av.Packet]:
    """Encodes pictures, each at its own time, as BT.709 colours and labelled as such."""
    context = video.codec_context
    context.colorspace = context.color_primaries = context.color_trc = BT709
    context.color_range = ColorRange.MPEG
    last = -1
    for seconds, picture in pictures:
        height, width = picture.shape[:2]
        if height % 2 or width % 2:
            picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        # One thread: the threads of a conversion outlive it, and a process forked meanwhile waits for them forever.
        frame = frame.reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, threads=1
        )
        frame.pts = last = max(last + 1, round(seconds * TICKS_PER_SECOND))
        frame.time_base = context.time_base
        yield from video.encode(frame)
    yield from video.encode()


def _sound_packets(output: OutputContainer, source: InputContainer, clock: Clock | None) -> Iterator[av.Packet]:
    """Adds a sound track to the output and returns its packets, on the clock of the video, which was read before."""
    stream = source.streams.best("audio")
    if stream is None:
        raise ValueError(f"{source.name} has no sound track. Pass the file that holds the sound as `sound=`.")
    declaring = source.streams.best("video") or stream
    origin = (declaring.start_time or 0) * declaring.time_base if clock is None else Fraction(clock.origin)

    if stream.codec_context.codec.canonical_name in MP4_SOUND_CODECS:
        return _copied(source, stream, output.add_stream_from_template(stream), origin)
    rate = stream.rate if stream.rate in AAC_SAMPLING_RATES else AAC_SAMPLING_RATES[-1]
    layout = AAC_LAYOUTS.get(stream.layout.nb_channels, "stereo")
    return _encoded(source, stream, output.add_stream("aac", rate=rate, layout=layout), origin)


def _copied(source: InputContainer, stream: AudioStream, track: AudioStream, origin: Fraction) -> Iterator[av.Packet]:
    """Yields the packets of a sound track as they are, except that time 0 becomes `origin` seconds."""
    for packet in source.demux(stream):
        if packet.dts is not None:  # the last one is empty: it stands for the end
            packet.dts -= round(origin / packet.time_base)
            packet.pts -= round(origin / packet.time_base)
            packet.stream = track
            yield packet


def _encoded(source: InputContainer, stream: AudioStream, track: AudioStream, origin: Fraction) -> Iterator[av.Packet]:
    """Decodes a sound track and yields it as AAC packets whose time 0 is `origin` seconds."""
    following = 0
    for frame in _decoded(source, stream):
        frame.pts = following if frame.pts is None else frame.pts - round(origin / frame.time_base)
        following = frame.pts + round(frame.samples / (frame.sample_rate * frame.time_base))
        yield from track.encode(frame)
    yield from track.encode()


def _decoded(source: InputContainer, stream: AudioStream) -> Iterator[av.AudioFrame]:
    """Yields what can be decoded of a sound track: damaged packets are left out, as where the network listens."""
    for packet in source.demux(stream):
        try:
            yield from packet.decode()
        except av.FFmpegError:
            continue
