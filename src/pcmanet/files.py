"""Find checkpoints, write files and folders that are complete or absent, and check what an earlier run left behind.

A file or folder is written under a temporary name next to its target, flushed to the disk and renamed. A process that
is killed in between leaves only the temporary one, which [`recover`] removes. A manifest later shows whether a folder
is unchanged. [`keep_settings`] prevents a run from continuing in a folder that was created with other settings.

This file imports the standard library only.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any


TEMPORARY = ".pcmanet-"  # prefix of the names of incomplete files and folders; hidden, so no loader reads them
_REPLACED = f"{TEMPORARY}replaced-"  # a folder while another one takes its place
_SYSTEM_FILES = (".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini")
MANIFEST = "manifest.json"
# A full disk or quota, a file too large for the file system, a broken disk.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name
DEFAULT_MODEL = "real_world"  # name of the model that is installed with the package


def demo_file(name: str) -> Path:
    """Return the path of a file or folder of examples/ that is installed with the package, such as `real_world.mp4`."""
    return Path(str(files("pcmanet.examples") / name))


def find_checkpoint(name: str) -> str:
    """Return the folder or Hub id of a checkpoint.

    Args:
        name: A folder, a Hub id or "real_world".

    Raises:
        FileNotFoundError: If it is none of these. Whether the Hub has the id is not checked.
    """
    if name == DEFAULT_MODEL:
        return str(demo_file("real_world_model"))
    if not (name and Path(name).is_dir()) and not HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"Checkpoint folder {name} not found. Give a folder, or a Hub id as owner/name.")
    return name


def find_recipe(name: str | Path) -> Path:
    """Return the file of a training recipe.

    Args:
        name: A YAML file, or the name of a recipe that is installed with the package, such as "s4".

    Raises:
        FileNotFoundError: If it is neither of these.
    """
    if Path(name).is_file():
        return Path(name)
    installed = {path.stem: path for path in sorted(demo_file("recipes").glob("*.yaml"))}
    if str(name) not in installed:
        raise FileNotFoundError(f"Recipe {name} not found. Give a YAML file, or one of {', '.join(installed)}.")
    return installed[str(name)]


def is_system_file(name: str) -> bool:
    """Return whether macOS or Windows adds files of this name to the folders that a user opens."""
    return name.startswith("._") or name.lower() in _SYSTEM_FILES


@contextmanager
def naming_disk_errors(path: Path) -> Iterator[None]:
    """Add the name of a file or folder to a disk error that has none because an open file raised it.

    Args:
        path: The file or folder that the `with` block writes.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_ERRORS and error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Write a file that appears only when it is complete; an earlier file is replaced in one step.

    Args:
        path: The file. Its folder must exist.
        durable: Whether to wait until the content is on the disk. If False, a power failure can leave a damaged file.
            Use False for many small files that can be computed again.

    Yields:
        A path next to `path`, with the same suffix, to write to. It is removed after an error.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Folder {path.parent} not found. Create it before writing {path.name}.")
    temporary = temporary_path(path)
    try:
        with naming_disk_errors(path):
            yield temporary
        if durable:
            replace_file(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 that appears only when it is complete, see [`atomic_file`]."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False, durable: bool = True) -> Iterator[Path]:
    """Write a folder that appears only when it is complete.

    Args:
        path: The folder. Its parents are created.
        overwrite: Whether to replace an earlier folder, see [`replace_folder`].
        durable: Whether to wait until the files are on the disk, see [`atomic_file`].

    Yields:
        An empty folder to write to. It is removed after an error.

    Raises:
        FileExistsError: If `path` is a file, or without `overwrite` a folder that is not empty.
    """
    path = path.absolute()
    if path.exists() and not (
        path.is_dir() and (overwrite or all(is_system_file(file.name) for file in path.iterdir()))
    ):
        raise FileExistsError(f"{path} already exists and is not an empty folder. Remove it or choose another folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent) as parent:
        temporary = parent / path.name
        temporary.mkdir()
        with naming_disk_errors(path):
            yield temporary
        replace_folder(temporary, path, durable=durable)


def temporary_path(path: Path) -> Path:
    """Return an unused name next to a file, with the same suffix, that [`recover`] removes."""
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}")


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a hidden folder in `parent` that is removed at the end, or by [`recover`] after a kill."""
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def replace_file(temporary: Path, path: Path) -> None:
    """Rename a file after its content is on the disk, and return after its new name is on the disk.

    Args:
        temporary: A closed file in the same file system.
        path: Its new name. An earlier file is replaced.
    """
    synchronize(temporary)
    os.replace(temporary, path)
    synchronize(path.parent)


def replace_folder(temporary: Path, path: Path, *, durable: bool = True) -> None:
    """Rename a complete folder; an earlier folder with the new name is replaced.

    Args:
        temporary: A folder in the same file system.
        path: Its new name.
        durable: Whether to wait until the files and the new name are on the disk.

    Raises:
        OSError: If it cannot be written to the disk.
    """
    if durable:
        for written in (*temporary.rglob("*"), temporary):
            synchronize(written)
    if not path.exists():
        temporary.rename(path)
    else:
        # No system call swaps two folders on every system. `recover` restores the old one after a kill in between.
        replaced = path.with_name(_REPLACED + path.name)
        path.rename(replaced)
        temporary.rename(path)
        shutil.rmtree(replaced)
    if durable:
        synchronize(path.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is never visible with only some of its files."""
    removing = folder.with_name(f"{TEMPORARY}removing-{folder.name}")
    shutil.rmtree(removing, ignore_errors=True)
    folder.rename(removing)
    shutil.rmtree(removing)


def recover(folder: Path) -> None:
    """Finish or undo what killed processes were writing in a folder; no other process may be writing there."""
    for replaced in list(folder.glob(f"{_REPLACED}*")):
        path = folder / replaced.name.removeprefix(_REPLACED)
        if not path.exists():
            replaced.rename(path)
    for left in list(folder.glob(f"{TEMPORARY}*")):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def synchronize(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems, such as shared folders of virtual machines, refuse this for folders; PostgreSQL ignores it too.
        if not (path.is_dir() and error.errno in (errno.EBADF, errno.EINVAL)):
            raise
    finally:
        os.close(descriptor)


def write_manifest(folder: Path) -> None:
    """List the files of a folder with their sizes and checksums, for [`verify`]."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {path.relative_to(folder).as_posix(): _describe(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def verify(folder: Path) -> None:
    """Check that a folder is unchanged since it was written.

    Args:
        folder: A folder with a manifest, see [`write_manifest`].

    Raises:
        ValueError: If a file is missing, truncated or changed; the message names the first such file.
    """
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / MANIFEST} cannot be read ({error})") from error
    for name, expected in entries.items():
        path = folder / name
        try:
            if path.stat().st_size != expected["bytes"]:
                raise ValueError(f"{path} has {path.stat().st_size} bytes instead of {expected['bytes']}")
            found = _describe(path)
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror})") from error
        if found != expected:
            raise ValueError(f"{path} does not have the content that was written")


def _describe(path: Path) -> dict[str, int | str]:
    """Return the size and the checksum of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def read_json(file: Path, remedy: str) -> Any:
    """Read a JSON file that pcmanet wrote.

    Args:
        file: The file.
        remedy: What to do if it is damaged, in a sentence.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}. {remedy}") from error


def keep_settings(file: Path, settings: Mapping[str, Any], remedy: str) -> None:
    """Write the settings of the folder of `file`, or check that an earlier run created it with the same settings.

    Args:
        file: A JSON file in an existing folder.
        settings: Everything on which the results depend, as JSON-serializable values.
        remedy: What to do about other settings, in a sentence.

    Raises:
        ValueError: If the folder was created with other settings.
    """
    if file.is_file():
        check_settings(file.parent, settings, read_json(file, remedy), remedy)
    else:
        write_text(file, json.dumps(settings, indent=2) + "\n")


def check_settings(folder: Path, settings: Mapping[str, Any], earlier: Mapping[str, Any], remedy: str) -> None:
    """Check that a folder was created with the same settings.

    Args:
        folder: The folder, for the error.
        settings: The settings of this run, as JSON-serializable values. Nested mappings are compared value by value.
        earlier: The settings that were read from the folder.
        remedy: What to do about other settings, in a sentence.

    Raises:
        ValueError: If they differ; each difference is listed as "name is X, was Y".
    """
    new, old = _flatten(json.loads(json.dumps(settings))), _flatten(earlier)
    names = [name for name in {**new, **old} if new.get(name) != old.get(name)]
    if names:
        shown = "; ".join(f"{name} is {_show(new.get(name))}, was {_show(old.get(name))}" for name in names)
        raise ValueError(f"{folder} was created with other settings: {shown}. {remedy}")


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping) and value  # an empty mapping differs from None
        flat |= _flatten(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _show(value: Any) -> str:
    """Write the value of a setting."""
    return "not set" if value is None else repr(value)
