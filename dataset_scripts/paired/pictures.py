"""Draw and render the frames of a clip: one photo, two photos side by side, or a photo with an object of another one.

A photo is seen through a window that moves over it at constant speed, which is the motion of the clip. Windows always
contain a point of the object that the photo was chosen for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pcmanet.dataset_scripts.metrics.segmentation import IGNORE_INDEX

from .settings import ClipSettings


if TYPE_CHECKING:
    from .library import Library


ATTEMPTS = 8  # draws of a second photo that shares no class with the first
SHORT_SIDE = 0.75  # of a mosaic, relative to its long side
SIDE_BY_SIDE = 0.8  # fraction of the mosaics whose photos are beside, not above, each other
DIVISION = (0.4, 0.6)  # where a mosaic is divided
PASTED_SIZE = (0.3, 0.65)  # of a pasted object, relative to the frame
POINT = (0.2, 0.8)  # where in the window the point of the object may be


@dataclass(frozen=True, eq=False)
class Picture:
    """The frames of a clip.

    Attributes:
        kind: "single", "mosaic" or "paste".
        frames: uint8 (frames, height, width, 3), RGB.
        visible: uint8 (frames, height, width), class index of every visible object, 0 background, 255 void.
        photos: The photos, by their position in the library.
    """

    kind: str
    frames: np.ndarray
    visible: np.ndarray
    photos: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _View:
    """A photo seen through a moving window.

    Attributes:
        image: uint8 (height, width, 3).
        mask: uint8 (height, width).
        boxes: float (frames, 4), left, top, right and bottom of the window in pixels of the photo.
        mirrored: Whether the photo is mirrored.
    """

    image: np.ndarray
    mask: np.ndarray
    boxes: np.ndarray
    mirrored: bool

    def render(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return frames, uint8 (frames, height, width, 3), and their masks."""
        step = -1 if self.mirrored else 1
        frames, masks = [], []
        for number, box in enumerate(self.boxes):
            if number and (box == self.boxes[0]).all():
                frames.append(frames[0])
                masks.append(masks[0])
                continue
            frames.append(_resize(self.image, height, width, box, Image.Resampling.BILINEAR)[:, ::step])
            masks.append(_resize(self.mask, height, width, box, Image.Resampling.NEAREST)[:, ::step])
        return np.stack(frames), np.stack(masks)


def _resize(
    pixels: np.ndarray, height: int, width: int, box: np.ndarray | None, filter_: Image.Resampling
) -> np.ndarray:
    window = None if box is None else tuple(float(value) for value in box)
    return np.asarray(Image.fromarray(pixels).resize((width, height), filter_, box=window))  # pyright: ignore[reportArgumentType]


def draw_picture(
    generator: np.random.Generator, library: "Library", photos: Mapping[int, Sequence[int]], settings: ClipSettings
) -> Picture:
    """Draw and render the frames of a clip.

    Args:
        generator: Source of all randomness.
        library: The photos.
        photos: By class index, the photos (positions in the library) to draw from.
        settings: How clips are made.

    Returns:
        The picture. Every class is equally often the one that the (first) photo is chosen for.
    """
    kind = str(generator.choice(list(settings.pictures), p=_normalized(settings.pictures)))
    index = int(generator.choice(list(photos)))
    photo = int(generator.choice(photos[index]))
    other = None if kind == "single" else _draw_other(generator, library, photos, photo)
    if other is None:
        image, mask = library.photo(photo)
        height, width = mask.shape
        frames, visible = _draw_view(generator, image, mask, index, width / height, settings).render(height, width)
        return Picture("single", frames, visible, (photo,))
    if kind == "mosaic":
        frames, visible = _draw_mosaic(generator, library, [(photo, index), other], settings)
    else:
        frames, visible = _draw_paste(generator, library, (photo, index), other, settings)
    return Picture(kind, frames, visible, (photo, other[0]))


def _normalized(weights: Mapping[str, float]) -> np.ndarray:
    values = np.array(list(weights.values()), dtype=np.float64)
    return values / values.sum()


def _draw_other(
    generator: np.random.Generator, library: "Library", photos: Mapping[int, Sequence[int]], photo: int
) -> tuple[int, int] | None:
    """Draw a second photo without any class of the first, and the class it is chosen for; None if there is none."""
    classes = [index for index in photos if index not in library.areas[photo]]
    for _ in range(ATTEMPTS if classes else 0):
        index = int(generator.choice(classes))
        other = int(generator.choice(photos[index]))
        if not library.areas[other].keys() & library.areas[photo].keys():
            return other, index
    return None


