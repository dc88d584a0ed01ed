"""Train a tiny network sharded over the processes as FSDP2 does, and once more complete in each of them, and compare.

    torchrun --standalone --nproc_per_node 2 tests/sharded_training.py FOLDER

Accelerate disables FSDP on a CPU, so this script calls the functions that it would call on GPUs, on a mesh of processes that
communicate over gloo. The checkpoint is written to FOLDER/checkpoint, the differences to FOLDER/found.json.
"""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin, fsdp2_prepare_model
from tiny_model import tiny_batch, tiny_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from modeling_pcmanet import PCMANetForAudioVisualSegmentation


STEPS = 3


def batch_of(step: int) -> dict[str, torch.Tensor]:
    """Return the batch of this process for a step."""
    batch = tiny_batch(seed=10 * step + dist.get_rank())
    generator = torch.Generator().manual_seed(100 * step + dist.get_rank())
    shape = (*batch["pixel_values"].shape[:2], *batch["pixel_values"].shape[3:])
    return batch | {"labels": torch.randint(0, 2, shape, generator=generator)}


def train(model: torch.nn.Module, *, average: bool) -> list[float]:
    """Take a few steps and return losses and gradient norms; `average` averages the gradients over the processes."""
    model.train()
    # Not Adam: it amplifies rounding of gradients that are zero up to rounding to complete steps.
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    results = []
    for step in range(STEPS):
        loss = model(**batch_of(step)).loss
        loss.backward()
        for weight in model.parameters() if average else ():
            if weight.grad is not None:
                dist.all_reduce(weight.grad)
                weight.grad /= dist.get_world_size()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf)
        optimizer.step()
        optimizer.zero_grad()
        results += [loss.item(), float(norm)]
    return results


def shard(model: torch.nn.Module) -> torch.nn.Module:
    """Shard a network as `accelerate launch` does with our fsdp2.yaml."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        state_dict_type="FULL_STATE_DICT",
    )
    # With gloo there is no precision to choose, and one mesh of all processes.
    state = SimpleNamespace(fsdp_plugin=plugin)
    return fsdp2_prepare_model(SimpleNamespace(state=state, mixed_precision="no", is_main_process=True), model)


def main(folder: Path) -> None:
    """Train both networks and write their differences."""
    dist.init_process_group("gloo")
    complete, sharded = tiny_model(freeze_audio_encoder=True), shard(tiny_model(freeze_audio_encoder=True))
    found = {
        "wrapped": sorted(
            {
                type(module).__name__.removeprefix("FSDP")
                for module in sharded.modules()
                if isinstance(module, FSDPModule)
            }
        ),
        "complete_parameters": sum(weight.numel() for weight in complete.parameters()),
        "local_parameters": sum(
            weight.to_local().numel() for weight in sharded.parameters() if isinstance(weight, DTensor)
        ),
    }
    results = train(complete, average=True), train(sharded, average=False)
    found["largest_relative_difference"] = max(abs(1 - first / second) for first, second in zip(*results, strict=True))

    gathered = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        expected = complete.state_dict()
        found["same_names"] = expected.keys() == gathered.keys()
        found["weight_difference"] = max(
            (expected[name].double() - gathered[name].double()).abs().max().item() for name in expected
        )
        start = dict(tiny_model(freeze_audio_encoder=True).named_parameters())
        found["largest_change"] = max((weight - gathered[name]).abs().max().item() for name, weight in start.items())
        # A copy, because save_pretrained empties the dict that it receives.
        sharded.save_pretrained(folder / "checkpoint", state_dict=dict(gathered))
        loaded = PCMANetForAudioVisualSegmentation.from_pretrained(folder / "checkpoint").state_dict()
        found["saved_difference"] = max((loaded[name] - gathered[name]).abs().max().item() for name in gathered)
        (folder / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
