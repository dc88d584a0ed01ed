"""Measure archives: seconds of video per second and how close that is to the bound, bytes by format, memory by length.

    python benchmarks/archive.py                                   # the bundled models on 48 clips of 10 s
    python benchmarks/archive.py --models owner/name --clips 100 --processes 2 4 8 --tables throughput
    ACCELERATE_USE_CPU=true python benchmarks/archive.py           # several processes on a machine without a GPU

Clips repeat the demo clip, at 256x256 and 10 frames per second. Memory is the peak resident set of one process.

The throughput of one process is measured in this process, alternately for the videos that the command segments at once
and for one video at a time with all threads; values are medians. That of several processes is measured with the
command as a user starts it, minus the time of a run in which all videos are already done.

The bound is the rate that no order of the work can exceed on the cores of this machine. It is computed from the work
of a second of video, which is the processor time of its parts (decode, processor, network, post-process, write the
rows) one after the other on one thread, divided by the number of cores. "One after the other" is the rate of that one
thread. On a busy machine the cores are shared, and all rates are too low.
"""

import argparse
import itertools
import os
import secrets
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from video import cpu_seconds, measure

from modeling_pcmanet.media_pcmanet import read_media
from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.checkpoints import load_segmenter
from pcmanet.cli import segment
from pcmanet.cli.arguments import parse_arguments
from pcmanet.cli.inputs import find_videos
from pcmanet.cli.progress import Progress
from pcmanet.cli.results import OutputFolder, RecordedResults, rows_of_video
from pcmanet.files import demo_file, find_checkpoint
from pcmanet.pipelines import AudioVisualSegmentationPipeline


FRAMES_PER_SECOND = 10
DEFAULT_AT_ONCE = segment.VIDEOS_AT_ONCE
MODELS = ("real_world", "demo_model", "demo_model_semantic")
TABLES = ("throughput", "formats", "lengths")
FORMATS = {
    "parquet": ("--format", "parquet"),
    "rle": ("--format", "rle"),
    "png": ("--format", "png"),
    "png, overlay, contact sheet": ("--format", "png", "--overlay", "--contact-sheet"),
}


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=MODELS,
        help="checkpoints, or names of bundled ones; size and memory use the last one",
    )
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES, help="what to measure (default: all)")
    parser.add_argument("--clips", type=int, default=48, help="clips of the archive (default: 48)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of one process (default: 3)")
    parser.add_argument("--seconds", type=int, default=10, help="seconds of each clip (default: 10)")
    parser.add_argument("--processes", type=int, nargs="*", default=[2], help="numbers of processes (default: 2)")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10], help="lengths of a video (default: 1 10)")
    return parser.parse_args()


def write_clip(path: Path, seconds: float) -> None:
    """Write the demo clip, repeated to a duration in seconds."""
    media = read_media(demo_file("demo.mp4"), frames_per_second=FRAMES_PER_SECOND)
    repeated = itertools.islice(itertools.cycle(media.frames), round(seconds * FRAMES_PER_SECOND))
    samples = np.arange(round(seconds * media.sampling_rate)) % media.waveform.shape[1]
    write_video(path, repeated, FRAMES_PER_SECOND, media.waveform[:1, samples], media.sampling_rate)


def run(model: str, videos: Path, output: Path, *options: str, processes: int = 1) -> tuple[float, float]:
    """Run the command and return its seconds and the peak memory of a process in megabytes."""
    launcher = (
        ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"] if processes > 1 else []
    )
    command = [sys.executable, *launcher, "-m", "pcmanet", "segment", str(videos), "--model", checkpoint(model)]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--output", str(output), *options], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(command)} failed, see its message above.")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def checkpoint(model: str) -> str:
    """Return the folder or Hub id of a checkpoint or of a bundled one."""
    return str(demo_file(model)) if model.startswith("demo_model") else find_checkpoint(model)


