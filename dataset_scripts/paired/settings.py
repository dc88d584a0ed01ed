"""The settings of a paired dataset: which photos and recordings, which labels belong together, how clips are made.

They are in one YAML file, with paths relative to it. examples/paired_data/ has annotated examples. This file checks
only the settings; `library` opens the tables that they name.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from pcmanet.dataset_scripts import SPLITS
from pcmanet.dataset_scripts.problems import DatasetError, Problem, suggest


PICTURES = ("single", "mosaic", "paste")
SOUNDS = ("matching", "absent", "unknown", "background", "silence")
MAX_CLASSES = 254  # 0 is the background and 255 is ignored
NO_PATHS = ("layout", "split", "repo", "revision")  # options of a source that are not paths


@dataclass(frozen=True)
class ClipSettings:
    """How clips are made: the section `clips` of the file. Fractions and probabilities are in [0, 1].

    Attributes:
        seconds: Frames per clip, one per second.
        context_seconds: Seconds of audio before the first and after the last frame's second.
        image_size: Longest side of photos and frames, in pixels.
        sampling_rate: Sampling rate of the audio, in hertz.
        recording_seconds: Longer recordings are cut to this length.
        clips_per_picture: Consecutive clips with the same frames and other audio.
        pictures: Weights of clips that show one photo ("single"), two photos side by side ("mosaic") and a photo with an
            object of another photo ("paste").
        sounds: Weights of clips with sounds of visible objects ("matching"), of classes that are not visible ("absent"), of
            classes without photos ("unknown"), of background recordings alone ("background") and of nothing ("silence").
        contrast: For pictures of several classes with recordings: the fraction in which every clip has a matching
            sound, each of another class.
        similar_sounds: Among the clips with sounds of no visible object ("absent", "unknown"), the fraction whose
            first sound is easily confused with those of a visible class (`PairedClass.similar`), if there is such a
            sound.
        second_sound: Probability that a second visible class also sounds.
        third_sound: Probability of a third one if a second one sounds.
        distractor: Probability that a sound of no visible object is added to matching sounds.
        background: Probability that a background recording is added to other sounds.
        steady: Fraction of sounds that last the whole clip; others start or stop within it.
        still: Fraction of clips without motion.
        zoom: Maximum zoom into a photo, at least 1.
        mirror: Fraction of photos that are mirrored.
        minimum_area: Minimum visible area of an object that a clip is about, as a fraction of the frame.
        level_decibels: Minimum and maximum level of a clip's first sound, relative to full scale (dBFS). A level is the root
            mean square of the parts of a recording that are not silent.
        balance_decibels: Minimum and maximum level of the other sounds relative to the first.
        background_decibels: Minimum and maximum level of an added background recording relative to the first sound.
        stand_ins: Whether a class without recordings is given recordings of other classes. The clip reports them, for
            training that changes the audio features accordingly.
    """

    seconds: int = 5
    context_seconds: float = 0.0
    image_size: int = 400
    sampling_rate: int = 32000
    recording_seconds: float = 10.0
    clips_per_picture: int = 2
    pictures: Mapping[str, float] = field(default_factory=lambda: {"single": 0.55, "mosaic": 0.3, "paste": 0.15})
    sounds: Mapping[str, float] = field(
        default_factory=lambda: {"matching": 0.7, "absent": 0.12, "unknown": 0.07, "background": 0.06, "silence": 0.05}
    )
    contrast: float = 0.6
    similar_sounds: float = 0.0
    second_sound: float = 0.3
    third_sound: float = 0.3
    distractor: float = 0.1
    background: float = 0.25
    steady: float = 0.5
    still: float = 0.3
    zoom: float = 1.6
    mirror: float = 0.5
    minimum_area: float = 0.01
    level_decibels: tuple[float, float] = (-32.0, -14.0)
    balance_decibels: tuple[float, float] = (-6.0, 6.0)
    background_decibels: tuple[float, float] = (-25.0, -8.0)
    stand_ins: bool = False


@dataclass(frozen=True)
class PairedClass:
    """A class and the labels of photos and of recordings that mean it.

    Attributes:
        name: Its name.
        photos: Labels of photos; none for sounds that belong to no class.
        sounds: Labels of recordings; none for a class that is visible but has no recordings.
        similar: Labels of recordings of other classes, or of none, that are easily confused with its sounds.
        audioset: Names of AudioSet classes, for an audio tagger.
        avss: Its name among the classes of AVSBench-semantic, for a tree of that layout.
        s4: Its category of AVSBench S4, for a tree of that layout.
    """

    name: str
    photos: tuple[str, ...]
    sounds: tuple[str, ...] = ()
    similar: tuple[str, ...] = ()
    audioset: tuple[str, ...] = ()
    avss: str | None = None
    s4: str | None = None


@dataclass(frozen=True)
class PairedSettings:
    """The contents of the file.

    Attributes:
        path: The file.
        photos: The photo sources: `layout` and the options of that layout, see `library`.
        recordings: The recording sources, likewise.
        classes: The classes, in the order of the class indices 1, 2, ...
        background: Labels of background recordings, such as rain.
        unknown: Labels of sounds of classes without photos.
        other_sounds: Sounds that belong to no class, for an audio tagger that tells them apart; only with `sounds` and
            `audioset`.
        splits: Fraction of the photos and recordings for "val" and for "test", if their source has no split.
        clips: How clips are made.
        cache: Folder of the decoded photos and recordings; None decodes the files again for every clip.
    """

    path: Path
    photos: tuple[Mapping[str, Any], ...]
    recordings: tuple[Mapping[str, Any], ...]
    classes: tuple[PairedClass, ...]
    background: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    other_sounds: tuple[PairedClass, ...] = ()
    splits: Mapping[str, float] = field(default_factory=lambda: {"val": 0.1, "test": 0.15})
    clips: ClipSettings = ClipSettings()
    cache: Path | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by class index, the background first."""
        return ("background", *(one.name for one in self.classes))

    @property
    def dataset_ids(self) -> list[str]:
        """Ids of the datasets on the Hub that the sources are in."""
        return list(dict.fromkeys(source["repo"] for source in (*self.photos, *self.recordings) if "repo" in source))


