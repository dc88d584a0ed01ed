"""How well does a real-world model segment held-out photos with held-out recordings, and what does it get wrong?

    python benchmarks/real_world.py examples/real_world_model --data examples/paired_data/real_world.yaml
    python benchmarks/real_world.py runs/real_world --data examples/paired_data/real_world.yaml --split val --clips 100
    python benchmarks/real_world.py MODEL --data examples/paired_data/real_world.yaml --pictures sheet.jpg --only 3 7 12

The photos and recordings of a split are paired by class (dataset_scripts/paired). Every clip is one frame with the audio around
it, except for the last row. The script measures

- matching sounds: the mean IoU over the six first classes and over all classes (intersections and unions summed over
  the dataset), the mean over frames of the binary IoU (AVSBench's measure), and how often the largest predicted
  segment has the right class; for all recordings, and for the clear ones, whose class the audio encoder itself scores
  highest;
- two photos side by side, once under each of two sounds: how often both masks cover at least half of the object that
  sounds and less than half of the other, and the false-positive rate on the silent object;
- the false-positive rate on silent audio, with background recordings, with sounds of no class, with sounds of a
  class that is not in view, and in clips of five seconds with the sound of another class.

With `--pictures` it draws clips instead: half of them single photos, half of them two photos side by side, with the
prediction in color, the outline of the ground truth in white, the IoU, and the labels of the sounds; `--only` selects
clips by number.

A class without recordings (its stand-ins, see `stand_ins` in dataset_scripts/paired/settings.py) is measured with exchanged
scores of a recording of another class; the table marks it.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm import tqdm

from modeling_pcmanet import PCMANetForAudioVisualSegmentation, PCMANetProcessor
from pcmanet.dataset_scripts.collation import ClipCollator
from pcmanet.dataset_scripts.paired import Library, PairedClip, PairedClips, read_settings
from pcmanet.pipelines.colors import class_colors
from pcmanet.training.data import collate_with_order, embed_with_order


FIRST_CLASSES = ("person", "dog", "cat", "horse", "sheep", "cow")
IGNORED = 255
TILE, TITLE = (320, 240), 22  # pixels of a drawn clip and of the line above it
ONE_FRAME = {
    "seconds": 1,
    "context_seconds": 2.0,
    "clips_per_picture": 1,
    "still": 0.5,
    "steady": 1.0,
    "background": 0.0,
    "distractor": 0.0,
    "second_sound": 0.0,
    "pictures": {"single": 1.0},
    "stand_ins": True,
}


class Predictor:
    """Segments clips and scores their audio.

    Args:
        model: Folder or Hub id of a checkpoint.
        threads: CPU threads.
    """

    def __init__(self, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        network = PCMANetForAudioVisualSegmentation.from_pretrained(model).eval()
        self.processor = PCMANetProcessor.from_pretrained(model)
        self.collate = ClipCollator(self.processor, binary=False)
        self.network = network.for_inference()
        self.audio_encoder, self.num_windows = network.model.audio_encoder, network.config.num_audio_windows
        self.groups = list(self.audio_encoder.config.score_groups)

    @torch.no_grad()
    def predict(self, clips: list[PairedClip]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the predicted classes (frames, height, width) and the audio scores (frames, groups) of each clip."""
        batch = dict(collate_with_order(self.collate, self.groups, clips))
        embeddings = embed_with_order(self.audio_encoder, self.num_windows, batch)["audio_embeds"]
        scores = embeddings.unflatten(-1, (self.num_windows, -1))
        outputs = self.network(batch["pixel_values"], audio_embeds=embeddings)
        sizes = [clip.frames.shape[1:3] for clip in clips]
        masks = self.processor.post_process_semantic_segmentation(outputs, sizes)
        return [mask.numpy() for mask in masks], [row[:, -1].numpy() for row in scores]


def evaluate(predictor: Predictor, clips: PairedClips, title: str, size: int = 16) -> Iterator[tuple[Any, ...]]:
    """Yield every clip with its prediction and its scores."""
    for first in tqdm(range(0, len(clips), size), desc=title, file=sys.stderr):
        batch = [clips[index] for index in range(first, min(first + size, len(clips)))]
        yield from zip(batch, *predictor.predict(batch), strict=True)


