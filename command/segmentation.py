"""`pcmanet segment`: videos split over processes and devices, and what is said in the end."""

import errno
from argparse import Namespace
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from transformers import Pipeline

from .arguments import STOPPED
from .checkpoint import check_name, fingerprint, load_segmenter
from .output_folder import OutputFolder, check_ours
from .progress_bars import Progress
from .videos import Videos, find_videos
from .worker import Worker, check_folders, find_results


# Processes wait for the slowest of them, whose videos may take days longer.
LONGEST_WAIT = timedelta(days=365)


def run(arguments: Namespace) -> bool:
    """Segments what the command line asks for; every process of a run calls this.

    Args:
        arguments: Of `pcmanet segment`.

    Returns:
        Whether there are videos that could not be segmented.
    """
    try:
        if arguments.ray:
            from .ray_job import run_on_ray

            return run_on_ray(arguments)
        return run_in_processes(arguments)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"There is no space left for {arguments.output}. What is done is whole and kept: make room and start the same "
            "again, without --overwrite."
        ) from error


def run_in_processes(arguments: Namespace) -> bool:
    """Segments what the command line asks for, in this process and those that were started with it."""
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
    videos = look_around(arguments, output) if first else find_videos(arguments, look=False)
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


def look_around(arguments: Namespace, output: OutputFolder) -> Videos:
    """Finds the videos, and what speaks against the run, while it has cost nothing and written nothing."""
    check_ours(output.path, thoroughly=arguments.overwrite)
    videos = find_videos(arguments)
    check_folders(arguments, videos, output)
    return videos


def begin(output: OutputFolder, arguments: Namespace, segmenter: Pipeline) -> None:
    """Begins a run in the folder of results."""
    names = ("format", "frames_per_second", "threshold", "minimum_area", "uncertainty_budget")
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
