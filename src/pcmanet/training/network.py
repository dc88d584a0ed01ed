"""The network of a training run: initial weights, normalization, optimizer, learning rate and weight average."""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import PARAM_LIST, AveragedModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from modeling_pcmanet import (
    PCMANetConfig,
    PCMANetFeatureExtractor,
    PCMANetForAudioVisualSegmentation,
    PCMANetProcessor,
)
from modeling_pcmanet.audio_pcmanet import AudioBuffer
from modeling_pcmanet.configuration_encoders import audio_embedding_size, build_audio_config, build_backbone_config
from modeling_pcmanet.media_pcmanet import SAMPLING_OFFSET
from modeling_pcmanet.modeling_audio_encoders import embed_windows
from pcmanet.dataset_scripts.sounding_shapes.scene import CLASSES
from pcmanet.dataset_scripts.sounding_shapes.sound import SAMPLING_RATE, SoundMixtures
from pcmanet.files import find_checkpoint

from .recipe import Recipe


PRETRAINING_BATCH_SIZE = 16  # audio clips per step of `pretrain_audio_encoder`
# After n steps the average keeps at most n / (n + 10) of itself: it covers the last tenth of a short run.
AVERAGE_WARMUP_STEPS = 10


def build_processor(recipe: Recipe) -> PCMANetProcessor:
    """Build the processor of a recipe: that of the checkpoint to initialize from, or that of its backbones.

    Raises:
        OSError: If a folder or Hub id is not found.
        ValueError: If `audio_windows` do not fit the audio encoder.
    """
    size = {"height": recipe.image_size, "width": recipe.image_size}
    if recipe.initialize_from is not None:
        processor = PCMANetProcessor.from_pretrained(find_checkpoint(recipe.initialize_from))
        processor.image_processor.size = size
    else:
        # Only the parts: `configuration` may have fields that go with a pretrained backbone and not with the preset's.
        preset = PCMANetConfig.from_preset(recipe.preset)
        visual = build_backbone_config(recipe.configuration.get("backbone_config") or preset.backbone_config)
        audio = build_audio_config(recipe.configuration.get("audio_config") or preset.audio_config)
        processor = PCMANetProcessor.from_pretrained_backbones(
            recipe.visual_backbone or visual,
            recipe.audio_encoder or audio,
            audio_windows=recipe.audio_windows,
            size=size,
        )
    if isinstance(processor.feature_extractor, PCMANetFeatureExtractor):
        # AVSBench fills missing audio of its semantic clips with zeros, and repeats the last patch of its others.
        zeros = recipe.data is not None and recipe.task == "avss"
        processor.feature_extractor.short_clip = "zeros" if zeros else "repeat_last"
    return processor


def build_network(recipe: Recipe, names: Sequence[str]) -> PCMANetForAudioVisualSegmentation:
    """Build a network from a preset, from pretrained backbones, or from a checkpoint whose heads may differ.

    Args:
        recipe: The recipe.
        names: Names of the classes, background first; a single one for binary masks.

    Returns:
        The network, on the CPU, with the parts in `recipe.freeze` frozen.

    Raises:
        OSError: If a checkpoint is not found.
        ValueError: If a field of the configuration is wrong, or weights are missing or do not fit.
    """
    settings = {
        **recipe.configuration,
        "freeze_audio_encoder": "audio_encoder" in recipe.freeze,
        **label_settings(names),
    }
    if recipe.audio_windows is not None:
        settings["num_audio_windows"] = len(recipe.audio_windows)
    network = _initialize(recipe, settings)
    if "backbone" in recipe.freeze:
        network.model.backbone.requires_grad_(False)
    if recipe.gradient_checkpointing:
        network.gradient_checkpointing_enable()
    return network


