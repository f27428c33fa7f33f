"""Records and folders of runs that never happened, to test what is made of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from eval_suite.study.cluster import Resources
from eval_suite.study.graph import Graph, Node
from eval_suite.study.progress import FINISHED_FILE, Finished
from eval_suite.task import Work
from spark.runs.record import Initialization, Metric, Origin, ResultRecord
from spark.utils.files import sha256, write_json

SPARK = Initialization("spark", "encoder.safetensors", "a" * 64, 30)
SCRATCH = Initialization("scratch")
IMAGENET = {"classes": 1000, "train_images": 1_281_167, "val_images": 50_000}
# Parameters in millions do not follow from these names alone: the report builds the networks.
MODELS = ("resnet10t", "resnet14t", "resnet18")


def record(
    value: float, init: Initialization = SCRATCH, *, seed: int = 0, epochs: int = 8, origin: Origin = "smoke",
    model: str = "resnet18", metric: Metric | None = None, protocol: Mapping[str, Any] | None = None,
    hardware: str = "Some CPU, 2 threads",
) -> ResultRecord:
    """Return a record with one metric; `epochs` and `protocol` decide its protocol."""
    return ResultRecord(
        task="imagenet_finetune", task_version=1, model=model, init=init,
        metrics={"top1_last": metric or Metric(value, "%"), "top1_ema": Metric(value / 2, "%")},
        main_metric="top1_last", protocol={"epochs": epochs, **(protocol or {})}, seed=seed, epochs=epochs,
        origin=origin, code_version="0.1.0-abc1234", environment={}, hardware=hardware, wall_seconds=3600.0 + seed,
        images_per_second=1234.5, peak_memory_mib=2048.0,
    )


def write_run(folder: Path, result: ResultRecord) -> None:
    """Write a run's folder: record, log, configuration."""
    folder.mkdir(parents=True)
    result.save(folder)
    value = result.metrics[result.main_metric].value
    write_log(folder, [
        {"step": 12 * epoch, "epoch": epoch, "loss": 2.4 / epoch, "top1_last": value * epoch / result.epochs}
        for epoch in range(1, int(result.epochs) + 1)
    ])
    (folder / "config.yaml").write_text(f"seed: {result.seed}\n")


def write_pretraining(folder: Path, color: str) -> Initialization:
    """Write a pre-training's folder, and return what begins with it."""
    (folder / "reconstructions").mkdir(parents=True)
    for epoch in (9, 10):
        Image.new("RGB", (384, 128), color if epoch == 10 else "black").save(
            folder / f"reconstructions/epoch_{epoch}.png")
    write_log(folder, [{"step": step, "epoch": step / 10, "loss": 1 / step, "lr": 1e-4} for step in range(1, 60)])
    (folder / "config.yaml").write_text("model: {name: resnet}\ntrain: {batch: 64, epochs: 6}\n")
    write_json(folder / "encoder.json", {})
    (folder / "encoder.safetensors").write_text(f"{folder.name} {color}")
    weights = folder / "encoder.safetensors"
    return Initialization("spark", str(weights), sha256(weights), 30, recipe_hash="same")


def write_log(folder: Path, records: list[dict[str, float]]) -> None:
    """Write a run's `metrics.jsonl`."""
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def write_study(root: Path) -> Path:
    """Write three models from scratch and from a pre-training of each seed; the last lacks scratch, and a run."""
    nodes = {}
    for size, model in enumerate(MODELS):
        for seed in (0, 1, 2):
            pretrain = f"pretrain-{model}-s{seed}"
            spark = write_pretraining(root / pretrain, ("red", "green", "blue")[seed])
            nodes[pretrain] = _node(root, pretrain, {"task": "pretrain", "model": model, "seed": seed})
            finished = Finished(pretrain, 0.0, 7200.0 * 4**size + 60 * seed, {}, "", nodes[pretrain].resources.gpus)
            write_json(root / pretrain / FINISHED_FILE, dataclasses.asdict(finished))
            value = 40 + 5 * size + seed / 2
            if model != MODELS[-1]:
                write_run(root / f"scratch-{model}-s{seed}", record(value, model=model, seed=seed))
            name = f"spark-{model}-s{seed}"
            if (model, seed) != (MODELS[-1], 2):
                write_run(root / name, record(value + 3 - seed / 4, spark, model=model, seed=seed))
            else:
                nodes[name] = _node(root, name, {"task": "finetune", "model": model, "init": "spark", "seed": seed})
    Graph(root, nodes).save()
    return root


def _node(root: Path, name: str, labels: Mapping[str, Any]) -> Node:
    return Node(name, name, str(labels["task"]), Work("recipe.yaml", root / name), labels, resources=Resources())
