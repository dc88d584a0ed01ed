"""Clips of one split for an evaluation: found, checked, read in any order, and put under wrong sounds on request.

Files are read where they lie, without a prepared copy, and any process can read any clip: which batch a clip is in never
depends on how many processes there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from transformers import BatchFeature

from modeling_pcmanet.media_pcmanet import read_audio
from pcmanet.dataset_scripts.avsbench import (
    AVSBenchError,
    Source,
    find_clips,
    inspect_files,
    label_names,
    read_clip_row,
)
from pcmanet.dataset_scripts.avsbench.folder import VideoFiles, encode_wav
from pcmanet.dataset_scripts.avsbench.layouts import share_nothing
from pcmanet.dataset_scripts.avsbench.rows import RowSettings, row_features
from pcmanet.dataset_scripts.metrics.segmentation import (
    IGNORE_INDEX,
    Audio,
    ClipMetrics,
    Protocol,
    RobustnessMetrics,
    SemanticMetrics,
)

from .collation import ClipCollator


PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
POSITIVE, *NEGATIVES = get_args(Audio)
COUNTS = ("frames", "groups", "classes_seen")  # what `compute` returns beside measures
MEASURES = {
    "miou": "mIoU",
    "f_score": "F",
    "g_miou": "G-mIoU",
    "g_f_score": "G-F",
    "false_positive_rate": "false positives under wrong sounds",
    **{f"false_positive_rate_{kind}": f"false positives, {kind.replace('_', '-')}" for kind in NEGATIVES},
}
SLICES = {
    "_published_no_background": ', "no background" as published',
    "_no_background": ", no background",
    "_seen_classes": ", classes seen",
}

Figures = dict[str, dict[str, float]]  # protocol -> measure -> value


def protocol_figures(metrics: RobustnessMetrics) -> Figures:
    """Compute the measures under every protocol; those of wrong sounds if any was counted.

    Args:
        metrics: With the clips counted.

    Returns:
        Protocol -> measure -> value, as `compute` returns them.

    Raises:
        ValueError: Nothing was counted.
    """
    negative = any(len(metrics.parts[kind]) for kind in NEGATIVES)
    scored: RobustnessMetrics | ClipMetrics = metrics if negative else metrics.parts[POSITIVE]
    return {protocol: scored.compute(protocol) for protocol in PROTOCOLS}


def class_figures(
    metrics: ClipMetrics, names: Sequence[str], objects: Sequence[Sequence[str] | None]
) -> dict[str, Figures]:
    """Compute IoU and F by class.

    Classes of binary masks are what is heard: the figures of "dog" are those of the clips in which a dog is heard.

    Args:
        metrics: `BinaryMetrics` or `SemanticMetrics` with the clips counted, each under its index.
        names: Of the classes, the background first; unused for binary masks.
        objects: What is heard in each clip; only used for binary masks, may be None for a clip.

    Returns:
        Class -> protocol -> "miou" (of a class: its IoU) and "f_score"; only classes that were seen.
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
    heard = sorted({name for index in scored for name in objects[index] or ()})
    return {name: _subset_figures(metrics, [i for i in scored if name in (objects[i] or ())]) for name in heard}


def _subset_figures(metrics: ClipMetrics, clips: Sequence[int]) -> Figures:
    """Compute mIoU and F of some of the clips."""
    state = metrics.state_dict()
    kept = torch.isin(state["clip_indices"], torch.tensor(clips))
    columns = {name: state[name][kept] for name in ("clip_indices", "batch_indices", "rows")}
    subset = type(metrics)(score_padding=metrics.score_padding)
    subset.load_state_dict({**state, **columns})
    scores = {protocol: subset.compute(protocol) for protocol in PROTOCOLS}
    return {protocol: {name: values[name] for name in ("miou", "f_score")} for protocol, values in scores.items()}


