"""Train and evaluate a Detectron2 model that a LazyConfig recipe describes: the whole run in one place."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.engine import AMPTrainer, SimpleTrainer, TrainerBase, hooks
from detectron2.evaluation import inference_on_dataset
from detectron2.utils.env import seed_all_rng
from omegaconf import DictConfig
from torch import Tensor, nn

from d2_projects.data import CocoData
from d2_projects.hooks import MetricsHook, ProgressHook
from d2_projects.proof import load_exactly
from spark.checkpoint import load_file
from spark.errors import UserError

LOG = "log.txt"


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves behind."""

    model: nn.Module
    metrics: dict[str, float]  # such as "bbox/AP", 0 to 100; nan where nothing could be computed
    images_per_second: float | None  # None when nothing was left to train
    seconds: float  # of training and evaluation, over all processes that worked on this run


class Stopwatch:
    """Counts the seconds of a run over all its processes; a checkpoint keeps what was counted until then."""

    def __init__(self) -> None:
        self._before, self._started = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the seconds so far."""
        return self._before + time.monotonic() - self._started

    def state_dict(self) -> dict[str, float]:
        """Return the seconds so far, for a checkpoint."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Add to this process's seconds those of the processes before."""
        self._before = state["seconds"]


def point_at(cfg: DictConfig, data: CocoData, names: tuple[str, str]) -> None:
    """Let a recipe's model and loaders use a registered data set; changes `cfg`."""
    cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names = names
    cfg.model.roi_heads.num_classes = len(data.train.categories)
    if data.train.run_length:
        cfg.dataloader.train.mapper.instance_mask_format = "bitmask"


def train(cfg: DictConfig, run: Path, backbone: dict[str, Tensor] | None = None) -> Outcome:
    """Train from where the run folder stands (an empty one: from the start), then evaluate.

    A continued run goes on with the model, optimizer and schedule of its last checkpoint; the order of
    pictures is drawn anew from the seed and the iteration it continues at.

    Args:
        cfg: a recipe with `model`, `dataloader`, `optimizer`, `lr_multiplier` and `train`.
        run: where checkpoints and `metrics.jsonl` go.
        backbone: weights of `model.backbone.bottom_up` to start with, every tensor of it.

    Raises:
        UserError: the backbone's weights do not fit, the device is not there, the checkpoint is damaged, a
            picture cannot be read, the loss became infinite.
    """
    stopwatch = Stopwatch()
    device = pick_device(cfg.train.device, cfg.train.amp.enabled)
    seed_all_rng(cfg.train.seed)
    model = instantiate(cfg.model).to(device)
    if backbone is not None:
        load_exactly(model.backbone.bottom_up, backbone, "the recipe's backbone")
    optimizer_cfg = copy.deepcopy(cfg.optimizer)
    optimizer_cfg.params.model = model  # the model object does not belong into the caller's configuration
    optimizer = instantiate(optimizer_cfg)

    metrics: dict[str, float] = {}

    def evaluate_now() -> dict[str, Any]:
        results = evaluate(cfg, model)
        metrics.update({f"{task}/{name}": value for task in results for name, value in results[task].items()})
        return results

    trainer = (AMPTrainer if cfg.train.amp.enabled else SimpleTrainer)(model, None, optimizer)
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    checkpointer = DetectionCheckpointer(model, str(run / "checkpoints"), trainer=trainer, stopwatch=stopwatch)
    start = resume(checkpointer, trainer)
    seed_all_rng(cfg.train.seed + start)
    trainer.reset_data_loader(lambda: instantiate(cfg.dataloader.train))

    progress = ProgressHook("detect", cfg.dataloader.train.total_batch_size)
    trainer.register_hooks([
        progress,
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        # Precise statistics first, so that they are what is saved and evaluated.
        hooks.PreciseBN(cfg.train.eval_period, model, trainer.data_loader, cfg.train.precise_bn_iter),
        hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer),
        hooks.EvalHook(cfg.train.eval_period, evaluate_now),
        MetricsHook(run, cfg.train.log_period),
    ])
    with logged_to(run / LOG):
        try:
            trainer.train(start, cfg.train.max_iter)
        except FloatingPointError as error:
            raise UserError(f"{str(error).splitlines()[0]} Lower optimizer.lr.") from None
        except (OSError, SizeMismatchError) as error:  # an unreadable picture, a full disk
            # A loader's worker process puts its traceback before the message.
            raise UserError(f"training stopped: {str(error).splitlines()[-1]}") from None
    return Outcome(model, metrics, progress.images_per_second, stopwatch.seconds)


def resume(checkpointer: DetectionCheckpointer, trainer: TrainerBase) -> int:
    """Load the run's last whole checkpoint if it has any; return the iteration to go on with.

    Raises:
        UserError: there are checkpoints, but all are damaged; or they are of another model.
    """
    if not checkpointer.has_checkpoint():
        return 0
    file = whole_checkpoint(Path(checkpointer.get_checkpoint_file()))
    try:
        checkpointer.load(str(file))
    except (RuntimeError, ValueError, LookupError):
        raise UserError(f"checkpoint '{file}' is of another model; pass resume=never to start again") from None
    return trainer.iter + 1


def whole_checkpoint(last: Path) -> Path:
    """Return the last checkpoint, or the newest of the others in its folder if it is damaged.

    Raises:
        UserError: all are damaged.
    """
    others = sorted(last.parent.glob("model_*.pth"), reverse=True)
    for file in (last, *(other for other in others if other != last)):
        try:
            load_file(file)
        except UserError as error:
            print(f"{error}; trying the one before", file=sys.stderr)
        else:
            return file
    raise UserError(f"checkpoint '{last}' is damaged and no other is whole; pass resume=never to start again")


def evaluate(cfg: DictConfig, model: nn.Module) -> dict[str, dict[str, float]]:
    """Return COCO's metrics of the recipe's test set, such as {"bbox": {"AP": …}, "segm": {…}}."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its tables
        return inference_on_dataset(
            model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
        )


def pick_device(wanted: str, amp: bool) -> torch.device:
    """Return the device that `wanted` ("auto", "cpu", "cuda", "cuda:1") names."""
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else (
            torch.device(wanted)
        )
    except RuntimeError:
        raise UserError(f"train.device={wanted} is not a device: use auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"train.device={wanted} is not supported: use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"train.device={wanted}, but there is no CUDA device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"train.device={wanted}, but there are {torch.cuda.device_count()} CUDA devices")
    if amp and device.type != "cuda":
        raise UserError("train.amp.enabled needs a CUDA device")
    return device


@contextlib.contextmanager
def logged_to(file: Path) -> Iterator[None]:
    """Append what Detectron2 says to `file` instead of the terminal while the body runs."""
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    before = [(logger.propagate, logger.level) for logger in loggers]
    try:
        for logger in loggers:
            logger.addHandler(handler)
            logger.propagate = False
            logger.setLevel(logging.INFO)
        yield
    finally:
        for logger, (propagate, level) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate
            logger.setLevel(level)
        handler.close()
