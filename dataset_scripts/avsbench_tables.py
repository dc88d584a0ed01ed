"""Tables of clips, read with suspicion, and the error that names everything that is wrong at once."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


SPLITS = ("train", "val", "test")
SHOWN_FAULTS = 100  # lines of an error message; the exception holds them all


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with one file.

    Attributes:
        clip: Whose file it is; empty if it belongs to no clip.
        path: The file or folder, for tables with the line.
        problem: What came, what was expected, what to do.
    """

    clip: str
    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class AVSBenchError(ValueError):
    """Data that cannot be used. The message names every file, up to `SHOWN_FAULTS`; `faults` holds them all."""

    def __init__(self, faults: Sequence[Fault] | str) -> None:
        # An error in a worker of a DataLoader comes back as its text alone.
        self.faults = [] if isinstance(faults, str) else list(faults)
        super().__init__(faults)

    def __str__(self) -> str:
        if not self.faults:
            return str(self.args[0])
        shown = [f"  {fault}" for fault in self.faults[:SHOWN_FAULTS]]
        if len(self.faults) > SHOWN_FAULTS:
            shown.append(f"  ... and {len(self.faults) - SHOWN_FAULTS} more, in `faults` of this exception")
        return "\n".join([f"{len(self.faults)} fault{'s' * (len(self.faults) > 1)} in the data:", *shown])


def read_table(path: Path, columns: Sequence[str], named_header: bool) -> list[tuple[int, list[str]]]:
    """Read a table of clips.

    Args:
        path: A csv file in UTF-8, with or without byte order mark.
        columns: By position.
        named_header: Whether the first line must hold exactly these names. Otherwise it is taken for a header unless it
            ends in the name of a split.

    Returns:
        Line number and values, stripped of white space, of each row.

    Raises:
        AVSBenchError: If the file is empty, not UTF-8, or has other columns; every bad line is named.
    """
    lines = read_lines(path)
    if named_header or lines[0][1][-1] not in SPLITS:
        line, header = lines.pop(0)
        if named_header and tuple(header) != tuple(columns):
            problem = f"the header is {','.join(header)!r}, expected {','.join(columns)!r}"
            raise AVSBenchError([Fault("", f"{path}, line {line}", problem)])
    require_columns(path, lines, columns)
    return lines


def read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Read a csv file in UTF-8.

    Args:
        path: Of the file.

    Returns:
        Line number and values, stripped of white space, of each line that is not blank; at least one.

    Raises:
        AVSBenchError: If the file is empty, not UTF-8, or no csv.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        lines = [(reader.line_num, [value.strip() for value in values]) for values in reader]
    except csv.Error as error:
        raise AVSBenchError([Fault("", f"{path}, line {reader.line_num}", f"is no csv: {error}")]) from error
    lines = [(line, values) for line, values in lines if any(values)]
    if not lines:
        raise AVSBenchError([Fault("", str(path), "is empty, not even a header; get the table again")])
    return lines


def require_columns(path: Path, lines: Sequence[tuple[int, list[str]]], columns: Sequence[str]) -> None:
    """Raise AVSBenchError if there is no line, or naming each that has not one value per column."""
    faults = [
        Fault("", f"{path}, line {line}", f"{len(values)} values, expected {len(columns)}: {', '.join(columns)}")
        for line, values in lines
        if len(values) != len(columns)
    ]
    if not lines:
        faults = [Fault("", str(path), "holds a header but no clips; get the table again")]
    if faults:
        raise AVSBenchError(faults)


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without byte order mark.

    Raises:
        AVSBenchError: If it is not UTF-8, naming the line.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"byte 0x{data[error.start]:02x} is not UTF-8 (Latin-1 or another encoding?); save the file as UTF-8"
        raise AVSBenchError([Fault("", f"{path}, line {line}", problem)]) from error


def require_name(value: str, what: str) -> str:
    """Return a value that can be the name of one file or folder and nothing else.

    Raises:
        ValueError: If it is empty or leads elsewhere.
    """
    if not value or value in (".", "..") or any(sign in value for sign in ("/", "\\", "\0", ":")):
        raise ValueError(f"{what} {value!r} is no plain file name; a table must not lead out of its tree")
    return value


def require_choice(value: str, what: str, choices: Sequence[str]) -> str:
    """Return a value that is one of the choices.

    Raises:
        ValueError: If it is not.
    """
    if value not in choices:
        raise ValueError(f"{what} is {value!r}, expected one of {', '.join(choices)}")
    return value
