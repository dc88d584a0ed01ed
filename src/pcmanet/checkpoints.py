"""Load checkpoints, always with the installed code, identify their weights, and measure their cost.

A checkpoint is a folder, a Hub id (owner/name), or "real_world" for the model that is installed with the package.
"""

import statistics
import time
from collections.abc import Mapping
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig
from transformers.utils import logging

from modeling_pcmanet import PCMANetConfig, PCMANetForAudioVisualSegmentation, PCMANetProcessor
from modeling_pcmanet.modeling_audio_encoders import digest_weights, load_strict
from pcmanet.files import find_checkpoint
from pcmanet.pipelines.audio_visual_segmentation import TASK, AudioVisualSegmentationPipeline


# Parts of the network for which parameters are counted, and their modules.
PARTS = {"audio encoder": "model.audio_encoder", "backbone": "model.backbone", "fusion and decoder": "model"}
CLIP_FRAMES = 5  # frames of a clip of S4 or MS3, for which costs are given
TIMED_RUNS, TIMED_SECONDS = 20, 3.0  # limits of the speed measurement

Segmenter = TypeVar("Segmenter", bound=AudioVisualSegmentationPipeline)


def load_model(name: str) -> tuple[PCMANetForAudioVisualSegmentation, PCMANetProcessor]:
    """Load a checkpoint with its processor.

    Args:
        name: A folder, a Hub id or "real_world".

    Returns:
        The model in evaluation mode on the CPU, and its processor.

    Raises:
        OSError: If the checkpoint is not found.
        ValueError: If it has another architecture, or weights are missing or damaged.
    """
    checkpoint = find_checkpoint(name)
    silence_transformers()
    return load_strict(PCMANetForAudioVisualSegmentation, checkpoint), PCMANetProcessor.from_pretrained(checkpoint)


def load_config(name: str) -> PCMANetConfig:
    """Load the configuration of a checkpoint, without its weights.

    Args:
        name: A folder, a Hub id or "real_world".

    Raises:
        OSError: If the checkpoint is not found.
        ValueError: If it has another architecture.
    """
    config = AutoConfig.from_pretrained(find_checkpoint(name))
    if not isinstance(config, PCMANetConfig):
        raise ValueError(
            f"Expected a checkpoint of {PCMANetConfig.model_type}, but {name} is one of {config.model_type}."
        )
    return config


def load_segmenter(
    name: str,
    device: torch.device | str | None = None,
    pipeline_class: type[Segmenter] = AudioVisualSegmentationPipeline,
    dtype: str = "auto",
) -> Segmenter:
    """Load a checkpoint as a pipeline.

    Args:
        name: A folder, a Hub id or "real_world".
        device: The device of the model.
        pipeline_class: The class of the pipeline.
        dtype: Name of the data type in which the optimized model computes, or "auto", see `choose_dtype` of the pipeline. The
            weights are loaded as they were saved and rounded once, unlike with `pipeline(..., dtype="bfloat16")`.

    Raises:
        OSError: If the checkpoint is not found.
        ValueError: If it has another architecture, weights are missing or damaged, or the device is not available.
    """
    device = find_device(device) if isinstance(device, str) else device
    model, processor = load_model(name)
    return pipeline_class(model=model, processor=processor, task=TASK, device=device, dtype=dtype)


def find_device(name: str) -> torch.device:
    """Return a device after checking that it can be used.

    Args:
        name: Its name on the command line, such as "cpu" or "cuda:1".

    Raises:
        ValueError: If this machine does not have it.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # an error also on the device "meta", which holds no values
    except (RuntimeError, AssertionError) as error:
        accelerator, count = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
        known = ["cpu", *(f"{accelerator}:{index}" for index in range(count))]
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"--device {name} is not available: {reason}. Devices of this machine: {', '.join(known)}."
        ) from error
    return device


def silence_transformers() -> None:
    """Hide the messages and progress bars of transformers, which would break the output of a command."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def digest(model: PCMANetForAudioVisualSegmentation, processor: PCMANetProcessor) -> str:
    """Return 32 hexadecimal digits that identify the weights and the settings of a checkpoint."""
    return digest_weights(model, processor.to_json_string())


