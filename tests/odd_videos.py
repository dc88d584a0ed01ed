"""Unusual videos, each with its expected outcome: used, used with a note, or refused with a reason."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from odd_media import (
    COLORS,
    HEIGHT,
    WIDTH,
    Track,
    big_endian,
    color_at,
    cut,
    every,
    flat_frame,
    overwrite,
    patch_box,
    write_odd_audio,
    write_odd_video,
)
from PIL import Image


QUIET_X265 = {"x265-params": "log-level=none"}
INTERLACED = (1 << 18) | (1 << 29)  # AV_CODEC_FLAG_INTERLACED_DCT and _ME
CENC = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "00112233445566778899aabbccddeeff",
    "encryption_kid": "ffeeddccbbaa99887766554433221100",
}


@dataclass(frozen=True)
class UsableVideo:
    """A file that can be used, and its expected outcome.

    Attributes:
        suffix: Of its name, which chooses the container.
        make: Writes it.
        colors: One letter per second.
        size: (width, height) of the frames.
        start: When the tone starts, in seconds; None for a video without audio.
        notes: Patterns of all notes, in order.
        gray: Whether the colors are lost.
    """

    suffix: str
    make: Callable[[Path], Path]
    colors: str = "RGBW"
    size: tuple[int, int] = (WIDTH, HEIGHT)
    start: float | None = 1.0
    notes: tuple[str, ...] = ()
    gray: bool = False


@dataclass(frozen=True)
class Refused:
    """A file that cannot be used, and a pattern of its error."""

    suffix: str
    make: Callable[[Path], Path]
    message: str


def written(**arguments: object) -> Callable[[Path], Path]:
    return lambda path: write_odd_video(path, **arguments)


def sized(width: int, height: int) -> Callable[[float], np.ndarray]:
    return lambda seconds: np.full((height, width, 3), COLORS[color_at(seconds)], np.uint8)


def setting(**attributes: object) -> Callable[[VideoStream], None]:
    """Set attributes of the encoder."""

    def configure(stream: VideoStream) -> None:
        for name, value in attributes.items():
            setattr(stream.codec_context, name, value)

    return configure


def transparent_webm(codec: str, options: dict[str, str]) -> UsableVideo:
    """Return a WebM file whose transparency is stored next to each frame."""
    audio = [Track("libopus", 48000)]
    make = written(codec=codec, pixel_format="yuva420p", options=options, paint=half_transparent, tracks=audio)
    return UsableVideo(".webm", make, notes=("transparent in parts",))


def hdr_code(image: np.ndarray) -> np.ndarray:
    """Return the codes (BT.2020, PQ) of the colors of usual video, as bright as they are in HDR (white at 203 candela)."""
    to_bt2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087
    light = (image / 255.0) ** 2.4 @ to_bt2020.T
    linear = np.clip(light * 203 / 10_000, 0, 1) ** (1305 / 8192)
    return np.rint(255 * ((107 / 128 + 2413 / 128 * linear) / (1 + 2392 / 128 * linear)) ** (2523 / 32)).astype(
        np.uint8
    )


def half_transparent(seconds: float) -> np.ndarray:
    """The second's color in the middle, and around it transparent yellow."""
    image = np.full((HEIGHT, WIDTH, 4), (255, 255, 0, 0), np.uint8)
    image[8:-8, 8:-8] = (*COLORS[color_at(seconds)], 255)
    return image


def clip_of(path: Path, first: bytes) -> Path:
    path.write_bytes(first)
    return path


def truncated(**arguments: object) -> Callable[[Path], Path]:
    return lambda path: cut(write_odd_video(path, **arguments), 0.6)


def noisy(seconds: float) -> np.ndarray:
    """The second's color, and around it noise that makes the file long."""
    image = np.random.default_rng(round(seconds * 1000)).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    image[16:-16, 16:-16] = COLORS[color_at(seconds)]
    return image


