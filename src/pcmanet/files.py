"""Folders that appear whole or not at all, and that prove later that they are still whole.

A folder is written aside, next to its place, brought to the disk and renamed. Whoever is killed in between leaves only a
folder aside, which the next writer removes. A manifest of its files tells later whether the disk kept them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


MANIFEST = "manifest.json"
WRITING = ".writing-"  # a folder that is not whole yet
REPLACED = ".replaced-"  # a folder whose successor is being put in its place
REMOVING = ".removing-"  # a folder that is on its way out


class DamagedFolderError(ValueError):
    """A folder that is not as it was written; the message names the file."""


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Give an empty folder to write into, which takes the place of the target when all went well.

    Args:
        target: Where it shall be; a folder that is there is replaced.

    Yields:
        The folder to write into.
    """
    aside = start_aside(target)
    try:
        yield aside
        finish_aside(aside, target)
    finally:
        # After an error its files would only fill the disk.
        shutil.rmtree(aside, ignore_errors=True)


def start_aside(target: Path) -> Path:
    """Make the empty folder in which a target is written, in place of one that a killed run left."""
    aside = target.with_name(WRITING + target.name)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def finish_aside(aside: Path, target: Path) -> None:
    """Bring everything to the disk and rename.

    Raises:
        OSError: If the disk does not take it.
    """
    for path in (*aside.rglob("*"), aside):
        _synchronize(path)
    if not target.exists():
        aside.rename(target)
    else:
        # No system call exchanges two folders everywhere; `recover` puts the old one back if we are killed here.
        replaced = target.with_name(REPLACED + target.name)
        target.rename(replaced)
        aside.rename(target)
        shutil.rmtree(replaced)
    _synchronize(target.parent)


def write_manifest(folder: Path) -> None:
    """List the files of a folder with their sizes and checksums, for `verify`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {path.relative_to(folder).as_posix(): _describe(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps(entries, indent=2) + "\n")


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is never seen half removed."""
    removing = folder.with_name(REMOVING + folder.name)
    shutil.rmtree(removing, ignore_errors=True)
    folder.rename(removing)
    shutil.rmtree(removing)


def recover(parent: Path) -> None:
    """Tidy up what killed writers left in a folder of folders."""
    for left in list(parent.glob(f"{REPLACED}*")):
        target = left.with_name(left.name.removeprefix(REPLACED))
        if target.exists():
            shutil.rmtree(left)
        else:
            left.rename(target)
    for pattern in (WRITING, REMOVING):
        for left in parent.glob(f"{pattern}*"):
            shutil.rmtree(left)


def verify(folder: Path) -> None:
    """Make sure that a folder is as it was written.

    Raises:
        DamagedFolderError: Naming the first file that is missing, cut short or changed.
    """
    try:
        entries = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise DamagedFolderError(f"{folder / MANIFEST} cannot be read ({error})") from error
    for name, expected in entries.items():
        path = folder / name
        try:
            if path.stat().st_size != expected["bytes"]:
                raise DamagedFolderError(f"{path} has {path.stat().st_size} bytes instead of {expected['bytes']}")
            found = _describe(path)
        except OSError as error:
            raise DamagedFolderError(f"{path} cannot be read ({error.strerror})") from error
        if found != expected:
            raise DamagedFolderError(f"{path} does not hold what was written")


def _describe(path: Path) -> dict[str, int | str]:
    """Size and checksum of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _synchronize(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
