"""How fast is the optimized model, compared with the plain formulation of the same network and with its backbone alone?

    python benchmarks/inference.py
    python benchmarks/inference.py --presets resnet50 --clips 1 --compile
    python benchmarks/inference.py --presets resnet50 --clips 1 --onnx
    python benchmarks/inference.py --presets pvt_v2_b5 --clips 1 --profile
    python benchmarks/inference.py --presets pvt_v2_b5 --num-labels 71 --clips 1 --frames 10 --real-frames 5
    python benchmarks/inference.py --threads 1 --processor-time
    python benchmarks/inference.py --device cuda --clips 1 8 --compile
    python benchmarks/inference.py --audio-encoder --clips 1 --num-labels 1 --dtypes float32 --threads 1   # docs/benchmarks/sizes.md

For every setting the variants run alternately, round after round, in one process, so that other load on the machine affects
all of them: plain (benchmarks/plain_pcmanet.py), optimized (`model.for_inference()`) and backbone (the visual backbone alone,
as transformers runs it), in every data type; with `--onnx` also the file that examples/export_onnx.py writes for the
optimized model in float32, run by onnxruntime. Times are medians with quartiles; ratios are computed within each
round, then their median. With `--processor-time` and one thread they are ratios of work, even on a busy machine,
because waiting time is not counted. The audio encoder is excluded, because audio is passed as `audio_embeds`, unless
`--audio-encoder` is given.

Memory is the peak that a forward pass adds to the memory of the process or the GPU, which includes weights and inputs. On a
CPU each variant runs in a new process; after one forward pass, which loads code and starts threads, the heap is trimmed, the
kernel's high-water mark of resident memory is reset, and it is read after the second pass. glibc is set to return freed
memory: by default it keeps between none and all of it, depending on the order of allocation sizes (see
`--keep-freed-memory`). On a GPU the value is PyTorch's own count.

Weights and frames are random, because the amount of work does not depend on their values.
"""

import argparse
import copy
import ctypes
import multiprocessing
import os
import platform
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from model_cost import feature_shape
from plain_pcmanet import PlainPCMANet
from torch import nn
from transformers import AutoModelForSemanticSegmentation

from modeling_pcmanet import PCMANetConfig
from modeling_pcmanet.configuration_encoders import audio_embedding_size
from modeling_pcmanet.modeling_audio_encoders import embed_audio
from pcmanet.examples.export_onnx import export, load


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MEGABYTE = 1e6
Key = TypeVar("Key")
# Behavior of the published code, so that the outputs of plain and optimized are equal.
PUBLISHED = {"token_layout": "scrambled", "padded_frames": "zeroed"}
# Part of the network to the names of its modules in the plain network and in the optimized model.
PARTS = {
    "backbone": r"backbone",
    "neck": r"(stages\.\d\.)?neck(\.\d)?",
    "AVGA": r"(stages\.\d\.)?group_attention(\.\d)?",
    "QSCA": r"(stages\.\d\.)?cross_attention(\.\d)?",
    "GF": r"(stages\.\d\.)?fusion(\.\d)?",
    "heads": r"stages\.\d\.head|heads\.\d",
}


@dataclass(frozen=True)
class Setting:
    """The computation to measure.

    Attributes:
        preset: Preset of the configuration.
        num_labels: 1 for the binary task, 71 for AVSBench-semantic.
        clips: Clips per batch.
        frames: Frames per clip.
        real_frames: Number of frames that are not padding.
        size: Height and width in pixels.
        device: `"cpu"` or `"cuda"`.
        threads: CPU threads.
        has_audio_encoder: Whether the audio encoder runs too; audio is passed as its embeddings otherwise.
    """

    preset: str
    num_labels: int
    clips: int
    frames: int
    real_frames: int
    size: int
    device: str
    threads: int
    has_audio_encoder: bool = False

    def __str__(self) -> str:
        padded = "" if self.real_frames == self.frames else f" ({self.real_frames} of them real)"
        classes = "binary" if self.num_labels == 1 else f"{self.num_labels} classes"
        clips = "1 clip" if self.clips == 1 else f"{self.clips} clips"
        audio = " with audio encoder" if self.has_audio_encoder else ""
        return f"{self.preset}{audio}, {classes}, {clips} of {self.frames} frames{padded} at {self.size} x {self.size}"


