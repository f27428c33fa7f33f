"""Progress of long work: a bar with rate, ETA and loss on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15.0


class TrainingProgress:
    """Show the progress of `total` steps of `batch` images each; `done` of them were done before.

    A quiet one shows nothing: of several processes, one speaks for all.

    >>> with TrainingProgress("pretrain", total=100, batch=32) as progress:
    ...     progress.advance("epoch 1/10 loss 0.75")
    """

    def __init__(self, title: str, total: int, batch: int, done: int = 0, quiet: bool = False) -> None:
        self._title, self._total, self._batch = title, total, batch
        self._step = self._first = done
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._quiet = quiet
        if not quiet and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[status]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=total, completed=done, status="")

    def __enter__(self) -> TrainingProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def images_per_second(self) -> float:
        """Throughput since this process began, in images per second."""
        return (self._step - self._first) * self._batch / max(time.monotonic() - self._started, 1e-9)

    def advance(self, status: str) -> None:
        """One more step is done; `status` is what a person wants to see beside it, such as the loss."""
        self._step += 1
        status = f"{status}  {self.images_per_second:.0f} img/s"
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, completed=self._step, status=status)
        elif not self._quiet and (now - self._last_line > SECONDS_BETWEEN_LINES or self._step == self._total):
            self._last_line = now
            remaining = (now - self._started) / (self._step - self._first) * (self._total - self._step)
            eta = timedelta(seconds=round(remaining))
            print(f"{self._title} {self._step}/{self._total}  eta {eta}  {status}", file=sys.stderr, flush=True)
