"""Two audio-visual fusions of our own; ablation.py measures their quality, this program their cost.

    python benchmarks/fusions.py

Each takes the place of AVGA, in a network without QSCA: the sounding maps of the library (modeling_pcmanet_decoder.py), and a
modulation of every channel, which is registered here as a custom block. The frames of a clip do not interact, so a frame has the
same mask in a clip of any length.

The table has the parameters of all four stages and the multiply-accumulates per frame (torch.utils.flop_counter) of the preset
`small`.
"""

import shlex
import sys
from typing import Any

import torch
from model_cost import Network, build, count_gmacs, print_table
from torch import nn
from torch.nn import functional

from modeling_pcmanet import PCMANetConfig, register_block
from modeling_pcmanet.modeling_pcmanet_decoder import ConvolutionBlock


# Fields of the configuration that select the blocks.
MODULATION: dict[str, Any] = {"group_attention": "modulation", "cross_attention": None}
SOUNDING_MAPS: dict[str, Any] = {"group_attention": "sounding_maps", "cross_attention": None}
AUDIO_SOFTMAX = SOUNDING_MAPS | {"audio_softmax": True}
AUDIO_CLASSIFIER = AUDIO_SOFTMAX | {"audio_classifier": True}

FRAMES, SIZE = 5, 224  # of the clip whose cost is counted


@register_block("group_attention", "modulation")
class Modulation(nn.Module):
    """Scale and shift every channel by the audio, as FiLM does (arXiv 1709.07871), and add the feature map."""

    def __init__(self, config: PCMANetConfig, _index: int) -> None:
        super().__init__()
        channels = config.hidden_size
        self.audio_projection = nn.Linear(channels, 2 * channels)
        # The features are nonnegative; around their mean, the audio can select what is above or below it.
        self.batch_norm = nn.BatchNorm2d(channels)
        self.output_projection = ConvolutionBlock(channels, channels, kernel_size=1)

    def forward(self, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Modulate a feature map (frames, channels, height, width) by the audio (frames, channels)."""
        scale, offset = self.audio_projection(audio)[..., None, None].chunk(2, dim=1)
        modulated = functional.relu((1 + scale) * self.batch_norm(visual) + offset)
        return visual + self.output_projection(modulated)


def count_cost(fields: dict[str, Any]) -> tuple[int, float]:
    """Count the parameters, and the MMACs per frame, of the blocks that fuse audio and feature maps.

    Args:
        fields: Fields of the configuration that differ from those of the preset `small`.
    """
    with torch.device("meta"):
        model = build(Network("small", "small", fields))
    blocks = [
        block for stage in model.model.stages for block in (stage.group_attention, stage.cross_attention) if block
    ]
    parameters = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    gmacs = count_gmacs(model, FRAMES, SIZE)
    return parameters, 1000 * (gmacs["AVGA"] + gmacs["QSCA"])


def main() -> None:
    """Print the cost of the blocks as a Markdown table."""
    networks = {
        "AVGA and QSCA": {},
        "AVGA": {"cross_attention": None},
        "modulation": MODULATION,
        "sounding maps": SOUNDING_MAPS,
    }
    costs = {name: count_cost(fields) for name, fields in networks.items()}
    print_table(
        f"Printed by: python {shlex.join(sys.argv)}",
        ["blocks", "parameters", f"MMACs per frame, {SIZE}x{SIZE}"],
        [[name, f"{parameters:,}", f"{mmacs:.1f}"] for name, (parameters, mmacs) in costs.items()],
    )


if __name__ == "__main__":
    main()
