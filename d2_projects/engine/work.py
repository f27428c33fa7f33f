"""What a run does: train, evaluate and record, or only evaluate a checkpoint."""

from __future__ import annotations

from pathlib import Path

from d2_projects.engine.checkpoints import BEST
from d2_projects.engine.config import DetectConfig
from d2_projects.engine.evaluate import evaluate_only
from d2_projects.engine.initialize import Start, start_of
from d2_projects.engine.precise_bn import with_precise_bn
from d2_projects.engine.record import identity_of, protocol_of, record
from d2_projects.engine.run_folder import CONFIG, EVALUATED, EVALUATION, finished
from d2_projects.engine.train import share_batch, train
from d2_projects.engine.trainer import mixed_precision
from d2_projects.project import Data
from spark.errors import UserError
from spark.runs.checkpoint import LAST
from spark.runs.folder import CHECKPOINTS
from spark.runs.record import FILE_NAME as RESULT
from spark.utils.distributed import Ranks
from spark.utils.files import sha256, write_json
from spark.utils.printable import counted
from spark.utils.provenance import code_version
from spark.utils.signals import StopRequest


def train_and_record(config: DetectConfig, ranks: Ranks, request: StopRequest | None) -> Path | None:
    """Train, evaluate and record; errors and returned value as for `run`."""
    config, notes = config.for_gpus(ranks.size if ranks.device.type == "cuda" else 0)
    project = config.project
    for note in notes:
        ranks.log(note)
    ranks.on_all(lambda: refuse_early(config, ranks))
    start = ranks.on_all(lambda: start_of(config))
    data = ranks.on_all(lambda: project.check(config.cfg.data))
    ranks.on_all(lambda: project.check_settings(config.cfg, config.by_hand, data))
    config, notes = ranks.on_all(lambda: with_precise_bn(config, data))
    for note in notes:
        ranks.log(note)
    protocol = protocol_of(config, data)
    identity = identity_of(config, data, protocol, start.record)
    if ranks.on_main(lambda: finished(config, identity)):
        ranks.log(f"{config.out} is finished already; resume=never starts it again")
        return config.out / RESULT if ranks.is_main else None

    if ranks.is_main:
        print(summary(config, data, start))
    with project.registered(data) as names:
        project.point_at(config.cfg, data, names)
        outcome = train(config.cfg, project, config.out, start.weights, ranks, request)
        if not ranks.is_main:
            return None
    result = record(config, data, protocol, start.record, outcome, ranks)
    show(config, config.out, data, {name: metric.value for name, metric in result.metrics.items()})
    return result.save(config.out)


def evaluate_and_write(config: DetectConfig, ranks: Ranks) -> Path | None:
    """Evaluate a checkpoint and write EVALUATION into `out`; errors and returned value as for `run`."""
    project = config.project
    of_run = {"last": LAST, "best": BEST}.get(config.weights)
    weights = config.out / CHECKPOINTS / of_run if of_run else Path(config.weights)
    ranks.on_all(lambda: must_exist(weights))
    data = ranks.on_all(lambda: project.check(config.cfg.data))
    with project.registered(data) as names:
        project.point_at(config.cfg, data, names)
        metrics = evaluate_only(config.cfg, project, config.out / EVALUATED, weights, ranks)
    if not ranks.is_main:
        return None
    known = project.known(metrics)
    show(config, config.out / EVALUATED, data, known)
    write_json(config.out / EVALUATION, {
        "recipe": str(config.recipe), "weights": str(weights), "weights_sha256": sha256(weights),
        "data": data.name, "val_sha256": data.val_sha256, "metrics": known, "code_version": code_version(),
    })
    return config.out / EVALUATION


def must_exist(weights: Path) -> None:
    """Make sure that a checkpoint is there.

    Raises:
        UserError: it is not.
    """
    if not weights.is_file():
        raise UserError(f"weights '{weights}' do not exist: pass out=<a run's folder> or weights=<a file>")


def refuse_early(config: DetectConfig, ranks: Ranks) -> None:
    """Find in milliseconds what training would find only after the data and the model.

    Raises:
        UserError: the batch cannot be shared, or the device has not the precision.
    """
    share_batch(config.cfg, ranks.size)
    mixed_precision(config.cfg.train.amp, ranks.device)


def summary(config: DetectConfig, data: Data, start: Start) -> str:
    """Return what is about to happen, in a few lines; the whole configuration is in the run folder."""
    cfg = config.cfg
    tensors = "" if start.weights is None else f" ({len(start.weights)} tensors, all of the backbone)"
    return "\n".join((
        f"recipe   {config.recipe}, resolved in {config.out / CONFIG}",
        f"data     {data.name}: {data.summary}",
        *(f"note     {note}" for note in data.notes),
        *(f"warning  {warning}" for warning in data.warnings),
        f"init     {config.init}{tensors}",
        f"train    {counted(cfg.train.max_iter, 'iteration')} of "
        f"{counted(cfg.dataloader.train.total_batch_size, 'image')}, "
        f"lr {cfg.optimizer.lr:g}, seed {cfg.train.seed}",
    ))


def show(config: DetectConfig, out: Path, data: Data, metrics: dict[str, float]) -> None:
    """Draw what the evaluator has written into `out`, and print the headline."""
    headline = config.project.headline(metrics)
    config.project.draw(out, data, f"{config.recipe.stem}, init {config.init}, {out}", headline)
    print("  ".join(f"{name} {value:.1f}" for name, value in headline.items()))
