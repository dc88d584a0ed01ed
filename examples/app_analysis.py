"""What the page of app.py keeps of one video: checks it, runs the network once, draws as often as the slider moves.

Everything lies in one folder that goes away with the visit: a copy of the video, what the network said of it, and what
was drawn last. In memory there is almost nothing, so that many visitors find room.
"""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from app_probe import Limits, RefusedVideoError, probe_video
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from modeling_pcmanet.media_pcmanet import EVERY_FRAME, SOUND_REMEDY, VideoReader, iterate_frames, read_media
from pcmanet.pipelines import AudioVisualSegmentationPipeline
from pcmanet.pipelines.audio_visual_segmentation import FrameLogits, Window, blend_windows, logits_at_masks
from pcmanet.pipelines.colors import class_colors
from pcmanet.pipelines.overlay import write_masks, write_overlay_video
from pcmanet.pipelines.segments import find_segments
from pcmanet.pipelines.stage_maps import StageMap, draw_stage_maps
from pcmanet.pipelines.timeline import Span, loudness, sounding_spans


# Segments smaller than this share of the picture are specks.
MINIMUM_AREA = 0.001
LOUDNESS_PARTS = 400
# The overlay is for looking at: small enough to be quick, large enough for crisp names. Masks keep the video's own size.
OVERLAY_HEIGHTS = (480, 720)
STAGE_PICTURE_SIDE = 320

Report = Callable[[float, str], None]


class LogitsPipeline(AudioVisualSegmentationPipeline):
    """The pipeline without its last step: logits, of which `find_segments` makes masks as often as a threshold changes."""

    def postprocess(
        self, model_outputs: Iterable[tuple[Window, torch.Tensor]], **_: float | None
    ) -> list[FrameLogits]:
        """Gives the logits of every moment."""
        return list(logits_at_masks(blend_windows(model_outputs)))


@dataclass(frozen=True)
class Drawing:
    """What was drawn with one threshold.

    Attributes:
        overlay: The video with its masks and its sound, mp4.
        archive: A zip file of the masks as PNG files, and `segments.json`.
        spans: When each label sounds.
        busiest: Number of the network frame with the most segments, the first of several.
    """

    overlay: Path
    archive: Path
    spans: dict[str, list[Span]]
    busiest: int


