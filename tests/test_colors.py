"""Colors of classes, and of text on them."""

import numpy as np
import pytest

from pcmanet.pipelines.colors import class_colors, readable_on


def test_binary_class_has_the_first_color():
    assert class_colors({0: "sounding"}) == {"sounding": (255, 82, 54)}


def test_background_has_no_color():
    assert list(class_colors({0: "background", 1: "bell", 2: "drum"})) == ["bell", "drum"]


def test_color_depends_on_the_index_alone():
    many = class_colors({index: f"class {index}" for index in range(71)})
    few = class_colors({0: "background", 1: "bell", 2: "drum"})
    assert (many["class 1"], many["class 2"]) == (few["bell"], few["drum"])


def test_colors_of_avsbench_are_far_apart():
    colors = np.array(list(class_colors({index: str(index) for index in range(71)}).values()), dtype=float)
    distance = np.linalg.norm(colors[:, None] - colors[None], axis=2) + 1e3 * np.eye(len(colors))
    assert distance.min() > 20


def test_more_classes_than_colors():
    with pytest.raises(ValueError, match="at most 256 classes, .* got 300"):
        class_colors({index: str(index) for index in range(300)})


def test_text_has_contrast():
    assert readable_on((255, 255, 0)) == (16, 16, 16)
    assert readable_on((0, 0, 140)) == (255, 255, 255)
