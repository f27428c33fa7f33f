"""Settings that every evaluation on labeled images has: fine-tuning, linear probe, k-NN."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import MISSING

from spark.config.choices import DEVICES, PRECISIONS, SCRATCH
from spark.config.identity import deciding
from spark.config.values import CountOrNone, Level, Name, Output, Pixels, Place, Positive, Seed, Share, Workers, shown
from spark.errors import nearest

AUTO = "auto"
RECALIBRATE = "model.recalibrate"
RECALIBRATION_IMAGES = 2048  # a channel's mean over so many is off by 2 % of its deviation, were they single pixels
Recalibrate = CountOrNone | bool | str  # auto, true, false, or a number of training images


@dataclass
class DataConfig:
    """The images. A split is a folder of class folders, shards that hold such, or shards with a .cls beside images."""

    root: Name = ""  # a folder with train/ and val/
    train: Name | None = None  # images to train on, if they are not root/train; shards: 'name-{000..127}.tar', quoted
    val: Name | None = None  # images to evaluate on, if they are not root/val
    input_size: Pixels = 224  # pixels, square
    crop_pct: Share = 0.95  # of the resized validation image that the centre crop keeps
    crop_mode: str = "center"  # center | squash (resize to a square, whatever the shape)
    mean: list[Level] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[Positive] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    workers: Workers = 8

    @property
    def train_root(self) -> str:
        """Where the images to train on are."""
        return self.train or str(Path(self.root) / "train")

    @property
    def val_root(self) -> str:
        """Where the images to evaluate on are."""
        return self.val or str(Path(self.root) / "val")

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [*not_one_of("data.crop_mode", self.crop_mode, ("center", "squash")), *those_that_hold({
            "'data.root' is required: pass data.root=…": not self.root and not (self.train and self.val),
            "data.input_size must be at least 32 pixels": self.input_size < 32,
            "data.mean and data.std need three numbers each": len(self.mean) != 3 or len(self.std) != 3,
        })]


@dataclass
class EvaluationConfig:
    """What every evaluation has."""

    # What neither decides about the numbers nor, but for rounding, touches them. The model's name is a column of its
    # own; a precision that rounds more than float32 enters the protocol as what it came to.
    FREE: ClassVar[frozenset[str]] = frozenset({
        "out", "init", "seed", "origin", "resume", "device", "precision", "model.name", "data.root", "data.train",
        "data.val", "data.workers",
    })  # fmt: skip
    # A run that goes on may change these.
    FREE_TO_CHANGE: ClassVar[frozenset[str]] = frozenset({
        "out", "resume", "device", "precision", "data.root", "data.train", "data.val", "data.workers", "origin",
        "train.checkpoint_minutes", "train.on_divergence", "train.device_batch",
    })  # fmt: skip

    out: Output = MISSING  # the run's folder
    # scratch; a run's folder or its encoder.safetensors; a checkpoint of any format that `spark convert` reads;
    # timm:NAME (supervised weights)
    init: Place = SCRATCH
    seed: Seed = 0
    origin: str = "measured"  # measured | smoke: is the number meant to be quoted?
    resume: str = "auto"  # auto: go on where the run in `out` stopped | never: start again
    device: str = "auto"  # auto | cpu | cuda
    precision: str = "auto"  # auto: bfloat16 on devices that have it, else float32
    data: DataConfig = field(default_factory=DataConfig)

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [
            *not_one_of("origin", self.origin, ("measured", "smoke")),
            *not_one_of("resume", self.resume, ("auto", "never")),
            *not_one_of("device", self.device, DEVICES),
            *not_one_of("precision", self.precision, PRECISIONS),
            *self.data.problems(),
        ]

    def protocol(self) -> dict[str, Any]:
        """Return the settings that two runs must share for their accuracies to be comparable."""
        return deciding(self, self.FREE)


def images_asked(setting: Recalibrate) -> int | None:
    """Return over how many images statistics are to be taken anew; 0: never; None: wherever it matters."""
    if setting == AUTO:
        return None
    return RECALIBRATION_IMAGES * setting if isinstance(setting, bool) else int(setting)


def no_recalibration(setting: Recalibrate) -> list[str]:
    """Return the complaint that this is no value of RECALIBRATE, if so."""
    if not isinstance(setting, str) or setting == AUTO:
        return []
    return [f"{RECALIBRATE}='{setting}' is none of auto, true, false and a number of training images"]


def not_one_of(name: str, value: str, known: Iterable[str]) -> list[str]:
    """Return the complaint that a value is none of those known, if so."""
    if value in known:
        return []
    return [f"{name}='{shown(value)}' is not one of {', '.join(known)}.{nearest(value, known)}"]


def those_that_hold(complaints: dict[str, bool]) -> list[str]:
    """Return the complaints that are justified."""
    return [complaint for complaint, justified in complaints.items() if justified]
