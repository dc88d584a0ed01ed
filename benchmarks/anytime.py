"""How much time does it save that frames may stop at a stage that is sure of them, and what does it cost?

    python benchmarks/anytime.py                                             # the demo models; writes docs/anytime.png
    python benchmarks/anytime.py --models runs/mine/best --clips 50 --picture /tmp/anytime.png
    python benchmarks/anytime.py --presets resnet50 pvt_v2_b5                # the most it can save for large networks

Segments held-out clips of Sounding Shapes, those that examples/evaluate_sounding_shapes.py measures on, with the form for
inference under every `early_exit_threshold`, and the same pictures once more in silence. Time is processor time of one thread
and of the whole network, VGGish included; within a clip the budgets take turns, so that what else the machine does meets
all of them. mIoU is that of the official protocol.

With `--presets` weights and frames are random, sound comes as `audio_embeds`, and every frame ends at the last stage, then
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
from pcmanet.dataset_scripts.evaluation import markdown_table
from pcmanet.dataset_scripts.metrics import BinaryMetrics, SemanticMetrics
from pcmanet.examples.evaluate_sounding_shapes import held_out_clips


ROOT = Path(__file__).parent.parent
DEMO_MODELS = [ROOT / "examples" / name for name in ("demo_model", "demo_model_semantic")]
BUDGETS = (None, 0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
STAGES = range(1, 5)
ROUNDS = 5  # of large networks
COLOR, FLOOR_COLOR = "#0b6bcb", "#eeeeee"
LABELS_APART = 0.02  # mIoU: of points that lie closer only the first is labelled, and budget 0


@dataclass
class Walk:
    """What one budget gives.

    Attributes:
        budget: The `early_exit_threshold`, or None.
        metrics: Of its masks.
        seconds: Of all clips.
        silent_seconds: Of the same pictures in silence.
        stages_used: Stage by frame of all clips.
    """

    budget: float | None
    metrics: BinaryMetrics | SemanticMetrics
    seconds: float = 0.0
    silent_seconds: float = 0.0
    stages_used: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it is called."""
        return "none" if self.budget is None else f"{self.budget:g}"

    @property
    def miou(self) -> float:
        """Of the official protocol."""
        return self.metrics.compute("official")["miou"]

    @property
    def milliseconds(self) -> float:
        """Per frame."""
        return 1000 * self.seconds / len(self.stages_used)

    def run(self, form: nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, list[int], float]:
        """Segment a clip; gives its logits, the stage of each frame, and seconds."""
        started = time.process_time()
        output = form(**inputs, early_exit_threshold=self.budget)
        seconds = time.process_time() - started
        real = inputs["frame_mask"]
        used = [STAGES[-1]] * int(real.sum()) if output.stages_used is None else output.stages_used[real].tolist()
        return output.logits, used, seconds


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", type=Path, default=DEMO_MODELS, help="folders of checkpoints")
    parser.add_argument("--clips", type=int, default=200, help="held-out clips (default: 200)")
    parser.add_argument("--presets", nargs="+", help="time these networks instead of the models")
    parser.add_argument("--seed", type=int, default=2026, help="of the held-out clips (training uses 0)")
    parser.add_argument(
        "--picture", type=Path, default=ROOT / "docs" / "anytime.png", help="where to draw, PNG or SVG"
    )
    return parser.parse_args()


@torch.inference_mode()
def measure(model: Path, options: argparse.Namespace) -> list[Walk]:
    """Walk through all clips under every budget."""
    form = PCMANetForAudioVisualSegmentation.from_pretrained(model).for_inference()
    num_labels = form.config.num_labels
    clips, collate = held_out_clips(model, num_labels, options.clips, options.seed)
    walks = [Walk(budget, BinaryMetrics() if num_labels == 1 else SemanticMetrics(num_labels)) for budget in BUDGETS]
    for index in tqdm(range(options.clips), desc=model.name):
        clip, silent = (collate([made]) for made in (clips[index], clips.negative(index, "silence")))
        labels, annotated_frames = clip.pop("labels"), clip.pop("annotated_frames")
        silent = {name: silent[name] for name in clip}
        form(**clip)
        # Not counted: it loads code, and finds in the cache what made the clip. What else differs meets each in turn.
        first = index % len(walks)
        for walk in walks[first:] + walks[:first]:
            logits, used, seconds = walk.run(form, clip)
            walk.seconds += seconds
            walk.stages_used += used
            walk.metrics.update(logits, labels, clip["frame_mask"], annotated_frames)
            walk.silent_seconds += walk.run(form, silent)[2]
    return walks


