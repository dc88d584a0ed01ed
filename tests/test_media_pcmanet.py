"""Reading of media: notes, opening, frames and timestamps, audio, damaged files, and both streams in one pass."""

import errno
import functools
import gc
import http.server
import io
import logging
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import accumulate, count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from command_runs import piped_input
from odd_media import (
    HEIGHT,
    WIDTH,
    Track,
    big_endian,
    every,
    onset,
    overwrite,
    overwrite_packets,
    patch_box,
    write_odd_video,
)
from odd_videos import noisy
from PIL import Image
from torchcodec_decoders import video_decoder

from modeling_pcmanet import media_pcmanet
from modeling_pcmanet.media_pcmanet import (
    FrameConverter,
    FrameSampler,
    FrameSkipper,
    MediaError,
    MediaNotes,
    MediaReader,
    PacketQueues,
    StreamedFrame,
    VideoClock,
    iterate_frames,
    join_timestamps,
    media_source,
    read_audio,
    read_media,
    shown_size,
    stream_array,
    stream_decoder,
)
from modeling_pcmanet.media_writing_pcmanet import write_audio, write_video


def test_a_note_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="modeling_pcmanet")
    notes = MediaNotes("video.mp4")
    notes.add("it is torn")
    notes.add("it is old", logging.INFO)
    notes.add("it is torn")
    assert notes.texts == ["it is torn", "it is old"]
    assert caplog.record_tuples == [
        ("modeling_pcmanet.media_pcmanet", logging.WARNING, "video.mp4: it is torn"),
        ("modeling_pcmanet.media_pcmanet", logging.INFO, "video.mp4: it is old"),
    ]
    assert f"{notes} is a video" == "video.mp4 is a video"


def test_counts_are_logged_at_the_end() -> None:
    notes = MediaNotes("video.mp4")
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
    """A web server for the clip; /forward redirects to a file of the server's machine."""

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
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
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


def test_the_error_for_a_missing_file_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No such media file: .*nowhere\.mp4.*working directory"):
        read_media(tmp_path / "nowhere.mp4")
    with pytest.raises(FileNotFoundError):
        read_media("ftp://example.invalid/clip.mp4")


