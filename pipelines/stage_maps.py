"""What the four decoder stages see in one frame: what each finds, where it asks the sound, where it doubts.

    outputs = model(**batch)
    for stage in draw_stage_maps(frame, outputs, class_colors(id2label), id2label, number=3):
        stage.doubt.save(f"stage_{stage.number}.png")

The stages go coarse to fine. The first asks the sound about every place; each later one only where the one before was
unsure (the paper's confidence-induced masking), so most of the picture is soon left in peace.
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


REST_BRIGHTNESS = 0.25  # of a place that is not asked any more
REST_COLOR = 0.15
DOUBT_COLOR: Color = (255, 214, 64)
DOUBT_EXPONENT = 0.5  # between doubt and light, so that small doubts are seen beside large ones


@dataclass(frozen=True, eq=False)
class StageMap:
    """One stage's view of one frame.

    Attributes:
        number: 1 (coarsest) to 4.
        asked: Share of the picture about which the stage asks the sound, in [0, 1].
        certainty: Mean probability of the stage's decision over the picture, in [0, 1].
        finding: The frame with what the stage takes for sounding, RGB.
        doubt: The frame lit where the stage asks, and glowing where it is not sure of its answer, RGB.
    """

    number: int
    asked: float
    certainty: float
    finding: Image.Image
    doubt: Image.Image


def draw_stage_maps(
    frame: Image.Image,
    outputs: Any,
    colors: Mapping[str, Color],
    id2label: Mapping[int, str],
    *,
    clip: int = 0,
    number: int = 0,
) -> list[StageMap]:
    """Draws every stage's view of one network frame.

    Args:
        frame: The frame at any size, which the pictures get.
        outputs: The model's output, with `stage_logits` of shape (batch, frames, num_labels, height, width) and
            `confidence_masks` of shape (batch, frames, stage height, stage width), both coarse to fine.
        colors: The colour of every label, from `class_colors`.
        id2label: The model's `config.id2label`.
        clip: Which clip of the batch.
        number: Which frame of the clip.

    Returns:
        One entry per stage, coarse to fine.
    """
    frame = frame.convert("RGB")
    # The first stage asks everywhere, each later one where the mask of the one before it is True.
    asked = [torch.ones(1, 1, dtype=torch.bool), *(mask[clip, number].cpu() for mask in outputs.confidence_masks)]
    stages = []
    for index, (places, logits) in enumerate(zip(asked, outputs.stage_logits, strict=True)):
        class_ids, certainty = _decide(logits[clip, number].detach().float().cpu(), frame.size[::-1])
        stages.append(
            StageMap(
                number=index + 1,
                asked=places.float().mean().item(),
                certainty=certainty.mean().item(),
                finding=draw_segments(frame, _segments(class_ids, id2label), colors, labels=False),
                doubt=_light_doubt(frame, places.numpy(), certainty.numpy()),
            )
        )
    return stages


def _decide(logits: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Decides a frame's (num_labels, height, width) at another size; gives class ids, -1 for none, and certainty."""
    resized = interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    if len(resized) == 1:
        probability = resized[0].sigmoid()
        sounds = probability > 0.5
        return torch.where(sounds, 0, -1), torch.where(sounds, probability, 1 - probability)
    probability, class_ids = resized.softmax(dim=0).max(dim=0)
    return torch.where(class_ids == 0, -1, class_ids), probability


def _segments(class_ids: torch.Tensor, id2label: Mapping[int, str]) -> list[dict[str, Any]]:
    """Makes segments as the pipeline does, without their scores."""
    return [
        {
            "label": id2label[class_id],
            "mask": Image.fromarray((class_ids == class_id).to(torch.uint8).mul(255).numpy()),
        }
        for class_id in class_ids.unique().tolist()
        if class_id >= 0
    ]


def _light_doubt(frame: Image.Image, asked: np.ndarray, certainty: np.ndarray) -> Image.Image:
    """Mutes a frame where nothing is asked, and lets it glow by 1 - certainty (height, width)."""
    rest = ImageEnhance.Brightness(ImageEnhance.Color(frame).enhance(REST_COLOR)).enhance(REST_BRIGHTNESS)
    places = Image.fromarray(asked.astype(np.uint8) * 255).resize(frame.size, Image.Resampling.NEAREST)
    picture = Image.composite(frame, rest, places)
    glow = Image.fromarray(((1 - certainty).clip(0, 1) ** DOUBT_EXPONENT * 255).astype(np.uint8))
    picture.paste(DOUBT_COLOR, mask=glow)
    return picture
