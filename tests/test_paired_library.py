"""Test the layouts of photos and recordings, their decoding, splits and problems."""

import itertools
import multiprocessing
import os
import random
import re
import shutil
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paired_files import (
    RATE,
    SECOND,
    TONES,
    make_mask,
    write_coco,
    write_mask,
    write_paired_data,
    write_photo,
    write_photo_folder,
    write_settings,
    write_sound_table,
    write_table,
    write_tone,
)
from PIL import Image
from pycocotools import mask as coco_masks

from modeling_pcmanet.media_writing_pcmanet import write_audio
from pcmanet.dataset_scripts.avsbench import DatasetError
from pcmanet.dataset_scripts.paired import Library, PairedClips, read_settings
from pcmanet.dataset_scripts.paired.library import (
    PHOTO_LAYOUTS,
    RECORDING_LAYOUTS,
    VOC_LABELS,
    Photo,
    Recording,
    assign_splits,
    decode_photo,
    decode_recording,
    read_sources,
)


INDICES = {"dog": 5, "cat": 2}


def read(layouts: Any, **source: Any) -> list[Any]:
    """Read one source without problems."""
    found, problems = read_sources([source], layouts)
    assert problems == []
    return found


# Photos


def test_folder_of_photos(tmp_path: Path) -> None:
    write_photo_folder(tmp_path, count=4)
    photos = read(PHOTO_LAYOUTS, layout="folder", path=str(tmp_path))
    assert [photo.id for photo in photos] == [f"photo_{k:02d}" for k in range(4)]
    image, mask = decode_photo(photos[3], INDICES, 64)
    expected = make_mask(5, 2)
    np.testing.assert_array_equal(mask, expected)
    # Dogs are 1 in the file, which is a red of 40; cats are 2.
    assert abs(int(image[24, 16, 0]) - 40) < 6
    assert abs(int(image[24, 48, 0]) - 80) < 12


def test_labels_without_a_class_are_background_and_void_is_kept(tmp_path: Path) -> None:
    write_photo_folder(tmp_path, count=1)
    (photo,) = read(PHOTO_LAYOUTS, layout="folder", path=str(tmp_path))
    _, mask = decode_photo(photo, {"cat": 2}, 64)
    assert set(np.unique(mask)) == {0, 255}
    assert (mask[:, 31:33] == 255).all()


def test_mask_values_count_from_one_above_the_ids(tmp_path: Path) -> None:
    write_photo_folder(tmp_path, count=1)
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "mask_values.json").write_text('{"0": "cat", "1": "dog"}', encoding="utf-8")
    (photo,) = read(PHOTO_LAYOUTS, layout="folder", path=str(tmp_path))
    assert photo.labels == {1: "cat", 2: "dog"}


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("classes.txt", "dog\ncat\nbird\n", "classes.txt: Expected 'background' as the first line"),
        ("classes.txt", "background\ndog\ndog\n", "classes.txt: Expected 2 to 255 different names"),
        (
            "mask_values.json",
            '{"0": "dog", "254": "cat"}',
            "Expected ids from 0 to 253 in mask_values.json, got [254]",
        ),
        ("mask_values.json", '{"0": "dog", "-1": "cat"}', "Expected ids from 0 to 253 in mask_values.json, got [-1]"),
        ("mask_values.json", '["dog", "cat"]', "Not in the layout folder"),
    ],
)
def test_unusable_names_of_mask_values_are_problems(name: str, text: str, problem: str, tmp_path: Path) -> None:
    write_photo_folder(tmp_path, count=1)
    (tmp_path / name).write_text(text, encoding="utf-8")
    found, (reported,) = read_sources([{"layout": "folder", "path": str(tmp_path)}], PHOTO_LAYOUTS)
    assert found == [] and problem in str(reported)


def test_large_photos_are_reduced(tmp_path: Path) -> None:
    write_photo_folder(tmp_path, count=4)
    photos = read(PHOTO_LAYOUTS, layout="folder", path=str(tmp_path))
    image, mask = decode_photo(photos[3], INDICES, 32)
    assert image.shape == (24, 32, 3)
    np.testing.assert_array_equal(mask, make_mask(5, 2)[::2, ::2])


