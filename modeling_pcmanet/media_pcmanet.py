"""Read media: frames and audio from a path, URL, bytes or file object, in one pass and on one clock.

    with MediaReader("clip.mp4") as reader:
        for timestamp, frame, _ in reader.frames(frames_per_second=1.0):
            ...
        for samples, sampling_rate in reader.audio():
            ...

The memory that [`MediaReader`] uses does not grow with the length of the file. [`read_media`] and [`read_audio`]
collect its output. Sections: notes and errors, reading, opening, packets, time, frames, audio.
"""

import errno
import heapq
import io
import logging
import math
import os
import ssl
import stat
import tempfile
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from http.client import HTTPException, IncompleteRead
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeGuard, TypeVar, cast
from urllib import request
from urllib.parse import quote, urlsplit

import av
import av.error
import fsspec
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from fsspec.core import OpenFile


logger = logging.getLogger(__name__)

MediaSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
Stream = TypeVar("Stream", VideoStream, AudioStream)

# Used instead of a rate: every frame of the video, at its own time.
EVERY_FRAME = "video"

# One frame for the network: its timestamp, the frame, and the timestamps of the masks since the previous frame. The
# frame is uint8 RGB (height, width, 3). Timestamps are in seconds since the first frame of the video.
StreamedFrame = tuple[float, np.ndarray, tuple[float, ...]]

# One event of a stream: a timestamp with a frame, or with None where only a mask is wanted.
Event = tuple[float, np.ndarray | None]

# Samples (channels, samples), float32, and the sampling rate in hertz (Hz). None in place of samples means that more
# frames must be read before it is known how the audio continues.
AudioPiece = tuple[np.ndarray | None, int]


# --- Notes and errors ---

DAMAGED = "damaged or missing packets of data left out"

_AUDIO_REMEDY = "Pass the audio as `audio=` (a waveform) with its `sampling_rate=`."


class MediaError(ValueError):
    """Media that cannot be used. The message names the source, the problem and the remedy.

    Args:
        problem: The message. If `needs_audio` is set, the remedy for callers in Python is appended.
        needs_audio: Whether the source lacks usable audio, which can be given separately.

    Attributes:
        problem: The message without that remedy, for programs whose users provide audio in another way.
        needs_audio: As given.
    """

    def __init__(self, problem: str, *, needs_audio: bool = False) -> None:
        super().__init__(f"{problem} {_AUDIO_REMEDY}" if needs_audio else problem)
        self.problem = problem
        self.needs_audio = needs_audio


class MediaNotes:
    """Notes on what was done to use an unusual or damaged source; `str()` returns the name of the source.

    When a note is added, the logger of this module logs it as a warning.
    `logging.getLogger("modeling_pcmanet").setLevel(logging.ERROR)` silences these warnings. What the file itself
    requests (rotation, stretched pixels) is logged as information.

    Args:
        name: Name of the source in messages.
        is_logged: Whether to log the notes.

    Attributes:
        texts: The notes so far, each once, in order.
    """

    def __init__(self, name: str, *, is_logged: bool = True) -> None:
        self.name = name
        self._is_logged = is_logged
        self.texts: list[str] = []
        self._counts: Counter[str] = Counter()

    def __str__(self) -> str:
        return self.name

    def add(self, text: str, level: int = logging.WARNING) -> None:
        """Add and log a note, unless it was added before."""
        if text not in self.texts:
            self.texts.append(text)
            if self._is_logged:
                logger.log(level, "%s: %s", self.name, text)

    def count(self, what: str) -> None:
        """Count an event that [`finish`] adds as one note with the number of events."""
        self._counts[what] += 1

    def has_counted(self, what: str) -> bool:
        """Return whether an event was counted since the last [`finish`]."""
        return self._counts[what] > 0

    def finish(self) -> None:
        """Add the notes on the counted events."""
        for what, number in self._counts.items():
            self.add(f"{what}: {number}")
        self._counts.clear()


# --- Reading ---

# Limit for frames held at once: an hour of full HD at one frame per second is 22 GB.
LARGEST_FRAMES_BYTES = 8 * 2**30

# Three hours of stereo at 48 kHz.
LARGEST_AUDIO_BYTES = 4 * 2**30

# Limit for packets of one stream that wait while those of the other are read. Files interleave their streams in far
# less.
LARGEST_QUEUE_BYTES = 2**26

# Audio is kept for this long after the last frame; audio and video may differ by this much before a note is added.
AUDIO_MARGIN_SECONDS = 1.0

# Audio is yielded in pieces of at least this length.
JOINED_SECONDS = 0.5

# Filled-in silence is noted if all holes together reach this length; codecs and containers differ by less.
NOTED_SILENCE_SECONDS = 0.25


@dataclass(frozen=True, eq=False)
class Media:
    """Frames and audio of one video on one clock.

    Attributes:
        frames: uint8 array (frames, height, width, 3), RGB, at the size of the video and as a player shows them: upright
            (rotation metadata applied), with square pixels, transparent parts on black, interlaced frames rebuilt from
            one of their fields.
        timestamps: float64 array (frames,), seconds since the first frame of the video. A frame that is on screen for
            longer than a frame period has the timestamp at which it was sampled.
        waveform: float32 array (channels, samples), full scale is [-1, 1], sample 0 at time 0; `None` without audio.
        sampling_rate: Sampling rate of the waveform in hertz (Hz); `None` without a waveform.
        name: Name of the source in error messages.
        notes: What was done to use the source although it is unusual or damaged, one sentence each. The notes are also
            logged.
    """

    frames: np.ndarray
    timestamps: np.ndarray
    waveform: np.ndarray | None
    sampling_rate: int | None
    name: str
    notes: tuple[str, ...] = ()


def read_media(source: MediaSource, *, frames_per_second: float = 1.0, audio: bool = True) -> Media:
    """Read the frames for the network, and the audio.

    For second `l`, this is the frame that AVSBench takes: number `int((l + 15/16) * round(fps))`, or the last one if
    there are fewer (AVSBench protocol, "Preparation from raw video"). At `r` frames per second the sampling times are
    `(k + 15/16) / r`. There are `max(1, round(duration * r))` frames, where the duration is that of the decoded
    frames.

    Args:
        source: Path, http(s) URL, the bytes of a file, or a binary file object (read from its start, left open).
        frames_per_second: Frames to take per second of video.
        audio: Whether to read the audio as well.

    Returns:
        The frames with their timestamps, and the waveform at its own rate, aligned with them. Audio that starts late
        is padded with zeros, audio from before the first frame is cut, and holes are filled with zeros. The end is
        also filled if more than a second is missing; audio more than a second after the video is cut. For a truncated
        or damaged file, the result contains what can be decoded. `notes` lists what was done.

    Raises:
        FileNotFoundError: If the file does not exist.
        MediaError: If the source is not a video, has no frame, or has no usable audio although `audio` is true.
        ValueError: If `frames_per_second` is not a positive number.
    """
    if not 0 < frames_per_second < math.inf:
        raise ValueError(f"frames_per_second must be a positive number, got {frames_per_second!r}.")
    with MediaReader(source, audio=audio) as reader:
        frames, timestamps = [], []
        for timestamp, frame, _ in reader.frames(frames_per_second):
            check_held_frames(len(frames), frame, reader)
            frames.append(frame)
            timestamps.append(timestamp)
        waveform, sampling_rate = _collect_audio(reader) if audio else (None, None)
        reader.finish()
    return Media(
        stack_and_release(frames),
        np.array(timestamps, dtype=np.float64),
        waveform,
        sampling_rate,
        reader.name,
        tuple(reader.notes.texts),
    )


def read_audio(source: MediaSource) -> tuple[np.ndarray, int]:
    """Read the audio of an audio or video file.

    Args:
        source: Path, http(s) URL, the bytes of a file, or a binary file object (read from its start, left open).

    Returns:
        The waveform, float32 (channels, samples) with full scale [-1, 1], and its sampling rate in hertz (Hz).

    Raises:
        FileNotFoundError: If the file does not exist.
        MediaError: If the source has no audio, or audio with NaN or infinite samples.
    """
    with MediaReader(source, video=False) as reader:
        waveform, sampling_rate = _collect_audio(reader)
        reader.finish()
    return waveform, sampling_rate


def iterate_frames(source: MediaSource) -> Iterator[tuple[float, np.ndarray]]:
    """Yield every frame of a video with its timestamp, in constant memory.

    Args:
        source: Path, http(s) URL, the bytes of a file, or a binary file object (read from its start, left open).

    Yields:
        Seconds since the first frame, and the frame, uint8 RGB (height, width, 3), upright.

    Raises:
        FileNotFoundError: If the file does not exist.
        MediaError: If the source is not a video, or has no frame.
    """
    with MediaReader(source, audio=False) as reader:
        for timestamp, frame, _ in reader.frames(EVERY_FRAME):
            yield timestamp, frame
        reader.finish()


