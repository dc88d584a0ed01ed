"""Tests of dataset_scripts/evaluation.py: reading clips from trees of files, and results against the accumulators."""

import csv
import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from written_trees import write_trees

from modeling_pcmanet import PCMANetFeatureExtractor, PCMANetImageProcessor, PCMANetProcessor
from modeling_pcmanet.media_pcmanet import read_audio
from modeling_pcmanet.media_writing_pcmanet import write_audio
from pcmanet.dataset_scripts import evaluation
from pcmanet.dataset_scripts.avsbench import DatasetError, load_avsbench
from pcmanet.dataset_scripts.avsbench.rows import RowSettings
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.evaluation import (
    EvaluationReader,
    class_results,
    class_table,
    clip_results,
    find_evaluation_clips,
    find_off_screen_audio,
    markdown_table,
    metric_name,
    protocol_results,
    results_table,
    worst_clips,
)
from pcmanet.dataset_scripts.metrics import BinaryMetrics, RobustnessMetrics, SemanticMetrics
from pcmanet.dataset_scripts.sounding_shapes import files as files_module


OBJECTS = [("dog",), ("dog", "cat"), None, ("bird", "off-the-screen"), ("cat",)]


def clips(num_labels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of five clips."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(5, 2, num_labels, 6, 6, generator=generator)
    return logits, torch.randint(0, max(2, num_labels - 1), (5, 2, 6, 6), generator=generator)


def count(metrics, logits, labels, batches=((0, 1, 2), (3, 4))):
    for batch in batches:
        metrics.update(logits[list(batch)], labels[list(batch)], clip_indices=batch)
    return metrics


@pytest.mark.parametrize("num_labels", [1, 4])
def test_results_of_every_protocol(num_labels):
    logits, labels = clips(num_labels)
    metrics = RobustnessMetrics(num_labels)
    count(metrics["positive"], logits, labels)
    plain = BinaryMetrics() if num_labels == 1 else SemanticMetrics(num_labels)
    expected = {name: count(plain, logits, labels).compute(name) for name in ("official",)}
    results = protocol_results(metrics)
    assert list(results) == ["official", "batch", "dataset"]
    assert results["official"] == expected["official"]
    assert len({values["miou"] for values in results.values()}) == 3
    assert not any("false" in name for name in results["official"])


def test_results_include_counted_negative_audio():
    logits, labels = clips(1)
    metrics = RobustnessMetrics()
    for audio in ("positive", "silence"):
        count(metrics[audio], logits, labels)
    assert protocol_results(metrics)["batch"] == metrics.compute("batch")
    assert protocol_results(metrics)["batch"]["false_positive_rate_silence"] > 0


def test_classes_of_binary_masks_are_the_sounding_objects():
    logits, labels = clips(1)
    results = class_results(count(BinaryMetrics(), logits, labels), ("sounding",), OBJECTS)
    assert list(results) == ["bird", "cat", "dog"]
    cats = count(BinaryMetrics(), logits, labels, batches=((1,), (4,)))
    dogs = count(BinaryMetrics(), logits, labels, batches=((0, 1),))
    for name, expected in (("cat", cats), ("dog", dogs)):
        for protocol in ("official", "batch", "dataset"):
            scores = expected.compute(protocol)
            assert results[name][protocol] == {key: scores[key] for key in ("miou", "f_score")}


def test_semantic_classes_are_those_that_occur():
    logits, labels = clips(4)
    logits[:, :, 3] = -100.0  # neither predicted nor in the labels, which stop at 2
    metrics = count(SemanticMetrics(4), logits, labels)
    results = class_results(metrics, ("background", "a", "b", "c"), OBJECTS)
    assert list(results) == ["background", "a", "b"]
    iou = metrics.per_class("dataset")["iou"]
    assert [results[name]["dataset"]["miou"] for name in results] == iou[:3].tolist()
    assert sum(results[name]["official"]["miou"] for name in results) / 4 == pytest.approx(metrics.compute()["miou"])


@pytest.mark.parametrize(("num_labels", "key"), [(1, "miou"), (4, "miou_seen_classes")])
def test_clips_are_scored_alone_and_sorted(num_labels, key):
    logits, labels = clips(num_labels)
    metrics = count(BinaryMetrics() if num_labels == 1 else SemanticMetrics(num_labels), logits, labels)
    results = clip_results(metrics)
    assert {index: values["miou"] for index, values in results.items()} == {
        index: values[key] for index, values in metrics.per_clip().items()
    }
    worst = worst_clips(results, 3)
    assert len(worst) == 3
    assert [results[index]["miou"] for index in worst] == sorted(values["miou"] for values in results.values())[:3]
    assert worst_clips({4: {"miou": 0.5}, 2: {"miou": 0.5}}, 9) == [2, 4]


def test_docstring_examples():
    result = doctest.testmod(evaluation)
    assert result.attempted == 1
    assert result.failed == 0


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("miou", "mIoU"),
        ("miou_published_no_background", 'mIoU, "no background" as published'),
        ("f_score_seen_classes", "F, seen classes"),
        ("false_positive_rate_off_screen", "false-positive rate, off-screen"),
    ],
)
def test_metric_names(key, name):
    assert metric_name(key) == name


