"""Check the files of a clip and read them as one row of a dataset.

| column | type | meaning |
|---|---|---|
| `id` | string | name of the clip |
| `category` | string or null | S4's category |
| `objects` | list of strings or null | names of the sounding objects of the clip, see layouts.py; null where the data do not list them |
| `subset` | string | "s4", "ms3", "v1s", "v1m", "v2" or "folder" |
| `frames` | list of images | as stored |
| `timestamps` | list of float64 | time of each frame in seconds since the start of the audio |
| `masks` | list of images or nulls | class indices (binary: 0 and 1), null where the frame is not annotated |
| `annotated_frames` | list of bool | which frames are annotated |
| `audio` | struct of `path` and `bytes` | the audio as a wav; null if only log-mel features exist |
| `log_mel` | float32 (frames, 1, 96, 64) | the published features, only if requested |
"""

import hashlib
import io
import math
import os
import pickle
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from datasets import Array4D, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from modeling_pcmanet.media_pcmanet import (
    SAMPLING_OFFSET,
    Media,
    MediaError,
    number_of_frames,
    read_audio,
    read_media,
)
from modeling_pcmanet.media_writing_pcmanet import encode_wav
from pcmanet.dataset_scripts.problems import IMAGE_ERRORS, DatasetError, Problem, ProblemCollector

from .layouts import BACKGROUND, FOLDER, FOLDER_CLASSES, SECONDS_OF_SUBSET, Clip, ClipFiles, CustomClipFiles
from .masks import LABEL_NOISE_RULES, decode_mask, filter_label_noise, find_systematic_error, to_binary


PATCH_SHAPE = (1, 96, 64)  # of the published log-mel files


# Options and columns of rows


MISSING_AUDIO_RULES = ("raise", "silence")


@dataclass(frozen=True)
class RowSettings:
    """Row options: which clips are read, and how. Each applies to some datasets; see `OPTIONS`.

    Attributes:
        label_noise: AVSS only, treatment of pixels whose class `a_obj` does not list: "keep", "background" or "ignore".
        log_mel: S4 and MS3 only, whether to read the published log-mel files in addition to the wav, which may then be
            missing; a wav that is too short or damaged counts as missing.
        frames_per_second: Custom folders only, rate at which frames are read, in hertz; a whole number if there are masks.
            The mask of a second belongs to the frame nearest to the one that is taken at one frame per second.
        subsets: AVSS only, some of "v1s", "v1m" and "v2"; empty for all.
        binary: AVSS and custom folders only, whether semantic masks become 0 (silent) and 1 (sounding).
        missing_audio: Custom folders only, what to do with videos without an audio track: "raise", or "silence", which
            makes them silent clips. Nothing is sounding there, so all their frames have an empty mask.

    Raises:
        ValueError: If a rule or subset is unknown or the rate is not a positive number.
    """

    label_noise: str = "keep"
    log_mel: bool = False
    frames_per_second: float = 1.0
    subsets: tuple[str, ...] = ()
    binary: bool = False
    missing_audio: str = "raise"

    def __post_init__(self) -> None:
        if self.label_noise not in LABEL_NOISE_RULES:
            raise ValueError(f"Expected one of {LABEL_NOISE_RULES} as label_noise, got {self.label_noise!r}")
        if not 0 < self.frames_per_second < math.inf:
            raise ValueError(f"Expected a positive number as frames_per_second, got {self.frames_per_second}")
        if unknown := set(self.subsets) - set(SECONDS_OF_SUBSET):
            raise ValueError(f"Expected some of {tuple(SECONDS_OF_SUBSET)} as subsets, got {sorted(unknown)}")
        if self.missing_audio not in MISSING_AUDIO_RULES:
            raise ValueError(f"Expected one of {MISSING_AUDIO_RULES} as missing_audio, got {self.missing_audio!r}")

    @property
    def given(self) -> list[str]:
        """Names of the options that differ from their defaults."""
        return [one.name for one in fields(self) if getattr(self, one.name) != one.default]

    def restrict(self, name: str) -> "RowSettings":
        """Return the options that apply to a dataset; the others have their defaults."""
        return RowSettings(**{option: getattr(self, option) for option in self.given if name in OPTIONS[option]})


# The datasets to which each option applies.
OPTIONS = {
    "label_noise": ("avss",),
    "log_mel": ("s4", "ms3"),
    "frames_per_second": (FOLDER,),
    "subsets": ("avss",),
    "binary": ("avss", FOLDER),
    "missing_audio": (FOLDER,),
}


