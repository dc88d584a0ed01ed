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

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from datasets.builder import Key
from datasets.download.streaming_download_manager import StreamingDownloadManager
from datasets.exceptions import DatasetGenerationError

from .avsbench_command import main
from .avsbench_files import fingerprint
from .avsbench_rows import RowSettings, row_features
from .avsbench_sources import AVSBenchError, Source, find_clips, inspect_files, label_names, read_clip_row
from .avsbench_tables import SPLITS


__all__ = ["AVSBench", "AVSBenchConfig", "AVSBenchError", "label_names", "load_avsbench"]

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


if __name__ == "__main__":
    sys.exit(main())
