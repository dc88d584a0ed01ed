"""`pcmanet segment --ray`: past one machine, as a Ray Data job over the same worker.

Every machine of the cluster sees the videos and the folder of results under the same paths and has pcmanet installed.
A row of the job is a handful of videos that become one shard. Shards are named after their videos: should Ray do a row
twice, because a machine was lost after it had published, the shard replaces itself.
"""

import errno
import logging
import math
import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from transformers import Pipeline

from pcmanet.checkpoints import check_name, demo_file, fingerprint, load_segmenter

from .arguments import STOPPED, parse_arguments
from .inputs import VIDEO_ERRORS, Videos, find_videos, name_folders, printable, say
from .progress import Progress
from .render import draw, open_video, record
from .results import (
    RECORDS,
    Outcome,
    OutputFolder,
    RecordedResults,
    ShardWriter,
    check_ours,
    find_done,
    format_table,
    rows_of_video,
    summarize,
)


class Worker:
    """Segments videos, each whole or not at all.

    Used as a context it publishes in the end, also after Ctrl-C, the rows of those videos that are whole.

    Args:
        arguments: Of `pcmanet segment`.
        videos: All videos of the run.
        segmenter: The pipeline.
        output: The folder of results, begun or joined.
    """

    def __init__(self, arguments: Namespace, videos: Videos, segmenter: Pipeline, output: OutputFolder) -> None:
        self.arguments = arguments
        self.videos = videos
        self.segmenter = segmenter
        self.output = output
        is_archive = arguments.format == "parquet"
        self.shards = ShardWriter(output.path, arguments.shard_minutes * 60) if is_archive else None
        self.folders = name_folders(videos.names) if has_folders(arguments) else {}

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        if self.shards is not None:
            self.shards.publish()

    def segment(self, name: str, progress: Progress) -> Outcome:
        """Segments one video and adds it to the results.

        Args:
            name: Which.
            progress: Told how far it is.

        Returns:
            How it went. What is wrong with the video is told here.

        Raises:
            OSError: If the results cannot be written: a full disk ...
        """
        shown = printable(name)
        with self.output.aside() as aside:
            whole = aside / "whole"
            whole.mkdir()
            records = (aside if self.shards is not None else whole) / RECORDS
            results = RecordedResults(records)
            try:
                source, audio = self.videos.read(name)
                video = open_video(name, source, audio)
                with progress.stage(shown, video.seconds) as advance:
                    record(self.segmenter, video, self.arguments, results, advance)
                with progress.stage(f"drawing {shown}", video.seconds) as advance:
                    draw(self.segmenter, video, self.arguments, whole, results, advance)
            except VIDEO_ERRORS as error:
                return self._fail(shown, say(error))

            outcome = summarize(shown, results)
            table = format_table(results) if len(self.videos.names) == 1 else None
            if self.folders:
                self.output.publish(whole, self.folders[name], self.videos.identify(name))
            if self.shards is not None:
                self.shards.add(shown, rows_of_video(shown, results.records()))
        # Said last: a reader of the output who left takes nothing of the results along.
        if table is not None:
            progress.say(table)
        return outcome

    def _fail(self, name: str, error: str) -> Outcome:
        """Notes that a video could not be segmented."""
        if self.shards is not None:
            self.shards.add_error(name, error)
        return Outcome(name, error=error)


def has_folders(arguments: Namespace) -> bool:
    """Tells whether each video gets a folder of its own."""
    return arguments.format != "parquet" or arguments.overlay or arguments.contact_sheet


def check_folders(arguments: Namespace, videos: Videos, output: OutputFolder) -> None:
    """Refuses videos whose results would share a folder, with each other or with those of earlier videos.

    Args:
        arguments: Of `pcmanet segment`.
        videos: All videos of the run.
        output: The folder of results.

    Raises:
        ValueError: If there are such videos.
    """
    if has_folders(arguments):
        for name, folder in name_folders(videos.names).items():
            if output.holds(folder) and not arguments.overwrite:
                output.check_video(folder, videos.identify(name))


def find_results(arguments: Namespace, videos: Videos, output: OutputFolder) -> dict[str, bool]:
    """Finds what is done.

    Args:
        arguments: Of `pcmanet segment`.
        videos: All videos of the run.
        output: The folder of results.

    Returns:
        Every one of these videos that has a result, and whether it was segmented (else the result is an error).
    """
    if arguments.format == "parquet":
        done = find_done(output.path)
        return {name: done[printable(name)] for name in videos.names if printable(name) in done}
    folders = name_folders(videos.names)
    return {name: True for name in videos.names if output.holds(folders[name])}


# Processes wait for the slowest of them, whose videos may take days longer.
LONGEST_WAIT = timedelta(days=365)


