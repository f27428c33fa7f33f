"""Charts: a detector's precision over recall, and the course of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from spark.utils.plots import COLORS, GRAY, encode, name_lines, plain, quieten

if TYPE_CHECKING:
    from d2_projects.evaluation.average_precision import Evaluation

TITLES = {"bbox": "boxes", "segm": "masks"}
RECALLS = np.linspace(0, 1, 101)  # where COCO reads the precision
SHOWN = 5  # categories with a line of their own: those with most objects


def draw_precision_recall(evaluations: Mapping[Any, Evaluation]) -> bytes:
    """Draw precision over recall at IoU 0.5 and 0.75, a row for each task: the mean, and a few categories (PNG)."""
    figure = Figure(figsize=(8.4, 3.4 * len(evaluations)), layout="constrained", dpi=150)
    panels = figure.subplots(len(evaluations), 2, squeeze=False, sharex=True, sharey=True)
    for row, (task, evaluation) in zip(panels, evaluations.items(), strict=True):
        shown = np.argsort(evaluation.objects, kind="stable")[::-1][:SHOWN]
        for axes, threshold in zip(row, (0.5, 0.75), strict=True):
            precision_RK = evaluation.precision(threshold)
            lines: dict[str, Any] = {}
            for color, category in zip(COLORS, shown, strict=False):
                if evaluation.objects[category] and len(evaluation.categories) > 1:
                    name = f"{evaluation.categories[category]} ({evaluation.objects[category]:,})"
                    (lines[name],) = axes.plot(RECALLS, precision_RK[:, category], color=color, linewidth=1.1)
            defined = ~np.isnan(precision_RK[0])
            mean = precision_RK[:, defined].mean(1) if defined.any() else np.zeros(101)
            (lines[f"mean of {defined.sum()}"],) = axes.plot(RECALLS, mean, color="black", linewidth=2.2)
            axes.set(xlim=(0, 1), ylim=(0, 1.02))
            axes.set_title(f"{TITLES[task]}, IoU {threshold:g}: AP {100 * np.nanmean(precision_RK[:, defined]):.1f}"
                           if defined.any() else f"{TITLES[task]}, IoU {threshold:g}", fontsize=10, color=GRAY)
            quieten(axes, grid=True)
            if axes is row[0]:
                axes.set_ylabel("precision", fontsize=9)
                name_lines(axes, lines)
    for axes in panels[-1]:
        axes.set_xlabel("recall", fontsize=9)
    return encode(figure, "png")


def draw_course(log: Sequence[Mapping[str, Any]], metrics: Mapping[str, Sequence[str]]) -> bytes:
    """Draw loss, learning rate and metrics over the iterations of a run's `metrics.jsonl` (PNG).

    Args:
        log: its records.
        metrics: title of a panel -> names of the evaluation results in it.
    """
    losses = sorted({key for record in log for key in record if key.startswith("loss")})
    panels = {"loss": losses, "learning rate": ["lr"], **metrics}
    figure = Figure(figsize=(12, 3.2), layout="constrained", dpi=150)
    for axes, (title, keys) in zip(figure.subplots(1, len(panels), sharex=True), panels.items(), strict=True):
        for number, key in enumerate(keys):
            points = [(record["step"], record[key]) for record in log if key in record]
            if points:
                axes.plot(*zip(*points, strict=True), color=COLORS[number % len(COLORS)],
                          linewidth=2 if number == 0 else 1.1, marker="o" if len(points) < 3 else None,
                          label=plain(key))
        axes.set_title(title, fontsize=10, color=GRAY)
        axes.set_xlabel("iteration", fontsize=9)
        axes.set_ylim(0, 1.08 * max((record[key] for record in log for key in keys if key in record), default=1) or 1)
        quieten(axes, grid=True)
        if len(keys) > 1:
            axes.legend(fontsize=8, frameon=False, labelcolor=GRAY)
    return encode(figure, "png")
