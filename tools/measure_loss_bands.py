"""Keep where the loss of a recipe lies, from finished runs of it with different seeds: spark/data/loss_bands.csv.

    for seed in 0 1 2; do spark pretrain RECIPE seed=$seed out=runs/seed$seed data.root=…; done
    python tools/measure_loss_bands.py RECIPE runs/seed0 runs/seed1 runs/seed2

Runs of that recipe on the same images then have the band in their curve.png.
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from spark.checkpoint import load_latest
from spark.config import load_recipe
from spark.errors import UserError, exits_cleanly
from spark.files import write_text
from spark.formats.encoder import INFO, load_encoder
from spark.loss_bands import TABLE, band_key, band_of
from spark.metrics import read_metrics
from spark.pretrain_config import PretrainConfig
from spark.run_folder import CHECKPOINTS, CONFIG


class Run(NamedTuple):
    """What is needed of a finished run."""

    key: str
    seed: int
    code_version: str
    records: list[dict]


@exits_cleanly
def main(arguments: list[str] | None = None) -> int:
    """Replace or add one recipe's band."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="that the runs followed; only its name is kept")
    parser.add_argument("runs", type=Path, nargs="+", help="their folders")
    parser.add_argument("--table", type=Path, default=TABLE, help="default: %(default)s")
    options = parser.parse_args(arguments)
    runs = [_read(folder) for folder in options.runs]
    if len({run.seed for run in runs}) < max(2, len(runs)):
        raise UserError("a band takes two or more runs, each with a seed of its own")
    if len({run.key for run in runs}) > 1:
        raise UserError("the runs differ in more than their seeds; a band takes runs of one recipe on the same images")
    table = _rows(options.recipe.stem, runs)
    if options.table.is_file():
        before = pd.read_csv(options.table)
        table = pd.concat([before[before.key != runs[0].key], table])
    write_text(options.table, table.to_csv(index=False))
    print(f"band of {len(runs)} runs of {options.recipe.stem} written to {options.table}")
    return 0


def _read(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        UserError: it holds no finished run.
    """
    checkpoint = load_latest(folder / CHECKPOINTS)
    if checkpoint is None or not (folder / INFO).is_file():
        raise UserError(f"'{folder}' holds no finished pre-training")
    config = load_recipe(PretrainConfig, folder / CONFIG)
    return Run(
        band_key(config, checkpoint["images"]), config.seed, load_encoder(folder).info.code_version,
        read_metrics(folder),
    )  # fmt: skip


def _rows(recipe: str, runs: list[Run]) -> pd.DataFrame:
    band = band_of([run.records for run in runs])
    versions = ", ".join(sorted({run.code_version for run in runs}))
    seeds = ", ".join(str(seed) for seed in sorted(run.seed for run in runs))
    return pd.DataFrame({
        "recipe": recipe, "key": runs[0].key, "epoch": [round(epoch, 3) for epoch in band.epochs],
        "low": [round(loss, 4) for loss in band.low], "high": [round(loss, 4) for loss in band.high],
        "runs": band.runs, "source": f"seeds {seeds}; code {versions}; {date.today()}",
    })  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
