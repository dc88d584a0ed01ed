"""Find the clips of a dataset and the paths of their files, from its table of clips.

Four layouts are known: S4 and MS3 of AVSBench-object (Zhou et al., ECCV 2022) and AVSS of AVSBench-semantic (Zhou et al.,
2023) as published, and a custom folder of videos:

    clips.csv           a header and one line per clip: video,split and optionally masks,objects
    classes.txt         only for semantic masks: one class per line, the first line is `background`
    videos/dog.mp4      any video with audio
    masks/dog/0.png     the mask of second 0, of its frame at 15/16 s; seconds without a file are not annotated

`video` and `masks` are paths inside the folder. `objects` are names joined by `_`; names of classes.txt may contain `_`
themselves. As in AVSBench-semantic, `off-the-screen` stands for sounds of objects that are not visible, and `background`
for a clip in which no object sounds. Without classes.txt, masks hold 0 and 255 (or 0 and 1); with it, class indices. Masks
have the size of the video.

This file reads tables only. `rows` opens images, audio and video.
"""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from modeling_pcmanet.configuration_pcmanet import AVSBENCH_SEMANTIC_LABELS
from pcmanet.dataset_scripts import SPLITS
from pcmanet.dataset_scripts.problems import DatasetError, Problem, ProblemCollector
from pcmanet.files import is_system_file


# Clips and their files


@dataclass(frozen=True)
class ClipFiles:
    """The paths of the files of an AVSBench clip; the files may be missing.

    Attributes:
        id: The published name: S4 `name`, MS3 `video_id`, AVSS `uid`.
        video: The source video; the same as `id` except in AVSS (`vid`).
        split: "train", "val" or "test".
        subset: "s4", "ms3", or AVSS's "v1s", "v1m", "v2".
        category: S4's category, else None.
        objects: Names of the sounding objects, None where AVSBench does not list them (MS3).
        frames: One image per second.
        masks: One per frame, None where the frame is not annotated.
        mask_encoding: "binary", "indices" or, for `labels_rgb`, "colors" of the VOC palette.
        audio: The wav file.
        log_mel: The published log-mel features, None where none exist (AVSS).
    """

    id: str
    video: str
    split: str
    subset: str
    category: str | None
    objects: tuple[str, ...] | None
    frames: tuple[str, ...]
    masks: tuple[str | None, ...]
    mask_encoding: str
    audio: str
    log_mel: str | None

    @property
    def paths(self) -> list[str]:
        """All files of the clip."""
        return [*self.frames, *(mask for mask in self.masks if mask), self.audio, *filter(None, [self.log_mel])]


@dataclass(frozen=True)
class CustomClipFiles:
    """The paths of the files of a clip in a custom folder; the files may be missing.

    Attributes:
        id: The path of the video inside the folder, in its shortest form.
        split: "train", "val" or "test".
        objects: Names of the sounding objects, None if the table lists none.
        audio: The video file, which holds frames and audio.
        masks: Folder of the masks, None if no frame is annotated.
        num_classes: Classes of semantic masks; 0 for binary masks.
    """

    id: str
    split: str
    objects: tuple[str, ...] | None
    audio: str
    masks: str | None
    num_classes: int

    @property
    def paths(self) -> list[str]:
        """All files of the clip."""
        return [self.audio, *self.mask_files.values()]

    @property
    def mask_files(self) -> dict[str, str]:
        """Path of each mask by its name without suffix, which is the number of its second."""
        names = sorted(os.listdir(self.masks)) if self.masks and os.path.isdir(self.masks) else []
        names = [name for name in names if name[0] != "." and not is_system_file(name)]
        return {os.path.splitext(name)[0]: os.path.join(self.masks or "", name) for name in names}


Clip = ClipFiles | CustomClipFiles


