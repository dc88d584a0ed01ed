"""Draw the results of a pipeline: masks on frames, a video with its own audio, mask files.

    colors = class_colors(model.config.id2label)
    with MediaReader("clip.mp4") as reader:
        frames = ((timestamp, frame) for timestamp, frame, _ in reader.frames("video"))
        audio = (reader.audio_stream, reader.audio_packets())
        write_overlay_video("overlay.mp4", frames, results, colors, audio=audio, audio_origin=lambda: reader.origin)

`results` is what the `audio-visual-segmentation` pipeline returns for one video. A class has the same color everywhere: in
the video, the mask files and the contact sheet, whichever other classes appear.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from modeling_pcmanet.media_pcmanet import MediaSource
from modeling_pcmanet.media_writing_pcmanet import AudioPackets, write_timed_video

from .colors import Color, class_colors, readable_on


FILL_OPACITY = 0.4
HALO_OPACITY = 0.55
# Fractions of the frame's shorter side: a contour that is visible, and text that can be read, at any size.
CONTOUR_FRACTION = 1 / 140
FONT_FRACTION = 1 / 20
MINIMUM_FONT_SIZE = 12

# System fonts, for the alphabets that Pillow's own font, which is nearly ASCII-only, does not have.
SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "LiberationSans-Regular.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",  # macOS
    "arial.ttf",  # from here on, Windows fonts: Latin, Greek, Cyrillic, Arabic, Hebrew; Chinese; Japanese; Korean
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
)

TIME_TOLERANCE = 1e-3  # fraction of a network frame: 29 / 29 s may be received as 0.9999 s


def draw_segments(
    frame: Image.Image, segments: Sequence[Mapping[str, Any]], colors: Mapping[str, Color], *, labels: bool = True
) -> Image.Image:
    """Draw the segments of one network frame on an image: translucent fill, sharp contour, label.

    Args:
        frame: An RGB image of any size. The masks are resized to it.
        segments: `{"score", "label", "mask"}` dictionaries, as the pipeline returns them.
        colors: The color of every label, from [`class_colors`].
        labels: Whether to write label and score next to each mask.

    Returns:
        A new RGB image.
    """
    image = frame.convert("RGB")
    layer = _draw_layer(image.size, segments, colors, labels)
    image.paste(layer, mask=layer)
    return image


def text_font(text: str, size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font for a text: Pillow's own, or a system font if that has more of its characters.

    Args:
        text: The text to draw, such as the names of classes, which may be in any alphabet.
        size: Size of the font, in pixels.
    """
    path = None if text.isascii() else _find_font(text)
    return ImageFont.load_default(size=size) if path is None else ImageFont.truetype(path, size)


@functools.lru_cache(maxsize=1024)  # the names of classes recur in every frame
def _find_font(text: str) -> str | None:
    """Return the path of the system font that has the most characters of a text; None if Pillow's own has as many."""
    fonts = {None: ImageFont.load_default(), **{path: ImageFont.truetype(path) for path in _system_fonts()}}
    return min(fonts, key=lambda path: _missing_characters(fonts[path], text))


@functools.cache
def _system_fonts() -> list[str]:
    """Return the paths of the installed [`SYSTEM_FONTS`], which Pillow searches for in the folders of the system."""
    found = []
    for name in SYSTEM_FONTS:
        try:
            found.append(str(ImageFont.truetype(name).path))
        except OSError:
            continue
    return found


