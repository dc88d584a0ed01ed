"""`pcmanet evaluate`: compute the metrics of checkpoints on AVSBench or on your own clips.

Each checkpoint on each dataset is an evaluation with its own folder. Every batch with every type of audio is a job,
whose counts are written to a separate file. A resumed run computes only the missing files, and any number of processes
can share the jobs.
"""

import hashlib
import json
import os
import re
import shlex
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence, Sized
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader
from transformers import BatchFeature

from modeling_pcmanet import PCMANetConfig, PCMANetProcessor
from modeling_pcmanet.inference_pcmanet import OptimizedPCMANet
from modeling_pcmanet.modeling_pcmanet_decoder import PCMANetOutput
from pcmanet import __version__
from pcmanet.checkpoints import (
    CLIP_FRAMES,
    count_gmacs,
    count_parameters,
    digest,
    load_config,
    load_model,
    measure_speed,
    start_processes,
)
from pcmanet.dataset_scripts.avsbench import find_names
from pcmanet.dataset_scripts.avsbench.layouts import NAMES, SECONDS_OF_SUBSET, Clip
from pcmanet.dataset_scripts.avsbench.masks import voc_palette
from pcmanet.dataset_scripts.avsbench.rows import OPTIONS, RowSettings, fingerprint
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.comparison import (
    Row,
    comparison_table,
    describe_sources,
    latex_table,
    measured_row,
    published_rows,
)
from pcmanet.dataset_scripts.evaluation import (
    NEGATIVES,
    POSITIVE,
    EvaluationClips,
    EvaluationReader,
    Results,
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
from pcmanet.dataset_scripts.metrics import IGNORE_INDEX, Audio, ClipMetrics, RobustnessMetrics, SemanticMetrics
from pcmanet.dataset_scripts.paired import is_paired_data
from pcmanet.dataset_scripts.problems import DatasetError, Problem, report_skipped
from pcmanet.files import atomic_file, atomic_folder, keep_settings, read_json, recover, write_text
from pcmanet.pipelines.colors import class_colors
from pcmanet.pipelines.contact_sheet import draw_contact_sheet
from pcmanet.pipelines.overlay import draw_segments

from .arguments import PAIRED_CLIPS
from .inputs import is_user_error
from .progress import Progress
from .results import OutputFolder


AVSS_OPTIONS = ("score_padding", "published_no_background")
MASKS = "masks"  # folder of the predicted masks
# Fields of a configuration that name classes and versions, or describe the weights.
NOT_ARCHITECTURE = (
    "id2label",
    "label2id",
    "description",
    "bfloat16_agreement",
    "transformers_version",
    "dtype",
    "_name_or_path",
)

# The batch of a job, None if no clip of it can be used; positions of its clips; problems of the clips left out.
ReadBatch: TypeAlias = tuple[BatchFeature | None, list[int], list[Problem]]


def run(arguments: Namespace) -> bool:
    """Evaluate checkpoints on a split. Every process runs this; the first one reports.

    Args:
        arguments: Arguments of `pcmanet evaluate`.

    Returns:
        False: all clips were evaluated, or skipped on request.

    Raises:
        OSError: If the data or the checkpoint are not found, or another run is writing to the output folder.
        ValueError: If the checkpoint, the data and the options do not match, or files are damaged.
    """
    state = start_processes()
    torch.set_num_threads(arguments.threads)
    evaluations = _plan(arguments)
    several = len(evaluations) > 1
    output = arguments.output or _default_output(arguments, evaluations)
    results, locked = [], OutputFolder(output)
    try:
        with state.main_process_first():
            locked.join(first=state.is_main_process)
        for checkpoint, data in evaluations:
            folder = output / data.name / re.sub(r"[^\w.-]+", "_", checkpoint).strip("_") if several else output
            options = _restrict(arguments, data) if several else arguments
            results.append(_evaluate(options, checkpoint, data, folder, state))
        if several and state.is_main_process:
            _report_comparison(arguments, output, results)
    finally:
        locked.leave()
    state.destroy_process_group()
    return False


# What is evaluated on what


def _plan(arguments: Namespace) -> list[tuple[str, EvaluationClips]]:
    """Return each checkpoint with each dataset on which it is evaluated, after checking that they match.

    Raises:
        OSError: If the data or a checkpoint are not found.
        ValueError: If a checkpoint, the data and the options do not match, or a dataset has no checkpoint.
    """
    given = [_split_name(model) for model in dict.fromkeys(arguments.models)]
    names = _choose_names(arguments, [name for name, _ in given])
    _check_options(arguments, names)
    datasets = [_find_data(arguments, name, several=len(names) > 1) for name in names]
    if arguments.per_class and not any(map(_has_classes, datasets)):
        tables = " and ".join(str(data.table) for data in datasets)
        raise ValueError(f"--per-class: {tables} lists no sounding objects, and the masks are binary.")
    evaluations = []
    for name, checkpoint in given:
        config = load_config(checkpoint)
        fitting = [data for data in datasets if name == data.name or (name is None and len(datasets) == 1)]
        if name is None and len(datasets) > 1:
            fitting = [data for data in datasets if len(_labels(config)) == len(data.labels)]
        for data in fitting:
            _check_compatibility(_restrict(arguments, data) if len(names) > 1 else arguments, checkpoint, config, data)
        evaluations += [(checkpoint, data) for data in fitting]
        if not fitting:
            raise ValueError(f"{checkpoint} predicts {_describe_labels(_labels(config))}, which none of {names} has.")
    if missing := [data.name for data in datasets if all(data is not other for _, other in evaluations)]:
        raise ValueError(
            f"No checkpoint is given for {', '.join(missing)}. Give NAME=MODEL, or leave it out of --name."
        )
    return evaluations


def _split_name(model: str) -> tuple[str | None, str]:
    """Split NAME=MODEL; the name is None if there is none."""
    name, separator, checkpoint = model.partition("=")
    return (name, checkpoint) if separator and name in NAMES else (None, model)


def _choose_names(arguments: Namespace, given: Sequence[str | None]) -> list[str]:
    """Return the names of the datasets: those of --name and NAME=MODEL, or the only one that is found."""
    if is_paired_data(arguments.data):
        return arguments.name or [name for name in dict.fromkeys(given) if name] or ["avss"]
    if not arguments.data.is_dir():
        raise FileNotFoundError(
            f"Folder {arguments.data} not found. Give AVSBench as downloaded, or a folder of clips."
        )
    chosen = [*(arguments.name or []), *(name for name in given if name)]
    if chosen:
        return list(dict.fromkeys(chosen))
    names = find_names(arguments.data)
    if not names:
        raise ValueError(f"No table of clips found in {arguments.data}. Supported datasets: {', '.join(NAMES)}.")
    if len(names) > 1:
        raise ValueError(f"{arguments.data} contains {' and '.join(names)}. Choose with --name.")
    return names


def _check_options(arguments: Namespace, names: Sequence[str]) -> None:
    """Check that each option applies to some of the datasets; [`_restrict`] leaves it out for the others."""
    applicable = {option: ("avss",) for option in AVSS_OPTIONS if getattr(arguments, option)}
    if not is_paired_data(arguments.data):
        applicable |= {option: OPTIONS[option] for option in _row_settings(arguments).given}
        if arguments.clips is not None:
            raise ValueError(f"--clips applies to paired data only, but {arguments.data} is a folder. Leave it out.")
    for option, supported in applicable.items():
        if not set(supported) & set(names):
            raise ValueError(
                f"--{option.replace('_', '-')} applies to {' and '.join(supported)} only, but the data are {' and '.join(names)}."
            )


def _restrict(arguments: Namespace, data: EvaluationClips) -> Namespace:
    """Return the options without those that do not apply to one of several datasets."""
    options = dict(vars(arguments))
    for option in AVSS_OPTIONS:
        options[option] = options[option] and data.name == "avss"
    options["per_class"] = options["per_class"] and _has_classes(data)
    return Namespace(**options)


def _has_classes(data: EvaluationClips) -> bool:
    """Return whether results by class can be computed."""
    return not data.binary or any(clip.objects for clip in data.clips)


def _default_output(arguments: Namespace, evaluations: Sequence[tuple[str, EvaluationClips]]) -> Path:
    """Return the folder of the results if none is given."""
    if len(evaluations) > 1:
        return Path(f"evaluation_{arguments.split}")
    checkpoint, data = evaluations[0]
    return Path(f"{Path(checkpoint).resolve().name}_on_{data.name}_{data.split}")


def _find_data(arguments: Namespace, name: str, *, several: bool) -> EvaluationClips:
    """Find the clips of a dataset, and check all their files before anything is computed."""
    if is_paired_data(arguments.data):
        return _generate_clips(arguments, name)
    settings = _row_settings(arguments)
    settings = settings.restrict(name) if several else settings
    return find_evaluation_clips(arguments.data, name, arguments.split, settings, arguments.on_error)


def _row_settings(arguments: Namespace) -> RowSettings:
    """Return the options for reading rows."""
    return RowSettings(
        label_noise=arguments.label_noise,
        log_mel=arguments.log_mel,
        frames_per_second=arguments.frames_per_second,
        subsets=tuple(arguments.subsets),
        binary=arguments.binary,
        missing_audio=arguments.missing_audio,
    )


def _generate_clips(arguments: Namespace, name: str) -> EvaluationClips:
    """Prepare clips of paired data."""
    if name == "folder" or _row_settings(arguments).given:
        raise ValueError(
            "Paired data support --name s4, ms3 or avss, and none of --label-noise, --log-mel, --subsets, --binary, "
            "--missing-audio and --frames-per-second."
        )
    if "off_screen" in arguments.negative_audio and arguments.off_screen_audio is None:
        raise ValueError(
            "--negative-audio off_screen: paired clips have no audio files. Give a folder with --off-screen-audio."
        )
    with PartialState().main_process_first():  # it prepares the cache of the photos and recordings, if there is one
        clips = arguments.clips or PAIRED_CLIPS
        return find_paired_clips(arguments.data, name, arguments.split, clips, arguments.seed)


def _check_compatibility(arguments: Namespace, checkpoint: str, config: PCMANetConfig, data: EvaluationClips) -> None:
    """Check that the checkpoint and the options fit these data."""
    labels = _labels(config)
    if len(labels) != len(data.labels):
        predicted, annotated = _describe_labels(labels), _describe_labels(data.labels)
        raise ValueError(
            f"{checkpoint} predicts {predicted}, but {data.name} has {annotated}. Choose a checkpoint for the data."
        )
    for index, name in enumerate(data.labels[1:], start=1):
        # Classes without names are called class 1, class 2 ... or LABEL_1, LABEL_2 ...
        if (predicted := labels[index]) not in (name, f"class {index}", f"LABEL_{index}"):
            raise ValueError(f"Class {index} is {predicted!r} in {checkpoint}, but {name!r} in {data.name}.")
    if arguments.published_no_background and data.binary:
        raise ValueError("--published-no-background is a mean over classes. Leave out this option or --binary.")
    if arguments.score_padding and arguments.original_resolution:
        raise ValueError(
            "Padded frames have no original resolution. Leave out --score-padding or --original-resolution."
        )


def _describe_labels(labels: Sized) -> str:
    """Describe masks with this number of labels."""
    return f"{len(labels)} classes" if len(labels) > 1 else "binary masks"


def _labels(config: PCMANetConfig) -> dict[int, str]:
    """Return the class names of a checkpoint; a binary checkpoint has a single one."""
    return cast(dict[int, str], config.id2label)


# One evaluation


def _evaluate(
    arguments: Namespace, checkpoint: str, data: EvaluationClips, output: Path, state: PartialState
) -> dict[str, Any]:
    """Evaluate a checkpoint on a dataset, write its report, and return its results, empty in other processes."""
    model, processor = load_model(checkpoint)
    cast(torch.nn.Module, model).to(state.device)
    if arguments.score_padding and state.is_main_process:
        _note_uncomputed_padding(checkpoint, cast(PCMANetConfig, model.config))
    reader = _create_reader(arguments, data, processor)
    progress = output / "progress"
    if arguments.dtype == "auto":
        chosen = str(model.choose_inference_dtype()[0]).removeprefix("torch.")
        arguments = Namespace(**{**vars(arguments), "dtype": chosen})
    settings = {"checkpoint": digest(model, processor), **_describe(arguments, reader, model.device)}
    with state.main_process_first():
        progress.mkdir(parents=True, exist_ok=True)
        keep_settings(progress / "settings.json", settings, "Give another --output, or remove that folder.")
    jobs, optimized = _list_jobs(arguments, reader), model.for_inference(getattr(torch, arguments.dtype))
    _compute_jobs(arguments, output, jobs, reader, optimized)
    state.wait_for_everyone()
    results: dict[str, Any] = {}
    if state.is_main_process:
        metrics, problems = _collect(arguments, progress, jobs, data)
        cost = _measure_cost(arguments, progress, optimized, reader)
        results = _report(arguments, checkpoint, settings, output, metrics, problems, cost, reader, optimized)
    state.wait_for_everyone()  # the speed is measured while no other process computes
    return results


def _note_uncomputed_padding(checkpoint: str, config: PCMANetConfig) -> None:
    """Print a note if a network does not compute the padded frames that are scored."""
    if config.padded_frames != "zeroed":
        print(
            f'note: {checkpoint} has padded_frames="{config.padded_frames}", so --score-padding counts padded frames as correct '
            'background. The results cannot be compared with published ones, which need padded_frames="zeroed".',
            file=sys.stderr,
        )


def _create_reader(arguments: Namespace, data: EvaluationClips, processor: PCMANetProcessor) -> EvaluationReader:
    """Create the reader of batches, with off-screen audio if it is evaluated."""
    off_screen: list[str] = []
    if "off_screen" in arguments.negative_audio:
        try:
            off_screen = find_off_screen_audio(data, arguments.off_screen_audio)
        except ValueError as error:
            raise ValueError(f"--negative-audio off_screen: {error} The option is --off-screen-audio.") from error
    frames = max(SECONDS_OF_SUBSET.values()) if arguments.score_padding else 0
    original = arguments.original_resolution or arguments.save_masks
    collate = ClipCollator(processor, data.binary)
    return EvaluationReader(data, collate, off_screen, arguments.seed, frames, original_labels=original)


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
        "original_resolution": arguments.original_resolution,
        "seed": arguments.seed,
        "device": device.type,
        "threads": arguments.threads,
        "dtype": arguments.dtype,
        "torch": torch.__version__,
        "pcmanet": __version__,
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
    arguments: Namespace, output: Path, jobs: Sequence[_Job], reader: EvaluationReader, model: OptimizedPCMANet
) -> None:
    """Compute the jobs of this process that are not done yet."""
    state = PartialState()
    masks = output / MASKS if arguments.save_masks else None
    assigned = jobs[state.process_index :: state.num_processes]
    pending = [job for job in assigned if not _is_done(job, output / "progress", masks, reader.data)]
    metrics = RobustnessMetrics(len(reader.data.labels), score_padding=arguments.score_padding)
    title = "evaluating" if state.num_processes == 1 else f"evaluating (process 1 of {state.num_processes})"
    done, hidden = len(assigned) - len(pending), not state.is_main_process
    with Progress(title, len(assigned), done, unit="batches", hidden=hidden) as progress:
        for job, (batch, clips, problems) in _load_batches(pending, reader, arguments):
            rows = torch.zeros(0)
            if batch is not None:
                outputs = _predict(model, batch)
                rows = _count(metrics[job.audio], outputs, batch, arguments.original_resolution)
                if masks is not None and job.audio == POSITIVE:
                    _save_masks(
                        [_mask_folder(masks, reader.data.clips[index]) for index in clips], outputs, batch, reader
                    )
            with atomic_file(output / "progress" / job.file, durable=False) as temporary:
                values = {"rows": rows, "clips": torch.tensor(clips, dtype=torch.long)}
                save_file(values, temporary, metadata={"problems": json.dumps([asdict(one) for one in problems])})
            progress.finish_one()


