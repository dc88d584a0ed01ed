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
"""One clip as the user gives it -> frames, their moments and the sound, checked that they belong together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .media_pcmanet import read_audio, read_media
from .waveform_pcmanet import check_sampling_rate, check_timestamps, to_mono


SAMPLING_OFFSET = 15 / 16  # AVSBench looks at each second this far into it
LENGTH_TOLERANCE = 0.25  # seconds by which sound and frames may differ beyond one frame: codecs cut and fill that much
IGNORED_LABEL = 255
PUBLISHED_CLIP_FRAMES = 10  # the longest clip of AVSBench, one frame per second; beyond it the drift of patches hurts
TIME_TOLERANCE = 0.05  # seconds: a frame this far outside its second still belongs to it


@dataclass(frozen=True, eq=False)
class Clip:
    """One clip as read, before processing.

    Attributes:
        frames: (frames, height, width, 3), uint8, RGB.
        timestamps: (frames,), float64, seconds from the start of the sound.
        waveform: (samples,) or (channels, samples), numpy array or torch tensor.
        sampling_rate: Of the waveform, in hertz.
    """

    frames: np.ndarray
    timestamps: np.ndarray
    waveform: Any
    sampling_rate: int


def is_media(value: Any) -> bool:
    """Tell whether a value is something that media is read from: path, URL, bytes or binary file object."""
    return isinstance(value, str | Path | bytes) or hasattr(value, "read")


def is_clip(videos: Any) -> bool:
    """Tell one clip (media, an array of frames, a list of frames) from a list of clips or a five-dimensional array."""
    if isinstance(videos, list | tuple):
        return bool(videos) and _is_frame(videos[0])
    return not (isinstance(videos, np.ndarray | torch.Tensor) and videos.ndim == 5)


def _is_frame(value: Any) -> bool:
    """Tell whether a value is one frame: a PIL image, or an array of at most three dimensions."""
    return isinstance(value, Image.Image) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim <= 3)


def read_clip(
    video: Any,
    audio: Any = None,
    sampling_rate: int | None = None,
    timestamps: Any = None,
    frames_per_second: float = 1.0,
) -> Clip:
    """Read one clip's frames and sound.

    Args:
        video: Path, http(s) URL, bytes or binary file object of a video; or frames: uint8 array or tensor (frames, height,
            width, 3) or (frames, 3, height, width), or a list of PIL images or of such frames.
        audio: The sound, if it is not the video's own: array or tensor (samples,) or (channels, samples), or a file in
            any of the ways that a video is given.
        sampling_rate: Of an array in `audio`, in hertz.
        timestamps: (frames,), seconds from the start of the sound, for frames that are not taken as AVSBench takes them:
            frame k at (k + 15/16) / frames_per_second.
        frames_per_second: At which a video is sampled, or was sampled to give the frames.

    Returns:
        The clip.

    Raises:
        ValueError: If frames or sound cannot be used, sound is missing, or one is longer than the other.
        FileNotFoundError: If a path does not exist.
    """
    if is_media(video):
        if timestamps is not None:
            raise ValueError("timestamps are for clips given as frames, a video brings its own: leave them out.")
        media = read_media(video, frames_per_second=frames_per_second, audio=audio is None)
        if audio is None:
            return Clip(media.frames, media.timestamps, media.waveform, media.sampling_rate)
        frames, moments = media.frames, media.timestamps
    else:
        frames = stack_frames(video)
        regular = (np.arange(len(frames)) + SAMPLING_OFFSET) / frames_per_second
        moments = regular if timestamps is None else check_timestamps(timestamps, len(frames))
    waveform, sampling_rate = _read_sound(audio, sampling_rate)
    clip = Clip(frames, moments, waveform, sampling_rate)
    if timestamps is None:
        _check_duration(clip, frames_per_second)
    else:
        _check_coverage(clip)
    return clip


def stack_frames(frames: Any) -> np.ndarray:
    """Bring frames to one array.

    Args:
        frames: (frames, height, width, 3) or (frames, 3, height, width), uint8 array or tensor, or a list of PIL images
            of any mode or of such frames, all of one size.

    Returns:
        (frames, height, width, 3), uint8.

    Raises:
        ValueError: For another type, shape or dtype, frames of several sizes, or no frame at all.
    """
    if isinstance(frames, list | tuple):
        frames = [np.asarray(frame.convert("RGB") if isinstance(frame, Image.Image) else frame) for frame in frames]
        shapes = {frame.shape for frame in frames}
        if len(shapes) != 1:
            raise ValueError(f"frames of one clip have different shapes {sorted(shapes)}: give them at one size.")
    elif not isinstance(frames, np.ndarray | torch.Tensor):
        raise ValueError(
            f"a {type(frames).__name__} is no clip: give a path, URL, bytes, binary file object, an array (frames, height, "
            "width, 3), or a list of frames (one frame is a list of one)."
        )
    array = np.asarray(frames)
    if array.ndim == 4 and array.shape[-1] != 3 and array.shape[1] == 3:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(
            f"frames have shape {array.shape}: expected (frames, height, width, 3) or (frames, 3, height, width) with at "
            "least one frame. Grey frames are repeated three times, one frame is a list of one."
        )
    if array.dtype != np.uint8:
        raise ValueError(
            f"frames have dtype {array.dtype}: expected uint8 values 0..255. Floats in [0, 1] become that by "
            "(frames * 255).round() and a cast to uint8."
        )
    return array


def _read_sound(audio: Any, sampling_rate: int | None) -> tuple[Any, int]:
    """Read the sound that was given beside the frames: a file, or an array with its rate."""
    if audio is None:
        raise ValueError(
            "frames have no sound track: give audio= and sampling_rate=. For a silent clip give zeros; with cached "
            "audio_embeds use the image_processor alone."
        )
    if is_media(audio):
        return read_audio(audio)
    return to_mono(audio), check_sampling_rate(sampling_rate)


def _check_duration(clip: Clip, frames_per_second: float) -> None:
    """Raise ValueError if the sound does not last as long as the frames."""
    sound = clip.waveform.shape[-1] / clip.sampling_rate
    duration = len(clip.frames) / frames_per_second
    if abs(sound - duration) > 1 / frames_per_second + LENGTH_TOLERANCE:
        raise ValueError(
            f"{len(clip.frames)} frames at {frames_per_second:g} per second last {duration:.3f} s, but the sound lasts "
            f"{sound:.3f} s. Cut the longer one, correct frames_per_second or sampling_rate, or say with timestamps= when "
            "each frame is."
        )


def _check_coverage(clip: Clip) -> None:
    """Raise ValueError if the sound ends before the last frame."""
    sound = clip.waveform.shape[-1] / clip.sampling_rate
    last = clip.timestamps.max()
    if last > sound + LENGTH_TOLERANCE:
        raise ValueError(
            f"the last frame is at {last:.3f} s, but the sound ends at {sound:.3f} s: correct timestamps or sampling_rate, "
            "or fill the sound with zeros."
        )


def choose_patching(timestamps: np.ndarray, patching: str | None, frames_per_second: float | str) -> str:
    """Decide how a clip's sound is cut.

    Args:
        timestamps: (frames,), seconds from the start of the sound.
        patching: What the user wants, or None.
        frames_per_second: In hertz; `"video"` is every frame.

    Returns:
        What the user wants; otherwise `"consecutive"` for at most 10 frames, one in each second, else `"trailing"`.

    Raises:
        ValueError: If the user wants consecutive patches for frames that they cannot follow.
    """
    middles = np.arange(len(timestamps)) + 0.5
    one_each_second = bool((np.abs(timestamps - middles) <= 0.5 + TIME_TOLERANCE).all())
    follows = frames_per_second == 1 and one_each_second
    if patching is None:
        # The published layout looks at the end of each second and hears that second. Trailing patches keep to it for any
        # length; patches around the frame halve what is heard of the right second (0.74 IoU against 0.86 on a minute of
        # Sounding Shapes: docs/streaming.md).
        return "consecutive" if follows and len(timestamps) <= PUBLISHED_CLIP_FRAMES else "trailing"
    if patching == "consecutive" and not follows:
        raise ValueError(
            f'patching "consecutive" needs one frame in every second from 0 on, but frames_per_second is '
            f'{frames_per_second} and the frames are at {np.round(timestamps[:5], 3).tolist()} ... s: use "trailing".'
        )
    return patching


def fill_maps(maps: Any, shape: tuple[int, int, int]) -> list[np.ndarray]:
    """Check one clip's masks against its frames and put "ignore" where a frame has none.

    Args:
        maps: One entry per frame: a (height, width) mask (array, tensor or PIL image) or None.
        shape: (frames, height, width) of the clip.

    Returns:
        One (height, width) array per frame.

    Raises:
        ValueError: For another number of masks than of frames, or a mask of another size than its frame.
    """
    if len(maps) != shape[0]:
        raise ValueError(f"{len(maps)} segmentation maps for {shape[0]} frames: give one per frame, None for no mask.")
    filled = [np.full(shape[1:], IGNORED_LABEL, np.uint8) if mask is None else np.asarray(mask) for mask in maps]
    for index, mask in enumerate(filled):
        if mask.shape[:2] != shape[1:]:
            raise ValueError(
                f"segmentation map {index} has shape {mask.shape}, but its frame is {shape[1:]}: give masks at the size of "
                "the frames, (height, width)."
            )
    return filled
