"""Measure which learning rates suit few images: the runs behind `train.preset=auto` (spark/training/preset.py).

    python tools/tune_preset.py OUT --cifar10 DIR --tiny DIR --photos DIR

Protocol, fixed before it ran: SparK by AdamW (and LAMB, for one set) at the preset's batch for so many images, a few
hundred steps, a tenth of them warm-up, seed 0, one thread; the score is the mean loss of the last tenth of the steps,
where drawing each patch's mean has 1. Images are taken at equal distances from the sorted paths. All runs are in the
table. A run that OUT holds already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from spark.errors import exits_cleanly
from spark.methods.registry import read_recipe
from spark.training.run import pretrain
from spark.utils.files import write_text

SMALL = (
    f"model.name={Path(__file__).parent / 'examples/cifar_resnet.py'}:CifarResNet",
    "model.options={width: 16, blocks: 1}", "decoder.width=64",
)  # fmt: skip
RESNET18 = ("model.name=resnet18", "decoder.width=128")


class Group(NamedTuple):
    """Runs that differ in the peak learning rate only; `data` names an argument."""

    data: str
    images: int
    pixels: int
    network: tuple[str, ...]
    batch: int
    steps: int
    optimizer: str
    peaks: tuple[float, ...]


MANY, SOME = (1.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3), (5e-4, 2e-3, 4e-3)
GROUPS = (
    Group("cifar10", 100, 32, SMALL, 16, 200, "adamw", MANY),
    Group("cifar10", 1_000, 32, SMALL, 32, 200, "adamw", MANY),
    Group("cifar10", 10_000, 32, SMALL, 64, 200, "adamw", MANY),
    Group("photos", 151, 64, RESNET18, 16, 270, "adamw", (1.5e-4, 2e-3, 4e-3)),
    Group("cifar10", 100, 32, SMALL, 16, 200, "lamb", (1.5e-4, 2e-3, 8e-3, 3.2e-2)),
    Group("tiny", 1_000, 64, SMALL, 32, 200, "adamw", SOME),
    Group("cifar10", 50_000, 32, SMALL, 256, 150, "adamw", SOME),
)


@exits_cleanly
def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, and write the table after each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT")
    for name in sorted({group.data for group in GROUPS}):
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help="images; without it these runs are left out")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for group in GROUPS:
        root = getattr(options, group.data)
        if root is None:
            continue
        images = subset(root, group.images, options.out)
        row = {name: getattr(group, name) for name in ("data", "images", "pixels", "batch", "steps", "optimizer")}
        for peak in group.peaks:
            rows.append({**row, "peak": f"{peak:g}", "loss": f"{loss(group, peak, images, options.out):.3f}"})
            write_text(options.out / "table.md", pd.DataFrame(rows).to_markdown(index=False) + "\n")
    print((options.out / "table.md").read_text(encoding="utf-8"))
    return 0


def subset(root: Path, count: int, out: Path) -> Path:
    """Write a list of `count` images at equal distances, and return its path."""
    paths = sorted(path for path in root.resolve().rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = [paths[number * len(paths) // count] for number in range(count)]
    out.mkdir(parents=True, exist_ok=True)
    images = out.resolve() / f"{root.name}_{count}.txt"
    write_text(images, "".join(f"{path}\n" for path in chosen))
    return images


def loss(group: Group, peak: float, images: Path, out: Path) -> float:
    """Return the mean loss of the last tenth of a run's steps."""
    run = out / f"{images.stem}_{group.pixels}_{group.optimizer}_{peak:g}"
    epochs = -(-group.steps // (group.images // group.batch))
    total = epochs * (group.images // group.batch)
    pretrain(read_recipe(None, [
        f"out={run}", f"data.root={images}", f"data.input_size=[{group.pixels},{group.pixels}]", "data.workers=0",
        *group.network, "model.drop_path=0", f"optimizer.name={group.optimizer}",
        f"optimizer.base_lr={peak * 256 / group.batch!r}", f"train.batch={group.batch}", f"train.epochs={epochs}",
        f"train.warmup_epochs={epochs // 10}", f"train.picture_epochs={epochs}", f"train.checkpoint_epochs={epochs}",
        "train.precision=float32", "device=cpu", "check=false",
    ]))  # fmt: skip
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    late = [record["loss"] for record in records if "loss" in record and record["step"] > 0.9 * total]
    return sum(late) / len(late)


if __name__ == "__main__":
    sys.exit(main())