def _draw_view(
    generator: np.random.Generator,
    image: np.ndarray,
    mask: np.ndarray,
    index: int,
    aspect: float,
    settings: ClipSettings,
) -> _View:
    """Draw the path of a window with an aspect ratio (width over height) around a point of a class."""
    height, width = mask.shape
    points = np.flatnonzero(mask == index)
    row, column = divmod(int(generator.choice(points)), width)
    largest = np.array([min(width, height * aspect), min(height, width / aspect)])
    zooms = 1 + (settings.zoom - 1) * generator.uniform(0, 1, (2, 1)) ** 2
    sizes, places = largest / zooms, generator.uniform(*POINT, (2, 2))
    if generator.uniform() < settings.still:
        sizes[1], places[1] = sizes[0], places[0]
    corners = np.clip(np.array([column, row]) - sizes * places, 0, np.array([width, height]) - sizes)
    ends = np.concatenate([corners, corners + sizes], axis=1)
    boxes = np.linspace(ends[0], ends[1], settings.seconds)
    # Rounding must not lead out of the photo.
    boxes = np.clip(boxes, 0, [width, height, width, height])
    return _View(image, mask, boxes, bool(generator.uniform() < settings.mirror))


def _draw_mosaic(
    generator: np.random.Generator, library: "Library", tiles: Sequence[tuple[int, int]], settings: ClipSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Render two photos beside or above each other, in random order."""
    long, short = settings.image_size, round(settings.image_size * SHORT_SIDE)
    beside = bool(generator.uniform() < SIDE_BY_SIDE)
    first = round(long * generator.uniform(*DIVISION))
    rendered = []
    for place, extent in zip(generator.permutation(2), (first, long - first), strict=True):
        photo, index = tiles[place]
        height, width = (short, extent) if beside else (extent, short)
        view = _draw_view(generator, *library.photo(photo), index, width / height, settings)
        rendered.append(view.render(height, width))
    axis = 2 if beside else 1
    return np.concatenate([one[0] for one in rendered], axis), np.concatenate([one[1] for one in rendered], axis)


def _draw_paste(
    generator: np.random.Generator,
    library: "Library",
    base: tuple[int, int],
    other: tuple[int, int],
    settings: ClipSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Render a photo over which an object of another photo moves."""
    image, mask = library.photo(base[0])
    height, width = mask.shape
    view = _draw_view(generator, image, mask, base[1], width / height, settings)
    frames, visible = view.render(height, width)
    patch, cover = _cut_out(*library.photo(other[0]), other[1])
    scale = generator.uniform(*PASTED_SIZE) * min(height / cover.shape[0], width / cover.shape[1])
    size = max(1, round(cover.shape[0] * scale)), max(1, round(cover.shape[1] * scale))
    patch = _resize(patch, *size, None, Image.Resampling.BILINEAR)
    cover = _resize(cover, *size, None, Image.Resampling.BILINEAR)
    room = np.array([height - size[0], width - size[1]])
    corners = _draw_path(generator, room, visible[0] == base[1], size, settings)
    for frame, classes, (top, left) in zip(frames, visible, corners, strict=True):
        window = slice(top, top + size[0]), slice(left, left + size[1])
        alpha = cover[..., None].astype(np.float32) / 255
        frame[window] = np.rint(frame[window] * (1 - alpha) + patch * alpha).astype(np.uint8)
        classes[window] = np.where(cover > 127, np.uint8(other[1]), classes[window])
    return frames, visible


def _cut_out(image: np.ndarray, mask: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the part of a photo that holds a class, and uint8 255 where the class is, else 0."""
    rows, columns = np.flatnonzero((mask == index).any(axis=1)), np.flatnonzero((mask == index).any(axis=0))
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return image[part], np.where(mask[part] == index, np.uint8(255), np.uint8(0))


def _draw_path(
    generator: np.random.Generator,
    room: np.ndarray,
    kept: np.ndarray,
    size: tuple[int, int],
    settings: ClipSettings,
) -> np.ndarray:
    """Draw the corners (top, left) of a pasted object in each frame, int (frames, 2), where it hides the least.

    Args:
        generator: Source of all randomness.
        room: Largest corner.
        kept: bool (height, width), the object that shall stay visible.
        size: Height and width of the pasted object.
        settings: How clips are made.
    """
    paths = generator.uniform(0, 1, (4, 2, 2)) * room
    if generator.uniform() < settings.still:
        paths[:, 1] = paths[:, 0]
    corners = np.rint(np.linspace(paths[:, 0], paths[:, 1], settings.seconds, axis=1)).astype(int)
    hidden = [
        max(kept[top : top + size[0], left : left + size[1]].sum() for top, left in (path[0], path[-1]))
        for path in corners
    ]
    return corners[int(np.argmin(hidden))]


def visible_areas(visible: np.ndarray) -> dict[int, float]:
    """Return the largest fraction of a frame that each visible class has, by class index.

    Args:
        visible: uint8 (frames, height, width).
    """
    areas: dict[int, float] = {}
    for mask in visible:
        counts = np.bincount(mask.ravel(), minlength=256)
        for index in np.flatnonzero(counts):
            if index not in (0, IGNORE_INDEX):
                areas[int(index)] = max(areas.get(int(index), 0.0), float(counts[index] / mask.size))
    return areas
