"""Measure the effect of our changes to the published network: demo-size networks on Sounding Shapes with equal budgets.

    python benchmarks/ablation.py --output runs/ablation

The script trains five variants with three seeds each (15 runs of `pcmanet train`, two at a time) and prints the table of
docs/benchmarks/ablation.md. With the same seed all variants see the same clips; only the fields named below differ. Finished runs are
kept: run the same command again to resume.
"""

import argparse
import json
from pathlib import Path

from paired_runs import Variant, add_arguments, print_table, run_variants


DEFAULT = "(c) layout and gradients repaired (default)"
# Fields of the network's configuration.
DIFFERENCES = {
    "(a) as published": {"token_layout": '"scrambled"', "masked_query_gradients": "false"},
    "(b) layout repaired": {"masked_query_gradients": "false"},
    DEFAULT: {},
    "(d) default without confidence masking": {"confidence_threshold": 0},
    "(e) default without QSCA": {"cross_attention": "null"},
}


def validation_score(folder: Path) -> dict[str, float]:
    """Return the validation mIoU after the last step."""
    return {"mIoU": json.loads((folder / "last" / "metrics.json").read_text())["validation"]["miou"]}


def main() -> None:
    """Train the missing runs and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_arguments(parser, clips=3200)
    args = parser.parse_args()
    variants = {
        name: Variant("sounding_shapes", {f"configuration.{key}": value for key, value in fields.items()})
        for name, fields in DIFFERENCES.items()
    }
    common = {
        "evaluation_clips": args.test_clips,
        "evaluations": 1,
        "pair_audio": "true",
        # A run has a few hundred steps, all of which the average of the demo model would cover.
        "average_decay": 0.98,
    }
    print_table(run_variants(args, variants, common, validation_score), DEFAULT)


if __name__ == "__main__":
    main()
