"""Notes: each said once, to the log and to whoever reads them. Opening: every way to name a video, and the errors of bad ones. Frames that nobody looks at are not decoded, and nothing else changes by it. Pictures as a player shows them: upright, every pixel format, square pixels, one size."""

import http.server
import io
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from odd_media import HEIGHT, WIDTH, big_endian, every, overwrite, patch_box, write_film
from PIL import Image

from modeling_pcmanet import media_decoding_pcmanet
from modeling_pcmanet.media_decoding_pcmanet import (
    FrameSampler,
    FrameSkipper,
    MediaNotes,
    PictureMaker,
    VideoClock,
    shown_size,
)
from modeling_pcmanet.media_pcmanet import MediaError, VideoReader, iterate_frames, read_audio, read_media, write_video


def test_a_note_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="modeling_pcmanet")
    notes = MediaNotes("film.mp4")
    notes.add("it is torn")
    notes.add("it is old", logging.INFO)
    notes.add("it is torn")
    assert notes.texts == ["it is torn", "it is old"]
    assert caplog.record_tuples == [
        ("modeling_pcmanet.media_decoding_pcmanet", logging.WARNING, "film.mp4: it is torn"),
        ("modeling_pcmanet.media_decoding_pcmanet", logging.INFO, "film.mp4: it is old"),
    ]
    assert f"{notes} is a film" == "film.mp4 is a film"


def test_what_is_counted_is_said_at_the_end() -> None:
    notes = MediaNotes("film.mp4")
    for _ in range(3):
        notes.count("tears")
    notes.count("stains")
    assert notes.texts == []
    notes.finish()
    notes.finish()
    assert notes.texts == ["tears: 3", "stains: 1"]


class Pipe(io.RawIOBase):
    """A stream that can only be read forwards, as from a socket."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:
        return self._file.readinto(buffer)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second of frames that grow brighter, with a tone."""
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    frames = (np.full((32, 48, 3), 10 * index, np.uint8) for index in range(25))
    write_video(path, frames, 25, 0.5 * np.sin(np.arange(16000) / 5), 16000)
    return path


