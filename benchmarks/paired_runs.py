"""Train variants on Sounding Shapes with the same seeds; shared by ablation.py and recipes.py.

A seed determines the clips and the initial weights, so it changes a result by far more than a variant does. Variants are
therefore compared for each seed. All of them use the frozen audio encoder of the demo model.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from modeling_pcmanet import PCMANetForAudioVisualSegmentation


EXAMPLES = Path(__file__).parent.parent / "examples"
# From the folder of a finished run to its results by name.
Measure = Callable[[Path], dict[str, float]]


@dataclass(frozen=True)
class Variant:
    """A recipe with some settings changed.

    Attributes:
        recipe: Name of a file in examples/recipes, without its suffix.
        settings: Fields that differ from it.
    """

    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser, clips: int) -> None:
    """Add the options of both comparisons."""
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--clips", type=int, default=clips, help="training clips of each run")
    parser.add_argument("--image-size", type=int, default=64, help="side of the square frames, in pixels")
    parser.add_argument("--test-clips", type=int, default=100, help="held-out clips on which each run is evaluated")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core")


def run_python(words: list[Any], log: Path) -> None:
    """Run Python with these arguments on one core and append its output to a file.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    command = [str(word) for word in (sys.executable, *words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with log.open("a") as output:
        subprocess.run(command, check=True, stdout=output, stderr=output, env=environment)


def run_variants(
    args: argparse.Namespace, variants: Mapping[str, Variant], common: Mapping[str, Any], measure: Measure
) -> dict[str, list[dict[str, float]]]:
    """Train and evaluate every variant with every seed; finished runs are not trained again.

    Args:
        args: Options of `add_arguments`.
        variants: Variants by name.
        common: Settings of all runs; those of a variant take precedence.
        measure: See `Measure`.

    Returns:
        For each variant its results, one dictionary per seed.
    """
    audio_encoder = args.output / "audio_encoder"
    demo = PCMANetForAudioVisualSegmentation.from_pretrained(EXAMPLES / "demo_model")
    demo.model.audio_encoder.save_pretrained(audio_encoder)
    settings = {"audio_encoder": audio_encoder, "clips": args.clips, "image_size": args.image_size, **common}

    def run(job: tuple[int, str]) -> dict[str, float]:
        seed, name = job
        folder = args.output / f"{list(variants).index(name)}_seed{seed}"
        variant = variants[name]
        if not (folder / "last" / "metrics.json").is_file():
            differences = {**settings, "seed": seed, **variant.settings}
            words = [
                "-m",
                "pcmanet",
                "train",
                "--recipe",
                EXAMPLES / "recipes" / f"{variant.recipe}.yaml",
                "--output",
                folder,
                "--resume",
            ]
            words += ["--set", *(f"{key}={value}" for key, value in differences.items())]
            run_python(words, args.output / f"{folder.name}.log")
        return measure(folder)

    jobs = [(seed, name) for seed in range(args.seeds) for name in variants]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(tqdm(pool.map(run, jobs), total=len(jobs), desc="runs", unit="run"))
    return {
        name: [measured for (_, other), measured in zip(jobs, results, strict=True) if other == name]
        for name in variants
    }


def print_table(results: Mapping[str, list[dict[str, float]]], reference: str) -> None:
    """Print means and standard deviations over the seeds, and the first column by seed and relative to a reference."""
    columns = list(results[reference][0])
    first = columns[0]
    header = [*columns, f"{first} by seed", f"difference in {first} to {reference}, mean and range"]
    print(f"\nPrinted by: python {' '.join(sys.argv)}\n")
    print(f"| variant | {' | '.join(header)} |\n|---|{'---|' * len(header)}")
    for name, runs in results.items():
        values = {column: [run[column] for run in runs] for column in columns}
        cells = [mean_and_deviation(values[column]) for column in columns]
        differences = [own - other[first] for own, other in zip(values[first], results[reference], strict=True)]
        cells.append(" ".join(f"{value:.4f}" for value in values[first]))
        cells.append(f"{statistics.mean(differences):+.4f} ({min(differences):+.4f} to {max(differences):+.4f})")
        print(f"| {name} | {' | '.join(cells)} |")


def print_differences(results: Mapping[str, list[dict[str, float]]], reference: str) -> None:
    """Print, for every column, the mean and range of the differences from the reference with the same seed."""
    columns = list(results[reference][0])
    print(f"\n| difference to {reference} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, runs in results.items():
        cells = []
        for column in columns:
            differences = [own[column] - other[column] for own, other in zip(runs, results[reference], strict=True)]
            cells.append(f"{statistics.mean(differences):+.4f} ({min(differences):+.4f} to {max(differences):+.4f})")
        print(f"| {name} | {' | '.join(cells)} |")


def mean_and_deviation(values: list[float]) -> str:
    """Return mean ± standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"
