"""The analysis of one video on the page of app.py: check it, run the network once, draw at each change of the threshold.

One temporary folder per session holds everything: a copy of the video, the logits of the network, and the last overlay
and masks. Little is kept in memory, so the page can serve many users.
"""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from modeling_pcmanet.media_pcmanet import EVERY_FRAME, MediaError, MediaReader, iterate_frames
from pcmanet.examples.uploads import Limits, RefusedVideoError, check_decoded, probe_video, read_audio_within
from pcmanet.pipelines import AudioVisualSegmentationPipeline
from pcmanet.pipelines.audio_visual_segmentation import MaskLogits, Window, iterate_mask_logits
from pcmanet.pipelines.colors import class_colors
from pcmanet.pipelines.overlay import write_masks, write_overlay_video
from pcmanet.pipelines.segments import find_segments
from pcmanet.pipelines.stage_maps import StageMap, draw_stage_maps
from pcmanet.pipelines.timeline import Span, loudness, sounding_spans


MINIMUM_AREA = 0.001  # smaller segments, as a fraction of the frame, are noise
LOUDNESS_PARTS = 400
# Smallest and largest height of the overlay: fast to encode, with readable labels. Masks keep the size of the video.
OVERLAY_HEIGHTS = (480, 720)
STAGE_MAP_SIDE = 320

# Called with the fraction done, in [0, 1], and the name of the step.
ProgressCallback: TypeAlias = Callable[[float, str], None]


class LogitsPipeline(AudioVisualSegmentationPipeline):
    """A pipeline that returns logits, from which `find_segments` makes masks for any threshold."""

    def postprocess(self, model_outputs: Iterable[tuple[Window, torch.Tensor]], **_: float | None) -> list[MaskLogits]:
        """Return the logits at each mask time."""
        return list(iterate_mask_logits(model_outputs))


@dataclass(frozen=True)
class Drawing:
    """Results for one threshold.

    Attributes:
        overlay: The video with its masks and its audio, mp4.
        archive: A zip file with the masks as PNG files and `segments.json`.
        spans: The spans of time in which each label sounds.
        busiest: Index of the network frame with the most segments, the first one in a tie.
    """

    overlay: Path
    archive: Path
    spans: dict[str, list[Span]]
    busiest: int


