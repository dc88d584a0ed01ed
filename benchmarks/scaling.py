"""How do time and memory grow with the number of frames, of clips, and with the size of the frames?

    python benchmarks/scaling.py --plot docs/benchmarks/scaling.png
    python benchmarks/scaling.py --presets resnet50 --plot resnet50.png   # half an hour on two cores

One axis grows while the other two stay at a clip of AVSBench: five frames of 224 x 224 pixels. At each point the plain
formulation (benchmarks/plain_pcmanet.py) and the optimized model run alternately, as in benchmarks/inference.py; memory is the
peak that one forward pass adds, measured in the same way. The table has the growth between neighboring points as an
exponent of the amount of work, frames times pixels: 1 is linear, 2 is quadratic. Audio is passed as `audio_embeds`.
"""

import argparse
import math
import os
import shlex
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from inference import (
    Setting,
    Variant,
    build_batch,
    build_model,
    build_run,
    describe_machine,
    measure_memory,
    print_table,
    time_rounds,
)
from tqdm.auto import tqdm


AXES: dict[str, tuple[int, ...]] = {
    "frames": (1, 2, 4, 8, 16, 32, 64),
    "clips": (1, 2, 4, 8, 16, 32),
    "size": (112, 224, 448, 896),
}
TITLES = {"frames": "frames per clip", "clips": "clips per batch", "size": "height and width, pixels"}
VARIANTS = [Variant("plain", "float32"), Variant("optimized", "float32")]
COLORS = {"plain": "#b4562f", "optimized": "#1f6f8b"}


@dataclass(frozen=True)
class Point:
    """One variant at one point of one axis.

    Attributes:
        value: Position on the axis.
        work: Frames times pixels, over all clips.
        milliseconds: Median time of a forward pass.
        megabytes: Peak that a forward pass adds.
    """

    value: int
    work: int
    milliseconds: float
    megabytes: float


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--presets", nargs="+", default=["tiny"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each variant at each point")
    parser.add_argument("--plot", type=Path, required=True, help="plot to write, PNG or SVG")
    return parser.parse_args()


def measure(setting: Setting, rounds: int) -> dict[str, Point]:
    """Measure both variants at one point, by kind."""
    memory = measure_memory(setting, VARIANTS)
    model, batch = build_model(setting), build_batch(setting)
    with torch.inference_mode():
        runs = {variant: build_run(variant, model, batch)[0] for variant in VARIANTS}
        seconds = time_rounds(runs, rounds, time.perf_counter)
    work = setting.clips * setting.frames * setting.size**2
    return {
        variant.kind: Point(0, work, 1000 * statistics.median(seconds[variant]), memory[variant])
        for variant in VARIANTS
    }


def measure_axes(setting: Setting, rounds: int) -> dict[str, dict[str, list[Point]]]:
    """Measure all points of all axes: axis to variant to points."""
    curves: dict[str, dict[str, list[Point]]] = {axis: {variant.kind: [] for variant in VARIANTS} for axis in AXES}
    positions = [(axis, value) for axis, values in AXES.items() for value in values]
    for axis, value in tqdm(positions, desc=setting.preset, unit="point"):
        changes: dict[str, Any] = {axis: value}
        if axis == "frames":
            changes["real_frames"] = value
        for kind, point in measure(replace(setting, **changes), rounds).items():
            curves[axis][kind].append(replace(point, value=value))
    return curves


def exponent(before: Point, after: Point, field: str) -> str:
    """Return the power of the work with which time or memory grew between two points."""
    growth = getattr(after, field) / getattr(before, field)
    return f"{math.log(growth) / math.log(after.work / before.work):.2f}"


def report(curves: dict[str, dict[str, list[Point]]]) -> None:
    """Print a table for each axis."""
    for axis, variants in curves.items():
        header = [TITLES[axis]]
        for kind in variants:
            header += [f"{kind}, ms", "exponent", f"{kind}, MB", "exponent"]
        rows = []
        for index, value in enumerate(AXES[axis]):
            cells = [str(value)]
            for points in variants.values():
                point, before = points[index], points[index - 1] if index else None
                for field, digits in (("milliseconds", 0), ("megabytes", 0)):
                    grown = "" if before is None else exponent(before, point, field)
                    cells += [f"{getattr(point, field):.{digits}f}", grown]
            rows.append(cells)
        print_table(header, rows)


def draw(path: Path, curves: dict[str, dict[str, dict[str, list[Point]]]]) -> None:
    """Plot time and memory against each axis, both logarithmic, two rows for each preset."""
    from matplotlib import pyplot

    rows = [
        (preset, field, unit)
        for preset in curves
        for field, unit in (("milliseconds", "ms of a forward pass"), ("megabytes", "MB that a forward pass adds"))
    ]
    figure, grid = pyplot.subplots(
        len(rows), len(AXES), figsize=(11, 3.1 * len(rows)), sharex="col", squeeze=False, layout="constrained"
    )
    for (preset, field, unit), line in zip(rows, grid, strict=True):
        for (axis, variants), axes in zip(curves[preset].items(), line, strict=True):
            for kind, points in variants.items():
                values = [getattr(point, field) for point in points]
                axes.plot(AXES[axis], values, "o-", color=COLORS[kind], label=kind, markersize=4)
            # A line through the last point of the optimized model that is exactly linear.
            last = variants["optimized"][-1]
            linear = [getattr(last, field) * point.work / last.work for point in variants["optimized"]]
            axes.plot(AXES[axis], linear, ":", color="#777", label="linear in frames x pixels")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(AXES[axis], [str(value) for value in AXES[axis]])
            axes.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel(f"{preset}: {unit}")
    for axis, axes in zip(AXES, grid[-1], strict=True):
        axes.set_xlabel(TITLES[axis])
    grid[0][0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print the tables and write the plot."""
    options = parse_args()
    torch.set_num_threads(options.threads)
    print(f"`python {shlex.join(sys.argv)}`\n\n{describe_machine(options)}; {options.rounds} rounds.\n")
    curves = {}
    for preset in options.presets:
        setting = Setting(preset, 1, 1, 5, 5, 224, options.device, options.threads)
        curves[preset] = measure_axes(setting, options.rounds)
        print(f"**{preset}, binary, float32; constant axes: 1 clip of 5 frames at 224 x 224**\n")
        report(curves[preset])
    draw(options.plot, curves)


if __name__ == "__main__":
    main()
