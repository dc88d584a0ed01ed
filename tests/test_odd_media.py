"""Unusual input, each kind as a real file: it is used, with a note where something was done, or refused with a clear error."""

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import pytest
import torch
from av.video.stream import VideoStream
from browsers import require_browser
from odd_media import (
    COLORS,
    HEIGHT,
    WIDTH,
    Track,
    flat_frame,
    onset,
    pitch,
    shown_colors,
    write_odd_audio,
    write_odd_video,
)
from odd_server import odd_server
from odd_videos import INTERLACED, REFUSED, VIDEOS, noisy, setting, sized
from playwright.sync_api import sync_playwright
from tiny_model import tiny_config
from transformers import pipeline

from modeling_pcmanet import (
    PCMANetFeatureExtractor,
    PCMANetForAudioVisualSegmentation,
    PCMANetImageProcessor,
    PCMANetProcessor,
    media_pcmanet,
)
from modeling_pcmanet.media_pcmanet import MediaError, iterate_frames, read_audio, read_media
from pcmanet.pipelines import AudioVisualSegmentationPipeline


@pytest.mark.parametrize("name", VIDEOS)
def test_usable_media_are_read_with_notes(tmp_path: Path, name: str) -> None:
    case = VIDEOS[name]
    path = case.make(tmp_path / f"video{case.suffix}")
    media = read_media(path, audio=case.start is not None)
    assert shown_colors(media.frames, gray=case.gray) == case.colors
    assert media.frames.shape[1:] == (case.size[1], case.size[0], 3)
    assert len(media.notes) == len(case.notes), media.notes
    assert all(re.search(pattern, note) for pattern, note in zip(case.notes, media.notes, strict=True)), media.notes
    if case.start is not None:
        assert onset(media.waveform, media.sampling_rate) == pytest.approx(case.start, abs=0.04)

    # Reading frame by frame gives the same video.
    timestamps, frames = zip(*iterate_frames(path), strict=True)
    assert {frame.shape for frame in frames} == {media.frames.shape[1:]}
    assert (np.diff(timestamps) > 0).all()


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_media_are_refused_by_name(tmp_path: Path, name: str) -> None:
    case = REFUSED[name]
    path = case.make(tmp_path / f"video{case.suffix}")
    with pytest.raises(MediaError, match=rf"{re.escape(str(path))}.*(?:{case.message})"):
        read_media(path)


@pytest.mark.parametrize("top_first", [True, False])
def test_interlaced_video_is_deinterlaced(tmp_path: Path, top_first: bool) -> None:
    # A white bar on black that is 16 pixels further right in the second field.
    def paint(_seconds: float) -> np.ndarray:
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        image[not top_first :: 2, 16:32] = 255
        image[top_first::2, 32:48] = 255
        return image

    path = write_odd_video(
        tmp_path / "video.mkv",
        paint=paint,
        codec="mpeg2video",
        options={"q:v": "1", "qmin": "1", "qmax": "1"},
        configure=setting(flags=INTERLACED, bit_rate=20_000_000),
    )
    frame = read_media(path).frames[0].mean(axis=2)
    assert np.abs(np.diff(frame[:, 20])).max() < 40
    assert np.abs(np.diff(frame[:, 44])).max() < 40
    bar = slice(18, 30) if top_first else slice(34, 46)
    assert frame[:, bar].min() > 200
    assert frame[:, 50:].max() < 40


