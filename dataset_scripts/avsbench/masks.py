"""Decode AVSBench's mask files to class indices.

Published loaders silently turn unknown values into background. These functions check every value and raise an error
that names the wrong value or color.
"""

from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image

from modeling_pcmanet.configuration_pcmanet import AVSBENCH_SEMANTIC_LABELS
from pcmanet.dataset_scripts.metrics.segmentation import IGNORE_INDEX


NUM_CLASSES = len(AVSBENCH_SEMANTIC_LABELS)
UNKNOWN_COLOR = 255  # in the table of colors
LABEL_NOISE_RULES = ("keep", "background", "ignore")
SHOWN_COLORS = 5
INDEX_MODES = ("1", "L", "P", "I", "I;16")  # PIL's modes with one number per pixel

# A clip has a systematic error if more than the first fraction of its labeled pixels has a class that `a_obj` does not
# list, and at most the second fraction once the error is corrected. Label noise is a few pixels or another object.
UNLISTED_BEFORE, UNLISTED_AFTER = 0.9, 0.1

BLUE_FIRST = "its colors are in the order blue, green, red (written by OpenCV?)"


# Colors of the classes


def voc_palette(count: int = NUM_CLASSES) -> np.ndarray:
    """Return the colors of Pascal VOC, which encode the classes in `labels_rgb` of AVSBench-semantic.

    Bits 3k, 3k + 1 and 3k + 2 of the class index are bit 7 - k of red, green and blue.

    Args:
        count: Number of classes.

    Returns:
        uint8 (count, 3), RGB.
    """
    index = np.arange(count)[:, None]
    channel = np.arange(3)
    bits = [((index >> (3 * k + channel)) & 1) << (7 - k) for k in range(3)]
    return np.sum(bits, axis=0).astype(np.uint8)


@lru_cache(maxsize=1)
def _class_of_color() -> np.ndarray:
    """Return uint8 (2^24,), the class of every color, packed as red, green, blue."""
    table = np.full(1 << 24, UNKNOWN_COLOR, dtype=np.uint8)
    table[_pack(voc_palette())] = np.arange(NUM_CLASSES)
    return table


def _pack(colors: np.ndarray) -> np.ndarray:
    """Pack each color of uint8 (..., 3) into one number."""
    red, green, blue = np.moveaxis(colors.astype(np.int32), -1, 0)
    return (red << 16) | (green << 8) | blue


# Decoding


def decode_mask(data: bytes, encoding: str, num_classes: int = NUM_CLASSES) -> np.ndarray:
    """Decode a mask.

    Args:
        data: An image file.
        encoding: "binary" (S4, MS3): gray values 0 and 255, or 0 and 1, or a palette image with the colors of Pascal VOC,
            in which every class is foreground. "indices" (AVSS's `labels_semantic`): one channel of class indices.
            "colors" (AVSS's `labels_rgb`): colors of the VOC palette.
        num_classes: Number of classes of "indices".

    Returns:
        uint8 (height, width), class indices; 0 and 1 for binary masks, and 255 (ignored) for VOC's index 255.

    Raises:
        ValueError: If the mask has another mode or holds another value or color.
    """
    image = Image.open(BytesIO(data))
    if encoding == "binary":
        return _decode_binary(image)
    return _decode_colors(image) if encoding == "colors" else _decode_indices(image, num_classes)


def _decode_binary(image: Image.Image) -> np.ndarray:
    if image.mode == "P" and _has_voc_colors(image):
        return to_binary(np.asarray(image))
    gray = np.asarray(image.convert("L"))
    values = np.flatnonzero(np.bincount(gray.ravel(), minlength=256))
    if set(values) <= {0, 255}:
        return (gray > 127).astype(np.uint8)
    # Gray 1 is the foreground of a 0/1 mask, unless the image was converted from colors or 16 bits.
    if set(values) <= {0, 1} and image.mode == "L":
        return gray.copy()
    got = (
        f"gray values {_shorten(values)}" if image.mode in INDEX_MODES and image.mode != "P" else _shown_colors(image)
    )
    raise ValueError(
        f"Expected a mask with one channel of the gray values 0 and 255, or 0 and 1, got {_describe(image)} with {got}."
    )


def _has_voc_colors(image: Image.Image) -> bool:
    """Return whether a palette image has the color of Pascal VOC at every index that it uses."""
    return np.array_equal(np.asarray(image.convert("RGB")), voc_palette(256)[np.asarray(image)])


def _describe(image: Image.Image) -> str:
    """Describe the mode of a mask."""
    names = {"P": "a palette mask", "RGB": "an RGB mask", "RGBA": "an RGBA mask"}
    return names.get(image.mode, f"a mask of mode {image.mode}")


