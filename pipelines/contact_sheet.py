"""One picture that shows at a glance what sounds in a video, and when: frames, masks, and the sound under them.

    sheet = draw_contact_sheet(media.frames, results, colors, waveform=media.waveform, sampling_rate=media.sampling_rate)
    sheet.save("contact_sheet.png")

Time runs from left to right, in strips below each other where one is not enough. Each column shows a network frame, the
same frame with everything muted but what sounds, and the sound of that time, shaded in the colours of what was found.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFont

from .colors import Color
from .overlay import draw_segments
from .timeline import loudness


COLUMNS_PER_STRIP = 10
MOST_STRIPS = 4  # a longer video shows every second, third ... frame
SHEET_WIDTH = 2000
SMALLEST_SHEET_WIDTH = 760
LARGEST_THUMBNAIL = (420, 340)

# Lengths in pixels.
MARGIN = 36
GAP = 10
TITLE_SIZE = 38
TEXT_SIZES = (20, 28)  # smallest and largest: the fewer columns, the larger
LINE_SPACING = 1.4  # of the text size
WAVE_HEIGHT = 120
WAVE_EXPONENT = 0.6  # between amplitude and loudness as heard, so that quiet sounds are seen beside loud ones
CHIPS_PER_COLUMN = 3  # what else was found in a frame is only counted

CHIP_INDENT = 1.2  # of the text size: where a text begins beside its patch of colour

PAPER = (255, 255, 255)
SILENCE = (238, 240, 243)
INK = (24, 28, 36)
FAINT_INK = (112, 120, 132)
WAVE_INK = (44, 51, 64)
SHADE = 0.55  # of the class colour, over paper


@dataclass(frozen=True)
class _Layout:
    """Where everything lies.

    Attributes:
        number: Network frames in the video.
        step: Network frames per column.
        columns: Columns per strip.
        strips: Strips below each other.
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
        """Width of a column, and so of `step` network frames of sound."""
        return self.thumbnail[0] + GAP

    @property
    def width(self) -> int:
        """Width of the sheet."""
        return max(SMALLEST_SHEET_WIDTH, self.columns * self.pitch + 2 * MARGIN)

    @property
    def text_size(self) -> int:
        """Size of all text but the title."""
        return min(max(TEXT_SIZES[0], self.thumbnail[0] // 12), TEXT_SIZES[1])

    @property
    def line_height(self) -> int:
        """Height of a line of text."""
        return round(self.text_size * LINE_SPACING)

    @property
    def strip_height(self) -> int:
        """Height of a strip: times, frames, masks, what was found, sound, its clock."""
        texts = (self.chip_lines + 2) * self.line_height
        return texts + 2 * (self.thumbnail[1] + GAP) + GAP + WAVE_HEIGHT + MARGIN

    def shown(self, strip: int) -> list[int]:
        """Returns the numbers of the network frames that a strip shows, the middle one of each column."""
        return shown_frames(self.number)[strip * self.columns : (strip + 1) * self.columns]

    def span(self, strip: int) -> range:
        """Returns the numbers of all network frames whose time a strip covers."""
        per_strip = self.columns * self.step
        return range(strip * per_strip, min((strip + 1) * per_strip, self.number))


def shown_frames(number: int) -> list[int]:
    """Lists the network frames that a sheet shows, the middle one of each column.

    Args:
        number: Network frames in the video.

    Returns:
        Numbers of frames from 0, ascending; at most as many as there are columns on a sheet.
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
    """Draws frames, masks, waveform and legend on one sheet.

    Args:
        frames: The network's frames at any size, one per result: uint8 arrays (height, width, 3), RGB. Of a long video
            a mapping with those frames alone that [`shown_frames`] lists is enough.
        results: The pipeline's result for this video.
        colors: The colour of every label, from `class_colors`.
        waveform: (channels, samples) or (samples,), sample 0 at time 0; without it the sound is a flat line.
        sampling_rate: Its samples per second in hertz (Hz).
        frames_per_second: The rate of network frames that `results` were made with.
        title: What stands above, usually the name of the file.

    Returns:
        An RGB picture, about 2000 pixels wide from five frames on.

    Raises:
        ValueError: If there is not one frame per result, or one that is shown is not in a mapping.
    """
    shown = shown_frames(len(results)) if results else []
    whole = set(shown) <= frames.keys() if isinstance(frames, Mapping) else len(frames) == len(results)
    if not results or not whole:
        raise ValueError(f"Every result needs its frame, got {len(frames)} frames and {len(results)} results.")
    layout = _layout(frames[shown[0]].shape[:2], [len(result["segments"]) for result in results])
    head = _head(layout, results, colors, frames_per_second, title)
    sheet = Image.new("RGB", (layout.width, head.height + layout.strips * layout.strip_height), PAPER)
    sheet.paste(head)

    seconds = layout.number / frames_per_second
    width = round(layout.number * layout.pitch / layout.step)
    is_silent = waveform is None or sampling_rate is None
    peaks = np.zeros(width) if is_silent else loudness(waveform, sampling_rate, seconds, width)
    for strip in range(layout.strips):
        top = head.height + strip * layout.strip_height
        for column, number in enumerate(layout.shown(strip)):
            corner = (MARGIN + column * layout.pitch + GAP // 2, top)
            _draw_column(sheet, corner, frames[number], results[number], colors, layout)
        sound_top = top + layout.strip_height - MARGIN - layout.line_height - WAVE_HEIGHT
        _draw_sound(sheet, (MARGIN, sound_top), layout.span(strip), peaks, results, colors, layout)
        _draw_clock(sheet, (MARGIN, sound_top + WAVE_HEIGHT), layout.span(strip), layout, frames_per_second)
    return sheet


def _frames_per_column(number: int) -> int:
    """Returns how many of `number` network frames share a column, so that all fit on a sheet."""
    return math.ceil(number / (COLUMNS_PER_STRIP * MOST_STRIPS))


def _layout(frame_size: tuple[int, int], segment_counts: list[int]) -> _Layout:
    """Chooses how many columns and strips there are, and how large a frame of (height, width) may be."""
    number = len(segment_counts)
    step = _frames_per_column(number)
    columns = math.ceil(number / step)
    strips = math.ceil(columns / COLUMNS_PER_STRIP)
    columns = math.ceil(columns / strips)
    width = min(LARGEST_THUMBNAIL[0], (SHEET_WIDTH - 2 * MARGIN) // columns - GAP)
    scale = min(width / frame_size[1], LARGEST_THUMBNAIL[1] / frame_size[0])
    thumbnail = max(1, round(frame_size[1] * scale)), max(1, round(frame_size[0] * scale))
    return _Layout(number, step, columns, strips, thumbnail, min(max(1, *segment_counts), CHIPS_PER_COLUMN))


def _head(
    layout: _Layout,
    results: Sequence[Mapping[str, Any]],
    colors: Mapping[str, Color],
    frames_per_second: float,
    title: str,
) -> Image.Image:
    """Draws the title, what the sheet shows, and the legend: each class with the time that it sounds."""
    font, title_font = ImageFont.load_default(size=layout.text_size), ImageFont.load_default(size=TITLE_SIZE)
    counts = Counter(segment["label"] for result in results for segment in result["segments"])
    entries = [(label, f"{label}  {counts[label] / frames_per_second:g} s") for label in colors if counts[label]]
    available = layout.width - 2 * MARGIN
    places = _flow([font.getlength(text) + 3 * layout.text_size for _, text in entries], available)

    plural = "" if frames_per_second == 1 else "s"
    about = f"{layout.number / frames_per_second:g} s, {frames_per_second:g} network frame{plural} per second"
    about += f", one in {layout.step} shown" if layout.step > 1 else ""
    about += ", found:" if entries else ", nothing sounds"
    about_top = MARGIN + TITLE_SIZE + GAP
    legend_top = about_top + layout.line_height + GAP
    legend_height = (places[-1][1] + 1) * layout.line_height if places else 0
    head = Image.new("RGB", (layout.width, legend_top + legend_height + 2 * GAP), PAPER)
    draw = ImageDraw.Draw(head)
    draw.text((MARGIN, MARGIN), _shortened(title, title_font, available), INK, title_font, "lt")
    draw.text((MARGIN, about_top + layout.line_height / 2), about, FAINT_INK, font, "lm")
    for (label, text), (left, line) in zip(entries, places, strict=True):
        _draw_chip(draw, (MARGIN + left, legend_top + line * layout.line_height), text, colors[label], layout)
    return head


def _flow(widths: Sequence[float], available: float) -> list[tuple[float, int]]:
    """Places things of these widths side by side; gives each one's left edge and line."""
    places, left, line = [], 0.0, 0
    for width in widths:
        if left > 0 and left + width > available:
            left, line = 0.0, line + 1
        places.append((left, line))
        left += width
    return places


def _draw_chip(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, color: Color, layout: _Layout
) -> None:
    """Draws a patch of colour and a text beside it, in one line from its upper left corner on."""
    left, middle = corner[0], corner[1] + layout.line_height / 2
    half = layout.text_size * 0.4
    draw.rounded_rectangle((left, middle - half, left + 2 * half, middle + half), radius=4, fill=color)
    font = ImageFont.load_default(size=layout.text_size)
    draw.text((left + CHIP_INDENT * layout.text_size, middle), text, INK, font, "lm")


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Cuts a text to a width in pixels."""
    kept = text
    while kept and font.getlength(kept) > width:
        kept = kept[:-4] + "..." if kept.endswith("...") else kept[:-3] + "..."
    return kept


def _draw_column(
    sheet: Image.Image,
    corner: tuple[int, int],
    frame: np.ndarray,
    result: Mapping[str, Any],
    colors: Mapping[str, Color],
    layout: _Layout,
) -> None:
    """Draws one network frame: its time, the frame, what sounds in it, and the names of that."""
    left, top = corner
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=layout.text_size)
    draw.text((left, top + layout.line_height / 2), f"{result['timestamp']:.2f} s", FAINT_INK, font, "lm")
    frame_top = top + layout.line_height
    overlay_top = frame_top + layout.thumbnail[1] + GAP
    thumbnail = Image.fromarray(frame).resize(layout.thumbnail, Image.Resampling.LANCZOS)
    sheet.paste(thumbnail, (left, frame_top))
    sheet.paste(_spotlight(thumbnail, result["segments"], colors), (left, overlay_top))

    chips_top = overlay_top + layout.thumbnail[1] + GAP / 2
    chips = _chips(result["segments"], colors, font, layout.thumbnail[0] - CHIP_INDENT * layout.text_size)
    for line, (text, color) in enumerate(chips):
        _draw_chip(draw, (left, chips_top + line * layout.line_height), text, color, layout)


def _chips(
    segments: Sequence[Mapping[str, Any]], colors: Mapping[str, Color], font: ImageFont.FreeTypeFont, width: float
) -> list[tuple[str, Color]]:
    """Lists what stands under a column: names and scores, each no wider than `width`, with their colours."""
    chips = []
    for segment in segments:
        score = f" {segment['score']:.0%}"
        name = _shortened(segment["label"], font, width - font.getlength(score))
        chips.append((name + score, colors[segment["label"]]))
    if len(chips) > CHIPS_PER_COLUMN:
        chips[CHIPS_PER_COLUMN - 1 :] = [(f"and {len(chips) - CHIPS_PER_COLUMN + 1} more", SILENCE)]
    return chips or [("nothing", SILENCE)]


def _spotlight(
    picture: Image.Image, segments: Sequence[Mapping[str, Any]], colors: Mapping[str, Color]
) -> Image.Image:
    """Mutes everything in a picture but what sounds, and draws the segments."""
    muted = ImageEnhance.Brightness(ImageEnhance.Color(picture).enhance(0.25)).enhance(0.5)
    sounding = Image.new("L", picture.size)
    for segment in segments:
        sounding = ImageChops.lighter(sounding, segment["mask"].resize(picture.size, Image.Resampling.BILINEAR))
    return draw_segments(Image.composite(picture, muted, sounding), segments, colors, labels=False)


def _draw_sound(
    sheet: Image.Image,
    corner: tuple[int, int],
    numbers: range,
    peaks: np.ndarray,
    results: Sequence[Mapping[str, Any]],
    colors: Mapping[str, Color],
    layout: _Layout,
) -> None:
    """Draws the sound of a strip: the time of each network frame shaded by what sounds in it, the waveform over that."""
    left, top = corner
    draw = ImageDraw.Draw(sheet)
    slot = layout.pitch / layout.step
    for position, number in enumerate(numbers):
        found = {segment["label"] for segment in results[number]["segments"]}
        shades = [colors[label] for label in colors if label in found]
        shades = [tuple(round(SHADE * part + (1 - SHADE) * 255) for part in color) for color in shades] or [SILENCE]
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
        draw.line((left + offset, middle - reach, left + offset, middle + reach), fill=WAVE_INK)


def _draw_clock(
    sheet: Image.Image, corner: tuple[int, int], numbers: range, layout: _Layout, frames_per_second: float
) -> None:
    """Writes the time at every edge between columns under the sound of a strip."""
    left, top = corner
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=layout.text_size)
    for number in [*numbers[:: layout.step], numbers.stop]:
        x = left + (number - numbers.start) * layout.pitch / layout.step
        draw.line((x, top, x, top + GAP / 2), fill=FAINT_INK)
        draw.text(
            (x, top + GAP / 2 + layout.line_height / 2), f"{number / frames_per_second:g}", FAINT_INK, font, "mm"
        )