@pytest.fixture(scope="module")
def address(clip: Path) -> Iterator[str]:
    """A web server beside the clip; /forward sends its visitor to a file of the server's machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(clip.parent))

        def do_GET(self) -> None:
            if self.path == "/forward.mp4":
                self.send_response(302)
                self.send_header("Location", f"file://{clip}")
                self.end_headers()
            elif self.path == "/broken.mp4":
                self.send_error(500)
            else:
                super().do_GET()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_every_source_gives_the_same_clip(clip: Path, address: str) -> None:
    expected = read_media(clip)
    data = clip.read_bytes()
    assert expected.frames.shape == (1, 32, 48, 3)
    assert abs(int(expected.frames.mean()) - 230) <= 2
    with clip.open("rb") as file, clip.open("rb") as used:
        used.read()
        sources = [str(clip), f"{address}/clip.mp4", data, io.BytesIO(data), file, used, Pipe(data)]
        for source in sources:
            media = read_media(source)
            np.testing.assert_array_equal(media.frames, expected.frames)
            np.testing.assert_array_equal(media.waveform, expected.waveform)
            np.testing.assert_array_equal(media.timestamps, expected.timestamps)


def test_a_file_object_is_left_open_and_can_be_read_again(clip: Path) -> None:
    with clip.open("rb") as file:
        frames = [frame for _, frame in iterate_frames(file)]
        waveform, sampling_rate = read_audio(file)
        assert not file.closed
    assert len(frames) == 25
    assert (waveform.shape[0], sampling_rate) == (1, 16000)


def test_iterating_may_stop_at_any_frame(clip: Path) -> None:
    frames = iterate_frames(clip)
    seconds = [next(frames)[0] for _ in range(3)]
    frames.close()
    np.testing.assert_allclose(seconds, [0.0, 0.04, 0.08], atol=1e-6)


@pytest.mark.parametrize("name", ["a b.mp4", "http:x.mp4", "concat:a|b.mp4", "frame%03d.mp4", "ünï-视频.mp4", "-.mp4"])
def test_a_file_may_have_any_name(clip: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(clip.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert read_media(name, audio=False).name == name


def test_names_tell_sources_apart_in_errors(clip: Path) -> None:
    data = clip.read_bytes()
    assert read_media(str(clip)).name == str(clip)
    assert read_media(data).name == f"<{len(data)} bytes>"
    assert read_media(io.BytesIO(data)).name == "<BytesIO>"


def test_a_missing_file_is_told_with_the_folder_it_was_looked_for_in(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No such media file: .*nowhere\.mp4.*working directory"):
        read_media(tmp_path / "nowhere.mp4")
    with pytest.raises(FileNotFoundError):
        read_media("ftp://example.invalid/clip.mp4")


def test_a_directory_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="is a directory. Pass the path of one media file"):
        read_media(tmp_path)


def test_an_empty_path_is_told_as_such() -> None:
    with pytest.raises(MediaError, match="path of the media is empty"):
        read_media("")


@pytest.mark.parametrize("wrap", [bytes, io.BytesIO, Pipe])
def test_nothing_is_no_video(tmp_path: Path, wrap: type) -> None:
    with pytest.raises(MediaError, match="is empty"):
        read_media(wrap(b""))
    (tmp_path / "zero.mp4").touch()
    with pytest.raises(MediaError, match=r"zero\.mp4 is empty"):
        read_media(tmp_path / "zero.mp4")


@pytest.mark.parametrize(
    "data", [b"Dear diary, today nothing happened.\n" * 100, b"\0" * 4096, bytes(range(256)) * 64]
)
def test_other_files_are_no_video(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "diary.mp4"
    path.write_bytes(data)
    for read in (read_media, read_audio, lambda source: next(iterate_frames(source))):
        with pytest.raises(MediaError, match=r"diary\.mp4"):
            read(path)


@pytest.mark.parametrize("source", [5, None, io.StringIO("text"), ["a.mp4"], np.zeros(3)])
def test_what_is_no_source_is_told_what_is(source: object) -> None:
    with pytest.raises(MediaError, match=f"Media must be a path, .* got {type(source).__name__}"):
        read_media(source)


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{clip}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{clip}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {clip}\n",
    ],
)
def test_a_playlist_cannot_open_other_files(clip: Path, tmp_path: Path, playlist: str) -> None:
    path = tmp_path / "list.m3u8"
    path.write_text(playlist.format(clip=clip))
    for source in (path, path.read_bytes()):
        with pytest.raises(MediaError, match="cannot be read"):
            read_media(source)


@pytest.mark.parametrize(
    ("page", "reason"), [("nowhere.mp4", "404"), ("broken.mp4", "5XX"), ("forward.mp4", "cannot be read")]
)
def test_an_address_that_gives_no_video_is_an_error(address: str, page: str, reason: str) -> None:
    with pytest.raises(MediaError, match=f"{page}.*{reason}"):
        read_media(f"{address}/{page}")


def test_an_address_where_nobody_listens_is_an_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(MediaError, match="Connection refused"):
        read_media(f"http://127.0.0.1:{port}/clip.mp4")


def test_an_address_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_decoding_pcmanet, "NETWORK_TIMEOUT_SECONDS", 0.3)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/clip.mp4"
        with pytest.raises(MediaError, match=r"gave no answer for 0\.3 s. Download it first"):
            read_media(address)


def test_a_name_in_an_old_encoding_does_not_matter(clip: Path) -> None:
    data = clip.read_bytes()
    assert data.count(b"VideoHandler") == 1
    assert len(read_media(data.replace(b"VideoHandler", "VidéoHandler".encode("latin-1"))).frames) == 1


def test_the_cover_of_a_song_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("libmp3lame", rate=48000, layout="mono")
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="flt", layout="mono")
        sound.sample_rate = 48000
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux([*cover.encode(picture), *cover.encode(), *audio.encode(sound), *audio.encode()])
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(MediaError, match=r"song\.mp3 has no video stream"):
        read_media(path)
    assert read_audio(path)[0].shape[1] >= 48000


SECONDS = 14
STEADY = every(seconds=SECONDS)
UNSTEADY = list(accumulate([0.0, *np.random.default_rng(0).choice([0.02, 0.04, 0.1, 0.1, 0.5, 2.5], 60)]))
X265 = {"x265-params": "bframes=4:log-level=none"}

# Suffix, encoder, its options, times of the frames, and the largest share of them that may be decoded.
FILMS = {
    "mp4": (".mp4", "libx264", {"bf": "3"}, STEADY, 0.7),
    "many B-frames": (".mp4", "libx264", {"bf": "8", "x264-params": "b-pyramid=none"}, STEADY, 0.7),
    "open groups of pictures": (".mp4", "libx264", {"x264-params": "open-gop=1:keyint=30"}, STEADY, 0.75),
    "interlaced": (".mp4", "libx264", {"flags": "+ildct+ilme"}, STEADY, 0.8),
    "unsteady": (".mp4", "libx264", {"bf": "3"}, UNSTEADY, 0.95),
    "mkv": (".mkv", "libx264", {"bf": "3"}, STEADY, 0.7),
    "broadcast": (".ts", "libx264", {"bf": "3"}, STEADY, 0.7),
    "times unknown": (".avi", "libx264", {"bf": "3"}, STEADY, 1.0),
    "HEVC": (".mp4", "libx265", X265, STEADY, 0.6),
    "MPEG-2": (".mpg", "mpeg2video", {"bf": "2"}, STEADY, 0.8),
    "MPEG-4": (".avi", "mpeg4", {"bf": "2"}, STEADY, 0.6),
    "every frame referred to": (".mp4", "libx264", {"bf": "0"}, STEADY, 1.0),
    "VP9": (".webm", "libvpx-vp9", {"b": "200k"}, STEADY, 1.0),
}


def own_picture(seconds: float) -> np.ndarray:
    """Returns a picture that no other moment has."""
    coarse = np.random.default_rng(round(1000 * seconds)).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)


def film(path: Path, name: str) -> Path:
    suffix, codec, options, times, _ = FILMS[name]
    return write_film(
        path.with_suffix(suffix), times=times, codec=codec, options=options, paint=own_picture, tracks=()
    )


def read(path: Path, *rates: float) -> list[tuple[Any, ...]]:
    """Reads a film both ways, to its end."""
    reader = VideoReader(path, *rates)
    frames = [(frame.timestamp, frame.mask_timestamps, frame.picture.tobytes()) for frame in reader]
    media = read_media(path, frames_per_second=rates[0], audio=False)
    return [*frames, (reader.origin, reader.end), (media.timestamps.tolist(), media.frames.tobytes(), media.notes)]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The moments of all frames that are decoded, in order."""
    moments, read_clock = [], VideoClock.read
    monkeypatch.setattr(VideoClock, "read", lambda *given: moments.append(read_clock(*given)) or moments[-1])
    return moments


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[Any, ...]]]:
    """Reads a film like [`read`], but decodes every frame."""

    def read_whole(path: Path, *rates: float) -> list[tuple[Any, ...]]:
        with monkeypatch.context() as patch:
            patch.setattr(FrameSkipper, "skips", lambda *_: False)
            return read(path, *rates)

    return read_whole


