"""AVSBench's three trees as downloaded: where the files of every clip lie, from the tables of clips.

Every fact about the layouts stands here once: S4 and MS3 of AVSBench-object (Zhou et al., ECCV 2022) and AVSS of
AVSBench-semantic (Zhou et al., 2023). Nothing here opens a picture or a sound; `avsbench_files` does.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modeling_pcmanet.configuration_pcmanet import AVSBENCH_SEMANTIC_LABELS


SPLITS = ("train", "val", "test")
SHOWN_FAULTS = 100  # lines of an error message; the exception holds them all


@dataclass(frozen=True)
class Problem:
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

    def __init__(self, faults: Sequence[Problem] | str) -> None:
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
            raise AVSBenchError([Problem("", f"{path}, line {line}", problem)])
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
        raise AVSBenchError([Problem("", f"{path}, line {reader.line_num}", f"is no csv: {error}")]) from error
    lines = [(line, values) for line, values in lines if any(values)]
    if not lines:
        raise AVSBenchError([Problem("", str(path), "is empty, not even a header; get the table again")])
    return lines


def require_columns(path: Path, lines: Sequence[tuple[int, list[str]]], columns: Sequence[str]) -> None:
    """Raise AVSBenchError if there is no line, or naming each that has not one value per column."""
    faults = [
        Problem("", f"{path}, line {line}", f"{len(values)} values, expected {len(columns)}: {', '.join(columns)}")
        for line, values in lines
        if len(values) != len(columns)
    ]
    if not lines:
        faults = [Problem("", str(path), "holds a header but no clips; get the table again")]
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
        raise AVSBenchError([Problem("", f"{path}, line {line}", problem)]) from error


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


S4_CATEGORIES = (
    *("helicopter", "mynah_bird_singing", "typing_on_computer_keyboard", "playing_violin", "playing_glockenspiel"),
    *("playing_piano", "lions_roaring", "baby_laughter", "male_speech", "lawn_mowing", "playing_ukulele"),
    *("playing_tabla", "driving_buses", "cap_gun_shooting", "chainsawing_trees", "playing_acoustic_guitar"),
    *("cat_meowing", "female_singing", "ambulance_siren", "dog_barking", "horse_clip-clop", "coyote_howling"),
    "race_car",
)
SECONDS_OF_SUBSET = {"v1s": 5, "v1m": 5, "v2": 10}
LABEL_NUMBERS = "label2idx.json"  # of AVSS, one-based where masks are zero-based
OBJECT_SECONDS = 5  # of S4 and MS3

# What `a_obj` may hold beside class names, and the one published spelling mistake.
NO_CLASS = ("background", "off-the-screen")
CORRECTED_OBJECTS = {"h orse": "horse"}


@dataclass(frozen=True)
class Layout:
    """One published tree.

    Attributes:
        folder: What the tree is called as downloaded.
        table: Its table of clips.
        columns: Of the table, by position.
        named_header: Whether the header is known to hold exactly these names (S4's first name is not known).
        published: Clips per split.
    """

    folder: str
    table: str
    columns: tuple[str, ...]
    named_header: bool
    published: Mapping[str, int]


LAYOUTS = {
    "s4": Layout(
        "Single-source",
        "s4_meta_data.csv",
        ("name", "start second", "category", "split"),
        False,
        {"train": 3452, "val": 740, "test": 740},
    ),
    "ms3": Layout(
        "Multi-sources", "ms3_meta_data.csv", ("video_id", "split"), False, {"train": 296, "val": 64, "test": 64}
    ),
    "avss": Layout(
        "AVSBench_semantic",
        "metadata.csv",
        ("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label"),
        True,
        {"train": 8498, "val": 1304, "test": 1554},
    ),
}


@dataclass(frozen=True)
class ClipFiles:
    """Where the files of one clip lie; nothing says that they exist.

    Attributes:
        id: The published name: S4 `name`, MS3 `video_id`, AVSS `uid`.
        video: Of which video it is a part; the same as `id` except in AVSS (`vid`).
        split: "train", "val" or "test".
        subset: "s4", "ms3", or AVSS's "v1s", "v1m", "v2".
        category: S4's category, else None.
        objects: Names of what sounds, None where AVSBench does not tell (MS3).
        frames: One picture per second.
        masks: One per frame, None where the frame is not annotated.
        colour_coded: Whether masks are `labels_rgb`, VOC-palette colours in place of class indexes.
        audio: The wav.
        log_mel: The published features, None where there are none (AVSS).
    """

    id: str
    video: str
    split: str
    subset: str
    category: str | None
    objects: tuple[str, ...] | None
    frames: tuple[str, ...]
    masks: tuple[str | None, ...]
    colour_coded: bool
    audio: str
    log_mel: str | None

    @property
    def paths(self) -> list[str]:
        """All files of the clip."""
        return [*self.frames, *(mask for mask in self.masks if mask), self.audio, *filter(None, [self.log_mel])]


@dataclass(frozen=True)
class Tree:
    """A tree that was found, and its clips.

    Attributes:
        path: Folder of the table.
        table: The table of clips.
        clips: In the order of the table.
        notes: What was put right or is strange without being wrong, for people.
    """

    path: Path
    table: Path
    clips: list[ClipFiles]
    notes: list[str] = field(default_factory=list)


def find_tree(root: str | Path, name: str) -> Tree:
    """Find one of the published trees and list its clips.

    Args:
        root: The tree itself, or the folder that holds it under its published name.
        name: "s4", "ms3" or "avss".

    Returns:
        The tree, all splits.

    Raises:
        AVSBenchError: If there is no table of clips, or it cannot be used; every bad line is named.
        ValueError: For another name.
    """
    if name not in LAYOUTS:
        raise ValueError(f"name is {name!r}; the published trees are {tuple(LAYOUTS)}")
    layout, table = LAYOUTS[name], locate_table(root, name)
    if table is None:
        problem = f"missing in {root} and in {Path(root) / layout.folder}. Give the folder as downloaded: "
        raise AVSBenchError([Problem("", layout.table, f"{problem}{layout.folder} or the one above it")])
    if name == "avss":
        _require_known_numbers(table.parent / LABEL_NUMBERS)
    return read_clips(table, read_table(table, layout.columns, layout.named_header), name)


def _require_known_numbers(path: Path) -> None:
    """Raise AVSBenchError if AVSS's own table of classes is there and numbers them otherwise than we do."""
    expected = {label: number for number, label in enumerate(AVSBENCH_SEMANTIC_LABELS, start=1)}
    try:
        numbers = json.loads(read_text(path)) if path.is_file() else expected
    except json.JSONDecodeError as error:
        raise AVSBenchError([Problem("", str(path), f"is no JSON: {error}")]) from error
    if numbers != expected:
        problem = "numbers other classes than the published 71, counted from 1; masks would mean other things"
        raise AVSBenchError([Problem("", str(path), problem)])


def locate_table(root: str | Path, name: str) -> Path | None:
    """Find the table of clips of a published tree in a folder or under the tree's published name in it.

    Returns:
        Its path, or None. However the folder was named, the path is one and the same: it names prepared data.
    """
    layout = LAYOUTS[name]
    places = [folder.resolve() / layout.table for folder in (Path(root), Path(root) / layout.folder)]
    return next((place for place in places if place.is_file()), None)


def read_clips(table: Path, rows: Sequence[tuple[int, list[str]]], name: str) -> Tree:
    """Turn the rows of a table into clips.

    Args:
        table: Where the rows are from; files are looked for beside it.
        rows: Line number and values of each.
        name: "s4", "ms3" or "avss".

    Returns:
        The tree.

    Raises:
        AVSBenchError: Naming every row that cannot be used.
    """
    place: Callable[[Path, list[str]], ClipFiles] = {"s4": _place_s4, "ms3": _place_ms3, "avss": _place_avss}[name]
    clips, faults, lines = [], [], {}
    for line, values in rows:
        try:
            clip = place(table.parent, values)
        except ValueError as error:
            faults.append(Problem(values[0], f"{table}, line {line}", str(error)))
            continue
        first = lines.setdefault((clip.split, clip.category, clip.id), line)
        if first != line:
            faults.append(
                Problem(clip.id, f"{table}, line {line}", f"clip {clip.id!r} stands in line {first} already")
            )
        clips.append(clip)
    if faults:
        raise AVSBenchError(faults)
    return Tree(table.parent, table, clips, list(_notes(clips, rows)))


def parse_objects(text: str) -> tuple[str, ...]:
    """Split `a_obj` into names, the published spelling mistake corrected.

    Raises:
        ValueError: If a name is no class of AVSBench-semantic, nor `background` or `off-the-screen`.
    """
    known = (*NO_CLASS, *AVSBENCH_SEMANTIC_LABELS[1:])
    names = [CORRECTED_OBJECTS.get(name, name) for name in text.split("_")]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"a_obj is {text!r}, but {unknown} are none of the 70 classes, nor one of {NO_CLASS}")
    return tuple(names)


