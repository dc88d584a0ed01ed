"""Damages real media files by the thousand and reads them: what comes must be use or a clear error, nothing else.

    python benchmarks/fuzz_media.py --mutants 5000 --seed 0 --keep failures
    python benchmarks/fuzz_media.py --replay failures/mp4-1234.bin

Films in seven containers are written, damaged (bits turned, bytes overwritten, cut out, put in, blocks swapped, the
numbers of headers made extreme, the file cut off) and read by worker processes as a user would: the frames and the sound,
and every frame one at a time. A mutant has so many seconds, a worker so much memory. The printed table counts what came:

- used: read, with nothing to say; used with a note: read, and it was said what is missing;
- clear error: a `MediaError`;
- anything else: another exception, a crash, a hang, too much memory. Such a mutant is kept with its number.

Mutant `n` of a container is the same for the same seed, on every machine with the same FFmpeg.
"""

import argparse
import logging
import multiprocessing
import os
import queue
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np
from media_damage import FILMS, damaged, write_films

from modeling_pcmanet.media_pcmanet import MediaError, iterate_frames, read_audio, read_media


OUTCOMES = ("used", "used with a note", "clear error", "other exception", "crash", "hang", "too much memory")
GOOD_OUTCOMES = OUTCOMES[:3]

PROGRESS_EVERY = 500

# Not one frame a second: short clips are then counted as AVSBench does, and every frame of them is decoded.
READING_RATE = 2.0

# A process that sleeps for so many times its limit waits for something that never comes.
PATIENCE = 3

# One process holds a copy of the libraries, from which every worker starts.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["modeling_pcmanet.media_pcmanet"])


@dataclass(frozen=True)
class Limits:
    """What one mutant may use.

    Attributes:
        seconds: Time of the processor; asleep, PATIENCE times as much.
        memory_bytes: More than the worker held before.
    """

    seconds: float = 20.0
    memory_bytes: int = 2**30


@dataclass(frozen=True)
class Result:
    """What came of one mutant.

    Attributes:
        container: Suffix of the film that was damaged.
        number: Of the mutant.
        outcome: One of OUTCOMES.
        detail: The message of an error, the name of a signal.
        seconds: How long it took.
    """

    container: str
    number: int
    outcome: str
    detail: str
    seconds: float


