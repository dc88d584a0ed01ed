"""Draw and render the scenes of Sounding Shapes: objects that move over a background.

The class of an object determines its shape and texture; its colors, size, angle, spin and path are drawn for every scene.
Lengths are in units of the frame's short side and times in seconds, so a scene can be rendered at any size and time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np


NOISE_CELLS = 16  # the side of a noise table, which repeats
EXTENT = 1.35  # no shape extends farther than this many radii from its center


# Shapes: signed distance to the outline in radii, negative inside, at coordinates (x, y) in radii


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
    # A square standing on a corner, with a disk on each of its two upper sides.
    square = (np.abs(x) + np.abs(y - 0.2)) * 0.70710678 - 0.64
    discs = np.hypot(np.abs(x) - 0.4525, y + 0.2525) - 0.64
    return np.minimum(square, discs)


def _diamond(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.abs(x) * 1.2 + np.abs(y) * 0.68) / 1.379 - 0.65


def _flower(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.85 * (np.hypot(x, y) - 0.88 - 0.2 * np.cos(6.0 * np.arctan2(y, x)))


def _capsule(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(np.maximum(np.abs(x) - 0.62, 0.0), y) - 0.52


# Textures: blend of an object's two colors in [0, 1]


@dataclass(frozen=True)
class Surface:
    """Input of a texture: coordinates in radii, rotated with the object, float32 (rows, columns).

    Attributes:
        x: To the right.
        y: Down.
        distance: Signed distance to the outline, negative inside.
        detail: Texture lines per radius relative to the family's default.
        noise: The object's noise table, float32 (NOISE_CELLS, NOISE_CELLS) in [0, 1].
        pixels: The object's radius in pixels, which determines the width of an antialiased step.
    """

    x: np.ndarray
    y: np.ndarray
    distance: np.ndarray
    detail: float
    noise: np.ndarray
    pixels: float

    def turns(self, per_radius: float) -> np.float32:
        """Return radians per radius of a wave with the given number of periods per radius."""
        return np.float32(2.0 * np.pi * per_radius * self.detail)

    def step(self, wave: np.ndarray, slope: float) -> np.ndarray:
        """Return a blend in [0, 1] that changes over one pixel where `wave`, of the given slope per radius, crosses zero."""
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
    """Interpolate a repeating table (cells, cells) bilinearly at coordinates in cells."""
    left, top = np.floor(x), np.floor(y)
    across, down = x - left, y - top
    left, top = left.astype(np.int64) % NOISE_CELLS, top.astype(np.int64) % NOISE_CELLS
    right, bottom = (left + 1) % NOISE_CELLS, (top + 1) % NOISE_CELLS
    upper = table[top, left] + across * (table[top, right] - table[top, left])
    lower = table[bottom, left] + across * (table[bottom, right] - table[bottom, left])
    return upper + down * (lower - upper)


# One shape and one texture per class; the order is the order of the class indices.
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


# Scenes


MINIMUM_VISIBLE = 0.55  # by sample points; leaves a margin over the guaranteed 35% of the rendered masks
LAYOUT_ATTEMPTS = 40


@dataclass(frozen=True)
class ShapeObject:
    """One moving object of a scene.

    Attributes:
        label: Index into `CLASSES`.
        radius: Half of its size, in short sides.
        colors: float32 (2, 3), the two colors of its texture in [0, 1].
        angle: Rotation at time 0, radians.
        spin: Radians per second.
        path_center: float (2,), the center of its path (x, y) in short sides.
        amplitude: float (2, 2), amplitude of the two oscillations of x and y, in short sides.
        rate: float (2, 2), their radians per second.
        phase: float (2, 2), their phase at time 0, radians.
        detail: float, texture lines per radius relative to the family's default.
        noise: float32 (NOISE_CELLS, NOISE_CELLS), the speckles of a speckled texture.
    """

    label: int
    radius: float
    colors: np.ndarray
    angle: float
    spin: float
    path_center: np.ndarray
    amplitude: np.ndarray
    rate: np.ndarray
    phase: np.ndarray
    detail: float
    noise: np.ndarray

    def center(self, time: float) -> np.ndarray:
        """Return the position (x, y) at a time in seconds, in short sides from the upper left corner."""
        return self.path_center + (self.amplitude * np.sin(self.rate * time + self.phase)).sum(axis=1)


@dataclass(frozen=True)
class Scene:
    """A background and its objects.

    Attributes:
        colors: float32 (2, 3), the two ends of the background's linear gradient, in [0, 1].
        direction: float (2,), direction of the gradient and the stripes.
        drift: float (2,), motion of the noise, in cells per second.
        noise: float32 (2, NOISE_CELLS, NOISE_CELLS), a coarse and a fine table in [-1, 1].
        strengths: float (3,), contrast of coarse noise, fine noise and stripes.
        stripes: Stripes per short side.
        objects: From back to front.
    """

    colors: np.ndarray
    direction: np.ndarray
    drift: np.ndarray
    noise: np.ndarray
    strengths: np.ndarray
    stripes: float
    objects: tuple[ShapeObject, ...] = ()

    @classmethod
    def draw(cls, generator: np.random.Generator, aspect: float, timestamps: Sequence[float] | np.ndarray) -> Self:
        """Draw 2 to 4 objects of different classes, each of them visible enough at every given time.

        Args:
            generator: Source of all randomness.
            aspect: Width over height.
            timestamps: Seconds at which no object may be hidden by more than about half.
        """
        size = np.array([max(aspect, 1.0), max(1.0 / aspect, 1.0)])
        background = cls._draw_background(generator)
        count = int(generator.choice((2, 3, 4), p=(0.3, 0.4, 0.3)))
        labels = generator.permutation(len(CLASSES))[:count]
        best: tuple[float, tuple[ShapeObject, ...]] = (-1.0, ())
        # Overlap is intended, but hiding is not: redraw until all are visible enough, else keep the best layout.
        for _ in range(LAYOUT_ATTEMPTS):
            places = _draw_places(generator, count)
            objects = tuple(
                _draw_object(generator, int(label), place, size, background.colors)
                for label, place in zip(labels, places, strict=True)
            )
            visible = min(visible_fractions(objects, size, time).min() for time in timestamps)
            best = max(best, (float(visible), objects), key=lambda layout: layout[0])
            if visible >= MINIMUM_VISIBLE:
                break
        return replace(background, objects=best[1])

    @classmethod
    def _draw_background(cls, generator: np.random.Generator) -> Self:
        first = generator.uniform(0.05, 0.95, 3)
        second = np.clip(first + generator.uniform(-0.25, 0.25, 3), 0.0, 1.0)
        angle = generator.uniform(0.0, 2.0 * np.pi)
        return cls(
            colors=np.stack([first, second]).astype(np.float32),
            direction=np.array([np.cos(angle), np.sin(angle)]),
            drift=generator.uniform(-0.4, 0.4, 2),
            noise=generator.uniform(-1.0, 1.0, (2, NOISE_CELLS, NOISE_CELLS)).astype(np.float32),
            strengths=generator.uniform(0.0, 1.0, 3) ** 2 * np.array([0.12, 0.1, 0.06]),
            stripes=generator.uniform(3.0, 12.0),
        )

    def render(self, height: int, width: int, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Render the frame at one time.

        Args:
            height: Pixels.
            width: Pixels.
            time: Seconds, any.

        Returns:
            The frame, uint8 (height, width, 3), and the object that each pixel shows, uint8 (height, width): 0 is
            background and k + 1 is `objects[k]`.
        """
        short = min(height, width)
        x = ((np.arange(width) + 0.5) / short).astype(np.float32)
        y = ((np.arange(height) + 0.5) / short).astype(np.float32)
        frame = self._render_background(x, y, time)
        positions = np.zeros((height, width), dtype=np.uint8)
        for position, shape in enumerate(self.objects):
            columns, rows = _bounds(shape, time, short, width, height)
            local_x, local_y = _local(shape, time, x[columns], y[rows, None])
            distance = SHAPES[shape.label](local_x, local_y)
            surface = Surface(local_x, local_y, distance, shape.detail, shape.noise, shape.radius * short)
            cover = surface.step(-distance, 1.0)[..., None]
            blend = TEXTURES[shape.label](surface)[..., None]
            paint = shape.colors[0] + blend * (shape.colors[1] - shape.colors[0])
            window = frame[rows, columns]
            window += cover * (paint - window)
            positions[rows, columns][distance < 0.0] = position + 1
        return np.rint(np.clip(frame, 0.0, 1.0) * 255.0).astype(np.uint8), positions

    def _render_background(self, x: np.ndarray, y: np.ndarray, time: float) -> np.ndarray:
        """Return float32 (height, width, 3) for pixel centers `x` (width,) and `y` (height,) in short sides."""
        drift_x, drift_y = (self.drift * time).astype(np.float32)
        coarse = _noise_plane(self.noise[0], y * 5.0 + drift_y, x * 5.0 + drift_x)
        fine = _noise_plane(self.noise[1], y * 28.0 + 3.0 * drift_y, x * 28.0 + 3.0 * drift_x)
        direction_x, direction_y = self.direction.astype(np.float32)
        ramp = direction_x * (x - 0.5) + (direction_y * (y - 0.5))[:, None]
        stripes = np.sin(np.float32(2.0 * np.pi * self.stripes) * ramp)
        strengths = self.strengths.astype(np.float32)
        shade = strengths[0] * coarse + strengths[1] * fine + strengths[2] * stripes
        blend = np.clip(0.5 + 0.7 * ramp, 0.0, 1.0)
        first, second = self.colors
        return first + blend[..., None] * (second - first) + shade[..., None]


