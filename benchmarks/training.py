"""Measure the cost of a training step, the share of the backbone, the effect of the options, and data loading.

    python benchmarks/training.py
    python benchmarks/training.py --presets pvt_v2_b5 --clips 8 --workers 8 --precision bf16 --steps 20
    OMP_NUM_THREADS=1 python benchmarks/training.py --cpu-time --workers 0   # on a busy CPU

Every row is measured in a new process on a run that `pcmanet.training` builds, as `pcmanet train` does: clips of five frames
of 224 x 224 in the layout of S4, written by this script, with the audio encoder frozen. The first table keeps one batch in
memory, so no data is loaded; the second reads every batch from the disk and decodes it. Times are medians over the steps
after the first (three with compilation). On a GPU each part of a step is synchronized. With --cpu-time, times are the
CPU time of this process (time.process_time), which does not depend on other processes: with one thread it is the time
of an idle CPU.

Memory is what the steps add: on a GPU the peak of allocated tensors (torch.cuda.max_memory_allocated), on a CPU the peak
resident memory of the process (VmHWM, Linux) minus its value after the imports. Prints Markdown.
"""

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars

from modeling_pcmanet import PCMANetConfig, VGGishModel
from pcmanet.dataset_scripts.sounding_shapes.files import write_avsbench_tree
from pcmanet.training.data import Batch
from pcmanet.training.recipe import Recipe
from pcmanet.training.run import Run, start_run


PRESETS = ("tiny", "resnet50", "pvt_v2_b5")
PARTS = ("loading", "forward", "backward", "optimizer")
WRITTEN_BATCHES = 3
EPOCHS = 1000  # more than are needed


@dataclass(frozen=True)
class Case:
    """One row of the first table.

    Attributes:
        settings: Fields of the recipe that differ from plain float32 training.
        part: "training", "forward" (no gradients) or "backbone" (training of the visual backbone alone).
        warm_up: Steps that are not measured.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    part: str = "training"
    warm_up: int = 1


CASES = {
    "training": Case(),
    "forward only": Case(part="forward"),
    "backbone only": Case(part="backbone"),
    "bf16": Case({"mixed_precision": "bf16"}),
    "gradient checkpointing": Case({"gradient_checkpointing": True}),
    "accumulation, 2 parts": Case({"gradient_accumulation": 2}),
    "compiled": Case({"compile": True}, warm_up=3),
}


class Clock:
    """Sum the seconds of each part of a step, in wall-clock time or CPU time of this process."""

    def __init__(self, device: torch.device, cpu_time: bool) -> None:
        self.device = device
        self.now = time.process_time if cpu_time else time.perf_counter
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Add the time of this block to a part, including the work of the device."""
        start = self.now()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[part] += self.now() - start


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=PRESETS)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES), help="rows of the first table")
    parser.add_argument("--clips", type=int, default=2, help="clips per step, an even number")
    parser.add_argument("--steps", type=int, default=5, help="steps that a row measures")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1], help="rows of the second table")
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time instead of wall-clock time")
    parser.add_argument("--precision", choices=("none", "bf16"), default="none", help="precision of the second table")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # what a new process measures, as JSON
    return parser.parse_args()


def training_step(run: Run, batches: list[Batch], clock: Clock) -> None:
    """Take an optimizer step as `pcmanet.training` does, with the time of each part."""
    for batch in batches:
        with clock("forward"):
            loss = run.wrapped(**batch).loss / len(batches)
        with clock("backward"):
            run.accelerator.backward(loss)
    finish_step(run, clock)


def backbone_step(run: Run, batches: list[Batch], clock: Clock) -> None:
    """Train the visual backbone alone, on the sum of its feature maps."""
    for batch in batches:
        with clock("forward"), run.accelerator.autocast():
            maps = run.network.model.backbone(batch["pixel_values"].flatten(0, 1)).feature_maps
            loss = sum(feature_map.float().mean() for feature_map in maps)
        with clock("backward"):
            run.accelerator.backward(loss)
    finish_step(run, clock)


@torch.no_grad()
def forward_step(run: Run, batches: list[Batch], clock: Clock) -> None:
    """Compute the loss only."""
    for batch in batches:
        with clock("forward"):
            run.wrapped(**batch)


def finish_step(run: Run, clock: Clock) -> None:
    """Clip the gradient, update the weights and their average."""
    with clock("optimizer"):
        run.accelerator.clip_grad_norm_(run.wrapped.parameters(), 1.0)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.average.update(run.network)


STEPS = {"training": training_step, "backbone": backbone_step, "forward": forward_step}


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Measure one row in this process.

    Args:
        options: `recipe`, `part`, `warm_up`, `steps`, `loading` (whether every step loads a batch), `cpu_time`, `folder`.

    Returns:
        Medians of the parts and of their sum in seconds, and megabytes.
    """
    disable_progress_bars()
    before = resident_memory("VmRSS")
    run = start_run(Recipe(**options["recipe"]), Path(options["folder"]))
    batches, rows = run.steps(), []
    batch = next(batches)
    for _ in range(options["warm_up"] + options["steps"]):
        clock = Clock(run.accelerator.device, options["cpu_time"])
        if options["loading"]:
            with clock("loading"):
                batch = next(batches)
        STEPS[options["part"]](run, batch, clock)
        rows.append(clock.seconds)
    rows = rows[options["warm_up"] :]
    cuda = run.accelerator.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else resident_memory("VmHWM") - before
    return {part: statistics.median(row[part] for row in rows) for part in PARTS} | {
        "step": statistics.median(sum(row.values()) for row in rows),
        "megabytes": peak,
    }


def resident_memory(name: str) -> float:
    """Return the megabytes of this process: now (VmRSS) or at most (VmHWM)."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**10


