# Copyright 2026 The pcmanet contributors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Processor of PCMANet: from videos, or frames and audio, to a batch; from logits to masks at the original size.

The batch is the only thing that the processor and the model share:

| name | shape | dtype, range |
|---|---|---|
| `pixel_values` | (batch, frames, 3, height, width) | float, normalized as the visual backbone expects |
| `input_features` | (batch, frames, ...) | float, from the feature extractor; the published log-mel is (..., 1, 96, 64) |
| `audio_embeds` | (batch, frames, width) | audio encoder's output in place of `input_features`; exactly one of the two |
| `frame_mask` | (batch, frames) | bool, False = padding; left out if nothing is padded |
| `labels` | (batch, frames, height, width) | binary: 0/1; semantic: class index; 255 = ignore |
| `annotated_frames` | (batch, frames) | bool, which frames are annotated (S4 train: the first); optional |
| `logits` | (batch, frames, num_labels, height, width) | num_labels = 1 is binary (sigmoid), more are classes (softmax) |

The processor creates all of it except `audio_embeds` and `logits`, which an audio encoder and the model compute. It
returns `frame_mask` if clips are padded, and `labels` with `annotated_frames` if it received masks. Padded frames are
zeros, or 255 in `labels`.

There is a single implementation of reading a clip, which streams it. `stream` yields one frame at a time; a call
collects the same frames. Sections: clips, live input, the processor, batches, post-processing.
"""

import heapq
import inspect
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice, tee
from numbers import Real
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoFeatureExtractor
from transformers.configuration_utils import PreTrainedConfig
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, ProcessorMixin

from .audio_pcmanet import (
    AudioBuffer,
    check_audio_alignment,
    check_sampling_rate,
    check_timestamps,
    cut_windows,
    to_mono,
)
from .configuration_encoders import build_audio_config, check_keywords, loading_saved
from .feature_extraction_pcmanet import build_feature_extractor, seconds_used
from .image_processing_pcmanet import PCMANetImageProcessor
from .media_pcmanet import (
    EVERY_FRAME,
    SAMPLING_OFFSET,
    AudioPiece,
    FrameSampler,
    MediaError,
    MediaReader,
    StreamedFrame,
    check_held_frames,
    media_source,
    read_audio,
    stack_and_release,
    stream_array,
    stream_decoder,
)


LENGTH_TOLERANCE = 0.25  # seconds by which audio and frames may differ beyond one frame: codecs cut and pad that much
IGNORED_LABEL = 255
PUBLISHED_CLIP_FRAMES = 10  # the longest clip of AVSBench, one frame per second; beyond it, the drift of patches hurts
TIME_TOLERANCE = 0.05  # seconds: a frame this far outside its second still belongs to it
PATCH_REACH = 1.0  # seconds after a frame that the published log-mel patches may reach
DEFAULT_AUDIO_WINDOWS = ((2.0, 2.0),)  # around the frame: audio encoders recognize far more in 4 s than in 1 s
PIECE_SECONDS = 10  # audio that is already in memory is split into pieces of about this length
SAMPLING_TIME_TOLERANCE = 1e-3  # seconds within which a timestamp counts as a sampling time of AVSBench
# Keywords of a call for the image processor and the feature extractor.
_CALL_KEYWORDS = ("images_kwargs", "audio_kwargs")
CAMERA_RATE = 1.0  # frames per second: a live frame that is on screen for longer has the timestamp of its sampling


# --- Clips ---


def is_media(value: Any) -> bool:
    """Return whether a value is media as [`media_source`] returns it, or an open reader."""
    return isinstance(value, str | bytes | MediaReader) or hasattr(value, "read")


def is_decoder(value: Any) -> bool:
    """Return whether a value is a `VideoDecoder` of torchcodec."""
    return hasattr(value, "get_frame_at")


def audio_source(audio: Any, sampling_rate: int | None) -> tuple[Any, int | None]:
    """Return audio in the form that is read: an array with its sampling rate, or media.

    Args:
        audio: As for [`open_clip`].
        sampling_rate: Sampling rate of an array, in hertz.
    """
    audio = media_source(audio) if not isinstance(audio, Mapping) or audio.get("array") is None else audio
    if isinstance(audio, Mapping):
        array = audio["array"]  # a list in a row that `datasets` returns without a format
        return np.asarray(array) if isinstance(array, list) else array, audio.get("sampling_rate", sampling_rate)
    if hasattr(audio, "get_all_samples"):
        samples = audio.get_all_samples()
        return samples.data, samples.sample_rate
    return audio, sampling_rate


def _clip_sources(video: Any, audio: Any, sampling_rate: int | None) -> tuple[Any, Any, int | None]:
    """Return the video and the audio of a clip in the form that is read; no audio if it is the video's own."""
    video, (audio, sampling_rate) = media_source(video), audio_source(audio, sampling_rate)
    # A file object that is given as both has one position, which two readers would both move.
    return video, None if audio is video and is_media(video) else audio, sampling_rate


def is_clip(videos: Any) -> bool:
    """Return whether videos is one clip (media, an array of frames, a list of frames) rather than several.

    Several clips are a list of clips or a five-dimensional array.
    """
    if isinstance(videos, list | tuple):
        return bool(videos) and _is_frame(videos[0])
    return not (isinstance(videos, np.ndarray | torch.Tensor) and videos.ndim == 5)


def _is_frame(value: Any) -> bool:
    """Return whether a value is one frame: a PIL image, or an array of at most three dimensions."""
    return isinstance(value, Image.Image) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim <= 3)


@contextmanager
def open_clip(
    video: Any,
    audio: Any = None,
    *,
    sampling_rate: int | None = None,
    timestamps: Any = None,
    frames_per_second: float | str = 1.0,
    masks_per_second: float | str | None = None,
    target_rate: int,
) -> Iterator[tuple[Iterator[StreamedFrame], AudioBuffer]]:
    """Open one clip as streams.

    Args:
        video: Path, URL, bytes or binary file object of a video, the same from a column of `datasets` (see
            [`media_source`]), an open [`MediaReader`] or a torchcodec `VideoDecoder`; or frames: uint8 array or tensor
            (frames, height, width, 3) or (frames, 3, height, width), or a list of PIL images or of such frames.
        audio: The audio, if it is not the video's own: array or tensor (samples,) or (channels, samples), a dictionary with
            "array" and "sampling_rate", a torchcodec `AudioDecoder`, or a file in any of the forms of a video. A file with
            a video file is used as the video's own track is: cut, or padded with zeros.
        sampling_rate: Sampling rate of an array in `audio`, in hertz.
        timestamps: (frames,), seconds from the start of the audio, ascending, for frames that are not sampled as AVSBench
            samples them: frame k at (k + 15/16) / frames_per_second.
        frames_per_second: Rate at which a video is sampled, or `"video"` for every frame; for frames, the rate at
            which they were sampled.
        masks_per_second: Rate of the timestamps of masks in the frames (see `StreamedFrame`); `None` is one per frame.
        target_rate: Sampling rate of the features, in hertz.

    Yields:
        The frames in chronological order, and the audio.

    Raises:
        ValueError: If frames or audio cannot be used, audio is missing, or one is longer than the other, unless both are
            files; also while they are read.
        FileNotFoundError: If a path does not exist.
    """
    video, audio, sampling_rate = _clip_sources(video, audio, sampling_rate)
    with ExitStack() as stack:
        if not is_media(video) and not is_decoder(video):
            frames, chunks = _open_array(video, audio, sampling_rate, timestamps, frames_per_second, masks_per_second)
            yield frames, AudioBuffer(chunks, target_rate)
            return
        if timestamps is not None:
            raise ValueError("timestamps apply to clips given as frames; a video has its own. Leave them out.")
        if is_decoder(video):
            frames = stream_decoder(video, frames_per_second, masks_per_second)
            sound = AudioBuffer(_open_audio(stack, _required(audio), sampling_rate), target_rate)
            yield _with_checked_audio(frames, sound, frames_per_second), sound
            return
        reader, audio_reader = _open_files(stack, video, audio)
        frames = reader.frames(frames_per_second, masks_per_second)
        if audio_reader is not None:
            yield frames, AudioBuffer(audio_reader.audio(), target_rate)
        else:
            sound = AudioBuffer(_open_audio(stack, audio, sampling_rate), target_rate)
            yield _with_checked_audio(frames, sound, frames_per_second), sound
        _finish(reader, audio_reader)