def _draw_places(generator: np.random.Generator, count: int) -> np.ndarray:
    """Draw path centers in the unit square, float (count, 2): of four draws, the one with the largest minimum distance."""
    places = generator.uniform(0.0, 1.0, (4, count, 2))
    apart = np.linalg.norm(places[:, :, None] - places[:, None], axis=3) + 2.0 * np.eye(count)
    return places[int(np.argmax(apart.min(axis=(1, 2))))]


def _draw_object(
    generator: np.random.Generator, label: int, place: np.ndarray, size: np.ndarray, surroundings: np.ndarray
) -> ShapeObject:
    radius = generator.uniform(0.15, 0.23)
    # The path hardly leaves the frame: its oscillations rarely all have the same sign.
    amplitude = generator.uniform(0.02, 0.09, (2, 2))
    margin = 0.85 * radius + 0.7 * amplitude.sum(axis=1)
    return ShapeObject(
        label=label,
        radius=radius,
        colors=_draw_colors(generator, surroundings),
        angle=generator.uniform(0.0, 2.0 * np.pi),
        spin=generator.uniform(-0.8, 0.8),
        path_center=margin + (size - 2.0 * margin) * place,
        amplitude=amplitude,
        rate=generator.uniform(1.0, 2.8, (2, 2)),
        phase=generator.uniform(0.0, 2.0 * np.pi, (2, 2)),
        detail=generator.uniform(0.85, 1.15),
        noise=generator.uniform(0.0, 1.0, (NOISE_CELLS, NOISE_CELLS)).astype(np.float32),
    )


