import os
import pickle
import shutil
import wave
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import IterableDataset
from PIL import Image
from written_trees import write_trees

from modeling_pcmanet.configuration_pcmanet import AVSBENCH_SEMANTIC_LABELS
from modeling_pcmanet.feature_extraction_pcmanet import PCMANetFeatureExtractor
from modeling_pcmanet.media_pcmanet import read_audio
from pcmanet.dataset_scripts.avsbench import AVSBenchError, load_avsbench
from pcmanet.dataset_scripts.avsbench.masks import voc_palette
from pcmanet.dataset_scripts.sounding_shapes import files


S4, MS3, AVSS = "Single-source", "Multi-sources", "AVSBench_semantic"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The three trees as the generator writes them, but for the raw videos, which no loader reads."""
    return write_trees(
        tmp_path_factory.mktemp("avsbench"),
        s4={"train": 2, "val": 1},
        ms3={"train": 1, "test": 1},
        avss={"train": 3, "val": 1},
    )


@pytest.fixture
def trees(written, tmp_path):
    """A copy of the trees to plant faults in."""
    shutil.copytree(written, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def load(tmp_path):
    """The loader with a cache of its own."""
    return lambda root, name, **options: load_avsbench(root, name, cache_dir=tmp_path / "cache", **options)


def rows_of(root, tree, table):
    return [line.split(",") for line in (root / tree / table).read_text().splitlines()][1:]


def edit(path, change):
    path.write_text(change(path.read_text()))


def truncate(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def faults_of(call):
    with pytest.raises(AVSBenchError) as caught:
        call()
    return {Path(fault.path.split(", line")[0]).name: str(fault) for fault in caught.value.faults}


def as_array(masks):
    return np.stack([np.asarray(mask) for mask in masks])


@pytest.mark.parametrize("streaming", [False, True])
def test_s4_rows_hold_what_the_generator_drew(trees, load, streaming):
    loaded = load(trees, "s4", streaming=streaming)
    assert set(loaded) == {"train", "val"}
    train, val = next(iter(loaded["train"])), next(iter(loaded["val"]))
    assert isinstance(loaded["train"], IterableDataset) == streaming
    clip = files.SoundingShapes("s4", "val", length=1, height=224, width=224)[0]
    np.testing.assert_array_equal(as_array(val["frames"]), clip.frames)
    np.testing.assert_array_equal(as_array(val["masks"]), clip.binary)
    assert train["annotated_frames"] == [True, False, False, False, False] and val["annotated_frames"] == [True] * 5
    assert train["masks"][0] is not None and train["masks"][1:] == [None] * 4
    assert val["timestamps"] == [0.9375, 1.9375, 2.9375, 3.9375, 4.9375]
    name, _, category, _ = rows_of(trees, S4, "s4_meta_data.csv")[2]
    assert (val["id"], val["category"], val["objects"], val["subset"]) == (name, category, [category], "s4")
    waveform, rate = read_audio(val["audio"]["bytes"])
    np.testing.assert_allclose(waveform, np.stack([clip.waveform] * 2), atol=2 / 32768)
    assert rate == 16000 and val["audio"]["path"] == f"{name}.wav"


def test_ms3_rows_hold_what_the_generator_drew(trees, load):
    row = load(trees / MS3, "ms3", split="train")[0]
    clip = files.SoundingShapes("ms3", "train", length=1, height=224, width=224)[0]
    np.testing.assert_array_equal(as_array(row["frames"]), clip.frames)
    np.testing.assert_array_equal(as_array(row["masks"]), clip.binary)
    assert row["annotated_frames"] == [True] * 5 and row["objects"] is None and row["category"] is None


def test_avss_rows_have_five_or_ten_frames_and_class_indexes(trees, load):
    rows = list(load(trees, "avss", split="train"))
    assert [row["subset"] for row in rows] == ["v1s", "v1m", "v2"]
    assert [len(row["frames"]) for row in rows] == [5, 5, 10]
    assert [sum(row["annotated_frames"]) for row in rows] == [1, 5, 10]
    for row in rows:
        seen = {AVSBENCH_SEMANTIC_LABELS[index] for mask in row["masks"] if mask for index in np.unique(mask)}
        assert seen - {"background"} <= set(row["objects"])
        assert {mask.size for mask in row["masks"] if mask} <= {row["frames"][0].size}


def test_colours_mean_the_same_as_indexes(trees, load):
    semantic = list(load(trees, "avss", split="train"))
    for folder in (trees / AVSS).glob("v*/*/labels_semantic"):
        shutil.rmtree(folder)
    for row, expected in zip(load(trees, "avss", split="train"), semantic, strict=True):
        for mask, other in zip(row["masks"], expected["masks"], strict=True):
            np.testing.assert_array_equal(np.asarray(mask), np.asarray(other))


def test_preparing_again_sees_changed_files(trees, load):
    before = load(trees, "ms3", split="train")[0]["masks"][0]
    mask = next((trees / MS3).glob("ms3_data/gt_masks/train/*/*_1.png"))
    Image.fromarray(np.full((224, 224), 255, np.uint8)).save(mask)
    after = load(trees, "ms3", split="train")[0]["masks"][0]
    assert np.asarray(before).min() == 0 and np.asarray(after).min() == 1


def test_one_tree_is_prepared_once_however_it_is_named(trees, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(trees / MS3)
    for root in (trees, "data", trees / MS3, "link"):
        load_avsbench(root, "ms3", split="train", cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").rglob("dataset_info.json"))) == 1


def test_several_processes_prepare_the_same_rows(trees, tmp_path):
    one, two = (
        load_avsbench(trees, "avss", split="train", cache_dir=tmp_path / str(n), num_proc=n).to_dict() for n in (1, 2)
    )
    assert one == two


def test_all_missing_and_truncated_files_are_named_at_once(trees, load):
    name, _, category, _ = rows_of(trees, S4, "s4_meta_data.csv")[2]
    data = trees / S4 / "s4_data"
    (data / f"gt_masks/val/{category}/{name}/{name}_3.png").unlink()
    truncate(data / f"gt_masks/val/{category}/{name}/{name}_2.png")
    truncate(data / f"visual_frames/val/{category}/{name}/{name}_5.png", 0.9)
    (data / f"visual_frames/val/{category}/{name}/{name}_1.png").write_bytes(b"")
    truncate(data / f"audio_wav/val/{category}/{name}.wav")
    for streaming in (False, True):
        faults = faults_of(lambda streaming=streaming: load(trees, "s4", split="val", streaming=streaming))
        assert set(faults) == {*(f"{name}_{number}.png" for number in (1, 2, 3, 5)), f"{name}.wav"}
        assert "missing; the clip has 4 of 5" in faults[f"{name}_3.png"]
        assert "truncated" in faults[f"{name}_2.png"] and "0 bytes" in faults[f"{name}_1.png"]
        assert "320000 bytes of sound announced, 159978 there" in faults[f"{name}.wav"]
    assert len(load(trees, "s4", split="train")) == 2
    with pytest.raises(ValueError, match="every clip of split 'val' has faults"):
        load(trees, "s4", split="val", faulty="skip")


def test_clips_with_faults_are_left_out_on_request(trees, load):
    (first, *_), (second, *_), *_ = rows_of(trees, S4, "s4_meta_data.csv")
    truncate(next(trees.glob(f"{S4}/s4_data/audio_wav/train/*/{first}.wav")))
    assert [row["id"] for row in load(trees, "s4", split="train", faulty="skip")] == [second]


def test_a_missing_folder_is_named_once(trees, load):
    shutil.rmtree(trees / S4 / "s4_data" / "audio_wav")
    faults = faults_of(lambda: load(trees, "s4", split="train"))
    assert list(faults) == ["audio_wav"] and "2 clips need it" in faults["audio_wav"]


def test_four_frames_and_six_frames_are_named(trees, load):
    uid = rows_of(trees, AVSS, "metadata.csv")[1][1]
    folder = trees / AVSS / "v1m" / uid / "frames"
    shutil.copy(folder / "0.jpg", folder / "5.jpg")
    assert "holds 6 frames, expected 5" in faults_of(lambda: load(trees, "avss", split="train"))["frames"]
    (folder / "5.jpg").unlink()
    (folder / "4.jpg").unlink()
    assert "the clip has 4 of 5" in faults_of(lambda: load(trees, "avss", split="train"))["4.jpg"]


def test_a_short_sound_is_named(trees, load):
    path = next((trees / MS3).glob("ms3_data/audio_wav/test/*.wav"))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(2 * 16000 * 3))
    assert "lasts 3.00 s" in faults_of(lambda: load(trees, "ms3", split="test"))[path.name]


@pytest.mark.parametrize("streaming", [False, True])
def test_wrong_colours_and_values_are_named_all_at_once(trees, load, streaming):
    folders = [trees / AVSS / row[6] / row[1] for row in rows_of(trees, AVSS, "metadata.csv")[:3]]
    shutil.rmtree(folders[0] / "labels_semantic")
    colours = np.asarray(Image.open(folders[0] / "labels_rgb" / "0.png")).copy()
    colours[7, 9] = (1, 2, 3)
    Image.fromarray(colours).save(folders[0] / "labels_rgb" / "0.png")
    Image.fromarray(np.full((256, 256), 71, np.uint8)).save(folders[1] / "labels_semantic" / "2.png")
    faults = faults_of(lambda: list(load(trees, "avss", split="train", streaming=streaming)))
    assert "RGB [[1, 2, 3]], first at row 7, column 9" in faults["0.png"]
    # Streaming tells before the next row, preparing tells of all.
    assert streaming or "holds 71; class indexes go from 0" in faults["2.png"]


def test_faults_survive_the_way_out_of_a_process(trees, load):
    paths = sorted(trees.glob(f"{S4}/s4_data/gt_masks/train/*/*/*.png"))
    Image.fromarray(np.full((224, 224), 9, np.uint8)).save(paths[0])
    faults = faults_of(lambda: load(trees, "s4", split="train", num_proc=2))
    assert "grey values 9" in faults[paths[0].name]


def test_a_damaged_png_between_whole_ends_is_named(trees, load):
    path = next((trees / MS3).glob("ms3_data/visual_frames/*/*_3.png"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    split = "train" if any(path.parent.name in row for row in rows_of(trees, MS3, "ms3_meta_data.csv")[:1]) else "test"
    assert "damaged" in faults_of(lambda: load(trees, "ms3", split=split))[path.name]


def test_a_mask_of_another_size_is_named(trees, load):
    path = next((trees / MS3).glob("ms3_data/gt_masks/train/*/*_2.png"))
    Image.fromarray(np.zeros((100, 224), np.uint8)).save(path)
    faults = faults_of(lambda: load(trees, "ms3", split="train"))
    assert "differ in (height, width)" in next(iter(faults.values())) and path.name in next(iter(faults.values()))


@pytest.mark.parametrize("wrong", ["../../x", "..", "a/b", "/etc/passwd", "C:\\x", ""])
@pytest.mark.parametrize(("name", "table"), [("s4", f"{S4}/s4_meta_data.csv"), ("avss", f"{AVSS}/metadata.csv")])
def test_a_path_that_climbs_out_is_named(trees, load, wrong, name, table):
    line = {"s4": f"{wrong},0,race_car,train", "avss": f"x,{wrong},0,0,bird,train,v2"}[name]
    edit(trees / table, lambda text: f"{text}{line}\n")
    assert "no plain file name" in next(iter(faults_of(lambda: load(trees, name)).values()))


def test_a_byte_order_mark_and_a_missing_header_are_read(trees, load):
    table = trees / MS3 / "ms3_meta_data.csv"
    rows = table.read_text().splitlines()[1:]
    table.write_text("\n".join(rows), encoding="utf-8-sig")
    assert [row["id"] for row in load(trees, "ms3", split="train")] == [rows[0].split(",")[0]]


def test_an_avss_table_with_other_columns_is_refused(trees, load):
    edit(trees / AVSS / "metadata.csv", lambda text: text.replace("a_obj,split", "split,a_obj"))
    assert "expected 'vid,uid,s_min,s_sec,a_obj,split,label'" in faults_of(lambda: load(trees, "avss"))["metadata.csv"]


def test_another_numbering_of_classes_is_refused(trees, load):
    path = trees / AVSS / "label2idx.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    load(trees, "avss", split="val", streaming=True)
    edit(path, lambda text: text.replace("violin", "fiddle"))
    assert "numbers other classes" in faults_of(lambda: load(trees, "avss"))["label2idx.json"]
    path.write_text("{")
    assert "is no JSON" in faults_of(lambda: load(trees, "avss"))["label2idx.json"]
    path.unlink()
    assert len(load(trees, "avss", split="val")) == 1


def test_ids_beginning_with_a_hyphen_are_files_like_others(trees, load):
    name = rows_of(trees, MS3, "ms3_meta_data.csv")[0][0]
    for path in sorted(trees.glob(f"{MS3}/ms3_data/**/*{name}*"), key=lambda path: -len(path.parts)):
        os.rename(path, path.with_name(path.name.replace(name, "-rf")))
    edit(trees / MS3 / "ms3_meta_data.csv", lambda text: text.replace(name, "-rf"))
    assert load(trees, "ms3", split="train")[0]["id"] == "-rf"


def test_dirty_objects(trees, load):
    table = trees / AVSS / "metadata.csv"
    objects = [row[4] for row in rows_of(trees, AVSS, "metadata.csv")]
    edit(table, lambda text: text.replace(f",{objects[0]},train,v1s", ",h orse,train,v1s", 1))
    edit(table, lambda text: text.replace(f",{objects[1]},train,v1m", ",off-the-screen,train,v1m", 1))
    rows = load(trees, "avss", split="train")
    assert rows[0]["objects"] == ["horse"] and rows[1]["objects"] == ["off-the-screen"]
    edit(table, lambda text: text.replace("h orse", "h orze"))
    assert "'h orze'" in next(iter(faults_of(lambda: load(trees, "avss")).values()))


@pytest.mark.parametrize(("rule", "value"), [("keep", 8), ("background", 0), ("ignore", 255)])
def test_label_noise_is_filtered_on_request(trees, load, rule, value):
    row = rows_of(trees, AVSS, "metadata.csv")[1]
    path = trees / AVSS / row[6] / row[1] / "labels_semantic" / "0.png"
    mask = np.asarray(Image.open(path)).copy()
    mask[0, :3] = 8  # boat, which no files clip has
    Image.fromarray(mask).save(path)
    loaded = np.asarray(load(trees, "avss", split="train", label_noise=rule)[1]["masks"][0])
    assert (loaded[0, :3] == value).all()
    np.testing.assert_array_equal(loaded[1:], mask[1:])


# Violin's colour, blue first, is that of no class; bus's is harp's, which only a_obj can tell.
@pytest.mark.parametrize(
    ("name", "mistake", "problem"),
    [
        ("violin", "blue first", "blue, green, red"),
        ("bus", "blue first", "blue, green, red"),
        ("bus", "one too high", "one too high"),
    ],
)
def test_systematic_mistakes_are_found(trees, load, name, mistake, problem):
    uid = rows_of(trees, AVSS, "metadata.csv")[0][1]
    folder = trees / AVSS / "v1s" / uid
    mask = np.full((240, 320), AVSBENCH_SEMANTIC_LABELS.index(name), np.uint8)
    edit(trees / AVSS / "metadata.csv", lambda text: text.replace(f"{uid},0,0,bus", f"{uid},0,0,{name}"))
    if mistake == "blue first":
        shutil.rmtree(folder / "labels_semantic")
        Image.fromarray(voc_palette()[mask][..., ::-1].copy()).save(folder / "labels_rgb" / "0.png")
    else:
        Image.fromarray(mask + np.uint8(1)).save(folder / "labels_semantic" / "0.png")
    assert problem in faults_of(lambda: load(trees, "avss", split="train"))["0.png"]


def test_pickles_are_read_only_on_request_and_run_nothing(trees, load, tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/executed",)

    name, _, category, _ = rows_of(trees, S4, "s4_meta_data.csv")[2]
    wav = trees / S4 / "s4_data" / "audio_wav" / "val" / category / f"{name}.wav"
    pickled = trees / S4 / "s4_data" / "audio_log_mel" / "val" / category / f"{name}.pkl"
    pickled.parent.mkdir(parents=True)
    pickled.write_bytes(pickle.dumps(Malicious()))
    assert "log_mel" not in load(trees, "s4", split="val").column_names
    assert "posix.system" in faults_of(lambda: load(trees, "s4", split="val", log_mel=True))[pickled.name]
    assert not (tmp_path / "executed").exists()

    waveform, rate = read_audio(wav)
    features = PCMANetFeatureExtractor()(waveform, rate, num_frames=5)["input_features"]
    pickled.write_bytes(pickle.dumps(torch.as_tensor(features)))
    wav.unlink()
    row = load(trees, "s4", split="val", log_mel=True)[0]
    np.testing.assert_array_equal(np.asarray(row["log_mel"], np.float32), features)
    assert row["audio"] is None or row["audio"]["bytes"] is None


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"name": "s5"}, "'s5'; choose one of"),
        ({"name": "s4", "split": "valid"}, "'valid'; choose"),
        ({"name": "s4", "split": "test"}, "no clips of split 'test'"),
        ({"name": "s4", "label_noise": "ignore"}, "is for avss"),
        ({"name": "avss", "label_noise": "drop"}, "'drop'; choose"),
        ({"name": "avss", "log_mel": True}, "without log-mel"),
        ({"name": "ms3", "frames_per_second": 2}, "one's own videos"),
        ({"name": "folder", "frames_per_second": 0}, "positive"),
        ({"name": "ms3", "faulty": "ignore"}, "'ignore'; choose"),
        ({"name": "folder"}, "clips.csv: missing"),
    ],
)
def test_wrong_arguments_are_refused(written, load, arguments, match):
    with pytest.raises(ValueError, match=match):
        load(written, **arguments)


def test_a_root_without_a_tree_is_refused(tmp_path, load):
    with pytest.raises(AVSBenchError, match="s4_meta_data.csv: missing in .*Single-source"):
        load(tmp_path, "s4")


def test_masks_are_stored_as_class_indexes_in_png(written, load):
    data = load(written, "ms3", split="train").with_format("arrow")[0]["masks"][0][0]["bytes"].as_py()
    picture = Image.open(BytesIO(data))
    assert picture.format == "PNG" and picture.mode == "L" and set(np.unique(picture)) == {0, 1}