def _required(audio: Any) -> Any:
    """Return the audio of frames; raise ValueError if there is none."""
    if audio is None:
        raise ValueError(
            "Frames have no audio track: pass audio= and sampling_rate=. For a silent clip pass zeros; with cached "
            "audio_embeds use the image_processor alone."
        )
    return audio


def _open_reader(stack: ExitStack, source: Any, **streams: bool) -> MediaReader:
    """Open a file; an open reader is returned as it is."""
    return source if isinstance(source, MediaReader) else stack.enter_context(MediaReader(source, **streams))


def _open_files(stack: ExitStack, video: Any, audio: Any) -> tuple[MediaReader, MediaReader | None]:
    """Open a video file and its audio, which may be in a file of its own.

    Args:
        stack: Where to close them.
        video: The video.
        audio: Its audio; None if it is the video's own.

    Returns:
        The reader of the video, and that of the audio; None in place of the latter if the audio is not a file.
    """
    reader = _open_reader(stack, video, audio=audio is None)
    if audio is None:
        return reader, reader
    if not is_media(audio):
        return reader, None
    audio_reader = _open_reader(stack, audio, video=False)
    audio_reader.video_reader = reader
    return reader, audio_reader


def _finish(reader: MediaReader, audio_reader: MediaReader | None) -> None:
    """Add the notes on a video and its audio, if all frames have been read."""
    if reader.has_ended:
        reader.finish()
        if audio_reader is not None and audio_reader is not reader:
            audio_reader.finish()


def _open_audio(stack: ExitStack, audio: Any, sampling_rate: int | None) -> Iterator[tuple[Any, int]]:
    """Return separate audio in chunks, each with its rate."""
    if is_media(audio):
        return _open_reader(stack, audio, video=False).audio()
    return _in_pieces(to_mono(audio), check_sampling_rate(sampling_rate))


def share_audio(pieces: Iterator[AudioPiece], number: int) -> list[Iterator[AudioPiece]]:
    """Return iterators that each yield all of the audio, at their own pace.

    Args:
        pieces: The audio, which only these iterators may read.
        number: Number of iterators.
    """
    queues: list[deque[AudioPiece]] = [deque() for _ in range(number)]

    def read(queue: deque[AudioPiece]) -> Iterator[AudioPiece]:
        while True:
            while queue:
                yield queue.popleft()
            piece = next(pieces, None)
            if piece is None:
                return
            if piece[0] is None:
                yield piece  # not for the others: by then, more frames will have been read
            else:
                for each in queues:
                    each.append(piece)

    return [read(queue) for queue in queues]


def _in_pieces(waveform: Any, sampling_rate: int) -> Iterator[tuple[Any, int]]:
    """Yield a waveform (samples,) or (channels, samples) in pieces, each with the rate."""
    number = max(1, waveform.shape[-1] // (PIECE_SECONDS * sampling_rate))
    edges = np.linspace(0, waveform.shape[-1], number + 1).astype(int).tolist()
    for start, stop in zip(edges, edges[1:], strict=False):
        yield waveform[..., start:stop], sampling_rate


def _open_array(
    video: Any,
    audio: Any,
    sampling_rate: int | None,
    timestamps: Any,
    frames_per_second: float | str,
    masks_per_second: float | str | None,
) -> tuple[Iterator[StreamedFrame], Iterator[tuple[torch.Tensor, int]]]:
    """Open frames that are in memory."""
    if isinstance(frames_per_second, str):
        raise ValueError(
            f'frames_per_second="{EVERY_FRAME}" is for video files. All frames of an array are used: pass the rate at which '
            "they were sampled."
        )
    frames = stack_frames(video)
    sampled = (np.arange(len(frames)) + SAMPLING_OFFSET) / frames_per_second
    times = sampled if timestamps is None else check_timestamps(timestamps, len(frames))
    if is_media(_required(audio)):
        audio, sampling_rate = read_audio(audio)
    waveform, sampling_rate = to_mono(audio), check_sampling_rate(sampling_rate)
    seconds = len(waveform) / sampling_rate
    is_sampled = np.allclose(times, sampled, rtol=0, atol=SAMPLING_TIME_TOLERANCE)
    tolerance = LENGTH_TOLERANCE + is_sampled / frames_per_second
    if timestamps is None:
        _check_duration(len(frames), frames_per_second, seconds)
    elif times.max() > seconds + tolerance:
        raise ValueError(
            f"The last frame is at {times.max():.3f} s, but the audio ends at {seconds:.3f} s: correct timestamps or "
            "sampling_rate, or pad the audio with zeros."
        )
    if (np.diff(times) < 0).any():
        raise ValueError("timestamps must be ascending: pass the frames in chronological order.")
    duration = max(len(frames) / frames_per_second, float(times[-1]))
    return stream_array(frames, times, duration, masks_per_second), _in_pieces(waveform, sampling_rate)


def stack_frames(frames: Any) -> np.ndarray:
    """Convert frames to one array.

    Args:
        frames: (frames, height, width, 3) or (frames, 3, height, width), uint8 array or tensor, or a list of PIL images
            of any mode with 8 bits per channel or of such frames, all of one size.

    Returns:
        (frames, height, width, 3), uint8.

    Raises:
        ValueError: For an unsupported type, shape or dtype, frames of different sizes, or no frames.
    """
    if isinstance(frames, list | tuple):
        if frames and isinstance(frames[0], str | PathLike | bytes | Mapping):
            raise ValueError(
                f"Expected one clip, got a list of {len(frames)} {type(frames[0]).__name__}. Pass one video; calls of the "
                "processor and of the pipeline accept several."
            )
        frames = [
            _as_array(PCMANetImageProcessor.to_rgb(frame) if isinstance(frame, Image.Image) else frame)
            for frame in frames
        ]
        shapes = {frame.shape for frame in frames}
        if len(shapes) != 1:
            raise ValueError(
                f"Expected frames of one size per clip, got the shapes {sorted(shapes)}. Resize them first."
            )
    elif not isinstance(frames, np.ndarray | torch.Tensor):
        raise ValueError(
            "Expected a video as a path, URL, bytes or binary file object, or its frames as an array (frames, height, width, 3) "
            f"or a list (one frame is a list of one), got {type(frames).__name__}."
        )
    array = _as_array(frames)
    if array.ndim == 4 and array.shape[-1] != 3 and array.shape[1] == 3:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(
            f"Frames have shape {array.shape}: expected (frames, height, width, 3) or (frames, 3, height, width) with at "
            "least one frame. Repeat gray frames three times; pass one frame as a list of one."
        )
    if array.dtype != np.uint8:
        raise ValueError(
            f"Frames have dtype {array.dtype}: expected uint8 values 0..255. Cast integers of this range; convert "
            "floats in [0, 1] with (frames * 255).round() and a cast to uint8."
        )
    return array


def _as_array(values: Any) -> np.ndarray:
    """Return an array, a tensor on any device, or an image as an array."""
    return np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values)


