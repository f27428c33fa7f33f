"""Metrics of a run over time: `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from spark.utils.files import read_regular, write_text, writing
from spark.utils.json_text import parse_json

FILE_NAME = "metrics.jsonl"
MOST_BYTES = 2**30  # of one log


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
    """Return the records of a run; lines that are damaged are left out, as is the last one if a kill truncated it.

    Raises:
        UserError: the log is there, and cannot be read at all.
    """
    return read_log(run)[0]


def read_log(run: Path) -> tuple[list[dict[str, Any]], str]:
    """Return the same as `read_metrics`, and what is to be said of damaged lines; "" if there are none.

    Raises:
        UserError: as for `read_metrics`.
    """
    path = run / FILE_NAME
    if not os.path.lexists(path):
        return [], ""
    records, complaints = [], []
    lines = read_regular(path, "log", MOST_BYTES).splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            records.append(_checked(parse_json(line)))
        except ValueError as error:
            if line.strip() and line.endswith(b"\n"):  # else it is empty, or a kill has cut it off
                complaints.append(f"line {number}: {error}")
    more = f", and {len(complaints) - 1} more" if len(complaints) > 1 else ""
    return records, f"log '{path}' is damaged in {complaints[0]}{more}" if complaints else ""


def _checked(record: Any) -> dict[str, Any]:
    """Return a record whose steps and epochs can be compared.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(record, dict):
        raise ValueError("it is no record")
    if type(record.get("step")) is not int or record["step"] < 0:
        raise ValueError("it has no step")
    if type(record.get("epoch", 0)) not in (int, float):
        raise ValueError("its epoch is no number")
    return record