class MediaReader:
    """Read the frames and the audio of one file in one pass; use it as a context manager.

    Both streams are demuxed from one container. Packets of one stream wait in a queue while those of the other are read,
    and are decoded on demand, so that neither stream runs ahead.

    Args:
        source: Path, http(s) URL, the bytes of a file, or a binary file object (read from its start, left open).
        video: Whether to read the video stream.
        audio: Whether to read the audio stream.
        log_notes: Whether to log the notes. If a source is read again, they have already been logged.

    Raises:
        FileNotFoundError: When entered, if the file does not exist.
        MediaError: When entered, if the source is not media or lacks a stream; later, if it cannot be decoded.

    Attributes:
        name: Name of the source in error messages.
        notes: What was done to use the source; complete once all frames have been read and [`finish`] has been called.
        duration: Duration that the file declares, in seconds; `None` if it declares none.
        origin: Time of the first frame in the container, in seconds; known once the first frame has been read.
        end: When the last frame read leaves the screen, in seconds since the first frame.
        has_ended: Whether all frames have been read.
        listener: Called with the index of the first sample, the samples (channels, samples) and the sampling rate of each
            chunk of audio that [`audio_packets`] passes on; `None` to not decode them.
        video_reader: For audio in a file of its own, the reader of the video that it belongs to: [`audio`] then ends with
            that video, as a track of the video does. `None` to read all of it.
    """

    def __init__(self, source: MediaSource, *, video: bool = True, audio: bool = True, log_notes: bool = True) -> None:
        source = media_source(source)
        self.name = source_name(source)
        self._log_notes = log_notes
        self.notes = MediaNotes(self.name)
        self._audio: AudioStream | None = None
        self.duration: float | None = None
        self.origin = self.end = 0.0
        self.has_ended = False
        self.listener: Callable[[int, np.ndarray, int], None] | None = None
        self.video_reader: MediaReader | None = None
        self._source = source
        self._reads = {"video": video, "audio": audio}
        self._size: tuple[int, int] | None = None
        self._skips: Callable[[av.Packet], bool] = lambda _: False
        # Notes on the audio, which are added after those on the complete file: a text with its level.
        self._audio_notes: list[tuple[str, int]] = []
        # The total seconds of holes and overlaps, and their number.
        self._gap_seconds: defaultdict[str, float] = defaultdict(float)
        self._gaps: Counter[str] = Counter()
        # When the decoded audio ends, in seconds since the first frame.
        self._audio_end: float | None = None

    def __enter__(self) -> "MediaReader":
        self.notes = MediaNotes(self.name, is_logged=self._log_notes)
        with ExitStack() as stack:
            if isinstance(self._source, str) and is_open_pipe(Path(self._source)):
                self._source = stack.enter_context(_open_path(Path(self._source)))
            if _is_file_object(self._source):
                self._source = stack.enter_context(_seekable(self._source))
            opened = stack.enter_context(ExitStack())
            try:
                self._open(opened)
            except av.FFmpegError as error:
                if not _is_url(self._source) or error.errno != errno.EIO:
                    raise
                # The index of an mp4 file is at its end, and the server does not send the part before it again.
                opened.close()
                self._source = stack.enter_context(_downloaded(self._source, self.name, error))
                self._open(opened)
            self._stack = stack.pop_all()
        return self

    def _open(self, stack: ExitStack) -> None:
        """Open the source and its decoders; of an mp4 file at a URL, also read the first packet."""
        container, _ = stack.enter_context(open_media(self._source, self.name))
        self.duration = container.duration / av.time_base if container.duration else None
        streams = []
        if self._reads["video"]:
            self._video = video_stream(container, self.notes)
            streams.append(self._video)
        if self._reads["audio"]:
            self._audio = audio_stream(container, self.notes)
            streams.append(self._audio)
        # A URL is not read twice, because a broadcast would have continued. So only one thread decodes it.
        is_read_once = _is_url(self._source)
        threads = 1 if is_read_once else FRAME_THREADS
        self._packets = PacketQueues(container, streams, self.notes, self._reopen, threads, conceals=is_read_once)
        if is_read_once and "mp4" in container.format.name:
            self._packets.read_first()
        if self._reads["video"]:
            self._clock, self._converter = VideoClock(self._video), FrameConverter(self._video, self.notes)
            self._decoded = self._decode_video()
        else:
            self.end, self.has_ended = math.inf if self.duration is None else self.duration, True
        self._pieces = _joined(self._decode_audio())

    def __exit__(self, *error: Any) -> bool | None:
        # Generators of this object refer to it. Without this, only the garbage collector would free the decoders.
        self._decoded = self._pieces = iter(())
        del self._packets
        self._skips = lambda _: False
        return self._stack.__exit__(*error)

    @property
    def audio_stream(self) -> AudioStream:
        """The audio stream of the container; ValueError if the reader was created without audio."""
        if self._audio is None:
            raise ValueError(f"{self.name} was opened with audio=False. Open it with audio=True to read its audio.")
        return self._audio

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames, upright. Reads the first frame, which [`frames`] still yields."""
        if self._size is None:
            first = next(self._decoded)
            self._decoded = chain([first], self._decoded)
            self._size = self._converter.convert(first[1]).shape[:2]
        return self._size

    def frames(
        self, frames_per_second: float | str = 1.0, masks_per_second: float | str | None = None
    ) -> Iterator[StreamedFrame]:
        """Yield, once, the frames for the network in chronological order.

        Args:
            frames_per_second: Frames to take per second of video, or `"video"` for every frame.
            masks_per_second: Masks per second, or `"video"`; `None` is one per frame for the network.

        Yields:
            See `StreamedFrame`. The last frame also has the timestamps of the masks after it.
        """
        if masks_per_second is None:
            return (frame for _, frame in self.frames_at([frames_per_second]))
        taken = self._taken([masks_per_second, frames_per_second])
        events = ((time, self._converter.convert(frame) if index else None) for index, time, frame in taken)
        return join_timestamps(events)

    def frames_at(self, rates: Sequence[float | str]) -> Iterator[tuple[int, StreamedFrame]]:
        """Yield, once and instead of [`frames`], the frames for the network at several rates.

        Args:
            rates: Frames to take per second of video, each a number or `"video"` for every frame.

        Yields:
            Index of the rate, and a frame with one mask. Those of one rate are in chronological order.
        """
        for index, time, frame in self._taken(rates):
            yield index, (time, self._converter.convert(frame), (time,))

    def audio(self) -> Iterator[AudioPiece]:
        """Yield, once, the audio in pieces without holes between them; read the first frame before calling this.

        Sample 0 is at the first frame of the video, or without a video at the first sample. Holes, and the end if more
        than a second is missing, are filled with zeros; audio more than a second after the video is left out.

        Yields:
            See `AudioPiece`. Once all frames have been read, no piece is None.

        Raises:
            MediaError: If there is no audio, or samples are NaN or infinite.
        """
        return self._pieces

    def audio_packets(self) -> Iterator[av.Packet]:
        """Yield, once and instead of [`audio`], the packets of the audio stream; the last one is empty."""
        timeline = None
        for packet in self._packets_of(self.audio_stream):
            if self.listener is not None:
                timeline = timeline or AudioTimeline()
                for hole, samples in timeline.convert(_decoded(packet, self.notes), self._origin):
                    timeline.position += max(0, hole) + samples.shape[1]
                    self.listener(timeline.position - samples.shape[1], samples, timeline.sampling_rate)
            yield packet

    def finish(self) -> None:
        """Read the rest of the audio if all frames have been read, and add the notes on what was read."""
        # How far the audio is used depends on where the video ends.
        if self._audio is not None and self._video_of_audio.has_ended:
            deque(self._pieces, maxlen=0)
        self._add_notes()

    def _add_notes(self) -> None:
        """Add the notes on the complete file."""
        self.notes.finish()
        if self._reads["video"] and self.has_ended:
            note_missing_end(self._video, self.origin, self.end, self.notes, self._audio_end)
        for text, level in self._audio_notes:
            self.notes.add(text, level)
        for text, seconds in self._gap_seconds.items():
            if seconds >= NOTED_SILENCE_SECONDS:
                self.notes.add(f"{text}: {self._gaps[text]} ({seconds:.2f} s)")

    def _reopen(self, stream: VideoStream | AudioStream) -> tuple[InputContainer, VideoStream | AudioStream]:
        """Open the source a second time, for one stream."""
        source = self._stack.enter_context(_second_source(self._source))
        container, _ = self._stack.enter_context(open_media(source, self.name))
        return container, cast("VideoStream | AudioStream", container.streams[stream.index])

    def _packets_of(self, stream: VideoStream | AudioStream) -> Iterator[av.Packet]:
        """Yield the packets of one stream; errors of FFmpeg name the source."""
        failure = av.FFmpegError  # as in `open_media`
        try:
            with _reading(self.name):
                yield from self._packets.of(stream)
        except failure as error:
            raise _unreadable(self._source, self.name, error) from error

    def _decode_video(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yield every frame that can be decoded, and is not skipped, with its timestamp in seconds."""
        alphas: dict[int | None, np.ndarray] = {}
        packets = read_alpha(self._packets_of(self._video), alphas, self.notes)
        restart = None if _is_url(self._source) else lambda: read_alpha(self._restart_video(), alphas, self.notes)
        seconds = None
        for frame in decode_video(packets, self.notes, lambda packet: self._skips(packet), restart):
            frame.opaque = alphas.pop(frame.pts, None)
            seconds = self._clock.read(frame)
            self.origin, self.end = self._clock.origin, self._clock.end
            self._converter.measure(frame)
            yield seconds, frame
        if seconds is None:
            raise _encrypted(self.name) if _names_encryption(self._source) else no_frames(self.name)
        self.has_ended = True

    def _restart_video(self) -> Iterator[av.Packet]:
        """Return the packets of the video, starting with the first one, for a decoder with one thread."""
        self._packets.restart(self._video)
        return self._packets_of(self._video)

    def _taken(self, rates: Sequence[float | str]) -> Iterator[tuple[int, float, av.VideoFrame]]:
        """Yield the frames that are taken at each rate: index of the rate, timestamp, frame."""
        samplers = [FrameSampler.of(self._video, rate) for rate in rates]
        self._skips = FrameSkipper(self._clock, samplers).skips
        yield from _sampled(self._decoded, samplers)
        yield from _finished(samplers, self.end)

    @property
    def _video_of_audio(self) -> "MediaReader":
        """The reader of the video whose end is that of the audio."""
        return self if self.video_reader is None else self.video_reader

    @property
    def _ends_with_video(self) -> bool:
        """Whether the audio ends with a video."""
        return self._reads["video"] or self.video_reader is not None

    def _origin(self, first_second: float) -> float:
        """Return the time of sample 0 in the container, in seconds."""
        return self.origin if self._reads["video"] else first_second

    def _decode_audio(self) -> Iterator[AudioPiece]:
        """Yield the audio on the clock of the video."""
        timeline, end = AudioTimeline(), None
        for packet in self._packets_of(self.audio_stream):
            for hole, samples in timeline.convert(_decoded(packet, self.notes), self._origin):
                start = timeline.position
                if end is None and not (yield from self._fill_hole(timeline, hole)):
                    end = start
                if end is None:
                    yield from self._cut(timeline, samples)
            if self._is_endless(timeline):
                break
        end = timeline.position if end is None else end
        self._audio_end = timeline.end / max(1, timeline.sampling_rate)
        if end == 0:
            self._add_notes()
            raise MediaError(f"{self.notes}: its audio track has no samples.", needs_audio=True)
        if self._ends_with_video:
            yield from self._fill_end(timeline, end)

    def _cut(self, timeline: "AudioTimeline", samples: np.ndarray) -> Iterator[AudioPiece]:
        """Yield new samples (channels, samples), but not those more than a second after the video."""
        rate, start = timeline.sampling_rate, timeline.position
        timeline.position += samples.shape[1]
        samples = finite_waveform(samples, self.name, start)
        if self._ends_with_video and self._video_of_audio.has_ended:
            samples = samples[:, : max(0, _end_sample(self._video_of_audio.end, rate) + _margin(rate) - start)]
        if samples.shape[1]:
            yield samples, rate

    def _fill_hole(self, timeline: "AudioTimeline", hole: int) -> Generator[AudioPiece, None, bool]:
        """Yield the silence of a hole in samples; return False if the hole reaches past the end of the video.

        Whether it does is known only once more frames have been read. Until then, None is yielded.
        """
        rate, start = timeline.sampling_rate, timeline.position
        video = self._video_of_audio
        while hole > 0 and start + hole > video.end * rate:
            if video.has_ended:
                text = "its audio continues after a hole that reaches past the video; this part is not used"
                self._audio_notes.append((text, logging.WARNING))
                return False
            yield from self._known_silence(timeline, start)
        if start:
            self._count_gap(hole / rate)
        elif abs(hole) / rate >= NOTED_SILENCE_SECONDS:
            self._audio_notes.append(_note_of_start(hole / rate))
        yield from timeline.silence(start + hole)
        return True

    def _count_gap(self, seconds: float) -> None:
        """Count a hole in the audio, or, below 0, an overlap. Many short ones count as much as a long one."""
        if seconds:
            text = "holes in its audio filled with silence" if seconds > 0 else "overlaps in its audio cut"
            self._gaps[text] += 1
            self._gap_seconds[text] += abs(seconds)

    def _known_silence(self, timeline: "AudioTimeline", start: int) -> Iterator[AudioPiece]:
        """Yield the silence after sample `start` as far as the video was read; None if it is not known to be silence.

        Less than a second without audio at the end of the video is not filled, so only a longer part is known to be
        silence.
        """
        stop, rate = _end_sample(self._video_of_audio.end, timeline.sampling_rate), timeline.sampling_rate
        if stop - start > _margin(rate) and stop > timeline.position:
            yield from timeline.silence(stop)
        else:
            yield None, rate

    def _fill_end(self, timeline: "AudioTimeline", end: int) -> Iterator[AudioPiece]:
        """Yield silence up to the end of the video if the audio ends at sample `end`, more than a second earlier."""
        video, rate = self._video_of_audio, timeline.sampling_rate
        while not video.has_ended:
            yield from self._known_silence(timeline, end)
        surplus, name = end - _end_sample(video.end, rate), "its video" if video is self else "the video"
        if surplus > _margin(rate):
            text = f"its audio continues for {surplus / rate:.2f} s after {name}; this part is not used"
            self._audio_notes.append((text, logging.WARNING))
        if surplus < -_margin(rate):
            text = f"its audio ends {-surplus / rate:.2f} s before {name}; silence is filled in"
            self._audio_notes.append((text, logging.WARNING))
            yield from timeline.silence(_end_sample(video.end, rate))

    def _is_endless(self, timeline: "AudioTimeline") -> bool:
        """Return whether the audio continues for hours after the video, so that reading stops before its end."""
        video = self._video_of_audio
        surplus = timeline.decoded - video.end * timeline.sampling_rate
        return self._ends_with_video and video.has_ended and 4 * timeline.channels * surplus > LARGEST_AUDIO_BYTES


