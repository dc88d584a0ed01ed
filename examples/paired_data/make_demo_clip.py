"""Make the bundled real-world clip, examples/real_world.mp4, from openly licensed photos and recordings.

    python examples/paired_data/make_demo_clip.py ../shared/real examples/real_world.mp4

Ten seconds: a dog and a rooster side by side (the dog, then the rooster, then both, then two seconds of silence), and a
helicopter next to a motorcycle that stays silent, at the end with a dog that is not in view. The bundled model was
trained on none of these photos and recordings. Their sources and licenses are listed below, and in the file OUTPUT
with the suffix .txt, which is written next to the clip.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from modeling_pcmanet.media_pcmanet import read_audio
from modeling_pcmanet.media_writing_pcmanet import write_video


SIZE = (288, 512)  # height and width of the frames
FRAMES_PER_SECOND = 25
SECONDS = 10
SAMPLING_RATE = 48_000
LEVEL = 0.12  # root mean square of the loudest second of a sound
FADE = 0.02  # seconds of fading at both ends of a sound


@dataclass(frozen=True)
class Tile:
    """A photo that is shown in one half of the frame, through a window that moves over it.

    Attributes:
        file: The photo, in the folder of the sources.
        start: Second at which it appears.
        stop: Second at which it disappears.
        side: 0 for the left half, 1 for the right half.
        center: Horizontal position of the window in the photo at the start and at the end, 0 (left) to 1 (right).
        zoom: Magnification at the start and at the end; 1 shows the full height of the photo.
        origin: Its source and license.
    """

    file: str
    start: int
    stop: int
    side: int
    center: tuple[float, float]
    zoom: tuple[float, float]
    origin: str


@dataclass(frozen=True)
class Sound:
    """A part of a recording.

    Attributes:
        file: The recording, in the folder of the sources.
        at: Second of the clip at which it starts.
        duration: In seconds.
        offset: Second of the recording at which the part starts.
        decibels: Level relative to the other sounds.
        origin: Its source and license.
    """

    file: str
    at: float
    duration: float
    offset: float
    decibels: float
    origin: str


CALTECH = "Caltech 101 (Li, Andreeto, Ranzato, Perona), CC BY 4.0, https://doi.org/10.22002/D1.20086"
ESC10 = "CC0, by {} on Freesound, https://freesound.org/s/{}/, from ESC-10 (Piczak)"
TILES = (
    Tile("caltech101/images/dalmatian_image_0016.jpg", 0, 6, 0, (0.35, 0.5), (1.0, 1.1), f"Dog: {CALTECH}"),
    Tile("caltech101/images/rooster_image_0013.jpg", 0, 6, 1, (0.6, 0.5), (1.0, 1.05), f"Rooster: {CALTECH}"),
    Tile("caltech101/images/helicopter_image_0043.jpg", 6, 10, 0, (0.5, 0.5), (1.0, 1.0), f"Helicopter: {CALTECH}"),
    Tile("caltech101/images/Motorbikes_image_0120.jpg", 6, 10, 1, (0.4, 0.6), (1.2, 1.2), f"Motorcycle: {CALTECH}"),
)
DOG = "sounds/dog/esc10_4-183992-A.ogg"
SOUNDS = (
    Sound(DOG, 0.1, 1.8, 0.0, 0.0, ESC10.format("qubodup", 183992)),
    Sound("sounds/rooster/esc10_3-154957-A.ogg", 2.0, 2.0, 0.0, 0.0, ESC10.format("signorvaso", 154957)),
    Sound(DOG, 3.0, 1.0, 0.0, 0.0, ESC10.format("qubodup", 183992)),
    Sound("sounds/helicopter/esc10_2-188822-A.ogg", 6.0, 4.0, 0.5, 0.0, ESC10.format("peridactyloptrix", 188822)),
    Sound("sounds/dog/esc10_2-122104-A.ogg", 9.0, 1.0, 0.0, -3.0, ESC10.format("rickyjezz", 122104)),
)


def draw_frame(photos: dict[str, Image.Image], second: float) -> np.ndarray:
    """Draw the frame at a time: uint8 (height, width, 3)."""
    height, width = SIZE
    frame = np.zeros((height, width, 3), np.uint8)
    for tile in TILES:
        if tile.start <= second < tile.stop:
            left = tile.side * width // 2
            frame[:, left : left + width // 2] = draw_tile(photos[tile.file], tile, second)
    return frame


def draw_tile(photo: Image.Image, tile: Tile, second: float) -> np.ndarray:
    """Draw the part of a photo that its window shows at a time."""
    height, width = SIZE[0], SIZE[1] // 2
    progress = (second - tile.start) / (tile.stop - tile.start)
    center, zoom = (np.interp(progress, (0, 1), ends) for ends in (tile.center, tile.zoom))
    # The largest window with the aspect of the tile, made smaller by the zoom.
    extent = np.array([width, height]) * min(photo.width / width, photo.height / height) / zoom
    room = np.array(photo.size) - extent
    corner = room * np.array([center, 0.5])
    box = tuple(float(value) for value in (*corner, *(corner + extent)))
    return np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC, box=box))  # pyright: ignore[reportArgumentType]


def mix_sounds(folder: Path) -> np.ndarray:
    """Mix the sounds: float32 (1, samples)."""
    mixture = np.zeros(SECONDS * SAMPLING_RATE, np.float32)
    for sound in SOUNDS:
        samples = load_sound(folder / sound.file, sound)
        start = round(sound.at * SAMPLING_RATE)
        mixture[start : start + len(samples)] += samples[: len(mixture) - start]
    return (mixture / max(1.0, float(np.abs(mixture).max()) / 0.99))[None]


def load_sound(path: Path, sound: Sound) -> np.ndarray:
    """Read a part of a recording at its level, float32 (samples,)."""
    waveform, rate = read_audio(path)
    mono = waveform.mean(axis=0)
    part = mono[round(sound.offset * rate) :][: round(sound.duration * rate)]
    times = np.arange(round(len(part) * SAMPLING_RATE / rate)) / SAMPLING_RATE
    samples = np.interp(times, np.arange(len(part)) / rate, part)
    window = min(len(samples), SAMPLING_RATE)
    sums = np.cumsum(np.square(samples))
    power = max(sums[window - 1], (sums[window:] - sums[:-window]).max(initial=0.0)) / window
    ramp = np.minimum(1, np.minimum(times, times[::-1]) / FADE)
    return (samples * ramp * LEVEL / np.sqrt(power) * 10 ** (sound.decibels / 20)).astype(np.float32)


def main() -> None:
    """Write the clip and the list of its sources."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("sources", type=Path, help="folder with caltech101/ and sounds/")
    parser.add_argument("output", type=Path, help="mp4 to write")
    arguments = parser.parse_args()
    photos = {tile.file: Image.open(arguments.sources / tile.file).convert("RGB") for tile in TILES}
    frames = (draw_frame(photos, number / FRAMES_PER_SECOND) for number in range(SECONDS * FRAMES_PER_SECOND))
    audio = mix_sounds(arguments.sources)
    write_video(arguments.output, frames, FRAMES_PER_SECOND, audio, SAMPLING_RATE)
    origins = list(
        dict.fromkeys(
            [*(tile.origin for tile in TILES), *(f"{Path(s.file).parent.name} sound: {s.origin}" for s in SOUNDS)]
        )
    )
    text = "\n".join(["Sources of the bundled clip, cropped, resized and mixed:", *origins]) + "\n"
    arguments.output.with_suffix(".txt").write_text(text, encoding="utf-8")
    print(f"Written: {arguments.output} and {arguments.output.with_suffix('.txt')}")


if __name__ == "__main__":
    main()
