"""`pcmanet train`: train from a recipe, resume an interrupted run, evaluate the best weights, and upload them."""

import functools
import importlib
import shlex
import signal
import sys
from argparse import Namespace
from pathlib import Path

from modeling_pcmanet.hub_upload_pcmanet import create_repository
from pcmanet.dataset_scripts.problems import is_main_process
from pcmanet.training.data import class_names
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
        # A wrong repository or token must fail before anything is written, and nothing be created for a wrong recipe.
        if arguments.push_to_hub and is_main_process():
            create_repository(arguments.push_to_hub, private=arguments.hub_private)
        report = train(training, functools.partial(_test, training, arguments))
    except FloatingPointError as error:
        # The message says what to change, so no traceback is needed.
        raise ValueError(str(error)) from error
    except KeyboardInterrupt as interrupt:
        if is_main_process():
            hint = "" if training is None else f" {training.checkpoints.resume_hint()}"
            print(f"\nInterrupted.{hint}", file=sys.stderr)
        sys.exit(TERMINATED if signal.SIGTERM in interrupt.args else INTERRUPTED)
    if is_main_process():
        print(report)
        if arguments.push_to_hub:
            tested = arguments.test is not None and training.is_complete
            _push(training, arguments, evaluations=(training.output / TEST,) if tested else ())
    return 0


def _read_recipe(arguments: Namespace) -> Recipe:
    """Read the recipe; raise ValueError if --test does not apply to its data."""
    recipe = read_recipe(arguments.recipe, arguments.set, data=arguments.data)
    if arguments.test is not None and recipe.data is None:
        raise ValueError("--test: Sounding Shapes has no test split. Add --data, or leave out --test.")
    if arguments.test and recipe.paired_data is None:
        raise ValueError(
            f"--test {arguments.test}: a number of clips applies to paired data only, but data is {recipe.data}, whose table "
            "lists the clips. Use --test without a number."
        )
    return recipe


def _test(training: Run, arguments: Namespace) -> None:
    """Evaluate the best weights on the test split, if requested, as `pcmanet evaluate` does; all processes take part.

    If that fails, the weights are uploaded all the same.
    """
    if arguments.test is None:
        return
    words = evaluation_words(training.recipe, _weights(training), training.output / TEST, arguments.test)
    try:
        # Like `pcmanet.cli.main`, import a command only when it runs.
        importlib.import_module("pcmanet.cli.evaluate").run(parse_arguments(words))
    except Exception:
        if is_main_process():
            hint = f"The training is complete, but not its test. Repeat the test with: pcmanet {shlex.join(words)}"
            print(hint, file=sys.stderr)
            if arguments.push_to_hub:
                _push(training, arguments)
        raise


def evaluation_words(recipe: Recipe, folder: Path, output: Path, clips: int) -> list[str]:
    """Return the words of the command that evaluates weights on the test split of the data of their recipe.

    Args:
        recipe: Recipe of the training run.
        folder: Folder of the weights.
        output: Folder of the results.
        clips: Number of clips of paired data; 0 for the default of the command.
    """
    words = [
        "evaluate",
        str(folder),
        "--data",
        str(recipe.data),
        "--name",
        recipe.task,
        "--split",
        "test",
        "--output",
        str(output),
    ]
    words += ["--negative-audio", "silence", "noise", "--num-workers", str(recipe.num_workers)]
    words += ["--clips", str(clips)] if clips else []
    words += ["--per-class"] if len(class_names(recipe)) > 1 else []
    words += ["--on-error", recipe.on_error] if recipe.on_error != "raise" else []
    for name in recipe.row_settings.given:
        value = getattr(recipe, name)
        values = value if isinstance(value, tuple) else () if value is True else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


def _weights(training: Run) -> Path:
    """Return the folder of the best weights, or of the last ones if there was no evaluation."""
    return training.output / (BEST if training.progress.best else LAST)


def _push(training: Run, arguments: Namespace, evaluations: tuple[Path, ...] = ()) -> None:
    """Upload the weights, with their evaluations."""
    publication = Publication(
        _weights(training), arguments.push_to_hub, arguments.hub_code, arguments.hub_private, evaluations
    )
    print(f"Uploaded to {publish(publication)}")
