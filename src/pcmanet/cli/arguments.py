"""The command line of `pcmanet`: commands, options, their help and their ranges.

To add a command, write a function here that adds its parser, call it in `parse_arguments`, and name the module that runs
it in `pcmanet.cli.main.COMMANDS`. This module must not import torch or transformers, so that `--help` is fast.
"""

import argparse
import sys
from pathlib import Path
from typing import TypeAlias

from pcmanet import __version__
from pcmanet.files import DEFAULT_MODEL
from pcmanet.options import fraction, non_negative, non_negative_integer, positive, positive_integer


DOCUMENTATION = "https://pcmanet.github.io/pcmanet/"
FORMATS = ("png", "rle", "parquet")
DATASETS = ("s4", "ms3", "avss", "folder")
LABEL_NOISE_RULES = ("keep", "background", "ignore")
SUBSETS = ("v1s", "v1m", "v2")
MISSING_AUDIO_RULES = ("raise", "silence")
ON_ERROR = ("raise", "skip")
NEGATIVE_AUDIO = ("silence", "noise", "off_screen")
DTYPES = ("auto", "float32", "bfloat16", "float16")
SHARD_MINUTES = 5
PAIRED_CLIPS = 500  # of an evaluation on paired data

DONE, SOME_FAILED, STOPPED, INTERNAL_ERROR, INTERRUPTED, OUTPUT_CLOSED, TERMINATED = 0, 1, 2, 70, 130, 141, 143
EXIT_CODES = f"""exit codes:
  {DONE:<3}  success
  {SOME_FAILED:<3}  some videos failed; the others are segmented
  {STOPPED:<3}  usage error, checkpoint or data not found, disk full, or another error that the message explains
  {INTERNAL_ERROR:<3}  internal error; please report the traceback
  {INTERRUPTED:<3}  interrupted with Ctrl-C; finished results are kept, run the same command again to resume
  {OUTPUT_CLOSED:<3}  the reader of the output closed it, as `head` does; otherwise as after Ctrl-C
  {TERMINATED:<3}  terminated by SIGTERM; otherwise as after Ctrl-C
"""

EXAMPLES = f"""examples:
  pcmanet demo                                   # segment the bundled clip with the bundled model
  pcmanet segment clip.mp4 --output results --overlay --contact-sheet
  pcmanet segment videos/ --model owner/name --output results --format parquet
  pcmanet evaluate owner/name --data AVSBench --name s4
  pcmanet train --recipe s4 --data AVSBench --output runs/s4
  pcmanet info owner/name

Run `pcmanet COMMAND --help` for the options of a command. Documentation: {DOCUMENTATION}

{EXIT_CODES}"""

SEGMENT_EXAMPLES = f"""examples:
  pcmanet segment clip.mp4                                      # masks of the bundled model in segmented/clip
  pcmanet segment clip.mp4 --output results --overlay --overlay-frames-per-second 4 --contact-sheet
  pcmanet segment silent.mp4 --audio audio.wav                  # audio from another file
  pcmanet segment a.mp4 https://example.org/b.mp4 --model owner/name --threshold 0.6
  pcmanet segment videos/ --output results --format parquet     # rows for `datasets.load_dataset`
  pcmanet segment list.txt --output results --format parquet    # one path or URL per line
  pcmanet segment --data owner/data --split train --column video --output results --format parquet
  pcmanet segment --data AVSBench --name s4 --split test --model owner/name --output results
  torchrun --nproc_per_node 8 -m pcmanet segment videos/ --output results --format parquet
  pcmanet segment videos/ --output /shared/results --format parquet --ray auto    # on a Ray cluster

output files:
  png      OUTPUT/<video>/masks/*.png, segments.jsonl, and video.json with the path of the video
  rle      OUTPUT/<video>/segments.jsonl, one line per network frame, masks in COCO run-length encoding; and video.json
  parquet  OUTPUT/segments-*.parquet, the rows of all videos for load_dataset("OUTPUT")
  --overlay and --contact-sheet add OUTPUT/<video>/overlay.mp4 and contact_sheet.png.

Run the same command again to resume: finished videos are skipped. Files are written under a temporary name and renamed
when they are complete, so every result is complete even after kill -9.

{EXIT_CODES}"""

DEMO_EXAMPLES = f"""examples:
  pcmanet demo
  pcmanet demo --output results

{EXIT_CODES}"""