class _Listener(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps one message."""
        self.heard.append(record.getMessage())


def read_as_a_user(data: bytes, container: str) -> tuple[str, str]:
    """Reads a mutant in every way that there is.

    Args:
        data: The mutant.
        container: Suffix of the film that it was made from; of a wav only the sound is read.

    Returns:
        The outcome, and what was said.

    Raises:
        Exception: Whatever is no MediaError: that is what the search is for.
    """
    logger, listener = logging.getLogger("modeling_pcmanet"), _Listener()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers[:] = [listener]
    try:
        if container == "wav":
            waveform, _ = read_audio(data)
        else:
            waveform = _read_video(data)
    except MediaError as error:
        return "clear error", str(error)
    if not waveform.size or not np.isfinite(waveform).all():
        raise RuntimeError(f"The sound {waveform.shape} is empty or holds what is no number.")
    return ("used with a note" if listener.heard else "used"), "; ".join(listener.heard)


def _read_video(data: bytes) -> np.ndarray:
    """Reads a video whole and frame by frame, and returns its sound (channels, samples)."""
    media = read_media(data, frames_per_second=READING_RATE)
    every = [seconds for seconds, _ in iterate_frames(data)]
    if len(media.frames) != len(media.timestamps) or not every:
        raise RuntimeError(f"{len(media.frames)} frames have {len(media.timestamps)} times, {len(every)} in all.")
    if (np.diff(media.timestamps) < 0).any() or (np.diff(every) <= 0).any():
        raise RuntimeError(f"Time goes back: {media.timestamps}, {every}.")
    return media.waveform


def work(connection: Connection, films: dict[str, bytes], seed: int, limits: Limits) -> None:
    """Reads the mutants that are asked for, one after another, until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            container, number = connection.recv()
        except EOFError:
            return
        data = damaged(films[container], container, number, seed)
        before = _peak_bytes(reset=True)
        try:
            outcome, detail = read_as_a_user(data, container)
        except MemoryError as error:
            outcome, detail = "too much memory", repr(error)
        except Exception as error:
            outcome, detail = "other exception", f"{type(error).__name__}: {error}"
        grown = _peak_bytes() - before
        if grown > limits.memory_bytes:
            outcome, detail = "too much memory", f"{grown / 2**20:.0f} MiB more; {outcome}: {detail}"
        connection.send((outcome, detail))


def _peak_bytes(reset: bool = False) -> int:
    """Returns the most memory that this process held, since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


class Reader:
    """A worker process, started again after each crash and hang.

    Args:
        films: The films by suffix.
        seed: Of the mutants.
        limits: What a mutant may use.
    """

    def __init__(self, films: dict[str, bytes], seed: int, limits: Limits) -> None:
        self._arguments = films, seed, limits
        self._limits = limits
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def read(self, container: str, number: int) -> Result:
        """Has one mutant read."""
        if self._process is None:
            self._start()
        start, cpu = time.monotonic(), _cpu_seconds(self._process.pid)
        self._connection.send((container, number))
        outcome, detail = self._wait(start, cpu)
        return Result(
            container, number, outcome, detail, _cpu_seconds(self._process.pid) - cpu if self._process else 0.0
        )

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        """Starts the process."""
        self._connection, other = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=work, args=(other, *self._arguments), daemon=True)
        self._process.start()
        other.close()

    def _wait(self, start: float, cpu: float) -> tuple[str, str]:
        """Waits for the outcome; a hang is too much time of the processor, or of the clock with nothing to do.

        On a busy machine a process can wait long for its turn: that is no hang.
        """
        while not self._connection.poll(0.5):
            used = _cpu_seconds(self._process.pid) - cpu
            waited = time.monotonic() - start
            is_stuck = waited > PATIENCE * self._limits.seconds and not _wants_to_run(self._process.pid)
            if used > self._limits.seconds or is_stuck:
                self.close()
                return "hang", f"{used:.0f} s of the processor, {waited:.0f} s of the clock"
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self.close()
            return "crash", signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _cpu_seconds(process: int) -> float:
    """Returns the processor time that a process has used, 0 if it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wants_to_run(process: int) -> bool:
    """Tells whether any thread of a process runs or waits for its turn."""
    states = (path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{process}/task").glob("*/stat"))
    return any(state in "RD" for state in states)


def fuzz(
    mutants: int, seed: int, workers: int, limits: Limits, containers: Sequence[str] = tuple(FILMS)
) -> list[Result]:
    """Reads mutants 0 .. `mutants` - 1, the containers in turn.

    Args:
        mutants: How many.
        seed: Chooses the damage.
        workers: Processes.
        limits: What a mutant may use.
        containers: Of the films to damage.

    Returns:
        What came of each, in order.
    """
    with tempfile.TemporaryDirectory() as folder:
        films = write_films(Path(folder))
    readers: queue.SimpleQueue[Reader] = queue.SimpleQueue()
    for _ in range(workers):
        readers.put(Reader(films, seed, limits))

    def read(number: int) -> Result:
        reader = readers.get()
        try:
            return reader.read(containers[number % len(containers)], number)
        finally:
            readers.put(reader)

    results = []
    with ThreadPoolExecutor(workers) as pool:
        for result in pool.map(read, range(mutants)):
            results.append(result)
            if len(results) % PROGRESS_EVERY == 0:
                print(f"{len(results)} of {mutants} mutants", file=sys.stderr, flush=True)
    while not readers.empty():
        readers.get().close()
    return results


def table(results: Sequence[Result]) -> str:
    """Returns the outcomes per container as a table in Markdown."""
    counts = Counter((result.container, result.outcome) for result in results)
    rows = [f"| film | mutants | {' | '.join(OUTCOMES)} |", "|---|" + "---:|" * (1 + len(OUTCOMES))]
    for container in [*dict.fromkeys(result.container for result in results), "all"]:
        numbers = [
            sum(count for (name, outcome), count in counts.items() if outcome == wanted and container in (name, "all"))
            for wanted in OUTCOMES
        ]
        rows.append(f"| {container} | {sum(numbers)} | {' | '.join(map(str, numbers))} |")
    return "\n".join(rows)


def keep(results: Sequence[Result], seed: int, folder: Path) -> None:
    """Writes the mutants of bad outcomes to a folder, with what came of each."""
    with tempfile.TemporaryDirectory() as films_folder:
        films = write_films(Path(films_folder))
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        name = f"{result.container}-{seed}-{result.number}"
        (folder / f"{name}.bin").write_bytes(damaged(films[result.container], result.container, result.number, seed))
        (folder / f"{name}.txt").write_text(f"{result.outcome}: {result.detail}\n")


def replay(path: Path) -> None:
    """Reads one kept mutant in this process and prints what comes of it."""
    print(*read_as_a_user(path.read_bytes(), path.name.split("-")[0]), sep=": ")


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--mutants", type=int, default=5000, help="how many to read")
    parser.add_argument("--seed", type=int, default=0, help="chooses the damage")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--seconds", type=float, default=20.0, help="processor time for a mutant")
    parser.add_argument("--memory", type=float, default=1024.0, help="MiB for a mutant")
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"), help="folder for mutants of bad outcomes")
    parser.add_argument("--replay", type=Path, help="read this kept mutant instead, in this process")
    return parser.parse_args(arguments)


def main() -> None:
    """Runs the search, prints its table, and exits with 1 if there was anything else than use or a clear error."""
    arguments = parse_args()
    if arguments.replay:
        replay(arguments.replay)
        return
    limits = Limits(arguments.seconds, int(arguments.memory * 2**20))
    start = time.monotonic()
    results = fuzz(arguments.mutants, arguments.seed, arguments.workers, limits)
    bad = [result for result in results if result.outcome not in GOOD_OUTCOMES]
    slowest = max(results, key=lambda result: result.seconds)
    print(table(results))
    print(
        f"\nPyAV {av.__version__}, seed {arguments.seed}, {time.monotonic() - start:.0f} s; slowest mutant {slowest.seconds:.1f} s."
    )
    if bad:
        keep(bad, arguments.seed, arguments.keep)
        sys.exit(f"{len(bad)} mutants were neither used nor refused: see {arguments.keep}/*.txt")


if __name__ == "__main__":
    main()
