"""Colors of classes. A class has the same color in every video, mask file and contact sheet of a model."""

import functools
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np


Color: TypeAlias = tuple[int, int, int]

# Chosen by hand for the few classes that most models have; `_palette` extends them.
FIRST_COLORS: tuple[Color, ...] = (
    (255, 82, 54),
    (38, 157, 255),
    (255, 190, 11),
    (22, 196, 127),
    (158, 92, 255),
    (255, 84, 168),
    (0, 209, 228),
    (166, 226, 46),
    (196, 112, 58),
    (70, 88, 214),
    (255, 172, 136),
    (12, 140, 132),
    (184, 52, 184),
    (244, 236, 120),
)
PALETTE_SIZE = 256  # the largest palette of a PNG file


def class_colors(id2label: Mapping[int, str]) -> dict[str, Color]:
    """Return the color of each class, which depends only on the class index.

    Args:
        id2label: The model's `config.id2label`. With several classes, index 0 is the background and has no color.

    Returns:
        The (red, green, blue) of each label, 0 to 255.

    Raises:
        ValueError: If there are more classes than colors.
    """
    if len(id2label) > PALETTE_SIZE:
        raise ValueError(f"Expected at most {PALETTE_SIZE} classes, one per color, got {len(id2label)}.")
    return {label: _palette()[index] for index, label in id2label.items() if index > 0 or len(id2label) == 1}


def readable_on(color: Color) -> Color:
    """Return black or white for text on a background of `color`, whichever has more contrast."""
    return (16, 16, 16) if _oklab(np.array([color]))[0, 0] > 0.62 else (255, 255, 255)


@functools.cache
def _palette() -> list[Color]:
    """Extend the first colors, each new one as far as possible from all before it, in a perceptual space (Oklab).

    Dark, pale and gray colors are excluded, because they would be invisible on a frame or suggest the background.
    """
    steps = np.linspace(0, 255, 18).round()
    rgb = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    oklab = _oklab(rgb)
    vivid = (np.hypot(oklab[:, 1], oklab[:, 2]) > 0.11) & (np.abs(oklab[:, 0] - 0.7) < 0.18)
    rgb, oklab = rgb[vivid], oklab[vivid]

    colors = list(FIRST_COLORS)
    distance = np.linalg.norm(oklab[:, None] - _oklab(np.array(FIRST_COLORS)), axis=2).min(axis=1)
    while len(colors) < PALETTE_SIZE:
        farthest = int(distance.argmax())
        red, green, blue = (int(value) for value in rgb[farthest])
        colors.append((red, green, blue))
        distance = np.minimum(distance, np.linalg.norm(oklab - oklab[farthest], axis=1))
    return colors


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB (n, 3) in [0, 255] to Oklab (n, 3): https://bottosson.github.io/posts/oklab."""
    srgb = rgb / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.cbrt(linear @ np.array(to_cones).T) @ np.array(to_lab).T