def _draw_colors(generator: np.random.Generator, surroundings: np.ndarray) -> np.ndarray:
    """Draw two colors that differ from the background's and from each other: float32 (2, 3)."""
    candidates = generator.uniform(0.0, 1.0, (48, 3)).astype(np.float32)
    apart = np.linalg.norm(candidates[:, None] - surroundings, axis=2).min(axis=1)
    first = candidates[int(np.argmax(apart > 0.45)) if (apart > 0.45).any() else int(np.argmax(apart))]
    contrast = np.minimum(apart + 0.2, np.linalg.norm(candidates - first, axis=1))
    second = candidates[int(np.argmax(contrast > 0.55)) if (contrast > 0.55).any() else int(np.argmax(contrast))]
    return np.stack([first, second])


def _local(shape: ShapeObject, time: float, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert frame coordinates (short sides) to the object's, in radii, unrotated."""
    center_x, center_y = shape.center(time)
    angle = shape.angle + shape.spin * time
    cosine, sine = np.float32(np.cos(angle) / shape.radius), np.float32(np.sin(angle) / shape.radius)
    x, y = x - np.float32(center_x), y - np.float32(center_y)
    return cosine * x + sine * y, cosine * y - sine * x


def _sample_points(shape: Shape) -> np.ndarray:
    grid = np.linspace(-1.2, 1.2, 13, dtype=np.float32)
    x, y = (part.ravel() for part in np.meshgrid(grid, grid))
    inside = shape(x, y) < 0.0
    return np.stack([x[inside], y[inside]])


SAMPLE_POINTS = tuple(_sample_points(shape) for shape in SHAPES)  # (2, points) inside each shape, in radii


def visible_fractions(objects: Sequence[ShapeObject], size: np.ndarray, time: float) -> np.ndarray:
    """Return the fraction of each object's area that is inside the frame and not covered, estimated from sample points.

    Args:
        objects: From back to front.
        size: (width, height) of the frame in short sides.
        time: Seconds.

    Returns:
        float (objects,) in [0, 1].
    """
    fractions = np.empty(len(objects))
    for position, shape in enumerate(objects):
        angle = shape.angle + shape.spin * time
        cosine, sine = shape.radius * np.cos(angle), shape.radius * np.sin(angle)
        points_x, points_y = SAMPLE_POINTS[shape.label]
        center_x, center_y = shape.center(time)
        x, y = center_x + cosine * points_x - sine * points_y, center_y + sine * points_x + cosine * points_y
        visible = (x >= 0.0) & (x < size[0]) & (y >= 0.0) & (y < size[1])
        for cover in objects[position + 1 :]:
            visible &= SHAPES[cover.label](*_local(cover, time, x, y)) >= 0.0
        fractions[position] = visible.mean()
    return fractions


def _noise_plane(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Evaluate `_lookup` on a complete grid, one axis after the other: (rows, columns)."""
    top, left = np.floor(rows), np.floor(columns)
    down, across = (rows - top)[:, None], columns - left
    top, left = top.astype(np.int64) % NOISE_CELLS, left.astype(np.int64) % NOISE_CELLS
    bands = table[top] + down * (table[(top + 1) % NOISE_CELLS] - table[top])
    return bands[:, left] + across * (bands[:, (left + 1) % NOISE_CELLS] - bands[:, left])


def _bounds(shape: ShapeObject, time: float, short: int, width: int, height: int) -> tuple[slice, slice]:
    """Return columns and rows of the window that contains the complete object."""
    center = shape.center(time) * short
    reach = EXTENT * shape.radius * short + 1.0
    first = np.maximum(np.floor(center - reach), 0.0).astype(int)
    last = np.maximum(np.ceil(center + reach), 0.0).astype(int)
    return slice(first[0], min(last[0], width)), slice(first[1], min(last[1], height))
