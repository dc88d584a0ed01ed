"""Segmenting one video after another: the same in one process, in many, and on the machines of a Ray cluster."""

from argparse import Namespace

from transformers import Pipeline

from .archive_rows import rows_of_video
from .archive_shards import ShardWriter, find_done
from .errors import VIDEO_ERRORS, say
from .output_folder import RECORDS, OutputFolder
from .progress_bars import Progress
from .records import RecordedResults
from .summary import Outcome, format_table, summarize
from .video_results import draw, open_video, record
from .videos import Videos, name_folders, printable


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
