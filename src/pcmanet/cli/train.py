"""`pcmanet train`: train from a recipe, resume an interrupted run, and upload the best weights."""

import os
import signal
import sys
from argparse import Namespace

from modeling_pcmanet.hub_upload_pcmanet import create_repository
from pcmanet.training.publishing import Publication, publish
from pcmanet.training.recipe import describe_fields, read_recipe
from pcmanet.training.run import BEST, LAST, Run, start_run, train

from .arguments import INTERRUPTED, TERMINATED


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
    # A wrong repository or token must show now, before anything is written, and not after the training.
    if arguments.push_to_hub and _is_main_process():
        create_repository(arguments.push_to_hub, private=arguments.hub_private)
    training = None
    try:
        recipe = read_recipe(arguments.recipe, arguments.set, data=arguments.data)
        training = start_run(recipe, arguments.output, arguments.resume, arguments.max_steps, arguments.allow)
        report = train(training)
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


def _push(training: Run, arguments: Namespace) -> None:
    """Upload the best weights, or the last ones if there was no evaluation."""
    folder = arguments.output / (BEST if training.progress.best else LAST)
    publication = Publication(folder, arguments.push_to_hub, arguments.hub_code, arguments.hub_private)
    print(f"Uploaded to {publish(publication)}")
