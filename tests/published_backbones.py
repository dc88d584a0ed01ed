"""Reference VGGish, ResNet-50 and PVT-v2 in plain operations, by the names of their published weights."""

import torch
from torch.nn import functional


def published_vggish(weights: dict[str, torch.Tensor], patches: torch.Tensor) -> torch.Tensor:
    """Embed (patches, 1, 96, 64) as (patches, 128)."""
    states = patches
    for index in (0, 3, 6, 8, 11, 13):
        name = f"features.{index}"
        states = functional.conv2d(states, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1).relu()
        if index not in (6, 11):
            states = functional.max_pool2d(states, 2)
    states = states.permute(0, 2, 3, 1).flatten(1)
    for index in (0, 2, 4):
        name = f"embeddings.{index}"
        states = functional.linear(states, weights[f"{name}.weight"], weights[f"{name}.bias"]).relu()
    return states


class PublishedResNet:
    """ResNet-50 with the names of torchvision."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = weights

    def maps(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """Compute the four feature maps, fine to coarse, of (frames, 3, height, width)."""
        states = self.convolve(frames, "conv1", "bn1", stride=2, padding=3).relu()
        states = functional.max_pool2d(states, 3, stride=2, padding=1)
        maps = []
        for stage, depth in enumerate((3, 4, 6, 3), start=1):
            for block in range(depth):
                states = self.bottleneck(states, f"layer{stage}.{block}.", 2 if stage > 1 and block == 0 else 1)
            maps.append(states)
        return maps

    def bottleneck(self, states: torch.Tensor, name: str, stride: int) -> torch.Tensor:
        shortcut = states
        if f"{name}downsample.0.weight" in self.weights:
            shortcut = self.convolve(states, f"{name}downsample.0", f"{name}downsample.1", stride=stride)
        states = self.convolve(states, f"{name}conv1", f"{name}bn1").relu()
        states = self.convolve(states, f"{name}conv2", f"{name}bn2", stride=stride, padding=1).relu()
        return (self.convolve(states, f"{name}conv3", f"{name}bn3") + shortcut).relu()

    def convolve(self, states: torch.Tensor, name: str, norm: str, stride: int = 1, padding: int = 0) -> torch.Tensor:
        states = functional.conv2d(states, self.weights[f"{name}.weight"], stride=stride, padding=padding)
        statistics = (self.weights[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(states, *statistics)


class PublishedPvtV2:
    """PVT-v2 with the names of its authors; LayerNorm eps is 1e-5 in patch embeddings and spatial reductions, else 1e-6."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = weights

    def maps(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """Compute the four feature maps, fine to coarse, of (frames, 3, height, width)."""
        states, maps = frames, []
        for stage, (heads, reduction) in enumerate(((1, 8), (2, 4), (5, 2), (8, 1)), start=1):
            stride, padding = (4, 3) if stage == 1 else (2, 1)
            states = self.convolve(states, f"patch_embed{stage}.proj", stride=stride, padding=padding)
            size = states.shape[2:]
            tokens = self.normalize(to_tokens(states), f"patch_embed{stage}.norm", eps=1e-5)
            for block in range(
                sum(key.startswith(f"block{stage}.") and key.endswith("norm1.bias") for key in self.weights)
            ):
                tokens = self.block(tokens, f"block{stage}.{block}.", size, heads, reduction)
            states = to_map(self.normalize(tokens, f"norm{stage}"), size)
            maps.append(states)
        return maps

    def block(self, tokens: torch.Tensor, name: str, size: torch.Size, heads: int, reduction: int) -> torch.Tensor:
        normalized = self.normalize(tokens, f"{name}norm1")
        tokens = tokens + self.attend(normalized, f"{name}attn.", size, heads, reduction)
        hidden = to_map(self.linear(self.normalize(tokens, f"{name}norm2"), f"{name}mlp.fc1"), size)
        hidden = self.convolve(hidden, f"{name}mlp.dwconv.dwconv", padding=1, groups=hidden.shape[1])
        return tokens + self.linear(functional.gelu(to_tokens(hidden)), f"{name}mlp.fc2")

    def attend(self, tokens: torch.Tensor, name: str, size: torch.Size, heads: int, reduction: int) -> torch.Tensor:
        context, width = tokens, tokens.shape[-1]
        if reduction > 1:
            reduced = self.convolve(to_map(tokens, size), f"{name}sr", stride=reduction)
            context = self.normalize(to_tokens(reduced), f"{name}norm", eps=1e-5)
        projected = (
            self.linear(tokens, f"{name}q"),
            # The first half of the rows computes the keys, the second the values.
            self.linear(context, f"{name}kv", slice(0, width)),
            self.linear(context, f"{name}kv", slice(width, None)),
        )
        query, key, value = (states.unflatten(-1, (heads, -1)).transpose(1, 2) for states in projected)
        weights = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)
        return self.linear((weights @ value).transpose(1, 2).flatten(2), f"{name}proj")

    def convolve(
        self, states: torch.Tensor, name: str, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.conv2d(states, weight, bias, stride, padding, groups=groups)

    def linear(self, states: torch.Tensor, name: str, rows: slice = slice(None)) -> torch.Tensor:
        return functional.linear(states, self.weights[f"{name}.weight"][rows], self.weights[f"{name}.bias"][rows])

    def normalize(self, states: torch.Tensor, name: str, eps: float = 1e-6) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(states, states.shape[-1:], weight, bias, eps)


def to_map(tokens: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Reshape (frames, height * width, channels) to (frames, channels, height, width)."""
    return tokens.transpose(1, 2).unflatten(2, size)


def to_tokens(feature_map: torch.Tensor) -> torch.Tensor:
    """Reshape (frames, channels, height, width) to (frames, height * width, channels)."""
    return feature_map.flatten(2).transpose(1, 2)
