"""The results of one video: what a pipeline finds goes to the disk as it comes, and everything else is made from there.

An hour of video needs no more memory than a minute: records are written and read a network frame at a time, the overlay
is drawn as the video passes, and the contact sheet keeps only the frames that it shows.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from transformers import Pipeline

from modeling_pcmanet.media_pcmanet import (
    EVERY_FRAME,
    MediaSource,
    VideoReader,
    iterate_audio,
    iterate_frames,
    open_media,
)
from pcmanet.pipelines.colors import class_colors
from pcmanet.pipelines.contact_sheet import draw_contact_sheet, shown_frames
from pcmanet.pipelines.overlay import write_masks, write_overlay_video

from .results import CONTACT_SHEET, MASKS, OVERLAY, RECORDS, RecordedResults


ENVELOPE_PARTS = 20_000  # of the sound, of each the loudest sample: more than a contact sheet has pixels
LARGEST_THUMBNAIL = (840, 680)  # twice what a contact sheet shows

Progress = Callable[[float], None]


@dataclass(frozen=True)
class OneVideo:
    """A video in hand.

    Attributes:
        name: As it was given.
        source: Path, URL or the bytes of the file.
        audio: Its sound, if that lies beside it.
        size: (height, width), upright.
        seconds: How long it lasts by its own account, if it tells.
    """

    name: str
    source: MediaSource
    audio: MediaSource | None
    size: tuple[int, int]
    seconds: float | None

    @property
    def sound(self) -> MediaSource:
        """Where its sound is."""
        return self.source if self.audio is None else self.audio


def open_video(name: str, source: MediaSource, audio: MediaSource | None) -> OneVideo:
    """Looks at the first frame of a video.

    Raises:
        FileNotFoundError: If there is no such file.
        MediaError: If it is no video.
    """
    with open_media(source) as (container, _):
        seconds = container.duration / av.time_base if container.duration else None
    with closing(iterate_frames(source)) as frames:
        _, picture = next(frames)
    return OneVideo(name, source, audio, picture.shape[:2], seconds)


def record(
    segmenter: Pipeline,
    video: OneVideo,
    arguments: Namespace,
    results: RecordedResults,
    progress: Progress,
    rate: float | None = None,
) -> None:
    """Segments a video and writes down what is found.

    Args:
        segmenter: The pipeline.
        video: The video.
        arguments: Of `pcmanet segment`.
        results: Where to write it down.
        progress: Told the seconds of video that are done, after each network frame.
        rate: Network frames per second, if not that of the arguments.

    Raises:
        ValueError: If the video cannot be segmented: no sound, damaged ...
    """
    stream = segmenter.stream(
        video.source,
        audio=video.audio,
        frames_per_second=rate or arguments.frames_per_second,
        threshold=arguments.threshold,
        minimum_area=arguments.minimum_area,
        early_exit_threshold=arguments.early_exit_threshold,
    )

    def watched() -> Iterator[Mapping[str, Any]]:
        for result in stream:
            progress(result["timestamp"])
            yield result

    with closing(stream):
        results.write(watched(), video.size)


def draw(
    segmenter: Pipeline,
    video: OneVideo,
    arguments: Namespace,
    folder: Path,
    results: RecordedResults,
    progress: Progress,
) -> None:
    """Adds what the arguments ask for to a folder that holds the records: masks, overlay, contact sheet.

    Args:
        segmenter: The pipeline, for an overlay at a rate of its own.
        video: The video.
        arguments: Of `pcmanet segment`.
        folder: Where to write.
        results: What was found in the video.
        progress: Told the seconds of video that are drawn.
    """
    id2label = segmenter.model.config.id2label
    if arguments.format == "png":
        write_masks(folder / MASKS, results, id2label, size=video.size[::-1])
    if arguments.contact_sheet:
        _contact_sheet(video, results, class_colors(id2label), arguments.frames_per_second).save(
            folder / CONTACT_SHEET
        )
    if arguments.overlay:
        rate = arguments.overlay_frames_per_second
        if rate is not None:
            results = RecordedResults(folder / f"at_rate_{RECORDS}")
            record(segmenter, video, arguments, results, progress, rate)
        reader = VideoReader(video.source, EVERY_FRAME)
        write_overlay_video(
            folder / OVERLAY,
            _watched_frames(reader, progress),
            results,
            class_colors(id2label),
            frames_per_second=rate or arguments.frames_per_second,
            audio=video.sound,
            audio_origin=(lambda: reader.origin) if video.audio is None else None,
        )
        if rate is not None:
            results.path.unlink()


def _watched_frames(reader: VideoReader, progress: Progress) -> Iterator[tuple[float, np.ndarray]]:
    """Yields every frame of a video with its time."""
    for frame in reader:
        progress(frame.timestamp)
        yield frame.timestamp, frame.picture


def _contact_sheet(
    video: OneVideo, results: RecordedResults, colors: Mapping[str, tuple[int, int, int]], frames_per_second: float
) -> Image.Image:
    """Draws the contact sheet from thumbnails of the frames that it shows and the envelope of the sound."""
    shown = set(shown_frames(len(results)))
    thumbnails: dict[int, np.ndarray] = {}
    reader = VideoReader(video.source, frames_per_second)
    for number, frame in enumerate(reader):
        if number in shown:
            picture = Image.fromarray(frame.picture)
            picture.thumbnail(LARGEST_THUMBNAIL, Image.Resampling.LANCZOS)
            thumbnails[number] = np.asarray(picture)
    envelope_rate = max(1, round(ENVELOPE_PARTS * frames_per_second / len(results)))
    return draw_contact_sheet(
        thumbnails,
        results,
        colors,
        waveform=loudest_samples(video.sound, reader if video.audio is None else None, envelope_rate),
        sampling_rate=envelope_rate,
        frames_per_second=frames_per_second,
        title=Path(video.name).name,
    )


def loudest_samples(sound: MediaSource, reader: VideoReader | None, rate: int) -> np.ndarray:
    """Finds the loudest sample in each part of a second, which is all that a picture of an hour can show.

    Args:
        sound: What to read.
        reader: Of the video that the sound belongs to, to lie on its clock; by default it has its own.
        rate: Parts per second.

    Returns:
        (parts,), the loudest absolute values.
    """
    peaks: list[float] = []
    position = 0
    for samples, sampling_rate in iterate_audio(sound, reader):
        parts = (position + np.arange(samples.shape[1])) * rate // sampling_rate
        position += samples.shape[1]
        starts = np.flatnonzero(np.diff(parts, prepend=-1))
        for part, peak in zip(parts[starts], np.maximum.reduceat(np.abs(samples).max(axis=0), starts), strict=True):
            # A part may have begun in the chunk before.
            peaks += [0.0] * (int(part) + 1 - len(peaks))
            peaks[part] = max(peaks[part], float(peak))
    return np.array(peaks, dtype=np.float32)
