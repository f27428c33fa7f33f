"""`spark-eval report RUNS_DIR`: table.md, table.csv and one self-contained report.html."""

from __future__ import annotations

import base64
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console
from rich.table import Table

from eval_suite.figures import Log, draw_curves
from eval_suite.schema import ResultRecord
from eval_suite.tables import caution_of, collect, readable, summarise, to_csv, to_markdown
from spark.files import write_text
from spark.metrics import FILE_NAME as METRICS
from spark.metrics import read_metrics
from spark.provenance import code_version

# What is worth a panel, if a run's log has it.
CURVES = ("loss", "top1", "top1_ema", "bbox/AP", "segm/AP")
MIME = {".png": "image/png", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Picture:
    """An image that travels inside the page."""

    caption: str
    source: str  # data: URI


def write_report(runs: Path, out: Path | None = None) -> Path:
    """Write the report on everything under `runs` into `out` (default: runs/report); return the page's path.

    Raises:
        UserError: there is nothing to report.
    """
    records, unreadable = collect(runs)
    table = summarise(list(records.values()))
    out = out or runs / "report"
    page = _template().render(
        caution=caution_of(table), unreadable=unreadable, code_version=code_version(),
        summary=_cells(readable(table)), runs=_cells(_runs_table(records, runs)),
        curves=_curves(records, runs), reconstructions=_reconstructions(runs),
        detections=[_picture(path, str(path.parent.relative_to(runs)))
                    for path in sorted(runs.rglob("detections.png"))],
    )
    write_text(out / "table.md", to_markdown(table))
    write_text(out / "table.csv", to_csv(table))
    write_text(out / "report.html", page)
    _print_table(table)
    print(f"report: {(out / 'report.html').resolve()}")
    return out / "report.html"


def _template() -> Any:
    environment = Environment(loader=PackageLoader("eval_suite"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html")


def _cells(table: pd.DataFrame) -> dict[str, list[Any]]:
    return {"columns": list(table.columns), "rows": table.to_numpy().tolist()}


def _runs_table(records: dict[Path, ResultRecord], runs: Path) -> pd.DataFrame:
    """Return every run with all of its metrics, so that last, best and averaged accuracies stand apart."""
    return pd.DataFrame([{
        "run": str(folder.relative_to(runs)), "model": record.model, "init": record.init.kind,
        "seed": record.seed,
        "metrics": ", ".join(f"{name} {metric.value:.2f}" for name, metric in record.metrics.items()),
        "epochs": f"{record.epochs:g}", "seconds": f"{record.wall_seconds:.0f}",
        "hardware": record.hardware, "code": record.code_version,
    } for folder, record in records.items()])


def _curves(records: dict[Path, ResultRecord], runs: Path) -> list[Picture]:
    """One figure for each task and protocol, and one for the runs that have a log but no result."""
    groups: dict[str, dict[str, Log]] = defaultdict(dict)
    for path in sorted(runs.rglob(METRICS)):
        folder = path.parent
        record = records.get(folder)
        title = f"{record.task}, protocol {record.protocol_id}" if record else "pre-training"
        if not record and not _is_pretraining(folder):
            title = "unfinished"
        groups[title][str(folder.relative_to(runs))] = read_metrics(folder)
    pictures = []
    for title, logs in sorted(groups.items(), key=lambda item: item[0] != "pre-training"):
        drawing = draw_curves(logs, CURVES)
        if drawing:
            pictures.append(Picture(title, _data_uri(drawing, ".svg")))
    return pictures


def _is_pretraining(folder: Path) -> bool:
    return (folder / "reconstructions").is_dir() or (folder / "encoder.json").is_file()


def _reconstructions(runs: Path) -> list[Picture]:
    """Return the last picture of each pre-training run."""
    pictures = []
    for folder in sorted(path for path in runs.rglob("reconstructions") if path.is_dir()):
        images = sorted(folder.glob("[!.]*.png"), key=_by_number)
        if images:
            pictures.append(_picture(images[-1], f"{folder.parent.relative_to(runs)}, {images[-1].stem}"))
    return pictures


def _by_number(path: Path) -> tuple[list[int], str]:
    """Order epoch_9 before epoch_10."""
    return [int(digits) for digits in re.findall(r"\d+", path.stem)], path.stem


def _picture(path: Path, caption: str) -> Picture:
    return Picture(caption, _data_uri(path.read_bytes(), path.suffix))


def _data_uri(content: bytes, suffix: str) -> str:
    return f"data:{MIME[suffix]};base64,{base64.b64encode(content).decode()}"


def _print_table(table: pd.DataFrame) -> None:
    """Print one table for each task and protocol: narrow enough for a terminal, and nothing is mixed."""
    console = Console()
    for (task, protocol), rows in readable(table).groupby(["task", "protocol"], sort=False):
        shown = Table(title=f"{task}, protocol {protocol}", title_justify="left")
        for name in rows.columns.drop(["task", "protocol"]):
            shown.add_column(name, overflow="fold")
        for row in rows.drop(columns=["task", "protocol"]).astype(str).to_numpy().tolist():
            shown.add_row(*row)
        console.print(shown)
    if caution_of(table):
        console.print(caution_of(table))
