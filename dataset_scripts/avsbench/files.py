"""Whether the files of clips are there and whole, found without decoding them; and a name for their state."""

import hashlib
import os
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from .layouts import ClipFiles, Problem


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
JPEG_SIGNATURE, JPEG_END = b"\xff\xd8", b"\xff\xd9"
STREAMED_WAV_BYTES = 0x7FFFFFFF  # from here up the length in a header means "until the file ends"
LONGEST_MISSING_SOUND = 1.25  # seconds by which sound may be shorter than its clip: AVSBench itself fills up that much
READERS = 8  # threads, which hide the latency of a network drive

# What PIL raises for damaged pictures.
PICTURE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)


def inspect_clips(clips: Sequence[ClipFiles], *, log_mel: bool = False) -> list[Problem]:
    """Find all files of clips that are missing, empty or truncated.

    It looks at names, at both ends of pictures and at the headers of sounds; what lies between is read with the row.

    Args:
        clips: Which.
        log_mel: Whether the published features are wanted; the wavs may then be missing.

    Returns:
        The faults in the order of the clips; a missing folder is named once, with the number of clips that need it.
    """
    with ThreadPoolExecutor(READERS) as pool:
        found = [fault for faults in pool.map(lambda clip: list(_inspect(clip, log_mel)), clips) for fault in faults]
    counts = Counter((fault.path, fault.problem) for fault in found)
    merged = {}
    for fault in found:
        count = counts[fault.path, fault.problem]
        shared = Problem("", fault.path, f"{fault.problem}; {count} clips need it")
        merged[fault.path, fault.problem] = fault if count == 1 else shared
    return list(merged.values())


def _inspect(clip: ClipFiles, log_mel: bool) -> Iterator[Problem]:
    """Find the faults of one clip."""
    masks = [mask for mask in clip.masks if mask]
    pictures = [*_missing(clip.frames), *_surplus(clip.frames), *_missing(masks)]
    pictures += [(path, picture_problem(path)) for path in (*clip.frames, *masks) if os.path.isfile(path)]
    sounds = _missing([clip.log_mel or ""] if log_mel else [clip.audio])
    if os.path.isfile(clip.audio):
        sounds.append((clip.audio, sound_problem(clip.audio, len(clip.frames))))
    for path, problem in (*pictures, *sounds):
        if problem:
            yield Problem(clip.id, path, problem)


