"""The page of examples/app.py: its events and its server in this process, and a real server that a real browser uses."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import require_browser
from isolated_python import WITHOUT_EDITABLE_INSTALL
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from transformers import pipeline

from modeling_pcmanet.media_pcmanet import VIDEO_SUFFIXES, read_media
from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.checkpoints import load_segmenter
from pcmanet.examples import app_views as views
from pcmanet.examples.app_analysis import LogitsPipeline
from pcmanet.examples.uploads import Limits
from pcmanet.pipelines import AudioVisualSegmentationPipeline
from pcmanet.pipelines.timeline import sounding_spans


ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
CLIP = EXAMPLES / "demo.mp4"
MODEL = EXAMPLES / "demo_model_semantic"
RATE = 4
MINIMUM_AREA = 0.001
PHONE = {"width": 390, "height": 844}
TIMEOUT = 180_000  # milliseconds: the machine may be busy

# New screenshots for the README: PCMANET_SCREENSHOTS=examples pytest tests/test_app.py -k "screenshot or phone"
SCREENSHOTS = os.environ.get("PCMANET_SCREENSHOTS")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """The page in a separate process, with a separate temporary folder."""

    def __init__(self, folder: Path, *arguments: str, script: Path = EXAMPLES / "app.py", **environment: str) -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir(parents=True)
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = folder / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, script, "--port", str(self.port), *arguments],
                cwd=folder,
                env={**os.environ, "TMPDIR": str(self.temporary), "GRADIO_ANALYTICS_ENABLED": "True", **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> "Server":
        """Wait until the page answers."""
        for _ in range(TIMEOUT // 200):
            assert self.process.poll() is None, self.log.read_text()
            try:
                urllib.request.urlopen(f"{self.address}/config", timeout=10).close()
                return self
            except OSError:
                time.sleep(0.2)
        self.process.kill()
        raise AssertionError(f"The page did not start: {self.log.read_text()}")

    def stop(self) -> int:
        """Stop it like a Space."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def status(self, path: str) -> int:
        """Return the HTTP status of a path."""
        try:
            with urllib.request.urlopen(f"{self.address}{path}", timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page with a model of drawn shapes, and low limits, which are quick to exceed."""
    limits = ["--max-seconds", "12", "--max-megabytes", "1"]
    server = Server(tmp_path_factory.mktemp("page"), "--model", str(MODEL), *limits).wait()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def default_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page with the bundled model and the default limits, as screenshots show it."""
    server = Server(tmp_path_factory.mktemp("default_page")).wait()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = require_browser()
    expect.set_options(timeout=TIMEOUT)
    with sync_playwright() as playwright:
        # The sandbox does not start as root, the user of CI containers.
        arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


def new_session(browser: Browser, **options: Any) -> Page:
    """A page that shares nothing with others."""
    context = browser.new_context(**options)
    context.set_default_timeout(TIMEOUT)
    return context.new_page()


@pytest.fixture
def page(server: Server, browser: Browser) -> Iterator[Page]:
    """A session that requests only the server, and in which no script fails."""
    page = new_session(browser, viewport={"width": 1280, "height": 900})
    outside, errors = [], []
    page.on("request", lambda request: outside.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.address)
    yield page
    page.context.close()
    assert not [url for url in outside if not url.startswith((server.address, "data:", "blob:"))]
    assert not errors


def upload(page: Page, path: Path) -> None:
    page.set_input_files("#upload input[type=file]", path)


def wait_for_result(page: Page, name: str) -> None:
    """Wait until the result of a video is on the page; its stages come last."""
    expect(page.locator("#overlay")).to_contain_text(name)
    expect(page.locator(".stages figure")).to_have_count(4)


def bars(page: Page) -> dict[str, list[tuple[float, float]]]:
    """The timeline: start and end of each bar by class."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('.row.class')].map((row) => [
            row.dataset.label,
            [...row.querySelectorAll('.bar')].map((bar) => [Number(bar.dataset.start), Number(bar.dataset.end)]),
        ]))"""
    )


def download_masks(page: Page) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Click on the download; return segments.json and the class indices of each mask."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Download masks").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        description = json.loads(archive.read("segments.json"))
        names = [frame["mask"] for frame in description["frames"]]
        assert sorted(archive.namelist()) == sorted([*names, "segments.json"])
        return description, [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names]


