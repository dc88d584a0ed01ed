"""Measure how many clips per second the data loader delivers, and whether its memory grows during an epoch.

    python benchmarks/data_loading.py
    python benchmarks/data_loading.py --data AVSBench --name avss --split train --clips 400 --workers 4 8

Without --data it writes a few clips of Sounding Shapes in the layout of S4. "Decoding only" is one process that converts rows
to arrays (PNG and wav, no processor). Memory is that of this process and its workers after a quarter of the epoch and at its
end. The script prints one table and exits with an error if memory grew by more than 5% and 32 MB in between.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
import torch
from datasets import Dataset, concatenate_datasets, disable_progress_bars
from torch.utils.data import DataLoader

from modeling_pcmanet import PCMANetFeatureExtractor, PCMANetImageProcessor, PCMANetProcessor
from pcmanet.dataset_scripts.augmentation import Augmentation
from pcmanet.dataset_scripts.avsbench import load_avsbench
from pcmanet.dataset_scripts.clips import to_arrays
from pcmanet.dataset_scripts.collation import AudioFeatureCache, ClipCollator
from pcmanet.dataset_scripts.sounding_shapes import write_avsbench_tree


ALLOWED_GROWTH, ALLOWED_MEGABYTES = 0.05, 32.0
WRITTEN_CLIPS = 6


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, help="AVSBench or a custom folder (default: Sounding Shapes)")
    parser.add_argument("--name", default="s4", help="s4, ms3, avss or folder (default: s4)")
    parser.add_argument("--split", default="train", help="train, val or test (default: train)")
    parser.add_argument("--clips", type=int, default=240, help="clips per epoch; the data are repeated as needed")
    parser.add_argument("--batch-size", type=int, default=4, help="clips per batch (default: 4)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3, 4], help="numbers of workers to measure")
    return parser.parse_args()


def load_clips(args: argparse.Namespace, folder: Path) -> Dataset:
    """Load the rows and repeat them to fill an epoch."""
    root = args.data
    if root is None:
        root = folder / "data"
        write_avsbench_tree(root, args.name, {args.split: WRITTEN_CLIPS})
    dataset = load_avsbench(root, args.name, split=args.split, cache_dir=folder / "prepared")
    repeated = concatenate_datasets([dataset] * -(-args.clips // len(dataset)))
    return repeated.select(range(args.clips))


def megabytes() -> float:
    """Return the memory of this process and of its children."""
    process = psutil.Process()
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 2**20


def run_epoch(batches: Iterable, steps: int) -> tuple[float, float, float]:
    """Return batches per second without the first, and memory after a quarter of the epoch and at its end."""
    early = late = 0.0
    iterator = iter(batches)
    next(iterator)
    start = time.perf_counter()
    for step, _ in enumerate(iterator, start=2):
        if step == max(2, steps // 4):
            early = megabytes()
        if step == steps:
            late = megabytes()
    return (steps - 1) / (time.perf_counter() - start), early, late


def build_epochs(args: argparse.Namespace, dataset: Dataset, cache: Path) -> dict[str, Iterable]:
    """Return decoding only, a loader for every number of workers, and the last number of workers with options."""
    processor = PCMANetProcessor(PCMANetImageProcessor(), PCMANetFeatureExtractor())
    plain = ClipCollator(processor, binary=True)
    augmented = ClipCollator(processor, binary=True, augmentation=Augmentation(mixing=0.2, replacement=0.1))
    cached = ClipCollator(processor, binary=True, audio_cache=AudioFeatureCache(processor, cache))
    loaders_to_measure = [(f"workers: {count}", plain, count) for count in args.workers]
    loaders_to_measure += [(f"workers: {args.workers[-1]}, augmented", augmented, args.workers[-1])]
    loaders_to_measure += [(f"workers: {args.workers[-1]}, log-mel cached", cached, args.workers[-1])]
    size = args.batch_size
    starts = range(0, len(dataset) // size * size, size)
    decoding = ([to_arrays(dataset[start + k], binary=True) for k in range(size)] for start in starts)
    loaders = {
        title: DataLoader(dataset, size, collate_fn=collate, num_workers=count, drop_last=True)
        for title, collate, count in loaders_to_measure
    }
    return {"decoding only": decoding, **loaders}


def main() -> None:
    """Measure and print the table."""
    args = parse_args()
    if args.clips < 8 * args.batch_size:
        sys.exit(f"Expected at least 8 batches of {args.batch_size} clips, got --clips {args.clips}")
    disable_progress_bars()
    torch.set_num_threads(1)
    steps, grown, decoding_rate = args.clips // args.batch_size, [], 0.0
    with tempfile.TemporaryDirectory() as name:
        dataset = load_clips(args, Path(name))
        print(f"command: python {' '.join(sys.argv)}")
        print("| configuration | clips/s | relative to decoding only | MB after a quarter | MB at the end |")
        print("|---|---|---|---|---|")
        for title, batches in build_epochs(args, dataset, Path(name) / "cache").items():
            rate, early, late = run_epoch(batches, steps)
            decoding_rate = decoding_rate or rate
            print(
                f"| {title} | {rate * args.batch_size:.1f} | {rate / decoding_rate:.2f} | {early:.0f} | {late:.0f} |",
                flush=True,
            )
            if late > early * (1 + ALLOWED_GROWTH) and late > early + ALLOWED_MEGABYTES:
                grown.append(title)
    if grown:
        sys.exit(f"Memory grew during an epoch: {', '.join(grown)}")


if __name__ == "__main__":
    main()
