"""Replace the fusion block of the demo model with a custom one, train it for a minute, save, load and segment a video.

    python -m pcmanet.examples.custom_block --output runs/custom_block

docs/guides/custom_blocks.md explains the interface of the blocks. OUTPUT is the folder of a run, as `pcmanet train` writes it.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import pipeline

from pcmanet import PCMANetConfig, SoundingShapes, register_block
from pcmanet.options import positive_integer
from pcmanet.training.recipe import Recipe
from pcmanet.training.run import start_run, train


EXAMPLES = Path(__file__).parent


@register_block("fusion", "gated")
class GatedFusion(nn.Module):
    """Add the guidance, weighted by a gate that is computed from both feature maps, and the coarser feature map."""

    def __init__(self, config: PCMANetConfig, _index: int):
        super().__init__()
        width = config.hidden_size
        self.gate = nn.Conv2d(2 * width, width, kernel_size=1)
        self.output = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, visual: torch.Tensor, guidance: torch.Tensor, coarser: torch.Tensor | None) -> torch.Tensor:
        """Fuse feature maps (frames, channels, height, width), the coarser one of any size."""
        gate = self.gate(torch.cat([visual, guidance], dim=1)).sigmoid()
        fused = visual + gate * guidance
        if coarser is not None:
            fused = fused + functional.interpolate(coarser, size=visual.shape[-2:], mode="bilinear")
        return self.output(fused)


def demo_iou(checkpoint: Path) -> float:
    """Segment the demo clip, whose masks are known, and return the intersection over union of all its frames."""
    segmenter = pipeline("audio-visual-segmentation", model=str(checkpoint))
    expected = SoundingShapes("ms3", "test", length=27, seed=2026, height=256, width=256)[26].binary > 0
    given = np.zeros_like(expected)
    for frame, result in enumerate(segmenter(str(EXAMPLES / "demo.mp4"))):
        for segment in result["segments"]:
            given[frame] |= np.asarray(segment["mask"]) > 0
    return float((given & expected).sum() / (given | expected).sum())


def main() -> None:
    """Train the block, then segment the demo clip with the saved model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--clips", type=positive_integer, default=480, help="training clips (default: 480, a minute on two cores)"
    )
    args = parser.parse_args()
    recipe = Recipe(
        initialize_from=str(EXAMPLES / "demo_model"),
        configuration={"fusion": "gated"},
        reinitialize_mismatched=True,
        image_size=112,
        clips=args.clips,
        evaluation_clips=16,
        evaluations=1,
        average_decay=0.95,
    )
    print(train(start_run(recipe, args.output)))
    print(f"IoU of the demo clip: {demo_iou(args.output / 'last'):.4f}")


if __name__ == "__main__":
    main()