def class_ids(result: dict[str, Any], labels: dict[str, int], size: tuple[int, int]) -> np.ndarray:
    """An entry of the pipeline as one map of class indices."""
    ids = np.zeros(size, np.uint8)
    for segment in result["segments"]:
        ids[np.asarray(segment["mask"]) > 0] = labels[segment["label"]]
    return ids


@pytest.fixture(scope="module")
def segmenter() -> AudioVisualSegmentationPipeline:
    return pipeline(
        "audio-visual-segmentation", model=str(MODEL), pipeline_class=AudioVisualSegmentationPipeline, device="cpu"
    )


def check_masks(page: Page, segmenter: AudioVisualSegmentationPipeline, threshold: float) -> list[dict[str, Any]]:
    """Compare timeline and download to the pipeline's result for a threshold; return that result."""
    expected = segmenter(str(CLIP), frames_per_second=RATE, threshold=threshold, minimum_area=MINIMUM_AREA)
    spans = sounding_spans(expected, RATE, duration=5.0)
    assert bars(page) == {
        label: [[pytest.approx(start, abs=1e-3), pytest.approx(end, abs=1e-3)] for start, end, _ in label_spans]
        for label, label_spans in spans.items()
    }

    description, masks = download_masks(page)
    assert description["threshold"] == threshold
    assert description["video"] == CLIP.name
    assert len(masks) == len(expected) == 5 * RATE
    for frame, mask, result in zip(description["frames"], masks, expected, strict=True):
        assert frame["timestamp"] == pytest.approx(result["timestamp"], abs=1e-3)
        found = [(segment["label"], pytest.approx(segment["score"], abs=1e-4)) for segment in result["segments"]]
        assert [(segment["label"], segment["score"]) for segment in frame["segments"]] == found
        np.testing.assert_array_equal(mask, class_ids(result, segmenter.model.config.label2id, mask.shape))
    return expected


def check_overlay(page: Page, expected: list[dict[str, Any]]) -> None:
    """Check that the video on the page has its audio, and colors inside the masks only."""
    address = page.locator("#overlay video").get_attribute("src")
    with urllib.request.urlopen(address, timeout=60) as file:
        overlay = read_media(file.read(), frames_per_second=1)
    original = read_media(CLIP, frames_per_second=1)
    np.testing.assert_allclose(overlay.waveform, original.waveform, atol=1e-3)

    # The frame of second 1 shows the masks of its last quarter. Labels are outside of masks, so only the inside counts.
    second = 1
    size = overlay.frames.shape[2:0:-1]
    before = np.asarray(Image.fromarray(original.frames[second]).resize(size, Image.Resampling.BICUBIC)).astype(int)
    change = np.abs(overlay.frames[second].astype(int) - before).mean(axis=2)
    masks = [np.asarray(segment["mask"].resize(size)) > 0 for segment in expected[second * RATE + 3]["segments"]]
    assert len(masks) == 2
    for mask in masks:
        assert change[mask].mean() > 25
    rest = ~np.any(masks, axis=0)
    assert np.median(change[rest]) < 4


