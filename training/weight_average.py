"""The weights that are evaluated and saved: a running average of those that learn, or these as they are."""

import copy

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from modeling_pcmanet import PCMANetForAudioVisualSegmentation


# After n steps the average keeps at most n / (n + 10): it reaches over the last tenth of a short run.
WARM_UP_STEPS = 10


class WeightAverage:
    """A plain copy of the network beside the one that is trained, whole on every process and never wrapped.

    So an evaluation needs no word between the processes, computes in float32, and saving needs no gathering.

    Args:
        network: The network before `accelerator.prepare`; it is copied.
        decay: Share of the average that each step keeps, once there were enough steps: step n keeps n / (n + 10) at most,
            so that the first step replaces it. None keeps no average: the copy then takes over the weights when it is
            asked for.
    """

    def __init__(self, network: PCMANetForAudioVisualSegmentation, decay: float | None) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, network: torch.nn.Module) -> None:
        """Take in the weights and running statistics of the trained network after a step; does nothing without average.

        Args:
            network: The trained network without its wrappers; its parameters may be sharded (FSDP2).
        """
        if self.decay is not None:
            # The plain decay would keep mostly the first weights until 1 / (1 - decay) steps are done.
            self._blend(network, min(self.decay, self.steps / (self.steps + WARM_UP_STEPS)))
        self.steps += 1

    @torch.no_grad()
    def synchronized(self, network: torch.nn.Module, accelerator: Accelerator) -> PCMANetForAudioVisualSegmentation:
        """Give the network to evaluate or save, the same on every process.

        Args:
            network: As for `update`.
            accelerator: Says how many processes there are.
        """
        if self.decay is None:
            self._blend(network, 0.0)
        if accelerator.num_processes > 1:
            # Parameters are equal everywhere, but BatchNorm's running statistics are each process's own.
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, src=0)
        return self.network

    def _blend(self, network: torch.nn.Module, keep: float) -> None:
        """Move all values towards those of the network, keeping a share of what was there."""
        mine = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        theirs = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        values = {name: _whole(theirs[name].detach()) for name in mine}
        blended = [name for name, average in mine.items() if keep > 0.0 and average.is_floating_point()]
        if blended:
            targets = [values[name].to(mine[name].dtype) for name in blended]
            torch._foreach_lerp_([mine[name] for name in blended], targets, 1 - keep)
        for name in (name for name in mine if name not in set(blended)):
            mine[name].copy_(values[name])

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint holds of it."""
        weights = None if self.decay is None else self.network.state_dict()
        return {"steps": self.steps, "weights": weights}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from a state."""
        self.steps = state["steps"]
        if state["weights"] is not None:
            self.network.load_state_dict(state["weights"])


def _whole(values: torch.Tensor) -> torch.Tensor:
    """Gather what is sharded over the processes."""
    return values.full_tensor() if isinstance(values, DTensor) else values
