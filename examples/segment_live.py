"""Segment the sounding objects in front of a webcam and a microphone, in real time.

    python examples/segment_live.py                                     # default camera and microphone, until Ctrl-C
    python examples/segment_live.py --output live.mp4                   # also write a video with the masks
    python examples/segment_live.py --model you/your-pcmanet --frames-per-second 4 --frames-per-window 5
    python examples/segment_live.py --camera /dev/video2 --microphone plughw:1
    python examples/segment_live.py --input examples/demo.mp4           # play a file as live input

Prints one line per network frame: its timestamp, the sounding objects, and the delay. The network uses the second of
audio that ends with the frame, so it does not wait for later audio. A network that is slower than the input skips to
the newest frame. The FFmpeg inside PyAV reads the devices: v4l2 and alsa on Linux, avfoundation on macOS, dshow on
Windows. To list them: `v4l2-ctl --list-devices` and `arecord -l` on Linux,
`ffmpeg -f avfoundation -list_devices true -i ""` on macOS, `ffmpeg -f dshow -list_devices true -i dummy` on Windows.

Ctrl-C, SIGTERM or a lost device ends the input; the video is then completed.
"""

import argparse
import os
import platform
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.stream import Stream
from PIL import Image

from modeling_pcmanet.media_pcmanet import EVERY_FRAME, AudioPiece, MediaError, MediaReader, StreamedFrame
from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.checkpoints import load_segmenter
from pcmanet.cli.arguments import INTERRUPTED
from pcmanet.files import DEFAULT_MODEL
from pcmanet.options import fraction, positive, positive_integer
from pcmanet.pipelines import AudioVisualSegmentationPipeline
from pcmanet.pipelines.colors import class_colors
from pcmanet.pipelines.overlay import draw_segments


# FFmpeg format and name of the default devices: camera, microphone.
DEVICES = {
    "Linux": (("v4l2", "/dev/video0"), ("alsa", "default")),
    "Darwin": (("avfoundation", "default:none"), ("avfoundation", "none:default")),
    "Windows": (("dshow", "video=Integrated Camera"), ("dshow", "audio=Microphone")),
}

CAMERA_OPTIONS = {"avfoundation": {"framerate": "30"}}  # many Macs refuse FFmpeg's default, 29.97

# The ALSA library inside PyAV looks for this file where it was built.
ALSA_CONFIGURATION = Path("/usr/share/alsa/alsa.conf")

LONGEST_PAUSE_SECONDS = 10.0  # of a device; a longer one is an error
SECONDS_BETWEEN_CHECKS = 0.5  # whether the user stopped, while no device sends data
SECONDS_TO_END = 2.0  # a device that does not respond stays open until the process ends
EMPTY_DEVICE_SECONDS = 0.01  # until it is polled again

FILE_CHUNK_SECONDS = 0.1  # audio per chunk of a file
KEPT_SECONDS = 30  # longest time that frames are kept for their masks

# Frames, their timestamps in seconds, and audio (samples,) or (channels, samples).
Chunk: TypeAlias = tuple[list[np.ndarray], list[float], np.ndarray | None]


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    (camera_format, camera), (microphone_format, microphone) = DEVICES.get(platform.system(), DEVICES["Linux"])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--input", type=Path, help="video file to play as live input")
    parser.add_argument("--output", type=Path, help="mp4 file to write, with masks, at --frames-per-second")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="Hub id or folder (default: the bundled model)")
    parser.add_argument(
        "--frames-per-second", type=positive, default=2.0, help="network frames per second (default: 2)"
    )
    parser.add_argument(
        "--frames-per-window", type=positive_integer, default=5, help="network frames per window (default: 5)"
    )
    parser.add_argument("--threshold", type=fraction, help="probability that a pixel must exceed")
    parser.add_argument(
        "--seconds", type=positive, help="stop after this time (default: at Ctrl-C or the end of the file)"
    )
    parser.add_argument("--camera", default=camera, help=f"name of the camera in FFmpeg (default: {camera})")
    parser.add_argument(
        "--camera-format", default=camera_format, help=f"FFmpeg format of the camera (default: {camera_format})"
    )
    parser.add_argument(
        "--microphone", default=microphone, help=f"name of the microphone in FFmpeg (default: {microphone})"
    )
    parser.add_argument(
        "--microphone-format",
        default=microphone_format,
        help=f"FFmpeg format of the microphone (default: {microphone_format})",
    )
    arguments = parser.parse_args()
    source, output = arguments.input, arguments.output
    if output is not None and output.suffix.lower() != ".mp4":
        parser.error(f"Expected --output to end in .mp4, got {str(output)!r}")
    if output is not None and not output.parent.is_dir():
        parser.error(f"Folder {str(output.parent)!r} of --output {str(output)!r} not found: create it first")
    if source and output and source.exists() and output.exists() and source.samefile(output):
        parser.error(f"--output {str(output)!r} is the file of --input, which it would replace: choose another name")
    return arguments


