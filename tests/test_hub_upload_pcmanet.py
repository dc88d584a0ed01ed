"""Uploads to a Hub with errors: temporary ones are retried, permanent ones are explained, and the named command works."""

import doctest
import hashlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loopback_hub import Failure, HubError, LoopbackHub

from modeling_pcmanet import hub_upload_pcmanet


NAME = "someone/result"
# The module on its own, because a process that imports the complete package takes seconds to start.
CALL = f"""
import runpy, sys
from pathlib import Path
module = runpy.run_path({hub_upload_pcmanet.__file__!r})
HubUploadError, create_repository, upload_folder = map(
    module.get, ("HubUploadError", "create_repository", "upload_folder")
)

repo_type, private, action = sys.argv[3], sys.argv[4] == "private", sys.argv[5]
options = dict(repo_type=repo_type, private=private, waits=(0.01, 0.02, 0.04))
try:
    if action == "create":
        create_repository(sys.argv[2], **options)
    else:
        address = upload_folder(Path(sys.argv[1]), sys.argv[2], message="result", exclude=[".*"], **options)
        print(address)
except (HubUploadError, ValueError) as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""
Push = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "server") as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a small file, a large one and an excluded one; the name of the folder needs quoting."""
    path = tmp_path / "the result"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 4000)
    (path / ".state").write_text("local")
    return path


@pytest.fixture
def push(hub: LoopbackHub, folder: Path, tmp_path: Path) -> Push:
    """Upload in a separate process, as users do."""

    def run(
        name: str = NAME,
        *,
        repo_type: str = "model",
        private: str = "public",
        action: str = "upload",
        **variables: str,
    ) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", CALL, str(folder), name, repo_type, private, action]
        environment = hub.environment(tmp_path / "home") | variables
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)

    return run


def stored(hub: LoopbackHub, kind: str = "models") -> dict[str, str]:
    files = hub.repositories[kind, NAME].at("main").files
    return {path: file.sha256 for path, file in files.items() if path != ".gitattributes"}


def hashes(folder: Path) -> dict[str, str]:
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in visible}


TEMPORARY = {
    "connection lost during the large file": [Failure(r"PUT /lfs/")],
    "connection lost during the commit": [Failure(r"POST .*/commit/")],
    "response of the commit lost": [Failure(r"POST .*/commit/", served=True)],
    "three server errors": [Failure(r"POST .*/commit/", HubError(500, "Internal Error"), times=3)],
    "concurrent commit": [Failure(r"POST .*/commit/", HubError(412, "A commit has happened since."))],
    "server busy": [Failure(r"POST /api/repos/create", HubError(503, "Busy"))],
    "every error once": [
        Failure(r"POST /api/repos/create"),
        Failure(r"POST .*/preupload/", HubError(502, "Bad Gateway")),
        Failure(r"POST .*/commit/", HubError(409, "Conflict")),
    ],
}


# Every case starts a process; these three cover all kinds of failures.
QUICK = {"connection lost during the large file", "response of the commit lost", "every error once"}


