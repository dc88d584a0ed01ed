"""The `pcmanet` command: run the chosen command and return its exit code.

    pcmanet --help
    python -m pcmanet --help    # the same, for torchrun and accelerate launch

The module of a command, and with it torch, is imported when the command runs. Help and usage errors do not wait for it.
"""

import importlib
import io
import os
import shlex
import signal
import sys
import threading
import traceback
from argparse import Namespace
from datetime import timedelta
from pathlib import Path
from types import FrameType

from pcmanet.dataset_scripts.problems import is_main_process
from pcmanet.files import naming_disk_errors

from .arguments import (
    DONE,
    INTERNAL_ERROR,
    INTERRUPTED,
    OUTPUT_CLOSED,
    SOME_FAILED,
    STOPPED,
    TERMINATED,
    parse_arguments,
)


# The module whose `run(arguments)` runs each command. `pcmanet.cli.arguments` has its options.
COMMANDS = {
    "segment": "pcmanet.cli.segment",
    "demo": "pcmanet.cli.segment",
    "info": "pcmanet.cli.info",
    "evaluate": "pcmanet.cli.evaluate",
    "train": "pcmanet.cli.train",
}


SECONDS_UNTIL_RETRY = 0.05  # of a signal that arrived in a finalizer
STORE_TIMEOUT = timedelta(seconds=10)  # of the connection to the launcher


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after `pcmanet`; by default those of this process.

    Returns:
        The exit code, see `pcmanet --help`.
    """
    _accept_any_text()
    parsed = parse_arguments(arguments)
    earlier = {signal.SIGTERM: signal.signal(signal.SIGTERM, _interrupt)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # otherwise the caller ignores or handles Ctrl-C
        earlier[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupt)
    try:
        return _run(parsed)
    except KeyboardInterrupt as interrupt:
        _print_resume_hint(sys.argv[1:] if arguments is None else arguments)
        return TERMINATED if signal.SIGTERM in interrupt.args else INTERRUPTED
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _accept_any_text() -> None:
    """Let stdout and stderr accept file names in any alphabet, even if they are not UTF-8 or are closed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as with `>&-` in a shell
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, it is open until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # stderr does so by default


def _run(parsed: Namespace) -> int:
    """Run the chosen command and report its error, if any; return the exit code."""
    try:
        failed = importlib.import_module(COMMANDS[parsed.command]).run(parsed)
        with naming_disk_errors(Path("standard output")):
            sys.stdout.flush()  # so that a closed output raises here
        return SOME_FAILED if failed else DONE
    except BrokenPipeError:
        # The reader of the output closed it, as `head` does; the interpreter must not write to it when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED
    except Exception as error:
        _raise_interrupt(error)
        from .inputs import format_error, is_user_error

        if not is_user_error(error):
            traceback.print_exc()
            return INTERNAL_ERROR
        message = format_error(error)
        if _is_first(message):
            print(f"error: {message}", file=sys.stderr)
        return STOPPED


def _raise_interrupt(error: BaseException | None) -> None:
    """Raise the interrupt during whose handling an error occurred, if any, for example when a file is closed twice."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            raise error
        error = error.__context__


def _is_first(message: str) -> bool:
    """Return whether no other process of torchrun or `accelerate launch` has this error message.

    Most user errors occur in every process, but a damaged file only in the one that reads it. The processes count a
    message in the store of their launcher. Without a launcher, or if it has ended, every process is the first.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from torch.distributed import DistError, TCPStore

    launch = f"{os.environ['TORCHELASTIC_RUN_ID']}/{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    try:
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=STORE_TIMEOUT)
        return store.add(f"pcmanet/{launch}/{message}", 1) == 1
    except DistError:
        return True


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    """Stop on Ctrl-C, and on SIGTERM, which a batch system sends before it takes the machine back."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            # Python ignores what a finalizer raises, so the signal would be lost. It is sent again.
            threading.Timer(SECONDS_UNTIL_RETRY, os.kill, (os.getpid(), signal_number)).start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt(signal_number)


def _print_resume_hint(arguments: list[str]) -> None:
    """Print, from one of the processes, that finished results are kept and how to resume."""
    command = shlex.join(["pcmanet", *(word for word in arguments if word != "--overwrite")])
    if "RANK" in os.environ:
        command = "run the same launch command again, with any number of processes"
    if is_main_process():
        print(f"\ninterrupted: finished results are complete and kept. To resume: {command}", file=sys.stderr)