def is_paired_data(data: str | Path) -> bool:
    """Return whether the data of a recipe or a command are the settings file of a paired dataset."""
    return Path(data).suffix in (".yaml", ".yml")


# Reading


def read_settings(path: str | Path, overrides: Mapping[str, Any] | None = None) -> PairedSettings:
    """Read and check a settings file.

    Args:
        path: The YAML file.
        overrides: Fields of `ClipSettings` that replace those in the file.

    Returns:
        The settings, with absolute paths, except for those in datasets on the Hub.

    Raises:
        FileNotFoundError: If the file does not exist.
        DatasetError: If it cannot be used; the error lists all problems.
    """
    path = Path(path).resolve()
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DatasetError([Problem("", str(path), f"Not valid YAML: {' '.join(str(error).split())}")]) from error
    problems = list(_find_problems(values, overrides or {}))
    if problems:
        raise DatasetError([Problem("", str(path), problem) for problem in problems])
    return PairedSettings(
        path=path,
        photos=tuple(_absolute(source, path.parent) for source in values["photos"]),
        recordings=tuple(_absolute(source, path.parent) for source in values["recordings"]),
        classes=tuple(_to_class(name, entry) for name, entry in values["classes"].items()),
        background=tuple(values.get("background") or ()),
        unknown=tuple(values.get("unknown") or ()),
        other_sounds=tuple(_to_class(name, entry) for name, entry in (values.get("other_sounds") or {}).items()),
        splits={"val": 0.1, "test": 0.15} | (values.get("splits") or {}),
        clips=_to_clip_settings({**(values.get("clips") or {}), **(overrides or {})}),
        cache=(path.parent / values["cache"]) if values.get("cache") else None,
    )


