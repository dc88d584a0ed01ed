"""Opening: every way to name a video, and the errors of bad ones."""

import http.server
import io
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from modeling_pcmanet import media_source_pcmanet
from modeling_pcmanet.media_pcmanet import MediaError, iterate_frames, read_audio, read_media, write_video


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
    monkeypatch.setattr(media_source_pcmanet, "NETWORK_TIMEOUT_SECONDS", 0.3)
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
