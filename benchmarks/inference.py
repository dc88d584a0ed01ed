"""How fast is the inference form, next to the plain formulation of the same network and to its backbone alone?

    python benchmarks/inference.py
    python benchmarks/inference.py --presets resnet50 --clips 1 --compile
    python benchmarks/inference.py --presets resnet50 --clips 1 --onnx
    python benchmarks/inference.py --presets pvt_v2_b5 --clips 1 --profile
    python benchmarks/inference.py --presets pvt_v2_b5 --num-labels 71 --clips 1 --frames 10 --real-frames 5
    python benchmarks/inference.py --threads 1 --processor-time
    python benchmarks/inference.py --device cuda --clips 1 8 --compile

For every setting the contestants run in turn, round after round, in one process, so that what else the machine does meets
all of them: plain (benchmarks/plain_pcmanet.py), form (`model.for_inference()`) and backbone (the visual backbone alone,
as transformers runs it), in every data type; with `--onnx` also the file that examples/export_onnx.py makes of the form in
float32, run by onnxruntime. Times are medians with quartiles; ratios are taken within each round, then
their median. With `--processor-time` and one thread they are ratios of work done, on a machine however busy: what waits
for its turn is not counted. VGGish is left out on all sides: sound comes as `audio_embeds`.

Memory is what the forward adds at its peak to what the process or the GPU held before, weights and inputs included. On
a CPU each contestant runs in a fresh process; after one forward, which loads code and starts threads, the heap is trimmed,
the kernel's high-water mark of resident memory is reset, and it is read after the second. glibc is told to give back what
is freed: left to itself it keeps between nothing and all of it, by the order in which sizes come (`--keep-freed-memory`
shows that). On a GPU it is PyTorch's own count.

Weights and frames are random: equal settings are equal work, whatever they hold.
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
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from plain_pcmanet import PlainPCMANet
from torch import nn
from transformers import AutoModelForUniversalSegmentation

from modeling_pcmanet import PCMANetConfig
from pcmanet.examples.export_onnx import export, load


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MEGABYTE = 1e6
# What the published code does, so that plain and form have equal outputs to compare.
PUBLISHED = {"token_layout": "scrambled", "padded_frames": "zeroed"}
# Part of the network to the names of its modules in the plain network and in the form.
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
    """What is computed.

    Attributes:
        preset: Preset of the configuration.
        num_labels: 1 for the binary task, 71 for AVSBench-semantic.
        clips: Clips per batch.
        frames: Frames per clip.
        real_frames: How many of them are not padding.
        size: Height and width in pixels.
        device: `"cpu"` or `"cuda"`.
        threads: CPU threads.
    """

    preset: str
    num_labels: int
    clips: int
    frames: int
    real_frames: int
    size: int
    device: str
    threads: int

    def __str__(self) -> str:
        padded = "" if self.real_frames == self.frames else f" ({self.real_frames} of them real)"
        classes = "binary" if self.num_labels == 1 else f"{self.num_labels} classes"
        clips = "1 clip" if self.clips == 1 else f"{self.clips} clips"
        return f"{self.preset}, {classes}, {clips} of {self.frames} frames{padded} at {self.size} x {self.size}"


@dataclass(frozen=True)
class Contestant:
    """One way to compute a setting: `"plain"`, `"form"`, `"onnxruntime"` or `"backbone"`, in a data type, compiled or not."""

    kind: str
    dtype: str
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.kind}, {self.dtype}{', compiled' if self.compiled else ''}"


def parse_args() -> argparse.Namespace:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["pvt_v2_b5", "resnet50", "tiny"])
    parser.add_argument("--num-labels", nargs="+", type=int, default=[1, 71])
    parser.add_argument("--clips", nargs="+", type=int, default=[1, 4], help="clips per batch")
    parser.add_argument("--frames", type=int, default=5, help="frames per clip")
    parser.add_argument("--real-frames", type=int, help="how many of them are not padding; all if not given")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--rounds", type=int, default=9, help="how often each contestant runs")
    parser.add_argument("--processor-time", action="store_true", help="not wall time: for a machine that others use")
    parser.add_argument("--compile", action="store_true", help="also torch.compile of plain and form (minutes each)")
    parser.add_argument("--onnx", action="store_true", help="also the form on onnxruntime, on a CPU (minutes each)")
    parser.add_argument("--profile", action="store_true", help="milliseconds by part of the network instead")
    parser.add_argument("--keep-freed-memory", action="store_true", help="as glibc does by itself")
    parser.add_argument("--no-memory", action="store_true", help="leave the measurement of memory out")
    options = parser.parse_args()
    if options.onnx and options.device != "cpu":
        parser.error("--onnx runs on the CPU: leave --device out")
    return options


def build_model(setting: Setting) -> nn.Module:
    """Build our model with random weights; as published where no frame is padding, so that outputs can be compared."""
    torch.manual_seed(0)
    switches = PUBLISHED if setting.real_frames == setting.frames else {}
    config = PCMANetConfig.from_preset(setting.preset, num_labels=setting.num_labels, **switches)
    return AutoModelForUniversalSegmentation.from_config(config).eval()


def build_batch(setting: Setting) -> dict[str, torch.Tensor]:
    """Random frames and embeddings, and a mask where frames are padding."""
    generator = torch.Generator().manual_seed(1)
    clips = (setting.clips, setting.frames)
    batch = {
        "pixel_values": torch.randn(*clips, 3, setting.size, setting.size, generator=generator),
        "audio_embeds": torch.rand(*clips, 128, generator=generator),
    }
    if setting.real_frames < setting.frames:
        batch["frame_mask"] = (torch.arange(setting.frames) < setting.real_frames).expand(*clips)
    return {name: values.to(setting.device) for name, values in batch.items()}


def build_run(
    contestant: Contestant, model: nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[Callable[[], torch.Tensor], nn.Module]:
    """Build one contestant from the model, which it leaves as it is.

    Returns:
        What to time, giving the finest logits (or feature map), and the module behind it.
    """
    dtype, device = DTYPES[contestant.dtype], batch["pixel_values"].device
    batch = {name: x.to(dtype) if x.is_floating_point() else x for name, x in batch.items()}
    if contestant.kind == "form":
        module = model.for_inference(dtype).to(device)
    else:
        module = copy.deepcopy(model).to(device, dtype)
        module = PlainPCMANet(module) if contestant.kind == "plain" else module.model.backbone
    called = torch.compile(module) if contestant.compiled else module
    runs = {
        "plain": lambda: called(**batch)[-1],
        "form": lambda: called(**batch).logits,
        "backbone": lambda: called(batch["pixel_values"].flatten(0, 1)).feature_maps[-1],
    }
    return runs[contestant.kind], module


def build_onnx_run(setting: Setting, model: nn.Module, batch: dict[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Export the form in float32, and load what was exported."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "form.onnx"
        # Two clips, so that the file is not for one.
        export(model.for_inference(), build_batch(replace(setting, clips=2)), path)
        run = load(path)
    return lambda: run(batch)


def time_rounds(
    runs: dict[Contestant, Callable[[], torch.Tensor]], rounds: int, clock: Callable[[], float]
) -> dict[Contestant, list[float]]:
    """Time the contestants in turn, in seconds; the first two runs of each are not counted."""
    seconds = defaultdict(list)
    for current in range(rounds + 2):
        for contestant, run in runs.items():
            started = clock()
            if run().is_cuda:
                torch.cuda.synchronize()
            if current >= 2:
                seconds[contestant].append(clock() - started)
    return seconds


def peak_extra_memory(setting: Setting, contestant: Contestant) -> float:
    """Megabytes that one forward adds at its peak; runs in a process of its own."""
    torch.set_num_threads(setting.threads)
    model = build_model(setting)
    with torch.inference_mode():
        run, _ = build_run(contestant, model, build_batch(setting))
        del model
        run()
        return _cuda_peak(run) if setting.device == "cuda" else _resident_peak(run)


def _cuda_peak(run: Callable[[], torch.Tensor]) -> float:
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - held) / MEGABYTE


def _resident_peak(run: Callable[[], torch.Tensor]) -> float:
    """Read the kernel's high-water mark, after giving back what is free in the heap."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    held = _status("VmRSS")
    run()
    return (_status("VmHWM") - held) / MEGABYTE


