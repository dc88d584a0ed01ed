"""The contact sheet: columns, strips, shades and waveform at their positions."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from pcmanet.pipelines.colors import class_colors
from pcmanet.pipelines.contact_sheet import (
    BACKGROUND,
    MARGIN,
    SHADE_OPACITY,
    SILENCE_COLOR,
    WAVE_COLOR,
    WAVE_HEIGHT,
    draw_contact_sheet,
    shown_frames,
)


COLORS = class_colors({0: "background", 1: "bell", 2: "drum"})
SIZE = (160, 90)
RATE = 8000
FRAME_COLOR = (40, 90, 200)


def frames(number: int) -> list[np.ndarray]:
    return [np.full((SIZE[1], SIZE[0], 3), FRAME_COLOR, np.uint8) for _ in range(number)]


def results(*found: tuple[str, ...]) -> list[dict]:
    """One network frame per argument; bell sounds on the left half, drum on the right half."""
    masks = {label: Image.new("L", SIZE) for label in ("bell", "drum")}
    masks["bell"].paste(255, (0, 0, 80, 90))
    masks["drum"].paste(255, (80, 0, 160, 90))
    return [
        {
            "timestamp": number + 0.9375,
            "segments": [{"label": label, "score": 0.8, "mask": masks[label]} for label in labels],
        }
        for number, labels in enumerate(found)
    ]


def shaded(label: str) -> tuple[int, ...]:
    return tuple(round(SHADE_OPACITY * part + (1 - SHADE_OPACITY) * 255) for part in COLORS[label])


def band(sheet: Image.Image, second: int, seconds: int) -> np.ndarray:
    """The pixels of the waveform of one second, (WAVE_HEIGHT, width, 3), on a sheet with one strip."""
    pixels = np.asarray(sheet)
    covered = (pixels[:, MARGIN + 2 : -MARGIN - 2] != BACKGROUND).any(axis=2).all(axis=1)
    top = np.flatnonzero(covered)[0]  # columns of frames have gaps between them
    width = (sheet.width - 2 * MARGIN) / seconds
    start = round(MARGIN + second * width)
    return pixels[top : top + WAVE_HEIGHT, start + 2 : round(start + width) - 2]


@pytest.fixture(scope="module")
def sheet() -> Image.Image:
    """Five seconds: bell, drum, both, none, bell; the audio is loud in second 1 only."""
    time = np.arange(5 * RATE) / RATE
    waveform = np.where((time >= 1) & (time < 2), 0.5, 0.0005) * np.sin(2 * np.pi * 200 * time)
    found = results(("bell",), ("drum",), ("drum", "bell"), (), ("bell",))
    return draw_contact_sheet(frames(5), found, COLORS, waveform=waveform[None], sampling_rate=RATE, title="a title")


class TestSheet:
    def test_seconds_are_shaded_in_the_colors_of_their_classes(self, sheet: Image.Image):
        top, bottom = 2, WAVE_HEIGHT - 2
        expected = [("bell", "bell"), ("drum", "drum"), ("bell", "drum"), None, ("bell", "bell")]
        for second, shades in enumerate(expected):
            pixels = band(sheet, second, 5)
            upper, lower = (SILENCE_COLOR, SILENCE_COLOR) if shades is None else map(shaded, shades)
            assert (pixels[top] == upper).all(), second
            assert (pixels[bottom] == lower).all(), second

    def test_waveform_is_below_its_second(self, sheet: Image.Image):
        reach = [(band(sheet, second, 5) == WAVE_COLOR).all(axis=2).sum(axis=0).mean() for second in range(5)]
        assert reach[1] > 0.8 * WAVE_HEIGHT
        assert max(reach[:1] + reach[2:]) < 6

    def test_frames_are_muted_outside_of_segments(self, sheet: Image.Image):
        pixels = np.asarray(sheet)
        pitch = (sheet.width - 2 * MARGIN) / 5
        for second, found in enumerate([("bell",), ("drum",), ("bell", "drum"), (), ("bell",)]):
            for label, quarter in (("bell", 0.25), ("drum", 0.75)):
                column = pixels[:, round(MARGIN + (second + quarter) * pitch)]
                pure = (column == FRAME_COLOR).all(axis=1).sum()
                painted = np.array([0.6 * a + 0.4 * b for a, b in zip(FRAME_COLOR, COLORS[label], strict=True)])
                lit = (np.abs(column - painted).max(axis=1) <= 3).sum()
                assert pure > 100, (second, label)
                assert (lit > 80) == (label in found), (second, label)

    def test_size(self, sheet: Image.Image):
        assert sheet.mode == "RGB"
        assert 1900 <= sheet.width <= 2000
        assert 600 <= sheet.height <= 1100


@pytest.mark.parametrize(
    ("number", "columns", "strips"), [(1, 1, 1), (3, 3, 1), (10, 10, 1), (11, 6, 2), (20, 10, 2), (90, 10, 3)]
)
def test_wraps_and_subsamples(number: int, columns: int, strips: int):
    sheet = draw_contact_sheet(frames(number), results(*[("bell",)] * number), COLORS)
    pure = (np.asarray(sheet) == FRAME_COLOR).all(axis=2)
    starts = np.diff(pure.any(axis=1).astype(int)) == 1
    assert starts.sum() == strips
    row = pure[np.flatnonzero(starts)[0] + 20]
    assert (np.diff(row.astype(int)) == 1).sum() == columns
    assert sheet.width <= 2000


def test_time_axis_follows_frames_per_second():
    slow = draw_contact_sheet(frames(4), results(("bell",), (), (), ()), COLORS)
    fast = draw_contact_sheet(frames(4), results(("bell",), (), (), ()), COLORS, frames_per_second=2)
    assert slow.size == fast.size
    assert slow.tobytes() != fast.tobytes()


def test_every_result_is_read_once():
    """Except those that are drawn, at most 40: reading a result of `pcmanet segment` decodes its masks."""
    reads = Counter()

    class Recorded(list):
        def __getitem__(self, number):
            reads[number] += 1
            return super().__getitem__(number)

        def __iter__(self):
            return (self[number] for number in range(len(self)))

    number = 200
    found = Recorded(results(*[("bell",)] * number))
    draw_contact_sheet(dict.fromkeys(shown_frames(number), frames(1)[0]), found, COLORS)
    assert all(reads[index] == 1 + (index in shown_frames(number)) for index in range(number))


def test_title_is_one_line():
    found = results(("bell",))
    one, other = (
        draw_contact_sheet(frames(1), found, COLORS, title=title) for title in ("new\nline.mp4", "new line.mp4")
    )
    assert one.tobytes() == other.tobytes()


def test_portrait_frames_and_many_classes_fit():
    colors = class_colors({index: f"a class with a long name {index}" for index in range(30)})
    mask = Image.new("L", (90, 160), 255)
    segments = [{"label": label, "score": 0.5, "mask": mask} for label in colors]
    portrait = [np.zeros((160, 90, 3), np.uint8)] * 2
    found = [{"timestamp": 0.9, "segments": segments}, {"timestamp": 1.9, "segments": []}]
    sheet = draw_contact_sheet(portrait, found, colors, title="long " * 60)
    pixels = np.asarray(sheet)
    assert sheet.height < 2500
    assert (pixels[:, : MARGIN // 2] == BACKGROUND).all()
    assert (pixels[:, -MARGIN // 2 :] == BACKGROUND).all()


@pytest.mark.parametrize("size", [(80, 400), (4, 2000), (2000, 4)])
def test_frames_of_any_shape_fit(size: tuple[int, int]):
    """Below a narrow frame there is no space for a label, not even for its dots."""
    mask = Image.new("L", size, 255)
    found = [{"timestamp": 0.9375, "segments": [{"label": "bell", "score": 0.8, "mask": mask}]}]
    drawn = draw_contact_sheet([np.zeros((size[1], size[0], 3), np.uint8)], found, COLORS)
    assert COLORS["bell"] in {color for _, color in drawn.getcolors(drawn.width * drawn.height)}


def test_silent_waveform_is_a_line():
    sheet = draw_contact_sheet(frames(5), results(*[()] * 5), COLORS, waveform=np.zeros(5 * RATE), sampling_rate=RATE)
    ink = (band(sheet, 2, 5) == WAVE_COLOR).all(axis=2)
    assert set(ink.sum(axis=0)) <= {1, 2}


@pytest.mark.parametrize(("number", "found"), [(2, 3), (0, 0)])
def test_number_of_frames_and_results_must_match(number: int, found: int):
    with pytest.raises(ValueError, match=f"got {number} frames and {found} results"):
        draw_contact_sheet(frames(number), results(*[()] * found), COLORS)


@pytest.mark.parametrize("number", [1, 40, 41, 100])
def test_shown_frames_are_sufficient(number: int):
    shown = shown_frames(number)
    assert len(shown) <= 40
    assert shown == sorted(set(shown))
    assert set(shown) <= set(range(number))
    colored = [np.full((SIZE[1], SIZE[0], 3), 2 * index, np.uint8) for index in range(number)]
    found = results(*[("bell",)] * number)
    part = {index: colored[index] for index in shown}
    assert draw_contact_sheet(part, found, COLORS).tobytes() == draw_contact_sheet(colored, found, COLORS).tobytes()
    part.pop(shown[-1])
    with pytest.raises(ValueError, match=f"got {len(part)} frames and {number} results"):
        draw_contact_sheet(part, found, COLORS)
