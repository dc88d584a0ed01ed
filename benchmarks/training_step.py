"""How much faster is a training step of our network than one of its plain formulation, with how much memory?

    python benchmarks/training_step.py
    python benchmarks/training_step.py --presets resnet50 --clips 4 --dtypes bfloat16
    OMP_WAIT_POLICY=passive python benchmarks/training_step.py --processor-time   # on a busy machine

A step is forward, loss over all four stages, backward, gradient clipping and AdamW, with the audio encoder frozen, on one
random batch that is already in memory. "plain" is the plain formulation (benchmarks/plain_pcmanet.py) in PyTorch's default
memory layout and with its default AdamW. "training" is our network with channels_last weights and the fused AdamW, as
`pcmanet train` builds them. bfloat16 is autocast.

Both run alternately in one process; ratios are computed within each round, then their median. The difference of
gradients is measured from the plain formulation in float64: its norm over all weights, relative to the norm of the
gradients. The difference of "plain" shows the effect of rounding alone. Memory is the peak that steps add to the
process, each kind in a new process, optimizer state included. Prints Markdown. Runs on a CPU; benchmarks/gpu.py
measures the same steps on a GPU.
"""

import argparse
import copy
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from inference import (
    DTYPES,
    MEGABYTE,
    Setting,
    build_batch,
    build_model,
    describe_machine,
    print_table,
    quartiles,
    status,
    time_rounds,
)
from plain_pcmanet import PlainPCMANet
from torch import nn

from modeling_pcmanet.modeling_pcmanet import binary_loss, semantic_loss


KINDS = ("plain", "training")


@dataclass(frozen=True)
class Step:
    """A training step.

    Attributes:
        model: The model; plain formulation and network share its weights.
        compute_loss: Runs the forward pass.
        optimizer: Updates the weights.
    """

    model: nn.Module
    compute_loss: Callable[[], torch.Tensor]
    optimizer: torch.optim.Optimizer

    def __call__(self) -> torch.Tensor:
        """Take the step and return the loss."""
        loss = self.compute_loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def build_step(
    kind: str,
    model: nn.Module,
    batch: dict[str, torch.Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> Step:
    """Build a step on a copy of the model.

    Args:
        kind: `"plain"` or `"training"`.
        model: The model; it is not modified.
        batch: Its inputs, on its device.
        dtype: Data type of autocast; float32 for none.
        compiled: Whether to compile our network.
    """
    model = copy.deepcopy(model).train()
    labels = _draw_labels(batch["pixel_values"], model.config.num_labels)
    is_plain = kind == "plain"
    network = PlainPCMANet(model) if is_plain else model.to(memory_format=torch.channels_last)
    called = torch.compile(network) if compiled else network

    def compute_loss() -> torch.Tensor:
        with torch.autocast(labels.device.type, dtype, enabled=dtype != torch.float32):
            if is_plain:
                return plain_loss(called(**batch), labels)
            return called(**batch, labels=labels).loss

    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return Step(model, compute_loss, torch.optim.AdamW(trained, fused=None if is_plain else True))


def plain_loss(stage_logits: tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Compute the loss of four outputs at the size of the labels, all frames of a stage at once."""
    frame_loss = binary_loss if stage_logits[0].shape[2] == 1 else semantic_loss
    losses = [frame_loss(logits.flatten(0, 1), labels.flatten(0, 1)).mean() for logits in stage_logits]
    return torch.stack(losses).sum()


def _draw_labels(pixel_values: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Draw a random class for every pixel of (batch, frames, 3, height, width)."""
    batch, frames, _, *size = pixel_values.shape
    generator = torch.Generator().manual_seed(2)
    return torch.randint(max(num_labels, 2), (batch, frames, *size), generator=generator).to(pixel_values.device)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--presets", nargs="+", default=["resnet50", "pvt_v2_b5"])
    parser.add_argument("--clips", nargs="+", type=int, default=[1], help="clips of five frames per step")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--num-labels", type=int, default=1, help="1 for the binary task, 71 for AVSBench-semantic")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5, help="steps of each kind, 2 or more")
    parser.add_argument("--processor-time", action="store_true", help="instead of wall time, for a busy machine")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    return parser.parse_args()


def gradients(step: Step) -> torch.Tensor:
    """Return the gradients of all weights, (values,) float64."""
    torch.manual_seed(3)  # drop path
    step.compute_loss().backward()
    found = [weight.grad.flatten().double() for weight in step.model.parameters() if weight.grad is not None]
    step.optimizer.zero_grad()
    return torch.cat(found)


def gradient_differences(steps: dict[str, Step], model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the norm of the difference of all gradients from the exact ones, relative to their norm."""
    exact = build_step(
        "plain", copy.deepcopy(model).double(), {name: values.double() for name, values in batch.items()}
    )
    expected = gradients(exact)
    return {kind: ((gradients(step) - expected).norm() / expected.norm()).item() for kind, step in steps.items()}


def extra_memory(setting: Setting, kind: str, dtype: str) -> float:
    """Measure the megabytes that two steps add at their peak; runs in a new process."""
    torch.set_num_threads(setting.threads)
    model, batch = build_model(setting), build_batch(setting)
    held = status("VmRSS")
    step = build_step(kind, model, batch, dtype=DTYPES[dtype])
    step()
    step()
    return (status("VmHWM") - held) / MEGABYTE


def measure_memory(setting: Setting, dtype: str) -> dict[str, float]:
    """Measure the memory of both kinds."""
    context, peaks = multiprocessing.get_context("spawn"), {}
    for kind in KINDS:
        with context.Pool(1) as pool:
            peaks[kind] = pool.apply(extra_memory, (setting, kind, dtype))
    return peaks


def rows(setting: Setting, dtype: str, options: argparse.Namespace) -> list[list[str]]:
    """Return the rows of both kinds."""
    memory = {} if options.no_memory else measure_memory(setting, dtype)
    model, batch = build_model(setting), build_batch(setting)
    steps = {kind: build_step(kind, model, batch, dtype=DTYPES[dtype]) for kind in KINDS}
    differences = gradient_differences(steps, model, batch)
    clock = time.process_time if options.processor_time else time.perf_counter
    seconds = time_rounds(steps, options.rounds, clock)
    table = []
    for kind in KINDS:
        ratios = [plain / own for plain, own in zip(seconds["plain"], seconds[kind], strict=True)]
        cells = [quartiles([1000 * x for x in seconds[kind]], 0), quartiles(ratios, 2)]
        megabytes = [f"{memory[kind]:.0f}", f"{memory[kind] / memory['plain']:.2f}"] if memory else ["", ""]
        row = [
            setting.preset,
            str(setting.num_labels),
            str(setting.clips),
            dtype,
            kind,
            *cells,
            *megabytes,
            f"{differences[kind]:.1e}",
        ]
        table.append(row)
    return table


def main() -> None:
    """Print the table."""
    options = parse_args()
    torch.set_num_threads(options.threads)
    options.device = "cpu"
    clock = "processor time" if options.processor_time else "wall time"
    print(f"`python {shlex.join(sys.argv)}`\n\n{describe_machine(options)}; {options.rounds} rounds, {clock}.\n")
    table = []
    for preset in options.presets:
        for clips in options.clips:
            setting = Setting(preset, options.num_labels, clips, 5, 5, options.size, "cpu", options.threads, True)
            table += [row for dtype in options.dtypes for row in rows(setting, dtype, options)]
    header = ["preset", "labels", "clips", "data type", "step", "ms", "times plain", "extra memory, MB", "of plain"]
    print_table([*header, "difference of gradients"], table)


if __name__ == "__main__":
    main()
