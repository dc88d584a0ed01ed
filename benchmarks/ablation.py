"""Measure the effect of our changes to the published network, of its parts, of distillation, and of two other fusions.

    python benchmarks/ablation.py --output runs/ablation
    python benchmarks/ablation.py --output runs/ablation_paired --data examples/paired_data/real_world.yaml

The script trains every variant with three seeds and prints the tables of docs/benchmarks/ablation.md. With the same seed all
variants see the same clips; only the fields named below differ. Finished runs are kept: run the same command again to resume.

Without `--data`, demo-size networks are trained on Sounding Shapes (`pcmanet train`, two runs at a time). With `--data`, the
decoder of the preset `small` is trained on photos and recordings (paired_features.py), with the frozen encoders of `--model`,
also with distillation and with the blocks of fusions.py, and the default is also measured with early exit.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fusions
import paired_features
import torch
from paired_runs import EXAMPLES, Variant, add_arguments, print_differences, print_table, run_variants
from tqdm.auto import tqdm

from pcmanet.dataset_scripts.paired import read_settings


# Fields of a network with as many classes as the data have.
CLASSES: dict[str, Any] = {"num_labels": None, "semantic_iou_weight": 1.0}
DEFAULT = "(c) layout and gradients repaired (default)"
# Fields of the network's configuration.
DIFFERENCES: dict[str, dict[str, Any]] = {
    "(a) as published": {"token_layout": "scrambled", "masked_query_gradients": False},
    "(b) layout repaired": {"masked_query_gradients": False},
    DEFAULT: {},
    "(d) default without confidence masking": {"confidence_threshold": 0},
    "(e) default without QSCA": {"cross_attention": None},
}
PAIRED_DIFFERENCES = DIFFERENCES | {
    "(f) default with distillation": {"distillation_weight": 1.0, "feature_distillation_weight": 1.0},
    "(g) modulation in place of AVGA and QSCA": fusions.MODULATION,
    "(h) sounding maps in place of AVGA and QSCA": fusions.SOUNDING_MAPS,
    "(i) sounding maps, with the softmax of the audio": fusions.AUDIO_SOFTMAX,
    # With two classes, silent and sounding, the probabilities are those of binary masks and the loss is cross-entropy alone.
    "(j) as (i), without the soft IoU loss": fusions.AUDIO_SOFTMAX | {"num_labels": 2},
    "(k) as (i), with the audio classifier": fusions.AUDIO_CLASSIFIER,
    "(l) as (i), with classes": fusions.AUDIO_SOFTMAX | CLASSES,
    "(m) as (l), with the audio classifier": fusions.AUDIO_CLASSIFIER | CLASSES,
}
EARLY_EXIT, THRESHOLD = "default with early exit, threshold 0.05", 0.05

Results = dict[str, list[dict[str, float]]]  # by variant, one per seed


def validation_score(folder: Path) -> dict[str, float]:
    """Return the validation mIoU after the last step."""
    return {"mIoU": json.loads((folder / "last" / "metrics.json").read_text())["validation"]["miou"]}


def run_shapes(args: argparse.Namespace) -> Results:
    """Train and evaluate all variants on Sounding Shapes."""
    variants = {
        name: Variant("sounding_shapes", {f"configuration.{key}": json.dumps(value) for key, value in fields.items()})
        for name, fields in _choose(DIFFERENCES, args).items()
    }
    common = {
        "evaluation_clips": args.test_clips,
        "evaluations": 1,
        "pair_audio": "true",
        # A run has a few hundred steps, all of which the average of the demo model would cover.
        "average_decay": 0.98,
    }
    return run_variants(args, variants, common, validation_score)


def run_paired(args: argparse.Namespace) -> Results:
    """Train and evaluate all variants on photos and recordings, seed by seed."""
    args.output.mkdir(parents=True, exist_ok=True)
    encoders = paired_features.Encoders(args.model)
    training, validation = paired_features.load_features(args, encoders)
    variants = _choose(PAIRED_DIFFERENCES, args)
    classes = CLASSES | {"num_labels": len(read_settings(args.data).class_names)}
    variants = {
        name: fields | classes if fields.items() >= CLASSES.items() else fields for name, fields in variants.items()
    }
    jobs = [(seed, name) for seed in range(args.seeds) for name in variants]
    path = args.output / f"results_{args.steps}_steps.jsonl"
    done = _read_results(path)
    for seed, name in tqdm([job for job in jobs if job not in done], desc="runs", unit="run"):
        network = paired_features.train(encoders, training, variants[name], args.steps, seed)
        measured = {name: paired_features.measure(network, validation)}
        if name == DEFAULT:
            measured[EARLY_EXIT] = paired_features.measure(network, validation, THRESHOLD)
        # One write, so that an interrupted run leaves all of its results or none.
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps([seed, *entry]) + "\n" for entry in measured.items()))
    done = _read_results(path)
    return {name: [done[seed, name] for seed in range(args.seeds)] for name in [*variants, EARLY_EXIT]}


def _choose(variants: dict[str, dict[str, Any]], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the variants whose letters are given, and the default."""
    return {name: fields for name, fields in variants.items() if name[1] in args.variants or name == DEFAULT}


def _read_results(path: Path) -> Mapping[tuple[int, str], dict[str, float]]:
    """Return the results of finished runs by seed and variant."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {(seed, name): values for seed, name, values in map(json.loads, lines)}


def main() -> None:
    """Train the missing runs and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_arguments(parser, clips=3200)
    parser.add_argument(
        "--variants", default="abcdefghijklm", help="letters of the variants in addition to the default, c"
    )
    parser.add_argument("--data", help="settings of paired data, in place of Sounding Shapes")
    parser.add_argument(
        "--model", default=str(EXAMPLES / "real_world_model"), help="with --data: checkpoint of the encoders"
    )
    parser.add_argument("--steps", type=int, default=400, help="with --data: steps of each run")
    args = parser.parse_args()
    if args.data is None:
        print_table(run_shapes(args), DEFAULT)
        return
    torch.set_num_threads(1)
    results = run_paired(args)
    print_table(results, DEFAULT)
    print_differences(results, DEFAULT)


if __name__ == "__main__":
    main()
