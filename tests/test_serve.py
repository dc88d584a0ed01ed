"""The server of examples/serve.py, over real HTTP on the loopback interface."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from odd_media import Track, write_odd_video
from PIL import Image

from modeling_pcmanet.media_pcmanet import read_media
from modeling_pcmanet.media_writing_pcmanet import encode_wav, write_video
from pcmanet.checkpoints import load_segmenter
from pcmanet.cli.results import RecordedResults, decode_mask
from pcmanet.examples import serve
from pcmanet.examples.uploads import VideoInfo


ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
CLIP = EXAMPLES / "demo.mp4"
MODEL = str(EXAMPLES / "demo_model_semantic")
LIMITS = serve.ServerLimits(megabytes=1, seconds=12, pixels=640 * 480, frames=20, requests=2, upload_seconds=2)
SECONDS = 600  # the machine may be busy
FORM = b'--x\r\nContent-Disposition: form-data; name="video"; filename="a"\r\n\r\nxyz\r\n--x--\r\n'


class Server:
    """The application in a thread, on a free port."""

    def __init__(self, segmentation: serve.Segmentation, token: str | None = None, shutdown: int = 60) -> None:
        app = serve.create_app(segmentation, token)
        config = uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=shutdown)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        wait_until(lambda: self.server.started)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=SECONDS, trust_env=False)

    def post(self, path: str = "/segment", **arguments: Any) -> httpx.Response:
        return self.client.post(path, **arguments)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.client.close()


def wait_until(condition: Callable[[], object], interval: float = 0.01) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(interval)


@pytest.fixture(scope="module")
def segmenter():
    return load_segmenter(MODEL, "cpu")


@pytest.fixture(scope="module")
def segmentation(segmenter):
    return serve.Segmentation(segmenter, LIMITS, batch_size=2)


@pytest.fixture(scope="module")
def server(segmentation) -> Iterator[Server]:
    server = Server(segmentation)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def media():
    return read_media(CLIP)


@pytest.fixture(scope="module")
def clip() -> dict[str, Any]:
    return {"video": ("my clip.mp4", CLIP.read_bytes())}


def file_of(write: Callable[[Path], object], name: str, folder: Path) -> tuple[str, bytes]:
    """The name and the bytes of a file that a function writes."""
    write(folder / name)
    return name, (folder / name).read_bytes()


def silent_video(seconds: float, side: int = 64) -> Callable[[Path], object]:
    frames = (np.full((side, side, 3), 2 * number, np.uint8) for number in range(round(8 * seconds)))
    return lambda path: write_video(path, frames, 8)


def png(size: tuple[int, int], mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


# What it returns.


def test_a_video_gives_the_lines_of_the_command(server, segmenter, clip, tmp_path):
    answer = server.post(files=clip, params={"minimum_area": 0})
    assert answer.status_code == 200
    found = answer.json()
    expected = RecordedResults(tmp_path / "segments.jsonl")
    for result in segmenter.stream(str(CLIP)):
        expected.add(result, (256, 256))
    assert found["frames"] == list(expected.records())
    assert [frame["timestamp"] for frame in found["frames"]] == pytest.approx([0.92, 1.92, 2.92, 3.92, 4.92])
    assert (found["model"], found["video"], found["notes"]) == ("demo_model_semantic", "my clip.mp4", [])
    segment = found["frames"][0]["segments"][0]
    assert 0.5 < segment["score"] <= 1
    assert segment["label"] in segmenter.model.config.label2id
    assert 0.01 < np.asarray(decode_mask(segment["segmentation"])).mean() / 255 < 0.5


def test_parameters_are_those_of_the_command(server, clip):
    faster = server.post(files=clip, params={"frames_per_second": 2}).json()["frames"]
    assert len(faster) == 10
    nothing = server.post(files=clip, params={"threshold": 1}).json()["frames"]
    assert [frame["segments"] for frame in nothing] == [[]] * 5


def test_an_image_is_segmented_once_for_each_second_of_its_audio(server, segmenter, media):
    image, rate = media.frames[1], media.sampling_rate
    sound = "dog.wav", encode_wav(media.waveform[:, : 3 * rate], rate)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    answer = server.post(files={"image": ("photo.png", buffer.getvalue()), "audio": sound})
    assert answer.status_code == 200, answer.text
    clip = {"frames": np.stack([image] * 3), "audio": media.waveform[:, : 3 * rate], "sampling_rate": rate}
    expected = segmenter(clip, minimum_area=0.001)
    frames = answer.json()["frames"]
    assert [frame["timestamp"] for frame in frames] == [entry["timestamp"] for entry in expected]
    assert any(frame["segments"] for frame in frames)
    for frame, entry in zip(frames, expected, strict=True):
        assert [found["label"] for found in frame["segments"]] == [found["label"] for found in entry["segments"]]
        for found, segment in zip(frame["segments"], entry["segments"], strict=True):
            # 16 bits of the wav file
            assert found["score"] == pytest.approx(segment["score"], abs=0.01)
            difference = np.asarray(decode_mask(found["segmentation"])) != np.asarray(segment["mask"])
            assert difference.mean() < 0.01


def test_an_image_is_in_memory_once_however_long_its_audio_is(segmentation, monkeypatch):
    """Otherwise a photograph with a minute of audio fills the memory of the server."""
    clips = []
    monkeypatch.setattr(segmentation, "_stream", lambda _, clip, *__: clips.append(clip) or [])
    image = serve.UploadFile(io.BytesIO(png((30, 20))), filename="a.png")
    audio = serve.UploadFile(io.BytesIO(encode_wav(np.zeros((1, 10 * 8000), np.float32), 8000)), filename="a.wav")
    segmentation.segment_image(image, audio, serve.Settings(2.0, None, 0.0), threading.Event())
    (frames,) = (clip["frames"] for clip in clips)
    assert frames.shape == (20, 20, 30, 3)
    assert frames.strides[0] == 0


def test_a_silent_video_accepts_separate_audio(server, media, tmp_path):
    video = file_of(silent_video(3), "silent.mp4", tmp_path)
    audio = "sound.wav", encode_wav(media.waveform[:, : 3 * media.sampling_rate], media.sampling_rate)
    answer = server.post(files={"video": video, "audio": audio})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["frames"]) == 3


def test_a_separate_file_without_audio_is_refused_with_the_remedy(server, tmp_path):
    silent = file_of(silent_video(2), "silent.mp4", tmp_path)
    for files in ({"video": silent, "audio": silent}, {"image": ("a.png", png((64, 64))), "audio": silent}):
        answer = server.post(files=files)
        expected = "silent.mp4 has no audio track. Upload a file with an audio track as `audio`."
        assert (answer.status_code, answer.json()["error"]) == (422, expected)


def test_notes_tell_what_was_unusual(server, tmp_path):
    several = file_of(lambda path: write_odd_video(path, tracks=(Track(), Track())), "two.mkv", tmp_path)
    found = server.post(files={"video": several}).json()
    notes = read_media(tmp_path / "two.mkv").notes
    assert notes and found["notes"] == list(notes)


def test_health_and_model(server, segmenter):
    assert server.client.get("/health").json() == {"status": "ok"}
    assert server.client.head("/health").status_code == 200
    described = server.client.get("/model").json()
    assert described["model"] == "demo_model_semantic"
    labels = segmenter.model.config.id2label
    assert described["classes"] == [labels[index] for index in range(1, 13)]
    assert described["limits"]["megabytes"] == 1
    assert "/segment" in server.client.get("/openapi.json").json()["paths"]


# What it refuses.


@pytest.mark.parametrize(
    ("request_arguments", "status", "message"),
    [
        ({}, 422, "Received no form fields. Send the form fields `video`"),
        ({"json": {"video": "x"}}, 422, "Received no form fields"),
        ({"files": {"film": ("a.mp4", b"x")}}, 422, "Received film. Send the form fields `video`"),
        ({"files": {"image": ("a.png", png((8, 8)))}}, 422, "Received image. Send"),
        ({"files": [("video", ("a.mp4", b"x")), ("video", ("b.mp4", b"x"))]}, 422, "Received video, video. Send"),
        (
            {"files": {"video": ("a.mp4", b"x")}, "data": {"threshold": "0.6"}},
            422,
            "also accepts `audio`. Parameters such as `threshold` are part of the URL.",
        ),
        (
            {"files": {"video": ("a.mp4", b"x")}, "params": {"treshold": "0.6"}},
            422,
            "Received the parameter treshold. The parameters are frames_per_second, threshold, minimum_area.",
        ),
        ({"data": {"video": "C:/clip.mp4"}}, 422, "Received video='C:/clip.mp4'"),
        (
            {"files": {"video": ("text.mp4", b"This is not a video.")}},
            422,
            "text.mp4 cannot be read as audio or video",
        ),
        ({"files": {"video": ("empty.mp4", b"")}}, 422, "empty.mp4 is empty (0 bytes)"),
        ({"files": {"video": ("../../etc/x\n.mp4", b"?" * 99)}}, 422, "cannot be read as audio or video"),
        ({"files": {"video": ("list.m3u8", b"#EXTM3U\nfile:///etc/passwd\n")}}, 422, "list.m3u8 cannot be read"),
        (
            {"files": {"image": ("a.png", b"rubbish"), "audio": ("a.wav", b"?")}},
            422,
            "a.png cannot be read as an image: it is damaged or has another format. Upload a complete JPEG",
        ),
        (
            {"files": {"image": ("a.png", png((8, 8))[:40]), "audio": ("a.wav", b"?")}},
            422,
            "a.png cannot be read as an image: ",
        ),
        (
            {"files": {"image": ("a.png", png((8, 8), "I;16")), "audio": ("a.wav", b"?")}},
            422,
            "a.png cannot be read as an image: Expected images with 8 bits per channel, got a PIL image of mode 'I;16'.",
        ),
        (
            {"files": {"image": ("a.png", png((999, 999))), "audio": ("a.wav", b"?")}},
            422,
            "a.png has frames of 999x999 pixels",
        ),
        ({"files": {"image": ("a.png", png((8, 8))), "audio": ("a.wav", b"?")}}, 422, "a.wav cannot be read"),
        ({"params": {"threshold": "high"}}, 422, "Received threshold='high'"),
        ({"params": {"frames_per_second": "0"}}, 422, "Received frames_per_second='0'"),
        ({"params": {"frames_per_second": "nan"}}, 422, "Received frames_per_second='nan'"),
        (
            {"content": b"rubbish", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            400,
            "The body cannot be read as a multipart form",
        ),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "The body cannot be read"),
        ({"content": os.urandom(2_000_000)}, 413, "The upload has 2.0 MB or more. This server accepts up to 1 MB"),
        (
            {
                "content": iter([FORM.removesuffix(b"\r\n--x--\r\n"), *[os.urandom(700_000)] * 2]),
                "headers": {"Content-Type": "multipart/form-data; boundary=x"},
            },
            413,
            "The upload has 1.",
        ),
    ],
)
def test_rubbish_gives_the_reason_and_the_remedy(server, request_arguments, status, message):
    answer = server.post(**request_arguments)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]
    assert "Traceback" not in answer.text and str(ROOT) not in answer.text and tempfile.gettempdir() not in answer.text


def test_videos_beyond_a_limit_are_refused(server, clip, tmp_path):
    for name, write, message in (
        ("long.mp4", silent_video(14), "long.mp4 has no audio track. Upload a video with audio."),
        ("large.mp4", silent_video(1, side=704), "large.mp4 has frames of 704x704 pixels"),
    ):
        audio = {} if "no audio" in message else {"audio": ("x.wav", b"?")}
        answer = server.post(files={"video": file_of(write, name, tmp_path)} | audio)
        assert answer.status_code == 422
        assert message in answer.json()["error"]
    long = "long.wav", encode_wav(np.zeros((1, 14 * 8000), np.float32), 8000)
    answer = server.post(files={"image": ("a.png", png((8, 8))), "audio": long})
    assert (answer.status_code, answer.json()["error"][:21]) == (422, "long.wav is 14 s long")
    answer = server.post(files=clip, params={"frames_per_second": 8})
    assert answer.status_code == 422
    assert "accepts up to 20. Lower `frames_per_second` to 4" in answer.json()["error"]


def test_a_video_that_declares_too_little_is_stopped_at_the_limit(server, clip, monkeypatch):
    monkeypatch.setattr(serve, "probe_video", lambda *_, **__: VideoInfo(0.1, 1, 256, 256))
    answer = server.post(files=clip, params={"frames_per_second": 8})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error.startswith("my clip.mp4 is longer than its timestamps declare: 3")
    assert "accepts up to 2.5 s at 8 network frames per second." in error


def test_other_paths_and_methods_name_those_that_exist(server):
    for method, path, status in (("GET", "/", 404), ("GET", "/segment", 405), ("POST", "/model", 405)):
        answer = server.client.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"] == f"Received {method} {path}. Send POST /segment, GET /model or GET /health."


def test_a_token_is_checked_before_the_body_is_read(segmentation, clip):
    server = Server(segmentation, token="secret")
    try:
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret"}):
            answer = server.post(files=clip, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"].endswith("Send `Authorization: Bearer` with the token of this server.")
        assert server.post(files=clip, headers={"Authorization": "Bearer secret"}).status_code == 200
        assert server.client.get("/health").status_code == 200
    finally:
        server.stop()


# Several requests, slow ones, and clients that disconnect.


@pytest.fixture
def held(segmentation, monkeypatch) -> Iterator[dict[str, Any]]:
    """Work that takes until `go` is set or it is stopped."""
    state = {"go": threading.Event(), "begun": [], "stopped": []}

    def work(video, _audio, _settings, stopped):
        state["begun"].append(video.filename)
        wait_until(lambda: state["go"].is_set() or stopped.is_set())
        state["stopped"].append(stopped.is_set())
        return {"video": video.filename}

    monkeypatch.setattr(segmentation, "segment_video", work)
    yield state
    state["go"].set()


def begin(server: Server, name: str, answers: dict[str, httpx.Response]) -> threading.Thread:
    """Post a file in a thread."""
    thread = threading.Thread(target=lambda: answers.update({name: server.post(files={"video": (name, b"x")})}))
    thread.start()
    return thread


def test_one_request_too_many_is_told_when_to_try_again(server, held):
    answers = {}
    threads = [begin(server, name, answers) for name in ("a", "b")]
    wait_until(lambda: held["begun"] and len(server.server.server_state.tasks) == 2)
    refused = server.post(files={"video": ("c", os.urandom(900_000))})
    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "5"
    assert refused.json()["error"].startswith("2 requests are in progress, as many as this server accepts.")
    assert server.client.get("/health").status_code == 200  # not counted, and answered meanwhile
    assert len(held["begun"]) == 1  # one is computed at a time
    held["go"].set()
    for thread in threads:
        thread.join()
    assert {name: answer.json() for name, answer in answers.items()} == {"a": {"video": "a"}, "b": {"video": "b"}}
    assert sorted(held["begun"]) == ["a", "b"]


def raw_request(server: Server, body: bytes, length: int) -> socket.socket:
    """Begin a request by hand, with the declared length of its body."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS)
    head = "POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + body)
    return connection


