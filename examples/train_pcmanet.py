r"""Train PCMANet from Python. The command `pcmanet train` does the same, and everything described below.

    python examples/train_pcmanet.py --recipe smoke --output runs/smoke        # a minute, as a test

A recipe (docs/reference/recipes.md lists those in examples/recipes) contains everything that determines the weights. `pcmanet train
--list-fields` lists its fields; `--set` changes any of them, for example `--set learning_rate=1e-4 batch_size=16`:

    pcmanet train --recipe smoke --output runs/smoke
    pretrained="visual_backbone=OpenGVLab/pvt_v2_b5 audio_encoder=vggish"
    pcmanet train --recipe s4 --data AVSBench --output runs/s4 --set $pretrained
    pcmanet train --recipe own_folder --data my_clips --output runs/mine --set $pretrained

`vggish` is the folder that `python -m modeling_pcmanet.convert_pcmanet_to_hf` writes from the published weights of VGGish.

Add `--resume` to the same command to resume an interrupted run. On a CPU the weights are bit-identical to those of an
uninterrupted run. `batch_size` counts the clips of all processes, so a recipe means the same on one GPU and on eight:

    accelerate launch --num_processes 8 -m pcmanet train --recipe avss --data AVSBench \
        --output runs/avss --set batch_size=8 $pretrained
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m pcmanet train --recipe ...     # two CPU processes

OUTPUT receives best/ and last/ (checkpoints for `from_pretrained`, each with its processor and metrics.json), checkpoints/
(to resume from), recipe.yaml, log.jsonl, overlays/ and tensorboard/.

The demo model (binary, several sources) was trained in four runs. Its small VGGish is first trained to classify sounds and
then frozen. The second run uses every video twice with different audio, so that frames alone never explain the masks; the
third has a high fraction of sounds whose class is not visible; the last has all kinds of negative audio again:

    recipe="--recipe sounding_shapes"
    pcmanet train $recipe --set audio_pretraining_clips=4800 evaluations=16 --output runs/first
    pcmanet train $recipe --output runs/second --set initialize_from=runs/first/best seed=1 \
        pair_audio=true clips=20000 learning_rate=1.5e-3
    pcmanet train $recipe --output runs/third --set initialize_from=runs/second/best seed=2 \
        pair_audio=true clips=7000 negative_fraction=0.2 "negative_kinds=[absent_class]" learning_rate=7e-4 evaluations=5
    pcmanet train $recipe --output runs/demo_model --set initialize_from=runs/third/best seed=3 \
        pair_audio=true clips=3200 negative_fraction=0.3 learning_rate=5e-4 evaluations=2

The semantic demo model was initialized from the first run:

    pcmanet train $recipe --output runs/demo_model_semantic --set task=avss \
        initialize_from=runs/first/best seed=1 pair_audio=true clips=14000 learning_rate=1.5e-3
"""

import argparse
from pathlib import Path

from pcmanet.training.recipe import read_recipe
from pcmanet.training.run import start_run, train


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        required=True,
        help="YAML file with the fields that differ from the defaults, or the name of an installed recipe, such as s4",
    )
    parser.add_argument("--data", help="folder of AVSBench or of your own clips (default: generated Sounding Shapes)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    return parser.parse_args()


def main() -> None:
    """Train from a recipe and print how the run ended."""
    args = parse_args()
    run = start_run(read_recipe(args.recipe, data=args.data), args.output)
    report = train(run)
    run.accelerator.print(report)


if __name__ == "__main__":
    main()