def measure_matching(predictor: Predictor, clips: PairedClips) -> dict[str, dict[str, Any]]:
    """Measure clips with matching sounds; return the measures of all and of the clear recordings."""
    names = clips.library.settings.class_names
    totals = {kind: {"sums": np.zeros((2, len(names))), "binary": [], "right": []} for kind in ("all", "clear")}
    columns = [predictor.groups.index(name) for name in names[1:]]
    for clip, predicted, scores in evaluate(predictor, clips, "matching sounds"):
        sounding = [event.index for event in clip.events if event.index]
        is_clear = len(sounding) == 1 and int(scores[0, columns].argmax()) + 1 == sounding[0]
        valid = clip.masks != IGNORED
        for kind in ("all", "clear") if is_clear else ("all",):
            total = totals[kind]
            for index in range(1, len(names)):
                is_predicted, is_true = (predicted == index) & valid, (clip.masks == index) & valid
                total["sums"][:, index] += (is_predicted & is_true).sum(), (is_predicted | is_true).sum()
            if ((clip.masks > 0) & valid).any():
                total["binary"].append(binary_iou(predicted > 0, clip.masks))
                areas = np.bincount(predicted[valid].ravel(), minlength=len(names))[1:]
                total["right"].append((sounding[0], bool(areas.any()) and int(areas.argmax()) + 1 == sounding[0]))
    return totals


def measure_choice(predictor: Predictor, clips: PairedClips) -> tuple[float, float, int]:
    """Measure pairs of clips that show the same two photos with two sounds; return both right, false-positive rate, pairs.

    Clips whose recording pauses in the second of the frame are left out: neither object sounds there.
    """
    right, silent, pairs, previous = [], [], 0, None
    for index, (clip, predicted, _) in enumerate(evaluate(predictor, clips, "two photos")):
        sounding = find_heard(clip)
        heard = np.isin(clip.visible, list(sounding))
        quiet = (clip.visible > 0) & (clip.visible != IGNORED) & ~heard
        positive = predicted > 0
        if not heard.any() or not quiet.any():
            previous = None
            continue
        silent.append(positive[quiet].mean())
        is_right = positive[heard].mean() >= 0.5 and positive[quiet].mean() < 0.5
        if index % 2 and previous is not None and previous[0] != sounding:
            pairs += 1
            right.append(previous[1] and is_right)
        previous = (sounding, is_right)
    return float(np.mean(right)), float(np.mean(silent)), pairs


def find_heard(clip: PairedClip) -> set[int]:
    """Return the classes that sound in the second of the first frame, in view or not; a recording may pause there."""
    return set(np.flatnonzero(clip.sounding[0]).tolist())


