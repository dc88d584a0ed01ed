from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_pcmanet.media_pcmanet import read_audio
from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.dataset_scripts.avsbench import AVSBenchError, label_names, load_avsbench
from pcmanet.dataset_scripts.avsbench.folder import encode_wav


@pytest.fixture
def load(tmp_path):
    """The loader with a cache of its own."""
    return lambda root, name, **options: load_avsbench(root, name, cache_dir=tmp_path / "cache", **options)


def faults_of(call):
    with pytest.raises(AVSBenchError) as caught:
        call()
    return {Path(fault.path).name: str(fault) for fault in caught.value.faults}


@pytest.fixture
def own_folder(tmp_path):
    """Two videos of two seconds, the second without masks."""
    root = tmp_path / "own"
    (root / "videos").mkdir(parents=True)
    frames = [np.full((48, 64, 3), 40 * (k // 10), np.uint8) for k in range(20)]
    for name in ("dog", "cat"):
        write_video(root / f"videos/{name}.mp4", frames, 10, np.zeros(32000, np.float32), 16000)
    mask = np.zeros((48, 64), np.uint8)
    mask[:, 32:] = 255
    (root / "masks/dog").mkdir(parents=True)
    Image.fromarray(mask).save(root / "masks/dog/1.png")
    (root / "clips.csv").write_text(
        "video,split,masks,objects\nvideos/dog.mp4,train,masks/dog,dog\nvideos/cat.mp4,train,,\n"
    )
    return root


def test_own_folder(own_folder, load):
    rows = list(load(own_folder, "folder", split="train"))
    assert [row["id"] for row in rows] == ["videos/dog.mp4", "videos/cat.mp4"]
    assert rows[0]["annotated_frames"] == [False, True] and rows[1]["annotated_frames"] == [False, False]
    assert np.asarray(rows[0]["masks"][1])[0].tolist() == [0] * 32 + [1] * 32
    assert rows[0]["objects"] == ["dog"] and rows[1]["objects"] is None
    assert abs(np.asarray(rows[0]["frames"][1]).mean() - 40) < 2
    assert read_audio(rows[0]["audio"]["bytes"])[0].shape[-1] >= 32000
    assert label_names(own_folder, "folder") == ("sounding",)
    assert len(load(own_folder, "folder", split="train", frames_per_second=4.0)[0]["frames"]) == 8


def test_own_folder_with_classes(own_folder, load):
    (own_folder / "classes.txt").write_text("background\ndog\ncat\n")
    assert label_names(own_folder, "folder") == ("background", "dog", "cat")
    assert (
        "holds 255; class indexes go from 0" in faults_of(lambda: load(own_folder, "folder", split="train"))["1.png"]
    )
    Image.fromarray(np.full((48, 64), 2, np.uint8)).save(own_folder / "masks/dog/1.png")
    assert np.asarray(load(own_folder, "folder", split="train")[0]["masks"][1]).min() == 2


def test_masks_prepared_under_other_classes_are_prepared_anew(own_folder, load):
    load(own_folder, "folder", split="train")
    (own_folder / "classes.txt").write_text("background\ndog\n")
    faults = faults_of(lambda: load(own_folder, "folder", split="train"))
    assert "holds 255; class indexes go from 0" in faults["1.png"]


def test_faults_of_an_own_folder_are_named(own_folder, load):
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(own_folder / "masks/dog/2.png")
    Image.fromarray(np.zeros((20, 64), np.uint8)).save(own_folder / "masks/dog/0.png")
    faults = faults_of(lambda: load(own_folder, "folder"))
    assert "the video has 2 frames" in faults["2.png"] and "the mask is (20, 64)" in faults["0.png"]
    (own_folder / "masks/dog/two.png").write_bytes(b"x")
    (own_folder / "videos/cat.mp4").unlink()
    faults = faults_of(lambda: load(own_folder, "folder"))
    assert "number of its frame" in faults["two.png"] and "missing" in faults["cat.mp4"]
    (own_folder / "clips.csv").write_text("video,split\n../x.mp4,train\n/etc/passwd,train\n")
    with pytest.raises(AVSBenchError, match=r"(?s)line 2.*\.\./x.*line 3.*/etc/passwd"):
        load(own_folder, "folder")


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("clip,split\nvideos/dog.mp4,train\n", "the header is 'clip,split'"),
        ("video,split,video\nvideos/dog.mp4,train,x\n", "the header is"),
        ("video,split\n", "no clips"),
        ("video,split\nvideos/dog.mp4\n", "1 values, expected 2"),
        ("video,split\nvideos/dog.mp4,training\n", "split is 'training'"),
        ("video,split\nvideos/dog.mp4,train\nvideos/dog.mp4,val\n", "stands in another line already"),
        (
            "video,split\n./videos/dog.mp4,train\nvideos//dog.mp4,val\n",
            "'videos/dog.mp4' stands in another line already",
        ),
        ("video,split,masks\nvideos/dog.mp4,train,masks/../../x\n", "masks is 'masks/../../x'"),
        ("video,split,masks\nvideos/dog.mp4,train,masks/cat\n", "holds no masks"),
    ],
)
def test_tables_that_cannot_be_used_are_named(own_folder, load, table, problem):
    (own_folder / "clips.csv").write_text(table)
    with pytest.raises(AVSBenchError) as caught:
        load(own_folder, "folder")
    assert problem in str(caught.value)


@pytest.mark.parametrize("names", ["background\n", "background\ndog\ndog\n", ""])
def test_class_names_must_be_several_different_ones(own_folder, names):
    (own_folder / "classes.txt").write_text(names)
    with pytest.raises(AVSBenchError, match="classes.txt: holds . names"):
        label_names(own_folder, "folder")


def test_class_names_may_come_from_windows(own_folder):
    path = own_folder / "classes.txt"
    path.write_bytes("background\r\ncafé\r\n".encode("utf-8-sig"))
    assert label_names(own_folder, "folder") == ("background", "café")
    path.write_bytes("background\ncafé\n".encode("latin-1"))
    with pytest.raises(AVSBenchError, match=r"classes.txt, line 2: byte 0xe9 is not UTF-8"):
        label_names(own_folder, "folder")


def test_wavs_are_written_to_the_nearest_sample():
    waveform = np.array([[0.0, 0.5, -1.0, 1.0, 2.0], [0.25, 0.0, 0.0, 0.0, -2.0]], np.float32)
    read, rate = read_audio(encode_wav(waveform, 44100))
    assert rate == 44100
    np.testing.assert_allclose(read, np.clip(waveform, -1, 32767 / 32768), atol=1e-6)
