"""Weights that are all there load; those that are not are refused by name."""

import pytest
import torch
from tiny_model import tiny_config

from modeling_pcmanet import VGGishModel
from modeling_pcmanet.loading_pcmanet import load_whole


@pytest.fixture
def encoder() -> VGGishModel:
    torch.manual_seed(0)
    return VGGishModel(tiny_config().audio_config)


def test_whole_weights_load(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    loaded = load_whole(VGGishModel, tmp_path)
    assert all(torch.equal(values, loaded.state_dict()[name]) for name, values in encoder.state_dict().items())
    assert not loaded.training


@pytest.mark.parametrize("fault", ["missing", "reshaped"])
def test_weights_that_are_not_all_there_are_refused(fault, encoder, tmp_path):
    weights = encoder.state_dict()
    name = sorted(weights)[-1]
    if fault == "missing":
        del weights[name]
    else:
        weights[name] = torch.cat([weights[name]] * 2)
    encoder.save_pretrained(tmp_path, state_dict=weights)
    message = f"lacks weights of a VGGishModel, such as {name} \\(1 of {len(encoder.state_dict())}\\). Give a folder"
    with pytest.raises(ValueError, match=message):
        load_whole(VGGishModel, tmp_path)


def test_there_must_be_weights(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        load_whole(VGGishModel, tmp_path / "nowhere")