class Devices:
    """A camera and a microphone, each read in a thread. Time 0 is the start of the first audio chunk.

    Args:
        camera: FFmpeg format and name.
        microphone: FFmpeg format and name.

    Raises:
        OSError: If a device cannot be opened.
    """

    def __init__(self, camera: tuple[str, str], microphone: tuple[str, str]) -> None:
        with ExitStack() as stack:
            audio = stack.enter_context(open_device("microphone", *microphone))
            video = stack.enter_context(open_device("camera", *camera))
            self._stack = stack.pop_all()
        self.sampling_rate = audio.streams.audio[0].rate
        self._arrived: queue.Queue[tuple[float, Any]] = queue.Queue()
        self._last: dict[str, float] = {}  # when each device last sent data, in seconds
        self._is_open = True
        self._threads = [
            threading.Thread(target=self._read, args=arguments, daemon=True)
            for arguments in (
                ("microphone", audio, audio.streams.audio[0]),
                ("camera", video, video.streams.video[0]),
            )
        ]

    def chunks(self) -> Iterator[Chunk]:
        """Yield frames and audio as they arrive, and empty chunks in a pause; frames before the first audio are dropped.

        Raises:
            OSError: If a device stops, or sends no data for a long time.
        """
        self._last = dict.fromkeys(("microphone", "camera"), time.monotonic())
        for thread in self._threads:
            thread.start()
        start = None
        while True:
            self._check_pauses()
            try:
                seconds, frame = self._arrived.get(timeout=SECONDS_BETWEEN_CHECKS)
            except queue.Empty:
                yield [], [], None
                continue
            if isinstance(frame, Exception):
                raise frame
            if isinstance(frame, av.AudioFrame):
                start = seconds - frame.samples / frame.sample_rate if start is None else start
                yield [], [], mono(frame)
            elif start is not None:
                yield [frame.to_ndarray(format="rgb24", threads=1)], [max(0.0, seconds - start)], None

    def close(self) -> None:
        """Stop reading and close the devices, unless one does not respond."""
        self._is_open = False
        for thread in self._threads:
            if thread.is_alive():
                thread.join(SECONDS_TO_END)
        if not any(thread.is_alive() for thread in self._threads):
            self._stack.close()

    def _check_pauses(self) -> None:
        """Raise OSError if a device has sent no data for a long time."""
        for kind, seconds in self._last.items():
            if time.monotonic() - seconds > LONGEST_PAUSE_SECONDS:
                raise OSError(
                    f"The {kind} sent no data for {LONGEST_PAUSE_SECONDS:g} s. Check that it is connected, that no "
                    f"other program uses it, and that this one may use it, or choose another with --{kind}."
                )

    def _read(self, kind: str, container: InputContainer, stream: Stream) -> None:
        """Put frames and their arrival times into the queue, and at the end an error. Runs in a thread."""
        reason: object = "it has ended"
        try:
            for frame in device_frames(container, stream):
                self._last[kind] = time.monotonic()
                self._arrived.put((self._last[kind], frame))
                if not self._is_open:
                    return
        except av.FFmpegError as error:
            reason = error.strerror or error
        stopped = OSError(f"The {kind} stopped: {reason}. Check its connection and start again.")
        self._arrived.put((time.monotonic(), stopped))


def device_frames(container: InputContainer, stream: Stream) -> Iterator[Any]:
    """Yield the frames of a device. Damaged ones, which webcams send now and then, are left out."""
    while True:
        try:
            for packet in container.demux(stream):
                with suppress(av.error.InvalidDataError):
                    yield from packet.decode()
            return
        except av.error.BlockingIOError:  # avfoundation has no frame yet
            time.sleep(EMPTY_DEVICE_SECONDS)


