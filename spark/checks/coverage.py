"""Which of timm's networks can be pre-trained sparsely: a table of verdicts, and how they are found.

    verified           the three errors of both engines are within rounding (`spark check`, float64, random weights)
    wrong              they are not: converted, but not to the same function
    refused            by the converter, which says why
    error              did not run, or not within the time and memory allowed
    not measured       convolutional and not refused; nobody has run it yet
    not convolutional  mixes positions in another way (see spark/checks/convolutional.py); no part of the denominator
"""

from __future__ import annotations

import csv
import multiprocessing
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import nn

from spark.backbones.pyramid import require_pyramid
from spark.backbones.timm_model import timm_names
from spark.backbones.timm_pyramid import TimmPyramid
from spark.checks.convolutional import mixes_positions
from spark.config.choices import DEFAULT_METHOD
from spark.errors import UserError, nearest
from spark.sparse import ENGINES
from spark.sparse.check import verify
from spark.sparse.convert import sparsify
from spark.utils.files import atomic_path
from spark.utils.lock import sole_writer_of_file

TABLE = Path(__file__).parents[1] / "tables" / "coverage.csv"
OTHER = "not convolutional"
UNMEASURED = "not measured"
VERDICTS = ("verified", "refused", "wrong", "error", UNMEASURED)
"""Of the names that are purely convolutional."""

Reporter = Callable[[str], None]


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        parameters: of the network without its classifier; "" if timm cannot build it.
        masked_error: the largest of the three errors through this engine; "" if it was not measured.
        compact_error: likewise.
        timm: the version that was looked at.
    """

    model: str
    verdict: str
    parameters: str = ""
    masked_error: str = ""
    compact_error: str = ""
    seconds: str = ""
    timm: str = ""
    reason: str = ""


def read_table(path: Path = TABLE) -> dict[str, Row]:
    """Return the rows by model name.

    Raises:
        UserError: the file is none of ours.
    """
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        head, *lines = list(csv.reader(file)) or [[]]
    if tuple(head) != Row._fields:
        raise UserError(f"'{path}' is no coverage table: its first line is not '{','.join(Row._fields)}'")
    return {row.model: row for row in (Row(*line) for line in lines)}


def write_table(rows: Mapping[str, Row], path: Path = TABLE) -> None:
    """Write the rows, sorted by name."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows[name] for name in sorted(rows))


def matching(pattern: str) -> list[str]:
    """Return timm's names that match.

    Raises:
        UserError: none does.
    """
    names = timm_names()
    if found := [name for name in names if fnmatch(name, pattern)]:
        return found
    raise UserError(f"no timm model matches '{pattern}'.{nearest(pattern.strip('*'), names)}")


def update(
    names: Iterable[str], path: Path, missing: bool, report: Reporter, timeout: float = 600, memory: int = 12 * 2**30
) -> None:
    """Find the verdicts over `names` and write each into the table at once: it can be stopped and called again.

    What needs no numbers is decided first; then networks are measured, the smallest first.

    Args:
        missing: leave alone what has a verdict.
        timeout: seconds for a network.
        memory: bytes for a network.

    Raises:
        TakenError: another process writes the table.
    """
    with sole_writer_of_file(path):
        rows = read_table(path)
        names = [name for name in names if not missing or rows.get(name, Row(name, UNMEASURED)).verdict == UNMEASURED]
        for number, name in enumerate(names):
            if not missing or name not in rows:
                rows[name] = survey(name)
                if number % 100 == 99:  # a hundred of them take half a minute
                    report(f"{number + 1} of {len(names)} looked at")
                    write_table(rows, path)
        write_table(rows, path)
        todo = [rows[name] for name in names if rows[name].verdict == UNMEASURED]
        for row in sorted(todo, key=lambda row: int(row.parameters or 0)):
            rows[row.model] = found = measure(row, timeout, memory)
            write_table(rows, path)
            report(f"{found.model:40} {found.verdict:10} {found.seconds:>6} s  {found.reason[:100]}")


