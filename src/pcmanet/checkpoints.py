"""Loading a checkpoint for the command, always with the code installed here, and saying which one it is."""

import hashlib
import re
from importlib.resources import files
from pathlib import Path

import torch
from transformers import Pipeline, pipeline
from transformers.utils import logging

from pcmanet.cli.arguments import DEMO_MODEL
from pcmanet.pipelines import AudioVisualSegmentationPipeline


DEMO_FOLDER = "pcmanet.examples"


def demo_file(name: str) -> Path:
    """Returns the path of what comes with the package: `demo.mp4`, `demo_model`, `demo_model_semantic`."""
    return Path(str(files(DEMO_FOLDER) / name))


def check_name(model: str) -> str:
    """Returns the folder or Hub id that `--model` means.

    Raises:
        FileNotFoundError: If it is neither.
    """
    if model == DEMO_MODEL:
        return str(demo_file("demo_model_semantic"))
    if not Path(model).is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model):
        raise FileNotFoundError(f"There is no checkpoint folder {model}. Give a folder, or a Hub id as owner/name.")
    return model


def load_segmenter(model: str, device: torch.device) -> Pipeline:
    """Loads a checkpoint.

    Args:
        model: Folder or Hub id, see [`check_name`].
        device: Where the network runs.

    Returns:
        The pipeline.

    Raises:
        OSError: If there is no such checkpoint.
        ValueError: If it is none of this architecture.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return pipeline(
        "audio-visual-segmentation",
        model=check_name(model),
        pipeline_class=AudioVisualSegmentationPipeline,
        device=device,
    )


def fingerprint(segmenter: Pipeline) -> str:
    """Returns a short name for the weights and settings of a checkpoint: 32 hexadecimal digits."""
    digest = hashlib.sha256((segmenter.model.config.to_json_string() + segmenter.processor.to_json_string()).encode())
    for values in segmenter.model.state_dict().values():
        digest.update(values.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
