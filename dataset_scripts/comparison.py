"""Tables for a paper: results of one or several checkpoints of a network next to published ones, as Markdown and LaTeX.

    rows = [measured_row("PCMANet", measurements), *published_rows()]
    print(comparison_table(rows))
    print(latex_table(rows))

Scores are mIoU and F under the official protocol, in percent. Published figures are those of the sources that `PUBLISHED`
names; they were not measured here.
"""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .evaluation import markdown_table


DATASETS = {"s4": "S4", "ms3": "MS3", "avss": "AVSS", "folder": "custom clips"}
COSTS = ("parameters, M", "GMACs per frame", "frames/s")
LATEX_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    sign: f"\\{sign}" for sign in "&%$#_{}"
}


class Row(NamedTuple):
    """One method in a table.

    Attributes:
        method: Its name.
        network: Visual backbone and side of the frames in pixels.
        scores: Dataset -> mIoU and F in percent, one pair for each checkpoint.
        costs: Parameters in millions, multiply-accumulates per frame and frames per second, as text.
        source: Where the figures come from.
    """

    method: str
    network: str
    scores: Mapping[str, Sequence[tuple[float, float]]]
    costs: tuple[str, str, str]
    source: str


AVSBENCH = "AVSBench: arXiv 2207.05042 (S4, MS3), 2301.13190 (AVSS), github.com/OpenNLPLab/AVSBench"
AVSEGFORMER = (
    "AVSegFormer: arXiv 2307.01146, github.com/vvvb-github/AVSegFormer"  # its AVSS figures differ between versions
)
COMBO = "COMBO: arXiv 2312.06462, github.com/yannqi/COMBO-AVS"
AVESFORMER = "AVESFormer: abstract of arXiv 2408.01708, mIoU only"
EASE = "EASE: Less is more: encoder-only audio-visual segmentation, 2026"
KEVA = "KEVA: results table of its project; also uses optical flow"
PROTOCOL = "official protocol, one clip per batch; AVSS: 71 classes, padded frames are scored too"
COST_NOTE = "costs as measured by EASE: parameters with the audio encoder, GFLOPs per frame, frames/s on one RTX 4090, one clip per batch"

# Method, network, mIoU and F of S4, MS3 and AVSS, costs, source.
PUBLISHED = (
    ("TPAVI", "ResNet-50 @224", (72.8, 84.8), (47.9, 57.8), (20.2, 25.2), None, AVSBENCH),
    ("TPAVI", "PVT-v2 @224", (78.7, 87.9), (54.0, 64.5), (29.8, 35.2), None, AVSBENCH),
    ("AVSegFormer", "ResNet-50 @224", (76.5, 85.9), (49.5, 62.8), (24.9, 29.3), None, AVSEGFORMER),
    ("AVSegFormer", "PVT-v2 @224", (82.1, 89.9), (58.4, 69.3), (36.7, 42.0), (186, 99, 27), AVSEGFORMER),
    ("COMBO", "ResNet-50 @224", (81.7, 90.1), (54.5, 66.6), (33.3, 37.3), None, COMBO),
    ("COMBO", "PVT-v2 @224", (84.7, 91.9), (59.2, 71.2), (42.1, 46.1), (499, 346, 73), COMBO),
    ("AVESFormer", "not stated", (79.9, None), (57.9, None), (31.2, None), None, AVESFORMER),
    ("EASE", "PVT-v2 @224", (80.4, 89.7), (60.8, 68.7), (42.3, 47.6), (147, 40, 159), EASE),
    ("EASE", "DINOv3 ViT-L @384", (87.7, 94.1), (70.2, 76.5), (56.5, 61.0), None, EASE),
    ("KEVA", "Swin-B @384", (87.4, 95.1), (73.5, 84.9), (52.0, 56.3), None, KEVA),
)


def published_rows() -> list[Row]:
    """Return the published results of other methods on the test splits of AVSBench."""
    rows = []
    for method, network, s4, ms3, avss, costs, source in PUBLISHED:
        pairs = zip(("s4", "ms3", "avss"), (s4, ms3, avss), strict=True)
        scores = {name: [(miou, float("nan") if f_score is None else f_score)] for name, (miou, f_score) in pairs}
        shown = ("-", "-", "-") if costs is None else (f"{costs[0]}", f"{costs[1]} GFLOPs", f"{costs[2]}")
        rows.append(Row(method, network, scores, shown, source))
    return rows