def table(walks: list[Walk]) -> str:
    """Write the figures of one model as Markdown."""
    rows = []
    for walk in walks:
        frames = len(walk.stages_used)
        stopped = [f"{walk.stages_used.count(stage) / frames:.0%}" for stage in STAGES]
        rows.append(
            [
                walk.name,
                f"{walk.miou:.4f}",
                f"{walk.milliseconds:.2f}",
                f"{walk.seconds / walks[0].seconds:.2f}",
                f"{1000 * walk.silent_seconds / frames:.2f}",
                f"{sum(walk.stages_used) / frames:.2f}",
                *stopped,
            ]
        )
    header = ["budget", "mIoU", "ms per frame", "of the time", "ms in silence", "stages, mean"]
    return markdown_table([*header, *(f"end at {stage}" for stage in STAGES)], rows)


@torch.inference_mode()
def time_first_stage(preset: str) -> list[str]:
    """Cells of a preset: milliseconds per frame through all stages, through the first alone, and their ratio."""
    setting = Setting(preset, 1, clips=1, frames=5, real_frames=5, size=224, device="cpu", threads=1)
    form, batch = build_model(setting).for_inference(), build_batch(setting)
    runs = {budget: lambda budget=budget: form(**batch, early_exit_threshold=budget).logits for budget in (None, 1.0)}
    seconds = time_rounds(runs, ROUNDS, time.process_time)
    ratio = statistics.median(first / whole for whole, first in zip(seconds[None], seconds[1.0], strict=True))
    milliseconds = (1000 * statistics.median(seconds[budget]) / setting.frames for budget in runs)
    return [preset, *(f"{value:.0f}" for value in milliseconds), f"{ratio:.2f}"]


def draw(path: Path, results: Mapping[str, list[Walk]]) -> None:
    """Draw mIoU over time, a curve for each model."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(results), figsize=(5 * len(results), 4), squeeze=False, layout="constrained"
    )
    for (name, walks), axes in zip(results.items(), panels[0], strict=True):
        times, scores = [walk.milliseconds for walk in walks], [walk.miou for walk in walks]
        axes.axvspan(0, times[-1], color=FLOOR_COLOR, label="no budget saves this:\nbackbone, sound, first stage")
        axes.plot(times, scores, "o-", color=COLOR, markersize=5)
        axes.annotate("never stops", (times[0], scores[0]), (0, 8), textcoords="offset points", ha="center")
        axes.annotate("budget 0", (times[1], scores[1]), (0, -16), textcoords="offset points", ha="center")
        labelled = scores[:1]
        for walk, x, y in zip(walks[2:], times[2:], scores[2:], strict=True):
            if all(abs(y - other) > LABELS_APART for other in labelled):
                axes.annotate(walk.name, (x, y), (-6, 6), textcoords="offset points", ha="right")
                labelled.append(y)
        axes.set(title=name, xlabel="processor time, ms per frame", ylabel="mIoU", ylim=(0, 1))
        axes.set_xlim(0, 1.15 * max(times))
        axes.legend(loc="lower right", frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print the tables and draw the picture."""
    options = parse_args()
    torch.set_num_threads(1)
    print(f"`python {shlex.join(sys.argv)}`\n")
    if options.presets:
        header = ["", "all stages, ms per frame", "first stage only", "of the time"]
        print(markdown_table(header, [time_first_stage(preset) for preset in options.presets]))
        return
    results = {}
    for model in options.models:
        results[model.name] = measure(model, options)
        print(f"**{model.name}**, {options.clips} clips\n\n{table(results[model.name])}")
    draw(options.picture, results)


if __name__ == "__main__":
    main()
