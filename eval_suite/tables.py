"""Records to tables: a row for every (task, model, initialisation, protocol), never a mixture of them.

Runs with different protocols, origins, checkpoints or main metrics never share a row, and a gain is only
computed over scratch runs of the same task, model, protocol and origin.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from eval_suite.schema import FILE_NAME, ResultRecord, load_record
from spark.errors import UserError

MISSING = "–"
GROUP = ["task", "version", "protocol", "origin", "metric", "unit", "higher_is_better", "model"]
ROW = [*GROUP, "kind", "pretrained_epochs", "checkpoint"]


def collect(runs: Path) -> tuple[dict[Path, ResultRecord], list[str]]:
    """Return the records under `runs` by the folder of their run, and why others could not be read.

    Raises:
        UserError: there is no folder, or no readable record in it.
    """
    if not runs.is_dir():
        raise UserError(f"folder '{runs}' does not exist; pass the folder that holds your runs")
    records, unreadable = {}, []
    for path in sorted(runs.rglob(FILE_NAME)):
        try:
            records[path.parent] = load_record(path)
        except UserError as error:
            unreadable.append(str(error))
    if not records:
        reason = f"; unreadable: {'; '.join(unreadable)}" if unreadable else "; run spark-eval finetune first"
        raise UserError(f"no {FILE_NAME} under '{runs}'{reason}")
    return records, unreadable


def summarise(records: Sequence[ResultRecord]) -> pd.DataFrame:
    """Return mean, std (of a sample, absent for one run), n and gain over scratch for each row.

    The gain is positive when the initialisation helps, whichever direction the metric has; it is absent where
    no scratch run shares the protocol.
    """
    runs = pd.DataFrame([_flat(record) for record in records])
    # A copied folder is not a second measurement.
    runs = runs.drop_duplicates([*ROW, "seed", "value", "wall_seconds"])
    table = (
        runs.groupby(ROW, dropna=False, sort=False)["value"].agg(["mean", "std", "count"])
        .rename(columns={"count": "n"}).reset_index()
    )
    scratch = table[table["kind"] == "scratch"][[*GROUP, "mean"]].rename(columns={"mean": "scratch"})
    table = table.merge(scratch, on=GROUP, how="left")
    direction = table["higher_is_better"].map({True: 1.0, False: -1.0})
    table["gain"] = ((table["mean"] - table.pop("scratch")) * direction).where(table["kind"] != "scratch")
    table.insert(len(GROUP), "init", _init_labels(table))
    table["_scratch_first"] = table["kind"] != "scratch"
    order = ["task", "protocol", "model", "_scratch_first", "pretrained_epochs", "init"]
    return table.sort_values(order, ignore_index=True).drop(columns="_scratch_first")


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Return a summary as text for people, with what is missing marked."""
    def cell(row: pd.Series) -> str:
        spread = f" ± {row['std']:.2f}" if pd.notna(row["std"]) else ""
        return f"{row['mean']:.2f}{spread}"

    def gain(row: pd.Series) -> str:
        if row["kind"] == "scratch":
            return ""
        return f"{row['gain']:+.2f}" if pd.notna(row["gain"]) else f"{MISSING} (no scratch run)"

    return pd.DataFrame({
        "task": table["task"], "model": table["model"], "init": table["init"],
        "metric": table["metric"] + " [" + table["unit"] + "]",
        "mean ± std": table.apply(cell, axis=1), "n": table["n"],
        "gain over scratch": table.apply(gain, axis=1),
        "protocol": table["protocol"], "origin": table["origin"],
    })


def to_markdown(table: pd.DataFrame) -> str:
    """Return a readable table as Markdown, with a warning above it if smoke numbers are in it."""
    caution = f"{caution_of(table)}\n\n" if caution_of(table) else ""
    return caution + readable(table).to_markdown(index=False, disable_numparse=True) + "\n"


def to_csv(table: pd.DataFrame) -> str:
    """Return the unrounded summary as CSV; what is missing is empty."""
    return table.to_csv(index=False)


def caution_of(table: pd.DataFrame) -> str:
    """Return what must be said beside these numbers, or ''."""
    if not (table["origin"] == "smoke").any():
        return ""
    return (
        "Rows of origin 'smoke' are smoke numbers, not paper numbers: tiny data, short schedules. "
        "They show that the whole path works, and must not be quoted or compared with published results."
    )


def _flat(record: ResultRecord) -> dict[str, object]:
    metric = record.metrics[record.main_metric]
    return {
        "task": record.task, "version": record.task_version, "protocol": record.protocol_id,
        "origin": record.origin, "metric": record.main_metric, "unit": metric.unit,
        "higher_is_better": metric.higher_is_better, "model": record.model, "kind": record.init.kind,
        "pretrained_epochs": record.init.pretrained_epochs,
        "checkpoint": (record.init.checkpoint_sha256 or "")[:8],
        "seed": record.seed, "value": metric.value, "wall_seconds": record.wall_seconds,
    }


def _init_labels(table: pd.DataFrame) -> pd.Series:
    """Return 'spark, 30 epochs', with the checkpoint's hash where that alone does not tell rows apart."""
    epochs = table["pretrained_epochs"].map(lambda count: "" if pd.isna(count) else f", {count:g} epochs")
    labels = table["kind"] + epochs
    several = table.assign(label=labels).groupby([*GROUP, "label"])["label"].transform("size") > 1
    return labels.where(~several, labels + " (" + table["checkpoint"] + ")")
