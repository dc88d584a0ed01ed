"""The panel: each row shows frame, prediction and ground truth, in the colors of the legend."""

import numpy as np
import pytest
import torch

from pcmanet.pipelines.colors import class_colors
from pcmanet.pipelines.panel import GAP, LINE_HEIGHT, SMALLEST_CELL, draw_panel


NAMES = {0: "background", 1: "dog", 2: "violin"}


def images(rows: int = 2, side: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gray frames; class 1 predicted on the left, class 2 annotated on the right, the bottom not annotated."""
    frames = np.full((rows, side, side, 3), 120, np.uint8)
    masks, labels = np.zeros((2, rows, side, side), np.int64)
    masks[:, :, : side // 2] = 1
    labels[:, :, side // 2 :] = 2
    labels[:, 3 * side // 4 :] = 255
    return frames, masks, labels


def test_rows_show_frame_prediction_and_ground_truth():
    panel = np.asarray(draw_panel(*images(), NAMES)).astype(int)
    cell = SMALLEST_CELL
    assert panel.shape == (LINE_HEIGHT + 2 * (cell + GAP) + LINE_HEIGHT, 3 * (cell + GAP) + GAP, 3)
    colors = class_colors(NAMES)
    for row in range(2):
        top = LINE_HEIGHT + row * (cell + GAP)
        frame, prediction, truth = (
            panel[top : top + cell, GAP + column * (cell + GAP) :][:, :cell] for column in range(3)
        )
        assert (frame == 120).all()
        # Away from the edges: the fill of the class over the frame inside the mask, the frame elsewhere.
        fill = {name: 120 + 0.4 * (np.array(color) - 120) for name, color in colors.items()}
        assert prediction[50, 50] == pytest.approx(fill["dog"], abs=2)
        assert prediction[50, 180] == pytest.approx([120] * 3)
        assert truth[50, 180] == pytest.approx(fill["violin"], abs=2)
        assert truth[50, 50] == pytest.approx([120] * 3)
        assert truth[210, 50] == pytest.approx([36] * 3)  # not annotated
    legend = panel[-LINE_HEIGHT:].reshape(-1, 3)
    assert all((legend == color).all(axis=1).any() for color in (colors["dog"], colors["violin"]))


@pytest.mark.parametrize("names", [None, {0: "sounding"}])
def test_binary_panel_has_one_color(names):
    frames, masks, labels = images(1)
    labels[labels == 2] = 1
    panel = np.asarray(draw_panel(torch.from_numpy(frames), torch.from_numpy(masks), torch.from_numpy(labels), names))
    prediction, truth = (panel[LINE_HEIGHT + 50, GAP + column * (SMALLEST_CELL + GAP) :] for column in (1, 2))
    assert np.array_equal(prediction[50], truth[180])
    assert not np.array_equal(prediction[50], prediction[180])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frames, masks, labels: (frames / 255, masks, labels), "Expected uint8 frames"),
        (lambda frames, masks, labels: (frames, masks[:1], labels), "with 2 rows"),
        (lambda frames, masks, labels: (frames, masks + 2, labels), "a pixel of class 3"),
        (lambda frames, masks, labels: (frames[:0], masks[:0], labels[:0]), "Expected uint8 frames"),
    ],
)
def test_arrays_that_do_not_match_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        draw_panel(*change(*images()), NAMES)
