"""`spark-eval diff A B`: every setting in which two runs, or a run and a recipe, differ.

A run is compared by the resolved configuration in its folder, and by the data that its record tells. A recipe says
neither where things lie nor on which machine, so against one only what decides about the numbers is compared.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval_suite.nested import ABSENT, leaves
from eval_suite.task import Work
from eval_suite.task_registry import find_task, task_names
from spark.backbones.names import require_trust
from spark.config.yaml_text import MOST_BYTES, parse_yaml
from spark.errors import UserError
from spark.formats.encoder import INFO
from spark.runs.folder import CONFIG
from spark.runs.record import FILE_NAME as RESULT
from spark.runs.record import load_record
from spark.utils.files import read_regular
from spark.utils.printable import counted

PRETRAIN, AUTO = "pretrain", "auto"
# Settings that a recipe must have and cannot know, while it is only read; they are not compared.
PLACEHOLDERS = {"data.root": "unset"}
# What is a column of tables and no part of the protocol, though it decides about the numbers.
COLUMNS = frozenset({"model.name", "source", "seed", "train.seed", "init"})
# What the record of a Detectron2 project says of its recipe, in other words.
SUMMED_UP = frozenset({"recipe", "recipe_hash", "iterations", "batch"})
PLACES = frozenset({"out", "train.output_dir"})  # where runs lie, which tells them apart already
PROTOCOL_MARK = "*"
SAME, DIFFERENT = 0, 1


@dataclass(frozen=True)
class Side:
    """One of the two that are compared.

    Attributes:
        name: as it was given.
        task: whose settings these are.
        values: settings by dotted name.
        deciding: names of those that decide about the numbers.
        data: what a run's record tells of its data; None for a recipe, which does not know.
        start: what a run's record tells of the weights that it began with.
    """

    name: str
    task: str
    values: Mapping[str, Any]
    deciding: frozenset[str]
    data: Mapping[str, Any] | None = None
    start: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """A setting in which two sides differ; `protocol` if their numbers are not comparable for it."""

    name: str
    first: Any
    second: Any
    protocol: bool


def diff(first: str, second: str, trust: Collection[str] = ()) -> int:
    """Print the differences of two runs or recipes; return SAME or DIFFERENT.

    Args:
        first: a run's folder, or a recipe.
        second: likewise.
        trust: own networks and tasks whose code may run; of other networks the source is not compared.

    Raises:
        UserError: one of them is neither, they are of different tasks, or of one that is not trusted.
    """
    a, b = read_sides(first, second, trust)
    found = differences(a, b)
    if not found:
        print("no setting differs")
        return SAME
    table = Table(title=f"{a.task}: {counted(len(found), 'setting differs', 'settings differ')}", title_justify="left")
    for title in ("", "setting", a.name, b.name):
        table.add_column(title, overflow="fold")
    for entry in found:
        mark = PROTOCOL_MARK if entry.protocol else ""
        table.add_row(*map(Text, (mark, entry.name, str(entry.first), str(entry.second))))
    console = Console()
    console.print(table)
    changed = sum(entry.protocol for entry in found)
    print(f"{PROTOCOL_MARK} changes the protocol: numbers are not comparable" if changed else
          "the protocol is the same: numbers are comparable")
    return DIFFERENT


def differences(a: Side, b: Side) -> list[Difference]:
    """Return what differs, that of the protocol first."""
    deciding = a.deciding | b.deciding
    found = [Difference(*entry, entry[0] in deciding - COLUMNS)
             for entry in _pairs(a.values, b.values) if entry[0] not in PLACES]
    if a.data is None or b.data is None:
        found = [difference for difference in found if difference.name in deciding and not _left_to_run(difference)]
    else:
        found += [Difference(*entry, True) for entry in _pairs(a.data, b.data)]
        found += [Difference(*entry, False) for entry in _pairs(a.start, b.start)]
    return sorted(found, key=lambda difference: not difference.protocol)


def _left_to_run(difference: Difference) -> bool:
    """Whether a run came to something where its recipe leaves it open."""
    values = difference.first, difference.second
    return any(str(value).startswith(f"{AUTO} (") for value in values) and any(value in (ABSENT, 0) for value in values)


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return name and values of what is not equal; what one side lacks is ABSENT there."""
    entries = [(name, a.get(name, ABSENT), b.get(name, ABSENT)) for name in dict.fromkeys([*a, *b])]
    return [entry for entry in entries if entry[1] != entry[2]]


