"""Measures a checkpoint on AVSBench (S4, MS3, AVSS) or on one's own clips, under all three protocols side by side.

    python examples/evaluate_pcmanet.py CHECKPOINT AVSBench/Single-source                  # the test split
    python examples/evaluate_pcmanet.py CHECKPOINT AVSBench --name avss --per-class        # 71 classes
    python examples/evaluate_pcmanet.py CHECKPOINT AVSBench --name s4 --negative-audio silence noise off_screen
    python examples/evaluate_pcmanet.py CHECKPOINT my_clips --split val    # layout: dataset_scripts/avsbench/folder.py

Without AVSBench, on Sounding Shapes in its layout:

    python -m pcmanet.dataset_scripts.sounding_shapes tree --task ms3 --test 20 --output shapes
    python examples/evaluate_pcmanet.py examples/demo_model shapes

In several processes, one for each GPU or CPU core; the figures are the same to the last digit, because the batches are:

    torchrun --nproc_per_node 8 examples/evaluate_pcmanet.py CHECKPOINT AVSBench --name avss
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 examples/evaluate_pcmanet.py CHECKPOINT AVSBench --name s4

OUTPUT receives results.md, results.json (also the figures of every clip), worst_clips.png and progress/, one small file
per batch. Started again after it was killed, with any number of processes, it goes on where it stopped; batches whose
files were changed are done anew. Started again after its end it only reports, so that --per-class or another
--negative-audio may be added later.

Masks are compared at the size of the network's input, as AVSBench does. Unlike its evaluation of AVSS, ours scores real
frames only and takes class 0 for the background: --score-padding and --published-no-background give what it gives.
"""

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import BatchFeature, PreTrainedConfig
from transformers.utils import logging

from modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetProcessor
from modeling_pcmanet.modeling_pcmanet import load_strict
from pcmanet.dataset_scripts import evaluation as evaluation_module
from pcmanet.dataset_scripts.avsbench import NAMES, AVSBenchError, find_names
from pcmanet.dataset_scripts.avsbench.files import fingerprint
from pcmanet.dataset_scripts.avsbench.layouts import SECONDS_OF_SUBSET
from pcmanet.dataset_scripts.avsbench.masks import LABEL_NOISE_RULES
from pcmanet.dataset_scripts.avsbench.rows import RowSettings
from pcmanet.dataset_scripts.clips import to_arrays
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.evaluation import (
    NEGATIVES,
    POSITIVE,
    EvaluationClips,
    EvaluationReader,
    find_evaluation_clips,
    find_off_screen_sounds,
)
from pcmanet.dataset_scripts.metrics import IGNORE_INDEX, Audio, RobustnessMetrics, SemanticMetrics
from pcmanet.files import atomic_file, keep_settings, write_text
from pcmanet.pipelines.colors import class_colors
from pcmanet.pipelines.contact_sheet import draw_contact_sheet
from pcmanet.pipelines.overlay import draw_segments


