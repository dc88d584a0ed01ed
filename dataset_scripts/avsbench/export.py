"""Write a data set as self-contained shards which `load_dataset` reads and streams; a run goes on where one stopped."""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from datasets.arrow_writer import ArrowWriter, ParquetWriter
from tqdm import tqdm

from modeling_pcmanet.hub_upload_pcmanet import upload_folder
from pcmanet.dataset_scripts.avsbench import NAMES, Source, find_clips, inspect_files, label_names, read_clip_row

from .files import fingerprint
from .layouts import SPLITS, AVSBenchError, Problem
from .rows import RowSettings, row_features


WRITERS = {"parquet": ParquetWriter, "arrow": ArrowWriter}
CLIPS_PER_SHARD = 250  # about 250 MB of S4
CLIPS_PER_ROW_GROUP = 8  # what a reader of a stream must hold at once
STATE_FILE = ".export.json"  # hidden, so that no loader takes it for data
VERSION = 1  # of what is written; a higher one makes exports of an older one incomplete

CARD = """---
pretty_name: Audio-visual segmentation
license: other
configs:
{configs}---

# Audio-visual segmentation: which pixels sound, one mask per second

Written by `python -m pcmanet.dataset_scripts.avsbench export`. Frames and sounds are the files as downloaded, masks are
class indexes; `annotated_frames` says which frames are annotated. The rights are those of the source; AVSBench is given out
for research on request.

{classes}
"""


@dataclass(frozen=True)
class Shard:
    """A part of a split: the file, and the clips that it will hold."""

    path: Path
    clips: tuple[Source, ...]


def export(
    root: str | Path,
    output: str | Path,
    name: str,
    settings: RowSettings,
    *,
    file_format: str = "parquet",
    clips_per_shard: int = CLIPS_PER_SHARD,
    num_proc: int = 1,
    skip_faulty: bool = False,
    progress: bool = False,
) -> Path:
    """Write all splits of a data set to `output/name` and a card that lists it to `output/README.md`.

    Shards are collected in a hidden folder, each written aside and renamed when it is whole; the folder gets its name
    when all are there. So an interrupted run leaves nothing that reads as data, and the next one keeps its shards.

    Args:
        root: As for `find_clips`.
        output: Folder for one or more data sets.
        name: Which data set.
        settings: What was chosen about rows.
        file_format: "parquet" or "arrow".
        clips_per_shard: How many rows a shard holds.
        num_proc: Processes that write.
        skip_faulty: Whether to leave clips with faults out; otherwise nothing is written before all are whole.
        progress: Whether to show a progress bar.

    Returns:
        `output/name`.

    Raises:
        ValueError: If an argument is out of its range.
        AVSBenchError: Naming all faults. Shards without fault have been written and are kept.
        FileExistsError: If `output` holds an export of other files or settings.
    """
    if file_format not in WRITERS or clips_per_shard < 1:
        raise ValueError(
            f"file_format {file_format!r} must be one of {tuple(WRITERS)}, clips_per_shard {clips_per_shard} at least 1"
        )
    tree = find_clips(root, name, settings)
    state = {
        "version": VERSION,
        "files": fingerprint(tree.table, (path for clip in tree.clips for path in clip.paths)),
        "settings": asdict(settings),
        "labels": list(label_names(root, name)),
        "format": file_format,
        "clips_per_shard": clips_per_shard,
        "skip_faulty": skip_faulty,
    }
    target, work = Path(output) / name, Path(output) / f".{name}.partial"
    if not _is_done(target, state):
        clips = _select(tree.clips, settings, skip_faulty)
        _begin(work, state)
        shards = list(_divide(clips, work, file_format, clips_per_shard))
        _write_shards(shards, settings, num_proc, skip_faulty, progress, f"exporting {name}")
        os.replace(work, target)
    write_card(Path(output))
    return target


def _is_done(target: Path, state: dict) -> bool:
    """Tell whether a finished export of this state is there; raise FileExistsError for one of another."""
    if not target.exists():
        return False
    if _read_state(target) != state:
        raise FileExistsError(
            f"{target} holds an export of other files or settings; remove it or choose another folder"
        )
    return True


