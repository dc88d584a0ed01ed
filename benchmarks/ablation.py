"""What the repairs of the published network are worth: demo-size networks on Sounding Shapes under equal budgets.

    python benchmarks/ablation.py --output runs/ablation

trains five variants with three seeds each (15 runs of examples/train_pcmanet.py, two at a time) and prints the table of
docs/ablation.md. All variants see the same clips under the same seed; only the fields named below differ. Runs that have
finished are kept: started again, the command goes on.
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
    "(e) default without QSCA": {"cross_attention": "false"},
}


def validation_score(folder: Path) -> dict[str, float]:
    """Read the mIoU on validation after the last step."""
    return {"mIoU": json.loads((folder / "last" / "metrics.json").read_text())["validation"]["miou"]}


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, clips=3200)
    args = parser.parse_args()
    variants = {
        name: Variant("sounding_shapes", {f"configuration.{key}": value for key, value in fields.items()})
        for name, fields in DIFFERENCES.items()
    }
    common = {
        "evaluation_clips": args.test_clips,
        "evaluations": 1,
        "pair_sounds": "true",
        # A run is a few hundred steps, of which the demo's average would take in all.
        "average_decay": 0.98,
    }
    print_table(run_variants(args, variants, common, validation_score), DEFAULT)


if __name__ == "__main__":
    main()
