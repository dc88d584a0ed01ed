"""`pcmanet segment` and `pcmanet demo`: segment videos in this process, in several processes, or on a Ray cluster.

`run` finds the videos, loads the checkpoint and begins the run in the output folder. A [`Worker`] then segments the
videos. Processes that torchrun or `accelerate launch` started divide them among themselves. On a Ray cluster, the same
worker runs as a Ray Data job. Every machine must have pcmanet installed, and the same paths to the videos and the
output folder.

A worker segments two videos at a time, each in a thread with half of PyTorch's threads, so that one is decoded or written
while the network runs for the other, and no core waits for the end of a small operation. A single video gets all threads.
"""

import errno
import logging
import math
import os
import select
import sys
import threading
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from modeling_pcmanet import PCMANetConfig
from modeling_pcmanet.media_pcmanet import MediaReader, copy_pipe, is_open_pipe
from pcmanet.checkpoints import digest, find_device, load_segmenter, start_processes
from pcmanet.files import demo_file, find_checkpoint, temporary_folder
from pcmanet.pipelines import AudioVisualSegmentationPipeline

from .arguments import SHARD_MINUTES, STOPPED, parse_arguments
from .inputs import VIDEO_ERRORS, Source, Videos, find_videos, format_error, name_folders, printable
from .progress import Progress
from .render import draw, record
from .results import (
    RECORDS,
    OutputFolder,
    RecordedResults,
    Row,
    ShardWriter,
    differs,
    read_archive,
    rows_of_video,
)


SETTINGS = (
    "dtype",
    "format",
    "frames_per_second",
    "threshold",
    "minimum_area",
    "early_exit_threshold",
    "overlay",
    "overlay_frames_per_second",
    "contact_sheet",
)  # options on which the results depend; the data type as it was chosen
OVERLAY_RECORDS = "overlay.jsonl"  # temporary: the results for an overlay with its own rate
TABLE_FRAMES = 60  # network frames in the printed table of one video
SECONDS_BETWEEN_CHECKS = 0.2  # whether a worker that waits for a pipe is stopped
VIDEOS_AT_ONCE = 2  # per worker; a third one gains nothing, because Python code runs in one thread at a time

DEMO_CLIP = "real_world.mp4"
DEMO_OVERLAY_RATE = "4"  # masks per second of the overlay, so that it follows the sounds

# A row of a Ray job is a few videos, which become one shard.
MAXIMUM_VIDEOS_PER_ROW = 32  # lost if a machine is lost
MINIMUM_ROWS_PER_WORKER = 8  # so that no worker waits long for the last one


def run(arguments: Namespace) -> bool:
    """Run `pcmanet segment` or `pcmanet demo`.

    Args:
        arguments: Arguments of the command.

    Returns:
        Whether some videos failed.

    Raises:
        OSError: If the videos or the checkpoint are not found, or the output folder cannot be used.
        ValueError: If the options do not match the data, the checkpoint or earlier results.
    """
    if arguments.command == "demo":
        return _run_demo(arguments)
    return _run_on_ray(arguments) if arguments.ray else _run_in_processes(arguments)


def _run_demo(arguments: Namespace) -> bool:
    """Segment the bundled clip, and return whether it failed. Its earlier results are replaced, and no others."""
    clip, output = demo_file(DEMO_CLIP), OutputFolder(arguments.output)
    output.check(overwrite=True)
    if output.has_others(clip.stem, Videos([]).identify(str(clip))["video"]):
        raise FileExistsError(
            f"{arguments.output} contains results of videos other than {clip}. Give another --output."
        )
    options = ["--output", str(arguments.output), "--overwrite"]
    images = ["--overlay", "--overlay-frames-per-second", DEMO_OVERLAY_RATE, "--contact-sheet"]
    failed = run(parse_arguments(["segment", str(clip), *options, *images]))
    folder = arguments.output / clip.stem
    print(f"\noverlay        {folder / 'overlay.mp4'}")
    print(f"masks          {folder / 'masks'}")
    print(f"contact sheet  {folder / 'contact_sheet.png'}")
    return failed


