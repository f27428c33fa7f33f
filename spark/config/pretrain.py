"""What all pre-trainings can be told, whatever their method; a method adds its own (`spark/methods/*/config.py`).

Defaults are SparK's recipe for ResNet-50 at 224 pixels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from spark.config.choices import COURSES, DEFAULT_COURSE, DEFAULT_METHOD, DEVICES, ON_DIVERGENCE, OPTIMIZERS, PRECISIONS
from spark.config.identity import added
from spark.config.values import (
    Channels,
    Count,
    Decay,
    Epochs,
    EpochsOrNone,
    Level,
    Minutes,
    Name,
    NotNegative,
    Output,
    Pixels,
    Place,
    Positive,
    Seed,
    Share,
    Workers,
    shown,
)
from spark.errors import UserError, nearest

AUTO = "auto"
_POSITIVE = re.compile("0{0,9}[1-9][0-9]{0,8}")


@dataclass
class ModelConfig:
    """The encoder."""

    name: Place = "resnet50"  # any timm model that the engine supports, or your own: path/to/file.py:ClassName
    drop_path: Decay = 0.05
    # Channels of the images, too: 1 loads them as luminance, 3 as RGB, 4 as RGBA, others as bands (TIFF, .npy).
    in_chans: Channels = 3
    options: dict[str, Any] = field(default_factory=dict)  # more for timm.create_model, or for your own class


@dataclass
class DataConfig:
    """The images."""

    # A folder of images, nested or not; a list of files (.txt, or .csv with a column `path`); tar shards (a folder of
    # them, or 'name-{000..127}.tar', quoted: shells expand braces); a Hugging Face data set saved to disk.
    root: Place = MISSING
    input_size: list[Pixels] = field(default_factory=lambda: [224, 224])  # height, width in pixels
    min_scale: Share = 0.67  # smallest share of the area that a random crop takes
    mean: list[Level] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[Positive] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    workers: Workers = 8


@dataclass
class OptimizerConfig:
    """LAMB as in the paper."""

    name: str = "lamb"
    base_lr: Positive = 2e-4  # per 256 images; the learning rate is base_lr * batch / 256
    betas: list[Decay] = field(default_factory=lambda: [0.9, 0.95])  # the paper: .95 for BN nets, .999 for ConvNeXt
    weight_decay: NotNegative = 0.04
    weight_decay_end: NotNegative = 0.2
    clip_grad_norm: NotNegative = 5.0  # of all gradients together; 0: no clipping
    # Of the learning rate: spark: linearly from .005 of the peak, then a cosine to .001 of it; mae: from 0, and to 0;
    # simmim: from .005, and to .05; simmim_steps: from .005, and down to .1 at seven eighths of the training.
    schedule: str = added(DEFAULT_COURSE)


@dataclass
class TrainConfig:
    """The schedule."""

    # auto: batch, epochs, learning rate and more are sized for the images and the device, each with its reason (see
    # spark/training/preset.py); what is written beside or over this line stays, what a base recipe says does not.
    preset: str | None = None
    epochs: Epochs = 1600
    warmup_epochs: EpochsOrNone = 40  # if not less than `epochs`: a tenth of them
    batch: Count = 4096  # images of a step, over all devices
    # At most so many images on a device at a time; null: its whole share of the batch.
    device_batch: Count | None = None
    accumulate: str = "auto"  # parts that a device's share is split into; auto: as few as device_batch allows
    precision: str = "auto"  # auto: bfloat16 on devices that have it, else float32
    compile: bool = False  # torch.compile of encoder, decoder and loss; the first step takes minutes
    recompute: bool = False  # activation checkpointing: a third more computing for a fraction of the memory
    checkpoint_minutes: Minutes = 10.0  # beside those at the ends of epochs
    checkpoint_epochs: Epochs = 1  # a checkpoint at the end of every so many epochs
    on_divergence: str = "stop"  # or rollback: to the last checkpoint, with half the learning rate from there on
    picture_epochs: Epochs = 20  # a reconstruction picture every so many epochs

    def problems(self) -> list[str]:
        """Say what is wrong with the values, each in a line."""
        found = []
        if self.accumulate != "auto" and not _POSITIVE.fullmatch(self.accumulate):
            found.append(f"train.accumulate={shown(self.accumulate)} must be auto or a positive number")
        if self.on_divergence not in ON_DIVERGENCE:
            found.append(f"train.on_divergence={shown(self.on_divergence)} is not one of {', '.join(ON_DIVERGENCE)}")
        if self.preset not in (None, "none", AUTO):
            found.append(f"train.preset={shown(self.preset)} must be {AUTO} or none")
        return found


@dataclass
class ProbeConfig:
    """Is it learning? Classify labeled images by the encoder's features, now and then; training is not touched."""

    train: Name | None = None  # a folder of class folders; null: no probe
    val: Name | None = None  # another one of the same classes; null: a fifth of the first is split off
    epochs: Epochs = 10  # a probe every so many epochs, beside the first, of the network as it begins, and the last
    images: Count = 10000  # at most so many of each folder, chosen at random
    neighbours: Count = 20  # of weighted k-NN
    temperature: Positive = 0.07  # of weighted k-NN


