"""Study files: which models, initialisations, tasks, seeds and budgets, and what differs where.

A study is a YAML file read like a recipe. In its strings `{model}`, `{budget}`, `{seed}` and `{data}`
are replaced by what they are at each node of the graph.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spark.config.overrides import split_overrides
from spark.config.recipe import load_recipe
from spark.config.values import Count, Name, Output, Place, Seed, wrong_values
from spark.errors import UserError, nearest

Schema = TypeVar("Schema")
AXES = ("model", "init", "budget", "task", "seed")
PRETRAIN = "pretrain"  # the task of pre-training nodes, and its name in selectors
OWN = "own"  # the only budget, where none are named: that of the recipe


@dataclass
class InitializationChoice:
    """What a backbone begins with: nothing (scratch), a pre-training of this study, or a checkpoint."""

    pretrain: Name = ""  # recipe of a pre-training
    task: str = PRETRAIN  # that runs the recipe
    settings: dict[str, Any] = field(default_factory=dict)  # that differ from that recipe
    seed: Seed | None = None  # of the pre-training; null: each seed of the study has its own
    checkpoint: Name = ""  # weights that are there already: a run's folder, an encoder, timm:NAME
    checkpoints: dict[str, Any] = field(default_factory=dict)  # model: its own checkpoint, instead


@dataclass
class TaskChoice:
    """A task with its recipe."""

    task: Place = MISSING  # name of a task, or path/to/file.py:Class
    recipe: Place = MISSING
    settings: dict[str, Any] = field(default_factory=dict)  # that differ from the recipe
    images: Count | None = None  # training images, for estimates where the data is not there


@dataclass
class Override:
    """What differs at some nodes."""

    when: dict[str, Any] = field(default_factory=dict)  # axis: value, or list of values; {} is everywhere
    settings: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)  # as in a cluster file


class Point(NamedTuple):
    """One evaluation: a value of each axis."""

    model: str
    init: str
    budget: str
    task: str
    seed: int


@dataclass
class StudyConfig:
    """A study file."""

    out: Output = MISSING  # folder of all its runs
    data: Name = ""  # folder of the data: what {data} stands for
    images: Count | None = None  # training images, for estimates where the data is not there
    prepare: str = ""  # command that makes {data}; it runs first, and once
    models: list[Place] = field(default_factory=list)
    initialisations: dict[str, Any] = field(default_factory=dict)  # name: InitializationChoice
    budgets: dict[str, Any] = field(default_factory=dict)  # name: settings of the pre-training
    tasks: dict[str, Any] = field(default_factory=dict)  # name: TaskChoice
    seeds: list[Seed] = field(default_factory=lambda: [0])
    include: list[Any] = field(default_factory=list)  # more points; an axis left out takes all of its values
    exclude: list[Any] = field(default_factory=list)  # points that are left out
    overrides: dict[str, Any] = field(default_factory=dict)  # name: Override
    report: bool = True  # tables and page over all that is finished, at the end

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        found = [f"'{name}' is required and empty" for name in ("models", "initialisations", "seeds")
                 if not getattr(self, name)]
        for name, schema in (
            ("initialisations", InitializationChoice), ("tasks", TaskChoice), ("overrides", Override),
        ):
            found += _Typed(schema, getattr(self, name), name).problems
        if found:
            return found
        for name, init in self.initialization_choices().items():
            if init.pretrain and (init.checkpoint or init.checkpoints):
                found.append(f"initialisations.{name} has both a pre-training and a checkpoint")
        for name, settings in self.budgets.items():
            if not isinstance(settings, Mapping):
                found.append(f"budgets.{name} must be a mapping of settings, such as {{train.epochs: 300}}")
        for name, selector in self._selectors():
            found += self._check_selector(name, selector)
        return found or ([] if self.points() else ["no point is left: 'exclude' takes all of them away"])

    def initialization_choices(self) -> dict[str, InitializationChoice]:
        """Return the initialisations by name."""
        return _Typed(InitializationChoice, self.initialisations, "initialisations").values

    def task_choices(self) -> dict[str, TaskChoice]:
        """Return the tasks by name."""
        return _Typed(TaskChoice, self.tasks, "tasks").values

    def override_choices(self) -> dict[str, Override]:
        """Return the overrides by name."""
        return _Typed(Override, self.overrides, "overrides").values

    def points(self) -> list[Point]:
        """Return the points of the grid that are not excluded, and those that are included; each once."""
        axes = self._axes()
        grid = [point for point in _grid(axes, {})
                if not any(matches(point._asdict(), selector) for selector in self.exclude)]
        more = [point for selector in self.include for point in _grid(axes, selector)]
        return list(dict.fromkeys([*grid, *more]))

    def _axes(self) -> dict[str, list[Any]]:
        return {
            "model": self.models, "init": list(self.initialisations), "budget": list(self.budgets) or [OWN],
            "task": list(self.tasks) or [""], "seed": self.seeds,
        }

    def _selectors(self) -> Iterator[tuple[str, Any]]:
        yield from ((f"include[{index}]", selector) for index, selector in enumerate(self.include))
        yield from ((f"exclude[{index}]", selector) for index, selector in enumerate(self.exclude))
        yield from ((f"overrides.{name}.when", choice.when) for name, choice in self.override_choices().items())

    def _check_selector(self, name: str, selector: Any) -> list[str]:
        """A selector that matches nothing, for a typing mistake, must not pass."""
        if not isinstance(selector, Mapping):
            return [f"{name} must be a mapping of axes to values"]
        found = [f"{name}: unknown axis '{axis}'.{nearest(str(axis), AXES)}" for axis in selector if axis not in AXES]
        axes = self._axes()
        if name.startswith("include"):  # may bring models and seeds of its own
            axes["model"], axes["seed"] = (_listed(selector.get(axis, [])) for axis in ("model", "seed"))
        else:
            for included in self.include if isinstance(self.include, list) else []:
                for axis in ("model", "seed"):
                    axes[axis] = [*axes[axis], *_listed(included.get(axis, []))]
        axes["task"] = [*axes["task"], PRETRAIN]
        for axis, values in selector.items():
            for value in _listed(values):
                if axis in axes and value not in axes[axis]:
                    found.append(f"{name}: {axis} has no value '{value}'.{nearest(str(value), map(str, axes[axis]))}")
        return found


def load_study(study: str, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study file; one of `configs/studies/` may be named without folder and ending.

    Raises:
        UserError: one message that lists all mistakes.
    """
    path = Path(study)
    known = sorted(file.stem for file in Path("configs/studies").glob("*.yaml"))
    if study in known:
        path = Path("configs/studies") / f"{study}.yaml"
    elif not path.suffix:
        raise UserError(f"there is no study '{study}' in configs/studies."
                        f"{nearest(study, known) or ' Pass the path of its YAML file.'}")
    for key, _ in split_overrides(overrides):
        if "." in key:
            raise UserError(f"{key}=…: what a study's parts say is changed in its file ({path}); the command line "
                            "takes whole keys, such as seeds=[0,1] or data=FOLDER")
    return load_recipe(StudyConfig, path, overrides)


