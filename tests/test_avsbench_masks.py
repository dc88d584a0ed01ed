"""Tests of dataset_scripts/avsbench/masks.py."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pcmanet.dataset_scripts.avsbench.masks import (
    decode_mask,
    filter_label_noise,
    find_systematic_error,
    unlisted_fraction,
    voc_palette,
)


def png(image):
    file = BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, "PNG")
    return file.getvalue()


SQUARE = np.zeros((6, 8), np.uint8)
SQUARE[2:4, 1:5] = 1


def paletted(mask, colors):
    image = Image.fromarray(mask)
    image.putpalette(np.asarray(colors, np.uint8).tobytes())
    return image


def test_voc_palette():
    assert voc_palette()[[0, 1, 2, 4, 8, 70]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [0, 0, 128],
        [64, 0, 0],
        [32, 128, 128],
    ]
    assert len(np.unique(voc_palette(), axis=0)) == 71


@pytest.mark.parametrize(
    "image",
    [
        SQUARE,
        SQUARE * np.uint8(255),
        np.repeat(SQUARE[..., None] * np.uint8(255), 3, axis=2),
        Image.fromarray(SQUARE * np.uint8(255)).convert("1"),
        paletted(SQUARE, [[0, 0, 0], [255, 255, 255]]),
        np.dstack([*[SQUARE * np.uint8(255)] * 3, np.full_like(SQUARE, 255)]),
        paletted(SQUARE, voc_palette(256)),
        paletted(SQUARE * np.uint8(12), voc_palette(256)),
    ],
    ids=["0 and 1", "0 and 255", "color", "one bit", "palette", "alpha", "VOC class 1", "VOC class 12"],
)
def test_binary_masks_of_every_mode(image):
    np.testing.assert_array_equal(decode_mask(png(image), "binary"), SQUARE)


def test_the_border_in_masks_of_voc_is_ignored():
    mask = np.where(SQUARE, np.uint8(3), np.uint8(0))
    mask[0] = 255
    decoded = decode_mask(png(paletted(mask, voc_palette(256))), "binary")
    assert (decoded[0] == 255).all()
    np.testing.assert_array_equal(decoded[1:], SQUARE[1:])


def test_empty_and_full_binary_masks():
    assert decode_mask(png(np.zeros((4, 4), np.uint8)), "binary").max() == 0
    assert decode_mask(png(np.ones((4, 4), np.uint8)), "binary").min() == 1
    assert decode_mask(png(np.full((4, 4), 255, np.uint8)), "binary").min() == 1


@pytest.mark.parametrize(
    ("image", "values"),
    [
        (SQUARE * np.uint8(38), "a mask of mode L with gray values 0, 38"),
        (SQUARE * np.uint8(225), "a mask of mode L with gray values 0, 225"),
        (paletted(SQUARE, [[0, 0, 0], [7, 0, 0]]), "a palette mask with 2 colors such as RGB [[0, 0, 0], [7, 0, 0]]"),
        (voc_palette()[SQUARE], "an RGB mask with 2 colors such as RGB [[0, 0, 0], [128, 0, 0]]"),
        (SQUARE + np.uint8(1), "a mask of mode L with gray values 1, 2"),
        (np.arange(48, dtype=np.uint8).reshape(6, 8), "(48 values)"),
    ],
)
def test_other_masks_are_rejected_with_what_they_are(image, values):
    with pytest.raises(ValueError, match="Expected a mask with one channel of the gray values 0 and 255") as caught:
        decode_mask(png(image), "binary")
    assert values in str(caught.value)


def test_indices_and_colors_decode_to_the_same_classes():
    indices = np.arange(71, dtype=np.uint8).reshape(1, 71)
    np.testing.assert_array_equal(decode_mask(png(indices), "indices"), indices)
    np.testing.assert_array_equal(decode_mask(png(paletted(indices, voc_palette())), "indices"), indices)
    np.testing.assert_array_equal(decode_mask(png(voc_palette()[indices]), "colors"), indices)
    np.testing.assert_array_equal(decode_mask(png(paletted(indices, voc_palette())), "colors"), indices)


def test_colors_outside_the_palette_are_rejected():
    colors = voc_palette()[np.zeros((4, 5), int)].copy()
    colors[2, 3] = (127, 0, 0)
    with pytest.raises(ValueError, match=r"got 1 pixels of other colors such as RGB \[\[127, 0, 0\]\].*row 2, col"):
        decode_mask(png(colors), "colors")
    with pytest.raises(ValueError, match="blue, green, red"):
        decode_mask(png(voc_palette()[np.full((4, 5), 68)][..., ::-1].copy()), "colors")


def test_indices_outside_the_classes_and_color_images_are_rejected():
    with pytest.raises(ValueError, match="class indices from 0 .* to 70, got 71, 255"):
        decode_mask(png(np.array([[0, 70, 71, 255]], np.uint8)), "indices")
    with pytest.raises(ValueError, match="got an RGB mask with 2 colors"):
        decode_mask(png(voc_palette()[SQUARE]), "indices")
    with pytest.raises(ValueError, match=r"to 1, got 2"):
        decode_mask(png(SQUARE * np.uint8(2)), "indices", num_classes=2)


def test_unlisted_fraction_counts_labeled_pixels_only():
    mask = np.array([[0, 0, 7, 7, 7, 8]], np.uint8)  # 7 is bird, 8 is boat
    assert unlisted_fraction([mask], ["bird"]) == 0.25
    assert unlisted_fraction([mask, mask], ["bird", "boat"]) == 0
    assert unlisted_fraction([mask], ["off-the-screen"]) == unlisted_fraction([mask * 0], ["bird"]) == 0


def test_filter_label_noise():
    mask = np.array([[0, 7, 8]], np.uint8)
    assert filter_label_noise(mask, ["bird"], "keep").tolist() == [[0, 7, 8]]
    assert filter_label_noise(mask, ["bird"], "background").tolist() == [[0, 7, 0]]
    assert filter_label_noise(mask, ["bird"], "ignore").tolist() == [[0, 7, 255]]
    assert filter_label_noise(mask, ["off-the-screen"], "background").tolist() == [[0, 0, 0]]


def test_label_noise_is_not_a_systematic_error():
    bird, boat = np.full((4, 4), 7, np.uint8), np.full((4, 4), 8, np.uint8)
    assert find_systematic_error([bird], ["bird"]) is None
    assert find_systematic_error([bird], ["dog"]) is None
    assert find_systematic_error([bird, boat], ["bird"]) is None
    assert "one too high" in find_systematic_error([boat], ["bird"])
