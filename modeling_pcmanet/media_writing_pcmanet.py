"""Write media files: frames and audio as mp4, a waveform as wav.

A file appears only when it is complete. [`write_video`] and [`write_audio`] produce the same bytes for the same input
on every machine. No module that is saved with a model imports this one.
"""

import io
import math
import wave
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, islice
from numbers import Integral
from pathlib import Path
from typing import TypeAlias

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import Flags, OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from pcmanet.files import atomic_file

from .media_pcmanet import (
    AUDIO_MARGIN_SECONDS,
    LONGEST_HOLE_SECONDS,
    LONGEST_OVERLAP_SECONDS,
    SAMPLING_OFFSET,
    MediaError,
    MediaReader,
    MediaSource,
    finite_waveform,
)


# An audio stream of an open container, and its packets in the order of the file.
AudioPackets: TypeAlias = tuple[AudioStream, Iterable[av.Packet]]

# Without the last option, the choices of x264 depend on the kind of processor.
H264_OPTIONS = {"crf": "18", "preset": "veryfast", "x264-params": "cpu-independent=1"}
TICKS_PER_SECOND = 90_000  # of the clock that holds the times of frames without a constant rate

# The color matrix of every file that this module writes. The file names it, because players assume BT.709 for large videos.
COLOR_MATRIX = Colorspace.ITU601
COLOR_RANGE = ColorRange.MPEG

# Audio codecs that players expect in an mp4 file. Audio in any other codec is encoded as AAC.
MP4_AUDIO_CODECS = ("aac", "mp3", "ac3", "eac3", "alac", "opus")
LOWEST_MP3_SAMPLING_RATE = 16_000  # hertz (Hz); FFmpeg does not write a lower one to an mp4 file

AAC_FRAME_SAMPLES = 1024
AAC_SAMPLING_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
FALLBACK_SAMPLING_RATE = 48_000  # hertz (Hz), for an audio stream with a rate that AAC does not support
CHANNEL_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
LOSSLESS_RATE = 16  # frames per second: 15/16 s is the time of a frame
FALLBACK_LAYOUT = "stereo"  # for an audio stream with another number of channels

# FFmpeg's AAC at its default bit rate leaves holes in pure tones. FFmpeg clamps this value to what a sampling rate
# allows.
AAC_BITS_PER_SECOND_AND_CHANNEL = 128_000

# 1.0 in steps of 16-bit PCM.
PCM16_FULL_SCALE = 32768


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    frames_per_second: float,
    waveform: np.ndarray | None = None,
    sampling_rate: int | None = None,
) -> None:
    """Write an mp4 file with a constant frame rate: H.264 (yuv420p, CRF 18) and AAC. One thread encodes the frames.

    Args:
        path: The file to write, ending in ".mp4". An existing file is replaced when the new one is complete.
        frames: uint8 RGB arrays (height, width, 3), all of one size. An odd height or width is made even by
            repeating the last row or column.
        frames_per_second: Frame rate.
        waveform: Floating-point (channels, samples) or (samples,) with full scale [-1, 1]; `None` for no audio track.
        sampling_rate: Samples per second of the waveform in hertz (Hz), one that AAC supports.

    Raises:
        FileNotFoundError: If the folder does not exist.
        MediaError: If there are no frames, or they or the waveform are not as described.
        OSError: If the disk is full or cannot be written to.
        ValueError: If `frames_per_second` is not a positive number.
    """
    if not 0 < frames_per_second < math.inf:
        raise ValueError(f"frames_per_second must be a positive number, got {frames_per_second!r}.")
    rate = Fraction(frames_per_second).limit_denominator(1001)
    timed_frames = ((index / rate, frame) for index, frame in enumerate(frames))
    write_timed_video(path, timed_frames, waveform, sampling_rate=sampling_rate, frame_rate=rate, threads=1)


