"""One training step of the network and of its plain formulation, on random data that is already in memory."""

import copy
from collections.abc import Callable

import torch
from plain_pcmanet import PlainPCMANet
from torch import nn


def build_step(
    kind: str,
    model: nn.Module,
    batch: dict[str, torch.Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> Callable[[], torch.Tensor]:
    """Build the function that takes a step with AdamW on a copy of the model.

    Args:
        kind: `"plain"`: the plain formulation in PyTorch's default memory layout and with its default optimizer.
            `"training"`: our network with channels_last weights and the fused optimizer.
        model: The model; it is not modified.
        batch: Its inputs, on its device.
        dtype: Data type of autocast; float32 for none.
        compiled: Whether to compile our network.

    Returns:
        The function; it returns the loss.
    """
    model = copy.deepcopy(model).train()
    labels = _draw_labels(batch["pixel_values"], model.config.num_labels)
    is_plain = kind == "plain"
    network = PlainPCMANet(model) if is_plain else model.to(memory_format=torch.channels_last)
    called = torch.compile(network) if compiled else network
    optimizer = torch.optim.AdamW([x for x in model.parameters() if x.requires_grad], fused=not is_plain or None)

    def step() -> torch.Tensor:
        with torch.autocast(labels.device.type, dtype, enabled=dtype != torch.float32):
            if is_plain:
                loss = model._loss(called(**batch), labels, None, None)
            else:
                loss = called(**batch, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def _draw_labels(pixel_values: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Draw a random class for every pixel of (batch, frames, 3, height, width)."""
    batch, frames, _, *size = pixel_values.shape
    generator = torch.Generator().manual_seed(2)
    return torch.randint(max(num_labels, 2), (batch, frames, *size), generator=generator).to(pixel_values.device)
