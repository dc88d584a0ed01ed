"""The published recipe against ours: the demo-size network on Sounding Shapes, the same number of clips for each.

    python benchmarks/recipes.py --output runs/recipes

trains every variant below with three seeds (runs of examples/train_pcmanet.py, two at a time), measures the last weights of
each in float32 on one held-out stream (examples/evaluate_sounding_shapes.py) and prints the table of docs/recipes.md. All
hear through the frozen audio encoder of the demo model. Killed and started again, the command goes on where it was.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

from modeling_pcmanet import PCMANetForAudioVisualSegmentation


EXAMPLES = Path(__file__).parent.parent / "examples"
# Recipe file and what differs from it. The published learning rate was chosen for pretrained backbones, of which the
# demo-size network has none; the second row gives the published recipe one that suits such a network better.
VARIANTS = {
    "published": ("ms3", []),
    "published, learning rate 2e-3": ("ms3", ["learning_rate=2e-3"]),
    "ours": ("ours", []),
    "ours without negative sounds": ("ours", ["negative_fraction=0"]),
}
# Column, and row and value of the figures that evaluate_sounding_shapes.py writes.
COLUMNS = {
    "mIoU": ("the clip as it is", "mIoU (official)"),
    "F": ("the clip as it is", "F (official)"),
    "mIoU, other sounds": ("the same pictures, other sounds", "mIoU (official)"),
    "claimed under negative sounds": ("all negative sounds", "pixels claimed"),
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--clips", type=int, default=1600, help="training clips of each run")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--test-clips", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core")
    return parser.parse_args()


def train(args: argparse.Namespace, audio_encoder: Path, variant: str, seed: int) -> dict[str, float]:
    """Train one variant and measure it, unless that was done already, and return its figures by column."""
    folder = args.output / f"{list(VARIANTS).index(variant)}_seed{seed}"
    figures = args.output / f"{folder.name}.json"
    if not figures.is_file():
        recipe, differences = VARIANTS[variant]
        settings = {
            "audio_encoder": audio_encoder,
            "clips": args.clips,
            "image_size": args.image_size,
            "epochs": 1,
            "evaluations": 1,
            "evaluation_clips": 1,
            "preset": "tiny",
            "mixed_precision": "bf16",
            "num_workers": 0,
            "seed": seed,
        }
        command = [EXAMPLES / "train_pcmanet.py", "--recipe", EXAMPLES / "recipes" / f"{recipe}.yaml", "--resume"]
        command += ["--output", folder, "--set", *(f"{key}={value}" for key, value in settings.items()), *differences]
        measure = [EXAMPLES / "evaluate_sounding_shapes.py", folder / "last", "--clips", args.test_clips]
        with (args.output / f"{folder.name}.log").open("a") as log:
            for words in (command, [*measure, "--json", figures]):
                environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
                words = [str(word) for word in (sys.executable, *words)]
                subprocess.run(words, check=True, stdout=log, stderr=log, env=environment)
    measured = json.loads(figures.read_text())
    return {column: measured[row][name] for column, (row, name) in COLUMNS.items()}


def print_table(results: dict[str, list[dict[str, float]]]) -> None:
    """Print mean and standard deviation over the seeds; seeds are paired, so differences in mIoU are taken per seed."""
    first = [figures["mIoU"] for figures in next(iter(results.values()))]
    columns = [*COLUMNS, "mIoU by seed", "difference in mIoU to the first row, mean and range"]
    print(f"| recipe | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for variant, runs in results.items():
        cells = []
        for column in COLUMNS:
            values = [figures[column] for figures in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.4f} ± {spread:.4f}")
        scores = [figures["mIoU"] for figures in runs]
        differences = [score - other for score, other in zip(scores, first, strict=True)]
        cells.append(" ".join(f"{score:.4f}" for score in scores))
        cells.append(f"{statistics.mean(differences):+.4f} ({min(differences):+.4f} to {max(differences):+.4f})")
        print(f"| {variant} | {' | '.join(cells)} |")


def main() -> None:
    """Run what is missing and print the table."""
    args = parse_args()
    audio_encoder = args.output / "audio_encoder"
    demo = PCMANetForAudioVisualSegmentation.from_pretrained(EXAMPLES / "demo_model")
    demo.model.audio_encoder.save_pretrained(audio_encoder)
    jobs = [(variant, seed) for variant in VARIANTS for seed in range(args.seeds)]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = pool.map(lambda job: train(args, audio_encoder, *job), jobs)
        figures = list(tqdm(runs, total=len(jobs), desc="runs", unit="run"))
    results: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    for (variant, _), measured in zip(jobs, figures, strict=True):
        results[variant].append(measured)
    print(f"\nPrinted by: python {' '.join(sys.argv)}\n")
    print_table(results)


if __name__ == "__main__":
    main()
