"""Load checkpoints, always with the installed code, and identify their weights.

A checkpoint is a folder, a Hub id (owner/name), or "demo" for the semantic demo model that is installed with the package.
"""

import hashlib
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers import pipeline
from transformers.utils import logging

from modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetProcessor
from modeling_pcmanet.modeling_audio_encoders import load_strict
from pcmanet.files import find_checkpoint
from pcmanet.pipelines.audio_visual_segmentation import AudioVisualSegmentationPipeline


Segmenter = TypeVar("Segmenter", bound=AudioVisualSegmentationPipeline)


def load_model(name: str) -> tuple[PCMANetForAudioVisualSegmentation, PCMANetProcessor]:
    """Load a checkpoint with its processor.

    Args:
        name: A folder, a Hub id or "demo".

    Returns:
        The model in evaluation mode on the CPU, and its processor.

    Raises:
        OSError: If the checkpoint is not found.
        ValueError: If it has another architecture, or weights are missing.
    """
    checkpoint = find_checkpoint(name)
    silence_transformers()
    model = load_strict(PCMANetForAudioVisualSegmentation, checkpoint)
    return model, PCMANetProcessor.from_pretrained(checkpoint)


def load_segmenter(
    name: str,
    device: torch.device | str | None = None,
    pipeline_class: type[Segmenter] = AudioVisualSegmentationPipeline,
) -> Segmenter:
    """Load a checkpoint as a pipeline.

    Args:
        name: A folder, a Hub id or "demo".
        device: The device of the model.
        pipeline_class: The class of the pipeline.

    Raises:
        OSError: If the checkpoint is not found.
        ValueError: If it has another architecture, or weights are missing.
    """
    checkpoint = find_checkpoint(name)
    silence_transformers()
    create: Any = pipeline  # its types list the tasks of transformers only
    return create(
        "audio-visual-segmentation",
        model=checkpoint,
        pipeline_class=pipeline_class,
        device=device,
    )


def silence_transformers() -> None:
    """Hide the messages and progress bars of transformers, which would break the output of a command."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def digest(model: PCMANetForAudioVisualSegmentation, processor: PCMANetProcessor) -> str:
    """Return 32 hexadecimal digits that identify the weights and the settings of a checkpoint."""
    checksum = hashlib.sha256((model.config.to_json_string() + processor.to_json_string()).encode())
    for values in model.state_dict().values():
        checksum.update(values.cpu().flatten().view(torch.uint8).numpy())
    return checksum.hexdigest()[:32]


def uses_cpu() -> bool:
    """Return whether processes of Accelerate run on the CPU: no accelerator is available, or ACCELERATE_USE_CPU is set.

    Accelerate must be told. By default it takes the CPU processes of torchrun for independent ones.
    """
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def start_processes(*, cpu: bool = False) -> PartialState:
    """Connect this process to the others that torchrun or `accelerate launch` started.

    Args:
        cpu: Whether to run on the CPU in any case, see [`uses_cpu`].
    """
    # Processes wait for the slowest one, whose videos may take days longer.
    return PartialState(cpu=cpu or uses_cpu(), timeout=timedelta(days=365))
