""" """

import pickle

import pytest

from pcmanet.dataset_scripts.avsbench.layouts import (
    LAYOUTS,
    S4_CATEGORIES,
    SHOWN_FAULTS,
    AVSBenchError,
    Problem,
    find_tree,
    parse_objects,
    read_clips,
    read_lines,
    read_table,
    read_text,
    require_choice,
    require_name,
    share_nothing,
)


COLUMNS = ("video_id", "split")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\n\n ,\n", "is empty"),
        (b"video_id,split\n", "no clips"),
        (b"video_id,split\nabc,train\ncaf\xe9,val\n", "line 3: byte 0xe9 is not UTF-8"),
        (b"video_id,split\nabc\nabc,train,3\n", "line 3: 3 values, expected 2"),
        (b'video_id,split\n"abc,val\n', "is no csv"),
    ],
)
def test_tables_that_cannot_be_used_are_named(tmp_path, content, problem):
    path = tmp_path / "clips.csv"
    path.write_bytes(content)
    with pytest.raises(AVSBenchError, match="clips.csv") as caught:
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
def test_headers_marks_spaces_and_blank_lines_do_not_matter(tmp_path, content):
    path = tmp_path / "clips.csv"
    path.write_text(content, encoding="utf-8", newline="")
    assert [values for _, values in read_table(path, COLUMNS, named_header=False)] == [["-rf", "train"], ["_x", "val"]]


def test_texts_of_windows_are_read_or_named(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("background\r\ncafé".encode("utf-8-sig"))
    assert read_text(path) == "background\r\ncafé"
    path.write_bytes("background\ncafé".encode("latin-1"))
    with pytest.raises(AVSBenchError, match="classes.txt, line 2: byte 0xe9 is not UTF-8"):
        read_text(path)


def test_a_known_header_must_be_there(tmp_path):
    path = tmp_path / "clips.csv"
    path.write_text("video_id,split\nabc,train\n")
    assert read_table(path, COLUMNS, named_header=True) == [(2, ["abc", "train"])]
    with pytest.raises(AVSBenchError, match="line 1: the header is 'video_id,split', expected 'split,video_id'"):
        read_table(path, COLUMNS[::-1], named_header=True)
    assert read_lines(path)[0] == (1, ["video_id", "split"])


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../../x", "a\\b", "/etc", "C:x", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(ValueError, match="no plain file name"):
        require_name(name, "uid")


@pytest.mark.parametrize("name", ["-rf", "_n-Ey8CoFlA", "0mqckt2Uca8_2", "...", "a b"])
def test_odd_names_are_names(name):
    assert require_name(name, "uid") == name


def test_choices():
    assert require_choice("val", "split", ("train", "val")) == "val"
    with pytest.raises(ValueError, match="split is 'Val', expected one of train, val"):
        require_choice("Val", "split", ("train", "val"))


def test_the_error_shows_many_faults_and_holds_them_all():
    faults = [Problem("clip", f"file{number}", "missing") for number in range(SHOWN_FAULTS + 5)]
    error = pickle.loads(pickle.dumps(AVSBenchError(faults)))
    assert error.faults == faults
    lines = str(error).splitlines()
    assert lines[0] == "105 faults in the data:" and lines[1] == "  file0: missing"
    assert len(lines) == SHOWN_FAULTS + 2 and "5 more" in lines[-1]
    assert str(AVSBenchError(faults[:1])).startswith("1 fault in the data:")


def test_an_error_that_comes_back_from_a_worker_keeps_its_text():
    # A DataLoader raises the class again with the text of the worker's error.
    text = str(AVSBenchError([Problem(clip="abc", path="abc.wav", problem="is empty")]))
    assert str(AVSBenchError(text)) == text
    assert AVSBenchError(text).faults == []


def clips_of(root, name, *lines):
    rows = [(number, line.split(",")) for number, line in enumerate(lines, start=2)]
    return read_clips(root / "table.csv", rows, name).clips


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
    ("line", "subset", "frames", "labelled", "objects"),
    [
        ("__GOGlHL23s,__GOGlHL23s_4000_9000,0,4,bird,val,v1s", "v1s", 5, 5, ("bird",)),
        ("__GOGlHL23s,__GOGlHL23s_4000_9000,0,4,bird,train,v1s", "v1s", 5, 1, ("bird",)),
        ("_-apT0tfo6U,_-apT0tfo6U_60000_70000,1,0,girl_guitar,train,v2", "v2", 10, 10, ("girl", "guitar")),
        ("_19NVGk6Zt8_0,_19NVGk6Zt8_0,0,0,guitar,train,v1m", "v1m", 5, 5, ("guitar",)),
    ],
)
def test_avss_files(tmp_path, line, subset, frames, labelled, objects):
    (clip,) = clips_of(tmp_path, "avss", line)
    vid, uid = line.split(",")[:2]
    folder = tmp_path / subset / uid
    assert clip.frames == tuple(str(folder / f"frames/{number}.jpg") for number in range(frames))
    assert [mask for mask in clip.masks if mask] == [
        str(folder / f"labels_semantic/{number}.png") for number in range(labelled)
    ]
    assert (clip.video, clip.id, clip.objects, clip.audio) == (vid, uid, objects, str(folder / "audio.wav"))
    (folder / "labels_rgb").mkdir(parents=True)
    (clip,) = clips_of(tmp_path, "avss", line)
    assert clip.colour_coded and clip.masks[0] == str(folder / "labels_rgb/0.png")


def test_all_bad_rows_are_named(tmp_path):
    with pytest.raises(AVSBenchError) as caught:
        clips_of(
            tmp_path,
            "s4",
            "a,0,race_car,train",
            "b,0,race-car,train",
            "c,0,race_car,valid",
            "../d,0,race_car,val",
            "a,0,race_car,train",
            "a,0,race_car,val",
        )
    assert [str(fault).split("table.csv, ")[1].split(",")[0] for fault in caught.value.faults] == [
        "line 3: category is 'race-car'",
        "line 4: split is 'valid'",
        "line 5: name '../d' is no plain file name; a table must not lead out of its tree",
        "line 6: clip 'a' stands in line 2 already",
    ]


def test_objects():
    assert parse_objects("emergency-car_h orse_off-the-screen") == ("emergency-car", "horse", "off-the-screen")
    for text in ("", "dog_", "Dog", "h  orse", "horse_clip-clop"):
        with pytest.raises(ValueError, match="none of the 70 classes"):
            parse_objects(text)


def test_clips_share_nothing_only_where_the_data_tell_what_is_heard():
    assert share_nothing(("cat",), ("dog",)) and share_nothing(frozenset(["cat"]), ("dog", "man"))
    assert not share_nothing(("cat", "dog"), ("dog",))
    for unknown in (None, (), ("off-the-screen",), ("background",), ("cat", "off-the-screen")):
        assert not share_nothing(unknown, ("dog",))
    assert share_nothing(("dog",), ("off-the-screen",))
    assert not share_nothing(("dog",), None) and not share_nothing(("dog",), ())


def test_other_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="name is 's5'"):
        find_tree(tmp_path, "s5")