def _joined(pieces: Iterator[AudioPiece]) -> Iterator[AudioPiece]:
    """Join short pieces of audio, because each one costs its reader as much as a long one."""
    held, length, rate = [], 0, 0
    for samples, rate in pieces:
        if samples is not None:
            held.append(samples)
            length += samples.shape[1]
        if held and (samples is None or length >= JOINED_SECONDS * rate):
            # Yielded instead of None, because more frames may have been read by the next piece.
            yield np.concatenate(held, axis=1), rate
            held, length = [], 0
        elif samples is None:
            yield None, rate
    if held:
        yield np.concatenate(held, axis=1), rate


def _collect_audio(reader: MediaReader) -> tuple[np.ndarray, int]:
    """Return the waveform (channels, samples) of a reader whose frames have all been read, and its sampling rate."""
    pieces, held, sampling_rate = [], 0, 0
    for samples, rate in reader.audio():
        samples, sampling_rate = cast(np.ndarray, samples), rate  # no piece is None, as all frames have been read
        held += samples.nbytes
        if held > LARGEST_AUDIO_BYTES:
            raise MediaError(
                f"{reader.name} gives more than {LARGEST_AUDIO_BYTES / 2**30:.3g} GiB of audio, too much to hold at once. "
                "Cut it into parts, or pass the audio of one part as `audio=`."
            )
        pieces.append(samples)
    waveform = np.empty((len(pieces[0]), held // (4 * len(pieces[0]))), np.float32)
    # Filled from the end, releasing each piece, so that the audio is not held twice.
    stop = waveform.shape[1]
    while pieces:
        samples = pieces.pop()
        waveform[:, stop - samples.shape[1] : stop] = samples
        stop -= samples.shape[1]
    return waveform, sampling_rate


def stack_and_release(frames: list[np.ndarray]) -> np.ndarray:
    """Stack frames (height, width, 3) into an array (frames, height, width, 3); replace list items by its parts."""
    stacked = np.empty((len(frames), *frames[0].shape), frames[0].dtype)
    for index, frame in enumerate(frames):
        stacked[index], frames[index] = frame, stacked[index]
    return stacked


def check_held_frames(count: int, frame: np.ndarray, source: "MediaSource | MediaReader") -> None:
    """Raise MediaError if one more frame (height, width, 3) in addition to `count` of them is too much to hold."""
    if (count + 1) * frame.nbytes > LARGEST_FRAMES_BYTES:
        name = source.name if isinstance(source, MediaReader) else source_name(source)
        height, width = frame.shape[:2]
        raise MediaError(
            f"{name} gives more than {count} frames of {width}x{height}, too much to hold at once. Cut it into parts, make it "
            "smaller, or take fewer `frames_per_second`."
        )


def join_timestamps(events: Iterable[Event]) -> Iterator[StreamedFrame]:
    """Yield the frames of a stream, each with the timestamps of masks since the previous one.

    Args:
        events: Timestamps of masks, and frames, in chronological order. The last frame waits for the masks after it.
    """
    held, waiting = None, []
    for timestamp, frame in events:
        if frame is None:
            waiting.append(timestamp)
        else:
            if held is not None:
                yield held
            past = tuple(mask for mask in waiting if mask <= timestamp)
            held, waiting = (timestamp, frame, past), waiting[len(past) :]
    if held is not None:
        yield held[0], held[1], (*held[2], *waiting)


def stream_array(
    frames: np.ndarray, timestamps: np.ndarray, seconds: float, masks_per_second: float | str | None
) -> Iterator[StreamedFrame]:
    """Yield frames that are in memory as [`MediaReader.frames`] yields those of a file.

    Args:
        frames: (frames, height, width, 3), uint8.
        timestamps: (frames,), seconds, ascending.
        seconds: Duration of the frames.
        masks_per_second: Masks per second; `None` or `"video"` is one per frame.
    """
    timed = zip(timestamps.tolist(), frames, strict=True)
    if masks_per_second is None or isinstance(masks_per_second, str):
        return ((time, frame, (time,)) for time, frame in timed)
    number = number_of_frames(seconds, masks_per_second)
    masks = (((index + SAMPLING_OFFSET) / masks_per_second, None) for index in range(number))
    return join_timestamps(heapq.merge(masks, timed, key=lambda event: event[0]))


def stream_decoder(
    decoder: Any, frames_per_second: float | str, masks_per_second: float | str | None
) -> Iterator[StreamedFrame]:
    """Yield frames of a `VideoDecoder` of torchcodec as [`MediaReader.frames`] yields those of a file.

    Args:
        decoder: The decoder.
        frames_per_second: Frames to take per second of video, or `"video"` for every frame.
        masks_per_second: Masks per second, or `"video"`; `None` is one per frame for the network.
    """
    metadata = decoder.metadata
    rates = [frames_per_second] if masks_per_second is None else [masks_per_second, frames_per_second]
    is_published = metadata.duration_seconds < PUBLISHED_CLIP_SECONDS + 0.5
    samplers = [FrameSampler(rate, metadata.average_fps, counts=is_published) for rate in rates]
    # One frame is decoded at a time: a slice of the decoder would hold all of them.
    frames = (decoder.get_frame_at(index) for index in range(len(decoder)))
    timed = ((frame.pts_seconds - metadata.begin_stream_seconds, frame.data) for frame in frames)
    duration = metadata.end_stream_seconds - metadata.begin_stream_seconds
    taken = chain(_sampled(timed, samplers), _finished(samplers, duration))
    if masks_per_second is None:
        return ((time, _to_rgb(data), (time,)) for _, time, data in taken)
    return join_timestamps((time, _to_rgb(data) if index else None) for index, time, data in taken)


def _to_rgb(data: Any) -> np.ndarray:
    """Return a frame of torchcodec, a tensor (3, height, width) or (height, width, 3), as (height, width, 3)."""
    frame = data.cpu().numpy()
    return np.ascontiguousarray(frame if frame.shape[-1] == 3 else frame.transpose(1, 2, 0))


def _sampled(
    frames: Iterable[tuple[float, Any]], samplers: Sequence["FrameSampler"]
) -> Iterator[tuple[int, float, Any]]:
    """Yield the frames, given with their timestamps, that each sampler takes: index of the sampler, timestamp, frame."""
    for seconds, frame in frames:
        for index, sampler in enumerate(samplers):
            yield from ((index, *taken) for taken in sampler.add(frame, seconds))


def _finished(samplers: Sequence["FrameSampler"], end: float) -> Iterator[tuple[int, float, Any]]:
    """Yield what remains of a video of `end` seconds after its last frame has been passed to [`_sampled`]."""
    for index, sampler in enumerate(samplers):
        yield from ((index, *taken) for taken in sampler.finish(end))


def note_missing_end(
    video: VideoStream, origin: float, end: float, notes: MediaNotes, audio_end: float | None = None
) -> None:
    """Note a video that ends before the duration that it declares: an incomplete download, a missing tail.

    Args:
        video: The stream that was read.
        origin: Time of its first frame in the container, in seconds.
        end: When its last frame leaves the screen, in seconds since the first frame.
        notes: The notes to add to.
        audio_end: When the audio that was decoded ends, in seconds since the first frame; `None` if it was not read.
    """
    declared, of_file = declared_seconds(video)
    if not declared and (audio_end is not None or len(video.container.streams) == 1):
        of_file -= max(0.0, origin)  # most containers count from time 0
        declared = of_file if of_file > max(end, audio_end or 0.0) + AUDIO_MARGIN_SECONDS else 0.0
    if declared > end + AUDIO_MARGIN_SECONDS:
        notes.add(f"its video ends at {end:.2f} s, but it declares {declared:.2f} s; the available part is used")


def no_frames(name: str) -> MediaError:
    """Return the error for a video without a frame that could be decoded."""
    return MediaError(
        f"{name}: no frame of its video stream could be decoded. Check that the file is complete and plays, and that its "
        f"frames have no more than {LARGEST_FRAME_PIXELS / 1e6:.0f} million pixels."
    )


# --- Opening ---

# For opening a URL, and for each read from it.
NETWORK_TIMEOUT_SECONDS = 30.0

# For downloads: as in `build_opener`, but without the handlers of other addresses, to which a server might redirect.
URL_HANDLERS = (
    request.ProxyHandler,
    request.HTTPHandler,
    request.HTTPSHandler,
    request.HTTPRedirectHandler,
    request.HTTPErrorProcessor,
    request.HTTPDefaultErrorHandler,
)

# Characters of a URL that are sent as they are; FFmpeg, too, encodes spaces and other alphabets.
URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"

# The formats of cameras, phones, browsers, broadcasts, editors and recorders. FFmpeg supports 300 more, from old games
# and machines. Most of its bugs are in these formats, and it detects any text as one of them.
MEDIA_FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,asf,ogg,mxf,nut,dv,rm,mjpeg,yuv4mpegpipe,"
    "vc1,gif,apng,webp_pipe,jpeg_pipe,png_pipe,bmp_pipe,tiff_pipe,"
    "wav,w64,aiff,au,caf,flac,mp3,aac,loas,ac3,eac3,dts,amr,voc,ape,tta,wv,nistsphere,dsf"
)

# Suffixes of video files in these formats, in lower case: what to read from a folder, or to offer to a user.
_CAMERA_AND_BROADCAST_SUFFIXES = (".3g2", ".3gp", ".dv", ".m2t", ".m2ts", ".mts", ".mxf", ".ts", ".vob")
VIDEO_SUFFIXES = frozenset(
    (".asf", ".avi", ".f4v", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv")
    + _CAMERA_AND_BROADCAST_SUFFIXES
)

# 8192x8192, enough for 8K and 12K video. A decoder holds up to 20 frames at once, which is 2 GB at this size.
LARGEST_FRAME_PIXELS = 2**26

# The table that names the codecs of an mp4 file is at its start or end. This size is enough for hours of video.
SEARCHED_BYTES = 2**24

# Data from a pipe is kept in a temporary file first.
LARGEST_PIPED_BYTES = 16 * 2**30
PIPED_READ_BYTES = 2**20

# Range that an audio stream may declare, in hertz (Hz); ultrasound recorders reach 384,000.
LOWEST_SAMPLING_RATE = 1_000
HIGHEST_SAMPLING_RATE = 768_000


@contextmanager
def open_media(source: MediaSource, name: str | None = None) -> Iterator[tuple[InputContainer, MediaNotes]]:
    """Open a source for decoding.

    Args:
        source: Path, http(s) URL, the bytes of a file, or a binary file object (read from its start, left open).
        name: Name of the source in messages, if not its own.

    Yields:
        The container, and the notes on it, whose `str()` is the name of the source.

    Raises:
        FileNotFoundError: If the file does not exist.
        MediaError: If the source is not a file, is empty, is not media, or does not answer; also for errors of FFmpeg
            inside the context.
    """
    source = media_source(source)
    notes = MediaNotes(source_name(source) if name is None else name)
    failure = av.FFmpegError  # named here: at exit the interpreter clears modules before the last generators end
    with ExitStack() as stack:
        try:
            with _reading(notes.name):
                if _is_url(source):
                    container = _open_url(source)
                else:
                    container = _open_file(stack.enter_context(_file_of(source, notes.name)))
            yield stack.enter_context(container), notes
        except failure as error:
            raise _unreadable(source, notes.name, error) from error


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Raise system errors during reading, such as from a damaged disk or a lost network share, as MediaError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError | av.FFmpegError):
            raise
        reason = error.strerror or error
        raise MediaError(
            f"{name} cannot be read: {reason}. Check the disk or the connection that it is on."
        ) from error


def _unreadable(source: MediaSource, name: str, error: av.FFmpegError) -> MediaError:
    """Return the error for a source that FFmpeg cannot read."""
    if isinstance(error, av.error.ExitError):
        return MediaError(f"{name} did not respond for {NETWORK_TIMEOUT_SECONDS} s. Download it first.")
    if _names_encryption(source):
        return _encrypted(name)
    check = "the address, its certificate, and that it returns" if _is_url(source) else "that it is"
    return MediaError(
        f"{name} cannot be read as audio or video: {error.strerror or error}. "
        f"Check {check} a complete media file (mp4, mkv, webm, wav, mp3, ...) that plays elsewhere."
    )


def media_source(value: Any) -> Any:
    """Return media in the form that is read (path, address, bytes or file object); return anything else unchanged.

    Args:
        value: A path (`~` is the home folder), a URL (`file://`, `https://`, `http://` or `hf://`), bytes or a buffer,
            a file object; or, from a column of `datasets`, a dictionary with "path" and "bytes" or the torchcodec
            decoder of a file.

    Raises:
        MediaError: If a dictionary has neither path nor bytes, or a `file://` URL names another machine.
    """
    # `datasets` keeps the file that a decoder was created from. Decoders created elsewhere are read themselves.
    value = getattr(value, "_hf_encoded", value)
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("bytes", "path") if value.get(key) is not None), value)
        if isinstance(value, Mapping):
            raise MediaError(f'Expected a dictionary with "bytes" or "path", got {dict(value)}.')
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    return _local_path(os.fsdecode(value)) if isinstance(value, str | os.PathLike) else value


