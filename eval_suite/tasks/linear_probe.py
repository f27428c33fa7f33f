"""Train linear classifiers on a frozen encoder's features and measure their accuracy: `spark-eval probe RECIPE`.

All learning rates of the grid, and both choices of features, are trained in one pass. The main number is the accuracy
of the head that is best on training images held out for that choice; the best head on the validation images
themselves (an optimistic number) and the best of each choice of features are reported apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval_suite.classification.augment import train_transform, val_transform
from eval_suite.classification.backbone_cost import backbone_cost
from eval_suite.classification.data import Data, LabeledImages
from eval_suite.classification.finetune_config import AugmentConfig
from eval_suite.classification.frozen import FrozenEncoder, some_images
from eval_suite.classification.initialize import Start, build_encoder, start_of
from eval_suite.classification.labeled import LabeledSource, identity_of, open_splits
from eval_suite.classification.probe_config import ProbeConfig
from eval_suite.classification.probing import Probing, choose
from eval_suite.classification.run import in_processes, measured, prepared
from eval_suite.task import Cost, Prepared, Task, Work
from eval_suite.training import Schedule, Training
from spark.config.identity import without
from spark.config.recipe import load_recipe
from spark.errors import UserError
from spark.runs.record import Initialization, Metric, ResultRecord
from spark.utils.distributed import Ranks
from spark.utils.files import write_json
from spark.utils.signals import StopRequest

TASK, TASK_VERSION = "linear_probe", 2  # 1 took recalibrated statistics over batches of a class each
HEADS = "heads.json"  # accuracies of all heads
HELD_OUT_SEED = 0  # of the images that are held out: the same for all runs


class LinearProbe(Task):
    """`spark-eval probe`."""

    name, version = TASK, TASK_VERSION
    purpose = "linear classifiers on frozen features, a grid of learning rates in one pass; top-1 and top-5 accuracy"
    distributed = True

    def prepare(self, work: Work) -> Prepared:
        """Read the recipe; the protocol, the model and the seed decide."""
        config = _read(work)
        return prepared(config, config.model.name, config.train.epochs)

    def command(self, work: Work) -> list[str]:
        """Return `spark-eval probe RECIPE key=value …`."""
        return ["spark-eval", "probe", work.recipe, *work.overrides()]

    def cost(self, work: Work, images: int | None) -> Cost | None:
        """Count the forward pass of the encoder; heads and evaluations are left out."""
        config = _read(work)
        backbone = backbone_cost(config.model.name, config.data.input_size, config.model.options)
        if images is None or backbone is None:
            return None
        heads = 2 * len(config.train.base_lrs)
        return Cost(
            backbone.flops * images * config.train.epochs, heads * 2 * 8 * 2048 * 1000,
            "a probe's forward pass is counted, its heads' storage that of 1000 classes",
        )


@dataclass(frozen=True)
class _Splits:
    data: Data
    held_out: LabeledImages
    train: LabeledSource


def run(recipe: str, overrides: Sequence[str]) -> Path | None:
    """Train, evaluate and return the path of `result.json`; None in all processes but the first.

    Raises:
        UserError: the recipe, the data or the initialisation is unsound.
        PostponedError: a signal asked the run to stop, and it was saved.
    """
    config = load_recipe(ProbeConfig, recipe, overrides)
    return in_processes(config, lambda ranks, request: _probe(config, ranks, request))


def _probe(config: ProbeConfig, ranks: Ranks, request: StopRequest) -> ResultRecord | None:
    splits = ranks.on_all(lambda: _open(config))
    start = ranks.on_all(lambda: start_of(config.init, config.model.name, config.model.options, config.data))
    learner = ranks.on_all(lambda: _learner(config, splits, start, ranks))
    train = config.train
    schedule = Schedule(
        train.batch / 256, train.epochs, train.warmup_epochs, train.batch, train.evaluate_epochs,
        train.checkpoint_minutes,
    )
    origin = {"data": splits.data.identity, "init": dataclasses.asdict(start.record)}
    training = ranks.on_all(lambda: Training("probe", config, schedule, learner, splits.data, ranks, origin))
    if not training.complete(request, yields=(HEADS,)):
        return None
    if ranks.is_main:
        write_json(Path(config.out) / HEADS, without(training.results, ("top1",)))
    return _record(config, splits.data, learner, start.record, training, ranks)


def _open(config: ProbeConfig) -> _Splits:
    """Open the images, and hold some of those to train on out.

    Raises:
        UserError: a split is missing, the classes differ, or a class has one image only.
    """
    whole, val = open_splits(config.data.train_root, config.data.val_root)
    there = whole.counts()
    if there.min() < 2:
        raise UserError(f"class '{whole.classes[int(there.argmin())]}' has one image only; a probe needs one to train "
                        "on and one to choose the learning rate by")
    counts = [max(1, round(count * config.train.held_out)) for count in there.tolist()]
    held_out = whole.taking(counts, HELD_OUT_SEED)
    train = whole.without(held_out)
    augment = AugmentConfig(min_crop=config.train.min_crop, policy="none", random_erasing=0.0)
    size, plain = config.data.input_size, val_transform(config.data)
    data = Data(
        LabeledImages(train, train_transform(config.data, augment), size, substitute=True),
        LabeledImages(val, plain, size, substitute=False), len(val.classes), identity_of(whole, train, val),
    )
    return _Splits(data, LabeledImages(held_out, plain, size, substitute=False), train)


def _learner(config: ProbeConfig, splits: _Splits, start: Start, ranks: Ranks) -> Probing:
    encoder = build_encoder(config.model.name, config.model.options, start, config.seed)
    frozen = FrozenEncoder(encoder, ranks.device, config.precision)
    batch, workers = ranks.local_batch(config.train.batch), config.data.workers
    if config.model.recalibrate:
        frozen.recalibrate(some_images(splits.train, config.model.recalibrate, config.data), workers)
    statistics = frozen.statistics(some_images(splits.train, config.train.statistics, config.data), batch, workers)
    return Probing(config, splits.data, splits.held_out, frozen, statistics, ranks)


def _record(
    config: ProbeConfig, data: Data, learner: Probing, init: Initialization, training: Training, ranks: Ranks
) -> ResultRecord:
    """Return the result of the finished run."""
    results = training.results
    chosen = choose(learner.heads, results)
    metrics = {name: results[f"val/{name}/{chosen}"] for name in ("top1", "top5") if f"val/{name}/{chosen}" in results}
    metrics["top1_best"] = max(results[f"val/top1/{head}"] for head in learner.heads)
    for features in dict.fromkeys(head.features for head in learner.heads):
        of_these = choose([head for head in learner.heads if head.features == features], results)
        metrics[f"top1_{features}"] = results[f"val/top1/{of_these}"]
    ranks.log(f"chosen on the images held out: {chosen}, {metrics['top1']:.2f} % top-1")
    return measured(
        config, ranks, task=TASK, task_version=TASK_VERSION, model=config.model.name, init=init,
        metrics={name: Metric(value, "%") for name, value in metrics.items()}, main_metric="top1",
        protocol={**config.protocol(), "dataset": data.identity}, epochs=config.train.epochs,
        wall_seconds=training.seconds, images_per_second=training.images_per_second,
    )


def _read(work: Work) -> ProbeConfig:
    return load_recipe(ProbeConfig, work.recipe, work.overrides())
