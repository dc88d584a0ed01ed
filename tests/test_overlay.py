"""Draw masks on frames, write the overlay video and the mask files."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from odd_media import begin_late, onset, write_odd_video
from PIL import Image, ImageFont

from modeling_pcmanet.media_pcmanet import MediaReader, iterate_frames, read_media
from modeling_pcmanet.media_writing_pcmanet import write_video
from pcmanet.pipelines import overlay
from pcmanet.pipelines.colors import class_colors
from pcmanet.pipelines.overlay import draw_segments, text_font, write_masks, write_overlay_video


ID2LABEL = {0: "background", 1: "bell", 2: "drum"}
COLORS = class_colors(ID2LABEL)
SIZE = (96, 64)
RATE = 16000
GRAY = 90


def rectangle(left: int, top: int, right: int, bottom: int, size: tuple[int, int] = SIZE) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, (left, top, right, bottom))
    return mask


def segment(label: str, mask: Image.Image) -> dict:
    return {"label": label, "score": 0.9, "mask": mask}


BELL = segment("bell", rectangle(8, 20, 40, 56))
DRUM = segment("drum", rectangle(56, 20, 88, 56))
RESULTS = [
    {"timestamp": 0.9, "segments": [BELL]},
    {"timestamp": 1.9, "segments": []},
    {"timestamp": 2.9, "segments": [BELL, DRUM]},
]


def gray_frames(number: int, size: tuple[int, int] = SIZE) -> Iterator[np.ndarray]:
    return (np.full((size[1], size[0], 3), GRAY, np.uint8) for _ in range(number))


def beeps(seconds: int) -> np.ndarray:
    """A 440-Hz tone in the first half of every second, (2, samples)."""
    time = np.arange(seconds * RATE) / RATE
    tone = 0.3 * np.sin(2 * np.pi * 440 * time) * (time % 1 < 0.5)
    return np.stack([tone, tone]).astype(np.float32)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    write_video(path, gray_frames(30), 10, beeps(3), RATE)
    return path


def audio_packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


class TestDrawSegments:
    def test_fill_contour_and_surroundings(self):
        frame = Image.new("RGB", (480, 320), (GRAY, GRAY, GRAY))
        mask = rectangle(100, 100, 300, 250, frame.size)
        drawn = np.asarray(draw_segments(frame, [segment("bell", mask)], COLORS, labels=False), dtype=float)
        color = np.array(COLORS["bell"])
        assert drawn[175, 200] == pytest.approx(0.6 * GRAY + 0.4 * color, abs=2)  # translucent fill
        assert drawn[175, 100] == pytest.approx(color, abs=25)  # sharp contour
        assert drawn[175, 110] == pytest.approx(0.6 * GRAY + 0.4 * color, abs=2)
        assert (drawn[175, 98] < GRAY).any()  # dark halo
        assert (drawn[:, :85] == GRAY).all()
        assert np.asarray(frame).min() == GRAY  # the frame itself is unchanged

    def test_label_is_in_a_box_of_the_class_color_above_the_mask(self):
        frame = Image.new("RGB", (480, 320))
        drawn = np.asarray(draw_segments(frame, [segment("drum", rectangle(200, 150, 280, 220, frame.size))], COLORS))
        box = np.argwhere((drawn[:145] == COLORS["drum"]).all(axis=2))
        assert len(box) > 500
        assert box[:, 1].mean() == pytest.approx(240, abs=12)

    def test_labels_do_not_cover_each_other(self):
        frame = Image.new("RGB", (480, 320))
        segments = [segment(label, rectangle(200, 150, 280, 220, frame.size)) for label in ("bell", "drum")]
        drawn = np.asarray(draw_segments(frame, segments, COLORS))
        rows = [np.flatnonzero((drawn == COLORS[label]).all(axis=2).sum(axis=1) > 60) for label in ("bell", "drum")]
        assert len(rows[0]) > 5
        assert len(rows[1]) > 5

    @pytest.mark.parametrize("name", ["Vögel", "собака", "σκύλος"])
    def test_names_in_other_alphabets(self, monkeypatch: pytest.MonkeyPatch, name: str):
        fonts = Path(pytest.importorskip("matplotlib").get_data_path()) / "fonts" / "ttf"
        monkeypatch.setattr(overlay, "_system_fonts", lambda: [str(fonts / "DejaVuSans.ttf")])
        glyphs = {bytes(text_font(name, 20).getmask(letter)) for letter in name}
        assert len(glyphs) == len(set(name))  # without the font, all that Pillow's own does not have is the same box

    def test_font_of_pillow_without_others(self, monkeypatch: pytest.MonkeyPatch):
        own = ImageFont.load_default(20)
        assert text_font("dog 90%", 20).getname() == own.getname()
        monkeypatch.setattr(overlay, "_system_fonts", list)
        assert text_font("犬", 20).getname() == own.getname()

    def test_masks_are_resized_to_the_frame(self):
        drawn = np.asarray(draw_segments(Image.new("RGB", (960, 640)), [DRUM], COLORS, labels=False))
        assert drawn[400, 700].any()
        assert not drawn[:, :480].any()

    def test_empty_mask_draws_nothing(self):
        drawn = draw_segments(Image.new("RGB", SIZE), [segment("bell", Image.new("L", SIZE))], COLORS)
        assert drawn.getextrema() == ((0, 0),) * 3


class TestWriteOverlayVideo:
    def test_masks_are_held_for_their_second(self, video: Path, tmp_path: Path):
        path = tmp_path / "overlay.mp4"
        write_overlay_video(path, iterate_frames(video), RESULTS, COLORS, audio=video)
        times, frames = zip(*iterate_frames(path), strict=True)
        assert np.array(times) == pytest.approx(np.arange(30) / 10, abs=1e-4)
        frames = np.array(frames, dtype=float)
        bell, drum = frames[:, 46, 24], frames[:, 46, 72]
        filled = {label: 0.6 * GRAY + 0.4 * np.array(color) for label, color in COLORS.items()}
        for second, shown in enumerate([("bell",), (), ("bell", "drum")]):
            for label, pixel in (("bell", bell), ("drum", drum)):
                expected = filled[label] if label in shown else np.full(3, GRAY)
                assert pixel[10 * second : 10 * second + 10] == pytest.approx(np.tile(expected, (10, 1)), abs=8)

    def test_audio_of_the_video_is_copied(self, video: Path, tmp_path: Path):
        path = tmp_path / "overlay.mp4"
        write_overlay_video(path, iterate_frames(video), RESULTS, COLORS, audio=video)
        assert audio_packets(path) == audio_packets(video)

    def test_audio_begins_at_the_first_frame_that_can_be_decoded(self, tmp_path: Path):
        """A recording that begins inside a group of frames declares a start without a frame."""
        video = begin_late(write_odd_video(tmp_path / "cut.ts", options={"x264-params": "keyint=8:scenecut=0"}), 0.05)
        path = tmp_path / "overlay.mp4"
        with MediaReader(video) as reader:
            frames = ((timestamp, frame) for timestamp, frame, _ in reader.frames("video"))
            audio = (reader.audio_stream, reader.audio_packets())
            write_overlay_video(path, frames, RESULTS, COLORS, audio=audio, audio_origin=lambda: reader.origin)
        onsets = [onset(media.waveform, media.sampling_rate) for media in (read_media(video), read_media(path))]
        assert onsets == pytest.approx([0.2, 0.2], abs=0.05)

    def test_audio_can_be_a_waveform(self, tmp_path: Path):
        path, frames = tmp_path / "overlay.mp4", zip(np.arange(30) / 10, gray_frames(30), strict=True)
        write_overlay_video(path, frames, RESULTS, COLORS, audio=beeps(3), sampling_rate=RATE)
        media = read_media(path)
        assert media.waveform[:, : 3 * RATE] == pytest.approx(beeps(3), abs=0.06)

    def test_two_network_frames_per_second(self, video: Path, tmp_path: Path):
        path = tmp_path / "overlay.mp4"
        results = [{"timestamp": k / 2, "segments": [BELL] if k == 1 else []} for k in range(6)]
        write_overlay_video(path, iterate_frames(video), results, COLORS, frames_per_second=2)
        drawn = [abs(float(frame[46, 24, 2]) - GRAY) > 20 for _, frame in iterate_frames(path)]
        assert drawn == [False] * 5 + [True] * 5 + [False] * 20

    def test_one_result_per_frame_of_the_video_as_they_come(self, video: Path, tmp_path: Path):
        path, taken = tmp_path / "overlay.mp4", []

        def stream() -> Iterator[dict]:
            for number in range(30):
                taken.append(number)
                yield {"timestamp": number / 10, "segments": [BELL] if number % 10 < 5 else []}

        def frames() -> Iterator[tuple[float, np.ndarray]]:
            for number, frame in enumerate(iterate_frames(video)):
                assert len(taken) <= number + 1
                yield frame

        write_overlay_video(path, frames(), stream(), COLORS, frames_per_second="video")
        drawn = [abs(float(frame[46, 24, 2]) - GRAY) > 20 for _, frame in iterate_frames(path)]
        assert drawn == [number % 10 < 5 for number in range(30)]
        assert len(taken) == 30

    def test_uneven_times_and_odd_size(self, tmp_path: Path):
        path = tmp_path / "overlay.mp4"
        times = [0.0, 0.1, 0.35, 1.0, 1.02]
        write_overlay_video(path, zip(times, gray_frames(5, (51, 35)), strict=True), RESULTS, COLORS)
        read, frames = zip(*iterate_frames(path), strict=True)
        assert read == pytest.approx(times, abs=1e-4)
        assert frames[0].shape == (36, 52, 3)
        with av.open(str(path)) as container:
            assert not container.streams.audio

    def test_nothing_to_draw(self, video: Path, tmp_path: Path):
        with pytest.raises(ValueError, match="no results"):
            write_overlay_video(tmp_path / "overlay.mp4", iterate_frames(video), [], COLORS)
        with pytest.raises(ValueError, match="at least one frame"):
            write_overlay_video(tmp_path / "overlay.mp4", iter(()), RESULTS, COLORS)


class TestWriteMasks:
    def test_binary(self, tmp_path: Path):
        results = [
            {"timestamp": 0.9375, "segments": [segment("sounding", BELL["mask"])]},
            {"timestamp": 12.0, "segments": []},
        ]
        paths = write_masks(tmp_path / "masks", results, {0: "sounding"}, SIZE)
        assert [path.name for path in paths] == ["0000_at_0.938s.png", "0001_at_12.000s.png"]
        with Image.open(paths[0]) as first, Image.open(paths[1]) as second:
            assert (first.mode, second.mode, second.size) == ("L", "L", SIZE)
            assert (np.asarray(first) == np.asarray(BELL["mask"])).all()
            assert second.getextrema() == (0, 0)

    def test_names_of_a_long_video_are_in_order_of_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(Image.Image, "save", lambda *_: None)
        results = [{"timestamp": float(number), "segments": []} for number in range(10_001)]
        paths = write_masks(tmp_path, results, {0: "sounding"}, (1, 1))
        assert paths == sorted(paths)
        assert paths[3].name == "00003_at_3.000s.png"

    def test_semantic_pixels_are_class_ids_in_class_colors(self, tmp_path: Path):
        paths = write_masks(tmp_path, RESULTS, ID2LABEL, SIZE)
        with Image.open(paths[2]) as image:
            assert image.mode == "P"
            ids, colors = np.asarray(image), np.asarray(image.convert("RGB"))
        assert (ids[30, 20], ids[30, 70], ids[0, 0]) == (1, 2, 0)
        assert ((ids == 1) == (np.asarray(BELL["mask"]) == 255)).all()
        assert tuple(colors[30, 20]) == COLORS["bell"]
        assert tuple(colors[30, 70]) == COLORS["drum"]
        assert tuple(colors[0, 0]) == (0, 0, 0)