INFO_EXAMPLES = f"""examples:
  pcmanet info real_world
  pcmanet info owner/name

{EXIT_CODES}"""

EVALUATE_EXAMPLES = f"""examples:
  pcmanet evaluate owner/name --data AVSBench/Single-source                # the test split
  pcmanet evaluate owner/name --data AVSBench --name avss --per-class      # 71 classes
  pcmanet evaluate owner/name --data AVSBench --name s4 --negative-audio silence noise off_screen
  pcmanet evaluate owner/name --data my_clips --split val                  # your own clips, with a clips.csv
  pcmanet evaluate s4=runs/s4/best ms3=runs/ms3/best avss=runs/avss/best --data AVSBench --compare   # one table
  pcmanet evaluate runs/seed_0/best runs/seed_1/best runs/seed_2/best --data AVSBench --name ms3     # mean and deviation
  torchrun --nproc_per_node 8 -m pcmanet evaluate owner/name --data AVSBench --name avss
  ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m pcmanet evaluate owner/name --data AVSBench --name s4

OUTPUT receives results.md, results.json (with the metrics of each clip), table.tex, worst_clips.png, masks/ (with
--save-masks) and progress/ (one small file per batch). With several evaluations, OUTPUT receives the combined table,
and OUTPUT/NAME/MODEL the files of each. Run the same command again, with any number of processes, to resume an
interrupted run. Batches whose files were changed are computed again. After a complete run, only the report is written
again, so --per-class, another --negative-audio or --save-masks can be added later. The results do not depend on the
number of processes.

Masks are compared at the input size of the network, as AVSBench does, or with --original-resolution at the size of the
frames. For AVSS, only real frames are scored and class 0 is the background. --score-padding and
--published-no-background reproduce the published evaluation for networks with padded_frames="zeroed" (converted
published weights). Other networks do not compute padded frames, so --score-padding counts them as correct background.

{EXIT_CODES}"""

