"""Tests of dataset_scripts/sounding_shapes/files.py and of `python -m pcmanet.dataset_scripts.sounding_shapes`."""

import csv
import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from written_trees import little_compression

from modeling_pcmanet.media_pcmanet import iterate_frames, read_media
from pcmanet.dataset_scripts.avsbench.masks import voc_palette
from pcmanet.dataset_scripts.sounding_shapes import CLASSES, SoundingShapes
from pcmanet.dataset_scripts.sounding_shapes import files as files_module
from pcmanet.dataset_scripts.sounding_shapes.__main__ import main
from pcmanet.dataset_scripts.sounding_shapes.clips import SyntheticClip
from pcmanet.dataset_scripts.sounding_shapes.files import (
    AVSBENCH_CLASSES,
    AVSBENCH_NAMES,
    write_avsbench_tree,
    write_clip,
)


COUNTS = {
    "s4": {"train": 1, "val": 1, "test": 1},
    "ms3": {"train": 2, "test": 1},
    "avss": {"train": 3, "val": 1, "test": 1},
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> Path:
    """Write the trees of all three tasks to one root."""
    root = tmp_path_factory.mktemp("trees")
    with little_compression(), pytest.MonkeyPatch.context() as patch:
        for task, counts in COUNTS.items():
            if task != "s4":  # encoding takes most of the time, and no test reads the other videos
                patch.setattr(files_module, "_write_raw_video", write_empty_video)
            write_avsbench_tree(root, task, counts, seed=5)
    return root


def write_empty_video(_dataset: SoundingShapes, _index: int, _clip: SyntheticClip, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def read_rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def read_image(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def read_wave(path: Path) -> np.ndarray:
    """Read the samples (samples, channels) of a stereo, 16-bit, 16-kHz file, from -1 to 1."""
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 2, 2)
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").reshape(-1, 2) / 32768.0


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def dataset(task: str, split: str, height: int = 224, width: int = 224, seconds: int = 5) -> SoundingShapes:
    return SoundingShapes(task, split, length=9, seed=5, height=height, width=width, num_frames=seconds)


def test_a_written_clip_has_frames_audio_and_timestamps(tmp_path):
    source = SoundingShapes("ms3", "test", length=3, height=96, width=128, num_frames=3)
    clip = source[2]
    write_clip(source, 2, tmp_path / "clip.mp4", frames_per_second=16)
    media = read_media(tmp_path / "clip.mp4")
    # At 16 frames per second, AVSBench's sampling selects exactly the frames of the clip.
    np.testing.assert_allclose(media.timestamps, clip.timestamps, atol=1e-3)
    assert media.frames.shape == clip.frames.shape
    assert np.abs(media.frames.astype(int) - clip.frames).mean() < 6.0
    assert media.sampling_rate == 16000
    assert np.corrcoef(media.waveform[0][: len(clip.waveform)], clip.waveform)[0, 1] > 0.98
    assert sum(1 for _ in iterate_frames(tmp_path / "clip.mp4")) == 48


def test_other_audio_can_be_written_with_the_same_frames(tmp_path):
    source = SoundingShapes("s4", "test", length=1, height=160, width=160, num_frames=2)
    write_clip(source, 0, tmp_path / "original.mp4", frames_per_second=16)
    write_clip(source, 0, tmp_path / "silence.mp4", clip=source.negative(0, "silence"), frames_per_second=16)
    original, silent = read_media(tmp_path / "original.mp4"), read_media(tmp_path / "silence.mp4")
    frames = source[0].frames.astype(int)
    assert max(np.abs(frames - media.frames).mean() for media in (original, silent)) < 8.0
    assert original.waveform.std() > 0.005
    assert np.abs(silent.waveform).max() < 1e-4


def test_an_s4_tree_has_avsbench_s_files(trees):
    tree = trees / "Single-source"
    header, *rows = read_rows(tree / "s4_meta_data.csv")
    assert len(header) == 4
    assert [row[3] for row in rows] == ["train", "val", "test"]
    expected = {"s4_meta_data.csv"}
    for name, start, category, split in rows:
        assert len(name) == 11
        assert start == "0"
        place = f"{split}/{category}/{name}"
        expected |= {f"s4_data/audio_wav/{place}.wav", f"s4_data/raw_videos/{place}.mp4"}
        expected |= {f"s4_data/visual_frames/{place}/{name}_{number}.png" for number in range(1, 6)}
        labeled = range(1, 2) if split == "train" else range(1, 6)
        expected |= {f"s4_data/gt_masks/{place}/{name}_{number}.png" for number in labeled}
    assert files(tree) == expected


def test_an_s4_tree_holds_the_clips(trees):
    data = trees / "Single-source" / "s4_data"
    name, _, category, split = read_rows(trees / "Single-source" / "s4_meta_data.csv")[3]
    clip = dataset("s4", "test")[0]
    (label,) = (clip.object_classes[k] for k in np.flatnonzero(clip.sounding[0]))
    assert category == AVSBENCH_NAMES[label - 1][1]
    for number in range(1, 6):
        stem = f"{split}/{category}/{name}/{name}_{number}.png"
        np.testing.assert_array_equal(read_image(data / "visual_frames" / stem), clip.frames[number - 1])
        np.testing.assert_array_equal(read_image(data / "gt_masks" / stem), clip.binary[number - 1] * 255)
    samples = read_wave(data / "audio_wav" / split / category / f"{name}.wav")
    np.testing.assert_array_equal(samples, np.stack([clip.waveform, clip.waveform], axis=1))
    video = read_media(data / "raw_videos" / split / category / f"{name}.mp4")
    assert np.abs(video.frames.astype(int) - clip.frames).mean() < 5.0


def test_an_ms3_tree_has_avsbench_s_files(trees):
    tree = trees / "Multi-sources"
    header, *rows = read_rows(tree / "ms3_meta_data.csv")
    assert header == ["video_id", "split"]
    expected = {"ms3_meta_data.csv"}
    for name, split in rows:
        expected |= {f"ms3_data/audio_wav/{split}/{name}.wav", f"ms3_data/raw_videos/{name}.mp4"}
        expected |= {f"ms3_data/visual_frames/{name}/{name}.mp4_{number}.png" for number in range(1, 6)}
        expected |= {f"ms3_data/gt_masks/{split}/{name}/{name}_{number}.png" for number in range(1, 6)}
    assert files(tree) == expected
    clip, (name, split) = dataset("ms3", "test")[0], rows[2]
    for number in range(1, 6):
        mask = read_image(tree / "ms3_data/gt_masks" / split / name / f"{name}_{number}.png")
        np.testing.assert_array_equal(mask, clip.binary[number - 1] * 255)


def test_an_avss_tree_has_avsbench_s_files(trees):
    tree = trees / "AVSBench_semantic"
    header, *rows = read_rows(tree / "metadata.csv")
    assert header == ["vid", "uid", "s_min", "s_sec", "a_obj", "split", "label"]
    assert [row[6] for row in rows] == ["v1s", "v1m", "v2", "v1s", "v1s"]
    expected = {"metadata.csv", "label2idx.json"}
    for vid, uid, _, second, _, split, subset in rows:
        assert uid.startswith(vid)
        assert subset == "v1m" or uid.removeprefix(f"{vid}_").split("_")[0] == f"{int(second) * 1000}"
        seconds = 10 if subset == "v2" else 5
        expected |= {f"{subset}/{uid}/frames/{number}.jpg" for number in range(seconds)} | {
            f"{subset}/{uid}/audio.wav"
        }
        labeled = range(1) if (subset, split) == ("v1s", "train") else range(seconds)
        for kind in ("labels_rgb", "labels_semantic"):
            expected |= {f"{subset}/{uid}/{kind}/{number}.png" for number in labeled}
        assert len(read_wave(tree / subset / uid / "audio.wav")) == seconds * 16000
    assert files(tree) == expected
    assert len({read_image(path).shape for path in tree.rglob("frames/0.jpg")}) > 1


def test_avss_labels_are_avsbench_s_indices_and_colors(trees):
    tree = trees / "AVSBench_semantic"
    vid, uid, *_, objects, split, subset = read_rows(tree / "metadata.csv")[3]
    clip = dataset("avss", split, *files_module.AVSS_SIZES[2], seconds=10)[2]
    assert (subset, split) == ("v2", "train")
    names = [AVSBENCH_NAMES[clip.object_classes[k] - 1][0] for k in np.flatnonzero(clip.sounding.any(axis=0))]
    assert sorted(objects.split("_")) == sorted(names)
    numbers = json.loads((tree / "label2idx.json").read_text())
    assert (numbers["background"], numbers["accordion"], numbers["woman"], len(numbers)) == (1, 2, 71, 71)
    for second in range(10):
        labels = read_image(tree / subset / uid / "labels_semantic" / f"{second}.png")
        assert labels.shape == clip.masks[second].shape
        assert set(np.unique(labels)) <= {0} | {numbers[name] - 1 for name in names}
        for label in np.unique(clip.masks[second])[1:]:
            (index,) = np.unique(labels[clip.masks[second] == label])
            assert AVSBENCH_CLASSES[index] == AVSBENCH_NAMES[label - 1][0]
        colors = read_image(tree / subset / uid / "labels_rgb" / f"{second}.png")
        np.testing.assert_array_equal(colors, voc_palette()[labels])


def test_trees_of_one_seed_share_their_clips(trees):
    semantic = read_rows(trees / "AVSBench_semantic" / "metadata.csv")[1:]
    single = {row[0]: row[3] for row in read_rows(trees / "Single-source" / "s4_meta_data.csv")[1:]}
    multiple = dict(read_rows(trees / "Multi-sources" / "ms3_meta_data.csv")[1:])
    assert {row[0]: row[5] for row in semantic if row[6] == "v1s"} == single
    assert all(multiple[row[1]] == row[5] for row in semantic if row[6] == "v1m")
    assert all(row[0] not in single and row[0] not in multiple for row in semantic if row[6] == "v2")


def test_the_palette_is_that_of_pascal_voc():
    colors = voc_palette()
    assert colors.shape == (71, 3)
    assert colors[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colors[20].tolist() == [0, 64, 128]
    # 70 = 0b1000110: bit 1 is green's bit 7, bit 2 blue's bit 7, bit 6 red's bit 5.
    assert colors[70].tolist() == [32, 128, 128]
    assert len(np.unique(colors, axis=0)) == 71


def test_class_names_are_avsbench_s():
    assert len(AVSBENCH_CLASSES) == 71
    assert list(AVSBENCH_CLASSES[1:]) == sorted(AVSBENCH_CLASSES[1:])
    assert len({name for name, _ in AVSBENCH_NAMES}) == len({name for _, name in AVSBENCH_NAMES}) == len(CLASSES)
    assert all(name in AVSBENCH_CLASSES for name, _ in AVSBENCH_NAMES)


@pytest.mark.parametrize(
    ("task", "counts", "message"),
    [("s5", {"train": 1}, "'s5'"), ("s4", {"eval": 1}, "'eval'"), ("ms3", {"train": -1}, "-1")],
)
def test_invalid_trees_are_rejected(tmp_path, task, counts, message):
    with pytest.raises(ValueError, match=message):
        write_avsbench_tree(tmp_path / "root", task, counts)
    assert not (tmp_path / "root").exists()


def test_an_existing_tree_is_not_changed(trees):
    before = files(trees)
    with pytest.raises(FileExistsError, match="Single-source already exists"):
        write_avsbench_tree(trees, "s4", {"train": 1})
    assert files(trees) == before


def test_an_interrupted_tree_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files_module, "_write_audio", fail)
    with pytest.raises(OSError, match="disk full"):
        write_avsbench_tree(tmp_path, "avss", {"train": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("audio", ["original", "swapped", "noise"])
def test_command_line_writes_a_clip_and_lists_the_sounding_objects(tmp_path, capsys, audio):
    output = tmp_path / "demo.mp4"
    main(f"clip --task ms3 --index 1 --seconds 2 --size 64 96 --audio {audio} --output {output}".split())
    source = SoundingShapes("ms3", "test", length=2, height=64, width=96, num_frames=2)
    clip = {"original": source[1], "swapped": source.swap_audio(1), "noise": source.negative(1, "noise")}[audio]
    lines = capsys.readouterr().out.splitlines()
    names = [CLASSES[label - 1] for label in clip.object_classes]
    assert lines[0] == f"{output}: {', '.join(names)}"
    for line, row in zip(lines[1:], clip.sounding, strict=True):
        assert line.split(": ")[1] == (", ".join(np.array(names)[row]) or "-")
    media = read_media(output)
    assert media.frames.shape == (2, 64, 96, 3)
    assert np.corrcoef(media.waveform[0][:32000], clip.waveform)[0, 1] > 0.9


def test_command_line_writes_a_tree(tmp_path):
    main(f"tree --task avss --train 1 --val 0 --test 1 --seed 5 --output {tmp_path}".split())
    rows = read_rows(tmp_path / "AVSBench_semantic" / "metadata.csv")
    assert [row[5] for row in rows[1:]] == ["train", "test"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("clip --index -1", "--index: expected an integer of 0 or more, got -1"),
        ("clip --frames-per-second 0", "--frames-per-second: expected a number above 0, got 0"),
        ("tree --train 1.5", "--train: expected an integer of 0 or more, got 1.5"),
    ],
)
def test_numbers_out_of_range_are_usage_errors(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([*words.split(), "--output", str(tmp_path / "out")])
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m pcmanet.dataset_scripts.sounding_shapes tree --task avss" in capsys.readouterr().out
