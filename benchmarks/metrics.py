"""Compare the F curve from one histogram with a loop over its 255 thresholds: time and values.

    python benchmarks/metrics.py
    python benchmarks/metrics.py --clips 1 --size 512 --device cuda

Both count the true-positive, predicted and target pixels of every frame at every threshold and compute the F score of each.
Prints one table row. Exits with an error if the histogram is less than 10 times as fast or the curves differ by more than
1e-6.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pcmanet.dataset_scripts.metrics import (
    code_histogram,
    f_score,
    f_thresholds,
    quantize_probabilities,
    threshold_counts,
)


MINIMUM_RATIO = 10.0
MAXIMUM_DIFFERENCE = 1e-6


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--clips", type=int, default=2, help="clips of 5 frames")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each; the median is reported")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def curve_by_loop(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Return F curves (frames, 255), in a loop over the thresholds as in the official evaluation."""
    foreground = targets.float()
    positives = foreground.sum((1, 2))
    curve = []
    for threshold in f_thresholds().to(probabilities.device):
        predicted = (probabilities >= threshold).float()
        true_positives = (predicted * foreground).sum((1, 2))
        precision = true_positives / (predicted.sum((1, 2)) + 1e-20)
        recall = true_positives / (positives + 1e-20)
        curve.append((1.3 * precision * recall / (0.3 * precision + recall)).nan_to_num())
    return torch.stack(curve, dim=1)


def curve_by_histogram(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Return F curves (frames, 255), as `BinaryMetrics` computes them."""
    reached = threshold_counts(code_histogram(quantize_probabilities(probabilities), targets))
    return f_score(reached[:, 1], reached.sum(1), targets.sum((1, 2))[:, None])


def median_seconds(function: Callable[[], Tensor], repeats: int, device: str) -> float:
    """Return the median wall time of a call, after one warm-up call."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    """Time both and print the ratio."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    shape = (args.clips * 5, args.size, args.size)
    probabilities = (torch.randn(shape, generator=generator) * 3).sigmoid().to(args.device)
    targets = (torch.rand(shape, generator=generator) > 0.7).long().to(args.device)

    difference = (
        (curve_by_loop(probabilities, targets) - curve_by_histogram(probabilities, targets)).abs().max().item()
    )
    loop = median_seconds(lambda: curve_by_loop(probabilities, targets), args.repeats, args.device)
    histogram = median_seconds(lambda: curve_by_histogram(probabilities, targets), args.repeats, args.device)

    print(f"command: python {' '.join(sys.argv)}")
    print("| frames | loop of 255 (ms) | histogram (ms) | ratio | largest difference |")
    print("|---|---|---|---|---|")
    print(
        f"| {shape} on {args.device} | {loop * 1e3:.1f} | {histogram * 1e3:.1f} | {loop / histogram:.1f} | {difference:.1e} |"
    )
    if loop / histogram < MINIMUM_RATIO or difference > MAXIMUM_DIFFERENCE:
        sys.exit(f"Expected a ratio of {MINIMUM_RATIO} or more and a difference of at most {MAXIMUM_DIFFERENCE}")


if __name__ == "__main__":
    main()