def _check_duration(count: int, frames_per_second: float, seconds: float) -> None:
    """Raise ValueError if the audio does not last as long as the frames."""
    duration = count / frames_per_second
    if abs(seconds - duration) > 1 / frames_per_second + LENGTH_TOLERANCE:
        raise ValueError(
            f"{count} frames at {frames_per_second:g} per second last {duration:.3f} s, but the audio lasts "
            f"{seconds:.3f} s. Cut the longer one, correct frames_per_second or sampling_rate, or pass the time of each "
            "frame as timestamps=."
        )


def _with_checked_audio(
    frames: Iterable[tuple[Any, ...]], sound: AudioBuffer, frames_per_second: float | str
) -> Iterator[tuple[Any, ...]]:
    """Yield the frames of a video, and raise ValueError as soon as separate audio proves too short, or too long."""
    count, previous, last, period = 0, 0.0, 0.0, 0.0
    for frame in frames:
        count, previous, last = count + 1, last, frame[0]
        period = last - previous if isinstance(frames_per_second, str) else 1 / frames_per_second
        if not sound.reaches(sound.position(last - 2 * period - LENGTH_TOLERANCE)):
            break
        yield frame

    # Only as much is read as is needed to show that there is too much.
    duration = last + period if frames_per_second == EVERY_FRAME else count * period
    tolerance = period + LENGTH_TOLERANCE
    sound.reaches(sound.position(duration + tolerance) + 1)
    if abs(sound.seconds() - duration) > tolerance:
        raise ValueError(
            f"{count} frames last {duration:.3f} s or longer, but the audio lasts {sound.seconds():.3f} s or longer. Cut the "
            "longer one, or correct sampling_rate."
        )


def choose_audio_alignment(timestamps: np.ndarray, audio_alignment: str | None, frames_per_second: float | str) -> str:
    """Return how the audio of a clip is cut into patches.

    Args:
        timestamps: (frames,), seconds from the start of the audio; for a long clip, the first
            `PUBLISHED_CLIP_FRAMES + 1`.
        audio_alignment: The alignment requested, or None.
        frames_per_second: In hertz; `"video"` is every frame.

    Returns:
        The alignment requested; otherwise `"consecutive"` for at most 10 frames, one in each second, else `"end"`.

    Raises:
        ValueError: If consecutive patches are requested for frames that they cannot follow.
    """
    follows = frames_per_second == 1 and all(_is_in_its_second(*item) for item in enumerate(timestamps))
    if audio_alignment is None:
        # The published layout uses the frame at the end of each second and the audio of that second. Patches that end
        # at their frame preserve this for any length; patches centered on the frame contain only half of that audio
        # (0.74 IoU instead of 0.86 on a minute of Sounding Shapes: docs/concepts/audio_alignment.md).
        return "consecutive" if follows and len(timestamps) <= PUBLISHED_CLIP_FRAMES else "end"
    if audio_alignment == "consecutive" and not follows:
        raise ValueError(
            'audio_alignment "consecutive" needs one frame in every second from 0 on, but frames_per_second is '
            f'{frames_per_second} and the frames are at {np.round(timestamps[:5], 3).tolist()} ... s: use "end".'
        )
    return audio_alignment


def _is_in_its_second(index: int, timestamp: float) -> bool:
    """Return whether a frame is in the second of its index."""
    return abs(timestamp - (index + 0.5)) <= 0.5 + TIME_TOLERANCE