def row_features(log_mel: bool = False) -> Features:
    """Return the types of the columns, with or without `log_mel`."""
    features = {
        "id": Value("string"),
        "category": Value("string"),
        "objects": List(Value("string")),
        "subset": Value("string"),
        "frames": List(ImageFeature()),
        "timestamps": List(Value("float64")),
        "masks": List(ImageFeature()),
        "annotated_frames": List(Value("bool")),
        "audio": {"path": Value("string"), "bytes": Value("binary")},
    }
    return Features({**features, "log_mel": Array4D((None, *PATCH_SHAPE), "float32")} if log_mel else features)


# Files: missing, empty and truncated ones are found without decoding


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
JPEG_SIGNATURE, JPEG_END = b"\xff\xd8", b"\xff\xd9"
STREAMED_WAV_BYTES = 0x7FFFFFFF  # from here on the length in a header means "until the end of the file"
SHORTEST_AUDIO = 0.975  # seconds: one log-mel patch. AVSBench's preparation repeats the last patch of shorter clips
SHORT_AUDIO = 1.25  # seconds; in most clips, the audio is shorter than the frames by at most this
SILENCE_RATE = 16000  # of silence that replaces a missing track, in hertz
READERS = 8  # threads, which hide the latency of a network drive


def inspect_files(clips: Sequence[Clip], settings: RowSettings) -> list[Problem]:
    """Find all files that are missing, empty or truncated.

    The check covers names, both ends of images and the headers of wav files. Reading a row checks the rest.

    Args:
        clips: The clips.
        settings: With `log_mel`, the log-mel files are required and the wav files may be missing or damaged.

    Returns:
        The problems in the order of the clips. A problem of several clips is listed once, with the number of clips.
    """
    with ThreadPoolExecutor(READERS) as pool:
        found = [
            Problem(clip.id, path, problem)
            for clip, problems in zip(clips, pool.map(lambda clip: list(_inspect(clip, settings)), clips), strict=True)
            for path, problem in problems
        ]
    counts = Counter((problem.path, problem.problem) for problem in found)
    merged = {}
    for problem in found:
        count = counts[problem.path, problem.problem]
        shared = Problem("", problem.path, f"{problem.problem}; {count} clips need it")
        merged[problem.path, problem.problem] = problem if count == 1 else shared
    return list(merged.values())


def _inspect(clip: Clip, settings: RowSettings) -> Iterator[tuple[str, str]]:
    """Yield the path and the problem of each unusable file of a clip."""
    if isinstance(clip, CustomClipFiles):
        yield from _inspect_custom(clip)
        return
    masks = [mask for mask in clip.masks if mask]
    yield from (*_find_missing(clip.frames), *_find_surplus(clip.frames), *_find_missing(masks))
    for path in (*clip.frames, *masks):
        if os.path.isfile(path) and (problem := image_problem(path)):
            yield path, problem
    yield from _find_missing([clip.log_mel or ""] if settings.log_mel else [clip.audio])
    if not settings.log_mel and os.path.isfile(clip.audio) and (problem := _audio_problem(clip.audio)):
        yield clip.audio, problem


def _inspect_custom(clip: CustomClipFiles) -> Iterator[tuple[str, str]]:
    """Yield the path and the problem of each unusable file of a clip in a custom folder."""
    if not os.path.isfile(clip.audio):
        yield clip.audio, "Missing"
    elif not os.path.getsize(clip.audio):
        yield clip.audio, "Empty file (0 bytes)"
    if clip.masks and not clip.mask_files:
        yield clip.masks, "No masks found. Leave the column empty for a clip without annotation."
    for number, path in clip.mask_files.items():
        if not (number.isascii() and number.isdecimal() and str(int(number)) == number):
            yield path, "Expected the number of its second as name, such as 0.png for second 0"
        elif problem := image_problem(path):
            yield path, problem


def _find_missing(paths: Sequence[str]) -> list[tuple[str, str]]:
    """List the missing files of a clip, or each topmost missing folder once."""
    missing = [path for path in paths if not os.path.isfile(path)]
    folders = {_topmost_missing(path) for path in missing}
    if missing and not folders & set(missing):
        return [(folder, "Missing folder") for folder in sorted(folders)]
    have = f"; the clip has {len(paths) - len(missing)} of {len(paths)}" if len(paths) > 1 else ""
    return [(path, f"Missing{have}") for path in missing]


