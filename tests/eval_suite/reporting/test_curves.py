"""The curves of few runs, of many, and of many groups."""

from __future__ import annotations

import re
import warnings

import numpy as np

from eval_suite.reporting.curves import LINES, Curve, draw_curves, quartiles
from eval_suite.reporting.looks import LOOKS


def log(loss: float, epochs: int = 5) -> list[dict[str, float]]:
    """A run's log."""
    return [{"step": 10 * epoch, "epoch": epoch, "loss": loss / epoch} for epoch in range(1, epochs + 1)]


def drawn(curves: list[Curve]) -> tuple[bytes, list[str]]:
    """Return the drawing, which matplotlib makes without complaint, and the words in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = draw_curves(curves, ("loss",))
    assert svg
    return svg, [word.decode() for word in re.findall(rb"<!-- (.*?) -->", svg)]


def lines_in(svg: bytes) -> int:
    """Count the curves: clipped lines without fill, of five points."""
    return len(re.findall(rb'<path d="M [^"]*(?:L [^"]*){4}" clip-path="[^"]*" style="fill: none', svg))


def test_every_group_is_named_whatever_its_name_begins_with() -> None:
    svg, words = drawn([Curve(group, log(1 + seed)) for group in ("_x", "__", "$y$", "z") for seed in (0, 1)])
    assert {"_x", "__", "$y$", "z"} <= set(words)
    assert lines_in(svg) == 8


def test_many_groups_are_counted_where_they_cannot_be_told_apart() -> None:
    svg, words = drawn([Curve(f"group {number}", log(number + 1)) for number in range(40)])
    assert [word for word in words if word.startswith("group")] == [f"group {n}" for n in range(len(LOOKS))]
    assert f"{40 - len(LOOKS)} more, not named" in words
    assert lines_in(svg) >= 40  # none is left out


def test_of_many_runs_each_group_is_a_line() -> None:
    runs = [Curve(f"group {number % 3}", log(1 + number)) for number in range(20 * LINES)]
    svg, words = drawn(runs)
    assert lines_in(svg) == 3
    assert "medians of 1,200 runs, in bands of their middle half" in words
    assert len(svg) < 60_000
    long, _ = drawn([Curve(run.group, log(1, 3000)) for run in runs[:2 * LINES]])
    assert len(long) < 120_000


def test_quartiles_between_records_and_of_runs_of_any_length() -> None:
    runs = [np.array([[0, 0], [2, 2]]), np.array([[0, 10], [1, 10], [2, 10]]), np.array([[2, 3], [0, 1]]),
            np.array([[7, 5]])]
    where, low, median, high = quartiles([run.astype(float) for run in runs])
    assert where.tolist() == [0, 1, 2, 7]
    assert median.tolist() == [1, 2, 3, 5]
    assert low.tolist() == [0.5, 1.5, 2.5, 5]
    assert high.tolist() == [5.5, 6, 6.5, 5]


def test_values_that_are_no_numbers_are_left_out() -> None:
    svg, _ = drawn([Curve("a", [*log(1), {"step": 60, "epoch": 6, "loss": "nan"}, {"step": 70, "epoch": 7}])])
    assert lines_in(svg) == 1
