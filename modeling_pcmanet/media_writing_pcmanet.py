"""Writing: frames and sound -> mp4, sound -> wav, whole or not at all, the same bytes for the same input."""

import heapq
import math
import os
import secrets
import wave
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from numbers import Integral
from operator import attrgetter
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import Flags, OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from .media_pcmanet import MediaError, finite_waveform


# The same bytes everywhere: x264 divides a picture among threads, and its choices follow the kind of processor.
H264_OPTIONS = {"crf": "18", "preset": "veryfast", "threads": "1", "x264-params": "cpu-independent=1"}

AAC_FRAME_SAMPLES = 1024
AAC_SAMPLING_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)

# FFmpeg's AAC at its default rate leaves holes in pure tones; it clamps this to what a sampling rate allows.
AAC_BITS_PER_SECOND_AND_CHANNEL = 128_000

CHANNEL_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}

# 1.0 in steps of 16-bit PCM.
PCM16_FULL_SCALE = 32768


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    frames_per_second: float,
    waveform: np.ndarray | None = None,
    sampling_rate: int | None = None,
) -> None:
    """Writes an mp4: H.264 (yuv420p, CRF 18) and AAC.

    Args:
        path: The file to write, ending in ".mp4". It is replaced only when everything is written.
        frames: uint8 RGB arrays (height, width, 3), all of one size. An odd height or width is made even by
            repeating the last row or column.
        frames_per_second: Frame rate.
        waveform: Floating (channels, samples) or (samples,) with full scale [-1, 1]; `None` for no sound track.
        sampling_rate: Samples per second of the waveform in hertz (Hz), one that AAC knows.

    Raises:
        FileNotFoundError: The folder does not exist.
        MediaError: There are no frames, or they or the waveform are not as described.
        ValueError: `frames_per_second` is not a positive number.
    """
    if not 0 < frames_per_second < math.inf:
        raise ValueError(f"frames_per_second must be a positive number, got {frames_per_second!r}.")
    rate = Fraction(frames_per_second).limit_denominator(1001)
    pictures = _checked_frames(frames)
    sound = None if waveform is None else _checked_waveform(waveform, sampling_rate, AAC_SAMPLING_RATES)
    with (
        _written_aside(Path(path), ".mp4") as aside,
        av.open(str(aside), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        container.flags |= Flags.bitexact.value
        _encode(container, pictures, rate, sound, sampling_rate)


def write_audio(path: str | Path, waveform: np.ndarray, sampling_rate: int) -> None:
    """Writes a 16-bit PCM wav. What is beyond full scale is cut to it.

    Args:
        path: The file to write, ending in ".wav". It is replaced only when everything is written.
        waveform: Floating (channels, samples) or (samples,) with full scale [-1, 1].
        sampling_rate: Samples per second in hertz (Hz).

    Raises:
        FileNotFoundError: The folder does not exist.
        MediaError: The waveform is not as described.
    """
    sound = _checked_waveform(waveform, sampling_rate)
    steps = np.round(sound.T * PCM16_FULL_SCALE).clip(-PCM16_FULL_SCALE, PCM16_FULL_SCALE - 1)
    with _written_aside(Path(path), ".wav") as aside, wave.open(str(aside), "wb") as file:
        file.setnchannels(sound.shape[0])
        file.setsampwidth(2)
        file.setframerate(sampling_rate)
        file.writeframes(steps.astype("<i2").tobytes())


@contextmanager
def _written_aside(path: Path, suffix: str) -> Iterator[Path]:
    """Gives a name beside `path` to write to, which becomes `path` at the end and disappears after an error."""
    if path.suffix.lower() != suffix:
        raise MediaError(f"{path} must end in {suffix!r}, which is what would be written. Change the name.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"No such folder: {path.parent}. Make it before writing {path.name}.")
    aside = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield aside
        os.replace(aside, path)
    except av.FFmpegError as error:
        raise MediaError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        aside.unlink(missing_ok=True)


def _encode(
    container: OutputContainer,
    pictures: Iterator[np.ndarray],
    rate: Fraction,
    sound: np.ndarray | None,
    sampling_rate: int | None,
) -> None:
    """Encodes pictures and sound (channels, samples) in the order of time, so that a player finds both at once."""
    first = next(pictures)
    streams = {av.VideoFrame: _add_video(container, first.shape, rate)}
    frames = [_video_frames(chain([first], pictures), rate)]
    if sound is not None:
        streams[av.AudioFrame] = _add_audio(container, sound.shape[0], sampling_rate)
        frames.append(_audio_frames(sound, sampling_rate))

    for frame in heapq.merge(*frames, key=attrgetter("time")):
        container.mux(streams[type(frame)].encode(frame))
    for stream in streams.values():
        container.mux(stream.encode())


def _add_video(container: OutputContainer, shape: tuple[int, int, int], rate: Fraction) -> VideoStream:
    """Adds the video stream for pictures of one shape (height, width, 3)."""
    stream = container.add_stream("libx264", rate=rate, options=H264_OPTIONS)
    stream.height, stream.width, stream.pix_fmt = shape[0], shape[1], "yuv420p"

    # Said aloud, because players take large untagged videos for BT.709.
    stream.colorspace, stream.color_range = Colorspace.ITU601.value, ColorRange.MPEG.value
    return stream


def _add_audio(container: OutputContainer, channels: int, sampling_rate: int) -> AudioStream:
    """Adds the sound track."""
    stream = container.add_stream("aac", rate=sampling_rate, layout=CHANNEL_LAYOUTS[channels])
    stream.bit_rate = AAC_BITS_PER_SECOND_AND_CHANNEL * channels
    return stream


def _video_frames(pictures: Iterable[np.ndarray], rate: Fraction) -> Iterator[av.VideoFrame]:
    """Yields pictures (height, width, 3) as frames with their times."""
    for index, picture in enumerate(pictures):
        # Converted here and by one thread: left to the encoder, the conversion differs from run to run on a busy machine.
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG, threads=1
        )
        frame.pts, frame.time_base, frame.duration = index, 1 / rate, 1
        yield frame


def _audio_frames(sound: np.ndarray, sampling_rate: int) -> Iterator[av.AudioFrame]:
    """Yields a sound (channels, samples) in pieces with their times."""
    for start in range(0, sound.shape[1], AAC_FRAME_SAMPLES):
        # Packed samples (sample by sample), because PyAV (18.1) fails on planar frames of 8 channels.
        piece = sound[:, start : start + AAC_FRAME_SAMPLES].T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(piece, format="flt", layout=CHANNEL_LAYOUTS[len(sound)])
        frame.pts, frame.time_base, frame.sample_rate = start, Fraction(1, sampling_rate), sampling_rate
        yield frame


def _checked_frames(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields at least one frame, all of one size, padded to even height and width, or raises MediaError."""
    shape = None
    for index, frame in enumerate(frames):
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            received = f"{getattr(frame, 'dtype', type(frame).__name__)} {np.shape(frame)}"
            raise MediaError(f"Frame {index} must be a uint8 array (height, width, 3), got {received}.")
        shape = shape or frame.shape
        if frame.shape != shape:
            raise MediaError(f"Frame {index} is {frame.shape}, but frame 0 is {shape}. Resize all to one size.")
        yield np.pad(frame, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
    if shape is None:
        raise MediaError("There are no frames to write. Pass at least one.")


def _checked_waveform(waveform: np.ndarray, sampling_rate: int | None, rates: tuple[int, ...] = ()) -> np.ndarray:
    """Returns a waveform as float32 (channels, samples), or raises MediaError.

    Args:
        waveform: Floating (channels, samples) or (samples,).
        sampling_rate: Samples per second in hertz (Hz).
        rates: The sampling rates that the codec knows, if not all.
    """
    waveform = np.atleast_2d(waveform)
    usable = waveform.ndim == 2 and waveform.shape[0] in CHANNEL_LAYOUTS and waveform.shape[1] > 0
    if not usable or not np.issubdtype(waveform.dtype, np.floating):
        raise MediaError(
            f"The waveform must be a floating array (channels, samples) of {list(CHANNEL_LAYOUTS)} channels, "
            f"got {waveform.dtype} {waveform.shape}. Divide integers by their full scale."
        )
    if not isinstance(sampling_rate, Integral) or sampling_rate <= 0 or (rates and sampling_rate not in rates):
        expected = f"one of {list(rates)}" if rates else "a positive whole number"
        raise MediaError(f"sampling_rate must be {expected} hertz, got {sampling_rate!r}. Resample the waveform.")
    return finite_waveform(waveform, "The waveform").astype(np.float32)
