"""A network small enough for any test, with active confidence masking, and inputs for it."""

from typing import Any

import torch

from modeling_pcmanet import PCMANetConfig, PCMANetForAudioVisualSegmentation


MEL_SHAPE = (1, 16, 8)  # of one log-mel patch


# Two groups, four heads, small token grids; about 70 thousand parameters.
TINY_NETWORK: dict[str, Any] = {
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 12, 16, 24],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
    "audio_config": {
        "block_channels": [[4], [6]],
        "hidden_size": 12,
        "embedding_size": 10,
        "num_mel_frames": MEL_SHAPE[1],
        "num_mel_bins": MEL_SHAPE[2],
    },
    "hidden_size": 16,
    "num_groups": 2,
    "num_attention_heads": 4,
    "head_channels": 8,
    "token_grid_sizes": [2, 2, 3, 4],
}


def tiny_config(**overrides: Any) -> PCMANetConfig:
    """Return the configuration of `TINY_NETWORK`, with some fields changed."""
    return PCMANetConfig(**{**TINY_NETWORK, **overrides})


def tiny_model(seed: int = 2, sharpness: float = 2.0, **overrides: Any) -> PCMANetForAudioVisualSegmentation:
    """Build the network in evaluation mode; `sharpness` scales the heads, so that some pixels are confident and some not."""
    torch.manual_seed(seed)
    model = PCMANetForAudioVisualSegmentation(tiny_config(**overrides)).eval()
    with torch.no_grad():
        for stage in model.model.stages:
            stage.head[-1].weight.mul_(sharpness)
        if model.model.audio_classifier is not None:
            model.model.audio_classifier[-1].weight.normal_(0, 0.5)  # initially 0
        # Initial BatchNorms are the identity; trained ones differ between channels.
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.75, 1.25)
    return model


def tiny_batch(
    clips: int = 2, frames: int = 3, size: tuple[int, int] = (48, 64), seed: int = 0
) -> dict[str, torch.Tensor]:
    """Draw random frames and log-mel patches."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randn(clips, frames, 3, *size, generator=generator),
        "input_features": torch.randn(clips, frames, *MEL_SHAPE, generator=generator),
    }
