"""Command line: `python -m pcmanet.dataset_scripts.sounding_shapes`."""

import argparse
import sys
from pathlib import Path

from pcmanet.dataset_scripts import SPLITS
from pcmanet.options import non_negative_integer, positive, positive_integer

from .clips import NEGATIVE_KINDS, TASKS, SoundingShapes
from .files import write_avsbench_tree, write_clip
from .scene import CLASSES


EXAMPLES = """examples:
  python -m pcmanet.dataset_scripts.sounding_shapes clip --task ms3 --split test --index 3 --size 360 640 --output demo.mp4
  python -m pcmanet.dataset_scripts.sounding_shapes clip --audio swapped --index 3 --output other_audio.mp4
  python -m pcmanet.dataset_scripts.sounding_shapes tree --task avss --train 60 --val 12 --test 12 --output data
"""
CLIP_NOTES = """The command prints the objects and which of them sound in each second. --audio keeps the frames and replaces the
audio: "swapped" makes other objects sound; with the remaining values, no visible object sounds.
"""
TREE_NOTES = """The dataset has the file layout of Single-source (s4), Multi-sources (ms3) or AVSBench_semantic (avss), so that every
loader of AVSBench reads it. It appears in OUTPUT only when it is complete.
"""


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pcmanet.dataset_scripts.sounding_shapes",
        description="Write Sounding Shapes as files: one video, or a dataset in the layout of AVSBench.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    clip = commands.add_parser("clip", help="write one clip as an mp4", epilog=CLIP_NOTES, allow_abbrev=False)
    clip.add_argument("--split", choices=SPLITS, default="test", help="split of the clip (default: test)")
    clip.add_argument("--index", type=non_negative_integer, default=0, help="number of the clip, from 0 (default: 0)")
    clip.add_argument(
        "--size",
        type=positive_integer,
        nargs=2,
        default=(224, 224),
        metavar=("HEIGHT", "WIDTH"),
        help="pixels (default: 224 224)",
    )
    clip.add_argument("--seconds", type=positive_integer, default=5, help="duration (default: 5)")
    clip.add_argument("--frames-per-second", type=positive, default=25.0, help="frame rate in hertz (default: 25)")
    clip.add_argument(
        "--audio",
        choices=("original", "swapped", *NEGATIVE_KINDS),
        default="original",
        help="which audio to write (default: original)",
    )
    tree = commands.add_parser(
        "tree", help="write a dataset in the layout of AVSBench", epilog=TREE_NOTES, allow_abbrev=False
    )
    for split, count in zip(SPLITS, (8, 2, 2), strict=True):
        tree.add_argument(
            f"--{split}", type=non_negative_integer, default=count, help=f"clips in {split} (default: {count})"
        )
    for command, output in ((clip, "the mp4 to write"), (tree, "folder for the dataset")):
        command.add_argument(
            "--task",
            choices=TASKS,
            default="ms3",
            help="s4: one object sounds, ms3: several, avss: several, with their classes (default: ms3)",
        )
        command.add_argument("--seed", type=non_negative_integer, default=0, help="seed of the clips (default: 0)")
        command.add_argument("--output", type=Path, required=True, help=output)
    return parser.parse_args(arguments)


def run_clip(args: argparse.Namespace) -> None:
    """Write one video and print which objects sound in each second."""
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
    if args.audio in NEGATIVE_KINDS:
        clip = dataset.negative(args.index, args.audio)
    else:
        clip = dataset.swap_audio(args.index) if args.audio == "swapped" else dataset[args.index]
    write_clip(dataset, args.index, args.output, clip=clip, frames_per_second=args.frames_per_second)
    names = [CLASSES[label - 1] for label in clip.object_classes]
    sys.stdout.write(f"{args.output}: {', '.join(names)}\n")
    for second, row in enumerate(clip.sounding):
        sounding = [name for name, sounds in zip(names, row, strict=True) if sounds]
        sys.stdout.write(f"  second {second}: {', '.join(sounding) or '-'}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Arguments without the program name; None uses those of the process.

    Returns:
        0, or 1 if an argument cannot be used or a file cannot be written.
    """
    args = parse_args(arguments)
    try:
        if args.command == "clip":
            run_clip(args)
            return 0
        counts = {split: getattr(args, split) for split in SPLITS}
        tree = write_avsbench_tree(args.output, args.task, counts, seed=args.seed, progress=True)
    except (ValueError, IndexError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{tree}: {counts}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
