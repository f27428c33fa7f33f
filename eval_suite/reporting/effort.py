"""What runs took: throughput, hours, GPU-hours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eval_suite.reporting.run_files import RunFiles
from eval_suite.reporting.study_view import finished_nodes
from eval_suite.study.graph import Node
from eval_suite.study.progress import Finished
from spark.formats.encoder import INFO, WEIGHTS
from spark.runs.record import ResultRecord
from spark.utils.files import sha256
from spark.utils.provenance import gpus_in


@dataclass(frozen=True)
class Effort:
    """What a run took.

    Attributes:
        task: of the run.
        hardware: in words; "" where that was not noted.
        gpus: that worked together; 0 on a CPU.
        seconds: of wall time, over all of its attempts; None where that was not noted.
        images_per_second: of training.
        peak_memory_mib: of one device.
    """

    task: str
    hardware: str
    gpus: int
    seconds: float | None
    images_per_second: float | None = None
    peak_memory_mib: float | None = None

    @property
    def hours(self) -> float | None:
        """Wall time."""
        return None if self.seconds is None else self.seconds / 3600

    @property
    def gpu_hours(self) -> float | None:
        """Wall time of all GPUs together; None on a CPU."""
        return None if self.hours is None or not self.gpus else self.hours * self.gpus

    @property
    def device_hours(self) -> float | None:
        """GPU-hours, or the hours of a CPU."""
        return self.gpu_hours or self.hours


def efforts(records: Mapping[Path, ResultRecord], files: RunFiles) -> dict[Path, Effort]:
    """Return what evaluations and pre-trainings took, by their folders.

    A pre-training's time is known from the study that ran it.
    """
    nodes = finished_nodes(files)
    found = {folder: _of_pretraining(folder, files, *nodes.get(folder, (None, None)))
             for folder in pretrainings(files)}
    return found | {folder: _of_record(record) for folder, record in records.items()}


def pretrainings(files: RunFiles) -> list[Path]:
    """Return the folders of pre-trainings: those that export an encoder."""
    return [path.parent for path in files.below(INFO) if (path.parent / WEIGHTS).is_file()]


def effort_by_checkpoint(found: Mapping[Path, Effort]) -> dict[str, Effort]:
    """Return what pre-trainings took by the SHA-256 of what they export."""
    return {sha256(folder / WEIGHTS): effort for folder, effort in found.items() if (folder / WEIGHTS).is_file()}


def _of_record(record: ResultRecord) -> Effort:
    return Effort(record.task, record.hardware, gpus_in(record.hardware), record.wall_seconds,
                  record.images_per_second, record.peak_memory_mib)


def _of_pretraining(folder: Path, files: RunFiles, node: Node | None, mark: Finished | None) -> Effort:
    if node is None or mark is None:
        return Effort("pretrain", "", 0, None)
    return Effort("pretrain", "", mark.gpus, mark.seconds, _images_seen(folder, files) / max(mark.seconds, 1e-3))


def _images_seen(folder: Path, files: RunFiles) -> float:
    log, batch = files.log(folder), files.setting(folder, "train", "batch")
    return float(log[-1]["step"] * batch) if log and isinstance(batch, int) else 0.0