def survey(name: str) -> Row:
    """Decide what can be decided without weights: not convolutional, refused, or still to be measured."""
    row = Row(name, UNMEASURED, timm=timm.__version__)
    try:
        with torch.device("meta"):
            network = _network(name)
            row = row._replace(parameters=str(sum(parameter.numel() for parameter in network.parameters())))
            if mixer := mixes_positions(network):
                return row._replace(verdict=OTHER, reason=mixer)
            if isinstance(network, TimmPyramid):
                require_pyramid(network)
                sparsify(network, network.example())
    except UserError as error:
        if error.__cause__ is None:  # otherwise it did not run, for want of weights perhaps: `measure` will see
            return row._replace(verdict="refused", reason=str(error))
    except Exception as error:  # any: this is the answer
        return row._replace(verdict="error", reason=_described(error))
    return row


def _network(name: str) -> nn.Module:
    try:
        return TimmPyramid(name)
    except UserError:  # no feature pyramid
        return timm.create_model(name, num_classes=0)


def measure(row: Row, timeout: float, memory: int) -> Row:
    """Check a network in a process of its own, which may fail or hang."""
    context = multiprocessing.get_context("fork")  # timm and torch are imported once
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(row, memory, theirs))
    start = time.monotonic()
    process.start()
    theirs.close()
    late = row._replace(verdict="error", reason=f"not done after {timeout:.0f} s")
    try:
        row = ours.recv() if ours.poll(timeout) else late
    except EOFError:
        row = row._replace(verdict="error", reason="its process died")
    process.kill()
    process.join()
    return row._replace(seconds=f"{time.monotonic() - start:.1f}")


def _work(row: Row, memory: int, answer: Connection) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    answer.send(judge(row))


def judge(row: Row) -> Row:
    """Complete a row by what the check through every engine says."""
    row = row._replace(verdict="verified", timm=timm.__version__, reason="")
    try:
        found = {engine: verify(row.model, engine) for engine in ENGINES}
    except UserError as error:
        return row._replace(verdict="refused", reason=str(error))
    except Exception as error:  # any: this is the answer
        return row._replace(verdict="error", reason=_described(error))
    worst = {f"{engine}_error": f"{max(result.errors):.1e}" for engine, result in found.items()}
    verdict = "verified" if all(result.holds for result in found.values()) else "wrong"
    return row._replace(verdict=verdict, **worst)


def coverage_line(rows: Mapping[str, Row]) -> str:
    """Return the coverage in one sentence, with its denominators."""
    counts = Counter(row.verdict for row in rows.values())
    convolutional = len(rows) - counts[OTHER]
    if not convolutional:
        return "No convolutional network has been looked at."
    versions = ", ".join(sorted({row.timm for row in rows.values()}))
    others = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS[1:])
    return (
        f"Of the {len(rows)} model names of timm {versions}, {convolutional} are purely convolutional: "
        f"{counts['verified']} verified ({counts['verified'] / convolutional:.1%}), {others}."
    )


def listing(names: Iterable[str], rows: Mapping[str, Row]) -> str:
    """Return a line for each name that is purely convolutional, and how many are not."""
    found = [rows.get(name, Row(name, UNMEASURED)) for name in names]
    convolutional = [row for row in found if row.verdict != OTHER]
    lines = [f"{row.model:40} {row.verdict:12} {row.reason or _worst_error(row)}".rstrip() for row in convolutional]
    counts = Counter(row.verdict for row in convolutional)
    total = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]) or "none"
    others = len(found) - len(convolutional)
    counted = f"{len(convolutional)} purely convolutional: {total}; {others} other names match"
    return "\n".join([*lines, f"method {DEFAULT_METHOD}: {counted}"])


def _worst_error(row: Row) -> str:
    errors = [float(error) for error in (row.masked_error, row.compact_error) if error]
    return f"{max(errors):.1e}" if errors else ""


def verified_like(model: str, rows: Mapping[str, Row]) -> str:
    """Return ' Verified: a, b.' for the verified names closest to `model`, or ''."""
    close = nearest(model, (name for name, row in rows.items() if row.verdict == "verified"))
    return close.replace(" Did you mean ", " Verified models of similar names: ").replace("?", ".")


def _described(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
