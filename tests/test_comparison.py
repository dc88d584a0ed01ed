"""Tests of dataset_scripts/comparison.py: means and deviations, Markdown and LaTeX, published figures."""

import math
import re

import pytest

from pcmanet.dataset_scripts.comparison import (
    PUBLISHED,
    comparison_table,
    describe_sources,
    latex_table,
    measured_row,
    published_rows,
)


def measurement(name: str, miou: float, f_score: float, **changes: float) -> dict[str, float | str]:
    cost = {"parameters": 1.5e6, "gmacs_per_frame": 0.25, "frames_per_second": 40.0}
    return {"name": name, "miou": miou, "f_score": f_score, **cost, **changes}


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in table.splitlines()]


def test_scores_are_percent_with_the_deviation_of_a_sample():
    row = measured_row("a", "b", [measurement("s4", miou, 0.5) for miou in (0.1, 0.2, 0.3)])
    header, _, values = cells(comparison_table([row]))
    assert header == ["method", "network", "S4 mIoU", "S4 F", "parameters, M", "GMACs per frame", "frames/s"]
    assert values == ["a", "b", "20.0 ± 10.0", "50.0 ± 0.0", "1.50", "0.25", "40.0"]


def test_costs_that_differ_are_a_range():
    both = [measurement("s4", 0.5, 0.5), measurement("avss", 0.25, 0.5, parameters=1.6e6)]
    header, _, values = cells(comparison_table([measured_row("a", "b", both)]))
    assert header[2:6] == ["S4 mIoU", "S4 F", "AVSS mIoU", "AVSS F"]
    assert values[2:] == ["50.0", "50.0", "25.0", "50.0", "1.50 to 1.60", "0.25", "40.0"]


def test_published_rows_have_the_columns_of_the_measured_ones():
    rows = [measured_row("ours", "b", [measurement("ms3", 0.5, 0.5)]), *published_rows()]
    table = cells(comparison_table(rows))
    assert table[0][2:4] == ["MS3 mIoU", "MS3 F"] and len(table) == 3 + len(PUBLISHED)
    combo = next(line for line in table if line[0].startswith("COMBO") or line[0].startswith("| COMBO"))
    assert combo[2:4] == ["54.5", "66.6"]
    assert next(line for line in table if "AVESFormer" in line[0])[2:4] == ["57.9", "-"]
    sources = describe_sources(rows)
    assert sources[-1].startswith("Published figures: official protocol") and len(sources) == 7
    assert describe_sources(rows[:1]) == []


def test_published_figures_are_percentages_with_a_source():
    for row in published_rows():
        assert row.source and set(row.scores) == {"s4", "ms3", "avss"}
        for ((miou, f_score),) in row.scores.values():
            assert 1 < miou < 100 and (math.isnan(f_score) or miou < f_score < 100)


def test_latex_has_one_cell_per_column_and_escapes_names():
    rows = [
        measured_row("100% & {my}_model\\x", "b", [measurement("s4", m, 0.5) for m in (0.1, 0.2)]),
        *published_rows(),
    ]
    lines = latex_table(rows).splitlines()
    body = [line for line in lines if not line.startswith(("%", "\\"))]
    assert len(body) == len(rows) + 2
    assert r"100\% \& \{my\}\_model\textbackslash{}x & b & 15.0 $\pm$ 7.1" in body[2]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body[1:]} == {6}
    assert lines[0].startswith("% AVSBench") and lines[-1] == r"\end{tabular}"


def test_an_empty_evaluation_is_refused():
    with pytest.raises(ValueError):
        measured_row("a", "b", [])
