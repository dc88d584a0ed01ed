"""Load AVSBench (S4, MS3, AVSS) and custom folders of videos as Hugging Face datasets.

    from pcmanet.dataset_scripts.avsbench import load_avsbench
    load_avsbench("AVSBench", "s4", split="train")                    # prepared once, then memory-mapped from disk
    load_avsbench("AVSBench", "avss", split="test", streaming=True)   # read on the fly
    load_avsbench("my_clips", "folder", split="train")                # see layouts.py for the files of a folder

On the command line, `check` reports missing and damaged files, `export` writes shards that `load_dataset` reads:

    python -m pcmanet.dataset_scripts.avsbench check AVSBench
    python -m pcmanet.dataset_scripts.avsbench export AVSBench exported --format parquet

rows.py documents the columns.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from datasets.builder import Key
from datasets.download.streaming_download_manager import StreamingDownloadManager
from datasets.exceptions import DatasetGenerationError

from pcmanet.dataset_scripts import SPLITS
from pcmanet.dataset_scripts.problems import ON_ERROR, DatasetError, Problem, report_skipped

from .layouts import BINARY_LABELS, FOLDER, NAMES, Clip, Tree, find_folder, find_names, find_tree, label_names
from .rows import OPTIONS, RowSettings, clip_problems, fingerprint, inspect_files, read_row, row_features


CITATION = """@inproceedings{zhou2022avs,
  title = {Audio-Visual Segmentation},
  author = {Zhou, Jinxing and Wang, Jianyuan and Zhang, Jiayi and Sun, Weixuan and Zhang, Jing and Birchfield, Stan and
            Guo, Dan and Kong, Lingpeng and Wang, Meng and Zhong, Yiran},
  booktitle = {ECCV},
  year = {2022}
}"""


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
    subsets: Sequence[str] = (),
    binary: bool = False,
    missing_audio: str = "raise",
    on_error: str = "raise",
    cache_dir: str | Path | None = None,
) -> Dataset | DatasetDict | IterableDataset | IterableDatasetDict:
    """Load a dataset from the files as downloaded.

    Args:
        root: "s4", "ms3" and "avss": the folder as downloaded (Single-source, Multi-sources, AVSBench_semantic) or the
            folder that contains it; "folder": the folder that contains clips.csv.
        name: "s4", "ms3", "avss" or "folder".
        split: "train", "val" (or "validation", the name that `datasets` gives it) or "test"; None loads all splits of the
            table.
        streaming: Read the files row by row instead of preparing a copy under `cache_dir`.
        num_proc: Number of processes that prepare the copy.
        label_noise: AVSS only: pixels of classes that `a_obj` does not list are kept ("keep"), set to background
            ("background") or set to 255, which losses and metrics ignore ("ignore").
        log_mel: S4 and MS3 only: also read the published log-mel pickles, with an unpickler that executes no code; the
            wav files may then be missing, too short or damaged. Without it no pickle is opened.
        frames_per_second: "folder" only: rate at which frames are read, in hertz; a whole number if there are masks. The
            mask of a second belongs to the frame nearest to the one that is taken at one frame per second.
        subsets: AVSS only: some of "v1s" (the clips of S4), "v1m" (those of MS3) and "v2"; empty for all.
        binary: AVSS and "folder" only: make semantic masks binary, 0 (silent) and 1 (sounding).
        missing_audio: "folder" only: for a video without an audio track, "raise" an error, or use it as "silence", a
            clip whose frames all have an empty mask.
        on_error: "raise" an error that lists every problem, or "skip" clips with problems, with one warning that counts
            and lists them.
        cache_dir: Folder of the prepared data; None uses the cache of `datasets`.

    Returns:
        The split, or a dictionary of splits. The docstring of rows.py has a table of the columns.

    Raises:
        ValueError: If an argument has an unknown value, or the table has no usable clip of the split.
        DatasetError: If files are missing or damaged, lines of the table cannot be used, or masks contain unknown values;
            the error lists all of them. Streaming reports missing and truncated files at once and damage inside a file
            when it reads the file.
    """
    split = "val" if split == datasets.Split.VALIDATION else split
    settings = RowSettings(label_noise, log_mel, frames_per_second, tuple(subsets), binary, missing_audio)
    for value, argument, choices in ((split or "train", "split", SPLITS), (on_error, "on_error", ON_ERROR)):
        if value not in choices:
            raise ValueError(f"Expected one of {choices} as {argument}, got {value!r}")
    tree = find_clips(root, name, settings)
    if split:
        tree.clips_of(split)
    available = [each for each in SPLITS if any(clip.split == each for clip in tree.clips)]
    if on_error == "raise" and tree.problems:
        raise DatasetError(_all_problems(tree, settings, split))
    loaded = {}
    for each in [split] if split else available:
        paths = [path for clip in tree.clips if clip.split == each for path in clip.paths]
        builder = AVSBench(
            cache_dir=None if cache_dir is None else str(cache_dir),
            dataset_name="avsbench",
            config_name=name,
            data_dir=str(tree.table.parent),
            split=each,
            settings=settings,
            on_error=on_error,
            labels=label_names(root, name, binary=binary),
            state=fingerprint(tree.table, paths),
        )
        loaded[each] = _load(builder, each, streaming, num_proc)
        if on_error == "skip" and not streaming:
            _report_skipped(loaded[each], tree, each, settings)
    if split:
        return loaded[split]
    return IterableDatasetDict(loaded) if streaming else DatasetDict(loaded)


def _all_problems(tree: Tree, settings: RowSettings, split: str | None) -> list[Problem]:
    """Return the problems of the table, and of the files of one split or of all splits."""
    clips = [clip for clip in tree.clips if split in (None, clip.split)]
    return [*tree.problems, *inspect_files(clips, settings)]


def _report_skipped(rows: Dataset, tree: Tree, split: str, settings: RowSettings) -> None:
    """Count and list the clips that a prepared split lacks, even if an earlier run prepared it."""
    kept = set(zip(rows["id"], rows["category"], strict=True))
    clips = [clip for clip in tree.clips if clip.split == split]
    skipped = [clip for clip in clips if (clip.id, getattr(clip, "category", None)) not in kept]
    problems = [problem for clip in skipped for problem in clip_problems(clip, settings)]
    report_skipped([*tree.problems, *problems], len(skipped), len(clips), f"{tree.table}, {split}")


def find_clips(root: str | Path, name: str, settings: RowSettings) -> Tree:
    """Find the clips of a dataset.

    Args:
        root: "s4", "ms3", "avss": the folder as downloaded or the folder that contains it; "folder": the folder that
            contains clips.csv.
        name: "s4", "ms3", "avss" or "folder".
        settings: Row options.

    Returns:
        The clips of all splits, and the lines of the table that cannot be used.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If the name is unknown, an option does not apply to the dataset, or the rate of the frames is not a
            whole number although there are masks.
        DatasetError: If the table of clips is missing or cannot be read.
    """
    if name not in NAMES:
        raise ValueError(f"Expected one of {NAMES} as name, got {name!r}")
    if not Path(root).is_dir():
        raise FileNotFoundError(f"Folder {root} not found. Give AVSBench as downloaded, or a folder with a clips.csv.")
    for option in settings.given:
        if name not in OPTIONS[option]:
            value, names = getattr(settings, option), " and ".join(OPTIONS[option])
            raise ValueError(f"{option}={value!r} applies to {names} only, but the data are {name}. Leave it out.")
    tree = find_folder(root) if name == FOLDER else find_tree(root, name)
    if settings.frames_per_second % 1 and any(clip.masks for clip in tree.clips):
        rate = settings.frames_per_second
        raise ValueError(f"Expected a whole number as frames_per_second, because masks are of seconds, got {rate}")
    chosen = [clip for clip in tree.clips if not settings.subsets or getattr(clip, "subset", None) in settings.subsets]
    return replace(tree, clips=chosen)


def _load(builder: "AVSBench", split: str, streaming: bool, num_proc: int | None) -> Dataset | IterableDataset:
    """Stream a split, or prepare it once and load it."""
    if streaming:
        return cast(IterableDataset, builder.as_streaming_dataset(split=split))
    builder.download_and_prepare(num_proc=num_proc)
    if not cast(datasets.SplitDict, builder.info.splits)[split].num_examples:
        raise ValueError(f"All clips of split {split!r} have problems. List them with `check`.")
    return cast(Dataset, builder.as_dataset(split=split))


@dataclass
class AVSBenchConfig(datasets.BuilderConfig):
    """Configuration of one split; every field is part of the fingerprint under which prepared data are cached.

    Attributes:
        split: The split to read.
        settings: Row options.
        on_error: "raise" or "skip", for clips with problems.
        labels: Class names, with which masks of a custom folder are read.
        state: Fingerprint of the files; changed files are prepared again.
    """

    split: str = "train"
    settings: RowSettings = RowSettings()
    on_error: str = "raise"
    labels: tuple[str, ...] = ()
    state: str = ""


class AVSBench(datasets.GeneratorBasedBuilder):
    """Builder of one split of one dataset; use it through `load_avsbench`."""

    config: AVSBenchConfig

    VERSION = datasets.Version("1.1.0")  # of the rows; those of another version are prepared again
    BUILDER_CONFIG_CLASS = AVSBenchConfig
    DEFAULT_WRITER_BATCH_SIZE = 8  # a clip is about a megabyte

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Audio-visual segmentation: one mask of the sounding objects per second",
            citation=CITATION,
            homepage="https://github.com/OpenNLPLab/AVSBench",
            features=row_features(self.config.settings.log_mel),
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        config = self.config
        tree = find_clips(str(config.data_dir), config.name, config.settings)
        clips = [clip for clip in tree.clips if clip.split == config.split]
        if config.on_error == "raise" and (problems := inspect_files(clips, config.settings)):
            raise DatasetError(problems)
        # Streaming must report a problem before the next row; preparing reports all problems together.
        arguments = {
            "clips": clips,  # `datasets` may pass a part of this list
            "total": len(clips),
            "streaming": isinstance(dl_manager, StreamingDownloadManager),
        }
        return [datasets.SplitGenerator(name=config.split, gen_kwargs=arguments)]

    def _generate_examples(
        self, clips: list[Clip], total: int, streaming: bool
    ) -> Iterator[tuple[Key, dict[str, Any]]]:
        problems: list[Problem] = []
        config, skipped = self.config, 0
        for number, clip in enumerate(clips):
            try:
                if config.on_error == "skip" and (found := inspect_files([clip], config.settings)):
                    raise DatasetError(found)
                row = read_row(clip, config.settings)
            except DatasetError as error:
                if config.on_error == "raise" and streaming:
                    raise
                problems += error.problems
                skipped += 1
                continue
            yield Key(number, 0), row
        if problems and config.on_error == "raise":
            raise DatasetError(problems)
        if streaming:
            report_skipped(problems, skipped, total, f"{config.data_dir}, {config.split}")

    def _prepare_split(
        self, split_generator: datasets.SplitGenerator, *args: Any, num_proc: int | None = None, **kwargs: Any
    ) -> None:
        """Prepare as the base class does; a problem in one of several processes ends all, so list those of all clips."""
        try:
            super()._prepare_split(split_generator, *args, num_proc=num_proc, **kwargs)
        except DatasetError as error:
            if num_proc is None or num_proc < 2:
                raise
            find_problems = partial(clip_problems, settings=self.config.settings)
            with ProcessPoolExecutor(num_proc) as pool:
                found = list(pool.map(find_problems, split_generator.gen_kwargs["clips"]))
            raise DatasetError([problem for one in found for problem in one] or error.problems) from None

    def _prepare_split_single(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Prepare as the base class does, but raise DatasetError itself instead of the error that wraps it."""
        try:
            yield from super()._prepare_split_single(*args, **kwargs)
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, DatasetError):
                raise error.__cause__ from None
            raise


__all__ = [
    "AVSBench",
    "AVSBenchConfig",
    "DatasetError",
    "BINARY_LABELS",
    "Clip",
    "FOLDER",
    "NAMES",
    "RowSettings",
    "find_clips",
    "find_names",
    "fingerprint",
    "inspect_files",
    "label_names",
    "load_avsbench",
    "read_row",
]
