"""How many seconds of video does one core segment in a second, and where does the time go?

    python benchmarks/video.py
    python benchmarks/video.py --seconds 60 --height 1080 --width 1920 --networks pvt_v2_b5
    python benchmarks/video.py --clip my_video.mp4

Measures the parts of `segmenter.stream`: decode (frames and audio), processor (resizing, resampling, log-mel), network (in
overlapping windows), post-process (blending, masks at the size of the video) and write (a PNG per mask). The full presets
have random weights: the network takes the same time, post-processing takes longer, because no pixel is certain. Counts
CPU seconds of one thread, so that other processes on the machine matter little; in the stream itself the first two parts
run in parallel with the others. Drawing the overlay, which is done
for every frame of the video and not only for those of the network, is listed separately.
"""

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSemanticSegmentation, AutoProcessor, Pipeline

from modeling_pcmanet import (
    PCMANetConfig,
    PCMANetForAudioVisualSegmentation,
    PCMANetProcessor,
)
from modeling_pcmanet.media_pcmanet import MediaReader, iterate_frames
from pcmanet.dataset_scripts.sounding_shapes import SoundingShapes, write_clip
from pcmanet.pipelines import AudioVisualSegmentationPipeline
from pcmanet.pipelines.audio_visual_segmentation import collate_windows
from pcmanet.pipelines.colors import class_colors
from pcmanet.pipelines.overlay import write_masks, write_overlay_video


EXAMPLES = Path(__file__).parent.parent / "examples"
AVSS_CLASSES = 71
PARTS = ("decode", "processor", "network", "post-process", "write")
NETWORKS = ("demo_model", "demo_model_semantic", "resnet50", "pvt_v2_b5", "pvt_v2_b5, 71 classes")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seconds", type=int, default=18, help="length of the video; 18 are two windows")
    parser.add_argument("--height", type=int, default=720, help="height of the video in pixels")
    parser.add_argument("--width", type=int, default=1280, help="width of the video in pixels")
    parser.add_argument("--clip", type=Path, help="your own video in place of Sounding Shapes")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS, help="which rows to print")
    return parser.parse_args()


def build(network: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Pipeline:
    """Return the pipeline of a row: a demo model, or a preset with random weights."""
    if network.startswith("demo_model"):
        model = PCMANetForAudioVisualSegmentation.from_pretrained(EXAMPLES / network)
        processor = AutoProcessor.from_pretrained(EXAMPLES / network)
    else:
        preset, _, classes = network.partition(", ")
        config = PCMANetConfig.from_preset(preset, **({"num_labels": AVSS_CLASSES} if classes else {}))
        torch.manual_seed(0)
        model = AutoModelForSemanticSegmentation.from_config(config)
        processor = PCMANetProcessor.from_pretrained_backbones(audio=config.audio_config)
    return AudioVisualSegmentationPipeline(model=model.eval().to(dtype), processor=processor, device=device)


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a function, and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def decode(video: Path) -> None:
    """Read all frames for the network and all audio, without using them."""
    with MediaReader(video) as reader:
        for _ in reader.frames():
            continue
        for _ in reader.audio():
            continue


def measure(segmenter: Pipeline, video: Path, folder: Path) -> tuple[dict[str, float], float]:
    """Return CPU seconds by part, and of drawing the overlay."""
    segmenter.preprocess(video)
    decoding, _ = cpu_seconds(lambda: decode(video))
    reading, windows = cpu_seconds(lambda: list(segmenter.preprocess(video)))
    inputs = [collate_windows([window.frames], segmenter.dtype) for window in windows]
    segmenter.forward(inputs[0])
    network, outputs = cpu_seconds(lambda: [segmenter.forward(batch)["logits"][0] for batch in inputs])
    pairs = list(zip(windows, outputs, strict=True))
    deciding, results = cpu_seconds(lambda: segmenter.postprocess(pairs))

    id2label, size = segmenter.model.config.id2label, windows[0].frames[0]["original_size"]
    writing, _ = cpu_seconds(lambda: write_masks(folder, results, id2label, size[::-1]))
    colors = class_colors(id2label)

    def overlay() -> None:
        with closing(iterate_frames(video)) as frames:
            write_overlay_video(folder / "overlay.mp4", frames, results, colors, audio=video)

    drawing, _ = cpu_seconds(overlay)
    parts = (decoding, max(0.0, reading - decoding), network, deciding, writing)
    return dict(zip(PARTS, parts, strict=True)), drawing


def row(network: str, video: Path, seconds: float, folder: Path) -> str:
    """Return one row of the table."""
    parts, drawing = measure(build(network), video, folder)
    total = sum(parts.values())
    cells = [f"{1000 * part / seconds:.1f}" for part in parts.values()]
    others = 1 - parts["network"] / total
    return (
        f"| {network} | {seconds / total:.2f} | {' | '.join(cells)} | {others:.1%} | {1000 * drawing / seconds:.0f} |"
    )


def main() -> None:
    """Print the table."""
    arguments = parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        video = arguments.clip
        if video is None:
            video = Path(folder) / "video.mp4"
            sizes = {"height": arguments.height, "width": arguments.width, "num_frames": arguments.seconds}
            write_clip(SoundingShapes("avss", length=1, **sizes), 0, video)
        times = [seconds for seconds, _ in iterate_frames(video)]
        seconds = times[-1] + float(np.median(np.diff(times)))
        print(f"`python {shlex.join(sys.argv)}`\n\nCPU milliseconds per second of video, one thread\n")
        print(f"| network | video seconds per second | {' | '.join(PARTS)} | all but the network | overlay |")
        print(f"|---|{'---|' * (len(PARTS) + 3)}")
        for network in arguments.networks:
            print(row(network, video, seconds, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
