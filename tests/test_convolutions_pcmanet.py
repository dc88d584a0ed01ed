"""Convolutions of fewer multiplications: values and gradients equal PyTorch's in training, evaluation is PyTorch's own."""

import copy

import pytest
import torch
from tiny_model import tiny_batch, tiny_model

from modeling_pcmanet import convolutions_pcmanet
from modeling_pcmanet.convolutions_pcmanet import Convolution


@pytest.fixture
def rearranged(monkeypatch):
    """Count the rearranged convolutions, and rearrange for any number of pixels, one frame at a time."""
    counts = {"convolve_upsampled": 0, "convolve_transformed": 0}
    for name in counts:
        original = getattr(convolutions_pcmanet, name)

        def counted(*inputs, name=name, original=original):
            counts[name] += 1
            return original(*inputs)

        monkeypatch.setattr(convolutions_pcmanet, name, counted)
    monkeypatch.setattr(convolutions_pcmanet, "_TRAINED_PIXELS", 0)
    monkeypatch.setattr(convolutions_pcmanet, "CHUNK_VALUES", 1)
    return counts


def values_and_gradients(convolution, feature_map, size):
    feature_map = feature_map.clone().requires_grad_()
    output = convolution(feature_map, size)
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    gradients = torch.autograd.grad((output * weights).sum(), (feature_map, *convolution.parameters()))
    return [output, *gradients]


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("size", [None, (8, 10), (9, 6), (4, 6)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
def test_training_equals_evaluation(rearranged, size, has_bias, dtype, tolerance):
    torch.manual_seed(0)
    convolution = Convolution(40, 72, 3, padding=1, bias=has_bias).to(dtype)
    feature_map = torch.randn(3, 40, 4, 5, dtype=dtype)
    expected = values_and_gradients(convolution.eval(), feature_map, size)
    assert not any(rearranged.values())
    given = values_and_gradients(convolution.train(), feature_map, size)
    assert rearranged["convolve_upsampled" if size in ((8, 10), (9, 6)) else "convolve_transformed"]
    for value, own in zip(expected, given, strict=True):
        torch.testing.assert_close(own, value, atol=tolerance * value.abs().max().item(), rtol=0)


@pytest.mark.usefixtures("rearranged")
def test_frozen_weights_and_inputs_get_no_gradient():
    convolution = Convolution(40, 40, 3, padding=1).requires_grad_(False)
    feature_map = torch.randn(1, 40, 4, 4, requires_grad=True)
    convolution(feature_map).sum().backward()
    assert feature_map.grad is not None
    assert convolution.weight.grad is None
    convolution.requires_grad_(True)(feature_map.detach()).sum().backward()
    assert convolution.weight.grad is not None


@pytest.mark.parametrize(
    "convolution",
    [
        torch.nn.Conv2d(40, 40, 3, padding=1, groups=2),
        torch.nn.Conv2d(40, 40, 1),
        torch.nn.Conv2d(40, 40, 3, padding=1).bfloat16(),
    ],
)
def test_other_convolutions_are_those_of_pytorch(rearranged, convolution):
    own = Convolution(40, 40, convolution.kernel_size[0], padding=convolution.padding, groups=convolution.groups)
    own.to(convolution.weight.dtype).load_state_dict(convolution.state_dict())
    feature_map = torch.randn(1, 40, 4, 4).to(convolution.weight.dtype)
    assert torch.equal(own.train()(feature_map), convolution(feature_map))
    assert not any(rearranged.values())


@pytest.mark.parametrize("size", [None, (6, 14)])
def test_training_after_inference_of_the_same_size(rearranged, size):
    convolution, feature_map = Convolution(40, 40, 3, padding=1), torch.randn(1, 40, 3, 7)
    with torch.inference_mode():
        convolution(feature_map, size)
    assert any(rearranged.values())
    values_and_gradients(convolution, feature_map, size)


def test_autocast_uses_the_convolution_of_pytorch(rearranged):
    with torch.autocast("cpu", torch.bfloat16):
        assert Convolution(40, 40, 3, padding=1)(torch.randn(1, 40, 4, 4)).dtype == torch.bfloat16
    assert not any(rearranged.values())


def test_gradients_of_the_network(rearranged):
    model = tiny_model(hidden_size=64, head_channels=64, confidence_threshold=0.0).double().train()
    # Neither rearrangement; the same modules otherwise.
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, Convolution):
            module.training = False
    batch = {name: values.double() for name, values in tiny_batch().items()}
    labels = torch.ones(2, 3, 48, 64)
    labels[..., :20] = 0
    plain(**batch, labels=labels).loss.backward()
    assert not any(rearranged.values())
    model(**batch, labels=labels).loss.backward()
    assert all(rearranged.values())
    for (name, weight), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        if weight.grad is not None:
            torch.testing.assert_close(
                weight.grad, expected.grad, atol=1e-9, rtol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
            )
