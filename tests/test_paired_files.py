"""Test paired clips as files, which the loaders of AVSBench read back, and in the commands."""

import io
import json
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from datasets import load_dataset
from paired_files import RATE, write_paired_data, write_photo_folder, write_settings, write_sound_table
from PIL import Image

from modeling_pcmanet.configuration_pcmanet import AVSBENCH_SEMANTIC_LABELS
from modeling_pcmanet.media_pcmanet import read_audio, read_media
from pcmanet.cli.arguments import parse_arguments
from pcmanet.cli.main import main as pcmanet
from pcmanet.dataset_scripts.avsbench import DatasetError, load_avsbench
from pcmanet.dataset_scripts.avsbench.check import check
from pcmanet.dataset_scripts.avsbench.rows import RowSettings
from pcmanet.dataset_scripts.clips import to_arrays
from pcmanet.dataset_scripts.evaluation import find_evaluation_clips, find_off_screen_audio
from pcmanet.dataset_scripts.paired import Library, PairedClip, PairedClips, PairedSettings, read_settings
from pcmanet.dataset_scripts.paired.__main__ import main, parse_args
from pcmanet.dataset_scripts.paired.files import to_row, write_parquet, write_tree
from pcmanet.training.recipe import Recipe


COUNTS = {"train": 3, "val": 1, "test": 2}
S4 = {"dog": "dog_barking", "cat": "cat_meowing", "bird": "mynah_bird_singing"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, recordings and settings with names of AVSBench, and a cache."""
    root = tmp_path_factory.mktemp("paired")
    classes = {
        name: {"photos": [name], "sounds": [name], "avss": name, "s4": category} for name, category in S4.items()
    }
    write_paired_data(root, classes=classes, clips={"seconds": 5}, cache="kept")
    return root


@pytest.fixture(scope="module")
def library(root: Path) -> Library:
    """The library of these settings."""
    return Library(read_settings(root / "paired.yaml"))


def assert_lists_objects(objects: list[str], clip: PairedClip) -> None:
    """Assert that a row lists the visible sounding objects, and whether its audio holds those that are not visible."""
    names = {clip.class_names[index] for index in clip.sounding_objects()}
    assert set(objects) - {"background", "off-the-screen"} == names
    others = {event.label for event in clip.events if event.index} - names
    assert ("off-the-screen" in objects) == (bool(others) or clip.sound == "unknown")
    assert ("background" in objects) == (objects == ["background"])


def test_every_other_class_in_the_audio_of_a_row_is_marked(tmp_path: Path) -> None:
    path = write_paired_data(tmp_path, clips={"distractor": 0.5, "seconds": 1})
    clips = PairedClips(Library(read_settings(path)), "ms3", "train", length=60)
    rows = [to_row(clips[index])["objects"] for index in range(60)]
    for index, objects in enumerate(rows):
        assert_lists_objects(objects, clips[index])
    kinds = Counter((bool(set(one) - {"background", "off-the-screen"}), "off-the-screen" in one) for one in rows)
    assert min(kinds[has_objects, is_marked] for has_objects in (True, False) for is_marked in (True, False)) > 2


def test_clips_of_a_folder_provide_off_screen_audio(tmp_path: Path) -> None:
    names = {"electric_guitar": "dog", "bass_guitar": "cat", "bird": "bird"}
    classes = {name: {"photos": [label], "sounds": [label]} for name, label in names.items()}
    path = write_paired_data(tmp_path, classes=classes, clips={"seconds": 1, "distractor": 0.5})
    folder = write_tree(Library(read_settings(path)), tmp_path / "out", "folder", {"test": 12})
    data = find_evaluation_clips(folder, "folder", "test", RowSettings())
    listed = [set(clip.objects or ()) for clip in data.clips]
    assert set().union(*listed) <= {*names, "background", "off-the-screen"}
    assert {"electric_guitar"} in listed and any(len(one) > 1 for one in listed) and {"background"} in listed
    objects = {clip.audio: one for clip, one in zip(data.clips, listed, strict=True)}
    files = find_off_screen_audio(data)
    for file, own in zip(files, listed, strict=True):
        assert objects[file] <= set(names) - own
    # A clip with empty masks needs no objects in the table.
    table = folder / "clips.csv"
    table.write_text(table.read_text(encoding="utf-8").replace(",background\n", ",\n"), encoding="utf-8")
    data = find_evaluation_clips(folder, "folder", "test", RowSettings())
    assert any(clip.objects is None for clip in data.clips) and find_off_screen_audio(data) == files


@pytest.mark.parametrize("layout", ["s4", "ms3", "avss"])
def test_trees_are_read_as_avsbench(library: Library, tmp_path: Path, layout: str) -> None:
    write_tree(library, tmp_path, layout, COUNTS)
    assert check(tmp_path, layout, RowSettings()).problems == []
    for split, count in COUNTS.items():
        rows = cast(Any, load_avsbench(tmp_path, layout, split=split, streaming=True))
        rows = list(rows)
        assert len(rows) == count
        clips = PairedClips(library, layout, split, length=20 * count)
        chosen = [clips[k] for k in range(len(clips)) if layout != "s4" or clips[k].sounding_objects()][:count]
        for row, clip in zip(rows, chosen, strict=True):
            binary = layout != "avss"
            arrays = to_arrays(row, binary)
            assert arrays.annotated_frames.tolist() == clip.annotated_frames.tolist()
            assert arrays.waveform is not None
            np.testing.assert_allclose(arrays.waveform[0], cast(Any, clip.waveform)[0].clip(-1, 1), atol=1e-4)
            table = np.zeros(256, dtype=np.uint8)
            table[1:4] = [1, 1, 1] if binary else [AVSBENCH_SEMANTIC_LABELS.index(name) for name in S4]
            for number in np.flatnonzero(clip.annotated_frames):
                expected = Image.fromarray(table[clip.masks[number]])
                if binary:
                    expected = expected.resize((224, 224), Image.Resampling.NEAREST)
                np.testing.assert_array_equal(arrays.masks[number], np.asarray(expected))
            names = [clip.class_names[index] for index in clip.sounding_objects()]
            if layout == "s4":
                assert row["objects"] == [S4[names[0]]]
            if layout == "avss":
                assert_lists_objects(row["objects"], clip)


def test_folder_of_videos_keeps_the_classes(library: Library, tmp_path: Path) -> None:
    folder = write_tree(library, tmp_path, "folder", COUNTS)
    assert (folder / "classes.txt").read_text(encoding="utf-8").split() == ["background", "dog", "cat", "bird"]
    rows = list(cast(Any, load_avsbench(folder, "folder", split="test", streaming=True)))
    for index, row in enumerate(rows):
        clip = PairedClips(library, "avss", "test", length=2)[index]
        arrays = to_arrays(row, False)
        np.testing.assert_array_equal(arrays.masks, np.where(clip.masks == 255, 0, clip.masks))
        assert np.abs(arrays.frames.astype(int) - clip.frames).mean() < 12
        assert_lists_objects(row["objects"], clip)


@pytest.mark.parametrize("task", ["ms3", "avss"])
def test_parquet(library: Library, tmp_path: Path, task: str) -> None:
    folder = write_parquet(library, tmp_path / "out", task, COUNTS)
    loaded = cast(Any, load_dataset(str(folder), task, cache_dir=str(tmp_path / "cache")))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 3, "validation": 1, "test": 2}
    for index, row in enumerate(loaded["train"]):
        clip = PairedClips(library, task, "train", length=3)[index]
        arrays = to_arrays(row, task == "ms3")
        np.testing.assert_array_equal(arrays.masks, clip.masks)
        assert np.abs(arrays.frames.astype(int) - clip.frames).mean() < 4
        assert_lists_objects(row["objects"], clip)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert ("0 background, 1 dog, 2 cat, 3 bird" in text) == (task == "avss")


def test_a_row_is_the_clip(library: Library) -> None:
    clip = PairedClips(library, "s4", "train", length=1)[0]
    row = to_row(clip)
    assert [mask is None for mask in row["masks"]] == [False, True, True, True, True]
    waveform, rate = read_audio(io.BytesIO(row["audio"]["bytes"]))
    assert rate == RATE
    np.testing.assert_allclose(waveform, cast(Any, clip.waveform).clip(-1, 1), atol=1e-4)


def test_problems_of_layouts(tmp_path: Path) -> None:
    path = write_paired_data(tmp_path)
    library = Library(read_settings(path))
    with pytest.raises(ValueError, match="Expected clips of 5 seconds without context for s4, got 3"):
        write_tree(library, tmp_path / "out", "s4", COUNTS)
    classes = {"dog": {"photos": ["dog"], "sounds": ["dog"], "avss": "hound"}, "cat": {"photos": ["cat"]}}
    library = Library(read_settings(write_settings(tmp_path, classes=classes, clips={"seconds": 5})))
    with pytest.raises(DatasetError) as caught:
        write_tree(library, tmp_path / "out", "avss", COUNTS)
    assert "class 'dog': Expected a class of AVSBench as `avss`, got 'hound'" in str(caught.value)
    assert "class 'cat': Expected a class of AVSBench as `avss`, got None" in str(caught.value)
    with pytest.raises(DatasetError, match="class 'dog': Expected a category of AVSBench as `s4`, got None") as caught:
        write_tree(library, tmp_path / "out", "s4", COUNTS)
    assert len(caught.value.problems) == 1  # a cat has no recordings, so no clip needs its category
    with pytest.raises(ValueError, match="Expected counts"):
        write_parquet(library, tmp_path / "out", "ms3", {"all": 1})
    assert not (tmp_path / "out").exists()


# Commands


def test_check_prints_the_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(root / "paired.yaml")]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[2:]}
    assert set(lines) == {"dog", "cat", "bird", "(unknown)", "(background)"}
    assert sum(map(int, lines["dog"][:3])) == 6
    assert list(map(int, lines["dog"][3:])) == [8, 2, 2]


def test_check_lists_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_paired_data(tmp_path)
    (tmp_path / "photos" / "masks" / "photo_01.png").unlink()
    assert main(["check", str(path)]) == 1
    assert "photo_01.png" in capsys.readouterr().err


def test_clip_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "clip.mp4"
    arguments = ["clip", str(root / "paired.yaml"), "--index", "2", "--output", str(output), "--plain"]
    assert main(arguments) == 0
    media, clip = read_media(output), PairedClips(Library(read_settings(root / "paired.yaml")), length=3)[2]
    assert len(media.frames) == 5
    assert np.abs(media.frames[0][: clip.frames.shape[1]].astype(int) - clip.frames[0]).mean() < 12
    assert f"{clip.picture}, {clip.sound}" in capsys.readouterr().out


@pytest.mark.parametrize("command", [("tree", "--layout", "ms3"), ("parquet", "--task", "avss")])
def test_writing_commands(root: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    name, *options = command
    counts = ["--train", "1", "--val", "1", "--test", "0", "--num-workers", "0"]
    assert main([name, str(root / "paired.yaml"), *options, *counts, "--output", str(tmp_path / "out")]) == 0
    assert any((tmp_path / "out").iterdir())


RECIPE = """
task: {task}
clips: 4
evaluation_clips: 2
image_size: 32
freeze: []
evaluations: 1
batch_size: 2
mixed_precision: none
num_workers: 0
trackers: []
"""


@pytest.mark.parametrize("task", [pytest.param("ms3", marks=pytest.mark.slow), "avss"])
def test_train_and_evaluate(root: Path, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Neither is of paired data, and both take longer than the steps of the training.
    monkeypatch.setattr("pcmanet.training.run.measure_agreement", lambda *_: 1.0)
    monkeypatch.setattr("pcmanet.checkpoints.TIMED_RUNS", 2)
    recipe, data = tmp_path / "recipe.yaml", str(root / "paired.yaml")
    recipe.write_text(RECIPE.format(task=task), encoding="utf-8")
    run = str(tmp_path / "run")
    assert pcmanet(["train", "--recipe", str(recipe), "--data", data, "--output", run]) == 0
    options = [
        "--name",
        task,
        "--split",
        "val",
        "--clips",
        "2",
        "--output",
        str(tmp_path / "results"),
        "--num-workers",
        "0",
    ]
    arguments = ["evaluate", f"{run}/best", "--data", data, *options, "--per-class", "--negative-audio", "silence"]
    assert pcmanet(arguments) == 0
    text = (tmp_path / "results" / "results.md").read_text(encoding="utf-8")
    assert f"{run}/best on {task} val" in text
    assert "2 clips, 10 frames" in text
    # The clips of the validation in the training, so the metrics are the same, but for pixels on the edge of a class.
    validation = json.loads(Path(run, "best", "metrics.json").read_text(encoding="utf-8"))["validation"]
    results = json.loads((tmp_path / "results" / "results.json").read_text(encoding="utf-8"))["metrics"]["official"]
    assert [results[name] for name in ("miou", "f_score")] == pytest.approx(
        [validation[name] for name in ("miou", "f_score")], abs=1e-3
    )


def test_recipe_rejects_what_paired_data_do_not_have(root: Path) -> None:
    data = str(root / "paired.yaml")
    with pytest.raises(ValueError, match="task=folder, frames_per_second=2.0 does not apply"):
        Recipe(data=data, task="folder", frames_per_second=2.0, freeze=())
    with pytest.raises(ValueError, match="pair_audio needs Sounding Shapes"):
        Recipe(data=data, pair_audio=True, freeze=())


# docs/guides/paired_data.md


def read_page(language: str) -> str:
    """Return the code of a language on the page, without the sources that are on the Hub."""
    page = (Path(__file__).parents[1] / "docs" / "guides" / "paired_data.md").read_text(encoding="utf-8")
    blocks = re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)
    return "\n".join(block for block in blocks if "repo: owner" not in block)


def test_the_program_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photo_folder(tmp_path / "photos")
    write_sound_table(tmp_path / "sounds")
    (tmp_path / "paired.yaml").write_text(read_page("yaml"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(read_page("python"), {})
    sizes, *events = capsys.readouterr().out.splitlines()
    assert sizes == "(5, 240, 320, 3) (5, 240, 320) (1, 160000)"
    assert all((tmp_path / event.split(" ", 3)[3]).is_file() for event in events)
    assert (tmp_path / "cache").is_dir()


def test_the_page_names_all_settings_and_valid_commands() -> None:
    text = read_page("yaml")
    assert all(f"{one.name}:" in text for one in fields(PairedSettings) if one.name not in ("path", "other_sounds"))
    commands = re.sub(r"\\\n", "", read_page("bash")).splitlines()
    paired = [line.split()[3:] for line in commands if "pcmanet.dataset_scripts.paired" in line]
    assert [parse_args(words).command for words in paired] == ["check", "clip", "tree", "parquet"]
    others = [line.split()[1:] for line in commands if line.startswith("pcmanet ")]
    assert [parse_arguments(words).command for words in others] == ["train", "evaluate", "train"]
