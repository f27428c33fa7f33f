"""Settings of `spark-eval finetune`; the defaults are SparK's fine-tuning of ResNet-50 on ImageNet.

Source: arXiv 2301.03580, appendix, and the authors' released hyper-parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from eval_suite.classification.config import (
    AUTO,
    RECALIBRATE,
    EvaluationConfig,
    Recalibrate,
    images_asked,
    no_recalibration,
    not_one_of,
    those_that_hold,
)
from eval_suite.classification.layer_decay import LAYERS, STAGES
from spark.backbones.names import is_reference
from spark.config.choices import ON_DIVERGENCE, OPTIMIZERS
from spark.config.identity import added, deciding
from spark.config.values import (
    Count,
    CountOrNone,
    Decay,
    Epochs,
    EpochsOrNone,
    Minutes,
    NotNegative,
    Place,
    Positive,
    Probability,
    Seed,
    Share,
)
from spark.errors import UserError

LOSSES, POLICIES = ("bce", "soft_target_ce"), ("trivial", "autoaugment", "rand", "none")


@dataclass
class ModelConfig:
    """The classifier."""

    name: Place = "resnet50"  # any timm classification model, or your own network: path/to/file.py:ClassName
    drop_path: Decay = 0.05
    options: dict[str, Any] = added(dict)  # more for timm.create_model, or for your own class
    # Before each evaluation, batch norms' statistics are taken anew over training images: true (2,048 of them), or how
    # many; false: never. auto: in trainings so short that the running ones would still hold their start (< 66 steps).
    recalibrate: Recalibrate = AUTO


@dataclass
class AugmentConfig:
    """What happens to the training images."""

    min_crop: Share = 0.08  # smallest area of a random crop, as a fraction of the image
    flip: Probability = 0.5
    # trivial (TrivialAugmentWide) | autoaugment (from 384 pixels on) | rand (RandAugment, as MAE has it) | none
    policy: str = "trivial"
    random_erasing: Probability = 0.25
    mixup: NotNegative = 0.1
    cutmix: NotNegative = 1.0
    mix_group: Count = 128  # images that share a mixing ratio, as those on a device do in the usual implementation
    label_smoothing: Decay = 0.1
    repeated_augmentation: CountOrNone = 0  # draws of each image in an epoch of as many draws as images; 0 for none


@dataclass
class OptimizerConfig:
    """LAMB with layer-wise learning rates."""

    name: str = "lamb"  # lamb | adamw
    base_lr: Positive = 0.002  # for a batch of 256; the rate is base_lr * batch / 256
    layer_decay: Share = 0.7  # 1 for none
    # What has a rate of its own: stages (SparK's and ConvNeXt's recipes) | blocks (those of MAE and its relatives:
    # every block; tables of positions and class tokens get no weight decay).
    layers: str = added(STAGES)
    weight_decay: NotNegative = 0.02
    clip: NotNegative = 0.0  # global gradient norm; 0 for none


@dataclass
class TrainConfig:
    """The schedule."""

    epochs: Epochs = 300
    warmup_epochs: EpochsOrNone = 5  # if not less than `epochs`: a tenth of them
    batch: Count = 2048  # images of a step, over all devices
    # At most so many images on a device at a time; null: its whole share of the batch.
    device_batch: Count | None = None
    loss: str = "bce"  # bce | soft_target_ce
    ema_decay: Decay = 0.9999
    on_divergence: str = "stop"  # or rollback: to the last checkpoint, with half the learning rate from there on
    checkpoint_minutes: Minutes = 10.0  # beside those at the ends of epochs
    evaluate_epochs: Epochs = 1  # an evaluation every so many epochs, beside the last


@dataclass
class LabelsConfig:
    """How many of the training images' labels may be used; which ones follows from the seed."""

    fraction: Share | None = None  # of each class's images, but at least one
    per_class: Count | None = None  # images of each class
    seeds: list[Seed] = field(default_factory=lambda: [0, 1, 2, 3, 4])  # the subsets of these make up the protocol

    @property
    def limited(self) -> bool:
        """Whether images are left out."""
        return self.fraction is not None or self.per_class is not None

    def problems(self, seed: int) -> list[str]:
        """Return what is wrong with the values."""
        return those_that_hold({
            "labels.fraction and labels.per_class exclude each other":
                self.fraction is not None and self.per_class is not None,
            f"seed={seed} is not one of labels.seeds={list(self.seeds)}, whose subsets are compared":
                self.limited and seed not in self.seeds,
        })


@dataclass
class FinetuneConfig(EvaluationConfig):
    """Everything that decides a fine-tuning run."""

    # Batch norms alone see the first of the two, nothing the second.
    FREE: ClassVar[frozenset[str]] = EvaluationConfig.FREE | {"train.device_batch", "train.checkpoint_minutes"}

    model: ModelConfig = field(default_factory=ModelConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @property
    def learning_rate(self) -> float:
        """The peak learning rate at the configured batch size."""
        return self.optimizer.base_lr * self.train.batch / 256

    @property
    def mixes(self) -> bool:
        """Whether pairs of images are blended."""
        return self.augment.mixup > 0 or self.augment.cutmix > 0

    def accumulation_steps(self, local_batch: int) -> int:
        """Return into how many equal parts a device splits its share of the batch; pairs to blend stay together.

        Raises:
            UserError: the share cannot be split so.
        """
        most, unit = self.train.device_batch or local_batch, 2 if self.mixes else 1
        for steps in range(1, local_batch + 1):
            if local_batch % (steps * unit) == 0 and local_batch // steps <= most:
                return steps
        whole = ", each of whole pairs, as pairs are mixed" if unit == 2 else ""
        raise UserError(f"a device's {local_batch} images of a batch cannot be split into equal parts of at most "
                        f"train.device_batch={most}{whole}")

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        augment, train = self.augment, self.train
        return super().problems() + self.labels.problems(self.seed) + [
            *not_one_of("optimizer.name", self.optimizer.name, OPTIMIZERS),
            *not_one_of("optimizer.layers", self.optimizer.layers, LAYERS),
            *not_one_of("train.loss", train.loss, LOSSES),
            *not_one_of("train.on_divergence", train.on_divergence, ON_DIVERGENCE),
            *not_one_of("augment.policy", augment.policy, POLICIES),
            *no_recalibration(self.model.recalibrate),
        ] + those_that_hold({
            "augment.mix_group must be even and at least 2": augment.mix_group < 2 or augment.mix_group % 2 == 1,
            f"optimizer.layer_decay must be 1: nothing says which layers your own {self.model.name} has":
                is_reference(self.model.name) and self.optimizer.layer_decay != 1,
            "train.batch must be at least 2": train.batch < 2,
            "train.batch must be even to mix pairs of images": self.mixes and train.batch % 2 == 1,
        })

    def protocol(self, recalibrated: int | None = None) -> dict[str, Any]:
        """Return the settings that two runs must share for their accuracies to be comparable.

        Args:
            recalibrated: what `model.recalibrate` came to, in images; None: nobody knows yet.
        """
        free = self.FREE | {RECALIBRATE} if self.labels.limited else self.FREE | {RECALIBRATE, "labels"}
        settings = deciding(self, free)
        images = images_asked(self.model.recalibrate) if recalibrated is None else recalibrated
        return {**settings, "model": {**settings["model"], "recalibrate": images}} if images else settings
