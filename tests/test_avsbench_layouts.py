"""Tests of dataset_scripts/avsbench/layouts.py: tables, paths of the files."""

import pytest

from pcmanet.dataset_scripts.avsbench.layouts import (
    LAYOUTS,
    S4_CATEGORIES,
    find_folder,
    find_tree,
    have_disjoint_objects,
    parse_objects,
    read_clips,
    read_table,
)
from pcmanet.dataset_scripts.problems import DatasetError


COLUMNS = ("video_id", "split")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "Empty table"),
        (b"\n\n ,\n", "Empty table"),
        (b"video_id,split\n", "no clips"),
        (b"video_id,split\nabc,train\ncaf\xe9,val\n", "line 3: Byte 0xe9 is not UTF-8"),
        (b"video_id;split\nabc;train\n", "line 1: The columns are separated by semicolons, expected commas"),
        (b"abc\ttrain\n", "line 1: The columns are separated by tabs, expected commas"),
        (b'video_id,split\n"abc,val\n', "Invalid csv"),
    ],
)
def test_read_table_rejects_unusable_tables(tmp_path, content, problem):
    path = tmp_path / "clips.csv"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="clips.csv") as caught:
        read_table(path, COLUMNS, named_header=False)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "video_id,split\r\n-rf,train\r\n_x,val\r\n",
        "\ufeffanything,split\n-rf , train\n\n_x,val",
        '"a","b"\n"-rf","train"\n"_x","val"\n',
        "-rf,train\n_x,val\n",
    ],
)
def test_read_table_ignores_headers_marks_spaces_and_blank_lines(tmp_path, content):
    path = tmp_path / "clips.csv"
    path.write_text(content, encoding="utf-8", newline="")
    assert [values for _, values in read_table(path, COLUMNS, named_header=False)] == [["-rf", "train"], ["_x", "val"]]


def test_read_table_requires_a_named_header(tmp_path):
    path = tmp_path / "clips.csv"
    path.write_text("video_id,split\nabc,train\n")
    assert read_table(path, COLUMNS, named_header=True) == [(2, ["abc", "train"])]
    with pytest.raises(DatasetError, match="line 1: Expected the header 'split,video_id', got 'video_id,split'"):
        read_table(path, COLUMNS[::-1], named_header=True)


