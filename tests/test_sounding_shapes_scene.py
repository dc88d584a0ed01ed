"""Tests of dataset_scripts/sounding_shapes/scene.py: shapes, textures and scenes."""

from dataclasses import replace

import numpy as np
import pytest

from pcmanet.dataset_scripts.sounding_shapes.scene import (
    CLASSES,
    EXTENT,
    NOISE_CELLS,
    SHAPES,
    TEXTURES,
    Scene,
    ShapeObject,
    Surface,
    visible_fractions,
)


STEP = 0.01  # radii
AXIS = np.arange(-2.0, 2.0, STEP, dtype=np.float32) + np.float32(STEP / 2)
X, Y = np.meshgrid(AXIS, AXIS)
EACH_CLASS = pytest.mark.parametrize("label", range(12), ids=CLASSES)


def texture(label: int, detail: float = 1.0) -> np.ndarray:
    noise = np.random.default_rng(0).uniform(0.0, 1.0, (NOISE_CELLS, NOISE_CELLS)).astype(np.float32)
    surface = Surface(X, Y, SHAPES[label](X, Y), detail, noise, pixels=1.0 / STEP)
    return TEXTURES[label](surface)


@EACH_CLASS
def test_a_shape_has_a_reasonable_size_and_stays_within_its_extent(label):
    inside = SHAPES[label](X, Y) < 0.0
    assert 1.5 < inside.sum() * STEP**2 < 3.3
    assert max(np.abs(X[inside]).max(), np.abs(Y[inside]).max(), np.hypot(X[inside], Y[inside]).max()) < EXTENT


@EACH_CLASS
def test_a_shape_is_a_distance_near_its_outline(label):
    # Antialiasing needs a slope of about one radius per radius where the distance is zero.
    distance = SHAPES[label](X, Y)
    slope = np.hypot(*np.gradient(distance, STEP))[np.abs(distance) < 0.02]
    assert 0.8 < np.median(slope) < 1.2


def test_no_shape_is_a_rotation_of_another():
    # A fingerprint that is invariant to rotation: the fraction of each circle around the center that is inside.
    angles = np.linspace(0.0, 2.0 * np.pi, 720, endpoint=False)
    radii = np.linspace(0.05, 1.25, 25)[:, None]
    prints = [(shape(radii * np.cos(angles), radii * np.sin(angles)) < 0.0).mean(axis=1) for shape in SHAPES]
    apart = np.abs(np.array(prints)[:, None] - np.array(prints)).max(axis=2) + np.eye(12)
    assert apart.min() > 0.12


@EACH_CLASS
def test_a_texture_blends_two_colors(label):
    blend = texture(label)[SHAPES[label](X, Y) < 0.0]
    assert blend.min() >= 0.0
    assert blend.max() <= 1.0
    if CLASSES[label] == "plain-ring":
        assert not blend.any()
    else:
        assert 0.2 < blend.mean() < 0.8
        assert blend.std() > 0.2


def test_detail_makes_lines_finer():
    crossings = [np.abs(np.diff(texture(0, detail)[200] > 0.5)).sum() for detail in (1.0, 1.15)]
    assert crossings[1] > crossings[0]


TIMES = [second + 15 / 16 for second in range(5)]


def draw(seed: int, aspect: float = 1.0) -> Scene:
    return Scene.draw(np.random.default_rng(seed), aspect, TIMES)


def still(shape: ShapeObject, **changes) -> ShapeObject:
    """Return the object without motion."""
    return replace(shape, amplitude=np.zeros((2, 2)), spin=0.0, **changes)


def complete_area(shape: ShapeObject, side: int) -> float:
    """Return the pixels that the object would cover if nothing covered it."""
    axis = (np.arange(400, dtype=np.float32) + 0.5) / 150.0 - 4.0 / 3.0
    return (SHAPES[shape.label](*np.meshgrid(axis, axis)) < 0.0).sum() * (shape.radius * side / 150.0) ** 2


