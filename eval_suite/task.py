"""What a study can do with a model: a task is one small class, and a new one is one file in `eval_suite/tasks/`.

A task does not run anything itself: it reads a recipe (`prepare`), says which command does the work (`command`), and
what the finished run shows (`collect`). Who runs the command, here or on a cluster, is none of its business.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from spark.backbones.names import is_reference
from spark.runs.record import FILE_NAME as RESULT
from spark.runs.record import load_record

FORWARD_AND_BACKWARD = 3  # FLOPs of a training step over those of its forward pass, as they are usually reckoned


@dataclass(frozen=True)
class Work:
    """What is asked of a task: a recipe, what differs from it, and where the run lives.

    Attributes:
        recipe: path of the recipe.
        settings: what differs from the recipe, by dotted key.
        out: the run's folder.
        seed: of all randomness.
        init: what the backbone begins with: "scratch", a run's folder or a checkpoint; None lets the recipe decide.
        gpus: of all processes together; 0 on CPUs, or where it is not known yet. Few recipes depend on it.
        trust: own networks whose code may run; None: any, as the recipe is the user's.
    """

    recipe: str
    out: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    init: str | None = None
    gpus: int = 0
    trust: Collection[str] | None = None

    def source(self, model: str) -> dict[str, str]:
        """Return what the file of an own network adds to the settings; nothing if its code must not run."""
        if not is_reference(model) or (self.trust is not None and model not in self.trust):
            return {}
        from spark.backbones.own_network import source_hash  # imports torch, which takes seconds

        return {"source": source_hash(model)}

    def overrides(self) -> list[str]:
        """Return all that differs from the recipe as `key=value`, as our command lines take it."""
        init = {} if self.init is None else {"init": self.init}
        values = {**self.settings, "seed": self.seed, **init, "out": str(self.out)}
        return [f"{key}={_as_yaml(value)}" for key, value in values.items()]


@dataclass(frozen=True)
class Prepared:
    """A recipe that has been read, and found sound.

    Attributes:
        settings: all that decides about the result, but for the data's content and the initial weights; JSON-like.
        data: folders and files that the run reads; the first holds the training images.
        length: of the run, in `unit`s.
        unit: the key of `metrics.jsonl` that counts up to `length`.
    """

    settings: Mapping[str, Any]
    data: tuple[Path, ...]
    length: float
    unit: str = "epoch"


@dataclass(frozen=True)
class Cost:
    """What a run will take, as far as it can be counted.

    Attributes:
        flops: of the whole run, forward and backward; a multiplication and an addition are two.
        storage: bytes that it leaves on disk.
        basis: how that was counted, in a few words.
    """

    flops: float
    storage: int
    basis: str


class Task(ABC):
    """One way to use, or to make, a pre-trained model.

    `version` goes up whenever the same settings lead to other numbers: finished runs of another version are run anew.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    purpose: ClassVar[str]  # a line for people
    distributed: ClassVar[bool] = False  # whether its command may be started once per GPU, as torchrun does
    lazy_config: ClassVar[bool] = False  # whether its recipes are Detectron2's, in Python

    @abstractmethod
    def prepare(self, work: Work) -> Prepared:
        """Read the recipe; touch neither data nor run folder.

        One instance is asked for all nodes of a study, so it may remember what it has read.

        Raises:
            UserError: the recipe or a setting is unsound.
        """

    @abstractmethod
    def command(self, work: Work) -> list[str]:
        """Return the command that does the work, goes on where an earlier one stopped, and exits with 0 when done."""

    def collect(self, work: Work) -> Mapping[str, str] | None:
        """Return what a finished run shows, such as {"top1_last": "80.60 %"}; None if it is not finished."""
        path = work.out / RESULT
        if not path.is_file():
            return None
        record = load_record(path)
        metric = record.metrics[record.main_metric]
        return {record.main_metric: f"{metric.value:.2f} {metric.unit}"}

    def cost(self, work: Work, images: int | None) -> Cost | None:
        """Return what the run will take, or None where that is not known.

        It depends neither on the seed nor on the initial weights or the folder: runs that differ in nothing else are
        asked about once.

        Args:
            work: as for `prepare`.
            images: number of training images; None if the data is not there to be counted.
        """
        return None


def _as_yaml(value: Any) -> str:
    """Write a value so that YAML reads the same again; strings stay plain where they may."""
    if isinstance(value, str):
        try:
            plain = yaml.safe_load(value) == value
        except yaml.YAMLError:
            plain = False
        return value if plain else json.dumps(value)
    return json.dumps(value)