def _topmost_missing(path: str) -> str:
    """Return the path itself, or its topmost folder that does not exist."""
    while not os.path.isdir(os.path.dirname(path)) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


def _find_surplus(paths: Sequence[str]) -> list[tuple[str, str]]:
    """List the folder of frames if it contains more frames than the clip should have."""
    folder, suffix = os.path.dirname(paths[0]), os.path.splitext(paths[0])[1]
    expected = {os.path.basename(path) for path in paths}
    others = [name for name in os.listdir(folder) if name.endswith(suffix)] if os.path.isdir(folder) else []
    # Files that some systems add begin with a dot.
    surplus = sorted(name for name in others if name not in expected and not name.startswith("."))
    if not surplus:
        return []
    return [(folder, f"Expected {len(paths)} frames, got {len(others)}; not expected: {', '.join(surplus[:5])}")]


def image_problem(path: str) -> str | None:
    """Check both ends of an image file; only files with unknown ends are decoded.

    Args:
        path: The file.

    Returns:
        The problem, or None.
    """
    with open(path, "rb") as file:
        start = file.read(len(PNG_SIGNATURE))
        if not start:
            return "Empty file (0 bytes). Download it again."
        file.seek(-min(len(PNG_END), file.seek(0, os.SEEK_END)), os.SEEK_END)
        end = file.read()
    complete_png = start == PNG_SIGNATURE and end == PNG_END
    if complete_png or (start.startswith(JPEG_SIGNATURE) and end.endswith(JPEG_END)):
        return None
    # Decoders accept a PNG without its last bytes, but a truncated download is unreliable.
    if start == PNG_SIGNATURE and PNG_END not in Path(path).read_bytes():
        return "Truncated file or not an image (its end is missing). Download it again."
    try:
        with Image.open(path) as image:
            image.load()
    except IMAGE_ERRORS as error:
        return f"Truncated file or not an image ({error}). Download it again."
    return None


def read_image(path: str) -> tuple[bytes, tuple[int, int]]:
    """Read an image file and verify its checksums (PNG) without decoding it.

    Args:
        path: The file.

    Returns:
        Its bytes, and (height, width).

    Raises:
        ValueError: If the file is damaged or not an image.
    """
    data = Path(path).read_bytes()
    try:
        with Image.open(BytesIO(data)) as image:
            width, height = image.size
            image.verify()
    except IMAGE_ERRORS as error:
        raise ValueError(f"Damaged file or not an image ({error}). Download it again.") from error
    return data, (height, width)


def audio_seconds(path: str) -> float | None:
    """Return the duration of a wav file in seconds; None if it is missing or damaged."""
    try:
        with open(path, "rb") as file:
            return read_wav_seconds(file)
    except (OSError, ValueError):
        return None


def _audio_problem(path: str) -> str | None:
    """Check the header of a wav file; return the problem, or None."""
    try:
        with open(path, "rb") as file:
            duration = read_wav_seconds(file)
    except ValueError as error:
        return str(error)
    if duration < SHORTEST_AUDIO:
        return (
            f"Expected at least {SHORTEST_AUDIO} s of audio, which is one log-mel patch, got {duration:.3f} s. AVSBench has no "
            "features of such a clip either. Download it again or skip the clip."
        )
    return None


def read_wav_seconds(file: BinaryIO) -> float:
    """Read the duration of a wav file from its header and check that the file is as long as the header states.

    Args:
        file: The file, at its start.

    Returns:
        Seconds.

    Raises:
        ValueError: If the file is not a wav or truncated.
    """
    header = file.read(12)
    if len(header) < 12 or header[:4] not in (b"RIFF", b"RF64") or header[8:] != b"WAVE":
        raise ValueError("Not a wav file" if header else "Empty file (0 bytes). Download it again.")
    bytes_per_second = 0
    while len(chunk := file.read(8)) == 8:
        name, length = chunk[:4], int.from_bytes(chunk[4:], "little")
        if name == b"data" and bytes_per_second:
            return _data_bytes(file, length) / bytes_per_second
        content = file.read(length) if name == b"fmt " else b""
        if name == b"fmt ":
            bytes_per_second = int.from_bytes(content[8:12], "little")
        file.seek(length - len(content) + length % 2, os.SEEK_CUR)
    raise ValueError("Truncated file: no audio after the header. Download it again.")


