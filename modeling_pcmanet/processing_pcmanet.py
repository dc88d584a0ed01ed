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
"""Processor of PCMANet: videos or frames and sound in, the batch out; logits in, masks at the original size out.

The batch is the only thing that processor and model share:

| name | shape | dtype, range |
|---|---|---|
| `pixel_values` | (batch, frames, 3, height, width) | float, ImageNet-normalised |
| `input_features` | (batch, frames, 1, 96, 64) | float, VGGish log-mel |
| `audio_embeds` | (batch, frames, 128) | VGGish output in place of `input_features`; exactly one of the two |
| `frame_mask` | (batch, frames) | bool, False = padding; optional |
| `labels` | (batch, frames, height, width) | binary: 0/1; semantic: class index; 255 = ignore |
| `label_mask` | (batch, frames) | bool, which frames are annotated (S4 train: the first); optional |
| `logits` | (batch, frames, num_labels, height, width) | num_labels = 1 is binary (sigmoid), 71 is AVSS (softmax) |

The processor makes all of it but `audio_embeds` and `logits`, which a VGGish and the model make. It always gives
`frame_mask`, and `labels` with `label_mask` where it was given masks. Padded frames hold zeros, in `labels` 255.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .media_pcmanet import read_audio, read_media


PUBLISHED_CLIP_FRAMES = (
    10  # the longest clip of AVSBench, in frames and in seconds; beyond it the drift of patches hurts
)
SECONDS_PER_FRAME = 1.0  # of AVSBench
SAMPLING_OFFSET = 15 / 16  # AVSBench looks at each second this far into it
TIME_TOLERANCE = 0.05  # seconds: a frame this far outside its second still belongs to it
LENGTH_TOLERANCE = 0.25  # seconds by which sound and frames may differ beyond one frame: codecs cut and fill that much
IGNORED_LABEL = 255


@dataclass(frozen=True)
class Clip:
    """One clip as read, before processing.

    Attributes:
        name: What error messages call it.
        frames: (frames, height, width, 3), uint8, RGB.
        timestamps: (frames,), float64, seconds from the start of the sound.
        waveform: (samples,) or (channels, samples).
        sampling_rate: Of the waveform, in hertz.
    """

    name: str
    frames: np.ndarray
    timestamps: np.ndarray
    waveform: Any
    sampling_rate: int | None


class PCMANetProcessor(ProcessorMixin):
    """Make PCMANet's batch from videos, and masks from its logits.

    Args:
        image_processor: A `PCMANetImageProcessor`.
        feature_extractor: A `PCMANetFeatureExtractor`.
    """

    def __init__(self, image_processor: Any, feature_extractor: Any) -> None:
        super().__init__(image_processor, feature_extractor)

    @property
    def model_input_names(self) -> list[str]:
        """Names that the model takes for inference."""
        return [*super().model_input_names, "frame_mask"]

    def __call__(
        self,
        videos: Any = None,
        audio: Any = None,
        *,
        sampling_rate: int | Sequence[int | None] | None = None,
        segmentation_maps: Any = None,
        timestamps: Any = None,
        frames_per_second: float = 1.0,
        patching: str | None = None,
        return_tensors: str | None = "pt",
        return_metadata: bool = False,
    ) -> BatchFeature:
        """Turn one clip or a list of clips into a batch.

        A clip is a video (path, http(s) URL, bytes, binary file object) or its frames: a uint8 array or tensor
        (frames, height, width, 3) or (frames, 3, height, width), or a list of PIL images or of such frames. For a list
        of clips every other per-clip argument is a list of the same length; None stands for "not given".

        Args:
            videos: A clip, or a list of clips. A video is sampled at `frames_per_second`, frames are taken as they are.
            audio: The sound of each clip: (samples,) or (channels, samples) array or tensor, float in [-1, 1] or int16
                or int32, or an audio or video file (path, URL, bytes, file object). Not needed for a video with a sound
                track. Without `timestamps` it must last as long as the frames, give or take one frame.
            sampling_rate: Rate of arrays in `audio`, in hertz; one number may stand for all clips.
            segmentation_maps: Per clip one entry per frame: a (height, width) mask of class indices (array or
                single-channel PIL image) at the size of the frame, or None where the frame is not annotated. 255 is
                "ignore": give a 0/255 mask file as `mask > 127`.
            timestamps: Per clip (frames,), the moment of each frame in seconds from the start of the sound. Only for
                clips given as frames; the default is AVSBench's, (k + 15/16) / frames_per_second for frame k.
            frames_per_second: Sampling rate of frames, in hertz.
            patching: How sound is cut: `"consecutive"` 0.96-s patches, as published, or `"aligned"`, each patch centred
                on its frame. By default consecutive for clips of at most 10 frames, one in each second, at one frame per
                second; aligned for all others, because consecutive patches drift by 40 ms every second.
            return_tensors: `"pt"`, `"np"`, or None, which is numpy as well.
            return_metadata: Also give three plain lists with one entry per clip: `timestamps` (float64 arrays),
                `original_sizes` ((height, width) pairs) and `frames` (uint8 arrays (frames, height, width, 3)).

        Returns:
            The batch of the module's table, batch first, clips padded to the longest.

        Raises:
            ValueError: For anything that cannot be used; the message names the clip and the remedy.
            FileNotFoundError: If a path does not exist.
        """
        if videos is None:
            raise ValueError(
                f"{type(self).__name__} got no videos: give videos=, and for frames without a sound track audio= and "
                "sampling_rate=. Features of sound alone come from its feature_extractor."
            )
        single = _is_clip(videos)
        sources = [videos] if single else list(videos)
        if not sources:
            raise ValueError("videos is an empty list: give at least one clip.")
        arguments = {
            "audio": audio,
            "sampling_rate": sampling_rate,
            "timestamps": timestamps,
            "segmentation_maps": segmentation_maps,
        }
        arguments = {name: _per_clip(name, value, len(sources), single) for name, value in arguments.items()}
        clips, metadata = [], {"timestamps": [], "original_sizes": [], "frames": []}
        for index, source in enumerate(sources):
            one = {name: values[index] for name, values in arguments.items()}
            maps = one.pop("segmentation_maps")
            clip = _read_clip(f"clip {index}", source, frames_per_second=frames_per_second, **one)
            clips.append(self._process_clip(clip, maps, _choose_patching(clip, patching, frames_per_second)))
            if return_metadata:
                metadata["timestamps"].append(clip.timestamps)
                metadata["original_sizes"].append(clip.frames.shape[1:3])
                metadata["frames"].append(clip.frames)
        batch = BatchFeature(_collate(clips), tensor_type=return_tensors)
        if return_metadata:
            batch.update(metadata)
        return batch

    def _process_clip(self, clip: Clip, maps: Any, patching: str) -> dict[str, np.ndarray]:
        """Make one clip's arrays, frames first."""
        try:
            masks = None if maps is None else _fill_maps(maps, clip.frames.shape[:3])
            arrays = self.image_processor(
                clip.frames, segmentation_maps=masks, input_data_format="channels_last", return_tensors="np"
            )
            arrays["input_features"] = self.feature_extractor(
                clip.waveform, clip.sampling_rate, timestamps=clip.timestamps, patching=patching
            )["input_features"]
        except ValueError as error:
            raise ValueError(f"{clip.name}: {error}") from error
        if maps is not None:
            arrays["label_mask"] = np.array([segmentation_map is not None for segmentation_map in maps])
        return dict(arrays)

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | tuple[int, int] | None = None,
        threshold: float = 0.5,
        frame_mask: Any = None,
    ) -> list[torch.Tensor]:
        """Turn logits into class ids at the original size.

        Logits are resized bilinearly (align_corners=False, no antialiasing) and then decided, one frame at a time, so
        that 71 classes at full size are held for one frame only.

        Args:
            outputs: The model's output, or anything with `logits` (batch, frames, num_labels, height, width).
            target_sizes: (height, width) of each clip, or one pair for all; the logits' own size if None.
            threshold: Binary task only: a pixel sounds where its probability is strictly above this, in [0, 1].
            frame_mask: (batch, frames), bool; frames that are False are left out.

        Returns:
            Per clip (frames, height, width), int64: 0 or 1 in the binary task, else the class of the highest logit, the
            first of several equal ones.

        Raises:
            ValueError: For a threshold outside [0, 1], and for sizes or a mask that do not fit the batch.
        """
        logits = outputs.logits
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}: expected a probability in [0, 1].")
        sizes = _check_target_sizes(target_sizes, logits)
        masks = _check_frame_mask(frame_mask, logits)
        return [
            torch.stack([_decide(frame, size, threshold) for frame in clip[mask]])
            for clip, size, mask in zip(logits, sizes, masks, strict=True)
        ]


