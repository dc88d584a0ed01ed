"""The `audio-visual-segmentation` pipeline: from a video to the masks of what sounds in it, frame by frame.

    import pcmanet.pipelines  # registers the task
    from transformers import pipeline

    segmenter = pipeline("audio-visual-segmentation", model="path/or/hub-id")
    for frame in segmenter("clip.mp4"):
        print(frame["timestamp"], [(segment["label"], segment["score"]) for segment in frame["segments"]])

The model and the processor arrive as objects, so this file knows nobody but transformers: saved with a pipeline, it
works alone in a Hub repository.
"""

import ctypes
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from numbers import Integral, Real
from pathlib import Path
from types import GeneratorType
from typing import Any, BinaryIO, TypeAlias, TypeVar

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import AutoModelForUniversalSegmentation
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import logging

from .segments import find_segments


def share(name: str, value: Any) -> float | None:
    """Checks a share of a whole, or a probability.

    Args:
        name: Of the argument.
        value: What came.

    Returns:
        The same as float.

    Raises:
        ValueError: If it is no number in [0, 1].
    """
    if value is None:
        return None
    if not _is_number(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"{name} is a share between 0 and 1, got {value!r}.")
    return float(value)


def whole_number(name: str, value: Any, least: int) -> int | None:
    """Checks a number of things.

    Args:
        name: Of the argument.
        value: What came.
        least: The smallest number that makes sense.

    Returns:
        The same as int.

    Raises:
        ValueError: If it is no whole number, or a smaller one.
    """
    if value is None:
        return None
    if not _is_number(value, Integral) or value < least:
        raise ValueError(f"{name} is a whole number, {least} at least, got {value!r}.")
    return int(value)


def _is_number(value: Any, kind: type) -> bool:
    """Tells whether a value is a number of a kind; for Python True and False are some, too."""
    return isinstance(value, kind) and not isinstance(value, bool)


VideoSource: TypeAlias = str | Path | bytes | BinaryIO | np.ndarray | torch.Tensor
INPUT_KEYS = ("video", "audio", "sampling_rate", "timestamps")


def list_or_generator(inputs: Any) -> Any:
    """Brings several inputs to a list or, where they come one by one, to a generator; one input stays as it is."""
    if isinstance(inputs, list | tuple):
        # transformers looks at the first of a list; of a generator that gives nothing it makes an empty list.
        return list(inputs) or (each for each in ())
    if isinstance(inputs, Dataset) and hasattr(inputs, "__len__"):
        # A torch data set need not say where it ends but by its length.
        return (inputs[index] for index in range(len(inputs)))
    # A file object goes through its lines, an array through its frames: they are one input all the same.
    is_one = isinstance(inputs, str | bytes | bytearray | Mapping | np.ndarray | torch.Tensor) or hasattr(
        inputs, "read"
    )
    is_several = isinstance(inputs, Iterable | Dataset) and not is_one
    return (each for each in inputs) if is_several else inputs


