"""Problems in data: all files that cannot be used are reported at once."""

import difflib
import logging
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar


# What PIL raises for damaged images.
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)
SHOWN_PROBLEMS = 100  # lines of an error message; the exception holds all problems
ON_ERROR = ("raise", "skip")  # what to do with clips that have problems

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Problem:
    """One problem of one file.

    Attributes:
        clip: Name of the clip that needs the file; empty if the file belongs to no clip.
        path: The file or folder; for tables, with the line.
        problem: What was found, what is expected and what to do.
    """

    clip: str
    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class DatasetError(ValueError):
    """Data that cannot be used. The message lists up to `SHOWN_PROBLEMS` files; `problems` holds all of them."""

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        # A DataLoader re-raises an error of a worker from its text alone.
        self.problems = [] if isinstance(problems, str) else list(problems)
        super().__init__(problems)

    def __str__(self) -> str:
        if not self.problems:
            return str(self.args[0])
        count = len(self.problems)
        return "\n".join(
            [f"Found {count} problem(s) in the data:", *_list(self.problems, "`problems` of this exception")]
        )


def suggest(name: str, known: Sequence[str]) -> str:
    """Return a remedy for an unknown name: the closest known name, or all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Expected one of {', '.join(known)}."


def is_main_process() -> bool:
    """Return whether this is the only process, or the first of those that a launcher started, which reports for all."""
    return os.environ.get("RANK", "0") == "0"


def report_skipped(problems: Sequence[Problem], clips: int, total: int, data: str) -> None:
    """Warn once about the clips that are skipped, in the first process of a launcher.

    Args:
        problems: Why they are skipped; if there are none, nothing is reported.
        clips: Number of skipped clips.
        total: Number of clips, including the skipped ones.
        data: Name of the data.
    """
    if problems and is_main_process():
        lines = [f"Skipped {clips} of {total} clips of {data}, {len(problems)} problem(s):"]
        logger.warning("\n".join([*lines, *_list(problems, "`python -m pcmanet.dataset_scripts.avsbench check`")]))


def _list(problems: Sequence[Problem], source: str) -> list[str]:
    """Return a line per problem, up to `SHOWN_PROBLEMS`, and where to find the others."""
    shown = [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    more = len(problems) - SHOWN_PROBLEMS
    return [*shown, f"  ... and {more} more, see {source}"] if more > 0 else shown


class ProblemCollector:
    """Collect the problems of all files of a clip before raising any of them.

    Args:
        clip: Name of the clip.
    """

    def __init__(self, clip: str) -> None:
        self.clip = clip
        self.problems: list[Problem] = []

    def run(self, function: Callable[..., Result], path: str, *arguments: Any) -> Result | None:
        """Call a function on a file; record a ValueError or OSError as a problem and return None."""
        try:
            return function(path, *arguments)
        except DatasetError as error:
            self.problems += error.problems
        except (ValueError, OSError) as error:
            self.problems.append(Problem(self.clip, path, str(error)))
        return None

    def finish(self) -> None:
        """Raise DatasetError if any call failed."""
        if self.problems:
            raise DatasetError(self.problems)
