"""The videos that `pcmanet segment` reads: files, URLs, folders and lists, a column of a dataset, or AVSBench."""

import errno
import hashlib
import os
import re
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError

from modeling_pcmanet.image_processing_pcmanet import PCMANetImageProcessor
from modeling_pcmanet.media_pcmanet import VIDEO_SUFFIXES, MediaError, is_open_pipe, media_source, read_audio
from modeling_pcmanet.media_writing_pcmanet import encode_lossless
from pcmanet.files import is_system_file

from .results import CARD, SETTINGS, SHARDS


# Errors of one video; the others are segmented. A full disk is another OSError and stops the run.
VIDEO_ERRORS = (ValueError, FileNotFoundError, MemoryError, torch.OutOfMemoryError)
_USER_ERRORS = (*VIDEO_ERRORS, OSError, StrictDataclassError, SafetensorError, ModuleNotFoundError)

# What the user can do about a system error that gives only its number.
_REMEDIES = {
    errno.EACCES: "Check its permissions, or give another path.",
    errno.EPERM: "Check its permissions, or give another path.",
    errno.EROFS: "Give a path on a disk that can be written to.",
    errno.ENOSPC: "Free some space, or set TMPDIR to a folder on another disk if this one has only temporary files.",
    errno.EDQUOT: "Free some space, or set TMPDIR to a folder on another disk if this one has only temporary files.",
}

LIST_SUFFIX = ".txt"
DATA_SPLIT, DATA_COLUMN = "train", "video"  # unless the options name others

FINGERPRINT_BYTES = 2**16  # of the head and of the tail of a file
LONGEST_FOLDER_NAME = 200  # bytes; file systems accept 255, and a folder that is being replaced has a longer name

# Path, URL or the bytes of a file.
Source: TypeAlias = str | bytes


class Videos:
    """Videos in a fixed order, each with a unique name.

    Args:
        names: Paths on this machine or URLs, which are also the names.
        audio: Path or URL of the audio of a single video without an audio track.

    Attributes:
        names: Names of the videos to segment.
        left_out: What was found but is not segmented, one sentence each.
        audio_remedy: What to do about a video without audio, in a sentence.
    """

    audio_remedy = "Give the file with its audio with --audio."

    def __init__(self, names: Iterable[str], audio: str | None = None) -> None:
        self.names = list(dict.fromkeys(names))
        self.left_out: list[str] = []
        self._contents: dict[str, str | None] = {}
        self._audio = audio
        self._rows: Any = None  # of a dataset, see [`from_dataset`]
        self._numbers: dict[str, int] = {}
        self._data = self._place = self._split = self._column = ""
        self._audio_column: str | None = None

    @classmethod
    def from_dataset(
        cls,
        data: str,
        split: str | None = None,
        column: str = DATA_COLUMN,
        audio_column: str | None = None,
        name_column: str | None = None,
    ) -> "Videos":
        """Read the videos in a column of a dataset.

        Args:
            data: Hub id, or a local folder for `datasets.load_dataset` or from `Dataset.save_to_disk`.
            split: Its split; by default "train", or the only one of `Dataset.save_to_disk`.
            column: The column with the videos: a `Video` feature, paths or URLs, bytes, or `{"path", "bytes"}`.
            audio_column: The column with the audio, for videos without an audio track.
            name_column: The column with the names; by default, the names are those of the files.

        Raises:
            ValueError: If the split or a column does not exist, or two videos have the same name.
        """
        columns = {"--column": column, "--audio-column": audio_column, "--name-column": name_column}
        rows = _select_columns(data, split, {option: name for option, name in columns.items() if name is not None})
        split = split or DATA_SPLIT
        if name_column is None:
            paths = enumerate(_paths_in(rows, column))
            names = [_name_of(path, Path(data), f"{split}/{number:08d}") for number, path in paths]
        else:
            names = [str(name) for name in rows[name_column]]
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise ValueError(f"{data} has several videos with the name {twice}. Choose a column with --name-column.")
        videos = cls(names)
        videos._rows, videos._numbers = rows, {name: number for number, name in enumerate(names)}
        videos._data, videos._split, videos._column, videos._audio_column = data, split, column, audio_column
        videos._place = os.path.realpath(data) if os.path.exists(data) else data
        videos.audio_remedy = "Choose the column with its audio with --audio-column."
        return videos

    def read(self, name: str) -> tuple[Source, Source | None]:
        """Return a video, and its audio if that is a separate file.

        Raises:
            ValueError: If the dataset of this process does not have the video, or has neither its path nor its bytes.
        """
        if self._rows is None:
            return name, self._audio
        if name not in self._numbers:
            raise ValueError(f"{self._data} does not contain the video {name} on this machine. Update its local copy.")
        row = self._rows[self._numbers[name]]
        audio = None if self._audio_column is None else _source_of(row, self._audio_column)
        return _source_of(row, self._column), audio

    def locate(self, name: str) -> str:
        """Return which video a name stands for, however its path is written: an absolute path, a URL, or a row of a dataset."""
        return _absolute(name) if self._rows is None or is_address(name) else self._cell(name, self._column)

    def origin(self, name: str) -> str:
        """Return a digest of [`locate`], which unlike a path can be published."""
        return hashlib.sha256(os.fsencode(self.locate(name))).hexdigest()[:16]

    def identify(self, name: str) -> dict[str, str | None]:
        """Return which `video` and `audio` a name stands for, and the `content`."""
        audio = self._audio and _absolute(self._audio)
        if self._audio_column is not None:
            audio = self._cell(name, self._audio_column)
        return {"video": self.locate(name), "audio": audio, "content": self.fingerprint(name)}

    def _cell(self, name: str, column: str) -> str:
        """Describe a cell of the dataset."""
        return f"{name} of {self._place}, {self._split}, {column}"

    def title(self, name: str) -> str:
        """Return the file name of a video; for a URL, without the query, which may contain a secret."""
        return _file_name(name)

    def fingerprint(self, name: str) -> str | None:
        """Return a text that changes with the content of a video and of its audio, as it was at the first call.

        It has the size, the modification time and a digest of the first and last 64 KiB of each file. It is `None` if they
        cannot be read here, such as those of a URL or of a row without a video.
        """
        if name not in self._contents:
            try:
                video, audio = self.read(name)
            except ValueError:  # an error of the video when it is segmented
                return None
            prints = [_fingerprint(video), *([] if audio is None else [_fingerprint(audio) or _shown(audio)])]
            self._contents[name] = None if prints[0] is None else " with audio ".join(map(str, prints))
        return self._contents[name]


