"""Tasks by their name: those of `eval_suite/tasks/`, a file each, and classes of your own."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import eval_suite.tasks
from eval_suite.task import Task
from spark.errors import UserError, nearest


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
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever goes wrong in someone else's code
        raise UserError(f"task '{name}' cannot be imported: {type(error).__name__}: {error}") from error
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
        later = [f"{version} for {data}" for data, version in task.version_of_some.items()]
        versions = "; ".join([str(task.version), *later])
        rows.append(f"| `{task.name}` | {versions} | {task.purpose} | {'yes' if task.distributed else 'no'} |")
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
