"""Tests of dataset_scripts/evaluation_tables.py, against the accumulators on the same clips."""

import pytest
import torch

from pcmanet.dataset_scripts.evaluation_tables import (
    class_figures,
    class_table,
    clip_figures,
    figures_table,
    markdown_table,
    measure_name,
    protocol_figures,
    worst_clips,
)
from pcmanet.dataset_scripts.metrics import BinaryMetrics, SemanticMetrics
from pcmanet.dataset_scripts.robustness_metrics import RobustnessMetrics


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
