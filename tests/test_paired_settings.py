"""Test the settings file of paired data: what it reads, and that all problems are listed at once."""

from pathlib import Path

import pytest
from paired_files import write_settings

from pcmanet.dataset_scripts.avsbench import DatasetError
from pcmanet.dataset_scripts.paired import ClipSettings, is_paired_data, read_settings


EXAMPLES = Path(__file__).parent.parent / "examples" / "paired_data"


def test_reads_classes_paths_and_clips(tmp_path: Path) -> None:
    settings = read_settings(write_settings(tmp_path, cache="kept", clips={"zoom": 2, "level_decibels": [-30, -20]}))
    assert settings.class_names == ("background", "dog", "cat", "bird")
    assert settings.photos[0] == {"layout": "folder", "path": str(tmp_path / "photos")}
    assert settings.cache == tmp_path / "kept"
    assert settings.clips.zoom == 2
    assert settings.clips.level_decibels == (-30, -20)
    assert settings.clips.contrast == ClipSettings().contrast


def test_overrides_replace_fields_of_clips(tmp_path: Path) -> None:
    assert read_settings(write_settings(tmp_path), {"seconds": 1}).clips.seconds == 1
    with pytest.raises(DatasetError, match="Did you mean 'seconds'"):
        read_settings(write_settings(tmp_path), {"second": 1})


def test_lists_all_problems(tmp_path: Path) -> None:
    path = write_settings(
        tmp_path,
        photos=[{"path": "photos"}],
        recordings=[],
        classes={
            "dog": {"photos": ["dog"], "sounds": ["bark"], "sound": ["bark"], "similar": ["bark"]},
            "wolf": {"photos": ["dog"], "sounds": "bark"},
            "background": {"photos": ["x"]},
            "siren": {"sounds": ["siren"]},
        },
        unknown="drum",
        other_sounds={
            "fire": {"sounds": ["fire"]},
            "hiss": {"photos": ["cat"], "sounds": ["siren"], "audioset": ["Hiss"]},
        },
        splits={"val": 0.6, "test": 0.6},
        hue="red",
        clips={"seconds": 0, "steady": 2, "level_decibels": [-5, -10], "sounds": {"loud": 1}, "zom": 2}
        | {"image_size": 64.5, "zoom": float("nan"), "stand_ins": "no", "context_seconds": float("inf")},
    )
    with pytest.raises(DatasetError) as caught:
        read_settings(path)
    text = str(caught.value)
    expected = [
        "Unknown key 'hue' in the file",
        "photos, source 1: Expected a layout",
        "recordings: Expected a list of sources",
        "Unknown key 'sound' in class 'dog'. Did you mean 'sounds'?",
        "Class 'dog', similar: 'bark' is among the sounds of the class",
        "Class 'wolf', photos: 'dog' already belongs to class 'dog'",
        "Class 'wolf', sounds: Expected a list of labels, got 'bark'",
        "Class 'background'",
        "Class 'siren' has no photos",
        "unknown: Expected a list of labels",
        "Other sound 'fire': Expected audioset: [...]",
        "Unknown key 'photos' in other sound 'hiss'",
        "Other sound 'hiss', sounds: 'siren' already belongs to class 'siren'",
        "splits: Expected the fractions",
        "Unknown key 'zom' in clips. Did you mean 'zoom'?",
        "clips, seconds: Expected a number of at least 1, got 0",
        "clips, image_size: Expected an integer, got 64.5",
        "clips, zoom: Expected a number of at least 1, got nan",
        "clips, context_seconds: Expected a number of at least 0, got inf",
        "clips, stand_ins: Expected true or false, got 'no'",
        "clips, steady: Expected a number from 0 to 1, got 2",
        "clips, level_decibels: Expected minimum and maximum",
        "clips, sounds: Expected weights of matching",
    ]
    assert [one for one in expected if one not in text] == []
    assert len(caught.value.problems) == len(expected)


@pytest.mark.parametrize("text", ["a: [", "- 1\n"])
def test_rejects_a_file_without_settings(tmp_path: Path, text: str) -> None:
    path = tmp_path / "paired.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=r"Not valid YAML|Expected key: value pairs"):
        read_settings(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_settings(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    assert len(read_settings(path).classes) >= 7
    assert is_paired_data(path)


def test_a_folder_is_not_paired_data(tmp_path: Path) -> None:
    assert not is_paired_data(tmp_path)
