"""Stage maps, on outputs whose every pixel is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pcmanet.pipelines.colors import class_colors
from pcmanet.pipelines.overlay import FILL_OPACITY
from pcmanet.pipelines.stage_maps import UNCERTAINTY_COLOR, draw_stage_maps


SIDE = 64
FRAME_COLOR = (40, 90, 200)
FRAME = Image.new("RGB", (SIDE, SIDE), FRAME_COLOR)
ID2LABEL = {0: "background", 1: "bell", 2: "drum"}
COLORS = class_colors(ID2LABEL)
CERTAIN = 20.0


def outputs(num_labels: int, **changes: torch.Tensor) -> SimpleNamespace:
    """Two clips of two frames; every stage is certain of the background, and the later ones query no position."""
    silence = torch.full((2, 2, num_labels, 16, 16), -CERTAIN)
    if num_labels > 1:
        silence[:, :, 0] = CERTAIN
    masks = tuple(torch.zeros(2, 2, side, side, dtype=torch.bool) for side in (2, 4, 8))
    return SimpleNamespace(stage_logits=tuple(silence.clone() for _ in range(4)), confidence_masks=masks, **changes)


def region(image: Image.Image, rows: slice, columns: slice) -> np.ndarray:
    return np.asarray(image)[rows, columns].reshape(-1, 3)


LEFT, RIGHT = slice(0, SIDE // 2 - 12), slice(SIDE // 2 + 12, SIDE)
ALL = slice(None)


class TestPrediction:
    @pytest.mark.parametrize("label, class_id", [("bell", 1), ("drum", 2)])
    def test_classes_are_drawn_in_their_colors(self, label: str, class_id: int):
        given = outputs(3)
        given.stage_logits[2][1, 0, class_id, :, :8] = 3 * CERTAIN
        stages = draw_stage_maps(FRAME, given, COLORS, ID2LABEL, clip=1, number=0)
        for stage in stages:
            right = region(stage.prediction, ALL, RIGHT)
            assert (right == FRAME_COLOR).all(), stage.number
        inside = region(stages[2].prediction, slice(8, -8), slice(8, 20)).astype(float)
        expected = (1 - FILL_OPACITY) * np.array(FRAME_COLOR) + FILL_OPACITY * np.array(COLORS[label])
        np.testing.assert_allclose(inside, np.broadcast_to(expected, inside.shape), atol=2)
        assert (region(stages[1].prediction, ALL, LEFT) == FRAME_COLOR).all()
        assert (np.asarray(draw_stage_maps(FRAME, given, COLORS, ID2LABEL)[2].prediction) == FRAME_COLOR).all()

    def test_binary_task_predicts_pixels_above_one_half(self):
        given = outputs(1)
        given.stage_logits[3][0, 1, 0, :, :8] = 0.1
        names = {0: "sounding"}
        last = draw_stage_maps(FRAME, given, class_colors(names), names, number=1)[3]
        assert (region(last.prediction, ALL, LEFT) != FRAME_COLOR).any(axis=1).all()
        assert (region(last.prediction, ALL, RIGHT) == FRAME_COLOR).all()
        # Half of the frame has probability sigmoid(0.1), the other half 1.
        assert last.certainty == pytest.approx(0.5 * 0.525 + 0.5, abs=0.03)


class TestUncertainty:
    def test_stages_query_where_the_stage_before_was_uncertain(self):
        given = outputs(3)
        given.confidence_masks[0][0, 0, :, 0] = True
        given.confidence_masks[1][0, 0, 0, 0] = True
        stages = draw_stage_maps(FRAME, given, COLORS, ID2LABEL)
        assert [stage.number for stage in stages] == [1, 2, 3, 4]
        assert [stage.queried for stage in stages] == [1.0, 0.5, 1 / 16, 0.0]
        assert (region(stages[0].uncertainty, ALL, ALL) == FRAME_COLOR).all()
        assert (region(stages[1].uncertainty, ALL, slice(0, 32)) == FRAME_COLOR).all()
        assert region(stages[1].uncertainty, ALL, slice(32, 64)).max() < 80
        assert (region(stages[2].uncertainty, slice(0, 16), slice(0, 16)) == FRAME_COLOR).all()
        assert region(stages[3].uncertainty, ALL, ALL).max() < 80

    def test_uncertain_pixels_are_highlighted(self):
        given = outputs(3)
        given.stage_logits[0][0, 0, :, :, :8] = 0.0  # three equal classes
        first = draw_stage_maps(FRAME, given, COLORS, ID2LABEL)[0]
        assert first.certainty == pytest.approx((1 / 3 + 1) / 2, abs=0.05)
        highlighted = region(first.uncertainty, ALL, LEFT).astype(float)
        opacity = (highlighted - FRAME_COLOR) / (np.array(UNCERTAINTY_COLOR) - FRAME_COLOR)
        np.testing.assert_allclose(opacity, np.sqrt(2 / 3), atol=0.03)
        assert (region(first.uncertainty, ALL, RIGHT) == FRAME_COLOR).all()


def test_maps_have_the_size_of_the_frame():
    frame = Image.new("L", (50, 30), 128)
    for stage in draw_stage_maps(frame, outputs(3), COLORS, ID2LABEL):
        assert stage.prediction.size == stage.uncertainty.size == (50, 30)