@pytest.mark.parametrize("name", FILMS)
def test_what_is_skipped_is_not_missed(tmp_path: Path, name: str, decoded: list[float], whole: Callable) -> None:
    path = film(tmp_path / "film", name)
    for rates in ((1.0,), (0.3,), (2.5,), (1.0, 4.0)):
        assert read(path, *rates) == whole(path, *rates)
    decoded.clear()
    list(VideoReader(path))
    assert len(decoded) <= FILMS[name][-1] * len(FILMS[name][3])


def test_every_frame_is_decoded_where_every_frame_is_wanted(tmp_path: Path, decoded: list[float]) -> None:
    path = film(tmp_path / "film", "mp4")
    assert len(list(VideoReader(path, 1.0, "video"))) == SECONDS
    assert decoded == pytest.approx(STEADY)


def test_every_frame_is_decoded_where_frames_are_counted(tmp_path: Path, decoded: list[float]) -> None:
    path = write_film(tmp_path / "clip.mp4", times=every(seconds=5), paint=own_picture)
    read_media(path)
    assert decoded == pytest.approx(every(seconds=5))


@pytest.mark.parametrize("start", [0.0, 5.0, 13.9, 2000.0])
def test_a_splice_is_read_frame_by_frame(tmp_path: Path, start: float, decoded: list[float], whole: Callable) -> None:
    first = film(tmp_path / "first", "MPEG-2")
    times = every(seconds=SECONDS, start=start)
    second = write_film(
        tmp_path / "second.mpg", times=times, codec="mpeg2video", options={"bf": "2"}, paint=own_picture, tracks=()
    )
    spliced = tmp_path / "spliced.mpg"
    spliced.write_bytes(first.read_bytes() + second.read_bytes())
    assert read(spliced, 1.0) == whole(spliced, 1.0)
    decoded.clear()
    list(VideoReader(spliced))
    assert len([moment for moment in decoded if moment < SECONDS]) < 0.8 * SECONDS * 10
    assert len([moment for moment in decoded if moment > SECONDS]) > 0.9 * SECONDS * 10