def count_parameters(config: PCMANetConfig, parts: Mapping[str, str] = PARTS) -> dict[str, int]:
    """Count the parameters of a network by part.

    Args:
        config: Configuration of the network.
        parts: The module of each part, with `*` for any text. A parameter counts for the first part that contains it.

    Returns:
        The number of each part. The default parts add up to the network, including its audio encoder.
    """
    with torch.device("meta"):
        network = PCMANetForAudioVisualSegmentation(config)
    counts = dict.fromkeys(parts, 0)
    for name, values in network.named_parameters():
        part = next((part for part, module in parts.items() if fnmatchcase(name, f"{module}.*")), None)
        if part is not None:
            counts[part] += values.numel()
    return counts


def count_gmacs(config: PCMANetConfig, processor: PCMANetProcessor, frames: int = CLIP_FRAMES) -> float:
    """Count the multiply-accumulates of convolutions and matrix products, including the audio encoder.

    Args:
        config: Configuration of the network. All queries count, however many of them it selects.
        processor: Its processor, which determines the sizes of the inputs.
        frames: Frames of the clip.

    Returns:
        The number per frame, in billions.
    """
    settings = {**config.to_dict(), "gather_queries": False}  # how many queries are gathered depends on the values
    batch = {name: values.to("meta") for name, values in _example(processor, frames).items()}
    with torch.device("meta"):
        network = PCMANetForAudioVisualSegmentation(type(config).from_dict(settings)).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(**batch)
    return counter.get_total_flops() / 2e9 / frames  # a multiply-accumulate is two operations


def measure_speed(model: Any, processor: PCMANetProcessor, frames: int = CLIP_FRAMES) -> float:
    """Measure how fast a network segments single clips, including its audio encoder but not the reading of files.

    Args:
        model: The network, optimized or not, on its device.
        processor: Its processor.
        frames: Frames of a clip.

    Returns:
        Frames per second, the median of several runs after one that is not timed.
    """
    batch = {name: values.to(model.device) for name, values in _example(processor, frames).items()}
    seconds: list[float] = []
    with torch.inference_mode():
        while len(seconds) <= TIMED_RUNS and (len(seconds) < 3 or sum(seconds) < TIMED_SECONDS):
            start = time.perf_counter()
            model(**batch).logits.flatten()[0].item()  # waits until the device has finished
            seconds.append(time.perf_counter() - start)
    return frames / statistics.median(seconds[1:])


def _example(processor: PCMANetProcessor, frames: int) -> dict[str, torch.Tensor]:
    """Return the inputs of a clip of noise."""
    generator, rate = np.random.default_rng(0), processor.feature_extractor.sampling_rate
    video = generator.integers(0, 256, (frames, 32, 32, 3), dtype=np.uint8)
    batch = processor(
        videos=video, audio=generator.uniform(-0.1, 0.1, frames * rate), sampling_rate=rate, return_tensors="pt"
    )
    return dict(batch)


def uses_cpu() -> bool:
    """Return whether processes of Accelerate run on the CPU: no accelerator is available, or ACCELERATE_USE_CPU is set.

    Accelerate must be told. By default, it treats the CPU processes of torchrun as independent.
    """
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def start_processes(*, cpu: bool = False) -> PartialState:
    """Connect this process to the others that torchrun or `accelerate launch` started.

    Args:
        cpu: Whether to run on the CPU even if an accelerator is available, see [`uses_cpu`].
    """
    # Processes wait for the slowest one, whose videos may take days longer.
    return PartialState(cpu=cpu or uses_cpu(), timeout=timedelta(days=365))