def measure_apart(tree: Path, folder: Path, settings: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Measure one row in a new process.

    Raises:
        RuntimeError: If it fails, with the last line of its error; all of it is printed to stderr.
    """
    encoder = folder / f"vggish_{settings['preset']}"
    VGGishModel(PCMANetConfig.from_preset(settings["preset"]).audio_config).save_pretrained(encoder)
    recipe = {
        "task": "s4",
        "data": str(tree),
        "audio_encoder": str(encoder),
        "epochs": EPOCHS,
        "optimizer": "adamw",
        "mixed_precision": "none",
        "num_workers": 0,
        "trackers": [],
        **settings,
    }
    with tempfile.TemporaryDirectory(dir=folder) as output:
        order = json.dumps({"recipe": recipe, "folder": f"{output}/run", **options})
        environment = os.environ | {"HF_HOME": str(folder / "cache")}
        command = [sys.executable, __file__, "--measure", order]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        print(result.stderr, file=sys.stderr)
        errors = [line for line in result.stderr.splitlines() if re.match(r"[\w.]+(Error|Exception)\b", line)]
        raise RuntimeError(errors[-1] if errors else f"exit code {result.returncode}")
    return json.loads(result.stdout.splitlines()[-1])


def describe_machine() -> str:
    """Return processor, GPU and versions."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    processor = names[0] if names else platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{processor}, {threads}{gpu}; torch {torch.__version__}"


def print_row(cells: list[str]) -> None:
    """Print one row of Markdown as soon as it is measured."""
    print(f"| {' | '.join(cells)} |", flush=True)


def milliseconds(seconds: float) -> str:
    """Format a time for a table; parts that did not run are empty."""
    return f"{1000 * seconds:.0f}" if seconds else ""


def print_steps(args: argparse.Namespace, tree: Path, folder: Path) -> None:
    """Print the first table."""
    print(f"\nWithout loading, {args.clips} clips per step; times in ms\n")
    print_row(
        ["preset", "case", "clips/s", "of training", "forward", "backward", "optimizer", "memory, MB", "of training"]
    )
    print_row(["---"] * 9)
    for preset in args.presets:
        plain = None
        for name in args.cases:
            case = CASES[name]
            settings = {"preset": preset, "batch_size": args.clips, **case.settings}
            options = {"part": case.part, "warm_up": case.warm_up, "loading": False}
            try:
                found = measure_apart(tree, folder, settings, steps=args.steps, cpu_time=args.cpu_time, **options)
            except RuntimeError as error:
                # An option that does not work on this machine is a result too.
                print_row([preset, name, str(error), *[""] * 6])
                continue
            plain = found if name == "training" else plain
            times = [milliseconds(found[part]) for part in PARTS[1:]]
            speed = f"{plain['step'] / found['step']:.2f}" if plain else ""
            memory = f"{found['megabytes'] / plain['megabytes']:.2f}" if plain else ""
            rate = f"{args.clips / found['step']:.2f}"
            print_row([preset, name, rate, speed, *times, f"{found['megabytes']:.0f}", memory])


def print_loading(args: argparse.Namespace, tree: Path, folder: Path) -> None:
    """Print the second table."""
    print(f"\nWith loading, {args.clips} clips per step, mixed precision {args.precision}; times in ms\n")
    print_row(["preset", "workers", "clips/s", "step", "loading or waiting for it", "fraction"])
    print_row(["---"] * 6)
    for preset in args.presets:
        for workers in args.workers:
            settings = {"preset": preset, "batch_size": args.clips, "num_workers": workers}
            settings["mixed_precision"] = args.precision
            options = {"part": "training", "warm_up": 1, "loading": True}
            found = measure_apart(tree, folder, settings, steps=args.steps, cpu_time=args.cpu_time, **options)
            fraction = f"{found['loading'] / found['step']:.1%}"
            times = [milliseconds(found["step"]), milliseconds(found["loading"])]
            print_row([preset, str(workers), f"{args.clips / found['step']:.2f}", *times, fraction])


def main() -> None:
    """Print both tables, or measure one row."""
    args = parse_args()
    if args.measure:
        print(json.dumps(measure(json.loads(args.measure))))
        return
    if args.clips % 2:
        sys.exit(f"Expected an even number of --clips for accumulation, got {args.clips}.")
    if args.cpu_time and any(args.workers):
        sys.exit("--cpu-time does not include worker processes. Set --workers 0.")
    print(f"`python {shlex.join(sys.argv)}`\n\n{describe_machine()}{'; CPU time' if args.cpu_time else ''}")
    with tempfile.TemporaryDirectory() as name:
        tree = write_avsbench_tree(Path(name) / "data", "s4", {"train": WRITTEN_BATCHES * args.clips, "val": 1})
        if args.cases:
            print_steps(args, tree, Path(name))
        if args.workers:
            print_loading(args, tree, Path(name))


if __name__ == "__main__":
    main()
