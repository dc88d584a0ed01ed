"""Tests of benchmarks/fuzz_media.py: damage is reproducible, outcomes are classified, and a few hundred mutants have good outcomes."""

import importlib.util
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


SCRIPT = Path(__file__).parent.parent / "benchmarks" / "fuzz_media.py"


@pytest.fixture(scope="module")
def fuzz_media() -> Iterator[ModuleType]:
    """The script as a module that worker processes can import too."""
    spec = importlib.util.spec_from_file_location("fuzz_media", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_media"] = module
    sys.path.insert(0, str(SCRIPT.parent))
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPT.parent))
    del sys.modules["fuzz_media"]


@pytest.fixture(scope="module")
def films(fuzz_media: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return fuzz_media.write_films(tmp_path_factory.mktemp("films"))


def test_whole_films_are_used(fuzz_media: ModuleType, films: dict[str, bytes]) -> None:
    for container, film in films.items():
        assert fuzz_media.read_as_a_user(film, container) == ("used", "")


def test_a_mutant_is_the_same_each_time_and_no_other(fuzz_media: ModuleType, films: dict[str, bytes]) -> None:
    first = [fuzz_media.damaged(films["mp4"], "mp4", number, 0) for number in range(20)]
    assert first == [fuzz_media.damaged(films["mp4"], "mp4", number, 0) for number in range(20)]
    assert len(set(first)) == 20
    assert films["mp4"] not in first
    assert first[0] != fuzz_media.damaged(films["mp4"], "mp4", 0, 1)


def test_two_hundred_mutants_are_used_or_refused(fuzz_media: ModuleType, films: dict[str, bytes]) -> None:
    outcomes = []
    for number in range(210):
        container = list(films)[number % len(films)]
        data = fuzz_media.damaged(films[container], container, number, 7)
        outcomes.append(fuzz_media.read_as_a_user(data, container)[0])
    assert set(outcomes) == set(fuzz_media.GOOD_OUTCOMES)


def test_a_crash_a_hang_and_memory_are_told_apart_and_survived(
    fuzz_media: ModuleType, films: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_data: bytes, container: str) -> tuple[str, str]:
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
    reader = fuzz_media.Reader(films, 0, fuzz_media.Limits(seconds=0.3, memory_bytes=2**25))
    start = time.monotonic()
    results = [reader.read(container, 0) for container in ("mp4", "mov", "ts", "mkv", "webm", "avi")]
    reader.close()
    outcomes = ["crash", "hang", "hang", "too much memory", "other exception", "used"]
    assert [result.outcome for result in results] == outcomes
    assert results[0].detail == "SIGKILL"
    assert results[4].detail == "OverflowError: too far"
    assert time.monotonic() - start < 60
    rows = fuzz_media.table(results).splitlines()
    assert rows[-1] == "| all | 6 | 1 | 0 | 0 | 1 | 1 | 2 | 1 |"
    assert rows[2] == "| mp4 | 1 | 0 | 0 | 0 | 0 | 1 | 0 | 0 |"


def test_bad_mutants_are_kept_with_what_came_of_them(fuzz_media: ModuleType, tmp_path: Path) -> None:
    fuzz_media.keep([fuzz_media.Result("avi", 12, "crash", "SIGSEGV", 0.1)], 3, tmp_path / "kept")
    assert (tmp_path / "kept" / "avi-3-12.txt").read_text() == "crash: SIGSEGV\n"
    films = fuzz_media.write_films(tmp_path)
    assert (tmp_path / "kept" / "avi-3-12.bin").read_bytes() == fuzz_media.damaged(films["avi"], "avi", 12, 3)


@pytest.mark.slow
def test_thousands_of_mutants_in_worker_processes(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--mutants", "2100", "--seed", "11", "--keep", str(tmp_path / "kept")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| all | 2100 |" in printed
    assert not (tmp_path / "kept").exists()
