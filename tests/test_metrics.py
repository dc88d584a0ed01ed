"""The measures against the values of AVSBench's own functions, a hand-computed case and an independent implementation."""

import doctest
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pcmanet.dataset_scripts import metrics as metrics_module
from pcmanet.dataset_scripts.metrics import BinaryMetrics, FalsePositiveMetrics, SemanticMetrics


class BinaryCase(NamedTuple):
    """Inputs by seed, and what the official functions make of them (recorded on CPU with torch 2.13)."""

    seed: int
    shape: tuple[int, int, int]  # frames, height, width
    level: float
    empty: tuple[int, ...]
    sum_logits: float
    sum_target: int
    miou: float
    f_one_batch: float
    f_per_clip: float

    def build(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        logits = torch.randn(*self.shape, generator=generator) * 3
        target = (torch.rand(*self.shape, generator=generator) > self.level).long()
        target[list(self.empty)] = 0
        assert logits.sum().item() == pytest.approx(self.sum_logits, abs=1e-3)
        assert target.sum().item() == self.sum_target
        return clips_of_five(logits[:, None]), clips_of_five(target)


class SemanticCase(NamedTuple):
    """Inputs by seed, and what the official functions make of them: over all classes, without the last, without the first."""

    seed: int
    shape: tuple[int, int, int, int]  # frames, classes, height, width
    sum_logits: float
    sum_target: int
    miou: tuple[float, float, float]
    f_score: tuple[float, float, float]
    classes_seen: int
    dataset_miou: float
    dataset_miou_seen: float

    def build(self) -> tuple[Tensor, Tensor]:
        frames, classes, height, width = self.shape
        generator = torch.Generator().manual_seed(self.seed)
        logits = torch.randn(*self.shape, generator=generator)
        target = torch.randint(0, classes, (frames, height, width), generator=generator)
        if self.seed == 12:  # two clips, the second all padding
            logits[5:] = 0
            target[5:] = 0
        if self.seed == 13:  # classes 1 and 4 are never seen
            target = 3 * (target == 3).long()
            logits[:, [1, 4]] -= 100
        assert logits.sum().item() == pytest.approx(self.sum_logits, abs=1e-1)
        assert target.sum().item() == self.sum_target
        return clips_of_five(logits), clips_of_five(target)


BINARY = {
    "B0": BinaryCase(0, (5, 8, 8), 0.5, (), 4.290403, 165, 0.35659164, 0.58757532, 0.58757532),
    "B1": BinaryCase(1, (5, 16, 16), 0.8, (2,), 75.346877, 202, 0.20770326, 0.24584879, 0.24584879),
    "B2": BinaryCase(2, (10, 12, 12), 0.7, (0, 5), 165.185781, 336, 0.27280802, 0.34832931, 0.34832929),
    "B3": BinaryCase(3, (5, 8, 8), 0.5, (0, 1, 2, 3, 4), -10.476840, 0, 0.54062498, 0.0, 0.0),
    "B4": BinaryCase(4, (20, 8, 8), 0.6, (19,), -219.239471, 491, 0.29965311, 0.46733227, 0.47912079),
}
B_CLIP_F = {
    "B2": (0.36364296, 0.33301562),
    "B4": (0.46861178, 0.50548232, 0.46072775, 0.48166132),
}
SEMANTIC = {
    "S0": SemanticCase(
        10, (10, 5, 8, 8), -4.63153, 1315,
        (0.12261064, 0.12042500, 0.12859753), (0.21296804, 0.20621043, 0.22396797), 5, 0.124814, 0.124814,
    ),
    "S1": SemanticCase(
        11, (10, 71, 16, 16), -231.97007, 87741,
        (0.00773862, 0.00773012, 0.00769044), (0.01373452, 0.01374865, 0.01364501), 71, 0.007524, 0.007524,
    ),
    "S2": SemanticCase(
        12, (10, 5, 8, 8), -57.26664, 613,
        (0.19779657, 0.22323193, 0.10406522), (0.27118570, 0.29272568, 0.18194976), 5, 0.236441, 0.236441,
    ),
    "S3": SemanticCase(
        13, (10, 5, 8, 8), -128001.47363, 357,
        (0.08306704, 0.10383379, 0.02726352), (0.15297747, 0.19122183, 0.04095014), 3, 0.082861, 0.138101,
    ),
    "S4": SemanticCase(
        14, (20, 7, 6, 6), -12.78904, 2187,
        (0.07949679, 0.08560512, 0.08094009), (0.13771197, 0.14835842, 0.13997491), 7, 0.078258, 0.078258,
    ),
}  # fmt: skip
SUFFIXES = ("", "_published_no_background", "_no_background")


def clips_of_five(frames: Tensor) -> Tensor:
    return frames.view(-1, 5, *frames.shape[1:])


def naive_binary(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Official IoU and F of clips (clips, frames, height, width), by loops over clips, frames and thresholds."""
    ious, maxima = [], []
    for clip, targets in zip(logits.sigmoid(), labels, strict=True):
        frame_ious, curves = [], []
        for frame, target in zip(clip, targets.bool(), strict=True):
            predicted = frame > 0.5
            if not target.any():
                frame_ious.append(float((~predicted).float().mean()))
                continue
            frame_ious.append(float((predicted & target).sum() / ((predicted | target).sum() + 1e-7)))
            curves.append([naive_f(frame >= threshold, target) for threshold in torch.linspace(0, 1 - 1e-10, 255)])
        ious.append(math.fsum(frame_ious) / len(frame_ious))
        maxima.append(max(map(math.fsum, zip(*curves, strict=True))) / len(curves) if curves else 0.0)
    return math.fsum(ious) / len(ious), math.fsum(maxima) / len(maxima)


def naive_f(predicted: Tensor, target: Tensor) -> float:
    true_positives = float((predicted & target).sum())
    if true_positives == 0.0:
        return 0.0
    precision, recall = true_positives / float(predicted.sum()), true_positives / float(target.sum())
    return 1.3 * precision * recall / (0.3 * precision + recall)


def test_examples_in_the_docstrings_hold():
    result = doctest.testmod(metrics_module)
    assert result.attempted >= 12
    assert result.failed == 0


@pytest.mark.parametrize("name", BINARY)
def test_binary_measures_equal_the_official_ones(name: str):
    case = BINARY[name]
    metrics = BinaryMetrics()
    metrics.update(*case.build())
    scores = metrics.compute()
    assert scores["miou"] == pytest.approx(case.miou, abs=1e-6)
    assert scores["f_score"] == pytest.approx(case.f_per_clip, abs=1e-6)
    assert metrics.compute("batch")["f_score"] == pytest.approx(case.f_one_batch, abs=1e-6)
    assert metrics.compute("batch")["miou"] == pytest.approx(case.miou, abs=1e-6)


@pytest.mark.parametrize("name", B_CLIP_F)
def test_scores_of_single_clips_equal_the_official_ones(name: str):
    metrics = BinaryMetrics()
    metrics.update(*BINARY[name].build())
    f_scores = [scores["f_score"] for scores in metrics.per_clip().values()]
    assert f_scores == pytest.approx(B_CLIP_F[name], abs=1e-6)


@pytest.mark.parametrize("name", BINARY)
def test_binary_measures_equal_naive_loops(name: str):
    logits, labels = BINARY[name].build()
    metrics = BinaryMetrics()
    metrics.update(logits, labels)
    scores = metrics.compute()
    assert (scores["miou"], scores["f_score"]) == pytest.approx(naive_binary(logits[:, :, 0], labels), abs=1e-6)


@pytest.mark.parametrize(
    ("logit", "label", "miou", "f_score"),
    [(10.0, 1, 1.0, 1.0), (-10.0, 0, 1.0, 0.0), (-10.0, 1, 0.0, 1.0), (10.0, 0, 0.0, 0.0), (0.0, 1, 0.0, 1.0)],
    ids=["all right", "rightly empty", "nothing found", "all wrong", "undecided"],
)
def test_binary_extremes(logit: float, label: int, miou: float, f_score: float):
    metrics = BinaryMetrics()
    metrics.update(torch.full((1, 1, 1, 4, 4), logit), torch.full((1, 1, 4, 4), label))
    scores = metrics.compute()
    assert (scores["miou"], scores["f_score"]) == pytest.approx((miou, f_score), abs=1e-6)


def test_binary_two_by_two_by_hand():
    # Frame 0: one pixel in both, two predicted, two labelled: IoU 1/3. Frame 1: empty target, three of four pixels left empty: IoU 3/4, no F.
    # F of frame 0: threshold 0 takes all pixels (P 1/2, R 1), later ones the two predicted (P = R = 1/2): 1.3 * .5 / (.15 + 1) = 13/23.
    logits = torch.tensor([[[20.0, 20.0], [-20.0, -20.0]], [[20.0, -20.0], [-20.0, -20.0]]]).view(1, 2, 1, 2, 2)
    labels = torch.tensor([[[1, 0], [0, 1]], [[0, 0], [0, 0]]]).view(1, 2, 2, 2)
    metrics = BinaryMetrics()
    metrics.update(logits, labels)
    assert metrics.compute()["miou"] == pytest.approx((1 / 3 + 3 / 4) / 2, abs=1e-7)
    assert metrics.compute()["f_score"] == pytest.approx(13 / 23, abs=1e-9)
    # Summed over both frames: one pixel in both, three predicted, two labelled: IoU 1/4; F at best 1.3 / (3 + .6).
    assert metrics.compute("dataset")["miou"] == pytest.approx(1 / 4, abs=1e-7)
    assert metrics.compute("dataset")["f_score"] == pytest.approx(1.3 / 3.6, abs=1e-9)


@pytest.mark.parametrize("name", SEMANTIC)
def test_semantic_measures_equal_the_official_ones(name: str):
    case = SEMANTIC[name]
    metrics = SemanticMetrics(case.shape[1], report_published_no_background=True)
    metrics.update(*case.build())
    scores = metrics.compute()
    assert [scores[f"miou{suffix}"] for suffix in SUFFIXES] == pytest.approx(case.miou, abs=1e-6)
    assert [scores[f"f_score{suffix}"] for suffix in SUFFIXES] == pytest.approx(case.f_score, abs=1e-6)
    assert scores["classes_seen"] == case.classes_seen
    dataset = metrics.compute("dataset")
    assert dataset["miou"] == pytest.approx(case.dataset_miou, abs=1e-6)
    assert dataset["miou_seen_classes"] == pytest.approx(case.dataset_miou_seen, abs=1e-6)


@pytest.mark.parametrize("name", SEMANTIC)
def test_semantic_measures_equal_naive_loops(name: str):
    logits, labels = SEMANTIC[name].build()
    classes = logits.shape[2]
    metrics = SemanticMetrics(classes)
    metrics.update(logits, labels)
    predictions = logits.argmax(2).flatten(0, 1)
    ious: list[list[float]] = [[] for _ in range(classes)]
    for predicted, target in zip(predictions, labels.flatten(0, 1), strict=True):
        for label in set(predicted.flatten().tolist()) | set(target.flatten().tolist()):
            union = ((predicted == label) | (target == label)).sum()
            ious[label].append(float(((predicted == label) & (target == label)).sum() / union))
    expected = [math.fsum(values) / len(values) if values else 0.0 for values in ious]
    assert metrics.per_class()["iou"].tolist() == pytest.approx(expected, abs=1e-6)
    assert metrics.per_class()["seen"].tolist() == [float(bool(values)) for values in ious]


def test_semantic_two_by_two_by_hand():
    # Prediction 0 1 / 1 1 against 0 0 / 1 1: class 0: 1 in both, 1 predicted, 2 labelled; class 1: 2 in both, 3 predicted, 2 labelled; class 2 never.
    metrics = SemanticMetrics(3)
    metrics.update_predictions(torch.tensor([[[[0, 1], [1, 1]]]]), torch.tensor([[[[0, 0], [1, 1]]]]))
    scores = metrics.compute()
    assert scores["miou"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert scores["miou_seen_classes"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores["f_score"] == pytest.approx((1.3 / (1 + 0.3 * 2) + 2.6 / (3 + 0.3 * 2) + 0) / 3)
    assert scores["classes_seen"] == 2.0


def test_published_slice_is_only_reported_on_request():
    metrics = SemanticMetrics(5)
    metrics.update(*SEMANTIC["S0"].build())
    assert not any("published" in name for name in metrics.compute())


def test_semantic_batch_protocol_is_the_official_one_on_a_single_batch_and_depends_on_batches():
    logits, labels = SEMANTIC["S4"].build()
    whole, parts = SemanticMetrics(7), SemanticMetrics(7)
    whole.update(logits, labels)
    for clip in range(len(logits)):
        parts.update(logits[clip : clip + 1], labels[clip : clip + 1])
    assert whole.compute("batch") == pytest.approx(whole.compute("official"), abs=1e-12)
    assert parts.compute("official") == whole.compute("official")
    assert parts.compute("batch")["miou"] == pytest.approx(
        math.fsum(scores["miou"] for scores in parts.per_clip().values()) / 4
    )


def test_semantic_batch_protocol_takes_a_class_over_the_batches_that_show_it():
    # Class 1: IoU 1 in the first call, not seen in the second, so its mean is 1 and not 1/2.
    metrics = SemanticMetrics(2, "batch")
    metrics.update_predictions(torch.tensor([[[[0, 1]]]]), torch.tensor([[[[0, 1]]]]))
    metrics.update_predictions(torch.tensor([[[[0, 0]]]]), torch.tensor([[[[0, 0]]]]))
    assert metrics.per_class()["iou"].tolist() == pytest.approx([1.0, 1.0])


def test_too_few_classes_are_refused():
    with pytest.raises(ValueError, match="num_labels is 1, expected two classes"):
        SemanticMetrics(1)


def test_false_positive_rate_by_hand():
    # Clip 0: one of four pixels; clip 1: two frames, one pixel counted in the first (foreground), none of four in the second.
    logits = torch.full((2, 2, 1, 2, 2), -9.0)
    logits[0, 0, 0, 0, 0] = logits[1, 0, 0, 0, 0] = 9.0
    labels = torch.zeros(2, 2, 2, 2, dtype=torch.long)
    labels[1, 0] = torch.tensor([[0, 255], [255, 255]])
    metrics = FalsePositiveMetrics(1)
    metrics.update(logits, labels, frame_mask=torch.tensor([[True, False], [True, True]]))
    assert metrics.compute("official") == {"false_positive_rate": pytest.approx((1 / 4 + 1 / 2) / 2), "frames": 3.0}
    assert metrics.compute("batch")["false_positive_rate"] == pytest.approx((1 / 4 + 1 + 0) / 3)
    assert metrics.compute("dataset")["false_positive_rate"] == pytest.approx(2 / 9)


def test_false_positives_of_classes_are_all_but_the_background():
    metrics = FalsePositiveMetrics(3)
    metrics.update_predictions(torch.tensor([[[[0, 1], [2, 0]]]]), torch.zeros(1, 1, 2, 2, dtype=torch.long))
    assert metrics.compute()["false_positive_rate"] == 0.5
