import numpy as np
import pytest

from pcmanet.dataset_scripts.synthetic_looks import CLASSES, EXTENT, NOISE_CELLS, SHAPES, TEXTURES, Surface


STEP = 0.01  # radii
AXIS = np.arange(-2.0, 2.0, STEP, dtype=np.float32) + np.float32(STEP / 2)
X, Y = np.meshgrid(AXIS, AXIS)
EACH_CLASS = pytest.mark.parametrize("label", range(12), ids=CLASSES)


def texture(label: int, detail: float = 1.0) -> np.ndarray:
    noise = np.random.default_rng(0).uniform(0.0, 1.0, (NOISE_CELLS, NOISE_CELLS)).astype(np.float32)
    surface = Surface(X, Y, SHAPES[label](X, Y), detail, noise, pixels=1.0 / STEP)
    return TEXTURES[label](surface)


def test_there_are_twelve_classes():
    assert len(CLASSES) == len(set(CLASSES)) == len(SHAPES) == len(TEXTURES) == 12


@EACH_CLASS
def test_a_shape_is_of_decent_size_and_stays_within_its_extent(label):
    inside = SHAPES[label](X, Y) < 0.0
    assert 1.5 < inside.sum() * STEP**2 < 3.3
    assert max(np.abs(X[inside]).max(), np.abs(Y[inside]).max(), np.hypot(X[inside], Y[inside]).max()) < EXTENT


@EACH_CLASS
def test_a_shape_is_a_distance_near_its_outline(label):
    # Antialiasing needs a slope of about one radius per radius where the distance is zero.
    distance = SHAPES[label](X, Y)
    slope = np.hypot(*np.gradient(distance, STEP))[np.abs(distance) < 0.02]
    assert 0.8 < np.median(slope) < 1.2


def test_no_shape_is_another_turned():
    # A fingerprint that turning leaves alone: how much of each circle around the centre lies inside.
    angles = np.linspace(0.0, 2.0 * np.pi, 720, endpoint=False)
    radii = np.linspace(0.05, 1.25, 25)[:, None]
    prints = [(shape(radii * np.cos(angles), radii * np.sin(angles)) < 0.0).mean(axis=1) for shape in SHAPES]
    apart = np.abs(np.array(prints)[:, None] - np.array(prints)).max(axis=2) + np.eye(12)
    assert apart.min() > 0.12


@EACH_CLASS
def test_a_texture_blends_two_colours(label):
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
