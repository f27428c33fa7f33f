"""Instance segmentation: Mask R-CNN on data in COCO's layout, from scratch or from an exported encoder."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from d2_projects.compat import quiet_detectron2, require_detectron2
from eval_suite.schema import FILE_NAME as RESULT
from eval_suite.schema import Initialisation, Metric, ResultRecord
from spark.distributed import Ranks
from spark.errors import UserError
from spark.files import sha256, write_json, write_text
from spark.formats.detectron2 import from_timm
from spark.formats.encoder import WEIGHTS, Encoder, load_encoder
from spark.metrics import FILE_NAME as METRICS
from spark.provenance import code_version, content_hash, environment, hardware
from spark.run_folder import CHECKPOINTS
from spark.signals import EXIT_CODE, PostponedError, StopRequest

if TYPE_CHECKING:  # Detectron2 may be absent until `run` has asked for it
    from d2_projects.data import CocoData
    from d2_projects.train_net import Outcome
    from eval_suite.detect_config import DetectConfig

TASK, TASK_VERSION = "coco_mask_rcnn", 1
CONFIG, IDENTITY, PICTURE, LOG = "config.yaml", "identity.json", "detections.png", "log.txt"
EVALUATION = "evaluation.json"  # of eval_only=true
UNIT = "AP (0-100)"
Built = TypeVar("Built")

def run(recipe: str, overrides: list[str]) -> Path | None:
    """Train, evaluate and record one detector, in this process or together with others of torchrun or Detectron2.

    A run that was interrupted goes on; one that is finished is left alone. With `eval_only=true` only a checkpoint is
    evaluated.

    Returns:
        The path of the run's `result.json`, or of `evaluation.json`; None in all processes but the first.

    Raises:
        UserError: Detectron2, the recipe, the data or the encoder is missing or does not fit.
        PostponedError: a signal asked the run to stop, and it was saved.
        SystemExit: in all processes but the first, instead of these.
    """
    require_detectron2()
    with quiet_detectron2():
        from d2_projects.processes import pick_device, processes
        from eval_suite.detect_config import load

        def read() -> DetectConfig:
            config = load(recipe, overrides)
            pick_device(config.cfg.train.device)
            return config

        config = said_once(read)
        with processes(config.cfg.train.device) as ranks, stop_request() as request:
            try:
                if config.eval_only:
                    return evaluate_and_write(config, ranks)
                return train_and_record(config, ranks, request)
            except PostponedError:
                if not ranks.first:
                    raise SystemExit(EXIT_CODE) from None
                raise


def said_once(build: Callable[[], Built]) -> Built:
    """Return what `build` does; of processes that have not joined yet, the first alone says what is wrong."""
    try:
        return build()
    except UserError:
        if int(os.environ.get("RANK", "0")) > 0:
            raise SystemExit(2) from None
        raise


def stop_request() -> contextlib.AbstractContextManager[StopRequest | None]:
    """Return what heeds signals, but not in processes that Detectron2's launch started.

    It ends them by a signal when one of them fails, and they must not survive that. (torchrun uses SIGKILL then.)
    """
    from torch import distributed

    launched = distributed.is_initialized() and "TORCHELASTIC_RUN_ID" not in os.environ
    return contextlib.nullcontext() if launched else StopRequest()


def train_and_record(config: DetectConfig, ranks: Ranks, request: StopRequest | None) -> Path | None:
    """Train, evaluate and record; errors and returned value as for `run`."""
    from d2_projects.data import check, locate, registered
    from d2_projects.train_net import point_at, train
    from d2_projects.visualize import save_detections

    config, changes = config.for_gpus(ranks.size if ranks.device.type == "cuda" else 0)
    for change in changes:
        ranks.say(f"scaled   {change}")
    ranks.together(lambda: refuse_early(config, ranks))
    backbone, init = ranks.together(lambda: starting_weights(config))
    data = ranks.together(lambda: check(locate(config.cfg.data)))
    protocol = protocol_of(config, data)
    identity = {"protocol": content_hash(protocol), "seed": config.cfg.train.seed, "init": init}
    if ranks.on_first(lambda: finished(config, identity)):
        ranks.say(f"{config.out} is finished already; resume=never starts it again")
        return config.out / RESULT if ranks.first else None

    if ranks.first:
        print(summary(config, data, backbone))
    with registered(data) as names:
        point_at(config.cfg, data, names)
        outcome = train(config.cfg, config.out, backbone, ranks, request)
        if not ranks.first:
            return None
        save_detections(config.cfg, outcome.model, config.out / PICTURE)
    result = record(config, data, protocol, init, outcome, ranks)
    print("  ".join(f"{name} {metric.value:.1f}" for name, metric in result.metrics.items()))
    return result.save(config.out)


def evaluate_and_write(config: DetectConfig, ranks: Ranks) -> Path | None:
    """Evaluate a checkpoint, and write `evaluation.json` with what it was; errors and returned value as for `run`."""
    from d2_projects.checkpoints import BEST
    from d2_projects.data import check, locate, registered
    from d2_projects.train_net import evaluate_only, point_at
    from spark.checkpoint import LAST

    of_run = {"last": LAST, "best": BEST}.get(config.weights)
    weights = config.out / CHECKPOINTS / of_run if of_run else Path(config.weights)
    if not weights.is_file():
        raise_on_first(ranks, f"weights '{weights}' do not exist: pass out=<a run> or weights=<a file>")
    data = ranks.together(lambda: check(locate(config.cfg.data)))
    with registered(data) as names:
        point_at(config.cfg, data, names)
        metrics = evaluate_only(config.cfg, weights, ranks)
    if not ranks.first:
        return None
    values = metric_values(metrics)
    print("  ".join(f"{name} {value:.1f}" for name, value in values.items()))
    write_json(config.out / EVALUATION, {
        "recipe": str(config.recipe), "weights": str(weights), "weights_sha256": sha256(weights),
        "data": data.name, "val_sha256": data.val.json_sha256, "metrics": values, "code_version": code_version(),
    })
    return config.out / EVALUATION


def refuse_early(config: DetectConfig, ranks: Ranks) -> None:
    """Find in milliseconds what training would find only after the data and the model.

    Raises:
        UserError: the batch cannot be shared, or the device has not the precision.
    """
    from d2_projects.train_net import share_batch
    from d2_projects.trainer import mixed_precision

    share_batch(config.cfg, ranks.size)
    mixed_precision(config.cfg.train.amp, ranks.device)


def starting_weights(config: DetectConfig) -> tuple[dict[str, Tensor] | None, Initialisation]:
    """Return the backbone's weights, or None for random ones, and where they come from.

    Raises:
        UserError: they are not there, or of another network.
    """
    from eval_suite.detect_config import SCRATCH

    encoder = None if config.init == SCRATCH else load_encoder(config.init)
    return None if encoder is None else backbone_weights(encoder, config), initialisation(encoder, config.init)


def backbone_weights(encoder: Encoder, config: DetectConfig) -> dict[str, Tensor]:
    """Return the encoder's weights for Detectron2's ResNet.

    Raises:
        UserError: the encoder is not the recipe's backbone, or was trained on pictures normalised otherwise.
    """
    info, model = encoder.info, config.cfg.model
    depth = model.backbone.bottom_up.stages.depth
    if info.model.partition(".")[0] != f"resnet{depth}":
        raise UserError(f"init '{config.init}' is a {info.model}, but {config.recipe} has a resnet{depth}")
    for key, given, expected in (("pixel_mean", model.pixel_mean, info.mean),
                                 ("pixel_std", model.pixel_std, info.std)):
        wanted = [round(255 * value, 3) for value in expected]
        if not all(math.isclose(a, b, abs_tol=0.1) for a, b in zip(given, wanted, strict=True)):
            raise UserError(f"init '{config.init}' was trained with model.{key}={wanted}: pass that")
    return from_timm(encoder.state).state


def initialisation(encoder: Encoder | None, source: str) -> Initialisation:
    """Return where the backbone's weights come from, for the record."""
    if encoder is None:
        return Initialisation(source)
    weights = Path(source) / WEIGHTS if Path(source).is_dir() else Path(source)
    return Initialisation(encoder.info.method, str(weights), sha256(weights), encoder.info.epochs)


