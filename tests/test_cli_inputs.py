"""Tests of src/pcmanet/cli/inputs.py."""

from argparse import Namespace
from pathlib import Path

import pytest
from datasets import Dataset, Features, Value, Video

from pcmanet.cli.inputs import VideoColumn, VideoFiles, find_videos, name_folders


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def arguments(*videos: str, audio: str | None = None, output: str = "segmented") -> Namespace:
    return Namespace(videos=videos, audio=audio, output=Path(output), data_set=None)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestFiles:
    def test_folders_at_any_depth_in_one_order(self, here: Path):
        touch(here, "in/b.mp4", "in/a/c.MKV", "in/a/notes.doc", "in/.hidden.mp4", "in/.cache/d.mp4", "in/z.webm")
        assert find_videos(arguments("in")).names == ["in/a/c.MKV", "in/b.mp4", "in/z.webm"]

    def test_results_are_no_videos(self, here: Path):
        touch(here, "in/b.mp4", "in/out/b/overlay.mp4")
        assert find_videos(arguments("in", output="in/out")).names == ["in/b.mp4"]

    def test_lists_and_addresses_and_no_video_twice(self, here: Path):
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

    def test_a_list_of_windows(self, here: Path):
        (here / "list.txt").write_bytes("été.mp4\r\nb.mp4\r\n".encode("utf-8-sig"))
        assert find_videos(arguments("list.txt")).names == ["été.mp4", "b.mp4"]

    def test_a_sound_beside(self, here: Path):
        touch(here, "a.mp4", "a.wav")
        assert find_videos(arguments("a.mp4", audio="a.wav")).read("a.mp4") == ("a.mp4", "a.wav")

    def test_one_identity_however_the_path_is_spelled(self, here: Path):
        touch(here, "in/a.mp4", "a.wav")
        (here / "link").symlink_to("in")
        said = {
            tuple(VideoFiles([name], audio).identify(name).items())
            for name in ("in/a.mp4", "./in/../in/a.mp4", "link/a.mp4", str(here / "in" / "a.mp4"))
            for audio in ("a.wav", str(here / "a.wav"))
        }
        real = here.resolve()
        assert said == {(("video", str(real / "in" / "a.mp4")), ("audio", str(real / "a.wav")))}
        address = "https://example.org/a.mp4"
        assert VideoFiles([address]).identify(address) == {"video": address, "audio": None}

    def test_only_one_process_looks(self):
        assert find_videos(arguments("nowhere"), look=False).names == []

    @pytest.mark.parametrize(
        "content, expected", [(b"\n# nothing\n", "no video in list.txt"), (b"\xff\xfe\x00a", "list.txt is no text")]
    )
    def test_lists_that_are_none(self, here: Path, content: bytes, expected: str):
        (here / "list.txt").write_bytes(content)
        with pytest.raises((FileNotFoundError, ValueError), match=expected):
            find_videos(arguments("list.txt"))

    def test_folder_without_videos(self, here: Path):
        touch(here, "in/a.wav")
        with pytest.raises(FileNotFoundError, match=r"no video in in\. Looked for .*\.mp4"):
            find_videos(arguments("in"))


class TestFolderNames:
    def test_like_the_video(self):
        names = [
            "a/b.c.mp4",
            "https://example.org/some%20dir/my%20clip.mp4?token=1",
            "x:y.mp4",
            "https://example.org/",
        ]
        assert list(name_folders(names).values()) == ["b.c", "my clip", "x_y", "video"]

    def test_never_shared(self):
        with pytest.raises(ValueError, match=r"results of a/x\.mp4 and b/x\.mkv would both go to the folder x\."):
            name_folders(["a/x.mp4", "b/x.mkv"])

    @pytest.mark.parametrize("name", ["../..mp4", "https://example.org/%2e%2e%2f%2e%2e%2fetc", "a/..", ".mp4"])
    def test_never_outside(self, name: str):
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
                "sound": {"path": Value("string"), "bytes": Value("binary")},
                "id": Value("int32"),
                "url": Value("string"),
                "raw": Value("binary"),
            }
        )
        rows = [
            {
                "video": {"path": "clips/a.mp4", "bytes": b"A"},
                "sound": {"path": "a.wav", "bytes": None},
                "id": 7,
                "url": "https://example.org/a.mp4",
                "raw": b"1",
            },
            {
                "video": {"path": "b.mp4", "bytes": b"B"},
                "sound": {"path": None, "bytes": b"S"},
                "id": 9,
                "url": "https://example.org/b.mp4",
                "raw": b"2",
            },
        ]
        Dataset.from_list(rows, features=features).save_to_disk(here / "data")
        return here / "data"

    def test_bytes_under_the_names_of_their_files(self, data: Path):
        videos = VideoColumn(str(data), "train", "video", "sound", None)
        assert videos.names == ["a.mp4", "b.mp4"]
        assert videos.read("a.mp4") == (b"A", "a.wav")
        assert videos.read("b.mp4") == (b"B", b"S")

    def test_identity_is_the_cell(self, data: Path):
        said = VideoColumn("data", "train", "video", "sound", "id").identify("7")
        assert said == {
            "video": f"7 of {data.resolve()}, train, video",
            "audio": f"7 of {data.resolve()}, train, sound",
        }
        assert VideoColumn(str(data), "train", "video", None, "id").identify("7") == said | {"audio": None}

    def test_names_of_ones_own(self, data: Path):
        videos = VideoColumn(str(data), "train", "video", None, "id")
        assert videos.names == ["7", "9"]
        assert videos.read("9") == (b"B", None)

    def test_other_kinds_of_columns(self, data: Path):
        addresses = VideoColumn(str(data), "train", "url", None, None)
        assert addresses.read("https://example.org/b.mp4") == ("https://example.org/b.mp4", None)
        content = VideoColumn(str(data), "train", "raw", None, None)
        assert content.names == ["train/00000000", "train/00000001"]
        assert content.read("train/00000001") == (b"2", None)
        with pytest.raises(ValueError, match="A video was expected.*got int"):
            VideoColumn(str(data), "train", "id", None, "url").read("https://example.org/a.mp4")

    def test_a_folder_of_videos(self, here: Path):
        touch(here, "folder/x/a.mp4", "folder/y/a.mp4")
        names = VideoColumn(str(here / "folder"), "train", "video", None, None).names
        assert names == ["x/a.mp4", "y/a.mp4"]

    def test_what_is_not_there(self, data: Path):
        with pytest.raises(ValueError, match="has no column film. It has video, sound, id, url, raw"):
            VideoColumn(str(data), "train", "film", None, None)
        with pytest.raises(ValueError, match="has no video c.mp4 on this machine"):
            VideoColumn(str(data), "train", "video", None, None).read("c.mp4")

    def test_names_that_are_none(self, here: Path):
        Dataset.from_dict({"video": ["a.mp4", "a.mp4"]}).save_to_disk(here / "twice")
        with pytest.raises(ValueError, match=r"several videos called a\.mp4.*--name-column"):
            VideoColumn(str(here / "twice"), "train", "video", None, None)


def test_files_are_kept_in_order():
    assert VideoFiles(["b", "a", "b"]).names == ["b", "a"]