def _data_bytes(file: BinaryIO, announced: int) -> int:
    """Return the length of the audio that begins here; raise ValueError if it is shorter than announced."""
    start = file.tell()
    available = file.seek(0, os.SEEK_END) - start
    if announced >= STREAMED_WAV_BYTES:
        return available
    if available < announced:
        raise ValueError(f"Truncated file: expected {announced} bytes of audio, got {available}. Download it again.")
    return announced


def fingerprint(table: Path, paths: Iterable[str], *, moved: bool = False) -> str:
    """Return the fingerprint of a dataset: changes to the table or to the size or time of any file change it.

    Args:
        table: The table of clips; the classes.txt of a custom folder, which is next to it, counts as a part of it.
        paths: All files of the clips; missing files count as missing.
        moved: Ignore the location of the dataset and the times of its files.

    Returns:
        32 hexadecimal digits.
    """
    place = "" if moved else str(table.resolve())
    digest = hashlib.sha256(place.encode() + b"\0" + table.read_bytes())
    if (classes := table.parent / FOLDER_CLASSES).is_file():
        digest.update(classes.read_bytes() + b"\0")
    for path in paths:
        try:
            state = os.stat(path)
            line = f"{state.st_size}\0{'' if moved else state.st_mtime_ns}\n"
        except OSError:
            line = "missing\n"
        line = f"{os.path.relpath(path, table.parent) if moved else path}\0{line}"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


# Rows


def clip_problems(clip: Clip, settings: RowSettings) -> list[Problem]:
    """Return the problems of a clip; its files are read if none is missing or truncated."""
    if problems := inspect_files([clip], settings):
        return problems
    try:
        read_row(clip, settings)
    except DatasetError as error:
        return error.problems
    return []


def read_row(clip: Clip, settings: RowSettings) -> dict[str, Any]:
    """Read the files of a clip as one row.

    Args:
        clip: The clip; `inspect_files` has checked its files.
        settings: Row options.

    Returns:
        The row. Masks are PNG of class indices. Frames and audio of AVSBench are the bytes of the files; frames of a video
        are PNG and its audio is a 16-bit wav at its own rate.

    Raises:
        DatasetError: If files cannot be used; the error lists every such file of the clip.
    """
    if isinstance(clip, CustomClipFiles):
        return _read_custom_row(clip, settings)
    collector = ProblemCollector(clip.id)
    images = [collector.run(read_image, path) for path in clip.frames]
    masks = [collector.run(_read_mask, path, clip.mask_encoding) if path else None for path in clip.masks]
    collector.run(_check_sizes, clip.frames[0], clip, images, masks)
    collector.run(_check_classes, next(path for path in clip.masks if path), clip, masks)
    row = _make_row(
        clip.id,
        clip.subset,
        frames=[
            {"path": os.path.basename(path), "bytes": image and image[0]}
            for path, image in zip(clip.frames, images, strict=True)
        ],
        timestamps=np.arange(len(clip.frames)) + SAMPLING_OFFSET,
        masks=[_convert(mask, clip, settings) for mask in masks],
        audio=_read_audio(clip, collector, settings),
        category=clip.category,
        objects=clip.objects,
    )
    if settings.log_mel and clip.log_mel:
        row["log_mel"] = collector.run(read_log_mel, clip.log_mel, len(clip.frames))
    collector.finish()
    return row


def _read_mask(path: str, encoding: str, *num_classes: int) -> np.ndarray:
    """Read a mask file as uint8 (height, width), class indices."""
    data, _ = read_image(path)
    return decode_mask(data, encoding, *num_classes)


def _check_sizes(_: str, clip: ClipFiles, images: Sequence[Any], masks: Sequence[np.ndarray | None]) -> None:
    """Raise ValueError unless all frames and masks of a clip have the same size."""
    sizes = {path: image[1] for path, image in zip(clip.frames, images, strict=True) if image}
    sizes |= {path: mask.shape for path, mask in zip(clip.masks, masks, strict=True) if path and mask is not None}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{os.path.relpath(path, Path(clip.audio).parent)} {size}" for path, size in sizes.items())
        raise ValueError(f"Expected one (height, width) for all frames and masks of the clip, got {listed}")


