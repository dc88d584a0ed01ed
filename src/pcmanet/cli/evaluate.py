"""`pcmanet evaluate`: compute the metrics of a checkpoint on AVSBench or on your own clips.

Every batch with every type of audio is a job, whose counts are written to a file of its own. A run that was interrupted
computes the missing files only, and any number of processes can share the jobs.
"""

import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import BatchFeature

from modeling_pcmanet import PCMANetConfig, PCMANetProcessor
from modeling_pcmanet.inference_pcmanet import OptimizedPCMANet
from modeling_pcmanet.modeling_pcmanet_decoder import PCMANetOutput
from pcmanet.checkpoints import digest, load_model, start_processes
from pcmanet.dataset_scripts.avsbench import find_names
from pcmanet.dataset_scripts.avsbench.layouts import NAMES, SECONDS_OF_SUBSET
from pcmanet.dataset_scripts.avsbench.rows import RowSettings, fingerprint
from pcmanet.dataset_scripts.clips import to_arrays
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.evaluation import (
    NEGATIVES,
    POSITIVE,
    EvaluationClips,
    EvaluationReader,
    class_results,
    class_table,
    clip_results,
    find_evaluation_clips,
    find_off_screen_audio,
    find_paired_clips,
    markdown_table,
    protocol_results,
    results_table,
    worst_clips,
)
from pcmanet.dataset_scripts.metrics import IGNORE_INDEX, Audio, RobustnessMetrics, SemanticMetrics
from pcmanet.dataset_scripts.paired import is_paired_data
from pcmanet.files import atomic_file, keep_settings, recover, write_text
from pcmanet.pipelines.colors import class_colors
from pcmanet.pipelines.contact_sheet import draw_contact_sheet
from pcmanet.pipelines.overlay import draw_segments

from .inputs import is_user_error


def run(arguments: Namespace) -> bool:
    """Evaluate a checkpoint on a split. Every process runs this; the first one reports.

    Args:
        arguments: Of `pcmanet evaluate`.

    Returns:
        False: all clips were evaluated.

    Raises:
        OSError: If the data or the checkpoint are not found.
        ValueError: If the checkpoint, the data and the options do not match, or files are damaged.
    """
    state = start_processes()
    torch.set_num_threads(arguments.threads)
    data = _find_data(arguments)
    model, processor = load_model(arguments.model)
    _check_compatibility(arguments, model.config, data)
    cast(torch.nn.Module, model).to(state.device)
    reader = _create_reader(arguments, data, processor)
    output = arguments.output or Path(f"{Path(arguments.model).resolve().name}_on_{data.name}_{data.split}")
    progress = output / "progress"
    settings = {"checkpoint": digest(model, processor), **_describe(arguments, reader, model.device)}
    with state.main_process_first():
        progress.mkdir(parents=True, exist_ok=True)
        keep_settings(progress / "settings.json", settings, "Give another --output, or remove that folder.")
    jobs, optimized = _list_jobs(arguments, reader), model.for_inference()
    _compute_jobs(arguments, progress, jobs, reader, optimized)
    state.wait_for_everyone()
    if state.is_main_process:
        metrics = _collect(arguments, progress, jobs, len(data.labels))
        _report(arguments, output, metrics, reader, optimized)
    state.destroy_process_group()
    return False


def _find_data(arguments: Namespace) -> EvaluationClips:
    """Find the clips, and check all their files before anything is computed."""
    if is_paired_data(arguments.data):
        return _generate_clips(arguments)
    if not arguments.data.is_dir():
        raise FileNotFoundError(
            f"Folder {arguments.data} not found. Give AVSBench as downloaded, or a folder of clips."
        )
    names = [arguments.name] if arguments.name else find_names(arguments.data)
    if not names:
        raise ValueError(f"No table of clips found in {arguments.data}. Supported data sets: {', '.join(NAMES)}.")
    if len(names) > 1:
        raise ValueError(f"{arguments.data} contains {' and '.join(names)}. Choose one with --name.")
    settings = RowSettings(arguments.label_noise, arguments.log_mel, arguments.frames_per_second)
    return find_evaluation_clips(arguments.data, names[0], arguments.split, settings)


