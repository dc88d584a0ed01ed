"""VGGish: order of the flattened features, published sizes, errors and saving."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional
from transformers import AutoModel

from modeling_pcmanet import VGGishConfig, VGGishModel


TINY = VGGishConfig(block_channels=[[2], [3, 4]], hidden_size=8, embedding_size=6, num_mel_frames=8, num_mel_bins=4)


@pytest.fixture
def model() -> VGGishModel:
    torch.manual_seed(0)
    return VGGishModel(TINY).eval()


def test_equals_plain_operations(model):
    """Convolutions with ReLU and max pooling, channels last before flattening, ReLU after the last layer."""
    patches = torch.randn(3, 1, 8, 4)
    weights = model.state_dict()
    states = patches
    for name, pooled in (("features.0", True), ("features.3", False), ("features.5", True)):
        states = functional.conv2d(states, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1).relu()
        states = functional.max_pool2d(states, 2) if pooled else states
    states = torch.stack([states[:, :, row, column] for row in range(2) for column in range(1)], dim=1).flatten(1)
    for name in ("embeddings.0", "embeddings.2", "embeddings.4"):
        states = (states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]).relu()
    torch.testing.assert_close(model(patches).audio_embeds, states)


def test_published_sizes():
    with torch.device("meta"):
        model = VGGishModel(VGGishConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 72_141_184
    names = {name.rsplit(".", 1)[0] for name in model.state_dict()}
    expected = {
        *(f"features.{index}" for index in (0, 3, 6, 8, 11, 13)),
        *(f"embeddings.{index}" for index in (0, 2, 4)),
    }
    assert names == expected


@pytest.mark.parametrize("shape", [(2, 8, 4), (2, 1, 4, 8), (2, 3, 8, 4)])
def test_invalid_patches_raise(model, shape):
    with pytest.raises(ValueError, match=r"must be \(patches, 1, 8, 4\), got"):
        model(torch.zeros(shape))


def test_assigned_configuration_fields_are_validated():
    config = VGGishConfig()
    config.hidden_size = 0
    with pytest.raises(StrictDataclassError, match="`hidden_size` must be positive, got 0"):
        VGGishModel(config)


def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    patches = torch.randn(2, 1, 8, 4)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, VGGishModel)
    assert torch.equal(loaded(patches).audio_embeds, model(patches).audio_embeds)