class ClipVideos(Videos):
    """Clips of AVSBench as downloaded, or of a custom folder.

    Args:
        data: As for [`find_clips`].
        name: "s4", "ms3", "avss" or "folder".
        split: "train", "val" or "test".

    Raises:
        ValueError: If the split has no clips; with the lines of the table that cannot be used, if there are any.
    """

    audio_remedy = "Replace it with a file that has audio."

    def __init__(self, data: str, name: str, split: str) -> None:
        from pcmanet.dataset_scripts.avsbench import RowSettings, find_clips  # it imports `datasets`

        tree = find_clips(data, name, RowSettings())
        clips = tree.clips_of(split)
        parts = [(split, getattr(clip, "category", None), clip.id) for clip in clips]
        self._clips = {"/".join(filter(None, part)): clip for part, clip in zip(parts, clips, strict=True)}
        self._table = tree.table
        super().__init__(self._clips)
        self.left_out = [str(problem) for problem in tree.problems]

    def read(self, name: str) -> tuple[Source, Source | None]:
        """Return a clip as a video: the file of a custom folder, or one made of the frames and the wav of AVSBench."""
        from pcmanet.dataset_scripts.avsbench.layouts import ClipFiles

        clip = self._clips[name]
        if not isinstance(clip, ClipFiles):
            return clip.audio, None
        return encode_lossless(np.stack([_read_frame(path) for path in clip.frames]), *read_audio(clip.audio)), None

    def locate(self, name: str) -> str:
        """Return which clip of which table a name stands for."""
        return f"{name} of {_absolute(str(self._table))}"

    def fingerprint(self, name: str) -> str | None:
        """Return a text that changes with the table and with the size or time of any file of the clip."""
        from pcmanet.dataset_scripts.avsbench import fingerprint

        return fingerprint(self._table, self._clips[name].paths)


