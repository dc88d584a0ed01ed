"""What an archive costs: videos per second by processes, bytes by format, memory by length, seconds to go on.

    python benchmarks/archive.py                                   # the semantic demo model on 24 clips of 10 s
    python benchmarks/archive.py --model owner/name --clips 100 --processes 1 2 4 8
    ACCELERATE_USE_CPU=true python benchmarks/archive.py           # several processes on a machine without a GPU

Clips are the demo clip, over and over, at 256x256 and 10 frames per second. Each run is the command as a user starts it, in processes of its own; the seconds of
its start, which a run with nothing to do shows, are taken off the rates. Memory is the largest resident set of one process.
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
from pcmanet.checkpoints import demo_file


FRAMES_PER_SECOND = 10
FORMATS = {
    "parquet": ("--format", "parquet"),
    "rle": ("--format", "rle"),
    "png": ("--format", "png"),
    "png, overlay, contact sheet": ("--format", "png", "--overlay", "--contact-sheet"),
}


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="checkpoint (default: the semantic demo model)")
    parser.add_argument("--clips", type=int, default=24, help="clips of the archive (default: 24)")
    parser.add_argument("--seconds", type=int, default=10, help="seconds of each clip (default: 10)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="how many to compare (default: 1 2)")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10], help="lengths to compare (default: 1 10)")
    return parser.parse_args()


def write_clip(path: Path, seconds: float) -> None:
    """Writes the demo clip over and over until it lasts so many seconds."""
    media = read_media(demo_file("demo.mp4"), frames_per_second=FRAMES_PER_SECOND)
    repeated = itertools.islice(itertools.cycle(media.frames), round(seconds * FRAMES_PER_SECOND))
    samples = np.arange(round(seconds * media.sampling_rate)) % media.waveform.shape[1]
    write_video(path, repeated, FRAMES_PER_SECOND, media.waveform[:1, samples], media.sampling_rate)


def run(model: str, videos: Path, output: Path, *options: str, processes: int = 1) -> tuple[float, float]:
    """Runs the command; gives its seconds and the largest memory of a process in megabytes."""
    launcher = (
        ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"] if processes > 1 else []
    )
    command = [sys.executable, *launcher, "-m", "pcmanet", "segment", str(videos), "--model", model]
    # One thread each, as torchrun has it: processes compare with processes, not with threads.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--output", str(output), *options], stdout=subprocess.DEVNULL, env=environment
    )
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(command)} failed: its message stands above.")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def compare_processes(args: argparse.Namespace, videos: Path, folder: Path) -> None:
    """Prints how fast an archive is done, and how fast a run sees that nothing is left to do."""
    print("\n| processes | videos per second | seconds of video per second | seconds to start and find all done |")
    print("|---|---|---|---|")
    for processes in args.processes:
        output = folder / f"of_{processes}"
        seconds, _ = run(args.model, videos, output, *FORMATS["parquet"], processes=processes)
        idle, _ = run(args.model, videos, output, *FORMATS["parquet"], processes=processes)
        rate = args.clips / (seconds - idle)
        print(f"| {processes} | {rate:.2f} | {rate * args.seconds:.1f} | {idle:.1f} |")


def compare_formats(args: argparse.Namespace, videos: Path, folder: Path) -> None:
    """Prints how large the results are."""
    print("\n| format | bytes per network frame |\n|---|---|")
    for number, (name, options) in enumerate(FORMATS.items()):
        output = folder / f"format_{number}"
        run(args.model, videos, output, *options)
        size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
        print(f"| {name} | {size / (args.clips * args.seconds):.0f} |")


def compare_lengths(args: argparse.Namespace, folder: Path) -> None:
    """Prints how much memory a long video takes, with everything that can be written."""
    print(
        "\n| minutes of video | largest memory, MB, parquet | the same with overlay and contact sheet |\n|---|---|---|"
    )
    for minutes in args.minutes:
        video = folder / f"{minutes:g}_minutes.mp4"
        write_clip(video, 60 * minutes)
        rows, pictures = (
            run(args.model, video, folder / f"{minutes:g}_{number}", *FORMATS["parquet"], *options)[1]
            for number, options in enumerate(((), ("--overlay", "--contact-sheet")))
        )
        print(f"| {minutes:g} | {rows:.0f} | {pictures:.0f} |")


def main() -> None:
    """Prints three tables."""
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
