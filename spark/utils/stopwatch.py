"""The seconds of a run, over all processes that worked on it one after the other."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Stopwatch:
    """Counts the seconds of a run, and those of them that are spent in training."""

    def __init__(self) -> None:
        self._before, self._started = 0.0, time.monotonic()
        self._trained, self._since = 0.0, None  # type: float, float | None

    @property
    def seconds(self) -> float:
        """How long the run has taken, interruptions left out."""
        return self._before + time.monotonic() - self._started

    @property
    def training_seconds(self) -> float:
        """How long was trained of it, evaluations left out."""
        return self._trained + (time.monotonic() - self._since if self._since is not None else 0.0)

    def train(self, on: bool) -> None:
        """Training begins or goes on, or is paused."""
        self._trained, self._since = self.training_seconds, time.monotonic() if on else None

    def state_dict(self) -> dict[str, float]:
        """Return the seconds so far, for a checkpoint."""
        return {"seconds": self.seconds, "training_seconds": self.training_seconds}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Add what was counted before to what this process counts from now on."""
        self._before, self._started = state["seconds"], time.monotonic()
        self._trained, self._since = state.get("training_seconds", 0.0), None
