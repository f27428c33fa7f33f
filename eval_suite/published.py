"""Published numbers (`reference/*.csv`), to stand beside ours and never among them.

The columns are model, task, init, metric, value, source, table, verified. What follows the `@` of a model is its input
size, if that is not 224, or its schedule on COCO. On ImageNet `supervised` is training from scratch on labels, which
is our `scratch`; on COCO it is a backbone that was trained on ImageNet's labels. "unverified" numbers have not been
compared with their source.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import pandas as pd

from spark.runs.record import ResultRecord, options_of, setting_of

VERIFIED, UNVERIFIED = "verified", "unverified"
IMAGENET, COCO = "imagenet_finetune", "coco_mask_rcnn"
USUAL_SIZE = "224"
SCHEDULE_EPOCHS = 12.2  # of COCO's "1x": 90,000 batches of 16 of 118,287 images


class PublishedNumber(NamedTuple):
    """A line of a file; the value keeps the digits that were published."""

    model: str
    task: str
    init: str
    metric: str
    value: str
    source: str
    table: str
    verified: str


@cache
def published() -> tuple[PublishedNumber, ...]:
    """Return all published numbers."""
    tables = sorted((path for path in files("eval_suite").joinpath("reference").iterdir()
                     if path.name.endswith(".csv")), key=lambda path: path.name)
    return tuple(PublishedNumber(**line) for path in tables
                 for line in csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def measured_as_published(record: ResultRecord) -> str:
    """Return the variant of a benchmark that a run measured: an input size, a schedule; "" if it was other data.

    The number of classes and images tell ImageNet-1k and COCO 2017 from what merely runs through the same task.
    """
    if record.origin == "smoke" or options_of(record):
        return ""
    if record.task == IMAGENET:
        counts = [setting_of(record, "dataset", name) for name in ("classes", "train_images")]
        return str(setting_of(record, "data", "input_size") or USUAL_SIZE) if counts == [1000, 1_281_167] else ""
    if record.task == COCO:
        images = setting_of(record, "train_images")
        whole = setting_of(record, "categories") == 80 and isinstance(images, int) and images > 115_000
        return f"{round(record.epochs / SCHEDULE_EPOCHS)}x" if whole else ""
    return ""


def published_beside(row: pd.Series) -> list[PublishedNumber]:
    """Return the published numbers of what a row of a summary measured; none where the data was other data."""
    variant = row["published_as"]
    if not variant:
        return []
    model = row["model"].partition(".")[0]  # what follows timm's dot names weights
    # A supervised training on ImageNet is from scratch; one that begins with such weights is something else.
    meant = {"scratch": "supervised", "supervised": ""} if row["task"] == IMAGENET else {}
    kind = meant.get(row["kind"], row["kind"])
    metric = "top1" if row["metric"].startswith("top1") else row["metric"]
    wanted = (model if variant == USUAL_SIZE else f"{model}@{variant}", row["task"], kind, metric)
    return [number for number in published() if number[: len(wanted)] == wanted]


def as_text(numbers: Sequence[PublishedNumber]) -> str:
    """Return published numbers with their sources, such as "80.6 [SparK README]"; what is unverified is marked."""
    return "; ".join(
        f"{number.value} [{number.source}{'' if number.verified == VERIFIED else f', {number.verified}'}]"
        for number in numbers
    )
