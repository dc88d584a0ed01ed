"""Export a checkpoint as one file for onnxruntime, compare it with the checkpoint and measure its speed.

    python examples/export_onnx.py                                     # the demo model, to model.onnx
    python examples/export_onnx.py OWNER/NAME --output network.onnx    # Hub id or folder of a model
    python examples/export_onnx.py OWNER/NAME --size 256 448           # for frames of another size
    python examples/export_onnx.py OWNER/NAME --audio audio_embeds     # without the audio encoder: the input is its embeddings
    python examples/export_onnx.py OWNER/NAME --output network.pt2     # for torch.export.load, instead of ONNX

Needs `pip install 'pcmanet[onnx]'`, except for a .pt2 file. The file contains the optimized model in float32. Its inputs are
those of the processor, `pixel_values`, `input_features` and `frame_mask`, for any number of clips and frames at one frame size,
and its output is `logits`. To run it:

    session = onnxruntime.InferenceSession("model.onnx")
    batch = processor(videos="clip.mp4", return_tensors="np")
    (logits,) = session.run(["logits"], dict(batch))

Weights are inside the file; from 1.5 GB on, in a second file next to it, `model.onnx.data`, to be moved with it.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from modeling_pcmanet import PCMANetConfig, PCMANetProcessor
from pcmanet.checkpoints import load_model
from pcmanet.files import demo_file
from pcmanet.options import positive_integer


ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
EXPORTED_MASK = ((True, True, False), (True, True, True))
# Numbers of clips and frames other than those in the export, without and with padding.
CHECKED_MASKS = (((True,) * 5,), ((True, False), (True, True), (False, True)))
TOLERANCE = 1e-4  # of the largest logit
ROUNDS = 7

Batch = dict[str, torch.Tensor]
Run = Callable[[Batch], torch.Tensor]


class LogitsOnly(nn.Module):
    """The optimized model with its logits as the only output, because an exported file has no output classes.

    Args:
        optimized: The result of `model.for_inference()`.
    """

    def __init__(self, optimized: nn.Module):
        super().__init__()
        self.optimized = optimized

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_features: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the logits (batch, frames, num_labels, height, width)."""
        return self.optimized(pixel_values, input_features, audio_embeds, frame_mask).logits


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "model", nargs="?", default=str(demo_file("demo_model")), help="Hub id or folder (default: the demo model)"
    )
    parser.add_argument("--output", type=Path, default=Path("model.onnx"), help="file to write, *.onnx or *.pt2")
    parser.add_argument(
        "--size",
        nargs=2,
        type=positive_integer,
        metavar=("HEIGHT", "WIDTH"),
        help="frame size (default: that of the processor)",
    )
    parser.add_argument(
        "--audio",
        choices=("input_features", "audio_embeds"),
        default="input_features",
        help="audio input: features from the processor, or embeddings of the audio encoder (default: %(default)s)",
    )
    args = parser.parse_args()
    if args.output.suffix not in (".onnx", ".pt2"):
        parser.error(f"Expected --output to end in .onnx or .pt2, got {str(args.output)!r}")
    if not args.output.parent.is_dir():
        parser.error(f"Folder {str(args.output.parent)!r} of --output {str(args.output)!r} not found: create it first")
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if args.output.suffix == ".onnx" and missing:
        parser.error(f"ONNX needs {', '.join(missing)}, which are not installed: pip install 'pcmanet[onnx]'")
    return args


