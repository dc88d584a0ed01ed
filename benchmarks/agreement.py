"""Do masks change in half precision and int8, and how much faster is VGGish?

    python benchmarks/agreement.py                 # masks of the demo models
    python benchmarks/agreement.py --clips 1000
    python benchmarks/agreement.py --audio         # processor time of the full-size VGGish instead

Masks: the demo models segment held-out clips of Sounding Shapes, the ones of examples/evaluate_sounding_shapes.py. The masks
of each variant of the optimized model are compared with those of the model in float32, by the metrics of AVSBench with these
masks as the target: the mean over clips of the mean IoU over frames. With several classes, it is computed per class
and then averaged over the classes present. A frame without objects in float32 counts the fraction of pixels that the
variant leaves empty (binary), or the IoU of the background (several classes). With several classes this is strict: a
class that has a few pixels in one mask and none in the other counts as 0 in that frame. Further columns: the same with
all pixels summed before any ratio is computed, the fraction of pixels that differ, the mIoU with the ground truth, and
the number of logits that are not finite.

Audio: medians of processor time, one thread, variants alternating, random weights; in parentheses, the speed relative to
float32. The difference of the embeddings is the norm of their difference from those in float32, relative to the norm
of the latter.
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
from pcmanet.agreement import mean_iou, to_masks
from pcmanet.dataset_scripts.collation import real_frames
from pcmanet.dataset_scripts.metrics import build_metrics
from pcmanet.examples.evaluate_sounding_shapes import held_out_clips


EXAMPLES = Path(__file__).parent.parent / "examples"
PATCHES = (1, 5, 40)
ROUNDS = 9


def int8_linear(module: nn.Module) -> nn.Module:
    """Copy a module with the weights and inputs of its linear layers in int8."""
    return quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)


def int8_audio_encoder(model: PCMANetForAudioVisualSegmentation) -> nn.Module:
    """Build the optimized model in float32 with the linear layers of VGGish in int8."""
    optimized = model.for_inference()
    optimized.audio_encoder = int8_linear(optimized.audio_encoder)
    return optimized


VARIANTS: dict[str, Callable[[PCMANetForAudioVisualSegmentation], nn.Module]] = {
    "float32": lambda model: model.for_inference(),
    "bfloat16": lambda model: model.for_inference(torch.bfloat16),
    # As in `pipeline(..., dtype="bfloat16")`: weights are rounded before and after BatchNorms are folded.
    "bfloat16, of a model in bfloat16": lambda model: copy.deepcopy(model).bfloat16().for_inference(),
    # The effect of the weights alone.
    "float32, weights rounded to bfloat16": lambda model: copy.deepcopy(model).bfloat16().float().for_inference(),
    "float16": lambda model: model.for_inference(torch.float16),
    "audio encoder in bfloat16": lambda model: model.for_inference(audio_dtype=torch.bfloat16),
    "linear layers of the audio encoder in int8": int8_audio_encoder,
}


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--models", nargs="+", default=["demo_model", "demo_model_semantic"], help="in examples/")
    parser.add_argument("--clips", type=int, default=200, help="held-out clips (default: 200)")
    parser.add_argument("--seed", type=int, default=2026, help="seed of the held-out clips (training uses 0)")
    parser.add_argument("--audio", action="store_true", help="time VGGish instead")
    return parser.parse_args()


class Agreement:
    """Agreement of the masks of one variant with those of the model and with the ground truth.

    Args:
        num_labels: Number of labels of the model.
    """

    def __init__(self, num_labels: int):
        self.with_model, self.with_truth = build_metrics(num_labels), build_metrics(num_labels)
        self.different = self.pixels = self.not_finite = 0

    def update(self, logits: torch.Tensor, expected: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
        """Add a batch.

        Args:
            logits: (batch, frames, num_labels, height, width) of the variant.
            expected: (batch, frames, height, width), masks of the model.
            batch: The batch, with labels.
        """
        logits, real = logits.float(), real_frames(batch)
        self.with_model.update(logits, expected, real)
        self.with_truth.update(logits, batch["labels"], real, batch["annotated_frames"])
        self.different += (to_masks(logits) != expected)[real].sum().item()
        self.pixels += expected[real].numel()
        self.not_finite += (~logits.isfinite()).sum().item()

    def row(self) -> list[str]:
        """Return the cells of the table."""
        scores = (mean_iou(self.with_model), mean_iou(self.with_model, "dataset"))
        fraction = f"{self.different / self.pixels:.3%}"
        return [
            *(f"{x:.4f}" for x in scores),
            fraction,
            f"{mean_iou(self.with_truth):.4f}",
            str(self.not_finite),
        ]


@torch.inference_mode()
def measure_masks(name: str, options: argparse.Namespace) -> list[list[str]]:
    """Return the rows of one demo model."""
    model = PCMANetForAudioVisualSegmentation.from_pretrained(EXAMPLES / name).eval()
    num_labels = model.config.num_labels
    clips, collate = held_out_clips(EXAMPLES / name, num_labels, options.clips, options.seed)
    variants = {title: build(model) for title, build in VARIANTS.items()}
    agreements = {title: Agreement(num_labels) for title in variants}
    for index in tqdm(range(options.clips), desc=name):
        batch = collate([clips[index]])
        inputs = {key: values for key, values in batch.items() if key not in ("labels", "annotated_frames")}
        expected = to_masks(model(**inputs).logits)
        for title, variant in variants.items():
            agreements[title].update(variant(**inputs).logits, expected, batch)
    return [[name, title, *agreement.row()] for title, agreement in agreements.items()]


def embed(encoder: nn.Module, log_mel: torch.Tensor) -> torch.Tensor:
    """Embed patches (patches, 1, 96, 64) in the data type of the encoder."""
    return encoder(log_mel.to(encoder.dtype)).audio_embeds


@torch.inference_mode()
def measure_audio() -> list[list[str]]:
    """Return the rows of the full-size VGGish, one per variant."""
    torch.manual_seed(0)
    exact = VGGishModel(VGGishConfig()).eval().to(memory_format=torch.channels_last)
    variants = {
        "float32": exact,
        "bfloat16": copy.deepcopy(exact).bfloat16(),
        "float16": copy.deepcopy(exact).half(),
        "linear layers in int8": int8_linear(exact),
    }
    rows = {title: [title] for title in variants}
    for patches in PATCHES:
        log_mel = torch.randn(patches, 1, 96, 64)
        runs = {title: partial(embed, variant, log_mel) for title, variant in variants.items()}
        seconds = time_rounds(runs, ROUNDS, time.process_time)
        for title, variant_seconds in seconds.items():
            ratio = statistics.median(x / y for x, y in zip(seconds["float32"], variant_seconds, strict=True))
            rows[title].append(f"{1000 * statistics.median(variant_seconds):.1f} ms ({ratio:.2f})")
    expected = exact(log_mel).audio_embeds
    for title, variant in variants.items():
        given = embed(variant, log_mel).float()
        rows[title].append(f"{(given - expected).norm() / expected.norm():.1%}")
    return list(rows.values())


def main() -> None:
    """Measure and print."""
    options = parse_args()
    torch.set_num_threads(1)
    if options.audio:
        print_table(
            ["VGGish", *(f"patches: {patches}" for patches in PATCHES), "difference of embeddings"], measure_audio()
        )
        return
    rows = [row for name in options.models for row in measure_masks(name, options)]
    agreement = ["mIoU with float32", "pixels summed", "pixels that differ"]
    print_table(["model", "optimized model", *agreement, "mIoU with ground truth", "not finite"], rows)


if __name__ == "__main__":
    main()