def _is_source(value: Any) -> bool:
    """Tell whether a value is something that media is read from: path, URL, bytes or file object."""
    return isinstance(value, str | Path | bytes) or hasattr(value, "read")


def _is_frame(value: Any) -> bool:
    """Tell whether a value is one frame: a PIL image, or an array of at most three dimensions."""
    return isinstance(value, Image.Image) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim <= 3)


def _is_clip(videos: Any) -> bool:
    """Tell one clip from a list of clips. A five-dimensional array is a list of clips as well."""
    if isinstance(videos, list | tuple):
        return bool(videos) and _is_frame(videos[0])
    return not (isinstance(videos, np.ndarray | torch.Tensor) and videos.ndim == 5)


def _per_clip(name: str, value: Any, count: int, single: bool) -> list[Any]:
    """Spread an argument over the clips: one value for a single clip, else a list with an entry for each."""
    if single:
        return [value]
    if value is None or (name == "sampling_rate" and not isinstance(value, list | tuple)):
        return [value] * count
    if not isinstance(value, list | tuple) or len(value) != count:
        got = f"{len(value)} entries" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
        raise ValueError(f"videos is a list of {count} clips, so {name} must be a list of {count} entries; got {got}.")
    return list(value)


def _read_clip(
    name: str, source: Any, *, audio: Any, sampling_rate: int | None, timestamps: Any, frames_per_second: float
) -> Clip:
    """Read one clip's frames and sound and see to it that they belong together."""
    if not frames_per_second > 0:
        raise ValueError(f"frames_per_second is {frames_per_second}: expected a number above 0.")
    if _is_source(source):
        if timestamps is not None:
            raise ValueError(
                f"{name}: timestamps are for clips given as frames; a video brings its own. Leave them out."
            )
        media = read_media(source, frames_per_second=frames_per_second, audio=audio is None)
        name, frames, times = f"{name} ({media.name})", media.frames, media.timestamps
        if audio is None:
            return Clip(name, frames, times, media.waveform, media.sampling_rate)
    else:
        frames = _stack_frames(name, source)
        times = (np.arange(len(frames)) + SAMPLING_OFFSET) / frames_per_second if timestamps is None else timestamps
    waveform, sampling_rate = _read_sound(name, audio, sampling_rate)
    clip = Clip(name, frames, np.asarray(times, dtype=np.float64), waveform, sampling_rate)
    _check_lengths(clip, None if timestamps is not None else len(frames) / frames_per_second, frames_per_second)
    return clip


