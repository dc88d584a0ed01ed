"""The weights that are evaluated and saved: a running average of those that learn, or these as they are."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from modeling_pcmanet import (
    PCMANetConfig,
    PCMANetFeatureExtractor,
    PCMANetForAudioVisualSegmentation,
    PCMANetImageProcessor,
    PCMANetProcessor,
    VGGishModel,
)
from modeling_pcmanet.modeling_pcmanet import load_strict
from pcmanet.dataset_scripts.sounding_shapes.clips import SoundMixtures
from pcmanet.dataset_scripts.sounding_shapes.scene import CLASSES
from pcmanet.dataset_scripts.sounding_shapes.sound import SAMPLING_RATE

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
    audio_encoder = load_strict(VGGishModel, recipe.audio_encoder)
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


SOUNDS_PER_STEP = 16


@dataclass(frozen=True)
class SoundCollator:
    """Makes a batch of sounds; a class, because a worker that is not forked gets it pickled.

    Attributes:
        extractor: Makes the log-mel patches.
    """

    extractor: PCMANetFeatureExtractor

    def __call__(self, sounds: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Stack the log-mel patches of all seconds, and which classes are heard in each."""
        patches = [
            self.extractor(waveform, SAMPLING_RATE, num_frames=len(heard), return_tensors="pt")["input_features"]
            for waveform, heard in sounds
        ]
        return torch.cat(patches), torch.from_numpy(np.concatenate([heard for _, heard in sounds])).float()


def pretrain_audio_encoder(
    audio_encoder: VGGishModel, extractor: PCMANetFeatureExtractor, recipe: Recipe, device: torch.device, quiet: bool
) -> None:
    """Train the audio encoder to name what sounds in every second, with a linear layer that is thrown away after.

    Every process does the same work on the same sounds: it is short, and the weights stay equal without a word.

    Args:
        audio_encoder: Is changed; what of it learns afterwards stays as it was.
        extractor: Makes the log-mel patches.
        recipe: Says how many sounds, and how fast to learn.
        device: Where to compute.
        quiet: Whether to show no progress.
    """
    trainable = [parameter.requires_grad for parameter in audio_encoder.parameters()]
    audio_encoder.requires_grad_(True).to(device)
    tagger = torch.nn.Linear(audio_encoder.config.embedding_size, len(CLASSES)).to(device)
    parameters = [*audio_encoder.parameters(), *tagger.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    sounds = SoundMixtures(recipe.listening_sounds, seed=recipe.seed)
    loader = DataLoader(
        sounds,
        batch_size=min(SOUNDS_PER_STEP, recipe.listening_sounds),
        collate_fn=SoundCollator(extractor),
        num_workers=recipe.num_workers,
        drop_last=True,
    )
    bar = tqdm(loader, desc="listening", unit="step", mininterval=5.0, disable=quiet)
    for step, (patches, heard) in enumerate(bar):
        factor = learning_rate_factor(step, len(loader), "cosine", recipe.warmup_fraction)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        logits = tagger(audio_encoder(patches.to(device)).audio_embeds)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, heard.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.4f}")
    # Else the last lesson's gradient would still count in the first step with pictures.
    optimizer.zero_grad()
    for parameter, learns in zip(audio_encoder.parameters(), trainable, strict=True):
        parameter.requires_grad_(learns)


# After n steps the average keeps at most n / (n + 10): it reaches over the last tenth of a short run.
WARM_UP_STEPS = 10


class WeightAverage:
    """A plain copy of the network beside the one that is trained, whole on every process and never wrapped.

    So an evaluation needs no word between the processes, computes in float32, and saving needs no gathering.

    Args:
        network: The network before `accelerator.prepare`; it is copied.
        decay: Share of the average that each step keeps, once there were enough steps: step n keeps n / (n + 10) at most,
            so that the first step replaces it. None keeps no average: the copy then takes over the weights when it is
            asked for.
    """

    def __init__(self, network: PCMANetForAudioVisualSegmentation, decay: float | None) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, network: torch.nn.Module) -> None:
        """Take in the weights and running statistics of the trained network after a step; does nothing without average.

        Args:
            network: The trained network without its wrappers; its parameters may be sharded (FSDP2).
        """
        if self.decay is not None:
            # The plain decay would keep mostly the first weights until 1 / (1 - decay) steps are done.
            self._blend(network, min(self.decay, self.steps / (self.steps + WARM_UP_STEPS)))
        self.steps += 1

    @torch.no_grad()
    def synchronized(self, network: torch.nn.Module, accelerator: Accelerator) -> PCMANetForAudioVisualSegmentation:
        """Give the network to evaluate or save, the same on every process.

        Args:
            network: As for `update`.
            accelerator: Says how many processes there are.
        """
        if self.decay is None:
            self._blend(network, 0.0)
        if accelerator.num_processes > 1:
            # Parameters are equal everywhere, but BatchNorm's running statistics are each process's own.
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, src=0)
        return self.network

    def _blend(self, network: torch.nn.Module, keep: float) -> None:
        """Move all values towards those of the network, keeping a share of what was there."""
        mine = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        theirs = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        values = {name: _whole(theirs[name].detach()) for name in mine}
        blended = [name for name, average in mine.items() if keep > 0.0 and average.is_floating_point()]
        if blended:
            targets = [values[name].to(mine[name].dtype) for name in blended]
            torch._foreach_lerp_([mine[name] for name in blended], targets, 1 - keep)
        for name in (name for name in mine if name not in set(blended)):
            mine[name].copy_(values[name])

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint holds of it."""
        weights = None if self.decay is None else self.network.state_dict()
        return {"steps": self.steps, "weights": weights}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from a state."""
        self.steps = state["steps"]
        if state["weights"] is not None:
            self.network.load_state_dict(state["weights"])


def _whole(values: torch.Tensor) -> torch.Tensor:
    """Gather what is sharded over the processes."""
    return values.full_tensor() if isinstance(values, DTensor) else values