@dataclass(frozen=True)
class Tree:
    """A dataset on disk and its clips.

    Attributes:
        table: The table of clips.
        clips: All splits, in the order of the table.
        problems: Lines of the table that cannot be used and therefore yield no clip.
        notes: Corrections and peculiarities of the table that are not errors.
    """

    table: Path
    clips: list[Clip]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def clips_of(self, split: str) -> list[Clip]:
        """Return the clips of a split.

        Raises:
            ValueError: If it has none; with the lines of the table that cannot be used (DatasetError), if there are any.
        """
        clips = [clip for clip in self.clips if clip.split == split]
        if clips:
            return clips
        splits = ", ".join(each for each in SPLITS if any(clip.split == each for clip in self.clips)) or "no split"
        missing = f"No clips of split {split!r} found in {self.table}; it has clips of {splits}."
        if self.problems:
            raise DatasetError([Problem("", str(self.table), missing), *self.problems])
        raise ValueError(missing)


def have_disjoint_objects(other: Collection[str] | None, objects: Collection[str] | None) -> bool:
    """Return whether the audio of one clip certainly belongs to no sounding object of another clip.

    AVSBench's `objects` list what is sounding, not what is visible: no table lists a silent dog in the frame.

    Args:
        other: Objects of the clip that provides the audio.
        objects: Objects of the clip that receives it.

    Returns:
        True if the clips share no object. False where either list is unknown (MS3), and where `other` contains
        "background" or "off-the-screen", because those may be any class.
    """
    if not other or not objects or set(other) & set(NO_CLASS):
        return False
    return not set(other) & set(objects)


# Tables


OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs"}


def read_table(path: Path, columns: Sequence[str], named_header: bool) -> list[tuple[int, list[str]]]:
    """Read a table of clips.

    Args:
        path: A csv file in UTF-8, with or without byte order mark.
        columns: Column names by position.
        named_header: Whether the first line must hold exactly these names. Otherwise, the first line counts as a
            header unless it ends in the name of a split. It may have other names, but not these in another order.

    Returns:
        Line number and values, stripped of white space, of each row.

    Raises:
        DatasetError: If the file is empty, not UTF-8, not separated by commas, or has another header.
    """
    lines = _read_lines(path)
    if named_header or lines[0][1][-1] not in SPLITS:
        line, header = lines.pop(0)
        other_order = sorted(header) == sorted(columns)
        if (named_header or other_order) and tuple(header) != tuple(columns):
            problem = f"Expected the header {','.join(columns)!r}, got {','.join(header)!r}"
            raise DatasetError([Problem("", f"{path}, line {line}", problem)])
    return _require_rows(path, lines)


def _read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Read the line number and values of each line of a csv file that is not blank; at least one line.

    Raises:
        DatasetError: If the file is empty, not UTF-8 or not separated by commas.
    """
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        lines = [(reader.line_num, [value.strip() for value in values]) for values in reader]
    except csv.Error as error:
        raise DatasetError([Problem("", f"{path}, line {reader.line_num}", f"Invalid csv: {error}")]) from error
    lines = [(line, values) for line, values in lines if any(values)]
    if not lines:
        raise DatasetError([Problem("", str(path), "Empty table without a header. Download it again.")])
    line, header = lines[0]
    for sign, name in OTHER_SEPARATORS.items():
        if len(header) == 1 and sign in header[0]:
            problem = f"The columns are separated by {name}, expected commas. Save the table with commas."
            raise DatasetError([Problem("", f"{path}, line {line}", problem)])
    return lines


def _require_rows(path: Path, lines: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Return the lines below a header; raise DatasetError if there are none."""
    if not lines:
        raise DatasetError([Problem("", str(path), "The table has a header but no clips. Download it again.")])
    return lines


def _locate_clips(
    table: Path,
    rows: Sequence[tuple[int, list[str]]],
    columns: Sequence[str],
    locate: Callable[[Path, dict[str, str]], Clip],
) -> tuple[list[Clip], list[Problem]]:
    """Turn the rows of a table into clips.

    Args:
        table: The table; paths of files are relative to its folder.
        rows: Line number and values of each row.
        columns: Its columns.
        locate: Finds the files of a clip from the folder and the value of each column; raises ValueError for unusable values.

    Returns:
        The clips, and a problem for each row that has another number of values, unusable values, or the clip of another row.
    """
    clips: list[Clip] = []
    problems: list[Problem] = []
    lines: dict[tuple[str | None, ...], int] = {}
    for line, values in rows:
        try:
            if len(values) != len(columns):
                raise ValueError(f"Expected {len(columns)} values ({', '.join(columns)}), got {len(values)}")
            clip = locate(table.parent, dict(zip(columns, values, strict=True)))
            if (first := lines.setdefault(_identity(clip), line)) != line:
                raise ValueError(f"Clip {clip.id!r} is already in line {first}")
        except ValueError as error:
            problems.append(Problem(values[0], f"{table}, line {line}", str(error)))
        else:
            clips.append(clip)
    return clips, problems


