"""The `audio-visual-segmentation` pipeline: from a video to masks of the sounding objects, frame by frame.

    import pcmanet.pipelines  # registers the task
    from transformers import pipeline

    segmenter = pipeline("audio-visual-segmentation", model="path/or/hub-id")
    for frame in segmenter("clip.mp4"):
        print(frame["timestamp"], [(segment["label"], segment["score"]) for segment in frame["segments"]])

The file reads top-down: the pipeline, its inputs, windows of frames, and reading ahead in threads. It imports only
transformers and the file next to it, so a pipeline saved with its code runs from a Hub repository.
"""

import ctypes
import inspect
import os
import queue
import sys
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain, islice
from numbers import Integral, Real
from types import GeneratorType
from typing import Any, BinaryIO, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import AutoModelForSemanticSegmentation
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import logging

from .segments import find_segments


logger = logging.get_logger(__name__)

TASK = "audio-visual-segmentation"

# The longest clip of the published tasks (AVSS): attention spans a clip, and memory grows with its length.
FRAMES_PER_WINDOW = 10
DEFAULT_OVERLAP = 1 / 5  # fraction of a window; docs/benchmarks/streaming.md shows what seams cost

WINDOWS_AHEAD = 2  # windows read before the network needs them, per clip
LIVE_FRAMES_AHEAD = 100  # frames of live input that can wait for a slow network
POLLING_SECONDS = 0.1  # how often a blocked thread checks whether it was closed

# Keys of a clip in a dictionary, such as a row of a dataset: its video or its frames, and what belongs to them.
VIDEO_KEYS = ("video", "frames")
CLIP_KEYS = ("audio", "sampling_rate", "timestamps")

# Names that other libraries use for arguments of the pipeline.
OTHER_NAMES = {
    **dict.fromkeys(("video", "videos", "images", "frames"), "inputs, the first argument"),
    **dict.fromkeys(("fps", "frame_rate", "num_frames"), "frames_per_second"),
}

VideoSource: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | np.ndarray | torch.Tensor | list[Any]
)
Item = TypeVar("Item")

HEARD_SCORE = 3.0  # standard deviations above other sounds from which a group of classes counts as heard
MAX_HEARD = 3  # groups per frame


class MaskLogits(NamedTuple):
    """The logits at one mask time.

    Attributes:
        timestamp: In seconds.
        logits: (num_labels, network height, network width).
        size: (height, width) of the video.
        heard: What the audio encoder recognizes, see [`AudioVisualSegmentationPipeline`]; None if it has no classes.
    """

    timestamp: float
    logits: torch.Tensor
    size: tuple[int, int]
    heard: list[dict[str, Any]] | None


@dataclass(frozen=True, eq=False)
class Window:
    """Frames that the network processes together.

    Attributes:
        frames: The dictionary that the processor's `stream` yields for each frame.
        new_frames: Number of frames, at the end, that were not in an earlier window.
        overlap: Number of frames over which the window fades in and out.
        is_last: Whether this is the last window of the clip.
    """

    frames: tuple[dict[str, Any], ...]
    new_frames: int
    overlap: int
    is_last: bool

    @property
    def rate(self) -> int:
        """Index of the rate of the frames, if the clip is read at several rates."""
        return self.frames[0].get("rate", 0)


