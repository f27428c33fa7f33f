"""Curves of runs, and results over model size, as SVG that reads on light and dark pages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from spark.utils.plots import COLORS, GRAY_ON_ANY, encode, plain, quieten

Log = Sequence[Mapping[str, Any]]  # the records of one metrics.jsonl
POINTS = 400  # of a line: more would not be seen, and make the page large
MARKERS = "osD^vP"
TICKS_APART = 0.08  # of a logarithmic axis


@dataclass(frozen=True)
class Curve:
    """A run's log; runs of a group share a color."""

    group: str
    log: Log


def draw_curves(curves: Sequence[Curve], keys: Sequence[str]) -> bytes | None:
    """Draw each key as a panel with one line per run; return SVG, or None if no run has any of the keys.

    The horizontal axis is the epoch where a log has one record an epoch, else the optimizer step.
    """
    shown = [key for key in keys if any(key in record for curve in curves for record in curve.log)]
    if not shown:
        return None
    axis_name = "epoch" if all(_one_record_an_epoch(curve.log) for curve in curves) else "step"
    columns = min(len(shown), 2)
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(4.6 * columns, 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    colors = dict(zip(dict.fromkeys(curve.group for curve in curves), itertools.cycle(COLORS), strict=False))
    for axes, key in itertools.zip_longest(panels, shown):
        if key is None:
            axes.set_visible(False)
            continue
        _draw_lines(axes, curves, key, axis_name, colors)
        axes.set_xlabel("optimizer step" if axis_name == "step" else "epoch")
        axes.set_xlim(left=0)
        _finish(axes, key)
    return encode(figure, "svg")


def draw_scaling(points: pd.DataFrame, axes_names: Mapping[str, str], metric: str) -> bytes:
    """Draw a metric, and its gain over the baseline, against costs on logarithmic axes; return SVG.

    Args:
        points: a row for each mean: model, init, protocol, mean, std, gain, gain_low, gain_high, and the costs.
        axes_names: title of each column of `points` that is a cost.
        metric: its name and unit.
    """
    figure = Figure(figsize=(4.2 * len(axes_names), 5.6), layout="constrained")
    grid = figure.subplots(2, len(axes_names), squeeze=False, sharex="col")
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
        _finish(lower, "gain" if column == 0 else "", legend=False)
    return encode(figure, "svg")


def _draw_lines(axes: Any, curves: Sequence[Curve], key: str, axis_name: str, colors: Mapping[str, str]) -> None:
    named: set[str] = set()
    for curve in curves:
        points = [(record[axis_name], record[key]) for record in curve.log if record.get(key) is not None]
        if points:
            axes.plot(*zip(*_thinned(points), strict=True), color=colors[curve.group], linewidth=1.4,
                      marker="o" if len(points) == 1 else None,
                      label=None if curve.group in named else plain(curve.group))
            named.add(curve.group)


@dataclass(frozen=True)
class _Style:
    """Colours of lines by the column that they are named after, markers by protocol."""

    by: str
    colors: Mapping[str, str]
    markers: Mapping[str, str]

    @classmethod
    def of(cls, points: pd.DataFrame, by: str) -> _Style:
        colors = dict(zip(points[by].unique(), itertools.cycle(COLORS), strict=False))
        return cls(by, colors, dict(zip(points["protocol"].unique(), itertools.cycle(MARKERS), strict=False)))


def _draw_points(
    axes: Any, points: pd.DataFrame, cost: str, style: _Style, value: str, below: pd.Series, above: pd.Series
) -> None:
    """Draw points with error bars; a line joins those of one protocol alone."""
    there = points.dropna(subset=[value]).sort_values(cost)
    for (name, protocol), line in there.groupby([style.by, "protocol"], sort=False):
        bars = [below[line.index].fillna(0), above[line.index].fillna(0)]
        axes.errorbar(line[cost], line[value], yerr=bars, color=style.colors[str(name)],
                      marker=style.markers[str(protocol)], linewidth=1.4, markersize=5, elinewidth=1, capsize=2.5,
                      label=plain(str(name)))


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


def _finish(axes: Any, title: str, legend: bool = True) -> None:
    axes.set_title(plain(title), fontsize=10, color=GRAY_ON_ANY)
    quieten(axes, GRAY_ON_ANY, grid=True)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique and legend:
        axes.legend(unique.values(), unique.keys(), fontsize=8, frameon=False, labelcolor=GRAY_ON_ANY)


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Keep every nth point, and the last."""
    every = math.ceil(len(points) / POINTS)
    return [*points[:-1:every], points[-1]]


def _one_record_an_epoch(log: Log) -> bool:
    epochs = [record.get("epoch") for record in log]
    return None not in epochs and len(set(epochs)) == len(epochs)
