"""A page that segments what sounds in a video: overlay with sound, timeline, threshold, stages, masks to take along.

    python examples/app.py                                   # the demo model, http://127.0.0.1:7860
    python examples/app.py --model you/your-pcmanet --port 8000
    python examples/app.py --host 0.0.0.0 --longest-seconds 120 --largest-megabytes 300

Needs gradio (`pip install "pcmanet[app]"`, in the `.venv` of `make install` already). Nothing is fetched from outside,
no telemetry is sent. What visitors upload lies in one temporary folder, each visit apart from the others; it goes an
hour after the visit's last change, and altogether when the server stops.

As a Space of Hugging Face: `python examples/app_space.py --output space` writes all it needs into one folder, then

    hf repos create you/pcmanet --type space --space-sdk gradio
    hf upload you/pcmanet space . --repo-type space
"""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

import app_views as views
import gradio as gr
from app_analysis import Analysis, LogitsPipeline
from app_probe import Limits, RefusedVideoError
from PIL import Image
from transformers import pipeline
from transformers.utils import logging

from modeling_pcmanet.media_pcmanet import read_media
from pcmanet.pipelines.colors import class_colors


HERE = Path(__file__).resolve().parent
DEMO_MODEL = HERE / "demo_model_semantic"
DEMO_MODELS = (DEMO_MODEL, HERE / "demo_model")
CLIPS = {"demo.mp4": "5 s, on grey", "demo_trio.mp4": "9 s, on green"}
CARD_MOMENT = 1  # the second whose picture stands on a clip's card

DEMO_LIMITS = (
    "**This model knows Sounding Shapes only**: twelve kinds of drawn shapes, each with a made-up kind of sound. It "
    "shows that listening works. On a video of your own it looks for striped discs, not for dogs."
)
OTHER_LIMITS = "**This model knows {number} classes**, those below the video. What else sounds, it does not see."
EXPIRED = "This result was removed, because nothing was done with it for an hour. Drop the video again."

SECONDS_KEPT = 3600
SECONDS_BETWEEN_CLEANING = 600
LONGEST_QUEUE = 32
RATES = (1, 2, 4)
DEFAULT_RATE = 4
PROGRESS = gr.Progress(track_tqdm=True)  # Gradio gives each call its own wherever it finds this as a default