def test_photos_with_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    write_photo_folder(tmp_path, count=1)
    (photo,) = read(PHOTO_LAYOUTS, layout="folder", path=str(tmp_path))
    image = Image.fromarray(np.full((48, 64), 40_000, dtype=np.uint16))
    image.save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"8 bits per channel, got a PIL image of mode 'I;16'"):
        decode_photo(replace(photo, image=str(tmp_path / "deep.png")), INDICES, 64)


def test_coco(tmp_path: Path) -> None:
    write_coco(tmp_path)
    source = {"images": str(tmp_path / "images"), "annotations": str(tmp_path / "instances.json")}
    first, second = read(PHOTO_LAYOUTS, layout="coco", split="train", **source)
    assert (first.split, first.group) == ("train", str(tmp_path / "images" / "000001"))
    _, mask = decode_photo(first, INDICES, 64)
    expected = make_mask(5)
    expected[16:32, 8:24] = 2
    np.testing.assert_array_equal(mask, expected)
    assert not decode_photo(second, INDICES, 64)[1].any()


RLE = coco_masks.encode(np.asfortranarray(make_mask(0, 1)))


def coco_photo(tmp_path: Path, segmentation: Any) -> Photo:
    """Return a photo of COCO with one dog."""
    write_photo(tmp_path / "a.jpg", make_mask(1))
    size, labels = (48, 64), {18: "dog"}
    mask = [{"category": 18, "shape": segmentation, "size": size}]
    return Photo("a", str(tmp_path / "a.jpg"), mask, labels, "a", None)


