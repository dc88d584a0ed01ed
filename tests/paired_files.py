"""Photos with masks and recordings in every layout that paired data read, for tests."""

import csv
import functools
import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import yaml
from PIL import Image

from modeling_pcmanet.media_writing_pcmanet import encode_wav


RATE = 16000
TONES = {"dog": 400.0, "cat": 700.0, "bird": 1100.0, "drum": 1700.0, "rain": 2600.0}  # hertz, one per label
HALF = np.s_[:, :32]  # the first object fills the left half of a photo, the second one a part of the right half
SECOND = np.s_[16:32, 40:56]


def make_mask(first: int, second: int = 0, void: bool = False) -> np.ndarray:
    """Return uint8 (48, 64) with one or two objects."""
    mask = np.zeros((48, 64), dtype=np.uint8)
    mask[HALF], mask[SECOND] = first, second
    if void:
        mask[:, 31:33] = 255
    return mask


def write_photo(path: Path, mask: np.ndarray) -> None:
    """Write a photo whose colors tell the mask value: red is 40 times the value, void is blue."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((*mask.shape, 3), dtype=np.uint8)
    pixels[..., 0] = np.where(mask == 255, 0, mask * 40)
    pixels[..., 2] = np.where(mask == 255, 255, 0)
    Image.fromarray(pixels).save(path, quality=95)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask of one channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    """Write a csv file with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_photo_folder(root: Path, count: int = 12) -> None:
    """Write photos in the layout `folder`: in turn a dog, a cat, a bird, and a dog with a cat."""
    pairs = [(1, 0), (2, 0), (3, 0), (1, 2)]
    names = [f"photo_{number:02d}" for number in range(count)]
    for number, name in enumerate(names):
        mask = make_mask(*pairs[number % len(pairs)], void=number == 0)
        write_photo(root / "images" / f"{name}.jpg", mask)
        write_mask(root / "masks" / f"{name}.png", mask)
    write_table(root / "photos.csv", [{"id": name} for name in names])
    (root / "classes.txt").write_text("background\ndog\ncat\nbird\n", encoding="utf-8")


def write_tone(path: Path, label: str, seconds: float = 2.0, amplitude: float = 0.3) -> None:
    """Write a tone of the label's frequency as wav or ogg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_tone(path.suffix, label, seconds, amplitude))


@functools.cache
def encode_tone(suffix: str, label: str, seconds: float, amplitude: float) -> bytes:
    """Encode a tone once for all tests, which write hundreds of them."""
    time = np.arange(round(seconds * RATE)) / RATE
    waveform = (amplitude * np.sin(2 * np.pi * TONES[label] * time)).astype(np.float32)
    if suffix == ".wav":
        return encode_wav(waveform[None], RATE)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(waveform[None], format="flt", layout="mono")
        frame.sample_rate = RATE
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return buffer.getvalue()


def write_sound_table(root: Path, groups: int = 6) -> Path:
    """Write recordings and their table: two per group and label, alternately wav and ogg."""
    rows = []
    for label in TONES:
        for group in range(groups):
            for part, suffix in enumerate(("wav", "ogg")):
                name = f"{label}/{group}_{part}.{suffix}"
                write_tone(root / name, label)
                rows.append({"file": name, "class": label, "group": f"{label}-{group}"})
    write_table(root / "sounds.csv", rows)
    return root / "sounds.csv"


def settings_values(**changes: Any) -> dict[str, Any]:
    """Return the contents of a settings file for `write_photo_folder` and `write_sound_table`."""
    values: dict[str, Any] = {
        "photos": [{"layout": "folder", "path": "photos"}],
        "recordings": [{"layout": "table", "path": "sounds/sounds.csv"}],
        "classes": {name: {"photos": [name], "sounds": [name], "avss": name} for name in ("dog", "cat", "bird")},
        "background": ["rain"],
        "unknown": ["drum"],
        "splits": {"val": 0.2, "test": 0.2},
        "clips": {"sampling_rate": RATE, "image_size": 64, "seconds": 3},
    }
    return values | changes


def write_settings(root: Path, **changes: Any) -> Path:
    """Write a settings file; its clips are changed field by field."""
    clips = settings_values()["clips"] | changes.pop("clips", {})
    path = root / "paired.yaml"
    path.write_text(yaml.safe_dump(settings_values(**changes, clips=clips), sort_keys=False), encoding="utf-8")
    return path


def write_paired_data(root: Path, **changes: Any) -> Path:
    """Write photos, recordings and settings, and return the settings file."""
    write_photo_folder(root / "photos")
    write_sound_table(root / "sounds")
    return write_settings(root, **changes)


def write_coco(root: Path) -> None:
    """Write two photos in the layout `coco`: a dog as a polygon with a cat in front as RLE, and one without objects."""
    mask = make_mask(1)
    mask[16:32, 8:24] = 2
    write_photo(root / "images" / "000001.jpg", mask)
    write_photo(root / "images" / "000002.jpg", make_mask(0))
    cat = (mask == 2).ravel(order="F").astype(int)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], cat, [1 - cat[-1]]])))
    counts = np.diff(np.concatenate([[0], changes])).tolist()
    annotations = [
        # The small cat is listed first and must still be drawn over the dog.
        {"image_id": 1, "category_id": 17, "area": 256, "segmentation": {"counts": counts, "size": [48, 64]}},
        {"image_id": 1, "category_id": 18, "area": 1536, "segmentation": [[0, 0, 32, 0, 32, 48, 0, 48]]},
    ]
    images = [{"id": k, "file_name": f"00000{k}.jpg", "height": 48, "width": 64} for k in (1, 2)]
    categories = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}, {"id": 16, "name": "bird"}]
    values = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(values), encoding="utf-8")
