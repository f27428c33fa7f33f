"""The course of a run in one image, `curve.png`: loss beside what it should be, learning rate, probes, skipped steps.

What a loss should be is not typed anywhere: the level of a trivial prediction is the method's to compute.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from spark.runs.metrics import read_metrics
from spark.utils.files import atomic_path
from spark.utils.plots import COLORS, GRAY, encode, quieten

FILE_NAME = "curve.png"
WINDOW = 0.04  # of a run's records: what smoothing averages over
DRAWING_COST = 0.01  # of the time, at most so much goes into drawing
PROBES = {"knn": "k-NN", "linear": "linear probe"}


class Curve:
    """Redraws a run's image now and then.

    Args:
        run: the run's folder; its metrics are read from there.
        trivial_loss: of predicting each patch's mean; None where the method has no such constant.
    """

    def __init__(self, run: Path, trivial_loss: float | None) -> None:
        self._run, self._trivial_loss = run, trivial_loss
        self._drawn, self._seconds = time.monotonic(), 1.0

    def update(self, last: bool) -> None:
        """Redraw the image, if that is the `last` time or enough went by since it was drawn."""
        started = time.monotonic()
        if not last and started - self._drawn < self._seconds / DRAWING_COST:
            return
        if image := draw_curve(read_metrics(self._run), self._trivial_loss):
            with atomic_path(self._run / FILE_NAME) as temporary:
                temporary.write_bytes(image)
        self._drawn = time.monotonic()
        self._seconds = self._drawn - started


def draw_curve(records: Sequence[dict[str, Any]], trivial_loss: float | None) -> bytes | None:
    """Draw the records of a run as PNG; None if there is no loss among them yet."""
    log = pd.DataFrame(records)
    if "loss" not in log or len(log) == 0:
        return None
    panels = [_draw_loss, _draw_rate]
    if any(name in log for name in PROBES):
        panels.append(_draw_probes)
    if "skipped" in log:
        panels.append(_draw_skipped)
    heights = [3.0, *([1.0] * (len(panels) - 1))]
    figure = Figure(figsize=(7, 1.1 * sum(heights) + 0.4), layout="constrained", dpi=110)
    below = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, draw in zip(below, panels, strict=True):
        draw(axes, log)
        quieten(axes, grid=True)
    _draw_trivial_loss(below[0], trivial_loss)
    below[-1].set_xlabel("epoch")
    return encode(figure, "png")


def _draw_loss(axes: Any, log: pd.DataFrame) -> None:
    steps = log.dropna(subset="loss")
    axes.plot(steps.epoch, steps.loss, color=COLORS[0], alpha=0.35, linewidth=0.8)
    axes.plot(steps.epoch, _smoothed(steps.loss), color=COLORS[0], linewidth=1.8, label="this run, smoothed")
    axes.set_ylabel("loss")


def _draw_trivial_loss(axes: Any, trivial_loss: float | None) -> None:
    """Draw what the loss is to be compared with."""
    if trivial_loss is not None:
        label = f"predicting each patch's mean: {trivial_loss:.4f}"
        axes.axhline(trivial_loss, color=GRAY, linestyle="--", linewidth=1, label=label)
    # Above the axes: a loss may fall through any corner of them.
    axes.legend(fontsize=8, frameon=False, labelcolor=GRAY, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def _smoothed(losses: pd.Series) -> pd.Series:
    """Return the running mean of a run's losses, over a few per cent of them around each."""
    return losses.rolling(max(1, round(WINDOW * len(losses))), center=True, min_periods=1).mean()


def _draw_rate(axes: Any, log: pd.DataFrame) -> None:
    steps = log.dropna(subset="lr")
    axes.plot(steps.epoch, steps.lr, color=COLORS[1], linewidth=1.4)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.yaxis.get_offset_text().set(color=GRAY, fontsize=8)
    axes.set_ylabel("learning rate")


def _draw_probes(axes: Any, log: pd.DataFrame) -> None:
    for number, (name, title) in enumerate(PROBES.items()):
        if name in log:
            probed = log.dropna(subset=name)
            color = COLORS[2 + number]
            axes.plot(probed.epoch, probed[name], "o-", color=color, markersize=3, linewidth=1.4, label=title)
    axes.legend(fontsize=8, frameon=False, labelcolor=GRAY)
    axes.set_ylabel("accuracy in %")


def _draw_skipped(axes: Any, log: pd.DataFrame) -> None:
    axes.step(log.epoch, log.skipped.ffill().fillna(0), where="post", color=COLORS[4], linewidth=1.4)
    axes.set_ylabel("skipped steps")