@pytest.mark.parametrize(
    "failures",
    [
        pytest.param(failures, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, failures in TEMPORARY.items()
    ],
)
def test_temporary_errors_are_retried(hub: LoopbackHub, folder: Path, push: Push, failures: list[Failure]):
    hub.failures = failures
    done = push()
    assert done.returncode == 0, done.stderr
    assert all(failure.times == 0 for failure in failures)
    assert stored(hub) == hashes(folder)
    commits = hub.repositories["models", NAME].commits
    assert len(commits) == 2  # also if the first attempt succeeded and only its response was lost
    assert done.stdout.strip().endswith(f"/{NAME}/commit/{commits[-1].oid}")


PERMANENT = {
    401: "status 401, the token is missing, wrong or expired; log in with `hf auth login` (HF_TOKEN takes precedence)",
    403: "status 403, the token has no write access",
    500: "status 500, .*out of order",
    None: "disconnected",
}


@pytest.mark.parametrize(
    "status", [pytest.param(status, marks=[] if status == 401 else pytest.mark.slow) for status in PERMANENT]
)
def test_permanent_errors_are_explained_and_the_named_command_uploads_all(
    hub: LoopbackHub, folder: Path, push: Push, tmp_path: Path, status: int | None
):
    error = None if status is None else HubError(status, "It is out of order.")
    hub.failures = [Failure(r"POST .*/commit/", error, times=100)]
    done = push(private="private")
    assert done.returncode == 1
    message = " ".join(done.stderr.splitlines())
    pattern = PERMANENT[status] if status in (500, None) else re.escape(PERMANENT[status])
    assert re.search(rf"HubUploadError: The upload to {NAME} failed: .*{pattern}", message), done.stderr
    assert f"No files are lost: they are in {folder}." in message
    # Another attempt does not fix a wrong token.
    assert 100 - hub.failures[0].times == (1 if status in (401, 403) else 4)
    assert len(hub.repositories["models", NAME].commits) == 1

    hub.failures = []
    (command,) = re.findall(r"^    (hf upload .*)$", done.stderr, flags=re.MULTILINE)
    words = [str(Path(sys.executable).with_name("hf")), *shlex.split(command)[1:]]
    subprocess.run(words, env=hub.environment(tmp_path / "home"), check=True, capture_output=True, timeout=120)
    assert stored(hub) == hashes(folder)
    assert hub.repositories["models", NAME].private


def test_create_repository_finds_an_expired_token(hub: LoopbackHub, push: Push):
    done = push(action="create", HF_TOKEN="expired")
    assert done.returncode == 1
    assert f"Repository {NAME} cannot be created or accessed: status 401, the token is missing" in done.stderr
    assert hub.repositories == {}
    done = push(action="create", private="private")
    assert done.returncode == 0, done.stderr
    assert hub.repositories["models", NAME].private


def test_upload_to_a_dataset_repository(hub: LoopbackHub, folder: Path, push: Push):
    done = push(repo_type="dataset", private="private")
    assert done.returncode == 0, done.stderr
    assert stored(hub, "datasets") == hashes(folder)
    hub.failures = [Failure(r"POST ", HubError(403, "Forbidden"), times=100)]
    done = push(repo_type="dataset", private="private")
    assert f"hf upload {NAME} '{folder}' . --repo-type dataset --private --exclude '.*'" in done.stderr


def test_concurrent_uploads_both_succeed(hub: LoopbackHub, tmp_path: Path):
    commands = []
    for number in range(2):
        part = tmp_path / f"part{number}"
        part.mkdir()
        (part / f"{number}.txt").write_text(str(number))
        commands.append([sys.executable, "-c", CALL, str(part), NAME, "model", "public", "upload"])
    running = [subprocess.Popen(command, env=hub.environment(tmp_path / "home")) for command in commands]
    assert [process.wait(120) for process in running] == [0, 0]
    assert sorted(stored(hub)) == ["0.txt", "1.txt"]


@pytest.mark.parametrize(
    ("variables", "name", "message"),
    [
        ({"HF_TOKEN": ""}, NAME, "HubUploadError: .*the token is missing, wrong or expired"),
        ({"HF_HUB_OFFLINE": "1"}, NAME, "HubUploadError: .*unset the `HF_HUB_OFFLINE` environment variable"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, NAME, "HubUploadError: .*Connection refused"),
        ({}, "so me/result", "HFValidationError: .*so me/result"),
    ],
)
def test_local_errors_are_explained(push: Push, variables: dict[str, str], name: str, message: str):
    done = push(name, **variables)
    assert done.returncode == 1
    assert re.search(message, " ".join(done.stderr.splitlines())), done.stderr


def test_docstring_example():
    result = doctest.testmod(hub_upload_pcmanet)
    assert (result.attempted, result.failed) == (1, 0)