def two_videos(path: Path) -> Path:
    """A second video track, smaller, in other colors."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, height in zip(streams, (HEIGHT, HEIGHT // 2), strict=True):
            stream.width, stream.height, stream.pix_fmt = WIDTH, height, "yuv420p"
        for stream, shift in zip(streams, (0.0, 2.0), strict=True):
            for seconds in every():
                image = flat_frame(seconds + shift)[: stream.height]
                frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p", threads=1)
                frame.time_base, frame.pts = Fraction(1, 10), round(seconds * 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


def joined(path: Path) -> Path:
    """A broadcast whose clock jumps by a thousand seconds, and back."""
    parts = [(0.0, 0.0), (1000.0, 1.0), (5.0, 2.0), (77.0, 3.0)]
    data = b""
    for start, shift in parts:
        part = path.with_name("part.ts")
        write_odd_video(
            part,
            times=every(seconds=1.0, start=start),
            paint=lambda seconds, start=start, shift=shift: flat_frame(seconds - start + shift),
            tracks=(),
            options={"bf": "0"},
        )
        data += part.read_bytes()
    return clip_of(path, data)


def claims_to_last(path: Path) -> Path:
    """An mp4 that declares a duration of 49 days."""
    write_odd_video(path)
    for box in (b"mvhd", b"mdhd"):
        patch_box(path, box, 16, big_endian(2**32 - 2))
    return patch_box(path, b"tkhd", 20, big_endian(2**32 - 2))


def giant(path: Path) -> Path:
    """One image of 16000x16000 with one bit per pixel."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=10)
        stream.width = stream.height = 16000
        stream.pix_fmt = "monob"
        audio = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.VideoFrame(16000, 16000, "monob")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.pts = 0
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="flt", layout="mono")
        silence.sample_rate = 16000
        container.mux([*stream.encode(frame), *stream.encode(), *audio.encode(silence), *audio.encode()])
    return path


def replaced(path: Path, old: bytes, new: bytes, **arguments: object) -> Path:
    data = write_odd_video(path, **arguments).read_bytes()
    assert old in data
    return clip_of(path, data.replace(old, new))


def photograph(path: Path) -> Path:
    """A photograph of a phone, which its EXIF data rotates."""
    image = Image.fromarray(sized(HEIGHT, WIDTH)(0.0))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, "jpeg", exif=exif, quality=95)
    return path


LOSSES = r"damaged or missing packets of data left out: \d+"
HOLES = r"holes in its audio filled with silence: \d+"
ENDS_EARLY = r"its video ends at .* s, but it declares .* s; the available part is used"
SILENT_END = r"its audio ends .* s before its video; silence is filled in"
LONG_AUDIO = r"its audio continues for .* s after its video; this part is not used"

