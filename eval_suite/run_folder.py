"""The folder of an evaluation run: `config.yaml`, `checkpoints/last.pt`, `metrics.jsonl`, `result.json`."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from eval_suite.schema import FILE_NAME as RESULT
from spark.config import save_resolved
from spark.errors import UserError
from spark.files import atomic_path
from spark.metrics import FILE_NAME as METRICS

CONFIG, CHECKPOINT = "config.yaml", "checkpoints/last.pt"
# What may change between a run and its continuation without changing its numbers.
FREE_TO_CHANGE = {"out", "resume", "device", "data.root", "data.workers"}


def prepare_run_folder(folder: Path, config: Any, fresh: bool) -> Path:
    """Create the run's folder and write its resolved configuration.

    With `fresh`, an earlier run in it is removed (its own files only).

    Raises:
        UserError: the folder holds a run of another configuration.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out='{folder}' is a file; pass out=<a folder>")
    if fresh:
        _remove_run(folder)
    elif (folder / CONFIG).is_file() and (folder / CHECKPOINT).is_file():
        _check_same(folder, config)
    save_resolved(config, folder / CONFIG)
    return folder


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replace the run's checkpoint; the previous one stays until the new one is whole."""
    with atomic_path(folder / CHECKPOINT) as temporary:
        torch.save(state, temporary)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the run's last checkpoint, on the CPU, or None if it has none yet.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError):
        raise UserError(f"checkpoint '{path}' is damaged; pass resume=never to start again") from None


def _check_same(folder: Path, config: Any) -> None:
    before = _flat(OmegaConf.to_container(OmegaConf.load(folder / CONFIG)))
    now = _flat(dataclasses.asdict(config))
    changed = [
        f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name not in FREE_TO_CHANGE
    ]
    if changed:
        raise UserError(
            f"'{folder}' holds a run of another configuration ({'; '.join(changed)}); "
            "pass another out=…, or resume=never to replace it"
        )


def _remove_run(folder: Path) -> None:
    for name in (RESULT, CONFIG, CHECKPOINT, METRICS):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