@dataclass
class PretrainConfig:
    """A whole run."""

    # What neither decides about the numbers nor, but for rounding, touches them. `probe` is all of its settings.
    FREE: ClassVar[frozenset[str]] = frozenset({
        "out", "resume", "device", "train.compile", "train.recompute", "data.root", "data.workers", "probe", "check",
    })  # fmt: skip
    # A run that goes on may also change these. The first four do not touch the weights (though ids of exports count
    # them, as they did from the start); the others do, through rounding, drop path and, where a network has them, batch
    # norms' statistics: whoever goes on with a smaller device wants just that.
    FREE_TO_CHANGE: ClassVar[frozenset[str]] = FREE | {
        "train.checkpoint_minutes", "train.checkpoint_epochs", "train.picture_epochs", "train.on_divergence",
        "train.device_batch", "train.accumulate",
    }  # fmt: skip

    out: Output = MISSING  # the run's folder
    method: str = added(DEFAULT_METHOD)  # how to pre-train (spark/methods); it decides which of the keys there are
    seed: Seed = 0
    device: str = "auto"  # auto: cuda if there is one
    resume: str = "auto"  # auto: go on from the run's last checkpoint if there is one; never: start it again
    # Weights to begin with: a run's folder or checkpoint (decoder too), an encoder in any format that `spark convert`
    # reads, or timm:NAME.
    init: Name | None = None
    init_allow_partial: bool = False  # begin even if less than nine tenths of the tensors match
    check: bool = added(True)  # prove a network of the user's own before it is trained
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    @property
    def learning_rate(self) -> float:
        """The peak learning rate (linear scaling rule)."""
        return self.optimizer.base_lr * self.train.batch / 256

    def accumulation_steps(self, local_batch: int) -> int:
        """Return into how many equal parts a device splits its share of the batch.

        Raises:
            UserError: the share cannot be split as the configuration says.
        """
        train = self.train
        if train.accumulate == "auto":
            most = train.device_batch or local_batch
            fitting = (steps for steps in range(1, local_batch + 1) if local_batch // steps <= most)
            return next(steps for steps in fitting if local_batch % steps == 0)
        steps = int(train.accumulate)
        if local_batch % steps:
            raise UserError(
                f"train.accumulate={steps} does not divide the {local_batch} images that a device has of a batch"
            )
        if train.device_batch and local_batch // steps > train.device_batch:
            raise UserError(
                f"train.accumulate={steps} leaves {local_batch // steps} images at a time, more than "
                f"train.device_batch={train.device_batch}; pass train.accumulate=auto"
            )
        return steps

    def problems(self) -> list[str]:
        """Say what is wrong with the values, each in a line."""
        found = self.train.problems()
        if self.probe.val and not self.probe.train:
            found.append(f"probe.val={self.probe.val} needs probe.train, a folder of the same classes")
        for name, values in (("input_size", self.data.input_size), ("betas", self.optimizer.betas)):
            if len(values) != 2:
                found.append(f"{name}={list(values)} must have two numbers")
        found += [
            f"data.{name}={list(values)} must have as many numbers as there are channels: model.in_chans="
            f"{self.model.in_chans}"
            for name, values in (("mean", self.data.mean), ("std", self.data.std))
            if len(values) != self.model.in_chans
        ]
        choices = {
            "resume": (self.resume, ("auto", "never")),
            "device": (self.device, DEVICES),
            "train.precision": (self.train.precision, PRECISIONS),
            "optimizer.name": (self.optimizer.name, OPTIMIZERS),
            "optimizer.schedule": (self.optimizer.schedule, COURSES),
        }
        for name, (value, known) in choices.items():
            if value not in known:
                found.append(f"{name}={shown(value)} is not one of {', '.join(known)}.{nearest(value, known)}")
        return found
