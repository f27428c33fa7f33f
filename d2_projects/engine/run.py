"""A run from the command line: whether Detectron2 is there, how many processes there are, and who speaks for them.

This can be imported without Detectron2; the work itself is in `work`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from d2_projects.compat import quiet_detectron2, require_detectron2
from d2_projects.data.demo import recipe_and_overrides
from spark.errors import PostponedError, UserError, exits_cleanly
from spark.utils.lock import sole_writer
from spark.utils.signals import StopRequest

if TYPE_CHECKING:  # Detectron2 may be absent until `run` has asked for it
    from d2_projects.engine.config import DetectConfig

Built = TypeVar("Built")


def main(words: list[str], count: int = 1) -> int:
    """Do what a command line says, print the path of what was written, and return the exit code.

    Args:
        words: RECIPE key=value …; with data=demo the recipe may be left out.
        count: of processes, which Detectron2's launch starts; 1 for this one, alone or one of torchrun's.

    Raises:
        UserError: as for `run` and `run_launched`.
        PostponedError: as for `run`.
    """
    recipe, overrides = recipe_and_overrides(words)
    if count > 1:
        return run_launched(recipe, overrides, count)
    path = run(recipe, overrides)
    if path:  # the first of several processes speaks for all
        print(path)
    return 0


def run(recipe: str, overrides: list[str]) -> Path | None:
    """Train, evaluate and record one model, in this process or together with others of torchrun or Detectron2.

    A run that was interrupted goes on; one that is finished is left alone. With `eval_only=true` only a checkpoint is
    evaluated.

    Returns:
        The path of the run's `result.json`, or of `evaluation.json`; None in all processes but the first.

    Raises:
        UserError: Detectron2, the recipe, the data or the encoder is missing or does not fit.
        PostponedError: a signal asked the run to stop, and it was saved.
        SystemExit: in all processes but the first, instead of these.
    """
    require_detectron2()
    with quiet_detectron2():
        from d2_projects.engine.config import load
        from d2_projects.engine.processes import pick_device, processes
        from d2_projects.engine.run_folder import nothing_left
        from d2_projects.engine.work import evaluate_and_write, train_and_record

        def read() -> DetectConfig:
            config = load(recipe, overrides)
            pick_device(config.cfg.train.device)
            return config

        config = said_once(read)
        device, out = config.cfg.train.device, config.out
        with processes(device) as ranks, sole_writer(out, ranks), stop_request() as request:
            try:
                if config.eval_only:
                    return evaluate_and_write(config, ranks)
                with nothing_left(config, ranks.is_main):
                    return train_and_record(config, ranks, request)
            except PostponedError as stopped:
                if not ranks.is_main:
                    raise SystemExit(stopped.exit_code) from None
                raise


def run_launched(recipe: str, overrides: list[str], count: int) -> int:
    """Do as `run` in so many processes, which Detectron2's launch starts; return the exit code.

    Raises:
        UserError: Detectron2 or the recipe is missing or unsound, or there are too few GPUs.
    """
    require_detectron2()
    with quiet_detectron2():
        import torch
        from detectron2.engine import launch

        from d2_projects.engine.config import load
        from d2_projects.engine.processes import TIMEOUT

        load(recipe, overrides)  # so that what is wrong is found here
        if torch.cuda.is_available() and count > torch.cuda.device_count():
            raise UserError(f"--num-gpus {count}, but there are {torch.cuda.device_count()} CUDA devices")
        try:
            launch(_launched, count, dist_url="auto", args=(recipe, overrides), timeout=TIMEOUT)
        except torch.multiprocessing.ProcessExitedException as error:
            return error.exit_code
    return 0


def _launched(recipe: str, overrides: list[str]) -> None:
    """Be one of several processes."""
    if code := exits_cleanly(main)([recipe, *overrides]):
        raise SystemExit(code)


def said_once(build: Callable[[], Built]) -> Built:
    """Return what `build` does; of processes that have not joined yet, the first alone says what is wrong."""
    try:
        return build()
    except UserError:
        if int(os.environ.get("RANK", "0")) > 0:
            raise SystemExit(2) from None
        raise


def stop_request() -> contextlib.AbstractContextManager[StopRequest | None]:
    """Return what heeds signals, but not in processes that Detectron2's launch started.

    It ends them by a signal when one of them fails, and they must not survive that. (torchrun uses SIGKILL then.)
    """
    from torch import distributed

    launched = distributed.is_initialized() and "TORCHELASTIC_RUN_ID" not in os.environ
    return contextlib.nullcontext() if launched else StopRequest()