@dataclass(frozen=True)
class Variant:
    """One implementation in a data type.

    Attributes:
        kind: `"plain"`, `"optimized"`, `"onnxruntime"`, `"backbone"`, or `"encoders"`, backbone and audio encoder.
        dtype: A name in `DTYPES`.
        compile_mode: Mode of `torch.compile`; None does not compile.
    """

    kind: str
    dtype: str
    compile_mode: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}, {self.dtype}{', compiled' if self.compile_mode else ''}"


class Encoders(nn.Module):
    """Visual backbone and audio encoder alone, as transformers runs them."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone, self.audio_encoder = model.model.backbone, model.model.audio_encoder

    def forward(self, pixel_values: torch.Tensor, input_features: torch.Tensor) -> torch.Tensor:
        """Return the coarsest feature map; the inputs are those of the model."""
        embed_audio(self.audio_encoder, input_features.flatten(0, 1))
        return self.backbone(pixel_values.flatten(0, 1)).feature_maps[-1]


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--presets", nargs="+", default=["pvt_v2_b5", "resnet50", "small", "tiny"])
    parser.add_argument("--num-labels", nargs="+", type=int, default=[1, 71])
    parser.add_argument("--clips", nargs="+", type=int, default=[1, 4], help="clips per batch")
    parser.add_argument("--frames", type=int, default=5, help="frames per clip")
    parser.add_argument("--real-frames", type=int, help="frames that are not padding (default: all)")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--rounds", type=int, default=9, help="runs of each variant")
    parser.add_argument("--audio-encoder", action="store_true", help="run the audio encoder too")
    parser.add_argument("--processor-time", action="store_true", help="instead of wall time, for a busy machine")
    parser.add_argument(
        "--compile", action="store_true", help="also torch.compile of plain and optimized (minutes each)"
    )
    parser.add_argument(
        "--onnx", action="store_true", help="also the optimized model on onnxruntime, on a CPU (minutes each)"
    )
    parser.add_argument("--profile", action="store_true", help="print milliseconds by part of the network instead")
    parser.add_argument("--keep-freed-memory", action="store_true", help="let glibc keep freed memory, its default")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    options = parser.parse_args()
    if options.onnx and options.device != "cpu":
        parser.error("--onnx runs on the CPU only: leave --device out")
    return options


def build_model(setting: Setting) -> nn.Module:
    """Build a random model; without padding, it has the published behavior, so that outputs can be compared."""
    torch.manual_seed(0)
    switches = PUBLISHED if setting.real_frames == setting.frames else {}
    config = PCMANetConfig.from_preset(setting.preset, num_labels=setting.num_labels, **switches)
    return AutoModelForSemanticSegmentation.from_config(config).eval()


def build_batch(setting: Setting) -> dict[str, torch.Tensor]:
    """Draw random frames and features or embeddings of audio, with a mask if frames are padding."""
    generator = torch.Generator().manual_seed(1)
    clips, config = (setting.clips, setting.frames), PCMANetConfig.from_preset(setting.preset).audio_config
    batch = {"pixel_values": torch.randn(*clips, 3, setting.size, setting.size, generator=generator)}
    if setting.has_audio_encoder:
        batch["input_features"] = torch.randn(*clips, *feature_shape(config), generator=generator)
    else:
        batch["audio_embeds"] = torch.rand(*clips, audio_embedding_size(config), generator=generator)
    if setting.real_frames < setting.frames:
        batch["frame_mask"] = (torch.arange(setting.frames) < setting.real_frames).expand(*clips)
    return {name: values.to(setting.device) for name, values in batch.items()}


def build_run(
    variant: Variant, model: nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[Callable[[], torch.Tensor], nn.Module]:
    """Build one variant from the model, which is not modified.

    Returns:
        The function to time, which returns the finest logits (or feature map), and its module.
    """
    dtype, device = DTYPES[variant.dtype], batch["pixel_values"].device
    batch = {name: x.to(dtype) if x.is_floating_point() else x for name, x in batch.items()}
    if variant.kind == "optimized":
        module = model.for_inference(dtype).to(device)
    else:
        module = copy.deepcopy(model).to(device, dtype)
        parts = {"plain": PlainPCMANet, "encoders": Encoders, "backbone": lambda copied: copied.model.backbone}
        module = parts[variant.kind](module)
    called = torch.compile(module, mode=variant.compile_mode) if variant.compile_mode else module
    runs = {
        "plain": lambda: called(**batch)[-1],
        "optimized": lambda: called(**batch).logits,
        "encoders": lambda: called(**batch),
        "backbone": lambda: called(batch["pixel_values"].flatten(0, 1)).feature_maps[-1],
    }
    return runs[variant.kind], module


def build_onnx_run(setting: Setting, model: nn.Module, batch: dict[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Export the optimized model in float32, and load the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        # Two clips, so that the number of clips in the file is not fixed to one.
        export(model.for_inference(), build_batch(replace(setting, clips=2)), path)
        run = load(path)
    return lambda: run(batch)


def time_rounds(
    runs: Mapping[Key, Callable[[], torch.Tensor]], rounds: int, clock: Callable[[], float]
) -> dict[Key, list[float]]:
    """Time the variants alternately, in seconds; the first two runs of each are not counted."""
    seconds = defaultdict(list)
    for current in range(rounds + 2):
        for variant, run in runs.items():
            started = clock()
            if run().is_cuda:
                torch.cuda.synchronize()
            if current >= 2:
                seconds[variant].append(clock() - started)
    return seconds


def peak_extra_memory(setting: Setting, variant: Variant) -> float:
    """Measure the megabytes that one forward pass adds at its peak; runs in a separate process."""
    torch.set_num_threads(setting.threads)
    model = build_model(setting)
    with torch.inference_mode():
        run, _ = build_run(variant, model, build_batch(setting))
        del model
        run()
        return cuda_peak(run) if setting.device == "cuda" else _resident_peak(run)


def cuda_peak(run: Callable[[], torch.Tensor]) -> float:
    """Measure the megabytes that a call adds at its peak to what PyTorch holds on the GPU."""
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - held) / MEGABYTE


def _resident_peak(run: Callable[[], torch.Tensor]) -> float:
    """Read the kernel's high-water mark, after returning free memory of the heap."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    held = status("VmRSS")
    run()
    return (status("VmHWM") - held) / MEGABYTE


