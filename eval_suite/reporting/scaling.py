"""Results over what they cost: parameters, FLOPs and pre-training time."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eval_suite.classification.backbone_cost import USUAL_SIZE, backbone_cost
from eval_suite.reporting.effort import Effort
from eval_suite.reporting.figures import draw_scaling
from spark.backbones.names import is_reference, shown_name
from spark.runs.record import ResultRecord, options_of, setting_of

AXES = {
    "parameters": "parameters (millions)",
    "flops": "GFLOPs of a forward pass",
    "hours": "pre-training: hours x devices",
}
LARGEST_SIZE = 2048  # pixels of an input whose FLOPs are counted
APART = ["task", "version", "origin", "metric", "unit"]  # never in one plot


@dataclass(frozen=True)
class ScalingPlot:
    """A plot (SVG) and what it shows."""

    title: str
    note: str
    drawing: bytes


def scaling_plots(
    table: pd.DataFrame, records: Mapping[Path, ResultRecord], effort_of: Mapping[str, Effort],
    trust: Collection[str] = (),
) -> Iterator[ScalingPlot]:
    """Yield a plot for each task, origin and metric that was measured for several models or pre-training costs.

    Args:
        table: a summary.
        records: those that it was made of.
        effort_of: what pre-trainings took, by the SHA-256 of their checkpoints.
        trust: own networks whose code may run, to be counted.
    """
    for key, rows in table[table["n"] > 0].groupby(APART, sort=False):
        hours = rows.apply(lambda row: _pretraining_hours(row, records, effort_of), axis=1)
        if rows["model"].nunique() < 2 and hours.nunique() < 2:
            continue
        points = rows.assign(hours=hours, model=rows["model"].map(shown_name), **_sizes(rows, records, trust))
        axes = {cost: title for cost, title in AXES.items() if (points[cost] > 0).any()}
        if axes:
            task, _, origin, metric, unit = key
            yield ScalingPlot(f"{task}, {origin}", _note(points), draw_scaling(points, axes, f"{metric} [{unit}]"))


def _sizes(
    rows: pd.DataFrame, records: Mapping[Path, ResultRecord], trust: Collection[str]
) -> dict[str, pd.Series]:
    examples = [records[row["folders"][0]] for _, row in rows.iterrows()]
    costs = [backbone_cost(example.model, _input_size(example), options_of(example))
             if not is_reference(example.model) or example.model in trust else None for example in examples]
    return {
        "parameters": pd.Series([cost.parameters / 1e6 if cost else math.nan for cost in costs], rows.index),
        "flops": pd.Series([cost.flops / 1e9 if cost else math.nan for cost in costs], rows.index),
    }


def _input_size(record: ResultRecord) -> int:
    size = setting_of(record, "data", "input_size")
    return size if isinstance(size, int) and 0 < size <= LARGEST_SIZE else USUAL_SIZE


def _pretraining_hours(
    row: pd.Series, records: Mapping[Path, ResultRecord], effort_of: Mapping[str, Effort]
) -> float:
    """Return the mean over the pre-trainings of a row; NaN where none is known."""
    checkpoints = {records[folder].init.checkpoint_sha256 or "" for folder in row["folders"]}
    known = [effort_of[name].device_hours for name in checkpoints if name in effort_of]
    hours = [value for value in known if value is not None]
    return sum(hours) / len(hours) if hours else math.nan


def _note(points: pd.DataFrame) -> str:
    bars = "Bars are the standard deviation of the metric, and the confidence interval of the gain, where there are."
    protocols = points["protocol"].nunique()
    if protocols == 1:
        return bars
    return (f"Points are of {protocols} protocols, which only gains make comparable: each has its marker, and lines "
            f"join points of one alone. {bars}")
