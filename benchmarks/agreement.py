"""Do masks stay the same in fewer bits? And what does VGGish gain by them?

    python benchmarks/agreement.py                 # masks of the demo models
    python benchmarks/agreement.py --clips 1000
    python benchmarks/agreement.py --sound         # processor time of the full-size VGGish instead

Masks: the demo models segment held-out clips of Sounding Shapes, those that examples/evaluate_sounding_shapes.py measures
on. Each form's masks are held against those of the model in float32, by the measures of AVSBench with these masks in the
place of the truth: the mean over clips of the mean IoU over frames, for several classes per class and then over those
that were seen. A frame that float32 leaves empty counts the share of pixels that the form leaves empty (binary), or the
IoU of the background (several classes). With several classes this is strict: a class of which one of the two shows a few
pixels and the other none counts 0 in that frame. Beside it: the same with all pixels summed before any ratio is taken, the
share of pixels that differ, the mIoU with the truth, and the number of logits that are not finite.

Sound: medians of processor time, one thread, forms in turn, weights at random; VGGish waits for its weights, so that it
matters little what they are; in brackets, how many times as fast as float32. The embeddings are off by their distance from
those in float32, over the length of these.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from inference import print_table, time_rounds
from torch import nn
from torch.ao.quantization import quantize_dynamic
from tqdm.auto import tqdm

from modeling_pcmanet import PCMANetForAudioVisualSegmentation, VGGishConfig, VGGishModel
from pcmanet.dataset_scripts.metrics import BinaryMetrics, SemanticMetrics
from pcmanet.examples.evaluate_sounding_shapes import held_out_clips


EXAMPLES = Path(__file__).parent.parent / "examples"
PATCHES = (1, 5, 40)
ROUNDS = 9


def int8_linear(module: nn.Module) -> nn.Module:
    """Copy a module with the weights of its linear layers, and what they multiply, in int8."""
    return quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)


def int8_sound(model: PCMANetForAudioVisualSegmentation) -> nn.Module:
    """Build the form in float32, but for the linear layers of VGGish."""
    form = model.for_inference()
    form.audio_encoder = int8_linear(form.audio_encoder)
    return form


FORMS: dict[str, Callable[[PCMANetForAudioVisualSegmentation], nn.Module]] = {
    "float32": lambda model: model.for_inference(),
    "bfloat16": lambda model: model.for_inference(torch.bfloat16),
    # As the pipeline does with dtype="bfloat16": weights are rounded before BatchNorms are folded in, and after.
    "bfloat16, of a model in bfloat16": lambda model: copy.deepcopy(model).bfloat16().for_inference(),
    # What of it is due to the weights alone.
    "float32, weights rounded to bfloat16": lambda model: copy.deepcopy(model).bfloat16().float().for_inference(),
    "float16": lambda model: model.for_inference(torch.float16),
    "sound in bfloat16": lambda model: model.for_inference(audio_dtype=torch.bfloat16),
    "linear layers of the sound in int8": int8_sound,
}


def parse_args() -> argparse.Namespace:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["demo_model", "demo_model_semantic"], help="in examples/")
    parser.add_argument("--clips", type=int, default=200, help="held-out clips (default: 200)")
    parser.add_argument("--seed", type=int, default=2026, help="of the held-out clips (training uses 0)")
    parser.add_argument("--sound", action="store_true", help="time VGGish instead")
    return parser.parse_args()


class Agreement:
    """What one form's masks have in common with those of the model, and with the truth.

    Args:
        num_labels: Of the model.
    """

    def __init__(self, num_labels: int):
        self.with_model, self.with_truth = (
            BinaryMetrics() if num_labels == 1 else SemanticMetrics(num_labels) for _ in range(2)
        )
        self.different = self.pixels = self.not_finite = 0

    def update(self, logits: torch.Tensor, expected: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
        """Count a batch.

        Args:
            logits: (batch, frames, num_labels, height, width) of the form.
            expected: (batch, frames, height, width), masks of the model.
            batch: With labels.
        """
        logits, real = logits.float(), batch["frame_mask"]
        self.with_model.update(logits, expected, real)
        self.with_truth.update(logits, batch["labels"], real, batch["annotated_frames"])
        self.different += (to_masks(logits) != expected)[real].sum().item()
        self.pixels += expected[real].numel()
        self.not_finite += (~logits.isfinite()).sum().item()

    def row(self) -> list[str]:
        """Cells of the table."""
        scores = (miou(self.with_model, "official"), miou(self.with_model, "dataset"))
        share = f"{self.different / self.pixels:.3%}"
        return [*(f"{x:.4f}" for x in scores), share, f"{miou(self.with_truth, 'official'):.4f}", str(self.not_finite)]


def to_masks(logits: torch.Tensor) -> torch.Tensor:
    """Class indexes (batch, frames, height, width) of logits; binary: 1 where the probability is above one half."""
    return (logits[:, :, 0] > 0).long() if logits.shape[2] == 1 else logits.argmax(2)


def miou(metrics: BinaryMetrics | SemanticMetrics, protocol: str) -> float:
    """Mean IoU, over the classes that were seen."""
    results = metrics.compute(protocol)
    return results.get("miou_seen_classes", results["miou"])


@torch.inference_mode()
def measure_masks(name: str, options: argparse.Namespace) -> list[list[str]]:
    """Rows of one demo model."""
    model = PCMANetForAudioVisualSegmentation.from_pretrained(EXAMPLES / name).eval()
    num_labels = model.config.num_labels
    clips, collate = held_out_clips(EXAMPLES / name, num_labels, options.clips, options.seed)
    forms = {title: build(model) for title, build in FORMS.items()}
    agreements = {title: Agreement(num_labels) for title in forms}
    for index in tqdm(range(options.clips), desc=name):
        batch = collate([clips[index]])
        inputs = {key: batch[key] for key in ("pixel_values", "input_features", "frame_mask")}
        expected = to_masks(model(**inputs).logits)
        for title, form in forms.items():
            agreements[title].update(form(**inputs).logits, expected, batch)
    return [[name, title, *agreement.row()] for title, agreement in agreements.items()]


def embed(form: nn.Module, log_mel: torch.Tensor) -> torch.Tensor:
    """Embed patches (patches, 1, 96, 64) in the form's own data type."""
    return form(log_mel.to(form.dtype)).audio_embeds


