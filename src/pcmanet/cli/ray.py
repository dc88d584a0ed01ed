"""`pcmanet segment --ray`: past one machine, as a Ray Data job over the same worker.

Every machine of the cluster sees the videos and the folder of results under the same paths and has pcmanet installed.
A row of the job is a handful of videos that become one shard. Shards are named after their videos: should Ray do a row
twice, because a machine was lost after it had published, the shard replaces itself.
"""

import logging
import math
import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pcmanet.checkpoints import load_segmenter

from .inputs import Videos, say
from .progress import Progress
from .results import OutputFolder
from .segment import (
    Worker,
    begin,
    choose_device,
    explain_full_disk,
    find_results,
    look_around,
    report,
    start_processes,
)


MOST_VIDEOS_PER_ROW = 32  # what a lost machine may cost
ROWS_PER_WORKER = 8  # at least, so that none waits long for the last


def run(arguments: Namespace) -> bool:
    """Segments what the command line asks for on a Ray cluster.

    Args:
        arguments: Of `pcmanet segment`.

    Returns:
        Whether there are videos that could not be segmented.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
        ConnectionError: If there is no cluster at the address.
    """
    ray = import_ray()
    output = OutputFolder(arguments.output)
    try:
        with explain_full_disk(arguments.output):
            videos = look_around(arguments, output)
            begin(output, arguments, load_segmenter(arguments.model, torch.device("cpu")))
            results = find_results(arguments, videos, output)
            pending = [name for name in videos.names if name not in results]
            connect(ray, arguments.ray)
            with Progress("segmenting on Ray", len(videos.names), len(videos.names) - len(pending)) as progress:
                for outcome in outcomes(ray, arguments, videos, pending):
                    progress.finish_video()
                    progress.say(outcome["line"], failed=outcome["failed"])
            return report(arguments, videos, output)
    finally:
        output.leave()


def import_ray() -> ModuleType:
    """Imports Ray, which is an extra."""
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'--ray needs Ray Data, but {error.name} is not installed. Install it with pip install "pcmanet[archive]".'
        ) from error
    return ray


def connect(ray: ModuleType, address: str) -> None:
    """Connects to a cluster, unless this process is in one already."""
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise ConnectionError(f"There is no Ray cluster at {address}: {say(error)}") from error
    # What the job does is said by the bar of this command.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def outcomes(ray: ModuleType, arguments: Namespace, videos: Videos, pending: list[str]) -> Iterator[dict[str, Any]]:
    """Runs the job and yields, as it goes, how it went with each video."""
    if not pending:
        return
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    workers = min(arguments.ray_workers or gpus or int(resources["CPU"]), len(pending))
    size = min(MOST_VIDEOS_PER_ROW, math.ceil(len(pending) / (workers * ROWS_PER_WORKER)))
    rows = [{"videos": pending[first : first + size]} for first in range(0, len(pending), size)]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        RayWorker,
        fn_constructor_args=(arguments, videos, Path.cwd()),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    for row in done.iter_rows():
        yield from row["outcomes"]


class RayWorker:
    """A worker in a process of the cluster.

    Args:
        arguments: Of `pcmanet segment`.
        videos: All videos of the run.
        folder: From where relative paths lead.
    """

    def __init__(self, arguments: Namespace, videos: Videos, folder: Path) -> None:
        os.chdir(folder)
        device = choose_device(arguments.device, start_processes(arguments.device))
        output = OutputFolder(arguments.output)
        output.join()
        self._worker = Worker(arguments, videos, load_segmenter(arguments.model, device), output)
        # Published once per row, whatever the time: only so does a row that is done twice replace itself.
        if self._worker.shards is not None:
            self._worker.shards.seconds = math.inf

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Segments the videos of one row."""
        with self._worker, Progress("", 0, hidden=True) as progress:
            done = [self._worker.segment(name, progress) for name in row["videos"]]
        return {"outcomes": [{"line": outcome.line, "failed": outcome.error is not None} for outcome in done]}