def _missing(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Name what of a clip is not there; where folders are missing, the uppermost of them once."""
    missing = [path for path in paths if not os.path.isfile(path)]
    folders = {_uppermost_missing(path) for path in missing}
    if missing and not folders & set(missing):
        return [(folder, "missing folder") for folder in sorted(folders)]
    have = f"; the clip has {len(paths) - len(missing)} of {len(paths)}" if len(paths) > 1 else ""
    return [(path, f"missing{have}") for path in missing]


def _uppermost_missing(path: str) -> str:
    """The path itself, or the folder nearest to the root that is not there."""
    while not os.path.isdir(os.path.dirname(path)) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


def _surplus(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Name the folder of frames if it holds more of them than the clip should have."""
    folder, suffix = os.path.dirname(paths[0]), os.path.splitext(paths[0])[1]
    expected = {os.path.basename(path) for path in paths}
    others = [name for name in os.listdir(folder) if name.endswith(suffix)] if os.path.isdir(folder) else []
    # Files that some systems leave beside others begin with a dot.
    surplus = sorted(name for name in others if name not in expected and not name.startswith("."))
    if not surplus:
        return []
    return [(folder, f"holds {len(others)} frames, expected {len(paths)}; not expected: {', '.join(surplus[:5])}")]


def picture_problem(path: str) -> str | None:
    """Say what is wrong with a picture file, from its two ends; only files with odd ends are decoded.

    Args:
        path: Of a file.

    Returns:
        The problem, or None.
    """
    with open(path, "rb") as file:
        start = file.read(len(PNG_SIGNATURE))
        if not start:
            return "is empty (0 bytes); download it again"
        file.seek(-min(len(PNG_END), file.seek(0, os.SEEK_END)), os.SEEK_END)
        end = file.read()
    whole_png = start == PNG_SIGNATURE and end == PNG_END
    if whole_png or (start.startswith(JPEG_SIGNATURE) and end.endswith(JPEG_END)):
        return None
    # Decoders forgive a PNG whose last bytes are missing; a download that lost any is not to be trusted.
    if start == PNG_SIGNATURE and PNG_END not in Path(path).read_bytes():
        return "is truncated or no picture (its end is missing); download it again"
    try:
        with Image.open(path) as picture:
            picture.load()
    except PICTURE_ERRORS as error:
        return f"is truncated or no picture ({error}); download it again"
    return None


def read_picture(path: str) -> tuple[bytes, tuple[int, int]]:
    """Read a picture file and check the sums that it carries (PNG) without decoding it.

    Args:
        path: Of a file.

    Returns:
        Its bytes, and (height, width).

    Raises:
        ValueError: If it is damaged or no picture.
    """
    data = Path(path).read_bytes()
    try:
        with Image.open(BytesIO(data)) as picture:
            width, height = picture.size
            picture.verify()
    except PICTURE_ERRORS as error:
        raise ValueError(f"is damaged or no picture ({error}); download it again") from error
    return data, (height, width)


def sound_problem(path: str, seconds: int) -> str | None:
    """Say what is wrong with a wav file, from its header.

    Args:
        path: Of a file.
        seconds: Length of the clip.

    Returns:
        The problem, or None.
    """
    try:
        with open(path, "rb") as file:
            duration = read_wav_seconds(file)
    except ValueError as error:
        return str(error)
    if duration < seconds - LONGEST_MISSING_SOUND:
        return f"lasts {duration:.2f} s, but the clip has {seconds} frames, one per second; download it again"
    return None


def read_wav_seconds(file: BinaryIO) -> float:
    """Read the duration of a wav from its header and check that the file is as long as it says.

    Args:
        file: At its start.

    Returns:
        Seconds.

    Raises:
        ValueError: If it is no wav, or truncated.
    """
    header = file.read(12)
    if len(header) < 12 or header[:4] not in (b"RIFF", b"RF64") or header[8:] != b"WAVE":
        raise ValueError("is no wav" if header else "is empty (0 bytes); download it again")
    bytes_per_second = 0
    while len(chunk := file.read(8)) == 8:
        name, length = chunk[:4], int.from_bytes(chunk[4:], "little")
        if name == b"data" and bytes_per_second:
            return _data_bytes(file, length) / bytes_per_second
        content = file.read(length) if name == b"fmt " else b""
        if name == b"fmt ":
            bytes_per_second = int.from_bytes(content[8:12], "little")
        file.seek(length - len(content) + length % 2, os.SEEK_CUR)
    raise ValueError("is truncated: no sound follows its header; download it again")


def _data_bytes(file: BinaryIO, announced: int) -> int:
    """Length of the sound that begins here, or ValueError if it is shorter than announced."""
    start = file.tell()
    there = file.seek(0, os.SEEK_END) - start
    if announced >= STREAMED_WAV_BYTES:
        return there
    if there < announced:
        raise ValueError(f"is truncated: {announced} bytes of sound announced, {there} there; download it again")
    return announced


def fingerprint(table: Path, paths: Iterable[str]) -> str:
    """Name the state of a tree: another table, or another size or time of any file, gives another name.

    Args:
        table: The table of clips.
        paths: All files of the clips; missing ones count as missing.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.sha256(str(table.resolve()).encode() + b"\0" + table.read_bytes())
    for path in paths:
        try:
            state = os.stat(path)
            line = f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n"
        except OSError:
            line = f"{path}\0missing\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]
