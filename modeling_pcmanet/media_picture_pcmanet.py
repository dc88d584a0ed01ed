"""Decoded frames -> pictures as a player shows them: upright, with square pixels, without combs and transparency."""

import logging
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from .media_notes_pcmanet import MediaNotes
from .media_source_pcmanet import MediaError, check_picture_size


# Wide film on narrow video is 2 or less; what is beyond 4 was never meant.
LARGEST_PIXEL_ASPECT = 4


class PictureMaker:
    """Turns the decoded frames of one video into RGB pictures of one size, that which a player shows.

    Args:
        video: The stream that the frames come from.
        notes: Where to say what was done to them.

    Attributes:
        name: What error messages call the source.
    """

    def __init__(self, video: VideoStream, notes: MediaNotes) -> None:
        self.name = notes.name
        self._notes = notes
        self._aspect = _pixel_aspect(video, notes)
        self._stored_size: tuple[int, int] | None = None
        self._size = (0, 0)
        self._reformatter = VideoReformatter()
        self._frame: av.VideoFrame | None = None
        self._picture: np.ndarray | None = None

    def measure(self, frame: av.VideoFrame) -> None:
        """Takes the size of all pictures from the first frame; later frames of another size are resized to it."""
        size = (frame.width, frame.height)
        if self._stored_size is None:
            self._stored_size, self._size = size, shown_size(*size, self._aspect)
            check_picture_size(*self._size, self.name)
        elif size != self._stored_size:
            width, height = self._stored_size
            self._notes.add(
                f"its picture is {width}x{height} at first and {size[0]}x{size[1]} later; it keeps the first size"
            )

    def make(self, frame: av.VideoFrame) -> np.ndarray:
        """Returns a frame as uint8 RGB (height, width, 3), what a player shows; twice the same frame, the same array."""
        self.measure(frame)
        if frame is not self._frame:
            self._frame, self._picture = frame, self._make(frame)
        return self._picture

    def _make(self, frame: av.VideoFrame) -> np.ndarray:
        """Converts a frame."""
        try:
            picture = self._combed_picture(frame) if frame.interlaced_frame else self._convert(frame, self._size)
        except ValueError as error:
            raise MediaError(
                f"{self._notes}: its pixel format {frame.format.name} cannot be turned into RGB ({error}). "
                "Convert the video to H.264 first."
            ) from error
        return _turn(picture, frame)

    def _convert(self, frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
        """Returns a frame in RGB at (width, height), transparent parts on black."""
        is_transparent = any(component.is_alpha for component in frame.format.components)
        form = "rgba" if is_transparent else "rgb24"

        # One thread: PyAV's own conversion threads outlive the call, and a forked loader process waits for them for ever.
        picture = self._reformatter.reformat(frame, width=size[0], height=size[1], format=form, threads=1).to_ndarray()
        if not is_transparent:
            return picture
        if (picture[..., 3] < 255).any():
            self._notes.add("its picture is transparent in parts; these are shown on black", logging.INFO)
        colours, alpha = picture[..., :3].astype(np.uint16), picture[..., 3:].astype(np.uint16)
        return ((colours * alpha + 127) // 255).astype(np.uint8)

    def _combed_picture(self, frame: av.VideoFrame) -> np.ndarray:
        """Returns an interlaced frame in RGB: its upper field, the rows between rebuilt from their neighbours.

        The two fields are two moments; shown as one picture, all that moves has combs for edges.
        """
        self._notes.add("its picture is interlaced; one field of each frame is shown", logging.INFO)
        picture = np.array(self._convert(frame, (frame.width, frame.height)))
        upper = picture[::2]
        below = np.concatenate([upper[1:], upper[-1:]])
        rebuilt = (upper.astype(np.uint16) + below + 1) // 2
        picture[1::2] = rebuilt[: len(picture) // 2]
        if self._size == (frame.width, frame.height):
            return picture
        return self._convert(av.VideoFrame.from_ndarray(picture, format="rgb24"), self._size)


def shown_size(width: int, height: int, pixel_aspect: Fraction) -> tuple[int, int]:
    """Returns width and height with square pixels, so that nothing gets smaller (as browsers do).

    Args:
        width: Of the stored picture, in pixels.
        height: Of the stored picture, in pixels.
        pixel_aspect: Width of a pixel divided by its height.
    """
    if pixel_aspect > 1:
        return round(width * pixel_aspect), height
    return width, round(height / pixel_aspect)


def _pixel_aspect(video: VideoStream, notes: MediaNotes) -> Fraction:
    """Returns the width of a pixel divided by its height, 1 where the video does not tell or cannot mean what it tells."""
    aspect = video.sample_aspect_ratio or Fraction(1)
    if not Fraction(1, LARGEST_PIXEL_ASPECT) <= aspect <= LARGEST_PIXEL_ASPECT:
        notes.add(
            f"its pixel aspect of {aspect.numerator}:{aspect.denominator} cannot be meant; pixels are taken as square"
        )
        return Fraction(1)
    if aspect != 1:
        notes.add(
            f"its pixels are {aspect.numerator}:{aspect.denominator}; pictures are stretched to square ones",
            logging.INFO,
        )
    return aspect


def _turn(picture: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Turns and mirrors a picture (height, width, 3) by quarter turns as the metadata of its frame say."""
    try:
        display_matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV (18.1) knows no EXIF data, which photographs bring along, and then shows no side data at all: the angle
        # is left, whether the picture is mirrored as well is not told.
        return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))
    if display_matrix is None:
        return np.ascontiguousarray(picture)

    # x' = a x + c y and y' = b x + d y: quarter turns, mirrored or not.
    a, b, _, c, d = np.frombuffer(bytes(display_matrix), dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