@contextmanager
def _explain_full_disk(output: Path) -> Iterator[None]:
    """Turn the system error for a full disk into one that says what is kept and how to resume.

    Only writing to the output raises it. A temporary file that does not fit is an error of its video.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"No space left on the disk of {output}. Finished results are complete and kept. Free some space and run the same "
            "command again, without --overwrite."
        ) from error


# Preparation, before anything is computed.


def _find_and_check_videos(arguments: Namespace, output: OutputFolder) -> Videos:
    """Find the videos, and check that the output folder can receive their results."""
    output.check(overwrite=arguments.overwrite)
    videos = find_videos(arguments)
    for line in videos.left_out:
        print(line, file=sys.stderr)
    if _has_folders(arguments) and not arguments.overwrite:
        for name, folder in name_folders(videos.names).items():
            if output.has_video(folder) and output.has_changed(folder, videos.identify(name)):
                _print_changed(name)
    return videos


def _print_changed(name: str) -> None:
    """Print that earlier results of a video are replaced."""
    print(
        f"{printable(name, one_line=True)} has changed since it was segmented; it is segmented again", file=sys.stderr
    )


def _has_folders(arguments: Namespace) -> bool:
    """Return whether each video has its own folder of results."""
    return arguments.format != "parquet" or arguments.overlay or arguments.contact_sheet


def _begin(
    output: OutputFolder, arguments: Namespace, videos: Videos, segmenter: AudioVisualSegmentationPipeline
) -> None:
    """Begin a run in the output folder."""
    names = {videos.origin(name): name for name in videos.names}
    names |= {printable(name): name for name in videos.names}
    settings = {"checkpoint": digest(segmenter.model, segmenter.processor)}
    with _explain_full_disk(arguments.output):
        output.begin(
            find_checkpoint(arguments.model),
            settings | {name: getattr(arguments, name) for name in SETTINGS},
            is_archive=arguments.format == "parquet",
            overwrite=arguments.overwrite,
            is_stale=partial(_is_stale, arguments, videos, names),
        )


def _is_stale(arguments: Namespace, videos: Videos, names: Mapping[str, str], row: Row) -> bool:
    """Return whether a video of the archive is to be segmented again: it has changed, or has failed and is retried.

    Raises:
        ValueError: If the row belongs to another video with the same name. A video that was moved with its archive is
            still the same.
    """
    name = names.get(row["video"]) or names.get(row["origin"])
    if name is None:
        return False
    content, is_failed = videos.fingerprint(name), row["error"] is not None
    if row["origin"] == videos.origin(name):
        if differs(row["content"], content):
            _print_changed(name)
            return True
        return arguments.retry_failed and is_failed
    if not is_failed and (content is None or row["content"] != content):
        raise ValueError(
            f"{arguments.output} contains the results of another video that was also given as {row['video']}. Give absolute "
            "paths, or another --output."
        )
    return is_failed


def _find_results(arguments: Namespace, videos: Videos, names: Sequence[str], output: OutputFolder) -> dict[str, bool]:
    """Return those of the named videos that have results, and whether each was segmented (otherwise it failed)."""
    if arguments.format == "parquet":
        done = read_archive(output.path)
        known = {name: done.get(printable(name), done.get(videos.origin(name))) for name in names}
        return {name: segmented for name, segmented in known.items() if segmented is not None}
    folders = name_folders(videos.names)
    found = (name for name in names if output.has_video(folders[name]))
    return {name: True for name in found if not output.has_changed(folders[name], videos.identify(name))}


# Segmentation of one video.


class Worker:
    """Segment videos, a few at a time.

    It publishes the rows of the finished videos when its context exits, and after Ctrl-C before it waits for the others.

    Args:
        arguments: Arguments of `pcmanet segment`.
        videos: All videos of the run.
        segmenter: The pipeline.
        output: The folder of results, begun or joined.
    """

    def __init__(
        self, arguments: Namespace, videos: Videos, segmenter: AudioVisualSegmentationPipeline, output: OutputFolder
    ) -> None:
        self.arguments = arguments
        self.videos = videos
        self.segmenter = segmenter
        self.output = output
        is_archive = arguments.format == "parquet"
        minutes = SHARD_MINUTES if arguments.shard_minutes is None else arguments.shard_minutes
        self.shards = ShardWriter(output.path, minutes * 60) if is_archive else None
        self.folders = name_folders(videos.names) if _has_folders(arguments) else {}
        # Depends on all videos and not on the pending ones, so that a resumed run computes with the same threads.
        self._at_once = max(1, min(VIDEOS_AT_ONCE, len(videos.names)))
        self._writing = threading.Lock()  # for the open shard
        self._is_stopped = False

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._publish()

    def _publish(self) -> None:
        """Publish the rows of the finished videos."""
        if self.shards is not None:
            with _explain_full_disk(self.output.path), self._writing:
                self.shards.publish()

    def segment(self, names: Iterable[str], progress: Progress) -> Generator[tuple[str, bool], None, None]:
        """Segment videos and add their results to the output folder.

        Args:
            names: Names of the videos.
            progress: Receives the progress.

        Yields:
            For each video, in the order of completion: a line about it, and whether it failed because of its data.

        Raises:
            OSError: If the results cannot be written. The videos that are being segmented end without results.
        """
        remaining, torch_threads = iter(names), torch.get_num_threads()
        running: set[Future[tuple[str, bool]]] = set()
        torch.set_num_threads(max(1, torch_threads // self._at_once))
        self._is_stopped = False
        try:
            with ThreadPoolExecutor(self._at_once, thread_name_prefix="video") as threads, self._stopping():
                while True:
                    next_names = islice(remaining, self._at_once - len(running))
                    running |= {threads.submit(self._segment_video, name, progress) for name in next_names}
                    if not running:
                        return
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
        finally:
            torch.set_num_threads(torch_threads)

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """Make the threads end at their next step on exit: after an error or Ctrl-C, some may still be running.

        Until a source responds, its thread may wait longer than a batch system, which then kills the process.
        """
        try:
            yield
        finally:
            self._is_stopped = True
            self._publish()

    def _segment_video(self, name: str, progress: Progress) -> tuple[str, bool]:
        """Segment a video and add its results to the output folder; return a line about it and whether it failed."""
        row_name, shown = printable(name), printable(name, one_line=True)
        identity: dict[str, str | None] = {"video": row_name, "origin": self.videos.origin(name)}
        with _explain_full_disk(self.output.path), temporary_folder(self.output.path) as temporary:
            folder = temporary / "complete"
            folder.mkdir()
            results = RecordedResults((temporary if self.shards is not None else folder) / RECORDS)
            overlay_results = RecordedResults(temporary / OVERLAY_RECORDS)
            try:
                identity["content"] = self.videos.fingerprint(name)
                source, audio = self.videos.read(name)
                source = self._keep_pipe(source, temporary / "piped_video")
                audio = None if audio is None else self._keep_pipe(audio, temporary / "piped_audio")
                with (
                    MediaReader(source, audio=audio is None) as reader,
                    self._stage(progress, shown, reader.duration) as advance,
                ):
                    record(self.segmenter, reader, audio, self.arguments, results, overlay_results, advance)
                with self._stage(progress, f"drawing {shown}", reader.duration) as advance:
                    draw(
                        self.segmenter,
                        source,
                        audio,
                        self.arguments,
                        folder,
                        results,
                        overlay_results,
                        size=reader.size,
                        title=self.videos.title(name),
                        progress=advance,
                    )
            except VIDEO_ERRORS as error:
                reason = format_error(error, self.videos.audio_remedy)
                if self.shards is not None:
                    with self._writing:
                        self.shards.add_error(identity, reason)
                return f"failed: {shown}: {reason}", True

            line = _summary(shown, results, self.segmenter.model.config)
            table = _table(results, self.segmenter.model.config) if len(self.videos.names) == 1 else None
            if self.folders:
                self.output.publish(folder, self.folders[name], self.videos.identify(name))
            if self.shards is not None:
                with self._writing:
                    self.shards.add(row_name, rows_of_video(identity, results.records()))
        # Printed after the results are published, so that a reader that closes the output does not prevent publishing.
        if table is not None:
            progress.print(table)
        return line, False

    @contextmanager
    def _stage(self, progress: Progress, name: str, seconds: float | None) -> Iterator[Callable[[float], object]]:
        """Show a stage of a video, see [`Progress.stage`]. It ends at its next step when the worker is stopped."""
        with progress.stage(name, seconds) as advance:

            def advance_unless_stopped(position: float) -> None:
                if self._is_stopped:
                    raise KeyboardInterrupt
                advance(position)

            yield advance_unless_stopped

    def _keep_pipe(self, source: Source, path: Path) -> Source:
        """Return a source that can be opened twice: a pipe is copied to a file, unless the worker is stopped before it ends."""
        if not isinstance(source, str) or not is_open_pipe(Path(source)):
            return source

        def read(size: int) -> bytes:
            while not self._is_stopped:
                if select.select([pipe], [], [], SECONDS_BETWEEN_CHECKS)[0]:
                    return pipe.read(size)
            raise KeyboardInterrupt

        with Path(source).open("rb", buffering=0) as pipe, path.open("wb") as file:
            copy_pipe(cast(BinaryIO, SimpleNamespace(read=read, name=source)), file)
        return str(path)


def _summary(video: str, results: RecordedResults, config: PCMANetConfig) -> str:
    """Return a line with the classes found in a video and the number of frames of each, most frequent first.

    Args:
        video: Name of the video.
        results: Its results.
        config: Configuration of the model. What its audio encoder heard besides the model's classes is listed too.
    """
    labels: Counter[str] = Counter()
    for result in results.records():
        labels.update({segment["label"] for segment in result["segments"]})
    found = ", ".join(f"{label} {number}" for label, number in labels.most_common()) or "no sounding objects"
    others = _other_sounds(results, config)
    return f"{video}: {found} ({len(results)} frames){f'; {others}' if others else ''}"


def _other_sounds(results: RecordedResults, config: PCMANetConfig) -> str:
    """Return what the audio encoder heard besides the model's classes and in how many frames; empty if there is nothing."""
    known = set((config.id2label or {}).values())
    heard: Counter[str] = Counter()
    for result in results.records():
        heard.update({sound["label"] for sound in result.get("heard", ())} - known)
    others = ", ".join(f"{label} {number}" for label, number in heard.most_common())
    return f"heard, but not among this model's classes: {others}" if others and len(known) > 1 else ""


