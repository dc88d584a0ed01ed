"""Evaluate a checkpoint on held-out clips of Sounding Shapes, a random stream that training never uses.

The metrics in the model cards of the two demo models:

    python examples/evaluate_sounding_shapes.py examples/demo_model
    python examples/evaluate_sounding_shapes.py examples/demo_model_semantic

The same clips are evaluated with their original audio, with swapped audio (the same frames, but other objects sound) and
with negative audio (no visible object sounds). IoU and F are printed for the first two under all three protocols, and
the false-positive rate for negative audio.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm

from modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetProcessor
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.evaluation import PROTOCOLS
from pcmanet.dataset_scripts.metrics import ClipMetrics, FalsePositiveMetrics, build_metrics
from pcmanet.dataset_scripts.sounding_shapes import NEGATIVE_KINDS, SoundingShapes, SyntheticClip
from pcmanet.options import non_negative_integer, positive_integer


Rows = dict[str, dict[str, float]]  # audio -> metric and protocol -> value


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", type=Path, help="folder of a checkpoint with its processor")
    parser.add_argument("--clips", type=positive_integer, default=200, help="number of held-out clips (default: 200)")
    parser.add_argument(
        "--seed", type=non_negative_integer, default=2026, help="seed of the held-out clips (training uses 0)"
    )
    parser.add_argument(
        "--batch-size", type=positive_integer, default=4, help="clips per forward pass and per group of `batch`"
    )
    parser.add_argument("--json", type=Path, help="also write the metrics to this file")
    return parser.parse_args()


def held_out_clips(model: Path, num_labels: int, length: int, seed: int) -> tuple[SoundingShapes, ClipCollator]:
    """Return the clips on which a checkpoint is evaluated, at its frame size, and their collator."""
    processor = PCMANetProcessor.from_pretrained(model)
    binary, size = num_labels == 1, processor.image_processor.size
    task = "ms3" if binary else "avss"
    dataset = SoundingShapes(task, "test", length=length, seed=seed, height=size["height"], width=size["width"])
    return dataset, ClipCollator(processor, binary)


@torch.inference_mode()
def count(
    model: torch.nn.Module,
    collate: ClipCollator,
    clips: Iterable[SyntheticClip],
    metrics: ClipMetrics,
    args: argparse.Namespace,
) -> None:
    """Run the model on clips and update the metrics."""
    batch: list[SyntheticClip] = []
    for number, clip in enumerate(clips, start=1):
        batch.append(clip)
        if len(batch) == args.batch_size or number == args.clips:
            inputs = collate(batch).to(model.device)
            labels, annotated_frames = inputs.pop("labels"), inputs.pop("annotated_frames")
            metrics.update(model(**inputs).logits, labels, inputs.get("frame_mask"), annotated_frames)
            batch = []


def evaluate(args: argparse.Namespace) -> tuple[Rows, Rows]:
    """Evaluate the model; return the scores on positive audio and the false-positive rates on negative audio."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = PCMANetForAudioVisualSegmentation.from_pretrained(args.model).to(device).for_inference()
    num_labels = model.config.num_labels
    dataset, collate = held_out_clips(args.model, num_labels, args.clips, args.seed)

    def run(title: str, read: Callable[[int], SyntheticClip], metrics: ClipMetrics) -> ClipMetrics:
        clips = map(read, tqdm(range(len(dataset)), desc=title))
        count(model, collate, clips, metrics, args)
        return metrics

    scores: Rows = {}
    for title, read in (("original audio", dataset.__getitem__), ("same frames, swapped audio", dataset.swap_audio)):
        metrics = run(title, read, build_metrics(num_labels))
        scores[title] = {
            f"{name} ({protocol})": metrics.compute(protocol)[key]
            for protocol in PROTOCOLS
            for name, key in (("mIoU", "miou"), ("F", "f_score"))
        }
    rates: Rows = {}
    for kind in NEGATIVE_KINDS:
        title = kind.replace("_", " ")
        metrics = run(title, partial(dataset.negative, kind=kind), FalsePositiveMetrics(num_labels))
        rates[title] = {"false-positive rate": metrics.compute()["false_positive_rate"]}
    mean = sum(row["false-positive rate"] for row in rates.values()) / len(rates)
    return scores, rates | {"all three": {"false-positive rate": mean}}


def print_table(header: str, rows: Rows, number_format: str) -> None:
    """Print rows as Markdown."""
    columns = list(next(iter(rows.values())))
    print(f"\n| {header} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for title, values in rows.items():
        print(f"| {title} | {' | '.join(format(value, number_format) for value in values.values())} |")


def main() -> None:
    """Evaluate a checkpoint and print the tables."""
    args = parse_args()
    scores, rates = evaluate(args)
    print_table("", scores, ".4f")
    print_table("audio replaced by", rates, ".3%")
    if args.json is not None:
        args.json.write_text(json.dumps(scores | rates, indent=2) + "\n")


if __name__ == "__main__":
    main()