def _one_in_each_second(frames: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Yield frames, and raise ValueError for the first one that consecutive patches cannot follow."""
    for index, frame in enumerate(frames):
        if not _is_in_its_second(index, frame[0]):
            raise ValueError(
                f'audio_alignment "consecutive" needs one frame in every second from 0 on, but frame {index} is at '
                f'{frame[0]:.3f} s: use "end".'
            )
        yield frame


def fill_maps(maps: Any, shape: tuple[int, int, int]) -> list[np.ndarray]:
    """Check the masks of one clip against its frames, and use "ignore" for frames without one.

    Args:
        maps: One entry per frame: a (height, width) mask (array, tensor or PIL image) or None.
        shape: (frames, height, width) of the clip.

    Returns:
        One (height, width) array per frame.

    Raises:
        ValueError: If the numbers of masks and frames differ, or a mask does not have the size of its frame.
    """
    if len(maps) != shape[0]:
        raise ValueError(f"{len(maps)} segmentation maps for {shape[0]} frames: pass one per frame, None for no mask.")
    filled = [np.full(shape[1:], IGNORED_LABEL, np.uint8) if mask is None else np.asarray(mask) for mask in maps]
    for index, mask in enumerate(filled):
        if mask.shape[:2] != shape[1:]:
            raise ValueError(
                f"Segmentation map {index} has shape {mask.shape}, but its frame is {shape[1:]}: pass masks at the size of "
                "the frames, (height, width)."
            )
    return filled


def check_settings(
    frames_per_second: float | str = 1.0,
    masks_per_second: float | str | None = None,
    audio_alignment: str | None = None,
) -> tuple[float | str, float | str | None]:
    """Check the settings of a stream before it is opened.

    Args:
        frames_per_second: In hertz, or `"video"`.
        masks_per_second: In hertz, or `"video"`; or None.
        audio_alignment: How the audio is cut, or None.

    Returns:
        The two rates, numbers as float.

    Raises:
        ValueError: If a rate is not a number above 0, or the audio_alignment is unknown.
    """
    if audio_alignment is not None:
        check_audio_alignment(audio_alignment)
    if masks_per_second is not None:
        masks_per_second = check_rate("masks_per_second", masks_per_second, EVERY_FRAME)
    return check_rate("frames_per_second", frames_per_second, EVERY_FRAME), masks_per_second


def check_rate(name: str, rate: Any, word: str | None = None) -> float | str:
    """Return a rate in hertz as float, or the word that may replace it; raise ValueError for anything else."""
    if isinstance(rate, str) and rate == word:
        return rate
    if not isinstance(rate, Real) or isinstance(rate, bool) or not 0 < float(rate) < math.inf:
        other = "" if word is None else f', or "{word}" for every frame'
        raise ValueError(f"{name} is {rate!r}: expected a number above 0{other}.")
    return float(rate)


# --- Live input ---


class LiveClip:
    """Frames and audio that arrive together in chunks, for example from a camera and a microphone.

    Args:
        chunks: Triples of frames (uint8 array (frames, height, width, 3) or a list of PIL images; may be empty or None),
            their timestamps (frames,) in seconds from the start of the audio, and the next piece of audio, (samples,) or
            (channels, samples), or None.
        sampling_rate: Sampling rate of the audio, in hertz.
        frames_per_second: Frames per second for the network.
        target_rate: Sampling rate of the features, in hertz.

    Attributes:
        frames: Iterator over the frames for the network.
        audio: The audio.
    """

    def __init__(
        self, chunks: Iterable[tuple[Any, Any, Any]], sampling_rate: int, frames_per_second: float, target_rate: int
    ) -> None:
        self._chunks = iter(chunks)
        self._sampling_rate = check_sampling_rate(sampling_rate)
        self._frames: deque[tuple[float, np.ndarray]] = deque()
        self._pieces: deque[torch.Tensor] = deque()
        self._sampler = FrameSampler(frames_per_second, CAMERA_RATE)
        self.frames = ((timestamp, frame, (timestamp,)) for timestamp, frame in self._sampled())
        self.audio = AudioBuffer(self._audio_chunks(), target_rate)

    def _read(self) -> bool:
        """Read the next chunk; return whether there was one."""
        for chunk in self._chunks:
            if not isinstance(chunk, list | tuple) or len(chunk) != 3:
                got = f"{len(chunk)} items" if isinstance(chunk, list | tuple) else f"a {type(chunk).__name__}"
                raise ValueError(
                    f"Expected chunks of frames, their timestamps and audio (None for no audio), got {got}."
                )
            frames, timestamps, samples = chunk
            if frames is not None and len(frames):
                stacked = stack_frames(frames)
                self._frames += zip(check_timestamps(timestamps, len(stacked)).tolist(), stacked, strict=True)
            if samples is not None and 0 not in np.shape(samples):
                self._pieces.append(to_mono(samples))
            return True
        return False

    def _sampled(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yield the frames on screen at the sampling times, as soon as the next one has arrived."""
        last = None
        while self._frames or self._read():
            while self._frames:
                last, frame = self._frames.popleft()
                yield from self._sampler.add(frame, last)
        if last is not None:
            yield from self._sampler.finish(last)

    def _audio_chunks(self) -> Iterator[tuple[torch.Tensor, int]]:
        """Yield the audio."""
        while self._pieces or self._read():
            while self._pieces:
                yield self._pieces.popleft(), self._sampling_rate


# --- The processor ---


class PCMANetProcessor(ProcessorMixin):
    """Create PCMANet batches from videos, and masks from its logits.

    A [`PCMANetFeatureExtractor`] computes the published log-mel patches and places them itself. For any other feature
    extractor, the processor cuts `audio_windows` around each frame at the extractor's sampling rate, and the extractor turns
    each window into features.

    Args:
        image_processor: A `PCMANetImageProcessor`.
        feature_extractor: The feature extractor of the model's audio encoder: any audio feature extractor of transformers.
        audio_windows: For each window of audio of a frame, the seconds before and after the frame, for example
            `[[1.0, 0.0], [2.0, 2.0]]`; the number of windows must equal the model's `num_audio_windows`. By default
            one window of 2 s before and after the frame; None for a `PCMANetFeatureExtractor`.

    Raises:
        ValueError: If `audio_windows` are given for patches, are not pairs of seconds, or are longer than what the feature
            extractor uses.
    """

    # For callers that check settings before they open a stream, or tell one clip from several.
    check_settings = staticmethod(check_settings)
    is_clip = staticmethod(is_clip)

    def __init__(self, image_processor: Any, feature_extractor: Any, audio_windows: Any = None) -> None:
        self.audio_windows = None
        if not _places_patches(feature_extractor):
            self.audio_windows = _check_windows(DEFAULT_AUDIO_WINDOWS if audio_windows is None else audio_windows)
            _check_lengths(self.audio_windows, feature_extractor)
        elif audio_windows is not None:
            raise ValueError(
                f"Got audio_windows {audio_windows!r} for {type(feature_extractor).__name__}, which computes patches of a fixed "
                "length. Leave audio_windows out; audio_alignment chooses how the patches are placed."
            )
        super().__init__(image_processor, feature_extractor)

    @classmethod
    def from_pretrained_backbones(
        cls,
        visual: str | PathLike[str] | PreTrainedConfig | None = None,
        audio: str | PathLike[str] | PreTrainedConfig | None = None,
        *,
        audio_windows: Any = None,
        **image_settings: Any,
    ) -> Self:
        """Build the processor for a model from `PCMANetForAudioVisualSegmentation.from_pretrained_backbones`.

        Args:
            visual: Hub id or folder of the visual backbone; its own image processor provides the mean and standard
                deviation. Or the configuration of a backbone, which selects those of its type. Defaults to those of
                ImageNet.
            audio: Hub id or folder of the audio encoder, whose own feature extractor is used; or the configuration of
                one, which selects the default feature extractor of its type. Defaults to that of the paper.
            audio_windows: See the class.
            **image_settings: Settings of `PCMANetImageProcessor`, for example `size={"height": 384, "width": 384}`.

        Raises:
            OSError: If a folder or Hub id is not found.
            ValueError: If no feature extractor is known for the audio encoder, or a setting is wrong.
        """
        if visual is None:
            image_processor = PCMANetImageProcessor(**image_settings)
        else:
            image_processor = PCMANetImageProcessor.from_backbone(visual, **image_settings)
        return cls(image_processor, _find_feature_extractor(audio), audio_windows)

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a processor from its parts and a saved dictionary as transformers does; unknown keywords are a warning."""
        accepted = inspect.signature(cls).parameters.keys()
        with loading_saved():
            check_keywords(cls.__name__, processor_dict, {*accepted, "auto_map", "processor_class"}, accepted)
        return super().from_args_and_dict(args, processor_dict, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs of the model for inference."""
        return ["pixel_values", "input_features", "frame_mask"]

    @property
    def audio_reach(self) -> float:
        """Seconds after a frame up to which its audio may matter."""
        return PATCH_REACH if self.audio_windows is None else max(after for _, after in self.audio_windows)

    def audio_features(
        self, frames: Iterable[tuple[Any, ...]], audio: AudioBuffer, audio_alignment: str | None
    ) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
        """Pair each frame of a stream with the features of its audio.

        Args:
            frames: Tuples that begin with a timestamp in seconds from the start of the audio, in chronological order.
            audio: At the sampling rate of the feature extractor; read as far as the frames need it.
            audio_alignment: How patches or windows are placed: `"consecutive"` (patches only), `"center"` or `"end"`; None
                places windows as configured.

        Returns:
            An iterator over the frames, each with its features, float32: (1, 96, 64) for the published log-mel
            patches; for other extractors, what the extractor computes from a window, or (windows, ...) with several
            windows.

        Raises:
            ValueError: If the alignment does not apply.
        """
        if self.audio_windows is None:
            return self.feature_extractor.audio_patches(frames, audio, audio_alignment)
        windows = _place_windows(self.audio_windows, audio_alignment)
        return ((frame, self._window_features(cut)) for frame, cut in cut_windows(frames, audio, windows))

    def _window_features(self, windows: list[np.ndarray]) -> torch.Tensor:
        """Turn the windows of one frame into features: (...) for one window, (windows, ...) for several."""
        extractor = self.feature_extractor
        features = extractor(windows, sampling_rate=extractor.sampling_rate, return_tensors="np")
        array = torch.from_numpy(np.ascontiguousarray(features[extractor.model_input_names[0]], dtype=np.float32))
        return array[0] if len(windows) == 1 else array

    def __call__(
        self,
        videos: Any = None,
        audio: Any = None,
        *,
        sampling_rate: int | Sequence[int | None] | None = None,
        segmentation_maps: Any = None,
        timestamps: Any = None,
        frames_per_second: float = 1.0,
        audio_alignment: str | None = None,
        return_tensors: str | None = None,
        return_metadata: bool = False,
        **kwargs: Any,
    ) -> BatchFeature:
        """Turn one clip or a list of clips into a batch.

        A clip is a video (path, http(s) URL, bytes, binary file object) or its frames: a uint8 array or tensor
        (frames, height, width, 3) or (frames, 3, height, width), or a list of PIL images or of such frames. For a list
        of clips every other per-clip argument is a list of the same length; None stands for "not given".

        Args:
            videos: A clip, or a list of clips. A video is sampled at `frames_per_second`; frames are used as they are.
            audio: The audio of each clip: (samples,) or (channels, samples) array or tensor, float in [-1, 1] or int16
                or int32, or an audio or video file (path, URL, bytes, file object). Not needed for a video with an audio
                track. Without `timestamps` it must last as long as the frames, to within one frame. A file with a video
                file may have any length: like the video's own track it is cut, or padded with zeros.
            sampling_rate: Rate of arrays in `audio`, in hertz; one number applies to all clips.
            segmentation_maps: Per clip one entry per frame: a (height, width) mask of class indices (array or
                single-channel PIL image) at the size of the frame, or None where the frame is not annotated. 255 is
                "ignore": give a 0/255 mask file as `mask > 127`.
            timestamps: Per clip (frames,), the time of each frame in seconds from the start of the audio, in any order.
                Only for clips given as frames; the default is AVSBench's, (k + 15/16) / frames_per_second for frame k.
            frames_per_second: Sampling rate of frames, in hertz.
            audio_alignment: How audio is cut: `"consecutive"` 0.96-s patches, as published; `"end"`, each patch ending at its
                frame; or `"center"`, each patch centered on its frame. By default consecutive for clips of at most 10
                frames, one in each second, at one frame per second; `"end"` for all others, because consecutive patches
                drift by 40 ms every second. `audio_windows` are by default placed as configured.
            return_tensors: `"pt"`, `"np"`, or None, which also returns numpy arrays. The model needs `"pt"`.
            return_metadata: Also return three plain lists with one entry per clip: `timestamps` (float64 arrays),
                `original_sizes` ((height, width) pairs) and `frames` (uint8 arrays (frames, height, width, 3)).
            **kwargs: Settings of the image processor for this call only (`size`, `do_resize`, `do_normalize`, ...),
                directly or in `images_kwargs`; `device`, on which the torchvision backend computes and the tensors are
                returned; and `sampling_rate` in `audio_kwargs`.

        Returns:
            The batch described in the table at the top of this file, batch first, with clips padded to the longest.

        Raises:
            ValueError: For anything that cannot be used; the message names the clip and the remedy.
            FileNotFoundError: If a path does not exist.
        """
        if videos is None:
            raise ValueError(
                f"{type(self).__name__} got no videos: pass videos=, and for frames also audio= and sampling_rate=. "
                "Features of audio alone come from its feature_extractor."
            )
        frames_per_second = float(check_rate("frames_per_second", frames_per_second))
        check_settings(audio_alignment=audio_alignment)
        image_settings, sampling_rate = self._settings_of_modalities(kwargs, sampling_rate, return_tensors)
        settings = {"frames_per_second": frames_per_second, "audio_alignment": audio_alignment}
        given = _split(
            videos,
            audio=audio,
            sampling_rate=sampling_rate,
            timestamps=timestamps,
            segmentation_maps=segmentation_maps,
        )
        arrays, metadata = [], {"timestamps": [], "original_sizes": [], "frames": []}
        for index, one in enumerate(given):
            try:
                maps = one.pop("segmentation_maps")
                frames, timestamps, patches = self._collect(**one, **settings)
                arrays.append(self._process(frames, patches, maps, image_settings))
            except MediaError:
                raise  # it names its source
            except ValueError as error:
                raise ValueError(f"{_name(index, one['video'])}: {error}") from error
            if return_metadata:
                metadata["timestamps"].append(timestamps)
                metadata["original_sizes"].append(frames[0].shape[:2])
                metadata["frames"].append(stack_and_release(frames))
        batch = _collate(arrays, return_tensors, image_settings.get("device"))
        if return_metadata:
            batch.update(metadata)
        return batch

    def _settings_of_modalities(
        self, given: dict[str, Any], sampling_rate: Any, return_tensors: str | None
    ) -> tuple[dict[str, Any], Any]:
        """Merge the keywords of a call with `images_kwargs` and `audio_kwargs`, by the rules of transformers.

        Returns:
            The settings of the image processor, and the sampling rate.

        Raises:
            ValueError: For unknown keywords, one that is given twice, and a device without `return_tensors="pt"`.
        """
        flat = ImagesKwargs.__annotations__.keys() - {"return_tensors", "input_data_format"}
        check_keywords(type(self).__name__, given, {*flat, *_CALL_KEYWORDS}, {"size", *_CALL_KEYWORDS})
        check_keywords("images_kwargs", given.get("images_kwargs", ()), flat, flat)
        check_keywords("audio_kwargs", given.get("audio_kwargs", ()), {"sampling_rate"}, {"sampling_rate"})
        conventions: Any = ProcessingKwargs  # transformers declares an instance, but reads the class
        merged = self._merge_kwargs(conventions, **given)
        images, audio = merged["images_kwargs"], merged["audio_kwargs"]
        if images.get("device") is not None and return_tensors != "pt":
            raise ValueError(f'device={images["device"]!r} needs return_tensors="pt", got {return_tensors!r}.')
        if sampling_rate is not None and "sampling_rate" in audio:
            raise ValueError("Got sampling_rate twice, directly and in audio_kwargs. Pass it once.")
        return images, audio.get("sampling_rate", sampling_rate)

    @staticmethod
    def pad(features: Any, return_tensors: str | None = None) -> BatchFeature:
        """Pad clips to the longest and stack them.

        Args:
            features: A list with one dictionary per clip, such as the rows of a dataset that has already been
                processed. Each has the arrays of the batch without its first dimension, frames first. Or a list of
                batches, whose clips are padded again, or a dictionary with one such list per array.
            return_tensors: As in a call.

        Returns:
            The batch, with `frame_mask` if clips were padded.

        Raises:
            ValueError: If no clip is given, frames differ in size, or a clip lacks inputs that others have.
        """
        if isinstance(features, Mapping):
            features = [dict(zip(features, row, strict=True)) for row in zip(*features.values(), strict=True)]
        clips = [clip for one in features for clip in _clips_of(one)]
        if not clips:
            raise ValueError("Got no clips to pad. Pass at least one.")
        return _collate(clips, return_tensors)

    def _collect(
        self, video: Any, audio: Any, *, timestamps: Any, **settings: Any
    ) -> tuple[list[np.ndarray], np.ndarray, list[torch.Tensor]]:
        """Read one clip: its frames, their timestamps and their patches, in the order of the clip."""
        order, video = None, media_source(video)
        if timestamps is not None and not is_media(video) and not is_decoder(video):
            # A stream is in chronological order.
            video = stack_frames(video)
            timestamps = check_timestamps(timestamps, len(video))
            if (np.diff(timestamps) < 0).any():
                order = np.argsort(timestamps, kind="stable")
                video, timestamps = video[order], timestamps[order]
        frames, times, patches = [], [], []
        for (timestamp, frame, _), patch in self._read(video, audio, timestamps=timestamps, **settings):
            if is_media(video):
                check_held_frames(len(frames), frame, video)
            frames.append(frame)
            times.append(timestamp)
            patches.append(patch)
        if order is not None:
            back = np.argsort(order).tolist()
            frames, times, patches = ([items[index] for index in back] for items in (frames, times, patches))
        return frames, np.array(times, dtype=np.float64), patches

    def _read(
        self, video: Any, audio: Any, *, frames_per_second: float | str, audio_alignment: str | None, **settings: Any
    ) -> Iterator[tuple[StreamedFrame, torch.Tensor]]:
        """Yield the frames of one clip, each with the features of its audio."""
        rate = self.feature_extractor.sampling_rate
        clip = open_clip(video, audio, frames_per_second=frames_per_second, target_rate=rate, **settings)
        with clip as (frames, sound):
            yield from self._with_features(frames, sound, frames_per_second, audio_alignment)

    def _with_features(
        self,
        frames: Iterator[tuple[Any, ...]],
        sound: AudioBuffer,
        frames_per_second: float | str,
        audio_alignment: str | None,
    ) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
        """Yield tuples that begin with a timestamp, each with the features of its audio."""
        # The alignment is chosen once the clip is known to be longer than a published one, or to have ended.
        first = list(islice(frames, PUBLISHED_CLIP_FRAMES + 1))
        timestamps = np.array([frame[0] for frame in first])
        alignment = audio_alignment
        if self.audio_windows is None:
            alignment = choose_audio_alignment(timestamps, audio_alignment, frames_per_second)
        frames = chain(first, frames)
        if alignment == "consecutive":
            frames = _one_in_each_second(frames)
        yield from self.audio_features(frames, sound, alignment)

    def _process(
        self, frames: list[np.ndarray], patches: list[torch.Tensor], maps: Any, image_settings: dict[str, Any]
    ) -> dict[str, torch.Tensor]:
        """Create the tensors of one clip, frames first."""
        masks = None if maps is None else fill_maps(maps, (len(frames), *frames[0].shape[:2]))
        settings = {**image_settings, "input_data_format": "channels_last", "return_tensors": "pt"}
        tensors = self.image_processor(frames, segmentation_maps=masks, **settings)
        if maps is not None:
            tensors["annotated_frames"] = torch.tensor([mask is not None for mask in maps], device="cpu")
        return {**tensors, "input_features": torch.stack(patches)}

    def stream(
        self,
        video: Any,
        audio: Any = None,
        *,
        sampling_rate: int | None = None,
        timestamps: Any = None,
        frames_per_second: float | str = 1.0,
        masks_per_second: float | str | None = None,
        audio_alignment: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Turn one clip of any length into the inputs of the network, frame by frame, in constant memory.

        The values are those of a call, which collects this stream.

        Args:
            video: A clip as in a call, or an open [`MediaReader`] whose frames have not been read yet.
            audio: Its audio, if it is not the video's own.
            sampling_rate: Sampling rate of an array in `audio`, in hertz.
            timestamps: As in a call, in chronological order.
            frames_per_second: Sampling rate of frames, in hertz, or `"video"`: every frame of a video file.
            masks_per_second: Rate of the `mask_timestamps`, in hertz, or `"video"`; by default that of the frames.
            audio_alignment: As in a call; a clip counts as short if it ends within 10 frames.

        Yields:
            One dictionary per frame, in chronological order: `timestamp` in seconds; `pixel_values` (3, height, width)
            and `input_features` (...), float32; `original_size` (height, width); `mask_timestamps`, the timestamps of
            the masks since the previous frame, and for the last frame also of those after it.

        Raises:
            ValueError: For anything that cannot be used.
            FileNotFoundError: If a path does not exist.
        """
        frames_per_second, masks_per_second = self.check_settings(frames_per_second, masks_per_second, audio_alignment)
        with _errors_name(video):
            for frame, patch in self._read(
                video,
                audio,
                sampling_rate=sampling_rate,
                timestamps=timestamps,
                frames_per_second=frames_per_second,
                masks_per_second=masks_per_second,
                audio_alignment=audio_alignment,
            ):
                yield {**self._process_frame(frame), "input_features": patch}

    def stream_rates(
        self,
        video: Any,
        audio: Any = None,
        *,
        frames_per_second: Sequence[float | str],
        sampling_rate: int | None = None,
        audio_alignment: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Turn one video of any length into the inputs of the network at several rates, in one pass and in constant memory.

        Args:
            video: A video file as in a call, or an open [`MediaReader`] whose frames have not been read yet.
            audio: Its audio, if it is not the video's own.
            frames_per_second: The sampling rates of frames, each in hertz, or `"video"`.
            sampling_rate: Sampling rate of an array in `audio`, in hertz.
            audio_alignment: As in a call.

        Yields:
            The dictionaries of `stream` at each rate, merged in chronological order, each with the index of its rate
            as `rate`.

        Raises:
            ValueError: For anything that cannot be used.
            FileNotFoundError: If a path does not exist.
        """
        rates = [self.check_settings(rate, audio_alignment=audio_alignment)[0] for rate in frames_per_second]
        video, audio, sampling_rate = _clip_sources(video, audio, sampling_rate)
        with _errors_name(video), ExitStack() as stack:
            reader, audio_reader = _open_files(stack, video, audio)
            chunks = _open_audio(stack, audio, sampling_rate) if audio_reader is None else audio_reader.audio()
            # Frames of one rate wait for those of another, at the size of the network and not of the video.
            events = ((index, frame[0], self._process_frame(frame)) for index, frame in reader.frames_at(rates))
            branches = zip(tee(events, len(rates)), share_audio(chunks, len(rates)), strict=True)
            streams = []
            for index, (branch, pieces) in enumerate(branches):
                sound = AudioBuffer(pieces, self.feature_extractor.sampling_rate)
                frames = _of_rate(index, branch)
                if audio_reader is None:
                    frames = _with_checked_audio(frames, sound, rates[index])
                streams.append(self._with_features(frames, sound, rates[index], audio_alignment))
            for (_, index, frame), patch in heapq.merge(*streams, key=lambda item: item[0][0]):
                yield {**frame, "input_features": patch, "rate": index}
            _finish(reader, audio_reader)

    def stream_live(
        self,
        chunks: Iterable[tuple[Any, Any, Any]],
        *,
        sampling_rate: int,
        frames_per_second: float = 1.0,
        audio_alignment: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Turn live input into the inputs of the network, each as soon as its frame and its audio have arrived.

        Args:
            chunks: Triples of frames, their timestamps and audio: see [`LiveClip`].
            sampling_rate: Sampling rate of the audio, in hertz.
            frames_per_second: Frames per second for the network.
            audio_alignment: `"end"`: audio up to the frame, so the network waits only for the first 0.975 s of patches
                at the start; `"center"`: audio around the frame, which arrives half a patch or window later. By
                default `"end"` for patches; `audio_windows` are placed as configured.

        Yields:
            Dictionaries as from `stream`.

        Raises:
            ValueError: For chunks that cannot be used, and for consecutive audio_alignment, which drifts.
        """
        frames_per_second = float(check_rate("frames_per_second", frames_per_second))
        if audio_alignment is None and self.audio_windows is None:
            audio_alignment = "end"
        if audio_alignment not in ("end", "center", None):
            raise ValueError(f'audio_alignment is {audio_alignment!r}: expected "end" or "center" for live input.')
        clip = LiveClip(chunks, sampling_rate, frames_per_second, self.feature_extractor.sampling_rate)
        for frame, patch in self.audio_features(clip.frames, clip.audio, audio_alignment):
            yield {**self._process_frame(frame), "input_features": patch}

    def _process_frame(self, streamed: StreamedFrame) -> dict[str, Any]:
        """Create the network inputs of one frame, without its audio."""
        timestamp, frame, mask_timestamps = streamed
        pixels = self.image_processor(frame, input_data_format="channels_last", return_tensors="pt")
        return {
            "timestamp": timestamp,
            "pixel_values": pixels["pixel_values"][0],
            "original_size": frame.shape[:2],
            "mask_timestamps": mask_timestamps,
        }

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | tuple[int, int] | None = None,
        threshold: float = 0.5,
        frame_mask: Any = None,
    ) -> list[torch.Tensor]:
        """Convert logits to class ids at the original size.

        Logits are resized bilinearly (align_corners=False, no antialiasing) and then thresholded, one frame at a time,
        so that 71 classes at full size are held for only one frame.

        Args:
            outputs: The model's output, or anything with `logits` (batch, frames, num_labels, height, width), a tensor
                or an array (for example from onnxruntime).
            target_sizes: (height, width) of each clip, or one pair for all; the logits' own size if None.
            threshold: Binary task only: a pixel belongs to a sounding object if its probability is strictly above this,
                in [0, 1].
            frame_mask: (batch, frames), bool; frames that are False are left out.

        Returns:
            Per clip (frames, height, width), int64: 0 or 1 in the binary task, else the class of the highest logit, the
            first of several equal ones.

        Raises:
            ValueError: For a threshold outside [0, 1], logits with a wrong shape or NaN, and sizes or a mask that do
                not fit the batch.
        """
        logits = _as_tensor(outputs.logits)
        if logits.ndim != 5:
            raise ValueError(f"Expected logits (batch, frames, num_labels, height, width), got {tuple(logits.shape)}.")
        if logits.isnan().any():
            raise ValueError(
                "The logits are not numbers (NaN). In float16, large values overflow: use bfloat16 or float32. Otherwise check the "
                "weights and the inputs."
            )
        if not isinstance(threshold, Real) or not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold!r}: expected a probability in [0, 1].")
        sizes = _check_target_sizes(target_sizes, logits)
        masks = _check_frame_mask(frame_mask, logits)
        return [
            torch.stack([_decide(frame, size, threshold) for frame in clip[mask]])
            for clip, size, mask in zip(logits, sizes, masks, strict=True)
        ]


def _of_rate(
    index: int, events: Iterable[tuple[int, float, dict[str, Any]]]
) -> Iterator[tuple[float, int, dict[str, Any]]]:
    """Yield the frames of one of several rates, each as timestamp, index of the rate, and frame."""
    return ((timestamp, index, frame) for number, timestamp, frame in events if number == index)


@contextmanager
def _errors_name(video: Any) -> Iterator[None]:
    """Add the name of a file to errors that do not have it."""
    try:
        yield
    except MediaError:
        raise  # it names its source
    except ValueError as error:
        if not isinstance(video, str | PathLike):
            raise
        raise ValueError(f"{video}: {error}") from error


def _places_patches(feature_extractor: Any) -> bool:
    """Return whether a feature extractor cuts the audio itself, as that of the published network does."""
    return hasattr(feature_extractor, "audio_patches")


def _find_feature_extractor(audio: PreTrainedConfig | str | PathLike[str] | None) -> Any:
    """Load the feature extractor that is saved with an audio encoder, or build the default one for its configuration."""
    if isinstance(audio, str | PathLike):
        try:
            return AutoFeatureExtractor.from_pretrained(audio)
        except (OSError, ValueError):  # no file of a feature extractor, or a file without its type
            audio = AutoConfig.from_pretrained(audio)
    return build_feature_extractor(build_audio_config(audio))


def _check_windows(audio_windows: Any) -> list[list[float]]:
    """Return the windows as lists; raise ValueError unless each is a pair of seconds before and after the frame."""
    try:
        windows = [[float(before), float(after)] for before, after in audio_windows]
    except (TypeError, ValueError):
        windows = []
    if not windows or not all(min(window) >= 0 and 0 < sum(window) < math.inf for window in windows):
        raise ValueError(
            f"Expected audio_windows as pairs of seconds before and after the frame, such as [[2.0, 2.0]], got {audio_windows!r}."
        )
    return windows


def _check_lengths(windows: list[list[float]], feature_extractor: Any) -> None:
    """Raise ValueError if a window is longer than what the feature extractor uses."""
    longest, used = max(map(sum, windows)), seconds_used(feature_extractor)
    if longest > used + SAMPLING_TIME_TOLERANCE:
        raise ValueError(
            f"Got an audio window of {longest:g} s, of which {type(feature_extractor).__name__} would use only {used:g} s. Pass "
            f"shorter audio_windows, such as [[{used / 2:g}, {used / 2:g}]], or a feature extractor for longer audio."
        )


def _place_windows(windows: list[list[float]], audio_alignment: str | None) -> list[tuple[float, float]]:
    """Return the seconds before and after the frame of each window: as configured, centered on it or ending at it."""
    if audio_alignment == "consecutive":
        raise ValueError(
            'audio_alignment "consecutive" is for the published log-mel patches, but this feature extractor gets windows around '
            'each frame: use "center" or "end", or leave it out.'
        )
    lengths = [before + after for before, after in windows]
    if audio_alignment == "center":
        return [(length / 2, length / 2) for length in lengths]
    return [(length, 0.0) for length in lengths] if audio_alignment == "end" else [(x, y) for x, y in windows]


def _split(videos: Any, **arguments: Any) -> list[dict[str, Any]]:
    """Return the arguments of each clip of a call: a dictionary with `video` and the names of the arguments."""
    if is_clip(videos):
        return [{"video": videos, **arguments}]
    if not len(videos):
        raise ValueError("videos is an empty list. Pass at least one clip.")
    lists = {name: _spread(name, value, len(videos)) for name, value in arguments.items()}
    return [
        {"video": video, **{name: values[index] for name, values in lists.items()}}
        for index, video in enumerate(videos)
    ]


def _spread(name: str, value: Any, count: int) -> list[Any]:
    """Return one entry of an argument per clip. None and a single sampling rate apply to all clips."""
    if value is None or (name == "sampling_rate" and not isinstance(value, list | tuple)):
        return [value] * count
    if not isinstance(value, list | tuple) or len(value) != count:
        got = f"{len(value)} entries" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
        raise ValueError(f"videos is a list of {count} clips, so {name} must be a list of {count} entries; got {got}.")
    return list(value)


def _name(index: int, video: Any) -> str:
    """Return the name of a clip in an error message."""
    return f"clip {index} ({video})" if isinstance(video, str | PathLike) else f"clip {index}"


# --- Batches ---


# Padding value of each tensor of a clip that is shorter than others.
_FILLINGS = {
    "pixel_values": 0.0,
    "input_features": 0.0,
    "audio_embeds": 0.0,
    "labels": IGNORED_LABEL,
    "annotated_frames": 0,
}


def _collate(
    clips: list[dict[str, torch.Tensor]], return_tensors: str | None, device: torch.device | str | None = None
) -> BatchFeature:
    """Pad clips to the longest and stack them, batch first."""
    sizes = {clip["pixel_values"].shape[1:] for clip in clips}
    if len(sizes) > 1:
        raise ValueError(
            f"Clips have different sizes {sorted(map(tuple, sizes))} after processing and cannot be stacked: set "
            "do_resize=True and a size with height and width in the image processor, or pass one clip at a time."
        )
    names = {name for clip in clips for name in clip}
    if "labels" in names:
        clips = [{**_without_labels(clip), **clip} for clip in clips]
        names |= {"annotated_frames"}
    for index, clip in enumerate(clips):
        if names - set(clip):
            raise ValueError(f"Clip {index} lacks {sorted(names - set(clip))}, which others have. Pass all of a kind.")
    batch = {name: _stack(name, [clip[name] for clip in clips]) for name in _FILLINGS if name in names}
    lengths = torch.tensor([len(clip["pixel_values"]) for clip in clips], device=batch["pixel_values"].device)
    if (lengths < lengths.max()).any():
        batch["frame_mask"] = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    if return_tensors != "pt":
        return BatchFeature({name: tensor.numpy() for name, tensor in batch.items()}, tensor_type=return_tensors)
    return BatchFeature({name: tensor.to(device=device) for name, tensor in batch.items()})


def _without_labels(clip: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the labels of a clip without masks."""
    frames, _, height, width = clip["pixel_values"].shape
    device = clip["pixel_values"].device
    no_labels = torch.full((frames, height, width), IGNORED_LABEL, device=device)
    return {"labels": no_labels, "annotated_frames": torch.zeros(frames, dtype=torch.bool, device=device)}


def _stack(name: str, tensors: list[torch.Tensor]) -> torch.Tensor:
    """Pad tensors (frames_i, ...) to the longest and stack them."""
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(tensors)  # pad_sequence copies twice
    return pad_sequence(tensors, batch_first=True, padding_value=_FILLINGS[name])


def _clips_of(features: Mapping[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the clips of a batch, or the one clip of a row of a dataset, without padding and without other columns."""
    # A row of `datasets` has None for a missing value.
    given = {name: features[name] for name in (*_FILLINGS, "frame_mask") if features.get(name) is not None}
    tensors = {name: _as_tensor(values) for name, values in given.items()}
    if "pixel_values" not in tensors:
        raise ValueError(
            f"Expected clips with pixel_values, as the processor makes them, got the keys {list(features)}."
        )
    if tensors["pixel_values"].ndim == 5:
        for values in zip(*tensors.values(), strict=True):
            yield from _clips_of(dict(zip(tensors, values, strict=True)))
        return
    mask = tensors.pop("frame_mask", None)
    yield tensors if mask is None else {name: tensor[mask.bool()] for name, tensor in tensors.items()}


def _as_tensor(values: Any) -> torch.Tensor:
    """Return an array, a tensor or nested lists (the rows of `datasets`) as a tensor, float64 as float32."""
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.asarray(values))
    return tensor.float() if tensor.dtype == torch.float64 else tensor


# --- Post-processing ---


def _check_target_sizes(target_sizes: Any, logits: torch.Tensor) -> list[tuple[int, int]]:
    """Return (height, width) per clip, or raise ValueError if the sizes do not fit the batch."""
    if target_sizes is None:
        return [(logits.shape[-2], logits.shape[-1])] * len(logits)
    array = np.asarray(target_sizes)
    sizes = np.broadcast_to(array, (len(logits), 2)) if array.shape == (2,) else array
    if sizes.shape != (len(logits), 2) or sizes.min() < 1:
        raise ValueError(
            f"target_sizes is {target_sizes!r} for {len(logits)} clips: pass one (height, width) per clip, or one for all."
        )
    return [(int(height), int(width)) for height, width in sizes]


def _check_frame_mask(frame_mask: Any, logits: torch.Tensor) -> torch.Tensor:
    """Return the (batch, frames) mask on the logits' device, all True if None."""
    if frame_mask is None:
        return torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    mask = torch.as_tensor(frame_mask, dtype=torch.bool, device=logits.device)
    if mask.shape != logits.shape[:2] or not mask.any(dim=1).all():
        raise ValueError(
            f"frame_mask has shape {tuple(mask.shape)}: expected {tuple(logits.shape[:2])} with a real frame in each clip."
        )
    return mask


def _decide(logits: torch.Tensor, size: tuple[int, int], threshold: float) -> torch.Tensor:
    """Resize the logits of one frame (num_labels, height, width) and return its class ids: (height, width), int64."""
    resized = functional.interpolate(logits[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    if len(resized) == 1:
        return (resized[0].sigmoid() > threshold).long()
    return resized.argmax(dim=0)