def _read_frame(path: str) -> np.ndarray:
    """Read the image file of a frame, uint8 (height, width, 3)."""
    from pcmanet.dataset_scripts.problems import IMAGE_ERRORS

    try:
        return np.asarray(PCMANetImageProcessor.to_rgb(Image.open(path)))
    except IMAGE_ERRORS as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def find_videos(arguments: Namespace, *, list_files: bool = True) -> Videos:
    """Find the videos that the command line names.

    Args:
        arguments: Arguments of `pcmanet segment`.
        list_files: Whether to look for files. Processes that work together must agree on the names, but folders may
            change, so one process lists the files and sends the names to the others.

    Returns:
        The videos.

    Raises:
        FileNotFoundError: If a file, folder or dataset does not exist, or a folder or list contains no video.
        ValueError: If the dataset does not have the split or columns, or there are several videos for one audio.
    """
    if arguments.data is not None and (name := _choose_clips(arguments)):
        return ClipVideos(arguments.data, name, arguments.split or DATA_SPLIT)
    if arguments.data is not None:
        columns = arguments.column or DATA_COLUMN, arguments.audio_column, arguments.name_column
        return Videos.from_dataset(arguments.data, arguments.split, *columns)
    audio = arguments.audio and _local_path(arguments.audio)
    if audio is not None and not is_address(audio) and not os.path.exists(audio):
        raise FileNotFoundError(f"File {audio} not found. Check --audio.")
    left_out: list[str] = []
    found: dict[str, str] = {}  # the first way in which each video is written
    for source in map(_local_path, arguments.videos if list_files else ()):
        for name in map(_local_path, _expand(source, arguments.output.resolve(), left_out)):
            found.setdefault(_absolute(name), name)
    videos = Videos(found.values(), audio)
    if audio is not None and len(videos.names) > 1:
        raise ValueError(
            f"--audio is the audio of a single video, but {arguments.videos[0]} has {len(videos.names)} videos. "
            "Segment them one by one, each with its own --audio."
        )
    videos.left_out = left_out
    return videos


def name_folders(names: Iterable[str]) -> dict[str, str]:
    """Name the folder of the results of each video: the name of the video without its folders and suffix.

    Args:
        names: Names of the videos.

    Returns:
        Name of the video -> name of the folder.

    Raises:
        ValueError: If two videos have the same folder.
    """
    folders = {name: _folder_name(name) for name in names}
    owners: dict[str, str] = {}
    for name, folder in folders.items():
        if (other := owners.setdefault(folder, name)) != name:
            raise ValueError(
                f"The results of {other} and {name} have the same folder {folder}. Segment them with different --output, "
                "or use --format parquet without --overlay and --contact-sheet."
            )
    return folders


def is_user_error(error: Exception) -> bool:
    """Return whether an error is caused by the input, so that its message is enough."""
    return isinstance(error, _USER_ERRORS)


def format_error(error: Exception, audio_remedy: str = "") -> str:
    """Format an error as one line, with command line options instead of Python arguments.

    Args:
        error: The error. One that lists problems (DatasetError) keeps one line per problem.
        audio_remedy: What to do about a file without audio, see [`Videos`].
    """
    if hasattr(error, "problems"):
        return printable(str(error))
    message = str(error)
    if isinstance(error, OSError) and message.startswith("[Errno"):
        place = f": {os.fsdecode(error.filename)}" if error.filename else ""
        message = f"{error.strerror}{place}. {_REMEDIES.get(error.errno or 0, '')}"
    if isinstance(error, MediaError) and error.needs_audio:
        message = f"{error.problem} {audio_remedy}"
    return printable(" ".join(message.split()), one_line=True) or type(error).__name__


def printable(text: str, *, one_line: bool = False) -> str:
    """Return a text that any output can hold: bytes of file names that are not UTF-8 are written in hexadecimal.

    Args:
        text: The text.
        one_line: Whether to also write control characters as in Python, for a terminal or a log file.
    """
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text) if one_line else text


def is_address(source: str) -> bool:
    """Return whether a source is an http(s) URL or a file on the Hub."""
    return source.lower().startswith(("http://", "https://", "hf://"))


def _local_path(source: str) -> str:
    """Return the path of a `file://` URL, and a path with `~` expanded; another URL or path unchanged.

    A file whose own name begins like that gets a path that does not.
    """
    try:
        path = media_source(source)
    except MediaError:  # of another machine: an error of the video when it is read
        path = ""
    if path != source and os.path.exists(source):
        return os.path.join(".", source)
    return path or source


def _absolute(source: str) -> str:
    """Return the absolute path of a file, with links to its folder resolved, or a URL or pipe unchanged."""
    if is_address(source) or is_open_pipe(Path(source)):
        return source
    folder, name = os.path.split(source)
    return os.path.join(os.path.realpath(folder), name)