def open_device(kind: str, device_format: str, name: str) -> InputContainer:
    """Open a camera or a microphone; raise an OSError that explains how to choose another."""
    if ALSA_CONFIGURATION.exists():
        os.environ.setdefault("ALSA_CONFIG_PATH", str(ALSA_CONFIGURATION))
    try:
        container = av.open(
            name, format=device_format, options=CAMERA_OPTIONS.get(device_format) if kind == "camera" else None
        )
    except (av.FFmpegError, ValueError) as error:
        raise OSError(
            f"Cannot open the {kind} {name} with the FFmpeg format {device_format} ({error}). Choose a device with --{kind} "
            f"and --{kind}-format, or play a file with --input."
        ) from error
    if not (container.streams.video if kind == "camera" else container.streams.audio):
        container.close()
        raise OSError(f"{name} of the FFmpeg format {device_format} is not a {kind}. Choose one with --{kind}.")
    return container


def mono(frame: av.AudioFrame) -> np.ndarray:
    """Return a chunk of audio as (samples,), float32 in [-1, 1]."""
    converted = av.AudioResampler(format="flt", layout="mono", rate=frame.sample_rate).resample(frame)
    return np.concatenate([part.to_ndarray().reshape(-1) for part in converted])


@contextmanager
def play(path: Path) -> Iterator[tuple[Iterator[Chunk], int]]:
    """Play a file as live input, in real time, in constant memory.

    Yields:
        An iterator over chunks, and the sampling rate of the audio in hertz (Hz).
    """
    with MediaReader(path) as reader:
        frames, pieces = reader.frames(EVERY_FRAME), reader.audio()
        first_frame = next(frames)  # where the audio starts is known from here on
        first_piece = next(pieces)
        yield file_chunks(chain([first_frame], frames), chain([first_piece], pieces)), first_piece[1]
        reader.finish()


def file_chunks(frames: Iterable[StreamedFrame], pieces: Iterable[AudioPiece]) -> Iterator[Chunk]:
    """Yield the frames of a file at their times, and between them the audio up to that time."""
    chunks, start, heard = short_chunks(pieces), time.monotonic(), 0.0
    for seconds, frame, _ in frames:
        time.sleep(max(0.0, start + seconds - time.monotonic()))
        while heard + FILE_CHUNK_SECONDS <= seconds:
            samples, length = next(chunks, (None, 0.0))
            if samples is None:
                break
            heard += length
            yield [], [], samples
        yield [frame], [seconds], None


def short_chunks(pieces: Iterable[AudioPiece]) -> Iterator[tuple[np.ndarray | None, float]]:
    """Yield the audio of a file in chunks similar to those of a microphone, each with its duration in seconds.

    None in place of samples means that more frames must be read before it is known how the audio continues.
    """
    for samples, rate in pieces:
        if samples is None:
            yield None, 0.0
            continue
        length = round(FILE_CHUNK_SECONDS * rate)
        for position in range(0, samples.shape[1], length):
            chunk = samples[:, position : position + length]
            yield chunk, chunk.shape[1] / rate


class Recorder:
    """Pass live input on, and keep its time and its latest frames for drawing. The network reads it in another thread.

    Args:
        chunks: The input.
        seconds: Stop after this time of input; `None` for never.
        keeps_frames: Whether frames are needed.

    Attributes:
        now: Time of the newest frame, in seconds.
        failure: The device error that ended the input, if any.
        is_stopped: Whether [`stop`] was called.
    """

    def __init__(self, chunks: Iterator[Chunk], seconds: float | None, *, keeps_frames: bool) -> None:
        self._chunks = chunks
        self._seconds = seconds
        self._keeps_frames = keeps_frames
        self._frames: dict[float, np.ndarray] = {}
        self._changing = threading.Lock()  # the frames
        self.now = 0.0
        self.failure: OSError | None = None
        self.is_stopped = False

    def stop(self) -> None:
        """End the input after the next chunk."""
        self.is_stopped = True

    def chunks(self) -> Iterator[Chunk]:
        """Yield the input. A device error ends it, so that the recording is completed."""
        try:
            for chunk in self._chunks:
                self._keep(chunk)
                yield chunk
                if self.is_stopped or (self._seconds is not None and self.now >= self._seconds):
                    return
        except OSError as error:
            self.failure = error

    def frame_at(self, seconds: float) -> np.ndarray:
        """Return the kept frame that is closest to a time, and release the earlier ones."""
        with self._changing:
            closest = min(self._frames, key=lambda kept: abs(kept - seconds))
            self._release(closest)
            return self._frames[closest]

    def _keep(self, chunk: Chunk) -> None:
        """Keep the frames of a chunk."""
        self.now = max([self.now, *chunk[1]])
        if self._keeps_frames:
            with self._changing:
                self._frames.update(zip(chunk[1], chunk[0], strict=True))
                self._release(self.now - KEPT_SECONDS)

    def _release(self, start: float) -> None:
        """Release the frames before a time."""
        for seconds in [kept for kept in self._frames if kept < start]:
            del self._frames[seconds]