def write_timed_video(
    path: str | Path,
    frames: Iterable[tuple[float | Fraction, np.ndarray]],
    audio: np.ndarray | MediaSource | AudioPackets | None = None,
    *,
    sampling_rate: int | None = None,
    audio_origin: Callable[[], float] | None = None,
    frame_rate: Fraction | None = None,
    threads: int = 0,
) -> None:
    """Write an mp4 file in which each frame has its own time: H.264 (yuv420p, CRF 18) and audio.

    Args:
        path: The file to write, ending in ".mp4". An existing file is replaced when the new one is complete.
        frames: Pairs of a time in seconds, starting at 0, and a uint8 RGB array (height, width, 3). All frames have one
            size. An odd height or width is made even by repeating the last row or column.
        audio: A waveform (channels, samples) or (samples,), floating-point with full scale [-1, 1], which is encoded
            as AAC. Or an audio track: a path, URL, bytes or binary file object, or an audio stream of an open
            container with its packets. The packets are copied where an mp4 file can hold the codec. Otherwise they are
            decoded and encoded as AAC; damaged ones, and those more than a second after the last frame, are left out.
            `None` for no audio track.
        sampling_rate: Samples per second of a waveform in hertz (Hz), one that AAC supports.
        audio_origin: Returns the time, in the container of the audio track, of time 0 of `frames`, in seconds. It is
            called once, after the first frames have been taken. By default, it is the start time that the container
            declares for its video, or, without a video, for its audio; the first frame that can be decoded may be
            later.
        frame_rate: The constant rate of the frames, to hold their times exactly. By default times are rounded to 1/90000
            of a second, and the last frame lasts as long as the first.
        threads: Number of threads that encode the frames; 0 for one per core. x264 divides the work among them, so the
            bytes of the file depend on their number.

    Raises:
        FileNotFoundError: If the folder or the file with the audio does not exist.
        MediaError: If there are no frames, or they or the audio are not as described.
        OSError: If the disk is full or cannot be written to.
    """
    if isinstance(audio, np.ndarray):
        audio = _checked_waveform(audio, sampling_rate, AAC_SAMPLING_RATES)
    with (
        _opened(audio) as audio,
        _atomic_media_file(Path(path), ".mp4") as temporary,
        # Without the protocol, FFmpeg interprets a path with a colon as an address.
        av.open(f"file:{temporary}", "w", format="mp4", options={"movflags": "+faststart"}) as output,
    ):
        output.flags |= Flags.bitexact.value
        frames = _checked_frames(frames)
        start = list(islice(frames, 2))
        video_packets = _video_packets(_add_video(output, start, frame_rate, threads), chain(start, frames))
        audio_packets = () if audio is None else _audio_packets(output, audio, sampling_rate, audio_origin)
        longest = math.inf if isinstance(audio, np.ndarray) else AUDIO_MARGIN_SECONDS
        for packet in _interleaved(video_packets, audio_packets, longest):
            output.mux(packet)


def write_audio(path: str | Path, waveform: np.ndarray, sampling_rate: int) -> None:
    """Write a 16-bit PCM wav file. Values beyond full scale are clipped.

    Args:
        path: The file to write, ending in ".wav". An existing file is replaced when the new one is complete.
        waveform: Floating-point (channels, samples) or (samples,) with full scale [-1, 1].
        sampling_rate: Samples per second in hertz (Hz).

    Raises:
        FileNotFoundError: If the folder does not exist.
        MediaError: If the waveform is not as described.
        OSError: If the disk is full or cannot be written to.
    """
    waveform = _checked_waveform(waveform, sampling_rate)
    with _atomic_media_file(Path(path), ".wav") as temporary:
        temporary.write_bytes(encode_wav(waveform, sampling_rate))


def encode_wav(waveform: np.ndarray, sampling_rate: int) -> bytes:
    """Encode audio as a 16-bit PCM wav file.

    Args:
        waveform: Floating-point (channels, samples) with full scale [-1, 1]; values beyond it are clipped.
        sampling_rate: Samples per second in hertz (Hz).

    Returns:
        The bytes of the file.
    """
    steps = np.rint(waveform.T * PCM16_FULL_SCALE).clip(-PCM16_FULL_SCALE, PCM16_FULL_SCALE - 1)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(waveform.shape[0])
        file.setsampwidth(2)
        file.setframerate(sampling_rate)
        file.writeframes(steps.astype("<i2").tobytes())
    return buffer.getvalue()


