"""Summaries as text: Markdown, CSV, LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable

import pandas as pd

from eval_suite.published import as_text, published_beside
from eval_suite.reporting.gains import CONFIDENCE, CUT
from eval_suite.reporting.tables import BASELINES, SCRATCH, caution_of
from spark.backbones.names import shown_name

MISSING = "–"
SHOWN_AS_ZERO = 0.005  # deviations that two decimals do not show
MEAN, PUBLISHED = "mean ± std", "published"
# What LaTeX writes in another way; all else is escaped by pandas.
LATEX_SIGNS = {"±": r"$\pm$", MISSING: "--", "−": "$-$", "×": r"$\times$"}


# What Markdown takes for its own, HTML among it, and TeX for commands: names are of strangers.
MARKDOWN = str.maketrans({"|": r"\|", "<": "&lt;", ">": "&gt;", "&": "&amp;", "`": r"\`", "\n": " ", "\r": " "})
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\n": " ", "\r": " ",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
})  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets compute if a cell begins with it


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Return a summary as text for people, with what is missing marked; published numbers are a column of their own."""
    published = table.apply(lambda row: as_text(published_beside(row)), axis=1)
    text = pd.DataFrame({
        "task": table["task"], "model": table["model"].map(shown_name), "init": table["init"],
        "metric": table["metric"] + " [" + table["unit"] + "]",
        MEAN: table.apply(mean_text, axis=1), "n": table["n"], gain_title(table): table.apply(gain_text, axis=1),
        PUBLISHED: published, "protocol": table["protocol"], "origin": table["origin"],
    })
    return text if published.any() else text.drop(columns=PUBLISHED)


def mean_text(row: pd.Series) -> str:
    """Return "80.60 ± 0.12", without a spread for one run, MISSING for none."""
    if not row["n"]:
        return MISSING
    spread = f" ± {row['std']:.2f}" if pd.notna(row["std"]) else ""
    return f"{row['mean']:.2f}{spread}"


def gain_title(table: pd.DataFrame) -> str:
    """Return what to call the gains of a summary: over scratch, unless there is a table over something else."""
    over = [kind for kind in BASELINES if (table["baseline"] == kind).any()] or [SCRATCH]
    return f"gain over {' or '.join(over)}"


def gain_text(row: pd.Series) -> str:
    """Return "+0.80 [+0.61, +0.99] paired": the gain and its interval, if there is one."""
    if row["kind"] in (SCRATCH, row["baseline"]) or not row["n"]:
        return ""
    if pd.isna(row["gain"]):
        return f"{MISSING} (no scratch run)"
    interval = f" [{row['gain_low']:+.2f}, {row['gain_high']:+.2f}] {row['interval']}" if row["interval"] else ""
    if isinstance(row["each"], tuple) and row["each"]:
        interval = f" (of {' and '.join(f'{gain:+.2f}' for gain in row['each'])})"
    return f"{row['gain']:+.2f}{interval}"


def interval_note(table: pd.DataFrame) -> str:
    """Return sentences on the spreads and intervals that a summary has, or ''."""
    intervals = table["interval"].fillna("")
    same = table[(table["n"] > 1) & (table["std"] < SHOWN_AS_ZERO)]
    sentences = {
        f"In brackets the {CONFIDENCE:.0%} confidence interval of the gain over seeds (Student's t): paired where both "
        "sides ran the same seeds, else Welch's.": intervals.any(),
        "One that is cut would go on beyond what the metric can be.": intervals.str.endswith(CUT).any(),
        "Of two runs, both gains are shown: they make no interval.": table["each"].map(bool).where(
            table["each"].notna(), other=False).any(),
        f"± 0.00: the seeds' runs came to the same number, which does not say that others would{_steps(same)}.":
            len(same) > 0,
    }
    return " ".join(sentence for sentence, holds in sentences.items() if holds)


def _steps(rows: pd.DataFrame) -> str:
    """Say how coarse accuracies over the images of some rows are."""
    counts = sorted({int(count) for count in rows.loc[rows["unit"] == "%", "val_images"].dropna()})
    if not counts:
        return ""
    return f"; over {counts[0]:,} images to evaluate on, accuracies come in steps of {100 / counts[0]:.2g} %"


def to_markdown(table: pd.DataFrame) -> str:
    """Return a readable table as Markdown, with a warning above it if smoke numbers are in it."""
    above = f"{caution_of(table)}\n\n" if caution_of(table) else ""
    below = f"\n{interval_note(table)}\n" if interval_note(table) else ""
    return f"{above}{_cells(readable(table), _markdown).to_markdown(index=False, disable_numparse=True)}\n{below}"


def to_csv(table: pd.DataFrame) -> str:
    """Return the unrounded summary as CSV; what is missing is empty, published numbers have a column of their own."""
    published = table.apply(lambda row: as_text(published_beside(row)), axis=1)
    told = table.drop(columns=["folders", "published_as"]).assign(published=published)
    return _cells(told, _no_formula).to_csv(index=False)


def to_latex(table: pd.DataFrame) -> str:
    """Return a table for LaTeX's booktabs for each task, protocol and origin."""
    parts = []
    for (task, protocol, origin), rows in table.groupby(["task", "protocol", "origin"], sort=False):
        text = readable(rows).drop(columns=["task", "protocol", "origin"])
        style = text.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
        latex = style.to_latex(
            hrules=True, column_format="".join("r" if name == "n" else "l" for name in text), environment="table",
            position_float="centering", label="tab:" + re.sub(r"[^\w.:/-]", "-", f"{task}-{protocol}-{origin}"),
            caption=f"{task}, protocol {protocol}, origin {origin}. {interval_note(rows)}".strip().translate(LATEX),
        )
        parts.append(latex)
    joined = "\n".join(parts)
    for sign, command in LATEX_SIGNS.items():
        joined = joined.replace(sign, command)
    return f"% needs \\usepackage{{booktabs}}\n{joined}"


def _cells(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """Return a table with its texts changed."""
    return table.map(lambda value: change(value) if isinstance(value, str) else value)


def _markdown(text: str) -> str:
    return text.translate(MARKDOWN).replace("](", r"]\(")


def _no_formula(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text