def _stack_frames(name: str, frames: Any) -> np.ndarray:
    """Bring one clip's frames to (frames, height, width, 3), uint8."""
    if isinstance(frames, list | tuple):
        frames = [np.asarray(frame.convert("RGB") if isinstance(frame, Image.Image) else frame) for frame in frames]
        sizes = {frame.shape for frame in frames}
        if len(sizes) != 1:
            raise ValueError(
                f"{name}: frames have different shapes {sorted(sizes)}: give frames of one size per clip."
            )
    elif not isinstance(frames, np.ndarray | torch.Tensor):
        raise ValueError(
            f"{name}: a {type(frames).__name__} is no clip: give a path, URL, bytes, binary file object, an array "
            "(frames, height, width, 3), or a list of frames."
        )
    array = np.asarray(frames)
    if array.ndim == 4 and array.shape[-1] != 3 and array.shape[1] == 3:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(
            f"{name}: frames have shape {array.shape}: expected (frames, height, width, 3) or (frames, 3, height, "
            "width) with at least one frame; a single frame is a list of one."
        )
    if array.dtype != np.uint8:
        raise ValueError(
            f"{name}: frames have dtype {array.dtype}: expected uint8 values 0..255. Floats in [0, 1] become that by "
            "(frames * 255).round() and a cast to uint8."
        )
    return array


def _read_sound(name: str, audio: Any, sampling_rate: int | None) -> tuple[Any, int]:
    """Read the sound that was given beside the frames: a file, or an array with its rate."""
    if audio is None:
        raise ValueError(
            f"{name}: frames have no sound track: give audio= and sampling_rate=. For a silent clip give zeros; with "
            "cached audio_embeds use the image_processor alone."
        )
    if _is_source(audio):
        return read_audio(audio)
    if sampling_rate is None:
        raise ValueError(f"{name}: audio is an array, so its sampling_rate= in hertz is needed, e.g. 16000.")
    return audio, sampling_rate


def _check_lengths(clip: Clip, duration: float | None, frames_per_second: float) -> None:
    """Raise ValueError if frames and a separate sound cannot belong together.

    Without a duration (explicit timestamps) the sound only has to reach the last frame.
    """
    if not hasattr(clip.waveform, "shape"):
        return
    if clip.timestamps.shape != (len(clip.frames),):
        raise ValueError(
            f"{clip.name}: timestamps have shape {clip.timestamps.shape} for {len(clip.frames)} frames: give one per "
            "frame, in seconds."
        )
    sound = clip.waveform.shape[-1] / clip.sampling_rate
    if duration is None:
        last = float(clip.timestamps.max())
        if last > sound + LENGTH_TOLERANCE:
            raise ValueError(f"{clip.name}: the last frame is at {last:.3f} s, but the sound ends at {sound:.3f} s.")
        return
    if abs(sound - duration) > 1 / frames_per_second + LENGTH_TOLERANCE:
        raise ValueError(
            f"{clip.name}: {len(clip.frames)} frames at {frames_per_second:g} per second last {duration:.3f} s, but the "
            f"sound lasts {sound:.3f} s. Cut one of them, correct frames_per_second or sampling_rate, or say with "
            "timestamps= when each frame is."
        )


