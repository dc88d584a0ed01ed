"""Measure what needs a GPU, in one command: speed, memory, training, equality with the CPU, synchronizations, video.

    python benchmarks/gpu.py                                             # everything, at most eight minutes
    python benchmarks/gpu.py --presets pvt_v2_b5 --budget 190 --output gpu.md
    python benchmarks/gpu.py --sections inference synchronizations --clips 1 32
    python benchmarks/gpu.py --device cpu --presets tiny --clips 1       # what can be tried without a GPU

Needs only this package and downloads nothing: weights and frames are random, because the amount of work does not
depend on their values, and the video is generated. Prints one Markdown table, each row as soon as it is measured, the
most important sections first. An error is printed in the row of its measurement, and rows for which the budget is too
short say so.

inference       milliseconds of a forward pass with the audio encoder, by network and data type, launched kernel by
                kernel or as one CUDA graph; "encoders" are backbone and audio encoder alone, as transformers runs them
synchronizations  how often a forward pass makes the CPU wait for the GPU, and where; should be 0
equality        masks and logits compared with those of the model on the CPU
training        a step with bfloat16 autocast: plain formulation and our network (benchmarks/training_step.py)
video           the pipeline from an mp4 of 1280x720 to masks, in bfloat16 and float32
compiled        the optimized model with torch.compile (mode reduce-overhead), and a compiled training step; minutes

"float32" uses no TF32, "TF32" uses it for convolutions and matrix products. Times are medians with quartiles; each run
includes the wait for its result. Memory is what PyTorch holds on the GPU in addition to weights and inputs at the peak
of a run; for training it includes weights and optimizer.
"""

import argparse
import gc
import shlex
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any


STARTED = time.monotonic()  # the imports below are part of the budget

# Modules that are not part of torch or transformers, and the packages that install them.
NEEDED = {
    "av": "av",
    "accelerate": "accelerate",
    "numpy": "numpy",
    "PIL": "pillow",
    "torchaudio": "torchaudio",
    "tqdm": "tqdm",
    "pcmanet": ".",
}
if missing := [package for module, package in NEEDED.items() if find_spec(module) is None]:
    sys.exit(f"Missing: {', '.join(missing)}. Run: {sys.executable} -m pip install --no-deps {' '.join(missing)}")

# E402: the imports follow the check of what they need.
import numpy as np  # noqa: E402
import torch  # noqa: E402
import video  # noqa: E402
from inference import (  # noqa: E402
    DTYPES,
    MEGABYTE,
    Setting,
    Variant,
    build_batch,
    build_model,
    build_run,
    cuda_peak,
    describe_machine,
    quartiles,
    time_rounds,
)
from torch import nn  # noqa: E402
from training_step import build_step  # noqa: E402

from modeling_pcmanet.media_writing_pcmanet import write_video  # noqa: E402
from pcmanet.dataset_scripts.sounding_shapes import SoundingShapes  # noqa: E402


COLUMNS = ("measurement", "preset", "clips", "data type", "network", "ms", "frames/s", "memory, MB", "remarks")
GOALS = {("pvt_v2_b5", 1, "bfloat16"): 365}  # frames per second of the optimized model on an H100
SHORTEST = 2.0  # seconds of budget that a measurement needs
WINDOWS = 4  # per batch of the pipeline
TRAINING_ROUNDS = 10  # at most
FRAME_RATE = 25.0  # of the video, hertz
SETTLING = 0.2  # seconds of runs before a measurement, in which the clock of the GPU rises

Run = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Result:
    """What a row shows; None for an empty cell."""

    seconds: list[float] | None = None
    frames: int | None = None
    megabytes: float | None = None
    remarks: str = ""

    def cells(self) -> list[str]:
        """Return the last cells of the row."""
        speed = f"{self.frames / statistics.median(self.seconds):.1f}" if self.seconds and self.frames else ""
        milliseconds = quartiles([1000 * x for x in self.seconds], 2) if self.seconds else ""
        memory = "" if self.megabytes is None else f"{self.megabytes:.0f}"
        return [milliseconds, speed, memory, self.remarks]


