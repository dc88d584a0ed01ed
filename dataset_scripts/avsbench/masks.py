"""AVSBench's mask files -> class indexes, or an error that says which value or colour is wrong.

Published loaders turn what they do not know into background without a word. Here every value is looked at.
"""

from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image

from modeling_pcmanet.configuration_pcmanet import AVSBENCH_SEMANTIC_LABELS
from pcmanet.dataset_scripts.metrics.accumulators import IGNORE_INDEX


NUM_CLASSES = len(AVSBENCH_SEMANTIC_LABELS)
UNKNOWN_COLOUR = 255  # in the table of colours
LABEL_NOISE_RULES = ("keep", "background", "ignore")
INDEX_MODES = ("1", "L", "P", "I", "I;16")  # PIL's modes with one number per pixel

# A clip of which more than this share of the labelled pixels is foreign to `a_obj`, and at most the other share after
# one systematic mistake is undone, was coded with that mistake; label noise is a few pixels or another object.
FOREIGN_BEFORE, FOREIGN_AFTER = 0.9, 0.1

BLUE_FIRST = "its colours are in the order blue, green, red (written by OpenCV?)"


def voc_palette(count: int = NUM_CLASSES) -> np.ndarray:
    """The colours of Pascal VOC, by which AVSBench-semantic's `labels_rgb` name the classes: uint8 (count, 3), RGB.

    Bits 3k, 3k + 1 and 3k + 2 of the class index are bit 7 - k of red, green and blue.
    """
    index = np.arange(count)[:, None]
    channel = np.arange(3)
    return sum(((index >> (3 * k + channel)) & 1) << (7 - k) for k in range(3)).astype(np.uint8)


@lru_cache(maxsize=1)
def _class_of_colour() -> np.ndarray:
    """uint8 (2^24,), the class of every colour, packed as red, green, blue."""
    table = np.full(1 << 24, UNKNOWN_COLOUR, dtype=np.uint8)
    table[_pack(voc_palette())] = np.arange(NUM_CLASSES)
    return table