def test_a_path_a_url_and_bytes_of_every_kind(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Issue 16, point 15.
    class PathLike:
        def __fspath__(self) -> str:
            return str(clip)

    monkeypatch.setenv("HOME", str(clip.parent))
    data, expected = clip.read_bytes(), read_audio(clip)[0]
    at_home = f"~/{clip.name}"
    buffers = (bytearray(data), memoryview(data))
    for source in (PathLike(), at_home, Path(at_home), clip.as_uri(), f"file://localhost{clip}", *buffers):
        np.testing.assert_array_equal(read_audio(source)[0], expected)
    assert media_source("file:///a%20b.mp4") == "/a b.mp4"
    with pytest.raises(MediaError, match="names the machine 'elsewhere'. Pass a path on this machine"):
        read_audio("file://elsewhere/clip.mp4")


def test_a_column_of_a_dataset_is_a_source(clip: Path) -> None:
    expected = read_audio(clip)[0]
    for source in ({"path": str(clip), "bytes": None}, {"path": "clip.mp4", "bytes": clip.read_bytes()}):
        np.testing.assert_array_equal(read_audio(source)[0], expected)
        np.testing.assert_array_equal(read_audio(SimpleNamespace(_hf_encoded=source))[0], expected)


@pytest.mark.parametrize("rates", [(1.0, None), (3.0, None), ("video", None), (1.0, 4.0), (1.0, "video")])
def test_a_decoder_gives_the_frames_of_its_file(clip: Path, rates: tuple) -> None:
    with MediaReader(clip, audio=False) as reader:
        expected = list(reader.frames(*rates))
    given = list(stream_decoder(video_decoder(clip, keeps_file=False), *rates))
    for frame, of_file in zip(given, expected, strict=True):
        assert frame[0] == pytest.approx(of_file[0], abs=1e-6)
        assert frame[2] == pytest.approx(of_file[2], abs=1e-6)
        np.testing.assert_allclose(frame[1], of_file[1].astype(float), atol=2)  # FFmpeg rounds colors in its own way


def test_a_file_of_the_hub_is_read_through_its_file_system(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr("fsspec.open", lambda address, mode: opened.append(address) or clip.open(mode))
    np.testing.assert_array_equal(read_audio("hf://datasets/owner/name/clip.mp4")[0], read_audio(clip)[0])
    assert opened == ["hf://datasets/owner/name/clip.mp4"]


def test_standard_input_is_read_from_a_pipe(clip: Path) -> None:
    with piped_input(clip):
        media = read_media("/dev/stdin")
    assert len(media.frames) == 1
    np.testing.assert_array_equal(media.waveform, read_media(clip).waveform)


@pytest.mark.parametrize("readable", [0, 0.5])
def test_a_disk_that_fails_is_an_error_of_the_file(
    clip: Path, readable: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not end a run over many videos, as an error of the system does."""
    data = clip.read_bytes()

    class FailingDisk(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() >= readable * len(data):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)

    monkeypatch.setattr(media_pcmanet, "_open_path", lambda _: FailingDisk(data))
    monkeypatch.setattr(media_pcmanet.av, "open", partial(av.open, buffer_size=512))
    with pytest.raises(MediaError, match=r"clip\.mp4 cannot be read: Input/output error\. Check the disk"):
        read_media(clip)


def test_errors_of_the_reader_s_user_stay_as_they_are(clip: Path) -> None:
    with pytest.raises(OSError, match="disk full"), MediaReader(clip) as reader:
        for _ in reader.frames("video"):
            raise OSError(errno.ENOSPC, "disk full")


class FullDisk(io.RawIOBase):
    """A file on a disk without space."""

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, *_: int) -> int:
        return 0

    def write(self, _: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("size", [100, None])  # smaller than the buffer of a file, and larger
def test_a_pipe_that_fills_the_disk_names_the_folder_of_temporary_files(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    data = clip.read_bytes()[:size]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: io.BufferedRandom(FullDisk()))
    expected = re.escape(f"copied to a temporary file in {tmp_path}: No space left on device. Write it to a file")
    with pytest.raises(MediaError, match=expected):
        read_media(Pipe(data))
    with pytest.raises(OSError, match="No space left"):  # of a caller that chose the place of the file
        media_pcmanet.copy_pipe(Pipe(data), FullDisk())


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="is a directory. Pass the path of one media file"):
        read_media(tmp_path)


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(MediaError, match="path of the media is empty"):
        read_media("")


@pytest.mark.parametrize("wrap", [bytes, io.BytesIO, Pipe])
def test_empty_data_are_refused(tmp_path: Path, wrap: type) -> None:
    with pytest.raises(MediaError, match="is empty"):
        read_media(wrap(b""))
    (tmp_path / "zero.mp4").touch()
    with pytest.raises(MediaError, match=r"zero\.mp4 is empty"):
        read_media(tmp_path / "zero.mp4")


@pytest.mark.parametrize(
    "data", [b"Dear diary, today nothing happened.\n" * 100, b"\0" * 4096, bytes(range(256)) * 64]
)
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "diary.mp4"
    path.write_bytes(data)
    for read in (read_media, read_audio, lambda source: next(iterate_frames(source))):
        with pytest.raises(MediaError, match=r"diary\.mp4"):
            read(path)


@pytest.mark.parametrize("source", [5, None, io.StringIO("text"), ["a.mp4"], np.zeros(3)])
def test_the_error_for_other_types_lists_what_is_accepted(source: object) -> None:
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
def test_a_url_without_a_video_is_refused(address: str, page: str, reason: str) -> None:
    with pytest.raises(MediaError, match=f"{page}.*{reason}"):
        read_media(f"{address}/{page}")


@pytest.fixture(scope="module")
def late_index(clip: Path) -> Path:
    """A video that a server without byte ranges, as `python -m http.server`, cannot send in the order of its times."""
    path = write_odd_video(clip.with_name("late index ü.mp4"), paint=noisy)
    assert path.read_bytes().index(b"moov") > 2**16
    return path


def test_an_index_at_the_end_is_read_through_a_temporary_file(
    late_index: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = []
    create = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: copies.append(create()) or copies[-1])
    expected, media = read_media(late_index), read_media(f"{address}/{late_index.name}")
    np.testing.assert_array_equal(media.frames, expected.frames)
    np.testing.assert_array_equal(media.waveform, expected.waveform)
    assert (media.name, media.notes) == (f"{address}/{late_index.name}", ())
    frames = iterate_frames(f"{address}/{late_index.name}")
    assert next(frames)[0] == 0
    assert [copy.closed for copy in copies] == [True, False]
    frames.close()
    assert copies[1].closed

    monkeypatch.setattr(media_pcmanet, "LARGEST_PIPED_BYTES", 2**16)
    with pytest.raises(MediaError, match=re.escape(f"{address}/{late_index.name} gave more than")):
        read_media(f"{address}/{late_index.name}")
    assert copies[2].closed


def test_an_index_at_the_end_of_an_incomplete_download_is_an_error(late_index: Path) -> None:
    data, requests = late_index.read_bytes(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.headers["User-Agent"])
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // len(requests)])

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            with pytest.raises(MediaError, match=r"clip\.mp4 cannot be read as audio or video: Input/output error"):
                read_media(f"http://127.0.0.1:{server.server_port}/clip.mp4")
        finally:
            server.shutdown()
    assert [name.split("/")[0] for name in requests] == ["Lavf", "Python-urllib"]


def test_a_url_without_a_server_is_refused() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(MediaError, match="Connection refused"):
        read_media(f"http://127.0.0.1:{port}/clip.mp4")


def test_a_url_that_never_responds_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_pcmanet, "NETWORK_TIMEOUT_SECONDS", 0.3)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/clip.mp4"
        with pytest.raises(MediaError, match=r"did not respond for 0\.3 s. Download it first"):
            read_media(address)


def test_tags_in_another_encoding_are_ignored(clip: Path) -> None:
    data = clip.read_bytes()
    assert data.count(b"VideoHandler") == 1
    assert len(read_media(data.replace(b"VideoHandler", "VidéoHandler".encode("latin-1"))).frames) == 1


def test_cover_art_is_not_a_video_stream(tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("libmp3lame", rate=48000, layout="mono")
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="flt", layout="mono")
        silence.sample_rate = 48000
        image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux([*cover.encode(image), *cover.encode(), *audio.encode(silence), *audio.encode()])
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(MediaError, match=r"song\.mp3 has no video stream"):
        read_media(path)
    assert read_audio(path)[0].shape[1] >= 48000


SECONDS = 14
STEADY = every(seconds=SECONDS)
UNSTEADY = list(accumulate([0.0, *np.random.default_rng(0).choice([0.02, 0.04, 0.1, 0.1, 0.5, 2.5], 60)]))
X265 = {"x265-params": "bframes=4:log-level=none"}

# Suffix, encoder, its options, times of the frames, and the largest fraction of them that may be decoded.
VIDEOS = {
    "mp4": (".mp4", "libx264", {"bf": "3"}, STEADY, 0.7),
    "many B-frames": (".mp4", "libx264", {"bf": "8", "x264-params": "b-pyramid=none"}, STEADY, 0.7),
    "open groups of frames": (".mp4", "libx264", {"x264-params": "open-gop=1:keyint=30"}, STEADY, 0.75),
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
    """Return a frame that is unique to its time."""
    coarse = np.random.default_rng(round(1000 * seconds)).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)


def write_sample(path: Path, name: str) -> Path:
    path = path.with_suffix(VIDEOS[name][0])
    path.write_bytes(encode_sample(name))
    return path


@functools.cache
def encode_sample(name: str) -> bytes:
    """Encode a video once for all tests."""
    suffix, codec, options, times, _ = VIDEOS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"video{suffix}"
        write_odd_video(path, times=times, codec=codec, options=options, paint=own_picture, tracks=())
        return path.read_bytes()


def read_frames(path: Path, *rates: float | str) -> list[StreamedFrame]:
    """Read the frames of a video."""
    with MediaReader(path, audio=False) as reader:
        return list(reader.frames(*rates))


def read(path: Path, *rates: float) -> list[tuple[Any, ...]]:
    """Read a video both ways, to its end."""
    with MediaReader(path, audio=False) as reader:
        frames = [(timestamp, masks, frame.tobytes()) for timestamp, frame, masks in reader.frames(*rates)]
    media = read_media(path, frames_per_second=rates[0], audio=False)
    return [*frames, (reader.origin, reader.end), (media.timestamps.tolist(), media.frames.tobytes(), media.notes)]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The timestamps of all frames that are decoded, in order."""
    timestamps, read_clock = [], VideoClock.read
    monkeypatch.setattr(VideoClock, "read", lambda *given: timestamps.append(read_clock(*given)) or timestamps[-1])
    return timestamps


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[Any, ...]]]:
    """Read a video like [`read`], but decodes every frame."""

    def read_complete(path: Path, *rates: float) -> list[tuple[Any, ...]]:
        with monkeypatch.context() as patch:
            patch.setattr(FrameSkipper, "skips", lambda *_: False)
            return read(path, *rates)

    return read_complete


@pytest.mark.parametrize("name", VIDEOS)
def test_skipped_frames_change_no_result(tmp_path: Path, name: str, decoded: list[float], complete: Callable) -> None:
    path = write_sample(tmp_path / "video", name)
    for rates in ((1.0,), (0.3,), (2.5,), (1.0, 4.0)):
        assert read(path, *rates) == complete(path, *rates)
    decoded.clear()
    read_frames(path)
    assert len(decoded) <= VIDEOS[name][-1] * len(VIDEOS[name][3])


def test_every_frame_is_decoded_where_every_frame_is_wanted(tmp_path: Path, decoded: list[float]) -> None:
    path = write_sample(tmp_path / "video", "mp4")
    assert len(read_frames(path, 1.0, "video")) == SECONDS
    assert decoded == pytest.approx(STEADY)


def test_every_frame_is_decoded_where_frames_are_counted(tmp_path: Path, decoded: list[float]) -> None:
    path = write_odd_video(tmp_path / "clip.mp4", times=every(seconds=5), paint=own_picture)
    read_media(path)
    assert decoded == pytest.approx(every(seconds=5))


@pytest.mark.parametrize("start", [0.0, 5.0, 13.9, 2000.0])
def test_a_splice_is_read_frame_by_frame(
    tmp_path: Path, start: float, decoded: list[float], complete: Callable
) -> None:
    first = write_sample(tmp_path / "first", "MPEG-2")
    times = every(seconds=SECONDS, start=start)
    second = write_odd_video(
        tmp_path / "second.mpg", times=times, codec="mpeg2video", options={"bf": "2"}, paint=own_picture, tracks=()
    )
    spliced = tmp_path / "spliced.mpg"
    spliced.write_bytes(first.read_bytes() + second.read_bytes())
    assert read(spliced, 1.0) == complete(spliced, 1.0)
    decoded.clear()
    read_frames(spliced)
    assert len([timestamp for timestamp in decoded if timestamp < SECONDS]) < 0.8 * SECONDS * 10
    assert len([timestamp for timestamp in decoded if timestamp > SECONDS]) > 0.9 * SECONDS * 10


@pytest.mark.parametrize("milliseconds", [11_100, 11_200, 11_300])
def test_a_frame_stays_where_the_next_one_is_cut_off(tmp_path: Path, milliseconds: int, complete: Callable) -> None:
    """An editor may write down that only a part is shown: the rest is decoded and thrown away."""
    path = patch_box(write_sample(tmp_path / "video", "mp4"), b"elst", 8, big_endian(milliseconds))
    assert read(path, 1.0) == complete(path, 1.0)
    with MediaReader(path, audio=False) as reader:
        assert len(list(reader.frames())) == 11
    assert reader.end == pytest.approx(milliseconds / 1000)


def test_after_damage_every_frame_is_decoded(tmp_path: Path, decoded: list[float], complete: Callable) -> None:
    path = overwrite(write_sample(tmp_path / "video", "broadcast"), 0.45, 0.5)
    frames, expected = read(path, 1.0), complete(path, 1.0)
    assert [frame[0] for frame in frames[:SECONDS]] == [frame[0] for frame in expected[:SECONDS]]
    assert frames[:6] == expected[:6]
    assert frames[9:SECONDS] == expected[9:SECONDS]
    decoded.clear()
    read_frames(path)
    assert len([timestamp for timestamp in decoded if timestamp < 6]) < 0.8 * 60
    assert len([timestamp for timestamp in decoded if timestamp > 8]) == pytest.approx(60, abs=1)


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
    assert FrameSampler(rate, 25.0).samples_between(start, end) is looks
    assert FrameSampler(1.0, 25.0, counts=True).samples_between(start, end)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_frames_are_oriented_as_a_player_shows_them(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    # Four gray quarters, so that every rotation and mirror image is different.
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
    centers = frame[height // 4 :: height // 2, width // 4 :: width // 2].mean(axis=2)
    np.testing.assert_allclose(centers, shown, atol=4)
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
def test_photographs_are_upright(orientation: int, turns: int) -> None:
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


def open_frames_of_sizes(
    path: Path, sizes: list[tuple[int, int]]
) -> tuple[list[av.VideoFrame], av.video.stream.VideoStream]:
    """Open a video of one frame, and make gray frames of the sizes (width, height)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = *sizes[0], "gray"
        container.mux([*stream.encode(av.VideoFrame(*sizes[0], "gray")), *stream.encode()])
    frames = []
    for index, (width, height) in enumerate(sizes):
        gray = np.full((height, width), 50 * (index + 1), np.uint8)
        frames.append(av.VideoFrame.from_ndarray(gray, format="gray"))
    return frames, av.open(str(path)).streams.video[0]


def test_the_first_frame_gives_the_size_of_all(tmp_path: Path) -> None:
    frames, video = open_frames_of_sizes(tmp_path / "video.mkv", [(64, 48), (32, 24), (32, 24)])
    notes = MediaNotes("video.mkv")
    converter = FrameConverter(video, notes)
    converted_frames = [converter.convert(frame) for frame in frames]
    assert [frame.shape for frame in converted_frames] == [(48, 64, 3)] * 3
    assert [int(frame.mean()) for frame in converted_frames] == [50, 100, 150]
    assert notes.texts == ["its video is 64x48 at first and 32x24 later; it keeps the first size"]


def test_the_same_frame_twice_is_converted_once(tmp_path: Path) -> None:
    frames, video = open_frames_of_sizes(tmp_path / "video.mkv", [(64, 48), (64, 48)])
    converter = FrameConverter(video, MediaNotes("video.mkv"))
    first = converter.convert(frames[0])
    assert converter.convert(frames[0]) is first
    assert converter.convert(frames[1]) is not first


def test_a_frame_that_grows_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    frames, video = open_frames_of_sizes(tmp_path / "video.mkv", [(64, 48), (9000, 9000)])
    with pytest.raises(MediaError, match=r"video\.mkv: its frames are 9000x9000, 81 million pixels"):
        FrameConverter(video, MediaNotes("video.mkv")).convert(frames[1])


NTSC = 30000 / 1001
BARS = 9


def number_picture(number: int, height: int = 32, width: int = 72) -> np.ndarray:
    """A frame that carries a number as black and white bars."""
    bits = (number >> np.arange(BARS)) & 1
    return np.broadcast_to(np.repeat(bits * 255, width // BARS).astype(np.uint8)[None, :, None], (height, width, 3))


def number_pictures(count: int) -> Iterator[np.ndarray]:
    return (number_picture(number) for number in range(count))


def numbers(frames: np.ndarray) -> list[int]:
    """Read the numbers back from frames (frames, height, width, 3)."""
    bars = frames.reshape(len(frames), frames.shape[1], BARS, -1).mean(axis=(1, 3)) > 127
    return (bars << np.arange(BARS)).sum(axis=1).tolist()


def tone(seconds: float, rate: int = 48000, frequency: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_streams(
    path: Path,
    times: Sequence[float],
    chunks: Sequence[tuple[float, np.ndarray]] = (),
    *,
    codecs: tuple[str, str] = ("libx264", "pcm_f32le"),
    rate: int = 48000,
    layout: str = "mono",
    size: tuple[int, int] = (72, 32),
    declared: Fraction = Fraction(25),
) -> Path:
    """Write numbered frames at any times, and chunks of audio (samples,) or (channels, samples) at any times."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codecs[0], rate=declared, options={"bf": "0"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream(codecs[1], rate=rate, layout=layout) if chunks else None
        for number, seconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(number_picture(number, size[1], size[0]), format="rgb24")
            frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for seconds, samples in chunks:
            packed = np.atleast_2d(samples).T.reshape(1, -1).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
            frame.pts, frame.time_base, frame.sample_rate = round(seconds * rate), Fraction(1, rate), rate
            container.mux(audio.encode(frame))
        if audio:
            container.mux(audio.encode())
    return path


def spaced(period: float, count: int, start: float = 0.0) -> list[float]:
    return [start + period * index for index in range(count)]


# --- Which frames ---


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (25, [23, 48, 73, 98, 123]),
        (30, [28, 58, 88, 118, 148]),
        (NTSC, [28, 58, 88, 118, 148]),
        (24000 / 1001, [22, 46, 70, 94, 118]),
        (16, [15, 31, 47, 63, 79]),
        (12.5, [11, 23, 35, 47, 59]),
        (10, [9, 19, 29, 39, 49]),
    ],
)
def test_each_second_gives_the_frame_of_avsbench(tmp_path: Path, rate: float, expected: list[int]) -> None:
    write_video(tmp_path / "clip.mp4", number_pictures(math.ceil(5 * rate)), rate)
    media = read_media(tmp_path / "clip.mp4", audio=False)
    assert numbers(media.frames) == expected == [int((second + 15 / 16) * round(rate)) for second in range(5)]
    np.testing.assert_allclose(media.timestamps, np.array(expected) / rate, atol=1e-4)
    assert media.frames.dtype == np.uint8 and media.timestamps.dtype == np.float64
    assert media.waveform is None and media.sampling_rate is None


@pytest.mark.parametrize(("suffix", "codecs"), [(".mkv", ("libx264", "pcm_s16le")), (".webm", ("libvpx", "libopus"))])
def test_containers_that_round_their_timestamps_give_the_frame_of_avsbench(
    tmp_path: Path, suffix: str, codecs: tuple[str, str]
) -> None:
    chunks = [(0.0, tone(10.0))]
    declared = Fraction(30000, 1001)
    path = write_streams(tmp_path / f"clip{suffix}", spaced(1 / NTSC, 300), chunks, codecs=codecs, declared=declared)
    assert numbers(read_media(path).frames) == [int((second + 15 / 16) * 30) for second in range(10)]


def test_timestamps_take_precedence_over_a_wrong_rate(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "clip.mkv", spaced(1 / 50, 250), declared=Fraction(25))
    assert numbers(read_media(path, audio=False).frames) == [46, 96, 146, 196, 246]


def test_a_video_longer_than_a_clip_is_sampled_by_timestamps(tmp_path: Path) -> None:
    write_video(tmp_path / "long.mp4", number_pictures(390), NTSC)
    media = read_media(tmp_path / "long.mp4", audio=False)
    assert numbers(media.frames) == [int((second + 15 / 16) * NTSC) for second in range(13)]
    assert numbers(media.frames)[-1] == int(12.9375 * 30) - 1


def test_seconds_that_the_video_does_not_reach_take_its_last_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "short.mp4", number_pictures(141), 30)
    assert numbers(read_media(tmp_path / "short.mp4", audio=False).frames) == [28, 58, 88, 118, 140]