def drag_threshold(page: Page, fraction: float) -> float:
    """Drag the handle of the threshold to a fraction of its range; return the new value."""
    handle = page.locator("#threshold input[type=range]")
    box = handle.bounding_box()
    page.mouse.move(box["x"] + 8, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * fraction, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    return float(handle.input_value())


def test_page_is_served_and_segments_an_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without a browser, whose start takes longer than all that is done here."""
    from gradio_client.utils import is_valid_file

    from pcmanet.examples.app import Page as AppPage  # imports Gradio, which takes seconds

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    app = AppPage(load_segmenter(str(MODEL), "cpu", LogitsPipeline), Limits(megabytes=1, seconds=12), tmp_path)
    blocks = app.build()
    with monkeypatch.context() as system:  # one that does not know which suffixes are those of videos
        system.setattr("mimetypes.guess_type", lambda *_: (None, None))
        assert all(is_valid_file(f"clip{suffix}", app._upload.file_types) for suffix in VIDEO_SUFFIXES)
    _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    try:
        with urllib.request.urlopen(f"{address}config", timeout=60) as answer:
            config = answer.read().decode()
    finally:
        blocks.close(verbose=False)
    assert "pcmanet: segment what you hear" in config
    assert "knows drawn shapes (Sounding Shapes) only" in config

    (tmp_path / "text.mp4").write_text("This is not a video.")
    refused = app.process_upload(str(tmp_path / "text.mp4"), 1, 0.0, None, lambda *_: None)
    assert "text.mp4 cannot be read as audio or video" in refused[app._message]
    shown = app.process_upload(str(CLIP), 1, 0.0, None, lambda *_: None)
    assert shown[app._message] == ""
    labels = re.findall('data-label="(.*?)"', shown[app._timeline])
    assert len(labels) >= 2 and {"speckled-heart"} <= set(labels)
    assert app.show_stages(shown[app._analysis], shown[app._frame_number]).count("<figure ") == 4
    stricter = app.change_threshold(0.95, shown[app._analysis], 0, lambda *_: None)
    assert stricter[app._timeline] != shown[app._timeline]
    shown[app._analysis].close()


def test_screen_readers_find_the_classes_outside_of_the_slider():
    shown = views.timeline({"dog": [(0.0, 1.5, 0.9)]}, {"dog": (255, 82, 54)}, np.zeros(4), seconds=2, rate=4)
    before, slider = shown.split('role="slider"')
    assert "<span>dog</span><small>1.5 s</small>" in before
    assert re.sub("<.*?>", "", slider.partition(">")[2]) == ""


@pytest.mark.slow
def test_upload_play_threshold_and_download(page: Page, segmenter: AudioVisualSegmentationPipeline):
    expect(page.locator(".notice")).to_contain_text("knows drawn shapes (Sounding Shapes) only")
    upload(page, CLIP)
    wait_for_result(page, CLIP.name)
    expect(page.locator(".message")).to_have_count(0)

    # The video plays with audio, and the playhead of the timeline follows.
    page.wait_for_function("() => document.querySelector('#overlay video').currentTime > 0.3")
    video = page.evaluate(
        """() => { const video = document.querySelector('#overlay video');
        return [video.readyState, video.duration, video.webkitAudioDecodedByteCount, video.error]; }"""
    )
    assert video[0] >= 2
    assert video[1] == pytest.approx(5, abs=0.1)
    assert video[2] > 0
    assert video[3] is None
    page.wait_for_function("() => parseFloat(document.querySelector('.playhead').style.left) > 1")

    # The page shows the result of the pipeline, for this threshold and for another.
    expected = check_masks(page, segmenter, threshold=0.0)
    check_overlay(page, expected)
    before = page.locator("#overlay video").get_attribute("src")
    threshold = drag_threshold(page, 0.95)
    assert threshold >= 0.8
    page.wait_for_function(
        "(before) => document.querySelector('#overlay video')?.src !== before && document.querySelector('#overlay video')",
        arg=before,
    )
    stricter = check_masks(page, segmenter, threshold)
    area = [sum(np.asarray(s["mask"]).sum() for r in of for s in r["segments"]) for of in (expected, stricter)]
    assert 0 < area[1] < 0.95 * area[0]


def tiny_video(path: Path, seconds: float, *, audio: bool = True) -> Path:
    """A moving pattern of 4 frames per second, with a hum."""
    frames = (np.full((48, 64, 3), 10 * (number % 20), np.uint8) for number in range(round(4 * seconds)))
    time_line = np.arange(round(16000 * seconds)) / 16000
    hum = 0.1 * np.sin(2 * np.pi * 220 * time_line)[None].astype(np.float32)
    write_video(path, frames, 4, hum if audio else None, 16000 if audio else None)
    return path


@pytest.mark.slow
def test_invalid_uploads_show_the_reason_and_a_valid_one_still_works(page: Page, server: Server, tmp_path: Path):
    (tmp_path / "text.mp4").write_text("This is not a video.")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "large.mp4").write_bytes(os.urandom(1_000_001))
    tiny_video(tmp_path / "silent.mp4", 2, audio=False)
    tiny_video(tmp_path / "long.mp4", 14)
    tiny_video(tmp_path / "<img src=x onerror='document.title=1'>.mp4", 2, audio=False)
    reasons = {
        "text.mp4": "text.mp4 cannot be read as audio or video",
        "empty.mp4": "empty.mp4 is empty (0 bytes)",
        "large.mp4": "large.mp4 is 1 MB large. This page accepts up to 1 MB",
        "silent.mp4": "silent.mp4 has no audio track",
        "long.mp4": "long.mp4 is 14 s long. This server accepts up to 12 s",
        "<img src=x onerror='document.title=1'>.mp4": "has no audio track",
    }
    for name, reason in reasons.items():
        upload(page, tmp_path / name)
        expect(page.locator(".message")).to_contain_text(reason)
        assert str(server.temporary) not in page.locator(".message").inner_text()
        assert "audio=" not in page.locator(".message").inner_text()
        expect(page.locator("#overlay")).to_be_hidden()
    assert page.title() == "pcmanet: segment what you hear"  # not changed by the name of a file
    assert page.locator(".message img").count() == 0

    # A truncated file is used up to its end, and the page notes it.
    (tmp_path / "cut.mp4").write_bytes(CLIP.read_bytes()[:120_000])
    upload(page, tmp_path / "cut.mp4")
    wait_for_result(page, "cut.mp4")
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator(".notes")).to_contain_text("its video ends at")
    assert 1 < float(page.locator(".timeline").get_attribute("data-seconds")) < 4
    assert server.process.poll() is None


@pytest.mark.slow
def test_server_refuses_large_uploads(server: Server):
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n' + bytes(1_000_001)
    request = urllib.request.Request(
        f"{server.address}/gradio_api/upload",
        data=body + b"\r\n--x--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=60)
    assert refusal.value.code == 413


@pytest.mark.slow
def test_stages_and_masks_per_second_of_an_example(page: Page):
    page.click("[data-clip='demo_trio.mp4']")
    wait_for_result(page, "demo_trio.mp4")
    assert set(bars(page)) == {"striped-disc", "ringed-star", "framed-flower"}
    queried = [float(card.get_attribute("data-queried")) for card in page.locator(".stages figure").all()]
    assert queried[0] == 1
    assert 0 < queried[3] < 0.5

    # A click a quarter into the nine seconds: the frame of 2.25 to 2.5 s.
    page.evaluate("() => document.querySelector('#overlay video').pause()")
    track = page.locator(".row.axis .track")
    box = track.bounding_box()
    track.click(position={"x": box["width"] * 0.26, "y": 5})
    page.wait_for_function("() => Math.abs(document.querySelector('.stages').dataset.timestamp - 2.46) < 0.05")
    now = page.evaluate("() => document.querySelector('#overlay video').currentTime")
    assert now == pytest.approx(9 * 0.26, abs=0.1)

    slider = page.get_by_role("slider", name="playback position")
    for key, timestamp in (("ArrowRight", 2.71), ("Home", 0.21), ("End", 8.96)):
        slider.press(key)
        page.wait_for_function(
            "(time) => Math.abs(document.querySelector('.stages').dataset.timestamp - time) < 0.05", arg=timestamp
        )

    page.locator("#rate label", has_text="1").click()
    page.wait_for_function("() => document.querySelector('.timeline').dataset.rate === '1'")
    _, masks = download_masks(page)
    assert len(masks) == 9


@pytest.mark.slow
def test_page_fits_the_screen_of_a_phone(default_server: Server, browser: Browser, tmp_path: Path):
    page = new_session(browser, viewport=PHONE, has_touch=True, is_mobile=True)
    page.goto(default_server.address)
    page.locator("[data-clip='real_world.mp4']").tap()
    wait_for_result(page, "real_world.mp4")
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    for part in ("#source", "#overlay", ".timeline", "#settings", ".stages"):
        box = page.locator(part).bounding_box()
        assert box["x"] >= 0, part
        assert box["x"] + box["width"] <= PHONE["width"], part
        assert box["width"] > 0.8 * PHONE["width"], part
    page.wait_for_function("() => document.querySelector('#overlay video').currentTime > 0.5")
    take_screenshot(page, "app_screenshot_phone.png", tmp_path, part="#columns")
    page.context.close()


@pytest.mark.slow
def test_screenshot_of_the_bundled_model(default_server: Server, browser: Browser, tmp_path: Path):
    page = new_session(browser, viewport={"width": 1280, "height": 900})
    page.goto(default_server.address)
    expect(page.locator(".notice")).to_contain_text("of the real world: person, dog, cat")
    page.click("[data-clip='real_world.mp4']")
    wait_for_result(page, "real_world.mp4")
    assert {"dog", "rooster", "helicopter"} <= set(bars(page))
    # Show the frame of the stage maps. Gradio fades content that it updates: wait until that is complete.
    page.evaluate(
        """() => { const video = document.querySelector('#overlay video');
        video.pause(); video.currentTime = document.querySelector('.stages').dataset.timestamp; }"""
    )
    page.wait_for_function("() => !document.querySelector('#overlay video').seeking")
    page.wait_for_function(
        """() => { for (let node = document.querySelector('.stages'); node; node = node.parentElement)
        if (getComputedStyle(node).opacity !== '1') return false;
        return true; }"""
    )
    page.wait_for_function("() => document.querySelectorAll('.row.now').length > 0")
    take_screenshot(page, "app_screenshot.png", tmp_path, part=".main")
    page.context.close()


def take_screenshot(page: Page, name: str, folder: Path, part: str) -> None:
    """Take a screenshot of a part of the page, with few colors for the README."""
    page.mouse.move(0, 0)
    page.locator(part).screenshot(path=folder / name, animations="disabled")
    image = Image.open(folder / name).convert("RGB")
    # A page with masks and bars has many colors.
    assert len(image.getcolors(maxcolors=2**24)) > 1000
    if SCREENSHOTS:
        small = image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        small.save(Path(SCREENSHOTS) / name, optimize=True)


@pytest.mark.slow
def test_sessions_are_separate(server: Server, browser: Browser):
    pages = [new_session(browser) for _ in range(2)]
    names = ("demo.mp4", "demo_trio.mp4")
    for page in pages:
        page.goto(server.address)
    for page, name in zip(pages, names, strict=True):
        page.click(f"[data-clip='{name}']")
    for page, name in zip(pages, names, strict=True):
        wait_for_result(page, name)
    found = [set(bars(page)) for page in pages]
    assert "speckled-heart" in found[0]
    assert "framed-flower" in found[1]
    assert not {"ringed-star", "framed-flower"} & found[0]

    drag_threshold(pages[0], 0.5)
    pages[0].wait_for_timeout(500)
    for page, name in zip(pages, names, strict=True):
        expect(page.locator("#overlay")).to_contain_text(name)
        description, _ = download_masks(page)
        assert description["video"] == name
    for page in pages:
        page.context.close()


@pytest.mark.slow
def test_private_files_are_not_served(page: Page, server: Server):
    page.click("[data-clip='demo.mp4']")
    wait_for_result(page, "demo.mp4")
    private = [path for path in server.temporary.glob("pcmanet_page_*/sessions/*/*") if path.is_file()]
    assert {path.name for path in private} >= {"video", "logits.safetensors", "masks.zip", "overlay.mp4"}
    for path in [Path("/etc/passwd"), EXAMPLES / "app.py", EXAMPLES / "demo.mp4", *private]:
        for route in ("/gradio_api/file=", "/file="):
            assert server.status(route + urllib.parse.quote(str(path))) in (403, 404), path
    for path in ("../../../../../../etc/passwd", "..%2f..%2f..%2f..%2f..%2fetc%2fpasswd", "file:///etc/passwd"):
        assert server.status(f"/gradio_api/file={path}") in (403, 404), path


@pytest.mark.slow
def test_space_runs_outside_of_the_repository_and_leaves_no_files(tmp_path: Path):
    space = tmp_path / "space"
    command = [sys.executable, EXAMPLES / "app_space.py", "--output", space]
    subprocess.run(command, check=True, capture_output=True)
    card = (space / "README.md").read_text()
    assert card.startswith("---\n")
    assert "\nsdk: gradio\n" in card
    wanted = (space / "requirements.txt").read_text().splitlines()
    assert {"torch", "transformers", "av", "safetensors"} <= {line.partition("==")[0] for line in wanted}
    assert not any("+" in line or "gradio" in line for line in wanted)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "already exists" in again.stderr

    # In a Space, our packages are only in its folder.
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(WITHOUT_EDITABLE_INSTALL)
    served = Server(tmp_path / "served", script=space / "app.py", PYTHONPATH=str(hidden)).wait()
    assert list(served.temporary.glob("pcmanet_page_*/sessions"))
    assert served.stop() == 128 + signal.SIGTERM
    assert not list(served.temporary.glob("pcmanet_page_*"))


@pytest.mark.slow
def test_port_in_use_ends_with_an_error(tmp_path: Path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        result = subprocess.run(
            [sys.executable, EXAMPLES / "app.py", "--model", MODEL, "--port", str(port)],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 1
    assert f"error: Port {port} of this computer cannot be used. Another program uses it" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("pcmanet_page_*"))


@pytest.mark.slow
def test_missing_model_ends_with_an_error():
    result = subprocess.run(
        [sys.executable, EXAMPLES / "app.py", "--model", "nowhere"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.endswith("Checkpoint folder nowhere not found. Give a folder, or a Hub id as owner/name.\n")