def test_tables_are_markdown():
    results = {
        protocol: {"miou": value, "frames": 9.0}
        for protocol, value in zip(("official", "batch", "dataset"), (0.5, 0.25, 1), strict=True)
    }
    assert results_table(results) == (
        "|      | official |  batch | dataset |\n"
        "| ---- | -------: | -----: | ------: |\n"
        "| mIoU |   0.5000 | 0.2500 |  1.0000 |\n"
    )
    both = {protocol: {"miou": 0.5, "f_score": 0.75} for protocol in results}
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
def test_rows_match_the_loader(root, collate, name, split):
    data = find(root, name, split)
    expected = list(load_avsbench(root, name, split=split, streaming=True))
    names = [data.read(index).name for index in range(len(data.clips))]
    assert names == [row["id"] for row in expected]
    assert data.binary == (name != "avss")
    collate = ClipCollator(collate.processor, data.binary)
    batch = EvaluationReader(data, collate).read(range(len(names)))
    for key, values in collate(expected).items():
        assert torch.equal(batch[key], values), key


def test_missing_split_and_missing_files_raise(root, tmp_path):
    with pytest.raises(ValueError, match=r"No clips of split 'val' found .* of train, test"):
        find(root, split="val")
    tree = write_trees(tmp_path, ms3={"test": 2})
    missing = [path for path in sorted(tree.rglob("*.png"))[:2] if path.unlink() is None]
    with pytest.raises(DatasetError) as caught:
        find(tmp_path, "ms3")
    assert all(str(path) in str(caught.value) for path in missing)


def test_off_screen_audio_comes_from_clips_with_disjoint_objects(root):
    data = find(root)
    files = find_off_screen_audio(data)
    by_audio = {clip.audio: clip for clip in data.clips}
    assert len(files) == 4
    assert all(by_audio[path].category != clip.category for path, clip in zip(files, data.clips, strict=True))


def test_off_screen_audio_of_unknown_objects_needs_a_folder(root, tmp_path):
    data = find(root, "ms3")
    with pytest.raises(ValueError, match="whose objects are known to differ"):
        find_off_screen_audio(data)
    with pytest.raises(FileNotFoundError, match="No files found"):
        find_off_screen_audio(data, tmp_path)
    write_audio(tmp_path / "beep.wav", np.zeros((1, 100), np.float32), 8000)
    assert find_off_screen_audio(data, tmp_path) == [str(tmp_path / "beep.wav")] * 2


def test_clip_of_background_provides_no_off_screen_audio(tmp_path, root):
    tree = tmp_path / "AVSBench_semantic"
    tree.symlink_to(root / "AVSBench_semantic")
    data = find(tmp_path, "avss")
    nameless = [type(clip)(**{**vars(clip), "objects": ("background",)}) for clip in data.clips]
    with pytest.raises(ValueError, match="whose objects are known to differ"):
        find_off_screen_audio(type(data)(**{**vars(data), "clips": nameless}))