def _generate_clips(arguments: Namespace) -> EvaluationClips:
    """Prepare clips of paired data."""
    if arguments.name == "folder" or arguments.label_noise != "keep" or arguments.log_mel:
        raise ValueError("Paired data have the rules --name s4, ms3 or avss, and neither --label-noise nor --log-mel.")
    if "off_screen" in arguments.negative_audio and arguments.off_screen_audio is None:
        raise ValueError(
            "--negative-audio off_screen: paired clips have no audio files. Give a folder with --off-screen-audio."
        )
    return find_paired_clips(
        arguments.data, arguments.name or "avss", arguments.split, arguments.clips, arguments.seed
    )


def _check_compatibility(arguments: Namespace, config: PCMANetConfig, data: EvaluationClips) -> None:
    """Check that the checkpoint and the options are for these data."""
    labels = _labels(config)
    if len(labels) != len(data.labels):
        predicted, annotated = (
            f"{len(names)} classes" if len(names) > 1 else "binary masks" for names in (labels, data.labels)
        )
        raise ValueError(
            f"{arguments.model} predicts {predicted}, but {data.name} has {annotated}. Choose a checkpoint for the data."
        )
    for index, name in enumerate(data.labels[1:], start=1):
        # Classes without names are called class 1, class 2 ... or LABEL_1, LABEL_2 ...
        if (predicted := labels[index]) not in (name, f"class {index}", f"LABEL_{index}"):
            raise ValueError(f"Class {index} is {predicted!r} in {arguments.model}, but {name!r} in {data.name}.")
    for option in ("score_padding", "published_no_background"):
        if getattr(arguments, option) and data.name != "avss":
            raise ValueError(f"--{option.replace('_', '-')} applies to avss only, but the data are {data.name}.")
    if arguments.per_class and data.binary and not any(clip.objects for clip in data.clips):
        raise ValueError(f"--per-class: {data.table} lists no sounding objects, and the masks are binary.")


def _labels(config: PCMANetConfig) -> dict[int, str]:
    """Return the class names of a checkpoint; a binary checkpoint has a single one."""
    return cast(dict[int, str], config.id2label)


def _create_reader(arguments: Namespace, data: EvaluationClips, processor: PCMANetProcessor) -> EvaluationReader:
    """Create the reader of batches, with off-screen audio if it is evaluated."""
    off_screen: list[str] = []
    if "off_screen" in arguments.negative_audio:
        try:
            off_screen = find_off_screen_audio(data, arguments.off_screen_audio)
        except ValueError as error:
            raise ValueError(f"--negative-audio off_screen: {error} The option is --off-screen-audio.") from error
    frames = max(SECONDS_OF_SUBSET.values()) if arguments.score_padding else 0
    return EvaluationReader(data, ClipCollator(processor, data.binary), off_screen, arguments.seed, frames)


def _describe(arguments: Namespace, reader: EvaluationReader, device: torch.device) -> dict[str, Any]:
    """Return everything on which the counts of a batch depend, except for the checkpoint and the files of the clips."""
    return {
        "table": str(reader.data.table.resolve()),
        "name": reader.data.name,
        "split": reader.data.split,
        "generated": reader.data.identity,
        **asdict(reader.data.settings),
        "batch_size": arguments.batch_size,
        "score_padding": arguments.score_padding,
        "seed": arguments.seed,
        "device": device.type,
        "threads": arguments.threads,
        "torch": torch.__version__,
    }


@dataclass(frozen=True)
class _Job:
    """A batch with one type of audio: the unit of work that is resumed.

    Attributes:
        audio: The type of audio.
        clips: Positions of its clips.
        file: Name of the file of its counts. It changes if the table or a file of the clips changes.
    """

    audio: Audio
    clips: range
    file: str


def _list_jobs(arguments: Namespace, reader: EvaluationReader) -> list[_Job]:
    """Divide the clips into batches. They do not depend on the number of processes."""
    data, jobs = reader.data, []
    for audio in (POSITIVE, *(kind for kind in NEGATIVES if kind in arguments.negative_audio)):
        for number, first in enumerate(range(0, len(data.clips), arguments.batch_size)):
            clips = range(len(data.clips))[first : first + arguments.batch_size]
            paths = [path for index in clips for path in data.clips[index].paths]
            paths += [reader.off_screen[index] for index in clips if audio == "off_screen"]
            files = fingerprint(data.table, paths)[:16]
            jobs.append(_Job(audio, clips, f"{audio}-{number:06d}-{files}.safetensors"))
    return jobs


