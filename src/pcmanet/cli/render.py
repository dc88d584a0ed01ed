"""The results of one video: pipeline results are written as they arrive, and everything else is made from them.

A video is opened twice: once to segment it, also for an overlay with more masks per second, and once to draw the
overlay and the contact sheet. Memory does not grow with the length of a video. Records are written and read one
network frame at a time, the overlay is drawn while the video is read, and the contact sheet keeps only the frames that
it shows.
"""

from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from av.audio.stream import AudioStream
from PIL import Image

from modeling_pcmanet.media_pcmanet import EVERY_FRAME, MediaReader, MediaSource, StreamedFrame
from pcmanet.pipelines import AudioVisualSegmentationPipeline
from pcmanet.pipelines.colors import class_colors
from pcmanet.pipelines.contact_sheet import draw_contact_sheet, shown_frames
from pcmanet.pipelines.overlay import write_masks, write_overlay_video

from .results import CONTACT_SHEET, MASKS, OVERLAY, RecordedResults


ENVELOPE_PARTS = 20_000  # of the audio, the loudest sample of each: more than a contact sheet has pixels
LARGEST_THUMBNAIL = (840, 680)  # twice the size on a contact sheet

# Receives the current position in the video, in seconds.
ProgressCallback = Callable[[float], object]


def record(
    segmenter: AudioVisualSegmentationPipeline,
    reader: MediaReader,
    audio: MediaSource | None,
    arguments: Namespace,
    results: RecordedResults,
    overlay_results: RecordedResults,
    progress: ProgressCallback,
) -> None:
    """Segment a video and write the results.

    Args:
        segmenter: The pipeline.
        reader: The open video, whose frames have not been read yet.
        audio: Separate audio; None if the video has its own.
        arguments: Arguments of `pcmanet segment`.
        results: Where to write the results.
        overlay_results: Where to write those for the overlay, if it has its own rate.
        progress: Called after each network frame.

    Raises:
        ValueError: If the video cannot be segmented, for example because it is damaged.
    """
    recorded = [results, overlay_results] if arguments.overlay_frames_per_second else [results]
    stream = segmenter.stream_rates(
        cast(Any, reader),  # the processor also takes an open reader; the pipeline passes it on unchanged
        [arguments.frames_per_second, arguments.overlay_frames_per_second][: len(recorded)],
        audio=audio,
        threshold=arguments.threshold,
        minimum_area=arguments.minimum_area,
        early_exit_threshold=arguments.early_exit_threshold,
    )
    size = reader.size
    with closing(stream):
        for rate, result in stream:
            progress(result["timestamp"])
            recorded[rate].add(result, size)


