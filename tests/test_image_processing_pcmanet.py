"""Compare frames and masks with PIL, for every form in which they can be passed."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from modeling_pcmanet import PCMANetImageProcessor, PCMANetImageProcessorTorchvision


MEAN = np.array([0.485, 0.456, 0.406])
DEVIATION = np.array([0.229, 0.224, 0.225])
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 120, 200, 3), dtype=np.uint8)
MASKS = np.random.default_rng(1).integers(0, 71, (3, 120, 200), dtype=np.uint8)
MASKS[0, :40] = 255


def reference_pixels(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    resized = [
        np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR)) for frame in frames
    ]
    return ((np.stack(resized) / 255 - MEAN) / DEVIATION).transpose(0, 3, 1, 2)


def reference_labels(masks: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.stack([Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST) for mask in masks])


@pytest.fixture
def processor() -> PCMANetImageProcessor:
    return PCMANetImageProcessor()


def test_frames_are_resized_bilinearly_and_normalized(processor):
    pixels = processor(FRAMES, return_tensors="pt")["pixel_values"]
    assert pixels.dtype == torch.float32
    np.testing.assert_allclose(pixels, reference_pixels(FRAMES, 224, 224), atol=1e-6)


@pytest.mark.parametrize(
    "frames",
    [
        list(FRAMES),
        FRAMES.transpose(0, 3, 1, 2),
        torch.from_numpy(FRAMES),
        [torch.from_numpy(frame).permute(2, 0, 1) for frame in FRAMES],
        [Image.fromarray(frame) for frame in FRAMES],
    ],
    ids=["list", "channels first", "tensor", "list of tensors", "PIL"],
)
def test_all_forms_of_frames_give_the_same(processor, frames):
    expected = processor(FRAMES, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(processor(frames, return_tensors="np")["pixel_values"], expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_other_modes_become_rgb(processor, mode):
    image = Image.fromarray(FRAMES[0]).convert(mode)
    pixels = processor([image], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(pixels, reference_pixels([np.asarray(image.convert("RGB"))], 224, 224), atol=1e-6)


def test_masks_keep_their_classes_by_the_nearest_pixel_of_pil(processor):
    batch = processor(FRAMES, MASKS, size={"height": 64, "width": 96}, return_tensors="pt")
    assert batch["pixel_values"].shape == (3, 3, 64, 96)
    assert batch["labels"].dtype == torch.int64
    np.testing.assert_array_equal(batch["labels"], reference_labels(MASKS, 96, 64))
    assert (batch["labels"][0, :21] == 255).all()


def test_all_forms_of_masks_give_the_same(processor):
    expected = reference_labels(MASKS, 224, 224)
    for masks in (list(MASKS), MASKS.astype(np.int64), torch.from_numpy(MASKS), [Image.fromarray(m) for m in MASKS]):
        np.testing.assert_array_equal(processor(FRAMES, masks, return_tensors="np")["labels"], expected)


@pytest.mark.parametrize("convert", [Image.fromarray, np.asarray, torch.from_numpy])
def test_the_mask_of_a_single_image_needs_no_list(processor, convert):
    labels = processor(Image.fromarray(FRAMES[0]), convert(MASKS[0]), return_tensors="np")["labels"]
    np.testing.assert_array_equal(labels, reference_labels(MASKS[:1], 224, 224))


def test_a_palette_image_gives_its_indices(processor):
    image = Image.fromarray(MASKS[0], mode="L").convert("P")
    image.putpalette(list(range(255, -1, -1)) * 3)
    labels = processor(FRAMES[:1], [image], return_tensors="np")["labels"]
    np.testing.assert_array_equal(labels, reference_labels(MASKS[:1], 224, 224))


def test_boolean_masks_become_0_and_1(processor):
    masks = MASKS > 35
    labels = processor(FRAMES, masks, return_tensors="np")["labels"]
    np.testing.assert_array_equal(labels, reference_labels(masks.astype(np.uint8), 224, 224))
    one_bit = [Image.fromarray(mask.astype(np.uint8) * 255).convert("1") for mask in masks]
    np.testing.assert_array_equal(processor(FRAMES, one_bit, return_tensors="np")["labels"], labels)


@pytest.mark.parametrize(
    ("frames", "masks", "message"),
    [
        (FRAMES / 255.0, None, "uint8.*255.*float64"),
        (torch.from_numpy(FRAMES).float(), None, "float32"),
        (FRAMES, FRAMES, r"map 0: .*\(120, 200, 3\).*Decode"),
        (FRAMES, MASKS.astype(np.float32), "map 0: .*float32"),
        (FRAMES, MASKS.astype(np.int16) - 1, "0..255.*from -1 to 254"),
        (FRAMES, MASKS.astype(np.int32) * 4, "0..255"),
        (FRAMES, MASKS[:2], "2 segmentation maps for 3 images"),
        # PIL clips these at 255 instead of scaling them.
        (Image.fromarray(MASKS[0].astype(np.uint16) * 257), None, "8 bits per channel.*mode 'I;16'"),
        ([Image.fromarray(MASKS[0] / np.float32(255))], None, "8 bits per channel.*mode 'F'"),
    ],
)
def test_wrong_input_is_refused(processor, frames, masks, message):
    with pytest.raises(ValueError, match=message):
        processor(frames, masks)


@pytest.mark.parametrize("processor_class", [PCMANetImageProcessor, PCMANetImageProcessorTorchvision])
def test_unknown_settings_are_errors_and_warnings_where_a_file_is_loaded(processor_class, tmp_path, caplog):
    with pytest.raises(
        ValueError, match=f"{processor_class.__name__} got the unknown keyword `sise`. Did you mean `size`"
    ):
        processor_class(sise={"height": 64, "width": 64})
    saved = {**processor_class().to_dict(), "processor_class": "PCMANetProcessor", "color_jitter": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
    assert processor_class.from_pretrained(tmp_path, do_resize=False).do_resize is False
    assert f"The saved {processor_class.__name__} has the unknown keyword `color_jitter`" in caplog.text


def test_settings_survive_saving_and_act(tmp_path):
    processor = PCMANetImageProcessor(size={"height": 32, "width": 48}, do_normalize=False)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["size"] == {"height": 32, "width": 48}
    assert saved["image_mean"] == MEAN.tolist()
    for factory in (PCMANetImageProcessor, AutoImageProcessor):
        loaded = factory.from_pretrained(tmp_path)
        assert type(loaded) is PCMANetImageProcessor
        assert loaded.to_dict() == processor.to_dict()
    pixels = loaded(FRAMES, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(
        pixels, reference_pixels(FRAMES, 48, 32) * DEVIATION[:, None, None] + MEAN[:, None, None], atol=1e-6
    )


@pytest.mark.parametrize("processor_class", [PCMANetImageProcessor, PCMANetImageProcessorTorchvision])
@pytest.mark.parametrize(
    "settings",
    [
        {"do_pad": True, "pad_size": {"height": 150, "width": 210}},
        {"do_center_crop": True, "crop_size": {"height": 150, "width": 210}},
    ],
)
def test_labels_beyond_the_frame_are_ignored(processor_class, settings):
    masks = np.where(MASKS == 255, 0, MASKS)
    labels = processor_class(do_resize=False, **settings)(FRAMES, masks, return_tensors="np")["labels"]
    assert labels.shape == (3, 150, 210)
    assert (labels == 255).sum() == labels.size - masks.size
    np.testing.assert_array_equal(labels[labels != 255], masks.ravel())


@pytest.mark.parametrize("size", [(224, 224), (60, 100), (131, 75), (240, 400)])
@pytest.mark.parametrize("settings", [{}, {"do_normalize": False}, {"do_resize": False}, {"image_mean": [0.5] * 3}])
def test_both_backends_give_the_same(size, settings):
    # Issue 16, point 16: frames to one level of 255, labels exactly.
    settings = {"size": {"height": size[0], "width": size[1]}, **settings}
    of_pil = PCMANetImageProcessor(**settings)(FRAMES, MASKS, return_tensors="pt")
    of_torchvision = PCMANetImageProcessorTorchvision(**settings)(FRAMES, MASKS, return_tensors="pt")
    level = 1 / 255 / (1 if "do_normalize" in settings else DEVIATION.min())
    torch.testing.assert_close(of_torchvision["pixel_values"], of_pil["pixel_values"], rtol=0, atol=1.001 * level)
    assert torch.equal(of_torchvision["labels"], of_pil["labels"])


def test_the_backend_is_chosen_where_a_processor_is_loaded(tmp_path):
    for processor in (PCMANetImageProcessor(size={"height": 32, "width": 48}), PCMANetImageProcessorTorchvision()):
        processor.save_pretrained(tmp_path)
        for settings, expected in (
            ({}, PCMANetImageProcessor),
            ({"backend": "pil"}, PCMANetImageProcessor),
            ({"backend": "torchvision"}, PCMANetImageProcessorTorchvision),
        ):
            loaded = AutoImageProcessor.from_pretrained(tmp_path, **settings)
            assert type(loaded) is expected
            assert loaded.to_dict() == processor.to_dict()
            assert loaded.backend == settings.get("backend", "pil")


def test_calls_do_not_change_the_settings(processor):
    before = processor.to_dict()
    processor(FRAMES, MASKS, size={"height": 32, "width": 48}, do_normalize=False)
    assert processor.to_dict() == before
