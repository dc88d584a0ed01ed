"""Parity with the published network.

`fixtures/parity_recorded.json` contains the outputs of the published code in evaluation mode and float32 for the weights and
inputs that `published_weights` draws.
"""

import json

import pytest
import torch
from published_weights import FIXTURES, published_shapes, seeded_inputs, seeded_state_dict
from tiny_model import tiny_config

from modeling_pcmanet.configuration_pcmanet import NUM_STAGES
from modeling_pcmanet.convert_pcmanet_to_hf import convert_state_dict
from modeling_pcmanet.modeling_pcmanet_decoder import ClipLayout, QuerySelectedCrossAttention


TOLERANCE = 1e-4
RECORDED_CASES = [
    pytest.param(
        recorded,
        id=f"{recorded['setting']}-{recorded['backbone']}",
        # One of the smallest networks shows the parity in seconds; the others are of the same modules.
        marks=[] if (recorded["setting"], recorded["backbone"]) == ("S4", "resnet") else [pytest.mark.slow],
    )
    for recorded in json.loads((FIXTURES / "parity_recorded.json").read_text())
]


def summary(logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the recorded statistics of the logits (frames, num_labels, height, width) of one stage, in float64."""
    logits = logits.double()
    return {
        "mean": logits.mean(),
        "std": logits.std(),
        "frame0_ch0_rows_112_cols_0_224_32": logits[0, 0, 112, ::32],
        "last_frame_last_ch_diag_every_32": logits[-1, -1].diagonal()[::32],
        "frame_means": logits.mean((1, 2, 3)),
    }


@pytest.mark.parametrize("recorded", RECORDED_CASES)
def test_outputs_equal_published_outputs(recorded):
    setting, salt = recorded["setting"], recorded["salt"]
    shapes = published_shapes(setting, recorded["backbone"])
    assert len(shapes) == recorded["num_keys"]
    model = convert_state_dict(seeded_state_dict(shapes, salt), without_audio_encoder=True).model
    with torch.no_grad():
        outputs = model(**seeded_inputs(setting, recorded["clips"], salt))

    for stage, logits in zip((4, 3, 2, 1), outputs.stage_logits, strict=True):
        expected = recorded[f"logits_stage{stage}"]
        logits = logits.flatten(0, 1)
        assert list(logits.shape) == expected["shape"]
        for name, values in summary(logits).items():
            deviation = (values - torch.tensor(expected[name], dtype=torch.float64)).abs().max()
            assert deviation < TOLERANCE, f"stage {stage} {name}"
    if "kept_ratio_stage4_3_2" in recorded:
        # Recorded to six digits; a single flipped token would change a ratio by 1e-4 or more.
        kept_ratios = torch.tensor(recorded["kept_ratio_stage4_3_2"])
        torch.testing.assert_close(outputs.kept_ratios, kept_ratios, rtol=0, atol=1e-6)


@pytest.mark.parametrize("token_layout", ["spatial", "scrambled"])
def test_token_layout_determines_the_position_of_tokens(token_layout):
    config = tiny_config(token_layout=token_layout)
    attention = QuerySelectedCrossAttention(config, NUM_STAGES - 1)
    width = config.hidden_size
    visual = torch.randn(2, width, 4, 4)
    with torch.no_grad():
        # The tokens are not changed, so the guidance is the feature map itself in the order of the layout.
        attention.visual_embedding.weight.copy_(torch.eye(width))
        for parameter in (attention.visual_embedding.bias, *attention.output_projection.parameters()):
            parameter.zero_()
        guidance, _ = attention(visual, torch.randn(2, width), None, ClipLayout(batch=1, frames=2, real=None))
    scrambled = visual.flatten(2).transpose(1, 2).reshape(2, width, 4, 4)
    torch.testing.assert_close(guidance, visual if token_layout == "spatial" else scrambled)
    assert not torch.equal(visual, scrambled)