def _fingerprint(source: Source) -> str | None:
    """Return the size, the modification time and a digest of head and tail; None for what cannot be read in place."""
    if isinstance(source, bytes):
        tail = source[max(FINGERPRINT_BYTES, len(source) - FINGERPRINT_BYTES) :]
        digest = hashlib.sha256(source[:FINGERPRINT_BYTES] + tail)
        return f"{len(source)} bytes, {digest.hexdigest()[:16]}"
    if is_open_pipe(Path(source)):
        return f"pipe at {time.time_ns()}"  # a different one each time
    if is_address(source) or not os.path.isfile(source):
        return None
    try:
        with open(source, "rb") as file:
            status = os.fstat(file.fileno())
            digest = hashlib.sha256(file.read(FINGERPRINT_BYTES))
            file.seek(max(file.tell(), status.st_size - FINGERPRINT_BYTES))
            digest.update(file.read(FINGERPRINT_BYTES))
    except OSError:
        return None
    return f"{status.st_size} bytes, {status.st_mtime_ns} ns, {digest.hexdigest()[:16]}"


def _shown(source: Source) -> str:
    """Return a URL or path, or the size of bytes."""
    return source if isinstance(source, str) else f"{len(source)} bytes"


def _file_name(video: str) -> str:
    """Return the last part of a path, or of the path in a URL."""
    return Path(unquote(urlsplit(video).path) if is_address(video) else video).name


def _folder_name(video: str) -> str:
    """Return a name that every file system supports, that is not hidden and not that of another file of the results."""
    name = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", Path(_file_name(video)).stem).lstrip(".") or "video"
    if is_system_file(name) or any(fnmatch(name.lower(), other.lower()) for other in (SETTINGS, CARD, SHARDS)):
        name += "_"
    if len(os.fsencode(name)) <= LONGEST_FOLDER_NAME:
        return name
    # Long names, such as those of web pages, often differ only at the end.
    end = f"-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
    return os.fsencode(name)[: LONGEST_FOLDER_NAME - len(end)].decode(errors="ignore") + end


def _expand(source: str, excluded: Path, left_out: list[str]) -> Iterator[str]:
    """Yield the videos in a folder or list, or the one that was named; add to `left_out` what is not segmented."""
    path = Path(source)
    if is_address(source):
        yield source
    elif path.is_dir():
        yield from _videos_in(path, excluded, left_out)
    elif not path.exists():
        raise FileNotFoundError(f"File or folder {source} not found. Check the path.")
    elif path.suffix.lower() == LIST_SUFFIX:
        yield from _videos_listed(path)
    else:
        yield source


def _videos_in(folder: Path, excluded: Path, left_out: list[str]) -> list[str]:
    """List the videos in a folder and its subfolders, without hidden ones and without results of earlier runs."""
    found, others = [], Counter()
    for path in _files_in(folder, excluded, left_out):
        suffix = path.suffix.lower()
        if suffix in VIDEO_SUFFIXES:
            found.append(str(path))
        else:
            others[suffix or "no suffix"] += 1
    if others:
        shown = ", ".join(f"{suffix} {number}" for suffix, number in others.most_common())
        left_out.append(
            f"{folder}: files without the suffix of a video are left out: {shown}. Name one to segment it."
        )
    if not found:
        reasons = " ".join(left_out)
        raise FileNotFoundError(
            f"No video found in {folder}. Supported suffixes: {' '.join(sorted(VIDEO_SUFFIXES))}. {reasons}".rstrip()
        )
    return found


def _files_in(folder: Path, excluded: Path, left_out: list[str]) -> list[Path]:
    """List the files in a folder and its subfolders in order, without hidden ones and without results of earlier runs."""
    files, links = [], []

    def leave_out(error: OSError) -> None:
        left_out.append(f"{error.filename} is left out: {error.strerror}.")

    for place, folders, names in os.walk(folder, onerror=leave_out):
        parent = Path(place)
        if parent.resolve() == excluded:
            folders.clear()
        elif (parent / SETTINGS).is_file():
            left_out.append(f"{parent} is left out: it contains results of `pcmanet segment`.")
            folders.clear()
        else:
            folders[:] = [name for name in folders if not name.startswith(".")]
            links += [parent / name for name in folders if (parent / name).is_symlink()]
            files += [parent / name for name in names if not name.startswith(".")]
    if links:
        left_out.append(
            f"{folder}: links to folders are left out: {len(links)}, such as {min(links)}. Name them to segment their videos."
        )
    return sorted(files)


