"""Memory, quality and audio timing of streaming an hour of video.

    python benchmarks/long_video.py                                    # an hour; writes docs/benchmarks/streaming.png
    python benchmarks/long_video.py --minutes 5 --plot /tmp/streaming.png

Makes a video of Sounding Shapes (25 frames per second, AAC audio at 44.1 kHz), in which the sounding objects change every
second, and one of its first minute, and streams both through the demo model, each in its own process (Linux, which reports
the memory of a process). Three values are measured for each second of video:

- the memory of the process, compared with that of the minute;
- the masks (IoU): audio that falls behind the video would be that of other objects;
- the audio that the network receives: by how many milliseconds it would have to be shifted to match that of the video.

The published audio alignment, which falls behind by 40 ms per second, is drawn for comparison for the first minutes.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor, pipeline

from modeling_pcmanet.audio_pcmanet import SAMPLING_RATE, resample
from modeling_pcmanet.feature_extraction_pcmanet import log_mel
from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.dataset_scripts.sounding_shapes import SoundingShapes, SyntheticClip
from pcmanet.pipelines import AudioVisualSegmentationPipeline


ROOT = Path(__file__).parent.parent
CLIP_SECONDS = 5
DIFFERENT_CLIPS = 24  # the video repeats them
FRAME_RATE = 25
AUDIO_RATE = 44_100  # hertz, of the audio of the video
PATCH_LENGTH = 15_600  # samples at 16 kHz
MOVES = np.arange(-300, 301, 5)  # milliseconds by which the audio is shifted
SECONDS_BETWEEN_MOVES = 30
PUBLISHED_MINUTES = 10  # sufficient to show the effect
COLORS = {"stream": "#0b6bcb", "published": "#d1495b"}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--minutes", type=int, default=60, help="length of the video")
    parser.add_argument("--size", type=int, default=112, help="height and width of the video in pixels")
    parser.add_argument(
        "--model", default=str(ROOT / "examples" / "demo_model"), help="checkpoint, of the binary task"
    )
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "pcmanet_long_video")
    parser.add_argument(
        "--plot", type=Path, default=ROOT / "docs" / "benchmarks" / "streaming.png", help="image file to write"
    )
    parser.add_argument("--measure", nargs=2, metavar=("VIDEO", "ALIGNMENT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def shapes(size: int) -> SoundingShapes:
    """Return the dataset of the clips."""
    return SoundingShapes(
        "ms3", "test", length=DIFFERENT_CLIPS, seed=7, height=size, width=size, num_frames=CLIP_SECONDS
    )


@cache
def clip_of(number: int, size: int) -> SyntheticClip:
    """Return one of the different clips."""
    return shapes(size)[number]


@cache
def video_frames_of(number: int, size: int) -> np.ndarray:
    """Return the video of one of the clips, (frames, height, width, 3)."""
    return np.stack(list(shapes(size).render_video_frames(number, FRAME_RATE)))


def make_video(path: Path, seconds: int, size: int) -> None:
    """Write the video, unless it exists."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = [index % DIFFERENT_CLIPS for index in range(seconds // CLIP_SECONDS)]
    heard = {number: torch.from_numpy(clip_of(number, size).waveform).double() for number in set(numbers)}
    sound = {
        number: resample(waveform, SAMPLING_RATE, AUDIO_RATE).float().numpy() for number, waveform in heard.items()
    }
    frames = (frame for number in numbers for frame in video_frames_of(number, size))
    waveform = np.concatenate([sound[number] for number in numbers])[None]
    write_video(path, frames, FRAME_RATE, waveform, AUDIO_RATE)