class Page:
    """The page and what its parts do.

    Args:
        segmenter: The pipeline, shared by all visitors, one of whom it serves at a time.
        limits: What a visitor may ask for.
        folder: Where the visits' folders are made.
        is_demo: Whether the model is one of the bundled ones, whose limits the page then tells.
    """

    def __init__(self, segmenter: LogitsPipeline, limits: Limits, folder: Path, is_demo: bool) -> None:
        self._segmenter = segmenter
        self._limits = limits
        self._folder = folder
        config = segmenter.model.config
        self._colors = class_colors(config.id2label)
        self._is_binary = config.num_labels == 1
        self._notice = DEMO_LIMITS if is_demo else OTHER_LIMITS.format(number=len(self._colors))

    def build(self) -> gr.Blocks:
        """Lays the page out and connects its parts."""
        title = "pcmanet: segment what you hear"
        cleaning = (SECONDS_BETWEEN_CLEANING, SECONDS_KEPT)
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=cleaning, fill_width=True) as blocks:
            gr.HTML(views.header(Path(self._segmenter.model.name_or_path).name, str(self._segmenter.device)))
            gr.HTML(views.notice(self._notice))
            with gr.Row(elem_id="columns"):
                with gr.Column(elem_id="source"):
                    self._lay_out_source()
                with gr.Column(elem_id="results"):
                    self._lay_out_results()
                with gr.Column(elem_id="settings"):
                    self._lay_out_settings()
            self._stages = gr.HTML(elem_id="stages")
            self._connect()
        return blocks.queue(max_size=LONGEST_QUEUE)

    def _lay_out_source(self) -> None:
        """Lays out what visitors give."""
        self._upload = gr.File(
            label=f"Video with sound, up to {self._limits.megabytes} MB and {self._limits.seconds:.0f} s",
            file_types=["video"],
            height=150,
            elem_id="upload",
        )
        cards = {name: (title, _picture_of(HERE / name)) for name, title in CLIPS.items()}
        self._clips = gr.HTML(
            views.clip_cards(cards),
            elem_id="clips",
            js_on_load="element.addEventListener('click', (event) => {"
            "const card = event.target.closest('[data-clip]'); if (card) trigger('select', card.dataset); });",
        )

    def _lay_out_settings(self) -> None:
        """Lays out what visitors choose, and take along."""
        self._threshold = gr.Slider(
            0,
            0.95,
            0.5 if self._is_binary else 0,
            step=0.05,
            label="Threshold",
            info="The probability a pixel must exceed. " + ("" if self._is_binary else "0: the likeliest class wins."),
            elem_id="threshold",
        )
        self._rate = gr.Radio(
            RATES, value=DEFAULT_RATE, label="Masks per second", info="More follow what moves.", elem_id="rate"
        )
        self._archive = gr.DownloadButton("Download masks", interactive=False, elem_id="archive")

    def _lay_out_results(self) -> None:
        """Lays out what visitors get."""
        guard = (HERE / "app_upload.js").read_text(encoding="utf-8")
        self._message = gr.HTML(elem_id="message", js_on_load=guard, megabytes=self._limits.megabytes)
        self._welcome = gr.HTML(views.welcome(), elem_id="welcome")
        with gr.Column(visible=False) as self._found:
            self._overlay = gr.Video(
                label="What sounds", interactive=False, autoplay=True, elem_id="overlay", buttons=["download"]
            )
            self._timeline = gr.HTML(elem_id="timeline", js_on_load=(HERE / "app.js").read_text(encoding="utf-8"))
            self._notes = gr.HTML(elem_id="notes")
        self._legend = gr.HTML(views.legend(self._colors, []), elem_id="legend")
        self._analysis = gr.State(None, time_to_live=SECONDS_KEPT, delete_callback=_close)
        self._moment = gr.State(None)

    def _connect(self) -> None:
        """Says what happens when; the network and the drawing serve one visitor at a time."""
        heavy: dict[str, Any] = {
            "concurrency_limit": 1,
            "concurrency_id": "network",
            "api_visibility": "private",
            "show_progress_on": [self._welcome, self._overlay],
        }
        choices = [self._rate, self._threshold, self._analysis]
        drawn = [self._message, self._overlay, self._timeline, self._legend, self._archive, self._moment]
        made = [*drawn, self._notes, self._analysis, self._found, self._welcome, self._upload, self._rate]
        for event in (
            self._upload.upload(self.take_upload, [self._upload, *choices], made, **heavy),
            self._clips.select(self.take_clip, choices, made, **heavy),
            self._rate.input(self.change_rate, [*choices, self._moment], made, **heavy),
            self._threshold.release(self.change_threshold, [*choices[1:], self._moment], drawn, **heavy),
            self._timeline.select(self.pick_moment, None, self._moment, api_visibility="private", queue=False),
        ):
            event.then(
                self.show_stages,
                [self._analysis, self._moment],
                self._stages,
                **{**heavy, "show_progress_on": [self._stages]},
            )

    def take_upload(
        self,
        upload: str,
        rate: int,
        threshold: float,
        analysis: Analysis | None,
        progress: gr.Progress = PROGRESS,
    ) -> dict[Any, Any]:
        """Takes a visitor's video."""
        return self._take(Path(upload), rate, threshold, analysis, progress)

    def take_clip(
        self,
        rate: int,
        threshold: float,
        analysis: Analysis | None,
        event: gr.EventData,
        progress: gr.Progress = PROGRESS,
    ) -> dict[Any, Any]:
        """Takes a bundled clip, by its name in `CLIPS` and by no other."""
        if event.clip not in CLIPS:
            return {self._message: views.message(f"There is no clip {event.clip}.")}
        return self._take(HERE / event.clip, rate, threshold, analysis, progress)

    def change_rate(
        self,
        rate: int,
        threshold: float,
        analysis: Analysis | None,
        moment: int | None,
        progress: gr.Progress = PROGRESS,
    ) -> dict[Any, Any]:
        """Runs the network again, on more or fewer frames of the same video."""
        if analysis is None:
            return self._nothing_to_change(moment)
        try:
            analysis.run(rate)
        except RefusedVideoError as refusal:
            return {self._message: views.message(str(refusal)), self._rate: analysis.rate}
        return self._draw(analysis, threshold, progress)

    def change_threshold(
        self, threshold: float, analysis: Analysis | None, moment: int | None, progress: gr.Progress = PROGRESS
    ) -> dict[Any, Any]:
        """Draws again what the network has said already."""
        return self._nothing_to_change(moment) if analysis is None else self._draw(analysis, threshold, progress)

    def pick_moment(self, event: gr.EventData) -> int:
        """Takes the network frame that was clicked on in the timeline."""
        return int(event.number)

    def show_stages(self, analysis: Analysis | None, moment: int | None) -> str:
        """Shows what the four stages see at a moment."""
        if analysis is None or moment is None:
            return ""
        number = min(max(moment, 0), len(analysis.timestamps) - 1)
        return views.stage_cards(analysis.stages(number), analysis.timestamps[number])

    def _nothing_to_change(self, moment: int | None) -> dict[Any, Any]:
        """Tells whoever had a result that it is gone; before the first one, settings wait for a video."""
        return {self._message: "" if moment is None else views.message(EXPIRED)}

    def _take(
        self, video: Path, rate: int, threshold: float, earlier: Analysis | None, progress: gr.Progress
    ) -> dict[Any, Any]:
        """Runs the network on a video and draws; only then the visit's earlier video goes."""
        progress(0.0, "Reading the video")
        analysis = None
        try:
            analysis = Analysis(self._segmenter, video, video.name, self._limits, self._folder)
            analysis.run(rate)
            updates = self._draw(analysis, threshold, progress)
        except RefusedVideoError as refusal:
            _close(analysis)
            return {self._message: views.message(str(refusal)), self._upload: None}
        _close(earlier)
        return {
            **updates,
            self._notes: views.notes(analysis.notes),
            self._analysis: analysis,
            self._found: gr.Column(visible=True),
            self._welcome: gr.HTML(visible=False),
            self._upload: None,
        }

    def _draw(self, analysis: Analysis, threshold: float, progress: gr.Progress) -> dict[Any, Any]:
        """Draws with a threshold all that depends on it."""
        drawing = analysis.draw(threshold, progress)
        seconds = analysis.facts.seconds
        return {
            self._message: "",
            self._overlay: gr.Video(str(drawing.overlay), label=analysis.name),
            self._timeline: views.timeline(drawing.spans, self._colors, analysis.loudness, seconds, analysis.rate),
            self._legend: views.legend(self._colors, list(drawing.spans)),
            self._archive: gr.DownloadButton(value=str(drawing.archive), interactive=True),
            self._moment: drawing.busiest,
        }


