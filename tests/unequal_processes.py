"""What processes that differ do together: wait for the first one, and take over its weights.

    torchrun --standalone --nproc_per_node 2 tests/unequal_processes.py FOLDER

Each process writes what it found to FOLDER/RANK.json.
"""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from training_runs import TINY_RUN

from modeling_pcmanet import VGGishConfig, VGGishModel
from pcmanet.training.recipe import Recipe
from pcmanet.training.run import build_processor, main_process_first, pretrain_audio_encoder


TIMEOUT = 4  # seconds of an exchange between processes
PREPARATION = 8  # seconds that the first process needs


def main(folder: Path) -> None:
    """Run both and write the times and the weights."""
    # The first exchange may wait for a process that still imports.
    accelerator = Accelerator(cpu=True)
    accelerator.wait_for_everyone()
    torch.distributed.set_timeout(timedelta(seconds=TIMEOUT))
    started = time.monotonic()
    with main_process_first(accelerator):
        if accelerator.is_main_process:
            time.sleep(PREPARATION)
        entered = time.monotonic() - started
    torch.distributed.set_timeout(timedelta(minutes=10))

    torch.manual_seed(accelerator.process_index)
    encoder = VGGishModel(VGGishConfig(block_channels=[[4], [4], [4]], hidden_size=8, embedding_size=10))
    before = [weight.sum().item() for weight in encoder.parameters()]
    recipe = Recipe(**TINY_RUN, audio_pretraining_clips=2)
    pretrain_audio_encoder(encoder, build_processor(recipe), recipe, accelerator.device, quiet=True)
    after = [weight.sum().item() for weight in encoder.parameters()]
    found = {"entered": entered, "before": before, "after": after}
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(found))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