def test_objects_differ_in_class_and_have_the_documented_sizes():
    scenes = [draw(seed) for seed in range(60)]
    for scene in scenes:
        labels = [shape.label for shape in scene.objects]
        assert len(set(labels)) == len(labels)
        assert all(0.13 <= shape.radius <= 0.24 for shape in scene.objects)
    assert {len(scene.objects) for scene in scenes} == {2, 3, 4}
    assert {shape.label for scene in scenes for shape in scene.objects} == set(range(len(CLASSES)))


@pytest.mark.parametrize("aspect", [1.0, 16 / 9, 0.6])
def test_objects_cover_each_other_but_never_hide(aspect):
    height, width = (112, round(112 * aspect)) if aspect >= 1 else (round(112 / aspect), 112)
    fractions = []
    for seed in range(25):
        scene = draw(seed, width / height)
        for time in TIMES:
            _, positions = scene.render(height, width, time)
            fractions += [(positions == k + 1).sum() / complete_area(o, 112) for k, o in enumerate(scene.objects)]
    assert min(fractions) > 0.35
    assert max(fractions) < 1.1
    assert 0.04 < np.mean(np.array(fractions) < 0.9) < 0.4


def test_visible_fractions_agree_with_the_rendered_frame():
    scene = draw(9)
    _, positions = scene.render(400, 400, 2.0)
    rendered = [(positions == k + 1).sum() / complete_area(shape, 400) for k, shape in enumerate(scene.objects)]
    np.testing.assert_allclose(visible_fractions(scene.objects, np.ones(2), 2.0), rendered, atol=0.08)


@pytest.mark.parametrize("label", range(12), ids=CLASSES)
def test_no_tip_is_cut_off_at_any_angle(label):
    scene = draw(1)
    for angle in np.linspace(0.0, np.pi / 2, 7):
        shape = still(scene.objects[0], label=label, path_center=np.array([0.5, 0.5]), angle=angle, radius=0.3)
        _, positions = replace(scene, objects=(shape,)).render(240, 240, 0.0)
        assert positions.sum() == pytest.approx(complete_area(shape, 240), rel=0.02)


def test_the_foremost_object_covers_the_others():
    rear, front = (still(shape, path_center=np.array([0.5, 0.5]), radius=0.2) for shape in draw(2).objects[:2])
    rear, front = replace(rear, label=0), replace(front, label=1)
    _, positions = replace(draw(2), objects=(rear, front)).render(100, 100, 0.0)
    assert positions[50, 50] == 2
    _, positions = replace(draw(2), objects=(front, rear)).render(100, 100, 0.0)
    assert positions[50, 50] == 2
    assert (positions == 2).sum() == pytest.approx(np.pi * 20**2, rel=0.02)


def test_outlines_are_antialiased_and_interiors_are_not():
    shape = still(draw(3).objects[0], label=4, path_center=np.array([0.5, 0.5]), radius=0.3, angle=0.0)
    shape = replace(shape, colors=np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=np.float32))
    scene = replace(draw(3), colors=np.zeros((2, 3), np.float32), strengths=np.zeros(3), objects=(shape,))
    frame, positions = scene.render(100, 100, 0.0)
    red = frame[..., 0]
    assert set(np.unique(frame[..., 1:])) == {0}
    assert ((red > 10) & (red < 245)).sum() > 50
    np.testing.assert_array_equal(red > 127, positions == 1)


@pytest.mark.parametrize("seed", range(5))
def test_objects_move_smoothly_and_mostly_inside(seed):
    for shape in draw(seed).objects:
        path = np.array([shape.center(time) for time in np.arange(0.0, 5.0, 0.04)])
        steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
        assert steps.max() < 0.04  # short sides per frame
        assert 0.1 < steps.sum() < 4.0
        assert path.min() > -0.1
        assert path.max() < 1.1


def test_colors_differ_from_the_background():
    for scene in (draw(seed) for seed in range(50)):
        for shape in scene.objects:
            apart = np.linalg.norm(shape.colors[0] - scene.colors, axis=1)
            assert apart.min() > 0.3
            assert np.linalg.norm(shape.colors[0] - shape.colors[1]) > 0.3
