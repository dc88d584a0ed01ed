"""Helpers of tests that run the `pcmanet` command: a tiny checkpoint, small real clips, and processes to kill."""

import contextlib
import functools
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tiny_model import tiny_model
from tqdm import tqdm

from modeling_pcmanet import PCMANetFeatureExtractor, PCMANetImageProcessor, PCMANetProcessor
from modeling_pcmanet.media_writing_pcmanet import write_video


SIZE = (64, 48)
RATE = 16000
AUDIO_ENCODER = {"block_channels": [[4], [6], [6]], "hidden_size": 12, "embedding_size": 10}


def frames(seconds: int, seed: int = 0) -> np.ndarray:
    """Return coarse noise that moves, ten frames per second."""
    still = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    return np.stack([np.roll(still, frame, axis=1) for frame in range(10 * seconds)])


def audio(seconds: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (1, seconds * RATE)).astype(np.float32)


def write_clip(path: Path, seconds: int = 3, seed: int = 0, *, silent: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a new file, as after a download
    path.write_bytes(encode_clip(seconds, seed, silent))
    return path


@functools.cache
def encode_clip(seconds: int, seed: int, silent: bool) -> bytes:
    """Encode a clip once for all tests, which write hundreds of them; most of the time is that of the noise in AAC."""
    track = () if silent else (audio(seconds, seed), RATE)
    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder) / "clip.mp4", frames(seconds, seed), 10, *track)
        return (Path(folder) / "clip.mp4").read_bytes()


def save_checkpoint(folder: Path, **settings: object) -> Path:
    """Save a tiny model that segments about half of the frame, and its processor."""
    model = tiny_model(sharpness=8.0, audio_config=AUDIO_ENCODER, **settings)
    processor = PCMANetProcessor(PCMANetImageProcessor(size={"height": 32, "width": 32}), PCMANetFeatureExtractor())
    batch = processor(videos=frames(3)[::10], audio=audio(3), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        for stage in model.model.stages:
            stage.head[-1].bias -= model(**batch).logits.median()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def piped_input(path: Path) -> Iterator[None]:
    """Make a pipe with the contents of a file the standard input of this process."""
    before = os.dup(0)
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        os.dup2(writer.stdout.fileno(), 0)
        try:
            yield
        finally:
            os.dup2(before, 0)
            os.close(before)


def start_process(work: Callable[[], object], log: Path) -> int:
    """Run a function in a forked process, which needs no imports, and return its id."""
    process = os.fork()
    if process == 0:
        code = 70
        gc.freeze()  # to finalize what the parent holds, such as its threads, would crash the child
        # A process that a shell runs in the background ignores Ctrl-C, and so would its children.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Forked processes share the lock of progress bars: one that is killed while it draws would block them all.
        tqdm.set_lock(threading.RLock())
        try:
            sys.stdout = sys.stderr = log.open("a", buffering=1)
            code = int(work() or 0)
        finally:
            os._exit(code)
    return process


def wait_until(condition: Callable[[], bool], process: int, log: Path) -> None:
    """Wait until a condition is true; the process must not end before."""
    while not condition():
        assert os.waitpid(process, os.WNOHANG) == (0, 0), log.read_text()
        time.sleep(0.002)


def finish_process(process: int) -> int:
    """Wait for a process and return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def end_process(process: int) -> None:
    """Kill a process with SIGKILL."""
    os.kill(process, signal.SIGKILL)