def _compute_jobs(
    arguments: Namespace, progress: Path, jobs: Sequence[_Job], reader: EvaluationReader, model: OptimizedPCMANet
) -> None:
    """Compute the jobs of this process that are not done yet."""
    state = PartialState()
    assigned = jobs[state.process_index :: state.num_processes]
    pending = [job for job in assigned if not (progress / job.file).is_file()]
    metrics = RobustnessMetrics(len(reader.data.labels), score_padding=arguments.score_padding)
    title = "evaluating" if state.num_processes == 1 else f"evaluating (process 1 of {state.num_processes})"
    done, hidden = len(assigned) - len(pending), not state.is_main_process
    with tqdm(desc=title, total=len(assigned), initial=done, unit="batch", disable=hidden) as bar:
        for job, batch in _load_batches(pending, reader, arguments.num_workers):
            logits = cast(torch.Tensor, _predict(model, batch).logits)
            masks = batch["labels"], batch.get("frame_mask"), batch["annotated_frames"]
            rows = metrics[job.audio].count(logits.float(), *masks)
            with atomic_file(progress / job.file, durable=False) as temporary:
                save_file({"rows": rows}, temporary)
            bar.update()


def _load_batches(jobs: Sequence[_Job], reader: EvaluationReader, workers: int) -> Iterator[tuple[_Job, BatchFeature]]:
    """Read batches ahead in worker processes."""
    read: Any = partial(_read_job, reader)  # not a local function: workers that are not forked pickle it
    loader = DataLoader(cast(Any, jobs), batch_size=None, collate_fn=read, num_workers=min(workers, len(jobs)))
    for job, batch in zip(jobs, loader, strict=True):
        if isinstance(batch, Exception):
            raise batch
        yield job, batch


def _read_job(reader: EvaluationReader, job: _Job) -> BatchFeature | Exception:
    """Read the batch of a job. User errors are returned, because a worker would wrap them in its traceback."""
    try:
        return reader.read(job.clips, job.audio)
    except Exception as error:
        if not is_user_error(error):
            raise
        return error


@torch.inference_mode()
def _predict(model: OptimizedPCMANet, batch: BatchFeature) -> PCMANetOutput:
    """Run the optimized model on a batch."""
    labels = ("labels", "annotated_frames")
    return model(**{name: values.to(model.device) for name, values in batch.items() if name not in labels})


def _collect(arguments: Namespace, progress: Path, jobs: Sequence[_Job], num_labels: int) -> RobustnessMetrics:
    """Add up the counts of all processes, batch by batch."""
    metrics = RobustnessMetrics(num_labels, score_padding=arguments.score_padding)
    for job in jobs:
        metrics[job.audio].append(load_file(progress / job.file)["rows"], job.clips)
    recover(progress)
    positive = metrics[POSITIVE]
    if isinstance(positive, SemanticMetrics):
        positive.report_published_no_background = arguments.published_no_background
    return metrics


