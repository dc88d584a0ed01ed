"""When each class sounds in a video: a pipeline's result as spans of time, and the loudness to draw next to them.

for label, spans in sounding_spans(results, frames_per_second=4).items():
    print(label, [f"{start:.2f}-{end:.2f} s" for start, end, score in spans])
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np


# Start and end in seconds, and the mean score of the segments in between, in [0, 1].
Span: TypeAlias = tuple[float, float, float]


def sounding_spans(
    results: Sequence[Mapping[str, Any]], frames_per_second: float = 1.0, duration: float | None = None
) -> dict[str, list[Span]]:
    """Join consecutive network frames in which a class is found.

    Network frame `k` covers the time from `k / frames_per_second` to `(k + 1) / frames_per_second`, as in the overlay
    and on the contact sheet.

    Args:
        results: The pipeline's result for one video.
        frames_per_second: The rate of network frames of `results`.
        duration: Duration of the video in seconds, if known; the time of the last frame ends there.

    Returns:
        The spans of each label found, in chronological order; labels in order of their first span.

    Raises:
        ValueError: If `frames_per_second` or `duration` is not a positive number.
    """
    for name, value in (("frames_per_second", frames_per_second), ("duration", duration)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be a positive number, got {value!r}.")

    # The scores of a label by frame number; if there are several segments, the most probable one counts.
    scores: dict[str, dict[int, float]] = {}
    for number, result in enumerate(results):
        for segment in result["segments"]:
            found = scores.setdefault(segment["label"], {})
            found[number] = max(found.get(number, 0.0), segment["score"])

    end = len(results) / frames_per_second if duration is None else duration
    return {
        label: [_span(numbers, found, len(results), frames_per_second, end) for numbers in _runs(sorted(found))]
        for label, found in scores.items()
    }


def _runs(numbers: list[int]) -> list[list[int]]:
    """Split ascending numbers into runs of consecutive ones."""
    runs: list[list[int]] = []
    for number in numbers:
        if not runs or number > runs[-1][-1] + 1:
            runs.append([])
        runs[-1].append(number)
    return runs


def _span(numbers: list[int], scores: Mapping[int, float], num_frames: int, rate: float, end: float) -> Span:
    """Return the span of a run of network frames; the last frame of the video ends at `end`."""
    stop = end if numbers[-1] == num_frames - 1 else (numbers[-1] + 1) / rate
    return numbers[0] / rate, stop, float(np.mean([scores[number] for number in numbers]))


def loudness(waveform: np.ndarray, sampling_rate: int, duration: float, parts: int) -> np.ndarray:
    """Return the peak of the audio in equal parts of time.

    Args:
        waveform: (channels, samples) or (samples,), sample 0 at time 0.
        sampling_rate: Sampling rate in hertz (Hz).
        duration: Seconds to divide. Audio beyond it is ignored; missing audio is silent.
        parts: Number of parts.

    Returns:
        (parts,) in [0, 1]; the loudest part is 1 unless all are silent.
    """
    samples = np.abs(np.atleast_2d(waveform)).max(axis=0)
    edges = np.linspace(0, duration * sampling_rate, parts + 1).astype(int)
    peaks = np.array([samples[start:stop].max(initial=0) for start, stop in zip(edges, edges[1:], strict=False)])
    return peaks / max(peaks.max(), np.finfo(np.float32).eps)