def clip_arguments(
    inputs: VideoSource | Mapping[str, Any],
    audio: VideoSource | Mapping[str, Any] | None = None,
    sampling_rate: int | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Brings every form of input to the arguments of the processor's `stream`."""
    if not isinstance(inputs, Mapping) or "path" in inputs or "bytes" in inputs:
        inputs = {"video": inputs}
    unknown = sorted(set(inputs) - set(INPUT_KEYS))
    if unknown or "video" not in inputs:
        raise ValueError(f'A dictionary of one video has "video" and may have {INPUT_KEYS[1:]}, got {sorted(inputs)}.')

    clip = {"audio": audio, "sampling_rate": sampling_rate, **inputs}
    if isinstance(clip["audio"], Mapping) and "array" in clip["audio"]:
        clip |= {
            "audio": clip["audio"]["array"],
            "sampling_rate": clip["audio"].get("sampling_rate", clip["sampling_rate"]),
        }
    files = {"video": _file_of(clip["video"]), "audio": _file_of(clip["audio"])}
    return {**kwargs, **clip, **files}


def _file_of(source: VideoSource | Mapping[str, Any] | None) -> VideoSource | None:
    """Takes the bytes, or else the path, out of a `datasets` column's `{"path", "bytes"}`."""
    if not isinstance(source, Mapping):
        return source
    found = [source[key] for key in ("bytes", "path") if source.get(key) is not None]
    if not found:
        raise ValueError(f'A dictionary of one file has "bytes" or "path", got {dict(source)}.')
    return found[0]


Item = TypeVar("Item")

# Ten frames are the longest clip of the published tasks (AVSS): attention spans a clip, and memory grows with it.
FRAMES_PER_WINDOW = 10

# Of a window; docs/streaming.md shows what seams cost and what they look like.
DEFAULT_OVERLAP = 1 / 5

# How often a thread that cannot go on looks whether it is still wanted.
PATIENCE_SECONDS = 0.1

_END = object()

# Only glibc has it.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


@dataclass(frozen=True, eq=False)
class Window:
    """Frames that the network sees at once.

    Attributes:
        frames: What the processor's `stream` gives for each.
        fresh: How many of the frames, at the end, were in no window before.
        overlap: Over how many frames it fades in and out.
        is_last: Whether the clip ends with it.
    """

    frames: tuple[dict[str, Any], ...]
    fresh: int
    overlap: int
    is_last: bool


@dataclass(frozen=True, eq=False)
class FrameLogits:
    """What the network thinks of one moment.

    Attributes:
        timestamp: Seconds.
        logits: (num_labels, height, width) of the network.
        original_size: (height, width) of the video.
        mask_timestamps: Moments of masks since the frame before, seconds.
    """

    timestamp: float
    logits: torch.Tensor
    original_size: tuple[int, int]
    mask_timestamps: Sequence[float]


class ReadAhead(Iterator[Item]):
    """Runs a generator in a thread, a few items ahead of whoever takes them.

    An error in the generator is raised where its item would have been taken. [`close`] ends the thread and the
    generator, wherever they are, and waits for it.

    Args:
        items: The generator.
        capacity: How many items may wait.
    """

    def __init__(self, items: Generator[Item, None, None], capacity: int) -> None:
        self._items = items
        self._waiting: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(capacity)
        self._end: tuple[Any, BaseException | None] | None = None
        self._is_wanted = True
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def __next__(self) -> Item:
        """Gives the next item."""
        if not self._is_wanted:
            raise StopIteration
        item, error = self._end or self._waiting.get()
        if item is not _END:
            return item
        self.close()
        if error is not None:
            raise error
        raise StopIteration

    def take_waiting(self) -> list[Item]:
        """Gives the next item and all that wait already; nothing at the end."""
        items = list(islice(self, 1))
        while items and not self._waiting.empty():
            entry = self._waiting.get()
            if entry[0] is _END:
                self._end = entry  # for the next call
                break
            items.append(entry[0])
        return items

    def close(self) -> None:
        """Ends the thread and the generator; items that wait are lost."""
        self._is_wanted = False
        self._thread.join()

    def _run(self) -> None:
        """Fills the queue, from the thread."""
        error = None
        try:
            with closing(self._items):
                for item in self._items:
                    if not self._put((item, None)):
                        return
        except BaseException as raised:
            error = raised
        self._put((_END, error))

    def _put(self, entry: tuple[Any, BaseException | None]) -> bool:
        """Waits for a place in the queue; tells whether the entry is still wanted."""
        while self._is_wanted:
            try:
                self._waiting.put(entry, timeout=PATIENCE_SECONDS)
            except queue.Full:
                continue
            return True
        return False


def read_ahead(
    clips: Iterable[Generator[Item, None, None]], at_once: int, capacity: int
) -> Generator[Item, None, None]:
    """Gives what several generators give, one after the other, while the next ones run already, each in its thread.

    Args:
        clips: The generators.
        at_once: How many run at a time.
        capacity: How many items of each may wait.
    """
    clips, running = iter(clips), deque()
    try:
        while True:
            running.extend(ReadAhead(clip, capacity) for clip in islice(clips, at_once - len(running)))
            if not running:
                return
            yield from running[0]
            running.popleft()
    finally:
        for reader in running:
            reader.close()


def check_overlap(length: int, overlap: int) -> None:
    """Raises ValueError if windows of so many frames cannot share so many with the one before."""
    if overlap >= length:
        raise ValueError(f"window_overlap is a number of frames, fewer than the {length} of a window, got {overlap}.")


def overlapping_windows(frames: Iterable[dict[str, Any]], length: int, overlap: int | None = None) -> Iterator[Window]:
    """Cuts a clip into windows of `length` frames that share `overlap` frames with the one before.

    The last window is as long as the others and shares more, so that no frame is seen without company. A clip that is
    shorter than a window is one window.

    Args:
        frames: In order of time.
        length: Frames per window.
        overlap: Frames that a window shares with the one before, less than `length`; by default a fifth of them.
    """
    overlap = int(length * DEFAULT_OVERLAP) if overlap is None else overlap
    held: deque[dict[str, Any]] = deque(maxlen=length)
    fresh = 0
    for frame in frames:
        # Held back until there is a frame after it, because the last window has to know that it is.
        if fresh == length or (fresh == length - overlap and len(held) == length):
            yield Window(tuple(held), fresh, overlap, is_last=False)
            fresh = 0
        held.append(frame)
        fresh += 1
    if fresh:
        yield Window(tuple(held), fresh, overlap, is_last=True)


def batch_of(windows: Sequence[Sequence[dict[str, Any]]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Joins windows to the batch that the model takes.

    Args:
        windows: The frames of each; shorter windows are padded with zeros.
        dtype: Of frames and sound.

    Returns:
        `pixel_values` (windows, frames, 3, height, width), `input_features` (windows, frames, 1, 96, 64) and `frame_mask`
        (windows, frames), False for padding.
    """
    batch = {
        name: pad_sequence([torch.stack([frame[name] for frame in frames]) for frames in windows], batch_first=True)
        for name in ("pixel_values", "input_features")
    }
    lengths = torch.tensor([len(frames) for frames in windows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return {**{name: tensor.to(dtype) for name, tensor in batch.items()}, "frame_mask": mask}


def up_to_last(outputs: Iterable[tuple[Window, torch.Tensor]]) -> Iterator[tuple[Window, torch.Tensor]]:
    """Gives the windows of the clip that comes next, of several that follow each other."""
    for window, logits in outputs:
        yield window, logits
        if window.is_last:
            return


def blend_windows(outputs: Iterable[tuple[Window, torch.Tensor]]) -> Iterator[FrameLogits]:
    """Puts the windows of one clip together: where they share frames, one fades into the other.

    What the network freed on the way goes back to the system after each window: see [`return_freed_memory`].

    Args:
        outputs: The windows in order of time, each with its logits (frames, num_labels, height, width).

    Yields:
        The weighted mean of each frame's logits, as soon as no window to come contains it.
    """
    waiting: deque[_Blend] = deque()
    for window, logits in outputs:
        return_freed_memory()
        shared = len(window.frames) - window.fresh
        while len(waiting) > shared:
            yield waiting.popleft().finish()
        waiting.extend(_Blend(frame) for frame in window.frames[shared:])
        weights = fading_weights(len(logits), window.overlap)
        for blend, frame_logits, weight in zip(waiting, logits, weights, strict=True):
            blend.add(frame_logits, weight)
        if window.is_last:
            while waiting:
                yield waiting.popleft().finish()


def return_freed_memory() -> None:
    """Gives memory that was freed back to the system, where the C library can (glibc).

    glibc keeps freed memory between blocks that are in use. Two threads that make and free tensors of many sizes leave
    more of it with every window: on an hour of video tens of MiB, which no Python object holds.
    """
    if _TRIM is not None:
        _TRIM(0)


def fading_weights(length: int, overlap: int) -> list[float]:
    """Lists the weights of a window's frames: 1 in its middle, falling evenly to its edges over `overlap` frames."""
    return [min(1.0, (index + 1) / (overlap + 1), (length - index) / (overlap + 1)) for index in range(length)]


class _Blend:
    """The weighted mean of one frame's logits."""

    def __init__(self, frame: dict[str, Any]) -> None:
        self._frame = frame
        self._sum: torch.Tensor | None = None
        self._weight = 0.0

    def add(self, logits: torch.Tensor, weight: float) -> None:
        """Takes the logits of one more window."""
        self._sum = logits * weight if self._sum is None else self._sum + logits * weight
        self._weight += weight

    def finish(self) -> FrameLogits:
        """Returns the mean."""
        frame = self._frame
        return FrameLogits(
            frame["timestamp"], self._sum / self._weight, frame["original_size"], frame["mask_timestamps"]
        )


def logits_at_masks(frames: Iterable[FrameLogits]) -> Iterator[FrameLogits]:
    """Gives logits for every moment of a mask: between two frames in proportion to time, beyond them as at the nearest."""
    before: FrameLogits | None = None
    for frame in frames:
        for moment in frame.mask_timestamps:
            yield FrameLogits(moment, _between(before, frame, moment), frame.original_size, (moment,))
        before = frame


def _between(before: FrameLogits | None, after: FrameLogits, moment: float) -> torch.Tensor:
    """Returns the logits at a moment from those of the frames around it."""
    if before is None or moment >= after.timestamp or before.timestamp >= after.timestamp:
        return after.logits
    share = max(0.0, (moment - before.timestamp) / (after.timestamp - before.timestamp))
    return torch.lerp(before.logits, after.logits, share)


# Windows that wait for the network, of each clip that is read.
WINDOWS_AHEAD = 2

# Frames of live input that wait for a network that cannot keep up.
LIVE_FRAMES_AHEAD = 100


class AudioVisualSegmentationPipeline(ChunkPipeline):
    """Segments the objects that sound in a video, one set of masks per network frame (by default one per second).

    Videos of any length go through the network in overlapping windows, whose logits fade into each other; decoding runs
    ahead in a thread. [`stream`] gives each frame as soon as it is done and holds no more than a few; a call gathers them.

    Made by `pipeline("audio-visual-segmentation", model=...)`; the arguments of `__call__` may also be given there,
    as defaults for every call.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    _inference_model: Callable[..., Any] | None = None
    _inference_state: list[tuple[int, int]] | None = None

    def __call__(
        self,
        inputs: VideoSource | Mapping[str, Any] | Iterable[Any],
        *,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]] | Iterator[list[dict[str, Any]]]:
        """Segments one video, or every video of a list, generator or data set.

        Args:
            inputs: A path, http(s) URL, bytes or binary file object of a video, or its frames as an array of shape
                (frames, height, width, 3); or a dictionary of `video` with, where the video has no sound of its own,
                `audio` and `sampling_rate`, and for frames optionally `timestamps` in seconds. `{"path", "bytes"}`
                of a `datasets` column is understood too. Several of these give one result each: a list or tuple at once; a
                generator or other iterator, a data set (of torch or `datasets`) or its column as a stream.
            batch_size: Windows in one batch, of one clip or several; 1 by default.
            num_workers: Clips that are read at a time, each by a thread.
            **kwargs: `threshold`: the probability that a pixel has to exceed, in [0, 1]. By default 0.5 in the binary
                task (AVSBench's rule) and 0 in the semantic one, where the most probable class takes the pixel.
                `minimum_area`: segments smaller than this share of the picture are left out; 0 by default.
                `frames_per_second`: network frames per second of video, 1 by default, or `"video"` for every frame.
                `masks_per_second`: masks per second, or `"video"` for one per frame of the video: between network frames
                the logits are interpolated in time. By default every network frame gives one.
                `audio_alignment`: how the sound is cut, `"consecutive"`, `"center"` or `"end"`; by default the processor
                chooses.
                `audio`, `sampling_rate`: the sound of one silent video, as a waveform of shape (samples,) or
                (channels, samples) with its rate in hertz (Hz), or as a file.
                `frames_per_window`, `window_overlap`: longer videos are segmented in windows of so many network frames,
                10 by default, which share so many with the one before, by default a fifth.
                `inference_form`: whether to run the model's rearranged copy for inference, where it offers one
                (`for_inference()`: the same logits, faster); on by default, and never of a model in training, quantised or
                on several devices.
                `early_exit_threshold`: share of a frame's pixels, in [0, 1], that may be uncertain for the form for
                inference to stop at a coarse stage there, which is faster; by default it never does.
                `progress_bar`: shows the windows as they pass; off by default.

        Returns:
            A list with one entry per moment, in order of time: `{"timestamp": seconds, "segments": [{"score",
            "label", "mask"}, ...]}`. `mask` is a PIL image of mode "L", 0 or 255, at the video's own size; `score` is
            the mean probability inside it, in [0, 1]; segments are sorted by score, highest first. The binary task
            gives at most one segment, none where nothing sounds; the semantic one gives one per class present, never
            the background. For several inputs: one such list each.

        Raises:
            ValueError: For an argument out of its range, one sound for several videos, or a video that the processor
                refuses (no sound, nothing to decode ...).
            FileNotFoundError: If there is no such file.
        """
        inputs = list_or_generator(inputs)
        if kwargs.get("audio") is not None and isinstance(inputs, list | GeneratorType):
            raise ValueError(
                "audio= belongs to one video, but several inputs came. Give each its own sound: "
                '{"video": ..., "audio": ..., "sampling_rate": ...}.'
            )
        batch_size, num_workers = self._batching(batch_size, num_workers)
        return super().__call__(inputs, batch_size=batch_size, num_workers=num_workers, **kwargs)

    def stream(
        self, video: VideoSource | Mapping[str, Any], *, batch_size: int | None = None, **kwargs: Any
    ) -> Generator[dict[str, Any], None, None]:
        """Segments one video of any length frame by frame, in memory that does not grow with its length.

        The video is decoded in a thread while the network computes. Close the generator (or let it go) to stop early: the
        thread ends and the file is closed.

        Args:
            video: As in a call.
            batch_size: Windows in one batch; more of them use an accelerator better and hold more memory.
            **kwargs: As in a call.

        Returns:
            A generator of the entries that a call returns as a list.

        Raises:
            ValueError: As a call does, for arguments at once, for the video when it comes to what cannot be used.
            FileNotFoundError: If there is no such file.
        """
        preprocess, forward, postprocess = self._all_parameters(kwargs)
        return self._stream([video], self._batching(batch_size)[0], preprocess, forward, postprocess)

    def live(
        self,
        chunks: Iterable[tuple[Any, Any, Any]],
        *,
        sampling_rate: int,
        frames_per_second: float = 1.0,
        frames_per_window: int = FRAMES_PER_WINDOW,
        audio_alignment: str = "end",
        drop_late: bool = False,
        **kwargs: Any,
    ) -> Generator[dict[str, Any], None, None]:
        """Segments live input: every network frame in a window of those before it.

        The latency, in input: the masks of the frame on screen at the moment (k + 15/16) / `frames_per_second` are made
        as soon as the next frame and, with `"end"` patches, the sound up to that moment have come; with `"center"`
        patches the sound up to 0.4875 s later. Only the first patch of all waits until 0.975 s. The time of the network on
        one window comes on top of it.

        Args:
            chunks: Triples in order of time: frames (uint8 array (frames, height, width, 3) or a list of PIL images; may be
                empty or None), their timestamps in seconds since the start of the sound, and the next piece of sound,
                (samples,) or (channels, samples) in [-1, 1], or None.
            sampling_rate: Of the sound, in hertz (Hz).
            frames_per_second: Network frames per second.
            frames_per_window: Network frames that the network sees at once, the newest last. Fewer are faster.
            audio_alignment: `"end"` or `"center"`.
            drop_late: Whether to read `chunks` in a thread and to skip all but the newest of the network frames that have
                come meanwhile, for a network that is slower than the input. Otherwise each one gets its masks.
            **kwargs: `threshold`, `minimum_area`, `inference_form` and `early_exit_threshold`, as in a call.

        Returns:
            A generator of entries as a call returns them.

        Raises:
            ValueError: For an argument out of its range, and for chunks that cannot be used.
        """
        if unused := self._sanitize_parameters(**kwargs)[0]:
            raise ValueError(f"{', '.join(unused)}: live input has nothing of the kind, leave it out.")
        _, forward, postprocess = self._all_parameters(kwargs)
        forward.pop("progress_bar", None)
        length = whole_number("frames_per_window", frames_per_window, 1)
        frames = self.processor.stream_live(
            chunks, sampling_rate=sampling_rate, frames_per_second=frames_per_second, audio_alignment=audio_alignment
        )
        return self._live(frames, length, drop_late, forward, postprocess)

    def _live(
        self,
        frames: Generator[dict[str, Any], None, None],
        frames_per_window: int,
        drop_late: bool,
        forward: dict[str, Any],
        postprocess: dict[str, Any],
    ) -> Generator[dict[str, Any], None, None]:
        """Runs the model on the window that ends with each frame, or with the newest of those that wait."""
        held: deque[dict[str, Any]] = deque(maxlen=frames_per_window)
        with closing(ReadAhead(frames, LIVE_FRAMES_AHEAD) if drop_late else frames) as source:
            take = source.take_waiting if drop_late else lambda: list(islice(source, 1))
            while newest := take():
                held.extend(newest)
                logits = self.forward(batch_of([tuple(held)], self.dtype), **forward)["logits"][0, len(held) - 1]
                frame = held[-1]
                moment = FrameLogits(frame["timestamp"], logits, frame["original_size"], ())
                yield self._entry(moment, **postprocess)

    def _batching(self, batch_size: int | None, num_workers: int | None = None) -> tuple[int, int]:
        """Returns how many windows and how many clips at a time, as the pipeline was made with where nothing is given."""
        windows = self._batch_size if batch_size is None else batch_size
        clips = self._num_workers if num_workers is None else num_workers
        return whole_number("batch_size", windows, 1) or 1, whole_number("num_workers", clips, 0) or 0

    def _all_parameters(self, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Adds the arguments of a call to those that the pipeline was made with, for each of the three steps."""
        steps = self._preprocess_params, self._forward_params, self._postprocess_params
        return tuple({**step, **new} for step, new in zip(steps, self._sanitize_parameters(**given), strict=True))

    def _sanitize_parameters(
        self,
        *,
        threshold: float | None = None,
        minimum_area: float | None = None,
        frames_per_second: float | str | None = None,
        masks_per_second: float | str | None = None,
        audio_alignment: str | None = None,
        audio: VideoSource | Mapping[str, Any] | None = None,
        sampling_rate: int | None = None,
        frames_per_window: int | None = None,
        window_overlap: int | None = None,
        inference_form: bool | None = None,
        early_exit_threshold: float | None = None,
        progress_bar: bool | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Sorts the arguments to the three steps; checks them, also beside those that the pipeline was made with."""
        steps = (
            {
                "frames_per_second": frames_per_second,
                "masks_per_second": masks_per_second,
                "audio_alignment": audio_alignment,
                "audio": audio,
                "sampling_rate": sampling_rate,
                "frames_per_window": whole_number("frames_per_window", frames_per_window, 1),
                "window_overlap": whole_number("window_overlap", window_overlap, 0),
            },
            {
                "inference_form": inference_form,
                "early_exit_threshold": share("early_exit_threshold", early_exit_threshold),
                "progress_bar": progress_bar,
            },
            {"threshold": share("threshold", threshold), "minimum_area": share("minimum_area", minimum_area)},
        )
        # What was not given must not hide the defaults below, nor those that the pipeline was made with.
        given = tuple({name: value for name, value in step.items() if value is not None} for step in steps)

        # While the pipeline is made there are none yet.
        reading = {**getattr(self, "_preprocess_params", {}), **given[0]}
        check_overlap(reading.get("frames_per_window", FRAMES_PER_WINDOW), reading.get("window_overlap", 0))
        settings = ("frames_per_second", "masks_per_second", "audio_alignment")
        self.processor.check_settings(**{name: reading[name] for name in settings if name in reading})
        return given

    def preprocess(
        self,
        inputs: VideoSource | Mapping[str, Any],
        frames_per_window: int = FRAMES_PER_WINDOW,
        window_overlap: int | None = None,
        **kwargs: Any,
    ) -> Generator[Window, None, None]:
        """Reads one clip window by window."""
        with closing(self.processor.stream(**clip_arguments(inputs, **kwargs))) as frames:
            yield from overlapping_windows(frames, frames_per_window, window_overlap)

    def _forward(
        self, model_inputs: dict[str, torch.Tensor], inference_form: bool = True, **budget: float
    ) -> dict[str, torch.Tensor]:
        """Runs the model on a batch of windows, with an `early_exit_threshold` if one is given."""
        network = self._network() if inference_form else self.model
        if budget and network is self.model:
            raise ValueError(
                "early_exit_threshold needs the form for inference, which is off here: see inference_form."
            )
        return {"logits": network(**model_inputs, **budget).logits}

    def postprocess(
        self,
        model_outputs: Iterable[tuple[Window, torch.Tensor]],
        threshold: float | None = None,
        minimum_area: float = 0.0,
    ) -> list[dict[str, Any]]:
        """Makes the segments of one clip from its windows and their logits."""
        return list(self._entries(model_outputs, threshold, minimum_area))

    def get_iterator(
        self,
        inputs: Iterable[VideoSource | Mapping[str, Any]],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Generator[list[dict[str, Any]], None, None]:
        """Gives one result per clip. Unlike transformers' it keeps no logits and reads in threads, not processes."""
        outputs = self._outputs(inputs, num_workers, batch_size, preprocess_params, forward_params)
        with closing(outputs):
            for first in outputs:
                yield self.postprocess(up_to_last(chain([first], outputs)), **postprocess_params)

    def _stream(
        self,
        inputs: list[VideoSource | Mapping[str, Any]],
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Generator[dict[str, Any], None, None]:
        """Gives the entries of one clip one by one."""
        with closing(self._outputs(inputs, 1, batch_size, preprocess_params, forward_params)) as outputs:
            yield from self._entries(outputs, **postprocess_params)

    def _outputs(
        self,
        inputs: Iterable[VideoSource | Mapping[str, Any]],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
    ) -> Generator[tuple[Window, torch.Tensor], None, None]:
        """Runs the model over the windows of all clips, as many at a time as a batch has, whichever clip they are of."""
        forward_params = dict(forward_params)
        show = forward_params.pop("progress_bar", False)
        readers = (self.preprocess(clip, **preprocess_params) for clip in inputs)
        with closing(read_ahead(readers, max(1, num_workers), WINDOWS_AHEAD)) as windows:
            bar = iter(logging.tqdm(windows, desc="Segmenting", unit="window", disable=not show))
            while group := list(islice(bar, batch_size)):
                batch = batch_of([window.frames for window in group], self.dtype)
                logits = self.forward(batch, **forward_params)["logits"]
                for window, of_window in zip(group, logits, strict=True):
                    yield window, of_window[: len(window.frames)]

    def _network(self) -> Callable[..., Any]:
        """Returns the model's form for inference, made anew when its weights have changed; the model if it has none."""
        spread = getattr(self.model, "hf_device_map", None) is not None or getattr(self.model, "is_quantized", False)
        if self.model.training or spread or not hasattr(self.model, "for_inference"):
            return self.model
        weights = chain(self.model.parameters(), self.model.buffers())
        state = [(weight.data_ptr(), weight.is_inference() or weight._version) for weight in weights]
        if state != self._inference_state:
            self._inference_model, self._inference_state = self.model.for_inference(), state
        return self._inference_model

    def _entries(
        self,
        outputs: Iterable[tuple[Window, torch.Tensor]],
        threshold: float | None = None,
        minimum_area: float = 0.0,
    ) -> Iterator[dict[str, Any]]:
        """Makes the entries of one clip one by one, so that only one is ever held at the video's size."""
        for moment in logits_at_masks(blend_windows(outputs)):
            yield self._entry(moment, threshold, minimum_area)

    def _entry(self, moment: FrameLogits, threshold: float | None = None, minimum_area: float = 0.0) -> dict[str, Any]:
        """Makes the entry of one moment."""
        size, id2label = tuple(moment.original_size), self.model.config.id2label
        segments = find_segments(moment.logits.float(), size, id2label, threshold, minimum_area)
        return {"timestamp": moment.timestamp, "segments": segments}

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Saves the model, the processor and the code of this pipeline.

        `Pipeline.save_pretrained` leaves the processor out and writes its two parts over each other, into the same
        `preprocessor_config.json`; here the parts stay inside the processor's own file.

        Args:
            save_directory: The folder to write; made if it does not exist.
            **kwargs: Passed on to the `save_pretrained` of model and processor.
        """
        parts = self.feature_extractor, self.image_processor
        self.feature_extractor = self.image_processor = None
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.feature_extractor, self.image_processor = parts
        self.processor.save_pretrained(save_directory, **kwargs)


PIPELINE_REGISTRY.register_pipeline(
    "audio-visual-segmentation",
    pipeline_class=AudioVisualSegmentationPipeline,
    pt_model=AutoModelForUniversalSegmentation,
    type="multimodal",
)