def resident_bytes() -> int:
    """Return the memory of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def segment(video: Path, size: int, model: str, audio_alignment: str) -> Iterator[dict[str, float]]:
    """Stream a video; yield the memory and the IoU at each second."""
    segmenter = pipeline(
        "audio-visual-segmentation", model=model, pipeline_class=AudioVisualSegmentationPipeline, device="cpu"
    )
    with closing(segmenter.stream(video, audio_alignment=audio_alignment)) as stream:
        for second, result in enumerate(stream):
            clip = clip_of(second // CLIP_SECONDS % DIFFERENT_CLIPS, size)
            target = clip.masks[second % CLIP_SECONDS] > 0
            found = np.zeros_like(target)
            for found_segment in result["segments"]:
                found |= np.asarray(found_segment["mask"]) > 127
            union = (found | target).sum()
            iou = (found & target).sum() / union if target.any() else 1 - found.mean()
            yield {"timestamp": result["timestamp"], "iou": float(iou), "bytes": resident_bytes()}


def moves(video: Path, size: int, model: str) -> Iterator[tuple[float, float]]:
    """Yield, every few seconds, by how many milliseconds the audio of the network is behind the video."""
    processor = AutoProcessor.from_pretrained(model)
    before = processor.feature_extractor.samples_before("end")
    with closing(processor.stream(str(video), audio_alignment="end")) as stream:
        for second, frame in enumerate(stream):
            if second % SECONDS_BETWEEN_MOVES == SECONDS_BETWEEN_MOVES - CLIP_SECONDS // 2:
                number = second // CLIP_SECONDS
                clips = [clip_of((number + step) % DIFFERENT_CLIPS, size) for step in (-1, 0, 1)]
                sound = torch.from_numpy(np.concatenate([clip.waveform for clip in clips])).double()
                start = (frame["timestamp"] - (number - 1) * CLIP_SECONDS) * SAMPLING_RATE - before
                starts = np.rint(start - MOVES * SAMPLING_RATE / 1000).astype(int)
                tried = log_mel(sound.unfold(0, PATCH_LENGTH, 1)[starts])
                errors = (tried - frame["input_features"][0]).square().mean(dim=(1, 2))
                yield frame["timestamp"], float(MOVES[errors.argmin()])


def measure(arguments: argparse.Namespace) -> None:
    """Print the measurements of streaming one video as JSON, in its own process."""
    video, audio_alignment = Path(arguments.measure[0]), arguments.measure[1]
    for number in range(DIFFERENT_CLIPS):
        clip_of(number, arguments.size)  # made first, so that it is not counted as memory of streaming
    start = time.perf_counter()
    longest = 60 * PUBLISHED_MINUTES if audio_alignment == "consecutive" else None
    seconds = list(islice(segment(video, arguments.size, arguments.model, audio_alignment), longest))
    passed = time.perf_counter() - start
    late = list(moves(video, arguments.size, arguments.model)) if audio_alignment == "end" else []
    print(json.dumps({"seconds": seconds, "passed": passed, "moves": late}))


def measured(arguments: argparse.Namespace, video: Path, audio_alignment: str) -> dict[str, Any]:
    """Run `measure` in its own process."""
    command = [sys.executable, __file__, "--size", str(arguments.size), "--model", arguments.model]
    answer = subprocess.run(
        [*command, "--measure", str(video), audio_alignment], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(answer.stdout.splitlines()[-1])


def per_minute(seconds: list[dict[str, float]], name: str) -> np.ndarray:
    """Return the mean of each minute."""
    values = np.array([second[name] for second in seconds])
    return values[: len(values) // 60 * 60].reshape(-1, 60).mean(axis=1)


def draw(path: Path, minute: dict[str, Any], whole: dict[str, Any], published: dict[str, Any]) -> None:
    """Draw memory, masks and audio over the time of the video."""
    # Imported here, so that the measured processes do not hold it.
    from matplotlib import pyplot

    figure, (memory, masks, sound) = pyplot.subplots(3, 1, figsize=(9, 8.4), sharex=True, layout="constrained")
    times = np.array([second["timestamp"] for second in whole["seconds"]]) / 60
    peak = max(second["bytes"] for second in minute["seconds"]) / 2**20
    memory.plot(
        times, [second["bytes"] / 2**20 for second in whole["seconds"]], color=COLORS["stream"], label="stream"
    )
    memory.axhline(peak, color="#555", linestyle=":", label="peak of one minute")
    memory.axhline(peak * 1.05, color="#bbb", linestyle="--", label="5% more")
    memory.set(ylabel="memory of the process, MiB", ylim=(0, peak * 1.25))

    for run, name in ((whole, "stream"), (published, "published patches")):
        means = per_minute(run["seconds"], "iou")
        masks.plot(np.arange(len(means)) + 0.5, means, color=COLORS[name.split()[0]], label=name)
    masks.set(ylabel="mean IoU of each minute", ylim=(0, 1))

    late = np.array(whole["moves"])
    sound.axhspan(-1000 / FRAME_RATE, 1000 / FRAME_RATE, color="#eee", label="one frame of the video")
    sound.plot(late[:, 0] / 60, late[:, 1], ".", color=COLORS["stream"], label="stream")
    sound.plot(times, times * 60 * 40, color=COLORS["published"], label="published patches (40 ms per second)")
    sound.set(ylabel="audio is behind by, ms", ylim=(-100, 300), xlabel="minutes of video")
    for axes, place in ((memory, "lower right"), (masks, "center right"), (sound, "upper right")):
        axes.legend(loc=place, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Make the videos, stream them, print the results and draw the plot."""
    arguments = parse_args()
    if arguments.measure:
        measure(arguments)
        return
    short, long = (arguments.cache / f"{minutes}_minutes_{arguments.size}.mp4" for minutes in (1, arguments.minutes))
    make_video(short, 60, arguments.size)
    make_video(long, 60 * arguments.minutes, arguments.size)
    minute, whole = measured(arguments, short, "end"), measured(arguments, long, "end")
    published = measured(arguments, long, "consecutive")

    print(f"`python {shlex.join(sys.argv)}`\n")
    peaks = [max(second["bytes"] for second in run["seconds"]) / 2**20 for run in (minute, whole)]
    print(
        f"memory: {peaks[0]:.1f} MiB for a minute, {peaks[1]:.1f} MiB for {arguments.minutes} ({peaks[1] / peaks[0] - 1:+.1%})"
    )
    late = np.array(whole["moves"])
    print(f"audio: at most {np.abs(late[:, 1]).max():.0f} ms from the video, last measured at {late[-1, 0]:.2f} s")
    for name, run in (("stream", whole), ("published patches", published)):
        iou = per_minute(run["seconds"], "iou")
        print(f"IoU, {name}: {iou[0]:.3f} in the first minute, {iou[-1]:.3f} in minute {len(iou)}")
    print(f"{len(whole['seconds']) / whole['passed']:.0f} seconds of video per second")
    draw(arguments.plot, minute, whole, published)


if __name__ == "__main__":
    main()
