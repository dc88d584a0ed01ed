"""Small videos in seven containers, and functions that damage them, for `fuzz_media.py`."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


# Container: encoder of the video, its pixel format, encoder of the audio, its sampling rate in hertz (Hz).
VIDEOS = {
    "mp4": ("libx264", "yuv420p", "aac", 16000),
    "mov": ("mjpeg", "yuvj420p", "pcm_s16le", 16000),
    "mkv": ("mpeg4", "yuv420p", "flac", 16000),
    "webm": ("libvpx-vp9", "yuv420p", "libopus", 48000),
    "avi": ("mpeg4", "yuv420p", "libmp3lame", 16000),
    "ts": ("mpeg2video", "yuv420p", "mp2", 32000),
    "wav": (None, None, "pcm_f32le", 16000),
}
SECONDS = 3
FRAMES_PER_SECOND = 10
WIDTH, HEIGHT = 96, 64

# Most numbers that matter are in the first bytes, or, in an mp4 file, at its end.
HEADER_BYTES = 2048
EXTREME_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)

Damage = Callable[[bytearray, np.random.Generator], bytearray]


def flip_bits(data: bytearray, random: np.random.Generator) -> bytearray:
    """Flip one to a hundred bits anywhere."""
    for position in random.integers(0, len(data), int(10 ** random.uniform(0, 2))):
        data[position] ^= 1 << int(random.integers(8))
    return data


def overwrite_block(data: bytearray, random: np.random.Generator) -> bytearray:
    """Fill a range with random bytes, or with one byte."""
    start, stop = _range(data, random)
    filler = random.bytes(stop - start) if random.random() < 0.5 else bytes([random.integers(256)]) * (stop - start)
    data[start:stop] = filler
    return data


def remove_range(data: bytearray, random: np.random.Generator) -> bytearray:
    """Remove a range."""
    start, stop = _range(data, random)
    del data[start:stop]
    return data


def insert_bytes(data: bytearray, random: np.random.Generator) -> bytearray:
    """Insert random bytes, or a range of the file itself."""
    start, stop = _range(data, random)
    piece = data[start:stop] if random.random() < 0.5 else random.bytes(stop - start)
    place = int(random.integers(len(data)))
    data[place:place] = piece
    return data


def swap_blocks(data: bytearray, random: np.random.Generator) -> bytearray:
    """Swap two ranges of one length."""
    length = int(random.integers(1, max(2, len(data) // 4)))
    first, second = sorted(random.integers(0, len(data) - length, 2).tolist())
    if first + length <= second:
        data[first : first + length], data[second : second + length] = (
            data[second : second + length],
            data[first : first + length],
        )
    return data


def truncate(data: bytearray, random: np.random.Generator) -> bytearray:
    """Keep the beginning, or rarely the end."""
    place = int(random.integers(1, len(data)))
    return data[:place] if random.random() < 0.8 else data[place:]


def change_header_numbers(data: bytearray, random: np.random.Generator) -> bytearray:
    """Set one to eight numbers near the beginning or the end to extremes: sizes, counts, rates, durations, positions."""
    for _ in range(int(random.integers(1, 9))):
        width = int(random.choice([1, 2, 4, 8]))
        place = int(random.integers(0, min(HEADER_BYTES, len(data) - width)))
        place = place if random.random() < 0.6 else len(data) - width - place
        number = int(random.choice(EXTREME_NUMBERS)) if random.random() < 0.7 else int(random.integers(2**32))
        data[place : place + width] = (number % 2 ** (8 * width)).to_bytes(width, random.choice(["big", "little"]))
    return data


def change_box_sizes(data: bytearray, random: np.random.Generator) -> bytearray:
    """Change the number next to a four-letter name: before it the size of an mp4 box, after it that of a wav or avi chunk."""
    names = [place for place in range(4, len(data) - 8) if all(97 <= byte <= 122 for byte in data[place : place + 4])]
    for place in random.choice(names, min(len(names), int(random.integers(1, 5))), replace=False) if names else ():
        at = int(place) + (-4 if random.random() < 0.7 else 4)
        data[at : at + 4] = int(random.choice(EXTREME_NUMBERS)).to_bytes(4, random.choice(["big", "little"]))
    return data


DAMAGES: tuple[Damage, ...] = (
    flip_bits,
    overwrite_block,
    remove_range,
    insert_bytes,
    swap_blocks,
    truncate,
    change_header_numbers,
    change_header_numbers,
    change_box_sizes,
)


def _range(data: bytearray, random: np.random.Generator) -> tuple[int, int]:
    """Return a random range, short ones as often as long ones."""
    start = int(random.integers(len(data)))
    return start, min(len(data), start + int(10 ** random.uniform(0, np.log10(max(10, len(data) // 2)))))


def damaged(video: bytes, container: str, number: int, seed: int) -> bytes:
    """Return mutant `number` of a video."""
    random = np.random.default_rng([seed, number, *container.encode()])
    data = bytearray(video)
    for damage in random.choice(len(DAMAGES), 1 + int(random.integers(3) == 0)):
        data = DAMAGES[damage](data, random) or bytearray(b"\0")
    return bytes(data)


def write_videos(folder: Path) -> dict[str, bytes]:
    """Write the videos to damage: moving noise, and a tone."""
    videos = {}
    for container, (video_codec, pixel_format, audio_codec, rate) in VIDEOS.items():
        path = folder / f"video.{container}"
        with av.open(str(path), "w") as file:
            video = None
            if video_codec:
                video = file.add_stream(video_codec, rate=FRAMES_PER_SECOND, options={"g": "10", "threads": "1"})
                video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, pixel_format
            audio = file.add_stream(audio_codec, rate=rate, layout="mono")
            for frame in _frames(pixel_format) if video else ():
                file.mux(video.encode(frame))
            tone = (0.5 * np.sin(np.arange(SECONDS * rate) / 5)).astype(np.float32)[None]
            samples = av.AudioFrame.from_ndarray(tone, format="flt", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = rate, 0, Fraction(1, rate)
            file.mux([*(video.encode() if video else []), *audio.encode(samples), *audio.encode()])
        videos[container] = path.read_bytes()
    return videos


def _frames(pixel_format: str) -> Iterator[av.VideoFrame]:
    """Yield a moving pattern."""
    pattern = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    pattern = pattern.repeat(8, axis=0).repeat(8, axis=1)
    for index in range(SECONDS * FRAMES_PER_SECOND):
        shifted = np.ascontiguousarray(np.roll(pattern, 2 * index, axis=1))
        frame = av.VideoFrame.from_ndarray(shifted, format="rgb24").reformat(format=pixel_format, threads=1)
        frame.pts, frame.time_base = index, Fraction(1, FRAMES_PER_SECOND)
        yield frame
