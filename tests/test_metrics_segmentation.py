"""Tests of the metrics: hand-computed cases, AVSBench's own functions, independent implementations, merging and resuming."""

import doctest
import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pcmanet.dataset_scripts.metrics import (
    BinaryMetrics,
    ClipMetrics,
    FalsePositiveMetrics,
    RobustnessMetrics,
    SemanticMetrics,
    binary_iou,
    class_counts,
    class_iou,
    code_histogram,
    f_score,
    f_thresholds,
    foreground_counts,
    quantize_probabilities,
    reduce_logits,
    segmentation,
    threshold_counts,
)
from pcmanet.dataset_scripts.metrics.segmentation import (
    FIRST_FOREGROUND_CODE,
    ONE_HALF_CODE,
    THRESHOLD_COUNT,
    exact_sum,
)


def test_docstring_examples():
    result = doctest.testmod(segmentation)
    assert result.attempted >= 30
    assert result.failed == 0


@pytest.mark.parametrize("num_labels", [1, 3])
def test_clips_are_counted_whatever_the_default_device_is(num_labels: int):
    logits = torch.randn(2, 1, num_labels, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 2, (2, 1, 4, 4), generator=torch.Generator().manual_seed(1))

    def compute() -> dict[str, float]:
        metrics = RobustnessMetrics(num_labels)
        for audio in ("positive", "silence"):
            metrics[audio].update(logits, labels)
        return metrics.compute()

    expected = compute()
    with torch.device("meta"):  # as `torch.set_default_device`; a tensor there has no values
        assert compute() == expected


def naive_f(predicted: Tensor, target: Tensor) -> float:
    """F score of two boolean masks, directly from the definition."""
    true_positives = float((predicted & target).sum())
    if true_positives == 0.0:
        return 0.0
    precision, recall = true_positives / float(predicted.sum()), true_positives / float(target.sum())
    return 1.3 * precision * recall / (0.3 * precision + recall)


def naive_curve(probabilities: Tensor, target: Tensor) -> list[float]:
    """F scores of a frame, in a loop over the 255 thresholds."""
    return [naive_f(probabilities >= threshold, target == 1) for threshold in torch.linspace(0, 1 - 1e-10, 255)]


def test_codes_match_bucketize_around_every_threshold():
    thresholds = f_thresholds()
    around = [
        thresholds,
        torch.nextafter(thresholds, torch.tensor(2.0)),
        torch.nextafter(thresholds, torch.tensor(-1.0)),
    ]
    spread = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    probabilities = torch.cat([*around, spread]).clamp(0.0, 1.0)
    expected = torch.bucketize(probabilities, thresholds, right=True)
    expected[probabilities == 0.5] = ONE_HALF_CODE
    assert torch.equal(quantize_probabilities(probabilities).long(), expected)


def test_foreground_codes_are_the_probabilities_above_one_half():
    half = torch.tensor(0.5)
    probabilities = torch.stack(
        [torch.nextafter(half, torch.tensor(0.0)), half, torch.nextafter(half, torch.tensor(1.0))]
    )
    assert (quantize_probabilities(probabilities) >= FIRST_FOREGROUND_CODE).tolist() == [False, False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_quantization_accepts_any_float_type(dtype: torch.dtype):
    probabilities = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=dtype)
    assert quantize_probabilities(probabilities).tolist() == [1, 64, 0, 255]


@pytest.mark.parametrize(("value", "shown"), [(1.5, "1.5"), (-0.25, "-0.25"), (float("nan"), "nan")])
def test_values_outside_zero_to_one_raise(value: float, shown: str):
    with pytest.raises(ValueError, match=rf"{shown}.*expected values in \[0, 1\]"):
        quantize_probabilities(torch.tensor([0.5, value]))


def test_quantization_accepts_an_empty_tensor():
    assert quantize_probabilities(torch.zeros(0, 4, 4)).shape == (0, 4, 4)


