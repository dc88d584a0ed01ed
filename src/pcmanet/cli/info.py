"""`pcmanet info`: what a checkpoint is, without loading its weights."""

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig
from transformers.utils import cached_file, logging

from modeling_pcmanet import PCMANetConfig, PCMANetForAudioVisualSegmentation, PCMANetProcessor
from pcmanet.checkpoints import check_name


SHOWN_LABELS = 12
# What the paper's sections call parts of the network, and whether they are on.
SWITCHES = ("token_layout", "cross_attention", "gather_queries", "masked_query_gradients", "padded_frames")
UNKNOWN_LICENSE = "not stated"


def run(arguments: Namespace) -> bool:
    """Prints what a checkpoint is.

    Args:
        arguments: Of `pcmanet info`.

    Returns:
        False: it has not failed.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(describe(check_name(arguments.model)))
    return False


def describe(model: str) -> str:
    """Describes a checkpoint.

    Args:
        model: Folder or Hub id.

    Returns:
        Lines of a name and a value each.

    Raises:
        OSError: If there is no such checkpoint.
        ValueError: If it is none of this architecture.
    """
    config = AutoConfig.from_pretrained(model)
    if config.model_type != PCMANetConfig.model_type:
        raise ValueError(f"{model} is a {config.model_type} checkpoint, not one of {PCMANetConfig.model_type}.")
    lines = [("model", model), *_task(config), *_sizes(model, config), *_parameters(config)]
    lines += [(name.replace("_", " "), _text(getattr(config, name))) for name in SWITCHES]
    lines += [("license", _license(model)), *_figures(model)]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _task(config: PCMANetConfig) -> Iterator[tuple[str, str]]:
    """Says what the checkpoint finds."""
    if config.num_labels == 1:
        yield "task", "binary: where it sounds"
        return
    labels = [label for number, label in sorted(config.id2label.items()) if number > 0]
    more = f" and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""
    yield "task", f"semantic: what sounds where, {len(labels)} classes and the background"
    yield "classes", ", ".join(labels[:SHOWN_LABELS]) + more


def _sizes(model: str, config: PCMANetConfig) -> Iterator[tuple[str, str]]:
    """Says what goes into the network, and how wide it is."""
    processor = PCMANetProcessor.from_pretrained(model)
    size = processor.image_processor.size
    yield "pictures", f"{size['height']}x{size['width']}, squashed to that from any size"
    yield "backbone", config.backbone_config.model_type
    yield "widths", f"{config.hidden_size} channels, {config.num_groups} groups, {config.num_attention_heads} heads"


def _parameters(config: PCMANetConfig) -> Iterator[tuple[str, str]]:
    """Counts the parameters of the network and of its two largest parts."""
    with torch.device("meta"):
        network = PCMANetForAudioVisualSegmentation(config)
    counts: dict[str, int] = {}
    for name, values in network.named_parameters():
        part = next((part for part in ("audio_encoder", "backbone") if part in name), "fusion and decoder")
        counts[part] = counts.get(part, 0) + values.numel()
    parts = ", ".join(f"{part.replace('_', ' ')} {number / 1e6:.2f} M" for part, number in sorted(counts.items()))
    yield "parameters", f"{sum(counts.values()) / 1e6:.2f} M ({parts})"


def _text(value: Any) -> str:
    """Writes the value of a switch."""
    return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _license(model: str) -> str:
    """Reads the license from the card of the checkpoint."""
    card = _optional_file(model, "README.md")
    return (ModelCard.load(card).data.license if card is not None else None) or UNKNOWN_LICENSE


def _figures(model: str) -> Iterator[tuple[str, str]]:
    """Reads the figures that were measured in training."""
    file = _optional_file(model, "metrics.json")
    figures = json.loads(file.read_text(encoding="utf-8")) if file is not None else {}
    for name, values in figures.items():
        if isinstance(values, dict) and all(isinstance(value, int | float) for value in values.values()):
            shown = (f"{key.replace('_', ' ')} {value:.4g}" for key, value in values.items())
            yield name, ", ".join(shown)


def _optional_file(model: str, name: str) -> Path | None:
    """Returns a file of a checkpoint, if it has it."""
    path = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)
