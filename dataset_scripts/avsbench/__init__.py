"""AVSBench (S4, MS3, AVSS) and one's own clips as Hugging Face data sets.

    from pcmanet.dataset_scripts.avsbench import load_avsbench
    load_avsbench("AVSBench", "s4", split="train")                    # prepared once, then mapped from disk
    load_avsbench("AVSBench", "avss", split="test", streaming=True)   # read as you go
    load_avsbench("my_clips", "folder", split="train")                # layout: see avsbench_folder.py

On the command line, `check` says what is there and whole, `export` writes shards that `load_dataset` reads:

    python -m pcmanet.dataset_scripts.avsbench check AVSBench
    python -m pcmanet.dataset_scripts.avsbench export AVSBench exported --format parquet

The columns are described in avsbench_rows.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from datasets.builder import Key
from datasets.download.streaming_download_manager import StreamingDownloadManager
from datasets.exceptions import DatasetGenerationError

from modeling_pcmanet.configuration_pcmanet import AVSBENCH_SEMANTIC_LABELS

from .files import fingerprint, inspect_clips
from .folder import TABLE, VideoFiles, find_folder, inspect_videos, read_class_names, read_video_row
from .layouts import LAYOUTS, SPLITS, AVSBenchError, ClipFiles, Problem, Tree, find_tree, locate_table
from .rows import RowSettings, read_row, row_features


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


def inspect_files(clips: Sequence[Source], settings: RowSettings) -> list[Problem]:
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


CITATION = """@inproceedings{zhou2022avs,
  title = {Audio-Visual Segmentation},
  author = {Zhou, Jinxing and Wang, Jianyuan and Zhang, Jiayi and Sun, Weixuan and Zhang, Jing and Birchfield, Stan and
            Guo, Dan and Kong, Lingpeng and Wang, Meng and Zhong, Yiran},
  booktitle = {ECCV},
  year = {2022}
}"""
FAULTY_RULES = ("raise", "skip")


@dataclass
class AVSBenchConfig(datasets.BuilderConfig):
    """What is read and how; every field is part of the name under which prepared data are kept.

    Attributes:
        split: The one split to read.
        settings: What was chosen about rows.
        faulty: "raise" or "skip", what becomes of clips with faults.
        labels: Names of the classes, by which masks of one's own clips are read.
        state: Fingerprint of the files, so that changed files are prepared anew.
    """

    split: str = "train"
    settings: RowSettings = RowSettings()
    faulty: str = "raise"
    labels: tuple[str, ...] = ()
    state: str = ""


class AVSBench(datasets.GeneratorBasedBuilder):
    """Builder of one split of one data set; `load_avsbench` is the way in."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = AVSBenchConfig
    DEFAULT_WRITER_BATCH_SIZE = 8  # a clip is about a megabyte

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Audio-visual segmentation: which pixels sound, one mask per second",
            citation=CITATION,
            homepage="https://github.com/OpenNLPLab/AVSBench",
            features=row_features(self.config.settings.log_mel),
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        config = self.config
        tree = find_clips(config.data_dir, config.name, config.settings)
        clips = [clip for clip in tree.clips if clip.split == config.split]
        if config.faulty == "skip":
            clips = [clip for clip in clips if not inspect_files([clip], config.settings)]
        elif faults := inspect_files(clips, config.settings):
            raise AVSBenchError(faults)
        # Who streams must hear of a fault before the next row; who prepares wants to hear of all faults at once.
        arguments = {"clips": clips, "collect": not isinstance(dl_manager, StreamingDownloadManager)}
        return [datasets.SplitGenerator(name=config.split, gen_kwargs=arguments)]

    def _generate_examples(self, clips: list[Source], collect: bool) -> Iterator[tuple[Key, dict[str, Any]]]:
        faults = []
        for number, clip in enumerate(clips):
            try:
                row = read_clip_row(clip, self.config.settings)
            except AVSBenchError as error:
                if self.config.faulty == "raise" and not collect:
                    raise
                faults += error.faults
                continue
            yield Key(number, 0), row
        if faults and self.config.faulty == "raise":
            raise AVSBenchError(faults)

    def _prepare_split_single(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Prepare as the base class does, but let an error of ours through as it is."""
        try:
            yield from super()._prepare_split_single(*args, **kwargs)
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, AVSBenchError):
                raise error.__cause__ from None
            raise


def load_avsbench(
    root: str | Path,
    name: str,
    *,
    split: str | None = None,
    streaming: bool = False,
    num_proc: int | None = None,
    label_noise: str = "keep",
    log_mel: bool = False,
    frames_per_second: float = 1.0,
    faulty: str = "raise",
    cache_dir: str | Path | None = None,
) -> Dataset | DatasetDict | IterableDataset | IterableDatasetDict:
    """Load a data set from the files as downloaded.

    Args:
        root: "s4", "ms3" and "avss": the tree (Single-source, Multi-sources, AVSBench_semantic) or the folder above it;
            "folder": one's own clips.
        name: "s4", "ms3", "avss" or "folder".
        split: "train", "val" or "test"; all that the table has if None.
        streaming: Read the files row by row instead of preparing a copy under `cache_dir`.
        num_proc: Processes that prepare.
        label_noise: AVSS only: pixels of classes that `a_obj` does not name are kept ("keep"), made background
            ("background") or made 255, which no loss or measure counts ("ignore").
        log_mel: S4 and MS3 only: also read the published log-mel pickles, with an unpickler that runs nothing; the wavs
            may then be missing. Without it no pickle is touched.
        frames_per_second: "folder" only: rate at which frames are taken, in hertz.
        faulty: "raise" an error that names every faulty file, or "skip" clips with faults (`check` lists them).
        cache_dir: Where prepared data are kept; datasets' own cache if None.

    Returns:
        The split, or a dictionary of splits; see `avsbench_rows` for the columns.

    Raises:
        ValueError: If an argument is none of its choices, or the table has no clip of the split.
        AVSBenchError: Naming all files that are missing or damaged, all lines of the table that cannot be used, and all
            masks with unknown values. Streaming finds missing and truncated files at once, damage inside when it gets
            there.
    """
    settings = RowSettings(label_noise=label_noise, log_mel=log_mel, frames_per_second=frames_per_second)
    for value, what, choices in ((split or "train", "split", SPLITS), (faulty, "faulty", FAULTY_RULES)):
        if value not in choices:
            raise ValueError(f"{what} is {value!r}; choose one of {choices}")
    tree = find_clips(root, name, settings)
    there = [one for one in SPLITS if any(clip.split == one for clip in tree.clips)]
    if split and split not in there:
        raise ValueError(f"{tree.table} has no clips of split {split!r}, only of {there}")
    loaded = {}
    for one in [split] if split else there:
        paths = [path for clip in tree.clips if clip.split == one for path in clip.paths]
        builder = AVSBench(
            cache_dir=None if cache_dir is None else str(cache_dir),
            dataset_name="avsbench",
            config_name=name,
            data_dir=str(tree.path),
            split=one,
            settings=settings,
            faulty=faulty,
            labels=label_names(root, name),
            state=fingerprint(tree.table, paths),
        )
        loaded[one] = _load(builder, one, streaming, num_proc)
    if split:
        return loaded[split]
    return IterableDatasetDict(loaded) if streaming else DatasetDict(loaded)


def _load(builder: AVSBench, split: str, streaming: bool, num_proc: int | None) -> Dataset | IterableDataset:
    """Let a builder stream, or prepare what is not prepared yet."""
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare(num_proc=num_proc)
    if not builder.info.splits[split].num_examples:
        raise ValueError(f"every clip of split {split!r} has faults; `check` lists them, nothing is left to load")
    return builder.as_dataset(split=split)


__all__ = [
    "AVSBench",
    "AVSBenchConfig",
    "AVSBenchError",
    "BINARY_LABELS",
    "FOLDER",
    "NAMES",
    "Source",
    "find_clips",
    "find_names",
    "inspect_files",
    "label_names",
    "load_avsbench",
    "read_clip_row",
]
