"""Tests of dataset_scripts/avsbench/__init__.py: loading the published layouts and custom folders."""

import os
import pickle
import shutil
import wave
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Audio, IterableDataset, Split
from PIL import Image
from transformers import ASTFeatureExtractor
from written_trees import write_trees

from modeling_pcmanet import PCMANetFeatureExtractor, PCMANetImageProcessor, PCMANetProcessor
from modeling_pcmanet.configuration_pcmanet import AVSBENCH_SEMANTIC_LABELS
from modeling_pcmanet.media_pcmanet import read_audio
from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.dataset_scripts.avsbench import DatasetError, label_names, load_avsbench
from pcmanet.dataset_scripts.avsbench.masks import voc_palette
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.sounding_shapes import SoundingShapes


S4, MS3, AVSS = "Single-source", "Multi-sources", "AVSBench_semantic"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Write a tree for each task, without the raw videos, which no loader reads."""
    return write_trees(
        tmp_path_factory.mktemp("avsbench"),
        s4={"train": 2, "val": 1},
        ms3={"train": 1, "test": 1},
        avss={"train": 3, "val": 1},
    )


@pytest.fixture
def trees(written, tmp_path):
    """Copy the trees, so that a test can damage files."""
    shutil.copytree(written, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def load(tmp_path):
    """Return `load_avsbench` with its own cache."""
    return lambda root, name, **options: load_avsbench(root, name, cache_dir=tmp_path / "cache", **options)


def rows_of(root, tree, table):
    return [line.split(",") for line in (root / tree / table).read_text().splitlines()][1:]


def edit(path, change):
    path.write_text(change(path.read_text()))


def truncate(path, fraction=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])


def problems_of(call):
    with pytest.raises(DatasetError) as caught:
        call()
    return {Path(problem.path.split(", line")[0]).name: str(problem) for problem in caught.value.problems}


def as_array(images):
    return np.stack([np.asarray(image) for image in images])


def test_names_and_columns_of_datasets(trees, load):
    # Issue 16, point 14: `datasets` calls the split "validation", and audio is a column that it can decode.
    validation = load(trees, "s4", split="validation")
    assert validation[:] == load(trees, "s4", split="val")[:]
    assert load(trees, "s4", split=Split.VALIDATION, streaming=True).split == "val"
    cast = validation.cast_column("audio", Audio(decode=False))
    assert cast.features["audio"] == Audio(decode=False)
    assert cast[0]["audio"] == validation[0]["audio"] and cast[0]["audio"]["bytes"]


@pytest.mark.parametrize("streaming", [False, True])
def test_s4_rows_match_the_generated_clips(trees, load, streaming):
    loaded = load(trees, "s4", streaming=streaming)
    assert set(loaded) == {"train", "val"}
    train, val = next(iter(loaded["train"])), next(iter(loaded["val"]))
    assert isinstance(loaded["train"], IterableDataset) == streaming
    clip = SoundingShapes("s4", "val", length=1, height=224, width=224)[0]
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


def test_ms3_rows_match_the_generated_clips(trees, load):
    row = load(trees / MS3, "ms3", split="train")[0]
    clip = SoundingShapes("ms3", "train", length=1, height=224, width=224)[0]
    np.testing.assert_array_equal(as_array(row["frames"]), clip.frames)
    np.testing.assert_array_equal(as_array(row["masks"]), clip.binary)
    assert row["annotated_frames"] == [True] * 5 and row["objects"] is None and row["category"] is None


def test_avss_rows_have_five_or_ten_frames_and_class_indices(trees, load):
    rows = list(load(trees, "avss", split="train"))
    assert [row["subset"] for row in rows] == ["v1s", "v1m", "v2"]
    assert [len(row["frames"]) for row in rows] == [5, 5, 10]
    assert [sum(row["annotated_frames"]) for row in rows] == [1, 5, 10]
    for row in rows:
        seen = {AVSBENCH_SEMANTIC_LABELS[index] for mask in row["masks"] if mask for index in np.unique(mask)}
        assert seen - {"background"} <= set(row["objects"])
        assert {mask.size for mask in row["masks"] if mask} <= {row["frames"][0].size}


def test_colors_and_indices_give_the_same_masks(trees, load):
    semantic = list(load(trees, "avss", split="train"))
    for folder in (trees / AVSS).glob("v*/*/labels_semantic"):
        shutil.rmtree(folder)
    for row, expected in zip(load(trees, "avss", split="train"), semantic, strict=True):
        for mask, other in zip(row["masks"], expected["masks"], strict=True):
            np.testing.assert_array_equal(np.asarray(mask), np.asarray(other))


def test_changed_files_are_prepared_again(trees, load):
    before = load(trees, "ms3", split="train")[0]["masks"][0]
    mask = next((trees / MS3).glob("ms3_data/gt_masks/train/*/*_1.png"))
    Image.fromarray(np.full((224, 224), 255, np.uint8)).save(mask)
    after = load(trees, "ms3", split="train")[0]["masks"][0]
    assert np.asarray(before).min() == 0 and np.asarray(after).min() == 1


def test_a_tree_is_prepared_once_for_every_name_of_its_folder(trees, tmp_path, monkeypatch):
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


def test_all_missing_and_truncated_files_are_listed(trees, load):
    name, _, category, _ = rows_of(trees, S4, "s4_meta_data.csv")[2]
    data = trees / S4 / "s4_data"
    (data / f"gt_masks/val/{category}/{name}/{name}_3.png").unlink()
    truncate(data / f"gt_masks/val/{category}/{name}/{name}_2.png")
    truncate(data / f"visual_frames/val/{category}/{name}/{name}_5.png", 0.9)
    (data / f"visual_frames/val/{category}/{name}/{name}_1.png").write_bytes(b"")
    truncate(data / f"audio_wav/val/{category}/{name}.wav")
    for streaming in (False, True):
        problems = problems_of(lambda streaming=streaming: load(trees, "s4", split="val", streaming=streaming))
        assert set(problems) == {*(f"{name}_{number}.png" for number in (1, 2, 3, 5)), f"{name}.wav"}
        assert "Missing; the clip has 4 of 5" in problems[f"{name}_3.png"]
        assert "Truncated" in problems[f"{name}_2.png"] and "0 bytes" in problems[f"{name}_1.png"]
        assert "expected 320000 bytes of audio, got 159978" in problems[f"{name}.wav"]
    assert len(load(trees, "s4", split="train")) == 2
    with pytest.raises(ValueError, match="All clips of split 'val' have problems"):
        load(trees, "s4", split="val", on_error="skip")


@pytest.mark.parametrize("streaming", [False, True])
def test_clips_with_problems_are_skipped_on_request_and_listed_once(trees, load, caplog, streaming):
    (first, *_), (second, *_), *_ = rows_of(trees, S4, "s4_meta_data.csv")
    wav = next(trees.glob(f"{S4}/s4_data/audio_wav/train/*/{first}.wav"))
    truncate(wav)
    edit(trees / S4 / "s4_meta_data.csv", lambda text: f"{text}x,0,race-car,train\n")
    for _ in range(2):  # the second time, the data were prepared before
        caplog.clear()
        rows = list(load(trees, "s4", split="train", on_error="skip", streaming=streaming))
        assert [row["id"] for row in rows] == [second]
        (record,) = caplog.records
        assert "Skipped 1 of 2 clips" in record.message and str(wav) in record.message
        assert streaming or "Unknown category 'race-car'" in record.message


def test_a_run_without_problems_reports_nothing(trees, load, caplog):
    load(trees, "s4", split="train", on_error="skip")
    assert not caplog.records


def test_problems_of_table_and_files_are_listed_together(trees, load):
    (first, *_), *_ = rows_of(trees, S4, "s4_meta_data.csv")
    truncate(next(trees.glob(f"{S4}/s4_data/audio_wav/train/*/{first}.wav")))
    edit(trees / S4 / "s4_meta_data.csv", lambda text: f"{text}x,0,race-car,train\ny,0\n")
    problems = problems_of(lambda: load(trees, "s4", split="train"))
    assert set(problems) == {"s4_meta_data.csv", f"{first}.wav"}
    with pytest.raises(DatasetError, match="Unknown category 'race-car'.*\n.*Expected 4 values"):
        load(trees, "s4", split="train")


@pytest.mark.parametrize("name", ["s4", "avss", "folder"])
def test_a_missing_root_is_called_missing(tmp_path, load, name):
    with pytest.raises(FileNotFoundError, match="Folder .*nowhere not found"):
        load(tmp_path / "nowhere", name)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_unusable_lines_are_named_if_a_split_has_no_others(tmp_path, load, on_error):
    (tmp_path / "clips.csv").write_text("video,split\na.mp4,valid\nb.mp4,train\n")
    with pytest.raises(DatasetError, match="'val' found .* of train.\n.*Unknown split 'valid'"):
        load(tmp_path, "folder", split="val", on_error=on_error)


def test_subsets_of_avss(trees, load):
    for subsets in (["v1s"], ("v1m", "v2"), ("v2",)):
        rows = load(trees, "avss", split="train", subsets=subsets)
        assert {row["subset"] for row in rows} == set(subsets)
    with pytest.raises(ValueError, match="No clips of split 'val'"):
        load(trees, "avss", split="val", subsets=["v2"])
    with pytest.raises(ValueError, match="Expected some of .*v1s.*got .*v3"):
        load(trees, "avss", subsets=["v3"])


def test_binary_masks_of_avss(trees, load):
    assert label_names(trees, "avss", binary=True) == ("sounding",)
    classes = list(load(trees, "avss", split="train"))
    for row, semantic in zip(load(trees, "avss", split="train", binary=True), classes, strict=True):
        for mask, indices in zip(row["masks"], semantic["masks"], strict=True):
            np.testing.assert_array_equal(np.asarray(mask), np.asarray(indices) > 0) if mask else None
    assert max(np.asarray(mask).max() for row in classes for mask in row["masks"] if mask) > 1


def test_a_missing_folder_is_listed_once(trees, load):
    shutil.rmtree(trees / S4 / "s4_data" / "audio_wav")
    problems = problems_of(lambda: load(trees, "s4", split="train"))
    assert list(problems) == ["audio_wav"] and "2 clips need it" in problems["audio_wav"]


def test_missing_and_surplus_frames_are_listed(trees, load):
    uid = rows_of(trees, AVSS, "metadata.csv")[1][1]
    folder = trees / AVSS / "v1m" / uid / "frames"
    shutil.copy(folder / "0.jpg", folder / "5.jpg")
    assert "Expected 5 frames, got 6" in problems_of(lambda: load(trees, "avss", split="train"))["frames"]
    (folder / "5.jpg").unlink()
    (folder / "4.jpg").unlink()
    assert "the clip has 4 of 5" in problems_of(lambda: load(trees, "avss", split="train"))["4.jpg"]


def shorten(path, seconds):
    """Cut a wav of 16 kHz."""
    with wave.open(str(path), "rb") as file:
        parameters, data = file.getparams(), file.readframes(round(16000 * seconds))
    with wave.open(str(path), "wb") as file:
        file.setparams(parameters)
        file.writeframes(data)


def test_audio_of_less_than_one_patch_is_listed(trees, load):
    path = next((trees / MS3).glob("ms3_data/audio_wav/test/*.wav"))
    shorten(path, 0.9)
    problem = problems_of(lambda: load(trees, "ms3", split="test"))[path.name]
    assert "Expected at least 0.975 s of audio" in problem and "got 0.900 s" in problem


@pytest.mark.parametrize(("seconds", "patches"), [(3.5, 3), (1.0, 1)])
@pytest.mark.parametrize("short_clip", ["repeat_last", "zeros"])
def test_short_audio_is_used_as_in_the_published_preparation(trees, load, seconds, patches, short_clip):
    """AVSBench's preprocess_s4.py repeats the last log-mel patch; its loader of AVSS fills with zeros."""
    path = next((trees / MS3).glob("ms3_data/audio_wav/test/*.wav"))
    extractor = PCMANetFeatureExtractor(short_clip=short_clip)
    collate = ClipCollator(PCMANetProcessor(PCMANetImageProcessor(), extractor), binary=True)
    complete = collate([load(trees, "ms3", split="test")[0]])["input_features"][0]
    shorten(path, seconds)
    short = collate([load(trees, "ms3", split="test")[0]])["input_features"][0]
    assert torch.equal(short[:patches], complete[:patches])
    filling = complete[patches - 1] if short_clip == "repeat_last" else torch.zeros(1, 96, 64)
    assert all(torch.equal(patch, filling) for patch in short[patches:])