def clip_figures(metrics: ClipMetrics) -> dict[int, dict[str, float]]:
    """Compute mIoU and F of each clip alone, by its index; over the classes seen in it if there are several."""
    suffix = "_seen_classes" if isinstance(metrics, SemanticMetrics) else ""
    return {
        index: {name: figures[name + suffix] for name in ("miou", "f_score")}
        for index, figures in metrics.per_clip().items()
    }


def worst_clips(figures: Mapping[int, Mapping[str, float]], count: int) -> list[int]:
    """The indices of the clips with the lowest mIoU, the worst first; of equals the first."""
    return sorted(figures, key=lambda index: (figures[index]["miou"], index))[:count]


def measure_name(key: str) -> str:
    """What a measure is called in tables.

    Example:
        >>> measure_name("f_score_no_background")
        'F, no background'
    """
    suffix = next((suffix for suffix in SLICES if key.endswith(suffix)), "")
    return MEASURES[key.removesuffix(suffix)] + SLICES.get(suffix, "")


def figures_table(figures: Figures) -> str:
    """Write measures as the rows and protocols as the columns of a Markdown table."""
    keys = [key for key in figures["official"] if key not in COUNTS]
    rows = [[measure_name(key), *(f"{figures[protocol][key]:.4f}" for protocol in PROTOCOLS)] for key in keys]
    return markdown_table(["", *PROTOCOLS], rows)


