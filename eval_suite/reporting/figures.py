"""Results over what they cost, as SVG that reads on light and dark pages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from eval_suite.reporting.looks import Look, legend_of, looks_of
from spark.utils.plots import GRAY_ON_ANY, encode, name_lines, plain, quieten

MARKERS = "osD^vP"
TICKS_APART = 0.08  # of a logarithmic axis
BELOW = -0.24  # of a panel's height: where a legend begins that has the axis above it


def draw_scaling(points: pd.DataFrame, axes_names: Mapping[str, str], metric: str) -> bytes:
    """Draw a metric, and its gain over the baseline, against costs on logarithmic axes; return SVG.

    Args:
        points: a row for each mean: model, init, protocol, mean, std, gain, gain_low, gain_high, and the costs.
        axes_names: title of each column of `points` that is a cost.
        metric: its name and unit.
    """
    figure = Figure(figsize=(4.2 * len(axes_names), 5.6), layout="constrained")
    grid = figure.subplots(2, len(axes_names), squeeze=False, sharex="col")
    named: set[str] = set()  # what lines are named after, where that was said
    for column, (cost, title) in enumerate(axes_names.items()):
        there = points[points[cost] > 0]
        # Over the size of models each initialisation is a line; over its cost each model is one.
        by = "model" if cost == "hours" else "init"
        style = _Style.of(there, by)
        upper, lower = grid[:, column]
        _draw_points(upper, there, cost, style, "mean", there["std"], there["std"])
        _draw_points(lower, there, cost, style, "gain", there["gain"] - there["gain_low"],
                     there["gain_high"] - there["gain"])
        lower.axhline(0, color=GRAY_ON_ANY, linewidth=0.8)
        lower.set_xlabel(title)
        _logarithmic(lower, sorted(there[cost].unique()))
        _finish(upper, metric if column == 0 else "")
        _finish(lower, "gain" if column == 0 else "")
        if by not in named:
            named.add(by)
            name_lines(lower, legend_of(style.looks), GRAY_ON_ANY, ncols=2, loc="upper center",
                       bbox_to_anchor=(0.5, BELOW))
    return encode(figure, "svg")


@dataclass(frozen=True)
class _Style:
    """Looks of lines by the column that they are named after, markers by protocol."""

    by: str
    looks: Mapping[str, Look]
    markers: Mapping[str, str]

    @classmethod
    def of(cls, points: pd.DataFrame, by: str) -> _Style:
        markers = dict(zip(points["protocol"].unique(), itertools.cycle(MARKERS), strict=False))
        return cls(by, looks_of(map(str, points[by].unique())), markers)


def _draw_points(
    axes: Any, points: pd.DataFrame, cost: str, style: _Style, value: str, below: pd.Series, above: pd.Series
) -> None:
    """Draw points with error bars; a line joins those of one protocol alone."""
    there = points.dropna(subset=[value]).sort_values(cost)
    for (name, protocol), line in there.groupby([style.by, "protocol"], sort=False):
        bars = [below[line.index].fillna(0), above[line.index].fillna(0)]
        axes.errorbar(line[cost], line[value], yerr=bars, marker=style.markers[str(protocol)], markersize=4,
                      elinewidth=1, capsize=2.5, **style.looks[str(name)])


def _logarithmic(axes: Any, values: Sequence[float]) -> None:
    """Put ticks at the values themselves; one that would touch the one before has none."""
    if not values:
        return
    axes.set_xscale("log")
    span = math.log(values[-1] / values[0]) or 1.0
    ticks = [values[0]]
    for value in values[1:]:
        if math.log(value / ticks[-1]) >= TICKS_APART * span:
            ticks.append(value)
    axes.set_xticks(ticks, [f"{value:.3g}" for value in ticks])
    axes.minorticks_off()


def _finish(axes: Any, title: str) -> None:
    axes.set_title(plain(title), fontsize=10, color=GRAY_ON_ANY)
    quieten(axes, GRAY_ON_ANY, grid=True)
