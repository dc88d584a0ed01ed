"""Export a dataset as self-contained shards that `load_dataset` reads and streams; an interrupted export is resumed."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from datasets.arrow_writer import ArrowWriter, ParquetWriter
from tqdm import tqdm

from modeling_pcmanet.hub_upload_pcmanet import upload_folder
from pcmanet.dataset_scripts import SHARD_SPLITS, SPLITS
from pcmanet.dataset_scripts.avsbench import (
    NAMES,
    Clip,
    RowSettings,
    find_clips,
    fingerprint,
    inspect_files,
    label_names,
    read_row,
)
from pcmanet.dataset_scripts.problems import ON_ERROR, DatasetError, Problem, report_skipped
from pcmanet.files import check_settings, keep_settings, recover, replace_file, temporary_path, write_text

from .rows import row_features


WRITERS = {"parquet": ParquetWriter, "arrow": ArrowWriter}
CLIPS_PER_SHARD = 250  # about 250 MB of S4
CLIPS_PER_ROW_GROUP = 8  # clips that a streaming reader must hold at once
STATE_FILE = ".export.json"  # hidden, so that no loader reads it as data
VERSION = 1  # of the written format; exports of another version count as exports with other settings

CARD = """---
pretty_name: Audio-visual segmentation
license: other
configs:
{configs}---

# Audio-visual segmentation: one mask of the sounding objects per second

Written by `python -m pcmanet.dataset_scripts.avsbench export`. Frames and audio are the files as downloaded, masks are
class indices; `annotated_frames` marks the annotated frames. The rights of the source apply; AVSBench is distributed
for research on request.

