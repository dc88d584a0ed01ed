"""Tests of src/pcmanet/cli/inputs.py."""

import errno
import os
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from command_runs import write_clip
from datasets import Dataset, Features, Value, Video
from PIL import Image
from written_trees import write_trees

from modeling_pcmanet.media_pcmanet import MediaError, read_audio, read_media
from pcmanet.cli.inputs import Videos, find_videos, format_error, name_folders
from pcmanet.cli.results import SETTINGS
from pcmanet.dataset_scripts.avsbench import load_avsbench
from pcmanet.dataset_scripts.clips import to_arrays


COLUMN_OPTIONS = ("column", "audio_column", "name_column")


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
        (here / "list.TXT").write_text("a.mp4\n\n# a comment\nmissing.mp4\nhttps://example.org/c.mp4?x=1\n")
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

    def test_names_in_lists_are_taken_as_they_are(self, here: Path):
        names = [
            "#1.mp4",
            " leading.mp4",
            "trailing.mp4 ",
            "line\u2028separator.mp4",
            "next\u0085line.mp4",
            "form\x0cfeed.mp4",
        ]
        touch(here, *names)
        comment = "# a comment that is too long for the name of a file: " + 300 * "x"
        (here / "list.txt").write_bytes("\n".join([*names, "#2.mp4", comment, "  ", ""]).encode())
        assert find_videos(arguments("list.txt")).names == names

    def test_spaces_around_lines_are_left_out_unless_a_file_has_them(self, here: Path):
        touch(here, "a.mp4", " b.mp4", "b.mp4")
        (here / "list.txt").write_text("  # mine\n  a.mp4 \n b.mp4\n https://example.org/c.mp4 \nmissing.mp4\t\n")
        names = ["a.mp4", " b.mp4", "https://example.org/c.mp4", "missing.mp4"]
        assert find_videos(arguments("list.txt")).names == names

    def test_results_of_other_runs_are_left_out(self, here: Path):
        touch(here, "in/b.mp4", f"in/old/{SETTINGS}", "in/old/b/overlay.mp4", "in/more/c.mp4")
        found = find_videos(arguments("in"))
        assert found.names == ["in/b.mp4", "in/more/c.mp4"]
        assert found.left_out == ["in/old is left out: it contains results of `pcmanet segment`."]
        with pytest.raises(FileNotFoundError, match=r"No video found in in/old\..*contains results"):
            find_videos(arguments("in/old"))

    def test_other_files_are_named(self, here: Path):
        touch(
            here,
            "in/a.m2t",
            "in/b.3G2",
            "in/c.f4v",
            "in/d.dv",
            "in/e.gif",
            "in/f.gif",
            "in/g.ogg",
            "in/h",
            "in/.i.gif",
        )
        found = find_videos(arguments("in"))
        assert found.names == ["in/a.m2t", "in/b.3G2", "in/c.f4v", "in/d.dv"]
        (line,) = found.left_out
        assert line.startswith("in: files without the suffix of a video are left out: .gif 2, .ogg 1, no suffix 1.")

    def test_what_a_folder_hides_is_named(self, here: Path, monkeypatch: pytest.MonkeyPatch):
        touch(here, "in/a.mp4", "in/locked/b.mp4", "elsewhere/c.mp4")
        for name in ("day_2", "day_1", ".hidden"):
            (here / "in" / name).symlink_to(here / "elsewhere")
        (here / "in" / "z.mp4").symlink_to("nowhere.mp4")
        list_folder = os.scandir

        def refuse(path: str) -> object:
            if path == os.path.join("in", "locked"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return list_folder(path)

        monkeypatch.setattr(os, "scandir", refuse)
        found = find_videos(arguments("in"))
        assert found.names == ["in/a.mp4", "in/z.mp4"]  # segmenting the second one fails and says why
        assert found.left_out == [
            "in/locked is left out: Permission denied.",
            "in: links to folders are left out: 2, such as in/day_1. Name them to segment their videos.",
        ]

    def test_separate_audio(self, here: Path):
        touch(here, "a.mp4", "a.wav")
        assert find_videos(arguments("a.mp4", audio="a.wav")).read("a.mp4") == ("a.mp4", "a.wav")

    def test_separate_audio_is_that_of_one_video(self, here: Path):
        touch(here, "in/a.mp4", "in/b.mp4", "a.wav")
        (here / "list.txt").write_text("in/a.mp4\nin/b.mp4\n")
        for several in ("in", "list.txt"):
            with pytest.raises(
                ValueError, match=rf"--audio is the audio of a single video, but {several} has 2 videos"
            ):
                find_videos(arguments(several, audio="a.wav"))
        (here / "in" / "b.mp4").unlink()
        assert find_videos(arguments("in", audio="a.wav")).names == ["in/a.mp4"]

    def test_one_file_is_one_video_however_its_path_is_written(self, here: Path):
        touch(here, "in/a.mp4")
        (here / "link").symlink_to("in")
        (here / "in" / "b.mp4").symlink_to("a.mp4")  # another name, and so another video
        spellings = ["in/a.mp4", "./in/a.mp4", "link/a.mp4", "link/../in/a.mp4", str(here / "in" / "a.mp4")]
        (here / "list.txt").write_text("\n".join([*spellings, f"file://{here}/in/a.mp4", "in/b.mp4"]))
        videos = find_videos(arguments(*spellings, "list.txt", "in"))
        assert videos.names == ["in/a.mp4", "in/b.mp4"]
        assert len({videos.origin(name) for name in spellings}) == 1
        assert videos.origin("in/a.mp4") != videos.origin("in/b.mp4")

    def test_addresses_of_files_and_the_home_folder(self, here: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HOME", str(here / "home"))
        touch(here, "a b.mp4", "home/c.mp4", "home/more/d.mp4", "a.wav")
        (here / "list.txt").write_text(f"file://{here}/a%20b.mp4\n~/c.mp4\nfile://nas/e.mp4\n")
        names = [f"{here}/a b.mp4", f"{here}/home/c.mp4", "file://nas/e.mp4"]
        assert find_videos(arguments("list.txt")).names == names
        named = find_videos(arguments(f"FILE://localhost{here}/a%20b.mp4", audio=f"file:{here}/a.wav"))
        assert named.names == names[:1]
        assert named.identify(names[0])["audio"] == str(here.resolve() / "a.wav")
        assert find_videos(arguments("~/more")).names == [f"{here}/home/more/d.mp4"]
        with pytest.raises(FileNotFoundError, match="file://nas/e.mp4 not found"):
            find_videos(arguments("file://nas/e.mp4"))

    @pytest.mark.parametrize("name", ["file:x.mp4", "~/x.mp4", "http:x.mp4", "%41?b#c.mp4"])
    def test_names_that_look_like_addresses(self, here: Path, name: str):
        write_clip(here / name, seconds=1)
        (here / "list.txt").write_text(name)
        for given in (name, "list.txt", "."):
            (found,) = find_videos(arguments(given)).names
            assert Path(found) == Path(name)
            assert read_media(found, frames_per_second=10).frames.shape[0] == 10

    def test_identity_does_not_depend_on_the_spelling_of_the_path(self, here: Path):
        touch(here, "in/a.mp4", "a.wav")
        (here / "link").symlink_to("in")
        identities = {
            tuple(Videos([name], audio).identify(name).items())
            for name in ("in/a.mp4", "./in/../in/a.mp4", "link/a.mp4", str(here / "in" / "a.mp4"))
            for audio in ("a.wav", str(here / "a.wav"))
        }
        real = here.resolve()
        ((video, audio, (_, content)),) = identities
        assert (video, audio) == (("video", str(real / "in" / "a.mp4")), ("audio", str(real / "a.wav")))
        assert content.startswith("0 bytes, ")
        address = "https://example.org/a.mp4"
        assert Videos([address]).identify(address) == {"video": address, "audio": None, "content": None}

    def test_fingerprint_changes_with_the_content(self, here: Path):
        def fingerprint() -> str | None:
            return Videos(["a.mp4"], "a.wav").fingerprint("a.mp4")

        assert fingerprint() is None
        touch(here, "a.mp4", "a.wav")
        seen = {fingerprint()}
        for name in ("a.mp4", "a.wav"):
            (here / name).write_bytes(bytes(200_000))
            seen.add(fingerprint())
            status = (here / name).stat()
            (here / name).write_bytes(bytes(199_999) + b"1")
            os.utime(here / name, ns=(status.st_atime_ns, status.st_mtime_ns))
            seen.add(fingerprint())
            os.utime(here / name, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
            seen.add(fingerprint())
        assert len(seen) == 7
        assert fingerprint() in seen

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

    @pytest.mark.parametrize(
        "name", [SETTINGS, "README.md", "readme.MD", "segments-0123456789abcdef.parquet", "Desktop.ini", "Thumbs.db"]
    )
    def test_names_of_other_files_of_the_results_are_not_used(self, name: str):
        assert name_folders([f"{name}.mp4"]) == {f"{name}.mp4": f"{name}_"}

    def test_long_names_are_cut_and_stay_different(self, tmp_path: Path):
        long = 80 * "視"
        names = [f"{long}1.mp4", f"{long}2.mp4", f"https://example.org/{300 * 'x'}?token=1", f"{200 * 'y'}.mp4"]
        folders = list(name_folders(names).values())
        assert [len(os.fsencode(folder)) for folder in folders] == [198, 198, 200, 200]
        assert folders[3] == 200 * "y"
        for folder in folders:
            (tmp_path / f".pcmanet-replaced-{folder}").mkdir()

    def test_title_has_no_query(self):
        videos = Videos(["a/b.c.mp4", "https://example.org/my%20clip.mp4?token=1"])
        assert [videos.title(name) for name in videos.names] == ["b.c.mp4", "my clip.mp4"]

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
        videos = Videos.from_dataset(str(data), "train", "video", "audio", None)
        assert videos.names == ["a.mp4", "b.mp4"]
        assert videos.read("a.mp4") == (b"A", "a.wav")
        assert videos.read("b.mp4") == (b"B", b"S")

    def test_identity_is_the_cell(self, data: Path):
        identity = Videos.from_dataset("data", "train", "video", "audio", "id").identify("7")
        assert identity == {
            "video": f"7 of {data.resolve()}, train, video",
            "audio": f"7 of {data.resolve()}, train, audio",
            "content": "1 bytes, 559aead08264d579 with audio a.wav",
        }
        assert Videos.from_dataset(str(data), "train", "video", None, "id").identify("7") == identity | {
            "audio": None,
            "content": "1 bytes, 559aead08264d579",
        }

    def test_names_from_a_column(self, data: Path):
        videos = Videos.from_dataset(str(data), "train", "video", None, "id")
        assert videos.names == ["7", "9"]
        assert videos.read("9") == (b"B", None)

    def test_other_types_of_columns(self, data: Path):
        addresses = Videos.from_dataset(str(data), "train", "url", None, None)
        assert addresses.read("https://example.org/b.mp4") == ("https://example.org/b.mp4", None)
        content = Videos.from_dataset(str(data), "train", "raw", None, None)
        assert content.names == ["train/00000000", "train/00000001"]
        assert content.read("train/00000001") == (b"2", None)
        with pytest.raises(ValueError, match="Expected a path, URL or bytes in the column id, got int"):
            Videos.from_dataset(str(data), "train", "id", None, "url").read("https://example.org/a.mp4")

    def test_folder_of_videos(self, here: Path):
        touch(here, "folder/x/a.mp4", "folder/y/a.mp4")
        names = Videos.from_dataset(str(here / "folder"), "train", "video", None, None).names
        assert names == ["x/a.mp4", "y/a.mp4"]

    def test_missing_column_or_video(self, data: Path):
        for option, columns in (
            ("column", ("clip",)),
            ("audio-column", ("video", "clip")),
            ("name-column", ("id", None, "clip")),
        ):
            with pytest.raises(
                ValueError, match=f"no column clip, only video, audio, id, url, raw. Choose with --{option}"
            ):
                Videos.from_dataset(str(data), "train", *columns)
        with pytest.raises(ValueError, match="does not contain the video c.mp4 on this machine"):
            Videos.from_dataset(str(data), "train", "video", None, None).read("c.mp4")

    def test_split_of_a_saved_dataset(self, data: Path):
        names = ["a.mp4", "b.mp4"]
        assert Videos.from_dataset(str(data)).names == Videos.from_dataset(str(data), "train").names == names
        with pytest.raises(ValueError, match="has no split test, only train. Leave out --split"):
            Videos.from_dataset(str(data), "test")

    def test_row_that_cannot_be_read_has_no_fingerprint(self, here: Path):
        Dataset.from_dict({"video": ["a.mp4", None], "n": ["x", "y"]}).save_to_disk(here / "gaps")
        videos = Videos.from_dataset(str(here / "gaps"), name_column="n")
        assert videos.identify("y")["content"] is None
        with pytest.raises(ValueError, match="Expected a path, URL or bytes in the column video, got NoneType"):
            videos.read("y")

    def test_duplicate_names(self, here: Path):
        Dataset.from_dict({"video": ["a.mp4", "a.mp4"]}).save_to_disk(here / "twice")
        with pytest.raises(ValueError, match=r"several videos with the name a\.mp4.*--name-column"):
            Videos.from_dataset(str(here / "twice"), "train", "video", None, None)


def test_order_is_kept_without_duplicates():
    assert Videos(["b", "a", "b"]).names == ["b", "a"]


@pytest.mark.parametrize(
    "error, expected",
    [
        (
            PermissionError(13, "Permission denied", "out"),
            "Permission denied: out. Check its permissions, or give another path.",
        ),
        (
            OSError(28, "No space left on device", "/tmp/x"),
            "No space left on device: /tmp/x. Free some space, or set TMPDIR",
        ),
        (OSError(5, "Input/output error"), "Input/output error."),
    ],
)
def test_errors_of_the_system_are_sentences(error: OSError, expected: str):
    assert format_error(error).startswith(expected)


def test_remedy_for_missing_audio_is_an_option_that_applies(here: Path):
    Dataset.from_dict({"video": ["a.mp4"]}).save_to_disk(here / "data")
    error = MediaError("a.mp4 has no audio track.", needs_audio=True)
    assert format_error(error) == "a.mp4 has no audio track."
    assert format_error(error, Videos([]).audio_remedy).endswith(" Give the file with its audio with --audio.")
    assert format_error(error, Videos.from_dataset("data").audio_remedy).endswith(" with --audio-column.")


class TestClips:
    @pytest.fixture(scope="class")
    @classmethod
    def root(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_trees(
            tmp_path_factory.mktemp("trees"), s4={"test": 1}, ms3={"train": 1, "test": 2}, avss={"test": 3}
        )

    @staticmethod
    def find(data: Path, name: str | None = None, split: str = "test", **columns: str):
        chosen = {"data": str(data), "name": name, "split": split}
        return find_videos(Namespace(**chosen, **{**dict.fromkeys(COLUMN_OPTIONS), **columns}))

    @pytest.mark.parametrize("name", ["s4", "ms3", "avss"])
    def test_clips_of_avsbench_are_videos_with_the_frames_and_samples_of_the_files(self, root: Path, name: str):
        rows = list(load_avsbench(root, name, split="test", streaming=True))
        found = self.find(root, name)
        assert [Path(clip).name for clip in found.names] == [row["id"] for row in rows]
        assert all(clip.startswith("test/") for clip in found.names)
        for clip, row in zip(found.names, rows, strict=True):
            content, audio = found.read(clip)
            assert audio is None and content == found.read(clip)[0]
            media = read_media(content)
            assert media.notes == () and media.timestamps.tolist() == row["timestamps"]
            assert np.array_equal(media.frames, np.stack([np.asarray(frame) for frame in row["frames"]]))
            waveform, rate = read_audio(row["audio"]["bytes"])
            assert media.sampling_rate == rate and np.array_equal(media.waveform, waveform)

    def test_frames_with_more_than_8_bits_are_refused(self, root: Path, tmp_path: Path):
        shutil.copytree(root / "Multi-sources", tmp_path / "tree")
        frame = next((tmp_path / "tree/ms3_data/visual_frames").rglob("*.png"))
        for path in frame.parent.parent.rglob("*.png"):
            Image.fromarray(np.full((224, 224), 40_000, dtype=np.uint16)).save(path)
        found = self.find(tmp_path / "tree", "ms3")
        with pytest.raises(ValueError, match=r"8 bits per channel, got a PIL image of mode 'I;16'"):
            found.read(found.names[0])
        (row, *_) = load_avsbench(tmp_path / "tree", "ms3", split="test", streaming=True)
        with pytest.raises(ValueError, match=r"8 bits per channel, got a PIL image of mode 'I;16'"):
            to_arrays(row, binary=True)

    def test_damaged_frame_is_an_error_of_its_clip(self, root: Path, tmp_path: Path):
        shutil.copytree(root / "Multi-sources", tmp_path / "tree")
        found = self.find(tmp_path / "tree", "ms3")
        frames = sorted((tmp_path / "tree/ms3_data/visual_frames" / Path(found.names[0]).name).glob("*.png"))
        content = frames[0].read_bytes()
        for damaged in (b"", b"no image", content[: len(content) // 2]):
            frames[0].write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{frames[0].name} cannot be used: "):
                found.read(found.names[0])

    def test_identity_follows_the_files(self, root: Path, tmp_path: Path):
        shutil.copytree(root / "Multi-sources", tmp_path / "tree")
        before = self.find(tmp_path / "tree", "ms3")
        known = [before.identify(name) for name in before.names]
        assert [self.find(tmp_path / "tree").identify(name) for name in before.names] == known
        clip = before.names[0].removeprefix("test/")
        os.utime(tmp_path / "tree" / "ms3_data" / "audio_wav" / "test" / f"{clip}.wav", ns=(1, 1))
        changed = [self.find(tmp_path / "tree").identify(name) for name in before.names]
        assert [new["content"] == old["content"] for new, old in zip(changed, known, strict=True)] == [False, True]

    def test_folder_of_videos(self, here: Path):
        touch(here, "mine/a.mp4", "mine/b.mp4")
        (here / "mine/clips.csv").write_text("video,split\na.mp4,test\nb.mp4,train\nc.mp4,valid\n")
        found = self.find(here / "mine")
        assert found.names == ["test/a.mp4"] and found.read("test/a.mp4") == (str(here / "mine/a.mp4"), None)
        assert "Unknown split 'valid'" in found.left_out[0]

    def test_choices_that_do_not_fit_are_refused(self, root: Path, here: Path):
        with pytest.raises(ValueError, match="contains s4 and ms3 and avss. Choose one with --name"):
            self.find(root)
        with pytest.raises(ValueError, match="contains ms3, not s4"):
            self.find(root / "Multi-sources", "s4")
        with pytest.raises(ValueError, match="No clips of split 'val' found"):
            self.find(root, "ms3", "val")
        with pytest.raises(ValueError, match="contains no AVSBench, not s4"):
            self.find(here, "s4")
        for option in COLUMN_OPTIONS:
            message = f"contains clips, not a dataset with columns. Leave out --{option.replace('_', '-')}"
            with pytest.raises(ValueError, match=message):
                self.find(root, "s4", **{option: "x"})

    @pytest.mark.parametrize("splits", [("valid", "valid"), ("test", "valid")])
    def test_unusable_lines_are_named_if_the_split_has_no_others(self, here: Path, splits: tuple[str, str]):
        touch(here, "mine/a.mp4", "mine/b.mp4")
        (here / "mine/clips.csv").write_text(f"video,split\na.mp4,{splits[0]}\nb.mp4,{splits[1]}\n")
        with pytest.raises(ValueError, match="No clips of split 'val' found.*\n.*Unknown split 'valid'"):
            self.find(here / "mine", split="val")
