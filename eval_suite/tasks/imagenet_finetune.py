"""Fine-tune a classifier on an ImageFolder and measure its top-1 accuracy: `spark-eval finetune RECIPE`.

The accuracy of the last weights is the main number: it needs no look at the validation set to choose, and
means the same for schedules of any length. The best epoch's (chosen on the validation set, so optimistic) and
the moving average's (starts from the loaded weights, so it lags in short runs) are reported apart.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from timm.optim import Lamb
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eval_suite.finetune_config import FinetuneConfig
from eval_suite.finetune_data import Data, ReadableImages, open_data
from eval_suite.initialise import build_model
from eval_suite.layer_decay import parameter_groups
from eval_suite.schema import FILE_NAME as RESULT
from eval_suite.schema import Initialisation, Metric, ResultRecord
from eval_suite.task import Cost, Prepared, Task, Work
from spark.checkpoint import LAST, load_latest, save_checkpoint
from spark.config import load_recipe, to_yaml
from spark.device import autocast, choose_device
from spark.errors import UserError
from spark.metrics import FILE_NAME as METRICS
from spark.metrics import MetricsLog
from spark.progress import TrainingProgress
from spark.provenance import code_version, environment, hardware
from spark.run_folder import CHECKPOINTS, prepare_run_folder

TASK, TASK_VERSION = "imagenet_finetune", 1
WARMUP_START, COSINE_END = 0.005, 0.001  # of the peak learning rate, as in the original
FORWARD_AND_BACKWARD = 3  # of the FLOPs of a forward pass
BYTES_PER_PARAMETER = 4 * 4  # of a checkpoint: weights, their average and two moments in float32


class ImagenetFinetune(Task):
    """`spark-eval finetune`."""

    name, version, purpose = TASK, TASK_VERSION, "fine-tune a classifier on class folders; top-1 accuracy"

    def prepare(self, work: Work) -> Prepared:
        """Read the recipe; the protocol, the model and the seed decide."""
        config = load_recipe(FinetuneConfig, work.recipe, work.overrides())
        settings = {**config.protocol(), "model_name": config.model.name, "seed": config.seed}
        root = Path(config.data.root)
        return Prepared(config.model.name, settings, (root / "train", root / "val"), config.train.epochs)

    def command(self, work: Work) -> list[str]:
        """Return `spark-eval finetune RECIPE key=value …`."""
        return ["spark-eval", "finetune", work.recipe, *work.overrides()]

    def cost(self, work: Work, images: int | None) -> Cost | None:
        """Count the forward pass; evaluation is left out."""
        config = load_recipe(FinetuneConfig, work.recipe, work.overrides())
        if images is None:
            return None
        with torch.device("meta"):  # shapes are all that is needed
            model = timm.create_model(config.model.name)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model.eval()(torch.empty(1, 3, config.data.input_size, config.data.input_size))
        flops = FORWARD_AND_BACKWARD * counter.get_total_flops() * images * config.train.epochs
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return Cost(flops, 2 * BYTES_PER_PARAMETER * parameters, "a fine-tuning's forward pass is counted, the "
                    "backward pass taken for two of them")


def run(recipe: str, overrides: Sequence[str]) -> Path:
    """Train, evaluate and return the path of `result.json`.

    Raises:
        UserError: the recipe, the data or the initialisation is unsound, or the loss is no longer finite.
    """
    config = load_recipe(FinetuneConfig, recipe, overrides)
    device = choose_device(config.device)
    data = open_data(config)
    model, init = build_model(config, len(data.classes))
    folder = prepare_run_folder(Path(config.out), config, fresh=config.resume == "never", yields=[RESULT])
    print(to_yaml(config), file=sys.stderr)

    training = Finetuning(config, data, model, device, init)
    checkpoint = load_latest(folder / CHECKPOINTS)
    if checkpoint:
        check_continues(checkpoint, training, folder)
        training.load_state_dict(checkpoint)
        if training.epoch == config.train.epochs and (folder / RESULT).is_file():
            print(f"{folder} is finished already; resume=never starts it again", file=sys.stderr)
            return folder / RESULT
        print(f"resuming {folder} after epoch {training.epoch}", file=sys.stderr)
    training.fit(folder)
    return training.record().save(folder)


class Finetuning:
    """A training run between two epochs: what it has learnt, and how to go on.

    The randomness of an epoch follows from the seed and the epoch's number alone, so a run that is resumed
    repeats the numbers of one that never stopped without any generator's state being kept.
    """

    def __init__(
        self, config: FinetuneConfig, data: Data, model: nn.Module, device: torch.device, init: Initialisation
    ) -> None:
        self._config, self._data, self._device, self._init = config, data, device, init
        # What the numbers came from, by content: neither follows from the configuration.
        self.origin = {"data": data.identity, "init": dataclasses.asdict(init)}
        self._model = model.to(device).to(memory_format=torch.channels_last)
        # The average starts here, from the weights that were loaded: the original copied it before loading.
        self._ema = ModelEmaV3(self._model, decay=config.train.ema_decay)
        self._optimizer = build_optimizer(config, self._model)
        self._steps_per_epoch = len(data.train)
        self._schedule = build_schedule(config, self._optimizer, self._steps_per_epoch)
        self._mix = build_mixup(config, len(data.classes))
        self._loss = build_loss(config)
        self.epoch = 0  # epochs done
        self.top1_last = self.top1_best = self.top1_ema = 0.0  # percent
        self._seconds = 0.0  # of work, over all processes that worked on this run
        self._images_per_second: float | None = None

    def fit(self, folder: Path) -> None:
        """Train the epochs that are left, with a checkpoint after each."""
        total = self._config.train.epochs * self._steps_per_epoch
        done = self.epoch * self._steps_per_epoch
        with (
            MetricsLog(folder, resume_step=done) as log,
            TrainingProgress("finetune", total, self._config.train.batch, done) as progress,
        ):
            while self.epoch < self._config.train.epochs:
                started = time.monotonic()
                loss, skipped = self._train_epoch(progress)
                self._images_per_second = progress.images_per_second
                self.top1_last = self._evaluate(self._model)
                self.top1_ema = self._evaluate(self._ema.module)
                self.top1_best = max(self.top1_best, self.top1_last)
                self.epoch += 1
                log.write(
                    self.epoch * self._steps_per_epoch, epoch=self.epoch, loss=loss,
                    lr=max(group["lr"] for group in self._optimizer.param_groups),
                    top1=self.top1_last, top1_ema=self.top1_ema, skipped_images=skipped,
                )
                self._seconds += time.monotonic() - started
                save_checkpoint(folder / CHECKPOINTS, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on."""
        return {
            **self.origin, "epoch": self.epoch, "seconds": self._seconds, "images_per_second": self._images_per_second,
            "top1_last": self.top1_last, "top1_best": self.top1_best, "top1_ema": self.top1_ema,
            "model": self._model.state_dict(), "ema": self._ema.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state_dict` returned."""
        self.epoch, self._seconds = state["epoch"], state["seconds"]
        self._images_per_second = state["images_per_second"]
        self.top1_last, self.top1_best, self.top1_ema = (
            state["top1_last"], state["top1_best"], state["top1_ema"]
        )
        self._model.load_state_dict(state["model"])
        self._ema.module.load_state_dict(state["ema"])
        self._optimizer.load_state_dict(state["optimizer"])

    def record(self) -> ResultRecord:
        """Return the result of the finished run."""
        on_gpu = self._device.type == "cuda"
        top1 = {"top1_last": self.top1_last, "top1_best": self.top1_best, "top1_ema": self.top1_ema}
        return ResultRecord(
            task=TASK, task_version=TASK_VERSION, model=self._config.model.name, init=self._init,
            metrics={name: Metric(value, "%") for name, value in top1.items()}, main_metric="top1_last",
            protocol={**self._config.protocol(), "dataset": self._data.identity},
            seed=self._config.seed, epochs=self._config.train.epochs,
            origin="smoke" if self._config.origin == "smoke" else "measured",
            code_version=code_version(), environment=environment(), hardware=hardware(self._device),
            wall_seconds=round(self._seconds, 3), images_per_second=self._images_per_second,
            peak_memory_mib=torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None,
            log=METRICS, checkpoint=f"{CHECKPOINTS}/{LAST}",
        )

    def _train_epoch(self, progress: TrainingProgress) -> tuple[float, int]:
        """Return the mean loss, and the number of images that could not be read."""
        seed_everything(self._config.seed, self.epoch)
        self._data.start_epoch(self.epoch)
        readable = ReadableImages(dataset_size(self._data.train))
        self._model.train()
        total = 0.0
        for index, batch in enumerate(self._data.train):
            images, targets = readable(*batch)
            self._schedule.step_update(self.epoch * self._steps_per_epoch + index)
            loss = self._step(images, targets)
            if not np.isfinite(loss):
                raise UserError(f"the loss became {loss} in epoch {self.epoch + 1}; lower optimizer.base_lr")
            total += loss
            progress.advance(f"epoch {self.epoch + 1}/{self._config.train.epochs} loss {loss:.4f}")
        return total / self._steps_per_epoch, readable.lost

    def _step(self, images: Tensor, targets: Tensor) -> float:
        """One update from images [B, 3, H, W] and their classes [B]; return the loss."""
        if self._mix is not None:
            even = len(images) // 2 * 2  # an unreadable image may have left another without its partner
            images, targets = self._mix(images[:even], targets[:even])
        images, targets = self._to_device(images), targets.to(self._device, non_blocking=True)
        with autocast(self._device):
            logits = self._model(images)
        loss = self._loss(logits.float(), targets)
        self._optimizer.zero_grad()
        loss.backward()
        if self._config.optimizer.clip:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._config.optimizer.clip)
        self._optimizer.step()
        self._ema.update(self._model)
        return loss.item()

    @torch.inference_mode()
    def _evaluate(self, model: nn.Module) -> float:
        """Return top-1 accuracy on the validation images, in percent."""
        readable = ReadableImages(dataset_size(self._data.val))
        model.eval()
        right = count = 0
        for batch in self._data.val:
            images, labels = readable(*batch)
            with autocast(self._device):
                predicted = model(self._to_device(images)).argmax(dim=1).cpu()
            right += int((predicted == labels).sum())
            count += len(labels)
        return 100 * right / count

    def _to_device(self, images: Tensor) -> Tensor:
        return images.to(self._device, non_blocking=True, memory_format=torch.channels_last)


def check_continues(checkpoint: dict[str, Any], training: Finetuning, folder: Path) -> None:
    """Refuse to go on with a checkpoint that came from other data or another encoder, by content."""
    names = {"data": "other data", "init": "another encoder"}
    changed = [names[key] for key, value in training.origin.items() if checkpoint.get(key) != value]
    if changed:
        raise UserError(f"'{folder}' holds a run with {' and '.join(changed)}; pass another out=…, "
                        "or resume=never to replace it")


def build_optimizer(config: FinetuneConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return LAMB or AdamW over layer-wise groups; LAMB as in the original, always adapting, unclipped."""
    groups = parameter_groups(model, config.optimizer.weight_decay, config.optimizer.layer_decay)
    if config.optimizer.name == "lamb":
        return Lamb(groups, lr=config.lr, max_grad_norm=None, always_adapt=True, bias_correction=False)
    return torch.optim.AdamW(groups, lr=config.lr)


def build_schedule(
    config: FinetuneConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> CosineLRScheduler:
    """Return linear warm-up, then half a cosine that reaches its end at the last step."""
    warmup = config.train.warmup_epochs * steps_per_epoch
    return CosineLRScheduler(
        optimizer, t_in_epochs=False, t_initial=max(config.train.epochs * steps_per_epoch - 1 - warmup, 1),
        warmup_t=warmup, warmup_prefix=True,
        warmup_lr_init=WARMUP_START * config.lr, lr_min=COSINE_END * config.lr,
    )


def build_mixup(config: FinetuneConfig, num_classes: int) -> Mixup | None:
    """Return the blending of image pairs, which also smooths labels; None when both kinds are off."""
    if not config.mixes:
        return None
    return Mixup(
        config.augment.mixup, config.augment.cutmix,
        label_smoothing=config.augment.label_smoothing, num_classes=num_classes,
    )


def build_loss(config: FinetuneConfig) -> nn.Module:
    """Return a loss of logits [B, classes] and soft targets from mixup, or classes [B] without it."""
    smoothing = 0.0 if config.mixes else config.augment.label_smoothing  # mixup has smoothed already
    if config.train.loss == "bce":
        return BinaryCrossEntropy(smoothing=smoothing)
    return SoftTargetCrossEntropy() if config.mixes else nn.CrossEntropyLoss(label_smoothing=smoothing)


def seed_everything(seed: int, epoch: int) -> None:
    """Seed every generator that mixup and drop path draw from."""
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def dataset_size(loader: torch.utils.data.DataLoader[Any]) -> int:
    """Return the number of images that a loader draws from."""
    return len(loader.dataset)  # type: ignore[arg-type]
