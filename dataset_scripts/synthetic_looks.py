"""The look families of Sounding Shapes: twelve shapes, each with its own texture and with any two colours.

A shape is a signed distance to its outline and a texture a blend of two colours. Both are functions of the object's own
coordinates: x to the right and y down, in radii from its centre, turned with the object.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


NOISE_CELLS = 16  # the side of a noise table, which repeats
EXTENT = 1.35  # no shape reaches farther than this many radii from its centre

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 1.0


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.85


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(0.8660254 * np.abs(x) - 0.5 * y, y) - 0.62


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Fold the plane onto one tenth of the star; the edge from tip to notch is then one straight line.
    sector = 2.0 * np.pi / 5.0
    angle = np.abs((np.arctan2(y, x) + sector / 2.0) % sector - sector / 2.0)
    radius = np.hypot(x, y)
    tip, notch = 1.2, 0.68
    notch_x, notch_y = notch * np.cos(sector / 2.0), notch * np.sin(sector / 2.0)
    length = np.hypot(tip - notch_x, notch_y)
    return ((radius * np.cos(angle) - tip) * notch_y + radius * np.sin(angle) * (tip - notch_x)) / length


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.72) - 0.3


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    across, along = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
    return np.maximum(across - 0.4, along - 1.08)


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y) - 1.05, 0.75 - np.hypot(x - 0.62, y))


def _hexagon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(0.8660254 * np.abs(x) + 0.5 * np.abs(y), np.abs(y)) - 0.88


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # A square on its corner with a disc on each of its two upper sides.
    square = (np.abs(x) + np.abs(y - 0.2)) * 0.70710678 - 0.64
    discs = np.hypot(np.abs(x) - 0.4525, y + 0.2525) - 0.64
    return np.minimum(square, discs)


def _diamond(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.abs(x) * 1.2 + np.abs(y) * 0.68) / 1.379 - 0.65


def _flower(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.85 * (np.hypot(x, y) - 0.88 - 0.2 * np.cos(6.0 * np.arctan2(y, x)))


def _capsule(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(np.maximum(np.abs(x) - 0.62, 0.0), y) - 0.52


@dataclass(frozen=True)
class Surface:
    """What a texture is drawn from: coordinates in radii, already turned with the object, float32 (rows, columns).

    Attributes:
        x: Across.
        y: Down.
        distance: Signed distance to the outline, negative inside.
        detail: Texture lines per radius relative to the family's own.
        noise: The object's noise table, float32 (NOISE_CELLS, NOISE_CELLS) in [0, 1].
        pixels: The object's radius in pixels, which sets how soft an antialiased step is.
    """

    x: np.ndarray
    y: np.ndarray
    distance: np.ndarray
    detail: float
    noise: np.ndarray
    pixels: float

    def turns(self, per_radius: float) -> np.float32:
        """Radians per radius of a wave with so many periods per radius."""
        return np.float32(2.0 * np.pi * per_radius * self.detail)

    def step(self, wave: np.ndarray, slope: float) -> np.ndarray:
        """Blend in [0, 1] that changes over one pixel where `wave`, of that slope per radius, crosses zero."""
        return np.clip(0.5 + np.float32(self.pixels / slope) * wave, 0.0, 1.0)


def _striped(surface: Surface) -> np.ndarray:
    return surface.step(np.sin(surface.turns(2.2) * surface.x), 13.0)


def _checkered(surface: Surface) -> np.ndarray:
    turn = surface.turns(1.25)
    return surface.step(np.sin(turn * surface.x) * np.sin(turn * surface.y), 7.0)


def _dotted(surface: Surface) -> np.ndarray:
    turn = surface.turns(1.5)
    return surface.step(np.cos(turn * surface.x) + np.cos(turn * surface.y) - 0.7, 14.0)


def _ringed(surface: Surface) -> np.ndarray:
    return surface.step(np.cos(surface.turns(2.0) * np.hypot(surface.x, surface.y)), 14.0)


def _plain(surface: Surface) -> np.ndarray:
    return np.zeros_like(surface.x)


def _gridded(surface: Surface) -> np.ndarray:
    turn = surface.turns(1.9)
    return surface.step(np.maximum(np.cos(turn * surface.x), np.cos(turn * surface.y)) - 0.6, 13.0)


def _shaded(surface: Surface) -> np.ndarray:
    return np.clip(0.5 + 0.5 * surface.y, 0.0, 1.0)


def _spoked(surface: Surface) -> np.ndarray:
    return surface.step(np.sin(6.0 * np.arctan2(surface.y, surface.x)) * np.hypot(surface.x, surface.y), 6.0)


def _speckled(surface: Surface) -> np.ndarray:
    return surface.step(_lookup(surface.noise, surface.x * 4.0, surface.y * 4.0) - 0.5, 4.0)


def _zigzag(surface: Surface) -> np.ndarray:
    fold = np.abs((surface.x * np.float32(3.0 * surface.detail)) % 1.0 - 0.5)
    return surface.step(np.sin(surface.turns(1.5) * surface.y + 9.0 * fold), 20.0)


def _framed(surface: Surface) -> np.ndarray:
    return surface.step(surface.distance + 0.3, 1.0)


def _halved(surface: Surface) -> np.ndarray:
    return surface.step(surface.x, 1.0)


def _lookup(table: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear value of a repeating table (cells, cells) at coordinates in cells."""
    left, top = np.floor(x), np.floor(y)
    across, down = x - left, y - top
    left, top = left.astype(np.int64) % NOISE_CELLS, top.astype(np.int64) % NOISE_CELLS
    right, bottom = (left + 1) % NOISE_CELLS, (top + 1) % NOISE_CELLS
    upper = table[top, left] + across * (table[top, right] - table[top, left])
    lower = table[bottom, left] + across * (table[bottom, right] - table[bottom, left])
    return upper + down * (lower - upper)


# One shape and one texture per class; the order is the order of the class indexes.
LOOKS: dict[str, tuple[Shape, Callable[[Surface], np.ndarray]]] = {
    "striped-disc": (_disc, _striped),
    "checkered-square": (_square, _checkered),
    "dotted-triangle": (_triangle, _dotted),
    "ringed-star": (_star, _ringed),
    "plain-ring": (_ring, _plain),
    "gridded-cross": (_cross, _gridded),
    "shaded-crescent": (_crescent, _shaded),
    "spoked-hexagon": (_hexagon, _spoked),
    "speckled-heart": (_heart, _speckled),
    "zigzag-diamond": (_diamond, _zigzag),
    "framed-flower": (_flower, _framed),
    "halved-capsule": (_capsule, _halved),
}
CLASSES = tuple(LOOKS)
SHAPES = tuple(shape for shape, _ in LOOKS.values())
TEXTURES = tuple(texture for _, texture in LOOKS.values())
