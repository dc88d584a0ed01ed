"""What an evaluation tells: the measures under every protocol side by side, by class, by clip, and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import get_args

import torch

from .clip_metrics import ClipMetrics, Protocol
from .metrics import SemanticMetrics
from .robustness_metrics import Audio, RobustnessMetrics


PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
POSITIVE, *NEGATIVES = get_args(Audio)
COUNTS = ("frames", "groups", "classes_seen")  # what `compute` returns beside measures
MEASURES = {
    "miou": "mIoU",
    "f_score": "F",
    "g_miou": "G-mIoU",
    "g_f_score": "G-F",
    "false_positive_rate": "false positives under wrong sounds",
    **{f"false_positive_rate_{kind}": f"false positives, {kind.replace('_', '-')}" for kind in NEGATIVES},
}
SLICES = {
    "_published_no_background": ', "no background" as published',
    "_no_background": ", no background",
    "_seen_classes": ", classes seen",
}

Figures = dict[str, dict[str, float]]  # protocol -> measure -> value


def protocol_figures(metrics: RobustnessMetrics) -> Figures:
    """Compute the measures under every protocol; those of wrong sounds if any was counted.

    Args:
        metrics: With the clips counted.

    Returns:
        Protocol -> measure -> value, as `compute` returns them.

    Raises:
        ValueError: Nothing was counted.
    """
    negative = any(len(metrics.parts[kind]) for kind in NEGATIVES)
    scored: RobustnessMetrics | ClipMetrics = metrics if negative else metrics.parts[POSITIVE]
    return {protocol: scored.compute(protocol) for protocol in PROTOCOLS}


def class_figures(
    metrics: ClipMetrics, names: Sequence[str], objects: Sequence[Sequence[str] | None]
) -> dict[str, Figures]:
    """Compute IoU and F by class.

    Classes of binary masks are what is heard: the figures of "dog" are those of the clips in which a dog is heard.

    Args:
        metrics: `BinaryMetrics` or `SemanticMetrics` with the clips counted, each under its index.
        names: Of the classes, the background first; unused for binary masks.
        objects: What is heard in each clip; only used for binary masks, may be None for a clip.

    Returns:
        Class -> protocol -> "miou" (of a class: its IoU) and "f_score"; only classes that were seen.
    """
    if isinstance(metrics, SemanticMetrics):
        tables = {protocol: metrics.per_class(protocol) for protocol in PROTOCOLS}
        return {
            name: {
                protocol: {"miou": table["iou"][index].item(), "f_score": table["f_score"][index].item()}
                for protocol, table in tables.items()
            }
            for index, name in enumerate(names)
            if tables["dataset"]["seen"][index]
        }
    scored = metrics.per_clip()
    heard = sorted({name for index in scored for name in objects[index] or ()})
    return {name: _subset_figures(metrics, [i for i in scored if name in (objects[i] or ())]) for name in heard}


def _subset_figures(metrics: ClipMetrics, clips: Sequence[int]) -> Figures:
    """Compute mIoU and F of some of the clips."""
    state = metrics.state_dict()
    kept = torch.isin(state["clip_indices"], torch.tensor(clips))
    columns = {name: state[name][kept] for name in ("clip_indices", "batch_indices", "rows")}
    subset = type(metrics)(score_padding=metrics.score_padding)
    subset.load_state_dict({**state, **columns})
    scores = {protocol: subset.compute(protocol) for protocol in PROTOCOLS}
    return {protocol: {name: values[name] for name in ("miou", "f_score")} for protocol, values in scores.items()}


def clip_figures(metrics: ClipMetrics) -> dict[int, dict[str, float]]:
    """Compute mIoU and F of each clip alone, by its index; over the classes seen in it if there are several."""
    suffix = "_seen_classes" if isinstance(metrics, SemanticMetrics) else ""
    return {
        index: {name: figures[name + suffix] for name in ("miou", "f_score")}
        for index, figures in metrics.per_clip().items()
    }


def worst_clips(figures: Mapping[int, Mapping[str, float]], count: int) -> list[int]:
    """The indices of the clips with the lowest mIoU, the worst first; of equals the first."""
    return sorted(figures, key=lambda index: (figures[index]["miou"], index))[:count]


def measure_name(key: str) -> str:
    """What a measure is called in tables.

    Example:
        >>> measure_name("f_score_no_background")
        'F, no background'
    """
    suffix = next((suffix for suffix in SLICES if key.endswith(suffix)), "")
    return MEASURES[key.removesuffix(suffix)] + SLICES.get(suffix, "")


def figures_table(figures: Figures) -> str:
    """Write measures as the rows and protocols as the columns of a Markdown table."""
    keys = [key for key in figures["official"] if key not in COUNTS]
    rows = [[measure_name(key), *(f"{figures[protocol][key]:.4f}" for protocol in PROTOCOLS)] for key in keys]
    return markdown_table(["", *PROTOCOLS], rows)


def class_table(figures: Mapping[str, Figures]) -> str:
    """Write classes as the rows, and IoU and F under each protocol as the columns of a Markdown table."""
    columns = [(protocol, key) for key in ("miou", "f_score") for protocol in PROTOCOLS]
    header = ["class", *(f"{'IoU' if key == 'miou' else 'F'}, {protocol}" for protocol, key in columns)]
    rows = [[name, *(f"{values[protocol][key]:.4f}" for protocol, key in columns)] for name, values in figures.items()]
    return markdown_table(header, rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table that reads well as plain text too.

    Args:
        header: Of the columns; the first is aligned left, all others right.
        rows: One text per column.

    Returns:
        The lines, with an end of line after each.
    """
    cells = [[text.replace("|", r"\|") for text in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [cells[0], rule, *cells[1:]]
    justified = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in justified)
