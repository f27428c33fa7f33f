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
from eval_suite.classification.initialize import build_encoder, starting_weights
from eval_suite.classification.labeled import LabeledSource, checksums_of, identity_of, open_splits
from eval_suite.classification.probe_config import ProbeConfig
from eval_suite.classification.probing import Head, Probing, choose
from eval_suite.classification.run import Evaluation, own_source, prepared, run_evaluation
from eval_suite.task import Cost, Prepared, Task, Work
from spark.config.identity import without
from spark.config.recipe import load_recipe
from spark.errors import UserError
from spark.formats.weights import Weights
from spark.runs.record import FILE_NAME as RESULT
from spark.runs.record import Metric, ResultRecord
from spark.training.loop import Training
from spark.utils.files import write_json

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
        return prepared(config, config.model.name, config.train.epochs, work)

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


def probe(recipe: str | Path | None, overrides: Sequence[str] = ()) -> Path | None:
    """Train, evaluate and return the path of `result.json`; None in all processes but the first.

    Raises:
        UserError: the recipe, the data or the initialisation is unsound.
        PostponedError: a signal asked the run to stop, and it was saved.
    """
    config = load_recipe(ProbeConfig, recipe, overrides)
    return run_evaluation(config, lambda evaluation: _probe(config, evaluation))


def _probe(config: ProbeConfig, evaluation: Evaluation) -> ResultRecord | None:
    ranks = evaluation.ranks
    splits = ranks.on_all(lambda: _open(config))
    start = ranks.on_all(lambda: starting_weights(config.init, config.model, config.data))
    frozen = ranks.on_all(lambda: FrozenEncoder(
        build_encoder(config.model, start, config.seed, config.data.input_size), ranks.device,
        evaluation.resolved["precision"],
    ))
    evaluation = evaluation.recalibrating(config.model.recalibrate, lambda: frozen.carries_start)
    learner = ranks.on_all(lambda: _learner(config, splits, start, frozen, evaluation))
    training = Training("probe", config, learner.schedule, learner, ranks, (RESULT, HEADS))
    if not training.complete(evaluation.request):
        return None
    if ranks.is_main:
        write_json(Path(config.out) / HEADS, without(learner.results, ("top1",)))
    chosen = choose(learner.heads, learner.results)
    metrics = _metrics(learner, chosen)
    ranks.log(f"chosen on the images held out: {chosen}, {metrics['top1']:.2f} % top-1")
    return evaluation.record(
        task=TASK, task_version=TASK_VERSION, model=config.model.name, init=start.record,
        metrics={name: Metric(value, "%") for name, value in metrics.items()}, main_metric="top1",
        protocol=evaluation.protocol(splits.data.identity), epochs=config.train.epochs,
        checksums=checksums_of(splits.train, splits.data.val.images),
        wall_seconds=learner.stopwatch.seconds, images_per_second=learner.images_per_second(training.step),
    )


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


def _learner(
    config: ProbeConfig, splits: _Splits, start: Weights, frozen: FrozenEncoder, evaluation: Evaluation
) -> Probing:
    ranks, resolved = evaluation.ranks, evaluation.resolved
    batch, workers = ranks.local_batch(config.train.batch), config.data.workers
    if evaluation.recalibrated:
        frozen.recalibrate(some_images(splits.train, evaluation.recalibrated, config.data), workers)
    statistics = frozen.statistics(some_images(splits.train, config.train.statistics, config.data), batch, workers)
    origin = {"data": splits.data.identity, "init": dataclasses.asdict(start.record), **own_source(config.model.name)}
    return Probing(config, splits.data, splits.held_out, frozen, statistics, ranks, origin, resolved)


def _metrics(learner: Probing, chosen: Head) -> dict[str, float]:
    """Return the accuracies of the chosen head, of the best one, and of the one chosen for each sort of features."""
    results = learner.results
    metrics = {name: results[f"val/{name}/{chosen}"] for name in ("top1", "top5") if f"val/{name}/{chosen}" in results}
    metrics["top1_best"] = max(results[f"val/top1/{head}"] for head in learner.heads)
    for features in dict.fromkeys(head.features for head in learner.heads):
        of_these = choose([head for head in learner.heads if head.features == features], results)
        metrics[f"top1_{features}"] = results[f"val/top1/{of_these}"]
    return metrics


def _read(work: Work) -> ProbeConfig:
    return load_recipe(ProbeConfig, work.recipe, work.overrides())