def _report(
    arguments: Namespace, output: Path, metrics: RobustnessMetrics, reader: EvaluationReader, model: OptimizedPCMANet
) -> None:
    """Write the tables and the worst clips, and print the main table."""
    data, positive = reader.data, metrics[POSITIVE]
    clips, by_protocol = clip_results(positive), protocol_results(metrics)
    frames, size = int(by_protocol["official"]["frames"]), arguments.batch_size
    results: dict[str, Any] = {"checkpoint": arguments.model, "name": data.name, "split": data.split}
    results |= {"clips": len(clips), "frames": frames, "batch_size": size, "metrics": by_protocol}
    table = results_table(by_protocol)
    text = f"# {arguments.model} on {data.name} {data.split}\n\n    pcmanet {shlex.join(sys.argv[1:])}\n\n"
    text += f"{len(clips)} clips, {frames} frames. Ratios are computed per clip (official), per {size} clips (batch) or once "
    text += f"for all pixels (dataset).\n\n{table}"
    if arguments.per_class:
        results["classes"] = class_results(positive, data.labels, [clip.objects for clip in data.clips])
        text += f"\n## By class\n\n{class_table(results['classes'])}"
    if worst := worst_clips(clips, arguments.worst):
        rows = [[data.clips[index].id, *(f"{value:.4f}" for value in clips[index].values())] for index in worst]
        text += f"\n## Worst clips\n\n{markdown_table(['clip', 'mIoU', 'F'], rows)}"
        titles = [f"{place}. {name}: mIoU {miou}" for place, (name, miou, _) in enumerate(rows, start=1)]
        sheets = [_draw_clip(reader, model, index, title) for index, title in zip(worst, titles, strict=True)]
        with atomic_file(output / "worst_clips.png") as temporary:
            _stack(sheets).save(temporary)
    results["per_clip"] = [{"clip": data.clips[index].id, **values} for index, values in clips.items()]
    write_text(output / "results.json", json.dumps(results, indent=2) + "\n")
    write_text(output / "results.md", text)
    print(f"\n{table}\nresults  {output}")


def _draw_clip(reader: EvaluationReader, model: OptimizedPCMANet, index: int, title: str) -> Image.Image:
    """Draw the frames of a clip with the annotated masks above the predicted masks."""
    row = reader.data.row(index)
    clip = to_arrays(row, reader.data.binary)
    batch = reader.collate([row])
    outputs, real = _predict(model, batch), batch.get("frame_mask")
    size, processor = clip.frames.shape[1:3], cast(PCMANetProcessor, reader.collate.processor)
    masks = processor.post_process_semantic_segmentation(outputs, [size], frame_mask=real)[0].cpu().numpy()
    labels = _labels(model.config)
    names, colors = {1: labels[0]} if len(labels) == 1 else labels, class_colors(labels)
    annotated = [
        _draw_annotation(frame, target, names, colors) for frame, target in zip(clip.frames, clip.masks, strict=True)
    ]
    results = [
        {"timestamp": timestamp, "segments": find_segments(mask, target, names)}
        for timestamp, mask, target in zip(clip.timestamps, masks, clip.masks, strict=True)
    ]
    return draw_contact_sheet(
        annotated,
        results,
        colors,
        waveform=clip.waveform,
        sampling_rate=clip.sampling_rate,
        frames_per_second=reader.data.settings.frames_per_second,
        title=f"{title}; top: annotated, bottom: predicted, with IoU",
    )


def _draw_annotation(frame: np.ndarray, mask: np.ndarray, names: dict[int, str], colors: dict[str, Any]) -> np.ndarray:
    """Draw the annotated mask on a frame and darken the rest; a frame without annotation is not changed."""
    darkened = Image.fromarray(np.where(mask[..., None] > 0, frame, frame // 3))
    return np.asarray(draw_segments(darkened, find_segments(mask, mask, names), colors, labels=False))


def find_segments(mask: np.ndarray, target: np.ndarray, names: dict[int, str]) -> list[dict[str, Any]]:
    """List the classes in a mask.

    Args:
        mask: Predicted class indices (height, width).
        target: Annotated class indices (height, width), 255 where nothing is annotated.
        names: Class index -> name.

    Returns:
        A segment as from the pipeline for each class in the mask. Its score is the IoU with the target, NaN if nothing is
        annotated.
    """
    segments = []
    for index in np.setdiff1d(mask, (0, IGNORE_INDEX)).tolist():
        found, expected, counted = mask == index, target == index, target != IGNORE_INDEX
        union = (counted & (found | expected)).sum()
        score = (found & expected).sum() / union if union else float("nan")
        image = Image.fromarray(found.astype(np.uint8) * 255)
        segments.append({"score": float(score), "label": names[index], "mask": image})
    return segments


def _stack(sheets: Sequence[Image.Image]) -> Image.Image:
    """Arrange images below each other."""
    tops = np.cumsum([0, *(sheet.height for sheet in sheets)]).tolist()
    stacked = Image.new("RGB", (max(sheet.width for sheet in sheets), tops.pop()), "white")
    for sheet, top in zip(sheets, tops, strict=True):
        stacked.paste(sheet, (0, top))
    return stacked