@pytest.mark.parametrize("name", [name for name in VIDEOS if name.startswith("transparent")])
def test_transparent_parts_are_black(tmp_path: Path, name: str) -> None:
    path = VIDEOS[name].make(tmp_path / f"video{VIDEOS[name].suffix}")
    frames = np.stack([frame for _, frame in iterate_frames(path)])
    assert len(frames) == 40
    assert max(frames[:, :4].max(), frames[:, -4:].max(), frames[:, :, :4].max(), frames[:, :, -4:].max()) < 20
    assert frames[:, HEIGHT // 2, WIDTH // 2].max(axis=1).min() > 100


def test_damaged_transparency_is_left_out(tmp_path: Path) -> None:
    path = VIDEOS["transparent, vp8"].make(tmp_path / "video.webm")
    with av.open(str(path)) as container:
        first = next(container.demux(video=0))
        alpha = bytes(first.get_sidedata("matroska_block_additional"))[8:]
    data = path.read_bytes()
    assert data.count(alpha) == 1
    media = read_media(data.replace(alpha, bytes(len(alpha))))
    assert media.notes == ("the transparency of some frames is damaged; these are shown without it",)
    assert shown_colors(media.frames) == "RGBW"
    np.testing.assert_allclose(media.frames[:, 2, 2], [(255, 255, 0)] * 4, atol=40)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_video_is_upright(tmp_path: Path, degrees: int) -> None:
    def paint(_seconds: float) -> np.ndarray:
        image = np.full((HEIGHT, WIDTH, 3), COLORS["B"], np.uint8)
        image[: HEIGHT // 2, : WIDTH // 2] = COLORS["R"]
        return image

    path = write_odd_video(
        tmp_path / "video.mp4", paint=paint, configure=lambda stream: stream.set_display_rotation(degrees)
    )
    media = read_media(path)
    assert media.frames.shape[1:3] == ((HEIGHT, WIDTH) if degrees == 180 else (WIDTH, HEIGHT))
    assert media.notes == ()
    stored = next(iterate_frames(write_odd_video(tmp_path / "stored.mp4", paint=paint)))[1]
    difference = media.frames[0].astype(int) - np.rot90(stored, degrees // 90)
    assert np.abs(difference).max() <= 2


@pytest.mark.parametrize(
    ("suffix", "codec", "rate", "layout"),
    [
        (".wav", "pcm_u8", 8000, "mono"),
        (".wav", "pcm_s16le", 11025, "stereo"),
        (".wav", "pcm_s24le", 44100, "5.1"),
        (".wav", "pcm_s32le", 48000, "mono"),
        (".wav", "pcm_f32le", 96000, "5.1"),
        (".wav", "pcm_f64le", 192000, "stereo"),
        (".wav", "pcm_mulaw", 8000, "mono"),
        (".wav", "adpcm_ima_wav", 22050, "mono"),
        (".aiff", "pcm_s16be", 32000, "stereo"),
        (".au", "pcm_s16be", 16000, "mono"),
        (".caf", "pcm_s16le", 44100, "mono"),
        (".flac", "flac", 96000, "5.1"),
        (".m4a", "aac", 44100, "5.1"),
        (".m4a", "alac", 48000, "stereo"),
        (".mp3", "libmp3lame", 44100, "stereo"),
        (".ogg", "libopus", 48000, "5.1"),
        (".ac3", "ac3", 48000, "5.1"),
        (".wv", "wavpack", 44100, "stereo"),
        (".tta", "tta", 44100, "stereo"),
        (".amr", "libopencore_amrnb", 8000, "mono"),
    ],
)
def test_every_audio_codec_starts_on_time(tmp_path: Path, suffix: str, codec: str, rate: int, layout: str) -> None:
    path = write_odd_audio(tmp_path / f"audio{suffix}", Track(codec, rate, layout))
    waveform, sampling_rate = read_audio(path)
    assert sampling_rate == rate
    assert len(waveform) == av.AudioLayout(layout).nb_channels
    # The low-frequency channel of a coded 5.1 audio does not pass 440 Hz.
    full = [channel for channel in waveform if np.abs(channel).max() > 0.1]
    assert len(full) >= len(waveform) - 1
    assert onset(np.stack(full), sampling_rate) == pytest.approx(1.0, abs=0.06)
    assert pitch(waveform, sampling_rate) == pytest.approx(440, abs=2)


def test_the_note_names_the_track_that_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_odd_video(
        tmp_path / "video.mkv", tracks=[Track(language="ger"), Track(language="eng", pitch=1000.0, layout="stereo")]
    )
    media = read_media(path)
    taken = {"1 (ger)": 440.0, "2 (eng)": 1000.0}
    name = next(name for name in taken if name in media.notes[0])
    assert pitch(media.waveform, media.sampling_rate) == pytest.approx(taken[name], abs=2)
    assert caplog.messages == [f"{path}: {media.notes[0]}"]


@pytest.mark.slow
def test_frames_beyond_the_limit_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    # Eight frames in RGB would be 1.6 GB; the sizes of H.264 are known without decoding.
    path = write_odd_video(
        tmp_path / "video.mp4", times=[0.0], paint=sized(8208, 8208), options={"preset": "ultrafast"}
    )
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")
    before = int(re.search(r"VmRSS:\s*(\d+)", status.read_text())[1])
    with pytest.raises(MediaError, match=r"its frames are 8208x8208, 67 million pixels, more than the 67 million"):
        read_media(path)
    assert int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) - before < 100_000


BROWSER_LOOKS = """async () => {
    const video = document.querySelector("video");
    const seen = new Promise((resolve) => video.requestVideoFrameCallback(resolve));
    await video.play();
    await seen;
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    const context = canvas.getContext("2d");
    context.drawImage(video, 0, 0);
    const colors = [[1, 1], [3, 1], [1, 3], [3, 3]].map(([x, y]) =>
        Array.from(context.getImageData((x * canvas.width) / 4, (y * canvas.height) / 4, 1, 1).data.slice(0, 3)));
    return [canvas.width, canvas.height, colors];
}"""


@pytest.mark.slow
def test_a_browser_shows_the_same_frame(tmp_path: Path) -> None:
    def paint(_seconds: float) -> np.ndarray:
        image = np.full((HEIGHT, WIDTH, 3), COLORS["B"], np.uint8)
        image[: HEIGHT // 2, : WIDTH // 2] = COLORS["R"]
        return image

    def configured(degrees: int, aspect: Fraction) -> Callable[[VideoStream], None]:
        return lambda stream: (
            stream.set_display_rotation(degrees),
            setting(sample_aspect_ratio=aspect)(stream),
        )

    path = require_browser()
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--allow-file-access-from-files"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        page = browser.new_page()
        for degrees in (0, 90, 180, 270):
            for aspect in (Fraction(1), Fraction(16, 15), Fraction(8, 9), Fraction(2)):
                video = write_odd_video(tmp_path / "video.mp4", paint=paint, configure=configured(degrees, aspect))
                (tmp_path / "page.html").write_text('<video src="video.mp4" muted></video>')
                page.goto(f"file://{tmp_path}/page.html")
                width, height, colors = page.evaluate(BROWSER_LOOKS)
                frame = read_media(video).frames[0]
                assert (width, height) == (frame.shape[1], frame.shape[0]), (degrees, aspect)
                ours = frame[height // 4 :: height // 2, width // 4 :: width // 2][:2, :2].reshape(4, 3)
                np.testing.assert_allclose(colors, ours, atol=12)
        browser.close()


# --- The table of containers and codecs in docs/reference/odd_media.md ---

PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "odd_media.md").read_text()
ORDERED, X265, AV1 = {"bf": "3"}, {"x265-params": "log-level=none"}, {"preset": "12", "svtav1-params": "lp=1"}

# Suffix, name of the video codec, its encoder and its options; name of the audio codec, its encoder and sampling rate.
CONTAINERS = [
    (".mp4", "H.264, B-frames", "libx264", ORDERED, "AAC", "aac", 44100),
    (".mp4", "HEVC", "libx265", X265, "AAC", "aac", 44100),
    (".mp4", "AV1", "libsvtav1", AV1, "Opus", "libopus", 48000),
    (".mp4", "MPEG-4, B-frames", "mpeg4", {"bf": "2"}, "MP3", "libmp3lame", 44100),
    (".m4v", "H.264, B-frames", "libx264", ORDERED, "AAC", "aac", 44100),
    (".mov", "H.264, B-frames", "libx264", ORDERED, "PCM", "pcm_s16le", 44100),
    (".mov", "ProRes", "prores_ks", {}, "PCM, 24 bits", "pcm_s24le", 48000),
    (".mov", "Motion JPEG", "mjpeg", {}, "ALAC", "alac", 44100),
    (".mov", "QuickTime Animation", "qtrle", {}, "AAC", "aac", 44100),
    (".mkv", "H.264, B-frames", "libx264", ORDERED, "FLAC", "flac", 44100),
    (".mkv", "HEVC", "libx265", X265, "AC-3", "ac3", 48000),
    (".mkv", "FFV1", "ffv1", {}, "PCM", "pcm_s16le", 44100),
    (".mkv", "MPEG-2, B-frames", "mpeg2video", {"bf": "2"}, "MP2", "mp2", 44100),
    (".webm", "VP8", "libvpx", {}, "Opus", "libopus", 48000),
    (".webm", "VP9", "libvpx-vp9", {"cpu-used": "8"}, "Opus", "libopus", 48000),
    (".webm", "AV1", "libsvtav1", AV1, "Opus", "libopus", 48000),
    (".avi", "H.264, B-frames", "libx264", ORDERED, "MP3", "libmp3lame", 44100),
    (".avi", "MPEG-4, B-frames", "mpeg4", {"bf": "2"}, "MP3", "libmp3lame", 44100),
    (".avi", "Motion JPEG", "mjpeg", {}, "PCM", "pcm_s16le", 44100),
    (".avi", "HuffYUV", "huffyuv", {}, "PCM", "pcm_s16le", 44100),
    (".asf", "H.264, B-frames", "libx264", ORDERED, "AAC", "aac", 44100),
    (".wmv", "MPEG-4, version 3 of Microsoft", "msmpeg4v3", {}, "MP3", "libmp3lame", 44100),
    (".flv", "Sorenson H.263", "flv", {}, "MP3", "libmp3lame", 44100),
    (".flv", "H.264, B-frames", "libx264", ORDERED, "AAC", "aac", 44100),
    (".f4v", "H.264, B-frames", "libx264", ORDERED, "AAC", "aac", 44100),
    (".mpg", "MPEG-2, B-frames", "mpeg2video", {"bf": "2"}, "MP2", "mp2", 44100),
    (".vob", "MPEG-2, B-frames", "mpeg2video", {"bf": "2"}, "AC-3", "ac3", 48000),
    (".ts", "H.264, B-frames", "libx264", ORDERED, "AAC", "aac", 44100),
    (".ts", "HEVC", "libx265", X265, "AAC", "aac", 44100),
    (".m2ts", "H.264, B-frames", "libx264", ORDERED, "AC-3", "ac3", 48000),
    (".m2t", "MPEG-2, B-frames", "mpeg2video", {"bf": "2"}, "MP2", "mp2", 44100),
    (".3gp", "H.264, B-frames", "libx264", ORDERED, "AMR", "libopencore_amrnb", 8000),
    (".3g2", "H.264, B-frames", "libx264", ORDERED, "AAC", "aac", 44100),
    (".nut", "H.264, B-frames", "libx264", ORDERED, "PCM", "pcm_s16le", 44100),
    (".rm", "RealVideo 2", "rv20", {}, "AC-3", "ac3", 48000),
    (".gif", "GIF", "gif", {}, "", "", 0),
    (".apng", "APNG", "apng", {}, "", "", 0),
]


def write_container(path: Path, encoder: str, options: Mapping[str, str], audio_encoder: str, rate: int) -> Path:
    """Write 4 s of video at 10 frames per second in the first pixel format of an encoder, and the tone."""
    formats = [each.name for each in av.codec.Codec(encoder, "w").video_formats]
    pixel_format = {"mjpeg": "yuvj420p"}.get(encoder, "yuv420p" if "yuv420p" in formats else formats[0])
    paint = sized(160, 120) if encoder == "libsvtav1" else flat_frame
    tracks = [Track(audio_encoder, rate)] if audio_encoder else []
    return write_odd_video(path, codec=encoder, pixel_format=pixel_format, options=options, paint=paint, tracks=tracks)


@pytest.mark.parametrize("case", [pytest.param(case, id=" ".join(case[:2])) for case in CONTAINERS])
def test_the_page_says_what_each_container_and_codec_gives(tmp_path: Path, case: tuple) -> None:
    suffix, video, encoder, options, audio, audio_encoder, rate = case
    path = write_container(tmp_path / f"video{suffix}", encoder, options, audio_encoder, rate)
    media = read_media(path, audio=bool(audio))
    assert shown_colors(media.frames) == "RGBW"
    assert media.notes == ()
    seconds = [timestamp for timestamp, _ in iterate_frames(path)]
    np.testing.assert_allclose(seconds, np.arange(len(seconds)) / 10, atol=0.0011)
    late = f"{onset(media.waveform, media.sampling_rate) - 1:+.2f} s" if audio else ""
    row = f"| `{suffix}` | {video} | {audio or 'none'} | {len(seconds)} of 40 | {late} |"
    assert row in PAGE, row


# --- Sources that are not regular files ---


@pytest.mark.parametrize(
    "name", ["ünï 视频.mp4", 'it\'s "quoted".mp4', "-leading dash.mp4", "new\nline.mp4", "%20.mp4", "*.mp4", "#?&.mp4"]
)
def test_unusual_file_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_odd_video(tmp_path / "video.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert shown_colors(read_media(name).frames) == "RGBW"


def test_impossible_file_names() -> None:
    with pytest.raises(MediaError, match="File name too long"):
        read_media("x" * 5000)
    with pytest.raises(FileNotFoundError, match="No such media file"):
        read_media("nul\0l.mp4")
    with pytest.raises(FileNotFoundError, match="No such media file"):
        read_media(Path(__file__) / "video.mp4")


def test_pipes_and_devices_are_refused_immediately(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(MediaError, match=rf"{path} is a pipe or a device, not a file"):
            read_media(path)


def test_symbolic_links(tmp_path: Path) -> None:
    video_path = write_odd_video(tmp_path / "video.mp4")
    (tmp_path / "link.mp4").symlink_to(video_path)
    assert shown_colors(read_media(tmp_path / "link.mp4").frames) == "RGBW"
    (tmp_path / "broken.mp4").symlink_to(tmp_path / "nowhere.mp4")
    with pytest.raises(FileNotFoundError, match=r"broken\.mp4"):
        read_media(tmp_path / "broken.mp4")
    (tmp_path / "circle.mp4").symlink_to(tmp_path / "circle.mp4")
    with pytest.raises(MediaError, match=r"circle\.mp4 cannot be opened: Too many levels of symbolic links"):
        read_media(tmp_path / "circle.mp4")


def test_a_file_without_read_permission(tmp_path: Path) -> None:
    path = write_odd_video(tmp_path / "secret.mp4")
    path.chmod(0)
    # The user who runs the tests may have all permissions; the user "nobody" does not.
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(
            MediaError, match=r"secret\.mp4 cannot be opened: Permission denied\. Check its permissions"
        ):
            read_media(path)
    finally:
        os.seteuid(user)


def test_an_endless_pipe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_pcmanet, "LARGEST_PIPED_BYTES", 2**24)
    with (
        Path("/dev/zero").open("rb") as file,
        pytest.raises(MediaError, match="/dev/zero gave more than .* does not end"),
    ):
        read_media(Forwards(file))


class Forwards(io.RawIOBase):
    """A stream that is not seekable."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.name = file.name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        return self._file.readinto(buffer)


def test_a_growing_file_is_read_to_its_current_end(tmp_path: Path) -> None:
    complete = write_odd_video(tmp_path / "complete.ts", paint=noisy).read_bytes()
    path = tmp_path / "growing.ts"
    path.write_bytes(complete[: len(complete) // 2])
    frames = iterate_frames(path)
    seconds = [next(frames)[0] for _ in range(5)]
    with path.open("ab") as file:
        file.write(complete[len(complete) // 2 :])
    seconds += [timestamp for timestamp, _ in frames]
    assert 15 <= len(seconds) <= 40
    np.testing.assert_allclose(np.diff(seconds), 0.1, atol=1e-6)
    assert shown_colors(read_media(path).frames) == "RGBW"


def test_audio_that_does_not_fit_in_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_odd_video(tmp_path / "video.mkv", tracks=[Track("pcm_s16le")])
    monkeypatch.setattr(media_pcmanet, "LARGEST_AUDIO_BYTES", 2**17)
    with pytest.raises(MediaError, match=r"video\.mkv gives more than 0\.000122 GiB of audio"):
        read_media(path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    complete = write_odd_video(
        folder / "video.mp4", paint=noisy, container_options={"movflags": "+faststart"}
    ).read_bytes()
    broadcast = write_odd_video(folder / "video.ts", paint=noisy).read_bytes()
    with odd_server(complete, broadcast) as address:
        yield address


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("gone.mp4", "404 Not Found"),
        ("drips.mp4", "cannot be read|did not respond"),
        ("breaks.mp4", "Input/output error"),
        ("stalls.mp4", r"did not respond for 0\.5 s\. Download it first"),
        ("endless.ts", "gives more than .* frames"),
        ("circle.mp4", "Check the address"),
        ("page.mp4", "Check the address"),
        ("nothing.mp4", "Check the address"),
    ],
)
def test_a_url_gives_a_video_or_an_error_in_bounded_time(
    server: str, page: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown_colors(read_media(f"{server}/complete.mp4").frames) == "RGBW"
    monkeypatch.setattr(media_pcmanet, "NETWORK_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(media_pcmanet, "LARGEST_FRAMES_BYTES", 2**19)
    with pytest.raises(MediaError, match=rf"{page} .*(?:{message})"):
        read_media(f"{server}/{page}")


# --- The same files through the pipeline ---


@pytest.fixture(scope="module")
def segmenter() -> AudioVisualSegmentationPipeline:
    config = tiny_config(audio_config={"block_channels": [[4], [6]], "hidden_size": 12, "embedding_size": 10})
    torch.manual_seed(0)
    model = PCMANetForAudioVisualSegmentation(config).eval()
    processor = PCMANetProcessor(PCMANetImageProcessor(size={"height": 32, "width": 32}), PCMANetFeatureExtractor())
    return pipeline("audio-visual-segmentation", model=model, processor=processor, device="cpu")


# One of each kind; all of them are slow.
QUICK = {
    "plain",
    "variable rate, mp4",
    "wide pixels",
    "turned and wide pixels",
    "transparent, qtrle",
    "interlaced",
    "animated gif",
    "one frame",
    "late audio",
    "early end",
    "timestamps that jump",
    "tail missing, index in front",
    "middle damaged, mkv",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in VIDEOS]
)
def test_the_pipeline_uses_what_the_reader_uses(
    tmp_path: Path, segmenter: AudioVisualSegmentationPipeline, name: str
) -> None:
    case = VIDEOS[name]
    path = case.make(tmp_path / f"video{case.suffix}")
    media = read_media(path, audio=False)
    count = len(media.frames)
    audio = {} if case.start is not None else {"audio": np.zeros((1, count * 16000)), "sampling_rate": 16000}
    called = segmenter(path, threshold=0.0, **audio)
    streamed = list(segmenter.stream(path, threshold=0.0, **audio))
    for result in (called, streamed):
        np.testing.assert_allclose([frame["timestamp"] for frame in result], media.timestamps)
        assert {segment["mask"].size for frame in result for segment in frame["segments"]} == {case.size}
    for one, other in zip(called, streamed, strict=True):
        np.testing.assert_allclose(
            [segment["score"] for segment in one["segments"]],
            [segment["score"] for segment in other["segments"]],
            atol=1e-4,
        )


@pytest.mark.parametrize("name", REFUSED)
def test_the_pipeline_refuses_what_the_reader_refuses(
    tmp_path: Path, segmenter: AudioVisualSegmentationPipeline, name: str
) -> None:
    case = REFUSED[name]
    path = case.make(tmp_path / f"video{case.suffix}")
    for run in (segmenter, lambda source: list(segmenter.stream(source))):
        with pytest.raises(MediaError, match=rf"{re.escape(str(path))}.*(?:{case.message})"):
            run(path)
