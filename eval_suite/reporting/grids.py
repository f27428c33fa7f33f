"""The report page's tables: cells with what they are sorted by and what they link to."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from eval_suite.published import VERIFIED, as_text, published, published_beside
from eval_suite.reporting.effort import Effort
from eval_suite.reporting.run_files import checkpoint_file, files_of
from eval_suite.reporting.table_text import MEAN, MISSING, PUBLISHED, gain_text, gain_title, mean_text
from eval_suite.reporting.tables import SCRATCH
from spark.backbones.names import shown_name
from spark.runs.record import ResultRecord


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: in it, before its links.
        key: what it is sorted by, where that is not the text; None where there is nothing: it comes last.
        links: (text, address) of what it links to.
        more: text that unfolds.
        kind: its CSS class.
    """

    text: str = ""
    key: float | str | None = ""
    links: Sequence[tuple[str, str]] = ()
    more: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Grid:
    """A table of cells.

    Attributes:
        columns: titles.
        rows: cells in the order of the columns.
        anchors: of the rows, to be linked to; may be empty.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    anchors: Sequence[str] = ()


class Addresses:
    """Where things are, seen from the page."""

    def __init__(self, page_folder: Path, records: Mapping[Path, ResultRecord], roots: Sequence[Path]) -> None:
        self._page_folder, self._roots = page_folder, roots
        self._anchors = {folder: f"run-{number}" for number, folder in enumerate(records, 1)}

    def of(self, path: Path) -> str:
        """Return a relative address, so that page and runs may move together."""
        return quote(os.fsencode(os.path.relpath(path, self._page_folder)))

    def anchor(self, folder: Path) -> str:
        """Return the anchor of a run's row."""
        return self._anchors[folder]

    def name(self, folder: Path) -> str:
        """Return what to call a run: its place below what is reported on."""
        root = next((root for root in self._roots if folder.is_relative_to(root)), folder.parent)
        name = str(folder.relative_to(root)) if folder != root else folder.name
        return name if len(self._roots) == 1 else f"{root.name}/{name}"


def summary_grid(rows: pd.DataFrame, records: Mapping[Path, ResultRecord], where: Addresses) -> Grid:
    """Return the rows of one task, protocol and origin; each links its runs."""
    beside = [published_beside(row) for _, row in rows.iterrows()]
    with_published = any(beside)
    columns = ["model", "initialisation", MEAN, gain_title(rows), "n", "metric",
               *([PUBLISHED] if with_published else []), "runs"]
    cells = []
    for (_, row), numbers in zip(rows.iterrows(), beside, strict=True):
        folders = sorted(row["folders"], key=lambda folder: (records[folder].seed, folder))
        links = [(f"seed {records[folder].seed}", f"#{where.anchor(folder)}") for folder in folders]
        published_cell = Cell(as_text(numbers), float(numbers[0].value) if numbers else None, kind="published")
        cells.append([
            Cell(shown_name(row["model"])), Cell(row["init"], kind="" if row["n"] else "missing"),
            Cell(mean_text(row), _number(row["mean"]), kind="value"),
            Cell(gain_text(row), _number(row["gain"]), kind="gain"),
            Cell(str(row["n"]), row["n"]), Cell(f"{row['metric']} [{row['unit']}]"),
            *([published_cell] if with_published else []),
            Cell("" if links else "missing", links=links, kind="seeds" if links else "missing"),
        ])
    return Grid(columns, cells)


def runs_grid(records: Mapping[Path, ResultRecord], where: Addresses) -> Grid:
    """Return every run with its files, the checkpoint that it began with, and the code that ran."""
    columns = ["run", "result", "model", "initialisation", "seed", "files", "began with", "code", "task", "epochs"]
    rows = [[
        Cell(links=[(where.name(folder), where.of(folder))], key=where.name(folder)),
        Cell(_metric(record, record.main_metric), record.metrics[record.main_metric].value, more=_others(record),
             kind="value"),
        Cell(shown_name(record.model)), Cell(record.init.kind), Cell(str(record.seed), record.seed),
        Cell(links=[(name, where.of(path)) for name, path in files_of(folder).items()], kind="files"),
        _checkpoint(folder, record, where), Cell(record.code_version), Cell(record.task),
        Cell(f"{record.epochs:g}", record.epochs),
    ] for folder, record in records.items()]
    return Grid(columns, rows, [where.anchor(folder) for folder in records])


def effort_grid(efforts: Mapping[Path, Effort], where: Addresses) -> Grid:
    """Return throughput and hours of every run."""
    columns = ["run", "task", "hardware", "images/s", "hours", "GPU-hours", "peak memory [GiB]"]
    rows = [[
        Cell(links=[(where.name(folder), where.of(folder))], key=where.name(folder)), Cell(effort.task),
        Cell(effort.hardware or (f"GPUs: {effort.gpus}" if effort.gpus else MISSING)),
        _quantity(effort.images_per_second, ",.0f"), _quantity(effort.hours, ",.3f"),
        _quantity(effort.gpu_hours, ",.3f"),
        _quantity(None if effort.peak_memory_mib is None else effort.peak_memory_mib / 1024, ".1f"),
    ] for folder, effort in efforts.items()]
    return Grid(columns, rows)


def missing_grid(nodes: Sequence[Mapping[str, Any]]) -> Grid:
    """Return what studies have planned and not finished."""
    columns = list(nodes[0]) if nodes else []
    return Grid(columns, [[Cell(str(value)) for value in node.values()] for node in nodes])


def published_grid() -> Grid:
    """Return all published numbers with their sources."""
    rows = [[
        Cell(number.task), Cell(number.model), Cell(number.init), Cell(number.metric),
        Cell(number.value, float(number.value), kind="published"), Cell(number.source), Cell(number.table),
        Cell(number.verified, kind="" if number.verified == VERIFIED else "missing"),
    ] for number in published()]
    return Grid(["task", "model", "initialisation", "metric", "value", "source", "table", "verified"], rows)


def _checkpoint(folder: Path, record: ResultRecord, where: Addresses) -> Cell:
    """What a run began with: the hash of the weights, with a link if they are there."""
    init = record.init
    if init.kind == SCRATCH:
        return Cell(MISSING, None)
    words = init.checkpoint_sha256[:12] if init.checkpoint_sha256 else init.checkpoint or init.kind
    file = checkpoint_file(folder, record)
    return Cell(links=[(words, where.of(file))], key=words) if file else Cell(words)


def _metric(record: ResultRecord, name: str) -> str:
    return f"{name} {record.metrics[name].value:.2f}"


def _others(record: ResultRecord) -> str:
    return ", ".join(_metric(record, name) for name in record.metrics if name != record.main_metric)


def _quantity(value: float | None, digits: str) -> Cell:
    return Cell(MISSING, None) if value is None else Cell(f"{value:{digits}}", value)


def _number(value: Any) -> float | None:
    number = float(value)
    return None if math.isnan(number) else number
