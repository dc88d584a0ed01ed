"""What is printed of one video: all that was found, frame by frame, or one line."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from .records import RecordedResults


SHOWN_FRAMES = 60  # so that what is printed of a long video stays on a few screens


@dataclass(frozen=True)
class Outcome:
    """How it went with one video.

    Attributes:
        video: Its name.
        frames: Network frames.
        labels: What was found, and in how many of them, most frequent first.
        error: Why it could not be segmented, if so.
    """

    video: str
    frames: int = 0
    labels: tuple[tuple[str, int], ...] = ()
    error: str | None = None

    @property
    def line(self) -> str:
        """Says it in one line."""
        if self.error is not None:
            return f"failed: {self.video}: {self.error}"
        found = ", ".join(f"{label} {number}" for label, number in self.labels) or "nothing sounds"
        return f"{self.video}: {found} ({self.frames} frames)"


def summarize(video: str, results: RecordedResults) -> Outcome:
    """Counts what was found in a video."""
    labels: Counter[str] = Counter()
    frames = 0
    for record in results.records():
        frames += 1
        labels.update({segment["label"] for segment in record["segments"]})
    return Outcome(video, frames, tuple(labels.most_common()))


def format_table(results: RecordedResults) -> str:
    """Writes what was found: a line for each segment, with its score and its share of the picture."""
    shown = [results[number] for number in range(min(len(results), SHOWN_FRAMES))]
    width = max([len("what sounds"), *(len(segment["label"]) for result in shown for segment in result["segments"])])
    lines = [f"{'second':>8}  {'what sounds':<{width}}  score  share of the picture"]
    for result in shown:
        time = f"{result['timestamp']:8.2f}"
        for found in result["segments"]:
            area = np.asarray(found["mask"]).mean() / 255
            lines.append(f"{time}  {found['label']:<{width}}  {found['score']:5.2f}  {area:20.1%}")
            time = " " * 8
        if not result["segments"]:
            lines.append(f"{time}  nothing")
    if len(results) > SHOWN_FRAMES:
        lines.append(f"     ...  and {len(results) - SHOWN_FRAMES} more frames")
    return "\n".join(lines)
