"""When what sounds in a video: a pipeline's result as stretches of time, and the loudness to draw beside them.

for label, spans in sounding_spans(results, frames_per_second=4).items():
    print(label, [f"{span.start:.2f}-{span.end:.2f} s" for span in spans])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Span:
    """A stretch of time in which a class is found in every network frame.

    Attributes:
        start: Seconds, where the time of the first of these frames begins.
        end: Seconds, where the time of the last one ends.
        score: Mean of the segments' scores, in [0, 1].
    """

    start: float
    end: float
    score: float

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.end - self.start


def sounding_spans(
    results: Sequence[Mapping[str, Any]], frames_per_second: float = 1.0, duration: float | None = None
) -> dict[str, list[Span]]:
    """Joins what is found in network frames that follow each other.

    Network frame `k` stands for the time from `k / frames_per_second` to `(k + 1) / frames_per_second`, as in the
    overlay and on the contact sheet.

    Args:
        results: The pipeline's result for one video.
        frames_per_second: The rate of network frames that `results` were made with.
        duration: Seconds of video, if known: the time of the last frame ends there.

    Returns:
        The spans of each label that was found, in order of time; labels in order of their first span.

    Raises:
        ValueError: If a rate or a duration is not positive.
    """
    for name, value in (("frames_per_second", frames_per_second), ("duration", duration)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be a positive number, got {value}.")

    # A label's scores by the frames in which it is found; of several segments the most probable counts.
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


def loudness(waveform: np.ndarray, sampling_rate: int, duration: float, parts: int) -> np.ndarray:
    """Finds the peak of the sound in equal parts of time.

    Args:
        waveform: (channels, samples) or (samples,), sample 0 at time 0.
        sampling_rate: Samples per second in hertz (Hz).
        duration: Seconds to divide; sound beyond counts no more, missing sound is silent.
        parts: How many parts.

    Returns:
        (parts,) in [0, 1], the loudest part being 1 unless all is silent.
    """
    samples = np.abs(np.atleast_2d(waveform)).max(axis=0)
    edges = np.linspace(0, duration * sampling_rate, parts + 1).astype(int)
    peaks = np.array([samples[start:stop].max(initial=0) for start, stop in zip(edges, edges[1:], strict=False)])
    return peaks / max(peaks.max(), np.finfo(np.float32).eps)


def _runs(numbers: list[int]) -> list[list[int]]:
    """Cuts ascending numbers into runs of neighbours."""
    runs: list[list[int]] = []
    for number in numbers:
        if not runs or number > runs[-1][-1] + 1:
            runs.append([])
        runs[-1].append(number)
    return runs


def _span(numbers: list[int], scores: Mapping[int, float], frames: int, rate: float, end: float) -> Span:
    """Makes the span of a run of network frames; after the last of all `frames` comes the end of the video."""
    stop = end if numbers[-1] == frames - 1 else (numbers[-1] + 1) / rate
    return Span(numbers[0] / rate, stop, float(np.mean([scores[number] for number in numbers])))
