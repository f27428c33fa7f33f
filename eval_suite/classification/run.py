"""A run of `spark-eval` as a whole: its processes, how it ends, and what its record has in common with others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eval_suite.classification.config import (
    RECALIBRATE,
    RECALIBRATION_IMAGES,
    EvaluationConfig,
    Recalibrate,
    images_asked,
)
from eval_suite.task import Prepared, Work
from spark.backbones.names import is_reference
from spark.backbones.own_network import helper_hashes, source_hash
from spark.config.identity import acting
from spark.config.recipe import value_at
from spark.runs.checkpoint import LAST
from spark.runs.folder import CHECKPOINTS
from spark.runs.metrics import FILE_NAME as METRICS
from spark.runs.record import FILE_NAME as RESULT
from spark.runs.record import ResultRecord
from spark.training.auto import goes_on, resolved_before, resolved_precision
from spark.training.processes import in_processes
from spark.utils.distributed import Ranks
from spark.utils.provenance import code_version, environment, hardware
from spark.utils.signals import StopRequest


@dataclass(frozen=True)
class Evaluation:
    """A run that has begun, in one of its processes.

    Attributes:
        config: of the run.
        ranks: the processes.
        request: to stop.
        resolved: what settings that say `auto` came to.
        before: what they came to when the run began; None if it begins now.
    """

    config: EvaluationConfig
    ranks: Ranks
    request: StopRequest
    resolved: Mapping[str, str]
    before: Mapping[str, str] | None = None

    @property
    def recalibrated(self) -> int:
        """Over how many training images batch norms' statistics are taken anew before evaluations; 0: never."""
        return int(self.resolved.get(RECALIBRATE, 0))

    def recalibrating(self, setting: Recalibrate, matters: Callable[[], bool]) -> Evaluation:
        """Return this with `model.recalibrate` resolved.

        Args:
            setting: what the recipe says.
            matters: whether statistics would otherwise hold what they started from; decides where nobody else did. A
                run that an earlier version began, which knew of no such thing, goes on as it began.
        """
        images = images_asked(setting)
        if images is None and self.before is not None:
            images = int(self.before.get(RECALIBRATE, 0))
        if images is None:
            images = RECALIBRATION_IMAGES * matters()
        return dataclasses.replace(self, resolved={**self.resolved, RECALIBRATE: str(images)})

    def protocol(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return what two runs must share for their numbers to be comparable; `data` identifies the images."""
        return {**self.config.protocol(), **acting(self.resolved), "dataset": data}

    def record(self, *, wall_seconds: float, **content: Any) -> ResultRecord:
        """Return a record with what every run tells in the same way; `content` is the rest of its fields."""
        config, ranks = self.config, self.ranks
        on_gpu = ranks.device.type == "cuda"
        return ResultRecord(
            **{"log": METRICS, "checkpoint": f"{CHECKPOINTS}/{LAST}", **content},
            seed=config.seed, origin="smoke" if config.origin == "smoke" else "measured",
            code_version=code_version(), environment=environment(), hardware=hardware(ranks.device, ranks.size),
            wall_seconds=round(wall_seconds, 3), resolved=dict(self.resolved),
            peak_memory_mib=torch.cuda.max_memory_allocated(ranks.device) / 2**20 if on_gpu else None,
        )


def run_evaluation(config: EvaluationConfig, evaluate: Callable[[Evaluation], ResultRecord | None]) -> Path | None:
    """Join the processes that torchrun started, if it did, and evaluate; the first one writes the record.

    A result that is there already stays as it is.

    Args:
        config: of the run.
        evaluate: returns the record; None if it was asked to stop, and is saved.

    Returns:
        The path of the record; None in all processes but the first.

    Raises:
        UserError: whatever `evaluate` finds.
        PostponedError: it was asked to stop.
    """
    run = Path(config.out)

    def work(ranks: Ranks, request: StopRequest) -> ResultRecord | None:
        before = resolved_before(config, ranks)
        resolved = {"precision": resolved_precision(config, "precision", ranks.device, before)}
        record = evaluate(Evaluation(config, ranks, request, resolved, before if goes_on(config, ranks) else None))
        if record is not None:
            ranks.on_main(lambda: _save(record, run, ranks))
        return record

    _, ranks = in_processes(run, config.device, work)
    return run / RESULT if ranks.is_main else None


def prepared(config: EvaluationConfig, model: str, length: float, work: Work) -> Prepared:
    """Return what a study must know of a run: the protocol, the model and the seed decide about its result."""
    settings = {**config.protocol(), "model_name": model, "seed": config.seed, **work.source(model)}
    if images_asked(value_at(config, RECALIBRATE)) == 0:
        settings["recalibrate"] = False  # which `auto`, that has the same protocol before it is resolved, is not
    return Prepared(settings, (Path(config.data.train_root), Path(config.data.val_root)), length)


def own_source(model: str) -> dict[str, Any]:
    """Return what a checkpoint keeps of a user's own network, by content; {} for others."""
    return {"source": {"file": source_hash(model), **helper_hashes(model)}} if is_reference(model) else {}


def _save(record: ResultRecord, run: Path, ranks: Ranks) -> None:
    if (run / RESULT).is_file():
        ranks.log(f"{run} is finished already; resume=never starts it again")
    else:
        record.save(run)
