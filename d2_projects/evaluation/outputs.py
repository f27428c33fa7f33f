"""What an evaluated run of any project leaves in its folder for people: the course of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from d2_projects.evaluation.figures import draw_course
from spark.runs.metrics import read_metrics
from spark.utils.files import atomic_path

COURSE = "curves.png"


def write_course(run: Path, metrics: Mapping[str, Sequence[str]]) -> None:
    """Draw the run's `metrics.jsonl`, if it has one.

    Args:
        run: its folder.
        metrics: title of a panel -> names of the evaluation results in it.
    """
    log = read_metrics(run)
    if log:
        with atomic_path(run / COURSE) as temporary:
            temporary.write_bytes(draw_course(log, metrics))