def test_read_table_refuses_columns_in_another_order(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("split,video_id\ntrain,abc\n")
    with pytest.raises(DatasetError, match="line 1: Expected the header 'video_id,split', got 'split,video_id'"):
        read_table(path, COLUMNS, named_header=False)


def tree_of(root, name, *lines):
    rows = [(number, line.split(",")) for number, line in enumerate(lines, start=2)]
    return read_clips(root / "table.csv", rows, name)


def clips_of(root, name, *lines):
    tree = tree_of(root, name, *lines)
    assert tree.problems == []
    return tree.clips


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../../x", "a\\b", "/etc", "C:x", "a\0b"])
def test_names_outside_the_folder_are_rejected(tmp_path, name):
    (problem,) = tree_of(tmp_path, "avss", f"x,{name},0,0,bird,train,v2").problems
    assert "Expected a plain file name as uid" in problem.problem


@pytest.mark.parametrize("name", ["-rf", "_n-Ey8CoFlA", "0mqckt2Uca8_2", "...", "a b"])
def test_unusual_names_are_accepted(tmp_path, name):
    (clip,) = clips_of(tmp_path, "avss", f"x,{name},0,0,bird,train,v2")
    assert clip.id == name and clip.audio == str(tmp_path / "v2" / name / "audio.wav")


def test_published_counts_and_names():
    assert {name: sum(layout.published.values()) for name, layout in LAYOUTS.items()} == {
        "s4": 4932,
        "ms3": 424,
        "avss": 11356,
    }
    assert len(set(S4_CATEGORIES)) == 23 and "horse_clip-clop" in S4_CATEGORIES


def test_s4_files(tmp_path):
    train, test = clips_of(tmp_path, "s4", "-GO0HlHL23s,3,horse_clip-clop,train", "x_y,6,race_car,test")
    data = tmp_path / "s4_data"
    assert train.frames[4] == str(data / "visual_frames/train/horse_clip-clop/-GO0HlHL23s/-GO0HlHL23s_5.png")
    assert train.masks == (str(data / "gt_masks/train/horse_clip-clop/-GO0HlHL23s/-GO0HlHL23s_1.png"), *[None] * 4)
    assert train.audio == str(data / "audio_wav/train/horse_clip-clop/-GO0HlHL23s.wav")
    assert train.log_mel == str(data / "audio_log_mel/train/horse_clip-clop/-GO0HlHL23s.pkl")
    assert len(test.masks) == len(test.frames) == 5 and test.masks[4].endswith("gt_masks/test/race_car/x_y/x_y_5.png")
    assert (train.category, train.objects) == ("horse_clip-clop", ("horse_clip-clop",))
    assert len(train.paths) == 8 and len(test.paths) == 12


def test_ms3_files(tmp_path):
    (clip,) = clips_of(tmp_path, "ms3", "0mqckt2Uca8_2,train")
    data = tmp_path / "ms3_data"
    assert clip.frames[0] == str(data / "visual_frames/0mqckt2Uca8_2/0mqckt2Uca8_2.mp4_1.png")
    assert clip.masks[4] == str(data / "gt_masks/train/0mqckt2Uca8_2/0mqckt2Uca8_2_5.png")
    assert clip.audio == str(data / "audio_wav/train/0mqckt2Uca8_2.wav") and clip.objects is None


@pytest.mark.parametrize(
    ("line", "subset", "frames", "labeled", "objects"),
    [
        ("__GOGlHL23s,__GOGlHL23s_4000_9000,0,4,bird,val,v1s", "v1s", 5, 5, ("bird",)),
        ("__GOGlHL23s,__GOGlHL23s_4000_9000,0,4,bird,train,v1s", "v1s", 5, 1, ("bird",)),
        ("_-apT0tfo6U,_-apT0tfo6U_60000_70000,1,0,girl_guitar,train,v2", "v2", 10, 10, ("girl", "guitar")),
        ("_19NVGk6Zt8_0,_19NVGk6Zt8_0,0,0,guitar,train,v1m", "v1m", 5, 5, ("guitar",)),
    ],
)
def test_avss_files(tmp_path, line, subset, frames, labeled, objects):
    (clip,) = clips_of(tmp_path, "avss", line)
    vid, uid = line.split(",")[:2]
    folder = tmp_path / subset / uid
    assert clip.frames == tuple(str(folder / f"frames/{number}.jpg") for number in range(frames))
    assert [mask for mask in clip.masks if mask] == [
        str(folder / f"labels_semantic/{number}.png") for number in range(labeled)
    ]
    assert (clip.video, clip.id, clip.objects, clip.audio) == (vid, uid, objects, str(folder / "audio.wav"))
    (folder / "labels_rgb").mkdir(parents=True)
    (clip,) = clips_of(tmp_path, "avss", line)
    assert clip.mask_encoding == "colors" and clip.masks[0] == str(folder / "labels_rgb/0.png")


def test_read_clips_lists_all_unusable_rows(tmp_path):
    tree = tree_of(
        tmp_path,
        "s4",
        "a,0,race_car,train",
        "b,0,race-car,train",
        "c,0,race_car,valid",
        "../d,0,race_car,val",
        "a,0,race_car,train",
        "a,0,race_car,val",
        "e,0,race_car",
    )
    assert [str(problem).split("table.csv, ")[1].split(". ")[0] for problem in tree.problems] == [
        "line 3: Unknown category 'race-car'",
        "line 4: Unknown split 'valid'",
        "line 5: Expected a plain file name as name, got '../d'",
        "line 6: Clip 'a' is already in line 2",
        "line 8: Expected 4 values (name, start second, category, split), got 3",
    ]
    assert [(clip.id, clip.split) for clip in tree.clips] == [("a", "train"), ("a", "val")]


def test_parse_objects():
    assert parse_objects("emergency-car_h orse_off-the-screen") == ("emergency-car", "horse", "off-the-screen")
    for text in ("", "dog_", "Dog", "h  orse", "horse_clip-clop"):
        with pytest.raises(ValueError, match="Expected names of the 70 classes"):
            parse_objects(text)


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("", None),
        ("_", None),
        ("dog", ("dog",)),
        ("dog_cat", ("dog", "cat")),
        ("electric_guitar", ("electric_guitar",)),
        ("guitar_electric_guitar_bass_guitar", ("guitar", "electric_guitar", "bass_guitar")),
        ("electric_guitar_off-the-screen", ("electric_guitar", "off-the-screen")),
        ("electric_guitars_dog", ("electric", "guitars", "dog")),
        ("background", ("background",)),
    ],
)
def test_objects_of_a_custom_folder_may_have_names_with_an_underscore(tmp_path, text, objects):
    (tmp_path / "classes.txt").write_text("background\nguitar\nelectric_guitar\nbass_guitar\nc++\n")
    (tmp_path / "clips.csv").write_text(f"video,split,objects\na.mp4,test,{text}\n")
    (clip,) = find_folder(tmp_path).clips
    assert clip.objects == objects


def test_have_disjoint_objects():
    assert have_disjoint_objects(("cat",), ("dog",)) and have_disjoint_objects(frozenset(["cat"]), ("dog", "man"))
    assert not have_disjoint_objects(("cat", "dog"), ("dog",))
    for unknown in (None, (), ("off-the-screen",), ("background",), ("cat", "off-the-screen")):
        assert not have_disjoint_objects(unknown, ("dog",))
    assert have_disjoint_objects(("dog",), ("off-the-screen",))
    assert not have_disjoint_objects(("dog",), None) and not have_disjoint_objects(("dog",), ())


def test_find_tree_rejects_unknown_names(tmp_path):
    with pytest.raises(ValueError, match="got 's5'"):
        find_tree(tmp_path, "s5")