@pytest.mark.parametrize("milliseconds", [11_100, 11_200, 11_300])
def test_a_frame_stays_where_the_next_one_is_cut_off(tmp_path: Path, milliseconds: int, whole: Callable) -> None:
    """An editor may write down that only a part is shown: the rest is decoded and thrown away."""
    path = patch_box(film(tmp_path / "film", "mp4"), b"elst", 8, big_endian(milliseconds))
    assert read(path, 1.0) == whole(path, 1.0)
    reader = VideoReader(path)
    assert len(list(reader)) == 11
    assert reader.end == pytest.approx(milliseconds / 1000)


def test_after_damage_every_frame_is_decoded(tmp_path: Path, decoded: list[float], whole: Callable) -> None:
    path = overwrite(film(tmp_path / "film", "broadcast"), 0.45, 0.5)
    frames, expected = read(path, 1.0), whole(path, 1.0)
    assert [frame[0] for frame in frames[:SECONDS]] == [frame[0] for frame in expected[:SECONDS]]
    assert frames[:6] == expected[:6]
    assert frames[9:SECONDS] == expected[9:SECONDS]
    decoded.clear()
    list(VideoReader(path))
    assert len([moment for moment in decoded if moment < 6]) < 0.8 * 60
    assert len([moment for moment in decoded if moment > 8]) == pytest.approx(60, abs=1)