VIDEOS = {
    "plain": UsableVideo(".mp4", written()),
    # --- Video ---
    "variable rate, mp4": UsableVideo(
        ".mp4", written(times=[0.0, 0.05, 0.7, 0.95, 1.0, 2.0, 2.1, 2.15, 3.0, 3.8, 3.9])
    ),
    "variable rate, mkv": UsableVideo(
        ".mkv", written(times=[0.0, 0.05, 0.7, 0.95, 1.0, 2.0, 2.1, 2.15, 3.0, 3.8, 3.9])
    ),
    "odd size": UsableVideo(".mkv", written(codec="ffv1", paint=sized(51, 37)), size=(51, 37)),
    "odd size, h264": UsableVideo(".mp4", written(pixel_format="yuv444p", paint=sized(51, 37)), size=(51, 37)),
    "wide pixels": UsableVideo(
        ".mp4",
        written(configure=setting(sample_aspect_ratio=Fraction(16, 15))),
        size=(68, 48),
        notes=("pixels are 16:15",),
    ),
    "narrow pixels": UsableVideo(
        ".mkv",
        written(configure=setting(sample_aspect_ratio=Fraction(8, 9))),
        size=(64, 54),
        notes=("pixels are 8:9",),
    ),
    "impossible pixels": UsableVideo(
        ".mp4",
        lambda path: patch_box(
            write_odd_video(path, configure=setting(sample_aspect_ratio=Fraction(16, 15))),
            b"pasp",
            0,
            big_endian(1, 200),
        ),
        notes=(r"1:200 is invalid",),
    ),
    "pixels that nobody sees are wide": UsableVideo(
        ".mp4", written(configure=setting(sample_aspect_ratio=Fraction(4096, 4095)))
    ),
    "turned and wide pixels": UsableVideo(
        ".mp4",
        written(
            configure=lambda stream: (
                stream.set_display_rotation(90),
                setting(sample_aspect_ratio=Fraction(2))(stream),
            )
        ),
        size=(48, 128),
        notes=("pixels are 2:1",),
    ),
    "10 bits, hevc": UsableVideo(".mp4", written(codec="libx265", pixel_format="yuv420p10le", options=QUIET_X265)),
    "10 bits, h264": UsableVideo(".mp4", written(pixel_format="yuv420p10le")),
    "10 bits, prores": UsableVideo(
        ".mov", written(codec="prores_ks", pixel_format="yuv422p10le", tracks=[Track("pcm_s24le", 48000)])
    ),
    "10 bits, bt2020": UsableVideo(
        ".mp4",
        written(
            codec="libx265",
            pixel_format="yuv420p10le",
            options=QUIET_X265,
            colors=(Colorspace.BT2020, 9, ColorRange.MPEG),
        ),
    ),
    "hdr, pq": UsableVideo(
        ".mp4",
        written(
            codec="libx265",
            pixel_format="yuv420p10le",
            options=QUIET_X265,
            colors=(Colorspace.BT2020, 9, ColorRange.MPEG),
            paint=lambda seconds: hdr_code(flat_frame(seconds)),
            configure=setting(color_trc=16, color_primaries=9),
        ),
        notes=("its video is HDR",),
    ),
    "bt709": UsableVideo(".mp4", written(colors=(Colorspace.ITU709, 1, ColorRange.MPEG))),
    "bt709, full range": UsableVideo(".mp4", written(colors=(Colorspace.ITU709, 1, ColorRange.JPEG))),
    "gray": UsableVideo(".mkv", written(codec="ffv1", pixel_format="gray"), gray=True),
    "gray, 10 bits": UsableVideo(".mkv", written(codec="ffv1", pixel_format="gray10le"), gray=True),
    "gray, 16 bits": UsableVideo(".mkv", written(codec="ffv1", pixel_format="gray16le"), gray=True),
    "transparent, prores": UsableVideo(
        ".mov",
        written(codec="prores_ks", pixel_format="yuva444p10le", paint=half_transparent),
        notes=("transparent in parts",),
    ),
    "transparent, qtrle": UsableVideo(
        ".mov", written(codec="qtrle", pixel_format="argb", paint=half_transparent), notes=("transparent in parts",)
    ),
    "transparent, hdr": UsableVideo(
        ".mkv",
        written(
            codec="ffv1",
            pixel_format="yuva444p10le",
            colors=(Colorspace.BT2020, 9, ColorRange.MPEG),
            paint=lambda seconds: np.dstack([hdr_code(flat_frame(seconds)), half_transparent(seconds)[..., 3]]),
            configure=setting(color_trc=16, color_primaries=9),
        ),
        notes=("its video is HDR", "transparent in parts"),
    ),
    "transparent, vp8": transparent_webm("libvpx", {"auto-alt-ref": "0"}),
    "transparent, vp9": transparent_webm("libvpx-vp9", {"cpu-used": "8"}),
    "opaque with alpha": UsableVideo(".mkv", written(codec="ffv1", pixel_format="bgra")),
    "interlaced": UsableVideo(
        ".ts", written(codec="mpeg2video", configure=setting(flags=INTERLACED)), notes=("video is interlaced",)
    ),
    "hevc": UsableVideo(".mp4", written(codec="libx265", options=QUIET_X265)),
    "vp8": UsableVideo(".webm", written(codec="libvpx", tracks=[Track("libopus", 48000)])),
    "vp9": UsableVideo(
        ".webm", written(codec="libvpx-vp9", options={"cpu-used": "8"}, tracks=[Track("libopus", 48000)])
    ),
    "av1": UsableVideo(
        ".mp4",
        written(codec="libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"}, paint=sized(160, 120)),
        size=(160, 120),
    ),
    "motion jpeg": UsableVideo(".avi", written(codec="mjpeg", pixel_format="yuvj420p", tracks=[Track("pcm_s16le")])),
    "mpeg 2": UsableVideo(".mpg", written(codec="mpeg2video", tracks=[Track("mp2", 44100)])),
    "mpeg 4": UsableVideo(".avi", written(codec="mpeg4", tracks=[Track("libmp3lame")]), start=1.07),
    "flash": UsableVideo(".flv", written(codec="flv", tracks=[Track("libmp3lame", 44100)])),
    "raw": UsableVideo(".avi", written(codec="rawvideo", pixel_format="bgr24", tracks=[Track("pcm_s16le")])),
    "animated gif": UsableVideo(".gif", written(codec="gif", pixel_format="rgb8", tracks=()), start=None),
    "animated png": UsableVideo(".apng", written(codec="apng", pixel_format="rgba", tracks=()), start=None),
    "photograph": UsableVideo(".jpg", photograph, colors="R", start=None),
    "one frame": UsableVideo(".mp4", written(times=[0.0]), colors="R", start=1.0, notes=(LONG_AUDIO,)),
    "two video tracks": UsableVideo(
        ".mp4", two_videos, start=None, notes=(r"of its 2 video tracks number 1 \(.*\) is taken",)
    ),
    # --- Audio ---
    "two audio tracks": UsableVideo(
        ".mkv",
        written(tracks=[Track(language="ger"), Track(language="eng", pitch=1000.0)]),
        notes=(r"of its 2 audio tracks number 1 \(ger\) is taken",),
    ),
    "late audio": UsableVideo(
        ".mkv", written(tracks=[Track(start=2.0, seconds=2.0)]), start=2.0, notes=("its audio starts 2.0. s after",)
    ),
    "late audio that continues": UsableVideo(
        ".mkv",
        written(tracks=[Track(start=2.0, seconds=4.0)]),
        start=2.0,
        notes=("its audio starts 2.0. s after", LONG_AUDIO),
    ),
    "early end": UsableVideo(".mp4", written(tracks=[Track(seconds=2.0)]), notes=(SILENT_END,)),
    "no audio at the end of a second": UsableVideo(".mp4", written(tracks=[Track(seconds=3.5)])),
    "ten minutes of audio": UsableVideo(
        ".mkv", written(tracks=[Track("pcm_s16le", 8000, seconds=600.0)]), notes=(LONG_AUDIO,)
    ),
    "audio first in the file": UsableVideo(".mkv", written(tracks=[Track("pcm_s16le")], audio_first=True)),
    "video later than audio": UsableVideo(
        ".mkv",
        written(times=every(start=1.0, seconds=3.0)),
        colors="GBW",
        start=0.0,
        notes=("its audio starts before its video",),
    ),
    "video later than audio that ends early": UsableVideo(
        ".webm",
        written(
            codec="libvpx",
            times=every(start=3.0, seconds=4.0),
            tracks=[Track("libopus", 48000, start=1.0, seconds=4.5)],
        ),
        colors="WRGB",
        start=0.0,
        notes=("its audio starts before its video", SILENT_END),
    ),
    # --- Timestamps ---
    "late start": UsableVideo(".mkv", written(times=every(start=3.0), tracks=()), colors="WRGB", start=None),
    "negative timestamps": UsableVideo(
        ".mp4",
        written(
            times=every(start=-1.0, seconds=5.0),
            paint=lambda seconds: flat_frame(max(0.0, seconds)),
            container_options={"avoid_negative_ts": "disabled"},
            options={"bf": "0"},
        ),
    ),
    "timestamps that jump": UsableVideo(".ts", joined, start=None),
    "claims 49 days": UsableVideo(".mp4", claims_to_last),
    # --- Damage ---
    "tail missing, index in front": UsableVideo(
        ".mp4",
        truncated(paint=noisy, container_options={"movflags": "+faststart"}),
        colors="RGB",
        size=(128, 96),
        notes=(LOSSES, ENDS_EARLY),
    ),
    "tail missing, fragmented": UsableVideo(
        ".mp4",
        truncated(paint=noisy, container_options={"movflags": "+frag_keyframe+empty_moov"}, options={"g": "5"}),
        colors="RGB",
        size=(128, 96),
        notes=(LOSSES,),
    ),
    "tail missing, mkv": UsableVideo(
        ".mkv", truncated(paint=noisy), colors="RGB", size=(128, 96), notes=(ENDS_EARLY,)
    ),
    "tail missing, ts": UsableVideo(".ts", truncated(paint=noisy), colors="RGB", size=(128, 96)),
    "middle damaged, mp4": UsableVideo(
        ".mp4",
        lambda path: overwrite(
            write_odd_video(path, paint=noisy, options={"g": "5"}, container_options={"movflags": "+faststart"}),
            0.3,
            0.4,
        ),
        size=(128, 96),
        notes=(LOSSES, HOLES),
    ),
    "middle damaged, mkv": UsableVideo(
        ".mkv",
        lambda path: overwrite(write_odd_video(path, paint=noisy, options={"g": "5"}), 0.3, 0.4),
        size=(128, 96),
        notes=(LOSSES, HOLES),
    ),
    "middle damaged, ts": UsableVideo(
        ".ts",
        lambda path: overwrite(write_odd_video(path, paint=noisy, options={"g": "5"}), 0.3, 0.4),
        size=(128, 96),
        notes=(LOSSES, HOLES),
    ),
    "wrong suffix": UsableVideo(
        ".txt", lambda path: clip_of(path, write_odd_video(path.with_suffix(".mkv")).read_bytes())
    ),
}