def _table(results: RecordedResults, config: PCMANetConfig) -> str:
    """Return a table of the segments in a video, with their score and fraction of the frame, and the other sounds."""
    shown = [results[number] for number in range(min(len(results), TABLE_FRAMES))]
    width = max([len("label"), *(len(segment["label"]) for result in shown for segment in result["segments"])])
    lines = [f"{'seconds':>8}  {'label':<{width}}  score   area"]
    for result in shown:
        time = f"{result['timestamp']:8.2f}"
        for found in result["segments"]:
            area = np.asarray(found["mask"]).mean() / 255
            lines.append(f"{time}  {found['label']:<{width}}  {found['score']:5.2f}  {area:5.1%}")
            time = " " * 8
        if not result["segments"]:
            lines.append(f"{time}  -")
    if len(results) > TABLE_FRAMES:
        lines.append(f"     ...  and {len(results) - TABLE_FRAMES} more frames")
    return "\n".join(filter(None, (*lines, _other_sounds(results, config))))


# Processes of torchrun and `accelerate launch`, or a single one.


def _run_in_processes(arguments: Namespace) -> bool:
    """Segment the videos in this process and in those that were launched with it; return whether some failed."""
    state = start_processes(cpu=arguments.device == "cpu")
    output = OutputFolder(arguments.output)
    try:
        videos, segmenter = _prepare_together(arguments, output, state)
        _segment_assigned(arguments, videos, segmenter, output, state)
        state.wait_for_everyone()
        return _report(arguments, videos, output, quiet=not state.is_main_process)
    finally:
        output.leave()
        state.destroy_process_group()


