"""Which frames and pixels count, and that neither batches nor processes change a number."""

import doctest
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pcmanet.dataset_scripts import clip_metrics
from pcmanet.dataset_scripts.clip_metrics import ClipMetrics, exact_sum
from pcmanet.dataset_scripts.metrics import BinaryMetrics, FalsePositiveMetrics, SemanticMetrics


CLIPS = 7


def make_clips(num_labels: int, frames: int = 5, size: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_labels)
    logits = torch.randn(CLIPS, frames, num_labels, size, size, generator=generator) * 3
    labels = torch.randint(0, max(num_labels, 2), (CLIPS, frames, size, size), generator=generator)
    labels[2, 1] = 0
    return logits, labels


def make_metrics(num_labels: int) -> ClipMetrics:
    return BinaryMetrics() if num_labels == 1 else SemanticMetrics(num_labels)


def test_docstrings_hold_no_stale_examples():
    assert doctest.testmod(clip_metrics).failed == 0


@pytest.mark.parametrize("num_labels", [1, 4])
@pytest.mark.parametrize("protocol", ["official", "dataset"])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batch_size_changes_no_digit(num_labels: int, protocol: str, batch_size: int):
    logits, labels = make_clips(num_labels)
    whole, parts = make_metrics(num_labels), make_metrics(num_labels)
    whole.update(logits, labels)
    for start in range(0, CLIPS, batch_size):
        parts.update(logits[start : start + batch_size], labels[start : start + batch_size])
    assert parts.compute(protocol) == whole.compute(protocol)


@pytest.mark.parametrize("num_labels", [1, 4])
@pytest.mark.parametrize("protocol", ["official", "dataset"])
def test_merged_processes_change_no_digit(num_labels: int, protocol: str):
    logits, labels = make_clips(num_labels)
    whole = make_metrics(num_labels)
    whole.update(logits, labels)
    merged = make_metrics(num_labels)
    for process in (2, 0, 1):
        clips = list(range(process, CLIPS, 3))
        part = make_metrics(num_labels)
        part.update(logits[clips], labels[clips], clip_indices=clips)
        merged.merge(part)
    assert len(merged) == CLIPS
    assert merged.compute(protocol) == whole.compute(protocol)


def test_batch_protocol_survives_merging():
    logits, labels = make_clips(1)
    whole = BinaryMetrics("batch")
    merged, part = BinaryMetrics("batch"), BinaryMetrics("batch")
    for metrics, clips in ((merged, [0, 1, 2]), (merged, [3]), (part, [4, 5]), (part, [6])):
        metrics.update(logits[clips], labels[clips], clip_indices=clips)
        whole.update(logits[clips], labels[clips])
    merged.merge(part)
    assert merged.compute() == whole.compute()
    assert merged.compute()["groups"] == 4.0
    assert merged.compute()["f_score"] != merged.compute("official")["f_score"]


def test_clips_without_an_index_are_appended_by_merge():
    logits, labels = make_clips(1)
    whole, first, second = BinaryMetrics(), BinaryMetrics(), BinaryMetrics()
    whole.update(logits, labels)
    first.update(logits[:3], labels[:3])
    second.update(logits[3:], labels[3:])
    first.merge(second)
    first.merge(BinaryMetrics())
    assert first.compute() == whole.compute()


def test_repeated_clip_counts_once():
    logits, labels = make_clips(1)
    once, twice = BinaryMetrics(), BinaryMetrics()
    once.update(logits, labels)
    twice.update(logits, labels, clip_indices=range(CLIPS))
    twice.update(logits[:2], labels[:2], clip_indices=torch.tensor([0, 1]))
    assert twice.compute() == once.compute()


def test_index_that_comes_again_with_other_labels_is_an_error():
    logits, labels = make_clips(1)
    metrics = BinaryMetrics()
    metrics.update(logits[:1], labels[:1], clip_indices=[0])
    with pytest.raises(ValueError, match="clip index 0 came again with other labels"):
        metrics.update(logits[1:2], labels[1:2], clip_indices=[0])


def test_clips_with_and_without_an_index_do_not_mix():
    logits, labels = make_clips(1)
    metrics = BinaryMetrics()
    metrics.update(logits[:1], labels[:1])
    with pytest.raises(ValueError, match="with and without clip_indices"):
        metrics.update(logits[1:2], labels[1:2], clip_indices=[1])


def test_number_of_indices_is_checked():
    logits, labels = make_clips(1)
    with pytest.raises(ValueError, match="2 clip indices came with 7 clips"):
        BinaryMetrics().update(logits, labels, clip_indices=[0, 1])