def read_sides(first: str, second: str, trust: Collection[str] = ()) -> tuple[Side, Side]:
    """Read two runs or recipes; a recipe is read as one of the task of the other.

    Raises:
        UserError: as for `diff`.
    """
    tasks = [[_task_of_run(Path(name), trust)] if Path(name).is_dir() else _tasks_of_recipe(name, trust)
             for name in (first, second)]
    common = [task for task in tasks[0] if task in tasks[1]]
    if not common:
        raise UserError(f"'{first}' is of the task {tasks[0][0]}, '{second}' of {tasks[1][0]}: nothing to compare")
    sides = [_of_run(name, common[0], trust) if Path(name).is_dir() else _of_recipe(name, common[0], trust)
             for name in (first, second)]
    return sides[0], sides[1]


def _of_run(name: str, task: str, trust: Collection[str]) -> Side:
    """What a run of an older version did not know, it did as the defaults say now."""
    folder = Path(name)
    written = leaves(_plain(folder / CONFIG))
    lazy = find_task(task).lazy_config
    defaults = {} if lazy else _settings(str(folder / CONFIG), task, trust)
    values = {**defaults, **written}
    deciding = _protocol_of_lazy(values) if lazy else defaults.keys()
    if not (folder / RESULT).is_file():
        return Side(name, task, values, frozenset(deciding), {})
    try:
        record = load_record(folder / RESULT)
    except UserError as error:
        print(f"left out: {error}", file=sys.stderr)  # what the configuration tells is compared all the same
        return Side(name, task, values, frozenset(deciding), {})
    protocol = leaves(record.protocol)
    data = {key: value for key, value in protocol.items() if key not in {*values, *SUMMED_UP}}
    values |= {key: f"{AUTO} ({value})" for key, value in record.resolved.items() if values.get(key) == AUTO}
    deciding = {*deciding, *(protocol.keys() & record.resolved.keys())}
    start = leaves({"began_with": dataclasses.asdict(record.init)})
    return Side(name, task, values, frozenset(deciding), data, start)


def _of_recipe(name: str, task: str, trust: Collection[str]) -> Side:
    values = _settings(name, task, trust)
    return Side(name, task, values, frozenset(values))


def _protocol_of_lazy(names: Collection[str]) -> set[str]:
    from d2_projects.engine.config import NOT_PROTOCOL  # needs Detectron2

    return {name for name in names if not any(f"{name}.".startswith(f"{other}.") for other in NOT_PROTOCOL)}


def _settings(recipe: str, task: str, trust: Collection[str]) -> dict[str, Any]:
    """Return the settings of a recipe that decide about the numbers, by the names that configurations have for them.

    Raises:
        UserError: it is no recipe of this task.
    """
    found = find_task(task)
    prepared = found.prepare(Work(recipe, Path("unset"), PLACEHOLDERS, trust=trust))
    settings = dict(prepared.settings)
    protocol = settings.pop("protocol", {})
    nested = _plain(protocol) if isinstance(protocol, str) else protocol
    names = {"model_name": "model.name", **({"seed": "train.seed"} if found.lazy_config else {})}
    return {names.get(name, name): value for name, value in leaves({**nested, **settings}).items()}


def _task_of_run(folder: Path, trust: Collection[str]) -> str:
    if not (folder / CONFIG).is_file():
        raise UserError(f"'{folder}' holds no run: it has no {CONFIG}")
    if (folder / RESULT).is_file():
        try:
            task = load_record(folder / RESULT).task
        except UserError:  # it is told of later; the configuration says which task it is, too
            return _tasks_of_recipe(str(folder / CONFIG), trust)[0]
        require_trust(task, trust, f"'{folder / RESULT}'")
        return task
    if (folder / INFO).is_file():
        return PRETRAIN
    return _tasks_of_recipe(str(folder / CONFIG), trust)[0]


def _tasks_of_recipe(recipe: str, trust: Collection[str]) -> list[str]:
    """Return the tasks that can read a recipe.

    Raises:
        UserError: there is none; with the complaint of the one that finds least fault.
    """
    tasks, faults = [], []
    for task in task_names():
        if find_task(task).lazy_config != recipe.endswith(".py"):
            continue
        try:
            _settings(recipe, task, trust)
            tasks.append(task)
        except UserError as error:
            faults.append(str(error))
    if not tasks:
        raise UserError(min(faults, key=len))
    return tasks


class _PlainLoader(yaml.SafeLoader):
    """Reads Python objects, which detection recipes have, as the mappings and lists that they are written as."""

    def plain(self, _kind: str, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self.construct_mapping(node, deep=True)
        return self.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else node.value


_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", _PlainLoader.plain)


def _plain(source: Path | str) -> dict[str, Any]:
    """Read YAML, of a file or as text."""
    where = "a protocol"
    try:
        if isinstance(source, Path):
            source, where = read_regular(source, "configuration", MOST_BYTES).decode("utf-8"), f"'{source}'"
        content = parse_yaml(source, _PlainLoader)
    except ValueError as error:
        raise UserError(f"{where} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{where} is no configuration")
    return {str(key): value for key, value in content.items()}
