"""Robust checkpoints: written atomically, verified when read, with the previous one kept."""

from __future__ import annotations

import errno
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spark.errors import UserError
from spark.utils.files import atomic_path, torch_save
from spark.utils.state_dict import MisfitError, digest

CHECKSUM = "checksum"  # key of what is saved: a hash of the rest; older versions' files have none
STUMBLES = (MisfitError, LookupError, TypeError, ValueError, AttributeError, RuntimeError)  # over what is not there
LAST, PREVIOUS = "last.pt", "previous.pt"
NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # the file may be intact


class DamagedCheckpoint(UserError):
    """A file exists and can be read, but is not an intact checkpoint."""


class HoldsObjects(UserError):
    """A file holds objects other than tensors, whose code would have to run."""


class ForeignCheckpoint(DamagedCheckpoint):
    """A checkpoint is intact, but of something else."""


def save_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Write `last.pt`; the previous one is kept as `previous.pt`.

    Raises:
        UserError: it cannot be written; existing checkpoints are kept.
    """
    with atomic_path(folder / LAST) as temporary:
        torch_save({**content, CHECKSUM: digest(content)}, temporary)
        _keep_as_previous(folder)


def load_latest(folder: Path, use: Callable[[dict[str, Any]], object] = dict) -> dict[str, Any] | None:
    """Return the newest whole checkpoint of a folder on the CPU, or None if there is none at all.

    Damaged ones that are newer are set aside as `*.damaged`: it is for whoever goes on to save there.

    Args:
        folder: of the checkpoints.
        use: takes a checkpoint's content; it is asked to use the one before of one that is of something else.

    Raises:
        UserError: there are checkpoints, but none is intact; or one cannot be read now, or `use` refuses it.
    """
    content, damaged = read_latest(folder, use)
    for path in damaged:  # or it would replace the intact one at the next save
        path.rename(path.with_name(path.name + ".damaged"))
    return content


def read_latest(
    folder: Path, use: Callable[[dict[str, Any]], object] = dict
) -> tuple[dict[str, Any] | None, list[Path]]:
    """Return the same as `load_latest`, and the newer damaged files; nothing is renamed.

    Raises:
        UserError: as for `load_latest`.
    """
    damaged: list[Path] = []
    present = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    for path in present:
        try:
            return _used(path, use), damaged
        except DamagedCheckpoint as error:
            if isinstance(error, ForeignCheckpoint) and path == present[-1]:
                raise
            warnings.warn(f"{error}{'; trying the one before' if path != present[-1] else ''}", stacklevel=2)
            damaged.append(path)
    if damaged:
        raise UserError(f"no checkpoint is whole: {', '.join(map(str, damaged))}; remove them to start over")
    return None, damaged


def _used(path: Path, use: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    content = load_file(path)
    try:
        use(content)
    except STUMBLES as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise ForeignCheckpoint(f"checkpoint '{path}' is not one of this run ({why})") from None
    return content


def peek(folder: Path, key: str) -> Any:
    """Return what the newest checkpoint of a folder holds under a key, without reading its tensors; None if nothing.

    A damaged one is passed over: whoever goes on with the run will say so.
    """
    for name in (LAST, PREVIOUS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(folder / name, map_location="cpu", weights_only=True, mmap=True).get(key)
        except Exception as error:  # missing or damaged, in any way
            if isinstance(error, OSError) and error.errno in NOT_DAMAGE:
                raise UserError(f"checkpoint '{folder / name}' cannot be read: {error.strerror}") from None
    return None


def _keep_as_previous(folder: Path) -> None:
    """Hard-link `last.pt` to `previous.pt`, so that `last.pt` exists until the new one replaces it."""
    last, link = folder / LAST, folder / ".previous.tmp.pt"
    if not last.exists():
        return
    link.unlink(missing_ok=True)
    try:
        os.link(last, link)
    except OSError:  # a file system without hard links
        os.replace(last, folder / PREVIOUS)
        return
    os.replace(link, folder / PREVIOUS)


def load_file(path: Path) -> dict[str, Any]:
    """Read a `torch.save` file without running code from it, on the CPU.

    Raises:
        UserError: missing, truncated or damaged, or holding more than tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"checkpoint '{path}' does not exist")
    try:
        # torch.load does not look at the checksums that torch.save writes; legacy (non-zip) files have none.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    raise DamagedCheckpoint(f"checkpoint '{path}' is damaged")
        with warnings.catch_warnings():  # torch warns of old pickles that it then reads, or refuses, anyway
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
        expected = content.pop(CHECKSUM, None) if isinstance(content, dict) else None
        if expected is not None and expected != digest(content):
            raise DamagedCheckpoint(f"checkpoint '{path}' is damaged: it does not hold what was saved")
        return content
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "allowlisted" in str(error):  # torch's words for a class that it refuses to load
            raise HoldsObjects(f"checkpoint '{path}' holds objects other than tensors; it is not loaded") from None
        raise DamagedCheckpoint(f"checkpoint '{path}' is truncated or no checkpoint") from None
    except UserError:
        raise
    except (Exception, MemoryError) as error:  # a damaged file can raise anything
        if isinstance(error, OSError) and error.errno in NOT_DAMAGE:
            raise UserError(f"checkpoint '{path}' cannot be read: {error.strerror}") from None
        raise DamagedCheckpoint(f"checkpoint '{path}' is truncated or no checkpoint") from None