def _identity(clip: Clip) -> tuple[str | None, ...]:
    """Return values that identify a row of a table. A video of a custom folder belongs to one split."""
    return (clip.split, clip.category, clip.id) if isinstance(clip, ClipFiles) else (clip.id,)


def _read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without byte order mark; otherwise raise DatasetError with the line."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = (
            f"Byte 0x{data[error.start]:02x} is not UTF-8 (Latin-1 or another encoding?). Save the file as UTF-8."
        )
        raise DatasetError([Problem("", f"{path}, line {line}", problem)]) from error


def _require_name(value: str, column: str) -> str:
    """Return a value that is a plain file name, which cannot lead out of the dataset; else raise ValueError."""
    if not value or value in (".", "..") or any(sign in value for sign in ("/", "\\", "\0", ":")):
        raise ValueError(f"Expected a plain file name as {column}, got {value!r}")
    return value


def _require_path(value: str, column: str) -> str:
    """Return a path inside the folder in its shortest form; else raise ValueError."""
    path = PurePosixPath(value)
    if not path.parts or path.is_absolute() or ".." in path.parts or any(sign in value for sign in ("\\", "\0", ":")):
        raise ValueError(f"Expected a path inside the folder with / between its parts as {column}, got {value!r}")
    return str(path)


def _require_choice(value: str, column: str, choices: Sequence[str]) -> str:
    """Return a value that is one of the choices; else raise ValueError."""
    if value not in choices:
        raise ValueError(f"Unknown {column} {value!r}. Expected one of {', '.join(choices)}.")
    return value


# The published layouts


S4_CATEGORIES = (
    *("helicopter", "mynah_bird_singing", "typing_on_computer_keyboard", "playing_violin", "playing_glockenspiel"),
    *("playing_piano", "lions_roaring", "baby_laughter", "male_speech", "lawn_mowing", "playing_ukulele"),
    *("playing_tabla", "driving_buses", "cap_gun_shooting", "chainsawing_trees", "playing_acoustic_guitar"),
    *("cat_meowing", "female_singing", "ambulance_siren", "dog_barking", "horse_clip-clop", "coyote_howling"),
    "race_car",
)
SECONDS_OF_SUBSET = {"v1s": 5, "v1m": 5, "v2": 10}
PUBLISHED_SUBSETS = {
    "v1s": {"train": 3452, "val": 740, "test": 740},
    "v1m": {"train": 296, "val": 64, "test": 64},
    "v2": {"train": 4750, "val": 500, "test": 750},
}  # clips per split; v1s has the clips of S4, v1m those of MS3
LABEL_NUMBERS = "label2idx.json"  # of AVSS, counted from 1 where masks count from 0
OBJECT_SECONDS = 5  # of S4 and MS3

# Values of `a_obj` in addition to class names, and the one published spelling mistake.
BACKGROUND, OFF_SCREEN = NO_CLASS = ("background", "off-the-screen")
CORRECTED_OBJECTS = {"h orse": "horse"}