@dataclass(frozen=True)
class Case:
    """A row: its first cells, and what to measure."""

    labels: tuple[str, ...]
    measure: Callable[[], Result]


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--presets", nargs="+", default=["pvt_v2_b5", "resnet50", "small"])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--budget", type=float, default=480, help="time budget for everything, in seconds")
    parser.add_argument("--output", type=Path, help="file for a copy of what is printed")
    parser.add_argument("--clips", nargs="+", type=int, default=[1, 8], help="clips of five frames per batch")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--rounds", type=int, default=20, help="runs of each measurement, 2 or more")
    parser.add_argument("--video-seconds", type=int, default=30, help="length of the video")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "no GPU was found by torch.cuda.is_available(); --device cpu measures what can be tried without one"
        )
    options.threads = torch.get_num_threads()
    return options


# Sections.


def inference_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield forward passes, by preset and clips."""
    eager, graph = "kernel by kernel", "CUDA graph"
    rows = [
        ("optimized", "bfloat16", eager),
        ("optimized", "bfloat16", graph),
        ("plain", "bfloat16", eager),
        ("encoders", "bfloat16", eager),
        ("encoders", "bfloat16", graph),
        ("optimized", "float32", eager),
        ("optimized", "TF32", eager),
        ("optimized", "TF32", graph),
        ("plain", "float32", eager),
        ("plain", "TF32", eager),
    ]
    for setting in settings(options):
        for kind, precision, how in rows:
            if how == graph and options.device == "cpu":
                continue
            labels = ("inference", setting.preset, str(setting.clips), precision, f"{kind}, {how}")
            wrap = capture if how == graph else None
            yield Case(labels, partial(measure_inference, setting, options.rounds, kind, precision, wrap))


def synchronization_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield forward passes whose synchronizations are counted."""
    for setting in settings(options, options.clips[:1]):
        padded = replace(setting, real_frames=setting.frames - 1)
        for kind, given in (("model", setting), ("optimized", setting), ("optimized, with padding", padded)):
            labels = ("synchronizations", setting.preset, str(setting.clips), "float32", kind)
            yield Case(labels, partial(measure_synchronizations, given, kind))


def equality_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield comparisons of the optimized model with the model on the CPU."""
    for setting in settings(options, options.clips[:1]):
        for precision in ("float32", "TF32", "bfloat16"):
            labels = ("equality", setting.preset, str(setting.clips), precision, "optimized")
            yield Case(labels, partial(measure_equality, setting, precision))


def training_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield training steps."""
    for setting in settings(options):
        for kind in ("training", "plain"):
            labels = ("training", setting.preset, str(setting.clips), "bfloat16", kind)
            yield Case(labels, partial(measure_training, setting, options.rounds, kind))


def video_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield the pipeline on a video."""
    for preset in options.presets:
        for dtype in ("bfloat16", "float32"):
            labels = ("video", preset, "", dtype, "pipeline, optimized")
            yield Case(labels, partial(measure_video, preset, options.video_seconds, options.device, dtype))


def compiled_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield compiled networks, the largest last, because compiling it takes longest."""
    for setting in reversed(list(settings(options, options.clips[:1]))):
        labels = ("compiled", setting.preset, str(setting.clips), "bfloat16")
        forward = partial(measure_inference, setting, options.rounds, "optimized", "bfloat16", None, "reduce-overhead")
        yield Case((*labels, "optimized, reduce-overhead"), forward)
        training = partial(measure_training, setting, options.rounds, "training", compiled=True)
        yield Case((*labels, "training"), training)


SECTIONS = {
    "inference": inference_cases,
    "synchronizations": synchronization_cases,
    "equality": equality_cases,
    "training": training_cases,
    "video": video_cases,
    "compiled": compiled_cases,
}


def settings(options: argparse.Namespace, clips: list[int] | None = None) -> Iterator[Setting]:
    """Yield the settings of all presets, by default with each number of clips."""
    for preset in options.presets:
        for number in clips or options.clips:
            yield Setting(preset, 1, number, 5, 5, options.size, options.device, options.threads, True)