def test_f_curve_matches_a_loop_over_the_thresholds():
    generator = torch.Generator().manual_seed(7)
    probabilities = (torch.randn(3, 9, 7, generator=generator) * 3).sigmoid()
    probabilities[0, 0, :3] = torch.tensor([0.0, 0.5, 1.0])
    targets = torch.randint(0, 2, (3, 9, 7), generator=generator)
    reached = threshold_counts(code_histogram(quantize_probabilities(probabilities), targets))
    curves = f_score(reached[:, 1], reached.sum(1), targets.sum((1, 2))[:, None])
    for curve, frame, target in zip(curves, probabilities, targets, strict=True):
        assert curve.tolist() == pytest.approx(naive_curve(frame, target), abs=1e-12)


def test_histogram_skips_ignored_pixels():
    codes = quantize_probabilities(torch.tensor([[[0.9, 0.9], [0.1, 0.1]]]))
    histogram = code_histogram(codes, torch.tensor([[[1, 255], [0, 255]]]))
    assert histogram.sum().item() == 2
    assert foreground_counts(histogram).tolist() == [[0, 1]]
    assert threshold_counts(histogram).shape == (1, 2, THRESHOLD_COUNT)


def test_class_counts_match_a_loop_over_the_classes():
    generator = torch.Generator().manual_seed(3)
    predictions = torch.randint(0, 5, (4, 6, 6), generator=generator)
    targets = torch.randint(0, 5, (4, 6, 6), generator=generator)
    targets[1, :3] = 255
    counts = class_counts(predictions.to(torch.uint8), targets, num_labels=5)
    for frame in range(4):
        counted = targets[frame] != 255
        for label in range(5):
            predicted, labeled = (predictions[frame] == label) & counted, targets[frame] == label
            expected = [int(mask.sum()) for mask in (predicted & labeled, predicted, labeled)]
            assert [int(count[frame, label]) for count in counts] == expected


@pytest.mark.parametrize(("wrong", "shown"), [(5, "from 0 to 5"), (-1, "from -1 to 0")])
def test_predictions_out_of_range_raise(wrong: int, shown: str):
    predictions = torch.tensor([[[0, wrong]]])
    with pytest.raises(ValueError, match=f"class indices from 0 to 4, got torch.int64 {shown}"):
        class_counts(predictions, torch.zeros(1, 1, 2, dtype=torch.long), num_labels=5)


def test_codes_must_be_uint8():
    with pytest.raises(ValueError, match="uint8 codes of quantize_probabilities, got torch.int64"):
        code_histogram(torch.ones(1, 2, 2, dtype=torch.long), torch.ones(1, 2, 2, dtype=torch.long))


def test_ratios_of_a_hand_computed_mask():
    # Prediction 1 1 / 0 0 against target 1 0 / 0 1: one pixel in both, two predicted, two labeled, so IoU 1/3 and P = R = F = 1/2.
    counts = [torch.tensor(count) for count in (1, 2, 2)]
    assert binary_iou(*counts, torch.tensor(4)).item() == pytest.approx(1 / 3, abs=1e-7)
    assert class_iou(*counts).item() == pytest.approx(1 / 3, abs=1e-12)
    assert f_score(*counts).item() == pytest.approx(1 / 2, abs=1e-12)


def test_empty_target_scores_the_background_fraction():
    assert binary_iou(*(torch.tensor(count) for count in (0, 1, 0, 4))).item() == 0.75
    assert binary_iou(*(torch.tensor(count) for count in (0, 0, 0, 0))).item() == 0.0


def test_lowest_class_wins_ties():
    assert reduce_logits(torch.zeros(1, 1, 4, 2, 2), num_labels=4).unique().tolist() == [0]


def test_more_than_256_classes():
    logits = torch.zeros(1, 1, 300, 1, 1)
    logits[0, 0, 299] = 1.0
    assert reduce_logits(logits, num_labels=300).item() == 299