@dataclass(frozen=True)
class Layout:
    """One published dataset.

    Attributes:
        folder: Name of its folder as downloaded.
        table: Its table of clips.
        columns: Columns of the table, by position.
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
        PUBLISHED_SUBSETS["v1s"],
    ),
    "ms3": Layout("Multi-sources", "ms3_meta_data.csv", ("video_id", "split"), False, PUBLISHED_SUBSETS["v1m"]),
    "avss": Layout(
        "AVSBench_semantic",
        "metadata.csv",
        ("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label"),
        True,
        {split: sum(counts[split] for counts in PUBLISHED_SUBSETS.values()) for split in SPLITS},
    ),
}


def find_tree(root: str | Path, name: str) -> Tree:
    """Find one of the published datasets and list its clips.

    Args:
        root: The folder of the dataset, or the folder that contains it under its published name.
        name: "s4", "ms3" or "avss".

    Returns:
        The clips of all splits, and the lines that cannot be used.

    Raises:
        DatasetError: If the table of clips is missing or cannot be read, or the classes are numbered differently; the
            error also lists the lines that cannot be used.
        ValueError: If the name is unknown.
    """
    if name not in LAYOUTS:
        raise ValueError(f"Expected one of {tuple(LAYOUTS)} as name, got {name!r}")
    layout, table = LAYOUTS[name], _locate_table(root, name)
    if table is None:
        problem = f"Missing in {root} and in {Path(root) / layout.folder}. Give the folder as downloaded: "
        raise DatasetError([Problem("", layout.table, f"{problem}{layout.folder} or the folder that contains it")])
    collector = ProblemCollector("")
    if name == "avss":
        collector.run(_require_published_numbers, str(table.parent / LABEL_NUMBERS))
    rows = collector.run(lambda _: read_table(table, layout.columns, layout.named_header), str(table)) or []
    return _require_classes_and_table(collector, read_clips(table, rows, name))


def _require_classes_and_table(collector: ProblemCollector, tree: Tree) -> Tree:
    """Return a tree, or raise DatasetError with its unusable lines if its classes or table have a problem."""
    if collector.problems:
        collector.problems += tree.problems
    collector.finish()
    return tree


def _locate_table(root: str | Path, name: str) -> Path | None:
    """Find the table of a published dataset in a folder or in the published folder inside it.

    Returns:
        Its path, or None. The path identifies prepared data, so it does not depend on which folder was given.
    """
    layout = LAYOUTS[name]
    tables = [folder.resolve() / layout.table for folder in (Path(root), Path(root) / layout.folder)]
    return next((table for table in tables if table.is_file()), None)


def _require_published_numbers(path: str) -> None:
    """Raise ValueError if AVSS's own table of classes exists and numbers the classes differently."""
    expected = {label: number for number, label in enumerate(AVSBENCH_SEMANTIC_LABELS, start=1)}
    try:
        numbers = json.loads(_read_text(Path(path))) if os.path.isfile(path) else expected
    except json.JSONDecodeError as error:
        raise ValueError(f"Invalid JSON: {error}") from error
    if numbers != expected:
        raise ValueError(
            "Expected the published numbers of the 71 classes, counted from 1; other numbers change the masks."
        )


def read_clips(table: Path, rows: Sequence[tuple[int, list[str]]], name: str) -> Tree:
    """Turn the rows of a table into clips.

    Args:
        table: The table; paths of files are relative to its folder.
        rows: Line number and values of each row.
        name: "s4", "ms3" or "avss".

    Returns:
        The clips, and the rows that cannot be used.
    """
    locate = {"s4": _locate_s4, "ms3": _locate_ms3, "avss": _locate_avss}[name]
    clips, problems = _locate_clips(table, rows, LAYOUTS[name].columns, locate)
    notes = _describe_peculiarities([clip for clip in clips if isinstance(clip, ClipFiles)], rows)
    return Tree(table, clips, problems, list(notes))


def _locate_s4(root: Path, values: dict[str, str]) -> ClipFiles:
    name = _require_name(values["name"], "name")
    category = _require_choice(values["category"], "category", S4_CATEGORIES)
    split, data = _require_choice(values["split"], "split", SPLITS), root / "s4_data"
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
        masks=_select_annotated(masks, only_first=split == "train"),
        mask_encoding="binary",
        audio=str(data / f"audio_wav/{place}.wav"),
        log_mel=str(data / f"audio_log_mel/{place}.pkl"),
    )


