"""Run the `pcmanet` command with a network in float64, in which the order of a sum hardly matters.

In float32 two orders of the same sum can differ enough to change the sign of the input of a ReLU, and with it the gradient,
which Adam amplifies to complete steps where the gradient is almost zero.
"""

import sys
from typing import Any

import torch

from pcmanet.cli.main import main


def in_float64(network: torch.nn.Module) -> torch.nn.Module:
    """Convert the weights of a network, and from now on the inputs of its calls."""

    def convert(_: torch.nn.Module, arguments: tuple[Any, ...], inputs: dict[str, torch.Tensor]) -> Any:
        return arguments, {
            key: value.double() if value.is_floating_point() else value for key, value in inputs.items()
        }

    network.register_forward_pre_hook(convert, with_kwargs=True)
    return network.double()


def train_in_float64() -> None:
    """Let the training of this process build its network in float64."""
    from pcmanet.training import run  # not earlier: the caller may replace functions that it imports

    build = run.build_network
    run.build_network = lambda *arguments: in_float64(build(*arguments))


if __name__ == "__main__":
    train_in_float64()
    sys.exit(main())