def test_other_encoders_get_silence_after_short_audio(trees, load):
    path = next((trees / MS3).glob("ms3_data/audio_wav/test/*.wav"))
    shorten(path, 2.0)
    processor = PCMANetProcessor(PCMANetImageProcessor(), ASTFeatureExtractor(max_length=100), [[0.5, 0.515]])
    features = ClipCollator(processor, binary=True)([load(trees, "ms3", split="test")[0]])["input_features"][0]
    assert features[0].std() > 0.1 and torch.isfinite(features).all()
    assert torch.equal(features[4], features[4, :1].expand_as(features[4]))  # every spectrum the same: silence


def test_log_mel_replaces_a_short_or_damaged_wav(trees, load):
    path = next((trees / MS3).glob("ms3_data/audio_wav/test/*.wav"))
    features = torch.rand(5, 1, 96, 64)
    pickled = trees / MS3 / "ms3_data" / "audio_log_mel" / "test" / f"{path.stem}.pkl"
    pickled.parent.mkdir(parents=True)
    pickled.write_bytes(pickle.dumps(features))
    collate = ClipCollator(PCMANetProcessor(PCMANetImageProcessor(), PCMANetFeatureExtractor()), binary=True)
    for damage in (lambda: shorten(path, 0.5), lambda: path.write_bytes(b"no wav")):
        damage()
        assert path.name in problems_of(lambda: load(trees, "ms3", split="test"))
        row = load(trees, "ms3", split="test", log_mel=True)[0]
        assert not (row["audio"] or {}).get("bytes")
        assert torch.equal(collate([row])["input_features"][0], features)


