"""Settings of `spark-eval finetune`; the defaults are SparK's fine-tuning of ResNet-50 on ImageNet.

Source: arXiv 2301.03580, appendix, and the authors' released hyper-parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from spark.errors import nearest

SCRATCH = "scratch"


@dataclass
class ModelConfig:
    name: str = "resnet50"  # any timm classification model
    drop_path: float = 0.05


@dataclass
class DataConfig:
    root: str = MISSING  # a folder with train/<class>/*.jpg and val/<class>/*.jpg
    input_size: int = 224  # pixels, square
    crop_pct: float = 0.95  # of the resized validation image that the centre crop keeps
    crop_mode: str = "center"  # center | squash (resize to a square; the paper's choice from 384 pixels on)
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    workers: int = 8


@dataclass
class AugmentConfig:
    min_crop: float = 0.08  # smallest area of a random crop, as a fraction of the image
    flip: float = 0.5
    policy: str = "trivial"  # trivial (TrivialAugmentWide) | autoaugment (the paper's from 384 on) | none
    random_erasing: float = 0.25
    mixup: float = 0.1
    cutmix: float = 1.0
    label_smoothing: float = 0.1
    repeated_augmentation: int = 0  # draws of each image in an epoch; 0 for none


@dataclass
class OptimizerConfig:
    name: str = "lamb"  # lamb | adamw
    base_lr: float = 0.002  # for a batch of 256; the rate is base_lr * batch / 256
    layer_decay: float = 0.7  # 1 for none
    weight_decay: float = 0.02
    clip: float = 0.0  # global gradient norm; 0 for none


@dataclass
class TrainConfig:
    epochs: int = 300
    warmup_epochs: int = 5
    batch: int = 2048
    loss: str = "bce"  # bce | soft_target_ce
    ema_decay: float = 0.9999


@dataclass
class FinetuneConfig:
    """Everything that decides a fine-tuning run."""

    out: str = MISSING  # the run's folder
    init: str = SCRATCH  # scratch, or an exported encoder (its folder or .safetensors file)
    seed: int = 0
    origin: str = "measured"  # measured | smoke: is the number meant to be quoted?
    resume: str = "auto"  # auto: go on where the run in `out` stopped | never: start again
    device: str = "auto"  # auto | cpu | cuda
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @property
    def lr(self) -> float:
        """The peak learning rate at the configured batch size."""
        return self.optimizer.base_lr * self.train.batch / 256

    @property
    def mixes(self) -> bool:
        """Whether pairs of images are blended."""
        return self.augment.mixup > 0 or self.augment.cutmix > 0

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        found = [
            *_not_one_of("origin", self.origin, ("measured", "smoke")),
            *_not_one_of("resume", self.resume, ("auto", "never")),
            *_not_one_of("device", self.device, ("auto", "cpu", "cuda")),
            *_not_one_of("optimizer.name", self.optimizer.name, ("lamb", "adamw")),
            *_not_one_of("train.loss", self.train.loss, ("bce", "soft_target_ce")),
            *_not_one_of("augment.policy", self.augment.policy, ("trivial", "autoaugment", "none")),
            *_not_one_of("data.crop_mode", self.data.crop_mode, ("center", "squash")),
        ]
        unsound = {
            "seed must not be negative": self.seed < 0,
            "data.input_size must be at least 32 pixels": self.data.input_size < 32,
            "data.workers must not be negative": self.data.workers < 0,
            "data.crop_pct must be in (0, 1]": not 0 < self.data.crop_pct <= 1,
            "data.mean and data.std need three positive numbers each":
                len(self.data.mean) != 3 or len(self.data.std) != 3 or min(self.data.std) <= 0,
            "augment.min_crop must be in (0, 1]": not 0 < self.augment.min_crop <= 1,
            "augment.label_smoothing must be in [0, 1)": not 0 <= self.augment.label_smoothing < 1,
            "augment.mixup and augment.cutmix must not be negative":
                min(self.augment.mixup, self.augment.cutmix) < 0,
            "augment.repeated_augmentation must not be negative": self.augment.repeated_augmentation < 0,
            "optimizer.base_lr must be positive": self.optimizer.base_lr <= 0,
            "optimizer.layer_decay must be in (0, 1]": not 0 < self.optimizer.layer_decay <= 1,
            "train.epochs must be at least 1": self.train.epochs < 1,
            "train.warmup_epochs must be at least 0 and below train.epochs":
                not 0 <= self.train.warmup_epochs < max(self.train.epochs, 1),
            "train.batch must be at least 2": self.train.batch < 2,
            "train.batch must be even to mix pairs of images": self.mixes and self.train.batch % 2 == 1,
            "train.ema_decay must be in [0, 1)": not 0 <= self.train.ema_decay < 1,
        }
        return found + [message for message, wrong in unsound.items() if wrong]

    def protocol(self) -> dict[str, Any]:
        """Return the settings that two runs must share for their accuracies to be comparable.

        The model's name is a column of its own; where the data lies and how fast it is read do not matter.
        """
        settings = dataclasses.asdict(self)
        for name in ("out", "init", "seed", "origin", "resume", "device"):
            del settings[name]
        del settings["model"]["name"], settings["data"]["root"], settings["data"]["workers"]
        return settings


def _not_one_of(name: str, value: str, known: Iterable[str]) -> list[str]:
    if value in known:
        return []
    return [f"{name}='{value}' is not one of {', '.join(known)}.{nearest(value, known)}"]
