"""What the four decoder stages do in one frame: prediction, queried positions and uncertainty of each.

    outputs = model(**batch)
    for stage in draw_stage_maps(frame, outputs, class_colors(id2label), id2label, number=3):
        stage.uncertainty.save(f"stage_{stage.number}.png")

The stages go from coarse to fine. The first queries the audio at every position, each later one only where the
previous stage was uncertain (the paper's confidence-induced masking), so most positions are soon no longer queried.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.nn.functional import interpolate

from .colors import Color
from .overlay import draw_segments


# Brightness and saturation of positions that are not queried, relative to the frame.
MUTED_BRIGHTNESS = 0.25
MUTED_SATURATION = 0.15
UNCERTAINTY_COLOR: Color = (255, 214, 64)
UNCERTAINTY_EXPONENT = 0.5  # from uncertainty to opacity, so that small values are visible next to large ones


@dataclass(frozen=True, eq=False)
class StageMap:
    """The maps of one stage for one frame.

    Attributes:
        number: 1 (coarsest) to 4.
        queried: Fraction of the positions at which the stage queries the audio, in [0, 1].
        certainty: Mean probability of the predicted class over the frame, in [0, 1].
        prediction: The frame with the segments that the stage predicts, RGB.
        uncertainty: The frame, muted where the audio is not queried and highlighted by uncertainty, RGB.
    """

    number: int
    queried: float
    certainty: float
    prediction: Image.Image
    uncertainty: Image.Image


def draw_stage_maps(
    frame: Image.Image,
    outputs: Any,
    colors: Mapping[str, Color],
    id2label: Mapping[int, str],
    *,
    clip: int = 0,
    number: int = 0,
) -> list[StageMap]:
    """Draw the maps of every stage for one network frame.

    Args:
        frame: The frame at any size, which is also the size of the maps.
        outputs: The model's output, with `stage_logits` of shape (batch, frames, num_labels, height, width) and
            `confidence_masks` of shape (batch, frames, stage height, stage width), both coarse to fine.
        colors: The color of each label, from `class_colors`.
        id2label: The model's `config.id2label`.
        clip: Index of the clip in the batch.
        number: Index of the frame in the clip.

    Returns:
        One entry per stage, coarse to fine.
    """
    frame = frame.convert("RGB")
    # The first stage queries every position, each later one those where the mask of the previous stage is 1.
    everywhere = torch.ones(1, 1, dtype=torch.uint8, device="cpu")
    queried = [everywhere, *(mask[clip, number].cpu() for mask in outputs.confidence_masks)]
    stages = []
    for index, (positions, logits) in enumerate(zip(queried, outputs.stage_logits, strict=True)):
        class_ids, certainty = _predict(logits[clip, number].detach().float().cpu(), (frame.height, frame.width))
        stages.append(
            StageMap(
                number=index + 1,
                queried=positions.float().mean().item(),
                certainty=certainty.mean().item(),
                prediction=draw_segments(frame, _segments(class_ids, id2label), colors, labels=False),
                uncertainty=_draw_uncertainty(frame, positions.numpy(), certainty.numpy()),
            )
        )
    return stages


def _predict(logits: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the class index of each pixel (-1 = background) and its probability, both (height, width).

    Args:
        logits: (num_labels, network height, network width).
        size: (height, width) to resize the logits to.
    """
    resized = interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    if len(resized) == 1:
        probability = resized[0].sigmoid()
        sounding = probability > 0.5
        return torch.where(sounding, 0, -1), torch.where(sounding, probability, 1 - probability)
    probability, class_ids = resized.softmax(dim=0).max(dim=0)
    return torch.where(class_ids == 0, -1, class_ids), probability


def _segments(class_ids: torch.Tensor, id2label: Mapping[int, str]) -> list[dict[str, Any]]:
    """Return segments like those of the pipeline, without scores."""
    return [
        {
            "label": id2label[class_id],
            "mask": Image.fromarray((class_ids == class_id).to(torch.uint8).mul(255).numpy()),
        }
        for class_id in class_ids.unique().tolist()
        if class_id >= 0
    ]


def _draw_uncertainty(frame: Image.Image, queried: np.ndarray, certainty: np.ndarray) -> Image.Image:
    """Mute a frame where the audio is not queried, and highlight it by 1 - certainty (height, width)."""
    muted = ImageEnhance.Brightness(ImageEnhance.Color(frame).enhance(MUTED_SATURATION)).enhance(MUTED_BRIGHTNESS)
    positions = Image.fromarray(queried.astype(np.uint8) * 255).resize(frame.size, Image.Resampling.NEAREST)
    image = Image.composite(frame, muted, positions)
    opacity = Image.fromarray(((1 - certainty).clip(0, 1) ** UNCERTAINTY_EXPONENT * 255).astype(np.uint8))
    image.paste(UNCERTAINTY_COLOR, mask=opacity)
    return image
