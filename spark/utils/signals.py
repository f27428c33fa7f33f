"""Being asked to stop: schedulers send SIGTERM, or SIGUSR1, some time before they take the machine away."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from spark.errors import PostponedError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = PostponedError.exit_code  # of all processes of what was stopped


class StopRequest:
    """While entered, a signal does not end the process but is remembered, for the loop to stop when it suits."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows no other to handle signals
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = True