def _absolute(source: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a source with absolute paths; those of a dataset on the Hub stay relative to it."""
    if "repo" in source:
        return dict(source)
    return {
        key: str(folder / value) if isinstance(value, str) and key not in NO_PATHS else value
        for key, value in source.items()
    }


def _to_class(name: Any, entry: Mapping[str, Any]) -> PairedClass:
    lists = {key: tuple(map(str, entry.get(key) or ())) for key in ("photos", "sounds", "similar", "audioset")}
    return PairedClass(str(name), **lists, avss=entry.get("avss"), s4=entry.get("s4"))


def _to_clip_settings(values: Mapping[str, Any]) -> ClipSettings:
    converted: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    return ClipSettings(**converted)


# Problems


KEYS = tuple(one.name for one in fields(PairedSettings) if one.name != "path")
CLASS_KEYS = tuple(one.name for one in fields(PairedClass) if one.name != "name")
FRACTIONS = (
    *("contrast", "similar_sounds", "second_sound", "third_sound", "distractor", "background"),
    *("steady", "still", "mirror", "minimum_area"),
)
MINIMUM = {"seconds": 1, "context_seconds": 0, "image_size": 32, "sampling_rate": 8000, "recording_seconds": 1}
MINIMUM |= {"clips_per_picture": 1, "zoom": 1}
INTEGERS = ("seconds", "image_size", "sampling_rate", "clips_per_picture")


def _find_problems(values: Any, overrides: Mapping[str, Any]) -> Iterator[str]:
    """Yield everything that is wrong with the contents of the file."""
    if not isinstance(values, dict):
        yield f"Expected key: value pairs, got {type(values).__name__}"
        return
    yield from _unknown_keys(values, KEYS, "the file")
    for section in ("photos", "recordings"):
        yield from _source_problems(section, values.get(section))
    users: dict[tuple[str, str], str] = {}
    yield from _class_problems(values.get("classes"), users)
    yield from _other_sound_problems(values.get("other_sounds") or {}, users)
    for section in ("background", "unknown"):
        if not _is_list_of_text(values.get(section) or []):
            yield f"{section}: Expected a list of labels of recordings, got {values[section]!r}"
    splits = values.get("splits") or {}
    if not isinstance(splits, dict) or set(splits) - set(SPLITS[1:]) or not _are_fractions(splits):
        yield f"splits: Expected the fractions val and test, such as {{val: 0.1, test: 0.15}}, got {splits!r}"
    clips = values.get("clips") or {}
    if not isinstance(clips, dict):
        yield f"clips: Expected key: value pairs, got {clips!r}"
        return
    yield from _clip_problems({**clips, **overrides})


def _unknown_keys(values: Mapping[Any, Any], known: tuple[str, ...], place: str) -> Iterator[str]:
    for key in values:
        if key not in known:
            yield f"Unknown key {key!r} in {place}. {suggest(str(key), known)}"


def _source_problems(section: str, sources: Any) -> Iterator[str]:
    if not isinstance(sources, list) or not sources:
        yield f"{section}: Expected a list of sources, such as [{{layout: ..., path: ...}}], got {sources!r}"
        return
    for number, source in enumerate(sources, start=1):
        if not isinstance(source, dict) or not isinstance(source.get("layout"), str):
            yield f"{section}, source {number}: Expected a layout and its options, got {source!r}"
        elif source.get("split") not in (None, *SPLITS):
            yield f"{section}, source {number}: Expected one of {', '.join(SPLITS)} as split, got {source['split']!r}"
        else:
            yield from (f"{section}, source {number}: {problem}" for problem in _repository_problems(source))


def _repository_problems(source: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the id, the revision and the paths of a dataset on the Hub."""
    if "repo" not in source:
        if "revision" in source:
            yield "revision applies only to a dataset on the Hub. Add repo: OWNER/NAME, or leave revision out."
        return
    try:
        validate_repo_id(source["repo"])
    except HFValidationError:
        yield f"Expected the id of a dataset on the Hub as repo, such as owner/name, got {source['repo']!r}"
    if not isinstance(source.get("revision", ""), str):
        yield f"Expected a branch, tag or commit as revision, got {source['revision']!r}"
    for key, value in source.items():
        path = PurePosixPath(value) if isinstance(value, str) and key not in NO_PATHS else PurePosixPath()
        if path.is_absolute() or ".." in path.parts:
            yield f"Expected {key} relative to the root of the dataset {source['repo']}, got {value!r}"


def _class_problems(classes: Any, users: dict[tuple[str, str], str]) -> Iterator[str]:
    """Yield what is wrong with the classes; `users` collects the class of each label."""
    if not isinstance(classes, dict) or not classes or len(classes) > MAX_CLASSES:
        yield f"classes: Expected 1 to {MAX_CLASSES} classes by name, each with photos and sounds, got {classes!r:.200}"
        return
    for name, entry in classes.items():
        if name == "background" or not isinstance(entry, dict):
            yield f"Class {name!r}: Expected photos: [...] and sounds: [...] of a class other than background, got {entry!r}"
            continue
        yield from _unknown_keys(entry, CLASS_KEYS, f"class {name!r}")
        for key in ("photos", "sounds", "similar", "audioset"):
            yield from _label_problems(f"class {name!r}", key, entry.get(key) or [], users)
        for label in _own_similar_sounds(entry):
            yield f"Class {name!r}, similar: {label!r} is among the sounds of the class. List sounds of other classes or of none."
        if not entry.get("photos"):
            yield f"Class {name!r} has no photos. List its labels, or move its sounds to unknown."


def _other_sound_problems(sounds: Any, users: dict[tuple[str, str], str]) -> Iterator[str]:
    """Yield what is wrong with the sounds that belong to no class."""
    if not isinstance(sounds, dict):
        yield f"other_sounds: Expected sounds by name, each with audioset: [...] and sounds: [...], got {sounds!r:.200}"
        return
    for name, entry in sounds.items():
        if not isinstance(entry, dict) or not entry.get("audioset"):
            yield f"Other sound {name!r}: Expected audioset: [...], and sounds: [...] if there are recordings, got {entry!r}"
            continue
        yield from _unknown_keys(entry, ("sounds", "audioset"), f"other sound {name!r}")
        for key in ("sounds", "audioset"):
            yield from _label_problems(f"other sound {name!r}", key, entry.get(key) or [], users)


def _label_problems(owner: str, key: str, labels: Any, users: dict[tuple[str, str], str]) -> Iterator[str]:
    """Yield the problems of a list of labels; `users` collects the class or other sound that each label belongs to."""
    place = f"{owner[0].upper()}{owner[1:]}, {key}"
    if not _is_list_of_text(labels):
        yield f"{place}: Expected a list of labels, got {labels!r}"
        return
    for label in labels if key in ("photos", "sounds") else ():
        if users.setdefault((key, label), owner) != owner:
            yield f"{place}: {label!r} already belongs to {users[key, label]}"


def _own_similar_sounds(entry: Mapping[str, Any]) -> list[str]:
    """Return the labels that are both among the sounds of a class and among those similar to them."""
    sounds, similar = (entry.get(key) or [] for key in ("sounds", "similar"))
    lists = _is_list_of_text(sounds) and _is_list_of_text(similar)
    return [label for label in similar if label in sounds] if lists else []


def _clip_problems(values: Mapping[str, Any]) -> Iterator[str]:
    known = tuple(one.name for one in fields(ClipSettings))
    yield from _unknown_keys(values, known, "clips")
    for key, value in values.items():
        if expected := _expected_value(key, value):
            yield f"clips, {key}: Expected {expected}, got {value!r}"
    for key, kinds in (("pictures", PICTURES), ("sounds", SOUNDS)):
        weights = values.get(key, {kinds[0]: 1})
        numbers = isinstance(weights, dict) and all(_is_number(value) and value >= 0 for value in weights.values())
        if not numbers or set(weights) - set(kinds) or not sum(weights.values()):
            yield f"clips, {key}: Expected weights of {', '.join(kinds)}, got {weights!r}"


def _expected_value(key: str, value: Any) -> str | None:
    """Return what the value of a field of the clips must be; None if it is valid."""
    if key in FRACTIONS and not _are_fractions({key: value}):
        return "a number from 0 to 1"
    if key in MINIMUM and not (_is_number(value) and value >= MINIMUM[key]):
        return f"a number of at least {MINIMUM[key]}"
    if key in INTEGERS and not isinstance(value, int):
        return "an integer"
    if key == "stand_ins" and not isinstance(value, bool):
        return "true or false"
    return "minimum and maximum, such as [-30, -15]" if key.endswith("_decibels") and not _is_range(value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_fractions(values: Mapping[str, Any]) -> bool:
    return all(_is_number(value) and 0 <= value <= 1 for value in values.values()) and (
        len(values) < 2 or sum(values.values()) < 1
    )


def _is_range(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)