def _pack(colours: np.ndarray) -> np.ndarray:
    """Colours uint8 (..., 3) as one number each."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return (red << 16) | (green << 8) | blue


def decode_binary(data: bytes) -> np.ndarray:
    """Read a mask of S4 or MS3.

    Args:
        data: A picture whose grey values are 0 and 255, or 0 and 1.

    Returns:
        uint8 (height, width), 0 or 1.

    Raises:
        ValueError: If it holds another value.
    """
    picture = Image.open(BytesIO(data))
    grey = np.asarray(picture.convert("L"))
    # Grey 1 is what a 0/1 mask holds, unless it was made out of something with colours or 16 bits.
    values = np.flatnonzero(np.bincount(grey.ravel(), minlength=256))
    if set(values) <= {0, 255}:
        return (grey > 127).astype(np.uint8)
    if set(values) <= {0, 1} and picture.mode == "L":
        return grey.copy()
    raise ValueError(
        f"a picture of mode {picture.mode} with grey values {_shorten(values)}; a mask holds 0 and 255, or 0 and 1"
    )


def decode_indexes(data: bytes, num_classes: int = NUM_CLASSES) -> np.ndarray:
    """Read a mask of class indexes, such as AVSS's `labels_semantic`.

    Args:
        data: A picture with one channel.
        num_classes: How many classes there are.

    Returns:
        uint8 (height, width), each below `num_classes`.

    Raises:
        ValueError: If it has several channels or holds a higher value.
    """
    picture = Image.open(BytesIO(data))
    if picture.mode not in INDEX_MODES:
        raise ValueError(f"a picture of mode {picture.mode}; expected one channel with the class index of each pixel")
    indexes = np.asarray(picture).astype(np.int64)
    if indexes.min() < 0 or indexes.max() >= num_classes:
        wrong = np.unique(indexes[(indexes < 0) | (indexes >= num_classes)])
        raise ValueError(f"holds {_shorten(wrong)}; class indexes go from 0 (background) to {num_classes - 1}")
    return indexes.astype(np.uint8)


def decode_colours(data: bytes) -> np.ndarray:
    """Read a mask of VOC-palette colours, AVSS's `labels_rgb`.

    Args:
        data: A picture.

    Returns:
        uint8 (height, width), class indexes 0 to 70.

    Raises:
        ValueError: If a pixel has a colour of no class; the first such colours, their number and place are named.
    """
    colours = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    indexes = _class_of_colour()[_pack(colours)]
    unknown = indexes == UNKNOWN_COLOUR
    if unknown.any():
        if (_class_of_colour()[_pack(colours[..., ::-1])] != UNKNOWN_COLOUR).all():
            raise ValueError(f"{BLUE_FIRST}; convert it")
        row, column = np.argwhere(unknown)[0]
        some = np.unique(colours[unknown], axis=0)[:5].tolist()
        raise ValueError(
            f"{np.count_nonzero(unknown)} pixels have a colour of no class, such as RGB {some}, first at row {row}, "
            f"column {column}; resized or JPEG-coded labels cannot be used, download them again"
        )
    return indexes


def class_indexes(objects: Sequence[str]) -> np.ndarray:
    """Class indexes of the names in `a_obj` that are classes of the picture, background left out."""
    return np.array([k for k, name in enumerate(AVSBENCH_SEMANTIC_LABELS) if k and name in objects], dtype=np.uint8)


def foreign_share(masks: Sequence[np.ndarray], objects: Sequence[str]) -> float:
    """Share of the labelled pixels of a clip whose class is not in `a_obj`.

    Args:
        masks: uint8 (height, width) class indexes each.
        objects: Names in `a_obj`.

    Returns:
        In [0, 1]; 0 if nothing is labelled or `a_obj` names no class.
    """
    counts = sum((np.bincount(mask.ravel(), minlength=256) for mask in masks), np.zeros(256, dtype=np.int64))
    named = class_indexes(objects)
    labelled = counts[1:].sum()
    return float(1 - counts[named].sum() / labelled) if labelled and len(named) else 0.0


def find_systematic_mistake(masks: Sequence[np.ndarray], objects: Sequence[str]) -> str | None:
    """Find out whether a clip's masks fit `a_obj` only after a mistake that all of them have is undone.

    Args:
        masks: uint8 (height, width) class indexes each.
        objects: Names in `a_obj`.

    Returns:
        The mistake, or None.
    """
    if foreign_share(masks, objects) <= FOREIGN_BEFORE:
        return None
    colours = voc_palette(256)
    from_blue = _class_of_colour()[_pack(colours[:, ::-1])]
    mistakes = {
        BLUE_FIRST: [from_blue[mask] for mask in masks],
        "its class indexes are one too high (label2idx.json counts from 1)": [mask - (mask > 0) for mask in masks],
    }
    for mistake, undone in mistakes.items():
        if any(mask.any() for mask in undone) and foreign_share(undone, objects) <= FOREIGN_AFTER:
            return f"fits a_obj {'_'.join(objects)!r} only if {mistake}; convert it"
    return None


def filter_label_noise(mask: np.ndarray, objects: Sequence[str], rule: str) -> np.ndarray:
    """Take away the pixels of classes that `a_obj` does not name.

    Args:
        mask: uint8 (height, width), class indexes.
        objects: Names in `a_obj`.
        rule: "keep" leaves them, "background" makes them 0, "ignore" makes them 255, which no loss or measure counts.

    Returns:
        uint8 (height, width).
    """
    if rule == "keep":
        return mask
    foreign = ~np.isin(mask, np.append(class_indexes(objects), 0))
    return np.where(foreign, np.uint8(0 if rule == "background" else IGNORE_INDEX), mask)


def encode_indexes(mask: np.ndarray) -> bytes:
    """Write class indexes uint8 (height, width) as a single-channel PNG."""
    file = BytesIO()
    Image.fromarray(mask).save(file, "PNG", compress_level=4)
    return file.getvalue()


def _shorten(values: np.ndarray) -> str:
    """Name the first few of many values."""
    shown = ", ".join(str(value) for value in values[:8])
    return f"{shown}, ... ({len(values)} values)" if len(values) > 8 else shown
