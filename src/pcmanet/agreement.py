"""Measure once how well bfloat16 masks of trained weights agree with float32 masks, and store the result with them.

    python -m pcmanet.agreement MODEL --data examples/paired_data/real_world.yaml --name avss
    python -m pcmanet.agreement MODEL --data AVSBench --name s4 --clips 500
    python -m pcmanet.agreement MODEL    # on generated Sounding Shapes

Writes `bfloat16_agreement` to MODEL/config.json, where `dtype="auto"` reads it. `pcmanet train` does the same with its
validation clips at the end of training. The clips must be of the kind that the model was trained for, and none of them
may be a training clip.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetProcessor
from modeling_pcmanet.modeling_audio_encoders import load_strict
from pcmanet.dataset_scripts.avsbench import load_avsbench
from pcmanet.dataset_scripts.avsbench.layouts import NAMES
from pcmanet.dataset_scripts.avsbench.rows import OPTIONS
from pcmanet.dataset_scripts.collation import ClipCollator, real_frames
from pcmanet.dataset_scripts.metrics import ClipMetrics, build_metrics
from pcmanet.dataset_scripts.metrics.segmentation import Protocol
from pcmanet.dataset_scripts.paired import Library, PairedClips, is_paired_data, read_settings
from pcmanet.dataset_scripts.sounding_shapes import SoundingShapes
from pcmanet.files import write_text
from pcmanet.options import positive_integer


CLIPS = 200  # default; with more clips, the result changes in the fourth digit
SEED = 2026  # of generated clips; training uses 0
INPUTS = ("pixel_values", "input_features", "audio_embeds", "frame_mask")


@torch.inference_mode()
def measure_agreement(
    model: PCMANetForAudioVisualSegmentation, batches: Iterable[Mapping[str, torch.Tensor]]
) -> float:
    """Compare the masks of the optimized model in bfloat16 with those in float32.

    Args:
        model: A trained model in float32.
        batches: Inputs of the model, as the processor or a collator returns them.

    Returns:
        Their mean IoU, in [0, 1], under the official protocol of AVSBench with the masks in float32 as the target: the mean
        over clips of the mean over frames. With several classes it is strict: a class with a few pixels in one mask
        and none in the other counts as 0 in that frame.
    """
    metrics = build_metrics(model.config.num_labels or 1)
    exact, rounded = model.for_inference(torch.float32), model.for_inference(torch.bfloat16)
    for batch in batches:
        inputs = {name: batch[name].to(model.device) for name in INPUTS if name in batch}
        expected = to_masks(exact(**inputs).logits)
        metrics.update(rounded(**inputs).logits.float(), expected, real_frames(inputs))
    return mean_iou(metrics)


def to_masks(logits: torch.Tensor) -> torch.Tensor:
    """Return class indices (batch, frames, height, width); binary: 1 if the probability is above one half."""
    return (logits[:, :, 0] > 0).long() if logits.shape[2] == 1 else logits.argmax(2)


def mean_iou(metrics: ClipMetrics, protocol: Protocol = "official") -> float:
    """Return the mean IoU; with several classes, over those that are present."""
    results = metrics.compute(protocol)
    return results.get("miou_seen_classes", results["miou"])


def write_agreement(folder: Path, agreement: float) -> None:
    """Write an agreement to the configuration in the folder of a model; its other fields are not changed."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"bfloat16_agreement": round(agreement, 4)}
    write_text(file, json.dumps(dict(sorted(config.items())), indent=2) + "\n")


def read_batches(
    arguments: argparse.Namespace, processor: PCMANetProcessor, *, binary: bool
) -> Iterator[Mapping[str, torch.Tensor]]:
    """Read the clips one by one."""
    collate = ClipCollator(processor, binary)
    for clip in islice(find_clips(arguments, processor, binary=binary), arguments.clips):
        yield collate([clip])


def find_clips(arguments: argparse.Namespace, processor: PCMANetProcessor, *, binary: bool) -> Iterable[Any]:
    """Return the clips that the options select."""
    if arguments.data is None:
        height, width = (processor.image_processor.size[name] for name in ("height", "width"))
        task = "ms3" if binary else "avss"
        shapes = SoundingShapes(task, "test", length=arguments.clips, seed=SEED, height=height, width=width)
        return map(shapes.__getitem__, range(arguments.clips))
    if is_paired_data(arguments.data):
        library = Library(read_settings(arguments.data), progress=True)
        paired = PairedClips(library, arguments.name, arguments.split, length=arguments.clips, seed=SEED)
        return map(paired.__getitem__, range(arguments.clips))
    made_binary = binary and arguments.name in OPTIONS["binary"]  # s4 and ms3 always are
    return load_avsbench(arguments.data, arguments.name, split=arguments.split, streaming=True, binary=made_binary)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", type=Path, help="folder of a model with its processor")
    parser.add_argument("--data", type=Path, help="AVSBench, a folder of clips, or the YAML file of paired data")
    parser.add_argument("--name", choices=NAMES, help="dataset (default: avss)")
    parser.add_argument("--split", help="split of the data (default: val)")
    parser.add_argument("--clips", type=positive_integer, default=CLIPS, help=f"maximum clips (default: {CLIPS})")
    arguments = parser.parse_args()
    if arguments.data is None and (arguments.name or arguments.split):
        parser.error("--name and --split require --data")
    arguments.name, arguments.split = arguments.name or "avss", arguments.split or "val"
    model = load_strict(PCMANetForAudioVisualSegmentation, arguments.model, dtype=torch.float32)
    processor = PCMANetProcessor.from_pretrained(arguments.model)
    batches = read_batches(arguments, processor, binary=model.config.num_labels == 1)
    agreement = measure_agreement(model, tqdm(batches, total=arguments.clips, unit="clip"))
    write_agreement(arguments.model, agreement)
    sys.stdout.write(f"mIoU between the masks in bfloat16 and float32: {agreement:.4f}, in {arguments.model}\n")


if __name__ == "__main__":
    main()
