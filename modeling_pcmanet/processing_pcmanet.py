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

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .clip_pcmanet import IGNORED_LABEL, PUBLISHED_CLIP_FRAMES, Clip, choose_patching, fill_maps, is_clip, read_clip
from .clip_stream_pcmanet import LiveClip, check_rate, check_settings, open_clip
from .media_source_pcmanet import MediaError
from .media_stream_pcmanet import StreamedFrame
from .sound_stream_pcmanet import hear


class PCMANetProcessor(ProcessorMixin):
    """Make PCMANet's batch from videos, and masks from its logits.

    Args:
        image_processor: A `PCMANetImageProcessor`.
        feature_extractor: A `PCMANetFeatureExtractor`.
    """

    check_settings = staticmethod(check_settings)  # for whoever streams later and wants to refuse at once

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
            patching: How sound is cut: `"consecutive"` 0.96-s patches, as published; `"trailing"`, each patch ending at its
                frame; or `"aligned"`, each patch centred on its frame. By default consecutive for clips of at most 10
                frames, one in each second, at one frame per second; trailing for all others, because consecutive patches
                drift by 40 ms every second.
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
                f"{type(self).__name__} got no videos: give videos=, and for frames also audio= and sampling_rate=. "
                "Features of sound alone come from its feature_extractor."
            )
        frames_per_second = check_rate("frames_per_second", frames_per_second)
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
                clip = read_clip(**one, frames_per_second=frames_per_second)
                arrays.append(self._process(clip, maps, choose_patching(clip.timestamps, patching, frames_per_second)))
            except MediaError:
                raise  # it names its source
            except ValueError as error:
                raise ValueError(f"{_name(index, one['video'])}: {error}") from error
            if return_metadata:
                metadata["timestamps"].append(clip.timestamps)
                metadata["original_sizes"].append(clip.frames.shape[1:3])
                metadata["frames"].append(clip.frames)
        batch = BatchFeature(_collate(arrays), tensor_type=return_tensors)
        if return_metadata:
            batch.update(metadata)
        return batch

    def _process(self, clip: Clip, maps: Any, patching: str) -> dict[str, np.ndarray]:
        """Make one clip's arrays, frames first."""
        masks = None if maps is None else fill_maps(maps, clip.frames.shape[:3])
        arrays = self.image_processor(
            clip.frames, segmentation_maps=masks, input_data_format="channels_last", return_tensors="np"
        )
        sound = self.feature_extractor(
            clip.waveform, clip.sampling_rate, timestamps=clip.timestamps, patching=patching
        )
        if maps is not None:
            arrays["label_mask"] = np.array([mask is not None for mask in maps])
        return {**arrays, **sound}

    def stream(
        self,
        video: Any,
        audio: Any = None,
        *,
        sampling_rate: int | None = None,
        timestamps: Any = None,
        frames_per_second: float | str = 1.0,
        masks_per_second: float | str | None = None,
        patching: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Turn one clip of any length into the network's inputs, frame by frame, in constant memory.

        The values are those of a call for the whole clip.

        Args:
            video: A clip as in a call.
            audio: Its sound, if it is not the video's own.
            sampling_rate: Of an array in `audio`, in hertz.
            timestamps: As in a call, in order of time.
            frames_per_second: Sampling rate of frames, in hertz, or `"video"`: every frame of a video file.
            masks_per_second: Rate of the moments in `mask_timestamps`, in hertz, or `"video"`; by default the frames'.
            patching: As in a call; a clip counts as short if it ends within 10 frames.

        Yields:
            One dictionary per frame, in order of time: `timestamp` in seconds; `pixel_values` (3, height, width) and
            `input_features` (1, 96, 64), float32; `original_size` (height, width); `mask_timestamps`, the moments at which
            masks are wanted since the frame before, for the last frame also those after it.

        Raises:
            ValueError: For anything that cannot be used.
            FileNotFoundError: If a path does not exist.
        """
        frames_per_second, masks_per_second = self.check_settings(frames_per_second, masks_per_second, patching)
        clip = open_clip(
            video,
            audio,
            sampling_rate=sampling_rate,
            timestamps=timestamps,
            frames_per_second=frames_per_second,
            masks_per_second=masks_per_second,
            target_rate=self.feature_extractor.sampling_rate,
        )
        try:
            with clip as (frames, sound):
                # How a clip is cut is decided when it is known to be longer than a published one, or to have ended.
                first = list(islice(frames, PUBLISHED_CLIP_FRAMES + 1))
                moments = np.array([frame.timestamp for frame in first])
                patching = choose_patching(moments, patching, frames_per_second)
                for frame, patch in hear(chain(first, frames), sound, self.feature_extractor, patching):
                    yield self._process_frame(frame, patch)
        except MediaError:
            raise  # it names its source
        except ValueError as error:
            raise ValueError(f"{video}: {error}" if isinstance(video, str | Path) else str(error)) from error

    def stream_live(
        self,
        chunks: Iterable[tuple[Any, Any, Any]],
        *,
        sampling_rate: int,
        frames_per_second: float = 1.0,
        patching: str = "trailing",
    ) -> Iterator[dict[str, Any]]:
        """Turn live input into the network's inputs, each as soon as its picture and its sound have come.

        Args:
            chunks: Triples of frames, their timestamps and sound: see [`LiveClip`].
            sampling_rate: Of the sound, in hertz.
            frames_per_second: Frames per second for the network.
            patching: `"trailing"`: sound up to the frame, so that nothing has to be awaited but, at the start, the first
                0.975 s; `"aligned"`: sound around the frame, which comes 0.4875 s later.

        Yields:
            Dictionaries as from `stream`.

        Raises:
            ValueError: For chunks that cannot be used, and consecutive patching, which drifts.
        """
        frames_per_second = check_rate("frames_per_second", frames_per_second)
        if patching not in ("trailing", "aligned"):
            raise ValueError(f'patching is {patching!r}: expected "trailing" or "aligned" for live input.')
        clip = LiveClip(chunks, sampling_rate, frames_per_second, self.feature_extractor.sampling_rate)
        for frame, patch in hear(clip.frames, clip.sound, self.feature_extractor, patching):
            yield self._process_frame(frame, patch)

    def _process_frame(self, frame: StreamedFrame, patch: torch.Tensor) -> dict[str, Any]:
        """Make the network's input of one frame and what is heard with it."""
        pixels = self.image_processor(frame.picture, input_data_format="channels_last", return_tensors="pt")
        return {
            "timestamp": frame.timestamp,
            "pixel_values": pixels["pixel_values"][0],
            "input_features": patch,
            "original_size": frame.picture.shape[:2],
            "mask_timestamps": frame.mask_timestamps,
        }

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
        if not isinstance(threshold, Real) or not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold!r}: expected a probability in [0, 1].")
        sizes = _check_target_sizes(target_sizes, logits)
        masks = _check_frame_mask(frame_mask, logits)
        return [
            torch.stack([_decide(frame, size, threshold) for frame in clip[mask]])
            for clip, size, mask in zip(logits, sizes, masks, strict=True)
        ]


