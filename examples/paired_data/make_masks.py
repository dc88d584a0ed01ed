r"""Make masks for photos of single objects on plain backgrounds, such as those of Caltech 101, with GrabCut.

    pip install opencv-python-headless      # the only requirement that the library itself does not have
    python examples/paired_data/make_masks.py caltech101 masked --classes airplanes accordion --sheets sheets
    python examples/paired_data/make_masks.py caltech101 masked --classes airplanes accordion \
        --only examples/paired_data/caltech101_masks.txt

PHOTOS holds images/ID.jpg and photos.csv with the columns id and class. OUTPUT becomes a folder of photos as paired data
reads it: images/, masks/ (1 and up: the class, 255: the outline, ignored), photos.csv and classes.txt.

GrabCut (Rother et al., SIGGRAPH 2004) starts from the colors of the border, so an object on a busy background gets a
wrong mask. Masks that are implausible are left out. Look at the others: --sheets writes images of all masks with their
ids, and --only restricts the photos to the ids in a text file, one per line. caltech101_masks.txt contains the ids of
Caltech 101 with a good mask, chosen by eye.
"""

import argparse
import csv
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm


BORDER = 0.02  # of the longest side: the frame around the photo that is certainly background
WHITE, MARGIN = 250, 0.97  # gray value, and fraction of white pixels from which a row or column is margin
FAR = 8.0  # distance in CIELAB from the closest border color beyond which a pixel may be part of the object
ITERATIONS = 6  # of GrabCut
AREA = (0.04, 0.8)  # plausible fraction of the photo
TOUCHING = 0.25  # maximum fraction of the border strip that a plausible object covers
SMALL_PART = 0.1  # parts smaller than this fraction of the largest one are removed, holes of this size are filled
VOID = 255
THUMBNAIL, COLUMNS, PER_SHEET = 190, 8, 48