def measure_work(segmenter: AudioVisualSegmentationPipeline, clip: Path, folder: Path) -> float:
    """Return the processor seconds that a clip needs on one thread, from decoding it to its rows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    parts, _ = measure(segmenter, clip, folder / "masks")
    results = RecordedResults(folder / f"{secrets.token_hex(8)}.jsonl")
    entries, size = segmenter(str(clip)), read_media(clip, frames_per_second=1).frames[0].shape[:2]

    def write() -> None:
        for entry in entries:
            results.add(entry, size)
        list(rows_of_video({"video": clip.name}, results.records()))

    work = sum(parts.values()) - parts["write"] + cpu_seconds(write)[0]
    torch.set_num_threads(threads)
    return work


def segment_clips(segmenter: AudioVisualSegmentationPipeline, videos: Path, output: Path, at_once: int) -> float:
    """Segment a folder to an archive in this process and return the seconds."""
    segment.VIDEOS_AT_ONCE = at_once
    arguments = parse_arguments(["segment", str(videos), "--output", str(output), *FORMATS["parquet"]])
    found, folder = find_videos(arguments), OutputFolder(output)
    folder.begin("", {}, is_archive=True)
    start = time.perf_counter()
    with segment.Worker(arguments, found, segmenter, folder) as worker, Progress("", 0, hidden=True) as progress:
        if any(failed for _, failed in worker.segment(found.names, progress)):
            sys.exit(f"Clips of {videos} could not be segmented.")
    seconds = time.perf_counter() - start
    folder.leave()
    return seconds


def compare_processes(args: argparse.Namespace, videos: Path, folder: Path) -> None:
    """Print the rate of an archive in one process, with one and with several videos at once, and in several processes."""
    cores, seconds_of_video = len(os.sched_getaffinity(0)), args.clips * args.seconds
    print(f"\nSeconds of video per second, {cores} cores\n")
    print("| model | one after the other | bound | processes | videos at once | measured | of the bound |")
    print("|---|---|---|---|---|---|---|")
    for model in args.models:
        segmenter = load_segmenter(checkpoint(model), "cpu")
        alone = args.seconds / measure_work(segmenter, videos / "0000.mp4", folder)
        seconds: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        for number, at_once in itertools.product(range(args.rounds), (1, DEFAULT_AT_ONCE)):
            output = folder / f"{Path(model).name}_{number}_{at_once}"
            seconds[1, at_once].append(segment_clips(segmenter, videos, output, at_once))
        for processes in args.processes:
            output = folder / f"{Path(model).name}_of_{processes}"
            times = [run(model, videos, output, *FORMATS["parquet"], processes=processes)[0] for _ in range(2)]
            if times[0] < 2 * times[1]:
                sys.stderr.write(
                    f"{model}, {processes} processes: not measured, because starting took {times[1]:.0f} s of "
                    f"{times[0]:.0f} s. Give more --clips.\n"
                )
                continue
            seconds[processes, DEFAULT_AT_ONCE].append(times[0] - times[1])
        for (processes, at_once), measured in seconds.items():
            rate, bound = seconds_of_video / statistics.median(measured), cores * alone
            cells = f"{alone:.1f} | {bound:.1f} | {processes} | {at_once} | {rate:.1f} | {rate / bound:.0%}"
            print(f"| {Path(model).name} | {cells} |", flush=True)


def compare_formats(args: argparse.Namespace, videos: Path, folder: Path) -> None:
    """Print the size of the results."""
    print("\n| format | bytes per network frame |\n|---|---|")
    for number, (name, options) in enumerate(FORMATS.items()):
        output = folder / f"format_{number}"
        run(args.models[-1], videos, output, *options)
        size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
        print(f"| {name} | {size / (args.clips * args.seconds):.0f} |")


def compare_lengths(args: argparse.Namespace, folder: Path) -> None:
    """Print the peak memory for a long video, without and with images."""
    print("\n| minutes of video | peak memory in MB, parquet | with overlay and contact sheet |\n|---|---|---|")
    for minutes in args.minutes:
        video = folder / f"{minutes:g}_minutes.mp4"
        write_clip(video, 60 * minutes)
        rows, images = (
            run(args.models[-1], video, folder / f"{minutes:g}_{number}", *FORMATS["parquet"], *options)[1]
            for number, options in enumerate(((), ("--overlay", "--contact-sheet")))
        )
        print(f"| {minutes:g} | {rows:.0f} | {images:.0f} |")


def main() -> None:
    """Print the tables."""
    args = parse_args()
    print(f"    python {shlex.join(sys.argv)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "videos").mkdir()
        write_clip(folder / "videos" / "0000.mp4", args.seconds)
        for number in range(1, args.clips):
            shutil.copy(folder / "videos" / "0000.mp4", folder / "videos" / f"{number:04d}.mp4")
        if "throughput" in args.tables:
            compare_processes(args, folder / "videos", folder)
        if "formats" in args.tables:
            compare_formats(args, folder / "videos", folder)
        if "lengths" in args.tables:
            compare_lengths(args, folder)


if __name__ == "__main__":
    main()