TRAIN_EXAMPLES = f"""examples:
  pcmanet train --recipe smoke --output runs/smoke      # a minute on a CPU
  pcmanet train --recipe s4 --data AVSBench --output runs/s4 \\
      --set visual_backbone=OpenGVLab/pvt_v2_b5 audio_encoder=AUDIO_ENCODER
  pcmanet train --recipe smoke --output runs/smoke --resume
  pcmanet train --list-fields                                                 # everything that a recipe can set
  accelerate launch --num_processes 8 -m pcmanet train --recipe ours --output runs/ours \\
      --set batch_size=8

AUDIO_ENCODER is the Hub id or folder of an audio encoder, such as one that
`python -m modeling_pcmanet.convert_pcmanet_to_hf` writes from published weights.

OUTPUT receives best/ and last/ (checkpoints for `from_pretrained`, with their processor and metrics.json),
checkpoints/ (to resume from), recipe.yaml, log.jsonl, overlays/ and tensorboard/; with --test also test/, the output
of `pcmanet evaluate`. --push-to-hub uploads the best weights with a model card that contains all these metrics.

{EXIT_CODES}"""

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line. A usage error ends the process with a message and exit code 2.

    Args:
        arguments: The words after `pcmanet`; by default those of this process.

    Returns:
        The options, with the name of the command as `command` and the words after `pcmanet` as `words`.
    """
    parser = argparse.ArgumentParser(
        prog="pcmanet",
        description="Audio-visual segmentation: masks of the sounding objects in videos.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pcmanet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    segment = _add_segment(commands)
    _add_demo(commands)
    _add_info(commands)
    evaluate = _add_evaluate(commands)
    train = _add_train(commands)
    parsed = parser.parse_args(arguments)
    parsed.words = sys.argv[1:] if arguments is None else list(arguments)
    if parsed.command == "segment":
        _check_segment(segment, parsed)
    if parsed.command == "evaluate" and parsed.off_screen_audio and "off_screen" not in parsed.negative_audio:
        evaluate.error("--off-screen-audio requires --negative-audio off_screen")
    if parsed.command == "train":
        _check_train(train, parsed)
    return parsed


def _add_command(commands: Commands, name: str, summary: str, epilog: str) -> argparse.ArgumentParser:
    """Add a command and return its parser."""
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_demo(commands: Commands) -> None:
    """Add `pcmanet demo`."""
    parser = _add_command(commands, "demo", "segment the clip that is installed with the package", DEMO_EXAMPLES)
    parser.add_argument(
        "--output",
        type=_path,
        default=Path("pcmanet_demo"),
        help="folder of the results, in which those of an earlier demo are replaced (default: pcmanet_demo)",
    )


def _add_info(commands: Commands) -> None:
    """Add `pcmanet info`."""
    parser = _add_command(commands, "info", "describe a checkpoint: task, classes, size and metrics", INFO_EXAMPLES)
    _add_checkpoint(parser)


def _add_evaluate(commands: Commands) -> argparse.ArgumentParser:
    """Add `pcmanet evaluate` and return its parser."""
    parser = _add_command(
        commands,
        "evaluate",
        "compute the metrics of a checkpoint on AVSBench, your own clips or paired data",
        EVALUATE_EXAMPLES,
    )
    parser.add_argument(
        "models",
        nargs="+",
        type=_text,
        metavar="MODEL",
        help="folder of a checkpoint, Hub id or real_world; NAME=MODEL evaluates it only on the dataset NAME (s4, "
        "ms3, avss, folder)",
    )
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        type=_path,
        required=True,
        help="AVSBench as downloaded, a folder of clips with a clips.csv, or the YAML file of paired data",
    )
    group.add_argument(
        "--name",
        nargs="+",
        choices=DATASETS,
        help="datasets, if there are several; each MODEL is evaluated on those with its classes (default for paired "
        "data: avss)",
    )
    group.add_argument(
        "--clips", type=positive_integer, help=f"paired data: number of clips (default: {PAIRED_CLIPS})"
    )
    group.add_argument("--split", default="test", help="train, val or test (default: test)")
    group.add_argument(
        "--label-noise",
        choices=LABEL_NOISE_RULES,
        default="keep",
        help="avss: what to do with pixels of classes that the clip does not list (default: keep)",
    )
    group.add_argument("--log-mel", action="store_true", help="s4 and ms3: read the published log-mel spectrograms")
    group.add_argument("--subsets", nargs="+", choices=SUBSETS, default=[], help="avss: subsets (default: all)")
    group.add_argument(
        "--binary", action="store_true", help="avss and your own clips: masks of sounding pixels in place of classes"
    )
    group.add_argument(
        "--missing-audio",
        choices=MISSING_AUDIO_RULES,
        default="raise",
        help="your own clips: videos without an audio track are problems, or silent clips with empty masks (default: raise)",
    )
    group.add_argument(
        "--on-error",
        choices=ON_ERROR,
        default="raise",
        help="stop at clips with problems, or skip and list them (default: raise)",
    )
    group.add_argument(
        "--frames-per-second",
        type=positive,
        default=1.0,
        metavar="RATE",
        help="your own clips: network frames per second (default: 1)",
    )
    group = parser.add_argument_group("results")
    group.add_argument(
        "--output", type=_path, help="folder of the results (default: MODEL_on_NAME_SPLIT, or evaluation_SPLIT)"
    )
    group.add_argument(
        "--per-class",
        action="store_true",
        help="also report by class; for binary masks, by the class of the sounding object",
    )
    group.add_argument(
        "--worst", type=non_negative_integer, default=5, help="clips in worst_clips.png, 0 for none (default: 5)"
    )
    group.add_argument(
        "--negative-audio",
        nargs="+",
        choices=NEGATIVE_AUDIO,
        default=[],
        help="also evaluate with audio that matches no object",
    )
    group.add_argument(
        "--off-screen-audio", type=_path, metavar="FOLDER", help="audio files for off_screen (default: other clips)"
    )
    group.add_argument(
        "--compare",
        action="store_true",
        help="add published results of other methods to the tables, with their sources",
    )
    group.add_argument("--save-masks", action="store_true", help="write the predicted masks of all clips as PNG")
    group.add_argument(
        "--original-resolution", action="store_true", help="score at the size of the frames, not of the network input"
    )
    group.add_argument(
        "--score-padding",
        action="store_true",
        help='avss: also score frames that pad clips, as published, where the network has padded_frames="zeroed"',
    )
    group.add_argument(
        "--published-no-background",
        action="store_true",
        help="avss: also the mean that leaves out `woman`, as published",
    )
    group = parser.add_argument_group("computation")
    group.add_argument(
        "--batch-size",
        type=positive_integer,
        default=4,
        help="clips per forward pass, and per group of the `batch` metrics (default: 4)",
    )
    group.add_argument(
        "--num-workers", type=non_negative_integer, default=1, help="data-loading workers per process (default: 1)"
    )
    group.add_argument(
        "--threads",
        type=positive_integer,
        default=1,
        help="CPU threads per process; can change the last digits (default: 1)",
    )
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="data type of the network (default: float32, for comparable results)",
    )
    group.add_argument(
        "--seed", type=non_negative_integer, default=0, help="seed of the noise and of paired clips (default: 0)"
    )
    return parser


def _add_train(commands: Commands) -> argparse.ArgumentParser:
    """Add `pcmanet train` and return its parser."""
    parser = _add_command(
        commands, "train", "train a model on AVSBench, your own clips, paired data or Sounding Shapes", TRAIN_EXAMPLES
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--output", type=_path, help="folder of the run")
    mode.add_argument("--list-fields", action="store_true", help="print the fields of a recipe with their defaults")
    parser.add_argument(
        "--recipe",
        type=_path,
        metavar="FILE",
        help="YAML file with the fields that differ from the defaults, or the name of an installed recipe, such as s4",
    )
    parser.add_argument(
        "--data",
        help="folder of AVSBench or of your own clips, or YAML file of paired data (default: generated Sounding Shapes)",
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="fields of the recipe, as in YAML"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="CHECKPOINT",
        help="resume the run in OUTPUT from its latest checkpoint, or from another of its checkpoints",
    )
    parser.add_argument(
        "--allow",
        nargs="+",
        choices=("processes", "data"),
        default=[],
        help="also resume with another number of processes, or with the same data in another place; not bit-identical",
    )
    parser.add_argument(
        "--max-steps",
        type=positive_integer,
        metavar="NUMBER",
        help="stop with a checkpoint after this total number of steps; the schedule does not change",
    )
    parser.add_argument(
        "--test",
        nargs="?",
        type=positive_integer,
        const=0,
        metavar="CLIPS",
        help="at the end, evaluate the best weights on the test split; for paired data, on this number of clips "
        f"(default: {PAIRED_CLIPS})",
    )
    group = parser.add_argument_group("publishing")
    group.add_argument("--push-to-hub", metavar="ID", help="upload the best weights to this repository at the end")
    group.add_argument("--hub-code", action="store_true", help="also upload the code, for use without this package")
    group.add_argument("--hub-private", action="store_true", help="create the repository as private")
    return parser


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument of a checkpoint."""
    parser.add_argument(
        "model", type=_text, metavar="MODEL", help="folder of a checkpoint, Hub id (owner/name) or real_world"
    )