def _begin(work: Path, state: dict) -> None:
    """Make the hidden folder, or go on with that of an interrupted run of the same state."""
    work.mkdir(parents=True, exist_ok=True)
    if any(work.iterdir()) and _read_state(work) != state:
        raise FileExistsError(f"{work} holds an interrupted export of other files or settings; remove it")
    for rest in work.glob(".*"):  # of shards that were being written when the run was killed
        rest.unlink()
    (work / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")


def _read_state(folder: Path) -> dict | None:
    path = folder / STATE_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _select(clips: Sequence[Source], settings: RowSettings, skip_faulty: bool) -> list[Source]:
    """Return the clips whose files are there, or raise AVSBenchError."""
    faults = inspect_files(clips, settings)
    if faults and not skip_faulty:
        raise AVSBenchError(faults)
    return [clip for clip in clips if not inspect_files([clip], settings)] if faults else list(clips)


def _divide(clips: Sequence[Source], folder: Path, file_format: str, clips_per_shard: int) -> Iterator[Shard]:
    """Lay out the shards of each split, numbered as `load_dataset` knows them."""
    for split in SPLITS:
        members = [clip for clip in clips if clip.split == split]
        count = -(-len(members) // clips_per_shard)
        for number in range(count):
            part = tuple(members[number * clips_per_shard : (number + 1) * clips_per_shard])
            yield Shard(folder / f"{split}-{number:05d}-of-{count:05d}.{file_format}", part)


def _write_shards(
    shards: Sequence[Shard], settings: RowSettings, num_proc: int, skip_faulty: bool, progress: bool, title: str
) -> None:
    """Write the shards that are not there, and raise AVSBenchError for all that could not be written."""
    missing = [shard for shard in shards if not shard.path.exists()]
    write = partial(write_shard, settings=settings, skip_faulty=skip_faulty)
    bar = partial(tqdm, total=len(shards), initial=len(shards) - len(missing), unit="shard", disable=not progress)
    if num_proc <= 1:
        found = list(bar(map(write, missing), desc=title))
    else:
        with ProcessPoolExecutor(num_proc) as pool:
            found = list(bar(pool.map(write, missing), desc=title))
    if faults := [fault for some in found for fault in some if not skip_faulty]:
        raise AVSBenchError(faults)


def write_shard(shard: Shard, settings: RowSettings, skip_faulty: bool) -> list[Problem]:
    """Write one shard, whole or not at all.

    Args:
        shard: Which.
        settings: What was chosen about rows.
        skip_faulty: Whether to leave clips with faults out.

    Returns:
        The faults found; unless they are skipped, the shard is not written if there are any.
    """
    faults: list[Problem] = []
    aside = shard.path.with_name(f".{shard.path.name}.{os.getpid()}")
    features = row_features(settings.log_mel)
    writer_class = WRITERS[shard.path.suffix[1:]]
    try:
        with writer_class(features=features, path=str(aside), writer_batch_size=CLIPS_PER_ROW_GROUP) as writer:
            for clip in shard.clips:
                try:
                    writer.write(features.encode_example(read_clip_row(clip, settings)))
                except AVSBenchError as error:
                    faults += error.faults
            writer.finalize()
        if skip_faulty or not faults:
            _settle(aside, shard.path)
    finally:
        aside.unlink(missing_ok=True)
    return faults


def _settle(aside: Path, path: Path) -> None:
    """Give a finished file its name, after its content has reached the disk."""
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)


def write_card(output: Path) -> None:
    """Write README.md, by which `load_dataset(output, name)` finds the data sets that were exported to a folder."""
    configs, texts = "", []
    for name in (name for name in NAMES if (output / name).is_dir()):
        state = _read_state(output / name) or {}
        splits = [split for split in SPLITS if any((output / name).glob(f"{split}-*"))]
        lines = [f"  - split: {split}\n    path: {name}/{split}-*.{state['format']}\n" for split in splits]
        configs += f"- config_name: {name}\n  data_files:\n{''.join(lines)}"
        labels = state["labels"] if len(state["labels"]) > 1 else ["silent", *state["labels"]]
        texts.append(f"Classes of `{name}`: {', '.join(f'{k} {label}' for k, label in enumerate(labels))}.")
    aside = output / ".README.md"
    aside.write_text(CARD.format(configs=configs, classes="\n\n".join(texts)), encoding="utf-8")
    os.replace(aside, output / "README.md")


def push(output: str | Path, repo_id: str, *, private: bool = True) -> str:
    """Upload exports to the Hub.

    Args:
        output: Folder of exports.
        repo_id: Data set repository, made if there is none.
        private: Whether a new repository is private. AVSBench is given out on request and must not be published.

    Returns:
        Address of the commit.

    Raises:
        HubUploadError: The Hub did not take it; the message names the command that uploads the folder again.
        ValueError: The name is none of a repository.
    """
    return upload_folder(
        Path(output),
        repo_id,
        message="Upload audio-visual segmentation data",
        repo_type="dataset",
        private=private,
        exclude=[".*", "*/.*"],
    )