def label_settings(names: Sequence[str]) -> dict[str, dict]:
    """Return `id2label` and `label2id` of a configuration for these class names."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def _initialize(recipe: Recipe, settings: dict[str, Any]) -> PCMANetForAudioVisualSegmentation:
    """Build the network with its initial weights."""
    if recipe.initialize_from is not None:
        return load_checkpoint(
            recipe.initialize_from,
            settings,
            reinitialize_mismatched=recipe.reinitialize_mismatched,
            remedy="Set `configuration` to that of the checkpoint, or initialize these weights anew: "
            "--set reinitialize_mismatched=true",
        )
    return PCMANetForAudioVisualSegmentation.from_pretrained_backbones(
        recipe.visual_backbone, recipe.audio_encoder, preset=recipe.preset, **settings
    )


def load_checkpoint(
    name: str,
    settings: dict[str, Any],
    *,
    reinitialize_mismatched: bool = False,
    remedy: str = "Use a checkpoint with this configuration.",
) -> PCMANetForAudioVisualSegmentation:
    """Load a checkpoint whose heads may have other classes.

    Args:
        name: Folder or Hub id (owner/name).
        settings: Fields of the configuration that differ from the checkpoint's.
        reinitialize_mismatched: Whether to initialize weights anew that are missing or have another shape.
        remedy: What to do about weights that do not fit, for the error.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If weights outside the heads differ; the message lists their names and shapes.
    """
    loaded: Any = PCMANetForAudioVisualSegmentation.from_pretrained(
        find_checkpoint(name), ignore_mismatched_sizes=True, output_loading_info=True, **settings
    )
    network, loading = loaded
    problems = [f"{key} is missing" for key in loading["missing_keys"]]
    problems += [f"{key} is not part of the network" for key in loading["unexpected_keys"]]
    problems += [f"{key} is {tuple(found)}, expected {tuple(own)}" for key, found, own in loading["mismatched_keys"]]
    problems = sorted(problem for problem in problems if ".head." not in problem)
    if problems and not reinitialize_mismatched:
        listed = "\n  ".join(problems)
        raise ValueError(f"{name} does not fit this network, {len(problems)} weights differ:\n  {listed}\n{remedy}")
    return network


def freeze_unused(network: PCMANetForAudioVisualSegmentation, processor: PCMANetProcessor) -> list[str]:
    """Freeze the parameters that get no gradient, for which distributed training would wait in every step.

    Backbones have some beyond their feature maps, such as the last norm of Swin or the mask token of DINOv2, and with
    `masked_query_gradients=False` the attention of selected queries is not trained, as published.

    Args:
        network: On the CPU.
        processor: Makes the frame on which the loss is computed once.

    Returns:
        Names of the parameters that were trainable before.
    """
    size, rate = processor.image_processor.size, processor.feature_extractor.sampling_rate
    frame = np.zeros((1, size["height"], size["width"], 3), np.uint8)
    audio: dict[str, Any] = {"audio": np.zeros(rate, np.float32), "sampling_rate": rate}
    batch = processor(videos=frame, segmentation_maps=frame[..., 0], return_tensors="pt", **audio)
    trainable = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    mode = network.training
    network.eval()  # draws no random numbers and changes no statistics
    gradients = torch.autograd.grad(network(**batch).loss, list(trainable.values()), allow_unused=True)
    network.train(mode)
    unused = [name for name, gradient in zip(trainable, gradients, strict=True) if gradient is None]
    for name in unused:
        trainable[name].requires_grad_(False)
    return unused


def pretrain_audio_encoder(
    audio_encoder: PreTrainedModel, processor: PCMANetProcessor, recipe: Recipe, device: torch.device, quiet: bool
) -> None:
    """Train the audio encoder to classify the sounds in every second, with a linear layer that is then discarded.

    Every process does the same work on the same audio, because it is short. All of them take the weights of the first one: on
    GPUs equal steps can differ in the last digits, and FSDP2 would join shards of different weights.

    Args:
        audio_encoder: Trained in place. Afterwards the same parameters require gradients as before.
        processor: Computes the audio features.
        recipe: The number of audio clips, the learning rate and the weight decay.
        device: Where to compute.
        quiet: Whether to hide the progress bar.
    """
    trainable = [parameter.requires_grad for parameter in audio_encoder.parameters()]
    cast(nn.Module, audio_encoder.requires_grad_(True)).to(device)
    num_windows = len(processor.audio_windows or [None])
    width = num_windows * audio_embedding_size(audio_encoder.config)
    classifier = nn.Linear(width, len(CLASSES)).to(device)
    parameters = [*audio_encoder.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    loader = DataLoader(
        SoundMixtures(recipe.audio_pretraining_clips, seed=recipe.seed),
        batch_size=min(PRETRAINING_BATCH_SIZE, recipe.audio_pretraining_clips),
        # Not a closure: a worker that is not forked receives it pickled.
        collate_fn=functools.partial(_collate_audio, processor),
        num_workers=recipe.num_workers,
        drop_last=True,
    )
    bar = tqdm(loader, desc="audio pretraining", unit="step", mininterval=5.0, disable=quiet)
    for step, (features, classes) in enumerate(bar):
        factor = learning_rate_factor(step, len(loader), "cosine", recipe.warmup_fraction)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        logits = classifier(embed_windows(audio_encoder, features.to(device), num_windows))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, classes.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.4f}")
    # Otherwise the gradient of the last step would be added to that of the first training step.
    optimizer.zero_grad()
    for parameter, required in zip(audio_encoder.parameters(), trainable, strict=True):
        parameter.requires_grad_(required)
    broadcast([*audio_encoder.parameters(), *audio_encoder.buffers()])


@torch.no_grad()
def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Replace the values of tensors by those of the first process, if there are several."""
    if torch.distributed.is_initialized():
        for tensor in tensors:
            torch.distributed.broadcast(tensor, src=0)


