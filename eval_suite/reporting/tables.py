"""Records to tables: a row for every (task, model, initialisation, protocol), never a mixture of them.

Runs with different protocols, origins, pre-trainings or main metrics never share a row, and a gain is only computed
over runs of the same task, model, protocol and origin: those from scratch; where there are none, supervised ones, and
that is said. What a protocol lacks is a row, too, without numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from eval_suite.published import measured_as_published
from eval_suite.reporting.gains import Gain, gain_over, most_of
from eval_suite.reporting.run_files import RunFiles
from spark.errors import UserError
from spark.runs.record import FILE_NAME, ResultRecord, load_record

SCRATCH, SUPERVISED = "scratch", "supervised"
BASELINES = (SCRATCH, SUPERVISED)  # what gains are over: the first that there is
SECTION = ["task", "version", "protocol", "origin", "metric", "unit", "higher_is_better", "published_as"]
GROUP = [*SECTION, "model"]
INIT = ["kind", "pretrained_epochs", "pretraining"]
ROW = [*GROUP, *INIT]


@dataclass(frozen=True)
class Collected:
    """What was found in some folders.

    Attributes:
        records: by the folder of their run, in the order of their paths.
        files: all that was found, and why some of it was left out.
    """

    records: Mapping[Path, ResultRecord]
    files: RunFiles

    @property
    def left_out(self) -> Sequence[str]:
        """Why something is not in the report, a line each."""
        return self.files.left_out


def collect(folders: Sequence[Path]) -> Collected:
    """Read all records under some folders.

    Raises:
        UserError: a folder is not there, or there is no readable record in any.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"folder '{folder}' does not exist; pass the folder that holds your runs")
    files = RunFiles(folders)
    found = {path.parent: files.try_to(partial(load_record, path)) for path in files.below(FILE_NAME)}
    records = {folder: record for folder, record in found.items() if record is not None}
    if not records:
        where = ", ".join(f"'{folder}'" for folder in folders)
        reason = f"; unreadable: {'; '.join(files.left_out)}" if files.left_out else "; run spark-eval finetune first"
        raise UserError(f"no {FILE_NAME} under {where}{reason}")
    old = [folder for folder in files.superseded if (folder / FILE_NAME).is_file()]
    if old:
        files.leave_out(f"runs of earlier settings of a study, {len(old)} in all, such as '{old[0]}' "
                        "(to see one, report on its folder)")
    return Collected(records, files)


def flatten(records: Mapping[Path, ResultRecord]) -> pd.DataFrame:
    """Return a row for each run with what `summarize` needs; a copied folder is not a second measurement."""
    runs = pd.DataFrame([_flat(folder, record) for folder, record in records.items()])
    return runs.drop_duplicates([*ROW, "seed", "value", "wall_seconds"], ignore_index=True)


def summarize(runs: pd.DataFrame) -> pd.DataFrame:
    """Return mean, std (of a sample, absent for one run), n and gain over the baseline for each row.

    Args:
        runs: as `flatten` returns them.

    Returns:
        One row for each of ROW, and one without numbers (n is 0) for what a protocol lacks. `gain` and the ends of
        its interval are absent where no run of the `baseline` shares the protocol. `folders` lists the runs.
    """
    rows = [row for key, group in runs.groupby(GROUP, sort=False, dropna=False)
            for row in _rows(dict(zip(GROUP, key, strict=True)), group)]
    table = pd.DataFrame([*rows, *_missing(rows)])
    table.insert(len(GROUP), "init", _init_labels(table))
    table["_place"] = table["kind"].map(lambda kind: (*BASELINES, kind).index(kind))
    order = ["task", "protocol", "origin", "model", "_place", "pretrained_epochs", "init"]
    return table.sort_values(order, ignore_index=True).drop(columns="_place")