@contextmanager
def explain_full_disk(output: Path) -> Iterator[None]:
    """Turn the system's error for a full disk into one that says what is kept and how to resume."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"No space left on the disk of {output}. Finished results are complete and kept. Free some space and run the "
            "same command again, without --overwrite."
        ) from error


def run(arguments: Namespace) -> bool:
    """Run `pcmanet segment` or `pcmanet demo`.

    Args:
        arguments: Of the command.

    Returns:
        Whether some videos could not be segmented.
    """
    if arguments.command == "demo":
        return run_demo(arguments)
    with explain_full_disk(arguments.output):
        return run_on_ray(arguments) if arguments.ray else run_in_processes(arguments)


def run_in_processes(arguments: Namespace) -> bool:
    """Segment the videos in this process and those that were launched with it; return whether some failed."""
    state = start_processes(arguments.device)
    output = OutputFolder(arguments.output)
    try:
        videos, segmenter = prepare_together(arguments, output, state)
        work(arguments, videos, segmenter, output, state)
        state.wait_for_everyone()
        return report(arguments, videos, output, silent=not state.is_main_process)
    finally:
        output.leave()
        state.destroy_process_group()


def prepare_together(arguments: Namespace, output: OutputFolder, state: PartialState) -> tuple[Videos, Pipeline]:
    """Prepares the first process, then the others, which take the names of the videos from it.

    What is wrong is said once: the first process raises it, the others then end without a word.
    """
    prepared, failure = None, None
    if state.is_main_process:
        try:
            prepared = prepare(arguments, output, state)
        except Exception as error:  # raised below, after the others were told
            failure = error
    names = broadcast_object_list([prepared and prepared[0].names])[0]
    if failure is not None:
        raise failure
    if names is None:
        raise SystemExit(STOPPED)
    videos, segmenter = prepared or prepare(arguments, output, state)
    videos.names = names
    return videos, segmenter


def prepare(arguments: Namespace, output: OutputFolder, state: PartialState) -> tuple[Videos, Pipeline]:
    """Finds the videos, loads the checkpoint and begins the run, or joins that of the first process."""
    first = state.is_main_process
    videos = find_and_check_videos(arguments, output) if first else find_videos(arguments, look=False)
    segmenter = load_segmenter(arguments.model, choose_device(arguments.device, state))
    if first:
        begin(output, arguments, segmenter)
    else:
        output.join()
    return videos, segmenter


def start_processes(device: str | None) -> PartialState:
    """Meets the other processes of a run that torchrun or `accelerate launch` started."""
    # Left to itself, PartialState takes CPU processes of torchrun for one process each.
    on_cpu = device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=on_cpu, timeout=LONGEST_WAIT)


def choose_device(device: str | None, state: PartialState) -> torch.device:
    """Returns the device of this process.

    Raises:
        ValueError: If there is no such device, or one device was named for several processes.
    """
    if device is None:
        return state.device
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    if state.num_processes > 1 and wanted.index is not None:
        raise ValueError(f"--device {device} is one, but there are {state.num_processes} processes. Leave it out.")
    return wanted if state.num_processes == 1 else state.device


def find_and_check_videos(arguments: Namespace, output: OutputFolder) -> Videos:
    """Finds the videos, and what speaks against the run, while it has cost nothing and written nothing."""
    check_ours(output.path, thoroughly=arguments.overwrite)
    videos = find_videos(arguments)
    check_folders(arguments, videos, output)
    return videos


def begin(output: OutputFolder, arguments: Namespace, segmenter: Pipeline) -> None:
    """Begins a run in the folder of results."""
    names = ("format", "frames_per_second", "threshold", "minimum_area", "early_exit_threshold")
    names += ("overlay", "overlay_frames_per_second", "contact_sheet")
    output.begin(
        check_name(arguments.model),
        {"checkpoint": fingerprint(segmenter), **{name: getattr(arguments, name) for name in names}},
        is_archive=arguments.format == "parquet",
        overwrite=arguments.overwrite,
        retry_failed=arguments.retry_failed,
    )


def work(arguments: Namespace, videos: Videos, segmenter: Pipeline, output: OutputFolder, state: PartialState) -> None:
    """Does this process's share of the videos but for those that are done."""
    share = videos.names[state.process_index :: state.num_processes]
    results = find_results(arguments, videos, output)
    pending = [name for name in share if name not in results]
    title = "segmenting" if state.num_processes == 1 else f"segmenting, 1 of {state.num_processes} processes"
    done, hidden = len(share) - len(pending), not state.is_main_process
    with (
        Worker(arguments, videos, segmenter, output) as worker,
        Progress(title, len(share), done, hidden=hidden) as bars,
    ):
        for name in pending:
            outcome = worker.segment(name, bars)
            bars.finish_video()
            if outcome.error is not None or len(videos.names) > 1:
                bars.say(outcome.line, failed=outcome.error is not None)


def report(arguments: Namespace, videos: Videos, output: OutputFolder, *, silent: bool = False) -> bool:
    """Says how it went with all videos of the run.

    Returns:
        Whether there are some that could not be segmented.
    """
    results = find_results(arguments, videos, output)
    good = sum(results.get(name, False) for name in videos.names)
    if not silent:
        reading = f', read by load_dataset("{output.path}")' if arguments.format == "parquet" else ""
        print(f"{good} of {len(videos.names)} videos segmented, results in {output.path}{reading}")
    return good < len(videos.names)


OVERLAY_RATE = "4"  # masks per second of the overlay: the shapes of the clip move


def run_demo(arguments: Namespace) -> bool:
    """Segments the clip, anew each time.

    Args:
        arguments: Of `pcmanet demo`.

    Returns:
        Whether it failed.
    """
    clip = str(demo_file("demo.mp4"))
    options = ["--output", str(arguments.output), "--overwrite"]
    pictures = ["--overlay", "--overlay-frames-per-second", OVERLAY_RATE, "--contact-sheet"]
    failed = run(parse_arguments(["segment", clip, *options, *pictures]))
    folder = arguments.output / "demo"
    print(f"\noverlay        {folder / 'overlay.mp4'}")
    print(f"masks          {folder / 'masks'}")
    print(f"contact sheet  {folder / 'contact_sheet.png'}")
    return failed


MOST_VIDEOS_PER_ROW = 32  # what a lost machine may cost
ROWS_PER_WORKER = 8  # at least, so that none waits long for the last


def run_on_ray(arguments: Namespace) -> bool:
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
        videos = find_and_check_videos(arguments, output)
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
        videos: All videos of the run_on_ray.
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