@torch.inference_mode()
def measure_sound() -> list[list[str]]:
    """Rows of the full-size VGGish, one per form."""
    torch.manual_seed(0)
    exact = VGGishModel(VGGishConfig()).eval().to(memory_format=torch.channels_last)
    forms = {
        "float32": exact,
        "bfloat16": copy.deepcopy(exact).bfloat16(),
        "float16": copy.deepcopy(exact).half(),
        "linear layers in int8": int8_linear(exact),
    }
    rows = {title: [title] for title in forms}
    for patches in PATCHES:
        log_mel = torch.randn(patches, 1, 96, 64)
        runs = {title: partial(embed, form, log_mel) for title, form in forms.items()}
        seconds = time_rounds(runs, ROUNDS, time.process_time)
        for title, own in seconds.items():
            ratio = statistics.median(x / y for x, y in zip(seconds["float32"], own, strict=True))
            rows[title].append(f"{1000 * statistics.median(own):.1f} ms ({ratio:.2f})")
    expected = exact(log_mel).audio_embeds
    for title, form in forms.items():
        given = embed(form, log_mel).float()
        rows[title].append(f"{(given - expected).norm() / expected.norm():.1%}")
    return list(rows.values())


def main() -> None:
    """Measure and print."""
    options = parse_args()
    torch.set_num_threads(1)
    if options.sound:
        print_table(["VGGish", *(f"patches: {patches}" for patches in PATCHES), "embeddings off by"], measure_sound())
        return
    rows = [row for name in options.models for row in measure_masks(name, options)]
    agreement = ["mIoU with float32", "pixels summed", "pixels that differ"]
    print_table(["model", "form", *agreement, "mIoU with the truth", "not finite"], rows)


if __name__ == "__main__":
    main()