def share_nothing(lent: Collection[str] | None, objects: Collection[str] | None) -> bool:
    """Tell whether the sound of one clip belongs to nothing that is heard in another, as far as the data tell.

    AVSBench's `objects` name what sounds, not what is visible: a silent dog in the picture is in no table.

    Args:
        lent: Objects of the clip whose sound is lent.
        objects: Objects of the other clip.

    Returns:
        True if no object is in both; False where either is unknown (MS3), and where a name in `lent` is none of a
        class, because what sounds off the screen or in the background may be anything.
    """
    if not lent or not objects or set(lent) & set(NO_CLASS):
        return False
    return not set(lent) & set(objects)


def _place_s4(tree: Path, values: list[str]) -> ClipFiles:
    name, category = require_name(values[0], "name"), require_choice(values[2], "category", S4_CATEGORIES)
    split, data = require_choice(values[3], "split", SPLITS), tree / "s4_data"
    place = f"{split}/{category}/{name}"
    numbers = range(1, OBJECT_SECONDS + 1)
    masks = [str(data / f"gt_masks/{place}/{name}_{number}.png") for number in numbers]
    return ClipFiles(
        id=name,
        video=name,
        split=split,
        subset="s4",
        category=category,
        objects=(category,),
        frames=tuple(str(data / f"visual_frames/{place}/{name}_{number}.png") for number in numbers),
        masks=_annotated(masks, only_first=split == "train"),
        colour_coded=False,
        audio=str(data / f"audio_wav/{place}.wav"),
        log_mel=str(data / f"audio_log_mel/{place}.pkl"),
    )


