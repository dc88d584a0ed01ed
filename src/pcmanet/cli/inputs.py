"""What is to be segmented: files, addresses, folders and lists, or a column of a data set, all as one row of videos."""

import os
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import pyarrow
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from modeling_pcmanet.media_pcmanet import SOUND_REMEDY


# Of one video: the others are segmented all the same. A full disk (another OSError) is not among them.
VIDEO_ERRORS = (ValueError, FileNotFoundError, MemoryError, torch.OutOfMemoryError)
_USER_ERRORS = (*VIDEO_ERRORS, OSError, StrictDataclassError, SafetensorError, ModuleNotFoundError)


def is_user_error(error: Exception) -> bool:
    """Tells whether an error is of what was given, so that its message says all."""
    return isinstance(error, _USER_ERRORS)


def say(error: Exception) -> str:
    """Writes an error in one line, with the options of the command in place of Python's arguments."""
    remedy = "Give the file that holds its sound with --audio."
    return printable(" ".join(str(error).replace(SOUND_REMEDY, remedy).split())) or type(error).__name__


CAMERAS_AND_BROADCASTS = (".3gp", ".m2ts", ".mts", ".mxf", ".ts", ".vob")
VIDEO_SUFFIXES = frozenset(
    (".asf", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv")
    + CAMERAS_AND_BROADCASTS
)
LIST_SUFFIX = ".txt"

Source = str | bytes


class Videos(Protocol):
    """Videos in a fixed order, each under a name of its own.

    Attributes:
        names: Of all videos that are to be segmented.
    """

    names: list[str]

    def read(self, name: str) -> tuple[Source, Source | None]:
        """Returns a video, and its sound if that lies beside it: path, URL or the bytes of a file.

        Raises:
            ValueError: If it cannot be read.
        """

    def identify(self, name: str) -> dict[str, str | None]:
        """Says which `video` with which `audio` that is, in the same words however the paths were spelled."""


class VideoFiles:
    """Videos of this machine or at http(s) addresses; their names are their paths as they were given.

    Args:
        names: The paths and addresses.
        audio: The file with the sound of a single silent video.
    """

    def __init__(self, names: Iterable[str], audio: str | None = None) -> None:
        self.names = list(dict.fromkeys(names))
        self.audio = audio

    def read(self, name: str) -> tuple[Source, Source | None]:
        """Returns the path or address of a video, and that of its sound if it was given."""
        return name, self.audio

    def identify(self, name: str) -> dict[str, str | None]:
        """Names the files themselves."""
        return {"video": _absolute(name), "audio": self.audio and _absolute(self.audio)}


class VideoColumn:
    """The videos in a column of a data set, under the names in another column, or else those of their files.

    Args:
        data_set: Hub id, or a local folder, as `datasets.load_dataset` or `Dataset.save_to_disk` know it.
        split: Which part.
        column: The column with the videos: a `Video` feature, paths or URLs, bytes, or `{"path", "bytes"}`.
        audio_column: The column with the sound, of silent videos.
        name_column: The column with the names.

    Raises:
        ValueError: If there is no such column, or two videos have the same name.
    """

    def __init__(
        self, data_set: str, split: str, column: str, audio_column: str | None, name_column: str | None
    ) -> None:
        self._rows = _load_data_set(data_set, split)
        wanted = [name for name in (column, audio_column, name_column) if name is not None]
        if missing := [name for name in wanted if name not in self._rows.column_names]:
            have = ", ".join(self._rows.column_names)
            raise ValueError(f"{data_set} has no column {missing[0]}. It has {have}: choose with --column.")
        self._data_set, self._split, self._column, self._audio_column = data_set, split, column, audio_column
        self._rows = _without_decoding(self._rows.select_columns(wanted))
        if name_column is None:
            self.names = [
                _name_of(path, Path(data_set), f"{split}/{number:08d}")
                for number, path in enumerate(_paths_in(self._rows, column))
            ]
        else:
            self.names = [str(name) for name in self._rows[name_column]]
        if len(set(self.names)) < len(self.names):
            twice = Counter(self.names).most_common(1)[0][0]
            raise ValueError(f"{data_set} has several videos called {twice}. Choose a column with --name-column.")
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def read(self, name: str) -> tuple[Source, Source | None]:
        """Returns a video and its sound."""
        if name not in self._numbers:
            raise ValueError(f"{self._data_set} has no video {name} on this machine. Bring all copies to one state.")
        row = self._rows[self._numbers[name]]
        audio = None if self._audio_column is None else _source_of(row[self._audio_column])
        return _source_of(row[self._column]), audio

    def identify(self, name: str) -> dict[str, str | None]:
        """Names the cells."""
        data_set = _absolute(self._data_set) if Path(self._data_set).exists() else self._data_set
        place = f"{name} of {data_set}, {self._split}"
        audio = None if self._audio_column is None else f"{place}, {self._audio_column}"
        return {"video": f"{place}, {self._column}", "audio": audio}


def find_videos(arguments: Namespace, *, look: bool = True) -> Videos:
    """Finds what the command line asks for.

    Args:
        arguments: Of `pcmanet segment`.
        look: Whether to look for files. Processes that work together must agree on their names, while folders change:
            one of them looks and tells the others.

    Returns:
        The videos.

    Raises:
        FileNotFoundError: If there is no such file, folder or data set, or no video in a folder or list.
        ValueError: If the data set has not what was asked for.
    """
    if arguments.data_set is not None:
        return VideoColumn(
            arguments.data_set, arguments.split, arguments.column, arguments.audio_column, arguments.name_column
        )
    audio = arguments.audio
    if audio is not None and not is_address(audio) and not Path(audio).is_file():
        raise FileNotFoundError(f"There is no file {audio}. Check --audio.")
    given = arguments.videos if look else ()
    return VideoFiles([name for source in given for name in _expand(source, arguments.output.resolve())], audio)


def name_folders(names: Iterable[str]) -> dict[str, str]:
    """Names the folder of each video's results: like the video, without its folders and its ending.

    Args:
        names: Of the videos.

    Returns:
        The folder of each video.

    Raises:
        ValueError: If two videos would share a folder.
    """
    folders = {name: _folder_name(name) for name in names}
    owners: dict[str, str] = {}
    for name, folder in folders.items():
        if (other := owners.setdefault(folder, name)) != name:
            raise ValueError(
                f"The results of {other} and {name} would both go to the folder {folder}. Segment them with different "
                "--output, or use --format parquet without pictures."
            )
    return folders


def printable(text: str) -> str:
    """Returns a text that any output takes: bytes of file names that are no UTF-8 are written in hexadecimal."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_address(source: str) -> bool:
    """Tells whether a source is an http(s) address."""
    return source.lower().startswith(("http://", "https://"))


def _absolute(source: str) -> str:
    """Returns the one path of a file, links followed, or an address as it is."""
    return source if is_address(source) else os.path.realpath(source)


def _folder_name(video: str) -> str:
    """Makes a name that any file system takes, and that is not hidden."""
    stem = Path(unquote(urlsplit(video).path) if is_address(video) else video).stem
    return re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", stem).lstrip(".") or "video"


def _expand(source: str, excluded: Path) -> Iterator[str]:
    """Yields the videos of a folder or list, or the one that was named."""
    path = Path(source)
    if is_address(source):
        yield source
    elif path.is_dir():
        yield from _videos_in(path, excluded)
    elif not path.exists():
        raise FileNotFoundError(f"There is no file or folder {source}. Check the path.")
    elif path.suffix.lower() == LIST_SUFFIX:
        yield from _videos_listed(path)
    else:
        yield source


def _videos_in(folder: Path, excluded: Path) -> list[str]:
    """Lists the videos in a folder, at any depth, but not hidden ones."""
    found = [
        str(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in VIDEO_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and excluded not in path.resolve().parents
        and path.is_file()
    ]
    if not found:
        raise FileNotFoundError(f"There is no video in {folder}. Looked for {' '.join(sorted(VIDEO_SUFFIXES))}.")
    return found


def _videos_listed(path: Path) -> list[str]:
    """Reads a list; whether its files are there is seen when their turn comes."""
    try:
        # Windows begins a text in UTF-8 with a mark, which is no part of the first path.
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}. A list has one path or URL per line, in UTF-8.") from error
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise FileNotFoundError(f"There is no video in {path}. A list has one path or URL per line.")
    return found


def _load_data_set(data_set: str, split: str) -> Any:
    """Loads a split of a data set in either of the two forms that `datasets` writes."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    folder = Path(data_set)
    if not (folder / "state.json").is_file() and not (folder / "dataset_dict.json").is_file():
        return load_dataset(data_set, split=split)
    loaded = load_from_disk(data_set)
    if not isinstance(loaded, DatasetDict):
        return loaded
    if split not in loaded:
        raise ValueError(f"{data_set} has no split {split}. It has {', '.join(loaded)}: choose with --split.")
    return loaded[split]


def _without_decoding(rows: Any) -> Any:
    """Turns decoding off: the processor wants the files."""
    from datasets import Audio, Video

    for name, feature in rows.features.items():
        if isinstance(feature, (Audio, Video)):
            rows = rows.cast_column(name, type(feature)(decode=False))
    return rows


def _paths_in(rows: Any, column: str) -> Iterator[str | None]:
    """Yields the paths or addresses in a column, without touching the bytes beside them."""
    for table in rows.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        values = table[column].combine_chunks()
        if pyarrow.types.is_struct(values.type):
            values = values.field("path")
        yield from values.to_pylist() if pyarrow.types.is_string(values.type) else [None] * len(values)


def _name_of(path: str | None, folder: Path, otherwise: str) -> str:
    """Names a video by its path in the data set: where a machine keeps its copy is no part of the name."""
    if not path or is_address(path):
        return path or otherwise
    absolute = Path(path).resolve()
    inside = absolute.is_relative_to(folder.resolve())
    return absolute.relative_to(folder.resolve()).as_posix() if inside else Path(path).name


def _source_of(value: Any) -> Source:
    """Takes the bytes, or else the path, out of a cell."""
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if not isinstance(value, (str, bytes)):
        raise ValueError(f"A video was expected: a path, a URL or bytes, got {type(value).__name__}.")
    return value
