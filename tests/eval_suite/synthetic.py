"""Records of runs that never happened, to test what is made of records."""

from __future__ import annotations

from eval_suite.schema import Initialisation, Metric, Origin, ResultRecord

SPARK = Initialisation("spark", "encoder.safetensors", "a" * 64, 30)
SCRATCH = Initialisation("scratch")


def record(
    value: float, init: Initialisation = SCRATCH, *, seed: int = 0, epochs: int = 8, origin: Origin = "smoke",
    model: str = "resnet18", metric: Metric | None = None,
) -> ResultRecord:
    """Return a record with one metric; `epochs` decides its protocol."""
    return ResultRecord(
        task="imagenet_finetune", task_version=1, model=model, init=init,
        metrics={"top1_last": metric or Metric(value, "%")}, main_metric="top1_last",
        protocol={"epochs": epochs}, seed=seed, epochs=epochs, origin=origin, code_version="test",
        environment={}, hardware="test", wall_seconds=1.0 + seed,
    )
