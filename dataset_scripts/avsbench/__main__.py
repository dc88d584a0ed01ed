"""Command line: `python -m pcmanet.dataset_scripts.avsbench`."""

import argparse
import sys
from pathlib import Path

from huggingface_hub.utils import validate_repo_id

from pcmanet.dataset_scripts.avsbench import NAMES, RowSettings, find_names
from pcmanet.dataset_scripts.problems import ON_ERROR, DatasetError
from pcmanet.options import positive, positive_integer

from .check import check
from .export import CLIPS_PER_SHARD, WRITERS, export, push
from .layouts import SECONDS_OF_SUBSET
from .masks import LABEL_NOISE_RULES
from .rows import MISSING_AUDIO_RULES


SHOWN_PROBLEMS = 20  # so that a report fits on one screen

EXAMPLES = """examples:
  python -m pcmanet.dataset_scripts.avsbench check AVSBench
  python -m pcmanet.dataset_scripts.avsbench check AVSBench/Single-source --quick
  python -m pcmanet.dataset_scripts.avsbench check my_clips --all
  python -m pcmanet.dataset_scripts.avsbench export AVSBench exported --format parquet --num-proc 4
  python -m pcmanet.dataset_scripts.avsbench export AVSBench exported --only avss --push-to-hub me/avsbench

DATA is a dataset as downloaded (Single-source, Multi-sources, AVSBench_semantic), the folder that contains it, or a custom
folder of videos with a clips.csv.
"""
CHECK_NOTES = """Every file is read, which takes a while for a complete AVSBench; --quick only checks
names, sizes and both ends of each file. The exit status is 0 without problems, 1 with problems, and 2 if DATA
contains no dataset.
"""
EXPORT_NOTES = """Each dataset is written to its own folder in OUTPUT, which load_dataset(OUTPUT, NAME) reads and streams. Run the
command again to resume an interrupted export. --push-to-hub creates private repositories unless --public is given; AVSBench
is distributed on request and must not be published.
"""


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pcmanet.dataset_scripts.avsbench",
        description="Check AVSBench as downloaded, or a custom folder of videos, and export it as shards.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check_parser = commands.add_parser(
        "check", help="report missing and damaged files", epilog=CHECK_NOTES, allow_abbrev=False
    )
    export_parser = commands.add_parser(
        "export", help="write shards that load_dataset reads and streams", epilog=EXPORT_NOTES, allow_abbrev=False
    )
    for command in (check_parser, export_parser):
        command.add_argument("data", type=Path, metavar="DATA", help="folder of the data")
        command.add_argument("--only", nargs="+", choices=NAMES, help="datasets to use (default: all in DATA)")
        command.add_argument("--num-proc", type=positive_integer, default=1, help="number of processes (default: 1)")
        command.add_argument("--log-mel", action="store_true", help="include the published log-mel pickles (s4, ms3)")
        command.add_argument("--subsets", nargs="+", choices=SECONDS_OF_SUBSET, help="subsets of avss (default: all)")
        command.add_argument(
            "--missing-audio",
            choices=MISSING_AUDIO_RULES,
            default="raise",
            help="custom folder: videos without an audio track are problems, or silent clips with empty masks (default: raise)",
        )
    check_parser.add_argument("--quick", action="store_true", help="only check names, sizes and ends of files")
    check_parser.add_argument(
        "--all", action="store_true", help=f"list all problems instead of the first {SHOWN_PROBLEMS}"
    )
    _add_export_arguments(export_parser)
    return parser.parse_args(arguments)


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder in which to write a folder per dataset")
    parser.add_argument(
        "--format", choices=tuple(WRITERS), default="parquet", help="format of the shards (default: parquet)"
    )
    parser.add_argument(
        "--clips-per-shard",
        type=positive_integer,
        default=CLIPS_PER_SHARD,
        help=f"rows per shard (default: {CLIPS_PER_SHARD})",
    )
    parser.add_argument(
        "--label-noise",
        choices=LABEL_NOISE_RULES,
        default="keep",
        help="avss: pixels of classes that a_obj does not list are kept, set to background or ignored (default: keep)",
    )
    parser.add_argument(
        "--frames-per-second", type=positive, default=1.0, help="frame rate of a custom folder in hertz (default: 1)"
    )
    parser.add_argument(
        "--binary", action="store_true", help="avss, custom folder: 0 (silent) and 1 (sounding) in place of classes"
    )
    parser.add_argument(
        "--on-error",
        choices=ON_ERROR,
        default="raise",
        help="stop at clips with problems or skip them (default: raise)",
    )
    parser.add_argument("--push-to-hub", metavar="ID", help="upload OUTPUT to this dataset repository")
    parser.add_argument("--public", action="store_true", help="make a new repository public")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Arguments without the program name; None uses those of the process.

    Returns:
        0 without problems, 1 if the data have problems or cannot be used, 2 if no dataset was found.
    """
    args = parse_args(arguments)
    if not args.data.is_dir():
        sys.stderr.write(f"Folder {args.data} not found. Give AVSBench as downloaded, or a folder with a clips.csv.\n")
        return 2
    names = args.only or find_names(args.data)
    if not names:
        sys.stderr.write(f"No table of clips found in {args.data}. Expected one of {', '.join(NAMES)}.\n")
        return 2
    try:
        return run_check(args, names) if args.command == "check" else run_export(args, names)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


def run_check(args: argparse.Namespace, names: list[str]) -> int:
    """Print a report per dataset; return 1 if any has problems, else 0."""
    failed = False
    for name in names:
        settings = RowSettings(
            log_mel=args.log_mel, subsets=tuple(args.subsets or ()), missing_audio=args.missing_audio
        ).restrict(name)
        try:
            report = check(args.data, name, settings, read=not args.quick, num_proc=args.num_proc, progress=True)
        except DatasetError as error:
            sys.stdout.write(f"{name}: {error}\n")
            failed = True
            continue
        sys.stdout.write(report.format(None if args.all else SHOWN_PROBLEMS) + "\n")
        failed = failed or bool(report.problems)
    return int(failed)


def run_export(args: argparse.Namespace, names: list[str]) -> int:
    """Write the shards of each dataset, and upload them with `--push-to-hub`; return 0."""
    if args.push_to_hub:
        validate_repo_id(args.push_to_hub)
    for name in names:
        settings = RowSettings(
            label_noise=args.label_noise,
            log_mel=args.log_mel,
            frames_per_second=args.frames_per_second,
            subsets=tuple(args.subsets or ()),
            binary=args.binary,
            missing_audio=args.missing_audio,
        ).restrict(name)
        folder = export(
            args.data,
            args.output,
            name,
            settings,
            file_format=args.format,
            clips_per_shard=args.clips_per_shard,
            num_proc=args.num_proc,
            on_error=args.on_error,
            progress=True,
        )
        sys.stdout.write(f'{name}: {folder}, load it with load_dataset("{args.output}", "{name}")\n')
    if args.push_to_hub:
        sys.stdout.write(push(args.output, args.push_to_hub, private=not args.public) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
