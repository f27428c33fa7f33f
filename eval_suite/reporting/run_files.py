"""The files of a run that a report shows or links to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval_suite.reporting.study_view import superseded
from spark.runs.folder import CHECKPOINTS, CONFIG
from spark.runs.metrics import FILE_NAME as METRICS
from spark.runs.record import FILE_NAME as RESULT
from spark.runs.record import ResultRecord

LINKED = {"log": METRICS, "text log": "log.txt", "config": CONFIG, "record": RESULT, "checkpoints": CHECKPOINTS}


def below(folders: Sequence[Path], name: str) -> list[Path]:
    """Return all files of a name below some folders, but for those of runs that their study has left behind."""
    left = set(superseded(folders))
    found = {path for folder in folders for path in folder.rglob(name)}
    return sorted(path for path in found if not left.intersection(path.parents))


def files_of(folder: Path) -> dict[str, Path]:
    """Return what is there of LINKED."""
    return {name: folder / file for name, file in LINKED.items() if (folder / file).exists()}


def checkpoint_file(folder: Path, record: ResultRecord) -> Path | None:
    """Return the weights that a run began with; None if they are not where the record says, or beside the run."""
    if not record.init.checkpoint:
        return None
    path = Path(record.init.checkpoint)
    beside = folder.parent / path.parent.name / path.name  # all runs of a study have moved together
    return next((place for place in (path, beside) if place.is_file()), None)
