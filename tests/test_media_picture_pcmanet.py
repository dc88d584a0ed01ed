"""Pictures as a player shows them: upright, every pixel format, square pixels, one size."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from modeling_pcmanet.media_notes_pcmanet import MediaNotes
from modeling_pcmanet.media_pcmanet import MediaError, iterate_frames, read_media
from modeling_pcmanet.media_picture_pcmanet import PictureMaker, shown_size


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


def film(path: Path, sizes: list[tuple[int, int]]) -> tuple[list[av.VideoFrame], av.video.stream.VideoStream]:
    """Opens a film of one frame, and makes grey frames of the sizes (width, height)."""
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
    frames, video = film(tmp_path / "film.mkv", [(64, 48), (32, 24), (32, 24)])
    notes = MediaNotes("a film")
    maker = PictureMaker(video, notes)
    pictures = [maker.make(frame) for frame in frames]
    assert [picture.shape for picture in pictures] == [(48, 64, 3)] * 3
    assert [int(picture.mean()) for picture in pictures] == [50, 100, 150]
    assert notes.texts == ["its picture is 64x48 at first and 32x24 later; it keeps the first size"]


def test_the_same_frame_twice_is_converted_once(tmp_path: Path) -> None:
    frames, video = film(tmp_path / "film.mkv", [(64, 48), (64, 48)])
    maker = PictureMaker(video, MediaNotes("a film"))
    first = maker.make(frames[0])
    assert maker.make(frames[0]) is first
    assert maker.make(frames[1]) is not first


def test_a_frame_that_grows_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    frames, video = film(tmp_path / "film.mkv", [(64, 48), (9000, 9000)])
    with pytest.raises(MediaError, match=r"a film: its picture is 9000x9000, 81 million pixels"):
        PictureMaker(video, MediaNotes("a film")).make(frames[1])