def _is_done(job: _Job, progress: Path, masks: Path | None, data: EvaluationClips) -> bool:
    """Return whether the counts of a job are written, and its masks if they are requested."""
    if not (progress / job.file).is_file():
        return False
    if masks is None or job.audio != POSITIVE:
        return True
    clips, _ = _read_counts(progress / job.file)[1:]
    return all(_mask_folder(masks, data.clips[index]).is_dir() for index in clips)


def _read_counts(path: Path) -> tuple[torch.Tensor, list[int], list[Problem]]:
    """Read the file of a job: a row of counts per clip, the positions of the clips, and the problems of skipped ones."""
    try:
        with safe_open(path, "pt") as file:
            problems = [Problem(**one) for one in json.loads(file.metadata()["problems"])]
            return file.get_tensor("rows"), file.get_tensor("clips").tolist(), problems
    except SafetensorError as error:  # after a power failure
        raise ValueError(
            f"{path} is damaged: {error}. Remove it and run the same command again; its batch is then computed again."
        ) from error


def _load_batches(
    jobs: Sequence[_Job], reader: EvaluationReader, arguments: Namespace
) -> Iterator[tuple[_Job, ReadBatch]]:
    """Read batches ahead in worker processes."""
    # Not a local function, because it is pickled for workers that are not forked.
    read: Any = partial(_read_job, reader, arguments.on_error)
    workers = min(arguments.num_workers, len(jobs))
    loader = DataLoader(
        cast(Any, jobs), batch_size=None, collate_fn=read, num_workers=workers, worker_init_fn=_stop_quietly
    )
    for job, batch in zip(jobs, loader, strict=True):
        if isinstance(batch, Exception):
            raise batch
        yield job, batch


