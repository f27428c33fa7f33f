"""The folder of a run: whose it is, whether the run may live in it, and what is removed when it starts again."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from d2_projects.engine.config import DetectConfig, to_yaml
from d2_projects.engine.evaluate import TTA
from d2_projects.engine.train import LOG
from spark.errors import UserError
from spark.runs.checkpoint import LAST
from spark.runs.folder import CHECKPOINTS, CONFIG
from spark.runs.metrics import FILE_NAME as METRICS
from spark.runs.record import FILE_NAME as RESULT
from spark.utils.files import write_json, write_text
from spark.utils.json_text import read_json

IDENTITY = "identity.json"
EVALUATION, EVALUATED = "evaluation.json", "evaluation"  # of eval_only=true: the numbers, and a folder with the rest


def finished(config: DetectConfig, identity: dict[str, Any]) -> bool:
    """Prepare the run folder; return True if it holds this very run's result already.

    Raises:
        UserError: the folder holds another run.
    """
    out = config.out
    if out.exists() and not out.is_dir():
        raise UserError(f"out='{out}' is a file; pass out=<a folder>")
    if config.resume == "never":
        remove_run(out, config.project.outputs)
    identity = json.loads(json.dumps(identity, default=vars))
    if (out / IDENTITY).is_file():
        before = _identity_in(out)
        changed = [key for key, value in identity.items() if before.get(key) != value]
        if changed:
            gpus = "" if "protocol" not in changed else (
                " (the number of GPUs belongs to it, where the recipe was scaled)")
            raise UserError(f"'{out}' holds a run with another {' and '.join(changed)}{gpus}; pass another out=…, "
                            "or resume=never to replace it")
    elif (out / CHECKPOINTS / LAST).exists() or (out / RESULT).exists():
        raise UserError(f"'{out}' holds a run without {IDENTITY}, so what it trained is not known; "
                        "pass another out=…, or resume=never to replace it")
    write_json(out / IDENTITY, identity)
    write_text(out / CONFIG, to_yaml(config.cfg))
    return (out / RESULT).is_file()


def begun_as(config: DetectConfig, protocol: str) -> bool:
    """Whether the folder holds a run of a protocol, by its hash, and this is to go on with it."""
    if config.resume == "never" or not (config.out / IDENTITY).is_file():
        return False
    return _identity_in(config.out).get("protocol") == protocol


def _identity_in(out: Path) -> dict[str, Any]:
    """Return what tells whose a run's folder is.

    Raises:
        UserError: that is damaged.
    """
    file = out / IDENTITY
    before = read_json(file, "identity of a run")
    if not isinstance(before, dict):
        raise UserError(f"'{file}' does not say whose run it is; pass another out=…, or resume=never to replace it")
    return before


@contextlib.contextmanager
def nothing_left(config: DetectConfig, writes: bool) -> Iterator[None]:
    """Let a new run that fails before its first number leave nothing behind, or the mended one would be another's.

    Args:
        config: of the run.
        writes: whether this process does.
    """
    out = config.out
    new = not (out / IDENTITY).exists()
    try:
        yield
    except UserError:
        if writes and new and not (out / METRICS).exists() and not (out / CHECKPOINTS / LAST).exists():
            remove_run(out, config.project.outputs)
        raise


def remove_run(out: Path, outputs: Iterable[str]) -> None:
    """Remove what a run writes, and nothing else.

    Checkpoints go before what tells whose they are: whenever this is interrupted, no other run takes them up.

    Args:
        out: the run's folder.
        outputs: files that its project writes.
    """
    with contextlib.suppress(FileNotFoundError):
        (out / RESULT).unlink()
    for name in (CHECKPOINTS, "tensorboard", TTA, EVALUATED):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(out / name)
    for name in (*outputs, CONFIG, METRICS, LOG, EVALUATION, IDENTITY):
        with contextlib.suppress(FileNotFoundError):
            (out / name).unlink()