def test_state_goes_through_a_file(tmp_path: Path):
    logits, labels = make_clips(4)
    before, after = SemanticMetrics(4), SemanticMetrics(4)
    before.update(logits[:3], labels[:3], clip_indices=[0, 1, 2])
    torch.save(before.state_dict(), tmp_path / "state.pt")
    after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for metrics in (before, after):
        metrics.update(logits[3:], labels[3:], clip_indices=range(3, CLIPS))
    assert after.compute() == before.compute()
    assert after.compute("batch") == before.compute("batch")


def test_state_of_another_kind_is_refused():
    logits, labels = make_clips(4)
    other = SemanticMetrics(4)
    other.update(logits, labels)
    with pytest.raises(ValueError, match="rows to merge are 25 wide, expected 31"):
        SemanticMetrics(5).load_state_dict(other.state_dict())


def test_empty_state_is_plain_tensors():
    state = BinaryMetrics().state_dict()
    assert {name: (value.dtype, tuple(value.shape)) for name, value in state.items()} == {
        "clip_indices": (torch.int64, (0,)),
        "batch_indices": (torch.int64, (0,)),
        "rows": (torch.float64, (0, 772)),
        "numbered": (torch.bool, ()),
    }


def test_reset_forgets_everything():
    logits, labels = make_clips(1)
    metrics, fresh = BinaryMetrics(), BinaryMetrics()
    metrics.update(logits[:3], labels[:3])
    metrics.reset()
    assert len(metrics) == 0
    metrics.update(logits[3:], labels[3:])
    fresh.update(logits[3:], labels[3:])
    assert metrics.compute() == fresh.compute()


@pytest.mark.parametrize("num_labels", [1, 4])
def test_padded_frames_change_no_digit(num_labels: int):
    logits, labels = make_clips(num_labels)
    plain, padded = make_metrics(num_labels), make_metrics(num_labels)
    plain.update(logits, labels)
    frame_mask = torch.arange(9).expand(CLIPS, -1) < 5
    noise = torch.randn(CLIPS, 4, *logits.shape[2:], generator=torch.Generator().manual_seed(9))
    padded.update(torch.cat([logits, noise], dim=1), torch.nn.functional.pad(labels, (0, 0, 0, 0, 0, 4)), frame_mask)
    for protocol in ("official", "batch", "dataset"):
        assert padded.compute(protocol) == plain.compute(protocol)


@pytest.mark.parametrize("padding_label", [0, 1, 255])
def test_padded_frames_are_scored_as_background_on_request(padding_label: int):
    logits, labels = make_clips(4)
    frame_mask = torch.arange(5).expand(CLIPS, -1) < 3
    expected, metrics = SemanticMetrics(4), SemanticMetrics(4, score_padding=True)
    expected.update(logits, torch.where(frame_mask[..., None, None], labels, 0))
    labels = torch.where(frame_mask[..., None, None], labels, padding_label)
    # A padded frame is never annotated; it is scored all the same.
    metrics.update(logits, labels, frame_mask, label_mask=frame_mask)
    assert metrics.compute() == expected.compute()
    assert metrics.compute()["frames"] == 5.0 * CLIPS


def test_unannotated_frames_are_left_out():
    logits, labels = make_clips(1)
    first, masked = BinaryMetrics(), BinaryMetrics()
    first.update(logits[:, :1], labels[:, :1])
    masked.update(logits, labels, label_mask=torch.arange(5).expand(CLIPS, -1) == 0)
    assert masked.compute() == first.compute()
    assert masked.compute("dataset") == first.compute("dataset")


def test_clip_without_annotation_is_left_out():
    logits, labels = make_clips(1)
    some, all_clips = BinaryMetrics(), BinaryMetrics()
    some.update(logits[1:], labels[1:])
    label_mask = torch.ones(CLIPS, 5, dtype=torch.bool)
    label_mask[0] = False
    all_clips.update(logits, labels, label_mask=label_mask)
    for protocol in ("official", "batch", "dataset"):
        assert all_clips.compute(protocol) == some.compute(protocol)
    assert list(all_clips.per_clip()) == list(range(1, CLIPS))


@pytest.mark.parametrize("num_labels", [1, 4])
def test_ignored_pixels_equal_cropping(num_labels: int):
    logits, labels = make_clips(num_labels)
    cropped, ignoring = make_metrics(num_labels), make_metrics(num_labels)
    cropped.update(logits[..., :8], labels[..., :8])
    labels[..., 8:] = 255
    ignoring.update(logits, labels)
    for protocol in ("official", "batch", "dataset"):
        assert ignoring.compute(protocol) == cropped.compute(protocol)


def test_frame_of_ignored_pixels_is_no_frame():
    logits, labels = make_clips(1)
    shorter, ignoring = BinaryMetrics(), BinaryMetrics()
    shorter.update(logits[:, 1:], labels[:, 1:])
    labels[:, 0] = 255
    ignoring.update(logits, labels)
    assert ignoring.compute() == shorter.compute()