def _collate_audio(
    processor: PCMANetProcessor, clips: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack the audio features of all seconds, and the classes that sound in each."""
    alignment = "consecutive" if processor.audio_windows is None else None
    features = []
    for waveform, classes in clips:
        frames = [(second + SAMPLING_OFFSET,) for second in range(len(classes))]
        audio = AudioBuffer([(waveform, SAMPLING_RATE)], processor.feature_extractor.sampling_rate)
        features += [one for _, one in processor.audio_features(frames, audio, alignment)]
    return torch.stack(features), torch.from_numpy(np.concatenate([classes for _, classes in clips])).float()


def prepare_for_training(
    network: PCMANetForAudioVisualSegmentation, recipe: Recipe, accelerator: Accelerator
) -> PCMANetForAudioVisualSegmentation:
    """Set the network to training mode, with the statistics of BatchNorm as `recipe.batch_norm` says.

    Args:
        network: Changed in place, or with synchronized statistics replaced.
        recipe: The recipe.
        accelerator: The number of processes and the device.

    Raises:
        ValueError: If CPU processes are to synchronize statistics, which torch does not support.
    """
    if recipe.batch_norm == "synchronized" and accelerator.num_processes > 1:
        if accelerator.device.type == "cpu":
            raise ValueError(
                "batch_norm is synchronized, which torch supports on GPUs only. On CPU processes set batch_norm to "
                "local, or with pretrained backbones to frozen_backbone."
            )
        network = cast(PCMANetForAudioVisualSegmentation, nn.SyncBatchNorm.convert_sync_batchnorm(network))
    network.train()
    if "backbone" in recipe.freeze:
        network.model.backbone.eval()
    frozen = {"frozen": network, "frozen_backbone": network.model.backbone}.get(recipe.batch_norm)
    for module in [] if frozen is None else frozen.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return network


def build_optimizer(network: PCMANetForAudioVisualSegmentation, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the optimizer of all trainable parameters; with its own learning rate the backbone is a separate group."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    trainable = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    if recipe.backbone_learning_rate is None:
        groups = [{"params": [parameter for _, parameter in trainable], "peak": recipe.learning_rate}]
    else:
        rates = {False: recipe.learning_rate, True: recipe.backbone_learning_rate}
        groups = [
            {"params": [weight for name, weight in trainable if ("backbone." in name) == inside], "peak": rate}
            for inside, rate in rates.items()
        ]
    return kind(
        [group for group in groups if group["params"]],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=True,  # one pass over weights, gradients and moments
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, steps: int) -> None:
    """Set the learning rate of every parameter group for a step (from 0) out of `steps`."""
    factor = learning_rate_factor(step, steps, recipe.schedule, recipe.warmup_fraction)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def learning_rate_factor(step: int, steps: int, schedule: str, warmup_fraction: float) -> float:
    """Return the fraction of the peak learning rate: a linear warm-up, then constant or a cosine to 0.

    Args:
        step: From 0.
        steps: Of the complete training.
        schedule: "constant" or "cosine".
        warmup_fraction: Fraction of the steps in which the learning rate rises.

    Returns:
        In [0, 1].
    """
    warmup = max(1, round(steps * warmup_fraction)) if warmup_fraction else 0
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def start_average(
    network: PCMANetForAudioVisualSegmentation, decay: float | None, device: torch.device
) -> AveragedModel:
    """Copy a network for the moving average of its weights and of the statistics of BatchNorm.

    The copy is complete on every process and never wrapped. So an evaluation of it needs no communication between the
    processes and computes in float32, and saving it needs no gathering.

    Args:
        network: The network before `accelerator.prepare`.
        decay: Fraction of the average that each update keeps. Update n keeps at most n / (n + 10), so that the first one
            replaces the initial weights. With None every update does.
        device: Of the copy.
    """

    def blend(own: PARAM_LIST, new: PARAM_LIST, _: torch.Tensor | int) -> None:
        updates = int(average.n_averaged)  # which stays on the CPU, so that reading it waits for no device
        # The plain decay would keep mostly the initial weights until 1 / (1 - decay) steps are done.
        keep = min(decay or 0.0, updates / (updates + AVERAGE_WARMUP_STEPS))
        if own[0].is_floating_point():
            torch._foreach_lerp_(own, new, 1 - keep)
        else:
            torch._foreach_copy_(own, new)

    average = AveragedModel(network, multi_avg_fn=blend, use_buffers=True).eval().requires_grad_(False)
    average.module.to(device)
    return average


@torch.no_grad()
def update_average(average: AveragedModel, network: nn.Module) -> None:
    """Add the weights and statistics of the trained network after a step. All processes must call this.

    Args:
        average: See [`start_average`].
        network: The trained network without its wrappers. Its parameters may be sharded (FSDP2) or of another data type.
    """

    def values(own: Iterable[tuple[str, Any]], new: Iterable[tuple[str, Any]]) -> Iterator[torch.Tensor]:
        found = dict(new)
        return (_gather(found[name].detach()).to(tensor.dtype) for name, tensor in own)

    # All that `update_parameters` reads of a network.
    complete = SimpleNamespace(
        parameters=lambda: values(average.module.named_parameters(), network.named_parameters()),
        buffers=lambda: values(average.module.named_buffers(), network.named_buffers()),
    )
    average.update_parameters(cast(nn.Module, complete))


def _gather(values: torch.Tensor) -> torch.Tensor:
    """Gather a tensor that is sharded over the processes."""
    return values.full_tensor() if isinstance(values, DTensor) else values