def _prepare_together(
    arguments: Namespace, output: OutputFolder, state: PartialState
) -> tuple[Videos, AudioVisualSegmentationPipeline]:
    """Prepare the first process, then the others, which receive the names of the videos.

    An error is printed once: the first process raises it, and the others exit.
    """
    prepared, failure = None, None
    if state.is_main_process:
        try:
            prepared = _prepare(arguments, output, state)
        except Exception as error:  # raised below, after the others have been informed
            failure = error
    names, arguments.dtype = broadcast_object_list([prepared and prepared[0].names, arguments.dtype])
    if failure is not None:
        raise failure
    if names is None:
        raise SystemExit(STOPPED)
    videos, segmenter = prepared or _prepare(arguments, output, state)
    videos.names = names
    return videos, segmenter


def _prepare(
    arguments: Namespace, output: OutputFolder, state: PartialState
) -> tuple[Videos, AudioVisualSegmentationPipeline]:
    """Find the videos, load the checkpoint, and begin the run or join that of the first process."""
    first = state.is_main_process
    videos = _find_and_check_videos(arguments, output) if first else find_videos(arguments, list_files=False)
    segmenter = load_segmenter(arguments.model, _choose_device(arguments.device, state), dtype=arguments.dtype)
    if first:
        _describe_model(arguments, segmenter)
        _begin(output, arguments, videos, segmenter)
    else:
        output.join()
    return videos, segmenter