class Analysis:
    """One video of one visit and what the network said of it.

    Args:
        segmenter: The pipeline.
        upload: The file of the video; it is copied.
        name: What the visitor calls it.
        limits: What the page takes.
        folder: Where the analysis makes its own folder.

    Raises:
        RefusedVideoError: If the video breaks a limit or cannot be used; the message is for the visitor.

    Attributes:
        name: As given.
        video: The copy of the file.
        facts: What the file says of itself.
        loudness: (parts,), over the time of the video, in [0, 1].
        notes: What was done to use the file although it is odd.
        rate: Network frames per second of the last run.
        timestamps: Their moments, seconds.
    """

    def __init__(self, segmenter: LogitsPipeline, upload: str | Path, name: str, limits: Limits, folder: Path) -> None:
        self._segmenter = segmenter
        self._limits = limits
        self._folder = tempfile.TemporaryDirectory(prefix="visit_", dir=folder)
        self.name = name
        self.video = Path(self._folder.name) / "video"
        try:
            shutil.copyfile(upload, self.video)
            self.facts = probe_video(self.video, name, limits)
            # For the sound, laid on the video's clock, and what was done to use the file: one frame is enough.
            media = read_media(self.video, frames_per_second=1 / max(1.0, self.facts.seconds))
        except (OSError, ValueError) as error:
            self.close()
            raise self._refusal(error) from error
        self.loudness = loudness(media.waveform, media.sampling_rate, self.facts.seconds, LOUDNESS_PARTS)
        self.notes = media.notes
        self.rate = 0.0
        self.timestamps: list[float] = []

    @property
    def colors(self) -> dict[str, tuple[int, int, int]]:
        """The colour of every label of the model."""
        return class_colors(self._segmenter.model.config.id2label)

    def run(self, rate: float) -> None:
        """Runs the network on `rate` frames per second of video, and keeps its logits.

        Raises:
            RefusedVideoError: If that is too much at once, or the video cannot be decoded.
        """
        network_size = self._segmenter.processor.image_processor.size
        logits_per_frame = self._segmenter.model.config.num_labels * network_size["height"] * network_size["width"]
        self._limits.check_work(self.facts, rate, logits_per_frame)
        try:
            moments = self._segmenter(str(self.video), frames_per_second=rate, progress_bar=True)
        except (OSError, ValueError) as error:
            raise self._refusal(error) from error
        self.rate = rate
        self.timestamps = [moment.timestamp for moment in moments]
        self._size = tuple(moments[0].original_size)
        save_file({"logits": torch.stack([moment.logits for moment in moments])}, self._logits)

    def segment(self, threshold: float) -> list[dict[str, Any]]:
        """Gives what the pipeline gives for this video with a threshold, from the logits that were kept."""
        names = self._segmenter.model.config.id2label
        with safe_open(self._logits, "pt") as file:
            logits = file.get_slice("logits")
            return [
                {
                    "timestamp": timestamp,
                    "segments": find_segments(logits[number].float(), self._size, names, threshold, MINIMUM_AREA),
                }
                for number, timestamp in enumerate(self.timestamps)
            ]

    def draw(self, threshold: float, report: Report) -> Drawing:
        """Draws overlay and masks with a threshold; `report` hears the share done, in [0, 1], and of what."""
        report(0.0, "Drawing")
        results = self.segment(threshold)
        overlay = Path(self._folder.name) / "overlay.mp4"
        reader = VideoReader(self.video, EVERY_FRAME)
        write_overlay_video(
            overlay,
            self._pictures(reader, report),
            results,
            self.colors,
            frames_per_second=self.rate,
            sound=str(self.video),
            clock=reader,
        )
        counts = [len(result["segments"]) for result in results]
        return Drawing(
            overlay=overlay,
            archive=self._write_archive(results, threshold),
            spans=sounding_spans(results, self.rate, self.facts.seconds),
            busiest=counts.index(max(counts)),
        )

    def stages(self, number: int) -> list[StageMap]:
        """Draws what the four stages see in network frame `number`."""
        number = min(max(number, 0), len(self.timestamps) - 1)
        first, window = self._window_around(number)
        model = self._segmenter.model
        inputs = {
            name: torch.stack([frame[name] for frame in window.frames])[None].to(model.device, model.dtype)
            for name in ("pixel_values", "input_features")
        }
        with torch.no_grad():
            outputs = model(**inputs)
        picture = self._picture_at(self.timestamps[number])
        return draw_stage_maps(picture, outputs, self.colors, model.config.id2label, number=number - first)

    def _window_around(self, number: int) -> tuple[int, Window]:
        """Finds, of the pipeline's own windows, the one that has a network frame nearest to its middle; and its start."""
        best, end = (-1, 0, None), 0
        with closing(self._segmenter.preprocess(str(self.video), frames_per_second=self.rate)) as windows:
            for window in windows:
                end += window.fresh
                first = end - len(window.frames)
                if first > number:
                    break
                if number < end:
                    best = max(
                        best, (min(number - first, end - 1 - number), first, window), key=lambda found: found[0]
                    )
        return best[1:]

    def close(self) -> None:
        """Removes everything."""
        self._folder.cleanup()

    @property
    def _logits(self) -> Path:
        """The file of what the network said."""
        return Path(self._folder.name) / "logits.safetensors"

    def _pictures(self, reader: VideoReader, report: Report) -> Iterator[tuple[float, np.ndarray]]:
        """Yields the frames of the video at a size that suits a page."""
        for count, frame in enumerate(reader):
            report(min(1.0, count / self.facts.frames), "Drawing the masks")
            height = len(frame.picture)
            scale = min(max(height, OVERLAY_HEIGHTS[0]), OVERLAY_HEIGHTS[1]) / height
            yield frame.timestamp, frame.picture if scale == 1 else np.asarray(_resized(frame.picture, scale))

    def _picture_at(self, timestamp: float) -> Image.Image:
        """Returns the frame that is on screen at a moment, small."""
        shown = None
        for seconds, frame in iterate_frames(self.video):
            if shown is not None and seconds > timestamp + 1e-3:
                break
            shown = frame
        return _resized(shown, min(1.0, STAGE_PICTURE_SIDE / max(shown.shape[:2])))

    def _write_archive(self, results: list[dict[str, Any]], threshold: float) -> Path:
        """Writes the masks and what they are into one zip file."""
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
        """Makes an error one for visitors: their name of the video in place of our path, and no advice to programmers."""
        return RefusedVideoError(str(error).replace(str(self.video), self.name).replace(SOUND_REMEDY, "").strip())


def _describe(result: dict[str, Any], path: Path) -> dict[str, Any]:
    """Describes one network frame for `segments.json`."""
    segments = [
        {
            "label": segment["label"],
            "score": round(segment["score"], 4),
            "share_of_picture": round(float(np.asarray(segment["mask"]).mean()) / 255, 4),
        }
        for segment in result["segments"]
    ]
    return {"timestamp": round(result["timestamp"], 4), "mask": f"masks/{path.name}", "segments": segments}


def _resized(frame: np.ndarray, scale: float) -> Image.Image:
    """Makes a picture of a frame, larger or smaller by a factor."""
    size = [max(1, round(length * scale)) for length in frame.shape[1::-1]]
    return Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)
