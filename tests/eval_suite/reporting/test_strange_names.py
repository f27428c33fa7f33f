"""Tables whose names are a stranger's."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from synthetic import record

from eval_suite.reporting.table_text import to_csv, to_latex, to_markdown
from eval_suite.reporting.tables import flatten, summarize
from spark.runs.record import ResultRecord

NAMES = ["a|b", "<script>alert(1)</script>", "=1+1", "@SUM(A1)", "+1", "-1+cmd", "\\input{/etc/passwd}", "a_b%c&d#e$f",
         "x\ny", "[click](javascript:alert)", "~^{}", "`a`"]  # fmt: skip


def summary(records: list[ResultRecord]) -> pd.DataFrame:
    return summarize(flatten({Path(str(number)): entry for number, entry in enumerate(records)}))


@pytest.mark.parametrize("name", NAMES)
def test_tables_stay_tables(name: str) -> None:
    table = summary([record(50, model=name), record(60, model="plain")])
    lines = to_markdown(table).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 4
    assert len({row.replace(r"\|", "").count("|") for row in rows}) == 1
    assert "<script" not in "".join(rows)
    assert "](" not in "".join(rows)
    for row in csv.DictReader(io.StringIO(to_csv(table))):
        assert row["model"][0] not in "=+-@"
    latex = to_latex(table)
    assert r"\input" not in latex
    assert "a_b" not in latex


def test_captions_and_labels_of_tables_are_escaped() -> None:
    result = record(50)
    object.__setattr__(result, "task", r"own_$x$\input{y}:%Task")
    latex = to_latex(summary([result]))
    assert r"\input" not in latex
    caption = next(line for line in latex.splitlines() if line.startswith(r"\caption"))
    assert r"own\_\$x\$\textbackslash{}input\{y\}:\%Task" in caption
    label = next(line for line in latex.splitlines() if line.startswith(r"\label"))
    assert not set(label) & set("$% ")


def test_numbers_stay_numbers_in_csv() -> None:
    row = next(csv.DictReader(io.StringIO(to_csv(summary([record(-3.5)])))))
    assert row["mean"] == "-3.5"
