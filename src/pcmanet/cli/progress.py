"""The progress of a command on stderr: the number of videos or batches, and the position in a long video."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import cast

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pcmanet.files import naming_disk_errors


SECONDS_BEFORE_SHOWN = 2.0  # shorter stages have no progress bar
SECONDS_BETWEEN_LINES = 60.0  # in a log file
MAXIMUM_NAME_LENGTH = 40  # characters, on a terminal
LOGGER = "modeling_pcmanet"  # logs the notes on unusual files
STAGE_FORMAT = "{desc}: {percentage:3.0f}% {n:.0f} of {total:.0f} s [{elapsed}<{remaining}, {rate_noinv_fmt}]"


class Progress:
    """Progress bars with the remaining time on a terminal, or a line per minute in a log file.

    Args:
        title: What the process does.
        total: Number of videos.
        done: How many of them are already done.
        unit: What is counted, in the plural.
        hidden: Whether to show nothing, because another process does.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        title: str,
        total: int,
        done: int = 0,
        *,
        unit: str = "videos",
        hidden: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hidden = hidden
        self._unit = unit
        self._title, self._total, self._before, self._done = title, total, done, done
        self._clock = clock
        self._start = self._last_line = clock()
        is_counted = total >= 2 and not hidden
        self._bar = tqdm(
            desc=title, total=total, initial=done, unit=f" {unit}", disable=not (is_counted and sys.stderr.isatty())
        )
        self._is_logged = is_counted and self._bar.disable
        if self._is_logged:
            self._log()

    def __enter__(self) -> "Progress":
        self._stack = ExitStack()
        # Notes on unusual files are printed above the bars, not into them.
        self._stack.enter_context(logging_redirect_tqdm([logging.getLogger(LOGGER)]))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()
        self._stack.close()

    @contextmanager
    def stage(self, name: str, seconds: float | None) -> Iterator[Callable[[float], object]]:
        """Show one stage of a video if it takes longer than two seconds, or a minute in a log file.

        Args:
            name: What is done.
            seconds: Duration that the video declares, if any. The bar of a longer video stays at it.

        Yields:
            A function that receives the current position in the video, in seconds.
        """
        shown = name if len(name) <= MAXIMUM_NAME_LENGTH else f"...{name[3 - MAXIMUM_NAME_LENGTH :]}"
        form = STAGE_FORMAT if seconds else None
        start = last_line = self._clock()
        with tqdm(
            desc=shown,
            total=seconds,
            unit="s",
            bar_format=form,
            delay=SECONDS_BEFORE_SHOWN,
            leave=False,
            disable=True if self._hidden else None,
        ) as bar:
            is_logged = bar.disable and not self._hidden

            def advance(position: float) -> None:
                nonlocal last_line
                position = min(position, seconds or math.inf)
                bar.update(max(0.0, position - bar.n))
                now = self._clock()
                if is_logged and now - last_line >= SECONDS_BETWEEN_LINES:
                    last_line = now
                    # The stubs of tqdm omit that the total may be None.
                    meter = tqdm.format_meter(
                        math.floor(position), cast(float, seconds), now - start, prefix=name, unit="s", bar_format=form
                    )
                    print(meter, file=sys.stderr, flush=True)

            yield advance

    def finish_one(self) -> None:
        """Count one video as done."""
        self._done += 1
        self._bar.update()
        is_time = self._done == self._total or self._clock() - self._last_line >= SECONDS_BETWEEN_LINES
        if self._is_logged and is_time:
            self._log()

    def print(self, line: str, *, failed: bool = False) -> None:
        """Print a line at once without breaking the progress bars; a line about a failed video goes to stderr."""
        file = sys.stderr if failed else sys.stdout
        with naming_disk_errors(Path("standard error" if failed else "standard output")):
            tqdm.write(line, file=file)
            file.flush()  # for a log file or the next program of a pipe

    def _log(self) -> None:
        """Print the progress as a line."""
        self._last_line = self._clock()
        line = f"{self._title}: {self._done} of {self._total} {self._unit}"
        if self._before < self._done < self._total:
            seconds = (self._last_line - self._start) / (self._done - self._before) * (self._total - self._done)
            line += f", {tqdm.format_interval(seconds)} left"
        print(line, file=sys.stderr, flush=True)