# Measurements.


def measure_inference(
    setting: Setting,
    rounds: int,
    kind: str,
    precision: str,
    wrap: Callable[[Run], Run] | None = None,
    compile_mode: str | None = None,
) -> Result:
    """Time forward passes; `wrap` may replace the run."""
    model, batch = load_network(setting), build_batch(setting)
    variant = Variant(kind, dtype_name(precision), compile_mode)
    with torch.inference_mode(), selected_precision(precision):
        run, _ = build_run(variant, model, batch)
        started = time.perf_counter()
        run()
        preparing = time.perf_counter() - started
        run = run if wrap is None else wrap(run)
        seconds = measure_rounds(variant, run, rounds)
        eager = wrap is None and compile_mode is None and setting.device == "cuda"
        megabytes = cuda_peak(run) if eager else None
    frames = setting.clips * setting.frames
    remarks = [f"first run {preparing:.0f} s"] if compile_mode else []
    goal = GOALS.get((setting.preset, setting.clips, precision))
    if goal and kind == "optimized":
        reached = frames / statistics.median(seconds) >= goal
        remarks.append(f"goal on an H100: {goal} frames/s, {'reached' if reached else 'not reached'}")
    return Result(seconds, frames, megabytes, "; ".join(remarks))


def measure_synchronizations(setting: Setting, kind: str) -> Result:
    """Count the synchronizations of a forward pass."""
    if setting.device == "cpu":
        return Result(remarks="a CPU has none")
    if not synchronizations(lambda: torch.ones(1, device="cuda").item()):
        raise RuntimeError("PyTorch's detection of synchronizations did not detect one.")
    model, batch = load_network(setting), build_batch(setting)
    with torch.inference_mode():
        if kind == "model":
            run: Run = partial(lambda copied: copied(**batch).logits, model)
        else:
            run, _ = build_run(Variant("optimized", "float32"), model, batch)
        run()
        places = synchronizations(run)
    where = f": {', '.join(dict.fromkeys(places))}" if places else ""
    return Result(remarks=f"{len(places)} synchronizations{where}")


def synchronizations(run: Callable[[], object]) -> list[str]:
    """Return file and line of every synchronization of a call."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if "synchronizing" in str(warning.message)]
    return [f"{Path(warning.filename).name}:{warning.lineno}" for warning in found]


def measure_equality(setting: Setting, precision: str) -> Result:
    """Compare the masks and logits of the optimized model with those of the model on the CPU in float32."""
    expected, model = logits_on_cpu(replace(setting, device="cpu")), load_network(setting)
    with torch.inference_mode(), selected_precision(precision):
        run, _ = build_run(Variant("optimized", dtype_name(precision)), model, build_batch(setting))
        given = run().float().cpu()
    equal = ((given > 0) == (expected > 0)).float().mean()
    return Result(
        remarks=f"{equal:.4%} of the pixels equal, {(expected > 0).float().mean():.1%} are foreground; largest difference "
        f"of a logit {(given - expected).abs().max():.1e} of {expected.abs().max():.1f}"
    )


@lru_cache(maxsize=1)
def logits_on_cpu(setting: Setting) -> torch.Tensor:
    """Return the logits of the model in float32."""
    with torch.inference_mode():
        return build_model(setting)(**build_batch(setting)).logits


def measure_training(setting: Setting, rounds: int, kind: str, compiled: bool = False) -> Result:
    """Time training steps with bfloat16 autocast."""
    model = load_network(setting)
    gc.collect()  # the step before
    held = torch.cuda.memory_allocated() if setting.device == "cuda" else 0
    step = build_step(kind, model, build_batch(setting), dtype=torch.bfloat16, compiled=compiled)
    started = time.perf_counter()
    step()
    preparing = time.perf_counter() - started
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = measure_rounds(Variant(kind, "bfloat16"), step, min(rounds, TRAINING_ROUNDS))
    peak = (torch.cuda.max_memory_allocated() - held) / MEGABYTE if setting.device == "cuda" else None
    return Result(seconds, setting.clips * setting.frames, peak, f"first step {preparing:.0f} s" if compiled else "")


def measure_video(preset: str, length: int, device: str, dtype: str) -> Result:
    """Time the pipeline from a file to masks at the size of the video."""
    segmenter, path = video.build(preset, device, DTYPES[dtype]), Path(make_video(length).name)
    segmenter(path, batch_size=WINDOWS)
    started = time.perf_counter()
    entries = segmenter(path, batch_size=WINDOWS)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    video.decode(path)
    decoding = time.perf_counter() - started
    return Result(
        remarks=f"{length / seconds:.1f} seconds of video per second, {len(entries)} masks; decoding alone "
        f"{length / decoding:.1f}"
    )


@lru_cache
def make_video(length: int) -> Any:
    """Return a temporary file with a video that repeats one second, because drawing takes longer than encoding."""
    file = tempfile.NamedTemporaryFile(suffix=".mp4")  # noqa: SIM115 deleted at the end of the script
    shapes = SoundingShapes("avss", length=1, height=720, width=1280, num_frames=1)
    second, clip = list(shapes.render_video_frames(0, FRAME_RATE)), shapes[0]
    write_video(file.name, second * length, FRAME_RATE, np.tile(clip.waveform, length), clip.sampling_rate)
    return file


@lru_cache
def _load_network(setting: Setting) -> nn.Module:
    return build_model(setting).to(setting.device)


def load_network(setting: Setting) -> nn.Module:
    """Return the network of a setting on its device, the same for all numbers of clips."""
    return _load_network(replace(setting, clips=1))


def capture(run: Run) -> Run:
    """Record the kernels of a run as a CUDA graph, whose launch costs the CPU almost nothing."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


