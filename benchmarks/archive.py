"""Measure archives: videos per second by processes, bytes by format, memory by length, seconds to resume.

    python benchmarks/archive.py                                   # the semantic demo model on 24 clips of 10 s
    python benchmarks/archive.py --model owner/name --clips 100 --processes 1 2 4 8
    ACCELERATE_USE_CPU=true python benchmarks/archive.py           # several processes on a machine without a GPU

Clips repeat the demo clip, at 256x256 and 10 frames per second. Each run is the command as a user starts it. The time of its
start, measured by a run in which all videos are done, is subtracted from the rates. Memory is the peak resident set of one
process.
"""

import argparse
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from modeling_pcmanet.media_pcmanet import read_media
from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.files import demo_file


FRAMES_PER_SECOND = 10
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
    parser.add_argument("--model", default=str(demo_file("demo_model_semantic")), help="checkpoint")
    parser.add_argument("--clips", type=int, default=24, help="clips of the archive (default: 24)")
    parser.add_argument("--seconds", type=int, default=10, help="seconds of each clip (default: 10)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="numbers of processes (default: 1 2)")
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
    command = [sys.executable, *launcher, "-m", "pcmanet", "segment", str(videos), "--model", model]
    # One thread per process, as torchrun sets it, so that numbers of processes are compared and not threads.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--output", str(output), *options], stdout=subprocess.DEVNULL, env=environment
    )
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(command)} failed, see its message above.")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def compare_processes(args: argparse.Namespace, videos: Path, folder: Path) -> None:
    """Print the rate of an archive, and the time of a run in which all videos are done."""
    print("\n| processes | videos per second | seconds of video per second | seconds to start when all is done |")
    print("|---|---|---|---|")
    for processes in args.processes:
        output = folder / f"of_{processes}"
        seconds, _ = run(args.model, videos, output, *FORMATS["parquet"], processes=processes)
        idle, _ = run(args.model, videos, output, *FORMATS["parquet"], processes=processes)
        rate = args.clips / (seconds - idle)
        print(f"| {processes} | {rate:.2f} | {rate * args.seconds:.1f} | {idle:.1f} |")


def compare_formats(args: argparse.Namespace, videos: Path, folder: Path) -> None:
    """Print the size of the results."""
    print("\n| format | bytes per network frame |\n|---|---|")
    for number, (name, options) in enumerate(FORMATS.items()):
        output = folder / f"format_{number}"
        run(args.model, videos, output, *options)
        size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
        print(f"| {name} | {size / (args.clips * args.seconds):.0f} |")


def compare_lengths(args: argparse.Namespace, folder: Path) -> None:
    """Print the peak memory for a long video, without and with images."""
    print("\n| minutes of video | peak memory in MB, parquet | with overlay and contact sheet |\n|---|---|---|")
    for minutes in args.minutes:
        video = folder / f"{minutes:g}_minutes.mp4"
        write_clip(video, 60 * minutes)
        rows, images = (
            run(args.model, video, folder / f"{minutes:g}_{number}", *FORMATS["parquet"], *options)[1]
            for number, options in enumerate(((), ("--overlay", "--contact-sheet")))
        )
        print(f"| {minutes:g} | {rows:.0f} | {images:.0f} |")


def main() -> None:
    """Print three tables."""
    args = parse_args()
    print(f"    python {shlex.join(sys.argv)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "videos").mkdir()
        write_clip(folder / "videos" / "0000.mp4", args.seconds)
        for number in range(1, args.clips):
            shutil.copy(folder / "videos" / "0000.mp4", folder / "videos" / f"{number:04d}.mp4")
        compare_processes(args, folder / "videos", folder)
        compare_formats(args, folder / "videos", folder)
        compare_lengths(args, folder)


if __name__ == "__main__":
    main()
