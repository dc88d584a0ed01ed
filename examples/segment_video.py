"""Segments what sounds in a video: prints what was found second by second, draws it and writes the masks.

    python examples/segment_video.py clip.mp4                                # the demo model, results in clip_segmented/
    python examples/segment_video.py clip.mp4 --output results --frames-per-second 4
    python examples/segment_video.py clip.mp4 --overlay-frames-per-second 4  # second by second, but a smooth overlay
    python examples/segment_video.py clip.mp4 --model you/your-pcmanet       # a checkpoint: Hub id or local folder
    python examples/segment_video.py silent.mp4 --audio sound.wav            # sound from another file

The folder then holds `overlay.mp4` (the video with the masks and its own sound), `contact_sheet.png` (all of it at a
glance) and `masks/` (one PNG per network frame). It is written only when everything is done; an earlier result of this
script is replaced, a folder with anything else in it is left alone.
"""

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import Pipeline, pipeline
from transformers.utils import logging

from modeling_pcmanet.media_pcmanet import iterate_frames, read_audio, read_media
from pcmanet.pipelines import AudioVisualSegmentationPipeline
from pcmanet.pipelines.contact_sheet import draw_contact_sheet
from pcmanet.pipelines.overlay import class_colors, write_masks, write_overlay_video


DEMO_MODEL = Path(__file__).parent / "demo_model_semantic"
RESULT_FILES = re.compile(r"overlay\.mp4|contact_sheet\.png|masks/\d+_at_[\d.]+s\.png")


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Segments what sounds in a video.")
    parser.add_argument("video", help="video file (mp4, mkv, webm, mov ...) or http(s) URL")
    parser.add_argument("--output", type=Path, help="folder for the results (default: <name of the video>_segmented)")
    parser.add_argument(
        "--model", default=str(DEMO_MODEL), help="Hub id or folder of a checkpoint (default: the semantic demo model)"
    )
    parser.add_argument("--audio", help="file with the sound, for a video without a sound track")
    parser.add_argument("--threshold", type=float, help="probability that a pixel has to exceed (default: the task's)")
    parser.add_argument("--minimum-area", type=float, default=0.001, help="smallest share of the picture that counts")
    parser.add_argument("--frames-per-second", type=float, default=1.0, help="network frames per second of video")
    parser.add_argument(
        "--overlay-frames-per-second",
        type=float,
        help="a higher rate for the overlay alone, so that its masks follow what moves (default: the same rate)",
    )
    arguments = parser.parse_args()
    arguments.output = arguments.output or Path(f"{Path(arguments.video).stem}_segmented")
    return arguments


def check_output(folder: Path) -> None:
    """Refuses a folder that holds anything but results of this script, because it will be replaced."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file. Give another --output.")
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name != "masks" and not RESULT_FILES.fullmatch(name):
            raise FileExistsError(f"{folder} holds {name}, which this script did not write. Give another --output.")


def load_segmenter(model: str) -> Pipeline:
    """Loads a checkpoint, always with the code installed here."""
    if model.count("/") != 1 and not Path(model).is_dir():
        raise FileNotFoundError(f"There is no checkpoint folder {model}. Give a folder, or a Hub id as owner/name.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    segmenter = pipeline("audio-visual-segmentation", model=model, pipeline_class=AudioVisualSegmentationPipeline)
    logging.enable_progress_bar()
    return segmenter


def segment(segmenter: Pipeline, arguments: argparse.Namespace, frames_per_second: float) -> list[dict[str, Any]]:
    """Runs the pipeline on the video."""
    return segmenter(
        arguments.video,
        audio=arguments.audio,
        threshold=arguments.threshold,
        minimum_area=arguments.minimum_area,
        frames_per_second=frames_per_second,
        progress_bar=True,
    )


def print_table(results: list[dict[str, Any]]) -> None:
    """Prints what was found: a line for each segment, with its score and its share of the picture."""
    labels = [segment["label"] for result in results for segment in result["segments"]]
    width = max([len("nothing"), *map(len, labels)])
    print(f"{'second':>8}  {'what sounds':<{max(width, 11)}}  score  share of the picture")
    for result in results:
        time = f"{result['timestamp']:8.2f}"
        for found in result["segments"]:
            share = np.asarray(found["mask"]).mean() / 255
            print(f"{time}  {found['label']:<{max(width, 11)}}  {found['score']:5.2f}  {share:20.1%}")
            time = " " * 8
        if not result["segments"]:
            print(f"{time}  nothing")


def write_results(
    folder: Path, results: list[dict[str, Any]], segmenter: Pipeline, arguments: argparse.Namespace
) -> None:
    """Writes overlay, masks and contact sheet into a folder."""
    id2label = segmenter.model.config.id2label
    colors = class_colors(id2label)
    rate = arguments.frames_per_second
    media = read_media(arguments.video, frames_per_second=rate, audio=arguments.audio is None)
    waveform, sampling_rate = media.waveform, media.sampling_rate
    if arguments.audio is not None:
        waveform, sampling_rate = read_audio(arguments.audio)

    sheet = draw_contact_sheet(
        media.frames,
        results,
        colors,
        waveform=waveform,
        sampling_rate=sampling_rate,
        frames_per_second=rate,
        title=Path(arguments.video).name,
    )
    sheet.save(folder / "contact_sheet.png")
    write_masks(folder / "masks", results, id2label, size=media.frames.shape[2:0:-1])
    sound = arguments.audio or arguments.video
    if arguments.overlay_frames_per_second is not None:
        rate = arguments.overlay_frames_per_second
        results = segment(segmenter, arguments, rate)
    frames = tqdm(iterate_frames(arguments.video), desc="Drawing", unit=" frames")
    write_overlay_video(folder / "overlay.mp4", frames, results, colors, frames_per_second=rate, sound=sound)


def replace_folder(
    folder: Path, arguments: argparse.Namespace, results: list[dict[str, Any]], segmenter: Pipeline
) -> None:
    """Writes the results aside, and only when they are whole puts them in the place of an earlier result."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as aside:
        whole = Path(aside) / folder.name
        whole.mkdir()
        write_results(whole, results, segmenter, arguments)
        check_output(folder)
        if folder.exists():
            shutil.rmtree(folder)
        whole.rename(folder)


def main() -> None:
    """Segments one video."""
    arguments = parse_args()
    try:
        check_output(arguments.output)
        segmenter = load_segmenter(arguments.model)
        results = segment(segmenter, arguments, arguments.frames_per_second)
        print_table(results)
        replace_folder(arguments.output, arguments, results, segmenter)
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)

    print(f"\noverlay        {arguments.output / 'overlay.mp4'}")
    print(f"masks          {arguments.output / 'masks'}")
    print(f"contact sheet  {arguments.output / 'contact_sheet.png'}")


if __name__ == "__main__":
    main()
