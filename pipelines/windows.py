"""Videos of any length: read ahead in a thread, cut into overlapping windows, the windows' logits put together again.

These are the parts of `AudioVisualSegmentationPipeline` that know neither files nor networks. Items pass through them in
order of time, so that only a few are ever held.
"""

import ctypes
import queue
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence


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