def measure_false_positives(predictor: Predictor, clips: PairedClips, title: str) -> float:
    """Return the false-positive rate: the fraction of pixels in a mask where nothing in view sounds."""
    return float(np.mean([(predicted > 0).mean() for _, predicted, _ in evaluate(predictor, clips, title)]))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", help="folder or Hub id of a checkpoint with an audio encoder that has score_groups")
    parser.add_argument("--data", required=True, help="settings of the paired data")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--clips", type=int, default=600, help="clips with matching sounds; other rows have fewer")
    parser.add_argument("--pictures", help="file of a sheet of 30 clips with predictions, in place of the tables")
    parser.add_argument("--only", type=int, nargs="+", help="with --pictures: numbers of the clips to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()

    predictor = Predictor(arguments.model, arguments.threads)
    library = Library(read_settings(arguments.data, ONE_FRAME), progress=True)

    def generate(count: int, **overrides: Any) -> PairedClips:
        library.settings = read_settings(arguments.data, ONE_FRAME | overrides)
        return PairedClips(library, "avss", arguments.split, length=count, seed=arguments.seed)

    if arguments.pictures is not None:
        clips = generate(
            arguments.clips, pictures={"single": 0.5, "mosaic": 0.5}, sounds={"matching": 0.9, "absent": 0.1}
        )
        draw_pictures(predictor, clips, arguments.only or list(range(30)), arguments.pictures)
        return
    print(f"`python benchmarks/real_world.py {' '.join(sys.argv[1:])}`\n")
    totals = measure_matching(predictor, generate(arguments.clips, sounds={"matching": 1.0}))
    names = library.settings.class_names
    recorded = {one.name for one in library.settings.classes if one.sounds}
    intersections, unions = totals["all"]["sums"]
    print("| class | IoU, all recordings | IoU, clear | right class, all | clips |\n|---|---|---|---|---|")
    for index, name in enumerate(names):
        results = [is_right for label, is_right in totals["all"]["right"] if label == index]
        if index and results:
            clear = totals["clear"]["sums"][:, index]
            mark = "" if name in recorded else " (stand-ins)"
            print(
                f"| {name}{mark} | {intersections[index] / max(1, unions[index]):.3f} | "
                f"{clear[0] / max(1, clear[1]):.3f} | {np.mean(results):.2f} | {len(results)} |"
            )
    print("\n| measure | all | clear |\n|---|---|---|")
    first = [names.index(name) for name in FIRST_CLASSES if name in names]
    for title, measure in (
        ("mIoU of the six first classes", lambda total: _mean_iou(total["sums"], first)),
        ("mIoU of all classes", lambda total: _mean_iou(total["sums"], range(1, len(names)))),
        ("binary mIoU, mean over frames", lambda total: float(np.mean(total["binary"]))),
        ("right class, mean over the six", lambda total: _mean_right(total["right"], first)),
    ):
        print(f"| {title} | {measure(totals['all']):.3f} | {measure(totals['clear']):.3f} |")
    choice = generate(arguments.clips // 2 * 2, pictures={"mosaic": 1.0}, clips_per_picture=2, contrast=1.0)
    right, silent, pairs = measure_choice(predictor, choice)
    print(
        f"| two photos: both right; false-positive rate on the silent object ({pairs} pairs) | {right:.3f} | {silent:.3f} |"
    )
    print("\n| where nothing in view sounds | false-positive rate |\n|---|---|")
    for kind in ("silence", "background", "unknown", "absent"):
        clips = generate(arguments.clips // 4, sounds={kind: 1.0}, contrast=0.0)
        print(f"| {kind} | {100 * measure_false_positives(predictor, clips, kind):.2f}% |")
    clips = generate(
        arguments.clips // 12, sounds={"absent": 1.0}, contrast=0.0, seconds=5, background=0.25, steady=0.5
    )
    print(f"| another class, clips of 5 s | {100 * measure_false_positives(predictor, clips, 'absent, 5 s'):.2f}% |")


def draw_pictures(predictor: Predictor, clips: PairedClips, numbers: list[int], path: str) -> None:
    """Draw clips with their predictions into one image."""
    columns, font = 6, ImageFont.load_default(size=13)
    sheet = Image.new("RGB", (columns * TILE[0], -(-len(numbers) // columns) * (TILE[1] + TITLE)), "white")
    drawing = ImageDraw.Draw(sheet)
    for place, number in enumerate(numbers):
        clip = clips[number]
        predicted = predictor.predict([clip])[0][0][0]
        left, top = place % columns * TILE[0], place // columns * (TILE[1] + TITLE)
        sheet.paste(_draw_clip(clip, predicted), (left, top + TITLE))
        names = ", ".join(dict.fromkeys(event.label for event in clip.events)) or "silence"
        drawing.text(
            (left + 4, top + 4),
            f"{number}: {names}, IoU {binary_iou(predicted > 0, clip.masks[0]):.2f}",
            "black",
            font,
        )
    sheet.save(path, quality=85)


def _draw_clip(clip: PairedClip, predicted: np.ndarray) -> Image.Image:
    """Draw the frame of a clip with the predicted pixels in color and the outline of the true ones in white."""
    frame, truth = clip.frames[0].copy(), (clip.masks[0] > 0) & (clip.masks[0] != IGNORED)
    colors = np.array([(0, 0, 0), *class_colors(dict(enumerate(clip.class_names))).values()], np.uint8)
    positive = predicted > 0
    frame[positive] = frame[positive] // 2 + colors[predicted[positive]] // 2
    inner = truth.copy()
    for axis in (0, 1):
        for shift in (-2, 2):
            inner &= np.roll(truth, shift, axis)
    frame[truth & ~inner] = 255
    return ImageOps.contain(Image.fromarray(frame), TILE)


def binary_iou(positive: np.ndarray, masks: np.ndarray) -> float:
    """Return the IoU of the predicted pixels (bool) with those of any class; 1 if there are none of either."""
    valid = masks != IGNORED
    positive, truth = positive & valid, (masks > 0) & valid
    union = (positive | truth).sum()
    return float((positive & truth).sum() / union) if union else 1.0


def _mean_iou(sums: np.ndarray, indices: Any) -> float:
    """Return the mean IoU of the classes that occur."""
    return float(np.mean([sums[0, index] / sums[1, index] for index in indices if sums[1, index]]))


def _mean_right(results: list[tuple[int, bool]], indices: list[int]) -> float:
    """Return the mean over classes of how often the class was right."""
    by_class = [[is_right for label, is_right in results if label == index] for index in indices]
    return float(np.mean([np.mean(found) for found in by_class if found]))


if __name__ == "__main__":
    main()
