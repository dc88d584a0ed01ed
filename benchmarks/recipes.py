"""The published recipe against ours: the demo-size network on Sounding Shapes, the same number of clips for each.

    python benchmarks/recipes.py --output runs/recipes

trains every variant below with three seeds (runs of examples/train_pcmanet.py, two at a time), measures the last weights of
each in float32 on one held-out stream (examples/evaluate_sounding_shapes.py) and prints the table of docs/recipes.md. Killed
and started again, the command goes on where it was.
"""

import argparse
import json
from pathlib import Path

from paired_runs import Variant, add_arguments, print_table, run_command, run_variants


# The published learning rate was chosen for pretrained backbones, of which the demo-size network has none; the second
# row gives the published recipe one that suits such a network better.
VARIANTS = {
    "published": Variant("ms3"),
    "published, learning rate 2e-3": Variant("ms3", {"learning_rate": 2e-3}),
    "ours": Variant("ours"),
    "ours without negative sounds": Variant("ours", {"negative_fraction": 0}),
}
COMMON = {
    "epochs": 1,
    "evaluations": 1,
    "evaluation_clips": 1,
    "preset": "tiny",
    "mixed_precision": "bf16",
    "num_workers": 0,
}
# Column, and row and value of the figures that evaluate_sounding_shapes.py writes.
COLUMNS = {
    "mIoU": ("original audio", "mIoU (official)"),
    "F": ("original audio", "F (official)"),
    "mIoU, other sounds": ("same frames, swapped audio", "mIoU (official)"),
    "claimed under negative sounds": ("all three", "false-positive rate"),
}


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, clips=1600)
    parser.add_argument(
        "--test-seed",
        type=int,
        default=4052,
        help="of the held-out clips; our recipe was chosen on those of seed 2026",
    )
    args = parser.parse_args()

    def measure(folder: Path) -> dict[str, float]:
        figures = folder / f"test_{args.test_seed}_{args.test_clips}.json"
        if not figures.is_file():
            words = [folder / "last", "--clips", args.test_clips, "--seed", args.test_seed, "--json", figures]
            run_command("evaluate_sounding_shapes.py", words, folder / "test.log")
        measured = json.loads(figures.read_text())
        return {column: measured[row][name] for column, (row, name) in COLUMNS.items()}

    print_table(run_variants(args, VARIANTS, COMMON, measure), "published")


if __name__ == "__main__":
    main()
