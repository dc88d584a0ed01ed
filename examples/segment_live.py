"""Segment the sounding objects in front of a webcam and a microphone, in real time.

    python examples/segment_live.py                                     # default camera and microphone, until Ctrl-C
    python examples/segment_live.py --output live.mp4                   # also write a video with the masks
    python examples/segment_live.py --model you/your-pcmanet --frames-per-second 4 --frames-per-window 5
    python examples/segment_live.py --camera /dev/video2 --microphone hw:1
    python examples/segment_live.py --input examples/demo.mp4           # play a file as live input

Prints one line per network frame: its timestamp, the sounding objects, and the delay. The network uses the second of
audio that ends with the frame, so that it does not wait for later audio. A network that is slower than the input skips to
the newest frame. FFmpeg reads the devices: v4l2 and alsa (or --microphone-format pulse) on Linux, avfoundation on macOS,
dshow on Windows.
"""

import argparse
import platform
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
from av.container import InputContainer
from av.stream import Stream
from PIL import Image

from modeling_pcmanet.media_pcmanet import MediaError, iterate_frames, read_audio
from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.checkpoints import load_segmenter
from pcmanet.cli.arguments import fraction, positive, positive_integer
from pcmanet.files import DEFAULT_MODEL
from pcmanet.pipelines.colors import class_colors
from pcmanet.pipelines.overlay import draw_segments


# FFmpeg format and name of the default devices: camera, microphone.
DEVICES = {
    "Linux": (("v4l2", "/dev/video0"), ("alsa", "default")),
    "Darwin": (("avfoundation", "default:none"), ("avfoundation", "none:default")),
    "Windows": (("dshow", "video=Integrated Camera"), ("dshow", "audio=Microphone")),
}

FILE_CHUNK_SECONDS = 0.1  # audio per chunk of a file, similar to a microphone
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
    return parser.parse_args()


class Devices:
    """A camera and a microphone, each read in a thread. Time 0 is the start of the first audio chunk.

    Args:
        camera: FFmpeg format and name.
        microphone: FFmpeg format and name.
    """

    def __init__(self, camera: tuple[str, str], microphone: tuple[str, str]) -> None:
        self._stack = ExitStack()
        audio = self._stack.enter_context(open_device("microphone", *microphone))
        video = self._stack.enter_context(open_device("camera", *camera))
        self.sampling_rate = audio.streams.audio[0].rate
        self._arrived: queue.Queue[Any] = queue.Queue()
        self._is_open = True
        self._threads = [
            threading.Thread(target=self._read, args=(container, stream), daemon=True)
            for container, stream in ((audio, audio.streams.audio[0]), (video, video.streams.video[0]))
        ]

    def chunks(self) -> Iterator[Chunk]:
        """Yield frames and audio as they arrive; frames before the first audio chunk are dropped."""
        for thread in self._threads:
            thread.start()
        start = None
        while True:
            seconds, frame = self._arrived.get()
            if isinstance(frame, Exception):
                raise frame
            if isinstance(frame, av.AudioFrame):
                start = seconds - frame.samples / frame.sample_rate if start is None else start
                yield [], [], mono(frame)
            elif start is not None:
                yield [frame.to_ndarray(format="rgb24", threads=1)], [max(0.0, seconds - start)], None

    def close(self) -> None:
        """Stop reading and close the devices."""
        self._is_open = False
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._stack.close()

    def _read(self, container: InputContainer, stream: Stream) -> None:
        """Put frames and their arrival times into the queue. Runs in a thread."""
        try:
            for frame in container.decode(stream):
                self._arrived.put((time.monotonic(), frame))
                if not self._is_open:
                    return
        except av.FFmpegError as error:
            self._arrived.put((time.monotonic(), error))


def open_device(kind: str, device_format: str, name: str) -> InputContainer:
    """Open a camera or a microphone; raise OSError that explains how to choose another."""
    try:
        return av.open(name, format=device_format)
    except (av.FFmpegError, ValueError) as error:
        raise OSError(
            f"Cannot open the {kind} {name} with the FFmpeg format {device_format} ({error}). Choose a device with --{kind} "
            f"and --{kind}-format, or play a file with --input."
        ) from error


def mono(frame: av.AudioFrame) -> np.ndarray:
    """Return a chunk of audio as (samples,), float32 in [-1, 1]."""
    converted = av.AudioResampler(format="flt", layout="mono", rate=frame.sample_rate).resample(frame)
    return np.concatenate([part.to_ndarray().reshape(-1) for part in converted])