def _add_segment(commands: Commands) -> argparse.ArgumentParser:
    """Add `pcmanet segment` and return its parser."""
    parser = _add_command(commands, "segment", "segment the sounding objects in one or many videos", SEGMENT_EXAMPLES)
    _add_videos(parser)
    _add_results(parser)
    _add_model(parser)
    _add_archive(parser)
    return parser


def _add_videos(parser: argparse.ArgumentParser) -> None:
    """Add the videos to segment."""
    group = parser.add_argument_group("videos")
    group.add_argument(
        "videos",
        nargs="*",
        type=_text,
        metavar="VIDEO",
        help="video file, URL, folder (all videos in it and in its subfolders), .txt list of files and URLs, or "
        "/dev/stdin",
    )
    group.add_argument("--audio", help="file with the audio of a single video without an audio track")
    group.add_argument(
        "--data", help="a dataset instead of VIDEO: Hub id, local folder of `datasets`, or AVSBench as downloaded"
    )
    group.add_argument("--split", help="split of the dataset (default: train)")
    group.add_argument("--name", choices=DATASETS, help="AVSBench: dataset, if the folder has several")
    group.add_argument("--column", help="column with the videos (default: video)")
    group.add_argument("--audio-column", help="column with the audio, for videos without an audio track")
    group.add_argument("--name-column", help="column with a unique name for each video (default: the file names)")