def _check_classes(_: str, clip: ClipFiles, masks: Sequence[np.ndarray | None]) -> None:
    """Raise ValueError if the classes in the masks of an AVSS clip contradict its `a_obj` systematically."""
    known = [mask for mask in masks if mask is not None]
    error = find_systematic_error(known, clip.objects or ()) if clip.subset in SECONDS_OF_SUBSET else None
    if error:
        raise ValueError(error)


def _convert(mask: np.ndarray | None, clip: ClipFiles, settings: RowSettings) -> np.ndarray | None:
    """Apply the rule for label noise to a mask of AVSS, and make it binary if requested."""
    if mask is None or clip.subset not in SECONDS_OF_SUBSET:
        return mask
    mask = filter_label_noise(mask, clip.objects or (), settings.label_noise)
    return to_binary(mask) if settings.binary else mask


def _read_audio(clip: ClipFiles, collector: ProblemCollector, settings: RowSettings) -> dict[str, Any] | None:
    """Read a wav file unchanged; return None if it cannot be used and log-mel features replace it."""
    features = settings.log_mel and clip.log_mel
    if features and (not os.path.isfile(clip.audio) or _audio_problem(clip.audio)):
        return None
    data = collector.run(_decode_audio, clip.audio)
    return None if data is None else {"path": os.path.basename(clip.audio), "bytes": data}


def _decode_audio(path: str) -> bytes:
    """Return the bytes of an audio file; raise ValueError if it cannot be decoded."""
    data = Path(path).read_bytes()
    read_audio(data)
    return data