def _locate_ms3(root: Path, values: dict[str, str]) -> ClipFiles:
    name = _require_name(values["video_id"], "video_id")
    split = _require_choice(values["split"], "split", SPLITS)
    data, numbers = root / "ms3_data", range(1, OBJECT_SECONDS + 1)
    return ClipFiles(
        id=name,
        video=name,
        split=split,
        subset="ms3",
        category=None,
        objects=None,
        frames=tuple(str(data / f"visual_frames/{name}/{name}.mp4_{number}.png") for number in numbers),
        masks=tuple(str(data / f"gt_masks/{split}/{name}/{name}_{number}.png") for number in numbers),
        mask_encoding="binary",
        audio=str(data / f"audio_wav/{split}/{name}.wav"),
        log_mel=str(data / f"audio_log_mel/{split}/{name}.pkl"),
    )


def _locate_avss(root: Path, values: dict[str, str]) -> ClipFiles:
    subset = _require_choice(values["label"], "label", tuple(SECONDS_OF_SUBSET))
    split, objects = _require_choice(values["split"], "split", SPLITS), parse_objects(values["a_obj"])
    folder = root / subset / _require_name(values["uid"], "uid")
    numbers = range(SECONDS_OF_SUBSET[subset])
    # Indices are unambiguous; colors are read only where no indices exist.
    colors = not (folder / "labels_semantic").is_dir() and (folder / "labels_rgb").is_dir()
    labels = folder / ("labels_rgb" if colors else "labels_semantic")
    return ClipFiles(
        id=values["uid"],
        video=values["vid"],
        split=split,
        subset=subset,
        category=None,
        objects=objects,
        frames=tuple(str(folder / f"frames/{number}.jpg") for number in numbers),
        masks=_select_annotated(
            [str(labels / f"{number}.png") for number in numbers], only_first=(subset, split) == ("v1s", "train")
        ),
        mask_encoding="colors" if colors else "indices",
        audio=str(folder / "audio.wav"),
        log_mel=None,
    )


def _select_annotated(masks: list[str], only_first: bool) -> tuple[str | None, ...]:
    """Keep the masks of annotated frames: in single-source training clips, only the first frame is annotated."""
    return (masks[0], *[None] * (len(masks) - 1)) if only_first else tuple(masks)


def parse_objects(text: str) -> tuple[str, ...]:
    """Split `a_obj` into names and correct the published spelling mistake.

    Raises:
        ValueError: If a name is neither a class of AVSBench-semantic nor "background" or "off-the-screen".
    """
    known = (*NO_CLASS, *AVSBENCH_SEMANTIC_LABELS[1:])
    names = [CORRECTED_OBJECTS.get(name, name) for name in text.split("_")]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"Expected names of the 70 classes or {NO_CLASS} in a_obj {text!r}, got {unknown}")
    return tuple(names)


def _describe_peculiarities(clips: Sequence[ClipFiles], rows: Sequence[tuple[int, list[str]]]) -> Iterator[str]:
    """Yield a note for each correction and each peculiarity that is not an error."""
    for wrong, right in CORRECTED_OBJECTS.items():
        count = sum(any(wrong in value.split("_") for value in values) for _, values in rows)
        if count:
            yield f"{count} row(s) with a_obj {wrong!r}, read as {right!r}"
    for name in NO_CLASS:
        if count := sum(name in (clip.objects or ()) for clip in clips):
            yield f"{count} row(s) with a_obj {name!r}, which names no visible class"
    splits = Counter(video for video, _ in {(clip.video, clip.split) for clip in clips})
    if shared := sum(count > 1 for count in splits.values()):
        yield f"{shared} video(s) in more than one split (22 in the published AVSS table)"


# The custom folder


FOLDER = "folder"
FOLDER_TABLE = "clips.csv"
FOLDER_CLASSES = "classes.txt"
REQUIRED_COLUMNS, OPTIONAL_COLUMNS = ("video", "split"), ("masks", "objects")
MAX_CLASSES = 255  # 255 itself means "ignore"