class AudioVisualSegmentationPipeline(ChunkPipeline):
    """Segment the sounding objects in a video: one set of masks per network frame, by default one per second.

    The network processes a video of any length in overlapping windows, whose logits are blended. A thread decodes
    ahead. [`stream`] yields each frame as soon as it is complete and holds only a few frames in memory; a call
    collects them in a list. Several threads may use one pipeline.

    If the audio encoder scores groups of classes (`score_groups` in its configuration), an entry also has `heard`: up
    to three groups that score at least 3 standard deviations above other sounds, as `{"label", "score"}`, the highest
    first. They explain an empty result: the sound may not belong to any class that the model segments.

    With `dtype="auto"`, the default of `pipeline()`, the weights keep the data type in which they were saved, and
    their optimized copy computes in bfloat16 if that is faster and the checkpoint says that the masks are the same
    (see `choose_inference_dtype` of the model). `pipeline(..., dtype="float32")` computes in float32 everywhere.

    Create it with `pipeline("audio-visual-segmentation", model=...)`. The arguments of `__call__` can also be passed
    there, as defaults for every call.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    # Loaded by `pipeline()`, possibly as remote code: PCMANetForAudioVisualSegmentation and PCMANetProcessor.
    model: Any
    processor: Any

    _optimized_model: Any = None
    _optimizing = threading.Lock()  # of the class, because a pipeline with its own lock could not be copied or pickled

    def __init__(self, *args: Any, dtype: torch.dtype | str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._requested_dtype = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype

    def __call__(
        self,
        inputs: VideoSource | Mapping[str, Any] | Iterable[Any] | None = None,
        *,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]] | Iterator[list[dict[str, Any]]]:
        """Segment one video, or each video of a list, generator or dataset.

        Args:
            inputs: One video, required: a path, URL, bytes or binary file object; its frames as an array (frames,
                height, width, 3) or a list of PIL images or arrays; or a dictionary, such as a row of a dataset, with
                `video` or `frames` and optionally `audio`, `sampling_rate` and, for frames, `timestamps` in seconds;
                other keys are ignored. Columns of `datasets` are accepted as they are, decoded (by torchcodec) or not
                (`{"path", "bytes"}`). Several videos: a list or tuple is processed at once; a generator or other
                iterator, a dataset (torch or `datasets`) or its column is streamed.
            batch_size: Windows per batch, of one clip or several. Defaults to 1.
            num_workers: Clips read at the same time, each in a thread.
            threshold: Probability in [0, 1] that a pixel must exceed. Defaults to 0.5 in the binary task (AVSBench's
                rule) and to 0 in the semantic task, where the most probable class wins.
            minimum_area: Smallest segment as a fraction of the frame, in [0, 1]; smaller ones are dropped. Defaults to 0.
            frames_per_second: Network frames per second of video, or `"video"` for every frame. Defaults to 1.
            masks_per_second: Masks per second, or `"video"` for one per frame of the video. Logits are interpolated in
                time between network frames. Defaults to one mask per network frame.
            audio_alignment: How the audio is cut: `"consecutive"`, `"center"` or `"end"`. By default the processor
                chooses.
            audio: Audio of one silent video: a waveform (samples,) or (channels, samples), or a file.
            sampling_rate: Sampling rate of the waveform, in hertz (Hz).
            frames_per_window: Network frames per window. Defaults to 10. Longer videos are split into windows.
            window_overlap: Frames that a window shares with the previous one. Defaults to a fifth of a window.
            use_optimized_model: Whether to run the model's optimized copy (`for_inference()`: the same logits, faster)
                if it has one. Defaults to `True`. A model in training mode, compiled (`torch.compile`), quantized, on
                several devices, or with hooks, adapters or custom modules runs as it is. The copy is rebuilt if the
                model has changed since the last call.
            early_exit_threshold: Fraction of a frame's pixels, in [0, 1], that may be uncertain for the optimized model to
                stop at a coarse stage, which is faster. By default it runs all stages.
            progress_bar: Whether to show a progress bar over windows. Defaults to `False`.
            **kwargs: The arguments from `threshold` on.

        Returns:
            A list with one entry per mask time, in order: `{"timestamp": seconds, "segments": [{"score", "label",
            "mask"}, ...]}`. `mask` is a PIL image of mode "L", 0 or 255, at the size of the video; `score` is the mean
            probability inside the mask, in [0, 1]; segments are sorted by score, highest first. The binary task
            returns at most one segment, none in silence; the semantic task returns one per class present, never the
            background. For several inputs, one such list each.

        Raises:
            TypeError: For an unknown keyword.
            ValueError: If an argument is out of range, one audio is given for several videos, or the processor cannot
                use a video (no audio track, nothing to decode ...).
            FileNotFoundError: If a file does not exist.
        """
        if inputs is None:
            self._sanitize_parameters(**kwargs)  # names a keyword that was meant to be the video
            raise ValueError("Got no video. Pass it as the first argument: inputs.")
        is_frames = isinstance(inputs, list | tuple) and self.processor.is_clip(inputs)
        inputs = {"frames": inputs} if is_frames else _list_or_generator(inputs)
        if kwargs.get("audio") is not None and isinstance(inputs, list | GeneratorType):
            raise ValueError(
                "`audio` accepts the audio of one video, but several videos were passed. Pass a dictionary per video: "
                '{"video": ..., "audio": ..., "sampling_rate": ...}.'
            )
        batch_size, num_workers = self._batching(batch_size, num_workers)
        results: Any = super().__call__(inputs, batch_size=batch_size, num_workers=num_workers, **kwargs)
        return results

    def stream(
        self, video: VideoSource | Mapping[str, Any], *, batch_size: int | None = None, **kwargs: Any
    ) -> Generator[dict[str, Any], None, None]:
        """Segment one video of any length frame by frame, in constant memory.

        A thread decodes the video while the network computes. To stop early, close the generator or drop it. The
        thread then ends and the file is closed.

        Args:
            video: One video, as in a call.
            batch_size: Windows per batch. Larger batches use an accelerator better and need more memory.
            **kwargs: As in a call.

        Yields:
            The entries that a call returns as a list.

        Raises:
            ValueError: As in a call: immediately for an argument, during iteration for the video.
            FileNotFoundError: If a file does not exist.
        """
        preprocess, forward, postprocess = self._all_parameters(kwargs)
        return self._stream([video], self._batching(batch_size)[0], preprocess, forward, postprocess)

    def stream_rates(
        self,
        video: VideoSource | Mapping[str, Any],
        frames_per_second: Sequence[float | str],
        *,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> Generator[tuple[int, dict[str, Any]], None, None]:
        """Segment one video at several rates of network frames, in one pass over the file and in constant memory.

        Args:
            video: One video file, as in a call.
            frames_per_second: The rates, each in hertz (Hz) or `"video"`.
            batch_size: Windows per batch, which may have different rates.
            **kwargs: As in a call, except `masks_per_second`.

        Yields:
            The index of a rate and an entry that [`stream`] yields at that rate. The entries of each rate are in
            chronological order.

        Raises:
            ValueError: As in a call: immediately for an argument, during iteration for the video.
            FileNotFoundError: If a file does not exist.
        """
        for rate in frames_per_second:
            self.processor.check_settings(rate)
        preprocess, forward, postprocess = self._all_parameters(kwargs)
        if "masks_per_second" in preprocess:
            raise ValueError("`masks_per_second` applies to one rate of network frames. Remove it, or use `stream`.")
        preprocess["frames_per_second"] = tuple(frames_per_second)
        return self._stream_rates([video], self._batching(batch_size)[0], preprocess, forward, postprocess)

    def live(
        self,
        chunks: Iterable[tuple[Any, Any, Any]],
        *,
        sampling_rate: int,
        frames_per_second: float | None = None,
        frames_per_window: int | None = None,
        audio_alignment: str | None = None,
        drop_late: bool = False,
        **kwargs: Any,
    ) -> Generator[dict[str, Any], None, None]:
        """Segment live input: each network frame in a window with the frames before it.

        Network frame `k` is the frame on screen at `(k + 15/16) / frames_per_second` seconds. Its masks are computed
        as soon as the next frame and the required audio have arrived. Patches need audio up to that time (`"end"`) or
        up to 0.4875 s later (`"center"`), the first one 0.975 s. `audio_windows` of the processor need audio as far as
        they extend after the frame. The time that the network needs for one window adds to this latency.

        Args:
            chunks: Triples in chronological order: frames (uint8 array (frames, height, width, 3) or a list of PIL
                images; may be empty or None), their timestamps in seconds since the start of the audio, and the next
                piece of audio, (samples,) or (channels, samples) in [-1, 1], or None.
            sampling_rate: Sampling rate of the audio, in hertz (Hz).
            frames_per_second: Network frames per second. This and the next two arguments can also be passed to
                `pipeline()` as defaults. Defaults to 1.
            frames_per_window: Network frames per window, the newest last. Fewer are faster. Defaults to 10.
            audio_alignment: `"end"` or `"center"`. By default `"end"`, or windows as the processor places them.
            drop_late: Whether to read `chunks` in a thread and to skip all but the newest of the waiting network frames,
                for a network that is slower than the input. Otherwise every network frame gets its masks.
            **kwargs: `threshold`, `minimum_area`, `use_optimized_model` and `early_exit_threshold`, as in a call.

        Yields:
            Entries as returned by a call.

        Raises:
            ValueError: If an argument is out of range, or the chunks cannot be used.
        """
        if unused := self._sanitize_parameters(**kwargs)[0]:
            raise ValueError(f"Live input does not accept {', '.join(unused)}. Remove these arguments.")
        defaults, forward, postprocess = self._all_parameters(kwargs)
        forward.pop("progress_bar", None)
        length = _integer("frames_per_window", frames_per_window, 1)
        given = _given(frames_per_second=frames_per_second, audio_alignment=audio_alignment)
        reading = {name: defaults[name] for name in ("frames_per_second", "audio_alignment") if name in defaults}
        frames = self.processor.stream_live(chunks, sampling_rate=sampling_rate, **{**reading, **given})
        length = length or defaults.get("frames_per_window", FRAMES_PER_WINDOW)
        return self._live(frames, length, drop_late, forward, postprocess)

    def choose_dtype(self) -> tuple[torch.dtype, str]:
        """Choose the data type in which the network computes, according to the argument `dtype` of the pipeline.

        Returns:
            The data type, and the reason in a few words.
        """
        if self._runs_itself():
            return self.model.dtype, "the data type of the weights of a model that is not optimized"
        if self._requested_dtype == "auto":
            return self.model.choose_inference_dtype()
        return cast(torch.dtype, self._requested_dtype or self.model.dtype), "as requested"

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save the model, the processor and the code of this pipeline.

        `Pipeline.save_pretrained` omits the processor and writes its two components to the same
        `preprocessor_config.json`. This method keeps the components inside the processor's file.

        Args:
            save_directory: The folder to write; created if it does not exist.
            **kwargs: Passed to `save_pretrained` of the model and of the processor.
        """
        components = self.feature_extractor, self.image_processor
        self.feature_extractor = self.image_processor = None
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.feature_extractor, self.image_processor = components
            # Saving the model elsewhere must not refer to the code of this pipeline.
            vars(self.model.config).pop("custom_pipelines", None)
        self.processor.save_pretrained(save_directory, **kwargs)

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
        use_optimized_model: bool | None = None,
        early_exit_threshold: float | None = None,
        progress_bar: bool | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Assign the arguments to the three steps, and check them together with the defaults of the pipeline."""
        for name in unknown:
            raise TypeError(_unknown_keyword(name, list(inspect.signature(self._sanitize_parameters).parameters)))
        preprocess = _given(
            frames_per_second=frames_per_second,
            masks_per_second=masks_per_second,
            audio_alignment=audio_alignment,
            audio=audio,
            sampling_rate=sampling_rate,
            frames_per_window=_integer("frames_per_window", frames_per_window, 1),
            window_overlap=_integer("window_overlap", window_overlap, 0),
        )
        forward = _given(
            use_optimized_model=use_optimized_model,
            early_exit_threshold=_fraction("early_exit_threshold", early_exit_threshold),
            progress_bar=progress_bar,
        )
        postprocess = _given(
            threshold=_fraction("threshold", threshold), minimum_area=_fraction("minimum_area", minimum_area)
        )
        # Pipeline.__init__ calls this method before it sets the defaults.
        reading = {**getattr(self, "_preprocess_params", {}), **preprocess}
        length, overlap = reading.get("frames_per_window", FRAMES_PER_WINDOW), reading.get("window_overlap", 0)
        if overlap >= length:
            raise ValueError(f"`window_overlap` must be less than `frames_per_window` ({length}), got {overlap}.")
        settings = ("frames_per_second", "masks_per_second", "audio_alignment")
        self.processor.check_settings(**{name: reading[name] for name in settings if name in reading})
        return preprocess, forward, postprocess

    def _all_parameters(self, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Add the arguments of a call to the defaults of the pipeline, for each of the three steps."""
        preprocess, forward, postprocess = self._sanitize_parameters(**given)
        return (
            {**self._preprocess_params, **preprocess},
            {**self._forward_params, **forward},
            {**self._postprocess_params, **postprocess},
        )

    def _batching(self, batch_size: int | None, num_workers: int | None = None) -> tuple[int, int]:
        """Return windows per batch and clips read at once; the pipeline's defaults apply to what is not given."""
        windows = self._batch_size if batch_size is None else batch_size
        clips = self._num_workers if num_workers is None else num_workers
        return _integer("batch_size", windows, 1) or 1, _integer("num_workers", clips, 0) or 0

    def preprocess(
        self,
        inputs: VideoSource | Mapping[str, Any],
        frames_per_window: int = FRAMES_PER_WINDOW,
        window_overlap: int | None = None,
        **kwargs: Any,
    ) -> Generator[Window, None, None]:
        """Read one clip window by window, at several rates if `frames_per_second` is a tuple."""
        has_rates = isinstance(kwargs.get("frames_per_second"), tuple)
        read = self.processor.stream_rates if has_rates else self.processor.stream
        with closing(read(**_clip_arguments(inputs, **kwargs))) as frames:
            yield from _split_windows(frames, frames_per_window, window_overlap)

    def _forward(
        self,
        model_inputs: dict[str, torch.Tensor],
        use_optimized_model: bool = True,
        early_exit_threshold: float | None = None,
    ) -> dict[str, torch.Tensor]:
        """Run the model on a batch of windows."""
        network = self._network() if use_optimized_model else self.model
        if early_exit_threshold is None:
            return _kept_outputs(network(**model_inputs))
        if network is self.model:
            raise ValueError(
                "`early_exit_threshold` requires the optimized model, which is not in use. Remove the argument, or see "
                "`use_optimized_model`."
            )
        return _kept_outputs(network(**model_inputs, early_exit_threshold=early_exit_threshold))

    def postprocess(
        self,
        model_outputs: Iterable[tuple[Window, torch.Tensor]],
        threshold: float | None = None,
        minimum_area: float = 0.0,
    ) -> list[dict[str, Any]]:
        """Return the entries of one clip from its windows and their logits."""
        entries = list(self._entries(model_outputs, threshold, minimum_area))
        description = self.model.config.description
        if description is not None and not any(entry["segments"] for entry in entries):
            logger.warning_once(f"No sounding object was found in a clip. This model {description}.")
        return entries

    def get_iterator(
        self,
        inputs: Iterable[VideoSource | Mapping[str, Any]],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Generator[list[dict[str, Any]], None, None]:
        """Yield one result per clip. Unlike in transformers, logits are not kept, and clips are read in threads."""
        outputs = self._outputs(inputs, num_workers, batch_size, preprocess_params, forward_params)
        with closing(outputs):
            for first in outputs:
                yield self.postprocess(_next_clip(chain([first], outputs)), **postprocess_params)

    def _stream(
        self,
        inputs: list[VideoSource | Mapping[str, Any]],
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Generator[dict[str, Any], None, None]:
        """Yield the entries of one clip."""
        with closing(self._outputs(inputs, 1, batch_size, preprocess_params, forward_params)) as outputs:
            yield from self._entries(outputs, **postprocess_params)

    def _stream_rates(
        self,
        inputs: list[VideoSource | Mapping[str, Any]],
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Generator[tuple[int, dict[str, Any]], None, None]:
        """Yield the entries of one clip at several rates."""
        with closing(self._outputs(inputs, 1, batch_size, preprocess_params, forward_params)) as outputs:
            for rate, mask_logits in _mask_logits_of_rates(outputs):
                yield rate, self._entry(mask_logits, **postprocess_params)

    def _live(
        self,
        frames: Generator[dict[str, Any], None, None],
        frames_per_window: int,
        drop_late: bool,
        forward: dict[str, Any],
        postprocess: dict[str, Any],
    ) -> Generator[dict[str, Any], None, None]:
        """Run the model on the window that ends with each frame, or with the newest of the waiting frames."""
        self._check_model()
        held: deque[dict[str, Any]] = deque(maxlen=frames_per_window)
        with closing(_ReadAhead(frames, LIVE_FRAMES_AHEAD) if drop_late else frames) as source:
            take = source.take_waiting if isinstance(source, _ReadAhead) else lambda: list(islice(source, 1))
            while newest := take():
                held.extend(newest)
                logits = self._logits([tuple(held)], forward)[0, len(held) - 1]
                frame = held[-1]
                mask_logits = MaskLogits(frame["timestamp"], logits, frame["original_size"], frame.get("heard"))
                yield self._entry(mask_logits, **postprocess)

    def _outputs(
        self,
        inputs: Iterable[VideoSource | Mapping[str, Any]],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
    ) -> Generator[tuple[Window, torch.Tensor], None, None]:
        """Run the model on the windows of all clips; a batch can hold windows of several clips."""
        self._check_model()
        forward_params = dict(forward_params)
        show = forward_params.pop("progress_bar", False)
        readers = (self.preprocess(clip, **preprocess_params) for clip in inputs)
        progress = logging.tqdm(desc="Segmenting", unit="window", disable=not show)
        with progress as bar, closing(_read_ahead(readers, max(1, num_workers), WINDOWS_AHEAD)) as windows:
            while group := list(islice(windows, batch_size)):
                logits = self._logits([window.frames for window in group], forward_params)
                bar.update(len(group))
                for window, window_logits in zip(group, logits, strict=True):
                    yield window, window_logits[: len(window.frames)]

    def _logits(self, windows: Sequence[Sequence[dict[str, Any]]], forward_params: dict[str, Any]) -> torch.Tensor:
        """Return the logits (windows, frames, num_labels, height, width) of a batch of windows; note what is heard."""
        outputs: Any = self.forward(collate_windows(windows, self.model.dtype), **forward_params)
        if groups := getattr(self.model.config.audio_config, "score_groups", None):
            # The last window of audio is the longest, so most is recognized in it.
            scores = outputs["audio_embeds"].float().cpu()[..., -len(groups) :]
            for frames, window_scores in zip(windows, scores, strict=True):
                for frame, frame_scores in zip(frames, window_scores, strict=False):
                    frame["heard"] = _find_heard(list(groups), frame_scores)
        # Windows are blended, which would be coarse in bfloat16.
        return outputs["logits"].to(self.model.dtype)

    def _network(self) -> Callable[..., Any]:
        """Return the optimized model, rebuilt if the model has changed; the model itself if it cannot be optimized."""
        if self._runs_itself():
            return self.model
        with self._optimizing:
            optimized = self._optimized_model
            if not self._is_current(optimized, compare_values=False):
                optimized = self._optimized_model = self.model.for_inference(self.choose_dtype()[0])
            return optimized  # not the attribute, which another thread may set to None at any time

    def _runs_itself(self) -> bool:
        """Return whether the model itself runs, because it cannot be optimized."""
        model = self.model
        spread = getattr(model, "hf_device_map", None) is not None or getattr(model, "is_quantized", False)
        # `torch.compile(model)` wraps the model, and `model.compile()` replaces its call.
        is_compiled = hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None
        if model.training or spread or is_compiled or not hasattr(model, "for_inference"):
            return True
        if obstacle := self.model.find_optimization_obstacle():
            logger.warning_once(
                f"The pipeline runs the model itself and not its optimized copy, because it has {obstacle}."
            )
        return obstacle is not None

    def _is_current(self, optimized: Any, *, compare_values: bool) -> bool:
        """Return whether an optimized model is a copy of the model as it is now."""
        network = getattr(self.model, "model", None)
        return None not in (optimized, network) and optimized.is_copy_of(network, compare_values=compare_values)

    def _check_model(self) -> None:
        """Warn about training mode, and drop an optimized model with other weights.

        This runs once per call, because before each batch it would take too long.
        """
        if self.model.training:
            logger.warning_once(
                "The pipeline runs a model in training mode, whose BatchNorms depend on the batch and are changed by it. Call "
                "`model.eval()` first."
            )
        optimized = self._optimized_model
        if optimized is not None and not self._is_current(optimized, compare_values=True):
            self._optimized_model = None

    def _entries(
        self,
        outputs: Iterable[tuple[Window, torch.Tensor]],
        threshold: float | None = None,
        minimum_area: float = 0.0,
    ) -> Iterator[dict[str, Any]]:
        """Yield the entries of one clip, so that only one is held at the size of the video."""
        for mask_logits in iterate_mask_logits(outputs):
            yield self._entry(mask_logits, threshold, minimum_area)

    def _entry(
        self, mask_logits: MaskLogits, threshold: float | None = None, minimum_area: float = 0.0
    ) -> dict[str, Any]:
        """Return the entry of one mask time."""
        labels = self.model.config.id2label
        segments = find_segments(mask_logits.logits.float(), mask_logits.size, labels, threshold, minimum_area)
        heard = {} if mask_logits.heard is None else {"heard": mask_logits.heard}
        return {"timestamp": mask_logits.timestamp, "segments": segments, **heard}


def _kept_outputs(outputs: Any) -> dict[str, torch.Tensor]:
    """Return the outputs of the network that the pipeline uses."""
    audio_embeds = getattr(outputs, "audio_embeds", None)
    return {"logits": outputs.logits} | ({} if audio_embeds is None else {"audio_embeds": audio_embeds})


def _find_heard(names: Sequence[str], scores: torch.Tensor) -> list[dict[str, Any]]:
    """Return the groups of classes with a high score (groups,), the highest first."""
    best = sorted(zip(names, scores.tolist(), strict=True), key=lambda item: -item[1])[:MAX_HEARD]
    return [{"label": name, "score": round(score, 2)} for name, score in best if score >= HEARD_SCORE]


PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=AudioVisualSegmentationPipeline,
    pt_model=AutoModelForSemanticSegmentation,
    type="multimodal",
)


# Inputs.


def _unknown_keyword(name: str, known: list[str]) -> str:
    """Return the message for a keyword that does not exist."""
    meant = OTHER_NAMES.get(name) or next(iter(get_close_matches(name, known, n=1)), None)
    hint = f"Did you mean {meant}?" if meant else f"Expected one of {', '.join(known[:-1])}."
    return f"Got an unknown keyword {name}. {hint}"


def _list_or_generator(inputs: Any) -> Any:
    """Convert several inputs to a list, or to a generator if they are streamed; return one input unchanged."""
    if isinstance(inputs, list | tuple) or (isinstance(inputs, np.ndarray | torch.Tensor) and inputs.ndim == 5):
        # transformers reads the first item of a list, so an empty one becomes an empty generator.
        return list(inputs) or (each for each in ())
    if isinstance(inputs, Dataset) and isinstance(inputs, Sized):
        # A torch dataset with a length need not raise IndexError at its end.
        return (inputs[index] for index in range(len(inputs)))
    # A file object iterates over lines and an array over frames, but each is one input.
    one = str | bytes | bytearray | memoryview | Mapping | np.ndarray | torch.Tensor
    is_one = isinstance(inputs, one) or hasattr(inputs, "read") or hasattr(inputs, "get_frame_at")
    is_several = isinstance(inputs, Iterable | Dataset) and not is_one
    return (each for each in inputs) if is_several else inputs


def _clip_arguments(
    inputs: VideoSource | Mapping[str, Any],
    audio: VideoSource | Mapping[str, Any] | None = None,
    sampling_rate: int | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Convert one input of any kind to the arguments of the processor's `stream`."""
    clip = {"audio": audio, "sampling_rate": sampling_rate}
    if not isinstance(inputs, Mapping):
        return {**kwargs, **clip, "video": inputs}
    video = next((inputs[key] for key in VIDEO_KEYS if inputs.get(key) is not None), None)
    if video is None and not {"path", "bytes"} & set(inputs):
        raise ValueError(
            f'Expected a dictionary with "video" or "frames" and optionally {CLIP_KEYS}, or with "path" or "bytes", got the '
            f"keys {sorted(inputs)}."
        )
    given = _given(**{key: inputs.get(key) for key in CLIP_KEYS})
    return {**kwargs, **clip, **given, "video": inputs if video is None else video}


def _given(**arguments: Any) -> dict[str, Any]:
    """Return the arguments that were passed, so that the others do not override the pipeline's defaults."""
    return {name: value for name, value in arguments.items() if value is not None}


def _fraction(name: str, value: Any) -> float | None:
    """Return a number in [0, 1] as float, None as None; raise ValueError for anything else."""
    if value is None:
        return None
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) <= 1:
        raise ValueError(f"`{name}` must be a number between 0 and 1, got {value!r}.")
    return float(value)


def _integer(name: str, value: Any, minimum: int) -> int | None:
    """Return an integer that is not less than `minimum` as int, None as None; raise ValueError for anything else."""
    if value is None:
        return None
    if not isinstance(value, Integral) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"`{name}` must be an integer of at least {minimum}, got {value!r}.")
    return int(value)


# Windows of frames.


def _split_windows(frames: Iterable[dict[str, Any]], length: int, overlap: int | None = None) -> Iterator[Window]:
    """Split a clip into windows of `length` frames that share `overlap` frames with the previous window.

    The last window is as long as the others and shares more, so that no frame is processed with too few others. A clip
    that is shorter than a window is one window. Frames of several rates are split independently.

    Args:
        frames: Frames in chronological order.
        length: Frames per window.
        overlap: Frames that a window shares with the previous one, less than `length`; by default a fifth of a window.
    """
    overlap = int(length * DEFAULT_OVERLAP) if overlap is None else overlap
    held_frames: defaultdict[int, deque[dict[str, Any]]] = defaultdict(lambda: deque(maxlen=length))
    new_frames: Counter[int] = Counter()
    for frame in frames:
        rate = frame.get("rate", 0)
        held, new = held_frames[rate], new_frames[rate]
        # A window is yielded when the frame after it arrives, because the last one must be marked as such.
        if new == length or (new == length - overlap and len(held) == length):
            yield Window(tuple(held), new, overlap, is_last=False)
            new_frames[rate] = 0
        held.append(frame)
        new_frames[rate] += 1
    for rate, held in held_frames.items():
        yield Window(tuple(held), new_frames[rate], overlap, is_last=True)


def collate_windows(windows: Sequence[Sequence[dict[str, Any]]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Collate windows into the model's inputs.

    Args:
        windows: The frames of each window; shorter windows are padded with zeros.
        dtype: Data type of images and audio features.

    Returns:
        `pixel_values` (windows, frames, 3, height, width), `input_features` (windows, frames, ...) and, if windows are
        padded, `frame_mask` (windows, frames), False for padding.
    """
    batch = {
        name: pad_sequence([torch.stack([frame[name] for frame in frames]) for frames in windows], batch_first=True)
        for name in ("pixel_values", "input_features")
    }
    batch = {name: tensor.to(dtype) for name, tensor in batch.items()}
    # On the CPU like the frames, regardless of the default device.
    lengths = torch.tensor([len(frames) for frames in windows], device="cpu")
    mask = torch.arange(int(lengths.max()), device="cpu") < lengths[:, None]
    return batch if mask.all() else {**batch, "frame_mask": mask}


def _next_clip(outputs: Iterable[tuple[Window, torch.Tensor]]) -> Iterator[tuple[Window, torch.Tensor]]:
    """Yield the windows of the next clip, up to its last one, from those of several consecutive clips."""
    for window, logits in outputs:
        yield window, logits
        if window.is_last:
            return


def iterate_mask_logits(outputs: Iterable[tuple[Window, torch.Tensor]]) -> Iterator[MaskLogits]:
    """Compute the logits at each mask time of one clip.

    Windows are blended where they share frames. Between two network frames, logits are interpolated linearly in time;
    before the first frame and after the last frame, they are those of that frame.

    Args:
        outputs: The windows in chronological order, each with its logits (frames, num_labels, height, width).

    Returns:
        An iterator over timestamp in seconds, logits (num_labels, height, width), and (height, width) of the video, in
        chronological order.
    """
    return (mask_logits for _, mask_logits in _mask_logits_of_rates(outputs))


def _mask_logits_of_rates(outputs: Iterable[tuple[Window, torch.Tensor]]) -> Iterator[tuple[int, MaskLogits]]:
    """Yield what [`iterate_mask_logits`] does for each rate of a clip, with the index of the rate."""
    before: dict[int, tuple[float, torch.Tensor]] = {}
    for frame, logits in _blend_windows(outputs):
        rate, after = frame.get("rate", 0), (frame["timestamp"], logits)
        for timestamp in frame["mask_timestamps"]:
            interpolated = _interpolate(before.get(rate), after, timestamp)
            yield rate, MaskLogits(timestamp, interpolated, frame["original_size"], frame.get("heard"))
        before[rate] = after


def _blend_windows(
    outputs: Iterable[tuple[Window, torch.Tensor]],
) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
    """Yield each frame with the weighted mean of its logits, as soon as no later window contains it."""
    # For each rate: frame, weighted sum of logits, total weight.
    waiting_frames: defaultdict[int, deque[tuple[dict[str, Any], torch.Tensor, float]]] = defaultdict(deque)
    for window, logits in outputs:
        _return_freed_memory()
        waiting = waiting_frames[window.rate]
        shared = len(window.frames) - window.new_frames
        while len(waiting) > shared:
            yield _weighted_mean(*waiting.popleft())
        weights = _fading_weights(len(logits), window.overlap)
        for index, (frame, weight) in enumerate(zip(window.frames, weights, strict=True)):
            weighted = logits[index] * weight
            if index < shared:
                _, total, total_weight = waiting[index]
                waiting[index] = frame, total + weighted, total_weight + weight
            else:
                waiting.append((frame, weighted, weight))
        if window.is_last:
            while waiting:
                yield _weighted_mean(*waiting.popleft())


def _fading_weights(length: int, overlap: int) -> list[float]:
    """Return the weight of each frame of a window: 1 in the middle, falling linearly over `overlap` frames at each end."""
    return [min(1.0, (index + 1) / (overlap + 1), (length - index) / (overlap + 1)) for index in range(length)]


def _weighted_mean(
    frame: dict[str, Any], total: torch.Tensor, total_weight: float
) -> tuple[dict[str, Any], torch.Tensor]:
    return frame, total / total_weight


def _interpolate(
    before: tuple[float, torch.Tensor] | None, after: tuple[float, torch.Tensor], timestamp: float
) -> torch.Tensor:
    """Return the logits at a time between two frames, each given as (timestamp, logits)."""
    if before is None or timestamp >= after[0] or before[0] >= after[0]:
        return after[1]
    fraction = max(0.0, (timestamp - before[0]) / (after[0] - before[0]))
    return torch.lerp(before[1], after[1], fraction)


# Only glibc has malloc_trim.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def _return_freed_memory() -> None:
    """Return freed memory to the operating system, if the C library can (glibc).

    glibc keeps freed memory between blocks that are in use. Two threads that allocate and free tensors of many sizes
    leave more of it with every window: tens of MiB on an hour of video, which no Python object holds.
    """
    if _TRIM is not None:
        _TRIM(0)


# Reading ahead in threads.

_END = object()


class _ReadAhead(Iterator[Item]):
    """Run a generator in a thread, a few items ahead of the consumer.

    An error in the generator is raised in place of its item. [`close`] ends the thread and the generator at any point,
    and waits for the thread.

    Args:
        items: The generator.
        capacity: Largest number of waiting items.
    """

    def __init__(self, items: Generator[Item, None, None], capacity: int) -> None:
        self._items = items
        self._waiting: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(capacity)
        self._end: tuple[Any, BaseException | None] | None = None
        self._is_open = True
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def __next__(self) -> Item:
        """Return the next item."""
        if not self._is_open:
            raise StopIteration
        item, error = self._end or self._waiting.get()
        if item is not _END:
            return item
        self.close()
        if error is not None:
            raise error
        raise StopIteration

    def take_waiting(self) -> list[Item]:
        """Return the next item and all others that are waiting; an empty list at the end."""
        items = list(islice(self, 1))
        while items and not self._waiting.empty():
            entry = self._waiting.get()
            if entry[0] is _END:
                self._end = entry  # for the next call
                break
            items.append(entry[0])
        return items

    def close(self) -> None:
        """End the thread and the generator; waiting items are lost."""
        self._is_open = False
        self._thread.join()

    def _run(self) -> None:
        """Fill the queue. Runs in the thread."""
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
        """Wait for space in the queue and put an entry; return False if the iterator was closed."""
        while self._is_open:
            try:
                self._waiting.put(entry, timeout=POLLING_SECONDS)
            except queue.Full:
                continue
            return True
        return False


def _read_ahead(
    clips: Iterable[Generator[Item, None, None]], at_once: int, capacity: int
) -> Generator[Item, None, None]:
    """Yield the items of several generators one after the other, while the next ones already run in threads.

    Args:
        clips: The generators.
        at_once: Number of generators that run at the same time.
        capacity: Largest number of waiting items per generator.
    """
    clips, running = iter(clips), deque()
    try:
        while True:
            running.extend(_ReadAhead(clip, capacity) for clip in islice(clips, at_once - len(running)))
            if not running:
                return
            yield from running[0]
            running.popleft()
    finally:
        for reader in running:
            reader.close()
