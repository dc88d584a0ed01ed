"""How far the work is, on the error output: videos, and within a long one the seconds that are done."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from tqdm import tqdm


SECONDS_BEFORE_SHOWN = 2.0  # a stage that is over sooner gets no bar of its own
SECONDS_BETWEEN_LINES = 60.0  # where there is no terminal
LONGEST_NAME = 40


class Progress:
    """Bars with the time that is left; in a log file, a line now and then.

    Args:
        title: What is done.
        total: How many videos there are.
        done: How many of them were done before.
        hidden: Whether to show nothing, because another process does.
        clock: Tells the time in seconds.
    """

    def __init__(
        self,
        title: str,
        total: int,
        done: int = 0,
        *,
        hidden: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hidden = hidden
        self._title, self._total, self._before, self._done = title, total, done, done
        self._clock = clock
        self._begun = self._said = clock()
        is_counted = total >= 2 and not hidden
        self._bar = tqdm(
            desc=title, total=total, initial=done, unit="video", disable=not (is_counted and sys.stderr.isatty())
        )
        self._is_logged = is_counted and self._bar.disable
        if self._is_logged:
            self._log()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    @contextmanager
    def stage(self, name: str, seconds: float | None) -> Iterator[Callable[[float], None]]:
        """Shows one stage of one video, on a terminal and if it takes a while.

        Args:
            name: What is done.
            seconds: How long the video is, if known.

        Yields:
            What is to be told the second of the video that is reached.
        """
        shown = name if len(name) <= LONGEST_NAME else f"...{name[3 - LONGEST_NAME :]}"
        form = "{desc}: {percentage:3.0f}% {n:.0f} of {total:.0f} s [{elapsed}<{remaining}, {rate_noinv_fmt}]"
        with tqdm(
            desc=shown,
            total=seconds,
            unit="s",
            bar_format=form if seconds else None,
            delay=SECONDS_BEFORE_SHOWN,
            leave=False,
            disable=True if self._hidden else None,
        ) as bar:
            yield lambda second: bar.update(max(0.0, second - bar.n))

    def finish_video(self) -> None:
        """Counts a video as done."""
        self._done += 1
        self._bar.update()
        is_time = self._done == self._total or self._clock() - self._said >= SECONDS_BETWEEN_LINES
        if self._is_logged and is_time:
            self._log()

    def say(self, line: str, *, failed: bool = False) -> None:
        """Prints a line without breaking the bars: what failed to the error output."""
        tqdm.write(line, file=sys.stderr if failed else sys.stdout)

    def _log(self) -> None:
        """Writes how far it is as a line of its own."""
        self._said = self._clock()
        line = f"{self._title}: {self._done} of {self._total} videos"
        if self._before < self._done < self._total:
            seconds = (self._said - self._begun) / (self._done - self._before) * (self._total - self._done)
            line += f", {tqdm.format_interval(seconds)} left"
        print(line, file=sys.stderr, flush=True)