def test_video_and_not_audio_decides_the_number_of_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", number_pictures(125), 25, tone(5.6, 44100), 44100)
    media = read_media(tmp_path / "clip.mp4")
    assert len(media.frames) == 5
    assert media.waveform.shape[1] >= 5.6 * 44100


@pytest.mark.parametrize(
    ("frames_per_second", "expected"),
    [
        (2, [11, 24, 36, 49]),
        (25, list(range(50))),
        (50, [index // 2 for index in range(100)]),
        (0.5, [46]),
        (0.1, [49]),
    ],
)
def test_any_rate_takes_the_frame_on_screen(tmp_path: Path, frames_per_second: float, expected: list[int]) -> None:
    write_video(tmp_path / "clip.mp4", number_pictures(50), 25)
    media = read_media(tmp_path / "clip.mp4", frames_per_second=frames_per_second, audio=False)
    assert numbers(media.frames) == expected


def test_every_frame_of_an_ntsc_clip_is_taken_once_at_its_own_rate(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", number_pictures(150), NTSC)
    assert numbers(read_media(tmp_path / "clip.mp4", frames_per_second=NTSC, audio=False).frames) == list(range(150))


@pytest.mark.parametrize("rate", [0, -1.0, math.nan, math.inf])
def test_an_impossible_rate_is_refused(tmp_path: Path, rate: float) -> None:
    with pytest.raises(ValueError, match="positive number"):
        read_media(tmp_path / "any.mp4", frames_per_second=rate)


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    write_video(tmp_path / "one.mp4", [number_picture(5)], 25)
    media = read_media(tmp_path / "one.mp4", audio=False)
    assert numbers(media.frames) == [5]
    assert media.timestamps.tolist() == [0.0]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_variable_rate_is_sampled_by_timestamps(tmp_path: Path, suffix: str) -> None:
    # A burst, then a frame that stays on screen from 0.5 s to 3.6 s, then a burst.
    times = [*spaced(0.05, 11), *spaced(0.05, 8, start=3.6)]
    media = read_media(write_streams(tmp_path / f"screen{suffix}", times), audio=False)
    assert numbers(media.frames) == [10, 10, 10, 17]
    np.testing.assert_allclose(media.timestamps, [0.9375, 1.9375, 2.9375, 3.9375], atol=0.06)
    assert media.timestamps[:3].tolist() == [0.9375, 1.9375, 2.9375]


def test_frames_that_would_not_fit_in_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "clip.mp4", number_pictures(50), 25)
    monkeypatch.setattr(media_pcmanet, "LARGEST_FRAMES_BYTES", 2 * number_picture(0).size)
    assert len(read_media(tmp_path / "clip.mp4", audio=False).frames) == 2
    with pytest.raises(MediaError, match=r"clip\.mp4 gives more than 2 frames of 72x32.*frames_per_second"):
        read_media(tmp_path / "clip.mp4", frames_per_second=2, audio=False)


def test_iterate_frames_yields_every_frame_with_its_time(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", number_pictures(40), NTSC)
    timestamps, frames = zip(*iterate_frames(tmp_path / "clip.mp4"), strict=True)
    assert numbers(np.stack(frames)) == list(range(40))
    np.testing.assert_allclose(timestamps, np.arange(40) / NTSC, atol=1e-4)


# --- Position of the audio ---


@pytest.mark.parametrize(
    ("video_start", "audio_start", "offset"), [(0.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.25, 0.0, -0.25), (2.0, 2.0, 0.0)]
)
def test_audio_is_aligned_with_the_timestamps_of_the_video(
    tmp_path: Path, video_start: float, audio_start: float, offset: float
) -> None:
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, 48000).astype(np.float32)
    chunks = [(audio_start + 0.1 * index, piece) for index, piece in enumerate(np.split(audio, 10))]
    path = write_streams(tmp_path / "clip.mkv", spaced(0.04, 50, start=video_start), chunks)
    media = read_media(path)
    shift = round(offset * 48000)
    expected = np.concatenate([np.zeros(max(0, shift)), audio[max(0, -shift) :]]).astype(np.float32)
    np.testing.assert_array_equal(media.waveform[0, : len(expected)], expected)
    assert not media.waveform[0, len(expected) :].any()
    assert media.timestamps[0] == pytest.approx(0.92)


def test_a_hole_in_the_audio_becomes_silence(tmp_path: Path) -> None:
    chunks = [(0.0, tone(0.5)), (1.2, tone(0.5))]
    media = read_media(write_streams(tmp_path / "clip.mkv", spaced(0.04, 50), chunks))
    expected = np.concatenate([tone(0.5), np.zeros(round(0.7 * 48000)), tone(0.5)])
    np.testing.assert_array_equal(media.waveform[0], expected.astype(np.float32))


@pytest.mark.parametrize(("kept", "noted"), [(1, False), (10, True)])
def test_many_short_holes_are_noted_together(tmp_path: Path, kept: int, noted: bool) -> None:
    whole = write_odd_video(
        tmp_path / "whole.mkv", options={"bf": "0"}, tracks=[Track(sampling_rate=48000, seconds=4.0)]
    )
    path = tmp_path / "thin.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        numbers = count()
        for packet in source.demux():
            is_kept = packet.stream.type == "video" or next(numbers) % kept == 0
            if packet.dts is not None and is_kept:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    media = read_media(path)
    assert media.waveform.shape[1] == pytest.approx(4 * 48000, abs=48000)
    found = re.search(r"holes in its audio filled with silence: (\d+) \((.*) s\)", "".join(media.notes))
    assert bool(found) == noted
    if found:
        assert int(found[1]) >= 15
        assert 2.5 < float(found[2]) < 4


def test_audio_after_a_hole_that_reaches_past_the_video_is_left_out(tmp_path: Path) -> None:
    chunks = [(0.0, tone(0.5)), (400.0, tone(0.5))]
    media = read_media(write_streams(tmp_path / "clip.mkv", spaced(0.04, 50), chunks))
    assert media.waveform.shape == (1, 96000)
    np.testing.assert_array_equal(media.waveform[0, :24000], tone(0.5))
    assert not media.waveform[0, 24000:].any()


def test_rounded_timestamps_make_no_holes_in_the_audio(tmp_path: Path) -> None:
    audio = tone(2.0, 44100)
    chunks = [(start / 44100, audio[start : start + 1000]) for start in range(0, len(audio), 1000)]
    media = read_media(write_streams(tmp_path / "clip.mkv", spaced(0.04, 50), chunks, rate=44100))
    np.testing.assert_array_equal(media.waveform[0], audio)


def test_aac_starts_at_its_first_sample(tmp_path: Path) -> None:
    audio = np.concatenate([np.zeros(24000, np.float32), tone(1.5)])
    write_video(tmp_path / "clip.mp4", number_pictures(50), 25, audio, 48000)
    media = read_media(tmp_path / "clip.mp4")
    assert media.sampling_rate == 48000
    np.testing.assert_allclose(media.waveform[0, 30000:90000], audio[30000:90000], atol=0.005)


# --- Sound of every kind ---


@pytest.mark.parametrize(
    ("suffix", "codec", "tolerance"),
    [
        (".wav", "pcm_u8", 1 / 128),
        (".wav", "pcm_s16le", 1 / 32768),
        (".wav", "pcm_s24le", 1e-6),
        (".wav", "pcm_s32le", 1e-7),
        (".wav", "pcm_f32le", 0.0),
        (".wav", "pcm_f64le", 0.0),
        (".flac", "flac", 1 / 32768),
        (".mp3", "libmp3lame", 0.03),
        (".ogg", "libopus", 0.03),
    ],
)
def test_audio_files_give_floats_at_full_scale(tmp_path: Path, suffix: str, codec: str, tolerance: float) -> None:
    path = tmp_path / f"audio{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48000, layout="stereo")
        packed = np.stack([tone(1.0), -tone(1.0, frequency=880.0)]).T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(packed), format="flt", layout="stereo")
        frame.sample_rate = 48000
        container.mux([*stream.encode(frame), *stream.encode()])
    waveform, sampling_rate = read_audio(path)
    assert (sampling_rate, waveform.dtype, waveform.shape) == (48000, np.float32, (2, 48000))
    inside = slice(2000, 46000)
    np.testing.assert_allclose(waveform[0, inside], tone(1.0)[inside], atol=tolerance)
    np.testing.assert_allclose(waveform[1, inside], -tone(1.0, frequency=880.0)[inside], atol=tolerance)


def test_float_audio_beyond_full_scale_is_not_clipped(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "loud.mkv", spaced(0.04, 25), [(0.0, 6 * tone(1.0))])
    np.testing.assert_array_equal(read_audio(path)[0][0], 6 * tone(1.0))


@pytest.mark.parametrize(("channels", "layout"), [(1, "mono"), (2, "stereo"), (6, "5.1"), (8, "7.1"), (3, "3.0")])
@pytest.mark.parametrize("rate", [8000, 44100, 96000])
def test_every_channel_keeps_its_place(tmp_path: Path, channels: int, layout: str, rate: int) -> None:
    audio = np.arange(1, channels + 1)[:, None] * np.ones((channels, rate // 4)) / 16
    path = write_streams(tmp_path / "clip.mkv", spaced(0.04, 10), [(0.0, audio)], rate=rate, layout=layout)
    media = read_media(path)
    assert media.sampling_rate == rate
    np.testing.assert_array_equal(media.waveform, audio.astype(np.float32))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_samples_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    audio = tone(1.0)
    audio[[1234, 2000]] = bad
    path = write_streams(tmp_path / "broken.mkv", spaced(0.04, 25), [(0.0, audio)])
    with pytest.raises(MediaError, match=r"broken\.mkv: 2 samples .* NaN or infinite, the first is number 1234"):
        read_media(path)
    assert len(read_media(path, audio=False).frames) == 1


# --- What is missing, broken or changes under way ---


def test_the_error_for_a_video_without_audio_says_how_to_pass_it(tmp_path: Path) -> None:
    write_video(tmp_path / "silent.mp4", number_pictures(25), 25)
    with pytest.raises(MediaError, match=r"silent\.mp4 has no audio track\. .*`audio=`.*`sampling_rate=`"):
        read_media(tmp_path / "silent.mp4")
    with pytest.raises(MediaError, match="no audio track"):
        read_audio(tmp_path / "silent.mp4")


def test_an_audio_file_is_refused_as_video(tmp_path: Path) -> None:
    write_audio(tmp_path / "audio.wav", tone(1.0), 48000)
    for read in (read_media, lambda source: next(iterate_frames(source))):
        with pytest.raises(MediaError, match=r"audio\.wav has no video stream"):
            read(tmp_path / "audio.wav")


def test_an_audio_track_that_ends_before_the_video_starts_counts_as_missing(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "early.mkv", spaced(0.04, 25, start=1.0), [(0.0, tone(0.5))])
    with pytest.raises(MediaError, match=r"early\.mkv: its audio track has no samples\. .*`audio=`"):
        read_media(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_the_beginning_of_a_truncated_file_is_used(tmp_path: Path, suffix: str) -> None:
    complete = tmp_path / f"complete{suffix}"
    if suffix == ".mp4":
        write_video(complete, number_pictures(250), 25, tone(10.0), 48000)
    else:
        chunks = [(second, tone(1.0)) for second in range(10)]
        write_streams(complete, spaced(0.04, 250), chunks, codecs=("libx264", "aac"))
    data = complete.read_bytes()
    media = read_media(data[: len(data) * 6 // 10])
    assert 1 <= len(media.frames) < 10
    assert numbers(media.frames) == [int((second + 15 / 16) * 25) for second in range(len(media.frames))][:-1] + [
        numbers(media.frames)[-1]
    ]


def test_an_mp4_without_its_index_is_refused(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "cut.mp4", spaced(0.04, 50), codecs=("libx264", "aac"))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(MediaError, match=r"cut\.mp4 cannot be read .*complete media file"):
        read_media(path)


@pytest.mark.parametrize("threads", [1, 3, 16])
@pytest.mark.parametrize(("rate", "count", "from_end"), [(1, 22, (12,)), (25, 100, (2, 10, 15))])
def test_damage_near_the_end_costs_the_damaged_frames_only(
    tmp_path: Path, threads: int, rate: int, count: int, from_end: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = every(1 / rate, seconds=count / rate)
    path = write_odd_video(
        tmp_path / "video.mp4", times=times, paint=own_picture, options={"bf": "3"}, tracks=(), rate=rate
    )
    undamaged = [seconds for seconds, _ in iterate_frames(path)]
    overwrite_packets(path, *from_end)
    monkeypatch.setattr(media_pcmanet, "FRAME_THREADS", threads)
    seconds = [timestamp for timestamp, _ in iterate_frames(path)]
    assert len(seconds) == count - len(from_end)
    assert set(seconds) < set(undamaged)
    media = read_media(path, audio=False)
    assert len(media.frames) == round(count / rate)
    assert media.notes == (f"damaged or missing packets of data left out: {len(from_end)}",)


def test_an_undamaged_video_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PacketQueues, "restart", lambda *_: pytest.fail("decoded a second time"))
    for name in VIDEOS.keys() - {"MPEG-2"}:  # whose times run backwards
        assert read_frames(write_sample(tmp_path / "video", name))


@pytest.mark.parametrize("suffix", [".avi", ".asf"])
@pytest.mark.parametrize("rate", [1.0, 3.3, "video"])
def test_frames_without_times_of_presentation_are_in_order(tmp_path: Path, suffix: str, rate: float | str) -> None:
    options = {"bf": "3", "crf": "1"}
    times = every(seconds=8)
    first, second = (
        write_odd_video(tmp_path / f"video{each}", times=times, paint=own_picture, options=options)
        for each in (".mp4", suffix)
    )
    expected, found = read_frames(first, rate), read_frames(second, rate)
    assert [frame[0] for frame in found] == pytest.approx([frame[0] for frame in expected], abs=0.0011)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one[1].astype(int), other[1], atol=4)
    assert onset(*read_audio(second)) == pytest.approx(1.0, abs=0.07)
    media = read_media(second)
    assert onset(media.waveform, media.sampling_rate) == pytest.approx(1.0, abs=0.07)


def test_times_that_run_backwards_are_not_trusted(tmp_path: Path) -> None:
    options = {"bf": "3"}
    path = write_odd_video(tmp_path / "video.mp4", paint=own_picture, options=options, tracks=())
    expected = [frame for _, frame in iterate_frames(path)]
    # The edit list (elst) too: it names the first frame by its time of presentation.
    for box in (b"ctts", b"elst"):
        data = path.read_bytes()
        assert box in data
        path.write_bytes(data.replace(box, b"free"))
    timestamps, frames = zip(*iterate_frames(path), strict=True)
    np.testing.assert_array_equal(frames, expected)
    np.testing.assert_allclose(np.diff(timestamps[6:]), 0.1, atol=1e-6)
    assert timestamps[-1] == pytest.approx(3.9, abs=0.31)


def test_damage_in_the_middle_costs_the_middle_only(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", number_pictures(250), 25, tone(10.0), 48000)
    data = bytearray((tmp_path / "clip.mp4").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    media = read_media(bytes(data))
    assert len(media.frames) == 10
    assert numbers(media.frames)[0] == 23
    assert media.waveform.shape[1] == pytest.approx(480000, abs=2048)


def test_a_video_without_a_frame_is_refused(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "empty.mkv", spaced(0.04, 25), [(0.0, tone(1.0))], codecs=("mpeg4", "pcm_f32le"))
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for position, size in packets:
        data[position : position + size + 8] = bytes(size + 8)
    with pytest.raises(MediaError):
        read_media(bytes(data))


def test_a_broadcast_may_add_an_audio_track(tmp_path: Path) -> None:
    first = write_streams(tmp_path / "a.ts", spaced(0.04, 50))
    second = write_streams(tmp_path / "b.ts", spaced(0.04, 50, 2.0), [(2.0, tone(2.0))], codecs=("libx264", "aac"))
    media = read_media(first.read_bytes() + second.read_bytes(), audio=False)
    assert numbers(media.frames) == [23, 48, 23, 48]


def test_a_broadcast_may_change_its_size_and_its_channels(tmp_path: Path) -> None:
    codecs = ("libx264", "aac")
    first = write_streams(
        tmp_path / "a.ts", spaced(0.04, 50), [(0.0, np.stack([tone(2.0)] * 2))], codecs=codecs, layout="stereo"
    )
    second = write_streams(tmp_path / "b.ts", spaced(0.04, 50, 2.0), [(2.0, tone(2.0))], codecs=codecs, size=(144, 64))
    media = read_media(first.read_bytes() + second.read_bytes())
    assert numbers(media.frames) == [23, 48, 23, 48]
    assert media.frames.shape == (4, 32, 72, 3)
    assert media.waveform.shape[0] == 2
    assert media.waveform.shape[1] == pytest.approx(4 * 48000, abs=4096)


# --- Both streams in one pass ---

RATE = 16_000
FRAME = np.zeros((4, 6, 3), np.uint8)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    frames = np.broadcast_to(np.arange(50, dtype=np.uint8)[:, None, None, None] * 5, (50, 32, 48, 3))
    write_video(path, frames, 10, tone(5, RATE), RATE)
    return path


def test_a_reader_gives_what_read_media_collects(video: Path) -> None:
    media = read_media(video, frames_per_second=4)
    with MediaReader(video) as reader:
        assert reader.size == (32, 48)
        frames = list(reader.frames(4))
        pieces, rates = zip(*reader.audio(), strict=True)
    np.testing.assert_array_equal(np.stack([frame for _, frame, _ in frames]), media.frames)
    assert [timestamp for timestamp, _, _ in frames] == media.timestamps.tolist()
    assert reader.end == pytest.approx(5.0) == reader.duration
    assert reader.has_ended
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), media.waveform)
    assert set(rates) == {RATE}


def test_neither_stream_runs_ahead(tmp_path: Path) -> None:
    """Audio and frames of the same time are read in turn: few packets wait."""
    write_video(tmp_path / "clip.mp4", number_pictures(500), 25, tone(20, RATE), RATE)
    with MediaReader(tmp_path / "clip.mp4") as reader:
        seconds, waiting = 0.0, []
        for timestamp, _, _ in reader.frames(1.0):
            while seconds < timestamp:
                samples, rate = next(reader.audio())
                seconds += samples.shape[1] / rate
            waiting.append(max(len(queue) for queue in reader._packets._waiting.values()))
    assert max(waiting) <= 50


@pytest.mark.parametrize("kind", ["path", "bytes", "file object", "pipe"])
@pytest.mark.parametrize("audio_first", [True, False])
def test_a_badly_interleaved_file_is_read_through_a_second_handle(
    tmp_path: Path, kind: str, audio_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_odd_video(tmp_path / "video.mkv", tracks=[Track("pcm_s16le")], paint=noisy, audio_first=audio_first)
    expected = read_media(path)
    monkeypatch.setattr(media_pcmanet, "LARGEST_QUEUE_BYTES", 2**14)
    opened, open_container = [], av.open
    monkeypatch.setattr(
        av, "open", lambda *given, **options: opened.append(given) or open_container(*given, **options)
    )
    data = path.read_bytes()
    source = {"path": path, "bytes": data, "file object": io.BytesIO(data), "pipe": Pipe(data)}[kind]
    media = read_media(source)
    assert len(opened) == 2
    np.testing.assert_array_equal(media.frames, expected.frames)
    np.testing.assert_array_equal(media.waveform, expected.waveform)
    assert media.notes == expected.notes


def test_audio_after_a_hole_is_given_when_it_is_known_where_the_video_ends(tmp_path: Path) -> None:
    chunks = [(0.0, tone(1.0)), (4.0, tone(1.0))]
    with MediaReader(write_streams(tmp_path / "clip.mkv", spaced(0.04, 125), chunks)) as reader:
        frames = reader.frames(1.0)
        next(frames)
        assert [None if samples is None else samples.shape[1] for samples, _ in islice(reader.audio(), 2)] == [
            48000,
            None,
        ]
        next(frames), next(frames)
        silence, _ = next(reader.audio())
        assert not silence.any()
        list(frames)
        rest = np.concatenate([samples for samples, _ in reader.audio()], axis=1)
    assert 48000 + silence.shape[1] + rest.shape[1] == 5 * 48000
    np.testing.assert_array_equal(rest[0, -48000:], tone(1.0))


def test_packets_of_the_audio_can_be_copied_and_decoded_in_one_pass(video: Path) -> None:
    heard = []
    with MediaReader(video) as reader:
        reader.listener = lambda start, samples, rate: heard.append((start, samples, rate))
        list(reader.frames())
        packets = list(reader.audio_packets())
    assert packets[-1].size == 0
    waveform = np.concatenate([samples for _, samples, _ in heard], axis=1)
    assert [start for start, _, _ in heard] == list(
        accumulate([samples.shape[1] for _, samples, _ in heard], initial=0)
    )[:-1]
    np.testing.assert_array_equal(waveform, read_media(video).waveform)


def test_a_reader_of_which_not_all_frames_were_read_can_be_finished(video: Path) -> None:
    def read() -> None:
        with MediaReader(video) as reader:
            next(reader.frames())
            reader.finish()
        finished.set()

    finished = threading.Event()
    threading.Thread(target=read, daemon=True).start()  # it once never ended
    assert finished.wait(timeout=60)


def test_an_audio_file_begins_at_its_first_sample(tmp_path: Path) -> None:
    write_audio(tmp_path / "audio.wav", tone(2, RATE), RATE)
    with MediaReader(tmp_path / "audio.wav", video=False) as reader:
        waveform = np.concatenate([samples for samples, _ in reader.audio()], axis=1)
    np.testing.assert_array_equal(waveform, read_audio(tmp_path / "audio.wav")[0])


def test_a_file_without_the_stream_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    write_audio(tmp_path / "audio.wav", tone(1, RATE), RATE)
    with pytest.raises(MediaError, match=r"audio\.wav has no video"), MediaReader(tmp_path / "audio.wav"):
        pass
    write_video(tmp_path / "silent.mp4", np.zeros((5, 32, 48, 3), np.uint8), 10)
    with pytest.raises(MediaError, match=r"silent\.mp4 has no audio track"), MediaReader(tmp_path / "silent.mp4"):
        pass


def test_readers_that_are_left_open_end_quietly(video: Path) -> None:
    # As a file, because the package imports PyTorch, which takes longer than all other tests of this file.
    program = f"""
import sys
sys.path.insert(0, {str(Path(media_pcmanet.__file__).parent)!r})
from media_pcmanet import MediaReader, iterate_frames
path = sys.argv[1]
opened = [iterate_frames(path), MediaReader(path).__enter__().frames()]
for frames in opened:
    next(frames)
"""
    done = subprocess.run([sys.executable, "-c", program, video], capture_output=True, text=True, check=True)
    assert "Exception ignored" not in done.stderr and "Traceback" not in done.stderr


def test_decoders_are_freed_with_the_reader(video: Path) -> None:
    gc.disable()
    try:
        with MediaReader(video) as reader:
            next(reader.frames())
        released = weakref.ref(reader)
        del reader
        assert released() is None
    finally:
        gc.enable()


def test_the_last_frame_has_the_masks_after_it() -> None:
    events = [(0.1, None), (0.2, None), (0.2, FRAME), (0.3, None), (0.4, FRAME), (0.5, None), (0.6, None)]
    frames = list(join_timestamps(events))
    assert [(timestamp, masks) for timestamp, _, masks in frames] == [(0.2, (0.1, 0.2)), (0.4, (0.3, 0.5, 0.6))]


def test_frames_at_several_rates_are_those_of_each_rate(video: Path) -> None:
    rates = (1.0, 3.0, "video")
    with MediaReader(video) as reader:
        found = list(reader.frames_at(rates))
    for index, rate in enumerate(rates):
        with MediaReader(video) as reader:
            expected = list(reader.frames(rate))
        frames = [frame for number, frame in found if number == index]
        assert [frame[0::2] for frame in frames] == [frame[0::2] for frame in expected]
        assert all(np.array_equal(one[1], other[1]) for one, other in zip(frames, expected, strict=True))


def test_masks_of_frames_in_memory() -> None:
    frames = list(stream_array(np.stack([FRAME] * 2), np.array([0.9375, 1.9375]), 2.0, 2))
    assert [masks for _, _, masks in frames] == [(0.46875,), (0.96875, 1.46875, 1.96875)]


def test_a_file_that_was_opened_as_text_is_refused(video: Path) -> None:
    with video.open(encoding="latin-1") as file, pytest.raises(MediaError, match="opened with 'rb'"):
        MediaReader(file)
