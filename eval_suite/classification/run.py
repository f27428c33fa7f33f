"""A run of `spark-eval` as a whole: its processes, how it ends, and what its record has in common with others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from eval_suite.classification.config import EvaluationConfig
from eval_suite.task import Prepared
from spark.backbones.names import is_reference
from spark.backbones.own_network import source_hash
from spark.runs.checkpoint import LAST
from spark.runs.folder import CHECKPOINTS
from spark.runs.metrics import FILE_NAME as METRICS
from spark.runs.record import FILE_NAME as RESULT
from spark.runs.record import ResultRecord
from spark.utils.distributed import Ranks, process_group
from spark.utils.provenance import code_version, environment, hardware
from spark.utils.signals import EXIT_CODE, PostponedError, StopRequest

Evaluate = Callable[[Ranks, StopRequest], ResultRecord | None]


def in_processes(config: EvaluationConfig, evaluate: Evaluate) -> Path | None:
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
    with process_group(config.device) as ranks, StopRequest() as request:
        record = evaluate(ranks, request)
        if record is not None:
            ranks.on_main(lambda: _save(record, run, ranks))
    if record is None and not ranks.is_main:
        raise SystemExit(EXIT_CODE)  # without a word: the first speaks for all
    if record is None:
        raise PostponedError(f"{run} was asked to stop and is saved; the same command goes on with it")
    return run / RESULT if ranks.is_main else None


def prepared(config: EvaluationConfig, model: str, length: float) -> Prepared:
    """Return what a study must know of a run: the protocol, the model and the seed decide about its result."""
    settings = {**config.protocol(), "model_name": model, "seed": config.seed}
    if is_reference(model):
        settings["source"] = source_hash(model)
    return Prepared(settings, (Path(config.data.train_root), Path(config.data.val_root)), length)


def measured(config: EvaluationConfig, ranks: Ranks, *, wall_seconds: float, **content: Any) -> ResultRecord:
    """Return a record with what every run tells in the same way; `content` is the rest of its fields."""
    on_gpu = ranks.device.type == "cuda"
    return ResultRecord(
        **{"log": METRICS, "checkpoint": f"{CHECKPOINTS}/{LAST}", **content},
        seed=config.seed, origin="smoke" if config.origin == "smoke" else "measured",
        code_version=code_version(), environment=environment(), hardware=hardware(ranks.device, ranks.size),
        wall_seconds=round(wall_seconds, 3),
        peak_memory_mib=torch.cuda.max_memory_allocated(ranks.device) / 2**20 if on_gpu else None,
    )


def _save(record: ResultRecord, run: Path, ranks: Ranks) -> None:
    if (run / RESULT).is_file():
        ranks.log(f"{run} is finished already; resume=never starts it again")
    else:
        record.save(run)