def find_folder(root: str | Path) -> Tree:
    """List the clips of a custom folder.

    Args:
        root: The folder that contains clips.csv.

    Returns:
        The clips of all splits, and the lines that cannot be used.

    Raises:
        DatasetError: If the table is missing or cannot be read, or classes.txt cannot be used; the error also lists the
            lines that cannot be used.
    """
    table = Path(root).resolve() / FOLDER_TABLE
    if not table.is_file():
        problem = f"Missing. Write a table with the columns {', '.join(REQUIRED_COLUMNS)}."
        raise DatasetError([Problem("", str(table), problem)])
    collector = ProblemCollector("")
    names = collector.run(read_class_names, str(table.parent)) or ()
    header, lines = collector.run(_read_custom_table, str(table)) or ([], [])
    clips, problems = _locate_clips(table, lines, header, partial(_locate_custom, names=names))
    return _require_classes_and_table(collector, Tree(table, clips, problems))


def _read_custom_table(path: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read clips.csv: its columns, and line number and values of each row; raise DatasetError for another header."""
    (line, header), *lines = _read_lines(Path(path))
    allowed = {*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS}
    if not set(REQUIRED_COLUMNS) <= set(header) <= allowed or len(set(header)) != len(header):
        expected = f"{','.join(REQUIRED_COLUMNS)} and optionally {','.join(OPTIONAL_COLUMNS)}"
        problem = f"Expected the header {expected}, got {','.join(header)!r}"
        raise DatasetError([Problem("", f"{path}, line {line}", problem)])
    return header, _require_rows(Path(path), lines)


def _locate_custom(root: Path, values: dict[str, str], names: Sequence[str]) -> CustomClipFiles:
    video, masks = _require_path(values["video"], "video"), values.get("masks")
    # Classes with a longer name come first: electric_guitar is not a guitar.
    known = "".join(f"{re.escape(name)}|" for name in sorted(names, key=len, reverse=True))
    return CustomClipFiles(
        id=video,
        split=_require_choice(values["split"], "split", SPLITS),
        objects=tuple(re.findall(f"(?:{known}[^_]+)(?=_|$)", values.get("objects", ""))) or None,
        audio=str(root / video),
        masks=str(root / _require_path(masks, "masks")) if masks else None,
        num_classes=len(names),
    )


def read_class_names(root: str | Path) -> tuple[str, ...] | None:
    """Read classes.txt: names in the order of the class indices, the background first.

    Args:
        root: The folder that may contain classes.txt.

    Returns:
        The names, or None if there is no such file.

    Raises:
        DatasetError: If the file exists but is not UTF-8, has fewer than two names, more than 255, or duplicates, or does not
            begin with the background.
    """
    path = Path(root) / FOLDER_CLASSES
    if not path.is_file():
        return None
    names = tuple(line.strip() for line in _read_text(path).splitlines() if line.strip())
    if not 2 <= len(names) <= MAX_CLASSES or len(set(names)) != len(names):
        problem = f"Expected 2 to {MAX_CLASSES} different names, the background first, got {len(names)} names"
        raise DatasetError([Problem("", str(path), problem)])
    if names[0].lower() != BACKGROUND:
        problem = (
            f"Expected {BACKGROUND!r} as the first line, because masks hold 0 for it, got {names[0]!r}. Add that line."
        )
        raise DatasetError([Problem("", str(path), problem)])
    return names


# All layouts


NAMES = (*LAYOUTS, FOLDER)
BINARY_LABELS = ("sounding",)


def find_names(root: str | Path) -> list[str]:
    """Return the names of the datasets whose table of clips is in a folder."""
    names = [name for name in LAYOUTS if _locate_table(root, name)]
    return [*names, FOLDER] if (Path(root) / FOLDER_TABLE).is_file() else names


def label_names(root: str | Path, name: str, *, binary: bool = False) -> tuple[str, ...]:
    """Return the class names of a dataset as the model configuration expects them.

    Args:
        root: As for `find_clips`.
        name: "s4", "ms3", "avss" or "folder".
        binary: Whether semantic masks are read as binary ones.

    Returns:
        ("sounding",) for binary masks, else one name per class index.

    Raises:
        DatasetError: If classes.txt of a custom folder cannot be used.
    """
    if binary:
        return BINARY_LABELS
    if name == "avss":
        return AVSBENCH_SEMANTIC_LABELS
    return (read_class_names(root) if name == FOLDER else None) or BINARY_LABELS
