"""A web page that segments the sounding objects in a video: overlay, timeline, threshold, decoder stages, masks.

    python -m pcmanet.examples.app                                   # the bundled model, http://127.0.0.1:7860
    python -m pcmanet.examples.app --model you/your-pcmanet --port 8000
    python -m pcmanet.examples.app --host 0.0.0.0 --max-seconds 120 --max-megabytes 300

Requires gradio (`pip install "pcmanet[app]"`, included in the `.venv` of `make install`). The page loads nothing from
other servers and sends no telemetry. Uploads are stored in one temporary folder, separately for each session. They are
deleted after an hour without activity, and when the server stops.

As a Hugging Face Space: `python -m pcmanet.examples.app_space --output space` writes all required files to one folder, then

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

import gradio as gr
from PIL import Image
from transformers.utils import logging

from modeling_pcmanet.media_pcmanet import VIDEO_SUFFIXES, read_media
from pcmanet.checkpoints import load_segmenter
from pcmanet.examples import app_views as views
from pcmanet.examples.app_analysis import Analysis, LogitsPipeline
from pcmanet.examples.uploads import Limits, RefusedVideoError
from pcmanet.files import DEFAULT_MODEL
from pcmanet.options import port, positive, positive_integer
from pcmanet.pipelines.colors import class_colors


HERE = Path(__file__).resolve().parent
CLIPS = {
    "real_world.mp4": "dog, rooster, helicopter; 10 s",
    "demo.mp4": "drawn shapes, for models trained on them; 5 s",
    "demo_trio.mp4": "three drawn shapes; 9 s",
}
CARD_FRAME = 1  # index of the frame that the card of a clip shows, at one frame per second
CARD_SIDE = 240

DESCRIPTION_NOTICE = "**This model** {description}."
CLASSES_NOTICE = "**This model recognizes {number} classes**, listed below the video. It ignores all other sounds."
EXPIRED = "This result was deleted after an hour without activity. Upload the video again."

SECONDS_KEPT = 3600
SECONDS_BETWEEN_CLEANING = 600
MAX_QUEUE = 32
RATES = (1, 2, 4)
DEFAULT_RATE = 4
PROGRESS = gr.Progress(track_tqdm=True)  # Gradio replaces this default with a new one in each call


class Page:
    """The layout of the page and its event handlers.

    Args:
        segmenter: The pipeline, shared by all users; it serves one at a time.
        limits: The videos that the page accepts.
        folder: Folder for the temporary folders of the sessions.
    """

    def __init__(self, segmenter: LogitsPipeline, limits: Limits, folder: Path) -> None:
        self._segmenter = segmenter
        self._limits = limits
        self._folder = folder
        config = segmenter.model.config
        self._colors = class_colors(config.id2label)
        self._is_binary = config.num_labels == 1
        described = DESCRIPTION_NOTICE.format(description=config.description)
        self._notice = described if config.description else CLASSES_NOTICE.format(number=len(self._colors))

    def build(self) -> gr.Blocks:
        """Create the components and connect their events."""
        title = "pcmanet: segment what you hear"
        cleaning = (SECONDS_BETWEEN_CLEANING, SECONDS_KEPT)
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=cleaning, fill_width=True) as blocks:
            gr.HTML(views.header(Path(self._segmenter.model.name_or_path).name, str(self._segmenter.device)))
            gr.HTML(views.notice(self._notice))
            with gr.Row(elem_id="columns"):
                with gr.Column(elem_id="source"):
                    self._build_source()
                with gr.Column(elem_id="results"):
                    self._build_results()
                with gr.Column(elem_id="settings"):
                    self._build_settings()
            self._stages = gr.HTML(elem_id="stages")
            self._connect()
        return blocks.queue(max_size=MAX_QUEUE)

    def _build_source(self) -> None:
        """Create the inputs."""
        self._upload = gr.File(
            label=f"Video with audio, up to {self._limits.megabytes} MB and {self._limits.seconds:.0f} s",
            file_types=["video", *sorted(VIDEO_SUFFIXES)],  # not every system knows that .mkv is a video
            height=150,
            elem_id="upload",
        )
        cards = {name: (title, _thumbnail(HERE / name)) for name, title in CLIPS.items()}
        self._clips = gr.HTML(
            views.clip_cards(cards),
            elem_id="clips",
            js_on_load="element.addEventListener('click', (event) => {"
            "const card = event.target.closest('[data-clip]'); if (card) trigger('select', card.dataset); });",
        )

    def _build_settings(self) -> None:
        """Create the settings and the download."""
        self._threshold = gr.Slider(
            0,
            0.95,
            0.5 if self._is_binary else 0,
            step=0.05,
            label="Threshold",
            info="Probability that a pixel must exceed. "
            + ("" if self._is_binary else "0: the most probable class wins."),
            elem_id="threshold",
        )
        self._rate = gr.Radio(
            RATES,
            value=DEFAULT_RATE,
            label="Masks per second",
            info="Higher rates follow motion better.",
            elem_id="rate",
        )
        self._archive = gr.DownloadButton("Download masks", interactive=False, elem_id="archive")

    def _build_results(self) -> None:
        """Create the outputs."""
        size_check = (HERE / "app_upload.js").read_text(encoding="utf-8")
        self._message = gr.HTML(elem_id="message", js_on_load=size_check, megabytes=self._limits.megabytes)
        self._welcome = gr.HTML(views.welcome(), elem_id="welcome")
        with gr.Column(visible=False) as self._output:
            self._overlay = gr.Video(
                label="Overlay", interactive=False, autoplay=True, elem_id="overlay", buttons=["download"]
            )
            self._timeline = gr.HTML(elem_id="timeline", js_on_load=(HERE / "app.js").read_text(encoding="utf-8"))
            self._notes = gr.HTML(elem_id="notes")
        self._legend = gr.HTML(views.legend(self._colors, []), elem_id="legend")
        self._analysis = gr.State(None, time_to_live=SECONDS_KEPT, delete_callback=_close)
        self._frame_number = gr.State(None)

    def _connect(self) -> None:
        """Connect the events; network and drawing serve one user at a time."""
        heavy: dict[str, Any] = {
            "concurrency_limit": 1,
            "concurrency_id": "network",
            "api_visibility": "private",
            "show_progress_on": [self._welcome, self._overlay],
        }
        choices = [self._rate, self._threshold, self._analysis]
        drawn = [self._message, self._overlay, self._timeline, self._legend, self._archive, self._frame_number]
        results = [*drawn, self._notes, self._analysis, self._output, self._welcome, self._upload, self._rate]
        for event in (
            self._upload.upload(self.process_upload, [self._upload, *choices], results, **heavy),
            self._clips.select(self.process_clip, choices, results, **heavy),
            self._rate.input(self.change_rate, [*choices, self._frame_number], results, **heavy),
            self._threshold.release(self.change_threshold, [*choices[1:], self._frame_number], drawn, **heavy),
            self._timeline.select(self.select_frame, None, self._frame_number, api_visibility="private", queue=False),
        ):
            event.then(
                self.show_stages,
                [self._analysis, self._frame_number],
                self._stages,
                **{**heavy, "show_progress_on": [self._stages]},
            )

    def process_upload(
        self,
        upload: str,
        rate: int,
        threshold: float,
        analysis: Analysis | None,
        progress: gr.Progress = PROGRESS,
    ) -> dict[Any, Any]:
        """Process the user's video."""
        return self._process(Path(upload), rate, threshold, analysis, progress)

    def process_clip(
        self,
        rate: int,
        threshold: float,
        analysis: Analysis | None,
        event: gr.EventData,
        progress: gr.Progress = PROGRESS,
    ) -> dict[Any, Any]:
        """Process a bundled clip. Only names in `CLIPS` are accepted."""
        if event.clip not in CLIPS:
            return {self._message: views.message(f"Unknown clip {event.clip}. Choose an example on the page.")}
        return self._process(HERE / event.clip, rate, threshold, analysis, progress)

    def change_rate(
        self,
        rate: int,
        threshold: float,
        analysis: Analysis | None,
        frame_number: int | None,
        progress: gr.Progress = PROGRESS,
    ) -> dict[Any, Any]:
        """Run the network again on the same video at another rate."""
        if analysis is None:
            return self._without_result(frame_number)
        try:
            analysis.run(rate)
        except RefusedVideoError as error:
            return {self._message: views.message(str(error)), self._rate: analysis.rate}
        return self._draw(analysis, threshold, progress)

    def change_threshold(
        self, threshold: float, analysis: Analysis | None, frame_number: int | None, progress: gr.Progress = PROGRESS
    ) -> dict[Any, Any]:
        """Draw the stored logits again with another threshold."""
        return self._without_result(frame_number) if analysis is None else self._draw(analysis, threshold, progress)

    def select_frame(self, event: gr.EventData) -> int:
        """Return the network frame that was selected in the timeline."""
        return int(event.number)

    def show_stages(self, analysis: Analysis | None, frame_number: int | None) -> str:
        """Show the maps of the four stages for a network frame."""
        if analysis is None or frame_number is None:
            return ""
        number = min(max(frame_number, 0), len(analysis.timestamps) - 1)
        return views.stage_cards(analysis.stages(number), analysis.timestamps[number])

    def _without_result(self, frame_number: int | None) -> dict[Any, Any]:
        """Show a message if the result has expired; before the first result, do nothing."""
        return {self._message: "" if frame_number is None else views.message(EXPIRED)}

    def _process(
        self, video: Path, rate: int, threshold: float, earlier: Analysis | None, progress: gr.Progress
    ) -> dict[Any, Any]:
        """Run the network on a video and draw. The earlier video of the session is deleted afterwards."""
        progress(0.0, "Reading the video")
        analysis = None
        try:
            analysis = Analysis(self._segmenter, video, video.name, self._limits, self._folder)
            analysis.run(rate)
            updates = self._draw(analysis, threshold, progress)
        except RefusedVideoError as error:
            _close(analysis)
            return {self._message: views.message(str(error)), self._upload: None}
        _close(earlier)
        return {
            **updates,
            self._notes: views.notes(analysis.notes),
            self._analysis: analysis,
            self._output: gr.Column(visible=True),
            self._welcome: gr.HTML(visible=False),
            self._upload: None,
        }

    def _draw(self, analysis: Analysis, threshold: float, progress: gr.Progress) -> dict[Any, Any]:
        """Draw everything that depends on the threshold."""
        drawing = analysis.draw(threshold, progress)
        seconds = analysis.info.seconds
        return {
            self._message: "",
            self._overlay: gr.Video(str(drawing.overlay), label=analysis.name),
            self._timeline: views.timeline(drawing.spans, self._colors, analysis.loudness, seconds, analysis.rate),
            self._legend: views.legend(self._colors, list(drawing.spans)),
            self._archive: gr.DownloadButton(value=str(drawing.archive), interactive=True),
            self._frame_number: drawing.busiest,
        }


