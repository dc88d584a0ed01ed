"""Uploads to a Hub with errors: temporary ones are retried, permanent ones are explained, and the named command works."""

import doctest
import hashlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from loopback_hub import Failure, HubError, LoopbackHub

from modeling_pcmanet import hub_upload_pcmanet
from modeling_pcmanet.hub_upload_pcmanet import HubUploadError, create_repository, upload_folder


NAME = "someone/result"
WAITS = (0.01, 0.02, 0.04)
Push = Callable[..., str]


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "server") as server:
        server.connect(monkeypatch, tmp_path / "home")
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
def push(folder: Path) -> Push:
    """Upload the folder with short waits."""
    return partial(upload_folder, folder, NAME, message="result", exclude=[".*"], waits=WAITS)


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


@pytest.mark.parametrize("failures", TEMPORARY.values(), ids=TEMPORARY)
def test_temporary_errors_are_retried(hub: LoopbackHub, folder: Path, push: Push, failures: list[Failure]):
    hub.failures = failures
    address = push()
    assert all(failure.times == 0 for failure in failures)
    assert stored(hub) == hashes(folder)
    commits = hub.repositories["models", NAME].commits
    assert len(commits) == 2  # also if the first attempt succeeded and only its response was lost
    assert address.endswith(f"/{NAME}/commit/{commits[-1].oid}")


PERMANENT = {
    401: "status 401, the token is missing, wrong or expired; log in with `hf auth login` (HF_TOKEN takes precedence)",
    403: "status 403, the token has no write access",
    500: "status 500, .*out of order",
    None: "disconnected",
}


@pytest.mark.parametrize("status", PERMANENT)
def test_permanent_errors_are_explained(hub: LoopbackHub, folder: Path, push: Push, status: int | None):
    error = None if status is None else HubError(status, "It is out of order.")
    hub.failures = [Failure(r"POST .*/commit/", error, times=100)]
    pattern = PERMANENT[status] if status in (500, None) else re.escape(PERMANENT[status])
    with pytest.raises(HubUploadError, match=f"^The upload to {NAME} failed: .*{pattern}") as caught:
        push(private=True)
    assert f"No files are lost: they are in {folder}." in str(caught.value)
    # Another attempt does not fix a wrong token.
    assert 100 - hub.failures[0].times == (1 if status in (401, 403) else 4)
    assert len(hub.repositories["models", NAME].commits) == 1


def test_the_named_command_uploads_all(hub: LoopbackHub, folder: Path, push: Push, tmp_path: Path):
    hub.failures = [Failure(r"POST .*/commit/", HubError(401, "It is out of order."), times=100)]
    with pytest.raises(HubUploadError) as caught:
        push(private=True)
    hub.failures = []
    (command,) = re.findall(r"^    (hf upload .*)$", str(caught.value), flags=re.MULTILINE)
    words = [str(Path(sys.executable).with_name("hf")), *shlex.split(command)[1:]]
    subprocess.run(words, env=hub.environment(tmp_path / "home"), check=True, capture_output=True, timeout=120)
    assert stored(hub) == hashes(folder)
    assert hub.repositories["models", NAME].private


def test_create_repository_finds_an_expired_token(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patches:
        patches.setenv("HF_TOKEN", "expired")
        message = f"Repository {NAME} cannot be created or accessed: status 401, the token is missing"
        with pytest.raises(HubUploadError, match=message):
            create_repository(NAME, waits=WAITS)
    assert hub.repositories == {}
    create_repository(NAME, private=True, waits=WAITS)
    assert hub.repositories["models", NAME].private


def test_upload_to_a_dataset_repository(hub: LoopbackHub, folder: Path, push: Push):
    push(repo_type="dataset", private=True)
    assert stored(hub, "datasets") == hashes(folder)
    hub.failures = [Failure(r"POST ", HubError(403, "Forbidden"), times=100)]
    command = f"hf upload {NAME} '{folder}' . --repo-type dataset --private --exclude '.*'"
    with pytest.raises(HubUploadError, match=re.escape(command)):
        push(repo_type="dataset", private=True)


def test_concurrent_uploads_both_succeed(hub: LoopbackHub, tmp_path: Path):
    folders = [tmp_path / f"part{number}" for number in range(2)]
    for number, folder in enumerate(folders):
        folder.mkdir()
        (folder / f"{number}.txt").write_text(str(number))
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda folder: upload_folder(folder, NAME, message="result", waits=WAITS), folders))
    assert sorted(stored(hub)) == ["0.txt", "1.txt"]


@pytest.mark.parametrize(
    ("token", "constant", "value", "message"),
    [
        ("", "HF_HUB_OFFLINE", False, "the token is missing, wrong or expired"),
        ("x", "HF_HUB_OFFLINE", True, "unset the `HF_HUB_OFFLINE` environment variable"),
        ("x", "ENDPOINT", "http://127.0.0.1:9", "Connection refused"),
    ],
)
def test_local_errors_are_explained(
    push: Push, monkeypatch: pytest.MonkeyPatch, token: str, constant: str, value: object, message: str
):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, constant, value)
    with pytest.raises(HubUploadError, match=message):
        push()


def test_a_wrong_repository_id_is_refused(folder: Path):
    with pytest.raises(HFValidationError, match="so me/result"):
        upload_folder(folder, "so me/result", message="result", waits=WAITS)


def test_docstring_example():
    result = doctest.testmod(hub_upload_pcmanet)
    assert (result.attempted, result.failed) == (1, 0)
