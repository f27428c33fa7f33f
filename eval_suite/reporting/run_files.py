"""The files of runs that a report is about: found in one walk, each read once, what is damaged left out and named."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from eval_suite.study.attempt import ATTEMPTS
from eval_suite.study.graph import GRAPH, Graph, load_graph
from spark.config.yaml_text import read_yaml
from spark.errors import UserError
from spark.formats.encoder import INFO
from spark.runs.folder import CHECKPOINTS, CONFIG
from spark.runs.metrics import FILE_NAME as METRICS
from spark.runs.metrics import read_log
from spark.runs.record import FILE_NAME as RESULT
from spark.runs.record import ResultRecord, value_below
from spark.visualize.curve import FILE_NAME as CURVE

LINKED = {"log": METRICS, "text log": "log.txt", "config": CONFIG, "record": RESULT, "checkpoints": CHECKPOINTS}
RECONSTRUCTIONS, DETECTIONS = "reconstructions", "detections.png"
LOOKED_FOR = frozenset({GRAPH, RESULT, METRICS, INFO, CURVE, RECONSTRUCTIONS, DETECTIONS})

Content = TypeVar("Content")


class RunFiles:
    """What lies below some folders.

    Args:
        folders: that hold runs.

    Attributes:
        folders: likewise.
        left_out: why something is not in the report, a line each.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self._left_out: dict[str, None] = {}
        self._logs: dict[Path, list[dict[str, Any]]] = {}
        self._configs: dict[Path, Mapping[str, Any]] = {}
        self._found: dict[str, set[Path]] = {name: set() for name in LOOKED_FOR}
        for folder in folders:
            for place, inside, files in os.walk(folder):
                for name in LOOKED_FOR.intersection([*inside, *files]):
                    self._found[name].add(Path(place) / name)

    @property
    def left_out(self) -> list[str]:
        """Why something is not in the report, a line each."""
        return list(self._left_out)

    def leave_out(self, reason: str) -> None:
        """Note why something is not in the report; once, however often it is looked at."""
        if reason:
            self._left_out[reason] = None

    def try_to(self, read: Callable[[], Content]) -> Content | None:
        """Return what a function reads; None, with a note, where that is damaged."""
        try:
            return read()
        except UserError as error:
            self.leave_out(str(error))
            return None

    def below(self, name: str) -> list[Path]:
        """Return all files of a name that is LOOKED_FOR, but for those of runs that their study has left behind."""
        left = set(self.superseded)
        return sorted(path for path in self._found[name] if not left.intersection(path.parents))

    @cached_property
    def studies(self) -> dict[Path, Graph]:
        """The studies by their folders."""
        graphs = {path.parent: self.try_to(lambda path=path: load_graph(path.parent))  # type: ignore[misc]
                  for path in sorted(self._found[GRAPH])}
        return {study: graph for study, graph in graphs.items() if graph is not None}

    @cached_property
    def superseded(self) -> list[Path]:
        """The folders of nodes that their studies, since a setting was changed, have no more."""
        return [folder for study, graph in self.studies.items() for folder in sorted(study.iterdir())
                if (folder / ATTEMPTS).is_dir() and folder.name not in graph.nodes]

    def log(self, run: Path) -> list[dict[str, Any]]:
        """Return the records of a run's log; [] if there is none."""
        if run not in self._logs:
            records, complaint = self.try_to(lambda: read_log(run)) or ([], "")
            self.leave_out(complaint)
            self._logs[run] = records
        return self._logs[run]

    def setting(self, run: Path, *names: str) -> Any:
        """Return a setting of a run's configuration by the names on the way to it; None if it does not tell."""
        if run not in self._configs:
            path = run / CONFIG
            found = self.try_to(lambda: read_yaml(path, "configuration")) if os.path.lexists(path) else {}
            self._configs[run] = found if isinstance(found, Mapping) else {}
        return value_below(self._configs[run], *names)


def files_of(folder: Path) -> dict[str, Path]:
    """Return what is there of LINKED."""
    there = set(os.listdir(folder))
    return {name: folder / file for name, file in LINKED.items() if file in there}


def checkpoint_file(folder: Path, record: ResultRecord) -> Path | None:
    """Return the weights that a run began with; None if they are not where the record says, or beside the run."""
    if not record.init.checkpoint:
        return None
    path = Path(record.init.checkpoint)
    beside = folder.parent / path.parent.name / path.name  # all runs of a study have moved together
    return next((place for place in (path, beside) if _is_file(place)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # what a record says may be no path at all
        return False
