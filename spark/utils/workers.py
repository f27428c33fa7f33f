"""Workers of data loaders: they outlive the signals that a job gets, but not the process that started them."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import sys
from types import TracebackType
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from spark.utils.signals import SIGNALS

Loader = TypeVar("Loader", bound=DataLoader[Any])


def keep_workers(loader: Loader) -> Loader:
    """Return the loader, whose workers now leave the signals of a job to this process.

    Schedulers often signal all processes of a job, and the loop needs its workers to finish a step. But Python ends
    workers by SIGTERM when it exits, and would then wait forever for those that ignore it: so we end them first.
    """
    loader.worker_init_fn = _leave_signals_to_parent
    atexit.unregister(_end_workers)
    atexit.register(_end_workers)  # what is registered last runs first: before the exit of multiprocessing
    return loader


def _end_workers() -> None:
    """End the processes that must not outlive this one, whatever they are at."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise an error for each
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _leave_signals_to_parent(worker: int) -> None:
    sys.excepthook = _quiet_when_left
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _quiet_when_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say what went wrong, unless it is that the process that batches go to has ended: that one tells why."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)
