"""How a process of a run starts: alone or as one of many, and what it leaves in the run's folder."""

from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import TorchDynamoPlugin, parse_flag_from_env
from transformers.utils import logging

from modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetProcessor

from .checkpoints import FOLDER
from .recipe import Recipe
from .safe_folders import recover, written_aside
from .training_record import write_record


RECIPE = "recipe.yaml"
BEST, LAST = "best", "last"


def start_accelerator(recipe: Recipe) -> Accelerator:
    """Join the other processes, if there are any, on the devices there are."""
    logging.disable_progress_bar()  # of transformers, for a file that is written in a moment
    # Left to itself, Accelerate takes CPU processes of torchrun for one process each.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    precision = "no" if recipe.mixed_precision == "none" else recipe.mixed_precision
    # Inductor fails on sizes that it takes for variable; a run has few, each of which it then compiles for.
    dynamo = TorchDynamoPlugin(backend="inductor", dynamic=False) if recipe.compile else None
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision, dynamo_plugin=dynamo)
    if accelerator.state.deepspeed_plugin is not None:
        # DeepSpeed reads this off a loader that is prepared with the network; ours never is, it deals out clips itself.
        share = recipe.batch_size // (recipe.gradient_accumulation * accelerator.num_processes)
        settings = {"train_micro_batch_size_per_gpu": share, "gradient_clipping": recipe.gradient_clipping or 0.0}
        accelerator.state.deepspeed_plugin.deepspeed_config.update(settings)
    return accelerator


def open_output(output: Path, resume: bool, accelerator: Accelerator) -> None:
    """Make sure that the run's folder is free, or is to be gone on with, and tidy up what a kill left there.

    Raises:
        FileExistsError: If there is a run already and none is to be resumed.
    """
    there = [name for name in (RECIPE, FOLDER, BEST, LAST) if (output / name).exists()]
    if there and not resume:
        raise FileExistsError(
            f"{output} already holds a run ({', '.join(there)}): go on with it by adding --resume, or give another "
            "--output."
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and output.is_dir():
        recover(output)


def write_recipe(output: Path, recipe: Recipe, accelerator: Accelerator) -> None:
    """Leave the recipe beside what comes of it."""
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        (output / RECIPE).write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False))
    accelerator.wait_for_everyone()


def save_model(
    folder: Path, network: PCMANetForAudioVisualSegmentation, processor: PCMANetProcessor, record: dict[str, Any]
) -> None:
    """Save weights, processor and metrics.json with the figures they reached; one process calls this.

    Args:
        folder: Replaced if it is there; never seen half written.
        network: Not wrapped.
        processor: Its processor.
        record: What metrics.json holds besides the command and the environment.
    """
    with written_aside(folder) as aside:
        network.save_pretrained(aside)
        processor.save_pretrained(aside)
        write_record(aside, record)