def _shown_colors(image: Image.Image) -> str:
    """List the first few colors of an image."""
    colors = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
    return f"{len(colors)} colors such as RGB {colors[:SHOWN_COLORS].tolist()}"


def _decode_indices(image: Image.Image, num_classes: int) -> np.ndarray:
    if image.mode not in INDEX_MODES:
        raise ValueError(
            f"Expected one channel with the class index of each pixel, got {_describe(image)} with {_shown_colors(image)}."
        )
    indices = np.asarray(image).astype(np.int64)
    if indices.min() < 0 or indices.max() >= num_classes:
        wrong = np.unique(indices[(indices < 0) | (indices >= num_classes)])
        raise ValueError(f"Expected class indices from 0 (background) to {num_classes - 1}, got {_shorten(wrong)}")
    return indices.astype(np.uint8)


def _decode_colors(image: Image.Image) -> np.ndarray:
    colors = np.asarray(image.convert("RGB"))
    indices = _class_of_color()[_pack(colors)]
    unknown = indices == UNKNOWN_COLOR
    if unknown.any():
        if (_class_of_color()[_pack(colors[..., ::-1])] != UNKNOWN_COLOR).all():
            raise ValueError(f"Expected colors in the order red, green, blue, but {BLUE_FIRST}. Convert the mask.")
        row, column = np.argwhere(unknown)[0]
        some = np.unique(colors[unknown], axis=0)[:SHOWN_COLORS].tolist()
        raise ValueError(
            f"Expected colors of classes, got {np.count_nonzero(unknown)} pixels of other colors such as RGB {some}, "
            f"first at row {row}, column {column}. Resized or JPEG-compressed labels cannot be used; download them again."
        )
    return indices


def to_binary(mask: np.ndarray) -> np.ndarray:
    """Convert class indices to 0 (background) and 1 (any other class); 255 (ignored) stays."""
    return np.where(mask == IGNORE_INDEX, mask, mask > 0).astype(np.uint8)


def _shorten(values: np.ndarray) -> str:
    """Format the first few of many values."""
    shown = ", ".join(str(value) for value in values[:8])
    return f"{shown}, ... ({len(values)} values)" if len(values) > 8 else shown


# Comparison with the sounding objects that `a_obj` lists


def _class_indices(objects: Sequence[str]) -> np.ndarray:
    """Return the class indices of the names in `a_obj` that are classes, without the background."""
    return np.array([k for k, name in enumerate(AVSBENCH_SEMANTIC_LABELS) if k and name in objects], dtype=np.uint8)


def unlisted_fraction(masks: Sequence[np.ndarray], objects: Sequence[str]) -> float:
    """Return the fraction of the labeled pixels of a clip whose class is not in `a_obj`.

    Args:
        masks: Class indices, each uint8 (height, width).
        objects: Names in `a_obj`.

    Returns:
        In [0, 1]; 0 if no pixel is labeled or `a_obj` names no class.
    """
    counts = sum((np.bincount(mask.ravel(), minlength=256) for mask in masks), np.zeros(256, dtype=np.int64))
    listed = _class_indices(objects)
    labeled = counts[1:].sum()
    return float(1 - counts[listed].sum() / labeled) if labeled and len(listed) else 0.0


def find_systematic_error(masks: Sequence[np.ndarray], objects: Sequence[str]) -> str | None:
    """Find an error that is common to all masks of a clip; once it is corrected, they match `a_obj`.

    Args:
        masks: Class indices, each uint8 (height, width).
        objects: Names in `a_obj`.

    Returns:
        A description of the error, or None.
    """
    if unlisted_fraction(masks, objects) <= UNLISTED_BEFORE:
        return None
    from_blue = _class_of_color()[_pack(voc_palette(256)[:, ::-1])]
    corrected_masks = {
        BLUE_FIRST: [from_blue[mask] for mask in masks],
        "its class indices are one too high (label2idx.json counts from 1)": [mask - (mask > 0) for mask in masks],
    }
    for error, corrected in corrected_masks.items():
        if any(mask.any() for mask in corrected) and unlisted_fraction(corrected, objects) <= UNLISTED_AFTER:
            return f"The mask contradicts a_obj {'_'.join(objects)!r}: {error}. Convert the mask."
    return None


def filter_label_noise(mask: np.ndarray, objects: Sequence[str], rule: str) -> np.ndarray:
    """Relabel the pixels of classes that `a_obj` does not list.

    Args:
        mask: uint8 (height, width), class indices.
        objects: Names in `a_obj`.
        rule: "keep" leaves them, "background" makes them 0, "ignore" makes them 255, which losses and metrics ignore.

    Returns:
        uint8 (height, width).
    """
    if rule == "keep":
        return mask
    unlisted = ~np.isin(mask, np.append(_class_indices(objects), 0))
    return np.where(unlisted, np.uint8(0 if rule == "background" else IGNORE_INDEX), mask)
