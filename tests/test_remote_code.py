"""A checkpoint with its code works in a process without this package."""

import json
import os

import numpy as np
import pytest
import torch
from isolated_python import WITHOUT_OUR_PACKAGE, run_isolated
from tiny_model import tiny_config, tiny_model
from transformers import ASTConfig, ASTFeatureExtractor, pipeline

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


RUN_WITHOUT_OUR_PACKAGE = f"""
import sys
sys.path = [path for path in sys.path if path not in ("", sys.argv[1])]
{WITHOUT_OUR_PACKAGE}
import json
import torch
from transformers import AutoModel, AutoModelForSemanticSegmentation, AutoProcessor, pipeline
for folder in sys.argv[4:]:
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        logits = model(**processor(videos=sys.argv[2], return_tensors="pt")).logits
    bases = [AutoModel.from_pretrained(name, trust_remote_code=True) for name in (folder, folder + "_base")]
    weights = [base.state_dict().values() for base in bases]
    parts = (model.model.audio_encoder, processor.feature_extractor)
    print(json.dumps({{
        "module": type(model).__module__, "sum": logits.double().sum().item(), "shape": list(logits.shape),
        "audio": [*(type(part).__name__ for part in parts), processor.audio_windows],
        "bases": [type(base).__name__ for base in bases],
        "same_weights": all(torch.equal(a, b) for a, b in zip(*weights, strict=True)),
    }}))
segmenter = pipeline("audio-visual-segmentation", model=sys.argv[3], trust_remote_code=True, device="cpu")
scores = [[segment["score"] for segment in frame["segments"]] for frame in segmenter(sys.argv[2])]
print(json.dumps({{"module": type(segmenter).__module__, "scores": scores}}))
"""


SIZE = {"height": 48, "width": 64}


def build_published(**labels):
    """Build a tiny network with the encoders of the paper, and its processor."""
    audio_config = {**tiny_config().audio_config.to_dict(), "num_mel_frames": 96, "num_mel_bins": 64}
    model = tiny_model(audio_config=audio_config, **labels)
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


def build_foreign():
    """Build a tiny network with an audio encoder of transformers, and its processor."""
    encoder = ASTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_length=64,
        num_mel_bins=32,
    )
    extractor = ASTFeatureExtractor(num_mel_bins=32, max_length=64)
    return tiny_model(audio_config=encoder), PCMANetProcessor(
        PCMANetImageProcessor(size=SIZE), extractor, [[0.25, 0.25]]
    )


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


def test_results_are_equal_without_this_package(tmp_path):
    """All networks and the pipeline in one process, because most of the time is that of its imports."""
    clip, generator = tmp_path / "clip.mp4", np.random.default_rng(0)
    frames = generator.integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    write_video(clip, frames, 10, generator.uniform(-0.5, 0.5, (1, 32000)).astype(np.float32), 16000)
    builders = {"published": build_published, "small": build_small, "foreign": build_foreign}
    pairs = {tmp_path / name: build() for name, build in builders.items()}
    for folder, (model, processor) in pairs.items():
        save_with_code(folder, model, processor)
        with save_code_with_weights():
            model.model.save_pretrained(f"{folder}_base")
    names = dict(enumerate(("background", "bell", "drum", "flute")))
    model, processor = build_published(id2label=names, label2id={name: index for index, name in names.items()})
    segmenter = pipeline("audio-visual-segmentation", model=model, processor=processor, device="cpu")
    with save_code_with_weights():
        segmenter.save_pretrained(tmp_path / "pipeline")

    arguments = (tmp_path.parent, clip, tmp_path / "pipeline", *pairs)
    *outputs, segmented = run_isolated(RUN_WITHOUT_OUR_PACKAGE, *arguments, folder=tmp_path)
    for output, (model, processor) in zip(outputs, pairs.values(), strict=True):
        assert output["module"].startswith("transformers_modules.")
        assert output["bases"] == ["PCMANetModel", "PCMANetModel"]
        assert output["same_weights"]
        parts = (model.model.audio_encoder, processor.feature_extractor)
        assert output["audio"] == [*(type(part).__name__ for part in parts), processor.audio_windows]
        with torch.no_grad():
            logits = model(**processor(videos=clip, return_tensors="pt")).logits
        assert output["shape"] == list(logits.shape) == [1, 2, 1, 48, 64]
        assert output["sum"] == pytest.approx(logits.double().sum().item(), rel=1e-5)
    assert segmented["module"].startswith("transformers_modules.")
    expected = [[segment["score"] for segment in frame["segments"]] for frame in segmenter(str(clip))]
    assert any(expected) and segmented["scores"] == [pytest.approx(scores, abs=1e-5) for scores in expected]
