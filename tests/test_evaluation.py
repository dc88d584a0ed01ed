"""Tests of dataset_scripts/evaluation.py, against the accumulators on the same clips. Tests of dataset_scripts/evaluation.py on trees of real files."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from written_trees import write_trees

from modeling_pcmanet import PCMANetFeatureExtractor, PCMANetImageProcessor, PCMANetProcessor
from modeling_pcmanet.media_pcmanet import read_audio
from modeling_pcmanet.media_writing_pcmanet import write_audio
from pcmanet.dataset_scripts.avsbench import AVSBenchError, load_avsbench
from pcmanet.dataset_scripts.avsbench.rows import RowSettings
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.evaluation import (
    EvaluationReader,
    class_figures,
    class_table,
    clip_figures,
    figures_table,
    find_evaluation_clips,
    find_off_screen_sounds,
    markdown_table,
    measure_name,
    protocol_figures,
    worst_clips,
)
from pcmanet.dataset_scripts.metrics import BinaryMetrics, RobustnessMetrics, SemanticMetrics
from pcmanet.dataset_scripts.sounding_shapes import files as files_module


OBJECTS = [("dog",), ("dog", "cat"), None, ("bird",), ("cat",)]


def clips(num_labels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of five clips."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(5, 2, num_labels, 6, 6, generator=generator)
    return logits, torch.randint(0, max(2, num_labels - 1), (5, 2, 6, 6), generator=generator)


def count(metrics, logits, labels, batches=((0, 1, 2), (3, 4)), **options):
    for batch in batches:
        metrics.update(logits[list(batch)], labels[list(batch)], clip_indices=batch, **options)
    return metrics


@pytest.mark.parametrize("num_labels", [1, 4])
def test_every_protocol_stands_beside_the_others(num_labels):
    logits, labels = clips(num_labels)
    metrics = count(RobustnessMetrics(num_labels), logits, labels)
    plain = BinaryMetrics() if num_labels == 1 else SemanticMetrics(num_labels)
    expected = {name: count(plain, logits, labels).compute(name) for name in ("official",)}
    figures = protocol_figures(metrics)
    assert list(figures) == ["official", "batch", "dataset"]
    assert figures["official"] == expected["official"]
    assert len({values["miou"] for values in figures.values()}) == 3
    assert not any("false" in name for name in figures["official"])


def test_wrong_sounds_join_the_measures_once_they_are_counted():
    logits, labels = clips(1)
    metrics = count(RobustnessMetrics(), logits, labels)
    count(metrics, logits, labels, audio="silence")
    assert protocol_figures(metrics)["batch"] == metrics.compute("batch")
    assert protocol_figures(metrics)["batch"]["false_positive_rate_silence"] > 0


def test_binary_classes_are_what_is_heard_in_the_clips():
    logits, labels = clips(1)
    figures = class_figures(count(BinaryMetrics(), logits, labels), ("sounding",), OBJECTS)
    assert list(figures) == ["bird", "cat", "dog"]
    cats = count(BinaryMetrics(), logits, labels, batches=((1,), (4,)))
    dogs = count(BinaryMetrics(), logits, labels, batches=((0, 1),))
    for name, expected in (("cat", cats), ("dog", dogs)):
        for protocol in ("official", "batch", "dataset"):
            scores = expected.compute(protocol)
            assert figures[name][protocol] == {key: scores[key] for key in ("miou", "f_score")}


def test_semantic_classes_are_those_seen():
    logits, labels = clips(4)
    logits[:, :, 3] = -100.0  # neither predicted nor in the labels, which stop at 2
    metrics = count(SemanticMetrics(4), logits, labels)
    figures = class_figures(metrics, ("background", "a", "b", "c"), OBJECTS)
    assert list(figures) == ["background", "a", "b"]
    iou = metrics.per_class("dataset")["iou"]
    assert [figures[name]["dataset"]["miou"] for name in figures] == iou[:3].tolist()
    assert sum(figures[name]["official"]["miou"] for name in figures) / 4 == pytest.approx(metrics.compute()["miou"])


@pytest.mark.parametrize(("num_labels", "key"), [(1, "miou"), (4, "miou_seen_classes")])
def test_clips_are_scored_alone_and_the_worst_come_first(num_labels, key):
    logits, labels = clips(num_labels)
    metrics = count(BinaryMetrics() if num_labels == 1 else SemanticMetrics(num_labels), logits, labels)
    figures = clip_figures(metrics)
    assert {index: values["miou"] for index, values in figures.items()} == {
        index: values[key] for index, values in metrics.per_clip().items()
    }
    worst = worst_clips(figures, 3)
    assert len(worst) == 3
    assert [figures[index]["miou"] for index in worst] == sorted(values["miou"] for values in figures.values())[:3]
    assert worst_clips({4: {"miou": 0.5}, 2: {"miou": 0.5}}, 9) == [2, 4]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("miou", "mIoU"),
        ("miou_published_no_background", 'mIoU, "no background" as published'),
        ("f_score_seen_classes", "F, classes seen"),
        ("false_positive_rate_off_screen", "false positives, off-screen"),
    ],
)
def test_measures_have_names_for_people(key, name):
    assert measure_name(key) == name


def test_tables_are_markdown():
    figures = {
        protocol: {"miou": value, "frames": 9.0}
        for protocol, value in zip(("official", "batch", "dataset"), (0.5, 0.25, 1), strict=True)
    }
    assert figures_table(figures) == (
        "|      | official |  batch | dataset |\n"
        "| ---- | -------: | -----: | ------: |\n"
        "| mIoU |   0.5000 | 0.2500 |  1.0000 |\n"
    )
    both = {protocol: {"miou": 0.5, "f_score": 0.75} for protocol in figures}
    header, _, row = class_table({"a|b": both}).splitlines()
    assert [cell.strip() for cell in header.split(" | ")][1:4] == ["IoU, official", "IoU, batch", "IoU, dataset"]
    assert row.startswith("| a\\|b  | ") and row.count("0.5000") == row.count("0.7500") == 3
    assert markdown_table(["x"], []) == "| x   |\n| --- |\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_trees(
        tmp_path_factory.mktemp("avsbench"), s4={"train": 1, "test": 4}, ms3={"test": 2}, avss={"test": 3}
    )


@pytest.fixture(scope="module")
def collate():
    processor = PCMANetProcessor(PCMANetImageProcessor(size={"height": 32, "width": 48}), PCMANetFeatureExtractor())
    return ClipCollator(processor, binary=True)


def find(root, name="s4", split="test", **settings):
    return find_evaluation_clips(root, name, split, RowSettings(**settings))


@pytest.mark.parametrize(("name", "split"), [("s4", "test"), ("s4", "train"), ("ms3", "test"), ("avss", "test")])
def test_rows_are_those_of_the_loader(root, collate, name, split):
    data = find(root, name, split)
    expected = list(load_avsbench(root, name, split=split, streaming=True))
    rows = [data.row(index) for index in range(len(data.clips))]
    assert [row["id"] for row in rows] == [row["id"] for row in expected]
    assert data.binary == (name != "avss")
    batch = EvaluationReader(data, collate).read(range(len(rows)))
    for key, values in collate(expected).items():
        assert torch.equal(batch[key], values), key


def test_a_missing_split_and_missing_files_are_named(root, tmp_path):
    with pytest.raises(ValueError, match=r"no clips of split 'val', only of test, train"):
        find(root, split="val")
    tree = write_trees(tmp_path, ms3={"test": 2})
    missing = [path for path in sorted(tree.rglob("*.png"))[:2] if path.unlink() is None]
    with pytest.raises(AVSBenchError) as caught:
        find(tmp_path, "ms3")
    assert all(str(path) in str(caught.value) for path in missing)


def test_off_screen_sounds_come_from_clips_in_which_nothing_of_this_one_is_heard(root):
    data = find(root)
    sounds = find_off_screen_sounds(data)
    by_sound = {clip.audio: clip for clip in data.clips}
    assert len(sounds) == 4
    assert all(by_sound[path].category != clip.category for path, clip in zip(sounds, data.clips, strict=True))


def test_where_nobody_knows_what_is_heard_other_sounds_must_be_given(root, tmp_path):
    data = find(root, "ms3")
    with pytest.raises(ValueError, match="surely nothing is heard"):
        find_off_screen_sounds(data)
    with pytest.raises(FileNotFoundError, match="no files"):
        find_off_screen_sounds(data, tmp_path)
    write_audio(tmp_path / "beep.wav", np.zeros((1, 100), np.float32), 8000)
    assert find_off_screen_sounds(data, tmp_path) == [str(tmp_path / "beep.wav")] * 2


def test_a_clip_named_background_lends_its_sound_to_nobody(tmp_path, root):
    tree = tmp_path / "AVSBench_semantic"
    tree.symlink_to(root / "AVSBench_semantic")
    data = find(tmp_path, "avss")
    nameless = [type(clip)(**{**vars(clip), "objects": ("background",)}) for clip in data.clips]
    with pytest.raises(ValueError, match="surely nothing is heard"):
        find_off_screen_sounds(type(data)(**{**vars(data), "clips": nameless}))


def test_wrong_sounds_change_the_sound_and_nothing_else(root, collate):
    data = find(root)
    reader = EvaluationReader(data, collate, find_off_screen_sounds(data), seed=3)
    batches = {audio: reader.read([1, 2], audio) for audio in ("positive", "silence", "noise", "off_screen")}
    for name in ("pixel_values", "labels", "frame_mask", "annotated_frames"):
        assert all(torch.equal(batch[name], batches["positive"][name]) for batch in batches.values())
    features = {audio: batch["input_features"] for audio, batch in batches.items()}
    assert torch.allclose(features["silence"], torch.tensor(np.log(0.01), dtype=torch.float32))
    donor = next(index for index, clip in enumerate(data.clips) if clip.audio == reader.off_screen[1])
    # The donor's sound lasts exactly as long, so its features are those that it has at home, but for 16 bits and mono.
    torch.testing.assert_close(features["off_screen"][0], reader.read([donor])["input_features"][0], rtol=0, atol=1e-2)
    assert not torch.equal(features["noise"][0], features["noise"][1])


def test_noise_is_white_and_belongs_to_the_clip(root, collate):
    data = find(root)
    first = EvaluationReader(data, collate, seed=3)
    alone, together = first.read([2], "noise"), first.read([0, 2], "noise")
    assert torch.equal(alone["input_features"][0], together["input_features"][1])
    other = EvaluationReader(data, collate, seed=4).read([2], "noise")
    assert not torch.equal(alone["input_features"], other["input_features"])
    waveform, rate = read_audio(first._wrong_sound(2, "noise", 5.0))
    assert waveform.shape == (1, 80000) and rate == 16000
    assert np.sqrt(np.mean(waveform**2)) == pytest.approx(0.1, rel=0.02)
    power = np.abs(np.fft.rfft(waveform[0])) ** 2
    assert power[:20000].mean() == pytest.approx(power[20000:].mean(), rel=0.05)


def test_a_short_wrong_sound_is_repeated(root, collate, tmp_path):
    waveform = np.linspace(-0.5, 0.5, 4000, dtype=np.float32)[None]
    write_audio(tmp_path / "ramp.wav", waveform, 8000)
    reader = EvaluationReader(find(root), collate, find_off_screen_sounds(find(root), Path(tmp_path)))
    repeated, rate = read_audio(reader._wrong_sound(0, "off_screen", 5.0))
    assert rate == 8000 and repeated.shape == (1, 40000)
    np.testing.assert_allclose(repeated, np.tile(waveform, 10), atol=1e-4)


def test_batches_are_filled_up_to_a_number_of_frames(root, collate):
    data = find(root, "avss")
    plain, filled = (EvaluationReader(data, collate, frames=frames).read([0, 1]) for frames in (0, 10))
    assert plain["labels"].shape[1] == 5
    for name, values in plain.items():
        assert filled[name].shape[1] == 10 and filled[name].dtype == values.dtype
        assert torch.equal(filled[name][:, :5], values)
        assert (filled[name][:, 5:] == (255 if name == "labels" else 0)).all()


def test_a_row_of_one_s_own_folder_may_have_other_frame_rates(tmp_path, collate):
    dataset = files_module.SoundingShapes("ms3", "test", length=1, height=64, width=64, num_frames=2)
    (tmp_path / "masks").mkdir()
    files_module.write_clip(dataset, 0, tmp_path / "clip.mp4", frames_per_second=8)
    files_module._save_image(tmp_path / "masks" / "1.png", dataset[0].binary[0] * np.uint8(255))
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("video", "split", "masks"), ("clip.mp4", "test", "masks")])
    data = find(tmp_path, "folder", frames_per_second=2.0)
    batch = EvaluationReader(data, collate).read([0], "silence")
    assert batch["annotated_frames"].tolist() == [[False, True, False, False]]
    assert torch.allclose(batch["input_features"], torch.tensor(np.log(0.01), dtype=torch.float32))
