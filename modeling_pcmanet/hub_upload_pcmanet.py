"""A finished folder onto the Hugging Face Hub; a failure leaves the folder and names the command that pushes it again."""

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from transformers.utils import logging


logger = logging.get_logger(__name__)
Result = TypeVar("Result")

WAITS = (1.0, 4.0, 16.0)  # seconds before the second, third and fourth attempt

# Timeout, two states of "somebody else was writing", too early, too many: all over soon, as are the server's own errors.
PASSING_STATUSES = frozenset({408, 409, 412, 425, 429})
# Of these another attempt is sure to fail as well.
LASTING = (ValueError, FileNotFoundError, PermissionError, LocalTokenNotFoundError, OfflineModeIsEnabled)
REMEDIES = {
    401: "the token is missing, wrong or expired; `hf auth login` takes a new one (HF_TOKEN goes before it)",
    403: "the token may not write there; give one that may write, of an account that owns or shares the repository",
    404: "there is no such repository for this token; look at the name and at the account of the token",
}


class HubUploadError(OSError):
    """What was to be pushed is safe on disk, the Hub did not take it; the message says why and what to do."""


def push_command(
    folder: Path, repository: str, *, repo_type: str = "model", private: bool = False, exclude: Sequence[str] = ()
) -> str:
    """Write the command of huggingface_hub that uploads a folder, whatever happened before.

    Args:
        folder: As for `upload_folder`, like all others.
        repository: See there.
        repo_type: See there.
        private: See there.
        exclude: See there.

    Returns:
        A line for the shell.

    Example:
        >>> push_command(Path("runs/my model"), "me/model", private=True)
        "hf upload me/model 'runs/my model' . --private"
    """
    words = ["hf", "upload", repository, str(folder), "."]
    if repo_type != "model":
        words += ["--repo-type", repo_type]
    if private:
        words.append("--private")
    for pattern in exclude:
        words += ["--exclude", pattern]
    return shlex.join(words)


def create_repository(
    repository: str, *, repo_type: str = "model", private: bool = False, waits: Sequence[float] = WAITS
) -> None:
    """Make a repository if there is none; before a long run, this shows whether name and token are good.

    Args:
        repository: As `"owner/name"`.
        repo_type: `"model"`, `"dataset"` or `"space"`.
        private: Whether a new repository is private; one that exists stays as it is.
        waits: Seconds before each further attempt.

    Raises:
        HubUploadError: The Hub refuses it or cannot be reached.
        ValueError: The name is none of a repository.
    """

    def create() -> None:
        HfApi().create_repo(repository, repo_type=repo_type, private=private or None, exist_ok=True)

    try:
        _persist(create, repository, waits)
    except HubUploadError as error:
        raise HubUploadError(f"{repository} on the Hub cannot be made or used: {error}.") from error.__cause__


def upload_folder(
    folder: Path,
    repository: str,
    *,
    message: str,
    repo_type: str = "model",
    private: bool = False,
    exclude: Sequence[str] = (),
    waits: Sequence[float] = WAITS,
) -> str:
    """Upload a folder to a repository, which is made if there is none, again and again if that may help.

    Everything that is to be on the Hub must lie in the folder before. What is there already is not sent twice, so an
    upload that was interrupted goes on.

    Args:
        folder: What to upload; nothing in it is changed.
        repository: As `"owner/name"`.
        message: Title of the commit.
        repo_type: `"model"`, `"dataset"` or `"space"`.
        private: Whether a new repository is private; one that exists stays as it is.
        exclude: Patterns of files that stay here.
        waits: Seconds before each further attempt.

    Returns:
        Address of the commit.

    Raises:
        HubUploadError: All attempts failed, or more would not help: a wrong token, a repository of somebody else. The
            message names the folder and the command that uploads it.
        ValueError: The name is none of a repository.
    """

    def upload() -> str:
        hub = HfApi()
        hub.create_repo(repository, repo_type=repo_type, private=private or None, exist_ok=True)
        commit = hub.upload_folder(
            folder_path=folder,
            repo_id=repository,
            repo_type=repo_type,
            ignore_patterns=list(exclude),
            commit_message=message,
        )
        return commit.commit_url

    try:
        return _persist(upload, repository, waits)
    except HubUploadError as error:
        command = push_command(folder, repository, repo_type=repo_type, private=private, exclude=exclude)
        raise HubUploadError(
            f"The upload to {repository} failed: {error}.\nNothing is lost: all of it is in {folder}. Push it again with\n\n"
            f"    {command}\n"
        ) from error.__cause__


def _persist(work: Callable[[], Result], repository: str, waits: Sequence[float]) -> Result:
    """Do what may fail for a while, with growing waits; raise HubUploadError with the reason when it keeps failing."""
    remaining = iter(waits)
    while True:
        try:
            return work()
        except HFValidationError:
            raise
        # Below lie HTTP, TLS, the disk and a second upload protocol (Xet), each with errors of its own; whichever it
        # is, the user has to hear where the result lies.
        except Exception as error:
            reason, wait = _explain(error), next(remaining, None)
            if wait is None or not _may_pass(error):
                raise HubUploadError(reason) from error
            logger.warning(f"{repository}: {reason}; trying again in {wait:g} s")
            time.sleep(wait)


def _may_pass(error: Exception) -> bool:
    """Tell whether another attempt may go better."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in PASSING_STATUSES or status >= 500
    return not isinstance(error, LASTING)


def _explain(error: Exception) -> str:
    """Say on one line what went wrong and, where it is known, what helps."""
    if isinstance(error, LocalTokenNotFoundError):
        return REMEDIES[401]
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if not isinstance(error, HfHubHTTPError):
        return text
    status = error.response.status_code
    return f"status {status}, {REMEDIES.get(status, text)}"
