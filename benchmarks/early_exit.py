"""How much time does early exit save, and what does it cost?

    python benchmarks/early_exit.py                                             # the demo models; writes docs/benchmarks/early_exit.png
    python benchmarks/early_exit.py --models runs/mine/best --clips 50 --plot /tmp/early_exit.png
    python benchmarks/early_exit.py --presets resnet50 pvt_v2_b5                # the upper limit for large networks

Segments held-out clips of Sounding Shapes, the ones of examples/evaluate_sounding_shapes.py, with the optimized model and every
`early_exit_threshold`, and the same frames once more with silent audio. Time is the processor time of one thread for
the complete network, including VGGish. The thresholds alternate within each clip, so that other load on the machine
affects all of them. mIoU is that of the official protocol.

With `--presets`, weights and frames are random, audio is passed as `audio_embeds`, and every frame ends at the last stage, then
at the first: medians of processor time for one clip of five frames of 224 x 224 pixels.
"""

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from inference import Setting, build_batch, build_model, time_rounds
from torch import nn
from tqdm.auto import tqdm

from modeling_pcmanet import PCMANetForAudioVisualSegmentation
from pcmanet.dataset_scripts.collation import real_frames
from pcmanet.dataset_scripts.evaluation import markdown_table
from pcmanet.dataset_scripts.metrics import ClipMetrics, build_metrics
from pcmanet.examples.evaluate_sounding_shapes import held_out_clips


