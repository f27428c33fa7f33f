"""What an evaluated run leaves in its folder for people: gallery and course of training, beside numbers and curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from d2_projects.data.annotations import Source
from d2_projects.evaluation import coco as evaluation
from d2_projects.evaluation import gallery
from d2_projects.evaluation.figures import draw_course
from spark.runs.metrics import read_metrics
from spark.utils.files import atomic_path

COURSE = "curves.png"
TASKS = ("segm", "bbox")  # the gallery shows masks where there are any
OUTPUTS = (
    *(evaluation.detections_file(task) for task in TASKS), evaluation.PER_CLASS, evaluation.CURVES, gallery.PAGE,
    gallery.SHEET, COURSE,
)


def write_gallery_of(out: Path, source: Source, title: str, numbers: Mapping[str, float]) -> None:
    """Write the gallery of the detections in `out`; a recipe's own evaluator may have left none."""
    files = [out / evaluation.detections_file(task) for task in TASKS]
    written = [file for file in files if file.is_file()]
    if written:
        gallery.write_gallery(out, source, written[0], title, numbers)


def write_course(run: Path) -> None:
    """Draw the run's `metrics.jsonl`, if it has one."""
    log = read_metrics(run)
    if log:
        with atomic_path(run / COURSE) as temporary:
            temporary.write_bytes(draw_course(log))