def _close(analysis: Analysis | None) -> None:
    """Removes the files of an analysis, if there is one."""
    if analysis is not None:
        analysis.close()


def _picture_of(clip: Path) -> Image.Image:
    """Gives a small picture of a bundled clip."""
    picture = Image.fromarray(read_media(clip, audio=False).frames[CARD_MOMENT])
    picture.thumbnail((240, 240))
    return picture


def load_segmenter(model: str, device: str | None) -> LogitsPipeline:
    """Loads a checkpoint, always with the code installed here."""
    if model.count("/") != 1 and not Path(model).is_dir():
        raise FileNotFoundError(f"There is no checkpoint folder {model}. Give a folder, or a Hub id as owner/name.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    segmenter = pipeline("audio-visual-segmentation", model=model, device=device, pipeline_class=LogitsPipeline)
    logging.enable_progress_bar()
    return segmenter


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="A page that segments what sounds in a video.")
    model = os.environ.get("PCMANET_MODEL", str(DEMO_MODEL))  # a variable is how one tells a Space
    parser.add_argument("--model", default=model, help="Hub id or folder (default: the semantic demo model)")
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: an accelerator if there is one)")
    parser.add_argument("--host", help="address to listen at (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=int, help="port to listen at (default: the first free one from 7860 on)")
    limits = Limits()
    parser.add_argument("--longest-seconds", type=float, default=limits.seconds, help="longest video taken")
    parser.add_argument("--largest-megabytes", type=int, default=limits.megabytes, help="largest file taken, in MB")
    return parser.parse_args()


def theme() -> gr.themes.Base:
    """The look, with fonts of the visitor's own machine: none is fetched from anywhere."""
    sans = ["Inter", "ui-sans-serif", "system-ui", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "monospace"]
    return gr.themes.Base(primary_hue="orange", neutral_hue="slate", radius_size="lg", font=sans, font_mono=mono).set(
        block_border_width="1px", block_shadow="none", button_large_radius="*radius_md"
    )


def stop(signal_number: int, _: FrameType | None) -> None:
    """Ends the process so that its temporary folder goes: a Space is stopped by SIGTERM."""
    sys.exit(128 + signal_number)


def main() -> None:
    """Serves the page until it is stopped."""
    args = parse_args()
    signal.signal(signal.SIGTERM, stop)
    try:
        segmenter = load_segmenter(args.model, args.device)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    is_demo = Path(args.model).resolve() in DEMO_MODELS
    limits = Limits(megabytes=args.largest_megabytes, seconds=args.longest_seconds)
    with tempfile.TemporaryDirectory(prefix="pcmanet_page_") as folder:
        # Uploads, and copies of what visitors get, are served from here; the visits' own folders beside it are not.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "served")
        visits = Path(folder) / "visits"
        visits.mkdir()
        page = Page(segmenter, limits, visits, is_demo).build()
        page.launch(
            server_name=args.host,
            server_port=args.port,
            max_file_size=limits.megabytes * 10**6,
            theme=theme(),
            css_paths=HERE / "app.css",
            footer_links=[],
            ssr_mode=False,
            share=False,
        )


if __name__ == "__main__":
    main()