def encode_lossless(frames: np.ndarray, waveform: np.ndarray, sampling_rate: int) -> bytes:
    """Encode one frame per second and audio without loss, so that code that reads videos can read AVSBench clips.

    Args:
        frames: uint8 RGB (frames, height, width, 3).
        waveform: float32 (channels, samples) with full scale [-1, 1].
        sampling_rate: Samples per second in hertz (Hz).

    Returns:
        The bytes of a NUT file. Reading it at one frame per second gives the same frames and samples, and for frame k
        the timestamp k + 15/16, as in AVSBench.
    """
    buffer = io.BytesIO()
    # Matroska would round times to milliseconds.
    with av.open(buffer, "w", format="nut") as output:
        output.flags |= Flags.bitexact.value  # the same bytes in every run
        video = output.add_stream("ffv1", rate=LOSSLESS_RATE)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "bgr0"
        audio = output.add_stream("pcm_f32le", rate=sampling_rate, layout=CHANNEL_LAYOUTS[len(waveform)])
        for second, frame in enumerate(frames):
            # On screen for a second, and again at the time when it is sampled.
            for position in (second, second + SAMPLING_OFFSET):
                image = av.VideoFrame.from_ndarray(frame, format="rgb24")
                image.pts, image.time_base = round(position * LOSSLESS_RATE), Fraction(1, LOSSLESS_RATE)
                output.mux(video.encode(image))
        output.mux(video.encode())
        for packet in _encoded(audio, _frames_of_waveform(waveform.astype(np.float32), sampling_rate)):
            output.mux(packet)
    return buffer.getvalue()


@contextmanager
def _atomic_media_file(path: Path, suffix: str) -> Iterator[Path]:
    """Yield a temporary path next to `path` to write to, see [`atomic_file`]; errors of FFmpeg name `path`."""
    if path.suffix.lower() != suffix:
        raise MediaError(f"{path} must end in {suffix!r}, the format of the file. Change the name.")
    try:
        with atomic_file(path, durable=False) as temporary:
            yield temporary
    except av.FFmpegError as error:
        if isinstance(error, OSError):  # from the system, such as a full disk: other files cannot be written either
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise MediaError(f"{path} cannot be written: {error.strerror or error}.") from error


def _checked_frames(
    frames: Iterable[tuple[float | Fraction, np.ndarray]],
) -> Iterator[tuple[float | Fraction, np.ndarray]]:
    """Yield at least one frame, all of one size, padded to even height and width, or raise MediaError."""
    shape = None
    for index, (seconds, frame) in enumerate(frames):
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            received = f"{getattr(frame, 'dtype', type(frame).__name__)} {np.shape(frame)}"
            raise MediaError(f"Frame {index} must be a uint8 array (height, width, 3), got {received}.")
        shape = shape or frame.shape
        if frame.shape != shape:
            raise MediaError(f"Frame {index} is {frame.shape}, but frame 0 is {shape}. Resize all to one size.")
        # H.264 stores colors at half the resolution.
        padding = ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0))
        yield seconds, np.pad(frame, padding, mode="edge") if shape[0] % 2 or shape[1] % 2 else frame
    if shape is None:
        raise MediaError("Expected at least one frame to write, got none.")


def _add_video(
    output: OutputContainer,
    start: list[tuple[float | Fraction, np.ndarray]],
    frame_rate: Fraction | None,
    threads: int,
) -> VideoStream:
    """Add the video stream for frames that begin with `start`, the first two."""
    period = start[-1][0] - start[0][0]
    measured = Fraction(1 / period).limit_denominator(1001) if period > 0 else Fraction(0)
    options = {**H264_OPTIONS, "threads": str(threads)}
    stream = output.add_stream("libx264", rate=frame_rate or measured or Fraction(1), options=options)
    stream.height, stream.width, stream.pix_fmt = *start[0][1].shape[:2], "yuv420p"
    stream.colorspace, stream.color_range = COLOR_MATRIX.value, COLOR_RANGE.value
    stream.codec_context.time_base = Fraction(1, TICKS_PER_SECOND) if frame_rate is None else 1 / frame_rate
    return stream


