"""Curves of runs as SVG that reads on light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from spark.plots import COLOURS, GREY_ON_ANY, encode, quieten

Log = Sequence[Mapping[str, Any]]  # the records of one metrics.jsonl


def draw_curves(logs: Mapping[str, Log], keys: Sequence[str]) -> bytes | None:
    """Draw each key as a panel with one line per run; return SVG, or None if no run has any of the keys.

    The horizontal axis is the epoch where a log has one record an epoch, else the optimizer step.
    """
    shown = [key for key in keys if any(key in record for log in logs.values() for record in log)]
    if not shown:
        return None
    figure = Figure(figsize=(4.4 * len(shown), 2.9), layout="constrained")
    axis_name = "epoch" if all(_one_record_an_epoch(log) for log in logs.values()) else "step"
    for axes, key in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for index, (name, log) in enumerate(logs.items()):
            points = [(record[axis_name], record[key]) for record in log if key in record]
            if points:
                marker = "o" if len(points) == 1 else None
                axes.plot(*zip(*points, strict=True), label=name, color=COLOURS[index % len(COLOURS)],
                          linewidth=1.6, marker=marker)
        axes.set_xlabel("optimizer step" if axis_name == "step" else "epoch")
        axes.set_title(key, fontsize=10, color=GREY_ON_ANY)
        quieten(axes, GREY_ON_ANY, grid=True)
        axes.legend(fontsize=8, frameon=False, labelcolor=GREY_ON_ANY)
    return encode(figure, "svg")


def _one_record_an_epoch(log: Log) -> bool:
    epochs = [record.get("epoch") for record in log]
    return None not in epochs and len(set(epochs)) == len(epochs)