def _stop_quietly(_: int) -> None:
    """Let a worker end without an error message when a batch system or a terminal stops all processes."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # Of the thread that hands over tensors, when the main process ends first.
    report = sys.excepthook
    sys.excepthook = lambda kind, *error: None if issubclass(kind, ConnectionError) else report(kind, *error)


def _read_job(reader: EvaluationReader, on_error: str, job: _Job) -> ReadBatch | Exception:
    """Read the batch of a job. User errors are returned, because a worker would wrap them in its traceback."""
    try:
        return reader.read(job.clips, job.audio), list(job.clips), []
    except Exception as error:
        if not is_user_error(error):
            raise
        return reader.read_usable(job.clips, job.audio) if on_error == "skip" else error


@torch.inference_mode()
def _predict(model: OptimizedPCMANet, batch: BatchFeature) -> PCMANetOutput:
    """Run the optimized model on a batch."""
    labels = ("labels", "annotated_frames", "original_labels")
    return model(**{name: values.to(model.device) for name, values in batch.items() if name not in labels})


@torch.inference_mode()
def _count(metrics: ClipMetrics, outputs: PCMANetOutput, batch: BatchFeature, original: bool) -> torch.Tensor:
    """Count a batch at the size of the network input, or of the frames: a row per clip."""
    logits = cast(torch.Tensor, outputs.logits).float()
    if not original:
        return metrics.count(logits, batch["labels"], batch.get("frame_mask"), batch["annotated_frames"])
    rows = []
    for clip, masks, annotated in zip(logits, batch["original_labels"], batch["annotated_frames"], strict=True):
        labels = torch.from_numpy(masks).to(clip.device, torch.long)[None]
        frames = [  # one at a time, because 71 classes at full size are large
            metrics.reduce(interpolate(frame[None], labels.shape[2:], mode="bilinear", align_corners=False)[None])
            for frame in clip[: labels.shape[1]]
        ]
        known = annotated[None, : labels.shape[1]].to(clip.device)
        rows.append(metrics.count_predictions(torch.cat(frames, dim=1), labels, None, known))
    return torch.cat(rows)


def _mask_folder(masks: Path, clip: Clip) -> Path:
    """Return the folder of the masks of a clip: its category (S4) and its name."""
    return masks / (getattr(clip, "category", None) or "") / clip.id


def _save_masks(
    folders: Sequence[Path], outputs: PCMANetOutput, batch: BatchFeature, reader: EvaluationReader
) -> None:
    """Write the masks of each clip at the size of its frames, `0.png` for the first: 0 and 255, or class indices."""
    processor = cast(PCMANetProcessor, reader.collate.processor)
    sizes = [labels.shape[1:] for labels in batch["original_labels"]]
    predicted = processor.post_process_semantic_segmentation(outputs, sizes, frame_mask=batch.get("frame_mask"))
    for folder, masks in zip(folders, predicted, strict=True):
        with atomic_folder(folder, overwrite=True, durable=False) as temporary:
            for number, mask in enumerate(masks.cpu().numpy().astype(np.uint8)):
                image = Image.fromarray(mask * np.uint8(255) if reader.data.binary else mask)
                if not reader.data.binary:
                    image.putpalette(voc_palette(256).tobytes())  # viewers show the classes, readers get their indices
                image.save(temporary / f"{number}.png")


def _measure_cost(
    arguments: Namespace, progress: Path, model: OptimizedPCMANet, reader: EvaluationReader
) -> dict[str, Any]:
    """Return parameters, multiply-accumulates and speed of the evaluated checkpoint; the speed is measured once."""
    file, processor = progress / "speed.json", cast(PCMANetProcessor, reader.collate.processor)
    if not file.is_file():
        speed = {"frames_per_second": measure_speed(model, processor), "device": _describe_device(arguments, model)}
        write_text(file, json.dumps(speed, indent=2) + "\n")
    parameters = sum(count_parameters(model.config).values())
    counts = {"parameters": parameters, "gmacs_per_frame": count_gmacs(model.config, processor)}
    return {**counts, **read_json(file, "Remove it and run the same command again.")}


def _describe_device(arguments: Namespace, model: OptimizedPCMANet) -> str:
    """Name the device on which the speed is measured, and the data type."""
    if model.device.type == "cuda":
        return f"{torch.cuda.get_device_name(model.device)}, {arguments.dtype}"
    return f"{model.device.type}, {arguments.threads} thread(s), {arguments.dtype}"


def _collect(
    arguments: Namespace, progress: Path, jobs: Sequence[_Job], data: EvaluationClips
) -> tuple[RobustnessMetrics, list[Problem]]:
    """Add up the counts of all processes, batch by batch, and list the problems of skipped clips."""
    metrics = RobustnessMetrics(len(data.labels), score_padding=arguments.score_padding)
    problems = dict.fromkeys(data.problems)
    for job in jobs:
        rows, clips, found = _read_counts(progress / job.file)
        problems |= dict.fromkeys(found)
        if clips:
            metrics[job.audio].append(rows, clips)
    recover(progress)
    if problems and (arguments.on_error == "raise" or not len(metrics[POSITIVE])):
        raise DatasetError(list(problems))
    positive = metrics[POSITIVE]
    if isinstance(positive, SemanticMetrics):
        positive.report_published_no_background = arguments.published_no_background
    return metrics, list(problems)


# Reports


def _report(
    arguments: Namespace,
    checkpoint: str,
    settings: dict[str, Any],
    output: Path,
    metrics: RobustnessMetrics,
    problems: Sequence[Problem],
    cost: dict[str, Any],
    reader: EvaluationReader,
    model: OptimizedPCMANet,
) -> dict[str, Any]:
    """Write the tables and the worst clips, print the main tables, and return the results."""
    data, positive = reader.data, metrics[POSITIVE]
    clips, by_protocol = clip_results(positive), protocol_results(metrics)
    results = _results(arguments, checkpoint, by_protocol, clips, problems, cost, reader)
    results["digest"] = settings["checkpoint"]
    results["skipped_clips"] = data.total - len(positive)
    report_skipped(problems, results["skipped_clips"], data.total, f"{data.name} {data.split}")
    table, rows = results_table(by_protocol), _comparison_rows(arguments, [results])
    text = _title(f"{checkpoint} on {data.name} {data.split}", arguments)
    text += f"{_scope(arguments, results)}\n\n{table}\n{_comparison(rows, [results])}"
    if arguments.per_class:
        results["classes"] = class_results(positive, data.labels, [clip.objects for clip in data.clips])
        text += f"\n## By class\n\n{class_table(results['classes'])}"
    if problems:
        listed = "".join(f"- {problem}\n" for problem in problems)
        text += f"\n## Skipped clips\n\n{results['skipped_clips']} of {data.total} clips:\n\n{listed}"
    if worst := worst_clips(clips, arguments.worst):
        ranked = [[data.clips[index].id, *(f"{value:.4f}" for value in clips[index].values())] for index in worst]
        text += f"\n## Worst clips\n\n{markdown_table(['clip', 'mIoU', 'F'], ranked)}"
        titles = [f"{place}. {name}: mIoU {miou}" for place, (name, miou, _) in enumerate(ranked, start=1)]
        sheets = [_draw_clip(reader, model, index, title) for index, title in zip(worst, titles, strict=True)]
        with atomic_file(output / "worst_clips.png") as temporary:
            _stack(sheets).save(temporary)
    write_text(output / "results.json", json.dumps(results, indent=2) + "\n")
    write_text(output / "results.md", text)
    write_text(output / "table.tex", latex_table(rows))
    print(f"\n{table}\n{comparison_table(rows)}\nresults  {output}")
    return results


def _results(
    arguments: Namespace,
    checkpoint: str,
    by_protocol: Results,
    clips: dict[int, dict[str, float]],
    problems: Sequence[Problem],
    cost: dict[str, Any],
    reader: EvaluationReader,
) -> dict[str, Any]:
    """Return the content of results.json, without results by class."""
    data, config = reader.data, load_config(checkpoint)
    size = cast(PCMANetProcessor, reader.collate.processor).image_processor.size
    return {
        "checkpoint": checkpoint,
        "data": str(arguments.data),
        "name": data.name,
        "split": data.split,
        "clips": len(clips),
        "frames": int(by_protocol["official"]["frames"]),
        "batch_size": arguments.batch_size,
        "dtype": arguments.dtype,
        "resolution": "original" if arguments.original_resolution else "network",
        "network": _network(config, size),
        "architecture": _architecture(config),
        "cost": cost,
        "metrics": by_protocol,
        "per_clip": [{"clip": data.clips[index].id, **values} for index, values in clips.items()],
        "skipped": [asdict(problem) for problem in problems],
    }


def _network(config: PCMANetConfig, size: dict[str, int]) -> str:
    """Name the visual backbone and the size of the frames."""
    backbone, (height, width) = config.backbone_config, (size["height"], size["width"])
    names = (getattr(backbone, field, None) for field in ("backbone", "architecture", "model_type"))
    name = next(filter(None, names), "unknown")
    return f"{name} @{height if height == width else f'{height}x{width}'}"


def _architecture(config: PCMANetConfig) -> str:
    """Return what checkpoints of one architecture and dataset have in common, whatever their weights and classes."""
    settings = json.dumps(_architecture_fields(config.to_dict()), sort_keys=True, default=str)
    return hashlib.sha256(settings.encode()).hexdigest()[:16]


def _architecture_fields(settings: Any) -> Any:
    """Remove the fields that name classes and versions from a configuration and those inside it."""
    if not isinstance(settings, dict):
        return settings
    return {key: _architecture_fields(value) for key, value in settings.items() if key not in NOT_ARCHITECTURE}


def _title(subject: str, arguments: Namespace) -> str:
    """Return the first lines of a report: its subject and the command that writes it."""
    return f"# {subject}\n\n    pcmanet {shlex.join(arguments.words)}\n\n"


def _scope(arguments: Namespace, results: dict[str, Any]) -> str:
    """Say what was counted, and how the protocols differ."""
    size = "the size of the frames" if arguments.original_resolution else "the input size of the network"
    return (
        f"{results['clips']} clips, {results['frames']} frames, scored at {size}. Ratios are computed per clip (official), per "
        f"{arguments.batch_size} clips (batch) or once for all pixels (dataset)."
    )


def _comparison_rows(arguments: Namespace, results: Sequence[dict[str, Any]]) -> list[Row]:
    """Return a row for each network, whose checkpoints differ by dataset and seed; and published rows on request."""
    rows = []
    for network in dict.fromkeys(one["network"] for one in results):
        for method, members in _variants([one for one in results if one["network"] == network]):
            found = [{"name": one["name"], **one["cost"], **_scores(one)} for one in members]
            rows.append(measured_row(method, network, found))
    return rows + (published_rows() if arguments.compare else [])


def _variants(results: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the rows of one backbone: one, or one per architecture if a dataset has several, which are not seeds.

    The architecture alone does not identify a network, because published networks differ slightly between S4 and MS3.
    """
    architectures = dict.fromkeys(one["architecture"] for one in results)
    pairs = {(one["name"], one["architecture"]) for one in results}
    if len(pairs) == len({name for name, _ in pairs}):
        return [("PCMANet", list(results))]
    groups = [[one for one in results if one["architecture"] == architecture] for architecture in architectures]
    return [(f"PCMANet, {members[0]['checkpoint']}", members) for members in groups]


