"""Command line: `python -m pcmanet.dataset_scripts.paired`."""

import argparse
import sys
from pathlib import Path

import numpy as np

from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.dataset_scripts import SPLITS
from pcmanet.options import non_negative_integer

from .clips import TASKS, PairedClips
from .files import FRAME_RATE, TREE_LAYOUTS, write_parquet, write_tree
from .library import BACKGROUND, UNKNOWN, Library
from .settings import read_settings


SHOWN = 0.55  # opacity of the masks in a shown clip
COLORS = np.random.default_rng(0).integers(64, 256, (256, 3))

EXAMPLES = """examples:
  python -m pcmanet.dataset_scripts.paired check real_world.yaml
  python -m pcmanet.dataset_scripts.paired clip real_world.yaml --index 3 --output clip.mp4
  python -m pcmanet.dataset_scripts.paired tree real_world.yaml --layout ms3 --train 300 --val 60 --test 60 --output data
  python -m pcmanet.dataset_scripts.paired parquet real_world.yaml --task avss --train 2000 --output exported

SETTINGS is a YAML file with photos, recordings and the class map; examples/paired_data/ has annotated examples.
Training needs no files: `pcmanet train --recipe RECIPE --data SETTINGS` generates the clips while it runs.
"""
CHECK_NOTES = """Every photo, mask and recording is decoded. All problems are listed together. With `cache` in the settings, the decoded
files are kept there and are not read again. For each class, the table counts photos that contain it and recordings.
"""
CLIP_NOTES = "The masks of the sounding objects are drawn over the frames; --plain leaves them out."
TREE_NOTES = """s4, ms3 and avss are the layouts of Single-source, Multi-sources and AVSBench_semantic, which every loader of AVSBench reads;
s4 and avss need the names of AVSBench in the class map. folder is a folder of videos with the classes of the class map.
"""
PARQUET_NOTES = "load_dataset(OUTPUT, TASK) reads it. The columns are those of an AVSBench export."


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pcmanet.dataset_scripts.paired",
        description="Check paired data (photos with masks and labeled recordings), and write clips of it as files.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {
        "check": ("read all files and count photos and recordings", CHECK_NOTES),
        "clip": ("write one clip as an mp4", CLIP_NOTES),
        "tree": ("write a dataset in a layout of AVSBench", TREE_NOTES),
        "parquet": ("write rows for load_dataset", PARQUET_NOTES),
    }
    parsers = {
        name: commands.add_parser(name, help=text, epilog=notes, allow_abbrev=False)
        for name, (text, notes) in texts.items()
    }
    for command in parsers.values():
        command.add_argument("settings", type=Path, metavar="SETTINGS", help="the YAML file")
        command.add_argument(
            "--num-workers", type=non_negative_integer, default=2, help="processes or threads that read (default: 2)"
        )
    for name in ("tree", "parquet"):
        for split, count in zip(SPLITS, (8, 2, 2), strict=True):
            text = f"clips in {split} (default: {count})"
            parsers[name].add_argument(f"--{split}", type=non_negative_integer, default=count, help=text)
    parsers["tree"].add_argument("--layout", choices=TREE_LAYOUTS, default="folder", help="layout (default: folder)")
    parsers["clip"].add_argument("--split", choices=SPLITS, default="train", help="split of the clip (default: train)")
    parsers["clip"].add_argument(
        "--index", type=non_negative_integer, default=0, help="number of the clip, from 0 (default: 0)"
    )
    parsers["clip"].add_argument("--plain", action="store_true", help="without masks")
    for name in ("clip", "parquet"):
        parsers[name].add_argument("--task", choices=TASKS, default="avss", help="rule for the masks (default: avss)")
    for name in ("clip", "tree", "parquet"):
        parsers[name].add_argument(
            "--seed", type=non_negative_integer, default=0, help="seed of the clips (default: 0)"
        )
        parsers[name].add_argument("--output", type=Path, required=True, help="the file or folder to write")
    return parser.parse_args(arguments)


def run_check(library: Library) -> None:
    """Print how many photos and recordings each class has in each split."""
    names = library.settings.class_names
    sys.stdout.write(
        f"{'':16}{'photos':>24}{'recordings':>24}\n{'class':16}{''.join(f'{one:>8}' for one in SPLITS * 2)}\n"
    )
    for index, name in [*enumerate(names[1:], start=1), (UNKNOWN, "(unknown)"), (BACKGROUND, "(background)")]:
        photos = [
            sum(
                index in areas and split == own for areas, own in zip(library.areas, library.photo_splits, strict=True)
            )
            for split in SPLITS
        ]
        pairs = list(zip(library.roles, library.recording_splits, strict=True))
        counts = [*photos, *(pairs.count((index, split)) for split in SPLITS)]
        note = "  no recordings" if isinstance(index, int) and index not in library.roles else ""
        sys.stdout.write(f"{name:16}{''.join(f'{count:8}' for count in counts)}{note}\n")


def run_clip(args: argparse.Namespace, library: Library) -> None:
    """Write one clip as a video and print its sounds."""
    clip = PairedClips(library, args.task, args.split, length=args.index + 1, seed=args.seed)[args.index]
    frames = clip.frames
    if not args.plain:
        colored = (1 - SHOWN) * frames + SHOWN * COLORS[clip.masks]
        frames = np.where(clip.masks[..., None] % 255 > 0, colored, frames).astype(np.uint8)
    repeated = (frame for frame in frames for _ in range(FRAME_RATE))
    context = round(library.settings.clips.context_seconds * library.settings.clips.sampling_rate)
    waveform = None if clip.waveform is None else clip.waveform[:, context : clip.waveform.shape[1] - context]
    write_video(args.output, repeated, FRAME_RATE, waveform, clip.sampling_rate)
    sys.stdout.write(f"{args.output}: {clip.picture}, {clip.sound}\n")
    for event in clip.events:
        stand_in = f", for which {event.stand_in} stands in" if event.stand_in else ""
        sys.stdout.write(
            f"  {event.start:.1f} to {event.stop:.1f} s  {event.decibels:.0f} dBFS  {event.label}{stand_in}  {event.file}\n"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Arguments without the program name; None uses those of the process.

    Returns:
        0, or 1 if the settings or files cannot be used or a file cannot be written.
    """
    args = parse_args(arguments)
    try:
        library = Library(read_settings(args.settings), progress=True, num_threads=max(1, args.num_workers))
        if args.command == "check":
            run_check(library)
            return 0
        if args.command == "clip":
            run_clip(args, library)
            return 0
        counts = {split: getattr(args, split) for split in SPLITS}
        options = {"seed": args.seed, "num_workers": args.num_workers, "progress": True}
        if args.command == "tree":
            folder = write_tree(library, args.output, args.layout, counts, **options)
        else:
            folder = write_parquet(library, args.output, args.task, counts, **options)
    except (ValueError, IndexError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{folder}: {counts}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