def make_mask(photo: np.ndarray) -> np.ndarray | None:
    """Separate the object from the background.

    Args:
        photo: uint8 (height, width, 3), RGB.

    Returns:
        bool (height, width), True on the object; None if the result is implausible.
    """
    inside = _without_margins(photo)
    part = np.ascontiguousarray(photo[inside])
    strip = _border(part.shape[:2])
    # Everything may be the object, except the border and what has its colors.
    state = np.where(_distance_from_border_colors(part, strip) > FAR, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    state[strip] = cv2.GC_BGD
    if not (state == cv2.GC_PR_FGD).any():
        return None
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    cv2.grabCut(cv2.cvtColor(part, cv2.COLOR_RGB2BGR), state, None, *models, ITERATIONS, cv2.GC_INIT_WITH_MASK)
    mask = np.zeros(photo.shape[:2], dtype=bool)
    mask[inside] = _clean(state == cv2.GC_PR_FGD)
    close = cv2.dilate(mask[inside].astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    plausible = AREA[0] < mask.mean() < AREA[1] and close[strip].mean() < TOUCHING
    return mask if plausible else None


def _without_margins(photo: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns without white margins, which many photos of Caltech 101 have."""
    white = (photo >= WHITE).all(axis=2)
    rows, columns = (np.flatnonzero(white.mean(axis=axis) < MARGIN) for axis in (1, 0))
    if len(rows) < photo.shape[0] / 3 or len(columns) < photo.shape[1] / 3:
        return slice(None), slice(None)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _border(shape: tuple[int, ...]) -> np.ndarray:
    """Return bool (height, width), True on the frame around the photo."""
    width = max(2, round(BORDER * max(shape)))
    strip = np.ones(shape, dtype=bool)
    strip[width:-width, width:-width] = False
    return strip


def _distance_from_border_colors(photo: np.ndarray, strip: np.ndarray) -> np.ndarray:
    """Return the distance of each pixel to the closest of the colors of the border, in CIELAB."""
    lab = cv2.cvtColor(photo.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    cv2.setRNGSeed(0)
    _, _, colors = cv2.kmeans(lab[strip], 4, np.empty(0), criteria, 2, cv2.KMEANS_PP_CENTERS)
    return np.min([np.linalg.norm(lab - color, axis=2) for color in colors], axis=0)


def _clean(mask: np.ndarray) -> np.ndarray:
    """Smooth the outline, remove small parts and fill small holes."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    smooth = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    smooth = cv2.morphologyEx(smooth, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    kept = _large_parts(smooth > 0, SMALL_PART)
    holes = ~kept
    return kept | (holes & ~_large_parts(holes, SMALL_PART * kept.sum() / max(1, holes.sum())))


def _large_parts(mask: np.ndarray, fraction: float) -> np.ndarray:
    """Keep the connected parts with at least a fraction of the pixels of the largest one."""
    _, parts, sizes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    large = sizes[:, cv2.CC_STAT_AREA] >= fraction * max([1, *sizes[1:, cv2.CC_STAT_AREA]])
    large[0] = False
    return large[parts]


def _with_outline(mask: np.ndarray, value: int) -> np.ndarray:
    """Return the mask with a class index, and its outline, where GrabCut is least certain, as void."""
    outline = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    return np.where(outline, VOID, np.where(mask, value, 0)).astype(np.uint8)


def _write_sheets(folder: Path, masked: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> None:
    """Write images of many photos, darkened where the mask is background, with the outline in red."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, len(masked), PER_SHEET)):
        part = masked[first : first + PER_SHEET]
        rows = -(-len(part) // COLUMNS)
        sheet = Image.new("RGB", (COLUMNS * THUMBNAIL, rows * (THUMBNAIL + 12)), "white")
        for place, (name, photo, mask) in enumerate(part):
            left, top = place % COLUMNS * THUMBNAIL, place // COLUMNS * (THUMBNAIL + 12)
            picture = np.where(mask[..., None] == 0, photo // 4, photo)
            picture[mask == VOID] = (255, 0, 0)
            thumbnail = Image.fromarray(picture.astype(np.uint8))
            thumbnail.thumbnail((THUMBNAIL - 4, THUMBNAIL - 4))
            sheet.paste(thumbnail, (left, top + 12))
            ImageDraw.Draw(sheet).text((left, top), name[-30:], fill="black")
        sheet.save(folder / f"sheet_{number:02d}.png")


def _read_photos(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Return id and class of the photos to mask."""
    only = set(args.only.read_text(encoding="utf-8").split()) if args.only else None
    with (args.photos / "photos.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["id"], row["class"]) for row in csv.DictReader(file)]
    if unknown := sorted(set(args.classes) - {label for _, label in rows}):
        sys.exit(f"No photos of {', '.join(unknown)} found in {args.photos / 'photos.csv'}.")
    return [(name, label) for name, label in rows if label in args.classes and (only is None or name in only)]


def _mask_photos(args: argparse.Namespace) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Yield id, class, photo and mask of each photo with a plausible mask."""
    for name, label in tqdm(_read_photos(args), desc="masking", unit="photo"):
        photo = np.asarray(Image.open(args.photos / "images" / f"{name}.jpg").convert("RGB"))
        mask = make_mask(photo)
        if mask is not None:
            yield name, label, photo, _with_outline(mask, args.classes.index(label) + 1)


def main() -> None:
    """Write the folder of photos with masks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="folder with images/ and photos.csv")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder to write; it must not exist")
    parser.add_argument("--classes", nargs="+", required=True, help="classes to mask")
    parser.add_argument("--only", type=Path, help="text file of the ids to mask")
    parser.add_argument("--sheets", type=Path, help="folder for images of the masks")
    args = parser.parse_args()
    for folder in ("images", "masks"):
        (args.output / folder).mkdir(parents=True)
    masked = []
    with (args.output / "photos.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("id", "class"))
        for name, label, photo, mask in _mask_photos(args):
            shutil.copy(args.photos / "images" / f"{name}.jpg", args.output / "images")
            Image.fromarray(mask).save(args.output / "masks" / f"{name}.png")
            table.writerow((name, label))
            masked += [(name, photo, mask)] if args.sheets else []
    (args.output / "classes.txt").write_text("\n".join(["background", *args.classes]) + "\n", encoding="utf-8")
    if args.sheets:
        _write_sheets(args.sheets, masked)


if __name__ == "__main__":
    main()
