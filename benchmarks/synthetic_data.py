"""Measure how many Sounding Shapes clips one core generates per second.

python benchmarks/synthetic_data.py
python benchmarks/synthetic_data.py --seconds 10 --size 224
"""

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from pcmanet.dataset_scripts.sounding_shapes import TASKS, SoundingShapes, write_clip


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="duration of each measurement (default: 4)")
    parser.add_argument("--size", type=int, nargs="+", default=(112, 224), help="sides of the square frames in pixels")
    parser.add_argument("--num-frames", type=int, default=5, help="seconds and frames per clip (default: 5)")
    return parser.parse_args()


def rate(make: Callable[[int], object], seconds: float) -> float:
    """Return calls per second of CPU time, which other processes hardly affect."""
    make(0)
    start = time.process_time()
    for index in count(1):
        make(index)
        elapsed = time.process_time() - start
        if elapsed >= seconds:
            return index / elapsed


def main() -> None:
    """Print one row per kind of clip and size."""
    args = parse_args()
    print(f"$ python {shlex.join(sys.argv)}\n")
    print(f"Clips per second on one core, {args.num_frames} s and frames each\n")
    print("| clip | size | clips/s | ms/clip |")
    print("|---|---|---|---|")
    for size in args.size:
        sizes = {"length": 10**6, "height": size, "width": size, "num_frames": args.num_frames}
        datasets = {task: SoundingShapes(task, **sizes) for task in TASKS}
        rows: dict[str, Callable[[int], object]] = {task: each.__getitem__ for task, each in datasets.items()}
        rows["ms3, swapped audio"] = datasets["ms3"].swap_audio
        rows["ms3, silence (frames only)"] = datasets["ms3"].negative
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.mp4"
            rows["ms3 as mp4, 25 frames/s"] = lambda index, path=path, each=datasets["ms3"]: write_clip(
                each, index, path
            )
            for name, make in rows.items():
                speed = rate(make, args.seconds)
                print(f"| {name} | {size}x{size} | {speed:.1f} | {1000.0 / speed:.1f} |", flush=True)


if __name__ == "__main__":
    main()
