"""The command line of `pcmanet`: options, their help and their ranges. Imports nothing heavy, so that --help is quick."""

import argparse
import math
from pathlib import Path


DEMO_MODEL = "demo"  # what --model calls the semantic demo model that comes with the package
FORMATS = ("png", "rle", "parquet")

DESCRIPTION = "Segments what sounds in videos: the masks of the sounding objects, second by second."

DONE, SOME_FAILED, STOPPED, FAULT, INTERRUPTED, UNREAD, TERMINATED = 0, 1, 2, 70, 130, 141, 143
EXIT_CODES = f"""exit codes:
  {DONE:<3}  all done
  {SOME_FAILED:<3}  some videos could not be segmented; the others are done
  {STOPPED:<3}  nothing was done, or the run had to stop: wrong usage, no such checkpoint, a full disk ...
  {FAULT:<3}  a fault of this program: its traceback is shown
  {INTERRUPTED:<3}  interrupted with Ctrl-C: whole results are kept, the same command goes on
  {UNREAD:<3}  whoever read the output left, as `head` does: as after Ctrl-C
  {TERMINATED:<3}  terminated by SIGTERM: as after Ctrl-C
"""

EXAMPLES = f"""examples:
  pcmanet demo                                   # segment the clip that comes along
  pcmanet segment clip.mp4 --output results --overlay --contact-sheet
  pcmanet segment videos/ --model owner/name --output results --format parquet
  pcmanet info owner/name

`pcmanet COMMAND --help` tells more of each.

{EXIT_CODES}"""

SEGMENT_EXAMPLES = f"""examples:
  pcmanet segment clip.mp4                                      # masks in segmented/clip, by the demo model
  pcmanet segment clip.mp4 --output results --overlay --overlay-frames-per-second 4 --contact-sheet
  pcmanet segment silent.mp4 --audio sound.wav                  # sound from another file
  pcmanet segment a.mp4 https://example.org/b.mp4 --model owner/name --threshold 0.6
  pcmanet segment videos/ --output results --format parquet     # an archive: rows that `datasets` reads
  pcmanet segment list.txt --output results --format parquet    # a path or URL per line
  pcmanet segment --data-set owner/data --split train --column video --output results --format parquet
  torchrun --nproc_per_node 8 -m pcmanet segment videos/ --output results --format parquet
  pcmanet segment videos/ --output /shared/results --format parquet --ray auto    # on a Ray cluster

what is written:
  png      OUTPUT/<video>/masks/*.png, segments.jsonl and video.json, which says of which video
  rle      OUTPUT/<video>/segments.jsonl: a line per network frame, masks in COCO's run-length code; and video.json
  parquet  OUTPUT/segments-*.parquet: rows of all videos, read by load_dataset("OUTPUT")
  --overlay and --contact-sheet add OUTPUT/<video>/overlay.mp4 and contact_sheet.png.

Started again with the same OUTPUT, the command goes on: videos that are done are left alone. Everything is written aside
and renamed, so that what is there is whole, even after kill -9.

{EXIT_CODES}"""

INFO_EXAMPLES = f"""examples:
  pcmanet info examples/demo_model
  pcmanet info owner/name

{EXIT_CODES}"""

DEMO_EXAMPLES = f"""examples:
  pcmanet demo
  pcmanet demo --output elsewhere

{EXIT_CODES}"""


def given(text: str) -> str:
    """Reads a text that says something: a variable of the shell that is not set gives an empty one."""
    if not text:
        raise argparse.ArgumentTypeError("a path was expected, got an empty text")
    return text


def folder(text: str) -> Path:
    """Reads the path of a folder."""
    return Path(given(text))


def share(text: str) -> float:
    """Reads a number between 0 and 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a share between 0 and 1 was expected, got {text}")
    return value


def rate(text: str) -> float:
    """Reads a positive number."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a number above 0 was expected, got {text}")
    return value