def _local_path(path: str) -> str:
    """Return the path of a `file://` URL, and a path with `~` expanded; another URL unchanged."""
    if not path.lower().startswith("file:"):
        return os.path.expanduser(path)
    url = urlsplit(path)
    if url.netloc not in ("", "localhost"):
        raise MediaError(f"{path} names the machine {url.netloc!r}. Pass a path on this machine, or an http(s) URL.")
    return request.url2pathname(url.path)


def _encrypted(name: str) -> MediaError:
    """Return the error for protected media."""
    return MediaError(f"{name} is encrypted (DRM). Get a copy without protection.")


def _names_encryption(source: MediaSource) -> bool:
    """Return whether an mp4 file that cannot be read names encrypted video or audio as its codec."""
    if _is_url(source):
        return False
    with _file_of(source, source_name(source)) as file:
        head = file.read(SEARCHED_BYTES)
        file.seek(max(file.tell(), file.seek(0, os.SEEK_END) - SEARCHED_BYTES))
        return head[4:8] == b"ftyp" and any(
            codec in part for part in (head, file.read()) for codec in (b"encv", b"enca")
        )


def source_name(source: MediaSource) -> str:
    """Return the name of a source in error messages, or raise MediaError if it is not a source."""
    if isinstance(source, str):
        if not source:
            raise MediaError("The path of the media is empty. Pass the path of one media file.")
        return source
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if hasattr(source, "read") and not isinstance(source, io.TextIOBase):
        return str(getattr(source, "name", f"<{type(source).__name__}>"))
    raise MediaError(
        f"Media must be a path, an http(s) URL, bytes or a file object opened with 'rb', got {type(source).__name__}."
    )


def _is_url(source: MediaSource) -> TypeGuard[str]:
    """Return whether a source is an http(s) URL."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def _open_file(file: BinaryIO) -> InputContainer:
    """Open a file object."""
    # A playlist may name other files on this machine, so only the source itself is opened.
    return av.open(file, "r", options=_open_options(MEDIA_FORMATS, "none"), metadata_errors="replace")


def _open_url(url: str) -> InputContainer:
    """Open a URL; check certificates, and refuse redirects to anything but http(s)."""
    options = {**_open_options(f"{MEDIA_FORMATS},hls", "http,https,tcp,tls"), "tls_verify": "1"}
    trusted = ssl.get_default_verify_paths().cafile
    if trusted:
        options["ca_file"] = trusted
    return av.open(url, "r", options=options, metadata_errors="replace", timeout=NETWORK_TIMEOUT_SECONDS)


def _open_options(formats: str, protocols: str) -> dict[str, str]:
    """Return FFmpeg's options for opening, which already decodes the first frames to detect the streams."""
    return {
        "format_whitelist": formats,
        "protocol_whitelist": protocols,
        "max_pixels": str(LARGEST_FRAME_PIXELS),
    }


@contextmanager
def _file_of(source: MediaSource, name: str) -> Iterator[BinaryIO]:
    """Yield a file object at its start, seekable because the index of an mp4 file is often at its end."""
    with ExitStack() as stack:
        if isinstance(source, str):
            opened = stack.enter_context(_open_on_hub(source) if "hf://" in source else _open_path(Path(source)))
            file = stack.enter_context(_seekable(opened))
        elif isinstance(source, bytes):
            file = io.BytesIO(source)
        else:
            file = stack.enter_context(_seekable(cast(BinaryIO, source)))
        if file.seek(0, os.SEEK_END) == 0:
            raise MediaError(f"{name} is empty (0 bytes). Pass a complete media file.")
        file.seek(0)
        yield file


def _open_on_hub(address: str) -> OpenFile:
    """Open a file on the Hub by its `hf://` address, as in streamed columns of `datasets`, also inside an archive."""
    return cast(OpenFile, fsspec.open(address, "rb"))


