"""Turn an overlay into an animated image for a web page, with the loudness of the audio below the frames.

    pcmanet demo --output demo_output
    python -m pcmanet.examples.animate_overlay demo_output/real_world/overlay.mp4 --output overlay.webp

The suffix of OUTPUT selects the format: .webp, or .gif, which is larger and has 256 colors. The bars that were heard before
the shown frame are dark.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from modeling_pcmanet.media_pcmanet import Media, read_media
from pcmanet.options import positive, positive_integer
from pcmanet.pipelines.timeline import loudness


BARS_HEIGHT = 40  # pixels below the frames
BAR_STEP, BAR_WIDTH = 4, 3  # pixels
BACKGROUND, HEARD, COMING = "#ffffff", "#334155", "#cbd5e1"


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("video", type=Path, help="overlay.mp4 of `pcmanet segment --overlay`, or any video with audio")
    parser.add_argument("--output", type=Path, required=True, help=".webp or .gif file to write")
    parser.add_argument("--frames-per-second", type=positive, default=5.0, help="rate of the animation (default: 5)")
    parser.add_argument("--width", type=positive_integer, default=512, help="width in pixels (default: 512)")
    return parser.parse_args()


def draw_bars(levels: np.ndarray, size: tuple[int, int], position: float) -> Image.Image:
    """Draw the loudness of the video as bars.

    Args:
        levels: (bars,) in [0, 1].
        size: Width and height of the image, in pixels.
        position: Fraction of the video that has been heard, 0 to 1.
    """
    image = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(image)
    middle = size[1] / 2
    for number, level in enumerate(levels):
        left, half = number * BAR_STEP, max(1.0, level * (middle - 2))
        color = HEARD if (number + 1) / len(levels) <= position else COMING
        draw.rectangle((left, middle - half, left + BAR_WIDTH - 1, middle + half), fill=color)
    return image


def draw_frames(media: Media, frames_per_second: float, width: int) -> list[Image.Image]:
    """Draw the frames of a video, each with the bars below it.

    Args:
        media: Frames and audio of the video.
        frames_per_second: Rate of the frames, in hertz (Hz).
        width: Width of the images, in pixels.
    """
    count, height, original_width = media.frames.shape[:3]
    height = round(height * width / original_width)
    levels = loudness(media.waveform, media.sampling_rate, count / frames_per_second, width // BAR_STEP)
    images = []
    for number, frame in enumerate(media.frames, start=1):
        image = Image.new("RGB", (width, height + BARS_HEIGHT))
        image.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))
        image.paste(draw_bars(levels, (width, BARS_HEIGHT), number / count), (0, height))
        images.append(image)
    return images


def animate(args: argparse.Namespace) -> None:
    """Read the video, draw the audio below its frames, and write the animation."""
    media = read_media(args.video, frames_per_second=args.frames_per_second)
    images = draw_frames(media, args.frames_per_second, args.width)
    milliseconds = round(1000 / args.frames_per_second)
    # loop=0: it repeats endlessly. Quality and method are settings of WebP; GIF ignores them.
    settings = {"duration": milliseconds, "loop": 0, "quality": 70, "method": 6}
    images[0].save(args.output, save_all=True, append_images=images[1:], **settings)
    print(f"{args.output}: {len(images)} frames, {args.output.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    """Write the animation, or say why it cannot be written."""
    args = parse_args()
    try:
        animate(args)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
