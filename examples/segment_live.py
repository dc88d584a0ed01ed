"""Segments what sounds in front of a webcam and a microphone, as it happens.

    python examples/segment_live.py                                     # default camera and microphone, until Ctrl-C
    python examples/segment_live.py --output live.mp4                   # and keep a video with the masks
    python examples/segment_live.py --model you/your-pcmanet --frames-per-second 4 --frames-per-window 5
    python examples/segment_live.py --camera /dev/video2 --microphone hw:1
    python examples/segment_live.py --input examples/demo.mp4           # a file, played as if it were live

Prints a line for each network frame: when it was taken, what sounds, and how long ago that was. The network hears the
second of sound that ends with the frame, so nothing has to be awaited; if it is slower than the input, it skips to the
newest frame. Devices are read through FFmpeg: v4l2 and alsa (or --microphone-format pulse) on Linux, avfoundation on
macOS, dshow on Windows.
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
from typing import Any

import av
import numpy as np
from PIL import Image
from transformers import pipeline
from transformers.utils import logging

from modeling_pcmanet.media_pcmanet import SOUND_REMEDY, iterate_frames, read_audio
from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.pipelines import AudioVisualSegmentationPipeline
from pcmanet.pipelines.colors import class_colors
from pcmanet.pipelines.overlay import draw_segments


DEMO_MODEL = Path(__file__).parent / "demo_model_semantic"

# FFmpeg's formats and names of the default devices: camera, microphone.
DEVICES = {
    "Linux": (("v4l2", "/dev/video0"), ("alsa", "default")),
    "Darwin": (("avfoundation", "default:none"), ("avfoundation", "none:default")),
    "Windows": (("dshow", "video=Integrated Camera"), ("dshow", "audio=Microphone")),
}

FILE_SOUND_SECONDS = 0.1  # of sound that a file gives at a time, as a microphone does
KEPT_SECONDS = 30  # of pictures that wait for their masks at most

Chunk = tuple[list[np.ndarray], list[float], np.ndarray | None]


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    (camera_format, camera), (microphone_format, microphone) = DEVICES.get(platform.system(), DEVICES["Linux"])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="a video file to play as if it were live")
    parser.add_argument("--output", type=Path, help="mp4 file to write, with the masks drawn, at the network's rate")
    parser.add_argument("--model", default=str(DEMO_MODEL), help="Hub id or folder (default: the semantic demo model)")
    parser.add_argument("--frames-per-second", type=float, default=2.0, help="network frames per second (default: 2)")
    parser.add_argument("--frames-per-window", type=int, default=5, help="network frames seen at once (default: 5)")
    parser.add_argument("--threshold", type=float, help="probability that a pixel has to exceed")
    parser.add_argument(
        "--seconds", type=float, help="stop after so many (default: at Ctrl-C, or the end of the file)"
    )
    parser.add_argument("--camera", default=camera, help=f"FFmpeg's name of the camera (default: {camera})")
    parser.add_argument("--camera-format", default=camera_format, help=f"default: {camera_format}")
    parser.add_argument("--microphone", default=microphone, help=f"FFmpeg's name of it (default: {microphone})")
    parser.add_argument("--microphone-format", default=microphone_format, help=f"default: {microphone_format}")
    return parser.parse_args()


class Devices:
    """A camera and a microphone, each read by its own thread; the clock starts with the first sound.

    Args:
        camera: FFmpeg's format and name.
        microphone: FFmpeg's format and name.
    """

    def __init__(self, camera: tuple[str, str], microphone: tuple[str, str]) -> None:
        self._stack = ExitStack()
        sound = self._stack.enter_context(open_device("microphone", *microphone))
        pictures = self._stack.enter_context(open_device("camera", *camera))
        self.sampling_rate = sound.streams.audio[0].rate
        self._came: queue.Queue[Any] = queue.Queue()
        self._is_wanted = True
        self._threads = [
            threading.Thread(target=self._read, args=(container, stream), daemon=True)
            for container, stream in ((sound, sound.streams.audio[0]), (pictures, pictures.streams.video[0]))
        ]

    def chunks(self) -> Iterator[Chunk]:
        """Yields what comes, as it comes; pictures from before the first sound are dropped."""
        for thread in self._threads:
            thread.start()
        start = None
        while True:
            came, frame = self._came.get()
            if isinstance(frame, Exception):
                raise frame
            if isinstance(frame, av.AudioFrame):
                start = came - frame.samples / frame.sample_rate if start is None else start
                yield [], [], mono(frame)
            elif start is not None:
                yield [frame.to_ndarray(format="rgb24", threads=1)], [max(0.0, came - start)], None

    def close(self) -> None:
        """Stops reading and closes the devices."""
        self._is_wanted = False
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._stack.close()

    def _read(self, container: av.container.InputContainer, stream: av.stream.Stream) -> None:
        """Puts frames and the moments at which they came into the queue, from a thread."""
        try:
            for frame in container.decode(stream):
                self._came.put((time.monotonic(), frame))
                if not self._is_wanted:
                    return
        except av.FFmpegError as error:
            self._came.put((time.monotonic(), error))


def open_device(kind: str, form: str, name: str) -> av.container.InputContainer:
    """Opens a camera or a microphone, or raises OSError that says how to choose another."""
    try:
        return av.open(name, format=form)
    except (av.FFmpegError, ValueError) as error:
        raise OSError(
            f"no {kind} {name} could be opened through FFmpeg's {form} ({error}). Choose one with --{kind} and "
            f"--{kind}-format, or play a file with --input."
        ) from error


def mono(frame: av.AudioFrame) -> np.ndarray:
    """Returns a chunk of sound as (samples,), float32 in [-1, 1]."""
    converted = av.AudioResampler(format="flt", layout="mono", rate=frame.sample_rate).resample(frame)
    return np.concatenate([part.to_ndarray().reshape(-1) for part in converted])


def play(path: Path) -> tuple[Iterator[Chunk], int]:
    """Plays a file as if it were live: nothing comes before its time.

    Returns:
        An iterator over what comes, and the rate of the sound in hertz (Hz).
    """
    waveform, sampling_rate = read_audio(path)

    def chunks() -> Iterator[Chunk]:
        start, heard = time.monotonic(), 0
        with closing(iterate_frames(path)) as frames:
            for seconds, frame in frames:
                time.sleep(max(0.0, start + seconds - time.monotonic()))
                while heard / sampling_rate + FILE_SOUND_SECONDS <= seconds:
                    piece = waveform[:, heard : heard + round(FILE_SOUND_SECONDS * sampling_rate)]
                    heard += round(FILE_SOUND_SECONDS * sampling_rate)
                    yield [], [], piece if piece.size else None
                yield [frame], [seconds], None

    return chunks(), sampling_rate


class Watch:
    """Passes live input on and remembers its pictures and its time, for those who look at the result.

    Args:
        chunks: The input.
        seconds: When to stop, seconds of input; None for never.
    """

    def __init__(self, chunks: Iterator[Chunk], seconds: float | None) -> None:
        self._chunks = chunks
        self._seconds = seconds
        self._pictures: dict[float, np.ndarray] = {}
        self.now = 0.0

    def chunks(self) -> Iterator[Chunk]:
        """Yields the input."""
        for chunk in self._chunks:
            for picture, seconds in zip(*chunk[:2], strict=True):
                self.now = seconds
                self._pictures[seconds] = picture
            for seconds in [kept for kept in self._pictures if kept < self.now - KEPT_SECONDS]:
                del self._pictures[seconds]
            yield chunk
            if self._seconds is not None and self.now >= self._seconds:
                return

    def picture(self, seconds: float) -> np.ndarray:
        """Returns the picture of a moment, the nearest that is kept."""
        moments = list(self._pictures)
        return self._pictures[min(moments, key=lambda moment: abs(moment - seconds))]


def report(result: dict[str, Any], now: float) -> None:
    """Prints a line for one result."""
    found = ", ".join(f"{segment['label']} {segment['score']:.0%}" for segment in result["segments"]) or "nothing"
    print(f"{result['timestamp']:8.2f} s  {now - result['timestamp']:5.2f} s ago  {found}", flush=True)


def drawn(
    results: Iterator[dict[str, Any]], watch: Watch, colors: dict[str, Any], frames_per_second: float
) -> Iterator[np.ndarray]:
    """Prints each result and yields its picture with the masks, again for frames that were skipped; Ctrl-C is the end."""
    written = 0
    try:
        for result in results:
            report(result, watch.now)
            picture = Image.fromarray(watch.picture(result["timestamp"]))
            painted = np.asarray(draw_segments(picture, result["segments"], colors))
            for _ in range(max(1, round(result["timestamp"] * frames_per_second) - written)):
                written += 1
                yield painted
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)


def run(arguments: argparse.Namespace, chunks: Iterator[Chunk], sampling_rate: int) -> None:
    """Segments live input until it ends."""
    logging.set_verbosity_error()
    segmenter = pipeline(
        "audio-visual-segmentation", model=arguments.model, pipeline_class=AudioVisualSegmentationPipeline
    )
    watch = Watch(chunks, arguments.seconds)
    results = segmenter.live(
        watch.chunks(),
        sampling_rate=sampling_rate,
        frames_per_second=arguments.frames_per_second,
        frames_per_window=arguments.frames_per_window,
        threshold=arguments.threshold,
        drop_late=True,
    )
    with closing(results):
        colors = class_colors(segmenter.model.config.id2label)
        pictures = drawn(results, watch, colors, arguments.frames_per_second)
        if arguments.output is None:
            for _ in pictures:
                continue
        else:
            write_video(arguments.output, pictures, arguments.frames_per_second)
            print(f"overlay  {arguments.output}")


def main() -> None:
    """Segments live input."""
    arguments = parse_args()
    try:
        if arguments.input is not None:
            run(arguments, *play(arguments.input))
            return
        camera = (arguments.camera_format, arguments.camera)
        with closing(Devices(camera, (arguments.microphone_format, arguments.microphone))) as devices:
            run(arguments, devices.chunks(), devices.sampling_rate)
    except (OSError, ValueError, av.FFmpegError) as error:
        said = str(error).replace(SOUND_REMEDY, "Give a file with sound as --input.")
        print(f"error: {' '.join(said.split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
