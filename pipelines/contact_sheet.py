"""Draw a contact sheet: one image that shows what is sounding in a video and when, with frames, masks and waveform.

    sheet = draw_contact_sheet(media.frames, results, colors, waveform=media.waveform, sampling_rate=media.sampling_rate)
    sheet.save("contact_sheet.png")

Time runs from left to right, in several strips if one is too short. Each column shows a network frame, the same frame
with everything muted except the segments, and the waveform of that time, shaded in the colors of the classes found.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFont

from .colors import Color
from .overlay import draw_segments, text_font
from .timeline import loudness


Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

COLUMNS_PER_STRIP = 10
MAX_STRIPS = 4  # longer videos show every second, third ... frame
SHEET_WIDTH = 2000
MIN_SHEET_WIDTH = 760
MAX_THUMBNAIL = (420, 340)

# Lengths in pixels.
MARGIN = 36
GAP = 10
TITLE_SIZE = 38
TEXT_SIZES = (20, 28)  # minimum and maximum; fewer columns have larger text
LINE_SPACING = 1.4  # relative to the text size
WAVE_HEIGHT = 120
WAVE_EXPONENT = 0.6  # from amplitude to perceived loudness, so that quiet sounds are visible next to loud ones
CHIPS_PER_COLUMN = 3  # further segments of a frame are only counted
CHIP_INDENT = 1.2  # from the color patch to its text, relative to the text size

BACKGROUND = (255, 255, 255)
SILENCE_COLOR = (238, 240, 243)
TEXT_COLOR = (24, 28, 36)
FAINT_TEXT_COLOR = (112, 120, 132)
WAVE_COLOR = (44, 51, 64)
SHADE_OPACITY = 0.55  # of the class color over the background


@dataclass(frozen=True)
class _Layout:
    """The layout of a sheet.

    Attributes:
        number: Number of network frames in the video.
        step: Network frames per column.
        columns: Columns per strip.
        strips: Number of strips.
        thumbnail: (width, height) of a thumbnail.
        chip_lines: Lines of text under each masked thumbnail.
    """

    number: int
    step: int
    columns: int
    strips: int
    thumbnail: tuple[int, int]
    chip_lines: int

    @property
    def pitch(self) -> int:
        """Width of a column, which is the width of `step` network frames of audio."""
        return self.thumbnail[0] + GAP

    @property
    def width(self) -> int:
        """Width of the sheet."""
        return max(MIN_SHEET_WIDTH, self.columns * self.pitch + 2 * MARGIN)

    @property
    def text_size(self) -> int:
        """Size of all text except the title."""
        return min(max(TEXT_SIZES[0], self.thumbnail[0] // 12), TEXT_SIZES[1])

    @property
    def line_height(self) -> int:
        """Height of a line of text."""
        return round(self.text_size * LINE_SPACING)

    @property
    def strip_height(self) -> int:
        """Height of a strip: times, frames, masks, labels, waveform, time axis."""
        texts = (self.chip_lines + 2) * self.line_height
        return texts + 2 * (self.thumbnail[1] + GAP) + GAP + WAVE_HEIGHT + MARGIN

    def shown(self, strip: int) -> list[int]:
        """Return the indices of the network frames that a strip shows, the middle one of each column."""
        return shown_frames(self.number)[strip * self.columns : (strip + 1) * self.columns]

    def span(self, strip: int) -> range:
        """Return the indices of all network frames in the time of a strip."""
        per_strip = self.columns * self.step
        return range(strip * per_strip, min((strip + 1) * per_strip, self.number))


def shown_frames(number: int) -> list[int]:
    """Return the indices of the network frames that a sheet shows, the middle one of each column.

    Args:
        number: Number of network frames in the video.

    Returns:
        Indices of frames, ascending; at most as many as a sheet has columns.
    """
    step = _frames_per_column(number)
    return [min(first + step // 2, number - 1) for first in range(0, number, step)]


def draw_contact_sheet(
    frames: Sequence[np.ndarray] | Mapping[int, np.ndarray],
    results: Sequence[Mapping[str, Any]],
    colors: Mapping[str, Color],
    *,
    waveform: np.ndarray | None = None,
    sampling_rate: int | None = None,
    frames_per_second: float = 1.0,
    title: str = "",
) -> Image.Image:
    """Draw frames, masks, waveform and legend on one sheet.

    Args:
        frames: The network frames at any size, one per result: uint8 arrays (height, width, 3), RGB. For a long video, a
            mapping from index to frame with the frames of [`shown_frames`] is sufficient.
        results: The pipeline's result for this video.
        colors: The color of each label, from `class_colors`.
        waveform: (channels, samples) or (samples,), sample 0 at time 0. `None` draws a flat line.
        sampling_rate: Sampling rate of the waveform, in hertz (Hz).
        frames_per_second: The rate of network frames of `results`.
        title: Title of the sheet, usually the name of the file.

    Returns:
        An RGB image, about 2000 pixels wide for five frames or more.

    Raises:
        ValueError: If the number of frames and results differs, or a frame to show is missing from the mapping.
    """
    shown = shown_frames(len(results)) if results else []
    complete = set(shown) <= frames.keys() if isinstance(frames, Mapping) else len(frames) == len(results)
    if not results or not complete:
        raise ValueError(f"Expected one frame per result, got {len(frames)} frames and {len(results)} results.")
    # Read once: the results of a long video are in a file, and reading one decodes its masks.
    labels = [[segment["label"] for segment in result["segments"]] for result in results]
    layout = _layout(frames[shown[0]].shape[:2], [len(found) for found in labels])
    header = _header(layout, labels, colors, frames_per_second, title)
    sheet = Image.new("RGB", (layout.width, header.height + layout.strips * layout.strip_height), BACKGROUND)
    sheet.paste(header)

    seconds = layout.number / frames_per_second
    width = round(layout.number * layout.pitch / layout.step)
    if waveform is None or sampling_rate is None:
        peaks = np.zeros(width)
    else:
        peaks = loudness(waveform, sampling_rate, seconds, width)
    for strip in range(layout.strips):
        top = header.height + strip * layout.strip_height
        for column, number in enumerate(layout.shown(strip)):
            corner = (MARGIN + column * layout.pitch + GAP // 2, top)
            _draw_column(sheet, corner, frames[number], results[number], colors, layout)
        wave_top = top + layout.strip_height - MARGIN - layout.line_height - WAVE_HEIGHT
        _draw_waveform(sheet, (MARGIN, wave_top), layout.span(strip), peaks, labels, colors, layout)
        _draw_time_axis(sheet, (MARGIN, wave_top + WAVE_HEIGHT), layout.span(strip), layout, frames_per_second)
    return sheet


def _frames_per_column(number: int) -> int:
    """Return how many of `number` network frames share a column, so that all fit on a sheet."""
    return math.ceil(number / (COLUMNS_PER_STRIP * MAX_STRIPS))


def _layout(frame_size: tuple[int, int], segment_counts: list[int]) -> _Layout:
    """Choose the number of columns and strips, and the size of the thumbnails of frames of (height, width)."""
    number = len(segment_counts)
    step = _frames_per_column(number)
    columns = math.ceil(number / step)
    strips = math.ceil(columns / COLUMNS_PER_STRIP)
    columns = math.ceil(columns / strips)
    width = min(MAX_THUMBNAIL[0], (SHEET_WIDTH - 2 * MARGIN) // columns - GAP)
    scale = min(width / frame_size[1], MAX_THUMBNAIL[1] / frame_size[0])
    thumbnail = max(1, round(frame_size[1] * scale)), max(1, round(frame_size[0] * scale))
    return _Layout(number, step, columns, strips, thumbnail, min(max(1, *segment_counts), CHIPS_PER_COLUMN))


def _header(
    layout: _Layout,
    labels: Sequence[Sequence[str]],
    colors: Mapping[str, Color],
    frames_per_second: float,
    title: str,
) -> Image.Image:
    """Draw the title, a description and the legend: each class with the time that it sounds.

    Args:
        layout: The layout of the sheet.
        labels: The labels found in each network frame.
        colors: The color of each label.
        frames_per_second: The rate of network frames.
        title: Title of the sheet.
    """
    font = ImageFont.load_default(size=layout.text_size)
    counts = Counter(label for found in labels for label in found)
    entries = [(label, f"{label}  {counts[label] / frames_per_second:g} s") for label in colors if counts[label]]
    available = layout.width - 2 * MARGIN
    widths = [text_font(text, layout.text_size).getlength(text) for _, text in entries]
    positions = _flow([width + 3 * layout.text_size for width in widths], available)

    plural = "" if frames_per_second == 1 else "s"
    description = f"{layout.number / frames_per_second:g} s, {frames_per_second:g} network frame{plural} per second"
    description += f", one in {layout.step} shown" if layout.step > 1 else ""
    description += ", found:" if entries else ", no sounding objects"
    description_top = MARGIN + TITLE_SIZE + GAP
    legend_top = description_top + layout.line_height + GAP
    legend_height = (positions[-1][1] + 1) * layout.line_height if positions else 0
    header = Image.new("RGB", (layout.width, legend_top + legend_height + 2 * GAP), BACKGROUND)
    draw = ImageDraw.Draw(header)
    line = "".join(character if character.isprintable() else " " for character in title)  # e.g. of a file "a\nb.mp4"
    title_font = text_font(line, TITLE_SIZE)
    draw.text((MARGIN, MARGIN), _shortened(line, title_font, available), TEXT_COLOR, title_font, "lt")
    draw.text((MARGIN, description_top + layout.line_height / 2), description, FAINT_TEXT_COLOR, font, "lm")
    for (label, text), (left, line) in zip(entries, positions, strict=True):
        _draw_chip(draw, (MARGIN + left, legend_top + line * layout.line_height), text, colors[label], layout)
    return header


def _flow(widths: Sequence[float], available: float) -> list[tuple[float, int]]:
    """Arrange items of these widths in lines; return the left edge and the line of each."""
    positions, left, line = [], 0.0, 0
    for width in widths:
        if left > 0 and left + width > available:
            left, line = 0.0, line + 1
        positions.append((left, line))
        left += width
    return positions


def _draw_chip(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, color: Color, layout: _Layout
) -> None:
    """Draw a patch of color and a text next to it, in one line from the upper left corner."""
    left, middle = corner[0], corner[1] + layout.line_height / 2
    half = layout.text_size * 0.4
    draw.rounded_rectangle((left, middle - half, left + 2 * half, middle + half), radius=4, fill=color)
    font = text_font(text, layout.text_size)
    draw.text((left + CHIP_INDENT * layout.text_size, middle), text, TEXT_COLOR, font, "lm")


def _shortened(text: str, font: Font, width: float) -> str:
    """Shorten a text to a width in pixels; in a column narrower than the dots, nothing is left."""
    kept, dots = text, ""
    while kept and font.getlength(kept + dots) > width:
        kept, dots = kept[:-1], "..."
    return kept + dots if kept else ""


def _draw_column(
    sheet: Image.Image,
    corner: tuple[int, int],
    frame: np.ndarray,
    result: Mapping[str, Any],
    colors: Mapping[str, Color],
    layout: _Layout,
) -> None:
    """Draw one network frame: its time, the frame, its segments and their labels."""
    left, top = corner
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=layout.text_size)
    draw.text((left, top + layout.line_height / 2), f"{result['timestamp']:.2f} s", FAINT_TEXT_COLOR, font, "lm")
    frame_top = top + layout.line_height
    overlay_top = frame_top + layout.thumbnail[1] + GAP
    thumbnail = Image.fromarray(frame).resize(layout.thumbnail, Image.Resampling.LANCZOS)
    sheet.paste(thumbnail, (left, frame_top))
    sheet.paste(_spotlight(thumbnail, result["segments"], colors), (left, overlay_top))

    chips_top = overlay_top + layout.thumbnail[1] + GAP / 2
    chips = _chips(result["segments"], colors, layout.text_size, layout.thumbnail[0] - CHIP_INDENT * layout.text_size)
    for line, (text, color) in enumerate(chips):
        _draw_chip(draw, (left, chips_top + line * layout.line_height), text, color, layout)


def _chips(
    segments: Sequence[Mapping[str, Any]], colors: Mapping[str, Color], size: int, width: float
) -> list[tuple[str, Color]]:
    """Return the labels and scores below a column, each no wider than `width`, with their colors."""
    chips = []
    for segment in segments:
        score = f" {segment['score']:.0%}"
        font = text_font(segment["label"], size)
        name = _shortened(segment["label"], font, width - font.getlength(score))
        chips.append((name + score, colors[segment["label"]]))
    if len(chips) > CHIPS_PER_COLUMN:
        chips[CHIPS_PER_COLUMN - 1 :] = [(f"and {len(chips) - CHIPS_PER_COLUMN + 1} more", SILENCE_COLOR)]
    return chips or [("none", SILENCE_COLOR)]


def _spotlight(image: Image.Image, segments: Sequence[Mapping[str, Any]], colors: Mapping[str, Color]) -> Image.Image:
    """Mute everything in an image except the segments, and draw them."""
    muted = ImageEnhance.Brightness(ImageEnhance.Color(image).enhance(0.25)).enhance(0.5)
    sounding = Image.new("L", image.size)
    for segment in segments:
        sounding = ImageChops.lighter(sounding, segment["mask"].resize(image.size, Image.Resampling.BILINEAR))
    return draw_segments(Image.composite(image, muted, sounding), segments, colors, labels=False)


def _draw_waveform(
    sheet: Image.Image,
    corner: tuple[int, int],
    numbers: range,
    peaks: np.ndarray,
    labels: Sequence[Sequence[str]],
    colors: Mapping[str, Color],
    layout: _Layout,
) -> None:
    """Draw the audio of a strip: the time of each network frame shaded by its classes, and the waveform over it.

    Args:
        sheet: The sheet to draw on.
        corner: Left and top edge of the waveform, in pixels.
        numbers: Indices of the network frames in the time of the strip.
        peaks: (pixels,), loudness of the whole video in [0, 1].
        labels: The labels found in each network frame of the video.
        colors: The color of each label.
        layout: The layout of the sheet.
    """
    left, top = corner
    draw = ImageDraw.Draw(sheet)
    slot = layout.pitch / layout.step
    for position, number in enumerate(numbers):
        shades = [color for label, color in colors.items() if label in labels[number]]
        shades = [
            tuple(round(SHADE_OPACITY * part + (1 - SHADE_OPACITY) * 255) for part in color) for color in shades
        ] or [SILENCE_COLOR]
        height = WAVE_HEIGHT / len(shades)
        for band, shade in enumerate(shades):
            right = left + (position + 1) * slot - 1
            draw.rectangle(
                (left + position * slot, top + band * height, right, top + (band + 1) * height - 1), fill=shade
            )

    first = round(numbers.start * slot)
    for offset, peak in enumerate(peaks[first : round(numbers.stop * slot)]):
        reach = 0.5 + peak**WAVE_EXPONENT * (WAVE_HEIGHT / 2 - GAP / 2)
        middle = top + WAVE_HEIGHT / 2
        draw.line((left + offset, middle - reach, left + offset, middle + reach), fill=WAVE_COLOR)


def _draw_time_axis(
    sheet: Image.Image, corner: tuple[int, int], numbers: range, layout: _Layout, frames_per_second: float
) -> None:
    """Write the time at each edge between columns below the waveform of a strip."""
    left, top = corner
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=layout.text_size)
    for number in [*numbers[:: layout.step], numbers.stop]:
        x = left + (number - numbers.start) * layout.pitch / layout.step
        draw.line((x, top, x, top + GAP / 2), fill=FAINT_TEXT_COLOR)
        draw.text(
            (x, top + GAP / 2 + layout.line_height / 2),
            f"{number / frames_per_second:g}",
            FAINT_TEXT_COLOR,
            font,
            "mm",
        )
