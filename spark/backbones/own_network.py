"""A user's own network, named on the command line: `path/to/file.py:ClassName` or `package.module:ClassName`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from spark.backbones.pyramid import Pyramid, require_pyramid
from spark.backbones.sources import helpers
from spark.errors import UserError, nearest
from spark.utils.files import sha256


def build_own(
    reference: str, in_chans: int | None = None, drop_path: float = 0.0, options: Mapping[str, Any] | None = None
) -> Pyramid:
    """Build the pyramid that a reference names.

    Args:
        reference: `path/to/file.py:ClassName` or `package.module:ClassName`.
        in_chans: given to the constructor if it takes that; else the network must have as many. None: its default.
        drop_path: given to the constructor if it takes that; else it must be 0.
        options: more arguments of the constructor.

    Raises:
        UserError: there is no such class, it cannot be built so, or it is no pyramid.
    """
    network_class: Any = _load(reference)
    arguments = dict(options or {})
    taken = inspect.signature(network_class).parameters
    if "in_chans" in taken and in_chans is not None:
        arguments.setdefault("in_chans", in_chans)
    if "drop_path" in taken:
        arguments.setdefault("drop_path", drop_path)
    elif drop_path:
        raise UserError(f"'{reference}' has no parameter drop_path; set model.drop_path=0")
    try:
        network = network_class(**arguments)
    except (Exception, SystemExit) as error:  # whatever goes wrong in someone else's code
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise UserError(f"'{reference}' cannot be built with ({given}): {type(error).__name__}: {error}") from error
    require_pyramid(network)
    channels = network.example().shape[1]
    if in_chans not in (None, channels):
        raise UserError(f"'{reference}' takes images of {channels} channels; set model.in_chans={channels}")
    return network


def source_of(reference: str) -> str:
    """Return the file that a reference names, and the hash of its content, for an export to tell; helpers too."""
    file = _source_file(reference)
    files = {str(file): sha256(file), **helper_hashes(reference)}
    return ", ".join(f"{name} (sha256 {content})" for name, content in files.items())


def source_hash(reference: str) -> str:
    """Return the hash of the content of the file that a reference names, wherever it lies."""
    return sha256(_source_file(reference))


def helper_hashes(reference: str) -> dict[str, str]:
    """Return the hashes of the modules that the file imports from its own folder, by path; see `helpers`."""
    file = _source_file(reference)
    root = file.parent if reference.rpartition(":")[0].endswith(".py") else Path.cwd()
    return helpers(file, root)


def _source_file(reference: str) -> Path:
    return Path(inspect.getfile(_load(reference))).resolve()


def _load(reference: str) -> type[nn.Module]:
    where, _, class_name = reference.rpartition(":")
    try:
        module = _from_file(Path(where)) if where.endswith(".py") else _from_package(where)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever goes wrong in someone else's code
        raise UserError(f"'{where}' cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        classes = [name for name, value in vars(module).items() if inspect.isclass(value)]
        raise UserError(f"'{where}' has no class '{class_name}'.{nearest(class_name, classes)}")
    if not issubclass(found, nn.Module):  # a recipe builds networks, and nothing else
        raise UserError(f"'{reference}' is no torch.nn.Module; see `spark.Pyramid` for what a network has to have")
    return found


def _from_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise UserError(f"'{file}' does not exist; name a network as path/to/file.py:ClassName")
    name = f"own_network_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    if name in sys.modules:  # two of its networks must be of the same class
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses, for one, look for it
    try:
        with _importable(file.resolve().parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_package(name: str) -> ModuleType:
    with _importable(Path.cwd()):
        return importlib.import_module(name)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules in a folder be imported, as those beside a script are."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