def test_audio_that_cannot_be_decoded_is_listed(trees, load):
    path = next((trees / MS3).glob("ms3_data/audio_wav/test/*.wav"))
    data = bytearray(path.read_bytes())
    data[20:22] = b"\x34\x12"  # an unknown codec
    path.write_bytes(data)
    assert path.name in problems_of(lambda: load(trees, "ms3", split="test"))


@pytest.mark.parametrize("streaming", [False, True])
def test_all_wrong_colors_and_values_are_listed(trees, load, streaming):
    folders = [trees / AVSS / row[6] / row[1] for row in rows_of(trees, AVSS, "metadata.csv")[:3]]
    shutil.rmtree(folders[0] / "labels_semantic")
    colors = np.asarray(Image.open(folders[0] / "labels_rgb" / "0.png")).copy()
    colors[7, 9] = (1, 2, 3)
    Image.fromarray(colors).save(folders[0] / "labels_rgb" / "0.png")
    Image.fromarray(np.full((256, 256), 71, np.uint8)).save(folders[1] / "labels_semantic" / "2.png")
    problems = problems_of(lambda: list(load(trees, "avss", split="train", streaming=streaming)))
    assert "RGB [[1, 2, 3]], first at row 7, column 9" in problems["0.png"]
    # Streaming reports a problem before the next row, preparing reports all.
    assert streaming or "class indices from 0 (background) to 70, got 71" in problems["2.png"]


