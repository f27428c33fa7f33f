"""The folder of a run: `config.yaml`, `checkpoints/`, `metrics.jsonl`, and what the run yields."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from spark.config.recipe import save_resolved
from spark.errors import UserError
from spark.runs.metrics import FILE_NAME as METRICS
from spark.utils.provenance import content_hash

CONFIG, CHECKPOINTS = "config.yaml", "checkpoints"
# What may change between a run and its continuation without changing its numbers by more than rounding. `probe`
# stands for all of its settings.
FREE_TO_CHANGE = frozenset(
    {"out", "resume", "device", "engine", "train.compile", "train.recompute", "data.root", "data.workers", "probe"}
)


def prepare_run_folder(
    folder: Path, config: Any, fresh: bool, yields: Collection[str], free_to_change: Collection[str] = ()
) -> Path:
    """Make sure that the run may live in this folder, and write its resolved configuration there.

    Args and errors: as `check_run_folder`.
    """
    check_run_folder(folder, config, fresh, yields, free_to_change)
    save_resolved(config, folder / CONFIG)
    return folder


def check_run_folder(
    folder: Path, config: Any, fresh: bool, yields: Collection[str], free_to_change: Collection[str] = ()
) -> None:
    """Make sure that a run may begin, or go on, in this folder.

    Args:
        folder: where the run lives.
        config: a dataclass.
        fresh: remove an earlier run in it (its own files only).
        yields: names of files and folders that this kind of run leaves beside the common ones.
        free_to_change: dotted keys, beside FREE_TO_CHANGE, that a continued run may change.

    Raises:
        UserError: the folder holds a run of another configuration.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out='{folder}' is a file; pass out=<a folder>")
    if fresh:
        # Checkpoints go first: without a configuration beside them, nobody could tell whose they are.
        for name in (CHECKPOINTS, CONFIG, METRICS, "tensorboard", *yields):
            _remove(folder / name)
    elif (folder / CHECKPOINTS).is_dir():
        if not (folder / CONFIG).is_file():
            raise UserError(f"'{folder}' has checkpoints but no {CONFIG}; pass another out=…, or resume=never")
        _check_same(folder, config, FREE_TO_CHANGE.union(free_to_change))


def protocol_hash(config: Any) -> str:
    """Return a hash of all settings that decide about a run's numbers."""
    return content_hash(_deciding(config, FREE_TO_CHANGE))


def recipe_hash(config: Any, images: str) -> str:
    """Return a hash that a run shares with its repetitions by other seeds.

    Args:
        config: of the run.
        images: identity of what it is trained on.
    """
    return content_hash({"settings": _deciding(config, FREE_TO_CHANGE | {"seed"}), "images": images})


def _deciding(config: Any, but: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in flat(dataclasses.asdict(config)).items() if not among(name, but)}


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their dotted names."""
    settings: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            settings.update(flat(value, f"{prefix}{key}."))
        else:
            settings[f"{prefix}{key}"] = value
    return settings


def among(name: str, names: Collection[str]) -> bool:
    """Whether a setting is named, itself or by its group."""
    return name in names or name.partition(".")[0] in names


def _check_same(folder: Path, config: Any, free_to_change: Collection[str]) -> None:
    known, found = OmegaConf.structured(type(config)), OmegaConf.load(folder / CONFIG)
    if set(known) - set(found) and set(found) - set(known):
        raise UserError(f"'{folder}' holds a run of another kind (its {CONFIG} has {', '.join(map(str, found))}); "
                        "pass another out=…")
    # What a run of an older version did not know, it did as the default says now.
    before = flat(OmegaConf.to_container(known)) | flat(OmegaConf.to_container(found))
    now = flat(dataclasses.asdict(config))
    changed = [
        f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not among(name, free_to_change)
    ]
    if changed:
        raise UserError(
            f"'{folder}' holds a run of another configuration ({'; '.join(changed)}); "
            "pass another out=…, or resume=never to replace it"
        )


def _remove(path: Path) -> None:
    if path.is_dir():
        doomed = path.with_name(f".{path.name}.removed")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)  # at once, so that a kill leaves either all of it or nothing
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
