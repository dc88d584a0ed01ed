"""Two audio-visual fusions of our own, as custom blocks; ablation.py measures their quality, this program their cost.

    python benchmarks/fusions.py

Each takes the place of AVGA, in a network without QSCA. To choose between two visible objects by the audio, a block has to
multiply the features of a pixel by the audio, and the product has to be small at both objects if the audio belongs to neither.
AVGA has one such product for each of its groups: two in the preset `small`. Ours have more of them, each with weights of its own.
The frames of a clip do not interact, so a frame has the same mask in a clip of any length.

Importing this file registers the blocks: `PCMANetConfig.from_preset("small", **fusions.SOUNDING_MAPS)`. The table has the
parameters of all four stages and the multiply-accumulates per frame (torch.utils.flop_counter) of the preset `small`.
"""

import shlex
import sys
from typing import Any

import torch
from model_cost import Network, build, count_gmacs, print_table
from torch import nn
from torch.nn import functional

from modeling_pcmanet import PCMANetConfig, register_block
from modeling_pcmanet.modeling_pcmanet_decoder import ConvolutionBlock, unit_length_eps


# Fields of the configuration that select the blocks.
MODULATION: dict[str, Any] = {"group_attention": "modulation", "cross_attention": None}
SOUNDING_MAPS: dict[str, Any] = {"group_attention": "sounding_maps", "cross_attention": None}

NUM_MAPS = 16
FRAMES, SIZE = 5, 224  # of the clip whose cost is counted


@register_block("group_attention", "modulation")
class Modulation(nn.Module):
    """Scale and shift every channel by the audio, as FiLM does (arXiv 1709.07871), and add the feature map."""

    def __init__(self, config: PCMANetConfig, _index: int) -> None:
        super().__init__()
        channels = config.hidden_size
        self.audio_projection = nn.Linear(channels, 2 * channels)
        # The features are nonnegative; around their mean, the audio can select what is above it or below.
        self.batch_norm = nn.BatchNorm2d(channels)
        self.output_projection = ConvolutionBlock(channels, channels, kernel_size=1)

    def forward(self, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Modulate a feature map (frames, channels, height, width) by the audio (frames, channels)."""
        scale, offset = self.audio_projection(audio)[..., None, None].chunk(2, dim=1)
        modulated = functional.relu((1 + scale) * self.batch_norm(visual) + offset)
        return visual + self.output_projection(modulated)


@register_block("group_attention", "sounding_maps")
class SoundingMaps(nn.Module):
    """Compare every pixel with several queries made from the audio, and add what follows from these maps and the pixel."""

    def __init__(self, config: PCMANetConfig, _index: int) -> None:
        super().__init__()
        channels = config.hidden_size
        self.queries = nn.Linear(channels, NUM_MAPS * channels)
        # Cosine similarities differ little at first. The norm makes the differences as large as those of the features.
        self.batch_norm = nn.BatchNorm2d(NUM_MAPS)
        self.output_projection = ConvolutionBlock(channels + NUM_MAPS, channels, kernel_size=1)

    def forward(self, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Add to a feature map (frames, channels, height, width) what the audio (frames, channels) selects."""
        maps = self.batch_norm(self.compare(visual, audio))
        return visual + self.output_projection(torch.cat([visual, maps], dim=1))

    def compare(self, visual: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Return the cosine similarities of pixels and queries, (frames, maps, height, width) in [-1, 1]."""
        eps = unit_length_eps(visual.dtype)
        queries = functional.normalize(self.queries(audio).unflatten(1, (NUM_MAPS, -1)), dim=-1, eps=eps)
        pixels = functional.normalize(visual, dim=1, eps=eps).flatten(2)
        return (queries @ pixels).unflatten(2, visual.shape[-2:])


def count_cost(fields: dict[str, Any]) -> tuple[int, float]:
    """Count parameters, and million multiply-accumulates per frame, of the blocks in which audio meets the feature maps.

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
