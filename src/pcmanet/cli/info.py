"""`pcmanet info`: describe a checkpoint without loading its weights."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers.utils import cached_file
from yaml import YAMLError

from modeling_pcmanet import PCMANetConfig, PCMANetProcessor
from pcmanet.checkpoints import count_parameters, load_config, silence_transformers
from pcmanet.files import find_checkpoint, read_json


SHOWN_LABELS = 12
METRICS_REMEDY = "Download or copy it again, or remove it."
# Fields of the configuration that select or switch parts of the network.
SWITCHES = (
    "group_attention",
    "cross_attention",
    "fusion",
    "token_layout",
    "gather_queries",
    "masked_query_gradients",
    "padded_frames",
)


def run(arguments: Namespace) -> bool:
    """Print the description of a checkpoint.

    Args:
        arguments: Arguments of `pcmanet info`.

    Returns:
        False: it has not failed.

    Raises:
        OSError: If the checkpoint is not found.
        ValueError: If it has another architecture, or a file of the checkpoint is damaged.
    """
    silence_transformers()
    print(_describe(find_checkpoint(arguments.model)))
    return False


def _describe(model: str) -> str:
    """Return lines with a name and a value each."""
    config = load_config(model)
    lines = [("model", model), *_knowledge(config), *_task(config), *_sizes(model, config), *_parameters(config)]
    lines += [(name.replace("_", " "), _text(getattr(config, name))) for name in SWITCHES]
    lines += [("license", _license(model)), *_metrics(model)]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _knowledge(config: PCMANetConfig) -> Iterator[tuple[str, str]]:
    """Yield what the trained network knows."""
    if config.description is not None:
        yield "about", config.description


def _task(config: PCMANetConfig) -> Iterator[tuple[str, str]]:
    """Yield the task and the classes."""
    if config.num_labels == 1:
        yield "task", "binary: the pixels of sounding objects"
        return
    names: Any = config.id2label
    labels = [label for number, label in sorted(names.items()) if number > 0]
    more = f" and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""
    yield "task", f"semantic: the class of each sounding object, {len(labels)} classes and the background"
    yield "classes", ", ".join(labels[:SHOWN_LABELS]) + more


def _sizes(model: str, config: PCMANetConfig) -> Iterator[tuple[str, str]]:
    """Yield the size of the frames and of the network."""
    size, backbone = PCMANetProcessor.from_pretrained(model).image_processor.size, config.backbone_config
    yield "frames", f"{size['height']}x{size['width']}, resized from any size without keeping the aspect ratio"
    yield "backbone", getattr(backbone, "model_type", "unknown")
    yield "widths", f"{config.hidden_size} channels, {config.num_groups} groups, {config.num_attention_heads} heads"


def _parameters(config: PCMANetConfig) -> Iterator[tuple[str, str]]:
    """Yield the number of parameters of the network and of its parts."""
    counts = count_parameters(config)
    parts = ", ".join(f"{part} {number / 1e6:.2f} M" for part, number in counts.items())
    yield "parameters", f"{sum(counts.values()) / 1e6:.2f} M ({parts})"


def _text(value: Any) -> str:
    """Format the value of a switch."""
    names = {True: "on", False: "off", None: "none"}
    return names[value] if value is None or isinstance(value, bool) else str(value)


def _license(model: str) -> str:
    """Read the license from the model card."""
    card = _optional_file(model, "README.md")
    try:
        metadata = {} if card is None else ModelCard.load(card).data.to_dict()
    except (ValueError, YAMLError) as error:
        raise ValueError(f"{card} is not a model card: {error}. Correct its metadata, or remove it.") from error
    return metadata.get("license") or "not specified"


def _metrics(model: str) -> Iterator[tuple[str, str]]:
    """Read the metrics of the training run."""
    file = _optional_file(model, "metrics.json")
    metrics = {} if file is None else read_json(file, METRICS_REMEDY)
    if not isinstance(metrics, dict):
        raise ValueError(f"{file} is damaged: expected a JSON object, got {type(metrics).__name__}. {METRICS_REMEDY}")
    for name, values in metrics.items():
        if isinstance(values, dict) and all(isinstance(value, int | float) for value in values.values()):
            shown = (f"{key.replace('_', ' ')} {value:.4g}" for key, value in values.items())
            yield name, ", ".join(shown)


def _optional_file(model: str, name: str) -> Path | None:
    """Return a file of a checkpoint, or None if it does not exist."""
    path = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)