USER_ERRORS = (OSError, ValueError, StrictDataclassError, SafetensorError)  # of what was given, not of this program


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of a model with its processor, or Hub id as owner/name")
    parser.add_argument("data", type=Path, help="AVSBench as downloaded, or a folder with a clips.csv")
    parser.add_argument("--name", choices=NAMES, help="which data set, if the folder holds several")
    parser.add_argument("--split", default="test", help="train, val or test (default: test)")
    parser.add_argument("--output", type=Path, help="folder of the results (default: CHECKPOINT_on_NAME_SPLIT)")
    parser.add_argument("--batch-size", type=int, default=4, help="clips per forward pass, and per group of `batch`")
    parser.add_argument("--per-class", action="store_true", help="also by class; of binary masks, by what is heard")
    parser.add_argument("--worst", type=int, default=5, help="clips on worst_clips.png, 0 for none (default: 5)")
    parser.add_argument("--negative-audio", nargs="+", choices=NEGATIVES, default=[], help="also under wrong sounds")
    parser.add_argument("--off-screen-sounds", type=Path, help="folder for off_screen (default: other clips' sounds)")
    parser.add_argument("--score-padding", action="store_true", help="avss: also score frames that fill up clips")
    parser.add_argument("--published-no-background", action="store_true", help="avss: also the mean without `woman`")
    parser.add_argument("--label-noise", choices=LABEL_NOISE_RULES, default="keep", help="avss: pixels not in a_obj")
    parser.add_argument("--log-mel", action="store_true", help="s4, ms3: features from the published pickles")
    parser.add_argument("--frames-per-second", type=float, default=1.0, help="one's own clips: rate of the frames")
    parser.add_argument("--num-workers", type=int, default=1, help="reading processes for each process")
    parser.add_argument("--threads", type=int, default=1, help="of a process on the CPU; may change the last digits")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    args = parser.parse_args()
    if min(args.batch_size, args.threads) < 1 or min(args.num_workers, args.worst, args.seed) < 0:
        parser.error("--batch-size and --threads start at 1; --num-workers, --worst and --seed at 0")
    return args


def find_data(args: argparse.Namespace) -> EvaluationClips:
    """Finds the clips, and what is missing of them before anything is computed."""
    if not args.data.is_dir():
        raise FileNotFoundError(f"There is no folder {args.data}. Give AVSBench as downloaded, or one's own clips.")
    names = [args.name] if args.name else find_names(args.data)
    if len(names) != 1:
        found = f"{' and '.join(names)}: choose one with --name" if names else "no table of clips of any data set"
        raise ValueError(f"{args.data} holds {found}. Known are {', '.join(NAMES)}.")
    settings = RowSettings(args.label_noise, args.log_mel, args.frames_per_second)
    return find_evaluation_clips(args.data, names[0], args.split, settings)