@pytest.mark.parametrize("num_proc", [None, 2])
def test_problems_found_in_all_processes_are_listed(trees, load, num_proc):
    paths = sorted(trees.glob(f"{S4}/s4_data/gt_masks/train/*/*/*.png"))
    for path in paths:
        Image.fromarray(np.full((224, 224), 9, np.uint8)).save(path)
    problems = problems_of(lambda: load(trees, "s4", split="train", num_proc=num_proc))
    assert len(problems) == len(paths) == 2
    assert all("gray values 9" in problems[path.name] for path in paths)


def test_a_png_damaged_in_the_middle_is_listed(trees, load):
    path = next((trees / MS3).glob("ms3_data/visual_frames/*/*_3.png"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    split = "train" if any(path.parent.name in row for row in rows_of(trees, MS3, "ms3_meta_data.csv")[:1]) else "test"
    assert "Damaged" in problems_of(lambda: load(trees, "ms3", split=split))[path.name]


def test_a_mask_of_another_size_is_listed(trees, load):
    path = next((trees / MS3).glob("ms3_data/gt_masks/train/*/*_2.png"))
    Image.fromarray(np.zeros((100, 224), np.uint8)).save(path)
    problems = problems_of(lambda: load(trees, "ms3", split="train"))
    assert "Expected one (height, width)" in next(iter(problems.values())) and path.name in next(
        iter(problems.values())
    )


@pytest.mark.parametrize("wrong", ["../../x", "..", "a/b", "/etc/passwd", "C:\\x", ""])
@pytest.mark.parametrize(("name", "table"), [("s4", f"{S4}/s4_meta_data.csv"), ("avss", f"{AVSS}/metadata.csv")])
def test_a_path_outside_the_folder_is_rejected(trees, load, wrong, name, table):
    line = {"s4": f"{wrong},0,race_car,train", "avss": f"x,{wrong},0,0,bird,train,v2"}[name]
    edit(trees / table, lambda text: f"{text}{line}\n")
    assert "Expected a plain file name" in next(iter(problems_of(lambda: load(trees, name)).values()))


def test_a_byte_order_mark_and_a_missing_header_are_accepted(trees, load):
    table = trees / MS3 / "ms3_meta_data.csv"
    rows = table.read_text().splitlines()[1:]
    table.write_text("\n".join(rows), encoding="utf-8-sig")
    assert [row["id"] for row in load(trees, "ms3", split="train")] == [rows[0].split(",")[0]]


def test_an_avss_table_with_other_columns_is_rejected(trees, load):
    edit(trees / AVSS / "metadata.csv", lambda text: text.replace("a_obj,split", "split,a_obj"))
    assert (
        "Expected the header 'vid,uid,s_min,s_sec,a_obj,split,label'"
        in problems_of(lambda: load(trees, "avss"))["metadata.csv"]
    )


def test_other_class_numbers_are_rejected(trees, load):
    path = trees / AVSS / "label2idx.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    load(trees, "avss", split="val", streaming=True)
    edit(path, lambda text: text.replace("violin", "fiddle"))
    assert "Expected the published numbers" in problems_of(lambda: load(trees, "avss"))["label2idx.json"]
    path.write_text("{")
    assert "Invalid JSON" in problems_of(lambda: load(trees, "avss"))["label2idx.json"]
    path.unlink()
    assert len(load(trees, "avss", split="val")) == 1


def test_ids_may_begin_with_a_hyphen(trees, load):
    name = rows_of(trees, MS3, "ms3_meta_data.csv")[0][0]
    for path in sorted(trees.glob(f"{MS3}/ms3_data/**/*{name}*"), key=lambda path: -len(path.parts)):
        os.rename(path, path.with_name(path.name.replace(name, "-rf")))
    edit(trees / MS3 / "ms3_meta_data.csv", lambda text: text.replace(name, "-rf"))
    assert load(trees, "ms3", split="train")[0]["id"] == "-rf"


def test_misspelled_objects_are_corrected_or_rejected(trees, load):
    table = trees / AVSS / "metadata.csv"
    objects = [row[4] for row in rows_of(trees, AVSS, "metadata.csv")]
    edit(table, lambda text: text.replace(f",{objects[0]},train,v1s", ",h orse,train,v1s", 1))
    edit(table, lambda text: text.replace(f",{objects[1]},train,v1m", ",off-the-screen,train,v1m", 1))
    rows = load(trees, "avss", split="train")
    assert rows[0]["objects"] == ["horse"] and rows[1]["objects"] == ["off-the-screen"]
    edit(table, lambda text: text.replace("h orse", "h orze"))
    assert "'h orze'" in next(iter(problems_of(lambda: load(trees, "avss")).values()))


@pytest.mark.parametrize(("rule", "value"), [("keep", 8), ("background", 0), ("ignore", 255)])
def test_label_noise_rules(trees, load, rule, value):
    row = rows_of(trees, AVSS, "metadata.csv")[1]
    path = trees / AVSS / row[6] / row[1] / "labels_semantic" / "0.png"
    mask = np.asarray(Image.open(path)).copy()
    mask[0, :3] = 8  # boat, which no clip of Sounding Shapes has
    Image.fromarray(mask).save(path)
    loaded = np.asarray(load(trees, "avss", split="train", label_noise=rule)[1]["masks"][0])
    assert (loaded[0, :3] == value).all()
    np.testing.assert_array_equal(loaded[1:], mask[1:])


# Violin's color with blue first is the color of no class; bus's is harp's, which only a_obj reveals.
@pytest.mark.parametrize(
    ("name", "error", "problem"),
    [
        ("violin", "blue first", "blue, green, red"),
        ("bus", "blue first", "blue, green, red"),
        ("bus", "one too high", "one too high"),
    ],
)
def test_systematic_errors_are_found(trees, load, name, error, problem):
    uid = rows_of(trees, AVSS, "metadata.csv")[0][1]
    folder = trees / AVSS / "v1s" / uid
    mask = np.full((240, 320), AVSBENCH_SEMANTIC_LABELS.index(name), np.uint8)
    edit(trees / AVSS / "metadata.csv", lambda text: text.replace(f"{uid},0,0,bus", f"{uid},0,0,{name}"))
    if error == "blue first":
        shutil.rmtree(folder / "labels_semantic")
        Image.fromarray(voc_palette()[mask][..., ::-1].copy()).save(folder / "labels_rgb" / "0.png")
    else:
        Image.fromarray(mask + np.uint8(1)).save(folder / "labels_semantic" / "0.png")
    assert problem in problems_of(lambda: load(trees, "avss", split="train"))["0.png"]


def test_pickles_are_read_only_on_request_and_execute_nothing(trees, load, tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/executed",)

    name, _, category, _ = rows_of(trees, S4, "s4_meta_data.csv")[2]
    wav = trees / S4 / "s4_data" / "audio_wav" / "val" / category / f"{name}.wav"
    pickled = trees / S4 / "s4_data" / "audio_log_mel" / "val" / category / f"{name}.pkl"
    pickled.parent.mkdir(parents=True)
    pickled.write_bytes(pickle.dumps(Malicious()))
    assert "log_mel" not in load(trees, "s4", split="val").column_names
    assert "posix.system" in problems_of(lambda: load(trees, "s4", split="val", log_mel=True))[pickled.name]
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
        ({"name": "s5"}, "got 's5'"),
        ({"name": "s4", "split": "valid"}, "got 'valid'"),
        ({"name": "s4", "split": "test"}, "No clips of split 'test'"),
        ({"name": "s4", "label_noise": "ignore"}, "applies to avss only"),
        ({"name": "avss", "label_noise": "drop"}, "got 'drop'"),
        ({"name": "avss", "log_mel": True}, "log_mel=True applies to s4 and ms3 only, but the data are avss"),
        ({"name": "ms3", "frames_per_second": 2}, "applies to folder only"),
        ({"name": "s4", "subsets": ["v2"]}, "applies to avss only"),
        ({"name": "s4", "binary": True}, "applies to avss and folder only"),
        ({"name": "avss", "missing_audio": "silence"}, "applies to folder only"),
        ({"name": "folder", "missing_audio": "noise"}, "got 'noise'"),
        ({"name": "folder", "frames_per_second": 0}, "positive"),
        ({"name": "ms3", "on_error": "ignore"}, "got 'ignore'"),
        ({"name": "folder"}, "clips.csv: Missing"),
    ],
)
def test_invalid_arguments_are_rejected(written, load, arguments, match):
    with pytest.raises(ValueError, match=match):
        load(written, **arguments)


def test_a_root_without_a_table_is_rejected(tmp_path, load):
    with pytest.raises(DatasetError, match="s4_meta_data.csv: Missing in .*Single-source"):
        load(tmp_path, "s4")


def test_masks_are_stored_as_class_indices_in_png(written, load):
    data = load(written, "ms3", split="train").with_format("arrow")[0]["masks"][0][0]["bytes"].as_py()
    image = Image.open(BytesIO(data))
    assert image.format == "PNG" and image.mode == "L" and set(np.unique(image)) == {0, 1}


@pytest.fixture
def custom_folder(tmp_path):
    """Write two videos of two seconds, the second without masks."""
    root = tmp_path / "custom"
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


def test_custom_folder(custom_folder, load):
    rows = list(load(custom_folder, "folder", split="train"))
    assert [row["id"] for row in rows] == ["videos/dog.mp4", "videos/cat.mp4"]
    assert rows[0]["annotated_frames"] == [False, True] and rows[1]["annotated_frames"] == [False, False]
    assert np.asarray(rows[0]["masks"][1])[0].tolist() == [0] * 32 + [1] * 32
    assert rows[0]["objects"] == ["dog"] and rows[1]["objects"] is None
    assert abs(np.asarray(rows[0]["frames"][1]).mean() - 40) < 2
    assert read_audio(rows[0]["audio"]["bytes"])[0].shape[-1] >= 32000
    assert label_names(custom_folder, "folder") == ("sounding",)
    assert len(load(custom_folder, "folder", split="train", frames_per_second=4.0)[0]["frames"]) == 8


@pytest.mark.parametrize("seconds", [4.6, 5.0])
@pytest.mark.parametrize("rate", [1.0, 2.0, 3.0, 8.0, 16.0, 25.0])
def test_masks_of_seconds_belong_to_the_same_frames_at_any_rate(tmp_path, load, rate, seconds):
    # The gray value of a frame tells its time; the mask of second l has 8 (l + 1) rows.
    count = round(25 * seconds)
    frames = [np.full((48, 64, 3), 2 * number, np.uint8) for number in range(count)]
    write_video(tmp_path / "a.mp4", frames, 25, np.zeros(round(16000 * seconds), np.float32), 16000)
    (tmp_path / "a").mkdir()
    for second in (0, 1, 3, 4):
        mask = np.zeros((48, 64), np.uint8)
        mask[: 8 * (second + 1)] = 255
        Image.fromarray(mask).save(tmp_path / "a" / f"{second}.png")
    (tmp_path / "clips.csv").write_text("video,split,masks\na.mp4,test,a\n")
    (row,) = load(tmp_path, "folder", split="test", frames_per_second=rate)
    annotated = [number for number, mask in enumerate(row["masks"]) if mask is not None]
    assert np.flatnonzero(row["annotated_frames"]).tolist() == annotated and len(annotated) == 4
    for number, second in zip(annotated, (0, 1, 3, 4), strict=True):
        assert np.asarray(row["masks"][number])[:, 0].sum() == 8 * (second + 1)
        shown = min(int(25 * (second + 15 / 16)), count - 1)
        # At most 1/16 s of 25 frames per second, or the end of the video.
        assert abs(np.asarray(row["frames"][number]).mean() / 2 - shown) < 2.5 + (second == 4 and seconds < 5)
    if rate == 1.0:
        with pytest.raises(ValueError, match="Expected a whole number as frames_per_second.*got 1.5"):
            load(tmp_path, "folder", split="test", frames_per_second=1.5)


def test_custom_folder_with_classes(custom_folder, load):
    (custom_folder / "classes.txt").write_text("background\ndog\ncat\n")
    assert label_names(custom_folder, "folder") == ("background", "dog", "cat")
    assert (
        "class indices from 0 (background)"
        in problems_of(lambda: load(custom_folder, "folder", split="train"))["1.png"]
    )
    Image.fromarray(np.full((48, 64), 2, np.uint8)).save(custom_folder / "masks/dog/1.png")
    assert np.asarray(load(custom_folder, "folder", split="train")[0]["masks"][1]).min() == 2


def test_masks_are_prepared_again_under_other_classes(custom_folder, load):
    load(custom_folder, "folder", split="train")
    (custom_folder / "classes.txt").write_text("background\ndog\n")
    problems = problems_of(lambda: load(custom_folder, "folder", split="train"))
    assert "class indices from 0 (background)" in problems["1.png"]


def test_problems_of_a_custom_folder_are_listed(custom_folder, load):
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(custom_folder / "masks/dog/2.png")
    Image.fromarray(np.zeros((20, 64), np.uint8)).save(custom_folder / "masks/dog/0.png")
    problems = problems_of(lambda: load(custom_folder, "folder"))
    assert "The video has 2 seconds" in problems["2.png"] and "got (20, 64)" in problems["0.png"]
    (custom_folder / "masks/dog/two.png").write_bytes(b"x")
    (custom_folder / "videos/cat.mp4").unlink()
    problems = problems_of(lambda: load(custom_folder, "folder"))
    assert "number of its second" in problems["two.png"] and "Missing" in problems["cat.mp4"]
    (custom_folder / "clips.csv").write_text("video,split\n../x.mp4,train\n/etc/passwd,train\n")
    with pytest.raises(DatasetError, match=r"(?s)line 2.*\.\./x.*line 3.*/etc/passwd"):
        load(custom_folder, "folder")


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("clip,split\nvideos/dog.mp4,train\n", "got 'clip,split'"),
        ("video,split,video\nvideos/dog.mp4,train,x\n", "Expected the header"),
        ("video,split\n", "no clips"),
        ("video;split\nvideos/dog.mp4;train\n", "separated by semicolons"),
        ("video,split\nvideos/dog.mp4\n", "Expected 2 values (video, split), got 1"),
        ("video,split\nvideos/dog.mp4,training\n", "Unknown split 'training'"),
        ("video,split\nvideos/dog.mp4,train\nvideos/dog.mp4,val\n", "is already in line 2"),
        (
            "video,split\n./videos/dog.mp4,train\nvideos//dog.mp4,val\n",
            "'videos/dog.mp4' is already in line 2",
        ),
        ("video,split,masks\nvideos/dog.mp4,train,masks/../../x\n", "as masks, got 'masks/../../x'"),
        ("video,split,masks\nvideos/dog.mp4,train,masks/cat\n", "No masks found"),
    ],
)
def test_unusable_tables_of_a_custom_folder_are_rejected(custom_folder, load, table, problem):
    (custom_folder / "clips.csv").write_text(table)
    with pytest.raises(DatasetError) as caught:
        load(custom_folder, "folder")
    assert problem in str(caught.value)


