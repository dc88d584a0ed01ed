"""Trains PCMANet with Accelerate: on AVSBench, on one's own clips or on Sounding Shapes; killed and resumed exactly.

    python examples/train_pcmanet.py --recipe examples/recipes/smoke.yaml --output runs/smoke      # a minute, to see it work
    pretrained="visual_backbone=OpenGVLab/pvt_v2_b5 audio_encoder=vggish"
    python examples/train_pcmanet.py --recipe examples/recipes/s4.yaml --output runs/s4 --set data=AVSBench $pretrained
    python examples/train_pcmanet.py --recipe examples/recipes/own_folder.yaml --output runs/mine --set data=my_clips $pretrained

`vggish` is the folder that `python -m modeling_pcmanet.convert_pcmanet_to_hf` writes from the published weights of VGGish.

A recipe (docs/recipes.md lists those that are here) names everything on which the weights depend; `--help` lists its fields,
`--set` changes any of them: `--set learning_rate=1e-4 batch_size=16 configuration.num_groups=4`.

Killed at any moment, the same command goes on with `--resume`; the weights are those of a run that was never killed, bit for
bit on a CPU. `batch_size` counts clips over all processes, so a recipe means the same on one GPU and on eight:

    accelerate launch --num_processes 8 examples/train_pcmanet.py --recipe examples/recipes/avss.yaml --output runs/avss \
        --set data=AVSBench batch_size=8 $pretrained
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 examples/train_pcmanet.py --recipe ...     # two CPU processes

OUTPUT receives best/ and last/ (checkpoints for `from_pretrained`, each with its processor and metrics.json), checkpoints/
(to resume from), recipe.yaml, log.jsonl, overlays/ and tensorboard/.

The demo model (binary, several sources) was made in four runs. Its small VGGish first learns to name sounds and is then
frozen. The second run goes on with every picture under two sounds, so that looking alone never explains the masks; the third
with many sounds of classes that are not in the picture; the last with all negative sounds again:

    recipe="--recipe examples/recipes/sounding_shapes.yaml"
    python examples/train_pcmanet.py $recipe --set listening_sounds=4800 evaluations=16 --output runs/first
    python examples/train_pcmanet.py $recipe --output runs/second --set initialize_from=runs/first/best seed=1 \
        pair_sounds=true clips=20000 learning_rate=1.5e-3
    python examples/train_pcmanet.py $recipe --output runs/third --set initialize_from=runs/second/best seed=2 \
        pair_sounds=true clips=7000 negative_fraction=0.2 "negative_kinds=[absent_class]" learning_rate=7e-4 evaluations=5
    python examples/train_pcmanet.py $recipe --output runs/demo_model --set initialize_from=runs/third/best seed=3 \
        pair_sounds=true clips=3200 negative_fraction=0.3 learning_rate=5e-4 evaluations=2

Its semantic sister starts from the first run:

    python examples/train_pcmanet.py $recipe --output runs/demo_model_semantic --set task=avss \
        initialize_from=runs/first/best seed=1 pair_sounds=true clips=14000 learning_rate=1.5e-3
"""

import argparse
import contextlib
import math
import os
import sys
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tqdm.auto import tqdm

from modeling_pcmanet.hub_upload_pcmanet import create_repository
from pcmanet.training.checkpoints import CheckpointError
from pcmanet.training.data import Batch, scored_frames
from pcmanet.training.evaluation import STAGES
from pcmanet.training.network import set_learning_rate
from pcmanet.training.publishing import Publication, publish
from pcmanet.training.recipe import describe_fields, read_recipe
from pcmanet.training.run import BEST, LAST, Run, start_run


class LossError(ArithmeticError):
    """A loss that is no finite number."""


# Of what was given, not of this program.
USER_ERRORS = (OSError, ValueError, StrictDataclassError, SafetensorError, CheckpointError, LossError)


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=describe_fields(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that the run writes")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="YAML file; the defaults below without it")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="fields of the recipe, as in YAML"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="CHECKPOINT",
        help="go on with the run in OUTPUT from its latest checkpoint, or from another of its checkpoints",
    )
    parser.add_argument(
        "--max-steps", type=int, help="stop after this many steps in all with a checkpoint; the schedule stays"
    )
    parser.add_argument("--push-to-hub", metavar="ID", help="upload the best weights to this repository at the end")
    parser.add_argument(
        "--hub-code", action="store_true", help="also upload our modules, for use without this package"
    )
    parser.add_argument("--hub-private", action="store_true", help="make a new repository private")
    args = parser.parse_args()
    if args.max_steps is not None and args.max_steps < 1:
        parser.error(f"--max-steps is {args.max_steps}; it starts at 1")
    return args