def load_checkpoint(name: str) -> tuple[PCMANetForAudioVisualSegmentation, PCMANetProcessor]:
    """Loads model and processor, and takes no weights that are not all there."""
    if name.count("/") != 1 and not Path(name).is_dir():
        raise FileNotFoundError(f"There is no checkpoint folder {name}. Give a folder, or a Hub id as owner/name.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return load_strict(PCMANetForAudioVisualSegmentation, name), PCMANetProcessor.from_pretrained(name)


def check_fit(args: argparse.Namespace, config: PreTrainedConfig, data: EvaluationClips) -> None:
    """Refuses a checkpoint and options that are not for these data."""
    if config.num_labels != len(data.labels):
        kinds = [
            f"{number} classes" if number > 1 else "binary masks" for number in (config.num_labels, len(data.labels))
        ]
        raise ValueError(f"{args.checkpoint} predicts {kinds[0]}, but {data.name} has {kinds[1]}: they do not fit.")
    for index, name in enumerate(data.labels[1:], start=1):
        # Classes that were never named are called class 1, class 2 ... or LABEL_1, LABEL_2 ...
        if (mine := config.id2label[index]) not in (name, f"class {index}", f"LABEL_{index}"):
            raise ValueError(f"Class {index} is {mine!r} in {args.checkpoint}, but {name!r} in {data.name}.")
    for option in ("score_padding", "published_no_background"):
        if getattr(args, option) and data.name != "avss":
            raise ValueError(f"--{option.replace('_', '-')} is for avss, but the data are {data.name}.")
    if args.per_class and data.binary and not any(clip.objects for clip in data.clips):
        raise ValueError(f"--per-class: {data.table} does not tell what is heard, and the masks are binary.")


def make_reader(args: argparse.Namespace, data: EvaluationClips, processor: PCMANetProcessor) -> EvaluationReader:
    """Prepares the reading of batches."""
    off_screen: list[str] = []
    if "off_screen" in args.negative_audio:
        try:
            off_screen = find_off_screen_sounds(data, args.off_screen_sounds)
        except ValueError as error:
            raise ValueError(f"--negative-audio off_screen: {error} with --off-screen-sounds.") from error
    frames = max(SECONDS_OF_SUBSET.values()) if args.score_padding else 0
    return EvaluationReader(data, ClipCollator(processor, data.binary), off_screen, args.seed, frames)


def describe(args: argparse.Namespace, reader: EvaluationReader, model: torch.nn.Module) -> dict[str, Any]:
    """Lists everything but the clips' files on which the figures of a batch depend."""
    checkpoint = hashlib.sha256((model.config.to_json_string() + reader.collate.processor.to_json_string()).encode())
    for values in model.state_dict().values():
        checkpoint.update(values.cpu().flatten().view(torch.uint8).numpy())
    return {
        "checkpoint": checkpoint.hexdigest()[:32],
        "table": str(reader.data.table.resolve()),
        "name": reader.data.name,
        "split": reader.data.split,
        **asdict(reader.data.settings),
        "batch_size": args.batch_size,
        "score_padding": args.score_padding,
        "seed": args.seed,
        "device": model.device.type,
        "threads": args.threads,
        "torch": torch.__version__,
    }


@dataclass(frozen=True)
class Job:
    """One batch under one kind of sound: the part of the work that is done whole or not at all.

    Attributes:
        audio: Which sound.
        clips: Positions of its clips.
        file: Under which name its figures are kept; another one if the table or a file of its clips changes.
    """

    audio: Audio
    clips: range
    file: str


def list_jobs(args: argparse.Namespace, reader: EvaluationReader) -> list[Job]:
    """Cuts the clips into batches, which do not depend on how many processes there are."""
    data, jobs = reader.data, []
    for audio in (POSITIVE, *(kind for kind in NEGATIVES if kind in args.negative_audio)):
        for number, first in enumerate(range(0, len(data.clips), args.batch_size)):
            clips = range(len(data.clips))[first : first + args.batch_size]
            paths = [path for index in clips for path in data.clips[index].paths]
            paths += [reader.off_screen[index] for index in clips if audio == "off_screen"]
            state = fingerprint(data.table, paths)[:16]
            jobs.append(Job(audio, clips, f"{audio}-{number:06d}-{state}.safetensors"))
    return jobs


def open_progress(folder: Path, settings: dict[str, Any]) -> None:
    """Create the folder of the finished batches, or check that those in it were evaluated with the same settings."""
    folder.mkdir(parents=True, exist_ok=True)
    keep_settings(folder / "settings.json", settings, "Give another --output, or remove that folder to start again.")


def read_job(reader: EvaluationReader, job: Job) -> BatchFeature | Exception:
    """Reads the batch of a job; errors of the user's are given back, for in a worker's traceback they would lie buried."""
    try:
        return reader.read(job.clips, job.audio)
    except USER_ERRORS as error:
        return error


def load_batches(jobs: Sequence[Job], reader: EvaluationReader, workers: int) -> Iterator[tuple[Job, BatchFeature]]:
    """Reads batches ahead in worker processes."""
    read = partial(read_job, reader)  # no local function: a worker that is not forked gets it pickled
    loader = DataLoader(jobs, batch_size=None, collate_fn=read, num_workers=min(workers, len(jobs)))
    for job, batch in zip(jobs, loader, strict=True):
        if isinstance(batch, Exception):
            raise batch
        yield job, batch


@torch.inference_mode()
def predict(model: torch.nn.Module, batch: BatchFeature) -> Any:
    """Runs the inference form of the network on a batch."""
    inputs = {name: batch[name].to(model.device) for name in ("pixel_values", "input_features", "frame_mask")}
    return model(**inputs)


def work(args: argparse.Namespace, jobs: Sequence[Job], reader: EvaluationReader, model: torch.nn.Module) -> None:
    """Does this process's share of the jobs but for those that are done already."""
    state, folder = PartialState(), args.output / "progress"
    share = jobs[state.process_index :: state.num_processes]
    pending = [job for job in share if not (folder / job.file).is_file()]
    metrics = RobustnessMetrics(model.config.num_labels, score_padding=args.score_padding)
    title = "evaluating" if state.num_processes == 1 else f"evaluating, 1 of {state.num_processes} processes"
    done, hidden = len(share) - len(pending), not state.is_main_process
    with tqdm(desc=title, total=len(share), initial=done, unit="batch", disable=hidden) as bar:
        for job, batch in load_batches(pending, reader, args.num_workers):
            codes = metrics.reduce(predict(model, batch).logits.float())
            masks = batch["labels"], batch["frame_mask"], batch["annotated_frames"]
            rows = {"rows": metrics.count_predictions(codes, *masks, audio=job.audio)}
            with atomic_file(folder / job.file) as temporary:
                save_file(rows, temporary)
            bar.update()


def collect(args: argparse.Namespace, jobs: Sequence[Job], num_labels: int) -> RobustnessMetrics:
    """Adds up what all processes counted, batch after batch."""
    metrics = RobustnessMetrics(num_labels, score_padding=args.score_padding)
    folder = args.output / "progress"
    for job in jobs:
        metrics.append(load_file(folder / job.file)["rows"], job.clips, audio=job.audio)
    for aside in folder.glob(".*.safetensors"):  # of a process that was killed while it wrote
        aside.unlink()
    positive = metrics.parts[POSITIVE]
    if isinstance(positive, SemanticMetrics):
        positive.report_published_no_background = args.published_no_background
    return metrics


def find_segments(mask: np.ndarray, right: np.ndarray, names: dict[int, str]) -> list[dict[str, Any]]:
    """Lists the classes in a mask, (height, width) class indexes, each with its IoU with the right mask as the score."""
    segments = []
    for index in np.setdiff1d(mask, (0, IGNORE_INDEX)).tolist():
        found, expected, counted = mask == index, right == index, right != IGNORE_INDEX
        union = (counted & (found | expected)).sum()
        # Nothing is known of a frame that is not annotated.
        score = (found & expected).sum() / union if union else float("nan")
        picture = Image.fromarray(found.astype(np.uint8) * 255)
        segments.append({"score": float(score), "label": names[index], "mask": picture})
    return segments


def draw_annotation(frame: np.ndarray, mask: np.ndarray, names: dict[int, str], colors: dict[str, Any]) -> np.ndarray:
    """Draws the right mask on a frame and mutes the rest; a frame without annotation stays as it is."""
    muted = Image.fromarray(np.where(mask[..., None] > 0, frame, frame // 3))
    return np.asarray(draw_segments(muted, find_segments(mask, mask, names), colors, labels=False))


def draw_clip(reader: EvaluationReader, model: torch.nn.Module, index: int, title: str) -> Image.Image:
    """Draws the frames of a clip as annotated, and below as predicted."""
    row = reader.data.row(index)
    clip = to_arrays(row, reader.data.binary)
    batch = reader.collate([row])
    outputs, real = predict(model, batch), batch["frame_mask"]
    size, processor = clip.frames.shape[1:3], reader.collate.processor
    masks = processor.post_process_semantic_segmentation(outputs, [size], frame_mask=real)[0].cpu().numpy()
    labels = model.config.id2label
    names, colors = {1: labels[0]} if len(labels) == 1 else labels, class_colors(labels)
    annotated = [
        draw_annotation(frame, right, names, colors) for frame, right in zip(clip.frames, clip.masks, strict=True)
    ]
    results = [
        {"timestamp": timestamp, "segments": find_segments(mask, right, names)}
        for timestamp, mask, right in zip(clip.timestamps, masks, clip.masks, strict=True)
    ]
    return draw_contact_sheet(
        annotated,
        results,
        colors,
        waveform=clip.waveform,
        sampling_rate=clip.sampling_rate,
        frames_per_second=reader.data.settings.frames_per_second,
        title=f"{title}; above as annotated, below as predicted, with IoU",
    )


def stack(sheets: Sequence[Image.Image]) -> Image.Image:
    """Puts pictures below each other."""
    tops = np.cumsum([0, *(sheet.height for sheet in sheets)]).tolist()
    stacked = Image.new("RGB", (max(sheet.width for sheet in sheets), tops.pop()), "white")
    for sheet, top in zip(sheets, tops, strict=True):
        stacked.paste(sheet, (0, top))
    return stacked


def report(
    args: argparse.Namespace, metrics: RobustnessMetrics, reader: EvaluationReader, model: torch.nn.Module
) -> None:
    """Writes the tables and the worst clips, and prints the main table."""
    data, positive = reader.data, metrics.parts[POSITIVE]
    clips, figures = evaluation_module.clip_figures(positive), evaluation_module.protocol_figures(metrics)
    worst = evaluation_module.worst_clips(clips, args.worst)
    results = {"checkpoint": args.checkpoint, "name": data.name, "split": data.split, "clips": len(clips)}
    results |= {"frames": int(figures["official"]["frames"]), "batch_size": args.batch_size, "figures": figures}
    table = evaluation_module.figures_table(figures)
    text = f"# {args.checkpoint} on {data.name} {data.split}\n\n    python {shlex.join(sys.argv)}\n\n"
    text += (
        f"{len(clips)} clips, {results['frames']} frames. Ratios are taken per clip (official), per {args.batch_size} "
    )
    text += f"clips (batch) or once for all pixels (dataset).\n\n{table}"
    if args.per_class:
        heard = [clip.objects for clip in data.clips]
        results["classes"] = evaluation_module.class_figures(positive, data.labels, heard)
        text += f"\n## By class\n\n{evaluation_module.class_table(results['classes'])}"
    if worst:
        rows = [[data.clips[index].id, *(f"{value:.4f}" for value in clips[index].values())] for index in worst]
        text += f"\n## Worst clips\n\n{evaluation_module.markdown_table(['clip', 'mIoU', 'F'], rows)}"
        titles = [f"{place}. {name}: mIoU {miou}" for place, (name, miou, _) in enumerate(rows, start=1)]
        sheets = [draw_clip(reader, model, index, title) for index, title in zip(worst, titles, strict=True)]
        with atomic_file(args.output / "worst_clips.png") as temporary:
            stack(sheets).save(temporary)
    results["per_clip"] = [{"clip": data.clips[index].id, **values} for index, values in clips.items()]
    write_text(args.output / "results.json", json.dumps(results, indent=2) + "\n")
    write_text(args.output / "results.md", text)
    print(f"\n{table}\nresults  {args.output}")


def evaluate(args: argparse.Namespace) -> None:
    """Does everything; every process runs this, the first one reports."""
    # Left to itself, PartialState takes CPU processes of torchrun for one process each.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    torch.set_num_threads(args.threads)
    data = find_data(args)
    model, processor = load_checkpoint(args.checkpoint)
    check_fit(args, model.config, data)
    model.to(state.device)
    reader = make_reader(args, data, processor)
    if args.output is None:
        args.output = Path(f"{Path(args.checkpoint).resolve().name}_on_{data.name}_{data.split}")
    settings = describe(args, reader, model)
    with state.main_process_first():
        open_progress(args.output / "progress", settings)
    jobs, form = list_jobs(args, reader), model.for_inference()
    work(args, jobs, reader, form)
    state.wait_for_everyone()
    if state.is_main_process:
        report(args, collect(args, jobs, model.config.num_labels), reader, form)
    state.destroy_process_group()


def main() -> None:
    """Evaluates one checkpoint on one split."""
    args = parse_args()
    try:
        evaluate(args)
    except USER_ERRORS as error:
        message = str(error) if isinstance(error, AVSBenchError) else " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
