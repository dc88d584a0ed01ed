"""The `audio-visual-segmentation` pipeline: from a video to the masks of what sounds in it, frame by frame.

    import pcmanet.pipelines  # registers the task
    from transformers import pipeline

    segmenter = pipeline("audio-visual-segmentation", model="path/or/hub-id")
    for frame in segmenter("clip.mp4"):
        print(frame["timestamp"], [(segment["label"], segment["score"]) for segment in frame["segments"]])

The model and the processor arrive as objects, so this file knows nobody but transformers: saved with a pipeline, it
works alone in a Hub repository.
"""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import GeneratorType
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import AutoModelForUniversalSegmentation, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging


VideoSource: TypeAlias = str | Path | bytes | BinaryIO | np.ndarray | torch.Tensor
INPUT_KEYS = ("video", "audio", "sampling_rate", "timestamps")

# Ten frames are the longest clip of the published tasks (AVSS): attention spans a clip, and memory grows with it.
FRAMES_PER_WINDOW = 10

# Classes brought to the video's size at a time: all 71 of a 1080p frame at once would be 590 MB.
CLASSES_AT_ONCE = 8


class AudioVisualSegmentationPipeline(Pipeline):
    """Segments the objects that sound in a video, one set of masks per network frame (by default one per second).

    Made by `pipeline("audio-visual-segmentation", model=...)`; the arguments of `__call__` may also be given there,
    as defaults for every call.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __call__(
        self, inputs: VideoSource | Mapping[str, Any] | list[Any], **kwargs: Any
    ) -> list[dict[str, Any]] | Iterator[list[dict[str, Any]]]:
        """Segments one video, or every video of a list, generator or data set.

        Args:
            inputs: A path, http(s) URL, bytes or binary file object of a video, or its frames as an array of shape
                (frames, height, width, 3); or a dictionary of `video` with, where the video has no sound of its own,
                `audio` and `sampling_rate`, and for frames optionally `timestamps` in seconds. `{"path", "bytes"}`
                of a `datasets` column is understood too. A list, generator or `torch.utils.data.Dataset` of these
                gives one result per input; generators and data sets stream.
            **kwargs: `threshold`: the probability that a pixel has to exceed, in [0, 1]. By default 0.5 in the binary
                task (AVSBench's rule) and 0 in the semantic one, where the most probable class takes the pixel.
                `minimum_area`: segments smaller than this share of the picture are left out; 0 by default.
                `frames_per_second`: network frames per second of video; 1 by default.
                `patching`: how the sound is cut, `"consecutive"` or `"aligned"`; by default the processor chooses.
                `audio`, `sampling_rate`: the sound of one silent video, as a waveform of shape (samples,) or
                (channels, samples) with its rate in hertz (Hz), or as a file.
                `frames_per_window`: longer videos are segmented in equal windows of at most so many frames; 10 by
                default.
                `progress_bar`: shows the windows as they pass; off by default.
                `batch_size`, `num_workers`: clips in one batch (their lengths may differ) and loading processes.

        Returns:
            A list with one entry per network frame, in order of time: `{"timestamp": seconds, "segments": [{"score",
            "label", "mask"}, ...]}`. `mask` is a PIL image of mode "L", 0 or 255, at the video's own size; `score` is
            the mean probability inside it, in [0, 1]; segments are sorted by score, highest first. The binary task
            gives at most one segment, none where nothing sounds; the semantic one gives one per class present, never
            the background. For several inputs: one such list each.

        Raises:
            ValueError: For an argument out of its range, one sound for several videos, or a video that the processor
                refuses (no sound, nothing to decode ...).
            FileNotFoundError: If there is no such file.
        """
        if kwargs.get("audio") is not None and isinstance(inputs, (list, GeneratorType, Dataset)):
            raise ValueError(
                "audio= belongs to one video, but several inputs came. Give each its own sound: "
                '{"video": ..., "audio": ..., "sampling_rate": ...}.'
            )
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self,
        *,
        threshold: float | None = None,
        minimum_area: float | None = None,
        frames_per_second: float | None = None,
        patching: str | None = None,
        audio: VideoSource | Mapping[str, Any] | None = None,
        sampling_rate: int | None = None,
        frames_per_window: int | None = None,
        progress_bar: bool | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Sorts the arguments to the three steps, checks the ranges that nobody else checks."""
        for name, share in (("threshold", threshold), ("minimum_area", minimum_area)):
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, got {share}.")
        if frames_per_window is not None and frames_per_window < 1:
            raise ValueError(f"frames_per_window is a number of frames, 1 at least, got {frames_per_window}.")

        preprocess = {
            "frames_per_second": frames_per_second,
            "patching": patching,
            "audio": audio,
            "sampling_rate": sampling_rate,
        }
        forward = {"frames_per_window": frames_per_window, "progress_bar": progress_bar}
        postprocess = {"threshold": threshold, "minimum_area": minimum_area}
        # What was not given must not hide the defaults below, nor those that the pipeline was made with.
        given = [
            {name: value for name, value in step.items() if value is not None}
            for step in (preprocess, forward, postprocess)
        ]
        return given[0], given[1], given[2]

    def preprocess(
        self,
        inputs: VideoSource | Mapping[str, Any],
        frames_per_second: float = 1.0,
        patching: str | None = None,
        audio: VideoSource | Mapping[str, Any] | None = None,
        sampling_rate: int | None = None,
    ) -> dict[str, Any]:
        """Reads one clip into a batch of one (names and shapes: the batch contract of the processor).

        The tensors go by names of our own up to the model, because transformers joins tensors called `pixel_values`
        without padding, while under any other name it pads the frames of shorter clips with zeros: just the batch
        that the model takes.
        """
        clip = _clip_arguments(inputs, audio, sampling_rate)
        batch = self.processor(
            **clip,
            frames_per_second=frames_per_second,
            patching=patching,
            return_tensors="pt",
            return_metadata=True,
        )
        return {
            "frames": batch["pixel_values"].to(self.dtype),
            "sound": batch["input_features"].to(self.dtype),
            "frame_mask": batch["frame_mask"],
            "timestamps": [float(seconds) for seconds in batch["timestamps"][0]],
            "original_size": [int(length) for length in batch["original_sizes"][0]],
        }

    def _forward(
        self,
        model_inputs: dict[str, Any],
        frames_per_window: int = FRAMES_PER_WINDOW,
        progress_bar: bool = False,
    ) -> dict[str, Any]:
        """Runs the model window by window, as many windows at a time as there are clips in the batch."""
        frames, sound, frame_mask = (model_inputs.pop(name) for name in ("frames", "sound", "frame_mask"))
        windows = [
            (clip, window)
            for clip, length in enumerate(frame_mask.sum(dim=1).tolist())
            for window in _equal_windows(length, frames_per_window)
        ]
        groups = [windows[first : first + len(frames)] for first in range(0, len(windows), len(frames))]

        pieces: list[list[torch.Tensor]] = [[] for _ in frames]
        for group in logging.tqdm(groups, desc="Segmenting", unit="window", disable=not progress_bar):
            outputs = self.model(
                pixel_values=_gather(frames, group),
                input_features=_gather(sound, group),
                frame_mask=_gather(frame_mask, group),
            )
            # Kept on the CPU: a long video's logits would fill an accelerator's memory.
            for (clip, window), logits in zip(group, outputs.logits.cpu(), strict=True):
                pieces[clip].append(logits[: window.stop - window.start])

        logits = pad_sequence([torch.cat(clip_pieces) for clip_pieces in pieces], batch_first=True)
        return {"logits": logits, **model_inputs}

    def postprocess(
        self, model_outputs: dict[str, Any], threshold: float | None = None, minimum_area: float = 0.0
    ) -> list[dict[str, Any]]:
        """Makes the segments of one clip, frame by frame, so that only one frame is ever held at the video's size."""
        return [
            {"timestamp": timestamp, "segments": self._segments(logits.float(), size, threshold, minimum_area)}
            for size in [tuple(model_outputs["original_size"])]
            for timestamp, logits in zip(model_outputs["timestamps"], model_outputs["logits"][0], strict=False)
        ]

    def _segments(
        self, logits: torch.Tensor, size: tuple[int, int], threshold: float | None, minimum_area: float
    ) -> list[dict[str, Any]]:
        """Makes the segments of one frame from its logits of shape (num_labels, network height, network width)."""
        is_binary = len(logits) == 1
        class_ids, probability = _most_probable_class(logits, size)
        inside = probability > (threshold if threshold is not None else 0.5 * is_binary)
        if not is_binary:
            inside &= class_ids != 0

        segments = []
        for class_id in class_ids[inside].unique().tolist():
            mask = inside & (class_ids == class_id)
            if mask.float().mean() >= minimum_area:
                segments.append(
                    {
                        "score": probability[mask].mean().item(),
                        "label": self.model.config.id2label[class_id],
                        "mask": Image.fromarray(mask.to(torch.uint8).mul(255).numpy()),
                    }
                )
        return sorted(segments, key=lambda segment: -segment["score"])

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


def _clip_arguments(
    inputs: VideoSource | Mapping[str, Any],
    audio: VideoSource | Mapping[str, Any] | None,
    sampling_rate: int | None,
) -> dict[str, Any]:
    """Brings every form of input to the processor's arguments for a list of one clip."""
    if not isinstance(inputs, Mapping) or "path" in inputs or "bytes" in inputs:
        inputs = {"video": inputs}
    unknown = sorted(set(inputs) - set(INPUT_KEYS))
    if unknown or "video" not in inputs:
        raise ValueError(f'A dictionary of one video has "video" and may have {INPUT_KEYS[1:]}, got {sorted(inputs)}.')

    clip = {"audio": audio, "sampling_rate": sampling_rate, **inputs}
    if isinstance(clip["audio"], Mapping) and "array" in clip["audio"]:
        clip |= {"audio": clip["audio"]["array"], "sampling_rate": clip["audio"]["sampling_rate"]}
    timestamps = clip.get("timestamps")
    return {
        "videos": [_file_of(clip["video"])],
        "audio": None if clip["audio"] is None else [_file_of(clip["audio"])],
        "sampling_rate": clip["sampling_rate"],
        "timestamps": None if timestamps is None else [timestamps],
    }


def _file_of(source: VideoSource | Mapping[str, Any]) -> VideoSource:
    """Takes the bytes, or else the path, out of a `datasets` column's `{"path", "bytes"}`."""
    if not isinstance(source, Mapping):
        return source
    return source["bytes"] if source.get("bytes") is not None else source["path"]


def _equal_windows(length: int, longest: int) -> list[slice]:
    """Cuts `length` frames into windows of at most `longest`, as equal as can be: no window of one frame at the end."""
    count = math.ceil(length / longest)
    edges = [round(index * length / count) for index in range(count + 1)]
    return [slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


def _gather(clips: torch.Tensor, group: list[tuple[int, slice]]) -> torch.Tensor:
    """Joins windows of `clips` (batch, frames, ...) into (windows, frames, ...), shorter ones padded with zeros."""
    return pad_sequence([clips[clip, window] for clip, window in group], batch_first=True)


def _most_probable_class(logits: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds each pixel's most probable class and its probability at the video's size, a few classes at a time.

    Args:
        logits: (num_labels, network height, network width); one label means sigmoid, several mean softmax.
        size: (height, width) of the video.

    Returns:
        Class ids, int64 of shape (height, width), the first of equals; and probabilities in [0, 1], same shape.
    """
    winner = torch.zeros(size, dtype=torch.int64)
    best = torch.full(size, -math.inf)
    total = torch.full(size, -math.inf)
    for first in range(0, len(logits), CLASSES_AT_ONCE):
        some = interpolate(logits[None, first : first + CLASSES_AT_ONCE], size, mode="bilinear", align_corners=False)[
            0
        ]
        highest, index = some.max(dim=0)
        winner = torch.where(highest > best, first + index, winner)
        best = torch.maximum(best, highest)
        total = torch.logaddexp(total, some.logsumexp(dim=0))
    return winner, best.sigmoid() if len(logits) == 1 else (best - total).exp()


PIPELINE_REGISTRY.register_pipeline(
    "audio-visual-segmentation",
    pipeline_class=AudioVisualSegmentationPipeline,
    pt_model=AutoModelForUniversalSegmentation,
    type="multimodal",
)
