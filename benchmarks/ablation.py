"""What the repairs of the published network are worth: demo-size networks on Sounding Shapes under equal budgets.

    python benchmarks/ablation.py --output runs/ablation

trains five variants with three seeds each (15 runs of examples/train_pcmanet.py, two at a time) and prints the table of
docs/ablation.md. All variants hear through the frozen audio encoder of the demo model and see the same clips under the
same seed; only the fields named below differ. Runs that have finished are kept: started again, the command goes on.
"""

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

from modeling_pcmanet import PCMANetForAudioVisualSegmentation


EXAMPLES = Path(__file__).parent.parent / "examples"
RECIPE = EXAMPLES / "recipes" / "sounding_shapes.yaml"
VARIANTS = {
    "(a) as published": ['token_layout="scrambled"', "masked_query_gradients=false"],
    "(b) layout repaired": ["masked_query_gradients=false"],
    "(c) layout and gradients repaired (default)": [],
    "(d) default without confidence masking": ["confidence_threshold=0"],
    "(e) default without QSCA": ["cross_attention=false"],
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--clips", type=int, default=3200, help="training clips of each run")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--evaluation-clips", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core")
    return parser.parse_args()


def train(args: argparse.Namespace, audio_encoder: Path, variant: str, seed: int) -> float:
    """Train one variant unless it is there already and return its validation mIoU after the last step."""
    folder = args.output / f"{variant[1]}_seed{seed}"
    record = folder / "last" / "metrics.json"
    if not record.is_file():
        settings = {
            "audio_encoder": audio_encoder,
            "clips": args.clips,
            "image_size": args.image_size,
            "evaluation_clips": args.evaluation_clips,
            "evaluations": 1,
            "pair_sounds": "true",
            # A run is a few hundred steps: the demo's average over 500 would mostly hold the random start.
            "average_decay": 0.98,
            "seed": seed,
        }
        command = [sys.executable, EXAMPLES / "train_pcmanet.py", "--recipe", RECIPE, "--output", folder, "--resume"]
        command += ["--set", *(f"{key}={value}" for key, value in settings.items())]
        command += [f"configuration.{override}" for override in VARIANTS[variant]]
        with (args.output / f"{folder.name}.log").open("w") as log:
            subprocess.run([str(word) for word in command], check=True, stdout=log, stderr=log)
    return json.loads(record.read_text())["validation"]["miou"]


def print_table(scores: dict[str, list[float]]) -> None:
    """Print mean, spread and every seed; seeds are paired, so the difference to the default is taken per seed."""
    default = scores[next(variant for variant in VARIANTS if not VARIANTS[variant])]
    print(
        "| variant | mIoU, mean | standard deviation | by seed | difference to (c), mean and range |\n|---|---|---|---|---|"
    )
    for variant, values in scores.items():
        differences = [value - other for value, other in zip(values, default, strict=True)]
        spread = f"{statistics.mean(differences):+.4f} ({min(differences):+.4f} to {max(differences):+.4f})"
        seeds = " ".join(f"{value:.4f}" for value in values)
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"| {variant} | {statistics.mean(values):.4f} | {deviation:.4f} | {seeds} | {spread} |")


def main() -> None:
    """Run what is missing and print the table."""
    args = parse_args()
    audio_encoder = args.output / "audio_encoder"
    demo = PCMANetForAudioVisualSegmentation.from_pretrained(EXAMPLES / "demo_model")
    demo.model.audio_encoder.save_pretrained(audio_encoder)
    jobs = [(variant, seed) for seed in range(args.seeds) for variant in VARIANTS]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = pool.map(lambda job: train(args, audio_encoder, *job), jobs)
        results = list(tqdm(runs, total=len(jobs), desc="runs", unit="run"))
    scores = {variant: [] for variant in VARIANTS}
    for (variant, _), score in zip(jobs, results, strict=True):
        scores[variant].append(score)
    print(f"\nPrinted by: python {' '.join(sys.argv)}\n")
    print_table(scores)


if __name__ == "__main__":
    main()
