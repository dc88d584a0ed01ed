"""A panel that compares predictions with annotations: rows of frame, prediction and ground truth, and a legend.

panel = draw_panel(frames, masks, labels, model.config.id2label)
panel.save("panel.png")
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from .colors import Color, class_colors, readable_on
from .overlay import draw_segments, text_font


COLUMNS = ("frame", "prediction", "ground truth")
DARKENED = [round(0.3 * value) for value in range(256)] * 3  # brightness of pixels that are not annotated, per channel

# Lengths in pixels.
SMALLEST_CELL = 224  # shorter side; smaller frames are enlarged, so that contours are visible
GAP = 6
TEXT_SIZE = 16
LINE_HEIGHT = 28

BACKGROUND = (255, 255, 255)
TEXT_COLOR = (24, 28, 36)


def draw_panel(
    frames: np.ndarray | torch.Tensor,
    masks: np.ndarray | torch.Tensor,
    labels: np.ndarray | torch.Tensor,
    id2label: Mapping[int, str] | None = None,
    *,
    ignore_index: int = 255,
) -> Image.Image:
    """Draw frame, prediction and ground truth next to each other, one row per frame.

    Args:
        frames: (rows, height, width, 3) uint8, RGB.
        masks: (rows, mask height, mask width), the predicted class of each pixel; 0 = background.
        labels: (rows, label height, label width), the annotated class of each pixel; `ignore_index` = not annotated,
            drawn dark.
        id2label: The model's `config.id2label`, for the names and colors in the legend. `None` draws no legend.
        ignore_index: Label of pixels that are not annotated.

    Returns:
        An RGB image. The legend below the rows lists the classes that occur.

    Raises:
        ValueError: If the arrays do not match each other, or a mask holds a class that `id2label` does not name.
    """
    frames, masks, labels = _to_numpy(frames), _to_numpy(masks), _to_numpy(labels)
    _check_shapes(frames, masks, labels)
    ignored = labels == ignore_index
    truths = np.where(ignored, 0, labels)
    names = _class_names(id2label, int(max(masks.max(), truths.max())))
    colors = class_colors(names)
    foreground = _foreground(names)

    rows = []
    for frame, mask, truth, unknown in zip(frames, masks, truths, ignored, strict=True):
        image = _enlarge(Image.fromarray(frame))
        dark = image.point(DARKENED)
        annotated = Image.composite(dark, image, Image.fromarray(unknown).resize(image.size))
        drawn = [_draw_classes(image, mask, foreground, colors), _draw_classes(annotated, truth, foreground, colors)]
        rows.append([image, *drawn])
    present = np.union1d(masks, truths)
    legend = [] if id2label is None else [name for index, name in foreground.items() if index in present]
    return _lay_out(rows, legend, colors)


def _to_numpy(values: np.ndarray | torch.Tensor) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _check_shapes(frames: np.ndarray, masks: np.ndarray, labels: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"Expected uint8 frames (rows, height, width, 3), got {frames.dtype} {frames.shape}.")
    if masks.ndim != 3 or labels.ndim != 3 or not len(frames) == len(masks) == len(labels):
        raise ValueError(
            f"Expected masks and labels (rows, height, width) with {len(frames)} rows, one per frame; "
            f"got {masks.shape} and {labels.shape}."
        )


def _class_names(id2label: Mapping[int, str] | None, largest: int) -> Mapping[int, str]:
    """Return the name of each class by its index, as in a configuration; without `id2label` the index itself."""
    if id2label is None:
        return {index: str(index) for index in range(max(largest, 1) + 1)}
    if largest >= max(len(id2label), 2):
        raise ValueError(
            f"Found a pixel of class {largest}, but `id2label` names {len(id2label)} classes. "
            "Pass the `id2label` of the model that made the masks."
        )
    return id2label


def _foreground(names: Mapping[int, str]) -> dict[int, str]:
    """Return the name of each value in a mask: 0 is the background, and the one class of a binary task is 1."""
    return {1: names[0]} if len(names) == 1 else {index: name for index, name in names.items() if index > 0}


def _enlarge(image: Image.Image) -> Image.Image:
    """Enlarge a small image by an integer factor."""
    factor = math.ceil(SMALLEST_CELL / min(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BILINEAR)


def _draw_classes(
    image: Image.Image, mask: np.ndarray, foreground: Mapping[int, str], colors: Mapping[str, Color]
) -> Image.Image:
    """Draw a map of class indices (height, width) on an image."""
    segments = [
        {"label": name, "score": 1.0, "mask": Image.fromarray((mask == index).astype(np.uint8) * 255)}
        for index, name in foreground.items()
        if (mask == index).any()
    ]
    return draw_segments(image, segments, colors, labels=False)


def _lay_out(rows: Sequence[Sequence[Image.Image]], legend: Sequence[str], colors: Mapping[str, Color]) -> Image.Image:
    """Arrange rows of images of one size below their column titles, and the legend below them."""
    cell_width, cell_height = rows[0][0].size
    row_height, width = cell_height + GAP, len(COLUMNS) * (cell_width + GAP) + GAP
    font = text_font("".join(legend), TEXT_SIZE)
    boxes, x, y = [], GAP, LINE_HEIGHT + len(rows) * row_height
    for name in legend:
        extent = font.getlength(name) + TEXT_SIZE
        if x > GAP and x + extent > width - GAP:
            x, y = GAP, y + LINE_HEIGHT
        boxes.append((x, y, x + extent, y + LINE_HEIGHT - GAP))
        x += extent + GAP

    panel = Image.new("RGB", (width, y + (LINE_HEIGHT if legend else 0)), BACKGROUND)
    draw = ImageDraw.Draw(panel)
    for column, title in enumerate(COLUMNS):
        left = GAP + column * (cell_width + GAP)
        draw.text((left + cell_width / 2, LINE_HEIGHT / 2), title, fill=TEXT_COLOR, font=font, anchor="mm")
        for row, images in enumerate(rows):
            panel.paste(images[column], (left, LINE_HEIGHT + row * row_height))
    for name, (left, top, right, bottom) in zip(legend, boxes, strict=True):
        draw.rounded_rectangle((left, top, right, bottom), radius=TEXT_SIZE * 0.3, fill=colors[name])
        center = ((left + right) / 2, (top + bottom) / 2)
        draw.text(center, name, fill=readable_on(colors[name]), font=font, anchor="mm")
    return panel
