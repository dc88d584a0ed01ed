"""From a recipe to the network that is trained: where it starts, what of it learns, and its optimizer."""

import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from modeling_pcmanet import (
    PCMANetConfig,
    PCMANetFeatureExtractor,
    PCMANetForAudioVisualSegmentation,
    PCMANetImageProcessor,
    PCMANetProcessor,
    VGGishModel,
)
from modeling_pcmanet.loading_pcmanet import load_whole

from .recipe import Recipe, RecipeError


class MismatchError(ValueError):
    """A checkpoint to start from whose weights do not fit; the message lists them."""


def build_processor(recipe: Recipe) -> PCMANetProcessor:
    """Make the processor of a recipe's pictures and sounds."""
    size = {"height": recipe.image_size, "width": recipe.image_size}
    # AVSBench's semantic clips fill missing sound with zeros, its others repeat the last patch.
    zeros = recipe.data is not None and recipe.task == "avss"
    extractor = PCMANetFeatureExtractor(short_clip="zeros" if zeros else "repeat_last")
    return PCMANetProcessor(PCMANetImageProcessor(size=size), extractor)


def build_network(recipe: Recipe, names: list[str]) -> PCMANetForAudioVisualSegmentation:
    """Make a network from a preset or from pretrained backbones, or start from a checkpoint with other heads.

    Args:
        recipe: The recipe.
        names: Names of the classes, background first; a single one for binary masks.

    Returns:
        The network, on the CPU, with what is not to learn frozen.

    Raises:
        MismatchError: If weights of the checkpoint do not fit.
        OSError: If there is no checkpoint.
        ValueError: If a field of the configuration is wrong, or a pretrained part lacks weights.
    """
    settings = {
        **recipe.configuration,
        "freeze_audio_encoder": "audio_encoder" in recipe.freeze,
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }
    network = _start_network(recipe, settings)
    if "backbone" in recipe.freeze:
        network.model.backbone.requires_grad_(False)
    if recipe.gradient_checkpointing:
        network.gradient_checkpointing_enable()
    return network


def _start_network(recipe: Recipe, settings: dict[str, Any]) -> PCMANetForAudioVisualSegmentation:
    """Make the network with its first weights."""
    if recipe.initialize_from is not None:
        try:
            return load_checkpoint(recipe.initialize_from, settings, recipe.reinitialize_mismatched)
        except MismatchError as error:
            remedy = "Or let these weights start anew: --set reinitialize_mismatched=true"
            raise MismatchError(f"{error} {remedy}") from error
    if recipe.visual_backbone is not None:
        return PCMANetForAudioVisualSegmentation.from_pretrained_backbones(
            recipe.visual_backbone, recipe.audio_encoder, **settings
        )
    if recipe.audio_encoder is None:
        return PCMANetForAudioVisualSegmentation(PCMANetConfig.from_preset(recipe.preset, **settings))
    audio_encoder = load_whole(VGGishModel, recipe.audio_encoder)
    config = PCMANetConfig.from_preset(recipe.preset, **settings, audio_config=audio_encoder.config)
    network = PCMANetForAudioVisualSegmentation(config)
    network.model.audio_encoder.load_state_dict(audio_encoder.state_dict())
    return network


def load_checkpoint(
    name: str, settings: dict[str, Any], reinitialize_mismatched: bool = False
) -> PCMANetForAudioVisualSegmentation:
    """Load a checkpoint whose heads may have other classes.

    Args:
        name: Folder or Hub id (owner/name).
        settings: Fields of the configuration that differ from the checkpoint's.
        reinitialize_mismatched: Whether weights that are missing or have another shape start anew.

    Raises:
        FileNotFoundError: If there is no such folder.
        MismatchError: If anything else than a head differs, naming the keys and shapes.
    """
    if not Path(name).is_dir() and name.count("/") != 1:
        raise FileNotFoundError(f"There is no checkpoint folder {name}. Give a folder, or a Hub id as owner/name.")
    network, loading = PCMANetForAudioVisualSegmentation.from_pretrained(
        name, ignore_mismatched_sizes=True, output_loading_info=True, **settings
    )
    problems = [f"{key} is missing" for key in loading["missing_keys"]]
    problems += [f"{key} belongs to nothing" for key in loading["unexpected_keys"]]
    problems += [
        f"{key} is {tuple(theirs)}, expected {tuple(ours)}" for key, theirs, ours in loading["mismatched_keys"]
    ]
    strays = sorted(problem for problem in problems if ".head." not in problem)
    if strays and not reinitialize_mismatched:
        listed = "\n  ".join(strays)
        raise MismatchError(
            f"{name} does not fit this network, {len(strays)} weights differ:\n  {listed}\n"
            "Give the configuration of that checkpoint."
        )
    return network


def set_training_mode(network: PCMANetForAudioVisualSegmentation, recipe: Recipe) -> None:
    """Put a network into training, but for the parts whose statistics stay as they are."""
    network.train()
    if "backbone" in recipe.freeze:
        network.model.backbone.eval()
    frozen = {"frozen": network, "frozen_backbone": network.model.backbone}.get(recipe.batch_norm)
    for module in [] if frozen is None else frozen.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def synchronize_norms(
    network: PCMANetForAudioVisualSegmentation, recipe: Recipe, accelerator: Accelerator
) -> PCMANetForAudioVisualSegmentation:
    """Let BatchNorm take its statistics over all processes, if the recipe says so.

    Raises:
        RecipeError: If the processes run on CPUs, where torch has no synchronized BatchNorm.
    """
    if recipe.batch_norm != "synchronized" or accelerator.num_processes == 1:
        return network
    if accelerator.device.type == "cpu":
        raise RecipeError(
            "batch_norm is synchronized, which torch has for GPUs only; on CPU processes set batch_norm to local, or to "
            "frozen_backbone with pretrained backbones."
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


def build_optimizer(network: PCMANetForAudioVisualSegmentation, recipe: Recipe) -> torch.optim.Optimizer:
    """Make the optimizer of all that learns; the backbone is a group of its own if it has its own learning rate."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    learning = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    if recipe.backbone_learning_rate is None:
        groups = [{"params": [parameter for _, parameter in learning], "peak": recipe.learning_rate}]
    else:
        rates = {False: recipe.learning_rate, True: recipe.backbone_learning_rate}
        groups = [
            {"params": [weight for name, weight in learning if ("backbone." in name) == inside], "peak": rate}
            for inside, rate in rates.items()
        ]
    return kind(
        [group for group in groups if group["params"]], lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, steps: int) -> None:
    """Give every group of the optimizer its learning rate of a step."""
    factor = learning_rate_factor(step, steps, recipe.schedule, recipe.warmup_fraction)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def learning_rate_factor(step: int, steps: int, schedule: str, warmup_fraction: float) -> float:
    """Share of the peak learning rate: rises linearly during warm-up, then stays or falls to 0 along a cosine.

    Args:
        step: From 0 up.
        steps: Of the whole training.
        schedule: "constant" or "cosine".
        warmup_fraction: Share of the steps in which it rises.

    Returns:
        In [0, 1].
    """
    warmup = max(1, round(steps * warmup_fraction)) if warmup_fraction else 0
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