def protocol_of(config: DetectConfig, data: CocoData) -> dict[str, Any]:
    """Return what two numbers must share to be comparable: the recipe and the data, by content."""
    return {
        "recipe": config.recipe.stem,
        "recipe_hash": content_hash(config.protocol_text()),
        "iterations": config.cfg.train.max_iter,
        "batch": config.cfg.dataloader.train.total_batch_size,
        "train_images": data.train.images,
        "val_images": data.val.images,
        "categories": len(data.val.categories),
        "train_sha256": data.train.json_sha256,
        "val_sha256": data.val.json_sha256,
    }


def finished(config: DetectConfig, identity: dict[str, Any]) -> bool:
    """Prepare the run folder; return True if it holds this very run's result already.

    Raises:
        UserError: the folder holds another run.
    """
    from eval_suite.detect_config import to_yaml

    out = config.out
    if out.exists() and not out.is_dir():
        raise UserError(f"out='{out}' is a file; pass out=<a folder>")
    if config.resume == "never":
        remove_run(out)
    identity = json.loads(json.dumps(identity, default=vars))
    if (out / IDENTITY).is_file():
        before = json.loads((out / IDENTITY).read_text(encoding="utf-8"))
        changed = [key for key, value in identity.items() if before.get(key) != value]
        if changed:
            raise UserError(f"'{out}' holds a run with another {' and '.join(changed)}; pass another out=…, "
                            "or resume=never to replace it")
    elif (out / CHECKPOINTS / "last_checkpoint").exists() or (out / RESULT).exists():
        raise UserError(f"'{out}' holds a run without {IDENTITY}, so what it trained is not known; "
                        "pass another out=…, or resume=never to replace it")
    write_json(out / IDENTITY, identity)
    write_text(out / CONFIG, to_yaml(config.cfg))
    return (out / RESULT).is_file()


