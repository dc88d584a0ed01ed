"""`pcmanet train`: train from a recipe, resume an interrupted run, evaluate the best weights, and upload them."""

import functools
import importlib
import os
import signal
import sys
from argparse import Namespace
from pathlib import Path

from modeling_pcmanet.hub_upload_pcmanet import create_repository
from pcmanet.dataset_scripts.evaluation import find_evaluation_clips
from pcmanet.dataset_scripts.paired import is_paired_data
from pcmanet.training.publishing import Publication, publish
from pcmanet.training.recipe import Recipe, describe_fields, read_recipe
from pcmanet.training.run import BEST, LAST, Run, start_run, train

from .arguments import INTERRUPTED, TERMINATED, parse_arguments


TEST = "test"  # folder of the evaluation on the test split


def run(arguments: Namespace) -> int:
    """Run the command.

    Args:
        arguments: The parsed command line.

    Returns:
        0; errors are raised.
    """
    if arguments.list_fields:
        print(f"Fields of a recipe [default]:\n{describe_fields()}")
        return 0
    # A wrong repository or token must fail now, before anything is written, and not after training.
    if arguments.push_to_hub and _is_main_process():
        create_repository(arguments.push_to_hub, private=arguments.hub_private)
    training = None
    try:
        recipe = _read_recipe(arguments)
        training = start_run(
            recipe,
            arguments.output,
            arguments.resume,
            arguments.max_steps,
            arguments.allow,
            needs_test=arguments.test is not None,
        )
        report = train(training, functools.partial(_test, training, arguments.test))
    except FloatingPointError as error:
        # The message says what to change, so no traceback is needed.
        raise ValueError(str(error)) from error
    except KeyboardInterrupt as interrupt:
        if _is_main_process():
            hint = "" if training is None else f" {training.checkpoints.resume_hint()}"
            print(f"\nInterrupted.{hint}", file=sys.stderr)
        sys.exit(TERMINATED if signal.SIGTERM in interrupt.args else INTERRUPTED)
    if _is_main_process():
        print(report)
        if arguments.push_to_hub:
            _push(training, arguments)
    return 0


def _is_main_process() -> bool:
    """Return whether this is the only process, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def _read_recipe(arguments: Namespace) -> Recipe:
    """Read the recipe; raise ValueError now, not after training, if AVSBench or clips have no complete test split."""
    recipe = read_recipe(arguments.recipe, arguments.set, data=arguments.data)
    if arguments.test and recipe.data is None:
        raise ValueError("--test: Sounding Shapes has no test split. Add --data, or leave out --test.")
    if arguments.test and recipe.data is not None and recipe.paired_data is None:
        find_evaluation_clips(recipe.data, recipe.task, "test", recipe.row_settings, recipe.on_error)
    return recipe


def _test(training: Run, clips: int | None) -> None:
    """Evaluate the best weights on the test split, if requested, as `pcmanet evaluate` does; all processes take part."""
    if clips is None:
        return
    words = evaluation_words(training.recipe, _weights(training), training.output / TEST, clips)
    # Like `pcmanet.cli.main`, import a command only when it runs.
    importlib.import_module("pcmanet.cli.evaluate").run(parse_arguments(words))


def evaluation_words(recipe: Recipe, folder: Path, output: Path, clips: int) -> list[str]:
    """Return the words of the command that evaluates weights on the test split of the data of their recipe.

    Args:
        recipe: Recipe of the training run.
        folder: Folder of the weights.
        output: Folder of the results.
        clips: Number of clips of paired data.
    """
    data = str(recipe.data)
    words = [
        "evaluate",
        str(folder),
        "--data",
        data,
        "--name",
        recipe.task,
        "--split",
        "test",
        "--output",
        str(output),
    ]
    words += ["--negative-audio", "silence", "noise", "--num-workers", str(recipe.num_workers)]
    words += ["--clips", str(clips)] if is_paired_data(data) else []
    words += ["--per-class"] if recipe.task == "avss" and not recipe.binary else []
    words += ["--on-error", recipe.on_error] if recipe.on_error != "raise" else []
    for name in recipe.row_settings.given:
        value = getattr(recipe, name)
        values = value if isinstance(value, tuple) else () if value is True else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


def _weights(training: Run) -> Path:
    """Return the folder of the best weights, or of the last ones if there was no evaluation."""
    return training.output / (BEST if training.progress.best else LAST)


def _push(training: Run, arguments: Namespace) -> None:
    """Upload the weights, with the evaluation on the test split if there was one."""
    tested = (training.output / TEST,) if arguments.test and training.is_complete else ()
    publication = Publication(
        _weights(training), arguments.push_to_hub, arguments.hub_code, arguments.hub_private, tested
    )
    print(f"Uploaded to {publish(publication)}")
