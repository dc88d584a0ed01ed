"""Measures a checkpoint on Sounding Shapes, on clips from a random stream that training never touches.

The figures in the model cards of the two demo models:

    python examples/evaluate_sounding_shapes.py examples/demo_model
    python examples/evaluate_sounding_shapes.py examples/demo_model_semantic

Three questions: how well does it segment what sounds, does it follow when the same pictures get other sounds, and how much
does it claim when nothing in the picture sounds? The first two are answered under all three protocols.
"""

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm

from modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetProcessor
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.evaluation import PROTOCOLS
from pcmanet.dataset_scripts.metrics import (
    BinaryMetrics,
    FalsePositiveMetrics,
    SemanticMetrics,
)
from pcmanet.dataset_scripts.sounding_shapes.clips import NEGATIVE_KINDS, SoundingShapes, SyntheticClip


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a checkpoint with its processor")
    parser.add_argument("--clips", type=int, default=200, help="held-out clips per question (default: 200)")
    parser.add_argument("--seed", type=int, default=2026, help="of the held-out clips (training uses 0)")
    parser.add_argument("--batch-size", type=int, default=4, help="clips per forward pass, and per group of `batch`")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def held_out_clips(model: Path, num_labels: int, length: int, seed: int) -> tuple[SoundingShapes, ClipCollator]:
    """The clips that a checkpoint is measured on, at the size of its pictures, and what makes batches of them."""
    processor = PCMANetProcessor.from_pretrained(model)
    binary, size = num_labels == 1, processor.image_processor.size
    task = "ms3" if binary else "avss"
    dataset = SoundingShapes(task, "test", length=length, seed=seed, height=size["height"], width=size["width"])
    return dataset, ClipCollator(processor, binary)


def questions(dataset: SoundingShapes) -> dict[str, Iterator[SyntheticClip]]:
    """The clips of every question, made one by one."""
    makers = {
        "the clip as it is": dataset.__getitem__,
        "the same pictures, other sounds": dataset.swap_sounds,
    }
    for kind in NEGATIVE_KINDS:
        makers[f"{kind.replace('_', ' ')} instead of the sound"] = partial(dataset.negative, kind=kind)
    return {title: map(make, range(len(dataset))) for title, make in makers.items()}


@torch.inference_mode()
def measure(
    model: torch.nn.Module,
    collate: ClipCollator,
    clips: Iterator[SyntheticClip],
    metrics: BinaryMetrics | SemanticMetrics | FalsePositiveMetrics,
    args: argparse.Namespace,
    title: str,
) -> None:
    """Runs the model over the clips of one question and feeds the measure."""
    batch: list[SyntheticClip] = []
    for number, clip in enumerate(tqdm(clips, desc=title, total=args.clips), start=1):
        batch.append(clip)
        if len(batch) == args.batch_size or number == args.clips:
            inputs = collate(batch).to(model.device)
            labels, annotated_frames = inputs.pop("labels"), inputs.pop("annotated_frames")
            metrics.update(model(**inputs).logits, labels, inputs["frame_mask"], annotated_frames)
            batch = []


def evaluate(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Answers every question; rows by question, columns by measure and protocol."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = PCMANetForAudioVisualSegmentation.from_pretrained(args.model).to(device).for_inference()
    num_labels = model.config.num_labels
    dataset, collate = held_out_clips(args.model, num_labels, args.clips, args.seed)
    rows = {}
    for title, clips in questions(dataset).items():
        if "instead" in title:
            metrics = FalsePositiveMetrics(num_labels)
            measure(model, collate, clips, metrics, args, title)
            rows[title] = {"pixels claimed": metrics.compute()["false_positive_rate"]}
            continue
        metrics = BinaryMetrics() if num_labels == 1 else SemanticMetrics(num_labels)
        measure(model, collate, clips, metrics, args, title)
        rows[title] = {
            f"{name} ({protocol})": metrics.compute(protocol)[key]
            for protocol in PROTOCOLS
            for name, key in (("mIoU", "miou"), ("F", "f_score"))
        }
    claimed = [figures["pixels claimed"] for figures in rows.values() if "pixels claimed" in figures]
    rows["all negative sounds"] = {"pixels claimed": sum(claimed) / len(claimed)}
    return rows


def print_table(rows: dict[str, dict[str, float]]) -> None:
    """Prints Markdown, with the negative sounds in a table of their own."""
    for scored in (True, False):
        part = {title: figures for title, figures in rows.items() if ("pixels claimed" not in figures) == scored}
        columns = list(next(iter(part.values())))
        print(f"\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
        for title, figures in part.items():
            cells = (f"{value:.4f}" if scored else f"{value:.3%}" for value in figures.values())
            print(f"| {title} | {' | '.join(cells)} |")


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    rows = evaluate(args)
    print_table(rows)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
