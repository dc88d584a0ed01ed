"""Tests of benchmarks/fuzz_media.py: damage is reproducible, outcomes are classified, and a few hundred mutants have good outcomes."""

import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fuzz_media
import pytest

from modeling_pcmanet import media_pcmanet


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return fuzz_media.write_videos(tmp_path_factory.mktemp("videos"))


def test_undamaged_videos_are_used(videos: dict[str, bytes]) -> None:
    for container, video in videos.items():
        assert fuzz_media.read_as_a_user(video, container) == ("used", "")


def test_mutants_are_reproducible_and_distinct(videos: dict[str, bytes]) -> None:
    first = [fuzz_media.damaged(videos["mp4"], "mp4", number, 0) for number in range(20)]
    assert first == [fuzz_media.damaged(videos["mp4"], "mp4", number, 0) for number in range(20)]
    assert len(set(first)) == 20
    assert videos["mp4"] not in first
    assert first[0] != fuzz_media.damaged(videos["mp4"], "mp4", 0, 1)


def test_two_hundred_mutants_are_used_or_refused(videos: dict[str, bytes]) -> None:
    outcomes = []
    for number in range(210):
        container = list(videos)[number % len(videos)]
        data = fuzz_media.damaged(videos[container], container, number, 7)
        outcomes.append(fuzz_media.read_as_a_user(data, container)[0])
    assert set(outcomes) == set(fuzz_media.GOOD_OUTCOMES)


@pytest.mark.slow
def test_mutants_do_not_depend_on_threads(videos: dict[str, bytes]) -> None:
    """FFmpeg itself gives different frames of a few damaged files from one time to the next, so one of eight must agree."""
    for number in range(70):
        container = list(videos)[number % len(videos)]
        data = fuzz_media.damaged(videos[container], container, number, 3)
        tries = (fuzz_media.read_as_a_user(data, container, threads=(1, 16)) for _ in range(8))
        assert any(outcome in fuzz_media.GOOD_OUTCOMES for outcome, _ in tries), (container, number)


@pytest.mark.parametrize("number", [98, 329, 1323, 1498, 1890, 2051, 2457, 2772, 2884, 3885, 4193])
def test_damage_that_threads_conceal_differently(videos: dict[str, bytes], number: int) -> None:
    """Errors that a decoder with one thread conceals, frames that were left out before them, times that run backwards."""
    data = fuzz_media.damaged(videos["mp4"], "mp4", number, 2)
    assert fuzz_media.read_as_a_user(data, "mp4", threads=(1, 16))[0] in fuzz_media.GOOD_OUTCOMES


def test_a_dependence_on_threads_is_found(videos: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_media, "_read", lambda *_: ("used", "", str(media_pcmanet.FRAME_THREADS)))
    assert fuzz_media.read_as_a_user(videos["mp4"], "mp4", threads=(1, 16)) == (
        "depends on threads",
        "used: ; or used: ",
    )


@pytest.fixture(autouse=True)
def threads_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_pcmanet, "FRAME_THREADS", media_pcmanet.FRAME_THREADS)


def test_a_crash_a_hang_and_memory_are_told_apart_and_survived(
    videos: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_data: bytes, container: str, _threads: tuple[int, ...]) -> tuple[str, str]:
        if container == "mp4":
            os.kill(os.getpid(), signal.SIGKILL)
        if container == "mov":
            while True:
                pass
        if container == "ts":
            time.sleep(600)
        if container == "mkv":
            # Mapped anew: the heap of a long test run may have as much to spare.
            return "used", str(mmap.mmap(-1, 2**26).write(bytes(2**26)))
        if container == "webm":
            raise OverflowError("too far")
        return "used", ""

    monkeypatch.setattr(fuzz_media, "read_as_a_user", read)
    monkeypatch.setattr(fuzz_media, "CONTEXT", fuzz_media.multiprocessing.get_context("fork"))
    reader = fuzz_media.Reader(videos, 0, fuzz_media.Limits(seconds=0.3, memory_bytes=2**25))
    start = time.monotonic()
    results = [reader.read(container, 0) for container in ("mp4", "mov", "ts", "mkv", "webm", "avi")]
    reader.close()
    outcomes = ["crash", "hang", "hang", "too much memory", "other exception", "used"]
    assert [result.outcome for result in results] == outcomes
    assert results[0].detail == "SIGKILL"
    assert results[4].detail == "OverflowError: too far"
    assert time.monotonic() - start < 60
    rows = fuzz_media.table(results).splitlines()
    assert rows[-1] == "| all | 6 | 1 | 0 | 0 | 1 | 0 | 1 | 2 | 1 |"
    assert rows[2] == "| mp4 | 1 | 0 | 0 | 0 | 0 | 0 | 1 | 0 | 0 |"


def test_bad_mutants_are_kept_with_what_came_of_them(tmp_path: Path) -> None:
    fuzz_media.keep([fuzz_media.Result("avi", 12, "crash", "SIGSEGV", 0.1)], 3, tmp_path / "kept")
    assert (tmp_path / "kept" / "avi-3-12.txt").read_text() == "crash: SIGSEGV\n"
    videos = fuzz_media.write_videos(tmp_path)
    assert (tmp_path / "kept" / "avi-3-12.bin").read_bytes() == fuzz_media.damaged(videos["avi"], "avi", 12, 3)


@pytest.mark.slow
def test_thousands_of_mutants_in_worker_processes(tmp_path: Path) -> None:
    options = ["--mutants", "2100", "--seed", "11", "--keep", str(tmp_path / "kept")]
    command = [sys.executable, fuzz_media.__file__, *options]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| all | 2100 |" in printed
    assert not (tmp_path / "kept").exists()
