"""The `pcmanet` command: which command was called, and what the shell is told in the end.

    pcmanet --help
    python -m pcmanet --help    # the same, for torchrun and accelerate launch

Everything heavy is imported when it is needed: help and errors of usage come at once.
"""

import importlib
import os
import shlex
import signal
import sys
import traceback
from types import FrameType

from .arguments import DONE, FAULT, INTERRUPTED, SOME_FAILED, STOPPED, TERMINATED, UNREAD, parse_arguments


# The module that runs each command, imported only when it is asked for.
COMMANDS = {"segment": "pcmanet.cli.segment", "demo": "pcmanet.cli.segment", "info": "pcmanet.cli.info"}


class Terminated(KeyboardInterrupt):
    """SIGTERM came: a batch system takes the machine back. It ends the work as Ctrl-C does."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: What follows `pcmanet`; by default what the shell gave.

    Returns:
        The exit code, see `pcmanet --help`.
    """
    parsed = parse_arguments(arguments)
    earlier = signal.signal(signal.SIGTERM, _terminate)
    try:
        failed = importlib.import_module(COMMANDS[parsed.command]).run(parsed)
        sys.stdout.flush()  # here, where it is known what to do if nobody reads it
        return SOME_FAILED if failed else DONE
    except KeyboardInterrupt as interrupt:
        _say_how_to_go_on(sys.argv[1:] if arguments is None else arguments)
        return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left, as `head` does; the interpreter must not try to write to it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except Exception as error:
        from .inputs import is_user_error, say

        if not is_user_error(error):
            traceback.print_exc()
            return FAULT
        _say(f"error: {say(error)}")
        return STOPPED
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    """Ends the work when SIGTERM comes."""
    raise Terminated


def _say_how_to_go_on(arguments: list[str]) -> None:
    """Says after an interruption, in one of the processes, that nothing is lost."""
    command = shlex.join(["pcmanet", *(word for word in arguments if word != "--overwrite")])
    if "RANK" in os.environ:
        command = "start the same again, with any number of processes"
    if os.environ.get("RANK", "0") == "0":
        _say(f"\ninterrupted: what is done is whole and kept. To go on: {command}")


def _say(text: str) -> None:
    """Writes a line to the error output."""
    print(text, file=sys.stderr)
