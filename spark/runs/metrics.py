"""Metrics of a run over time: `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from spark.utils.files import write_text, writing

FILE_NAME = "metrics.jsonl"


class MetricsLog:
    """Append records to `<run>/metrics.jsonl` and mirror their numbers to `<run>/tensorboard`.

    A run resumed at step n drops the records of later steps, which it is about to repeat; at step 0 it drops all. A
    quiet log writes nothing: only the main process writes.
    """

    def __init__(self, run: Path, resume_step: int = 0, quiet: bool = False) -> None:
        self._quiet = quiet
        if quiet:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow import, not needed by readers

        self._path = path = run / FILE_NAME
        kept = [record for record in read_metrics(run) if record["step"] <= resume_step > 0]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        with writing(path):
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=resume_step + 1)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._quiet:
            return
        # What could not be written has been told already, and would be tried once more here.
        with suppress(OSError) if error else writing(self._path):
            self._file.close()
            self._board.close()

    def write(self, step: int, **values: Any) -> None:
        """Record the values that belong to optimizer step `step` (the first is 1).

        Raises:
            UserError: the disk is full or fails.
        """
        if self._quiet:
            return
        with writing(self._path):
            self._file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
            self._file.flush()
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run; a line truncated by a kill is skipped."""
    path = run / FILE_NAME
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
