"""AVSBench's three trees and one's own folder behind one door: find the clips, inspect their files, read them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_pcmanet.configuration_pcmanet import AVSBENCH_SEMANTIC_LABELS

from .avsbench_files import inspect_clips
from .avsbench_folder import TABLE, VideoFiles, find_folder, inspect_videos, read_class_names, read_video_row
from .avsbench_rows import RowSettings, read_row
from .avsbench_tables import AVSBenchError, Fault
from .avsbench_trees import LAYOUTS, ClipFiles, Tree, find_tree, locate_table


FOLDER = "folder"
NAMES = (*LAYOUTS, FOLDER)
BINARY_LABELS = ("sounding",)

Source = ClipFiles | VideoFiles


def find_clips(root: str | Path, name: str, settings: RowSettings) -> Tree:
    """Find a data set.

    Args:
        root: "s4", "ms3", "avss": the tree as downloaded or the folder above it; "folder": the folder of clips.csv.
        name: Which of the four.
        settings: What was chosen about rows.

    Returns:
        The tree with the clips of all splits.

    Raises:
        ValueError: If the name is unknown, or the settings are not for it.
        AVSBenchError: If there is no table of clips or it cannot be used; every bad line is named.
    """
    if name not in NAMES:
        raise ValueError(f"name is {name!r}; choose one of {NAMES}")
    if settings.log_mel and name not in ("s4", "ms3"):
        raise ValueError(f"log_mel is for s4 and ms3; {name} comes without log-mel files, use the sound")
    if settings.label_noise != "keep" and name != "avss":
        raise ValueError(f"label_noise {settings.label_noise!r} is for avss; {name} has no a_obj to filter by")
    if settings.frames_per_second != 1 and name != FOLDER:
        raise ValueError(f"frames_per_second is for one's own videos; {name} has one frame per second")
    return find_folder(root) if name == FOLDER else find_tree(root, name)


def find_names(root: str | Path) -> list[str]:
    """Name the data sets of which a folder holds the table of clips."""
    names = [name for name in LAYOUTS if locate_table(root, name)]
    return [*names, FOLDER] if (Path(root) / TABLE).is_file() else names


def inspect_files(clips: Sequence[Source], settings: RowSettings) -> list[Fault]:
    """Find all files that are missing, empty or truncated, without decoding any.

    Args:
        clips: Of one data set.
        settings: What was chosen about rows.

    Returns:
        The faults in the order of the clips.
    """
    videos = [clip for clip in clips if isinstance(clip, VideoFiles)]
    files = [clip for clip in clips if isinstance(clip, ClipFiles)]
    return [*inspect_clips(files, log_mel=settings.log_mel), *inspect_videos(videos)]


def read_clip_row(clip: Source, settings: RowSettings) -> dict[str, Any]:
    """Read the files of a clip as one row.

    Args:
        clip: Of any data set.
        settings: What was chosen about rows.

    Returns:
        The row.

    Raises:
        AVSBenchError: Naming every file of the clip that cannot be used.
    """
    return read_video_row(clip, settings) if isinstance(clip, VideoFiles) else read_row(clip, settings)


def label_names(root: str | Path, name: str) -> tuple[str, ...]:
    """Name the classes of a data set as a model's configuration wants them.

    Args:
        root: As for `find_clips`.
        name: Which data set.

    Returns:
        ("sounding",) for binary masks, else one name per class index.

    Raises:
        AVSBenchError: If classes.txt of one's own folder cannot be used.
    """
    if name == "avss":
        return AVSBENCH_SEMANTIC_LABELS
    return (read_class_names(root) if name == FOLDER else None) or BINARY_LABELS


__all__ = [
    "BINARY_LABELS",
    "FOLDER",
    "NAMES",
    "AVSBenchError",
    "Source",
    "find_clips",
    "find_names",
    "inspect_files",
    "label_names",
    "read_clip_row",
]
