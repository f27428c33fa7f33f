"""Checkpoints that survive: written whole, verified when read, the previous one kept until then."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from spark.errors import UserError
from spark.files import atomic_path

LAST, PREVIOUS = "last.pt", "previous.pt"


def save_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Write `last.pt`; the one before it stays as `previous.pt`.

    At every moment at least one of the two is whole: the new file gets its name only after it is on disk.
    """
    with atomic_path(folder / LAST) as temporary:
        torch.save(content, temporary)
        if (folder / LAST).exists():
            os.replace(folder / LAST, folder / PREVIOUS)


def load_latest(folder: Path) -> dict[str, Any] | None:
    """Return the newest whole checkpoint of a folder on the CPU, or None if there is none at all.

    Damaged ones that are newer are removed.

    Raises:
        UserError: there are checkpoints, but none is whole.
    """
    torn: list[Path] = []
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            content = load_file(path)
        except UserError as error:
            warnings.warn(f"{error}; trying the one before", stacklevel=2)
            torn.append(path)
            continue
        for damaged in torn:  # it would take the whole one's place when the next is saved
            damaged.unlink()
        return content
    if torn:
        raise UserError(f"no checkpoint is whole: {', '.join(map(str, torn))}; remove them to start over")
    return None


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
                    raise UserError(f"checkpoint '{path}' is damaged")
        with warnings.catch_warnings():  # torch warns of old pickles that it then reads, or refuses, anyway
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "allowlisted" in str(error):  # torch's words for a class that it will not make
            raise UserError(f"checkpoint '{path}' holds objects other than tensors; it is not loaded") from None
        raise UserError(f"checkpoint '{path}' is truncated or no checkpoint") from None
    except UserError:
        raise
    except Exception:  # a damaged pickle makes its reader stumble in any way
        raise UserError(f"checkpoint '{path}' is truncated or no checkpoint") from None