def test_the_video_of_a_client_that_disconnects_is_stopped(server, held):
    connection = raw_request(server, FORM, len(FORM))
    wait_until(lambda: held["begun"])
    connection.close()
    wait_until(lambda: held["stopped"])
    assert held["stopped"] == [True]
    held["go"].set()
    assert server.post(files={"video": ("next", b"x")}).json() == {"video": "next"}


def test_uploads_that_break_off_or_take_too_long_free_their_place(server, held):
    held["go"].set()
    for _ in range(3):  # more than requests at a time
        raw_request(server, FORM[:-10], len(FORM)).close()
    wait_until(lambda: server.post(files={"video": ("a", b"x")}).status_code == 200)
    slow = raw_request(server, FORM[:-10], len(FORM))
    answer = slow.recv(10_000).decode()
    assert answer.startswith("HTTP/1.1 408")
    slow.close()
    assert server.post(files={"video": ("b", b"x")}).status_code == 200


def test_requests_that_take_longer_than_the_shutdown_are_told_to_try_again(segmentation, held):
    server, answers = Server(segmentation, shutdown=1), {}
    threads = [begin(server, name, answers) for name in ("a", "b")]
    wait_until(lambda: held["begun"])
    server.stop()
    for thread in threads:
        thread.join()
    assert held["stopped"] == [True]
    assert {answer.status_code for answer in answers.values()} == {503}
    assert answers["a"].json()["error"] == "The server stopped before the video was done. Send it again."


