"""The baseline of benchmarks/inference.py: its outputs equal those of a model with the published behavior."""

import plain_pcmanet
import pytest
import torch
from tiny_model import tiny_batch, tiny_model


@pytest.mark.parametrize(("num_labels", "sharpness"), [(1, 2.0), (5, 8.0)])
@pytest.mark.parametrize("masked", [False, True])
def test_outputs_equal_those_of_the_model(num_labels, sharpness, masked):
    # Token grids as in the paper at 224 x 224: the maps' own sizes and half of them.
    published = {"token_layout": "scrambled", "padded_frames": "zeroed", "token_grid_sizes": [2, 2, 4, 8]}
    model = tiny_model(sharpness=sharpness, num_labels=num_labels, **published).double()
    batch = {name: x.double() for name, x in tiny_batch(clips=3, size=(64, 64)).items()}
    if masked:
        batch["frame_mask"] = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)
    with torch.no_grad():
        expected, given = model(**batch), plain_pcmanet.PlainPCMANet(model)(**batch)
    assert ((expected.kept_ratios > 0) & (expected.kept_ratios < 1)).all(), expected.kept_ratios
    for logits, plain_logits in zip(expected.stage_logits, given, strict=True):
        torch.testing.assert_close(plain_logits, logits, atol=1e-12, rtol=1e-12)