def input_shapes(
    config: PCMANetConfig, processor: PCMANetProcessor, audio_input: str, size: tuple[int, int]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the inputs of one frame.

    Args:
        config: Configuration of the model.
        processor: Its processor.
        audio_input: `"input_features"` or `"audio_embeds"`.
        size: (height, width) of the frames.
    """
    if audio_input == "audio_embeds":
        return {"pixel_values": (3, *size), audio_input: (config.audio_embeds_size,)}
    rate = processor.feature_extractor.sampling_rate
    one = processor(
        videos=np.zeros((1, *size, 3), np.uint8), audio=np.zeros(rate), sampling_rate=rate, return_tensors="pt"
    )
    return {"pixel_values": (3, *size), audio_input: tuple(one[audio_input].shape[2:])}


def make_batch(shapes: dict[str, tuple[int, ...]], frame_mask: tuple[tuple[bool, ...], ...]) -> Batch:
    """Draw random frames and audio.

    Args:
        shapes: Shapes of the inputs of one frame.
        frame_mask: (batch, frames), False for padding.
    """
    mask = torch.tensor(frame_mask)
    generator = torch.Generator().manual_seed(mask.numel())
    batch = {name: torch.randn(*mask.shape, *shape, generator=generator) for name, shape in shapes.items()}
    return {**batch, "frame_mask": mask}


def export(optimized: nn.Module, batch: Batch, path: Path) -> None:
    """Export the optimized model for any number of clips and frames.

    Args:
        optimized: The result of `model.for_inference()`.
        batch: Example inputs, with at least two clips and frames: torch.export fixes a size of one.
        path: File to write; the suffix selects the format.
    """
    dimensions = {0: torch.export.Dim("batch"), 1: torch.export.Dim("frames")}
    shapes = dict.fromkeys(batch, dimensions)
    program = torch.export.export(LogitsOnly(optimized), (), batch, dynamic_shapes=shapes)
    if path.suffix == ".pt2":
        torch.export.save(program, path)
        return
    # Names again, because torch.export replaces them with symbols; all inputs share those of the first.
    named = {**dict.fromkeys(batch, {}), "pixel_values": {0: "batch", 1: "frames"}}
    options = {"output_names": ["logits"], "dynamic_shapes": named, "dynamo": True, "verbose": False}
    torch.onnx.export(program, **options).save(path)


def load(path: Path) -> Run:
    """Load an exported file, to run on as many CPU threads as PyTorch."""
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
        return lambda batch: module(**batch)
    # Imported here, because a .pt2 file does not need it.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(["logits"], {name: x.numpy() for name, x in batch.items()})[0])


def median_milliseconds(runs: dict[str, Run], batch: Batch) -> dict[str, float]:
    """Time the runs alternately, so that other load affects all of them; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run(batch)
            seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * statistics.median(values[1:]) for name, values in seconds.items()}


def compare(runs: dict[str, Run], batches: list[Batch]) -> float:
    """Print times and differences of the model, the optimized model and the file.

    Args:
        runs: These three, in this order.
        batches: Their inputs.

    Returns:
        The largest difference between the logits of model and file, relative to the largest logit of its batch.
    """
    model, optimized, file = runs
    cells = [
        "clips x frames",
        *(f"{name}, ms" for name in runs),
        f"{file}, speed relative to {optimized}",
        "difference",
    ]
    print(f"| {' | '.join(cells)} |\n|{' --- |' * len(cells)}")
    differences = []
    for batch in batches:
        expected, given = runs[model](batch), runs[file](batch)
        differences.append(((given - expected).abs().max() / expected.abs().max()).item())
        times = median_milliseconds(runs, batch)
        clips, frames = batch["frame_mask"].shape
        cells = [f"{clips} x {frames}", *(f"{value:.1f}" for value in times.values())]
        print(f"| {' | '.join(cells)} | {times[optimized] / times[file]:.2f} | {differences[-1]:.1e} |")
    return torch.tensor(differences).max().item()  # NaN among them stays NaN


@torch.inference_mode()
def main() -> None:
    """Export the file, load it and compare it with the model."""
    args = parse_args()
    try:
        model, processor = load_model(args.model)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    model.float()
    square = processor.image_processor.size
    size = args.size or (square["height"], square["width"])
    optimized = model.for_inference()
    shapes = input_shapes(model.config, processor, args.audio, tuple(size))
    export(optimized, make_batch(shapes, EXPORTED_MASK), args.output)
    megabytes = args.output.stat().st_size / 1e6
    print(
        f"{args.output}: {megabytes:.0f} MB, for frames of {size[0]} x {size[1]} and any number of clips and frames\n"
    )

    runs = {"model": lambda batch: model(**batch).logits, "optimized": lambda batch: optimized(**batch).logits}
    runs[args.output.name] = load(args.output)
    difference = compare(runs, [make_batch(shapes, mask) for mask in CHECKED_MASKS])
    if not difference <= TOLERANCE:
        raise SystemExit(
            f"The logits of {args.output} differ from those of the model by {difference:.1e} of the largest logit, expected at "
            f"most {TOLERANCE}. Do not use the file; try another version of torch or onnxruntime."
        )


if __name__ == "__main__":
    main()