def test_faults_of_table_and_classes_are_listed_together(custom_folder, load):
    (custom_folder / "classes.txt").write_text("dog\ncat\n")
    (custom_folder / "clips.csv").write_text("video,split\nvideos/dog.mp4\nvideos/cat.mp4,training\n")
    with pytest.raises(DatasetError) as caught:
        load(custom_folder, "folder")
    assert [problem.path.rsplit("/", 1)[1] for problem in caught.value.problems] == [
        "classes.txt",
        "clips.csv, line 2",
        "clips.csv, line 3",
    ]


def test_the_first_class_must_be_the_background(custom_folder):
    (custom_folder / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(DatasetError, match="Expected 'background' as the first line.*got 'dog'"):
        label_names(custom_folder, "folder")


def test_files_of_the_system_are_no_masks(custom_folder, load):
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (custom_folder / "masks/dog" / name).write_bytes(b"x")
    assert load(custom_folder, "folder", split="train")[0]["annotated_frames"] == [False, True]


@pytest.mark.parametrize("options", [{}, {"binary": True}, {"frames_per_second": 2.0}])
def test_nothing_sounds_in_a_clip_with_empty_masks(custom_folder, load, options):
    (custom_folder / "classes.txt").write_text("background\ndog\ncat\n")
    edit(custom_folder / "clips.csv", lambda text: text.replace("masks/dog,dog", "masks/dog,"))
    for value, objects in ((0, ["background"]), (2, None)):
        Image.fromarray(np.full((48, 64), value, np.uint8)).save(custom_folder / "masks/dog/1.png")
        rows = load(custom_folder, "folder", split="train", **options)
        assert rows["objects"] == [objects, None]  # the second clip has no masks


def test_binary_masks_of_a_custom_folder_with_classes(custom_folder, load):
    (custom_folder / "classes.txt").write_text("background\ndog\ncat\n")
    mask = np.full((48, 64), 2, np.uint8)
    mask[0] = 0
    Image.fromarray(mask).save(custom_folder / "masks/dog/1.png")
    loaded = np.asarray(load(custom_folder, "folder", split="train", binary=True)[0]["masks"][1])
    np.testing.assert_array_equal(loaded, mask // 2)


@pytest.fixture
def silent_video(custom_folder):
    """Replace a video without masks by one without an audio track."""
    frames = [np.full((48, 64, 3), 40 * (k // 10), np.uint8) for k in range(20)]
    write_video(custom_folder / "videos/cat.mp4", frames, 10)
    return custom_folder


def test_a_video_without_audio_is_listed_with_the_setting_that_uses_it(silent_video, load):
    problem = problems_of(lambda: load(silent_video, "folder"))["cat.mp4"]
    assert 'has no audio track. Add its audio to the file, or set missing_audio to "silence"' in problem
    assert "audio=" not in problem  # the argument of another function


@pytest.mark.parametrize("rate", [1.0, 4.0])
def test_a_video_without_audio_is_silence_on_request(silent_video, load, rate):
    rows = load(silent_video, "folder", split="train", missing_audio="silence", frames_per_second=rate)
    silent = rows[1]
    assert silent["objects"] == ["background"]
    waveform, sampling_rate = read_audio(silent["audio"]["bytes"])
    assert waveform.shape[-1] / sampling_rate == pytest.approx(2) and not waveform.any()
    assert silent["annotated_frames"] == [True] * round(2 * rate)
    assert not any(np.asarray(mask).any() for mask in silent["masks"])
    assert read_audio(rows[0]["audio"]["bytes"])[1] == 16000 and np.asarray(rows[0]["masks"][-1]).any()
    if rate == 1:
        collate = ClipCollator(PCMANetProcessor(PCMANetImageProcessor(), PCMANetFeatureExtractor()), binary=True)
        assert collate([silent])["input_features"].numpy() == pytest.approx(np.log(0.01))


def test_masks_of_sounding_pixels_contradict_a_video_without_audio(silent_video, load):
    edit(
        silent_video / "clips.csv",
        lambda text: text.replace("videos/cat.mp4,train,,", "videos/cat.mp4,train,masks/dog,"),
    )
    problems = problems_of(lambda: load(silent_video, "folder", missing_audio="silence"))
    assert "marks sounding pixels, but the video has no audio track" in problems["1.png"]


@pytest.mark.parametrize("names", ["background\n", "background\ndog\ndog\n", ""])
def test_class_names_must_be_different(custom_folder, names):
    (custom_folder / "classes.txt").write_text(names)
    with pytest.raises(DatasetError, match="classes.txt: Expected 2 to 255 different names"):
        label_names(custom_folder, "folder")


def test_class_names_in_utf8_with_byte_order_mark(custom_folder):
    path = custom_folder / "classes.txt"
    path.write_bytes("background\r\ncafé\r\n".encode("utf-8-sig"))
    assert label_names(custom_folder, "folder") == ("background", "café")
    path.write_bytes("background\ncafé\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"classes.txt, line 2: Byte 0xe9 is not UTF-8"):
        label_names(custom_folder, "folder")