def _open_path(path: Path) -> BinaryIO:
    """Open a file on this machine."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise MediaError(f"{path} is a directory. Pass the path of one media file in it.")
        if not (stat.S_ISREG(mode) or is_open_pipe(path)):
            # Opening a pipe may block permanently, and a device such as /dev/zero never ends.
            raise MediaError(
                f"{path} is a pipe or a device, not a file. Pass /dev/stdin, or in Python the result of `open(..., 'rb')`."
            )
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        message = f"No such media file: {path}. Check the path (working directory: {Path.cwd()})."
        raise FileNotFoundError(message) from error
    except OSError as error:
        raise MediaError(f"{path} cannot be opened: {error.strerror}. Check its permissions.") from error


def is_open_pipe(path: Path) -> bool:
    """Return whether a path names a pipe that this process has open, as /dev/stdin and `<(...)` of a shell do."""
    return str(path).startswith(("/dev/stdin", "/dev/fd/", "/proc/self/fd/")) and path.is_fifo()


def _is_file_object(source: MediaSource) -> TypeGuard[BinaryIO]:
    """Return whether a source is a file object."""
    return hasattr(source, "read")


@contextmanager
def _seekable(source: BinaryIO) -> Iterator[BinaryIO]:
    """Yield a file object, or, if it is not seekable, a copy in a temporary file."""
    if hasattr(source, "seekable") and source.seekable():
        yield source
        return
    with _temporary_copy(source) as file:
        yield file


@contextmanager
def _second_source(source: MediaSource) -> Iterator[MediaSource]:
    """Yield a source that can be read independently of `source`: itself or, for a file object, a temporary copy."""
    if _is_file_object(source):
        position = source.tell()
        source.seek(0)
        with _temporary_copy(source) as file:
            source.seek(position)
            yield file
    else:
        yield source


@contextmanager
def _temporary_copy(source: BinaryIO, name: str | None = None) -> Iterator[BinaryIO]:
    """Yield a temporary file with the data of a file object, or raise MediaError if its disk is full."""
    name = source_name(source) if name is None else name
    try:
        with ExitStack() as filling:
            file = filling.enter_context(tempfile.TemporaryFile())
            copy_pipe(source, file, name)
            opened = filling.pop_all()
    except OSError as error:  # also when the file is closed with data that was not written
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MediaError(
            f"{name} cannot be copied to a temporary file in {tempfile.gettempdir()}: {error.strerror}. "
            "Write it to a file and pass its path, or set TMPDIR to a folder with more space."
        ) from error
    with opened:
        yield cast(BinaryIO, file)


@contextmanager
def _downloaded(url: str, name: str, failure: av.FFmpegError) -> Iterator[BinaryIO]:
    """Yield a temporary file with the data of a URL, or raise the MediaError of `failure` if it is not sent completely."""
    opener = request.OpenerDirector()
    for handler in URL_HANDLERS:
        opener.add_handler(handler())
    with ExitStack() as stack:
        try:
            with opener.open(quote(url, safe=URL_CHARACTERS), timeout=NETWORK_TIMEOUT_SECONDS) as response:
                file = stack.enter_context(_temporary_copy(response, name))
                if response.length:
                    raise IncompleteRead(b"", response.length)
        except (OSError, HTTPException) as error:
            raise _unreadable(url, name, failure) from error
        yield file


def copy_pipe(source: BinaryIO, file: IO[bytes], name: str | None = None) -> None:
    """Copy the data of a pipe to a file, or raise MediaError if it does not end; OSError if the disk is full."""
    name = source_name(source) if name is None else name
    while data := source.read(PIPED_READ_BYTES):
        file.write(data)
        if file.tell() > LARGEST_PIPED_BYTES:
            raise MediaError(
                f"{name} gave more than {LARGEST_PIPED_BYTES / 2**30:.3g} GiB and does not end. "
                "Write it to a file and pass its path."
            )
    file.flush()  # so that a full disk is an error here


def video_stream(container: InputContainer, notes: MediaNotes) -> VideoStream:
    """Return the video stream that a player would show (not the cover image of a song), or raise MediaError."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise MediaError(f"{notes} has no video stream. Pass a video; audio alone cannot be segmented.")
    video = _best_stream(container, streams, "video", notes)
    check_frame_size(video.codec_context.width, video.codec_context.height, notes.name)
    return video


def audio_stream(container: InputContainer, notes: MediaNotes) -> AudioStream:
    """Return the audio stream that a player would play, or raise MediaError."""
    if not container.streams.audio:
        raise MediaError(f"{notes} has no audio track.", needs_audio=True)
    audio = _best_stream(container, container.streams.audio, "audio", notes)
    if not LOWEST_SAMPLING_RATE <= audio.codec_context.sample_rate <= HIGHEST_SAMPLING_RATE:
        raise MediaError(
            f"{notes}: its audio declares {audio.codec_context.sample_rate} samples per second, expected "
            f"{LOWEST_SAMPLING_RATE} to {HIGHEST_SAMPLING_RATE}.",
            needs_audio=True,
        )
    return audio


def _best_stream(container: InputContainer, streams: Sequence[Stream], kind: Any, notes: MediaNotes) -> Stream:
    """Return the stream that a player chooses among those that can be decoded; note the choice if there are others."""
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise MediaError(f"{notes}: its {kind} has a codec that is not supported. Convert it to H.264 and AAC first.")
    best = container.streams.best(kind)
    chosen = next((stream for stream in known if stream == best), known[0])
    if len(streams) > 1:
        language = chosen.language if chosen.language not in (None, "und") else "no language given"
        notes.add(f"of its {len(streams)} {kind} tracks number {streams.index(chosen) + 1} ({language}) is taken")
    return chosen


def check_frame_size(width: int, height: int, name: str) -> None:
    """Raise MediaError for frames with so many pixels that decoding them would exhaust memory."""
    if width * height > LARGEST_FRAME_PIXELS:
        raise MediaError(
            f"{name}: its frames are {width}x{height}, {width * height / 1e6:.0f} million pixels, more than the "
            f"{LARGEST_FRAME_PIXELS / 1e6:.0f} million that are decoded. Make it smaller first, for example with "
            "`ffmpeg -i INPUT -vf scale=1920:-2 OUTPUT.mp4`."
        )


# --- Packets ---

# Number of consecutive unreadable places after which the rest of a file is not read.
MOST_UNREADABLE_IN_A_ROW = 1000

# Threads that decode the frames of a video at the same time; 0 for one per core, 16 at most.
FRAME_THREADS = 0

# No decoder holds more frames: one per thread, and 16 for reordering, each with two fields.
MOST_FRAMES_IN_DECODER = 64

# Codecs whose transparency a WebM file stores next to each frame, and the number of the block that holds it.
ALPHA_CODECS = ("vp8", "vp9")
ALPHA_BLOCK = 1


class PacketQueues:
    """The packets of several streams of one container, each stream at its own pace.

    Args:
        container: The open file.
        streams: The streams to demux.
        notes: Where damage is counted.
        reopen: Opens the file a second time and returns the container with the stream. Called if a file interleaves
            its streams so badly that more than `LARGEST_QUEUE_BYTES` of one wait for the other; from then on, this
            stream is read from the second handle.
        frame_threads: Threads that decode the frames of a video, 0 for one per core.
        conceals: Whether the first decoder conceals H.264 damage. Otherwise damage is an error, because several
            threads conceal it differently from a single thread; see [`decode_video`].
    """

    def __init__(
        self,
        container: InputContainer,
        streams: Sequence[VideoStream | AudioStream],
        notes: MediaNotes,
        reopen: Callable[[VideoStream | AudioStream], tuple[InputContainer, VideoStream | AudioStream]],
        frame_threads: int,
        *,
        conceals: bool,
    ) -> None:
        self._notes = notes
        self._reopen = reopen
        self._count_unreadable = _unreadable_counter(notes)
        self._demuxed = demux(container, tuple(streams), self._count_unreadable)
        self._waiting: dict[int, deque[av.Packet]] = {stream.index: deque() for stream in streams}
        self._bytes: Counter[int] = Counter()
        self._seen: Counter[int] = Counter()
        self._reopened: dict[int, Iterator[av.Packet]] = {}
        for stream in streams:
            _set_threads(stream, frame_threads if isinstance(stream, VideoStream) else 1, conceals=conceals)

    def of(self, stream: VideoStream | AudioStream) -> Iterator[av.Packet]:
        """Yield the packets of a stream; the last one is empty and drains the decoder.

        Raises:
            MediaError: If the stream is encrypted.
        """
        for packet in self._queued(stream):
            if packet.has_sidedata("encryption_info"):
                raise _encrypted(self._notes.name)
            yield packet

    def read_first(self) -> None:
        """Read the first packet, which then waits in its queue."""
        packet = next(self._demuxed, None)
        if packet is not None:
            self._keep(packet, packet.stream)

    def restart(self, stream: VideoStream | AudioStream) -> None:
        """Make [`of`] start again with the first packet of a stream, for a decoder with one thread."""
        self._waiting[stream.index].clear()
        self._reopened[stream.index] = self._read_again(stream)

    def _queued(self, stream: VideoStream | AudioStream) -> Iterator[av.Packet]:
        """Yield the packets that wait, and those that follow in the container unless the stream was reopened."""
        waiting = self._waiting[stream.index]
        while True:
            if waiting:
                packet = waiting.popleft()
                self._bytes[stream.index] -= packet.size
                yield packet
            elif stream.index in self._reopened:
                yield from self._reopened[stream.index]
                return
            elif (packet := next(self._demuxed, None)) is None:
                return
            elif packet.stream.index not in self._reopened:
                self._keep(packet, stream)

    def _keep(self, packet: av.Packet, wanted: VideoStream | AudioStream) -> None:
        """Put a packet into its queue; reopen its stream if the queue is full and another stream is wanted."""
        index = packet.stream.index
        self._waiting[index].append(packet)
        self._bytes[index] += packet.size
        self._seen[index] += 1
        if index != wanted.index and self._bytes[index] > LARGEST_QUEUE_BYTES:
            again = self._read_again(cast("VideoStream | AudioStream", packet.stream))
            self._reopened[index] = islice(again, self._seen[index], None)

    def _read_again(self, stream: VideoStream | AudioStream) -> Iterator[av.Packet]:
        """Open the file again and return the packets of a stream, for a decoder with one thread."""
        container, reopened = self._reopen(stream)
        _set_threads(reopened, 1)
        return demux(container, (reopened,), self._count_unreadable)


def _unreadable_counter(notes: MediaNotes) -> Callable[[int], None]:
    """Return a function that counts place `number` of a pass over a file, unless another pass reached that number."""
    largest = 0

    def count(number: int) -> None:
        nonlocal largest
        if number > largest:
            largest = number
            notes.count(DAMAGED)

    return count


def _set_threads(stream: VideoStream | AudioStream, threads: int, *, conceals: bool = True) -> None:
    """Prepare the decoder of a stream; H.264 damage is an error unless the decoder `conceals` it."""
    codec: Any = stream.codec_context  # PyAV's stubs know its settings for video only
    # Threads for the parts of a frame do not report MPEG-2 damage; threads for frames do not report that of MPEG-4
    # part 2.
    codec.thread_type, codec.thread_count = "FRAME", 1 if codec.name == "mpeg4" else threads
    if isinstance(stream, VideoStream):
        # With threads, the decoder does not report what it concealed.
        errors = {"err_detect": "explode"} if codec.name == "h264" and not conceals else {}
        codec.options = {"max_pixels": str(LARGEST_FRAME_PIXELS)} | errors


def demux(
    container: InputContainer,
    streams: tuple[VideoStream | AudioStream, ...],
    count_unreadable: Callable[[int], object],
) -> Iterator[av.Packet]:
    """Yield packets to the end, skipping places that cannot be read, and then one per stream to drain its decoder.

    Args:
        container: The open file.
        streams: The streams to demux.
        count_unreadable: Called at each place that cannot be read, with the number of such places so far.
    """
    unreadable = (av.error.InvalidDataError, av.error.EOFError)  # as in `open_media`
    failures = in_a_row = 0
    while in_a_row < MOST_UNREADABLE_IN_A_ROW:
        try:
            for packet in container.demux(streams):
                in_a_row = 0
                yield packet
            return
        except unreadable:
            failures, in_a_row = failures + 1, in_a_row + 1
            count_unreadable(failures)
        except IndexError:
            # PyAV (18.1) fails after the last packet if a broadcast has added a stream in the meantime.
            break
    for stream in streams:
        last = av.Packet()
        last.stream = stream
        yield last


