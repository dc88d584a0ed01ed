"""Damage media files by the thousand and read them: each must be used or refused with a clear error.

    python benchmarks/fuzz_media.py --mutants 5000 --seed 0 --keep failures
    python benchmarks/fuzz_media.py --threads 1 16          # results must be the same with 1 and with 16 threads
    python benchmarks/fuzz_media.py --replay failures/mp4-1234.bin

Videos in seven containers are written, damaged (bits flipped, bytes overwritten, removed, inserted, blocks swapped, the
numbers of headers made extreme, the file truncated) and read by worker processes as a user would: the frames and the audio,
and every frame one at a time. The time of a mutant and the memory of a worker are limited. The printed table counts the
outcomes:

- used: read without a note; used with a note: read, and a note says what is missing;
- clear error: a `MediaError`;
- anything else: another exception, a crash, a hang, too much memory, frames that depend on the number of threads. Such a
  mutant is saved with its number.

Mutant `n` of a container is the same for the same seed, on every machine with the same FFmpeg.
"""

import argparse
import hashlib
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
from typing import Any

import av
import numpy as np
from media_damage import VIDEOS, damaged, write_videos

from modeling_pcmanet import media_pcmanet
from modeling_pcmanet.media_pcmanet import MediaError, iterate_frames, read_audio, read_media


OUTCOMES = (
    "used",
    "used with a note",
    "clear error",
    "other exception",
    "depends on threads",
    "crash",
    "hang",
    "too much memory",
)
GOOD_OUTCOMES = OUTCOMES[:3]

PROGRESS_EVERY = 500

# Not one frame per second: every frame of a short clip would be decoded, because AVSBench counts them.
READING_RATE = 2.0

# A process that sleeps for this multiple of its limit waits for something that never happens.
PATIENCE = 3

# One process imports the libraries, and every worker is forked from it.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["modeling_pcmanet.media_pcmanet"])


@dataclass(frozen=True)
class Limits:
    """Limits of one mutant.

    Attributes:
        seconds: CPU time; while asleep, PATIENCE times as much.
        memory_bytes: Memory in addition to what the worker held before.
    """

    seconds: float = 20.0
    memory_bytes: int = 2**30


@dataclass(frozen=True)
class Result:
    """The outcome of one mutant.

    Attributes:
        container: Suffix of the video that was damaged.
        number: Number of the mutant.
        outcome: One of OUTCOMES.
        detail: The message of an error, the name of a signal.
        seconds: CPU time, in seconds.
    """

    container: str
    number: int
    outcome: str
    detail: str
    seconds: float


class _LogRecorder(logging.Handler):
    """Record the log messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Record one message."""
        self.messages.append(record.getMessage())


def read_as_a_user(data: bytes, container: str, threads: Sequence[int] = (0,)) -> tuple[str, str]:
    """Read a mutant in every way, once with each number of threads.

    Args:
        data: The mutant.
        container: Suffix of the video that it was made from; for a wav file, only the audio is read.
        threads: Numbers of threads that decode frames, 0 for one per core.

    Returns:
        The outcome, and the message or the notes.

    Raises:
        Exception: Anything but a MediaError, which is what this script searches for.
    """
    readings = []
    for media_pcmanet.FRAME_THREADS in threads:
        readings.append(_read(data, container))
    if any(reading != readings[0] for reading in readings):
        return "depends on threads", "; or ".join(f"{outcome}: {detail}" for outcome, detail, _ in readings)
    return readings[0][:2]


def _read(data: bytes, container: str) -> tuple[str, str, str]:
    """Read a mutant and return the outcome, the message or the notes, and a digest of frames and audio."""
    logger, recorder = logging.getLogger("modeling_pcmanet"), _LogRecorder()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers[:] = [recorder]
    digest = hashlib.sha256()
    try:
        if container == "wav":
            waveform, _ = read_audio(data)
        else:
            waveform = _read_video(data, digest)
    except MediaError as error:
        return "clear error", str(error), digest.hexdigest()
    digest.update(waveform.tobytes())
    if not waveform.size or not np.isfinite(waveform).all():
        raise RuntimeError(f"The waveform {waveform.shape} is empty or not finite.")
    outcome = "used with a note" if recorder.messages else "used"
    return outcome, "; ".join(recorder.messages), digest.hexdigest()


