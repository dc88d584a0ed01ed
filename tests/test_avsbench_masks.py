""""""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pcmanet.dataset_scripts.avsbench.masks import (
    decode_binary,
    decode_colours,
    decode_indexes,
    encode_indexes,
    filter_label_noise,
    find_systematic_mistake,
    foreign_share,
    voc_palette,
)


def png(picture):
    file = BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, "PNG")
    return file.getvalue()


SQUARE = np.zeros((6, 8), np.uint8)
SQUARE[2:4, 1:5] = 1


def paletted(mask, colours):
    picture = Image.fromarray(mask)
    picture.putpalette(np.asarray(colours, np.uint8).tobytes())
    return picture


def test_the_palette_is_pascal_voc_s():
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
    "picture",
    [
        SQUARE,
        SQUARE * np.uint8(255),
        np.repeat(SQUARE[..., None] * np.uint8(255), 3, axis=2),
        Image.fromarray(SQUARE * np.uint8(255)).convert("1"),
        paletted(SQUARE, [[0, 0, 0], [255, 255, 255]]),
        np.dstack([*[SQUARE * np.uint8(255)] * 3, np.full_like(SQUARE, 255)]),
    ],
    ids=["0 and 1", "0 and 255", "colour", "one bit", "palette", "alpha"],
)
def test_binary_masks_of_every_mode_are_read(picture):
    np.testing.assert_array_equal(decode_binary(png(picture)), SQUARE)


def test_an_empty_and_a_full_mask_are_read():
    assert decode_binary(png(np.zeros((4, 4), np.uint8))).max() == 0
    assert decode_binary(png(np.ones((4, 4), np.uint8))).min() == 1
    assert decode_binary(png(np.full((4, 4), 255, np.uint8))).min() == 1


@pytest.mark.parametrize(
    ("picture", "values"),
    [
        (SQUARE * np.uint8(38), "0, 38"),
        (SQUARE * np.uint8(225), "0, 225"),
        (paletted(SQUARE, [[0, 0, 0], [128, 0, 0]]), "0, 38"),
        (np.dstack([SQUARE * np.uint8(255), SQUARE, SQUARE]), "0, 77"),
        (SQUARE + np.uint8(1), "1, 2"),
        (np.arange(48, dtype=np.uint8).reshape(6, 8), "(48 values)"),
    ],
)
def test_other_grey_values_are_refused_and_named(picture, values):
    with pytest.raises(ValueError, match="a mask holds 0 and 255, or 0 and 1") as caught:
        decode_binary(png(picture))
    assert values in str(caught.value)


def test_indexes_and_colours_mean_the_same():
    indexes = np.arange(71, dtype=np.uint8).reshape(1, 71)
    np.testing.assert_array_equal(decode_indexes(png(indexes)), indexes)
    np.testing.assert_array_equal(decode_indexes(png(paletted(indexes, voc_palette()))), indexes)
    np.testing.assert_array_equal(decode_indexes(encode_indexes(indexes)), indexes)
    np.testing.assert_array_equal(decode_colours(png(voc_palette()[indexes])), indexes)
    np.testing.assert_array_equal(decode_colours(png(paletted(indexes, voc_palette()))), indexes)


def test_every_colour_that_is_not_in_the_palette_is_refused():
    colours = voc_palette()[np.zeros((4, 5), int)].copy()
    colours[2, 3] = (127, 0, 0)
    with pytest.raises(
        ValueError, match=r"1 pixels have a colour of no class, such as RGB \[\[127, 0, 0\]\].*row 2, col"
    ):
        decode_colours(png(colours))
    with pytest.raises(ValueError, match="blue, green, red"):
        decode_colours(png(voc_palette()[np.full((4, 5), 68)][..., ::-1].copy()))


def test_indexes_beyond_the_classes_and_colours_in_their_place_are_refused():
    with pytest.raises(ValueError, match="holds 71, 255; class indexes go from 0"):
        decode_indexes(png(np.array([[0, 70, 71, 255]], np.uint8)))
    with pytest.raises(ValueError, match="mode RGB"):
        decode_indexes(png(voc_palette()[SQUARE]))
    with pytest.raises(ValueError, match=r"holds 2; .* to 1\b"):
        decode_indexes(png(SQUARE * np.uint8(2)), num_classes=2)


def test_foreign_share_counts_labelled_pixels_only():
    mask = np.array([[0, 0, 7, 7, 7, 8]], np.uint8)  # 7 is bird, 8 is boat
    assert foreign_share([mask], ["bird"]) == 0.25
    assert foreign_share([mask, mask], ["bird", "boat"]) == 0
    assert foreign_share([mask], ["off-the-screen"]) == foreign_share([mask * 0], ["bird"]) == 0


def test_label_noise_rules():
    mask = np.array([[0, 7, 8]], np.uint8)
    assert filter_label_noise(mask, ["bird"], "keep").tolist() == [[0, 7, 8]]
    assert filter_label_noise(mask, ["bird"], "background").tolist() == [[0, 7, 0]]
    assert filter_label_noise(mask, ["bird"], "ignore").tolist() == [[0, 7, 255]]
    assert filter_label_noise(mask, ["off-the-screen"], "background").tolist() == [[0, 0, 0]]


def test_noise_is_no_systematic_mistake():
    bird, boat = np.full((4, 4), 7, np.uint8), np.full((4, 4), 8, np.uint8)
    assert find_systematic_mistake([bird], ["bird"]) is None
    assert find_systematic_mistake([bird], ["dog"]) is None
    assert find_systematic_mistake([bird, boat], ["bird"]) is None
    assert "one too high" in find_systematic_mistake([boat], ["bird"])