@pytest.mark.parametrize(
    ("rate", "start", "end", "looks"),
    [
        (1.0, 0.90, 0.94, True),
        (1.0, 0.94, 0.98, False),
        (1.0, 0.9375, 0.98, True),
        (1.0, 0.94, 1.93, False),
        (1.0, 0.94, 1.94, True),
        (4.0, 0.24, 0.48, False),
        (4.0, 0.24, 0.50, True),
    ],
)
def test_a_sampler_tells_when_it_looks(rate: float, start: float, end: float, looks: bool) -> None:
    assert FrameSampler(rate, 25.0).looks_between(start, end) is looks
    assert FrameSampler(1.0, 25.0, counts=True).looks_between(start, end)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_pictures_stand_as_a_player_shows_them(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    # Four grey quarters, so that every turn and mirror image looks different.
    quarters = np.kron(np.array([[20, 90], [160, 230]], np.uint8), np.ones((24, 32), np.uint8))
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(degrees, hflip=mirrored)
        frame = av.VideoFrame.from_ndarray(np.repeat(quarters[:, :, None], 3, axis=2), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode()])

    expected = {0: [[20, 90], [160, 230]], 90: [[90, 230], [20, 160]], 180: [[230, 160], [90, 20]]}
    expected[-90] = [[160, 20], [230, 90]]
    shown = np.array(expected[degrees])
    if mirrored:
        shown = shown[:, ::-1]
    frame = read_media(path, audio=False).frames[0]
    height, width = (48, 64) if degrees in (0, 180) else (64, 48)
    assert frame.shape == (height, width, 3)
    centres = frame[height // 4 :: height // 2, width // 4 :: width // 2].mean(axis=2)
    np.testing.assert_allclose(centres, shown, atol=4)
    np.testing.assert_array_equal(next(iterate_frames(path))[1], frame)


@pytest.mark.parametrize(
    ("codec", "pixel_format"),
    [("libx264", "yuv444p"), ("ffv1", "yuv420p10le"), ("ffv1", "gray"), ("ffv1", "bgra"), ("ffv1", "gray16le")],
)
def test_every_pixel_format_becomes_rgb(tmp_path: Path, codec: str, pixel_format: str) -> None:
    path = tmp_path / "deep.mkv"
    ramp = np.repeat(np.linspace(16, 235, 51).astype(np.uint8)[None, :, None], 33, axis=0).repeat(3, axis=2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"crf": "1"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = 51, 33, pixel_format
        # By one thread: left to the encoder, the conversion differs from run to run on a busy machine.
        frame = av.VideoFrame.from_ndarray(ramp, format="rgb24").reformat(format=pixel_format, threads=1)
        container.mux([*stream.encode(frame), *stream.encode()])
    frame = read_media(path, audio=False).frames[0]
    assert frame.shape == (33, 51, 3)
    np.testing.assert_allclose(frame.astype(int), ramp, atol=6)


@pytest.mark.parametrize(
    ("width", "height", "aspect", "shown"),
    [
        (720, 576, Fraction(16, 15), (768, 576)),
        (720, 480, Fraction(8, 9), (720, 540)),
        (720, 480, Fraction(10, 11), (720, 528)),
        (1440, 1080, Fraction(4, 3), (1920, 1080)),
        (51, 37, Fraction(1), (51, 37)),
    ],
)
def test_square_pixels_make_nothing_smaller(width: int, height: int, aspect: Fraction, shown: tuple[int, int]) -> None:
    assert shown_size(width, height, aspect) == shown


@pytest.mark.parametrize("orientation, turns", [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_photographs_stand_upright(orientation: int, turns: int) -> None:
    quarters = np.kron(np.array([[20, 90], [160, 230]], np.uint8), np.ones((24, 32), np.uint8))
    image = Image.fromarray(quarters).convert("RGB")
    exif = image.getexif()
    exif[0x0112], exif[0x010E] = orientation, "a telephone"
    file = io.BytesIO()
    image.save(file, "jpeg", exif=exif, quality=100)
    frame = read_media(file, audio=False).frames[0]
    expected = np.rot90(quarters, turns)
    assert frame.shape[:2] == expected.shape
    inside = np.abs(frame.mean(axis=2) - expected)
    assert np.median(inside) <= 3
    assert (inside < 12).mean() > 0.95


def film_of_media_picture(
    path: Path, sizes: list[tuple[int, int]]
) -> tuple[list[av.VideoFrame], av.video.stream.VideoStream]:
    """Opens a film_of_media_picture of one frame, and makes grey frames of the sizes (width, height)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = *sizes[0], "gray"
        container.mux([*stream.encode(av.VideoFrame(*sizes[0], "gray")), *stream.encode()])
    frames = []
    for index, (width, height) in enumerate(sizes):
        grey = np.full((height, width), 50 * (index + 1), np.uint8)
        frames.append(av.VideoFrame.from_ndarray(grey, format="gray"))
    return frames, av.open(str(path)).streams.video[0]


def test_the_first_frame_gives_the_size_of_all(tmp_path: Path) -> None:
    frames, video = film_of_media_picture(tmp_path / "film_of_media_picture.mkv", [(64, 48), (32, 24), (32, 24)])
    notes = MediaNotes("a film_of_media_picture")
    maker = PictureMaker(video, notes)
    pictures = [maker.make(frame) for frame in frames]
    assert [picture.shape for picture in pictures] == [(48, 64, 3)] * 3
    assert [int(picture.mean()) for picture in pictures] == [50, 100, 150]
    assert notes.texts == ["its picture is 64x48 at first and 32x24 later; it keeps the first size"]


def test_the_same_frame_twice_is_converted_once(tmp_path: Path) -> None:
    frames, video = film_of_media_picture(tmp_path / "film_of_media_picture.mkv", [(64, 48), (64, 48)])
    maker = PictureMaker(video, MediaNotes("a film_of_media_picture"))
    first = maker.make(frames[0])
    assert maker.make(frames[0]) is first
    assert maker.make(frames[1]) is not first


def test_a_frame_that_grows_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    frames, video = film_of_media_picture(tmp_path / "film_of_media_picture.mkv", [(64, 48), (9000, 9000)])
    with pytest.raises(MediaError, match=r"a film_of_media_picture: its picture is 9000x9000, 81 million pixels"):
        PictureMaker(video, MediaNotes("a film_of_media_picture")).make(frames[1])
