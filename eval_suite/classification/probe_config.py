"""Settings of `spark-eval probe` and `spark-eval knn`, which look at features of a frozen encoder.

No published protocol of SparK's is behind the defaults, as the paper has none; they are ours, and the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from eval_suite.classification.config import (
    AUTO,
    RECALIBRATE,
    EvaluationConfig,
    Recalibrate,
    images_asked,
    no_recalibration,
    those_that_hold,
)
from spark.config.identity import added
from spark.config.values import (
    Count,
    Epochs,
    EpochsOrNone,
    Minutes,
    NotNegative,
    Part,
    Place,
    Positive,
    Share,
)


@dataclass
class EncoderConfig:
    """The frozen network."""

    name: Place = "resnet50"  # any timm network that returns feature maps, or your own: path/to/file.py:ClassName
    options: dict[str, Any] = added(dict)  # more for timm.create_model, or for your own class
    # Batch norms' statistics are taken anew over whole training images: true (2,048 of them), or how many; false: they
    # stay as they are (those of sparse pre-training are over visible patches only). auto: of random weights and of
    # pre-trainings so short that the statistics hold their start, they are; each network then has its own.
    recalibrate: Recalibrate = AUTO


@dataclass
class ProbeTrainConfig:
    """The heads' training: SGD with momentum .9 and half a cosine, each head with a learning rate of its own."""

    base_lrs: list[Positive] = field(default_factory=lambda: [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0])  # per 256 images
    weight_decay: NotNegative = 0.0
    epochs: Epochs = 30
    warmup_epochs: EpochsOrNone = 0  # if not less than `epochs`: a tenth of them
    batch: Count = 1024  # images of a step, over all devices
    min_crop: Share = 0.08  # smallest area of a random crop, as a fraction of the image; beside it, flips alone
    held_out: Part = 0.02  # of each class's training images, at least one, to choose the learning rate by
    statistics: Count = 4096  # training images whose features' mean and deviation scale all features
    checkpoint_minutes: Minutes = 10.0  # beside those at the ends of epochs
    evaluate_epochs: Epochs = 10  # an evaluation every so many epochs, beside the last


class FrozenConfig(EvaluationConfig):
    """What evaluations of a frozen network have."""

    FORMER: ClassVar[Mapping[str, Any]] = {RECALIBRATE: 0}

    model: EncoderConfig

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return super().problems() + no_recalibration(self.model.recalibrate)

    def protocol(self) -> dict[str, Any]:
        """Return the settings that two runs must share for their accuracies to be comparable.

        What `auto` came to is none of them: it follows from the weights, as what they are of does.
        """
        settings = super().protocol()
        return {**settings, "model": {**settings["model"], "recalibrate": images_asked(self.model.recalibrate) or 0}}


@dataclass
class ProbeConfig(FrozenConfig):
    """Everything that decides a linear probe."""

    FREE: ClassVar[frozenset[str]] = EvaluationConfig.FREE | {"train.checkpoint_minutes", "train.evaluate_epochs"}

    model: EncoderConfig = field(default_factory=EncoderConfig)
    train: ProbeTrainConfig = field(default_factory=ProbeTrainConfig)

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        train = self.train
        return super().problems() + those_that_hold({
            "train.base_lrs must be at least one, and each once":
                not train.base_lrs or len(set(train.base_lrs)) < len(train.base_lrs),
            "train.statistics must be at least 2": train.statistics < 2,
        })


@dataclass
class KnnConfig(FrozenConfig):
    """Everything that decides a k-NN classification; the seed, only where weights are random."""

    FREE: ClassVar[frozenset[str]] = EvaluationConfig.FREE | {"batch"}

    model: EncoderConfig = field(default_factory=EncoderConfig)
    neighbours: list[Count] = field(default_factory=lambda: [20, 10, 100, 200])  # the first is the main number's
    temperature: Positive = 0.07
    batch: Count = 256  # images at a time

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return super().problems() + those_that_hold({
            "neighbours must be at least one number, and each once":
                not self.neighbours or len(set(self.neighbours)) < len(self.neighbours),
        })