@pytest.mark.parametrize("num_labels", [1, 3])
def test_nan_logits_raise(num_labels: int):
    logits = torch.zeros(1, 2, num_labels, 4, 4)
    logits[0, 1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        reduce_logits(logits, num_labels)


def test_logits_of_wrong_shape_raise():
    with pytest.raises(ValueError, match=r"\(batch, frames, 3, height, width\), got \(2, 3, 4, 4\)"):
        reduce_logits(torch.zeros(2, 3, 4, 4), num_labels=3)


CLIPS = 7


def make_clips(num_labels: int, frames: int = 5, size: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_labels)
    logits = torch.randn(CLIPS, frames, num_labels, size, size, generator=generator) * 3
    labels = torch.randint(0, max(num_labels, 2), (CLIPS, frames, size, size), generator=generator)
    labels[2, 1] = 0
    return logits, labels


def make_metrics(num_labels: int) -> ClipMetrics:
    return BinaryMetrics() if num_labels == 1 else SemanticMetrics(num_labels)


@pytest.mark.parametrize("num_labels", [1, 4])
@pytest.mark.parametrize("protocol", ["official", "dataset"])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_scores_do_not_depend_on_the_batch_size(num_labels: int, protocol: str, batch_size: int):
    logits, labels = make_clips(num_labels)
    complete, parts = make_metrics(num_labels), make_metrics(num_labels)
    complete.update(logits, labels)
    for start in range(0, CLIPS, batch_size):
        parts.update(logits[start : start + batch_size], labels[start : start + batch_size])
    assert parts.compute(protocol) == complete.compute(protocol)


@pytest.mark.parametrize("num_labels", [1, 4])
@pytest.mark.parametrize("protocol", ["official", "dataset"])
def test_scores_do_not_depend_on_the_number_of_processes(num_labels: int, protocol: str):
    logits, labels = make_clips(num_labels)
    complete = make_metrics(num_labels)
    complete.update(logits, labels)
    merged = make_metrics(num_labels)
    for process in (2, 0, 1):
        clips = list(range(process, CLIPS, 3))
        part = make_metrics(num_labels)
        part.update(logits[clips], labels[clips], clip_indices=clips)
        merged.merge(part)
    assert len(merged) == CLIPS
    assert merged.compute(protocol) == complete.compute(protocol)


def test_merge_keeps_the_batches():
    logits, labels = make_clips(1)
    complete = BinaryMetrics("batch")
    merged, part = BinaryMetrics("batch"), BinaryMetrics("batch")
    for metrics, clips in ((merged, [0, 1, 2]), (merged, [3]), (part, [4, 5]), (part, [6])):
        metrics.update(logits[clips], labels[clips], clip_indices=clips)
        complete.update(logits[clips], labels[clips])
    merged.merge(part)
    assert merged.compute() == complete.compute()
    assert merged.compute()["groups"] == 4.0
    assert merged.compute()["f_score"] != merged.compute("official")["f_score"]


def test_merge_appends_clips_without_an_index():
    logits, labels = make_clips(1)
    complete, first, second = BinaryMetrics(), BinaryMetrics(), BinaryMetrics()
    complete.update(logits, labels)
    first.update(logits[:3], labels[:3])
    second.update(logits[3:], labels[3:])
    first.merge(second)
    first.merge(BinaryMetrics())
    assert first.compute() == complete.compute()


def test_repeated_clip_is_counted_once():
    logits, labels = make_clips(1)
    once, twice = BinaryMetrics(), BinaryMetrics()
    once.update(logits, labels)
    twice.update(logits, labels, clip_indices=range(CLIPS))
    twice.update(logits[:2], labels[:2], clip_indices=torch.tensor([0, 1]))
    assert twice.compute() == once.compute()


def test_repeated_index_with_different_labels_raises():
    logits, labels = make_clips(1)
    metrics = BinaryMetrics()
    metrics.update(logits[:1], labels[:1], clip_indices=[0])
    with pytest.raises(ValueError, match="Clip index 0 is repeated with different labels"):
        metrics.update(logits[1:2], labels[1:2], clip_indices=[0])


def test_mixing_clips_with_and_without_an_index_raises():
    logits, labels = make_clips(1)
    metrics = BinaryMetrics()
    metrics.update(logits[:1], labels[:1])
    with pytest.raises(ValueError, match="with and without clip_indices"):
        metrics.update(logits[1:2], labels[1:2], clip_indices=[1])


def test_wrong_number_of_indices_raises():
    logits, labels = make_clips(1)
    with pytest.raises(ValueError, match="got 2 indices for 7 clips"):
        BinaryMetrics().update(logits, labels, clip_indices=[0, 1])


def test_state_is_restored_from_a_file(tmp_path: Path):
    logits, labels = make_clips(4)
    before, after = SemanticMetrics(4), SemanticMetrics(4)
    before.update(logits[:3], labels[:3], clip_indices=[0, 1, 2])
    torch.save(before.state_dict(), tmp_path / "state.pt")
    after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for metrics in (before, after):
        metrics.update(logits[3:], labels[3:], clip_indices=range(3, CLIPS))
    assert after.compute() == before.compute()
    assert after.compute("batch") == before.compute("batch")


def test_state_of_other_metrics_raises():
    logits, labels = make_clips(4)
    other = SemanticMetrics(4)
    other.update(logits, labels)
    with pytest.raises(ValueError, match="rows of width 31, got 25"):
        SemanticMetrics(5).load_state_dict(other.state_dict())


def test_empty_state_has_the_types_of_a_full_one():
    state = BinaryMetrics().state_dict()
    assert {name: (value.dtype, tuple(value.shape)) for name, value in state.items()} == {
        "clip_indices": (torch.int64, (0,)),
        "batch_indices": (torch.int64, (0,)),
        "rows": (torch.float64, (0, 772)),
        "numbered": (torch.bool, ()),
    }


def test_reset_removes_all_clips():
    logits, labels = make_clips(1)
    metrics, fresh = BinaryMetrics(), BinaryMetrics()
    metrics.update(logits[:3], labels[:3])
    metrics.reset()
    assert len(metrics) == 0
    metrics.update(logits[3:], labels[3:])
    fresh.update(logits[3:], labels[3:])
    assert metrics.compute() == fresh.compute()


@pytest.mark.parametrize("num_labels", [1, 4])
def test_padded_frames_are_not_scored(num_labels: int):
    logits, labels = make_clips(num_labels)
    plain, padded = make_metrics(num_labels), make_metrics(num_labels)
    plain.update(logits, labels)
    frame_mask = torch.arange(9).expand(CLIPS, -1) < 5
    noise = torch.randn(CLIPS, 4, *logits.shape[2:], generator=torch.Generator().manual_seed(9))
    padded.update(torch.cat([logits, noise], dim=1), torch.nn.functional.pad(labels, (0, 0, 0, 0, 0, 4)), frame_mask)
    for protocol in ("official", "batch", "dataset"):
        assert padded.compute(protocol) == plain.compute(protocol)


@pytest.mark.parametrize("padding_label", [0, 1, 255])
def test_score_padding_scores_padded_frames_as_background(padding_label: int):
    logits, labels = make_clips(4)
    frame_mask = torch.arange(5).expand(CLIPS, -1) < 3
    expected, metrics = SemanticMetrics(4), SemanticMetrics(4, score_padding=True)
    expected.update(logits, torch.where(frame_mask[..., None, None], labels, 0))
    labels = torch.where(frame_mask[..., None, None], labels, padding_label)
    # A padded frame is never annotated; it is scored all the same.
    metrics.update(logits, labels, frame_mask, annotated_frames=frame_mask)
    assert metrics.compute() == expected.compute()
    assert metrics.compute()["frames"] == 5.0 * CLIPS


def test_unannotated_frames_are_not_scored():
    logits, labels = make_clips(1)
    first, masked = BinaryMetrics(), BinaryMetrics()
    first.update(logits[:, :1], labels[:, :1])
    masked.update(logits, labels, annotated_frames=torch.arange(5).expand(CLIPS, -1) == 0)
    assert masked.compute() == first.compute()
    assert masked.compute("dataset") == first.compute("dataset")


def test_unannotated_clip_is_not_scored():
    logits, labels = make_clips(1)
    some, all_clips = BinaryMetrics(), BinaryMetrics()
    some.update(logits[1:], labels[1:])
    annotated_frames = torch.ones(CLIPS, 5, dtype=torch.bool)
    annotated_frames[0] = False
    all_clips.update(logits, labels, annotated_frames=annotated_frames)
    for protocol in ("official", "batch", "dataset"):
        assert all_clips.compute(protocol) == some.compute(protocol)
    assert list(all_clips.per_clip()) == list(range(1, CLIPS))


@pytest.mark.parametrize("num_labels", [1, 4])
def test_ignoring_pixels_equals_cropping(num_labels: int):
    logits, labels = make_clips(num_labels)
    cropped, ignoring = make_metrics(num_labels), make_metrics(num_labels)
    cropped.update(logits[..., :8], labels[..., :8])
    labels[..., 8:] = 255
    ignoring.update(logits, labels)
    for protocol in ("official", "batch", "dataset"):
        assert ignoring.compute(protocol) == cropped.compute(protocol)


def test_frame_of_ignored_pixels_is_not_scored():
    logits, labels = make_clips(1)
    shorter, ignoring = BinaryMetrics(), BinaryMetrics()
    shorter.update(logits[:, 1:], labels[:, 1:])
    labels[:, 0] = 255
    ignoring.update(logits, labels)
    assert ignoring.compute() == shorter.compute()


def test_reduced_predictions_give_the_same_scores():
    logits, labels = make_clips(1)
    direct, reduced = BinaryMetrics(), BinaryMetrics()
    direct.update(logits, labels)
    codes = reduced.reduce(logits)
    assert codes.dtype == torch.uint8
    reduced.update_predictions(codes, labels)
    assert reduced.compute() == direct.compute()


def test_half_precision_logits_match_float32():
    logits, labels = make_clips(1)
    half, full = BinaryMetrics(), BinaryMetrics()
    half.update(logits.bfloat16(), labels)
    full.update(logits.bfloat16().float(), labels)
    assert half.compute() == full.compute()


@pytest.mark.parametrize("metrics", [BinaryMetrics(), SemanticMetrics(3), FalsePositiveMetrics(1)], ids=type)
def test_compute_without_clips_raises(metrics: ClipMetrics):
    with pytest.raises(ValueError, match="No clip was counted yet"):
        metrics.compute()
    logits = torch.zeros(2, 3, metrics.num_labels, 4, 4)
    metrics.update(
        logits, torch.zeros(2, 3, 4, 4, dtype=torch.long), annotated_frames=torch.zeros(2, 3, dtype=torch.bool)
    )
    with pytest.raises(ValueError, match="None of the 2 clips has an annotated frame. Add masks to the data."):
        metrics.compute()


@pytest.mark.parametrize(("num_labels", "wrong"), [(1, 2), (4, 4), (4, -1)])
def test_labels_out_of_range_raise(num_labels: int, wrong: int):
    logits, labels = make_clips(num_labels)
    labels[0, 0, 0, 0] = wrong
    with pytest.raises(ValueError, match=f"from 0 to {max(num_labels, 2) - 1}, or 255 .*, got {wrong}"):
        make_metrics(num_labels).update(logits, labels)


def test_float_labels_raise():
    logits, labels = make_clips(1)
    with pytest.raises(ValueError, match="integer labels.*, got torch.float32"):
        BinaryMetrics().update(logits, labels.float())


def test_mismatched_shapes_raise():
    logits, labels = make_clips(1)
    with pytest.raises(ValueError, match=r"predictions \(7, 5, 12, 12\) and labels \(7, 5, 12, 8\)"):
        BinaryMetrics().update(logits, labels[..., :8])
    with pytest.raises(ValueError, match=r"\(batch, frames, height, width\), .*labels \(7, 0, 12, 12\)"):
        BinaryMetrics().update(logits[:, :0], labels[:, :0])
    with pytest.raises(ValueError, match=r"\(batch, frames\) = \(7, 5\), got \(5,\)"):
        BinaryMetrics().update(logits, labels, frame_mask=torch.ones(5, dtype=torch.bool))


@pytest.mark.parametrize("num_labels", [1, 4])
def test_empty_batch_counts_nothing(num_labels: int):
    logits, labels = make_clips(num_labels)
    metrics, plain = make_metrics(num_labels), make_metrics(num_labels)
    metrics.update(logits[:0], labels[:0])
    assert len(metrics) == 0
    for accumulator in (metrics, plain):
        accumulator.update(logits, labels)
    metrics.update(logits[:0], labels[:0])
    for protocol in ("official", "batch", "dataset"):
        assert metrics.compute(protocol) == plain.compute(protocol)


def test_unknown_protocol_raises():
    with pytest.raises(ValueError, match="protocol to be one of .*, got 'per-image'"):
        BinaryMetrics("per-image")
    with pytest.raises(ValueError, match="protocol to be one of .*, got 'mean'"):
        BinaryMetrics().compute("mean")


def test_class_as_ignore_index_raises():
    with pytest.raises(ValueError, match="num_labels 300 and ignore_index 255"):
        SemanticMetrics(300)


def test_exact_sum_does_not_depend_on_the_order():
    rows = torch.tensor([[1e16], [1.0], [-1e16], [1.0]], dtype=torch.float64)
    assert exact_sum(rows).item() == exact_sum(rows.flip(0)).item() == 2.0


def count_in_process(rank: int, world_size: int, folder: str) -> None:
    """Count every `world_size`-th clip, gather, and save the scores to a file: one process of the test below."""
    torch.set_num_threads(1)  # a forked process must not wait for threads of its parent
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    logits, labels = make_clips(1)
    metrics = BinaryMetrics()
    # As a distributed sampler does: the last batch is filled with clips from the start.
    clips = [(rank + step * world_size) % CLIPS for step in range(-(-CLIPS // world_size))]
    for clip in clips:
        metrics.update(logits[clip : clip + 1], labels[clip : clip + 1], clip_indices=[clip])
    torch.save(metrics.gather().compute(), f"{folder}/{rank}.pt")
    assert len(metrics) == len(clips)
    torch.distributed.destroy_process_group()


def test_gather_in_two_processes_matches_one(tmp_path: Path):
    torch.multiprocessing.start_processes(count_in_process, (2, str(tmp_path)), nprocs=2, start_method="fork")
    logits, labels = make_clips(1)
    complete = BinaryMetrics()
    complete.update(logits, labels)
    assert complete.gather().compute() == complete.compute()
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == complete.compute()


class BinaryCase(NamedTuple):
    """Inputs by seed, and the results of the official functions (recorded on CPU with torch 2.13)."""

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
    """Inputs by seed, and the results of the official functions: over all classes, without the last, without the first."""

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
            curves.append(naive_curve(frame, target))
        ious.append(math.fsum(frame_ious) / len(frame_ious))
        maxima.append(max(map(math.fsum, zip(*curves, strict=True))) / len(curves) if curves else 0.0)
    return math.fsum(ious) / len(ious), math.fsum(maxima) / len(maxima)


@pytest.mark.parametrize("name", BINARY)
def test_binary_metrics_match_avsbench(name: str):
    case = BINARY[name]
    metrics = BinaryMetrics()
    metrics.update(*case.build())
    scores = metrics.compute()
    assert scores["miou"] == pytest.approx(case.miou, abs=1e-6)
    assert scores["f_score"] == pytest.approx(case.f_per_clip, abs=1e-6)
    assert metrics.compute("batch")["f_score"] == pytest.approx(case.f_one_batch, abs=1e-6)
    assert metrics.compute("batch")["miou"] == pytest.approx(case.miou, abs=1e-6)


@pytest.mark.parametrize("name", B_CLIP_F)
def test_scores_of_single_clips_match_avsbench(name: str):
    metrics = BinaryMetrics()
    metrics.update(*BINARY[name].build())
    f_scores = [scores["f_score"] for scores in metrics.per_clip().values()]
    assert f_scores == pytest.approx(B_CLIP_F[name], abs=1e-6)


@pytest.mark.parametrize("name", BINARY)
def test_binary_metrics_match_naive_loops(name: str):
    logits, labels = BINARY[name].build()
    metrics = BinaryMetrics()
    metrics.update(logits, labels)
    scores = metrics.compute()
    assert (scores["miou"], scores["f_score"]) == pytest.approx(naive_binary(logits[:, :, 0], labels), abs=1e-6)


@pytest.mark.parametrize(
    ("logit", "label", "miou", "f_score"),
    [(10.0, 1, 1.0, 1.0), (-10.0, 0, 1.0, 0.0), (-10.0, 1, 0.0, 1.0), (10.0, 0, 0.0, 0.0), (0.0, 1, 0.0, 1.0)],
    ids=["all correct", "correctly empty", "nothing found", "all wrong", "one half"],
)
def test_binary_extremes(logit: float, label: int, miou: float, f_score: float):
    metrics = BinaryMetrics()
    metrics.update(torch.full((1, 1, 1, 4, 4), logit), torch.full((1, 1, 4, 4), label))
    scores = metrics.compute()
    assert (scores["miou"], scores["f_score"]) == pytest.approx((miou, f_score), abs=1e-6)


def test_binary_metrics_of_a_hand_computed_clip():
    # Frame 0: one pixel in both, two predicted, two labeled: IoU 1/3. Frame 1: empty target, three of four pixels predicted as background: IoU 3/4, no F.
    # F of frame 0: threshold 0 takes all pixels (P 1/2, R 1), later ones the two predicted (P = R = 1/2): 1.3 * .5 / (.15 + 1) = 13/23.
    logits = torch.tensor([[[20.0, 20.0], [-20.0, -20.0]], [[20.0, -20.0], [-20.0, -20.0]]]).view(1, 2, 1, 2, 2)
    labels = torch.tensor([[[1, 0], [0, 1]], [[0, 0], [0, 0]]]).view(1, 2, 2, 2)
    metrics = BinaryMetrics()
    metrics.update(logits, labels)
    assert metrics.compute()["miou"] == pytest.approx((1 / 3 + 3 / 4) / 2, abs=1e-7)
    assert metrics.compute()["f_score"] == pytest.approx(13 / 23, abs=1e-9)
    # Summed over both frames: one pixel in both, three predicted, two labeled: IoU 1/4; F at best 1.3 / (3 + .6).
    assert metrics.compute("dataset")["miou"] == pytest.approx(1 / 4, abs=1e-7)
    assert metrics.compute("dataset")["f_score"] == pytest.approx(1.3 / 3.6, abs=1e-9)


@pytest.mark.parametrize("name", SEMANTIC)
def test_semantic_metrics_match_avsbench(name: str):
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
def test_semantic_metrics_match_naive_loops(name: str):
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


def test_semantic_metrics_of_a_hand_computed_frame():
    # Prediction 0 1 / 1 1 against 0 0 / 1 1: class 0: 1 in both, 1 predicted, 2 labeled; class 1: 2 in both, 3 predicted, 2 labeled; class 2 never.
    metrics = SemanticMetrics(3)
    metrics.update_predictions(torch.tensor([[[[0, 1], [1, 1]]]]), torch.tensor([[[[0, 0], [1, 1]]]]))
    scores = metrics.compute()
    assert scores["miou"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert scores["miou_seen_classes"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores["f_score"] == pytest.approx((1.3 / (1 + 0.3 * 2) + 2.6 / (3 + 0.3 * 2) + 0) / 3)
    assert scores["classes_seen"] == 2.0


def test_published_slice_is_optional():
    metrics = SemanticMetrics(5)
    metrics.update(*SEMANTIC["S0"].build())
    assert not any("published" in name for name in metrics.compute())


def test_semantic_batch_protocol_depends_on_the_batches():
    logits, labels = SEMANTIC["S4"].build()
    complete, parts = SemanticMetrics(7), SemanticMetrics(7)
    complete.update(logits, labels)
    for clip in range(len(logits)):
        parts.update(logits[clip : clip + 1], labels[clip : clip + 1])
    assert complete.compute("batch") == pytest.approx(complete.compute("official"), abs=1e-12)
    assert parts.compute("official") == complete.compute("official")
    assert parts.compute("batch")["miou"] == pytest.approx(
        math.fsum(scores["miou"] for scores in parts.per_clip().values()) / 4
    )


def test_semantic_batch_protocol_averages_a_class_over_the_batches_that_contain_it():
    # Class 1: IoU 1 in the first call, not seen in the second, so its mean is 1 and not 1/2.
    metrics = SemanticMetrics(2, "batch")
    metrics.update_predictions(torch.tensor([[[[0, 1]]]]), torch.tensor([[[[0, 1]]]]))
    metrics.update_predictions(torch.tensor([[[[0, 0]]]]), torch.tensor([[[[0, 0]]]]))
    assert metrics.per_class()["iou"].tolist() == pytest.approx([1.0, 1.0])


def test_too_few_classes_raise():
    with pytest.raises(ValueError, match="num_labels >= 2, got 1"):
        SemanticMetrics(1)


def test_false_positive_rate_of_hand_computed_clips():
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


def test_every_class_except_background_is_a_false_positive():
    metrics = FalsePositiveMetrics(3)
    metrics.update_predictions(torch.tensor([[[[0, 1], [2, 0]]]]), torch.zeros(1, 1, 2, 2, dtype=torch.long))
    assert metrics.compute()["false_positive_rate"] == 0.5


LABELS = torch.tensor([[1, 0], [0, 0]]).view(1, 1, 2, 2)


def logits_of(mask: list[list[int]]) -> Tensor:
    return (torch.tensor(mask).view(1, 1, 1, 2, 2) * 2.0 - 1.0) * 9.0


def fill(metrics: RobustnessMetrics) -> None:
    metrics["positive"].update(logits_of([[1, 1], [0, 0]]), LABELS)  # IoU 1/2, F = 1.3 / 2.3
    metrics["silence"].update(logits_of([[1, 0], [0, 0]]), LABELS)  # rate 1/4
    metrics["off_screen"].update(logits_of([[1, 1], [1, 0]]), LABELS)  # rate 3/4


def test_hand_computed_combined_scores():
    metrics = RobustnessMetrics()
    fill(metrics)
    scores = metrics.compute()
    expected = {
        "miou": 1 / 2,
        "f_score": 13 / 23,
        "false_positive_rate": 1 / 2,
        "false_positive_rate_silence": 1 / 4,
        "false_positive_rate_off_screen": 3 / 4,
        "g_miou": 1 / 2,
        "g_f_score": 2 * 13 / 23 * 0.5 / (13 / 23 + 0.5),
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert "false_positive_rate_noise" not in scores
    assert len(metrics) == 3


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("protocol", ["official", "batch", "dataset"])
def test_model_that_ignores_audio_has_combined_score_zero(num_labels: int, protocol: str):
    metrics = RobustnessMetrics(num_labels, protocol)
    logits = torch.full((2, 3, num_labels, 4, 4), 9.0)
    if num_labels > 1:
        logits[:, :, 0] = -9.0
    labels = torch.ones(2, 3, 4, 4, dtype=torch.long)
    metrics["positive"].update(logits, labels)
    metrics["noise"].update(logits, labels)
    scores = metrics.compute()
    assert scores["false_positive_rate"] == 1.0
    assert scores["g_miou"] == scores["g_f_score"] == 0.0


def test_ignored_pixels_are_ignored_with_negative_audio():
    metrics = RobustnessMetrics()
    fill(metrics)
    metrics["noise"].update(logits_of([[1, 0], [0, 0]]), torch.tensor([[255, 1], [1, 0]]).view(1, 1, 2, 2))
    assert metrics.compute()["false_positive_rate_noise"] == 0.0


def test_merging_loading_and_gathering_keep_the_scores():
    complete, first, second = RobustnessMetrics(), RobustnessMetrics(), RobustnessMetrics()
    fill(complete)
    fill(complete)
    fill(first)
    fill(second)
    first.merge(second)
    loaded = RobustnessMetrics()
    loaded.load_state_dict(first.state_dict())
    gathered = loaded.gather()
    loaded.reset()
    assert len(loaded) == 0
    assert first.compute() == gathered.compute() == complete.compute()


def test_missing_negative_audio_raises():
    metrics = RobustnessMetrics()
    metrics["positive"].update(logits_of([[1, 1], [0, 0]]), LABELS)
    with pytest.raises(ValueError, match=r"No negative audio was counted.*'silence', 'noise', 'off_screen'"):
        metrics.compute()


def test_unknown_audio_raises():
    with pytest.raises(ValueError, match="audio to be one of .*, got 'music'"):
        RobustnessMetrics()["music"]
