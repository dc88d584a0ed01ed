"""The command line of `python -m pcmanet.dataset_scripts.avsbench`."""

import argparse
import sys
from pathlib import Path

from huggingface_hub.utils import validate_repo_id

from pcmanet.dataset_scripts.avsbench import NAMES, find_names

from .check import check, format_report
from .export import CLIPS_PER_SHARD, WRITERS, export, push
from .layouts import AVSBenchError
from .masks import LABEL_NOISE_RULES
from .rows import RowSettings


SHOWN_FAULTS = 20  # so that a report stays on one screen

EXAMPLES = """examples:
  python -m pcmanet.dataset_scripts.avsbench check AVSBench
  python -m pcmanet.dataset_scripts.avsbench check AVSBench/Single-source --quick
  python -m pcmanet.dataset_scripts.avsbench check my_clips --all
  python -m pcmanet.dataset_scripts.avsbench export AVSBench exported --format parquet --num-proc 4
  python -m pcmanet.dataset_scripts.avsbench export AVSBench exported --only avss --push-to-hub me/avsbench

ROOT is a tree as downloaded (Single-source, Multi-sources, AVSBench_semantic), the folder above, or a folder of one's own
videos with a clips.csv. An interrupted export goes on where it stopped when it is called again. Repositories that
--push-to-hub makes are private.
"""


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pcmanet.dataset_scripts.avsbench",
        description="Check AVSBench as downloaded, or one's own clips, and write them as shards.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="say what is there, what is missing and what is wrong")
    exporting = commands.add_parser("export", help="write shards that load_dataset reads and streams")
    for command in (checking, exporting):
        command.add_argument("root", type=Path, help="folder of the data")
        command.add_argument("--only", nargs="+", choices=NAMES, default=None, help="which data sets (default: all)")
        command.add_argument("--num-proc", type=int, default=1, help="processes (default: 1)")
        command.add_argument("--log-mel", action="store_true", help="also the published log-mel pickles of s4 and ms3")
    checking.add_argument("--quick", action="store_true", help="look at names, sizes and ends of files only")
    checking.add_argument("--all", action="store_true", help=f"list all faults, not the first {SHOWN_FAULTS}")
    exporting.add_argument("output", type=Path, help="folder that receives one folder per data set")
    exporting.add_argument("--format", choices=tuple(WRITERS), default="parquet", help="of the shards")
    exporting.add_argument("--clips-per-shard", type=int, default=CLIPS_PER_SHARD, help="rows of a shard")
    exporting.add_argument(
        "--label-noise", choices=LABEL_NOISE_RULES, default="keep", help="avss: pixels not in a_obj"
    )
    exporting.add_argument("--frames-per-second", type=float, default=1.0, help="of one's own videos")
    exporting.add_argument("--skip-faulty", action="store_true", help="leave out clips with faults")
    exporting.add_argument("--push-to-hub", metavar="ID", help="upload OUTPUT to this data set repository")
    exporting.add_argument("--public", action="store_true", help="make a new repository public")
    return parser.parse_args(arguments)


def run_check(args: argparse.Namespace, names: list[str]) -> int:
    """Print a report per data set; 1 if anything is wrong."""
    wrong = False
    for name in names:
        settings = RowSettings(log_mel=_wants_log_mel(args, name))
        try:
            report = check(args.root, name, settings, read=not args.quick, num_proc=args.num_proc, progress=True)
        except AVSBenchError as error:
            sys.stdout.write(f"{name}: {error}\n")
            wrong = True
            continue
        sys.stdout.write(format_report(report, None if args.all else SHOWN_FAULTS) + "\n")
        wrong = wrong or bool(report.faults)
    return int(wrong)


def _wants_log_mel(args: argparse.Namespace, name: str) -> bool:
    return args.log_mel and name in ("s4", "ms3")


def run_export(args: argparse.Namespace, names: list[str]) -> int:
    """Write the shards, and upload them if asked to; 1 if anything is wrong."""
    if args.push_to_hub:
        validate_repo_id(args.push_to_hub)
    for name in names:
        settings = RowSettings(
            label_noise=args.label_noise if name == "avss" else "keep",
            log_mel=_wants_log_mel(args, name),
            frames_per_second=args.frames_per_second if name == "folder" else 1.0,
        )
        target = export(
            args.root,
            args.output,
            name,
            settings,
            file_format=args.format,
            clips_per_shard=args.clips_per_shard,
            num_proc=args.num_proc,
            skip_faulty=args.skip_faulty,
            progress=True,
        )
        sys.stdout.write(f'{name}: {target}, read by load_dataset("{args.output}", "{name}")\n')
    if args.push_to_hub:
        sys.stdout.write(push(args.output, args.push_to_hub, private=not args.public) + "\n")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 if all is well, 1 if the data have faults, 2 if there are none."""
    args = parse_args(arguments)
    names = args.only or find_names(args.root)
    if not names:
        sys.stderr.write(f"{args.root} holds none of {', '.join(NAMES)}: no table of clips was found\n")
        return 2
    try:
        return run_check(args, names) if args.command == "check" else run_export(args, names)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
