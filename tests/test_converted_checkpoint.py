"""A converted checkpoint after save, load and pipeline is bit-identical."""

from typing import Any

import numpy as np
import pytest
import torch
from published_weights import published_shapes, seeded_state_dict, vggish_shapes
from transformers import pipeline

from modeling_pcmanet import (
    PCMANetFeatureExtractor,
    PCMANetForAudioVisualSegmentation,
    PCMANetImageProcessor,
    PCMANetProcessor,
)
from modeling_pcmanet.convert_pcmanet_to_hf import convert_state_dict
from pcmanet.pipelines import AudioVisualSegmentationPipeline


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "backbone"), [("S4", "resnet"), ("MS3", "pvt")])
def test_save_load_and_pipeline_are_bit_identical(setting, backbone, tmp_path):
    weights = seeded_state_dict(published_shapes(setting, backbone))
    converted = convert_state_dict(weights, seeded_state_dict(vggish_shapes())).model
    processor = PCMANetProcessor(PCMANetImageProcessor(), PCMANetFeatureExtractor())
    converted.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = PCMANetForAudioVisualSegmentation.from_pretrained(tmp_path)
    for (name, ours), theirs in zip(converted.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name

    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    audio = generator.uniform(-0.5, 0.5, 32000).astype(np.float32)
    with torch.no_grad():
        batch = processor(videos=frames, audio=audio, sampling_rate=16000, return_tensors="pt")
        expected = converted(**batch).logits[0, :, 0].sigmoid() > 0.5
        assert torch.equal(loaded(**batch).logits[0, :, 0].sigmoid() > 0.5, expected)
    segment = pipeline(
        "audio-visual-segmentation", model=str(tmp_path), pipeline_class=AudioVisualSegmentationPipeline
    )
    clip = {"video": frames, "audio": audio, "sampling_rate": 16000}
    for frame, mask in zip(segment(clip, use_optimized_model=False), expected, strict=True):
        assert mask.any() and np.array_equal(union_of_masks(frame), mask.numpy())
    # The optimized model rounds differently: pixels at the threshold may change.
    for frame, mask in zip(segment(clip), expected, strict=True):
        assert (union_of_masks(frame) != mask.numpy()).mean() < 1e-4


def union_of_masks(frame: dict[str, Any]) -> np.ndarray:
    """Return the union of the masks of a frame, bool (height, width)."""
    union = np.zeros((224, 224), dtype=bool)
    for segment in frame["segments"]:
        union |= np.asarray(segment["mask"]) > 0
    return union
