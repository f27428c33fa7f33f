"""Run work in the processes started by torchrun, if any: join the process group, handle signals, exit together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from spark.utils.distributed import Ranks, process_group
from spark.utils.lock import sole_writer
from spark.utils.signals import EXIT_CODE, PostponedError, StopRequest

Result = TypeVar("Result")


def in_processes(
    run: Path, device: str, work: Callable[[Ranks, StopRequest], Result | None]
) -> tuple[Result, Ranks]:
    """Run the work on all ranks, while nobody else writes into the run's folder.

    Args:
        run: the run's folder.
        device: compute device, as for `choose_device`.
        work: returns None if it was asked to stop and has saved its state.

    Returns:
        What the work returned in this process, and the processes.

    Raises:
        UserError: raised by the work; or another process writes into the folder.
        PostponedError: the work was asked to stop.
        SystemExit: raised instead on all ranks but the main process, which reports the error.
    """
    with process_group(device) as ranks, sole_writer(run, ranks), StopRequest() as request:
        result = work(ranks, request)
    if result is None and not ranks.is_main:
        raise SystemExit(EXIT_CODE)
    if result is None:
        raise PostponedError(f"{run} was asked to stop and is saved; the same command goes on with it")
    return result, ranks