def _videos_listed(path: Path) -> list[str]:
    """Read a list. Whether its files exist is checked when they are segmented."""
    try:
        # Windows begins UTF-8 text with a byte order mark, which is not part of the first path, and ends lines with a
        # carriage return. Names may contain every other character, including those that Python treats as line ends.
        lines = [line.removesuffix("\r") for line in path.read_bytes().decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not a text file: {error}. Expected one path or URL per line, in UTF-8."
        ) from error
    # Spaces around a path are part of it only if there is a file of that name.
    lines = [line if line == line.strip() or os.path.exists(line) else line.strip() for line in lines]
    found = [line for line in lines if line and not (line.startswith("#") and not os.path.exists(line))]
    if not found:
        raise FileNotFoundError(f"No video found in {path}. Expected one path or URL per line.")
    return found


def _choose_clips(arguments: Namespace) -> str | None:
    """Return the name of the dataset if --data has the layout of AVSBench, or None for another dataset.

    Raises:
        ValueError: If there are several and none is chosen, or the chosen one is not there.
    """
    from pcmanet.dataset_scripts.avsbench import find_names  # it imports `datasets`

    names = find_names(arguments.data) if Path(arguments.data).is_dir() else []
    if arguments.name is not None and arguments.name not in names:
        raise ValueError(f"{arguments.data} contains {' and '.join(names) or 'no AVSBench'}, not {arguments.name}.")
    if len(names) > 1 and arguments.name is None:
        raise ValueError(f"{arguments.data} contains {' and '.join(names)}. Choose one with --name.")
    for option in ("column", "audio_column", "name_column"):
        if names and getattr(arguments, option) is not None:
            raise ValueError(
                f"{arguments.data} contains clips, not a dataset with columns. Leave out --{option.replace('_', '-')}."
            )
    return arguments.name or (names[0] if names else None)


def _select_columns(data: str, split: str | None, columns: Mapping[str, str]) -> Any:
    """Load columns of a dataset, in either of the two formats of `datasets`, without decoding media.

    Args:
        data: As for [`Videos.from_dataset`].
        split: As for [`Videos.from_dataset`].
        columns: The option that names each column, for errors -> the column.
    """
    from datasets import Audio, DatasetDict, Video, load_dataset, load_from_disk

    saved = [name for name in ("state.json", "dataset_dict.json") if (Path(data) / name).is_file()]
    rows: Any = load_from_disk(data) if saved else load_dataset(data, split=split or DATA_SPLIT)
    if isinstance(rows, DatasetDict):
        split = split or DATA_SPLIT
        if split not in rows:
            raise ValueError(f"{data} has no split {split}, only {', '.join(map(str, rows))}. Choose with --split.")
        rows = rows[split]
    elif saved and split not in (None, only := str(rows.split or DATA_SPLIT)):
        raise ValueError(f"{data} has no split {split}, only {only}. Leave out --split.")
    for option, name in columns.items():
        if name not in rows.column_names:
            found = ", ".join(rows.column_names)
            raise ValueError(f"{data} has no column {name}, only {found}. Choose with {option}.")
    rows = rows.select_columns(list(dict.fromkeys(columns.values())))
    for name, feature in rows.features.items():
        if isinstance(feature, Audio | Video):
            rows = rows.cast_column(name, type(feature)(decode=False))
    return rows


def _paths_in(rows: Any, column: str) -> Iterator[str | None]:
    """Yield the paths or URLs in a column, without reading the bytes."""
    for table in rows.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        values = table[column].combine_chunks()
        if pyarrow.types.is_struct(values.type):
            values = values.field("path")
        yield from values.to_pylist() if pyarrow.types.is_string(values.type) else [None] * len(values)


def _name_of(path: str | None, folder: Path, default: str) -> str:
    """Name a video by its path in the dataset, which is the same on every machine."""
    if not path or is_address(path):
        return path or default
    absolute = Path(path).resolve()
    inside = absolute.is_relative_to(folder.resolve())
    return absolute.relative_to(folder.resolve()).as_posix() if inside else Path(path).name


def _source_of(row: Mapping[str, Any], column: str) -> Source:
    """Return the bytes in a cell, or else the path."""
    value = row[column]
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if not isinstance(value, (str, bytes)):
        raise ValueError(f"Expected a path, URL or bytes in the column {column}, got {type(value).__name__}.")
    return _local_path(value) if isinstance(value, str) else value
