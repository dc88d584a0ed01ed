"""A converted checkpoint on its way to a user: save, load, pipeline; nothing changes a bit."""

from typing import Any

import numpy as np
import pytest
import torch
from published_weights import published_shapes, seeded_state_dict
from test_convert_pcmanet_to_hf import vggish_shapes
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
def test_save_load_and_pipeline_change_nothing(setting, backbone, tmp_path):
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
    sound = generator.uniform(-0.5, 0.5, 32000).astype(np.float32)
    with torch.no_grad():
        batch = processor(videos=frames, audio=sound, sampling_rate=16000)
        expected = converted(**batch).logits[0, :, 0].sigmoid() > 0.5
        assert torch.equal(loaded(**batch).logits[0, :, 0].sigmoid() > 0.5, expected)
    segment = pipeline(
        "audio-visual-segmentation", model=str(tmp_path), pipeline_class=AudioVisualSegmentationPipeline
    )
    clip = {"video": frames, "audio": sound, "sampling_rate": 16000}
    for frame, mask in zip(segment(clip, use_optimized_model=False), expected, strict=True):
        assert mask.any() and np.array_equal(drawn(frame), mask.numpy())
    # The inference form rounds differently: pixels on the very threshold may flip.
    for frame, mask in zip(segment(clip), expected, strict=True):
        assert (drawn(frame) != mask.numpy()).mean() < 1e-4


def drawn(frame: dict[str, Any]) -> np.ndarray:
    """All that a frame's segments claim, bool (height, width)."""
    claimed = np.zeros((224, 224), dtype=bool)
    for segment in frame["segments"]:
        claimed |= np.asarray(segment["mask"]) > 0
    return claimed