def test_coco_with_compressed_run_lengths(tmp_path: Path) -> None:
    segmentation = {"size": [48, 64], "counts": RLE["counts"].decode()}
    _, mask = decode_photo(coco_photo(tmp_path, segmentation), INDICES, 64)
    np.testing.assert_array_equal(mask, make_mask(0, 5))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "as segmentation of an object of category 18, got []"),
        ([[1, 1, 5, 5]], "Expected polygons of three points or more"),
        ([1, 1, 5, 5, 9, 9], "Expected polygons of three points or more"),
        ({"counts": "abc"}, "or a run-length encoding with counts and size"),
        ({"size": [64, 48], "counts": RLE["counts"].decode()}, "is for [48, 64] pixels, the photo has [64, 48]"),
    ],
)
def test_coco_segmentations_that_cannot_be_drawn_are_errors(segmentation, message, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        decode_photo(coco_photo(tmp_path, segmentation), INDICES, 64)


def test_voc_with_other_masks_and_a_list(tmp_path: Path) -> None:
    dog, cat = VOC_LABELS.index("dog"), VOC_LABELS.index("cat")
    for name in ("a", "b"):
        write_photo(tmp_path / "JPEGImages" / f"{name}.jpg", make_mask(1))
        write_mask(tmp_path / "SegmentationClass" / f"{name}.png", make_mask(dog, cat))
        write_mask(tmp_path / "Aug" / f"{name}.png", make_mask(cat))
    (tmp_path / "list.txt").write_text("b\n", encoding="utf-8")
    photos = read(PHOTO_LAYOUTS, layout="voc", path=str(tmp_path))
    assert [photo.id for photo in photos] == ["a", "b"]
    np.testing.assert_array_equal(decode_photo(photos[0], INDICES, 64)[1], make_mask(5, 2))
    options = {"masks": str(tmp_path / "Aug"), "list": str(tmp_path / "list.txt")}
    (photo,) = read(PHOTO_LAYOUTS, layout="voc", path=str(tmp_path), **options)
    np.testing.assert_array_equal(decode_photo(photo, INDICES, 64)[1], make_mask(2))


# Recordings


def test_table_and_folders(tmp_path: Path) -> None:
    write_tone(tmp_path / "dog" / "a.wav", "dog")
    write_tone(tmp_path / "cat" / "b.ogg", "cat")
    write_table(tmp_path / "t.csv", [{"file": "dog/a.wav", "class": "bark", "group": "g", "split": "val"}])
    assert read(RECORDING_LAYOUTS, layout="table", path=str(tmp_path / "t.csv")) == [
        Recording(str(tmp_path / "dog/a.wav"), ("bark",), "g", "val")
    ]
    found = read(RECORDING_LAYOUTS, layout="folders", path=str(tmp_path), split="test")
    assert [(one.labels, one.group, one.split) for one in found] == [
        (("cat",), str(tmp_path / "cat" / "b"), "test"),
        (("dog",), str(tmp_path / "dog" / "a"), "test"),
    ]


def test_esc50(tmp_path: Path) -> None:
    row = {"filename": "1-100-A-0.wav", "fold": "1", "target": "0", "category": "dog", "src_file": "100", "take": "A"}
    write_table(tmp_path / "meta" / "esc50.csv", [row])
    assert read(RECORDING_LAYOUTS, layout="esc50", path=str(tmp_path)) == [
        Recording(str(tmp_path / "audio/1-100-A-0.wav"), ("dog",), "100", None)
    ]


def test_fsd50k(tmp_path: Path) -> None:
    dev = [{"fname": "1", "labels": "Bark,Dog", "mids": "", "split": "val"}]
    write_table(tmp_path / "FSD50K.ground_truth" / "dev.csv", dev)
    write_table(tmp_path / "FSD50K.ground_truth" / "eval.csv", [{"fname": "2", "labels": "Meow", "mids": ""}])
    assert read(RECORDING_LAYOUTS, layout="fsd50k", path=str(tmp_path)) == [
        Recording(str(tmp_path / "FSD50K.dev_audio/1.wav"), ("Bark", "Dog"), "1", "val"),
        Recording(str(tmp_path / "FSD50K.eval_audio/2.wav"), ("Meow",), "2", "test"),
    ]


def test_vggsound(tmp_path: Path, caplog) -> None:
    (tmp_path / "audio").mkdir()
    for suffix in ("flac", "info.json", "txt"):
        (tmp_path / "audio" / f"-abc_000030.{suffix}").touch()
    (tmp_path / "vgg.csv").write_text('-abc,30,"dog barking, loud",train\nxyz,5,cat,test\n', encoding="utf-8")
    source = {"path": str(tmp_path / "vgg.csv"), "audio": str(tmp_path / "audio")}
    assert read(RECORDING_LAYOUTS, layout="vggsound", **source) == [
        Recording(str(tmp_path / "audio/-abc_000030.flac"), ("dog barking, loud",), "-abc", "train"),
    ]
    assert f"1 of the 2 recordings of {tmp_path / 'vgg.csv'} are not in {tmp_path / 'audio'}" in caplog.text
    (tmp_path / "audio" / "-abc_000030.flac").unlink()
    _, (problem,) = read_sources([{"layout": "vggsound", **source}], RECORDING_LAYOUTS)
    assert f"Expected files such as -abc_000030.wav in {tmp_path / 'audio'}, got none" in problem.problem


def test_files_of_systems_and_tools_are_no_data(tmp_path: Path) -> None:
    root = write_paired_data(tmp_path).parent
    for folder in ("photos/images", "photos/masks", "sounds/dog"):
        for name in (".DS_Store", "Thumbs.db", "._photo_01.jpg", "._photo_01.png", "photo_01.json", "photo_01.txt"):
            (root / folder / name).write_bytes(b"no data")
    photos = read(PHOTO_LAYOUTS, layout="folder", path=str(root / "photos"))
    assert {Path(photo.image).suffix for photo in photos} == {".jpg"}
    recordings = read(RECORDING_LAYOUTS, layout="folders", path=str(root / "sounds"))
    assert {Path(recording.file).suffix for recording in recordings} == {".wav", ".ogg"}
    (root / "photos" / "masks").rename(root / "photos" / "SegmentationClass")
    names = [photo.id for photo in read(PHOTO_LAYOUTS, layout="voc", path=str(root / "photos"))]
    assert names == [f"photo_{number:02d}" for number in range(12)]


@pytest.mark.parametrize("suffix", ["wav", "ogg"])
def test_recordings_are_resampled_to_mono_and_cut(tmp_path: Path, suffix: str) -> None:
    write_tone(tmp_path / f"a.{suffix}", "dog", seconds=2.0)
    values = decode_recording(Recording(str(tmp_path / f"a.{suffix}"), ("dog",), "a", None), 32000, 1.5)
    assert values.dtype == np.int16
    assert len(values) == 48000
    level = np.sqrt(np.mean(np.square(values[8000:40000] / 32768)))
    assert level == pytest.approx(0.3 / np.sqrt(2), rel=0.03)
    spectrum = np.abs(np.fft.rfft(values[:32000]))
    assert np.argmax(spectrum) == 400  # hertz


@pytest.mark.parametrize(
    ("seconds", "message"), [(3.0, "The recording is silent"), (1.5, "The first 1.5 s of the recording are silent")]
)
def test_silence_is_reported_where_it_was_found(tmp_path: Path, seconds: float, message: str) -> None:
    samples = np.zeros(2 * RATE, dtype=np.float32)
    if seconds < 2:
        samples[-RATE // 4 :] = 0.3
    write_audio(tmp_path / "a.wav", samples, RATE)
    recording = Recording(str(tmp_path / "a.wav"), ("dog",), "a", None)
    with pytest.raises(ValueError, match=message):
        decode_recording(recording, RATE, seconds)
    if seconds < 2:
        assert decode_recording(recording, RATE, 2.0).any()


# Splits


def split_groups(recordings: list[Recording], labels: list[str]) -> dict[str, set[str]]:
    splits, contradicting = assign_splits(recordings, labels, {"val": 0.2, "test": 0.2})
    assert contradicting == []
    groups: dict[str, set[str]] = {}
    for one, split in zip(recordings, splits, strict=True):
        groups.setdefault(one.group, set()).add(split)
    return groups


def test_splits_do_not_depend_on_the_order_and_keep_groups_together() -> None:
    items = [
        (Recording(f"{k}_{part}", ("dog",), f"g{k}", None), "dog" if k < 25 else "cat")
        for k in range(30)
        for part in range(3)
    ]
    groups = split_groups(*map(list, zip(*items, strict=True)))
    assert all(len(splits) == 1 for splits in groups.values())
    shuffled = random.Random(0).sample(items, len(items))
    assert split_groups(*map(list, zip(*shuffled, strict=True))) == groups
    counts = {split: [name for name, own in groups.items() if own == {split}] for split in ("train", "val", "test")}
    # 20% of 25 dogs and of 5 cats.
    assert {split: len(names) for split, names in counts.items()} == {"train": 18, "val": 6, "test": 6}
    assert all(any(int(name[1:]) >= 25 for name in names) for names in counts.values())


def test_splits_of_a_source_are_kept_and_training_is_divided_without_val() -> None:
    kept = [Recording(str(k), ("x",), str(k), split) for k, split in enumerate(("train", "val", "test", "train"))]
    assert assign_splits(kept, ["x"] * 4, {"val": 0.5})[0] == ["train", "val", "test", "train"]
    without = [Recording(str(k), ("x",), str(k), "train" if k < 10 else "test") for k in range(12)]
    splits, _ = assign_splits(without, ["x"] * 12, {"val": 0.2, "test": 0.5})
    assert splits[10:] == ["test", "test"]
    assert sorted(splits[:10]) == ["train"] * 8 + ["val"] * 2


def test_rare_classes_are_in_training_first() -> None:
    for count, expected in ((1, ["train"]), (2, ["test", "train"]), (3, ["test", "train", "val"])):
        items = [Recording(str(k), ("x",), str(k), None) for k in range(count)]
        assert sorted(assign_splits(items, ["x"] * count, {"val": 0.1, "test": 0.1})[0]) == expected


def test_a_group_with_two_splits_is_a_problem(tmp_path: Path) -> None:
    path = write_paired_data(tmp_path)
    rows = [
        {"file": f"dog/0_{part}.{suffix}", "class": "dog", "group": "same", "split": split}
        for part, suffix, split in ((0, "wav", "train"), (1, "ogg", "test"))
    ]
    write_table(tmp_path / "sounds" / "more.csv", rows)
    sources = [{"layout": "table", "path": f"sounds/{name}.csv"} for name in ("sounds", "more")]
    path = write_settings(tmp_path, recordings=sources)
    with pytest.raises(DatasetError, match="group same: The group has files in several splits") as caught:
        Library(read_settings(path))
    sounds = tmp_path / "sounds" / "dog"
    assert f"{sounds}/0_0.wav in train, {sounds}/0_1.ogg in test. Give all of them one split." in str(caught.value)


def test_files_with_equal_names_in_other_folders_are_in_groups_of_their_own(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("test", 2)):
        write_photo_folder(tmp_path / split, count)
        for label, number in itertools.product(TONES, range(count)):
            write_tone(tmp_path / "rec" / split / label / f"{number}.wav", label)
    rows = [{"file": f"rec/train/{label}/{k}.wav", "class": label} for label in TONES for k in range(3)]
    write_table(tmp_path / "t.csv", rows)
    photos = [{"layout": "folder", "path": split, "split": split} for split in ("train", "test")]
    recordings = [{"layout": "folders", "path": f"rec/{split}", "split": split} for split in ("train", "test")]
    library = Library(read_settings(write_settings(tmp_path, photos=photos, recordings=recordings)))
    assert Counter(library.photo_splits) == {"train": 4, "val": 2, "test": 2}
    # Per label, the 6 recordings for training are divided.
    assert Counter(library.recording_splits) == {"train": 25, "val": 5, "test": 10}
    sources = [{"layout": "table", "path": "t.csv"}]
    library = Library(read_settings(write_settings(tmp_path, photos=photos, recordings=sources)))
    pairs = zip(library.recordings, library.recording_splits, strict=True)
    assert Counter((*one.labels, split) for one, split in pairs) == {
        (label, split): 1 for label in TONES for split in ("train", "val", "test")
    }


def test_splits_do_not_depend_on_the_folder_of_the_data() -> None:
    def split_in(folder: str) -> list[str]:
        items = [Recording(f"{k}.wav", ("x",), f"{folder}{k}", None) for k in range(40)]
        return assign_splits(items, ["x"] * 40, {"val": 0.2, "test": 0.2})[0]

    assert split_in("") == split_in("/data/sounds/") == split_in("/other/place/")


# The library


def test_library_with_and_without_cache(tmp_path: Path) -> None:
    plain = Library(read_settings(write_paired_data(tmp_path)))
    cached = Library(read_settings(write_settings(tmp_path, cache="kept")))
    again = Library(read_settings(write_settings(tmp_path, cache="kept")))
    assert len(plain.photos) == 12
    assert plain.identity == cached.identity == again.identity
    for one, other in itertools.product([plain], [cached, again]):
        assert one.areas == other.areas
        assert (one.photo_splits, one.recording_splits) == (other.photo_splits, other.recording_splits)
        for number in range(len(one.photos)):
            for array, same in zip(one.photo(number), other.photo(number), strict=True):
                np.testing.assert_array_equal(array, same)
        for number in range(len(one.recordings)):
            np.testing.assert_array_equal(one.recording(number), other.recording(number))
    assert plain.areas[0] == {1: pytest.approx(31 / 64)}


def test_cache_is_read_instead_of_the_files(tmp_path: Path) -> None:
    path = write_paired_data(tmp_path, cache="kept")
    first = Library(read_settings(path))
    photo = next((tmp_path / "photos" / "images").iterdir())
    content, times = photo.read_bytes(), photo.stat()
    photo.write_bytes(b"x" * len(content))
    os.utime(photo, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert Library(read_settings(path)).identity == first.identity
    photo.write_bytes(content + b"x")
    assert Library(read_settings(path)).identity != first.identity


def write_every_layout(root: Path) -> Path:
    """Write photos and recordings in all layouts with tables, and return the settings file."""
    write_photo_folder(root / "photos", count=4)
    write_photo_folder(root / "values", count=4)
    (root / "values" / "classes.txt").unlink()
    (root / "values" / "mask_values.json").write_text('{"0": "dog", "1": "cat", "2": "bird"}', encoding="utf-8")
    write_table(root / "values" / "photos.csv", [{"id": "photo_00", "group": "g", "split": "train"}])
    for name in ("a", "b"):
        write_photo(root / "voc" / "JPEGImages" / f"{name}.jpg", make_mask(1))
        write_mask(root / "voc" / "SegmentationClass" / f"{name}.png", make_mask(VOC_LABELS.index("dog")))
    (root / "voc" / "list.txt").write_text("a\nb\n", encoding="utf-8")
    rows = [
        {"file": f"t/{k}.wav", "class": label, "group": f"g{k}", "split": "train"} for k, label in enumerate(TONES)
    ]
    write_table(root / "t.csv", rows)
    write_table(root / "esc" / "meta" / "esc50.csv", [{"filename": "e.wav", "category": "dog", "src_file": "100"}])
    (root / "fsd" / "FSD50K.ground_truth").mkdir(parents=True)
    (root / "fsd" / "FSD50K.ground_truth" / "dev.csv").write_text(
        "fname,labels,split\n1,cat,train\n", encoding="utf-8"
    )
    (root / "fsd" / "FSD50K.ground_truth" / "eval.csv").write_text("fname,labels\n2,bird\n", encoding="utf-8")
    (root / "vgg.csv").write_text("abc,30,drum,train\n", encoding="utf-8")
    others = ["esc/audio/e", "fsd/FSD50K.dev_audio/1", "fsd/FSD50K.eval_audio/2", "vgg/abc_000030"]
    for name in (*(f"t/{k}" for k in range(len(TONES))), *others):
        write_tone(root / f"{name}.wav", "dog")
    photos = [{"layout": "folder", "path": "photos"}, {"layout": "folder", "path": "values"}]
    photos += [{"layout": "voc", "path": "voc", "list": "voc/list.txt"}]
    recordings = [{"layout": "table", "path": "t.csv"}, {"layout": "esc50", "path": "esc"}]
    recordings += [{"layout": "fsd50k", "path": "fsd"}, {"layout": "vggsound", "path": "vgg.csv", "audio": "vgg"}]
    return write_settings(root, photos=photos, recordings=recordings, cache="kept")


@pytest.mark.parametrize(
    ("table", "old", "new", "is_decoded_again"),
    [
        ("photos/classes.txt", "dog\ncat", "cat\ndog", True),
        ("values/mask_values.json", '"dog", "1": "cat"', '"cat", "1": "dog"', True),
        ("values/photos.csv", "g,train", "h,train", False),
        ("values/photos.csv", "g,train", "g,val", False),
        ("voc/list.txt", "b\n", "", True),
        ("t.csv", "dog,g0", "cat,g0", False),
        ("t.csv", "dog,g0", "dog,g1", False),
        ("t.csv", "g0,train", "g0,val", False),
        ("esc/meta/esc50.csv", "dog", "rain", False),
        ("esc/meta/esc50.csv", "100", "200", False),
        ("fsd/FSD50K.ground_truth/dev.csv", "cat", "rain", False),
        ("fsd/FSD50K.ground_truth/dev.csv", "train", "val", False),
        ("fsd/FSD50K.ground_truth/eval.csv", "bird", "drum", False),
        ("vgg.csv", "drum", "cat", False),
        ("vgg.csv", "train", "test", False),
    ],
)
def test_tables_are_part_of_the_identity(
    table: str, old: str, new: str, is_decoded_again: bool, tmp_path: Path
) -> None:
    path = write_every_layout(tmp_path)
    before = PairedClips(Library(read_settings(path)), length=1)
    assert PairedClips(Library(read_settings(path)), length=1).identity == before.identity
    text = (tmp_path / table).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / table).write_text(text.replace(old, new), encoding="utf-8")
    after = PairedClips(Library(read_settings(path)), length=1)
    assert after.identity != before.identity
    assert len(list((tmp_path / "kept").iterdir())) == 1 + is_decoded_again
    settings = read_settings(path)
    assert after.library.areas == Library(replace(settings, cache=None)).areas


def test_all_problems_of_files_are_listed(tmp_path: Path) -> None:
    path = write_paired_data(tmp_path)
    photos, sounds = tmp_path / "photos", tmp_path / "sounds"
    (photos / "images" / "photo_00.jpg").unlink()
    (photos / "masks" / "photo_01.png").unlink()
    write_mask(photos / "masks" / "photo_02.png", make_mask(1)[:40])
    (photos / "images" / "photo_03.jpg").write_bytes(b"no image")
    Image.new("RGB", (64, 48)).save(photos / "masks" / "photo_04.png")
    write_mask(photos / "masks" / "photo_05.png", make_mask(52, 1))
    write_mask(photos / "masks" / "photo_06.png", make_mask(255))
    (sounds / "dog" / "0_0.wav").unlink()
    (sounds / "cat" / "0_0.wav").write_bytes(b"no audio")
    write_audio(sounds / "bird" / "0_0.wav", np.zeros(RATE, dtype=np.float32), RATE)
    with pytest.raises(DatasetError) as caught:
        Library(read_settings(path))
    text = str(caught.value)
    expected = [
        f"Missing: {photos}/images/photo_00.jpg",
        f"Missing: {photos}/masks/photo_01.png",
        "The mask is 64x40 pixels, the photo 64x48",
        "photo_03.jpg: cannot identify image file",
        f"class indices in {photos}/masks/photo_04.png, got an image of mode RGB",
        f"mask values without a label in {photos}/masks/photo_05.png: [52]. Labels are 1 dog, 2 cat, 3 bird.",
        f"only 0 (background) and 255 (void) in {photos}/masks/photo_06.png, as in a binary mask.",
        f"{sounds}/dog/0_0.wav: Missing",
        f"{sounds}/cat/0_0.wav",
        "bird/0_0.wav: The recording is silent",
    ]
    assert [one for one in expected if one not in text] == []
    assert len(caught.value.problems) == len(expected)


def test_unknown_labels_and_sources_are_listed(tmp_path: Path) -> None:
    write_paired_data(tmp_path)
    classes = {
        "dog": {"photos": ["dogs"], "sounds": ["dgo"], "similar": ["brid"]},
        "cat": {"photos": ["cat"], "sounds": ["cat"]},
    }
    others = {"drums": {"sounds": ["drumm"], "audioset": ["Drum"]}}
    path = write_settings(tmp_path, classes=classes, unknown=["piano"], background=["snow"], other_sounds=others)
    with pytest.raises(DatasetError) as caught:
        Library(read_settings(path))
    text = str(caught.value)
    assert "class 'dog', photos: no source has the label 'dogs'. Did you mean 'dog'?" in text
    assert "class 'dog', sounds: no source has the label 'dgo'. Did you mean 'dog'?" in text
    assert "class 'dog', similar: no source has the label 'brid'. Did you mean 'bird'?" in text
    assert "other sound 'drums', sounds: no source has the label 'drumm'" in text
    assert "unknown: no source has the label 'piano'" in text
    assert "background: no source has the label 'snow'" in text
    shutil.rmtree(tmp_path / "sounds")
    sources = [{"layout": "folder", "path": "none"}, {"layout": "voc2", "path": "x"}, {"layout": "coco", "path": "x"}]
    path = write_settings(tmp_path, photos=sources)
    with pytest.raises(DatasetError) as caught:
        Library(read_settings(path))
    text = str(caught.value)
    assert "none/classes.txt: Missing; layout folder needs it" in text
    assert "Unknown layout 'voc2'. Expected one of folder, coco, voc." in text
    assert "Expected the options images, annotations of the layout coco, got path" in text
    assert "sounds.csv: Missing; layout table needs it" in text


def test_recordings_of_two_classes_are_left_out(tmp_path: Path) -> None:
    write_photo_folder(tmp_path / "photos")
    write_sound_table(tmp_path / "sounds")
    root = tmp_path / "FSD50K"
    rows = [{"fname": name, "labels": labels} for name, labels in (("1", "dog,cat"), ("2", "dog,Animal"))]
    write_table(root / "FSD50K.ground_truth" / "dev.csv", rows)
    write_table(root / "FSD50K.ground_truth" / "eval.csv", [{"fname": "3", "labels": "Other"}])
    write_tone(root / "FSD50K.dev_audio" / "2.wav", "dog")
    sources = [{"layout": "table", "path": "sounds/sounds.csv"}, {"layout": "fsd50k", "path": "FSD50K"}]
    library = Library(read_settings(write_settings(tmp_path, recordings=sources)))
    added = [
        (one.group, role) for one, role in zip(library.recordings, library.roles, strict=True) if one.group == "2"
    ]
    assert added == [("2", 1)]
    assert not {"1", "3"} & {one.group for one in library.recordings}


def test_the_second_object_is_where_the_mask_says(tmp_path: Path) -> None:
    library = Library(read_settings(write_paired_data(tmp_path)))
    _, mask = library.photo(3)
    assert (mask[SECOND] == 2).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked")
def test_threads_that_decode_are_kept_and_not_inherited(tmp_path: Path) -> None:
    """A process that was forked while a thread ended waited forever in the MKL; forked processes have threads of their own."""
    settings = read_settings(write_paired_data(tmp_path))
    Library(settings, num_threads=2)
    kept = _decoding_threads()
    Library(settings, num_threads=2)
    assert kept and _decoding_threads() == kept
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        assert pool.submit(_count_recordings, settings).result(timeout=60) == len(Library(settings).recordings)


def _count_recordings(settings: Any) -> int:
    return len(Library(settings, num_threads=2).recordings)


def _decoding_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("decode")}