def _missing_characters(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> int:
    """Return how many different characters of a text a font draws as its box for missing characters."""
    draw: Any = font.getmask  # its stubs omit that the result has the bytes of the pixels
    box = bytes(draw("\uffff"))  # in no alphabet
    return sum(bytes(draw(character)) == box for character in set(text))


def write_overlay_video(
    path: str | Path,
    frames: Iterable[tuple[float, np.ndarray]],
    results: Iterable[Mapping[str, Any]],
    colors: Mapping[str, Color],
    *,
    frames_per_second: float | str = 1.0,
    audio: np.ndarray | MediaSource | AudioPackets | None = None,
    sampling_rate: int | None = None,
    audio_origin: Callable[[], float] | None = None,
) -> None:
    """Write an mp4 file with the masks drawn on the frames, and the audio.

    Every frame keeps its own time. The masks of network frame `k` are shown from `k / frames_per_second` to
    `(k + 1) / frames_per_second`.

    Args:
        path: The file to write, ending in ".mp4". An existing file is replaced when the new one is complete.
        frames: The time of each frame in seconds, starting at 0, and the frame: uint8 (height, width, 3), RGB.
            `MediaReader` and `iterate_frames` of `modeling_pcmanet` read them from a file.
        results: The pipeline's result for this video, or its stream, which is consumed as the frames need it.
        colors: The color of every label, from [`class_colors`].
        frames_per_second: The rate of masks that `results` were computed with; `"video"` is one per frame of the
            video.
        audio: The audio track: the video itself, or the audio that was passed to the pipeline with it, in any form
            that [`~modeling_pcmanet.media_writing_pcmanet.write_timed_video`] accepts.
        sampling_rate: Samples per second in hertz (Hz), for audio that is a waveform.
        audio_origin: Returns the time of the first frame in the container of `audio`, in seconds; for a `MediaReader`
            of the same file, this is `lambda: reader.origin`.

    Raises:
        FileNotFoundError: If the folder or the file with the audio does not exist.
        ValueError: If there is no frame or no result, or `audio` has no audio track.
    """
    drawn = _draw_frames(frames, results, colors, frames_per_second)
    write_timed_video(path, drawn, audio, sampling_rate=sampling_rate, audio_origin=audio_origin)


def write_masks(
    folder: str | Path, results: Sequence[Mapping[str, Any]], id2label: Mapping[int, str], size: tuple[int, int]
) -> list[Path]:
    """Write one PNG file per network frame, named by its number and its time: `0003_at_3.938s.png`.

    The numbers have as many digits as the last one, at least four, so that alphabetical order is chronological order.

    The binary task gives images of mode "L": 255 where an object sounds, 0 elsewhere. The semantic task gives images of
    mode "P" whose pixels are the class ids (0 is the background) and whose palette holds the colors of the classes.

    Args:
        folder: The folder to write to; created if it does not exist.
        results: The pipeline's result for one video.
        id2label: The model's `config.id2label`.
        size: (width, height) of the video, for the frames in which nothing sounds.

    Returns:
        The paths of the files, in chronological order.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    colors = class_colors(id2label)
    class_ids = {label: index for index, label in id2label.items()}
    digits = max(4, len(str(len(results) - 1)))
    paths = []
    for number, result in enumerate(results):
        mask = Image.new("L" if len(id2label) == 1 else "P", size)
        for segment in result["segments"]:
            mask.paste(255 if len(id2label) == 1 else class_ids[segment["label"]], mask=segment["mask"])
        if len(id2label) > 1:
            palette = np.zeros((len(id2label), 3), np.uint8)
            palette[[class_ids[label] for label in colors]] = list(colors.values())
            mask.putpalette(palette.tobytes())
        paths.append(folder / f"{number:0{digits}d}_at_{result['timestamp']:.3f}s.png")
        mask.save(paths[-1])
    return paths


def _draw_layer(
    size: tuple[int, int], segments: Sequence[Mapping[str, Any]], colors: Mapping[str, Color], labels: bool
) -> Image.Image:
    """Draw segments on a transparent RGBA layer, once for all the frames that show it."""
    layer = Image.new("RGBA", size)
    segments = [segment for segment in segments if segment["mask"].getbbox() is not None]
    for segment in segments:
        halo, inside = _opacities(segment["mask"].resize(size, Image.Resampling.BILINEAR))
        for color, opacity in (((0, 0, 0), halo), (colors[segment["label"]], inside)):
            coating = Image.new("RGBA", size, color=color)
            coating.putalpha(Image.fromarray((opacity * 255).astype(np.uint8)))
            layer.alpha_composite(coating)
    if labels:
        _draw_labels(layer, segments, colors)
    return layer


def _opacities(mask: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Turn a mask into two maps of opacities in [0, 1], (height, width): a dark halo around it; its fill and contour.

    The value of a blurred mask gives the distance to the edge, so that halo, fill and contour have smooth edges.
    """
    width = max(1.5, min(mask.size) * CONTOUR_FRACTION)
    blurred = np.asarray(mask.filter(ImageFilter.GaussianBlur(width)), dtype=np.float32) / 255
    # At the edge the blurred step rises by 1 / (sqrt(2 pi) width) per pixel.
    inward = (blurred - 0.5) * math.sqrt(2 * math.pi) * width
    halo = HALO_OPACITY * np.clip(width + inward, 0, 1) * (inward < 0)
    contour = np.clip(width / 2 + 0.5 - np.abs(inward), 0, 1)
    fill = FILL_OPACITY * np.clip(inward + 0.5, 0, 1)
    return halo, np.maximum(fill, contour)


def _draw_labels(layer: Image.Image, segments: Sequence[Mapping[str, Any]], colors: Mapping[str, Color]) -> None:
    """Draw each segment's label and score in a box of its color, above its mask, without overlapping other boxes."""
    draw = ImageDraw.Draw(layer)
    size = max(MINIMUM_FONT_SIZE, round(min(layer.size) * FONT_FRACTION))
    boxes: list[tuple[float, float, float, float]] = []
    for segment in sorted(segments, key=lambda segment: segment["mask"].getbbox()[1]):
        text = f"{segment['label']} {segment['score']:.0%}"
        font = text_font(text, size)
        scale = layer.height / segment["mask"].height
        left, top, right, _ = (edge * scale for edge in segment["mask"].getbbox())
        width, height = font.getlength(text) + size * 0.7, size * 1.35
        x = max(0.0, min((left + right - width) / 2, layer.width - width))
        y = max(0.0, top - height - size * 0.3)
        for other in boxes:
            if x < other[2] and other[0] < x + width and y < other[3]:
                y = other[3] + 1
        boxes.append((x, y, x + width, y + height))
        color = colors[segment["label"]]
        draw.rounded_rectangle(boxes[-1], radius=size * 0.3, fill=color)
        draw.text((x + width / 2, y + height / 2), text, font=font, fill=readable_on(color), anchor="mm")


def _draw_frames(
    frames: Iterable[tuple[float, np.ndarray]],
    results: Iterable[Mapping[str, Any]],
    colors: Mapping[str, Color],
    frames_per_second: float | str,
) -> Iterator[tuple[float, np.ndarray]]:
    """Paste the masks on every frame. The layer is drawn again only at the time of the next result."""
    results = iter(results)
    result = next(results, None)
    if result is None:
        raise ValueError("Expected one result per network frame, got no results. Pass what the pipeline returned.")
    shown, layer, box = 0, None, None
    for number, (seconds, frame) in enumerate(frames):
        wanted = number if frames_per_second == "video" else int(seconds * float(frames_per_second) + TIME_TOLERANCE)
        for following in itertools.islice(results, max(0, wanted - shown)):
            shown, result, layer = shown + 1, following, None
        if layer is None:
            layer = _draw_layer(frame.shape[1::-1], result["segments"], colors, labels=True)
            box = layer.getbbox()
            layer = layer.crop(box)
        yield seconds, frame if box is None else _paste(frame, layer, box)


def _paste(frame: np.ndarray, layer: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    """Return a frame (height, width, 3) with a layer pasted into a box; everything else is unchanged."""
    left, top, right, bottom = box
    pasted = frame.copy()
    part = Image.fromarray(frame[top:bottom, left:right])
    part.paste(layer, mask=layer)
    pasted[top:bottom, left:right] = part
    return pasted