def measured_row(method: str, network: str, measurements: Iterable[Mapping[str, float | str]]) -> Row:
    """Summarize the checkpoints of a network.

    Args:
        method: Its name.
        network: Visual backbone and size.
        measurements: For each checkpoint `name` (dataset), `miou` and `f_score` in [0, 1], `parameters`,
            `gmacs_per_frame` and `frames_per_second`.

    Returns:
        The row. Costs that differ between checkpoints, as those of heads with other classes do, are given as a range.
    """
    scores: dict[str, list[tuple[float, float]]] = {}
    found = list(measurements)
    for one in found:
        pair = 100 * float(one["miou"]), 100 * float(one["f_score"])
        scores.setdefault(str(one["name"]), []).append(pair)
    costs = (
        _range([float(one["parameters"]) / 1e6 for one in found], 2),
        _range([float(one["gmacs_per_frame"]) for one in found], 2),
        _range([float(one["frames_per_second"]) for one in found], 1),
    )
    return Row(method, network, scores, costs, "")


def comparison_table(rows: Sequence[Row]) -> str:
    """Format rows as a Markdown table; the scores of several checkpoints are mean ± standard deviation."""
    names = _datasets(rows)
    header = ["method", "network", *(f"{DATASETS[name]} {key}" for name in names for key in ("mIoU", "F")), *COSTS]
    return markdown_table(header, [_cells(row, names, " ± ") for row in rows])


def latex_table(rows: Sequence[Row]) -> str:
    """Format rows as a LaTeX `tabular` that needs no package, with the sources as comments."""
    names = _datasets(rows)
    groups = " & ".join(rf"\multicolumn{{2}}{{c}}{{{DATASETS[name]}}}" for name in names)
    costs = " & ".join(map(_escape, COSTS))
    lines = [rf"\begin{{tabular}}{{ll{'rr' * len(names)}rrr}}", r"\hline"]
    lines += [rf" & & {groups} & & & \\", rf"method & network & {' & '.join(['mIoU & F'] * len(names))} & {costs} \\"]
    lines.append(r"\hline")
    for row in rows:
        cells = [_escape(cell).replace("±", r"$\pm$") for cell in _cells(row, names, " ± ")]
        lines.append(" & ".join(cells) + r" \\")
    comments = [f"% {note}" for note in describe_sources(rows)]
    return "\n".join([*comments, *lines, r"\hline", r"\end{tabular}"]) + "\n"


def describe_sources(rows: Sequence[Row]) -> list[str]:
    """Return a line for each source of published rows and for their protocol; none without published rows."""
    sources = list(dict.fromkeys(row.source for row in rows if row.source))
    return [*sources, f"Published figures: {PROTOCOL}; {COST_NOTE}."] if sources else []


def _datasets(rows: Sequence[Row]) -> list[str]:
    """Return the datasets of measured rows in the order of the table, or of all rows if none is measured."""
    measured = [row for row in rows if not row.source] or rows
    return [name for name in DATASETS if any(name in row.scores for row in measured)]


def _cells(row: Row, names: Sequence[str], sign: str) -> list[str]:
    """Return the cells of a row."""
    scores = []
    for name in names:
        columns = zip(*row.scores.get(name, [(float("nan"),) * 2]), strict=True)
        scores += [_mean_and_deviation(column, sign) for column in columns]
    return [row.method, row.network, *scores, *row.costs]


def _mean_and_deviation(values: Sequence[float], sign: str) -> str:
    """Format the mean, with the sample standard deviation if there are several values; `-` if unknown."""
    mean = statistics.fmean(values)
    if mean != mean:
        return "-"
    return f"{mean:.1f}" + (f"{sign}{statistics.stdev(values):.1f}" if len(values) > 1 else "")


def _range(values: Sequence[float], digits: int) -> str:
    """Format the lowest and the highest value, or one of them if they do not differ."""
    lowest, highest = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return lowest if lowest == highest else f"{lowest} to {highest}"


def _escape(text: str) -> str:
    """Escape characters that have a meaning in LaTeX."""
    return re.sub(r"[\\~^&%$#_{}]", lambda match: LATEX_SPECIAL[match[0]], text)
