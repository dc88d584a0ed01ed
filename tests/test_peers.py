"""benchmarks/peers.py: the costs of layers are those of PyTorch's, and those of AVSegFormer what its measurement gave."""

import peers
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def measured(module: nn.Module, *inputs: torch.Tensor) -> list[float]:
    """Return parameters and multiply-accumulates of a module."""
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return [sum(weight.numel() for weight in module.parameters()), counter.get_total_flops() / 2]


def test_layers():
    assert list(peers.convolution(4, 6, 3, 10)) == measured(nn.Conv2d(4, 6, 3, padding=1), torch.rand(1, 4, 10, 10))
    assert list(peers.linear(4, 6, 7)) == measured(nn.Linear(4, 6), torch.rand(7, 4))
    assert list(peers.norm(4, 2)) == measured(nn.Sequential(nn.LayerNorm(4), nn.GroupNorm(2, 4)), torch.rand(1, 4))


def test_attention():
    layer = nn.MultiheadAttention(peers.WIDTH, 8, batch_first=True)
    queries, keys = torch.rand(1, 5, peers.WIDTH), torch.rand(1, 9, peers.WIDTH)
    assert list(peers.attention(5, 9)) == measured(layer, queries, keys, keys)


def test_costs_of_avsegformer_are_near_its_measurement():
    """EASE measured 186 million parameters and 99 GFLOPs, with the part of the loss that the description leaves out."""
    (row,) = (row for row in peers.published_rows() if row.method == "AVSegFormer" and row.costs[0] != "-")
    parameters, gmacs = peers.count_peer("AVSegFormer", "PVT-v2", 224)
    assert parameters == pytest.approx(float(row.costs[0]), rel=0.06)
    assert 2 * gmacs == pytest.approx(float(row.costs[1].split()[0]), rel=0.06)
