"""What of a data set is there, what is missing and what is wrong, on one screen."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from pcmanet.dataset_scripts.avsbench import Source, find_clips, inspect_files, read_clip_row

from .files import read_picture
from .layouts import LAYOUTS, SPLITS, AVSBenchError, ClipFiles, Problem
from .masks import decode_colours, decode_indexes, foreign_share
from .rows import ProblemCollector, RowSettings


MOSTLY = 0.5  # share of foreign pixels from which a clip's labels are called noisy
CLIPS_AT_ONCE = 16  # that a process is handed

Result = TypeVar("Result")


@dataclass(frozen=True)
class Report:
    """What was found out about one data set.

    Attributes:
        name: Which.
        path: Its folder.
        clips: Clips in the table, per split.
        published: Clips in the published table, per split; None for one's own data.
        whole: Clips without fault, per split.
        faults: Everything that is wrong.
        notes: What was put right, or is strange without being wrong.
    """

    name: str
    path: Path
    clips: dict[str, int]
    published: dict[str, int] | None
    whole: dict[str, int]
    faults: list[Problem]
    notes: list[str]


def check(
    root: str | Path,
    name: str,
    settings: RowSettings,
    *,
    read: bool = True,
    num_proc: int = 1,
    progress: bool = False,
) -> Report:
    """Check a data set.

    Args:
        root: As for `find_clips`.
        name: Which data set.
        settings: What was chosen about rows.
        read: Whether to read every file, or only to look whether it is there and ends as it should.
        num_proc: Processes that read.
        progress: Whether to show a progress bar.

    Returns:
        The report.

    Raises:
        ValueError: As `find_clips`, when there are no clips to speak of.
    """
    tree = find_clips(root, name, settings)
    faults = inspect_files(tree.clips, settings)
    broken = {id(clip) for clip in tree.clips if faults and inspect_files([clip], settings)}
    rest = [clip for clip in tree.clips if id(clip) not in broken]
    noisy = 0
    if read:
        results = map_clips(partial(_read, settings=settings), rest, num_proc, f"reading {name}", progress)
        for clip, (found, foreign) in zip(rest, results, strict=True):
            faults += found
            noisy += foreign > MOSTLY
            broken |= {id(clip)} if found else set()
    notes = [*tree.notes]
    if noisy:
        notes.append(f"{noisy} clip(s) whose labels are mostly of classes that a_obj does not name")
    return Report(
        name,
        tree.path,
        _count(tree.clips),
        dict(LAYOUTS[name].published) if name in LAYOUTS else None,
        _count([clip for clip in tree.clips if id(clip) not in broken]),
        faults,
        notes,
    )


def map_clips(
    function: Callable[[Source], Result], clips: Sequence[Source], num_proc: int, title: str, progress: bool
) -> Iterator[Result]:
    """Apply a function to clips, in their order, in one or several processes."""
    bar = partial(tqdm, total=len(clips), desc=title, unit="clip", disable=not progress)
    if num_proc <= 1:
        yield from bar(map(function, clips))
        return
    with ProcessPoolExecutor(num_proc) as pool:
        yield from bar(pool.map(function, clips, chunksize=CLIPS_AT_ONCE))


def _read(clip: Source, settings: RowSettings) -> tuple[list[Problem], float]:
    """Read a clip: its faults, and the share of its labels that is foreign to `a_obj`."""
    try:
        row = read_clip_row(clip, settings)
    except AVSBenchError as error:
        return error.faults, 0.0
    if not isinstance(clip, ClipFiles) or clip.subset not in ("v1s", "v1m", "v2"):
        return [], 0.0
    masks = {path: mask["bytes"] for path, mask in zip(clip.masks, row["masks"], strict=True) if path}
    attempts = ProblemCollector(clip.id)
    for path, data in masks.items():
        attempts.run(_compare_colours, path, data)
    return attempts.faults, foreign_share([decode_indexes(data) for data in masks.values()], clip.objects or ())


def _compare_colours(path: str, indexes: bytes) -> None:
    """Raise ValueError if `labels_rgb` is there beside `labels_semantic` and means something else."""
    colours = Path(path).parent.parent / "labels_rgb" / Path(path).name
    if Path(path) == colours or not colours.is_file():
        return
    try:
        same = np.array_equal(decode_colours(read_picture(str(colours))[0]), decode_indexes(indexes))
    except ValueError as error:
        raise ValueError(f"its colours in {colours}: {error}") from error
    if not same:
        raise ValueError(f"means something else than its colours in {colours}; download both again")


def _count(clips: Sequence[Source]) -> dict[str, int]:
    return {split: sum(clip.split == split for clip in clips) for split in SPLITS}


def format_report(report: Report, most: int | None) -> str:
    """Write a report for people.

    Args:
        report: What was found out.
        most: How many faults to list; all if None.

    Returns:
        Lines.
    """
    lines = [f"{report.name}: {report.path}", f"  {'split':6}{'clips':>9}{'published':>11}{'whole':>9}"]
    for split in SPLITS:
        published = "-" if report.published is None else report.published[split]
        lines.append(f"  {split:6}{report.clips[split]:9}{published:>11}{report.whole[split]:9}")
    lines += [f"  note: {note}" for note in report.notes]
    lines += [f"  FAULT {fault}" for fault in report.faults[:most]]
    if most is not None and len(report.faults) > most:
        lines.append(f"  ... and {len(report.faults) - most} more faults; --all lists them")
    return "\n".join([*lines, f"  {len(report.faults)} fault(s)"])