def test_reduced_predictions_count_alike():
    logits, labels = make_clips(1)
    direct, reduced = BinaryMetrics(), BinaryMetrics()
    direct.update(logits, labels)
    codes = reduced.reduce(logits)
    assert codes.dtype == torch.uint8
    reduced.update_predictions(codes, labels)
    assert reduced.compute() == direct.compute()


def test_half_precision_logits_score_like_the_same_values_in_float32():
    logits, labels = make_clips(1)
    half, full = BinaryMetrics(), BinaryMetrics()
    half.update(logits.bfloat16(), labels)
    full.update(logits.bfloat16().float(), labels)
    assert half.compute() == full.compute()


@pytest.mark.parametrize("metrics", [BinaryMetrics(), SemanticMetrics(3), FalsePositiveMetrics(1)], ids=type)
def test_nothing_counted_is_an_error(metrics: ClipMetrics):
    with pytest.raises(ValueError, match="no frame was scored yet"):
        metrics.compute()


@pytest.mark.parametrize(("num_labels", "wrong"), [(1, 2), (4, 4), (4, -1)])
def test_labels_out_of_range_are_named(num_labels: int, wrong: int):
    logits, labels = make_clips(num_labels)
    labels[0, 0, 0, 0] = wrong
    with pytest.raises(ValueError, match=f"labels hold {wrong}, expected 0 to {max(num_labels, 2) - 1}, or 255"):
        make_metrics(num_labels).update(logits, labels)


def test_float_labels_are_refused():
    logits, labels = make_clips(1)
    with pytest.raises(ValueError, match="labels are torch.float32, expected whole numbers"):
        BinaryMetrics().update(logits, labels.float())


def test_shapes_that_do_not_fit_are_named():
    logits, labels = make_clips(1)
    with pytest.raises(ValueError, match=r"predictions are \(7, 5, 12, 12\) and labels \(7, 5, 12, 8\)"):
        BinaryMetrics().update(logits, labels[..., :8])
    with pytest.raises(
        ValueError, match=r"labels \(7, 0, 12, 12\), expected both as \(batch, frames, height, width\)"
    ):
        BinaryMetrics().update(logits[:, :0], labels[:, :0])
    with pytest.raises(ValueError, match=r"a mask is \(5,\), expected \(batch, frames\) = \(7, 5\)"):
        BinaryMetrics().update(logits, labels, frame_mask=torch.ones(5, dtype=torch.bool))


@pytest.mark.parametrize("num_labels", [1, 4])
def test_a_batch_without_clips_counts_nothing(num_labels: int):
    logits, labels = make_clips(num_labels)
    metrics, plain = make_metrics(num_labels), make_metrics(num_labels)
    metrics.update(logits[:0], labels[:0])
    assert len(metrics) == 0
    for accumulator in (metrics, plain):
        accumulator.update(logits, labels)
    metrics.update(logits[:0], labels[:0])
    for protocol in ("official", "batch", "dataset"):
        assert metrics.compute(protocol) == plain.compute(protocol)


def test_unknown_protocol_is_named():
    with pytest.raises(ValueError, match="protocol is 'per-image', expected one of"):
        BinaryMetrics("per-image")
    with pytest.raises(ValueError, match="protocol is 'mean', expected one of"):
        BinaryMetrics().compute("mean")


def test_class_as_ignore_index_is_refused():
    with pytest.raises(ValueError, match="num_labels is 300 and ignore_index 255"):
        SemanticMetrics(300)


def test_sums_do_not_depend_on_the_order():
    rows = torch.tensor([[1e16], [1.0], [-1e16], [1.0]], dtype=torch.float64)
    assert exact_sum(rows).item() == exact_sum(rows.flip(0)).item() == 2.0


def count_in_process(rank: int, world_size: int, folder: str) -> None:
    """Count every `world_size`-th clip, gather, and leave the scores in a file: one process of the test below."""
    torch.set_num_threads(1)  # a forked process must not wait for its parent's threads
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    logits, labels = make_clips(1)
    metrics = BinaryMetrics()
    # As a sampler does: the last batch is filled up with clips from the start.
    clips = [(rank + step * world_size) % CLIPS for step in range(-(-CLIPS // world_size))]
    for clip in clips:
        metrics.update(logits[clip : clip + 1], labels[clip : clip + 1], clip_indices=[clip])
    torch.save(metrics.gather().compute(), f"{folder}/{rank}.pt")
    assert len(metrics) == len(clips)
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_numbers_of_one(tmp_path: Path):
    torch.multiprocessing.start_processes(count_in_process, (2, str(tmp_path)), nprocs=2, start_method="fork")
    logits, labels = make_clips(1)
    whole = BinaryMetrics()
    whole.update(logits, labels)
    assert whole.gather().compute() == whole.compute()
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == whole.compute()