def _split(videos: Any, **arguments: Any) -> list[dict[str, Any]]:
    """Deal the arguments of a call out to its clips, each a dictionary with `video` and the names of the arguments."""
    if is_clip(videos):
        return [{"video": videos, **arguments}]
    if not len(videos):
        raise ValueError("videos is an empty list: give at least one clip.")
    lists = {name: _spread(name, value, len(videos)) for name, value in arguments.items()}
    return [
        {"video": video, **{name: values[index] for name, values in lists.items()}}
        for index, video in enumerate(videos)
    ]


def _spread(name: str, value: Any, count: int) -> list[Any]:
    """Bring an argument to one entry per clip. None, and one sampling rate, stand for all clips."""
    if value is None or (name == "sampling_rate" and not isinstance(value, list | tuple)):
        return [value] * count
    if not isinstance(value, list | tuple) or len(value) != count:
        got = f"{len(value)} entries" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
        raise ValueError(f"videos is a list of {count} clips, so {name} must be a list of {count} entries; got {got}.")
    return list(value)


def _name(index: int, video: Any) -> str:
    """Name a clip in an error message."""
    return f"clip {index} ({video})" if isinstance(video, str | Path) else f"clip {index}"


def _collate(clips: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Pad clips to the longest and stack them, batch first."""
    sizes = {clip["pixel_values"].shape[1:] for clip in clips}
    if len(sizes) > 1:
        raise ValueError(
            f"clips have different sizes {sorted(sizes)} after processing, so they are no batch: give the image processor "
            "do_resize=True and a size with height and width, or pass one clip at a time."
        )
    lengths = np.array([len(clip["pixel_values"]) for clip in clips])
    frames = int(lengths.max())
    batch = {name: _stack([clip[name] for clip in clips], frames, 0) for name in ("pixel_values", "input_features")}
    batch["frame_mask"] = np.arange(frames) < lengths[:, None]
    if any("labels" in clip for clip in clips):
        height, width = clips[0]["pixel_values"].shape[-2:]
        no_labels, no_mask = np.empty((0, height, width), np.int64), np.empty(0, bool)
        batch["labels"] = _stack([clip.get("labels", no_labels) for clip in clips], frames, IGNORED_LABEL)
        batch["label_mask"] = _stack([clip.get("label_mask", no_mask) for clip in clips], frames, False)
    return batch


def _stack(arrays: list[np.ndarray], frames: int, fill: float) -> np.ndarray:
    """Fill arrays (frames_i, ...) up to a number of frames and stack them."""
    stacked = np.full((len(arrays), frames, *arrays[0].shape[1:]), fill, arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return stacked


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
    resized = functional.interpolate(logits[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    if len(resized) == 1:
        return (resized[0].sigmoid() > threshold).long()
    return resized.argmax(dim=0)