def decode_video(
    packets: Iterable[av.Packet],
    notes: MediaNotes,
    skips: Callable[[av.Packet], bool],
    restart: Callable[[], Iterable[av.Packet]] | None,
) -> Iterator[av.VideoFrame]:
    """Decode video packets; leave out damaged ones and count them in the notes.

    Several threads decode an undamaged video. How they handle damage depends on their number, and an error among the
    last packets loses the frames of all threads. At the first sign of damage, one thread therefore decodes the video
    again, and the frames that have not been yielded yet follow. As a result, every machine yields the same frames: all
    that can be decoded. A packet without a frame also counts as a sign of damage, although a few codecs have such
    packets (fields, invisible frames of VP8). So do times that run backwards, because the decoding times, and which
    frames are left out by their times, then depend on the threads.

    Args:
        packets: The packets.
        notes: Where damage is counted.
        skips: Called with each packet; returns whether its frame can be left out if no other frame refers to it. After
            damage, no frame is left out.
        restart: Returns the packets again, for a decoder with one thread; `None` if this is not possible. One thread then
            decodes the video from the start.
    """
    if restart is None:
        yield from _decode_in_order(packets, notes, lambda each: skips(each) and not notes.has_counted(DAMAGED))
    elif (seen := (yield from _decode_in_threads(packets, notes, skips))) is not None:
        yield from _leave_out(_decode_in_order(restart(), notes, lambda _: False), *seen)


def _decode_in_threads(
    packets: Iterable[av.Packet], notes: MediaNotes, skips: Callable[[av.Packet], bool]
) -> Generator[av.VideoFrame, None, tuple[int, int | None, int] | None]:
    """Decode video packets up to the first sign of damage.

    Args:
        packets: The packets.
        notes: Where damage is counted.
        skips: As for [`decode_video`].

    Yields:
        The frames.

    Returns:
        The number of frames yielded, the timestamp of the last one, and the number of packets before the sign; None if the
        video is complete.
    """
    inside: Counter[int | None] = Counter()  # timestamps of the packets whose frame is still in the decoder
    yielded, last, count, has_times = 0, None, 0, False
    for count, packet in enumerate(packets, 1):
        is_damaged = packet.is_corrupt or notes.has_counted(DAMAGED)
        is_skipped = skips(packet) and not is_damaged
        has_times = has_times or (packet.pts is not None and not _has_decoding_times_only(packet.stream))
        try:
            frames = _frames_of(packet, skips=is_skipped)
        except av.FFmpegError:
            return yielded, last, count
        if packet.size and not (is_skipped or packet.is_discard):
            inside[packet.pts] += 1
        if is_damaged or any(frame.is_corrupt for frame in frames):
            return yielded, last, count
        for frame in frames:
            if has_times and None not in (last, frame.pts) and frame.pts <= last:
                return yielded, last, count
            yielded, last = yielded + 1, frame.pts
            yield frame
            inside -= Counter([last])
        if inside.total() > MOST_FRAMES_IN_DECODER:
            return yielded, last, count
    # PyAV (18.1) does not report an error after the first frame that it drains from a decoder, but the rest is missing.
    return (yielded, last, count) if inside else None


def _leave_out(frames: Iterable[av.VideoFrame], yielded: int, last: int | None, most: int) -> Iterator[av.VideoFrame]:
    """Yield the frames after those that were yielded before.

    Args:
        frames: All frames, including those that were skipped before.
        yielded: Number of frames that were yielded before.
        last: Timestamp of the last of them.
        most: Number of frames that were yielded or skipped before, or more.
    """
    remaining = yielded > 0
    for number, frame in enumerate(frames, 1):
        if not remaining:
            yield frame
        remaining = remaining and number < most and not (number >= yielded and frame.pts == last)


def _decode_in_order(
    packets: Iterable[av.Packet], notes: MediaNotes, skips: Callable[[av.Packet], bool]
) -> Iterator[av.VideoFrame]:
    """Decode video packets with one thread; leave out damaged ones and count them in the notes."""
    is_complete = True
    for packet in packets:
        is_complete = is_complete and not packet.is_corrupt
        try:
            frames = _frames_of(packet, skips=is_complete and skips(packet))
        except av.FFmpegError:
            notes.count(DAMAGED)
            is_complete = False
            continue
        for frame in frames:
            is_complete = is_complete and not frame.is_corrupt
            yield frame


def read_alpha(
    packets: Iterable[av.Packet], alphas: dict[int | None, np.ndarray], notes: MediaNotes
) -> Iterator[av.Packet]:
    """Yield video packets; decode the transparency of VP8 and VP9 in WebM, which FFmpeg's decoders of the colors ignore.

    Args:
        packets: The packets.
        alphas: Receives the alpha of each transparent frame, uint8 (height, width), under the timestamp of its packet.
        notes: Where to note that some cannot be decoded.
    """
    decoder = None
    for packet in packets:
        if packet.has_sidedata("matroska_block_additional") and packet.stream.codec_context.name in ALPHA_CODECS:
            decoder = decoder or _alpha_decoder(packet.stream)
            try:
                alpha = _decode_alpha(decoder, bytes(packet.get_sidedata("matroska_block_additional")))
                alphas |= {} if alpha is None else {packet.pts: alpha}
            except av.FFmpegError:
                notes.add("the transparency of some frames is damaged; these are shown without it")
            while len(alphas) > MOST_FRAMES_IN_DECODER:  # of frames that are not decoded
                del alphas[next(iter(alphas))]
        yield packet


def _alpha_decoder(video: VideoStream) -> Any:
    """Return a decoder for the alpha of a video, a gray video of the same codec."""
    decoder = av.CodecContext.create(video.codec_context.name, "r")
    decoder.thread_count = 1
    decoder.options = {"max_pixels": str(LARGEST_FRAME_PIXELS)}
    return decoder


def _decode_alpha(decoder: Any, block: bytes) -> np.ndarray | None:
    """Return the alpha in a block of a WebM file, uint8 (height, width); `None` if the block holds something else."""
    data = block[8:]  # after its number
    if int.from_bytes(block[:8], "big") != ALPHA_BLOCK or not data:
        return None
    frames = decoder.decode(av.Packet(data))
    if not frames or frames[0].format.components[0].bits > 8:
        return None
    rows = np.frombuffer(frames[0].planes[0], np.uint8).reshape(frames[0].height, -1)
    return rows[:, : frames[0].width].copy()


def _decoded(packet: av.Packet, notes: MediaNotes) -> list[Any]:
    """Return the audio frames of a packet; none for a damaged packet, which is counted in the notes."""
    try:
        return _frames_of(packet)
    except av.FFmpegError:
        notes.count(DAMAGED)
        return []


def _frames_of(packet: av.Packet, *, skips: bool = False) -> list[Any]:
    """Decode a packet; with `skips` its frame may be left out if no other frame refers to it."""
    stream: Any = packet.stream
    if isinstance(stream, VideoStream):
        stream.codec_context.skip_frame = "NONREF" if skips else "DEFAULT"
    return stream.decode(packet)


# --- Time ---

# AVSBench samples each second at this fraction of it.
SAMPLING_OFFSET = 15 / 16

# The clips of AVSBench last 5 or 10 s; longer videos are sampled by timestamp alone (see FrameSampler).
PUBLISHED_CLIP_SECONDS = 10

# Matroska rounds timestamps to 1 ms, so two timestamps that differ by little more than half of that count as equal.
TIMESTAMP_TOLERANCE_SECONDS = 0.0006

# Smaller holes and overlaps between two chunks of audio are jitter of the container, not silence.
JITTER_SECONDS = 0.02

# A clock that jumps further than this was spliced or is broken, so time continues from the last chunk or frame.
LONGEST_HOLE_SECONDS = 600.0
LONGEST_OVERLAP_SECONDS = 1.0

# A decoder that does not know yet how far frames are out of order returns the first ones too early.
MOST_TIMES_BACKWARDS = 3

# Decoding times of an undamaged video increase by less than this from packet to packet.
LONGEST_STEADY_STEP_SECONDS = 10.0

# No codec moves a frame by more than 16 positions between decoding and display.
REMEMBERED_PACKETS = 32

# Used if neither the container nor the codec declares a frame rate, or a damaged one declares frames that last for
# hours.
FALLBACK_FRAME_RATE = Fraction(25)
LOWEST_FRAME_RATE = Fraction(1, 600)


def number_of_frames(seconds: float, frames_per_second: float) -> int:
    """Return how many frames are taken from a video of this duration in seconds, at least one."""
    return max(1, math.floor(seconds * frames_per_second + 0.5))


def frame_rate(video: VideoStream) -> Fraction:
    """Return the average number of frames per second."""
    rate = video.average_rate or video.guessed_rate
    return rate if rate and rate >= LOWEST_FRAME_RATE else FALLBACK_FRAME_RATE


def declared_seconds(video: VideoStream) -> tuple[float, float]:
    """Return the durations of a video stream and of its file as the file declares them, 0 if it does not.

    Broadcasts declare nothing, and only mp4 and related formats declare the duration of each stream.
    """
    container = cast(InputContainer, video.container)
    if container.format.name in ("mpegts", "mpeg"):
        return 0.0, 0.0
    seconds = _stream_seconds(video) if "mp4" in container.format.name else None
    return seconds or 0.0, (container.duration or 0) / av.time_base


def _stream_seconds(video: VideoStream) -> float | None:
    """Return the duration that a stream declares, in seconds."""
    return float(video.duration * video.time_base) if video.duration and video.time_base else None


# Containers that store when packets are decoded, but not when their frames are shown. FFmpeg derives the latter for
# most codecs (one frame late if frames are out of order), but not for those in which the order of packets does not
# determine it.
DECODING_TIME_CONTAINERS = ("avi", "asf")
UNDERIVED_CODECS = ("h264", "hevc", "vvc")


def _has_decoding_times_only(stream: Any) -> bool:
    """Return whether the container of a stream has decoding times only."""
    return cast(InputContainer, stream.container).format.name in DECODING_TIME_CONTAINERS