def _place_ms3(tree: Path, values: list[str]) -> ClipFiles:
    name, split = require_name(values[0], "video_id"), require_choice(values[1], "split", SPLITS)
    data, numbers = tree / "ms3_data", range(1, OBJECT_SECONDS + 1)
    return ClipFiles(
        id=name,
        video=name,
        split=split,
        subset="ms3",
        category=None,
        objects=None,
        frames=tuple(str(data / f"visual_frames/{name}/{name}.mp4_{number}.png") for number in numbers),
        masks=tuple(str(data / f"gt_masks/{split}/{name}/{name}_{number}.png") for number in numbers),
        colour_coded=False,
        audio=str(data / f"audio_wav/{split}/{name}.wav"),
        log_mel=str(data / f"audio_log_mel/{split}/{name}.pkl"),
    )


def _place_avss(tree: Path, values: list[str]) -> ClipFiles:
    subset = require_choice(values[6], "label", tuple(SECONDS_OF_SUBSET))
    split, objects = require_choice(values[5], "split", SPLITS), parse_objects(values[4])
    folder = tree / subset / require_name(values[1], "uid")
    numbers = range(SECONDS_OF_SUBSET[subset])
    # Indexes say what they mean; colours are read only where nothing else is.
    colour_coded = not (folder / "labels_semantic").is_dir() and (folder / "labels_rgb").is_dir()
    labels = folder / ("labels_rgb" if colour_coded else "labels_semantic")
    return ClipFiles(
        id=values[1],
        video=values[0],
        split=split,
        subset=subset,
        category=None,
        objects=objects,
        frames=tuple(str(folder / f"frames/{number}.jpg") for number in numbers),
        masks=_annotated(
            [str(labels / f"{number}.png") for number in numbers], only_first=(subset, split) == ("v1s", "train")
        ),
        colour_coded=colour_coded,
        audio=str(folder / "audio.wav"),
        log_mel=None,
    )


def _annotated(masks: list[str], only_first: bool) -> tuple[str | None, ...]:
    """Of single-source training clips only the first frame is annotated."""
    return (masks[0], *[None] * (len(masks) - 1)) if only_first else tuple(masks)


def _notes(clips: Sequence[ClipFiles], rows: Sequence[tuple[int, list[str]]]) -> Iterator[str]:
    """Say what was corrected and what is strange without being wrong."""
    for wrong, right in CORRECTED_OBJECTS.items():
        count = sum(any(wrong in value.split("_") for value in values) for _, values in rows)
        if count:
            yield f"{count} row(s) with a_obj {wrong!r}, read as {right!r}"
    for name in NO_CLASS:
        if count := sum(name in (clip.objects or ()) for clip in clips):
            yield f"{count} row(s) with a_obj {name!r}: no class of the picture is named"
    splits = Counter(video for video, _ in {(clip.video, clip.split) for clip in clips})
    if shared := sum(count > 1 for count in splits.values()):
        yield f"{shared} video(s) in more than one split (22 in the published AVSS table)"
