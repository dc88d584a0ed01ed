"""Tests of src/pcmanet/cli/inputs.py."""

from argparse import Namespace
from pathlib import Path

import pytest
from datasets import Dataset, Features, Value, Video

from pcmanet.cli.inputs import Videos, find_videos, name_folders


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def arguments(*videos: str, audio: str | None = None, output: str = "segmented") -> Namespace:
    return Namespace(videos=videos, audio=audio, output=Path(output), data=None)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestFiles:
    def test_folders_and_subfolders_in_a_fixed_order(self, here: Path):
        touch(here, "in/b.mp4", "in/a/c.MKV", "in/a/notes.doc", "in/.hidden.mp4", "in/.cache/d.mp4", "in/z.webm")
        assert find_videos(arguments("in")).names == ["in/a/c.MKV", "in/b.mp4", "in/z.webm"]

    def test_results_are_not_videos(self, here: Path):
        touch(here, "in/b.mp4", "in/out/b/overlay.mp4")
        assert find_videos(arguments("in", output="in/out")).names == ["in/b.mp4"]

    def test_lists_and_addresses_without_duplicates(self, here: Path):
        touch(here, "a.mp4", "b.mp4")
        (here / "list.TXT").write_text("a.mp4\n\n  # a comment\n missing.mp4 \nhttps://example.org/c.mp4?x=1\n")
        found = find_videos(arguments("b.mp4", "list.TXT", "HTTP://example.org/d", "b.mp4"))
        assert found.names == [
            "b.mp4",
            "a.mp4",
            "missing.mp4",
            "https://example.org/c.mp4?x=1",
            "HTTP://example.org/d",
        ]
        assert found.read("a.mp4") == ("a.mp4", None)

    def test_list_from_windows(self, here: Path):
        (here / "list.txt").write_bytes("été.mp4\r\nb.mp4\r\n".encode("utf-8-sig"))
        assert find_videos(arguments("list.txt")).names == ["été.mp4", "b.mp4"]

    def test_separate_audio(self, here: Path):
        touch(here, "a.mp4", "a.wav")
        assert find_videos(arguments("a.mp4", audio="a.wav")).read("a.mp4") == ("a.mp4", "a.wav")

    def test_identity_does_not_depend_on_the_spelling_of_the_path(self, here: Path):
        touch(here, "in/a.mp4", "a.wav")
        (here / "link").symlink_to("in")
        identities = {
            tuple(Videos([name], audio).identify(name).items())
            for name in ("in/a.mp4", "./in/../in/a.mp4", "link/a.mp4", str(here / "in" / "a.mp4"))
            for audio in ("a.wav", str(here / "a.wav"))
        }
        real = here.resolve()
        assert identities == {(("video", str(real / "in" / "a.mp4")), ("audio", str(real / "a.wav")))}
        address = "https://example.org/a.mp4"
        assert Videos([address]).identify(address) == {"video": address, "audio": None}

    def test_only_one_process_lists_files(self):
        assert find_videos(arguments("nowhere"), list_files=False).names == []

    @pytest.mark.parametrize(
        "content, expected",
        [(b"\n# nothing\n", "No video found in list.txt"), (b"\xff\xfe\x00a", "list.txt is not a text file")],
    )
    def test_invalid_lists(self, here: Path, content: bytes, expected: str):
        (here / "list.txt").write_bytes(content)
        with pytest.raises((FileNotFoundError, ValueError), match=expected):
            find_videos(arguments("list.txt"))

    def test_folder_without_videos(self, here: Path):
        touch(here, "in/a.wav")
        with pytest.raises(FileNotFoundError, match=r"No video found in in\. Supported suffixes: .*\.mp4"):
            find_videos(arguments("in"))