def remove_run(out: Path) -> None:
    """Remove what a run of this task writes, and nothing else.

    Checkpoints go before what tells whose they are: whenever this is interrupted, no other run takes them up.
    """
    with contextlib.suppress(FileNotFoundError):
        (out / RESULT).unlink()
    for name in (CHECKPOINTS, "tensorboard"):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(out / name)
    for name in (CONFIG, PICTURE, METRICS, LOG, IDENTITY):
        with contextlib.suppress(FileNotFoundError):
            (out / name).unlink()


def summary(config: DetectConfig, data: CocoData, backbone: dict[str, Tensor] | None) -> str:
    """Return what is about to happen, in a few lines; the whole configuration is in the run folder."""
    cfg = config.cfg
    tensors = "" if backbone is None else f" ({len(backbone)} tensors, all of the backbone)"
    return "\n".join((
        f"recipe   {config.recipe}, resolved in {config.out / CONFIG}",
        f"data     {data.root}: {data.train.images} training and {data.val.images} validation pictures, "
        f"{len(data.train.categories)} categories",
        f"init     {config.init}{tensors}",
        f"train    {cfg.train.max_iter} iterations of {cfg.dataloader.train.total_batch_size} pictures, "
        f"lr {cfg.optimizer.lr:g}, seed {cfg.train.seed}",
    ))


def metrics_of(outcome: Outcome) -> dict[str, Metric]:
    """Return box and mask AP, AP50 and AP75.

    COCO's code calls the AP of a detector that finds nothing undefined (nan). The data was checked to have
    objects, so it is 0: they were all missed.
    """
    values = {f"{task}/{name}": outcome.metrics[f"{task}/{name}"]
              for task in ("bbox", "segm") for name in ("AP", "AP50", "AP75")}
    return {name: Metric(0.0 if math.isnan(value) else value, UNIT) for name, value in values.items()}


def record(
    config: DetectConfig, data: CocoData, protocol: dict[str, Any], init: Initialisation,
    outcome: Outcome,
) -> ResultRecord:
    """Return the result record of a finished run."""
    cfg, device = config.cfg, next(outcome.model.parameters()).device
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    return ResultRecord(
        task=TASK,
        task_version=TASK_VERSION,
        model=f"resnet{cfg.model.backbone.bottom_up.stages.depth}",
        init=init,
        metrics=metrics_of(outcome),
        main_metric="bbox/AP",
        protocol=protocol,
        seed=cfg.train.seed,
        epochs=cfg.train.max_iter * cfg.dataloader.train.total_batch_size / data.train.images,
        origin="smoke" if cfg.train.smoke else "measured",
        code_version=code_version(),
        environment=environment(),
        hardware=hardware(device),
        wall_seconds=round(outcome.seconds, 3),
        images_per_second=outcome.images_per_second,
        peak_memory_mib=peak,
        log=METRICS,  # relative to the run's folder, which may move
        checkpoint=f"{CHECKPOINTS}/model_final.pth",
    )