REFUSED = {
    "no frames": Refused(".mkv", written(times=[0.0], tracks=()), "has no audio track"),
    "no audio": Refused(".mp4", written(tracks=()), r"has no audio track\. Pass the audio as `audio=`"),
    "audio alone": Refused(".m4a", lambda path: write_odd_audio(path, Track()), "has no video stream"),
    "index missing": Refused(".mp4", lambda path: cut(write_odd_video(path), 0.9), "complete media file"),
    "nothing": Refused(".mp4", lambda path: clip_of(path, b""), r"is empty \(0 bytes\)"),
    "one byte": Refused(".mp4", lambda path: clip_of(path, b"x"), "complete media file"),
    "a text": Refused(
        ".mp4", lambda path: clip_of(path, b"Dear diary, nothing happened.\n" * 99), "complete media file"
    ),
    "a page": Refused(
        ".mp4", lambda path: clip_of(path, b"<!DOCTYPE html><html><body>404</body></html>"), "complete media file"
    ),
    "subtitles": Refused(
        ".mp4", lambda path: clip_of(path, b"1\n00:00:00,000 --> 00:00:04,000\nHello\n\n" * 20), "complete media file"
    ),
    "an archive": Refused(".mp4", lambda path: clip_of(path, b"PK\3\4" + bytes(4000)), "complete media file"),
    "zeros": Refused(".mp4", lambda path: clip_of(path, bytes(2**20)), "complete media file"),
    "noise": Refused(
        ".mp4", lambda path: clip_of(path, np.random.default_rng(0).bytes(2**20)), "complete media file|has no"
    ),
    "a giant frame": Refused(".mov", giant, r"no more than 67 million pixels"),
    "encrypted, in an unknown way": Refused(
        ".mp4",
        lambda path: replaced(path, b"tenc", b"free", container_options=CENC),
        r"is encrypted \(DRM\)",
    ),
    "encrypted": Refused(".mp4", written(container_options=CENC), r"is encrypted \(DRM\)"),
    "unknown codec": Refused(
        ".mkv",
        lambda path: replaced(path, b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"),
        r"its video has a codec that is not supported\. Convert it",
    ),
    "audio at two billion hertz": Refused(
        ".mkv",
        lambda path: replaced(path, struct.pack(">d", 16000), struct.pack(">d", 2e9), tracks=[Track("pcm_s16le")]),
        "samples per second",
    ),
}
