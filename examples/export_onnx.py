"""Writes a checkpoint as one file that onnxruntime runs, checks it against the checkpoint, and says how fast it is.

    python examples/export_onnx.py                                     # the demo model, to model.onnx
    python examples/export_onnx.py OWNER/NAME --output network.onnx    # a model of the Hub, or the folder of one
    python examples/export_onnx.py OWNER/NAME --size 256 448           # for pictures of another size
    python examples/export_onnx.py OWNER/NAME --sound audio_embeds     # without VGGish: you give its embeddings
    python examples/export_onnx.py OWNER/NAME --output network.pt2     # for torch.export.load, in place of ONNX

Needs `pip install 'pcmanet[onnx]'`, but for a .pt2 file. What is written is the form for inference, in float32. The file
takes what the processor gives, `pixel_values`, `input_features` and `frame_mask`, for any number of clips and frames at one
size of picture, and gives `logits`. To run it:

    session = onnxruntime.InferenceSession("model.onnx")
    batch = processor(videos="clip.mp4", return_tensors="np")
    (logits,) = session.run(["logits"], dict(batch))

Weights lie in the file itself; from 1.5 GB on in a second one beside it, `model.onnx.data`, that has to move along.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from modeling_pcmanet import PCMANetConfig, PCMANetForAudioVisualSegmentation, PCMANetProcessor


DEMO_MODEL = Path(__file__).parent / "demo_model"
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
EXPORTED_MASK = ((True, True, False), (True, True, True))
# Other numbers of clips and frames than those of the export, without and with padding.
CHECKED_MASKS = (((True,) * 5,), ((True, False), (True, True), (False, True)))
TOLERANCE = 1e-4  # of the largest logit
ROUNDS = 7

Batch = dict[str, torch.Tensor]
Run = Callable[[Batch], torch.Tensor]


class TensorsInTensorOut(nn.Module):
    """The form for inference with its logits as they are: a file has no output classes.

    Args:
        form: What `model.for_inference()` gives.
    """

    def __init__(self, form: nn.Module):
        super().__init__()
        self.form = form

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_features: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (batch, frames, num_labels, height, width) of a batch as the model takes it."""
        return self.form(pixel_values, input_features, audio_embeds, frame_mask).logits


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(DEMO_MODEL), help="Hub id or folder (default: the demo model)")
    parser.add_argument("--output", type=Path, default=Path("model.onnx"), help="file to write, *.onnx or *.pt2")
    parser.add_argument(
        "--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="of pictures (default: the processor's)"
    )
    parser.add_argument(
        "--sound",
        choices=("input_features", "audio_embeds"),
        default="input_features",
        help="log-mel patches, as the processor gives them, or VGGish embeddings (default: %(default)s)",
    )
    args = parser.parse_args()
    if args.output.suffix not in (".onnx", ".pt2"):
        parser.error(f"--output is {str(args.output)!r}: expected a name that ends in .onnx or .pt2")
    if not args.output.parent.is_dir():
        parser.error(
            f"--output is {str(args.output)!r}, but there is no folder {str(args.output.parent)!r}: make it first"
        )
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if args.output.suffix == ".onnx" and missing:
        parser.error(f"ONNX needs {', '.join(missing)}, not installed here: pip install 'pcmanet[onnx]'")
    return args


def make_batch(
    config: PCMANetConfig, sound: str, size: tuple[int, int], frame_mask: tuple[tuple[bool, ...], ...]
) -> Batch:
    """Random pictures and sound; what is computed does not depend on what they show.

    Args:
        config: Of the network.
        sound: `"input_features"` or `"audio_embeds"`.
        size: (height, width) of the pictures.
        frame_mask: (batch, frames), False for padding.
    """
    audio, mask = config.audio_config, torch.tensor(frame_mask)
    generator = torch.Generator().manual_seed(mask.numel())
    shapes = {
        "pixel_values": (3, *size),
        "input_features": (1, audio.num_mel_frames, audio.num_mel_bins),
        "audio_embeds": (audio.embedding_size,),
    }
    names = ("pixel_values", sound)
    batch = {name: torch.randn(*mask.shape, *shapes[name], generator=generator) for name in names}
    return {**batch, "frame_mask": mask}


def export(form: nn.Module, batch: Batch, path: Path) -> None:
    """Writes the form for any number of clips and frames.

    Args:
        form: What `model.for_inference()` gives.
        batch: What its inputs look like; at least two clips and frames, or the file would be for one.
        path: File to write; its suffix says how.
    """
    dimensions = {0: torch.export.Dim("batch"), 1: torch.export.Dim("frames")}
    shapes = dict.fromkeys(batch, dimensions)
    program = torch.export.export(TensorsInTensorOut(form), (), batch, dynamic_shapes=shapes)
    if path.suffix == ".pt2":
        torch.export.save(program, path)
        return
    # The names again, which torch.export replaces by symbols of its own; all inputs share those of the first.
    named = {**dict.fromkeys(batch, {}), "pixel_values": {0: "batch", 1: "frames"}}
    options = {"output_names": ["logits"], "dynamic_shapes": named, "dynamo": True, "verbose": False}
    torch.onnx.export(program, **options).save(path)


def load(path: Path) -> Run:
    """Loads a file that `export` wrote, to run on as many CPU threads as PyTorch."""
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
        return lambda batch: module(**batch)
    # Here, because a .pt2 file needs none of it.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(["logits"], {name: x.numpy() for name, x in batch.items()})[0])


def median_milliseconds(runs: dict[str, Run], batch: Batch) -> dict[str, float]:
    """Times the runs in turn, so that what else the machine does meets all of them; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run(batch)
            seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * statistics.median(values[1:]) for name, values in seconds.items()}


def compare(runs: dict[str, Run], batches: list[Batch]) -> float:
    """Prints times and differences of the model, its form and the file.

    Args:
        runs: These three, in this order.
        batches: What to run them on.

    Returns:
        Largest difference between the logits of model and file, relative to the largest logit of its batch.
    """
    model, form, file = runs
    cells = ["clips x frames", *(f"{name}, ms" for name in runs), f"{file}, times as fast as {form}", "difference"]
    print(f"| {' | '.join(cells)} |\n|{' --- |' * len(cells)}")
    differences = []
    for batch in batches:
        expected, given = runs[model](batch), runs[file](batch)
        differences.append(((given - expected).abs().max() / expected.abs().max()).item())
        times = median_milliseconds(runs, batch)
        clips, frames = batch["frame_mask"].shape
        cells = [f"{clips} x {frames}", *(f"{value:.1f}" for value in times.values())]
        print(f"| {' | '.join(cells)} | {times[form] / times[file]:.2f} | {differences[-1]:.1e} |")
    return torch.tensor(differences).max().item()  # NaN among them stays NaN


@torch.inference_mode()
def main() -> None:
    """Writes the file, loads it again and holds it against the model."""
    args = parse_args()
    model = PCMANetForAudioVisualSegmentation.from_pretrained(args.model, dtype=torch.float32).eval()
    size = args.size
    if size is None:
        square = PCMANetProcessor.from_pretrained(args.model).image_processor.size
        size = (square["height"], square["width"])
    form = model.for_inference()
    export(form, make_batch(model.config, args.sound, size, EXPORTED_MASK), args.output)
    megabytes = args.output.stat().st_size / 1e6
    print(
        f"{args.output}: {megabytes:.0f} MB, for pictures of {size[0]} x {size[1]} and any number of clips and frames\n"
    )

    runs = {"model": lambda batch: model(**batch).logits, "form": lambda batch: form(**batch).logits}
    runs[args.output.name] = load(args.output)
    difference = compare(runs, [make_batch(model.config, args.sound, size, mask) for mask in CHECKED_MASKS])
    if not difference <= TOLERANCE:
        raise SystemExit(
            f"{args.output} gives logits that differ from the model's by {difference:.1e} of the largest, expected at "
            f"most {TOLERANCE}: do not use it. Another version of torch or onnxruntime may be right."
        )


if __name__ == "__main__":
    main()
