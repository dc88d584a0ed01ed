"""Evaluation of a model on the clips of a split: find and read the clips, replace their audio, tabulate the metrics.

Files are read in place, without a prepared copy, and any process can read any clip. Batches therefore do not depend on the
number of processes.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from transformers import BatchFeature

from modeling_pcmanet.media_pcmanet import read_audio
from modeling_pcmanet.media_writing_pcmanet import encode_wav
from pcmanet.dataset_scripts.problems import DatasetError, Problem

from .avsbench import find_clips
from .avsbench.layouts import BINARY_LABELS, NO_CLASS, Clip, ClipFiles, have_disjoint_objects, label_names
from .avsbench.rows import RowSettings, inspect_files, read_row, row_features
from .clips import ClipArrays, to_arrays
from .collation import ClipCollator, check_log_mel, real_frames
from .metrics.segmentation import IGNORE_INDEX, Audio, ClipMetrics, Protocol, RobustnessMetrics, SemanticMetrics
from .paired.clips import PairedClips
from .paired.library import Library
from .paired.settings import read_settings


PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
POSITIVE, *NEGATIVES = get_args(Audio)
COUNTS = ("frames", "groups", "classes_seen")  # the values that `compute` returns in addition to metrics
METRIC_NAMES = {
    "miou": "mIoU",
    "f_score": "F",
    "g_miou": "G-mIoU",
    "g_f_score": "G-F",
    "false_positive_rate": "false-positive rate, negative audio",
    **{f"false_positive_rate_{kind}": f"false-positive rate, {kind.replace('_', '-')}" for kind in NEGATIVES},
}
CLASS_SUBSETS = {
    "_published_no_background": ', "no background" as published',
    "_no_background": ", no background",
    "_seen_classes": ", seen classes",
}
SAMPLING_RATE = 16000  # of silence and noise, in hertz
NOISE_LEVEL = 0.1  # root mean square of white noise; full scale is 1

Results = dict[str, dict[str, float]]  # protocol -> metric -> value


@dataclass(frozen=True)
class EvaluationClips:
    """The clips of a split.

    Attributes:
        name: "s4", "ms3", "avss" or "folder".
        split: "train", "val" or "test".
        table: The table that lists the clips.
        clips: The files of each clip, in the order of the table.
        settings: Row options.
        labels: Names of the classes; a single one if masks are binary.
        identity: Identifies what generated clips depend on; empty if the clips are files.
        problems: Why clips of the table were left out.
        total: Number of clips in the table, including those left out.
    """

    name: str
    split: str
    table: Path
    clips: Sequence[Clip]
    settings: RowSettings
    labels: tuple[str, ...]
    identity: str = ""
    problems: Sequence[Problem] = ()
    total: int = 0

    @property
    def binary(self) -> bool:
        """Whether masks are binary (sounding or not) instead of class indices."""
        return len(self.labels) == 1

    def read(self, index: int) -> ClipArrays:
        """Read a clip as `load_avsbench` does.

        Args:
            index: Position in `clips`.

        Raises:
            DatasetError: If files of the clip cannot be used; the error lists all of them.
        """
        row = row_features(self.settings.log_mel).decode_example(read_row(self.clips[index], self.settings))
        return to_arrays(row, self.binary)


@dataclass(frozen=True, kw_only=True)
class PairedEvaluationClips(EvaluationClips):
    """Generated clips of paired data.

    Attributes:
        generated: The clips.
    """

    generated: PairedClips

    def read(self, index: int) -> ClipArrays:
        """Generate a clip exactly as in training."""
        return self.generated[index]


def find_paired_clips(path: str | Path, name: str, split: str, length: int, seed: int) -> PairedEvaluationClips:
    """Prepare generated clips of paired data.

    Args:
        path: The settings file.
        name: Rule for the masks: "s4", "ms3" or "avss".
        split: "train", "val" or "test".
        length: Number of clips.
        seed: Seed of the clips.

    Returns:
        The clips, without stand-ins: a recording of another class is correct only with exchanged scores, as in
        training. The sounding objects are listed only for binary masks, from which they cannot be read.

    Raises:
        ValueError: If an argument is unknown, or the split has no photos.
        DatasetError: If the settings or files cannot be used; the error lists all problems.
    """
    library = Library(read_settings(path, {"stand_ins": False}), progress=True)
    generated = PairedClips(library, name, split, length=length, seed=seed)
    names = generated.library.settings.class_names
    clips = []
    for index in range(length):
        objects = None
        if generated.binary:
            objects = tuple(names[label] for label in generated[index].sounding_objects())
        label = f"{split} {index}"
        clips.append(ClipFiles(label, label, split, name, None, objects, (), (), "indices", "", None))
    labels = BINARY_LABELS if generated.binary else names
    return PairedEvaluationClips(
        *(name, split, Path(path), clips, RowSettings(), labels, generated.identity),
        total=length,
        generated=generated,
    )


def find_evaluation_clips(
    root: str | Path, name: str, split: str, settings: RowSettings, on_error: str = "raise"
) -> EvaluationClips:
    """Find the clips of a split and check that their files exist and are complete.

    Args:
        root: As for `load_avsbench`.
        name: "s4", "ms3", "avss" or "folder".
        split: "train", "val" or "test".
        settings: Row options.
        on_error: "raise" an error that lists every problem, or "skip" clips with problems.

    Returns:
        The clips, in the order of the table.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If the name is unknown, an option does not apply to the dataset, or the split has no clips.
        DatasetError: If lines of the table or files cannot be used and are not skipped; the error lists all of them.
    """
    tree = find_clips(root, name, settings)
    clips = tree.clips_of(split)
    problems = [*tree.problems, *inspect_files(clips, settings)]
    if problems and on_error == "raise":
        raise DatasetError(problems)
    usable = [clip for clip in clips if not problems or not inspect_files([clip], settings)]
    labels = label_names(root, name, binary=settings.binary)
    return EvaluationClips(*(name, split, tree.table, usable, settings, labels), problems=problems, total=len(clips))


def find_off_screen_audio(data: EvaluationClips, folder: Path | None = None) -> list[str]:
    """Find, for each clip, an audio file that belongs to no object in the clip.

    Args:
        data: The clips.
        folder: Folder of audio files, which are assigned in turn. If None, each clip gets the audio of the next clip
            in the table with disjoint objects (`have_disjoint_objects`); without objects in the table, those that its
            masks imply. This never works for MS3, whose table does not list objects.

    Returns:
        One path per clip.

    Raises:
        FileNotFoundError: If the folder contains no file.
        ValueError: If no other clip has disjoint objects.
    """
    if folder is not None:
        files = sorted(str(path) for path in folder.rglob("*") if path.is_file())
        if not files:
            raise FileNotFoundError(f"No files found in {folder}. Give a folder of audio files.")
        return [files[index % len(files)] for index in range(len(data.clips))]
    donors = []
    for index, clip in enumerate(data.clips):
        others = (*data.clips[index + 1 :], *data.clips[:index])
        objects = clip.objects or _read_objects(data, index)
        donor = next((other for other in others if have_disjoint_objects(other.objects, objects)), None)
        if donor is None:
            raise ValueError(
                f"No clip found in {data.table} whose objects are known to differ from those of {clip.id!r}. "
                "Give a folder of other audio files."
            )
        donors.append(donor.audio)
    return donors


def _read_objects(data: EvaluationClips, index: int) -> frozenset[str] | None:
    """Return the objects of a clip that the table does not list: those of a clip with empty masks are known."""
    try:
        return data.read(index).objects
    except DatasetError:  # reported when the clip is evaluated
        return None


@dataclass(frozen=True)
class EvaluationReader:
    """Read batches of clips with their own audio or with negative audio.

    Attributes:
        data: The clips.
        collate: Builds a batch from rows.
        off_screen: From `find_off_screen_audio`; may be empty if "off_screen" is not read.
        seed: Seed of the noise, 0 or more.
        frames: Minimum number of frames to which batches are padded; the published AVSS evaluation uses 10.
        original_labels: Whether batches also have the labels at the size of the frames.

    Raises:
        ValueError: If the published log-mel features are read, but the collator's processor computes other features.
    """

    data: EvaluationClips
    collate: ClipCollator
    off_screen: Sequence[str] = ()
    seed: int = 0
    frames: int = 0
    original_labels: bool = False

    def __post_init__(self) -> None:
        if self.data.settings.log_mel:
            check_log_mel(self.collate.processor)

    def read(self, indices: Sequence[int], audio: Audio = "positive") -> BatchFeature:
        """Read a batch.

        Args:
            indices: Positions of its clips.
            audio: "positive" for the clips' own audio, or the type of negative audio that replaces it. A clip gets the
                same replacement in every run.

        Returns:
            The batch as documented in the processor's module. Labels are those of the clips' own audio, as
            `RobustnessMetrics` expects them. With `original_labels`, the batch also has the labels of each clip at the
            size of its frames, uint8 (frames, height, width), 255 where nothing is annotated.

        Raises:
            ValueError: If a clip cannot be used; DatasetError lists all its problems.
        """
        clips = [self._clip(index, audio) for index in indices]
        batch = self.collate(clips)
        missing = max(0, self.frames - batch["pixel_values"].shape[1])
        if missing:
            batch["frame_mask"] = real_frames(batch)
        for name, values in batch.items():
            fill = IGNORE_INDEX if name == "labels" else 0
            batch[name] = torch.cat([values, values.new_full((len(values), missing, *values.shape[2:]), fill)], dim=1)
        if self.original_labels:
            batch["original_labels"] = [clip.masks for clip in clips]
        return batch

    def read_usable(
        self, indices: Sequence[int], audio: Audio = "positive"
    ) -> tuple[BatchFeature | None, list[int], list[Problem]]:
        """Read a batch without the clips that cannot be used.

        Args:
            indices: Positions of its clips.
            audio: As for [`read`].

        Returns:
            The batch, or None if no clip is left; the positions of its clips; and the problems of the others.
        """
        problems = [problem for index in indices for problem in self._problems(index, audio)]
        unusable = {problem.clip for problem in problems}
        usable = [index for index in indices if self.data.clips[index].id not in unusable]
        return self.read(usable, audio) if usable else None, usable, problems

    def _problems(self, index: int, audio: Audio) -> list[Problem]:
        """Return why a clip cannot be used; empty if it can."""
        try:
            self.read([index], audio)
        except DatasetError as error:
            return error.problems
        except (ValueError, OSError) as error:
            return [Problem(self.data.clips[index].id, str(self.data.table), str(error))]
        return []

    def _clip(self, index: int, audio: Audio) -> ClipArrays:
        """Read a clip and replace its audio if `audio` is negative."""
        clip = self.data.read(index)
        if audio == "positive":
            return clip
        seconds = len(clip.frames) / self.data.settings.frames_per_second
        if clip.waveform is not None and clip.sampling_rate:
            # Generated clips may have audio before their first and after their last frame.
            seconds = max(seconds, clip.waveform.shape[-1] / clip.sampling_rate)
        waveform, rate = read_audio(self._negative_audio(index, audio, seconds))
        return replace(clip, waveform=waveform, sampling_rate=rate, log_mel=None)

    def _negative_audio(self, index: int, audio: Audio, seconds: float) -> bytes:
        """Return a wav file of negative audio for a clip."""
        samples = round(seconds * SAMPLING_RATE)
        if audio == "silence":
            return encode_wav(np.zeros((1, samples)), SAMPLING_RATE)
        if audio == "noise":
            generator = np.random.default_rng((self.seed, index))
            return encode_wav(generator.normal(0, NOISE_LEVEL, (1, samples)), SAMPLING_RATE)
        waveform, rate = read_audio(self.off_screen[index])
        return encode_wav(np.resize(waveform.mean(axis=0), (1, round(seconds * rate))), rate)


def protocol_results(metrics: RobustnessMetrics) -> Results:
    """Compute the metrics under every protocol, including those of negative audio if any was counted.

    Args:
        metrics: Metrics that have counted the clips.

    Returns:
        Protocol -> metric -> value, as `compute` returns them.

    Raises:
        ValueError: If nothing was counted.
    """
    negative = any(len(metrics[kind]) for kind in NEGATIVES)
    scored: RobustnessMetrics | ClipMetrics = metrics if negative else metrics[POSITIVE]
    return {protocol: scored.compute(protocol) for protocol in PROTOCOLS}


def class_results(
    metrics: ClipMetrics, names: Sequence[str], objects: Sequence[Sequence[str] | None]
) -> dict[str, Results]:
    """Compute IoU and F by class.

    With binary masks, the classes are the sounding objects: the results of "dog" are those of the clips with a dog.

    Args:
        metrics: `BinaryMetrics` or `SemanticMetrics` that have counted the clips by index.
        names: Names of the classes, background first; not used for binary masks.
        objects: The sounding objects of each clip, None if unknown; only used for binary masks.

    Returns:
        Class -> protocol -> "miou" (the IoU of the class) and "f_score", for the classes that occur.
    """
    if isinstance(metrics, SemanticMetrics):
        tables = {protocol: metrics.per_class(protocol) for protocol in PROTOCOLS}
        return {
            name: {
                protocol: {"miou": table["iou"][index].item(), "f_score": table["f_score"][index].item()}
                for protocol, table in tables.items()
            }
            for index, name in enumerate(names)
            if tables["dataset"]["seen"][index]
        }
    scored = metrics.per_clip()
    classes = sorted({name for index in scored for name in objects[index] or ()} - {*NO_CLASS})
    return {name: _subset_results(metrics, [i for i in scored if name in (objects[i] or ())]) for name in classes}


def _subset_results(metrics: ClipMetrics, clips: Sequence[int]) -> Results:
    """Compute mIoU and F of some of the clips."""
    state = metrics.state_dict()
    kept = torch.isin(state["clip_indices"], state["clip_indices"].new_tensor(clips))
    columns = {name: state[name][kept] for name in ("clip_indices", "batch_indices", "rows")}
    subset = copy.copy(metrics)
    subset.load_state_dict({**state, **columns})
    scores = {protocol: subset.compute(protocol) for protocol in PROTOCOLS}
    return {protocol: {name: values[name] for name in ("miou", "f_score")} for protocol, values in scores.items()}


def clip_results(metrics: ClipMetrics) -> dict[int, dict[str, float]]:
    """Compute mIoU and F of each clip, by index; semantic metrics are means over the classes in the clip."""
    suffix = "_seen_classes" if isinstance(metrics, SemanticMetrics) else ""
    return {
        index: {name: scores[name + suffix] for name in ("miou", "f_score")}
        for index, scores in metrics.per_clip().items()
    }


def worst_clips(results: Mapping[int, Mapping[str, float]], count: int) -> list[int]:
    """Return the indices of the clips with the lowest mIoU, in ascending order; ties are ordered by index."""
    return sorted(results, key=lambda index: (results[index]["miou"], index))[:count]


def metric_name(key: str) -> str:
    """Return the name of a metric in tables.

    Example:
        >>> metric_name("f_score_no_background")
        'F, no background'
    """
    suffix = next((suffix for suffix in CLASS_SUBSETS if key.endswith(suffix)), "")
    return METRIC_NAMES[key.removesuffix(suffix)] + CLASS_SUBSETS.get(suffix, "")


def results_table(results: Results) -> str:
    """Format results as a Markdown table with a row per metric and a column per protocol."""
    keys = [key for key in results["official"] if key not in COUNTS]
    rows = [[metric_name(key), *(f"{results[protocol][key]:.4f}" for protocol in PROTOCOLS)] for key in keys]
    return markdown_table(["", *PROTOCOLS], rows)


def class_table(results: Mapping[str, Results]) -> str:
    """Format results as a Markdown table with a row per class, and columns for IoU and F under each protocol."""
    columns = [(protocol, key) for key in ("miou", "f_score") for protocol in PROTOCOLS]
    header = ["class", *(f"{'IoU' if key == 'miou' else 'F'}, {protocol}" for protocol, key in columns)]
    rows = [[name, *(f"{values[protocol][key]:.4f}" for protocol, key in columns)] for name, values in results.items()]
    return markdown_table(header, rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table whose columns are also aligned in plain text.

    Args:
        header: Column names; the first column is aligned left, all others right.
        rows: One text per column.

    Returns:
        The lines, each ending in a line break.
    """
    cells = [[text.replace("|", r"\|") for text in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [cells[0], rule, *cells[1:]]
    justified = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in justified)