def _rows(key: dict[str, object], group: pd.DataFrame) -> Iterator[dict[str, object]]:
    """Yield a row for each initialisation of a model under a protocol."""
    baseline = next((kind for kind in BASELINES if kind in set(group["kind"])), "")
    if len(group.loc[group["kind"] == baseline, INIT].drop_duplicates()) > 1:
        baseline = ""  # several supervised trainings: which one a gain is over, nobody said
    start = group[group["kind"] == baseline].set_index("seed")["value"]
    for init, own in group.groupby(INIT, sort=False, dropna=False):
        values = own.set_index("seed")["value"]
        row = {**key, **dict(zip(INIT, init, strict=True))}
        gain = Gain() if row["kind"] == baseline else gain_over(
            start, values, bool(key["higher_is_better"]), most_of(str(key["unit"])))
        yield {**row, "mean": values.mean(), "std": values.std(), "n": len(values), **dataclasses.asdict(gain),
               "val_images": own["val_images"].iloc[0], "baseline": baseline, "folders": list(own["folder"])}


def _missing(rows: Sequence[dict[str, object]]) -> Iterator[dict[str, object]]:
    """Yield the rows that each protocol lacks: initialisations that another of its models has, and scratch."""
    sections: dict[tuple[object, ...], list[dict[str, object]]] = {}
    for row in rows:
        sections.setdefault(tuple(row[name] for name in SECTION), []).append(row)
    for section in sections.values():
        inits = {_sort_of_init(row): row for row in section}
        models = {row["model"]: row for row in section}
        there = {(row["model"], _sort_of_init(row)) for row in section}
        for model, example in models.items():
            empty = {**{name: example[name] for name in GROUP}, "n": 0, "baseline": "", "folders": []}
            if not any(kind in BASELINES for kind, _ in inits):
                yield {**empty, "kind": SCRATCH, "pretraining": ""}
            for sort, row in inits.items():
                if (model, sort) not in there:
                    yield {**empty, **{name: row[name] for name in INIT}}


def _sort_of_init(row: Mapping[str, object]) -> tuple[object, str]:
    """What one would call the same initialisation of another model; as text, for no NaN equals another."""
    return row["kind"], str(row["pretrained_epochs"])


def caution_of(table: pd.DataFrame) -> str:
    """Return what must be said beside these numbers, or ''."""
    if not (table["origin"] == "smoke").any():
        return ""
    return (
        "Rows of origin 'smoke' are smoke numbers, not paper numbers: tiny data, short schedules. "
        "They show that the whole path works, and must not be quoted or compared with published results."
    )


def _flat(folder: Path, record: ResultRecord) -> dict[str, object]:
    metric, init = record.metrics[record.main_metric], record.init
    return {
        "folder": folder,
        "task": record.task, "version": record.task_version, "protocol": record.protocol_id,
        "origin": record.origin, "metric": record.main_metric, "unit": metric.unit,
        "higher_is_better": metric.higher_is_better, "published_as": measured_as_published(record),
        "model": record.model, "kind": init.kind, "pretrained_epochs": init.pretrained_epochs,
        # Seeds of a pre-training are repetitions; checkpoints of which no more is known are not.
        "pretraining": " ".join(filter(None, (
            init.recipe_hash or (init.checkpoint_sha256 or "")[:8] or init.checkpoint, _statistics(record)))),
        "val_images": _val_images(record),
        "seed": record.seed, "value": metric.value, "wall_seconds": record.wall_seconds,
    }


def _statistics(record: ResultRecord) -> str:
    """Say that batch norms' statistics were taken anew, where that followed from the weights, not from the protocol."""
    asked = record.protocol.get("model")
    done = record.resolved.get("model.recalibrate", "0") != "0"
    return "recalibrated" if done and isinstance(asked, Mapping) and not asked.get("recalibrate") else ""


def _val_images(record: ResultRecord) -> int | None:
    data = record.protocol.get("dataset", record.protocol)  # detection has its data beside the recipe's settings
    count = data.get("val_images") if isinstance(data, Mapping) else None
    return count if isinstance(count, int) and count > 0 else None


def _init_labels(table: pd.DataFrame) -> pd.Series:
    """Return 'spark, 30 epochs', with a hash of the pre-training where that alone does not tell rows apart."""
    epochs = table["pretrained_epochs"].map(lambda count: "" if pd.isna(count) else f", {count:g} epochs")
    labels = table["kind"] + epochs
    several = table.assign(label=labels).groupby([*GROUP, "label"], dropna=False)["label"].transform("size") > 1
    told = table["pretraining"].map(lambda name: f" ({name})" if name else "")
    return labels.where(~several, labels + told)