def _scores(results: dict[str, Any]) -> dict[str, float]:
    """Return mIoU and F under the official protocol."""
    return {name: results["metrics"]["official"][name] for name in ("miou", "f_score")}


def _comparison(rows: Sequence[Row], results: Sequence[dict[str, Any]]) -> str:
    """Format the section of a report with the table for a paper."""
    devices = ", ".join(dict.fromkeys(one["cost"]["device"] for one in results))
    text = (
        "## In percent, official protocol\n\n"
        f"{comparison_table(rows)}\n"
        f"Costs of PCMANet: with the audio encoder; GMACs of convolutions and matrix products, and frames/s of the network alone, "
        f"for single clips of {CLIP_FRAMES} frames ({devices}). Several checkpoints: mean ± standard deviation.\n"
    )
    return text + "".join(f"\n- {source}" for source in describe_sources(rows)) + "\n"


def _report_comparison(arguments: Namespace, output: Path, results: Sequence[dict[str, Any]]) -> None:
    """Write and print the table of several evaluations."""
    rows = _comparison_rows(arguments, results)
    listed = [
        [one["name"], one["checkpoint"], *(f"{100 * value:.2f}" for value in _scores(one).values())] for one in results
    ]
    text = _title(f"{len(results)} evaluations, {arguments.split} split", arguments) + _comparison(rows, results)
    text += f"\n## By checkpoint\n\n{markdown_table(['data', 'checkpoint', 'mIoU, %', 'F, %'], listed)}"
    write_text(output / "results.json", json.dumps({"evaluations": list(results)}, indent=2) + "\n")
    write_text(output / "results.md", text)
    write_text(output / "table.tex", latex_table(rows))
    print(f"\n{comparison_table(rows)}\nresults  {output}")


def _draw_clip(reader: EvaluationReader, model: OptimizedPCMANet, index: int, title: str) -> Image.Image:
    """Draw the frames of a clip with the annotated masks above the predicted masks."""
    clip = reader.data.read(index)
    batch = reader.collate([clip])
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
        For each class in the mask, a segment as the pipeline returns it. Its score is the IoU with the target, NaN if
        nothing is annotated.
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
    """Stack images vertically."""
    tops = np.cumsum([0, *(sheet.height for sheet in sheets)]).tolist()
    stacked = Image.new("RGB", (max(sheet.width for sheet in sheets), tops.pop()), "white")
    for sheet, top in zip(sheets, tops, strict=True):
        stacked.paste(sheet, (0, top))
    return stacked
