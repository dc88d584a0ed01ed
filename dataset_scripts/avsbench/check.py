"""Check the files of a dataset: what is complete, missing or damaged."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from pcmanet.dataset_scripts import SPLITS
from pcmanet.dataset_scripts.avsbench import Clip, RowSettings, find_clips, inspect_files, read_row
from pcmanet.dataset_scripts.problems import DatasetError, Problem, ProblemCollector

from .layouts import LAYOUTS, PUBLISHED_SUBSETS, ClipFiles
from .masks import decode_mask, unlisted_fraction
from .rows import SHORT_AUDIO, SHORTEST_AUDIO, audio_seconds, read_image


NOISY = 0.5  # fraction of pixels of unlisted classes above which the labels of a clip count as noisy
CLIPS_AT_ONCE = 16  # clips per task of a process

Result = TypeVar("Result")


@dataclass(frozen=True)
class Report:
    """Result of checking one dataset.

    Attributes:
        name: Name of the dataset.
        folder: Its folder.
        clips: Clips in the table, per split.
        published: Clips in the published table of the dataset or of its chosen subsets, per split; None for a custom folder.
        complete: Clips without problems, per split.
        problems: All problems.
        notes: Corrections and peculiarities that are not errors.
    """

    name: str
    folder: Path
    clips: dict[str, int]
    published: dict[str, int] | None
    complete: dict[str, int]
    problems: list[Problem]
    notes: list[str]

    def format(self, max_problems: int | None = None) -> str:
        """Format the report as text.

        Args:
            max_problems: How many problems to list; None lists all.

        Returns:
            Lines without a final line break.
        """
        lines = [f"{self.name}: {self.folder}", f"  {'split':6}{'clips':>9}{'published':>11}{'complete':>10}"]
        for split in SPLITS:
            published = "-" if self.published is None else self.published[split]
            lines.append(f"  {split:6}{self.clips[split]:9}{published:>11}{self.complete[split]:10}")
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  problem: {problem}" for problem in self.problems[:max_problems]]
        if max_problems is not None and len(self.problems) > max_problems:
            lines.append(f"  ... and {len(self.problems) - max_problems} more problems, list them with --all")
        return "\n".join([*lines, f"  {len(self.problems)} problem(s)"])


def check(
    root: str | Path,
    name: str,
    settings: RowSettings,
    *,
    read: bool = True,
    num_proc: int = 1,
    progress: bool = False,
) -> Report:
    """Check a dataset.

    Args:
        root: As for `find_clips`.
        name: "s4", "ms3", "avss" or "folder".
        settings: Row options.
        read: Whether to read every file, or only check that it exists and is not truncated.
        num_proc: Number of processes that read.
        progress: Whether to show a progress bar.

    Returns:
        The report.

    Raises:
        OSError, ValueError: As for `find_clips`.
    """
    tree = find_clips(root, name, settings)
    problems = inspect_files(tree.clips, settings)
    unusable = {id(clip) for clip in tree.clips if problems and inspect_files([clip], settings)}
    noisy = 0
    # Only reading tells which videos have no audio and therefore empty masks.
    may_be_silent = settings.missing_audio == "silence" and not read
    annotated = {clip.split for clip in tree.clips if clip.masks or may_be_silent}
    if read:
        remaining = [clip for clip in tree.clips if id(clip) not in unusable]
        results = _map_clips(partial(_read, settings=settings), remaining, num_proc, f"reading {name}", progress)
        for clip, (found, unlisted, is_annotated) in zip(remaining, results, strict=True):
            problems += found
            noisy += unlisted > NOISY
            annotated |= {clip.split} if is_annotated else set()
            unusable |= {id(clip)} if found else set()
    usable = [clip for clip in tree.clips if id(clip) not in unusable]
    notes = [*tree.notes, *_describe_audio(usable, settings)]
    unannotated = sorted({clip.split for clip in tree.clips} - annotated, key=SPLITS.index)
    notes += [
        f"no frame of split {split!r} is annotated; neither training nor evaluation can use it"
        for split in unannotated
    ]
    if noisy:
        notes.append(f"{noisy} clip(s) whose labels are mostly of classes that a_obj does not list")
    return Report(
        name,
        tree.table.parent,
        _count(tree.clips),
        _count_published(name, settings),
        _count(usable),
        [*tree.problems, *problems],
        notes,
    )


def _describe_audio(clips: Sequence[Clip], settings: RowSettings) -> Iterator[str]:
    """Yield a note on clips whose wav is unusual but not a problem."""
    seconds = [(audio_seconds(clip.audio), len(clip.frames)) for clip in clips if isinstance(clip, ClipFiles)]
    unusable = sum(found is None or found < SHORTEST_AUDIO for found, _ in seconds)
    if settings.log_mel and unusable:
        yield f"{unusable} clip(s) without a usable wav, which their log-mel features replace"
    if short := sum(found is not None and SHORTEST_AUDIO <= found < frames - SHORT_AUDIO for found, frames in seconds):
        yield (
            f"{short} clip(s) whose audio ends more than {SHORT_AUDIO} s before the last frame: as in AVSBench's preparation, "
            "the last log-mel patch is repeated (S4, MS3) or zeros follow (AVSS)"
        )


def _count_published(name: str, settings: RowSettings) -> dict[str, int] | None:
    """Return the number of clips per split in the published table; for AVSS, in the chosen subsets."""
    if name not in LAYOUTS:
        return None
    if not settings.subsets:
        return dict(LAYOUTS[name].published)
    return {split: sum(PUBLISHED_SUBSETS[subset][split] for subset in settings.subsets) for split in SPLITS}


def _map_clips(
    function: Callable[[Clip], Result], clips: Sequence[Clip], num_proc: int, title: str, progress: bool
) -> Iterator[Result]:
    """Apply a function to clips, in order, in one or several processes."""
    bar = partial(tqdm, total=len(clips), desc=title, unit="clip", disable=not progress)
    if num_proc <= 1:
        yield from bar(map(function, clips))
        return
    with ProcessPoolExecutor(num_proc) as pool:
        yield from bar(pool.map(function, clips, chunksize=CLIPS_AT_ONCE))


def _read(clip: Clip, settings: RowSettings) -> tuple[list[Problem], float, bool]:
    """Read a clip: its problems, the fraction of its labels that `a_obj` does not list, and whether it is annotated."""
    try:
        row = read_row(clip, settings)
    except DatasetError as error:
        return error.problems, 0.0, False
    is_annotated = any(row["annotated_frames"])
    if not isinstance(clip, ClipFiles) or clip.mask_encoding == "binary" or settings.binary:
        return [], 0.0, is_annotated
    masks = {
        path: decode_mask(mask["bytes"], "indices")
        for path, mask in zip(clip.masks, row["masks"], strict=True)
        if path
    }
    collector = ProblemCollector(clip.id)
    for path, indices in masks.items():
        collector.run(_compare_colors, path, indices)
    return collector.problems, unlisted_fraction(list(masks.values()), clip.objects or ()), is_annotated


def _compare_colors(path: str, indices: np.ndarray) -> None:
    """Raise ValueError if `labels_rgb` exists next to `labels_semantic` and encodes other classes."""
    colors = Path(path).parent.parent / "labels_rgb" / Path(path).name
    if Path(path) == colors or not colors.is_file():
        return
    try:
        same = np.array_equal(decode_mask(read_image(str(colors))[0], "colors"), indices)
    except ValueError as error:
        raise ValueError(f"Unusable colors in {colors}: {error}") from error
    if not same:
        raise ValueError(f"The class indices differ from the colors in {colors}. Download both again.")


def _count(clips: Sequence[Clip]) -> dict[str, int]:
    return {split: sum(clip.split == split for clip in clips) for split in SPLITS}
