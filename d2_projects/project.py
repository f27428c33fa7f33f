"""What a family of Detectron2 recipes has of its own: data, numbers and pictures. The engine knows no more of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from omegaconf import DictConfig
from torch import nn

from spark.utils.distributed import Ranks

Names = tuple[str, str]  # of the training and the validation set, in Detectron2's catalog


class Data(Protocol):
    """A data set that was found and checked, as far as the engine must know it."""

    @property
    def name(self) -> str:
        """What to call it."""

    @property
    def summary(self) -> str:
        """Its size in a line, such as "60 training and 20 validation images, 3 categories"."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What looks wrong, though training can do with it."""

    @property
    def train_images(self) -> int:
        """The length of an epoch."""

    @property
    def val_sha256(self) -> str:
        """The content of what is evaluated on."""

    @property
    def protocol(self) -> dict[str, Any]:
        """What two data sets must share for numbers to be comparable: sizes and content."""


DataT = TypeVar("DataT", bound=Data)


class Project(ABC, Generic[DataT]):
    """One task, such as instance segmentation. A recipe names its project: `project = L(InstanceSegmentation)()`.

    Attributes:
        name: of the task, in records.
        version: of the task; it goes up when the same settings lead to other numbers.
        title: beside the progress bar.
        main_metric: what tables show and what the best checkpoint is chosen by; higher is better.
        unit: of all metrics.
        results: how the names of evaluation results begin, which are logged beside the losses.
        outputs: the files that the evaluator and `draw` leave in a run's folder.
        data_options: a dataclass with the defaults of a recipe's `data`.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    title: ClassVar[str]
    main_metric: ClassVar[str]
    unit: ClassVar[str]
    results: ClassVar[tuple[str, ...]]
    outputs: ClassVar[tuple[str, ...]]
    data_options: ClassVar[type[Any]]

    @abstractmethod
    def check(self, data: Mapping[str, Any]) -> DataT:
        """Find the data that a recipe's `data` names, and check it.

        Raises:
            UserError: it is missing, or cannot be trained on.
        """

    def version_for(self, data: DataT) -> int:
        """Return the version of the task for some data; a later one where only some data lead to other numbers."""
        return self.version

    @abstractmethod
    def registered(self, data: DataT) -> AbstractContextManager[Names]:
        """Register the data with Detectron2 while the body runs; yield the names."""

    @abstractmethod
    def point_at(self, cfg: DictConfig, data: DataT, names: Names) -> None:
        """Let a recipe's model and loaders use registered data; changes `cfg`."""

    @abstractmethod
    def check_settings(self, cfg: DictConfig, by_hand: Collection[str], data: DataT) -> None:
        """Make sure that what `point_at` would set was not set otherwise by hand.

        Args:
            cfg: the recipe.
            by_hand: keys that were overridden.
            data: what it shall use.

        Raises:
            UserError: it was.
        """

    @abstractmethod
    def rehearse(self, cfg: DictConfig, model: nn.Module, ranks: Ranks) -> None:
        """Go the whole way of an evaluation in seconds, before hours of training; all processes must call this.

        Args:
            cfg: a recipe that points at registered data.
            model: in any state of training; it is left as it is.
            ranks: the processes.

        Raises:
            UserError: data set, model and evaluator do not fit together.
        """

    @abstractmethod
    def with_tta(self, cfg: DictConfig, model: nn.Module) -> tuple[DictConfig, nn.Module]:
        """Return a test loader and a model for test-time augmentation, as the recipe's `test` says.

        Raises:
            UserError: this recipe's model or test images cannot be augmented.
        """

    @abstractmethod
    def known(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics that are defined, for the record: of those that an evaluator gives, some may be nan."""

    @abstractmethod
    def headline(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the few known metrics that are shown on the terminal and above the pictures."""

    @abstractmethod
    def draw(self, out: Path, data: DataT, title: str, numbers: Mapping[str, float]) -> None:
        """Draw what the evaluator has written into `out`, and the course of training where there is a log.

        Args:
            out: a run's folder, or that of an evaluation.
            data: what was evaluated on.
            title: what was evaluated.
            numbers: the headline.
        """
