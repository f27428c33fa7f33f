"""Instance segmentation: Mask R-CNN on data in COCO's layout, from scratch or from an exported encoder."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eval_suite.schema import FILE_NAME as RESULT
from eval_suite.schema import Initialisation, Metric, ResultRecord
from spark.errors import UserError
from spark.files import sha256, write_json, write_text
from spark.formats.detectron2 import from_timm
from spark.formats.encoder import WEIGHTS, Encoder, load_encoder
from spark.metrics import FILE_NAME as METRICS
from spark.provenance import code_version, content_hash, environment, hardware
from spark.run_folder import CHECKPOINTS

if TYPE_CHECKING:  # Detectron2 may be absent until `run` has asked for it
    from d2_projects.data import CocoData
    from d2_projects.train_net import Outcome
    from eval_suite.detect_config import DetectConfig

TASK, TASK_VERSION = "coco_mask_rcnn", 1
CONFIG, IDENTITY, PICTURE, LOG = "config.yaml", "identity.json", "detections.png", "log.txt"
UNIT = "AP (0-100)"
# About Detectron2's own code, which a user cannot change.
DETECTRON2_WARNINGS = (
    "pkg_resources is deprecated", "torch.meshgrid", "`torch.jit.script` is deprecated",
    "The given NumPy array is not writable",
)
FX_LOGGER = "torch.fx._symbolic_trace"  # says "is_fx_tracing will return true" by logging, not by a warning


def run(recipe: str, overrides: list[str]) -> Path:
    """Train, evaluate and record one detector; return the path of its `result.json`.

    A run that was interrupted goes on; one that is finished is left alone.

    Raises:
        UserError: Detectron2, the recipe, the data or the encoder is missing or does not fit.
    """
    if importlib.util.find_spec("detectron2") is None:
        raise UserError("Detectron2 is not installed: run python tools/install_detectron2.py")
    with quiet_detectron2():
        return train_and_record(recipe, overrides)


@contextlib.contextmanager
def quiet_detectron2() -> Iterator[None]:
    """Keep what Detectron2's own code provokes off the terminal while the body runs."""
    logger = logging.getLogger(FX_LOGGER)
    level = logger.level
    with warnings.catch_warnings():
        for message in DETECTRON2_WARNINGS:
            warnings.filterwarnings("ignore", message)
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def train_and_record(recipe: str, overrides: list[str]) -> Path:
    """Do what `run` promises, with Detectron2 at hand."""
    from d2_projects.data import check, registered
    from d2_projects.train_net import pick_device, point_at, train
    from d2_projects.visualize import save_detections
    from eval_suite.detect_config import SCRATCH, load

    config = load(recipe, overrides)
    pick_device(config.cfg.train.device, config.cfg.train.amp.enabled)  # refused before anything is written
    encoder = None if config.init == SCRATCH else load_encoder(config.init)
    backbone = None if encoder is None else backbone_weights(encoder, config)
    data = check(config.cfg.data.root)
    protocol, init = protocol_of(config, data), initialisation(encoder, config.init)
    if finished(config, {"protocol": content_hash(protocol), "seed": config.cfg.train.seed, "init": init}):
        print(f"{config.out} is finished already; resume=never starts it again")
        return config.out / RESULT

    print(summary(config, data, backbone))
    with registered(data) as names:
        point_at(config.cfg, data, names)
        outcome = train(config.cfg, config.out, backbone)
        save_detections(config.cfg, outcome.model, config.out / PICTURE)
    result = record(config, data, protocol, init, outcome)
    print("  ".join(f"{name} {metric.value:.1f}" for name, metric in result.metrics.items()))
    return result.save(config.out)


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
    return from_timm(encoder.state)


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