def play(path: Path) -> tuple[Iterator[Chunk], int]:
    """Play a file as live input, in real time.

    Returns:
        An iterator over chunks, and the sampling rate of the audio in hertz (Hz).
    """
    waveform, sampling_rate = read_audio(path)

    def chunks() -> Iterator[Chunk]:
        start, position = time.monotonic(), 0
        with closing(iterate_frames(path)) as frames:
            for seconds, frame in frames:
                time.sleep(max(0.0, start + seconds - time.monotonic()))
                while position / sampling_rate + FILE_CHUNK_SECONDS <= seconds:
                    piece = waveform[:, position : position + round(FILE_CHUNK_SECONDS * sampling_rate)]
                    position += round(FILE_CHUNK_SECONDS * sampling_rate)
                    yield [], [], piece if piece.size else None
                yield [frame], [seconds], None

    return chunks(), sampling_rate


class Recorder:
    """Pass live input on, and keep its time and its latest frames for drawing.

    Args:
        chunks: The input.
        seconds: Stop after this time of input; `None` for never.
    """

    def __init__(self, chunks: Iterator[Chunk], seconds: float | None) -> None:
        self._chunks = chunks
        self._seconds = seconds
        self._frames: dict[float, np.ndarray] = {}
        self.now = 0.0

    def chunks(self) -> Iterator[Chunk]:
        """Yield the input."""
        for chunk in self._chunks:
            for frame, seconds in zip(*chunk[:2], strict=True):
                self.now = seconds
                self._frames[seconds] = frame
            for seconds in [kept for kept in self._frames if kept < self.now - KEPT_SECONDS]:
                del self._frames[seconds]
            yield chunk
            if self._seconds is not None and self.now >= self._seconds:
                return

    def frame_at(self, seconds: float) -> np.ndarray:
        """Return the kept frame that is closest to a time."""
        return self._frames[min(self._frames, key=lambda kept: abs(kept - seconds))]


def report(result: dict[str, Any], now: float) -> None:
    """Print one line for a result."""
    found = (
        ", ".join(f"{segment['label']} {segment['score']:.0%}" for segment in result["segments"])
        or "no sounding objects"
    )
    print(f"{result['timestamp']:8.2f} s  {now - result['timestamp']:5.2f} s ago  {found}", flush=True)


def draw(
    results: Iterator[dict[str, Any]], recorder: Recorder, colors: dict[str, Any], frames_per_second: float
) -> Iterator[np.ndarray]:
    """Print each result and yield its frame with masks, repeated for skipped frames. Ctrl-C ends the input."""
    written = 0
    try:
        for result in results:
            report(result, recorder.now)
            frame = Image.fromarray(recorder.frame_at(result["timestamp"]))
            overlay = np.asarray(draw_segments(frame, result["segments"], colors))
            for _ in range(max(1, round(result["timestamp"] * frames_per_second) - written)):
                written += 1
                yield overlay
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)


def run(arguments: argparse.Namespace, chunks: Iterator[Chunk], sampling_rate: int) -> None:
    """Segment live input until it ends."""
    segmenter = load_segmenter(arguments.model)
    recorder = Recorder(chunks, arguments.seconds)
    results = segmenter.live(
        recorder.chunks(),
        sampling_rate=sampling_rate,
        frames_per_second=arguments.frames_per_second,
        frames_per_window=arguments.frames_per_window,
        threshold=arguments.threshold,
        drop_late=True,
    )
    with closing(results):
        colors = class_colors(segmenter.model.config.id2label)
        overlays = draw(results, recorder, colors, arguments.frames_per_second)
        if arguments.output is None:
            for _ in overlays:
                continue
        else:
            write_video(arguments.output, overlays, arguments.frames_per_second)
            print(f"Overlay: {arguments.output}")


def main() -> None:
    """Segment live input."""
    arguments = parse_args()
    try:
        if arguments.input is not None:
            run(arguments, *play(arguments.input))
            return
        camera = (arguments.camera_format, arguments.camera)
        with closing(Devices(camera, (arguments.microphone_format, arguments.microphone))) as devices:
            run(arguments, devices.chunks(), devices.sampling_rate)
    except (OSError, ValueError, av.FFmpegError) as error:
        message = str(error)
        if isinstance(error, MediaError) and error.needs_audio:
            message = f"{error.problem} Pass a file with audio to --input."
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