def measure_rounds(variant: Variant, run: Run, rounds: int) -> list[float]:
    """Time a run after a few that are not counted."""
    started = time.perf_counter()
    while run().is_cuda and time.perf_counter() - started < SETTLING:
        torch.cuda.synchronize()
    return time_rounds({variant: run}, rounds, time.perf_counter)[variant]


def dtype_name(precision: str) -> str:
    """Return the data type of tensors; TF32 is a way to compute in float32."""
    return "float32" if precision == "TF32" else precision


@contextmanager
def selected_precision(precision: str) -> Iterator[None]:
    """Allow TF32 in convolutions and matrix products, or forbid it."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = precision == "TF32"
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


# The table.


class Report:
    """Prints one Markdown table row by row, also to a file, and measures only what fits the budget."""

    def __init__(self, budget: float, output: Path | None):
        self.end = STARTED + budget
        self.output = output
        if output is not None:
            output.write_text("")

    def write(self, line: str) -> None:
        """Print a line, and append it to the file."""
        print(line, flush=True)
        if self.output is not None:
            with self.output.open("a") as file:
                file.write(f"{line}\n")

    def row(self, case: Case) -> None:
        """Measure a case and print its row; an error is its remark."""
        left = self.end - time.monotonic()
        result = Result(remarks="skipped, the budget is used up")
        if left > SHORTEST:
            try:
                with time_limit(left):
                    result = case.measure()
            except Exception as error:  # one failure must not cost the rows after it
                text = " ".join(str(error).split())[:300].replace("|", "/")
                result = Result(remarks=f"{type(error).__name__}: {text}")
        self.write(f"| {' | '.join([*case.labels, *result.cells()])} |")


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError in the block after some seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError("the budget is used up")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    """Print the command, the machine and the table."""
    options = parse_args()
    report = Report(options.budget, options.output)
    report.write(f"`python {shlex.join(sys.argv)}`\n\n{describe_machine(options)}; {options.rounds} runs of each.\n")
    for cells in (COLUMNS, ["---"] * len(COLUMNS)):
        report.write(f"| {' | '.join(cells)} |")
    for name, cases in SECTIONS.items():
        for case in cases(options) if name in options.sections else ():
            report.row(case)
    report.write(f"\n{time.monotonic() - STARTED:.0f} s in all, imports included.")


if __name__ == "__main__":
    main()