def _make_row(
    name: str,
    subset: str,
    *,
    frames: Sequence[Any],
    timestamps: np.ndarray,
    masks: Sequence[np.ndarray | None],
    audio: dict[str, Any] | None,
    category: str | None = None,
    objects: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Assemble the columns of a clip; masks are uint8 (height, width) class indices."""
    return {
        "id": name,
        "category": category,
        "objects": None if objects is None else list(objects),
        "subset": subset,
        "frames": list(frames),
        "timestamps": timestamps.tolist(),
        "masks": [None if mask is None else {"path": None, "bytes": _encode_png(mask, 4)} for mask in masks],
        "annotated_frames": [mask is not None for mask in masks],
        "audio": audio,
    }


def _encode_png(image: np.ndarray, compress_level: int) -> bytes:
    """Encode an image uint8 (height, width, 3) or class indices uint8 (height, width) as PNG."""
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=compress_level)
    return file.getvalue()


# Rows of custom folders


def _read_custom_row(clip: CustomClipFiles, settings: RowSettings) -> dict[str, Any]:
    """Decode a video and its masks as one row."""
    collector = ProblemCollector(clip.id)
    media = collector.run(_read_video, clip.audio, settings)
    encoding = ("indices", clip.num_classes) if clip.num_classes else ("binary",)
    masks = {number: collector.run(_read_mask, path, *encoding) for number, path in clip.mask_files.items()}
    if media is None:
        raise DatasetError(collector.problems)
    for number, path in clip.mask_files.items():
        collector.run(_check_mask, path, int(number), masks[number], media, settings.frames_per_second)
    collector.finish()
    numbers, (height, width) = range(len(media.frames)), media.frames.shape[1:3]
    frame_masks = {
        _frame_of_second(int(number), settings.frames_per_second, len(numbers)): mask for number, mask in masks.items()
    }
    if media.waveform is None:
        waveform, rate = np.zeros((1, round(len(numbers) / settings.frames_per_second * SILENCE_RATE))), SILENCE_RATE
        frame_masks = {number: np.zeros((height, width), dtype=np.uint8) for number in numbers}
    else:
        waveform, rate = media.waveform, cast(int, media.sampling_rate)
    silent = bool(frame_masks) and not any(mask is not None and mask.any() for mask in frame_masks.values())
    if settings.binary:
        frame_masks = {number: None if mask is None else to_binary(mask) for number, mask in frame_masks.items()}
    return _make_row(
        clip.id,
        "folder",
        frames=[
            {"path": f"{number}.png", "bytes": _encode_png(frame, 1)} for number, frame in enumerate(media.frames)
        ],
        timestamps=media.timestamps,
        masks=[frame_masks.get(number) for number in numbers],
        audio={"path": f"{Path(clip.audio).stem}.wav", "bytes": encode_wav(waveform, rate)},
        objects=(BACKGROUND,) if clip.objects is None and silent else clip.objects,
    )


def _read_video(path: str, settings: RowSettings) -> Media:
    """Read a video; if audio may be missing, a video without an audio track has no waveform."""
    try:
        return read_media(path, frames_per_second=settings.frames_per_second)
    except MediaError as error:
        if not error.needs_audio:
            raise
        if settings.missing_audio == "raise":
            remedy = 'Add its audio to the file, or set missing_audio to "silence" to use it as a clip in which nothing sounds.'
            raise ValueError(f"{error.problem} {remedy}") from error
        return read_media(path, frames_per_second=settings.frames_per_second, audio=False)


def _frame_of_second(second: int, frames_per_second: float, count: int) -> int:
    """Return the number of the frame that is nearest to the frame of a second at one frame per second.

    Frame k is taken at (k + 15/16) / `frames_per_second`, or at the end of the video. With a whole number, that is at
    most 1/16 s from 15/16 of the second.

    Args:
        second: The second, from 0.
        frames_per_second: Rate of the frames, a whole number.
        count: Number of frames.
    """
    return min(round((second + SAMPLING_OFFSET) * frames_per_second - SAMPLING_OFFSET), count - 1)


def _check_mask(_: str, second: int, mask: np.ndarray | None, media: Media, frames_per_second: float) -> None:
    """Raise ValueError if a mask belongs to no frame or has another size."""
    seconds = number_of_frames(len(media.frames) / frames_per_second, 1.0)
    if second >= seconds:
        raise ValueError(f"The video has {seconds} seconds, numbered from 0; this mask belongs to none of them")
    if mask is not None and mask.shape != media.frames.shape[1:3]:
        raise ValueError(f"Expected a mask of the video's (height, width) {media.frames.shape[1:3]}, got {mask.shape}")
    if mask is not None and media.waveform is None and mask.any():
        raise ValueError(
            "The mask marks sounding pixels, but the video has no audio track. Add its audio to the file, or remove the mask."
        )


# The published log-mel features: pickles, read without executing any of their code


MAX_FILE_BYTES = 16 * 2**20  # a published file holds 5 patches, 123 kB


def read_log_mel(path: str | Path, frames: int) -> np.ndarray:
    """Read one `audio_log_mel` file.

    Args:
        path: A pickled tensor.
        frames: Number of patches that it must hold.

    Returns:
        float32 (frames, 1, 96, 64).

    Raises:
        ValueError: If the file is too large or damaged, requests anything but a tensor, or holds another shape or
            values that are not finite. No code of the file is executed in any of these cases.
    """
    if Path(path).stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"Expected {frames} patches of 24 kB in a log-mel file, got more than {MAX_FILE_BYTES} bytes")
    try:
        tensor = _TensorUnpickler(io.BytesIO(Path(path).read_bytes())).load()
    # A damaged pickle can raise any exception.
    except Exception as error:
        raise ValueError(f"Expected a pickled tensor, got {error}. Nothing was executed. Use the wav.") from error
    if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != (frames, *PATCH_SHAPE):
        found = f"a tensor {tuple(tensor.shape)}" if isinstance(tensor, torch.Tensor) else f"a {type(tensor).__name__}"
        raise ValueError(f"Expected a tensor {(frames, *PATCH_SHAPE)}, got {found}. Use the wav.")
    if not torch.isfinite(tensor).all():
        raise ValueError("The features contain values that are not finite. Use the wav.")
    return tensor.detach().to(torch.float32).numpy()


class _TensorUnpickler(pickle.Unpickler):
    """Unpickler that accepts the names by which a tensor is pickled and rejects all others."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle may call."""
        allowed = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch.storage", "_load_from_bytes"): _load_storage,
            ("collections", "OrderedDict"): OrderedDict,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"a request for {module}.{name}")
        return allowed[module, name]


def _rebuild_tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> torch.Tensor:
    """Build a tensor on its storage; unlike torch's function of the same name, it never enlarges the storage."""
    values = torch.empty(0, dtype=storage.dtype, device="cpu").set_(storage._untyped_storage)
    return values.as_strided(size, stride, offset)


def _load_storage(data: bytes) -> Any:
    """Load the pickled storage inside a pickled tensor; torch's own unpickler is restricted as well."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own message suggests disabling the restriction.
        raise pickle.UnpicklingError("a storage that contains more than numbers") from error


def _encode(text: str, encoding: str) -> bytes:
    """Restore bytes from text, which is how pickle protocols before the third store them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"a request for the encoding {encoding}")
    return text.encode("latin1")
