"""The HTML of the page of app.py. Text from users and models is escaped here, and only here."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from pcmanet.pipelines.colors import Color
from pcmanet.pipelines.stage_maps import StageMap
from pcmanet.pipelines.timeline import Span


MAX_TICKS = 10
TICK_STEPS = (1, 2, 5, 10, 20)  # seconds between the ticks of the time axis
MAX_LEGEND = 80
EMPTY_NAME = '<div class="name"></div>'
STAGE_NAMES = ("coarsest", "coarse", "fine", "finest")

LOGO = (
    '<svg viewBox="0 0 48 48" class="logo" aria-hidden="true"><circle cx="18" cy="24" r="9" fill="#ff5236"/>'
    '<path d="M31 14a14 14 0 0 1 0 20M37 8a23 23 0 0 1 0 32" fill="none" stroke="#ff5236" stroke-width="4" '
    'stroke-linecap="round"/></svg>'
)


def header(model: str, device: str) -> str:
    """Return the header: the purpose of the page, the model and its device."""
    return (
        f"<header>{LOGO}<div><h1>Segment what you hear</h1><p>Upload a video to see which objects make sound, "
        f'and when.</p></div><span class="model" title="model and device">{html.escape(model)} · {html.escape(device)}'
        "</span></header>"
    )


def notice(text: str) -> str:
    """Return a notice about the model; text between double asterisks is bold."""
    parts = html.escape(text).split("**")
    return (
        '<div class="notice">'
        + "".join(f"<b>{part}</b>" if index % 2 else part for index, part in enumerate(parts))
        + "</div>"
    )


def clip_cards(clips: Mapping[str, tuple[str, Image.Image]]) -> str:
    """Return the cards of the bundled clips: their titles and images, by the name that a click sends."""
    cards = [
        f'<button class="clip" data-clip="{html.escape(name)}"><img src="{_data_url(image)}" alt="">'
        f"<span>{html.escape(title)}</span></button>"
        for name, (title, image) in clips.items()
    ]
    return f'<p class="or">or choose an example</p><div class="clips">{"".join(cards)}</div>'


def welcome() -> str:
    """Return the instructions that are shown before the first result."""
    steps = (
        ("Upload a video", "with audio; it is deleted after an hour without activity and not shared"),
        ("Play the result", "the video shows the sounding objects, each class in its color"),
        ("Explore", "adjust the threshold, click on the timeline, download the masks"),
    )
    items = "".join(f"<li><b>{title}</b><span>{text}</span></li>" for title, text in steps)
    return f'<div class="welcome"><ol>{items}</ol></div>'


def message(text: str) -> str:
    """Return an error message."""
    return f'<div class="message" role="alert"><b>Error:</b> {html.escape(text)}</div>'


def notes(texts: Sequence[str]) -> str:
    """Return notes on what was repaired or ignored to read a video."""
    if not texts:
        return ""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return f'<div class="notes"><b>About this video</b><ul>{items}</ul></div>'


def legend(colors: Mapping[str, Color], found: Sequence[str]) -> str:
    """Return the legend: every class with its color, the classes found first and highlighted."""
    labels = [*(label for label in colors if label in found), *(label for label in colors if label not in found)]
    chips = [
        f'<span class="chip{" found" if label in found else ""}"><i style="background:{_css(colors[label])}"></i>'
        f"{html.escape(label)}</span>"
        for label in labels[:MAX_LEGEND]
    ]
    if len(labels) > MAX_LEGEND:
        chips.append(f'<span class="chip">and {len(labels) - MAX_LEGEND} more</span>')
    return f'<div class="legend">{"".join(chips)}</div>'


def timeline(
    spans: Mapping[str, Sequence[Span]], colors: Mapping[str, Color], peaks: np.ndarray, seconds: float, rate: float
) -> str:
    """Return the timeline: the waveform, a row of bars per class, a time axis. app.js moves the playhead over it.

    Only the playhead is a slider, because screen readers do not read what is inside a slider, such as the classes.
    """
    rows = [_row('<div class="name audio">audio</div>', _wave(peaks), "wave")]
    rows += [_class_row(label, spans[label], color, seconds) for label, color in colors.items() if label in spans]
    if not spans:
        rows.append(_row(EMPTY_NAME, "<em>no sounding objects found</em>", "empty"))
    return (
        f'<div class="timeline" data-seconds="{seconds:.4f}" data-rate="{rate:g}">'
        f"{''.join(rows)}{_row(EMPTY_NAME, _time_axis(seconds), 'axis')}"
        '<div class="lane" tabindex="0" role="slider" aria-label="playback position" aria-valuemin="0" '
        f'aria-valuemax="{seconds:.3f}" aria-valuenow="0"><div class="playhead"></div></div></div>'
    )


def stage_cards(stages: Sequence[StageMap], timestamp: float) -> str:
    """Return the stage maps: queried positions and uncertainty of each stage, and its prediction."""
    cards = "".join(_stage_card(stage) for stage in stages)
    return (
        f'<div class="stages" data-timestamp="{timestamp:.4f}"><h2>Decoder stages <small>at {timestamp:.2f} s; click on '
        "the timeline for another time</small></h2><p>Four stages, coarse to fine. The first queries the audio at every "
        "position, each later one only where the stage before was uncertain (bright). Positions that are still uncertain "
        f'are highlighted in yellow.</p><div class="cards">{cards}</div></div>'
    )


def _stage_card(stage: StageMap) -> str:
    """Return the card of one stage: its two maps, and both in numbers."""
    return (
        f'<figure data-stage="{stage.number}" data-queried="{stage.queried:.4f}"><figcaption><b>Stage {stage.number}'
        f"</b> {STAGE_NAMES[stage.number - 1]}</figcaption>"
        f'<img src="{_data_url(stage.uncertainty)}" alt="queried positions and uncertainty of stage {stage.number}">'
        f'<img src="{_data_url(stage.prediction)}" alt="prediction of stage {stage.number}">'
        f"<dl><dt>queried positions</dt><dd>{stage.queried:.0%}</dd>"
        f"<dt>mean certainty</dt><dd>{stage.certainty:.1%}</dd></dl></figure>"
    )


def _row(name: str, track: str, kind: str, attributes: str = "") -> str:
    """Return a row of the timeline."""
    return f'<div class="row {kind}"{attributes}>{name}<div class="track">{track}</div></div>'


def _class_row(label: str, spans: Sequence[Span], color: Color, seconds: float) -> str:
    """Return the row of one class: a bar per span, more opaque for a higher score."""
    total = sum(end - start for start, end, _ in spans)
    bars = [
        f'<b class="bar" data-start="{start:.4f}" data-end="{end:.4f}" style="left:{start / seconds:.4%};'
        f'width:{(end - start) / seconds:.4%};background:{_css(color)};opacity:{0.35 + 0.65 * score:.2f}" '
        f'title="{html.escape(label)}: {start:.2f} to {end:.2f} s, score {score:.0%}"></b>'
        for start, end, score in spans
    ]
    name = (
        f'<div class="name"><i style="background:{_css(color)}"></i><span>{html.escape(label)}</span>'
        f"<small>{total:.1f} s</small></div>"
    )
    return _row(name, "".join(bars), "class", f' data-label="{html.escape(label)}" style="--color:{_css(color)}"')


def _wave(peaks: np.ndarray) -> str:
    """Return the loudness over time, mirrored at a horizontal axis."""
    reach = 1 + 18 * np.sqrt(peaks)
    top = [f"{index},{20 - height:.1f}" for index, height in enumerate(reach)]
    bottom = [f"{index},{20 + height:.1f}" for index, height in reversed(list(enumerate(reach)))]
    points = " ".join(top + bottom)
    return f'<svg viewBox="0 0 {len(peaks) - 1} 40" preserveAspectRatio="none"><polygon points="{points}"/></svg>'


def _time_axis(seconds: float) -> str:
    """Return ticks at full seconds, few enough to be readable."""
    step = next((step for step in TICK_STEPS if seconds / step <= MAX_TICKS), TICK_STEPS[-1])
    return "".join(
        f'<span style="left:{tick / seconds:.4%}">{tick}</span>' for tick in range(0, int(seconds) + 1, step)
    )


def _css(color: Color) -> str:
    """Return a color in CSS notation."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def _data_url(image: Image.Image) -> str:
    """Return a URL that contains the image, so that no file has to be served or deleted."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