def class_table(figures: Mapping[str, Figures]) -> str:
    """Write classes as the rows, and IoU and F under each protocol as the columns of a Markdown table."""
    columns = [(protocol, key) for key in ("miou", "f_score") for protocol in PROTOCOLS]
    header = ["class", *(f"{'IoU' if key == 'miou' else 'F'}, {protocol}" for protocol, key in columns)]
    rows = [[name, *(f"{values[protocol][key]:.4f}" for protocol, key in columns)] for name, values in figures.items()]
    return markdown_table(header, rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table that reads well as plain text too.

    Args:
        header: Of the columns; the first is aligned left, all others right.
        rows: One text per column.

    Returns:
        The lines, with an end of line after each.
    """
    cells = [[text.replace("|", r"\|") for text in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [cells[0], rule, *cells[1:]]
    justified = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in justified)


SAMPLING_RATE = 16000  # of silence and noise, in hertz
NOISE_LEVEL = 0.1  # root mean square of white noise; full scale is 1


@dataclass(frozen=True)
class EvaluationClips:
    """The clips of one split.

    Attributes:
        name: "s4", "ms3", "avss" or "folder".
        split: "train", "val" or "test".
        table: The table that lists the clips.
        clips: Where the files of each clip lie, in the order of the table.
        settings: What was chosen about rows.
        labels: Names of the classes; a single one if masks are binary.
    """

    name: str
    split: str
    table: Path
    clips: Sequence[Source]
    settings: RowSettings
    labels: tuple[str, ...]

    @property
    def binary(self) -> bool:
        """Whether masks only tell sounding from silent."""
        return len(self.labels) == 1

    def row(self, index: int) -> dict[str, Any]:
        """Read one clip as `load_avsbench` does, pictures decoded.

        Args:
            index: Position in `clips`.

        Returns:
            The row; see `avsbench_rows` for the columns.

        Raises:
            AVSBenchError: Naming every file of the clip that cannot be used.
        """
        return row_features(self.settings.log_mel).decode_example(read_clip_row(self.clips[index], self.settings))


def find_evaluation_clips(root: str | Path, name: str, split: str, settings: RowSettings) -> EvaluationClips:
    """Find the clips of a split, and all their files that are missing or cut short.

    Args:
        root: As for `load_avsbench`.
        name: "s4", "ms3", "avss" or "folder".
        split: "train", "val" or "test".
        settings: What was chosen about rows.

    Returns:
        The clips.

    Raises:
        ValueError: If the table has no clip of the split, or a setting is not for these data.
        AVSBenchError: Naming all lines of the table and all files that cannot be used.
    """
    tree = find_clips(root, name, settings)
    clips = [clip for clip in tree.clips if clip.split == split]
    if not clips:
        splits = sorted({clip.split for clip in tree.clips})
        raise ValueError(f"{tree.table} has no clips of split {split!r}, only of {', '.join(splits)}")
    if faults := inspect_files(clips, settings):
        raise AVSBenchError(faults)
    return EvaluationClips(name, split, tree.table, clips, settings, label_names(root, name))


def find_off_screen_sounds(data: EvaluationClips, folder: Path | None = None) -> list[str]:
    """Find for each clip a file whose sound belongs to nothing in it.

    Args:
        data: The clips.
        folder: Sounds that are taken in turns. If None, the sound of the next clip in the table that shares nothing with
            this one (`share_nothing`); so never for MS3, whose table does not tell what is heard.

    Returns:
        One path per clip.

    Raises:
        FileNotFoundError: If the folder holds no file.
        ValueError: If no other clip's sound is surely wrong.
    """
    if folder is not None:
        sounds = sorted(str(path) for path in folder.rglob("*") if path.is_file())
        if not sounds:
            raise FileNotFoundError(f"there are no files in {folder}; give a folder of sounds")
        return [sounds[index % len(sounds)] for index in range(len(data.clips))]
    donors = []
    for index, clip in enumerate(data.clips):
        others = (*data.clips[index + 1 :], *data.clips[:index])
        donor = next((other for other in others if share_nothing(other.objects, clip.objects)), None)
        if donor is None:
            problem = f"{data.table} names no clip in which surely nothing is heard that is heard in {clip.id!r}"
            raise ValueError(f"{problem}; give a folder of other sounds")
        donors.append(donor.path if isinstance(donor, VideoFiles) else donor.audio)
    return donors


@dataclass(frozen=True)
class EvaluationReader:
    """Makes batches of clips under their own or a wrong sound.

    Attributes:
        data: The clips.
        collate: Brings rows to a batch.
        off_screen: From `find_off_screen_sounds`; may be empty if "off_screen" is never asked for.
        seed: Of the noise, from 0 up.
        frames: To which number of frames batches are filled up at least, as the published AVSS evaluation does with 10.
    """

    data: EvaluationClips
    collate: ClipCollator
    off_screen: Sequence[str] = ()
    seed: int = 0
    frames: int = 0

    def read(self, indices: Sequence[int], audio: Audio = "positive") -> BatchFeature:
        """Make a batch.

        Args:
            indices: Positions of its clips.
            audio: The clips' own sound, or by what it is replaced. A clip gets the same sound in every run.

        Returns:
            The batch of the processor's table. Labels are those of the clips' own sound; `RobustnessMetrics` knows.

        Raises:
            ValueError: If a clip cannot be used; AVSBenchError names every file of it.
        """
        batch = self.collate([self._row(index, audio) for index in indices])
        missing = max(0, self.frames - batch["frame_mask"].shape[1])
        for name, values in batch.items():
            fill = IGNORE_INDEX if name == "labels" else 0
            batch[name] = torch.cat([values, values.new_full((len(values), missing, *values.shape[2:]), fill)], dim=1)
        return batch

    def _row(self, index: int, audio: Audio) -> dict[str, Any]:
        """Read a clip, and put a wrong sound under it if asked to."""
        row = self.data.row(index)
        if audio == "positive":
            return row
        seconds = len(row["frames"]) / self.data.settings.frames_per_second
        return row | {"audio": {"path": None, "bytes": self._wrong_sound(index, audio, seconds)}, "log_mel": None}

    def _wrong_sound(self, index: int, audio: Audio, seconds: float) -> bytes:
        """Make a wav of a sound that belongs to nothing in a clip."""
        samples = round(seconds * SAMPLING_RATE)
        if audio == "silence":
            return encode_wav(np.zeros((1, samples)), SAMPLING_RATE)
        if audio == "noise":
            generator = np.random.default_rng((self.seed, index))
            return encode_wav(generator.normal(0, NOISE_LEVEL, (1, samples)), SAMPLING_RATE)
        waveform, rate = read_audio(self.off_screen[index])
        return encode_wav(np.resize(waveform.mean(axis=0), (1, round(seconds * rate))), rate)