def status(field: str) -> float:
    """Return the bytes of a field of /proc/self/status."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def measure_memory(setting: Setting, variants: list[Variant], keep_freed: bool = False) -> dict[Variant, float]:
    """Run every variant in a new process; without `keep_freed`, large blocks are returned to the kernel when freed."""
    if not keep_freed:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(256 * 1024)
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for variant in variants:
        with context.Pool(1) as pool:
            peaks[variant] = pool.apply(peak_extra_memory, (setting, variant))
    return peaks


def difference(runs: dict[Variant, Callable[[], torch.Tensor]], variant: Variant) -> str:
    """Return the largest difference from the plain float32 logits, relative to the largest of these."""
    expected = runs[Variant("plain", "float32")]().float()
    return f"{((runs[variant]().float() - expected).abs().max() / expected.abs().max()).item():.1e}"


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    for cells in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(cells)} |", flush=True)
    print()


def quartiles(values: list[float], digits: int) -> str:
    """Format the median and both quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:.{digits}f} [{low:.{digits}f}-{high:.{digits}f}]"


def compare(setting: Setting, options: argparse.Namespace) -> None:
    """Print the table of one setting."""
    variants = [Variant(kind, dtype) for dtype in options.dtypes for kind in ("plain", "optimized", "backbone")]
    memory = {} if options.no_memory else measure_memory(setting, variants, options.keep_freed_memory)
    if options.compile:
        variants += [Variant(kind, dtype, "default") for dtype in options.dtypes for kind in ("plain", "optimized")]
    model, batch = build_model(setting), build_batch(setting)
    with torch.inference_mode():
        runs = {variant: build_run(variant, model, batch)[0] for variant in variants}
        if options.onnx:
            variants.append(Variant("onnxruntime", "float32"))
            runs[variants[-1]] = build_onnx_run(setting, model, batch)
        seconds = time_rounds(runs, options.rounds, time.process_time if options.processor_time else time.perf_counter)
        has_equal_outputs = setting.real_frames == setting.frames
        differences = {
            variant: difference(runs, variant)
            for variant in variants
            if has_equal_outputs and variant.kind != "backbone"
        }
    print(f"**{setting}**\n")
    header = ["", "ms per batch", "clips/s", "frames/s", "times plain float32", "times plain of its type"]
    rows = [row(setting, variant, seconds, memory, differences) for variant in variants]
    print_table([*header, "extra memory, MB", "of plain float32", "difference"], rows)


