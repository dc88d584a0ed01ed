"""Command line of `python -m pcmanet.dataset_scripts.sounding_shapes`."""

import argparse
import sys
from pathlib import Path

from .clips import NEGATIVE_KINDS, SPLITS, TASKS, SoundingShapes
from .files import write_avsbench_tree, write_clip
from .scene import CLASSES


EXAMPLES = """examples:
  python -m pcmanet.dataset_scripts.sounding_shapes clip --task ms3 --split test --index 3 --size 360 640 --output demo.mp4
  python -m pcmanet.dataset_scripts.sounding_shapes clip --sounds swapped --index 3 --output other_sounds.mp4
  python -m pcmanet.dataset_scripts.sounding_shapes tree --task avss --train 60 --val 12 --test 12 --output data
"""


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pcmanet.dataset_scripts.sounding_shapes",
        description="Write Sounding Shapes as files: one video, or a data set laid out as AVSBench is.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    clip = commands.add_parser("clip", help="write one clip as an mp4")
    clip.add_argument("--split", choices=SPLITS, default="test")
    clip.add_argument("--index", type=int, default=0, help="which clip, from 0 (default: 0)")
    clip.add_argument("--size", type=int, nargs=2, default=(224, 224), metavar=("HEIGHT", "WIDTH"), help="pixels")
    clip.add_argument("--seconds", type=int, default=5, help="duration (default: 5)")
    clip.add_argument("--frames-per-second", type=float, default=25.0, help="frame rate (default: 25)")
    clip.add_argument(
        "--sounds", choices=("own", "swapped", *NEGATIVE_KINDS), default="own", help="which sound to write"
    )
    tree = commands.add_parser("tree", help="write a data set in AVSBench's layout")
    for split, count in zip(SPLITS, (8, 2, 2), strict=True):
        tree.add_argument(f"--{split}", type=int, default=count, help=f"clips in {split} (default: {count})")
    for command, output in ((clip, "the mp4 to write"), (tree, "folder that receives the tree")):
        command.add_argument("--task", choices=TASKS, default="ms3", help="one object sounds, several, or semantic")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--output", type=Path, required=True, help=output)
    return parser.parse_args(arguments)


def run_clip(args: argparse.Namespace) -> None:
    """Write one video and say what sounds in which second."""
    height, width = args.size
    dataset = SoundingShapes(
        args.task,
        args.split,
        length=args.index + 1,
        seed=args.seed,
        height=height,
        width=width,
        num_frames=args.seconds,
    )
    if args.sounds in NEGATIVE_KINDS:
        clip = dataset.negative(args.index, args.sounds)
    else:
        clip = dataset.swap_sounds(args.index) if args.sounds == "swapped" else dataset[args.index]
    write_clip(dataset, args.index, args.output, clip=clip, frames_per_second=args.frames_per_second)
    names = [CLASSES[label - 1] for label in clip.object_classes]
    sys.stdout.write(f"{args.output}: {', '.join(names)}\n")
    for second, row in enumerate(clip.sounding):
        heard = [name for name, sounds in zip(names, row, strict=True) if sounds]
        sys.stdout.write(f"  second {second}: {', '.join(heard) or '-'}\n")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(arguments)
    if args.command == "clip":
        run_clip(args)
        return
    counts = {split: getattr(args, split) for split in SPLITS}
    tree = write_avsbench_tree(args.output, args.task, counts, seed=args.seed, progress=True)
    sys.stdout.write(f"{tree}: {counts}\n")


if __name__ == "__main__":
    main()
