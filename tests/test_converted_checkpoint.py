"""A converted checkpoint on its way to a user: save, load, pipeline; nothing changes a bit."""

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
    found = segment({"video": frames, "audio": sound, "sampling_rate": 16000})
    for frame, mask in zip(found, expected, strict=True):
        drawn = np.zeros((224, 224), dtype=bool)
        for part in frame["segments"]:
            drawn |= np.asarray(part["mask"]) > 0
        assert mask.any() and np.array_equal(drawn, mask.numpy())