def _read_video(data: bytes, digest: Any) -> np.ndarray:
    """Read a video at once and frame by frame, add both to a digest, and return its waveform (channels, samples)."""
    media = read_media(data, frames_per_second=READING_RATE)
    digest.update(media.timestamps.tobytes() + media.frames.tobytes())
    every = []
    for seconds, frame in iterate_frames(data):
        every.append(seconds)
        digest.update(frame.tobytes())
    digest.update(np.array(every).tobytes())
    if len(media.frames) != len(media.timestamps) or not every:
        raise RuntimeError(f"{len(media.frames)} frames have {len(media.timestamps)} times, {len(every)} in all.")
    if (np.diff(media.timestamps) < 0).any() or (np.diff(every) <= 0).any():
        raise RuntimeError(f"Timestamps decrease: {media.timestamps}, {every}.")
    return media.waveform


def work(connection: Connection, videos: dict[str, bytes], seed: int, limits: Limits, threads: Sequence[int]) -> None:
    """Read the requested mutants, one after another, until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            container, number = connection.recv()
        except EOFError:
            return
        data = damaged(videos[container], container, number, seed)
        before = _peak_bytes(reset=True)
        try:
            outcome, detail = read_as_a_user(data, container, threads)
        except MemoryError as error:
            outcome, detail = "too much memory", repr(error)
        except Exception as error:
            outcome, detail = "other exception", f"{type(error).__name__}: {error}"
        grown = _peak_bytes() - before
        if grown > limits.memory_bytes:
            outcome, detail = "too much memory", f"{grown / 2**20:.0f} MiB more; {outcome}: {detail}"
        connection.send((outcome, detail))


def _peak_bytes(reset: bool = False) -> int:
    """Return the peak memory of this process since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