class TestFolderNames:
    def test_name_of_the_video(self):
        names = [
            "a/b.c.mp4",
            "https://example.org/some%20dir/my%20clip.mp4?token=1",
            "x:y.mp4",
            "https://example.org/",
        ]
        assert list(name_folders(names).values()) == ["b.c", "my clip", "x_y", "video"]

    def test_two_videos_with_one_folder(self):
        with pytest.raises(ValueError, match=r"results of a/x\.mp4 and b/x\.mkv have the same folder x\."):
            name_folders(["a/x.mp4", "b/x.mkv"])

    @pytest.mark.parametrize("name", ["../..mp4", "https://example.org/%2e%2e%2f%2e%2e%2fetc", "a/..", ".mp4"])
    def test_folder_is_inside_the_output_and_visible(self, name: str):
        (folder,) = name_folders([name]).values()
        assert "/" not in folder
        assert not folder.startswith(".")
        assert folder


class TestDataSet:
    @pytest.fixture
    def data(self, here: Path) -> Path:
        features = Features(
            {
                "video": Video(decode=False),
                "audio": {"path": Value("string"), "bytes": Value("binary")},
                "id": Value("int32"),
                "url": Value("string"),
                "raw": Value("binary"),
            }
        )
        rows = [
            {
                "video": {"path": "clips/a.mp4", "bytes": b"A"},
                "audio": {"path": "a.wav", "bytes": None},
                "id": 7,
                "url": "https://example.org/a.mp4",
                "raw": b"1",
            },
            {
                "video": {"path": "b.mp4", "bytes": b"B"},
                "audio": {"path": None, "bytes": b"S"},
                "id": 9,
                "url": "https://example.org/b.mp4",
                "raw": b"2",
            },
        ]
        Dataset.from_list(rows, features=features).save_to_disk(here / "data")
        return here / "data"

    def test_bytes_with_the_names_of_their_files(self, data: Path):
        videos = Videos.from_data_set(str(data), "train", "video", "audio", None)
        assert videos.names == ["a.mp4", "b.mp4"]
        assert videos.read("a.mp4") == (b"A", "a.wav")
        assert videos.read("b.mp4") == (b"B", b"S")

    def test_identity_is_the_cell(self, data: Path):
        identity = Videos.from_data_set("data", "train", "video", "audio", "id").identify("7")
        assert identity == {
            "video": f"7 of {data.resolve()}, train, video",
            "audio": f"7 of {data.resolve()}, train, audio",
        }
        assert Videos.from_data_set(str(data), "train", "video", None, "id").identify("7") == identity | {
            "audio": None
        }

    def test_names_from_a_column(self, data: Path):
        videos = Videos.from_data_set(str(data), "train", "video", None, "id")
        assert videos.names == ["7", "9"]
        assert videos.read("9") == (b"B", None)

    def test_other_types_of_columns(self, data: Path):
        addresses = Videos.from_data_set(str(data), "train", "url", None, None)
        assert addresses.read("https://example.org/b.mp4") == ("https://example.org/b.mp4", None)
        content = Videos.from_data_set(str(data), "train", "raw", None, None)
        assert content.names == ["train/00000000", "train/00000001"]
        assert content.read("train/00000001") == (b"2", None)
        with pytest.raises(ValueError, match="Expected a video.*got int"):
            Videos.from_data_set(str(data), "train", "id", None, "url").read("https://example.org/a.mp4")

    def test_folder_of_videos(self, here: Path):
        touch(here, "folder/x/a.mp4", "folder/y/a.mp4")
        names = Videos.from_data_set(str(here / "folder"), "train", "video", None, None).names
        assert names == ["x/a.mp4", "y/a.mp4"]

    def test_missing_column_or_video(self, data: Path):
        with pytest.raises(ValueError, match="has no column clip, only video, audio, id, url, raw"):
            Videos.from_data_set(str(data), "train", "clip", None, None)
        with pytest.raises(ValueError, match="does not contain the video c.mp4 on this machine"):
            Videos.from_data_set(str(data), "train", "video", None, None).read("c.mp4")

    def test_duplicate_names(self, here: Path):
        Dataset.from_dict({"video": ["a.mp4", "a.mp4"]}).save_to_disk(here / "twice")
        with pytest.raises(ValueError, match=r"several videos with the name a\.mp4.*--name-column"):
            Videos.from_data_set(str(here / "twice"), "train", "video", None, None)


def test_order_is_kept_without_duplicates():
    assert Videos(["b", "a", "b"]).names == ["b", "a"]