def _video_packets(stream: VideoStream, frames: Iterable[tuple[float | Fraction, np.ndarray]]) -> Iterator[av.Packet]:
    """Encode frames, each at its own time."""
    time_base = stream.codec_context.time_base
    duration = round(1 / (stream.codec_context.framerate * time_base))
    last = -1
    for seconds, array in frames:
        # Converted here and by one thread. In the encoder, the conversion would differ from run to run on a busy
        # machine, and its threads would outlive it, so a process forked in the meantime would wait for them forever.
        frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=COLOR_MATRIX, dst_color_range=COLOR_RANGE, threads=1
        )
        frame.pts = last = max(last + 1, round(seconds / time_base))
        frame.time_base, frame.duration = time_base, duration
        yield from stream.encode(frame)
    yield from stream.encode()


def _interleaved(video: Iterable[av.Packet], audio: Iterable[av.Packet], longest: float) -> Iterator[av.Packet]:
    """Yield packets in chronological order, so that a player finds frames and audio of the same time close to each other.

    Args:
        video: The packets of the frames.
        audio: The packets of the audio. Those more than `longest` seconds after the last frame are left out.
        longest: In seconds.
    """
    end, audio = Fraction(0), iter(audio)
    following = next(audio, None)
    for packet in video:
        while following is not None and _decoding_time(following) < _decoding_time(packet):
            yield following
            following = next(audio, None)
        end = max(end, ((packet.pts or 0) + (packet.duration or 0)) * packet.time_base)
        yield packet
    while following is not None and _decoding_time(following) <= end + longest:
        yield following
        following = next(audio, None)


def _decoding_time(packet: av.Packet) -> Fraction:
    """Return the decoding time of a packet, in seconds."""
    return (packet.dts or 0) * packet.time_base


@contextmanager
def _opened(audio: np.ndarray | MediaSource | AudioPackets | None) -> Iterator[np.ndarray | AudioPackets | None]:
    """Open the audio track of a file; pass on anything else."""
    if audio is None or isinstance(audio, np.ndarray | tuple):
        yield audio
        return
    with MediaReader(audio, video=False) as reader:
        yield reader.audio_stream, reader.audio_packets()


def _audio_packets(
    output: OutputContainer,
    audio: np.ndarray | AudioPackets,
    sampling_rate: int | None,
    audio_origin: Callable[[], float] | None,
) -> Iterator[av.Packet]:
    """Add an audio stream to the output and return an iterator over its packets, on the clock of the frames."""
    if isinstance(audio, np.ndarray):
        track = _add_aac(output, sampling_rate, len(audio))
        return _encoded(track, _frames_of_waveform(audio, track.rate))
    stream, packets = audio
    origin = Fraction(_declared_origin(stream) if audio_origin is None else audio_origin())
    packets = _on_clock(stream, packets, origin)
    if _fits_mp4(stream):
        return _copied(output.add_stream_from_template(stream), packets)
    rate = stream.rate if stream.rate in AAC_SAMPLING_RATES else FALLBACK_SAMPLING_RATE
    track = _add_aac(output, rate, stream.layout.nb_channels)
    return _encoded(track, _decoded(packets, track))


def _declared_origin(stream: AudioStream) -> Fraction:
    """Return the start time in seconds that an audio stream's file declares for its video, or else for its audio."""
    declaring = stream.container.streams.best("video") or stream
    return Fraction(declaring.start_time or 0) * (declaring.time_base or 1)


def _fits_mp4(stream: AudioStream) -> bool:
    """Return whether packets of an audio stream can be copied to an mp4 file that players play."""
    codec = stream.codec_context.codec.canonical_name
    return codec in MP4_AUDIO_CODECS and not (codec == "mp3" and stream.rate < LOWEST_MP3_SAMPLING_RATE)


def _on_clock(stream: AudioStream, packets: Iterable[av.Packet], origin: Fraction) -> Iterator[av.Packet]:
    """Yield packets with the times of the output: 0 at `origin` seconds, continued where the times of the source jump."""
    time_base = stream.time_base or Fraction(1)
    offset, last, following = round(origin / time_base), None, None
    for packet in packets:
        if packet.dts is not None:  # the last packet is empty and marks the end
            jump = 0 if following is None else packet.dts - offset - following
            if not -LONGEST_OVERLAP_SECONDS <= jump * time_base <= LONGEST_HOLE_SECONDS:
                offset += jump
            packet.pts = (packet.dts if packet.pts is None else packet.pts) - offset
            packet.dts -= offset
            if last is not None and packet.dts <= last:
                continue
            last, following = packet.dts, packet.dts + (packet.duration or 0)
        yield packet


