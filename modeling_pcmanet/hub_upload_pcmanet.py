"""Upload finished folders to the Hugging Face Hub; an error names the command that uploads the folder again."""

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

# Timeout, two kinds of concurrent writes, too early, too many requests. Server errors are temporary as well.
_TEMPORARY_STATUSES = frozenset({408, 409, 412, 425, 429})
# Errors that another attempt cannot fix.
_PERMANENT_ERRORS = (ValueError, FileNotFoundError, PermissionError, LocalTokenNotFoundError, OfflineModeIsEnabled)
_REMEDIES = {
    401: "the token is missing, wrong or expired; log in with `hf auth login` (HF_TOKEN takes precedence)",
    403: "the token has no write access to the repository; use a token with write access of an account that may write there",
    404: "the repository was not found with this token; check the name and the account of the token",
}


class HubUploadError(OSError):
    """A failed upload of files that are safe on disk; the message contains the reason and the remedy."""


def push_command(
    folder: Path, repository: str, *, repo_type: str = "model", private: bool = False, exclude: Sequence[str] = ()
) -> str:
    """Return the command of huggingface_hub that uploads a folder, also after an interrupted upload.

    Args:
        folder: See [`upload_folder`].
        repository: See [`upload_folder`].
        repo_type: See [`upload_folder`].
        private: See [`upload_folder`].
        exclude: See [`upload_folder`].

    Returns:
        A shell command.

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
    """Create a repository unless it exists. Before a long run, this checks the name and the token.

    Args:
        repository: Repository id, `"owner/name"`.
        repo_type: `"model"`, `"dataset"` or `"space"`.
        private: Whether a new repository is private; an existing one is not changed.
        waits: Seconds before each further attempt.

    Raises:
        HubUploadError: If the Hub refuses the request or cannot be reached.
        ValueError: If the repository id is not valid.
    """

    def create() -> None:
        HfApi().create_repo(repository, repo_type=repo_type, private=private or None, exist_ok=True)

    try:
        _retry(create, repository, waits)
    except HubUploadError as error:
        raise HubUploadError(f"Repository {repository} cannot be created or accessed: {error}.") from error.__cause__


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
    """Upload a folder to a repository, which is created unless it exists, and retry after temporary errors.

    Files that are already on the Hub are not sent again, so a second call resumes an interrupted upload.

    Args:
        folder: Folder to upload; it is not modified.
        repository: Repository id, `"owner/name"`.
        message: Title of the commit.
        repo_type: `"model"`, `"dataset"` or `"space"`.
        private: Whether a new repository is private; an existing one is not changed.
        exclude: Patterns of files that are not uploaded.
        waits: Seconds before each further attempt.

    Returns:
        URL of the commit.

    Raises:
        HubUploadError: If all attempts fail, or the error is permanent, such as a wrong token or a repository without write
            access. The message names the folder and the command that uploads it.
        ValueError: If the repository id is not valid.
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
        return _retry(upload, repository, waits)
    except HubUploadError as error:
        command = push_command(folder, repository, repo_type=repo_type, private=private, exclude=exclude)
        raise HubUploadError(
            f"The upload to {repository} failed: {error}.\nNo files are lost: they are in {folder}. Upload them with\n\n"
            f"    {command}\n"
        ) from error.__cause__


def _retry(request: Callable[[], Result], repository: str, waits: Sequence[float]) -> Result:
    """Send a request again after temporary errors, with growing waits; raise HubUploadError if it keeps failing."""
    remaining = iter(waits)
    while True:
        try:
            return request()
        except HFValidationError:
            raise
        # HTTP, TLS, the disk and a second upload protocol (Xet) raise different errors. For each of them, the message
        # must name the folder.
        except Exception as error:
            reason, wait = _explain(error), next(remaining, None)
            if wait is None or not _is_temporary(error):
                raise HubUploadError(reason) from error
            logger.warning(f"{repository}: {reason}; retrying in {wait:g} s")
            time.sleep(wait)


def _is_temporary(error: Exception) -> bool:
    """Return whether another attempt may succeed."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in _TEMPORARY_STATUSES or status >= 500
    return not isinstance(error, _PERMANENT_ERRORS)


def _explain(error: Exception) -> str:
    """Return the reason of an error on one line, with the remedy if it is known."""
    if isinstance(error, LocalTokenNotFoundError):
        return _REMEDIES[401]
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if not isinstance(error, HfHubHTTPError):
        return text
    status = error.response.status_code
    return f"status {status}, {_REMEDIES.get(status, text)}"
