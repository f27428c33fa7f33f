"""What a study can do with a model: a task is one small class, and a new one is one file in `eval_suite/tasks/`.

A task does not run anything itself: it reads a recipe (`prepare`), says which command does the work (`command`), and
what the finished run shows (`collect`). Who runs the command, here or on a cluster, is none of its business.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import pkgutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import yaml

import eval_suite.tasks
from spark.errors import UserError, nearest
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
    """

    recipe: str
    out: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    init: str | None = None
    gpus: int = 0

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

    @abstractmethod
    def prepare(self, work: Work) -> Prepared:
        """Read the recipe; touch neither data nor run folder.

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

        Args:
            work: as for `prepare`.
            images: number of training images; None if the data is not there to be counted.
        """
        return None


def find_task(name: str) -> Task:
    """Return the task of a name, or of a reference to a class of your own: `path/to/file.py:Class`, `module:Class`.

    Raises:
        UserError: there is none.
    """
    where, colon, class_name = name.rpartition(":")
    if not colon:
        class_name = ""
    if not colon and name not in task_names():
        raise UserError(f"there is no task '{name}'.{nearest(name, task_names())}")
    try:
        module = _import(where or f"{eval_suite.tasks.__name__}.{name}")
    except (ImportError, OSError, SyntaxError) as error:
        raise UserError(f"task '{name}' cannot be imported: {error}") from None
    for candidate in vars(module).values():
        if _is_task(candidate, module) and class_name in ("", candidate.__name__):
            return candidate()
    raise UserError(f"task '{name}': no class {class_name or 'derived from Task'} in {module.__name__}")


def task_names() -> list[str]:
    """Return the names of the tasks that come with this package."""
    return sorted(module.name for module in pkgutil.iter_modules(eval_suite.tasks.__path__))


def tasks_table() -> str:
    """Return the tasks that come with this package as a Markdown table."""
    rows = ["| task | version | what it does | several GPUs |", "|:--|:--|:--|:--|"]
    for task in map(find_task, task_names()):
        rows.append(f"| `{task.name}` | {task.version} | {task.purpose} | {'yes' if task.distributed else 'no'} |")
    return "\n".join(rows)


def _is_task(candidate: Any, module: ModuleType) -> bool:
    return (
        inspect.isclass(candidate) and issubclass(candidate, Task) and not inspect.isabstract(candidate)
        and candidate.__module__ == module.__name__
    )


def _import(where: str) -> ModuleType:
    """Import a module by its name, or by its file."""
    if not where.endswith(".py"):
        return importlib.import_module(where)
    file = Path(where).resolve()
    name = f"own_task_{sha256(str(file).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _as_yaml(value: Any) -> str:
    """Write a value so that YAML reads the same again; strings stay plain where they may."""
    if isinstance(value, str):
        try:
            plain = yaml.safe_load(value) == value
        except yaml.YAMLError:
            plain = False
        return value if plain else json.dumps(value)
    return json.dumps(value)