def _copied(track: AudioStream, packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
    """Yield packets as packets of a track."""
    for packet in packets:
        if packet.dts is not None:
            packet.stream = track
            yield packet


def _decoded(packets: Iterable[av.Packet], track: AudioStream) -> Iterator[av.AudioFrame]:
    """Decode packets to the rate and layout of a track; leave out damaged packets."""
    following, kind, resampler = 0, None, None
    for frame in chain.from_iterable(map(_decode, packets)):
        frame.pts = following if frame.pts is None else frame.pts
        following = frame.pts + round(frame.samples / (frame.sample_rate * (frame.time_base or 1)))
        # A resampler accepts one kind of frame; a broadcast may change, for example, from mono to 5.1.
        previous, kind = kind, (frame.format.name, frame.layout.name, frame.sample_rate)
        if resampler is None or kind != previous:
            resampler = av.AudioResampler(format="fltp", layout=track.layout.name, rate=track.rate)
        yield from resampler.resample(frame)


def _decode(packet: av.Packet) -> list[av.AudioFrame]:
    """Return the frames of a packet, none for a damaged one."""
    try:
        return packet.decode()
    except av.FFmpegError:
        return []


def _add_aac(output: OutputContainer, sampling_rate: int | None, channels: int) -> AudioStream:
    """Add an AAC stream."""
    stream = output.add_stream("aac", rate=sampling_rate, layout=CHANNEL_LAYOUTS.get(channels, FALLBACK_LAYOUT))
    stream.bit_rate = AAC_BITS_PER_SECOND_AND_CHANNEL * stream.layout.nb_channels
    return stream


def _frames_of_waveform(waveform: np.ndarray, sampling_rate: int) -> Iterator[av.AudioFrame]:
    """Yield a waveform (channels, samples) in frames with their times."""
    for start in range(0, waveform.shape[1], AAC_FRAME_SAMPLES):
        # Packed samples (sample by sample), because PyAV (18.1) fails on planar frames of 8 channels.
        samples = waveform[:, start : start + AAC_FRAME_SAMPLES].T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout=CHANNEL_LAYOUTS[len(waveform)])
        frame.pts, frame.time_base, frame.sample_rate = start, Fraction(1, sampling_rate), sampling_rate
        yield frame


def _encoded(track: AudioStream, frames: Iterable[av.AudioFrame]) -> Iterator[av.Packet]:
    """Encode audio frames."""
    for frame in frames:
        yield from track.encode(frame)
    yield from track.encode()


def _checked_waveform(waveform: np.ndarray, sampling_rate: int | None, rates: tuple[int, ...] = ()) -> np.ndarray:
    """Return a waveform as float32 (channels, samples), or raise MediaError.

    Args:
        waveform: Floating-point (channels, samples) or (samples,).
        sampling_rate: Samples per second in hertz (Hz).
        rates: The sampling rates that the codec supports; empty for all.
    """
    waveform = np.atleast_2d(waveform)
    usable = waveform.ndim == 2 and waveform.shape[0] in CHANNEL_LAYOUTS and waveform.shape[1] > 0
    if not usable or not np.issubdtype(waveform.dtype, np.floating):
        raise MediaError(
            f"The waveform must be a floating-point array (channels, samples) of {list(CHANNEL_LAYOUTS)} channels, "
            f"got {waveform.dtype} {waveform.shape}. Divide integers by their full scale."
        )
    if not isinstance(sampling_rate, Integral) or sampling_rate <= 0 or (rates and sampling_rate not in rates):
        expected = f"one of {list(rates)}" if rates else "a positive integer"
        raise MediaError(f"sampling_rate must be {expected} hertz, got {sampling_rate!r}. Resample the waveform.")
    return finite_waveform(waveform, "The waveform").astype(np.float32)
