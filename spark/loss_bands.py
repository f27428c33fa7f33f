"""Where the loss of a recipe lies: measured runs, kept in `spark/data/loss_bands.csv`.

A band is that of runs with one configuration, on one set of images, which differ in the seed alone: at each epoch, the
lowest and the highest of their smoothed losses. It holds for nothing else; who has no band gets none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spark.pretrain_config import PretrainConfig
from spark.provenance import content_hash
from spark.run_folder import among, flat

TABLE = Path(__file__).with_name("data") / "loss_bands.csv"
POINTS = 40  # of a band
WINDOW = 0.04  # of a run's records: what smoothing averages over
# What decides where a loss goes, beside the images and the seed: settings, or groups of them.
DECISIVE = frozenset({
    "model", "mask", "decoder", "optimizer", "init", "data.input_size", "data.min_scale", "data.mean", "data.std",
    "train.epochs", "train.warmup_epochs", "train.batch",
})  # fmt: skip


@dataclass(frozen=True)
class Band:
    """The smoothed losses of several runs: at each of `epochs` (falling nowhere), from `low` to `high`."""

    epochs: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    runs: int


def band_key(config: PretrainConfig, images: str) -> str:
    """Return what two runs share if their losses may be compared.

    Args:
        config: of a run.
        images: their identity (see `ImagePool.identity`).
    """
    default = flat(dataclasses.asdict(PretrainConfig()))
    # Settings at their default are left out: one that a later version adds makes no other key.
    decisive = {
        name: value
        for name, value in flat(dataclasses.asdict(config)).items()
        if among(name, DECISIVE) and value != default.get(name)
    }
    return content_hash({"images": images, **decisive})


def find_band(config: PretrainConfig, images: str, table: Path = TABLE) -> Band | None:
    """Return the band of runs like this one, if there is one."""
    if not table.is_file():
        return None
    rows = pd.read_csv(table)
    rows = rows[rows.key == band_key(config, images)]
    if rows.empty:
        return None
    return Band(rows.epoch.tolist(), rows.low.tolist(), rows.high.tolist(), int(rows.runs.iloc[0]))


def band_of(logs: Sequence[Sequence[Mapping[str, Any]]]) -> Band:
    """Return the band of runs, given the records of each one."""
    courses = [pd.DataFrame(log).dropna(subset="loss") for log in logs]
    first, last = max(course.epoch.iloc[0] for course in courses), min(course.epoch.iloc[-1] for course in courses)
    epochs = np.linspace(first, last, POINTS)
    losses = np.stack([np.interp(epochs, course.epoch, smoothed(course.loss)) for course in courses])
    return Band(epochs.tolist(), losses.min(0).tolist(), losses.max(0).tolist(), len(logs))


def smoothed(losses: pd.Series) -> pd.Series:
    """Return the running mean of a run's losses, over a few per cent of them around each."""
    return losses.rolling(max(1, round(WINDOW * len(losses))), center=True, min_periods=1).mean()