class Reader:
    """A worker process, which is restarted after each crash and hang.

    Args:
        videos: The videos by suffix.
        seed: Seed of the mutants.
        limits: Limits of a mutant.
        threads: Numbers of threads with which it is read.
    """

    def __init__(self, videos: dict[str, bytes], seed: int, limits: Limits, threads: Sequence[int] = (0,)) -> None:
        self._arguments = videos, seed, limits, threads
        self._limits = limits
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def read(self, container: str, number: int) -> Result:
        """Read one mutant."""
        if self._process is None:
            self._start()
        start, cpu = time.monotonic(), _cpu_seconds(self._process.pid)
        self._connection.send((container, number))
        outcome, detail = self._wait(start, cpu)
        return Result(
            container, number, outcome, detail, _cpu_seconds(self._process.pid) - cpu if self._process else 0.0
        )

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        """Start the process."""
        self._connection, other = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=work, args=(other, *self._arguments), daemon=True)
        self._process.start()
        other.close()

    def _wait(self, start: float, cpu: float) -> tuple[str, str]:
        """Wait for the outcome; a hang is too much CPU time, or too much elapsed time while asleep.

        A process that waits for a busy processor is not a hang.
        """
        while not self._connection.poll(0.5):
            used = _cpu_seconds(self._process.pid) - cpu
            waited = time.monotonic() - start
            is_stuck = waited > PATIENCE * self._limits.seconds and not _wants_to_run(self._process.pid)
            if used > self._limits.seconds or is_stuck:
                self.close()
                return "hang", f"{used:.0f} s of CPU time, {waited:.0f} s elapsed"
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self.close()
            return "crash", signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _cpu_seconds(process: int) -> float:
    """Return the CPU time of a process in seconds, 0 if it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wants_to_run(process: int) -> bool:
    """Return whether any thread of a process runs or is ready to run."""
    states = (path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{process}/task").glob("*/stat"))
    return any(state in "RD" for state in states)


def fuzz(
    mutants: int,
    seed: int,
    workers: int,
    limits: Limits,
    threads: Sequence[int] = (0,),
    containers: Sequence[str] = tuple(VIDEOS),
) -> list[Result]:
    """Read mutants 0 .. `mutants` - 1 of the containers in turn.

    Args:
        mutants: Number of mutants.
        seed: Seed of the damage.
        workers: Number of processes.
        limits: Limits of a mutant.
        threads: Numbers of threads with which a mutant is read.
        containers: Containers of the videos to damage.

    Returns:
        The outcomes, in order.
    """
    with tempfile.TemporaryDirectory() as folder:
        videos = write_videos(Path(folder))
    readers: queue.SimpleQueue[Reader] = queue.SimpleQueue()
    for _ in range(workers):
        readers.put(Reader(videos, seed, limits, threads))

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
    """Return the outcomes per container as a table in Markdown."""
    counts = Counter((result.container, result.outcome) for result in results)
    rows = [f"| container | mutants | {' | '.join(OUTCOMES)} |", "|---|" + "---:|" * (1 + len(OUTCOMES))]
    for container in [*dict.fromkeys(result.container for result in results), "all"]:
        numbers = [
            sum(count for (name, outcome), count in counts.items() if outcome == wanted and container in (name, "all"))
            for wanted in OUTCOMES
        ]
        rows.append(f"| {container} | {sum(numbers)} | {' | '.join(map(str, numbers))} |")
    return "\n".join(rows)


def keep(results: Sequence[Result], seed: int, folder: Path) -> None:
    """Write the mutants with bad outcomes to a folder, with the outcome of each."""
    with tempfile.TemporaryDirectory() as videos_folder:
        videos = write_videos(Path(videos_folder))
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        name = f"{result.container}-{seed}-{result.number}"
        (folder / f"{name}.bin").write_bytes(damaged(videos[result.container], result.container, result.number, seed))
        (folder / f"{name}.txt").write_text(f"{result.outcome}: {result.detail}\n")


def replay(path: Path, threads: Sequence[int]) -> None:
    """Read one saved mutant in this process and print its outcome."""
    print(*read_as_a_user(path.read_bytes(), path.name.split("-")[0], threads), sep=": ")


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--mutants", type=int, default=5000, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="number of processes")
    parser.add_argument("--seconds", type=float, default=20.0, help="CPU time of a mutant")
    parser.add_argument("--threads", type=int, nargs="+", default=[0], help="numbers of threads, 0 for one per core")
    parser.add_argument("--memory", type=float, default=1024.0, help="memory of a mutant in MiB")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz_failures"), help="folder for mutants with bad outcomes"
    )
    parser.add_argument("--replay", type=Path, help="read this saved mutant instead, in this process")
    return parser.parse_args(arguments)


def main() -> None:
    """Run the search, print its table, and exit with 1 if a mutant was neither used nor refused with a clear error."""
    arguments = parse_args()
    if arguments.replay:
        replay(arguments.replay, arguments.threads)
        return
    limits = Limits(arguments.seconds, int(arguments.memory * 2**20))
    start = time.monotonic()
    results = fuzz(arguments.mutants, arguments.seed, arguments.workers, limits, arguments.threads)
    bad = [result for result in results if result.outcome not in GOOD_OUTCOMES]
    slowest = max(results, key=lambda result: result.seconds)
    print(table(results))
    print(
        f"\nPyAV {av.__version__}, seed {arguments.seed}, {time.monotonic() - start:.0f} s; slowest mutant {slowest.seconds:.1f} s."
    )
    if bad:
        keep(bad, arguments.seed, arguments.keep)
        sys.exit(f"{len(bad)} mutants were neither used nor refused. See {arguments.keep}/*.txt")


if __name__ == "__main__":
    main()