{classes}
"""


def export(
    root: str | Path,
    output: str | Path,
    name: str,
    settings: RowSettings,
    *,
    file_format: str = "parquet",
    clips_per_shard: int = CLIPS_PER_SHARD,
    num_proc: int = 1,
    on_error: str = "raise",
    progress: bool = False,
) -> Path:
    """Write all splits of a dataset to `output/name`, and a card that lists it to `output/README.md`.

    Shards are collected in a hidden folder that is renamed when all of them are complete. An interrupted run therefore
    leaves nothing that looks like data, and the next run keeps its shards.

    Args:
        root: As for `find_clips`.
        output: Folder for one or more datasets.
        name: "s4", "ms3", "avss" or "folder".
        settings: Row options.
        file_format: "parquet" or "arrow".
        clips_per_shard: Number of rows per shard.
        num_proc: Number of processes that write.
        on_error: "raise" an error that lists every problem, or "skip" clips with problems, with one warning that counts
            and lists them.
        progress: Whether to show a progress bar.

    Returns:
        `output/name`.

    Raises:
        ValueError: If an argument has an unknown value.
        DatasetError: If files cannot be used; the error lists all of them. Shards without problems are kept.
        ValueError: If `output` contains an export of other files or settings.
    """
    if file_format not in WRITERS or clips_per_shard < 1 or on_error not in ON_ERROR:
        raise ValueError(
            f"Expected one of {tuple(WRITERS)} as file_format, at least 1 as clips_per_shard and one of {ON_ERROR} as "
            f"on_error, got {file_format!r}, {clips_per_shard} and {on_error!r}"
        )
    tree = find_clips(root, name, settings)
    state = {
        "version": VERSION,
        "files": fingerprint(tree.table, (path for clip in tree.clips for path in clip.paths)),
        "settings": asdict(settings),
        "labels": list(label_names(root, name, binary=settings.binary)),
        "format": file_format,
        "clips_per_shard": clips_per_shard,
        "on_error": on_error,
    }
    target, partial_export = Path(output) / name, Path(output) / f".{name}.partial"
    if not _is_complete(target, state):
        problems = [*tree.problems, *inspect_files(tree.clips, settings)]
        if problems and on_error == "raise":
            raise DatasetError(problems)
        clips = [clip for clip in tree.clips if not problems or not inspect_files([clip], settings)]
        _begin(partial_export, state)
        shards = dict(_plan_shards(clips, partial_export, file_format, clips_per_shard))
        found = _write_shards(shards, settings, num_proc, on_error, progress, f"exporting {name}")
        partial_export.rename(target)
        skipped = len(tree.clips) - len(clips) + len({problem.clip for problem in found})
        report_skipped([*problems, *found], skipped, len(tree.clips), str(tree.table))
    _write_card(Path(output))
    return target


def push(output: str | Path, repo_id: str, *, private: bool = True) -> str:
    """Upload exports to the Hub.

    Args:
        output: Folder of exports.
        repo_id: Dataset repository; it is created if it does not exist.
        private: Whether a new repository is private. AVSBench is distributed on request and must not be published.

    Returns:
        URL of the commit.

    Raises:
        HubUploadError: If the upload fails; the message contains the command that uploads the folder again.
        ValueError: If `repo_id` is not a valid repository name.
    """
    return upload_folder(
        Path(output),
        repo_id,
        message="Upload audio-visual segmentation data",
        repo_type="dataset",
        private=private,
        exclude=[".*", "*/.*"],
    )


def _is_complete(target: Path, state: dict[str, Any]) -> bool:
    """Return whether a complete export of this state exists; raise ValueError for another state."""
    if not target.exists():
        return False
    check_settings(target, state, _read_state(target), "Remove it or choose another folder.")
    return True


def _begin(folder: Path, state: dict[str, Any]) -> None:
    """Create the hidden folder, or continue in that of an interrupted run with the same state."""
    folder.mkdir(parents=True, exist_ok=True)
    recover(folder)
    keep_settings(folder / STATE_FILE, state, f"Remove {folder} to start again.")


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _plan_shards(
    clips: Sequence[Clip], folder: Path, file_format: str, clips_per_shard: int
) -> Iterator[tuple[Path, list[Clip]]]:
    """Yield the path and the clips of each shard of each split, numbered as `load_dataset` expects."""
    for split in SPLITS:
        members = [clip for clip in clips if clip.split == split]
        count = -(-len(members) // clips_per_shard)
        for number in range(count):
            part = members[number * clips_per_shard : (number + 1) * clips_per_shard]
            yield folder / f"{split}-{number:05d}-of-{count:05d}.{file_format}", part


def _write_shards(
    shards: dict[Path, list[Clip]], settings: RowSettings, num_proc: int, on_error: str, progress: bool, title: str
) -> list[Problem]:
    """Write the shards that do not exist yet, and return the problems; raise DatasetError unless they are skipped."""
    missing = [(path, clips) for path, clips in shards.items() if not path.exists()]
    write = partial(_write_shard, settings=settings, on_error=on_error)
    bar = partial(tqdm, total=len(shards), initial=len(shards) - len(missing), unit="shard", disable=not progress)
    if num_proc <= 1:
        found = list(bar(map(write, missing), desc=title))
    else:
        with ProcessPoolExecutor(num_proc) as pool:
            found = list(bar(pool.map(write, missing), desc=title))
    problems = [problem for shard in found for problem in shard]
    if problems and on_error == "raise":
        raise DatasetError(problems)
    return problems


def _write_shard(shard: tuple[Path, list[Clip]], settings: RowSettings, on_error: str) -> list[Problem]:
    """Write one shard, completely or not at all.

    Args:
        shard: Its path and clips.
        settings: Row options.
        on_error: With "raise", a shard with problems is not written; with "skip", it is written without these clips.

    Returns:
        The problems.
    """
    path, clips = shard
    problems: list[Problem] = []
    features = row_features(settings.log_mel)
    writer_class = WRITERS[path.suffix[1:]]
    temporary = temporary_path(path)
    try:
        with writer_class(features=features, path=str(temporary), writer_batch_size=CLIPS_PER_ROW_GROUP) as writer:
            for clip in clips:
                try:
                    writer.write(features.encode_example(read_row(clip, settings)))
                except DatasetError as error:
                    problems += error.problems
            writer.finalize()
        if on_error == "skip" or not problems:
            replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return problems


def _write_card(output: Path) -> None:
    """Write README.md, with which `load_dataset(output, name)` finds the exports in a folder."""
    configs, texts = "", []
    for name in (name for name in NAMES if (output / name).is_dir()):
        state = _read_state(output / name)
        splits = [split for split in SPLITS if any((output / name).glob(f"{split}-*"))]
        lines = [
            f"  - split: {SHARD_SPLITS[split]}\n    path: {name}/{split}-*.{state['format']}\n" for split in splits
        ]
        configs += f"- config_name: {name}\n  data_files:\n{''.join(lines)}"
        labels = state["labels"] if len(state["labels"]) > 1 else ["silent", *state["labels"]]
        texts.append(f"Classes of `{name}`: {', '.join(f'{k} {label}' for k, label in enumerate(labels))}.")
    write_text(output / "README.md", CARD.format(configs=configs, classes="\n\n".join(texts)))