def _describe_model(arguments: Namespace, segmenter: AudioVisualSegmentationPipeline) -> None:
    """Print what the model knows, to explain results without masks, and in which data type it computes.

    The option is set to the chosen data type, which all processes use, whatever their machines.
    """
    description = segmenter.model.config.description
    if description is not None:
        print(f"model: {description}", file=sys.stderr)
    dtype, reason = segmenter.choose_dtype()
    arguments.dtype = str(dtype).removeprefix("torch.")
    print(f"data type: {arguments.dtype} ({reason})", file=sys.stderr)


def _choose_device(device: str | None, state: PartialState) -> torch.device:
    """Return the device of this process.

    Raises:
        ValueError: If the device is not available, or one device is given for several processes.
    """
    default = torch.device(state.device or "cpu")
    if device is None:
        return default
    wanted = find_device(device)
    if state.num_processes > 1 and wanted.index is not None:
        raise ValueError(
            f"--device {device} is a single device, but there are {state.num_processes} processes. Leave it out."
        )
    return wanted if state.num_processes == 1 else default


def _segment_assigned(
    arguments: Namespace,
    videos: Videos,
    segmenter: AudioVisualSegmentationPipeline,
    output: OutputFolder,
    state: PartialState,
) -> None:
    """Segment the videos of this process that have no results yet."""
    assigned = videos.names[state.process_index :: state.num_processes]
    results = _find_results(arguments, videos, assigned, output)
    pending = [name for name in assigned if name not in results]
    if len(videos.names) == 1 and any(results.values()):
        shown = printable(assigned[0], one_line=True)
        print(f"{shown} was segmented by an earlier run; --overwrite segments it again", file=sys.stderr)
    title = "segmenting" if state.num_processes == 1 else f"segmenting (process 1 of {state.num_processes})"
    done, hidden = len(assigned) - len(pending), not state.is_main_process
    with (
        Worker(arguments, videos, segmenter, output) as worker,
        Progress(title, len(assigned), done, hidden=hidden) as progress,
        closing(worker.segment(pending, progress)) as segmented,
    ):
        for line, failed in segmented:
            progress.finish_one()
            if failed or len(videos.names) > 1:
                progress.print(line, failed=failed)