def matches(labels: Mapping[str, Any], selector: Mapping[str, Any]) -> bool:
    """Whether each axis that a selector names has one of its values."""
    return all(labels.get(axis) in _listed(values) for axis, values in selector.items())


def filled(value: Any, **values: Any) -> Any:
    """Replace `{name}` in a string, or in the strings of a list or mapping; other braces stay."""
    if isinstance(value, str):
        for name, replacement in values.items():
            value = value.replace(f"{{{name}}}", str(replacement))
        return value
    if isinstance(value, Mapping):
        return {key: filled(inner, **values) for key, inner in value.items()}
    return [filled(inner, **values) for inner in value] if isinstance(value, list) else value


def dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested settings into dotted ones; dotted keys may be written in either way."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat.update(dotted(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _grid(axes: Mapping[str, Iterable[Any]], fixed: Mapping[str, Any]) -> list[Point]:
    """Return all combinations; an axis that is fixed has those values alone."""
    values = [_listed(fixed[axis]) if axis in fixed else axes[axis] for axis in AXES]
    return [Point(*combination) for combination in itertools.product(*values)]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


class _Typed:
    """Named mappings as instances of a dataclass, with all that is wrong with them."""

    def __init__(self, schema: type[Any], entries: Mapping[str, Any], where: str) -> None:
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []
        for name, content in entries.items():
            try:
                self.values[name] = typed(schema, content or {}, f"{where}.{name}")
            except UserError as error:
                self.problems.append(str(error))


def typed(schema: type[Schema], content: Any, where: str) -> Schema:
    """Turn a mapping into an instance of the dataclass `schema`.

    Raises:
        UserError: a key is unknown, a required one missing, a value of a wrong type; `where` names the place.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{where} must be a mapping")
    known = [entry.name for entry in dataclasses.fields(schema)]  # type: ignore[arg-type]
    problems = [f"{where}: unknown key '{key}'.{nearest(str(key), known)}" for key in content if key not in known]
    if not problems:
        try:
            merged = OmegaConf.merge(OmegaConf.structured(schema), dict(content))
            problems = [f"{where}.{key} is required" for key in sorted(OmegaConf.missing_keys(merged))]
            if not problems:
                read: Any = OmegaConf.to_object(merged)
                problems = list(wrong_values(read, prefix=f"{where}."))
                if not problems:
                    return read
        except RecursionError:
            problems = [f"{where}: its interpolations ${{…}} go round in a circle"]
        except (OmegaConfBaseException, ArithmeticError, ValueError) as error:  # the latter two of huge numbers
            problems = [f"{where}: {str(error).splitlines()[0]}"]
    raise UserError("; ".join(problems))