def _status(field: str) -> float:
    """Bytes of a field of /proc/self/status."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def measure_memory(
    setting: Setting, contestants: list[Contestant], keep_freed: bool = False
) -> dict[Contestant, float]:
    """Run every contestant in a fresh process; unless told otherwise, large blocks go back to the kernel when freed."""
    if not keep_freed:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(256 * 1024)
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for contestant in contestants:
        with context.Pool(1) as pool:
            peaks[contestant] = pool.apply(peak_extra_memory, (setting, contestant))
    return peaks


def difference(runs: dict[Contestant, Callable[[], torch.Tensor]], contestant: Contestant) -> str:
    """Largest difference of the logits from the plain float32 ones, relative to the largest of these."""
    expected = runs[Contestant("plain", "float32")]().float()
    return f"{((runs[contestant]().float() - expected).abs().max() / expected.abs().max()).item():.1e}"


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print Markdown."""
    for cells in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(cells)} |", flush=True)
    print()


def quartiles(values: list[float], digits: int) -> str:
    """Median and the two quartiles around it."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:.{digits}f} [{low:.{digits}f}-{high:.{digits}f}]"


def compare(setting: Setting, options: argparse.Namespace) -> None:
    """Print the table of one setting."""
    contestants = [Contestant(kind, dtype) for dtype in options.dtypes for kind in ("plain", "form", "backbone")]
    memory = {} if options.no_memory else measure_memory(setting, contestants, options.keep_freed_memory)
    if options.compile:
        contestants += [Contestant(kind, dtype, True) for dtype in options.dtypes for kind in ("plain", "form")]
    model, batch = build_model(setting), build_batch(setting)
    with torch.inference_mode():
        runs = {contestant: build_run(contestant, model, batch)[0] for contestant in contestants}
        if options.onnx:
            contestants.append(Contestant("onnxruntime", "float32"))
            runs[contestants[-1]] = build_onnx_run(setting, model, batch)
        seconds = time_rounds(runs, options.rounds, time.process_time if options.processor_time else time.perf_counter)
        has_equal_outputs = setting.real_frames == setting.frames
        differences = {
            contestant: difference(runs, contestant)
            for contestant in contestants
            if has_equal_outputs and contestant.kind != "backbone"
        }
    print(f"**{setting}**\n")
    header = ["", "ms per batch", "clips/s", "frames/s", "times plain float32", "times plain of its type"]
    rows = [row(setting, contestant, seconds, memory, differences) for contestant in contestants]
    print_table([*header, "extra memory, MB", "of plain float32", "difference"], rows)


def row(
    setting: Setting,
    contestant: Contestant,
    seconds: dict[Contestant, list[float]],
    memory: dict[Contestant, float],
    differences: dict[Contestant, str],
) -> list[str]:
    """One line of the table."""
    own = seconds[contestant]
    baselines = (Contestant("plain", "float32"), Contestant("plain", contestant.dtype))
    ratios = [
        quartiles([plain / form for plain, form in zip(seconds[baseline], own, strict=True)], 2)
        for baseline in baselines
    ]
    clips_per_second = setting.clips / statistics.median(own)
    megabytes, share = "", ""
    if contestant in memory:
        megabytes, share = f"{memory[contestant]:.0f}", f"{memory[contestant] / memory[baselines[0]]:.2f}"
    return [
        str(contestant),
        quartiles([1000 * x for x in own], 0),
        f"{clips_per_second:.2f}",
        f"{clips_per_second * setting.real_frames:.1f}",
        *ratios,
        megabytes,
        share,
        differences.get(contestant, ""),
    ]


def profile(setting: Setting, options: argparse.Namespace) -> None:
    """Print milliseconds and shares by part of the network."""
    model, batch = build_model(setting), build_batch(setting)
    rows = []
    with torch.inference_mode():
        for contestant in (Contestant(kind, dtype) for dtype in options.dtypes for kind in ("plain", "form")):
            run, module = build_run(contestant, model, batch)
            rows.append([str(contestant), *profile_parts(run, module, options.rounds)])
    print(f"**{setting}**, milliseconds per batch by part\n")
    print_table(["", "all", *PARTS, "rest"], rows)


def profile_parts(run: Callable[[], torch.Tensor], module: nn.Module, rounds: int) -> list[str]:
    """Median milliseconds of the whole, of each part with its share, and of the rest."""
    current: dict[str, float] = {}

    def clock() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    for name, child in module.named_modules():
        for part, pattern in PARTS.items():
            if re.fullmatch(pattern, name):
                # One clock that runs backwards before the module and forwards after it.
                child.register_forward_pre_hook(lambda *_, part=part: current.update({part: current[part] - clock()}))
                child.register_forward_hook(lambda *_, part=part: current.update({part: current[part] + clock()}))
    measured = defaultdict(list)
    for _ in range(rounds + 2):
        current.update(dict.fromkeys(PARTS, 0.0))
        started = clock()
        run()
        whole = clock() - started
        for part, value in (("all", whole), *current.items(), ("rest", whole - sum(current.values()))):
            measured[part].append(1000 * value)
    medians = {part: statistics.median(values[2:]) for part, values in measured.items()}
    whole = medians.pop("all")
    return [f"{whole:.0f}", *(f"{median:.0f} ({median / whole:.0%})" for median in medians.values())]


def describe_machine(options: argparse.Namespace) -> str:
    """Processor or GPU, its vector units, threads, versions and how busy it was."""
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
                setting = Setting(preset, num_labels, *sizes, options.device, options.threads)
                (profile if options.profile else compare)(setting, options)


if __name__ == "__main__":
    main()