class Analysis:
    """One video of one session, and its logits.

    Args:
        segmenter: The pipeline.
        upload: The video file, which is copied.
        name: The user's name for the file.
        limits: The limits of the page.
        folder: Folder in which the analysis creates its own temporary folder.

    Raises:
        RefusedVideoError: If the video exceeds a limit or cannot be used. The message is for the user.

    Attributes:
        name: As given.
        video: The copy of the file.
        info: Duration, number of frames and size of the video.
        loudness: (parts,) over the duration of the video, in [0, 1].
        notes: What was repaired or ignored to read the file.
        rate: Network frames per second of the last run.
        timestamps: Timestamps of the network frames, in seconds.
    """

    def __init__(self, segmenter: LogitsPipeline, upload: str | Path, name: str, limits: Limits, folder: Path) -> None:
        self._segmenter = segmenter
        self._limits = limits
        self._folder = tempfile.TemporaryDirectory(prefix="session_", dir=folder)
        self.name = name
        self.video = Path(self._folder.name) / "video"
        try:
            shutil.copyfile(upload, self.video)
            self.info = probe_video(self.video, name, limits)
            waveform, sampling_rate = self._decode()
        except (OSError, ValueError) as error:
            self.close()
            raise self._refusal(error) from error
        self.loudness = loudness(waveform, sampling_rate, self.info.seconds, LOUDNESS_PARTS)
        self.rate = 0.0
        self.timestamps: list[float] = []

    @property
    def colors(self) -> dict[str, tuple[int, int, int]]:
        """The color of each label of the model."""
        return class_colors(self._segmenter.model.config.id2label)

    def run(self, rate: float) -> None:
        """Run the network on `rate` frames per second of video and keep its logits.

        Raises:
            RefusedVideoError: If the results exceed the memory limit, or the video cannot be decoded.
        """
        network_size = self._segmenter.processor.image_processor.size
        logits_per_frame = self._segmenter.model.config.num_labels * network_size["height"] * network_size["width"]
        self._limits.check_memory(self.info, rate, logits_per_frame)
        try:
            outputs = self._segmenter(str(self.video), frames_per_second=rate, progress_bar=True)
        except (OSError, ValueError) as error:
            raise self._refusal(error) from error
        self.rate = rate
        self.timestamps = [output.timestamp for output in outputs]
        self._size = outputs[0].size
        save_file({"logits": torch.stack([output.logits for output in outputs])}, self._logits_file)

    def segment(self, threshold: float) -> list[dict[str, Any]]:
        """Return the pipeline's result for this video and a threshold, computed from the stored logits."""
        names = self._segmenter.model.config.id2label
        with safe_open(self._logits_file, "pt") as file:
            logits = file.get_slice("logits")
            return [
                {
                    "timestamp": timestamp,
                    "segments": find_segments(logits[number].float(), self._size, names, threshold, MINIMUM_AREA),
                }
                for number, timestamp in enumerate(self.timestamps)
            ]

    def draw(self, threshold: float, progress: ProgressCallback) -> Drawing:
        """Draw overlay and masks for a threshold."""
        progress(0.0, "Drawing")
        results = self.segment(threshold)
        overlay = Path(self._folder.name) / "overlay.mp4"
        with MediaReader(self.video, log_notes=False) as reader:
            write_overlay_video(
                overlay,
                self._overlay_frames(reader, progress),
                results,
                self.colors,
                frames_per_second=self.rate,
                audio=(reader.audio_stream, reader.audio_packets()),
                audio_origin=lambda: reader.origin,
            )
        counts = [len(result["segments"]) for result in results]
        return Drawing(
            overlay=overlay,
            archive=self._write_archive(results, threshold),
            spans=sounding_spans(results, self.rate, self.info.seconds),
            busiest=counts.index(max(counts)),
        )

    def stages(self, number: int) -> list[StageMap]:
        """Draw the maps of the four stages for network frame `number`."""
        number = min(max(number, 0), len(self.timestamps) - 1)
        first, window = self._window_around(number)
        model = self._segmenter.model
        inputs = {
            name: torch.stack([frame[name] for frame in window.frames])[None].to(model.device, model.dtype)
            for name in ("pixel_values", "input_features")
        }
        with torch.no_grad():
            outputs = model(**inputs)
        frame = self._frame_at(self.timestamps[number])
        return draw_stage_maps(frame, outputs, self.colors, model.config.id2label, number=number - first)

    def _decode(self) -> tuple[np.ndarray, int]:
        """Read the video once, for its real duration, its notes and its audio, which is returned with its sampling rate."""
        reader = MediaReader(self.video, log_notes=False)  # `probe_video` logged those of the container
        reader.name = self.name
        with reader:
            for _ in reader.frames(1 / max(1.0, self.info.seconds)):  # one frame, unless the file declares too little
                check_decoded(reader.end, self._limits.seconds, self.name)
            waveform, sampling_rate = read_audio_within(reader, self._limits)
            reader.finish()
        check_decoded(reader.end, self._limits.seconds, self.name)
        self.info = replace(self.info, seconds=max(self.info.seconds, reader.end))
        self.notes = tuple(reader.notes.texts)
        return waveform, sampling_rate

    def _window_around(self, number: int) -> tuple[int, Window]:
        """Return first frame and content of the pipeline window whose middle is closest to network frame `number`."""
        candidates, end = [], 0
        with closing(self._segmenter.preprocess(str(self.video), frames_per_second=self.rate)) as windows:
            for window in windows:
                end += window.new_frames
                first = end - len(window.frames)
                if first > number:
                    break
                if number < end:
                    candidates.append((min(number - first, end - 1 - number), first, window))
        _, first, window = max(candidates, key=lambda candidate: candidate[0])
        return first, window

    def close(self) -> None:
        """Remove all files."""
        self._folder.cleanup()

    @property
    def _logits_file(self) -> Path:
        """The file of the logits."""
        return Path(self._folder.name) / "logits.safetensors"

    def _overlay_frames(self, reader: MediaReader, progress: ProgressCallback) -> Iterator[tuple[float, np.ndarray]]:
        """Yield timestamp and frame of the video at the size of the overlay."""
        for count, (timestamp, frame, _) in enumerate(reader.frames(EVERY_FRAME)):
            progress(min(1.0, count / self.info.frames), "Drawing the masks")
            height = len(frame)
            scale = min(max(height, OVERLAY_HEIGHTS[0]), OVERLAY_HEIGHTS[1]) / height
            yield timestamp, frame if scale == 1 else np.asarray(_resize(frame, scale))

    def _frame_at(self, timestamp: float) -> Image.Image:
        """Return the frame on screen at a time, at the size of the stage maps."""
        shown = None
        for seconds, frame in iterate_frames(self.video):
            if shown is not None and seconds > timestamp + 1e-3:
                break
            shown = frame
        return _resize(shown, min(1.0, STAGE_MAP_SIDE / max(shown.shape[:2])))

    def _write_archive(self, results: list[dict[str, Any]], threshold: float) -> Path:
        """Write the masks and their description to one zip file."""
        archive = Path(self._folder.name) / "masks.zip"
        config = self._segmenter.model.config
        with tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
            paths = write_masks(Path(folder), results, config.id2label, size=self._size[::-1])
            description = {
                "video": self.name,
                "model": config.name_or_path,
                "frames_per_second": self.rate,
                "threshold": threshold,
                "classes": {str(index): label for index, label in config.id2label.items()},
                "frames": [_describe(result, path) for result, path in zip(results, paths, strict=True)],
            }
            with zipfile.ZipFile(archive, "w") as file:
                for path in paths:
                    file.write(path, f"masks/{path.name}")
                file.writestr("segments.json", json.dumps(description, indent=1), zipfile.ZIP_DEFLATED)
        return archive

    def _refusal(self, error: Exception) -> RefusedVideoError:
        """Convert an error for the user: the name of the file replaces its path, and advice for programmers is removed."""
        message = error.problem if isinstance(error, MediaError) else str(error)
        return RefusedVideoError(message.replace(str(self.video), self.name))


def _describe(result: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the entry of one network frame in `segments.json`."""
    segments = [
        {
            "label": segment["label"],
            "score": round(segment["score"], 4),
            "area_fraction": round(float(np.asarray(segment["mask"]).mean()) / 255, 4),
        }
        for segment in result["segments"]
    ]
    return {"timestamp": round(result["timestamp"], 4), "mask": f"masks/{path.name}", "segments": segments}


def _resize(frame: np.ndarray, scale: float) -> Image.Image:
    """Return a frame as an image, resized by a factor."""
    size = [max(1, round(length * scale)) for length in frame.shape[1::-1]]
    return Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)
