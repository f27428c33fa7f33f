"""`spark-eval report RUNS…`: table.md, table.csv, table.tex and report.html, self-contained if pictures are few."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval_suite.reporting.page import PICTURES, render_page
from eval_suite.reporting.table_text import interval_note, readable, to_csv, to_latex, to_markdown
from eval_suite.reporting.tables import caution_of, collect, flatten, summarize
from spark.backbones.names import is_reference
from spark.errors import UserError, in_a_line
from spark.utils.files import atomic_path, write_text
from spark.utils.lock import sole_writer
from spark.utils.printable import printable

PAGE = "report.html"


def write_report(
    folders: Sequence[Path | str], out: Path | None = None, trust: Collection[str] = ()
) -> Path:
    """Write the report on everything under some folders; return the page's path.

    Args:
        folders: that hold runs.
        out: where it is written; default: `report` in the folder, if there is one alone.
        trust: own networks whose code may run, to count their parameters.

    Raises:
        UserError: there is nothing to report, or it is not said where to write a report on several folders.
    """
    if out is None and len(folders) != 1:
        raise UserError("a report on several folders needs a place: pass --out FOLDER")
    places = [Path(folder) for folder in folders]
    collected = collect(places)
    table = summarize(flatten(collected.records))
    out = out or places[0] / "report"
    page = render_page(collected, table, out, trust)
    texts = {
        "table.md": to_markdown(table), "table.csv": to_csv(table), "table.tex": to_latex(table), PAGE: page.text,
    }
    with sole_writer(out):
        _write_pictures(out / PICTURES, page.pictures)
        for name, text in texts.items():
            write_text(out / name, text)
    _print_table(table)
    models = {record.model for record in collected.records.values()}
    for model in sorted(model for model in models if is_reference(model) and model not in trust):
        print(f"note: parameters of '{model}' are not counted, as its code would run; pass --trust '{model}'")
    for reason in collected.left_out:
        print(f"left out: {in_a_line(reason)}", file=sys.stderr)
    print(f"report: {(out / PAGE).resolve()}")
    return out / PAGE


def _write_pictures(folder: Path, pictures: Mapping[str, bytes]) -> None:
    """Write what does not fit into the page; pictures of an earlier page go."""
    for name, content in pictures.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content)
    for path in folder.glob("[0-9]*.*") if folder.is_dir() else ():
        if path.name not in pictures:
            path.unlink()


def _print_table(table: pd.DataFrame) -> None:
    """Print one table for each task, protocol and origin: narrow enough for a terminal, and nothing is mixed."""
    console = Console()
    apart = ["task", "protocol", "origin"]
    for (task, protocol, origin), rows in readable(table).groupby(apart, sort=False):
        shown = Table(title=f"{task}, protocol {protocol}, {origin}", title_justify="left")
        for name in rows.columns.drop(apart):
            shown.add_column(name, overflow="fold")
        for row in rows.drop(columns=apart).astype(str).to_numpy().tolist():
            shown.add_row(*map(Text, map(printable, row)))  # brackets are no markup
        console.print(shown)
    for note in (interval_note(table), caution_of(table)):
        if note:
            console.print(Text(note))
