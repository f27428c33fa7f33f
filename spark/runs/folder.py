"""The folder of a run: `config.yaml`, `checkpoints/`, `metrics.jsonl`, and the run's own outputs."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from spark.config.identity import flat, without
from spark.config.yaml_text import read_yaml
from spark.errors import UserError
from spark.runs.metrics import FILE_NAME as METRICS

CONFIG, CHECKPOINTS = "config.yaml", "checkpoints"


def check_run_folder(folder: Path, config: Any, fresh: bool, yields: Collection[str]) -> None:
    """Check that a run may start or resume in this folder.

    Args:
        folder: the run's folder.
        config: a dataclass; its FREE_TO_CHANGE names the settings and groups that a continued run may change, and its
            FORMER, if it has one, those whose default was another one once, with that.
        fresh: remove an earlier run in it (its own files only).
        yields: names of the files and folders that this kind of run writes besides the common ones.

    Raises:
        UserError: the folder holds a run of another configuration.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out='{folder}' is a file; pass out=<a folder>")
    if fresh:
        # Remove checkpoints first: without a configuration beside them, their origin would be unknown.
        for name in (CHECKPOINTS, CONFIG, METRICS, "tensorboard", *yields):
            _remove(folder / name)
    elif (folder / CHECKPOINTS).is_dir():
        if not (folder / CONFIG).is_file():
            raise UserError(f"'{folder}' has checkpoints but no {CONFIG}; pass another out=…, or resume=never")
        _check_same(folder, config)


@contextmanager
def told_if_gone(folder: Path, file: str = ".") -> Iterator[None]:
    """Let what cannot be written into a run's folder, as that was removed or renamed meanwhile, be told as such.

    Raises:
        UserError: as for `check_still_there`, or as the body does.
    """
    try:
        yield
    except UserError:
        check_still_there(folder, file)
        raise


def check_still_there(folder: Path, file: str = ".") -> None:
    """Check that a running run still has its folder: what it would write into a new one could not be resumed.

    Args:
        folder: the run's.
        file: that is in it from the start, if one is.

    Raises:
        UserError: it was removed or renamed.
    """
    if not (folder / file).exists():
        raise UserError(f"'{folder / file}' is gone: it was removed or renamed during the run; put it back, and the "
                        "same command goes on from its last checkpoint")


def _check_same(folder: Path, config: Any) -> None:
    known: Any = OmegaConf.to_container(OmegaConf.structured(type(config)))
    found: Any = read_yaml(folder / CONFIG, "configuration")
    if not isinstance(found, dict):
        raise UserError(f"'{folder / CONFIG}' is no configuration; pass another out=…, or resume=never to replace it")
    if set(known) - set(found) and set(found) - set(known):
        raise UserError(f"'{folder}' holds a run of another kind (its {CONFIG} has {', '.join(map(str, found))}); "
                        "pass another out=…")
    if changed := changes(found, config):
        raise UserError(
            f"'{folder}' holds a run of another configuration ({'; '.join(changed)}); "
            "pass another out=…, or resume=never to replace it"
        )


def changes(found: Mapping[str, Any], config: Any) -> list[str]:
    """Say which settings that a continued run may not change differ between those of a run and a configuration."""
    known: Any = OmegaConf.to_container(OmegaConf.structured(type(config)))
    # Settings unknown to an older version had the effect of today's defaults; so had its own defaults.
    before = flat(without(known, config.FREE_TO_CHANGE)) | flat(without(found, config.FREE_TO_CHANGE))
    former = getattr(config, "FORMER", {})
    before |= {name: flat(known)[name] for name, value in former.items() if before.get(name) == value}
    now = flat(without(dataclasses.asdict(config), config.FREE_TO_CHANGE))
    return [
        f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)
    ]


def _remove(path: Path) -> None:
    if path.is_dir():
        doomed = path.with_name(f".{path.name}.removed")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)  # atomic, so that a kill leaves either all of it or nothing
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