def _choose_patching(clip: Clip, patching: str | None, frames_per_second: float) -> str:
    """Decide how the sound is cut, or refuse consecutive patches for frames that they cannot follow."""
    seconds = np.arange(len(clip.timestamps)) + SECONDS_PER_FRAME / 2
    outside = np.abs(clip.timestamps - seconds) > SECONDS_PER_FRAME / 2 + TIME_TOLERANCE
    fits = frames_per_second == 1 and not outside.any()
    if patching is None:
        return "consecutive" if fits and len(clip.frames) <= PUBLISHED_CLIP_FRAMES else "aligned"
    if patching == "consecutive" and not fits:
        raise ValueError(
            f'{clip.name}: patching "consecutive" needs one frame in every second from 0 on, but frames_per_second is '
            f"{frames_per_second:g} and the frames are at {np.round(clip.timestamps[:5], 3).tolist()} ... s: use "
            '"aligned".'
        )
    return patching


def _fill_maps(maps: Any, shape: tuple[int, int, int]) -> list[np.ndarray]:
    """Check one clip's masks against its frames and put "ignore" where a frame has none."""
    if len(maps) != shape[0]:
        raise ValueError(f"{len(maps)} segmentation maps for {shape[0]} frames: give one per frame, None for no mask.")
    filled = [
        np.full(shape[1:], IGNORED_LABEL, np.uint8) if segmentation_map is None else np.asarray(segmentation_map)
        for segmentation_map in maps
    ]
    for index, segmentation_map in enumerate(filled):
        if segmentation_map.shape[:2] != shape[1:]:
            raise ValueError(
                f"segmentation map {index} has shape {segmentation_map.shape}, but its frame is {shape[1:]}: give masks "
                "at the size of the frames, (height, width)."
            )
    return filled


def _collate(clips: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Pad clips to the longest and stack them, batch first."""
    clips = list(clips)
    lengths = [len(clip["pixel_values"]) for clip in clips]
    frames = max(lengths)
    batch = {name: _stack([clip[name] for clip in clips], frames, 0) for name in ("pixel_values", "input_features")}
    batch["frame_mask"] = np.arange(frames) < np.array(lengths)[:, None]
    if any("labels" in clip for clip in clips):
        blank = np.full(clips[0]["pixel_values"].shape[-2:], IGNORED_LABEL, np.int64)
        labels = [clip.get("labels", np.broadcast_to(blank, (0, *blank.shape))) for clip in clips]
        batch["labels"] = _stack(labels, frames, IGNORED_LABEL)
        batch["label_mask"] = _stack([clip.get("label_mask", np.zeros(0, bool)) for clip in clips], frames, False)
    return batch


def _stack(arrays: list[np.ndarray], frames: int, fill: float) -> np.ndarray:
    """Fill arrays (frames_i, ...) up to a number of frames and stack them."""
    padded = np.full((len(arrays), frames, *arrays[0].shape[1:]), fill, arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded


def _check_target_sizes(target_sizes: Any, logits: torch.Tensor) -> list[tuple[int, int]]:
    """Return (height, width) per clip, or raise ValueError if the sizes do not fit the batch."""
    if target_sizes is None:
        return [tuple(logits.shape[-2:])] * len(logits)
    array = np.asarray(target_sizes)
    sizes = np.broadcast_to(array, (len(logits), 2)) if array.shape == (2,) else array
    if sizes.shape != (len(logits), 2) or sizes.min() < 1:
        raise ValueError(
            f"target_sizes is {target_sizes!r} for {len(logits)} clips: give one (height, width) per clip, or one for all."
        )
    return [(int(height), int(width)) for height, width in sizes]


def _check_frame_mask(frame_mask: Any, logits: torch.Tensor) -> torch.Tensor:
    """Return the (batch, frames) mask on the logits' device, all True if None."""
    if frame_mask is None:
        return torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    mask = torch.as_tensor(frame_mask).to(logits.device, torch.bool)
    if mask.shape != logits.shape[:2] or not mask.any(dim=1).all():
        raise ValueError(
            f"frame_mask has shape {tuple(mask.shape)}: expected {tuple(logits.shape[:2])} with a real frame in each clip."
        )
    return mask


def _decide(logits: torch.Tensor, size: tuple[int, int], threshold: float) -> torch.Tensor:
    """Resize one frame's (num_labels, height, width) logits and decide: (target height, target width), int64."""
    resized = torch.nn.functional.interpolate(logits[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    if len(resized) == 1:
        return (resized[0].sigmoid() > threshold).long()
    return resized.argmax(dim=0)