def draw(
    segmenter: AudioVisualSegmentationPipeline,
    source: MediaSource,
    audio: MediaSource | None,
    arguments: Namespace,
    folder: Path,
    results: RecordedResults,
    overlay_results: RecordedResults,
    *,
    size: tuple[int, int],
    title: str,
    progress: ProgressCallback,
) -> None:
    """Write what the arguments request to the folder with the records: masks, overlay, contact sheet.

    Args:
        segmenter: The pipeline, for the names of its classes.
        source: Path, URL or the bytes of the video.
        audio: Separate audio; None if the video has its own.
        arguments: Arguments of `pcmanet segment`.
        folder: Where to write.
        results: The results of the video.
        overlay_results: Those for the overlay, if it has its own rate.
        size: (height, width) of the video.
        title: Title of the contact sheet.
        progress: Called with the seconds of video that have been drawn.
    """
    names = cast(dict[int, str], segmenter.model.config.id2label)
    if arguments.format == "png":
        write_masks(folder / MASKS, results, names, size=(size[1], size[0]))
    if not (arguments.overlay or arguments.contact_sheet):
        return
    rate = arguments.overlay_frames_per_second
    colors = class_colors(names)
    thumbnails, peaks = {}, []
    envelope_rate = max(1, round(ENVELOPE_PARTS * arguments.frames_per_second / len(results)))
    with ExitStack() as stack:
        reader = stack.enter_context(MediaReader(source, audio=audio is None, log_notes=False))
        audio_reader = (
            reader if audio is None else stack.enter_context(MediaReader(audio, video=False, log_notes=False))
        )
        frames = reader.frames(EVERY_FRAME if arguments.overlay else arguments.frames_per_second)
        if arguments.contact_sheet:
            audio_reader.listener = partial(add_peaks, peaks, envelope_rate)
            frames = _with_thumbnails(frames, results, thumbnails)
        frames = _with_progress(frames, progress)
        packets = audio_reader.audio_packets()
        if arguments.overlay:
            write_overlay_video(
                folder / OVERLAY,
                frames,
                overlay_results if rate else results,
                colors,
                frames_per_second=rate or arguments.frames_per_second,
                audio=(audio_reader.audio_stream, packets),
                audio_origin=lambda: reader.origin if audio is None else _start(audio_reader.audio_stream),
            )
        # Read whatever the overlay did not need.
        deque(frames, maxlen=0)
        deque(packets, maxlen=0)
    if arguments.contact_sheet:
        draw_contact_sheet(
            thumbnails,
            results,
            colors,
            waveform=np.array(peaks, dtype=np.float32),
            sampling_rate=envelope_rate,
            frames_per_second=arguments.frames_per_second,
            title=title,
        ).save(folder / CONTACT_SHEET)


def _start(audio: AudioStream) -> float:
    """Return when audio begins in its container, in seconds.

    The network hears it from then on, even if the video began earlier.
    """
    return float((audio.start_time or 0) * (audio.time_base or 0))


def _with_progress(frames: Iterable[StreamedFrame], progress: ProgressCallback) -> Iterator[tuple[float, np.ndarray]]:
    """Yield timestamp and frame, and report the progress."""
    for timestamp, frame, _ in frames:
        progress(timestamp)
        yield timestamp, frame


def _with_thumbnails(
    frames: Iterable[StreamedFrame], results: RecordedResults, thumbnails: dict[int, np.ndarray]
) -> Iterator[StreamedFrame]:
    """Yield frames, and keep thumbnails of the network frames that a contact sheet shows."""
    timestamps = [result["timestamp"] for result in results.records()]
    numbers, held = deque(shown_frames(len(results))), None
    for streamed in frames:
        # A network frame is on screen at its timestamp.
        while numbers and held is not None and streamed[0] > timestamps[numbers[0]]:
            thumbnails[numbers.popleft()] = _thumbnail(held)
        held = streamed[1]
        yield streamed
    if held is not None:
        thumbnails.update((number, _thumbnail(held)) for number in numbers)


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    """Return a frame at the size of a thumbnail."""
    image = Image.fromarray(frame)
    image.thumbnail(LARGEST_THUMBNAIL, Image.Resampling.LANCZOS)
    return np.asarray(image)


def add_peaks(peaks: list[float], rate: int, start: int, samples: np.ndarray, sampling_rate: int) -> None:
    """Add a chunk of audio to an envelope: the loudest sample in each part of a second, enough for an image of an hour.

    Args:
        peaks: The largest absolute value of each part so far, to extend.
        rate: Parts per second.
        start: Index of the first sample.
        samples: (channels, samples).
        sampling_rate: Sampling rate of the samples, in hertz (Hz).
    """
    if not samples.size:
        return
    parts = (start + np.arange(samples.shape[1])) * rate // sampling_rate
    starts = np.flatnonzero(np.diff(parts, prepend=-1))
    for part, peak in zip(parts[starts], np.maximum.reduceat(np.abs(samples).max(axis=0), starts), strict=True):
        # A part may have begun in the previous chunk.
        peaks += [0.0] * (int(part) + 1 - len(peaks))
        peaks[part] = max(peaks[part], float(peak))