def test_negative_audio_replaces_the_audio_only(root, collate):
    data = find(root)
    reader = EvaluationReader(data, collate, find_off_screen_audio(data), seed=3)
    batches = {audio: reader.read([1, 2], audio) for audio in ("positive", "silence", "noise", "off_screen")}
    for name in ("pixel_values", "labels", "annotated_frames"):
        assert all(torch.equal(batch[name], batches["positive"][name]) for batch in batches.values())
    features = {audio: batch["input_features"] for audio, batch in batches.items()}
    assert torch.allclose(features["silence"], torch.tensor(np.log(0.01), dtype=torch.float32))
    donor = next(index for index, clip in enumerate(data.clips) if clip.audio == reader.off_screen[1])
    # The audio has the same duration in its own clip, so the features differ only by the conversion to 16 bits and mono.
    torch.testing.assert_close(features["off_screen"][0], reader.read([donor])["input_features"][0], rtol=0, atol=1e-2)
    assert not torch.equal(features["noise"][0], features["noise"][1])


def test_noise_is_white_and_specific_to_the_clip(root, collate):
    data = find(root)
    first = EvaluationReader(data, collate, seed=3)
    alone, together = first.read([2], "noise"), first.read([0, 2], "noise")
    assert torch.equal(alone["input_features"][0], together["input_features"][1])
    other = EvaluationReader(data, collate, seed=4).read([2], "noise")
    assert not torch.equal(alone["input_features"], other["input_features"])
    waveform, rate = read_audio(first._negative_audio(2, "noise", 5.0))
    assert waveform.shape == (1, 80000) and rate == 16000
    assert np.sqrt(np.mean(waveform**2)) == pytest.approx(0.1, rel=0.02)
    power = np.abs(np.fft.rfft(waveform[0])) ** 2
    assert power[:20000].mean() == pytest.approx(power[20000:].mean(), rel=0.05)


def test_short_negative_audio_is_repeated(root, collate, tmp_path):
    waveform = np.linspace(-0.5, 0.5, 4000, dtype=np.float32)[None]
    write_audio(tmp_path / "ramp.wav", waveform, 8000)
    reader = EvaluationReader(find(root), collate, find_off_screen_audio(find(root), Path(tmp_path)))
    repeated, rate = read_audio(reader._negative_audio(0, "off_screen", 5.0))
    assert rate == 8000 and repeated.shape == (1, 40000)
    np.testing.assert_allclose(repeated, np.tile(waveform, 10), atol=1e-4)


def test_batches_are_padded_to_a_number_of_frames(root, collate):
    data = find(root, "avss")
    plain, filled = (EvaluationReader(data, collate, frames=frames).read([0, 1]) for frames in (0, 10))
    assert plain["labels"].shape[1] == 5
    assert filled["frame_mask"].tolist() == [[True] * 5 + [False] * 5] * 2
    for name, values in plain.items():
        assert filled[name].shape[1] == 10 and filled[name].dtype == values.dtype
        assert torch.equal(filled[name][:, :5], values)
        assert (filled[name][:, 5:] == (255 if name == "labels" else 0)).all()


def test_frame_rate_of_a_custom_folder(tmp_path, collate):
    dataset = files_module.SoundingShapes("ms3", "test", length=1, height=64, width=64, num_frames=2)
    (tmp_path / "masks").mkdir()
    files_module.write_clip(dataset, 0, tmp_path / "clip.mp4", frames_per_second=8)
    files_module._save_image(tmp_path / "masks" / "1.png", dataset[0].binary[0] * np.uint8(255))
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("video", "split", "masks"), ("clip.mp4", "test", "masks")])
    data = find(tmp_path, "folder", frames_per_second=2.0)
    batch = EvaluationReader(data, collate).read([0], "silence")
    assert batch["annotated_frames"].tolist() == [[False, False, False, True]]
    assert torch.allclose(batch["input_features"], torch.tensor(np.log(0.01), dtype=torch.float32))
