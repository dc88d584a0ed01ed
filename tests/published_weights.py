"""Keys and shapes of published checkpoints, and the seeded weights and inputs whose outputs were recorded.

The functions support every variant (setting S4, MS3 or AVSS; backbone pvt or resnet), any salt and any number of clips.
"""

import json
import re
import zlib
from pathlib import Path

import torch


FIXTURES = Path(__file__).parent / "fixtures"
PUBLISHED_KEYS = json.loads((FIXTURES / "published_keys.json").read_text())
FRAMES = {"S4": 5, "MS3": 5, "AVSS": 10}


def expand_braces(template: str) -> list[str]:
    """Expand `{0-39}` and `{weight,bias}` in a name to all combinations."""
    match = re.search(r"{(?:(\d+)-(\d+)|([^{}]*))}", template)
    if match is None:
        return [template]
    options = match[3].split(",") if match[3] else map(str, range(int(match[1]), int(match[2]) + 1))
    before, after = template[: match.start()], template[match.end() :]
    return [name for option in options for name in expand_braces(before + option + after)]


def published_shapes(setting: str, backbone: str) -> dict[str, list[int]]:
    """Return key to shape of a complete published checkpoint."""
    variant = PUBLISHED_KEYS["variants"][f"{setting}_{backbone}"]
    shapes = section_shapes("decoder") | section_shapes(backbone)
    return {
        key.replace("audio_projection", variant["audio_projection"]): [variant["sizes"].get(n, n) for n in shape]
        for key, shape in shapes.items()
    }


def section_shapes(section: str) -> dict[str, list[int]]:
    """Return key to shape of one part: decoder, pvt, resnet, or pvt_v2_b0, a complete file."""
    return {key: shape for template, shape in PUBLISHED_KEYS["keys"][section] for key in expand_braces(template)}


def vggish_shapes() -> dict[str, list[int]]:
    """Return key to shape of the published VGGish."""
    widths = {0: (64, 1), 3: (128, 64), 6: (256, 128), 8: (256, 256), 11: (512, 256), 13: (512, 512)}
    shapes = {f"features.{index}.weight": [*width, 3, 3] for index, width in widths.items()}
    linear = {0: (4096, 12288), 2: (4096, 4096), 4: (128, 4096)}
    shapes |= {f"embeddings.{index}.weight": list(width) for index, width in linear.items()}
    return shapes | {key.replace("weight", "bias"): shape[:1] for key, shape in shapes.items()}


def seeded_weight(key: str, shape: list[int], salt: int) -> torch.Tensor:
    """Draw one weight from a seed that depends on its key."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    generator = torch.Generator().manual_seed((zlib.crc32(key.encode()) + salt) % 2**31)
    normal = torch.randn(shape, generator=generator)
    if key.endswith("running_var"):
        return 0.75 + 0.5 * torch.rand(shape, generator=generator)
    if key.endswith(("running_mean", ".bias")):
        return 0.1 * normal
    if len(shape) == 1:
        return 1 + 0.1 * normal
    # Large output weights give confident pixels, so that confidence masking is active.
    gain = 24 if key.startswith("output_conv") and key.endswith("3.weight") else 1
    return gain * normal / normal[0].numel() ** 0.5


def seeded_state_dict(shapes: dict[str, list[int]], salt: int = 0) -> dict[str, torch.Tensor]:
    """Draw all weights of a checkpoint."""
    return {key: seeded_weight(key, shape, salt) for key, shape in shapes.items()}


def seeded_inputs(setting: str, clips: int, salt: int = 0) -> dict[str, torch.Tensor]:
    """Draw frames and audio embeddings; for AVSS the first clip has only five real frames."""
    frames = FRAMES[setting]
    generator = torch.Generator().manual_seed(1000 + salt)
    pixel_values = torch.randn(clips * frames, 3, 224, 224, generator=generator).unflatten(0, (clips, frames))
    audio_embeds = torch.rand(clips * frames, 128, generator=generator).unflatten(0, (clips, frames))
    if setting != "AVSS":
        return {"pixel_values": pixel_values, "audio_embeds": audio_embeds}
    frame_mask = torch.ones(clips, frames, dtype=torch.bool)
    frame_mask[0, 5:] = False
    audio_embeds = audio_embeds * frame_mask[..., None]
    return {"pixel_values": pixel_values, "audio_embeds": audio_embeds, "frame_mask": frame_mask}