def _add_results(parser: argparse.ArgumentParser) -> None:
    """Add the results to write."""
    group = parser.add_argument_group("results")
    group.add_argument(
        "--output", type=_path, default=Path("segmented"), help="folder of the results (default: segmented)"
    )
    group.add_argument("--format", choices=FORMATS, default="png", help="format of the masks (default: png)")
    group.add_argument("--overlay", action="store_true", help="also write the video with its masks and its audio")
    group.add_argument(
        "--overlay-frames-per-second",
        type=positive,
        metavar="RATE",
        help="segment again at a higher rate for the overlay only, so that its masks follow motion (default: the same rate)",
    )
    group.add_argument("--contact-sheet", action="store_true", help="also write one image with an overview")
    group.add_argument("--overwrite", action="store_true", help="remove earlier results in OUTPUT first")


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint and its settings."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        type=_text,
        default=DEFAULT_MODEL,
        help=f"Hub id or folder of a checkpoint (default: {DEFAULT_MODEL}, the bundled model; `pcmanet info {DEFAULT_MODEL}` says what "
        "it knows)",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: an accelerator if one is available)")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="data type of the network (default: auto, bfloat16 where it is faster and the checkpoint says that masks agree)",
    )
    group.add_argument(
        "--frames-per-second",
        type=positive,
        default=1.0,
        metavar="RATE",
        help="network frames per second (default: 1)",
    )
    group.add_argument(
        "--threshold",
        type=fraction,
        metavar="PROBABILITY",
        help="probability that the pixels of a mask must exceed (default: 0.5 for binary models, 0 for semantic models)",
    )
    group.add_argument(
        "--minimum-area",
        type=fraction,
        default=0.001,
        metavar="FRACTION",
        help="smallest mask, as a fraction of the frame (default: 0.001)",
    )
    group.add_argument(
        "--early-exit-threshold",
        type=fraction,
        metavar="FRACTION",
        help="faster: skip the last decoder stages for frames with at most this fraction of uncertain pixels (default: never)",
    )


def _add_archive(parser: argparse.ArgumentParser) -> None:
    """Add the options for many videos."""
    group = parser.add_argument_group("many videos", f"See {DOCUMENTATION}guides/archives/")
    group.add_argument(
        "--shard-minutes",
        type=non_negative,
        metavar="MINUTES",
        help=f"parquet: publish results at least this often; kill -9 loses at most this much work (default: {SHARD_MINUTES})",
    )
    group.add_argument("--retry-failed", action="store_true", help="parquet: process failed videos again")
    group.add_argument(
        "--ray", metavar="ADDRESS", help="run on a Ray cluster: its address, `auto`, or `local` to start one"
    )
    group.add_argument(
        "--ray-workers",
        type=positive_integer,
        metavar="NUMBER",
        help="workers of the Ray job (default: one per GPU, or one per CPU without GPUs)",
    )


def _check_segment(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Reject options of `pcmanet segment` that contradict each other."""
    if bool(arguments.videos) == bool(arguments.data):
        parser.error("give either VIDEO or --data")
    _check_dependent(parser, arguments, "data", "name", "split", "column", "audio_column", "name_column")
    _check_dependent(parser, arguments, "overlay", "overlay_frames_per_second")
    _check_dependent(parser, arguments, "ray", "ray_workers")
    if arguments.audio and len(arguments.videos) != 1:
        parser.error("--audio requires exactly one VIDEO")
    if arguments.retry_failed and arguments.format != "parquet":
        parser.error("--retry-failed requires --format parquet; the other formats always process failed videos again")
    if arguments.shard_minutes is not None and arguments.format != "parquet":
        parser.error(
            "--shard-minutes requires --format parquet; the other formats write the results of each video at once"
        )
    if arguments.shard_minutes is not None and arguments.ray:
        parser.error("--shard-minutes does not apply to --ray, whose workers publish a shard for every few videos")


def _check_train(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Reject options of `pcmanet train` that contradict each other."""
    run = ("recipe", "data", "set", "resume", "allow", "max_steps", "test", "push_to_hub", "hub_code", "hub_private")
    _check_dependent(parser, arguments, "output", *run)
    _check_dependent(parser, arguments, "resume", "allow")
    _check_dependent(parser, arguments, "push_to_hub", "hub_code", "hub_private")


def _check_dependent(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, needed: str, *dependent: str
) -> None:
    """Reject options that have no effect because the option that they belong to is not given."""
    given = [name for name in dependent if getattr(arguments, name) not in (None, [])]
    given = [name for name in given if getattr(arguments, name) is not False]
    if given and not getattr(arguments, needed):
        dependent_option, needed_option = (f"--{name.replace('_', '-')}" for name in (given[0], needed))
        parser.error(f"{dependent_option} requires {needed_option}")


def _text(text: str) -> str:
    """Parse a non-empty text; a shell variable that is not set would give an empty one."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path or name, got an empty string")
    return text


def _path(text: str) -> Path:
    """Parse a path."""
    return Path(_text(text))