def minutes(text: str) -> float:
    """Reads a number that is not negative."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"0 or more was expected, got {text}")
    return value


def count(text: str) -> int:
    """Reads a whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 up was expected, got {text}")
    return int(text)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; what is wrong with it ends the program with a message and code 2.

    Args:
        arguments: What follows `pcmanet`; by default what the shell gave.

    Returns:
        The options, and as `command` which of the commands was called.
    """
    parser = argparse.ArgumentParser(
        prog="pcmanet",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    segmenting = _add_command(commands, "segment", "segment videos, one or a hundred thousand", SEGMENT_EXAMPLES)
    _add_inputs(segmenting)
    _add_results(segmenting)
    _add_network(segmenting)
    _add_archive(segmenting)

    demonstrating = _add_command(commands, "demo", "segment the clip that comes with the package", DEMO_EXAMPLES)
    demonstrating.add_argument(
        "--output", type=folder, default=Path("pcmanet_demo"), help="folder for the results (default: pcmanet_demo)"
    )

    informing = _add_command(commands, "info", "tell what a checkpoint is", INFO_EXAMPLES)
    informing.add_argument("model", metavar="MODEL", help="folder of a checkpoint, or Hub id as owner/name")

    parsed = parser.parse_args(arguments)
    if parsed.command == "segment":
        _check(segmenting, parsed)
    return parsed


def _add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, about: str, epilog: str
) -> argparse.ArgumentParser:
    """Adds a command to the command line."""
    return commands.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    """Adds what is segmented."""
    group = parser.add_argument_group("videos")
    group.add_argument(
        "videos",
        nargs="*",
        type=given,
        metavar="VIDEO",
        help="video file, http(s) URL, folder (all videos in it, at any depth), or .txt list of files and URLs",
    )
    group.add_argument("--audio", help="file with the sound, for one video without a sound track")
    group.add_argument("--data-set", metavar="DATA", help="a data set instead: Hub id, or local folder of `datasets`")
    group.add_argument("--split", default="train", help="of the data set (default: train)")
    group.add_argument("--column", default="video", help="its column with the videos (default: video)")
    group.add_argument("--audio-column", help="its column with the sound, for silent videos")
    group.add_argument("--name-column", help="its column with a name of its own for each video (default: file name)")


def _add_results(parser: argparse.ArgumentParser) -> None:
    """Adds what is written, and where."""
    group = parser.add_argument_group("results")
    group.add_argument(
        "--output", type=folder, default=Path("segmented"), help="folder for the results (default: segmented)"
    )
    group.add_argument("--format", choices=FORMATS, default="png", help="of the masks (default: png)")
    group.add_argument("--overlay", action="store_true", help="also the video with the masks and its own sound")
    group.add_argument(
        "--overlay-frames-per-second",
        type=rate,
        metavar="RATE",
        help="a higher rate for the overlay alone, so that its masks follow what moves (default: the same rate)",
    )
    group.add_argument("--contact-sheet", action="store_true", help="also one picture that shows all at a glance")
    group.add_argument("--overwrite", action="store_true", help="start anew: remove earlier results in OUTPUT first")


def _add_network(parser: argparse.ArgumentParser) -> None:
    """Adds the checkpoint and how it is used."""
    group = parser.add_argument_group("network")
    group.add_argument(
        "--model",
        default=DEMO_MODEL,
        help="Hub id or folder of a checkpoint (default: demo, which knows procedural shapes only)",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: an accelerator if there is one)")
    group.add_argument(
        "--frames-per-second", type=rate, default=1.0, metavar="RATE", help="network frames per second (default: 1)"
    )
    group.add_argument(
        "--threshold", type=share, help="probability that a pixel has to exceed (default: 0.5 binary, 0 semantic)"
    )
    group.add_argument(
        "--minimum-area",
        type=share,
        default=0.001,
        metavar="SHARE",
        help="smallest share of the picture that counts (default: 0.001)",
    )
    group.add_argument(
        "--early-exit-threshold",
        type=share,
        metavar="SHARE",
        help="faster: stop at a coarse stage in frames of which no larger share is uncertain (default: never; "
        "docs/anytime.md)",
    )


def _add_archive(parser: argparse.ArgumentParser) -> None:
    """Adds what concerns many videos."""
    group = parser.add_argument_group("archives (docs/archives.md)")
    group.add_argument(
        "--shard-minutes",
        type=minutes,
        default=5.0,
        metavar="MINUTES",
        help="parquet: publish results at least this often, which is what kill -9 may cost (default: 5)",
    )
    group.add_argument("--retry-failed", action="store_true", help="try those videos again whose row is an error")
    group.add_argument(
        "--ray", metavar="ADDRESS", help="work on a Ray cluster: its address, `auto`, or `local` for one made here"
    )
    group.add_argument(
        "--ray-workers", type=count, metavar="NUMBER", help="of the Ray job (default: one per GPU, else per CPU)"
    )


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuses options that contradict each other."""
    if bool(arguments.videos) == bool(arguments.data_set):
        parser.error("give videos or a --data-set, one of the two")
    if arguments.audio and len(arguments.videos) != 1:
        parser.error("--audio is the sound of one video: give exactly one VIDEO with it")
    if arguments.overlay_frames_per_second and not arguments.overlay:
        parser.error("--overlay-frames-per-second needs --overlay")
    if arguments.retry_failed and arguments.format != "parquet":
        parser.error("--retry-failed is for --format parquet; the other formats try failed videos again anyway")
    if arguments.ray_workers and not arguments.ray:
        parser.error("--ray-workers needs --ray")


def _number(text: str) -> float:
    """Reads a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number was expected, got {text}") from None