def report(result: dict[str, Any], now: float) -> None:
    """Print one line for a result."""
    found = (
        ", ".join(f"{segment['label']} {segment['score']:.0%}" for segment in result["segments"])
        or "no sounding objects"
    )
    print(f"{result['timestamp']:8.2f} s  {now - result['timestamp']:5.2f} s ago  {found}", flush=True)


def reported(results: Iterator[dict[str, Any]], recorder: Recorder) -> Iterator[dict[str, Any]]:
    """Print each result and yield it. A reader of the output that closes it, as `head` does, ends the input."""
    for result in results:
        try:
            report(result, recorder.now)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            recorder.stop()
        yield result


def draw(
    results: Iterator[dict[str, Any]], recorder: Recorder, colors: dict[str, Any], frames_per_second: float
) -> Iterator[np.ndarray]:
    """Yield the frame of each result with its masks, repeated for skipped frames."""
    written = 0
    for result in results:
        frame = Image.fromarray(recorder.frame_at(result["timestamp"]))
        overlay = np.asarray(draw_segments(frame, result["segments"], colors))
        for _ in range(max(1, round(result["timestamp"] * frames_per_second) - written)):
            written += 1
            yield overlay


def write(path: Path, overlays: Iterator[np.ndarray], frames_per_second: float) -> None:
    """Write the overlay, if there are frames to write."""
    first = next(overlays, None)
    if first is None:
        print(f"The input ended before the first masks, so {path} was not written.", file=sys.stderr)
        return
    write_video(path, chain([first], overlays), frames_per_second)
    print(f"Overlay: {path}")


def stop_at_signals(recorder: Recorder) -> None:
    """Let Ctrl-C and SIGTERM end the input; a second one ends the process."""

    def stop(number: int, _: Any) -> None:
        signal.signal(number, signal.default_int_handler)
        print("Stopped.", file=sys.stderr)
        recorder.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def run(
    arguments: argparse.Namespace,
    segmenter: AudioVisualSegmentationPipeline,
    chunks: Iterator[Chunk],
    sampling_rate: int,
) -> None:
    """Segment live input until it ends.

    Raises:
        OSError: If a device was lost. The output is complete up to that time.
    """
    recorder = Recorder(chunks, arguments.seconds, keeps_frames=arguments.output is not None)
    stop_at_signals(recorder)
    results = segmenter.live(
        recorder.chunks(),
        sampling_rate=sampling_rate,
        frames_per_second=arguments.frames_per_second,
        frames_per_window=arguments.frames_per_window,
        threshold=arguments.threshold,
        drop_late=True,
    )
    with closing(results):
        shown = reported(results, recorder)
        if arguments.output is None:
            for _ in shown:
                continue
        else:
            colors = class_colors(segmenter.model.config.id2label)
            write(
                arguments.output,
                draw(shown, recorder, colors, arguments.frames_per_second),
                arguments.frames_per_second,
            )
    if recorder.failure is not None:
        raise recorder.failure


def main() -> None:
    """Segment live input."""
    arguments = parse_args()
    try:
        segmenter = load_segmenter(arguments.model)  # first, because data that devices send meanwhile would be late
        if arguments.input is not None:
            with play(arguments.input) as (chunks, sampling_rate):
                run(arguments, segmenter, chunks, sampling_rate)
            return
        camera = (arguments.camera_format, arguments.camera)
        with closing(Devices(camera, (arguments.microphone_format, arguments.microphone))) as devices:
            run(arguments, segmenter, devices.chunks(), devices.sampling_rate)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (OSError, ValueError, av.FFmpegError) as error:
        message = str(error)
        if isinstance(error, MediaError) and error.needs_audio:
            message = f"{error.problem} Pass a file with audio to --input."
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
