"""The pieces of HTML on the page of app.py. What comes from visitors or models is escaped here, and only here."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from pcmanet.pipelines.colors import Color
from pcmanet.pipelines.stage_maps import StageMap
from pcmanet.pipelines.timeline import Span


MOST_TICKS = 10
STEPS = (1, 2, 5, 10, 20)  # seconds between the ticks of a clock
LARGEST_LEGEND = 80
NO_NAME = '<div class="name"></div>'
STAGE_NAMES = ("coarsest", "coarse", "fine", "finest")

LOGO = (
    '<svg viewBox="0 0 48 48" class="logo" aria-hidden="true"><circle cx="18" cy="24" r="9" fill="#ff5236"/>'
    '<path d="M31 14a14 14 0 0 1 0 20M37 8a23 23 0 0 1 0 32" fill="none" stroke="#ff5236" stroke-width="4" '
    'stroke-linecap="round"/></svg>'
)


def header(model: str, device: str) -> str:
    """What stands on top: what the page is for, and which model works."""
    return (
        f"<header>{LOGO}<div><h1>Segment what you hear</h1><p>Drop a video: see which objects make the sound, "
        f'and when.</p></div><span class="model" title="the model">{html.escape(model)} · {html.escape(device)}'
        "</span></header>"
    )


def notice(text: str) -> str:
    """What the model can and cannot do; what stands between double asterisks is bold."""
    parts = html.escape(text).split("**")
    return (
        '<div class="notice">'
        + "".join(f"<b>{part}</b>" if index % 2 else part for index, part in enumerate(parts))
        + "</div>"
    )


def clip_cards(clips: Mapping[str, tuple[str, Image.Image]]) -> str:
    """Cards of the bundled clips: title and picture by the name that a click gives back."""
    cards = [
        f'<button class="clip" data-clip="{html.escape(name)}"><img src="{_data_address(picture)}" alt="">'
        f"<span>{html.escape(title)}</span></button>"
        for name, (title, picture) in clips.items()
    ]
    return f'<p class="or">or take one of these</p><div class="clips">{"".join(cards)}</div>'


def welcome() -> str:
    """What stands where the result will be."""
    steps = (
        ("Drop a video", "with sound; it is kept for an hour at most, and seen by nobody else"),
        ("Watch and listen", "what sounds is marked in the video, each class in its colour"),
        ("Look closer", "move the threshold, click on a moment, take the masks with you"),
    )
    items = "".join(f"<li><b>{title}</b><span>{text}</span></li>" for title, text in steps)
    return f'<div class="welcome"><ol>{items}</ol></div>'


def message(text: str) -> str:
    """Why there is no result."""
    return f'<div class="message" role="alert"><b>This did not work.</b> {html.escape(text)}</div>'


def notes(texts: Sequence[str]) -> str:
    """What was done to use an odd video."""
    if not texts:
        return ""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return f'<div class="notes"><b>About this video</b><ul>{items}</ul></div>'


def legend(colors: Mapping[str, Color], found: Sequence[str]) -> str:
    """Every class with its colour, those that were found first and full."""
    labels = [*(label for label in colors if label in found), *(label for label in colors if label not in found)]
    chips = [
        f'<span class="chip{" found" if label in found else ""}"><i style="background:{_css(colors[label])}"></i>'
        f"{html.escape(label)}</span>"
        for label in labels[:LARGEST_LEGEND]
    ]
    if len(labels) > LARGEST_LEGEND:
        chips.append(f'<span class="chip">and {len(labels) - LARGEST_LEGEND} more</span>')
    return f'<div class="legend">{"".join(chips)}</div>'


def timeline(
    spans: Mapping[str, Sequence[Span]], colors: Mapping[str, Color], peaks: np.ndarray, seconds: float, rate: float
) -> str:
    """Draws what sounds when: the sound, a row of bars per class, a clock; app.js moves the head over it."""
    rows = [_row('<div class="name sound">sound</div>', _wave(peaks), "wave")]
    rows += [_class_row(label, spans[label], color, seconds) for label, color in colors.items() if label in spans]
    if not spans:
        rows.append(_row(NO_NAME, "<em>nothing sounds that this model knows</em>", "empty"))
    return (
        f'<div class="timeline" tabindex="0" role="slider" aria-label="moment of the video" aria-valuemin="0" '
        f'aria-valuemax="{seconds:.3f}" aria-valuenow="0" data-seconds="{seconds:.4f}" data-rate="{rate:g}">'
        f"{''.join(rows)}{_row(NO_NAME, _clock(seconds), 'clock')}"
        '<div class="lane"><div class="head"></div></div></div>'
    )


def stage_cards(stages: Sequence[StageMap], timestamp: float) -> str:
    """Shows what each stage asks and doubts, and what it finds."""
    cards = "".join(_stage_card(stage) for stage in stages)
    return (
        f'<div class="stages" data-timestamp="{timestamp:.4f}"><h2>How the network got there <small>at '
        f"{timestamp:.2f} s; click on the timeline for another moment</small></h2><p>Four stages, coarse to fine. The "
        "first asks the sound about every place; each later one only where the one before was unsure (lit). What glows "
        f'is doubt that is left.</p><div class="cards">{cards}</div></div>'
    )


def _stage_card(stage: StageMap) -> str:
    """One stage: where it asks and doubts, what it finds, both in numbers."""
    return (
        f'<figure data-stage="{stage.number}" data-asked="{stage.asked:.4f}"><figcaption><b>Stage {stage.number}'
        f"</b> {STAGE_NAMES[stage.number - 1]}</figcaption>"
        f'<img src="{_data_address(stage.doubt)}" alt="where stage {stage.number} asks and doubts">'
        f'<img src="{_data_address(stage.finding)}" alt="what stage {stage.number} finds">'
        f"<dl><dt>asks the sound about</dt><dd>{stage.asked:.0%}</dd>"
        f"<dt>certainty</dt><dd>{stage.certainty:.1%}</dd></dl></figure>"
    )


def _row(name: str, track: str, kind: str, attributes: str = "") -> str:
    """A row of the timeline."""
    return f'<div class="row {kind}"{attributes}>{name}<div class="track">{track}</div></div>'


def _class_row(label: str, spans: Sequence[Span], color: Color, seconds: float) -> str:
    """The row of one class: a bar per span, the fuller the surer."""
    total = sum(span.seconds for span in spans)
    bars = [
        f'<b class="bar" data-start="{span.start:.4f}" data-end="{span.end:.4f}" style="left:{span.start / seconds:.4%};'
        f'width:{span.seconds / seconds:.4%};background:{_css(color)};opacity:{0.35 + 0.65 * span.score:.2f}" '
        f'title="{html.escape(label)}: {span.start:.2f} to {span.end:.2f} s, score {span.score:.0%}"></b>'
        for span in spans
    ]
    name = (
        f'<div class="name"><i style="background:{_css(color)}"></i><span>{html.escape(label)}</span>'
        f"<small>{total:.1f} s</small></div>"
    )
    return _row(name, "".join(bars), "class", f' data-label="{html.escape(label)}" style="--color:{_css(color)}"')


def _wave(peaks: np.ndarray) -> str:
    """The loudness over time, mirrored at its middle line."""
    reach = 1 + 18 * np.sqrt(peaks)
    top = [f"{index},{20 - height:.1f}" for index, height in enumerate(reach)]
    bottom = [f"{index},{20 + height:.1f}" for index, height in reversed(list(enumerate(reach)))]
    points = " ".join(top + bottom)
    return f'<svg viewBox="0 0 {len(peaks) - 1} 40" preserveAspectRatio="none"><polygon points="{points}"/></svg>'


def _clock(seconds: float) -> str:
    """Ticks at whole seconds, no more than there is room for."""
    step = next((step for step in STEPS if seconds / step <= MOST_TICKS), STEPS[-1])
    return "".join(
        f'<span style="left:{tick / seconds:.4%}">{tick}</span>' for tick in range(0, int(seconds) + 1, step)
    )


def _css(color: Color) -> str:
    """A colour as style sheets write it."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def _data_address(picture: Image.Image) -> str:
    """A picture as an address that holds it: nothing is left to fetch, or to remove."""
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
