import pickle

import pytest

from pcmanet.dataset_scripts.avsbench_tables import (
    SHOWN_FAULTS,
    AVSBenchError,
    Fault,
    read_lines,
    read_table,
    read_text,
    require_choice,
    require_name,
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
    faults = [Fault("clip", f"file{number}", "missing") for number in range(SHOWN_FAULTS + 5)]
    error = pickle.loads(pickle.dumps(AVSBenchError(faults)))
    assert error.faults == faults
    lines = str(error).splitlines()
    assert lines[0] == "105 faults in the data:" and lines[1] == "  file0: missing"
    assert len(lines) == SHOWN_FAULTS + 2 and "5 more" in lines[-1]
    assert str(AVSBenchError(faults[:1])).startswith("1 fault in the data:")


def test_an_error_that_comes_back_from_a_worker_keeps_its_text():
    # A DataLoader raises the class again with the text of the worker's error.
    text = str(AVSBenchError([Fault(clip="abc", path="abc.wav", problem="is empty")]))
    assert str(AVSBenchError(text)) == text
    assert AVSBenchError(text).faults == []