def test_an_internal_error_shows_no_details(server, segmentation, monkeypatch):
    def fail(*_):
        raise RuntimeError("password in /home/me")

    monkeypatch.setattr(segmentation, "segment_video", fail)
    answer = server.post(files={"video": ("a", b"x")})
    assert answer.status_code == 500
    assert answer.json()["error"].startswith("Internal error.")
    assert "password" not in answer.text


def test_no_file_of_an_upload_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    large = {"video": ("a.mp4", CLIP.read_bytes() + b"\0" * 700_000)}  # near the limit, beyond what is kept in memory
    assert server.post(files=large).status_code == 200
    server.post(files={"video": ("a.mp4", b"x" * 900_000)})
    assert list(tmp_path.iterdir()) == []


def test_work_stops_between_windows(segmentation, clip):
    stopped = threading.Event()
    stopped.set()
    upload = serve.UploadFile(io.BytesIO(clip["video"][1]), filename="a.mp4")
    settings = serve.Settings(2.0, None, 0.0)
    assert len(segmentation.segment_video(upload, None, settings, stopped)["frames"]) == 1


# The container.


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile with their arguments."""
    lines = re.sub(r"^#.*\n|\\\n", "", (EXAMPLES / "Dockerfile").read_text(), flags=re.MULTILINE).splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--threads", "0"], "--threads: expected an integer of 1 or more, got 0"),
        (["--port", "70000"], "--port: expected a port from 1 to 65535, got 70000"),
        (["--max-seconds", "-1"], "--max-seconds: expected a number above 0, got -1"),
        (["--max-frames", "1.5"], "--max-frames: expected an integer of 1 or more, got 1.5"),
        (["--shutdown-seconds", "x"], "--shutdown-seconds: expected an integer of 0 or more, got x"),
    ],
)
def test_numbers_out_of_range_are_usage_errors(monkeypatch, capsys, arguments, expected):
    monkeypatch.setattr(sys, "argv", ["serve.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        serve.parse_args()
    assert expected in capsys.readouterr().err


def test_the_container_runs_the_server_without_privileges(monkeypatch):
    found = instructions()
    stages = [index for index, (name, _) in enumerate(found) if name == "FROM"]
    last = found[stages[-1] :]
    assert len(stages) == 3 and ("USER", "1000") in last
    assert last[-1][0] == "ENTRYPOINT"
    python, option, module, *arguments = json.loads(last[-1][1])
    assert (python, option, module) == ("python", "-m", "pcmanet.examples.serve")
    monkeypatch.setattr(sys, "argv", ["serve.py", *arguments])
    options = serve.parse_args()
    assert (options.host, options.port) == ("0.0.0.0", 8000)
    assert options.shutdown_seconds < 10  # then Docker kills


def test_the_health_check_of_the_container_asks_the_server(server):
    check = next(rest for name, rest in instructions() if name == "HEALTHCHECK")
    _, *command = json.loads(check[check.index("[") :])
    assert command[0] == "-c" and ":8000/health" in command[1]
    for port, code in ((server.port, 0), (1, 1)):
        program = command[1].replace(":8000/", f":{port}/")
        result = subprocess.run(
            [sys.executable, "-c", program], env={"no_proxy": "*"}, capture_output=True, timeout=SECONDS, check=False
        )
        assert result.returncode == code


def test_the_container_is_built_from_files_that_exist_and_are_not_ignored():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {rest.split()[0] for name, rest in instructions() if name == "COPY" and not rest.startswith("--from")}
    assert sources == {".", "constraints.txt"}
    assert all((ROOT / name).exists() for name in kept)
    # What setuptools reads for the wheel.
    assert {"setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "src", "examples"} <= kept


@pytest.mark.slow
def test_a_process_finishes_its_requests_when_it_is_terminated(tmp_path, clip, request):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "pcmanet.examples.serve", "--port", str(port), "--model", MODEL]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    options = ["--threads", "1", "--shutdown-seconds", str(SECONDS)]
    process = subprocess.Popen([*command, *options], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    request.addfinalizer(process.kill)
    address, answers = f"http://127.0.0.1:{port}", []

    def is_ready() -> bool:
        assert process.poll() is None
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", port)) == 0

    wait_until(is_ready, interval=0.5)  # the process needs the processor more than this one does
    arguments = {"files": clip, "timeout": SECONDS, "trust_env": False}
    url = f"{address}/segment?frames_per_second=25"
    thread = threading.Thread(target=lambda: answers.append(httpx.post(url, **arguments)))
    thread.start()
    time.sleep(0.5)  # 125 frames take longer
    process.send_signal(signal.SIGTERM)
    thread.join()
    _, log = process.communicate(timeout=SECONDS)
    assert answers[0].status_code == 200
    assert len(answers[0].json()["frames"]) == 125
    assert process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in log
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/nowhere"], "error: Checkpoint folder /nowhere not found"),
        (["--model", ""], "error: Checkpoint folder not found"),
        (["--device", "warp"], "error: --device warp is not available"),
        (["--device", "meta"], "error: --device meta is not available"),
    ],
)
def test_an_unknown_model_or_device_is_an_error_without_a_traceback(monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["serve.py", *arguments])
    with pytest.raises(SystemExit, match=message):
        serve.main()


@pytest.mark.parametrize(
    ("token", "found"), [("", "is empty"), ("secret\n", "has other characters"), ("clé", "has other characters")]
)
def test_a_token_that_no_request_can_send_is_an_error(monkeypatch, token, found):
    monkeypatch.setattr(sys, "argv", ["serve.py", "--model", "/nowhere"])
    monkeypatch.setenv("PCMANET_TOKEN", token)
    with pytest.raises(
        SystemExit, match=f"error: PCMANET_TOKEN {found}. Set it to .*, or unset it to accept every request"
    ):
        serve.main()


def test_an_empty_name_of_the_model_is_none(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["serve.py"])
    monkeypatch.setenv("PCMANET_MODEL", "")
    assert serve.parse_args().model == "real_world"
