"""Curves of runs, as SVG that reads on light and dark pages: of few runs each one, of many what is common to groups."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from eval_suite.reporting.looks import GRAY, Look, legend_of, looks_of
from spark.utils.plots import GRAY_ON_ANY, encode, name_lines, plain, quieten

Log = Sequence[Mapping[str, Any]]  # the records of one metrics.jsonl
Points = NDArray[np.float64]  # [points, 2]: where, and how much
POINTS = 400  # of a line: more would not be seen, and make the page large
LINES = 60  # in a panel: of more runs, the median of each group is drawn
MIDDLE = (25, 50, 75)  # per cent of a group's runs that lie below a band, its median and above
COLUMNS = 3  # of a legend


@dataclass(frozen=True)
class Curve:
    """A run's log; runs of a group share a color."""

    group: str
    log: Log


def draw_curves(curves: Sequence[Curve], keys: Sequence[str]) -> bytes | None:
    """Draw each key as a panel; return SVG, or None if no run has any of the keys.

    A run is a line; of more than LINES runs, each group is one, its median, in a band that holds the middle half of
    them. The horizontal axis is the epoch where a log has one record an epoch, else the optimizer step.
    """
    shown = [key for key in keys if any(key in record for curve in curves for record in curve.log)]
    if not shown:
        return None
    axis_name = "epoch" if all(_one_record_an_epoch(curve.log) for curve in curves) else "step"
    columns = min(len(shown), 2)
    rows = math.ceil(len(shown) / columns)
    looks = looks_of(dict.fromkeys(curve.group for curve in curves))
    legend = legend_of(looks)
    if len(curves) > LINES:
        legend[f"medians of {len(curves):,} runs, in bands of their middle half"] = Line2D([], [], linestyle="none")
    figure = Figure(figsize=(4.6 * columns, 2.9 * rows + 0.17 * math.ceil(len(legend) / COLUMNS)), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, key in itertools.zip_longest(panels, shown):
        if key is None:
            axes.set_visible(False)
            continue
        _draw_lines(axes, curves, key, axis_name, looks)
        axes.set_xlabel("optimizer step" if axis_name == "step" else "epoch")
        axes.set_xlim(left=0)
        axes.set_title(plain(key), fontsize=10, color=GRAY_ON_ANY)
        quieten(axes, GRAY_ON_ANY, grid=True)
    name_lines(figure, legend, GRAY_ON_ANY, loc="outside lower center", ncols=min(COLUMNS, len(legend)))
    return encode(figure, "svg")


def quartiles(runs: Sequence[Points]) -> tuple[Any, Any, Any, Any]:
    """Return where runs are, and their quartiles there; between its records a run goes straight."""
    where = _thinned(np.unique(np.concatenate([points[:, 0] for points in runs])))
    in_order = [points[np.argsort(points[:, 0], kind="stable")] for points in runs]  # some have gone back
    values = np.stack([np.interp(where, run[:, 0], run[:, 1], left=np.nan, right=np.nan) for run in in_order])
    there = ~np.isnan(values).all(0)
    return where[there], *np.nanpercentile(values[:, there], MIDDLE, axis=0)


def _draw_lines(axes: Any, curves: Sequence[Curve], key: str, axis_name: str, looks: Mapping[str, Look]) -> None:
    """Draw runs, or, of many, the medians of their groups."""
    found = [(curve.group, points) for curve in curves if len(points := _points(curve.log, key, axis_name))]
    if len(curves) <= LINES:
        for group, points in found:
            where, values = _thinned(points).T
            _draw_line(axes, where, values, looks[group])
        return
    for group, look in looks.items():
        if runs := [points for name, points in found if name == group]:
            where, low, median, high = quartiles(runs)
            _draw_line(axes, where, median, look)
            if look is not GRAY:  # whose bands would hide the others
                axes.fill_between(where, low, high, color=look["color"], alpha=0.18, linewidth=0)


def _draw_line(axes: Any, where: Any, values: Any, look: Look) -> None:
    axes.plot(where, values, marker="o" if len(where) == 1 else None, **look)


def _points(log: Log, key: str, axis_name: str) -> Points:
    points = [(record[axis_name], record[key]) for record in log if isinstance(record.get(key), int | float)]
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def _thinned(points: Points) -> Points:
    """Keep every nth point, and the last."""
    every = math.ceil(len(points) / POINTS)
    return np.concatenate([points[:-1:every], points[-1:]])


def _one_record_an_epoch(log: Log) -> bool:
    epochs = [record.get("epoch") for record in log]
    return None not in epochs and len(set(epochs)) == len(epochs)
