"""A checkpoint with its code works in a process without this package."""

import json
import os

import numpy as np
import pytest
import torch
from isolated_python import WITHOUT_OUR_PACKAGE, run_isolated
from tiny_model import tiny_config, tiny_model

from modeling_pcmanet import (
    AUTO_CLASSES,
    PCMANetConfig,
    PCMANetFeatureExtractor,
    PCMANetForAudioVisualSegmentation,
    PCMANetImageProcessor,
    PCMANetProcessor,
    save_code_with_weights,
)
from modeling_pcmanet.configuration_encoders import EFFICIENTNET_LITE_0, SMALL_AUDIO_CONFIG
from modeling_pcmanet.media_writing_pcmanet import write_video


SEGMENT_WITHOUT_OUR_PACKAGE = f"""
import sys
sys.path = [path for path in sys.path if path not in ("", sys.argv[1])]
{WITHOUT_OUR_PACKAGE}
import json
import torch
from transformers import AutoModel, AutoModelForSemanticSegmentation, AutoProcessor
for folder in sys.argv[3:]:
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        logits = model(**processor(videos=sys.argv[2], return_tensors="pt")).logits
    bases = [AutoModel.from_pretrained(name, trust_remote_code=True) for name in (folder, folder + "_base")]
    weights = [base.state_dict().values() for base in bases]
    print(json.dumps({{
        "module": type(model).__module__, "sum": logits.double().sum().item(), "shape": list(logits.shape),
        "bases": [type(base).__name__ for base in bases],
        "same_weights": all(torch.equal(a, b) for a, b in zip(*weights, strict=True)),
    }}))
"""


SIZE = {"height": 48, "width": 64}


def build_published():
    """Build a tiny network with the encoders of the paper, and its processor."""
    model = tiny_model(audio_config={**tiny_config().audio_config.to_dict(), "num_mel_frames": 96, "num_mel_bins": 64})
    return model, PCMANetProcessor(PCMANetImageProcessor(size=SIZE), PCMANetFeatureExtractor())


def build_small():
    """Build a tiny network with the encoders of the preset `small`, which are ours, and its processor."""
    config = PCMANetConfig.from_preset(
        "small",
        backbone_config={**EFFICIENTNET_LITE_0, "width_multiplier": 0.25},
        audio_config={**SMALL_AUDIO_CONFIG, "width_multiplier": 0.1},
    )
    torch.manual_seed(0)
    model = PCMANetForAudioVisualSegmentation(config).eval()
    return model, PCMANetProcessor.from_pretrained_backbones(config.backbone_config, config.audio_config, size=SIZE)


def save_with_code(folder, model, processor):
    """Save a checkpoint with its code."""
    with save_code_with_weights():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def test_code_is_saved_only_if_requested(tmp_path):
    folder, (model, processor) = tmp_path / "checkpoint", build_published()
    save_with_code(folder, model, processor)
    assert {"modeling_pcmanet.py", "modeling_audio_encoders.py", "processing_pcmanet.py"} <= set(os.listdir(folder))
    assert json.loads((folder / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_pcmanet.PCMANetConfig",
        "AutoModel": "modeling_pcmanet.PCMANetModel",
        "AutoModelForSemanticSegmentation": "modeling_pcmanet.PCMANetForAudioVisualSegmentation",
    }
    # Code is no longer saved after the `with` block.
    PCMANetForAudioVisualSegmentation(model.config).save_pretrained(tmp_path / "later")
    processor.save_pretrained(tmp_path / "later")
    assert sorted(os.listdir(tmp_path / "later")) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "processor_config.json",
    ]


def test_error_in_the_block_restores_the_classes():
    with pytest.raises(OSError, match="disk full"), save_code_with_weights():
        assert PCMANetConfig._auto_class == "AutoConfig"
        raise OSError("disk full")
    assert all(cls._auto_class is None for cls, *_ in AUTO_CLASSES)
    with save_code_with_weights(enabled=False):
        assert all(cls._auto_class is None for cls, *_ in AUTO_CLASSES)


def test_logits_are_equal_without_this_package(tmp_path):
    """Both networks in one process, because most of the time is that of its imports."""
    clip, generator = tmp_path / "clip.mp4", np.random.default_rng(0)
    frames = generator.integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    write_video(clip, frames, 10, generator.uniform(-0.5, 0.5, (1, 32000)).astype(np.float32), 16000)
    pairs = {tmp_path / "published": build_published(), tmp_path / "small": build_small()}
    for folder, (model, processor) in pairs.items():
        save_with_code(folder, model, processor)
        with save_code_with_weights():
            model.model.save_pretrained(f"{folder}_base")
    outputs = run_isolated(SEGMENT_WITHOUT_OUR_PACKAGE, tmp_path.parent, clip, *pairs, folder=tmp_path)
    for output, (model, processor) in zip(outputs, pairs.values(), strict=True):
        assert output["module"].startswith("transformers_modules.")
        assert output["bases"] == ["PCMANetModel", "PCMANetModel"]
        assert output["same_weights"]
        with torch.no_grad():
            logits = model(**processor(videos=clip, return_tensors="pt")).logits
        assert output["shape"] == list(logits.shape) == [1, 2, 1, 48, 64]
        assert output["sum"] == pytest.approx(logits.double().sum().item(), rel=1e-5)