ROOT = Path(__file__).parent.parent
DEMO_MODELS = [ROOT / "examples" / name for name in ("demo_model", "demo_model_semantic")]
THRESHOLDS = (None, 0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
STAGES = range(1, 5)
ROUNDS = 5  # for large networks
COLOR, FLOOR_COLOR = "#0b6bcb", "#eeeeee"
LABEL_DISTANCE = 0.02  # mIoU; of points closer than this, only the first and threshold 0 are labeled


@dataclass
class Measurement:
    """Results of one threshold.

    Attributes:
        threshold: The `early_exit_threshold`, or None.
        metrics: Metrics of the masks.
        seconds: Time of all clips.
        silent_seconds: Time of the same frames with silent audio.
        stages_used: Stage of each frame of all clips.
    """

    threshold: float | None
    metrics: ClipMetrics
    seconds: float = 0.0
    silent_seconds: float = 0.0
    stages_used: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Threshold as text."""
        return "none" if self.threshold is None else f"{self.threshold:g}"

    @property
    def miou(self) -> float:
        """MIoU of the official protocol."""
        return self.metrics.compute("official")["miou"]

    @property
    def milliseconds(self) -> float:
        """Milliseconds per frame."""
        return 1000 * self.seconds / len(self.stages_used)

    def run(self, optimized: nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, list[int], float]:
        """Segment a clip; return its logits, the stage of each frame, and seconds."""
        started = time.process_time()
        output = optimized(**inputs, early_exit_threshold=self.threshold)
        seconds = time.process_time() - started
        real = real_frames(inputs)
        used = [STAGES[-1]] * int(real.sum()) if output.stages_used is None else output.stages_used[real].tolist()
        return output.logits, used, seconds


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--models", nargs="+", type=Path, default=DEMO_MODELS, help="folders of checkpoints")
    parser.add_argument("--clips", type=int, default=200, help="held-out clips (default: 200)")
    parser.add_argument("--presets", nargs="+", help="time these networks instead of the models")
    parser.add_argument("--seed", type=int, default=2026, help="seed of the held-out clips (training uses 0)")
    parser.add_argument(
        "--plot", type=Path, default=ROOT / "docs" / "benchmarks" / "early_exit.png", help="plot to write, PNG or SVG"
    )
    return parser.parse_args()


@torch.inference_mode()
def measure(model: Path, options: argparse.Namespace) -> list[Measurement]:
    """Segment all clips with every threshold."""
    optimized = PCMANetForAudioVisualSegmentation.from_pretrained(model).for_inference()
    num_labels = optimized.config.num_labels
    clips, collate = held_out_clips(model, num_labels, options.clips, options.seed)
    measurements = [Measurement(threshold, build_metrics(num_labels)) for threshold in THRESHOLDS]
    for index in tqdm(range(options.clips), desc=model.name):
        clip, silent = (collate([made]) for made in (clips[index], clips.negative(index, "silence")))
        labels, annotated_frames = clip.pop("labels"), clip.pop("annotated_frames")
        silent = {name: silent[name] for name in clip}
        optimized(**clip)  # not counted: loads code and fills the caches
        # The thresholds take turns being the first.
        first = index % len(measurements)
        for measurement in measurements[first:] + measurements[:first]:
            logits, used, seconds = measurement.run(optimized, clip)
            measurement.seconds += seconds
            measurement.stages_used += used
            measurement.metrics.update(logits, labels, clip.get("frame_mask"), annotated_frames)
            measurement.silent_seconds += measurement.run(optimized, silent)[2]
    return measurements


def table(measurements: list[Measurement]) -> str:
    """Return the results of one model as Markdown."""
    rows = []
    for measurement in measurements:
        frames = len(measurement.stages_used)
        stopped = [f"{measurement.stages_used.count(stage) / frames:.0%}" for stage in STAGES]
        rows.append(
            [
                measurement.name,
                f"{measurement.miou:.4f}",
                f"{measurement.milliseconds:.2f}",
                f"{measurement.seconds / measurements[0].seconds:.2f}",
                f"{1000 * measurement.silent_seconds / frames:.2f}",
                f"{sum(measurement.stages_used) / frames:.2f}",
                *stopped,
            ]
        )
    header = ["threshold", "mIoU", "ms per frame", "relative time", "ms, silent audio", "mean stages"]
    return markdown_table([*header, *(f"end at {stage}" for stage in STAGES)], rows)


@torch.inference_mode()
def time_first_stage(preset: str) -> list[str]:
    """Return the cells of a preset: milliseconds per frame of all stages, of the first one only, and their ratio."""
    setting = Setting(preset, 1, clips=1, frames=5, real_frames=5, size=224, device="cpu", threads=1)
    optimized, batch = build_model(setting).for_inference(), build_batch(setting)
    runs = {
        threshold: lambda threshold=threshold: optimized(**batch, early_exit_threshold=threshold).logits
        for threshold in (None, 1.0)
    }
    seconds = time_rounds(runs, ROUNDS, time.process_time)
    ratio = statistics.median(first / complete for complete, first in zip(seconds[None], seconds[1.0], strict=True))
    milliseconds = (1000 * statistics.median(seconds[threshold]) / setting.frames for threshold in runs)
    return [preset, *(f"{value:.0f}" for value in milliseconds), f"{ratio:.2f}"]


def draw(path: Path, results: Mapping[str, list[Measurement]]) -> None:
    """Plot mIoU against time, one panel for each model."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(results), figsize=(5 * len(results), 4), squeeze=False, layout="constrained"
    )
    for (name, measurements), axes in zip(results.items(), panels[0], strict=True):
        times, scores = (
            [measurement.milliseconds for measurement in measurements],
            [measurement.miou for measurement in measurements],
        )
        axes.axvspan(0, times[-1], color=FLOOR_COLOR, label="always computed:\nbackbone, VGGish, first stage")
        axes.plot(times, scores, "o-", color=COLOR, markersize=5)
        axes.annotate("no early exit", (times[0], scores[0]), (0, 8), textcoords="offset points", ha="center")
        axes.annotate("threshold 0", (times[1], scores[1]), (0, -16), textcoords="offset points", ha="center")
        labeled = scores[:1]
        for measurement, x, y in zip(measurements[2:], times[2:], scores[2:], strict=True):
            if all(abs(y - other) > LABEL_DISTANCE for other in labeled):
                axes.annotate(measurement.name, (x, y), (-6, 6), textcoords="offset points", ha="right")
                labeled.append(y)
        axes.set(title=name, xlabel="processor time, ms per frame", ylabel="mIoU", ylim=(0, 1))
        axes.set_xlim(0, 1.15 * max(times))
        axes.legend(loc="lower right", frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print the tables and write the plot."""
    options = parse_args()
    torch.set_num_threads(1)
    print(f"`python {shlex.join(sys.argv)}`\n")
    if options.presets:
        header = ["", "all stages, ms per frame", "first stage only", "relative time"]
        print(markdown_table(header, [time_first_stage(preset) for preset in options.presets]))
        return
    results = {}
    for model in options.models:
        results[model.name] = measure(model, options)
        print(f"**{model.name}**, {options.clips} clips\n\n{table(results[model.name])}")
    draw(options.plot, results)


if __name__ == "__main__":
    main()