class VideoClock:
    """Convert the timestamps of frames to non-decreasing seconds since the first frame.

    Timestamps that run backwards are decoding times stored as presentation times. In that case, the clock uses the
    decoding time of the packet for which the decoder returned the frame. This time is late by as many frames as the
    decoder holds, also for the first frame.

    Attributes:
        goes_by_decoding: Whether decoding times are used.
        period: Average seconds per frame.
        origin: Time of the first frame in the container, in seconds.
        end: When the last frame read leaves the screen, in seconds since the first frame; 0 before the first.
    """

    def __init__(self, video: VideoStream) -> None:
        self.period = float(1 / frame_rate(video))
        self.origin = 0.0
        self.end = 0.0
        is_by_decoding = _has_decoding_times_only(video)
        self.goes_by_decoding = is_by_decoding and video.codec_context.name in UNDERIVED_CODECS
        self._known_origin = float((video.start_time or 0) * (video.time_base or 0)) if is_by_decoding else None
        self._start = -math.inf
        self._shift = 0.0
        self._backwards = 0
        self._last = -math.inf, -math.inf

    def read(self, frame: av.VideoFrame) -> float:
        """Return the timestamp of the next frame, in seconds since the first frame."""
        stamp = self._stamp(frame)
        if self._start == -math.inf:
            self._shift = stamp or 0.0
            self.origin = self._shift if self._known_origin is None else self._known_origin

        # A frame without a timestamp, or one not after the last frame, follows it; so does a frame after a splice.
        seconds = self.place(stamp)
        if seconds is None:
            seconds = self.end
            if stamp is not None and stamp - self._shift > self.end:
                self._shift = stamp - self.end

        length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
        if self.goes_by_decoding and self._start >= 0:
            length = seconds - self._start  # for the last frames, which are drained from the decoder without a time
        self._start = seconds
        self.end = seconds + (length if 0 < length <= LONGEST_HOLE_SECONDS else self.period)
        return seconds

    def _stamp(self, frame: av.VideoFrame) -> float | None:
        """Return the time of a frame in the container, in seconds; None if it has none."""
        shown = frame.time
        decoded = None if frame.dts is None or frame.time_base is None else float(frame.dts * frame.time_base)
        if shown is not None and decoded is not None:
            self._backwards += shown < self._last[0] and decoded >= self._last[1]
            self._last = shown, decoded
            if self._backwards > MOST_TIMES_BACKWARDS and not self.goes_by_decoding:
                self.goes_by_decoding, self._shift = True, decoded - self.end
        return decoded if self.goes_by_decoding else shown

    def place(self, stamp: float | None) -> float | None:
        """Return a time of the container in seconds since the first frame; None if the clock uses the order of frames.

        It does so for frames without a time, or with a time that is not after the last one read, or long after it.
        """
        seconds = -math.inf if stamp is None else stamp - self._shift
        return seconds if self._start < seconds <= self.end + LONGEST_HOLE_SECONDS else None


class FrameSampler:
    """Choose the frames on screen at the times `(k + 15/16) / frames_per_second`, or every frame.

    AVSBench counts frames as if the rate were an integer. For integer rates, this is the frame on screen at that time;
    for others (29.97 taken as 30), the count drifts from the time. The published count is used only where AVSBench
    used it: at one frame per second, for clips of the published length with a steady frame rate. Everything else is
    sampled by timestamp.

    Args:
        frames_per_second: Frames to take per second of video, or `"video"` for every frame.
        rate: Average frames per second of the video.
        counts: Whether the published count may be used.

    Attributes:
        taken: Number of frames chosen so far.
    """

    def __init__(self, frames_per_second: float | str, rate: float, counts: bool = False) -> None:
        self._takes_every_frame = isinstance(frames_per_second, str)
        self._frames_per_second = math.inf if isinstance(frames_per_second, str) else frames_per_second
        self.rate = rate
        self.taken = 0
        self._counts = counts and frames_per_second == 1 and round(rate) >= 1
        self._seen = 0
        self._held: Any = None
        self._held_start = 0.0

    @classmethod
    def of(cls, video: VideoStream, frames_per_second: float | str) -> "FrameSampler":
        """Return the sampler of a video stream."""
        seconds = _stream_seconds(video)
        if seconds is None:
            seconds = (cast(InputContainer, video.container).duration or math.inf) / av.time_base
        is_published = seconds < PUBLISHED_CLIP_SECONDS + 0.5
        return cls(frames_per_second, float(frame_rate(video)), counts=is_published)

    def add(self, frame: Any, seconds: float) -> list[tuple[float, Any]]:
        """Take the next frame, decoded or not, which appears on screen at `seconds`.

        Returns:
            Timestamp and frame for every sampling time at which the previous frame was on screen.
        """
        if self._takes_every_frame:
            return [(seconds, frame)]
        clock, chosen = self._published_clock(seconds), []
        while self._held is not None and clock > self._sampling_time() + TIMESTAMP_TOLERANCE_SECONDS:
            chosen.append(self._take(seconds))
        self._held, self._held_start = frame, seconds
        self._seen += 1
        return chosen

    def finish(self, end: float) -> list[tuple[float, Any]]:
        """Return timestamp and frame for the remaining sampling times of a video that lasted `end` seconds."""
        if self._held is None:
            return []
        return [self._take(end) for _ in range(number_of_frames(end, self._frames_per_second) - self.taken)]

    def samples_between(self, start: float, end: float) -> bool:
        """Return whether a frame that is on screen from `start` to `end` seconds may be chosen."""
        if self._counts or self._takes_every_frame:
            return True
        # The first sampling time that has not passed at the start, with tolerance for rounding on both sides.
        number = math.ceil((start - 2 * TIMESTAMP_TOLERANCE_SECONDS) * self._frames_per_second - SAMPLING_OFFSET)
        return (number + SAMPLING_OFFSET) / self._frames_per_second <= end + 2 * TIMESTAMP_TOLERANCE_SECONDS

    def _sampling_time(self) -> float:
        """Return the next time at which a frame is taken, in seconds."""
        return (self.taken + SAMPLING_OFFSET) / self._frames_per_second

    def _published_clock(self, seconds: float) -> float:
        """Return the time of the next frame by AVSBench's count of frames."""
        self._counts = self._counts and abs(self._seen - seconds * self.rate) <= 0.5
        # A count that is further ahead of the time would reach sampling times that the video does not.
        self._counts = self._counts and self._seen / round(self.rate) - seconds <= SAMPLING_OFFSET - 0.5
        return self._seen / round(self.rate) if self._counts else seconds

    def _take(self, held_end: float) -> tuple[float, Any]:
        """Take the held frame, which is on screen until `held_end` seconds, for the next sampling time."""
        time = self._sampling_time()
        is_still = self._held_start + 1 / self.rate < time <= held_end
        self.taken += 1
        return (time if is_still else self._held_start), self._held


class FrameSkipper:
    """Find, before they are decoded, frames that are on screen only between sampling times.

    A frame stays on screen until the next one. The next one is known if a later frame was decoded first. This is the
    case for B-frames, which are also the frames that no other frame refers to and that a decoder can skip. The
    samplers choose the same frames with and without skipping.

    Args:
        clock: The clock by which the frames are read.
        samplers: The samplers of the frames.
    """

    def __init__(self, clock: VideoClock, samplers: Sequence[FrameSampler]) -> None:
        self._clock = clock
        self._samplers = samplers
        self._last_decoding: float | None = None
        self._is_steady = True
        self._placed: deque[float] = deque(maxlen=REMEMBERED_PACKETS)

    def skips(self, packet: av.Packet) -> bool:
        """Return whether the frame of the next packet, if no other refers to it, need not be decoded."""
        start = self._place(packet)
        if start is None:
            return False
        later = [placed for placed in self._placed if placed > start]
        self._placed.append(start)
        return bool(later) and not any(sampler.samples_between(start, min(later)) for sampler in self._samplers)

    def _place(self, packet: av.Packet) -> float | None:
        """Return when the frame of a packet appears on screen, in seconds of the clock; None if that is not certain."""
        if packet.pts is None or packet.dts is None or packet.is_discard or self._clock.goes_by_decoding:
            return None
        decoding = float(packet.dts * packet.time_base)
        if self._last_decoding is not None:
            # After a splice, the timestamp of a frame depends on all those before it, so each is decoded from there
            # on.
            self._is_steady &= 0 < decoding - self._last_decoding < LONGEST_STEADY_STEP_SECONDS
        self._last_decoding = decoding
        is_placed = self._is_steady and self._clock.end > 0
        return self._clock.place(float(packet.pts * packet.time_base)) if is_placed else None


# --- Frames ---

# Anamorphic video has 2 or less; values beyond 4 are errors.
LARGEST_PIXEL_ASPECT = 4

# Frames that are stretched by less look the same; encoders declare pixels of 4096:4095 because of rounding.
NOTED_STRETCH = 0.01


# Numbers of ITU-T H.273 for the transfer characteristics of HDR video.
HDR_TRANSFERS = {16: "pq", 18: "hlg"}

# Candela per square meter: SDR white within HDR (BT.2408), and the brightest light that is distinguished, which is
# that of a BT.2100 display for HLG.
HDR_WHITE = 203.0
HDR_PEAK = 1000.0

# As a fraction of SDR white: FFmpeg's default.
TONE_MAPPING_START = 0.3

HLG_SYSTEM_GAMMA = 1.2  # BT.2100, at 1,000 candela
DISPLAY_GAMMA = 2.4  # BT.1886

# BT.2087
BT2020_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])