def take_step(run: Run, batches: list[Batch]) -> dict[str, float]:
    """Does one optimizer step.

    The loss is the mean over the annotated frames of all clips of the step, however they are dealt out to processes and to
    rounds of accumulation. So each batch weighs as many frames as it has.

    Raises:
        LossError: If the loss is not finite.
    """
    accelerator, optimizer = run.accelerator, run.optimizer
    counts = [scored_frames(batch).sum() for batch in batches]
    total = accelerator.reduce(torch.stack(counts).sum(), "sum").clamp(min=1)
    sums = torch.zeros(len(STAGES), device=accelerator.device)  # of the loss and of three kept ratios
    for number, (batch, count) in enumerate(zip(batches, counts, strict=True), start=1):
        accelerator.sync_gradients = number == len(batches)
        with contextlib.nullcontext() if accelerator.sync_gradients else accelerator.no_sync(run.wrapped):
            outputs = run.wrapped(**batch)
            # Gradients are averaged over the processes, so a mean over all their frames needs their number again.
            accelerator.backward(outputs.loss * (count / total * accelerator.num_processes))
        sums += torch.cat([outputs.loss.detach().float()[None], outputs.kept_ratios.float()]) * (count / total)
    loss, *kept_ratios = accelerator.reduce(sums, "sum").tolist()
    if not math.isfinite(loss):
        remedy = "Lower learning_rate, lengthen warmup_fraction or set mixed_precision to none"
        step = run.progress.step + 1
        raise LossError(f"the loss of step {step} is {loss}. {remedy}. {run.checkpoints.resume_hint()}")
    norm = accelerator.clip_grad_norm_(run.wrapped.parameters(), run.recipe.gradient_clipping or math.inf)
    optimizer.step()
    optimizer.zero_grad()
    figures = {"loss": loss, "learning_rate": optimizer.param_groups[0]["lr"]}
    figures |= {} if norm is None else {"gradient_norm": float(norm)}  # DeepSpeed may keep it to itself
    return figures | {f"stage_{stage}/kept_ratio": ratio for stage, ratio in zip(STAGES, kept_ratios, strict=False)}


def train(run: Run) -> None:
    """Trains from where the run stands to its end."""
    bar = tqdm(
        desc="training",
        unit="step",
        total=run.last_step,
        initial=run.progress.step,
        mininterval=1.0,
        disable=not run.accelerator.is_main_process,
    )
    for batches in run.steps():
        set_learning_rate(run.optimizer, run.recipe, run.progress.step, run.plan.steps)
        figures = take_step(run, batches)
        run.finish_step(figures)
        bar.update()
        best = f"{run.progress.best['miou']:.4f}" if run.progress.best else "none yet"
        bar.set_postfix(loss=f"{figures['loss']:.3f}", best=best, refresh=False)
        if run.progress.stopped:
            break
    bar.close()


def main() -> None:
    """Trains and says where the checkpoint lies."""
    args, run = parse_args(), None
    try:
        # A wrong name or token shall show now, before anything is written, and not at the end.
        if args.push_to_hub and os.environ.get("RANK", "0") == "0":
            create_repository(args.push_to_hub, private=args.hub_private)
        run = start_run(read_recipe(args.recipe, args.set), args.output, args.resume, args.max_steps)
        train(run)
        outcome = run.finish()
        if run.accelerator.is_main_process:
            print(outcome)
            if args.push_to_hub:
                folder = args.output / (BEST if run.progress.best else LAST)
                address = publish(Publication(folder, args.push_to_hub, args.hub_code, args.hub_private))
                print(f"pushed to {address}")
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if run is None or run.accelerator.is_main_process:
            print(f"interrupted{'' if run is None else f'. {run.checkpoints.resume_hint()}'}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