def _close(analysis: Analysis | None) -> None:
    """Delete the files of an analysis, if any."""
    if analysis is not None:
        analysis.close()


def _thumbnail(clip: Path) -> Image.Image:
    """Return a thumbnail of a bundled clip."""
    image = Image.fromarray(read_media(clip, audio=False).frames[CARD_FRAME])
    image.thumbnail((CARD_SIDE, CARD_SIDE))
    return image


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Serve a web page that segments the sounding objects in a video.", allow_abbrev=False
    )
    model = os.environ.get("PCMANET_MODEL") or DEFAULT_MODEL  # a Space is configured by variables
    parser.add_argument("--model", default=model, help="Hub id or folder (default: the bundled model)")
    parser.add_argument("--device", help="for example cpu or cuda:0 (default: an accelerator if available)")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1, this computer only)")
    parser.add_argument("--port", type=port, help="port to listen on (default: the first free one from 7860)")
    limits = Limits()
    parser.add_argument(
        "--max-seconds", type=positive, default=limits.seconds, help="longest video accepted, in seconds"
    )
    parser.add_argument(
        "--max-megabytes", type=positive_integer, default=limits.megabytes, help="largest file accepted, in MB"
    )
    return parser.parse_args()


def theme() -> gr.themes.Base:
    """Return the theme, with fonts of the user's computer so that none is downloaded."""
    sans = ["Inter", "ui-sans-serif", "system-ui", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "monospace"]
    return gr.themes.Base(primary_hue="orange", neutral_hue="slate", radius_size="lg", font=sans, font_mono=mono).set(
        block_border_width="1px", block_shadow="none", button_large_radius="*radius_md"
    )


def stop(signal_number: int, _: FrameType | None) -> None:
    """Exit so that the temporary folder is deleted: a Space is stopped by SIGTERM."""
    sys.exit(128 + signal_number)


def main() -> None:
    """Serve the page until it is stopped."""
    args = parse_args()
    signal.signal(signal.SIGTERM, stop)
    try:
        segmenter = load_segmenter(args.model, args.device, LogitsPipeline)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    logging.enable_progress_bar()
    limits = Limits(megabytes=args.max_megabytes, seconds=args.max_seconds)
    with tempfile.TemporaryDirectory(prefix="pcmanet_page_") as folder:
        # Gradio serves uploads and results from this folder, but not the session folders next to it.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "served")
        sessions = Path(folder) / "sessions"
        sessions.mkdir()
        page = Page(segmenter, limits, sessions).build()
        try:
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
        except OSError as error:
            if error.errno is not None:  # Gradio's error that no port is free has none
                raise
            sys.exit(
                f"error: Port {args.port or 'from 7860'} of {args.host or 'this computer'} cannot be used. Another program uses it, or "
                "the address is not one of this computer. Give another --port or --host."
            )


if __name__ == "__main__":
    main()