def row(
    setting: Setting,
    variant: Variant,
    seconds: dict[Variant, list[float]],
    memory: dict[Variant, float],
    differences: dict[Variant, str],
) -> list[str]:
    """Return one row of the table."""
    own_seconds = seconds[variant]
    baselines = (Variant("plain", "float32"), Variant("plain", variant.dtype))
    ratios = [
        quartiles([plain / other for plain, other in zip(seconds[baseline], own_seconds, strict=True)], 2)
        for baseline in baselines
    ]
    clips_per_second = setting.clips / statistics.median(own_seconds)
    megabytes, fraction = "", ""
    if variant in memory:
        megabytes, fraction = f"{memory[variant]:.0f}", f"{memory[variant] / memory[baselines[0]]:.2f}"
    return [
        str(variant),
        quartiles([1000 * x for x in own_seconds], 0),
        f"{clips_per_second:.2f}",
        f"{clips_per_second * setting.real_frames:.1f}",
        *ratios,
        megabytes,
        fraction,
        differences.get(variant, ""),
    ]


def profile(setting: Setting, options: argparse.Namespace) -> None:
    """Print milliseconds and fractions by part of the network."""
    model, batch = build_model(setting), build_batch(setting)
    rows = []
    with torch.inference_mode():
        for variant in (Variant(kind, dtype) for dtype in options.dtypes for kind in ("plain", "optimized")):
            run, module = build_run(variant, model, batch)
            rows.append([str(variant), *profile_parts(run, module, options.rounds)])
    print(f"**{setting}**, milliseconds per batch by part\n")
    print_table(["", "all", *PARTS, "rest"], rows)


def profile_parts(run: Callable[[], torch.Tensor], module: nn.Module, rounds: int) -> list[str]:
    """Return the median milliseconds of the complete network, of each part with its fraction, and of the rest."""
    current: dict[str, float] = {}

    def clock() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    for name, child in module.named_modules():
        for part, pattern in PARTS.items():
            if re.fullmatch(pattern, name):
                # Subtract the time before the module, add the time after it.
                child.register_forward_pre_hook(lambda *_, part=part: current.update({part: current[part] - clock()}))
                child.register_forward_hook(lambda *_, part=part: current.update({part: current[part] + clock()}))
    measured = defaultdict(list)
    for _ in range(rounds + 2):
        current.update(dict.fromkeys(PARTS, 0.0))
        started = clock()
        run()
        total = clock() - started
        for part, value in (("all", total), *current.items(), ("rest", total - sum(current.values()))):
            measured[part].append(1000 * value)
    medians = {part: statistics.median(values[2:]) for part, values in measured.items()}
    total = medians.pop("all")
    return [f"{total:.0f}", *(f"{median:.0f} ({median / total:.0%})" for median in medians.values())]


def describe_machine(options: argparse.Namespace) -> str:
    """Describe the processor or GPU, its vector units, threads, versions and load."""
    information = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", information)[1]
    family = "/".join(re.search(rf"{name}\s*: (.*)", information)[1] for name in ("cpu family", "model", "stepping"))
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {unit}" in information]
    machine = f"{model} (family/model/stepping {family}; {', '.join(units)}), {options.threads} threads"
    if options.device == "cuda":
        machine = f"{torch.cuda.get_device_name()}, on {machine}"
    libraries = "MKL and oneDNN" if torch.backends.mkl.is_available() else "oneDNN, no MKL"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{machine}, {platform.system()}, torch {torch.__version__} with {libraries}; load averages {load}"


def main() -> None:
    """Print the command, the machine and one table for every setting."""
    options = parse_args()
    torch.set_num_threads(options.threads)
    print(f"`python {shlex.join(sys.argv)}`\n\n{describe_machine(options)}; {options.rounds} rounds.\n")
    real_frames = options.frames if options.real_frames is None else options.real_frames
    for preset in options.presets:
        for num_labels in options.num_labels:
            for clips in options.clips:
                sizes = (clips, options.frames, real_frames, options.size)
                setting = Setting(preset, num_labels, *sizes, options.device, options.threads, options.audio_encoder)
                (profile if options.profile else compare)(setting, options)


if __name__ == "__main__":
    main()