def _report(arguments: Namespace, videos: Videos, output: OutputFolder, *, quiet: bool = False) -> bool:
    """Print how many videos of the run were segmented, and return whether some failed."""
    results = _find_results(arguments, videos, videos.names, output)
    segmented = sum(results.get(name, False) for name in videos.names)
    if not quiet:
        if failed := len(results) - segmented:  # only an archive has results of failed videos
            print(f"{failed} failed, see the column `error`; --retry-failed processes them again", file=sys.stderr)
        reading = f', read them with load_dataset("{output.path}")' if arguments.format == "parquet" else ""
        print(f"{segmented} of {len(videos.names)} videos segmented, results in {output.path}{reading}")
    return segmented < len(videos.names)


# A Ray cluster.


def _run_on_ray(arguments: Namespace) -> bool:
    """Segment the videos on a Ray cluster, and return whether some failed.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
        ConnectionError: If no cluster is running at the address.
    """
    ray = _import_ray()
    output = OutputFolder(arguments.output)
    try:
        videos = _find_and_check_videos(arguments, output)
        segmenter = load_segmenter(arguments.model, torch.device("cpu"), dtype=arguments.dtype)
        _describe_model(arguments, segmenter)
        _begin(output, arguments, videos, segmenter)
        results = _find_results(arguments, videos, videos.names, output)
        pending = [name for name in videos.names if name not in results]
        _connect(ray, arguments.ray)
        with Progress("segmenting on Ray", len(videos.names), len(videos.names) - len(pending)) as progress:
            for line, failed in _run_job(ray, arguments, videos, pending):
                progress.finish_one()
                progress.print(line, failed=failed)
        return _report(arguments, videos, output)
    finally:
        output.leave()


def _import_ray() -> ModuleType:
    """Import Ray, which is an optional dependency."""
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'--ray requires Ray Data, but {error.name} is not installed. Install it with pip install "pcmanet[archive]".'
        ) from error
    return ray


def _connect(ray: ModuleType, address: str) -> None:
    """Connect to a cluster, unless this process is connected to one."""
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise ConnectionError(f"No Ray cluster found at {address}: {format_error(error)}") from error
    # The progress bar of this command replaces the messages of Ray Data.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def _run_job(ray: ModuleType, arguments: Namespace, videos: Videos, pending: list[str]) -> Iterator[tuple[str, bool]]:
    """Run the job, and yield what [`Worker.segment`] returns for each video as soon as it is done."""
    if not pending:
        return
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    workers = min(arguments.ray_workers or gpus or int(resources["CPU"]), len(pending))
    size = min(MAXIMUM_VIDEOS_PER_ROW, math.ceil(len(pending) / (workers * MINIMUM_ROWS_PER_WORKER)))
    rows = [{"videos": pending[first : first + size]} for first in range(0, len(pending), size)]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        RayWorker,
        fn_constructor_args=(arguments, videos, Path.cwd()),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    for row in done.iter_rows():
        for result in row["results"]:
            yield result["line"], result["failed"]


class RayWorker:
    """A worker in a process of the cluster.

    Args:
        arguments: Arguments of `pcmanet segment`.
        videos: All videos of the run.
        folder: The folder to which relative paths refer.
    """

    def __init__(self, arguments: Namespace, videos: Videos, folder: Path) -> None:
        os.chdir(folder)
        device = _choose_device(arguments.device, start_processes(cpu=arguments.device == "cpu"))
        output = OutputFolder(arguments.output)
        output.join()
        segmenter = load_segmenter(arguments.model, device, dtype=arguments.dtype)
        self._worker = Worker(arguments, videos, segmenter, output)
        # One shard per row, however long it takes, named after its videos: if Ray runs a row a second time because a
        # machine was lost after it had published, the new shard replaces the same one.
        if self._worker.shards is not None:
            self._worker.shards.seconds = math.inf

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Segment the videos of a row."""
        with self._worker, Progress("", 0, hidden=True) as progress:
            results = list(self._worker.segment(row["videos"], progress))
        return {"results": [{"line": line, "failed": failed} for line, failed in results]}
