"""The losses against their formulas, by hand and by an independent formulation."""

import math

import pytest
import torch

from modeling_pcmanet.loss_pcmanet import binary_loss, deeply_supervised_loss, semantic_loss, soft_iou_loss


def test_soft_iou_of_a_2x2_frame_by_hand():
    # Probabilities 1/2 everywhere, one of four pixels is foreground: I = 1/2, S = 2 + 1 = 3.
    labels = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    loss = soft_iou_loss(torch.zeros(1, 2, 2), labels, torch.ones(1, 2, 2))
    assert loss.item() == pytest.approx(1 - (0.5 + 1) / (3 - 0.5 + 1))


def test_binary_loss_of_a_2x2_frame_by_hand():
    labels = torch.tensor([[[1, 0], [0, 0]]])
    loss = binary_loss(torch.zeros(1, 1, 2, 2), labels)
    assert loss.tolist() == pytest.approx([math.log(2) + 1 - 1.5 / 3.5])


def test_ignored_pixels_do_not_count():
    labels = torch.tensor([[[1, 255], [0, 255]]])
    logits = torch.randn(1, 1, 2, 2)
    other = logits.clone()
    other[..., 1] = 100.0
    torch.testing.assert_close(binary_loss(logits, labels), binary_loss(other, labels))
    # Two valid pixels, one of them foreground, at p = 1/2: I = 1/2, S = 2.
    assert binary_loss(torch.zeros(1, 1, 2, 2), labels).item() == pytest.approx(math.log(2) + 1 - 1.5 / 2.5)


def test_semantic_loss_is_the_mean_of_minus_log_probability():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    labels[1, :2] = 255
    probabilities = logits.softmax(1)
    expected = []
    for frame in range(2):
        values = [
            -probabilities[frame, labels[frame, row, column], row, column].log().item()
            for row in range(4)
            for column in range(4)
            if labels[frame, row, column] != 255
        ]
        expected.append(sum(values) / len(values))
    assert semantic_loss(logits, labels).tolist() == pytest.approx(expected, rel=1e-6)


def test_sum_over_stages_of_the_mean_over_annotated_frames():
    torch.manual_seed(0)
    stages = [torch.randn(2, 3, 1, 4, 4) for _ in range(4)]
    labels = torch.randint(0, 2, (2, 3, 4, 4))
    annotated = torch.tensor([[True, False, False], [True, True, False]])
    weights = [0.5, 1.0, 1.5, 2.0]
    frames = [(0, 0), (1, 0), (1, 1)]
    expected = sum(
        weight
        * sum(binary_loss(logits[clip, frame][None], labels[clip, frame][None]).item() for clip, frame in frames)
        / 3
        for weight, logits in zip(weights, stages, strict=True)
    )
    assert deeply_supervised_loss(stages, labels, annotated, weights).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("num_labels", [1, 5])
def test_nothing_annotated_gives_zero_loss_and_gradient(num_labels):
    stages = [torch.randn(1, 2, num_labels, 4, 4, requires_grad=True) for _ in range(4)]
    labels = torch.full((1, 2, 4, 4), 255)
    loss = deeply_supervised_loss(stages, labels, torch.zeros(1, 2, dtype=torch.bool), [1.0] * 4)
    loss.backward()
    assert loss.item() == 0.0
    assert all(not logits.grad.any() for logits in stages)


@pytest.mark.parametrize("num_labels", [1, 5])
def test_a_frame_of_ignored_pixels_stays_finite(num_labels):
    stages = [torch.randn(1, 1, num_labels, 4, 4, requires_grad=True) for _ in range(4)]
    labels = torch.full((1, 1, 4, 4), 255)
    loss = deeply_supervised_loss(stages, labels, torch.ones(1, 1, dtype=torch.bool), [1.0] * 4)
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(torch.isfinite(logits.grad).all() for logits in stages)


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.zeros(1, 1, 300, 300, dtype=torch.float16)
    labels = torch.zeros(1, 300, 300, dtype=torch.long)
    # 90,000 pixels of p = 1/2 sum to 45,000; in float16 the sums would be coarse or overflow at 65,504.
    assert binary_loss(logits, labels).item() == pytest.approx(math.log(2) + 1 - 1 / 45001, rel=1e-5)


@pytest.mark.parametrize(
    ("num_labels", "wrong", "message"),
    [
        (1, 254, r"holds 254, expected 0\.\.1 or ignore_index 255; a 0/255 mask is given as mask > 127"),
        (1, -1, r"holds -1, expected 0\.\.1"),
        (1, 0.5, r"holds 0\.5, expected 0\.\.1"),
        (5, 5, r"holds 5, expected 0\.\.4"),
    ],
)
def test_labels_without_a_class_are_refused_where_they_count(num_labels, wrong, message):
    stages = [torch.zeros(1, 2, num_labels, 4, 4)] * 4
    labels = torch.zeros(1, 2, 4, 4, dtype=torch.float if isinstance(wrong, float) else torch.long)
    labels[0, 1, 2, 3], labels[0, 0, 0, 0] = wrong, 255
    with pytest.raises(ValueError, match=message):
        deeply_supervised_loss(stages, labels, torch.tensor([[True, True]]), [1.0] * 4)
    assert deeply_supervised_loss(stages, labels, torch.tensor([[True, False]]), [1.0] * 4).isfinite()