class FrameConverter:
    """Convert the decoded frames of one video to RGB at one size, the size that a player shows.

    Args:
        video: The stream of the frames.
        notes: Where to note what was done to them.

    Attributes:
        name: Name of the source in error messages.
    """

    def __init__(self, video: VideoStream, notes: MediaNotes) -> None:
        self.name = notes.name
        self._notes = notes
        self._aspect = pixel_aspect(video, notes)
        self._stored_size: tuple[int, int] | None = None
        self._size = (0, 0)
        self._reformatter = VideoReformatter()
        self._frame: av.VideoFrame | None = None
        self._converted: np.ndarray | None = None

    def measure(self, frame: av.VideoFrame) -> None:
        """Take the size of all frames from the first one; later frames of a different size are resized to it."""
        size = (frame.width, frame.height)
        if self._stored_size is None:
            self._stored_size, self._size = size, shown_size(*size, self._aspect)
            check_frame_size(*self._size, self.name)
        elif size != self._stored_size:
            width, height = self._stored_size
            self._notes.add(
                f"its video is {width}x{height} at first and {size[0]}x{size[1]} later; it keeps the first size"
            )

    def convert(self, frame: av.VideoFrame) -> np.ndarray:
        """Return a frame as a player shows it, uint8 RGB (height, width, 3); the same frame returns the same array."""
        self.measure(frame)
        if frame is not self._frame:
            self._frame, self._converted = frame, self._convert(frame)
        return cast(np.ndarray, self._converted)

    def _convert(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert a frame."""
        try:
            rgb = self._deinterlaced(frame) if frame.interlaced_frame else self._to_rgb(frame, self._size)
        except ValueError as error:
            raise MediaError(
                f"{self._notes}: its pixel format {frame.format.name} cannot be converted to RGB ({error}). "
                "Convert the video to H.264 first."
            ) from error
        return _turn(rgb, frame)

    def _to_rgb(self, frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
        """Return a frame in RGB at (width, height), transparent parts on black."""
        transfer = HDR_TRANSFERS.get(frame.color_trc)
        has_alpha = any(component.is_alpha for component in frame.format.components)
        forms = ("rgb24", "rgba") if transfer is None else ("rgb48le", "rgba64le")
        image = self._reformat(frame, size, forms[has_alpha])
        colors, alpha = image[..., :3], image[..., 3:]
        if transfer is not None:
            self._notes.add("its video is HDR; its colors are mapped to SDR", logging.INFO)
            colors, alpha = tone_map(colors, transfer), alpha >> 8
        if frame.opaque is not None:  # of WebM: see `read_alpha`
            gray = av.VideoFrame.from_ndarray(cast(np.ndarray, frame.opaque), format="gray")
            alpha = self._reformat(gray, size, "gray")[..., None]
        if (alpha == 255).all():
            return colors
        self._notes.add("its video is transparent in parts; these are shown on black", logging.INFO)
        return ((colors.astype(np.uint16) * alpha.astype(np.uint16) + 127) // 255).astype(np.uint8)

    def _reformat(self, frame: av.VideoFrame, size: tuple[int, int], form: str) -> np.ndarray:
        """Return a frame in another format, at (width, height)."""
        # One thread: PyAV's own conversion threads outlive the call, and a forked loader process waits for them forever.
        return self._reformatter.reformat(frame, width=size[0], height=size[1], format=form, threads=1).to_ndarray()

    def _deinterlaced(self, frame: av.VideoFrame) -> np.ndarray:
        """Return an interlaced frame in RGB: its upper field, with the rows between rebuilt from their neighbors.

        The two fields belong to two times; shown as one frame, moving objects have combed edges.
        """
        self._notes.add("its video is interlaced; one field of each frame is shown", logging.INFO)
        rgb = np.array(self._to_rgb(frame, (frame.width, frame.height)))
        upper = rgb[::2]
        below = np.concatenate([upper[1:], upper[-1:]])
        rebuilt = (upper.astype(np.uint16) + below + 1) // 2
        rgb[1::2] = rebuilt[: len(rgb) // 2]
        if self._size == (frame.width, frame.height):
            return rgb
        return self._to_rgb(av.VideoFrame.from_ndarray(rgb, format="rgb24"), self._size)


def tone_map(codes: np.ndarray, transfer: str) -> np.ndarray:
    """Convert HDR colors to SDR, which the networks were trained on.

    Args:
        codes: (height, width, 3), uint16, red, green and blue with the primaries of BT.2020. Only the 7 highest bits
            count.
        transfer: "pq" (SMPTE ST 2084) or "hlg" (BT.2100, hybrid log-gamma).

    Returns:
        (height, width, 3), uint8, with the primaries of BT.709.
    """
    red, green, blue = np.moveaxis(codes >> 9, 2, 0)
    return _tone_map_table(transfer)[red, green, blue]


@cache
def _tone_map_table(transfer: str) -> np.ndarray:
    """Return the SDR color of each HDR color, (128, 128, 128, 3), uint8, for as much work as one frame of full HD.

    Light up to `TONE_MAPPING_START` of SDR white stays as it is; brighter light is compressed by the curve "mobius" of
    FFmpeg's filter `tonemap`. The hue is preserved, because all three values are scaled equally.
    """
    light = np.stack(np.meshgrid(*[_display_light(np.linspace(0, 1, 128), transfer)] * 3, indexing="ij"), axis=-1)
    if transfer == "hlg":
        light *= (light @ [0.2627, 0.678, 0.0593])[..., None] ** (HLG_SYSTEM_GAMMA - 1)
    light = np.maximum(light * (HDR_PEAK / HDR_WHITE) @ BT2020_TO_BT709.T, 0)
    brightest = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
    start, peak = TONE_MAPPING_START, HDR_PEAK / HDR_WHITE
    a = -(start**2) * (peak - 1) / (start**2 - 2 * start + peak)
    b = (start**2 - 2 * start * peak + peak) / (peak - 1)
    compressed = (b**2 + 2 * b * start + start**2) / (b - a) * (brightest + a) / (brightest + b)
    light *= np.where(brightest <= start, brightest, compressed) / brightest
    return np.rint(255 * np.minimum(light, 1) ** (1 / DISPLAY_GAMMA)).astype(np.uint8)


def _display_light(code: np.ndarray, transfer: str) -> np.ndarray:
    """Return the light of codes from 0 to 1, as a fraction of `HDR_PEAK`: of the display for "pq", of the scene for "hlg"."""
    if transfer == "pq":
        root = code ** (32 / 2523)
        light = np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)
        return light ** (8192 / 1305) * 10_000 / HDR_PEAK
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12)


def shown_size(width: int, height: int, pixel_aspect: Fraction) -> tuple[int, int]:
    """Return width and height with square pixels, so that neither decreases (as browsers do).

    Args:
        width: Width of the stored frame, in pixels.
        height: Height of the stored frame, in pixels.
        pixel_aspect: Width of a pixel divided by its height.
    """
    if pixel_aspect > 1:
        return round(width * pixel_aspect), height
    return width, round(height / pixel_aspect)


def pixel_aspect(video: VideoStream, notes: MediaNotes) -> Fraction:
    """Return the width of a pixel divided by its height, 1 if the video declares none or an impossible one."""
    aspect = video.sample_aspect_ratio or Fraction(1)
    if not Fraction(1, LARGEST_PIXEL_ASPECT) <= aspect <= LARGEST_PIXEL_ASPECT:
        notes.add(
            f"its pixel aspect of {aspect.numerator}:{aspect.denominator} is invalid; pixels are taken as square"
        )
        return Fraction(1)
    if abs(math.log(aspect)) >= NOTED_STRETCH:
        notes.add(
            f"its pixels are {aspect.numerator}:{aspect.denominator}; frames are stretched to square pixels",
            logging.INFO,
        )
    return aspect


def _turn(rgb: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Rotate an array (height, width, 3) by quarter turns and mirror it, as the metadata of its frame declares."""
    try:
        display_matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV (18.1) does not know EXIF data, which photographs contain, and then returns no side data at all. The
        # angle is available, but not whether the frame is also mirrored.
        return np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90)))
    if display_matrix is None:
        return np.ascontiguousarray(rgb)

    # x' = a x + c y and y' = b x + d y: quarter turns, mirrored or not.
    a, b, _, c, d = np.frombuffer(bytes(display_matrix), dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        rgb, a, d = rgb.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


# --- Audio ---


class AudioTimeline:
    """Convert decoded audio to float32 samples with the layout and rate of the first chunk, and place it on a clock.

    Attributes:
        position: Samples placed so far; the caller adds those that it takes.
        decoded: Samples decoded so far.
        end: When the audio decoded so far ends, in samples; it may end after `position`, and start late.
        sampling_rate: Samples per second in hertz (Hz); 0 before the first chunk.
        channels: Number of channels; 0 before the first chunk.
    """

    def __init__(self) -> None:
        self.position = self.decoded = self.end = self.sampling_rate = self.channels = 0
        self._origin = 0.0
        self._layout = ""
        self._converter: av.AudioResampler | None = None
        self._converts: tuple[str, str, int] | None = None

    def convert(
        self, frames: Iterable[av.AudioFrame], origin: Callable[[float], float]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Convert decoded chunks.

        Args:
            frames: The next chunks.
            origin: Called once, with the time of the first chunk; returns the time of sample 0 in the container, in
                seconds.

        Yields:
            For each chunk, how many samples are missing before it, or, below 0, by how many it is too early; and the
            part of it that has not been placed yet, float32 (channels, samples).
        """
        for frame in frames:
            if not self.sampling_rate:
                self._layout, self.sampling_rate = frame.layout.name, frame.sample_rate
                self.channels = frame.layout.nb_channels
                self._origin = origin(frame.time or 0.0)
            for chunk in self._resampled(frame):
                samples = chunk.to_ndarray().reshape(chunk.samples, -1).T
                self.decoded += samples.shape[1]
                hole = self._hole_before(chunk.time)
                self.end = max(self.end, self.position + hole + samples.shape[1])
                yield hole, samples[:, max(0, -hole) :]

    def silence(self, stop: int) -> Iterator[AudioPiece]:
        """Yield silence up to sample `stop`, at most a second at a time."""
        while self.position < stop:
            silence = np.zeros((self.channels, min(self.sampling_rate, stop - self.position)), np.float32)
            self.position += silence.shape[1]
            yield silence, self.sampling_rate

    def _resampled(self, frame: av.AudioFrame) -> list[av.AudioFrame]:
        """Return a chunk as packed floats of the first layout and rate."""
        # A converter accepts one kind of frame; a broadcast may change, for example, from mono to 5.1. It produces
        # packed samples, because PyAV (18.1) reads past the end of planar frames of 8 channels.
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._converter is None or kind != self._converts:
            self._converts = kind
            self._converter = av.AudioResampler(format="flt", layout=self._layout, rate=self.sampling_rate)
        return self._converter.resample(frame)

    def _hole_before(self, stamp: float | None) -> int:
        """Return how many samples are missing before a chunk, or, below 0, by how many it is too early."""
        if stamp is None:
            return 0
        hole = round((stamp - self._origin) * self.sampling_rate) - self.position
        longest_overlap = LONGEST_OVERLAP_SECONDS if self.position else math.inf
        if not -longest_overlap <= hole / self.sampling_rate <= LONGEST_HOLE_SECONDS:
            self._origin += hole / self.sampling_rate
            return 0
        is_jitter = self.position > 0 and abs(hole) <= JITTER_SECONDS * self.sampling_rate
        return 0 if is_jitter else hole


def finite_waveform(waveform: np.ndarray, name: str, start: int = 0) -> np.ndarray:
    """Return the waveform (channels, samples) from sample `start` on if every sample is finite, or raise MediaError."""
    bad = np.flatnonzero(~np.isfinite(waveform).all(axis=0))
    if bad.size:
        raise MediaError(
            f"{name}: {bad.size} samples of the audio are NaN or infinite, the first is number {start + bad[0]}. "
            "Export the audio again, or replace them.",
            needs_audio=True,
        )
    return waveform


def _note_of_start(seconds: float) -> tuple[str, int]:
    """Return the note on audio that starts later than the video, or, below 0, earlier: a text and its level."""
    if seconds > 0:
        return f"its audio starts {seconds:.2f} s after its video; silence is filled in", logging.WARNING
    return "its audio starts before its video; this is left out", logging.INFO


def _end_sample(seconds: float, rate: int) -> int:
    """Return the number of samples of a duration in seconds."""
    return round(seconds * rate)


def _margin(rate: int) -> int:
    """Return the number of samples by which audio and video may differ."""
    return round(AUDIO_MARGIN_SECONDS * rate)


__all__ = [
    "Media",
    "MediaError",
    "MediaReader",
    "MediaSource",
    "SAMPLING_OFFSET",
    "iterate_frames",
    "read_audio",
    "read_media",
]
