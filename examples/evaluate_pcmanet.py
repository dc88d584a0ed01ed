"""Evaluate a checkpoint from Python: the loop to start from for your own model or metric.

    python examples/evaluate_pcmanet.py CHECKPOINT --data AVSBench/Single-source
    python examples/evaluate_pcmanet.py CHECKPOINT --data AVSBench --name avss

Without AVSBench, on Sounding Shapes in its layout:

    python -m pcmanet.dataset_scripts.sounding_shapes tree --task ms3 --test 20 --output shapes
    python examples/evaluate_pcmanet.py examples/demo_model --data shapes

The command `pcmanet evaluate` prints the same table. It also resumes interrupted runs, runs in several processes, and
evaluates classes, single clips and negative audio:

    pcmanet evaluate CHECKPOINT --data AVSBench --name avss --per-class
    torchrun --nproc_per_node 8 -m pcmanet evaluate CHECKPOINT --data AVSBench --name avss
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m pcmanet evaluate CHECKPOINT --data AVSBench --name s4
"""

import argparse
import sys
from pathlib import Path

import torch
from tqdm.auto import tqdm

from modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetProcessor
from pcmanet.dataset_scripts.avsbench import RowSettings, find_names
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.evaluation import (
    EvaluationReader,
    find_evaluation_clips,
    protocol_results,
    results_table,
)
from pcmanet.dataset_scripts.metrics import RobustnessMetrics
from pcmanet.options import positive_integer


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", help="folder of a checkpoint with its processor, or Hub id as owner/name")
    parser.add_argument(
        "--data", type=Path, required=True, help="AVSBench as downloaded, or a folder with a clips.csv"
    )
    parser.add_argument("--name", help="dataset, if the folder contains several (default: the first one found)")
    parser.add_argument("--split", default="test", help="train, val or test (default: test)")
    parser.add_argument(
        "--batch-size", type=positive_integer, default=4, help="clips per forward pass and per group of `batch`"
    )
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    """Evaluate a checkpoint on a split and print the table."""
    args = parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = PCMANetForAudioVisualSegmentation.from_pretrained(args.model).to(device).for_inference()
    processor = PCMANetProcessor.from_pretrained(args.model)

    names = [args.name] if args.name else find_names(args.data)
    if not names:
        sys.exit(f"No table of clips found in {args.data}. Give AVSBench as downloaded, or a folder with a clips.csv.")
    data = find_evaluation_clips(args.data, names[0], args.split, RowSettings())
    reader = EvaluationReader(data, ClipCollator(processor, data.binary))
    metrics = RobustnessMetrics(model.config.num_labels)
    for first in tqdm(range(0, len(data.clips), args.batch_size)):
        batch = reader.read(range(len(data.clips))[first : first + args.batch_size]).to(device)
        labels, annotated_frames = batch.pop("labels"), batch.pop("annotated_frames")
        metrics["positive"].update(model(**batch).logits, labels, batch.get("frame_mask"), annotated_frames)
    print(results_table(protocol_results(metrics)))


if __name__ == "__main__":
    main()
