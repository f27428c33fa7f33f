"""Fine-tune a classifier and measure its accuracy: `spark-eval finetune RECIPE`.

The accuracy of the last weights is the main number: it needs no look at the validation set to choose, and means the
same for schedules of any length. The best epoch's (chosen on the validation set, so optimistic) and the moving
average's (starts from the loaded weights, so it lags in short runs) are reported apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from eval_suite.classification.augment import train_transform, val_transform
from eval_suite.classification.backbone_cost import backbone_cost
from eval_suite.classification.data import Data, LabeledImages
from eval_suite.classification.finetune_config import FinetuneConfig
from eval_suite.classification.finetuning import Finetuning
from eval_suite.classification.initialize import build_classifier, starting_weights
from eval_suite.classification.labeled import LabeledSource, checksums_of, identity_of, limited, open_splits
from eval_suite.classification.run import Evaluation, own_source, prepared, run_evaluation
from eval_suite.task import FORWARD_AND_BACKWARD, Cost, Prepared, Task, Work
from spark.backbones.batch_norms import carries_start
from spark.config.recipe import load_recipe
from spark.runs.record import FILE_NAME as RESULT
from spark.runs.record import Metric, ResultRecord
from spark.training.loop import Training
from spark.utils.distributed import Ranks
from spark.utils.files import write_text
from spark.utils.printable import counted, printable
from spark.utils.provenance import content_hash

TASK, FEW_SHOT = "imagenet_finetune", "few_shot"
VERSIONS = {TASK: 2, FEW_SHOT: 1}
SUBSET = "labelled_images.txt"  # of a run whose labels are limited: which they are
BYTES_PER_PARAMETER = 4 * 4  # of a checkpoint: weights, their average and two moments in float32


class ImagenetFinetune(Task):
    """`spark-eval finetune`."""

    name, version = TASK, VERSIONS[TASK]
    purpose = "fine-tune a classifier on class folders or shards; top-1 and top-5 accuracy"
    distributed = True

    def prepare(self, work: Work) -> Prepared:
        """Read the recipe; the protocol, the model and the seed decide."""
        config = self.read(work)
        return prepared(config, config.model.name, config.train.epochs, work)

    def command(self, work: Work) -> list[str]:
        """Return `spark-eval finetune RECIPE key=value …`."""
        return ["spark-eval", "finetune", work.recipe, *work.overrides()]

    def cost(self, work: Work, images: int | None) -> Cost | None:
        """Count the forward pass of the backbone; evaluation is left out."""
        config = self.read(work)
        backbone = backbone_cost(config.model.name, config.data.input_size, config.model.options)
        if images is None or backbone is None:
            return None
        flops = FORWARD_AND_BACKWARD * backbone.flops * images * config.train.epochs
        return Cost(flops, 2 * BYTES_PER_PARAMETER * backbone.parameters, "a fine-tuning's forward pass is counted, "
                    "the backward pass taken for two of them")

    def read(self, work: Work) -> FinetuneConfig:
        """Read the recipe.

        Raises:
            UserError: it is unsound.
        """
        return load_recipe(FinetuneConfig, work.recipe, work.overrides())


def finetune(recipe: str | Path | None, overrides: Sequence[str] = ()) -> Path | None:
    """Train, evaluate and return the path of `result.json`; None in all processes but the first.

    Raises:
        UserError: the recipe, the data or the initialisation is unsound, or the loss stays without finite value.
        PostponedError: a signal asked the run to stop, and it was saved.
    """
    config = load_recipe(FinetuneConfig, recipe, overrides)
    return run_evaluation(config, lambda evaluation: _finetune(config, evaluation))


def _finetune(config: FinetuneConfig, evaluation: Evaluation) -> ResultRecord | None:
    ranks = evaluation.ranks
    data = ranks.on_all(lambda: open_data(config))
    start = ranks.on_all(lambda: starting_weights(config.init, config.model, config.data))
    model = ranks.on_all(lambda: build_classifier(
        config.model, data.classes, start, config.seed, config.data.input_size
    ))
    steps = config.train.epochs * (len(data.train) // config.train.batch)
    evaluation = evaluation.recalibrating(config.model.recalibrate, lambda: carries_start(model, steps))
    origin = {"data": data.identity, "init": dataclasses.asdict(start.record), **own_source(config.model.name)}
    learner = ranks.on_all(lambda: Finetuning(config, data, model, ranks, origin, evaluation.resolved))
    training = Training("finetune", config, learner.schedule, learner, ranks, (RESULT, SUBSET))
    _describe(config, data, ranks, evaluation.recalibrated)
    if not training.complete(evaluation.request):
        return None
    if config.labels.limited and ranks.is_main:
        names = map(data.train.images.name, range(len(data.train)))
        write_text(Path(config.out) / SUBSET, "".join(f"{printable(name)}\n" for name in names))
    best = {name.replace("_last", "_best"): value for name, value in learner.best.items() if name.endswith("_last")}
    task = FEW_SHOT if config.labels.limited else TASK
    protocol = {**evaluation.protocol(data.identity), **config.protocol(evaluation.recalibrated)}
    return evaluation.record(
        task=task, task_version=VERSIONS[task], model=config.model.name, init=start.record,
        metrics={name: Metric(value, "%") for name, value in {**learner.results, **best}.items()},
        main_metric="top1_last", protocol=protocol, epochs=config.train.epochs,
        checksums=checksums_of(data.train.images, data.val.images),
        wall_seconds=learner.stopwatch.seconds, images_per_second=learner.images_per_second(training.step),
    )


def open_data(config: FinetuneConfig) -> Data:
    """Open both splits, without the images whose labels may not be used.

    Raises:
        UserError: a split is missing, the classes differ, or a class has too few images.
    """
    whole, val = open_splits(config.data.train_root, config.data.val_root)
    train = limited(whole, config.labels, config.seed)
    identity = identity_of(whole, train, val)
    if config.labels.limited:
        identity["subsets"] = _hash_of_subsets(whole, config)
    size = config.data.input_size
    return Data(
        LabeledImages(train, train_transform(config.data, config.augment), size, substitute=True),
        LabeledImages(val, val_transform(config.data), size, substitute=False), len(val.classes), identity,
    )


def _hash_of_subsets(whole: LabeledSource, config: FinetuneConfig) -> str:
    """Identify the subsets of all seeds that are compared: runs of different seeds have one protocol."""
    return content_hash([limited(whole, config.labels, seed).identity for seed in config.labels.seeds])


def _describe(config: FinetuneConfig, data: Data, ranks: Ranks, recalibrated: int) -> None:
    """Say how the steps are computed."""
    local_batch = ranks.local_batch(config.train.batch)
    steps = config.accumulation_steps(local_batch)
    ranks.log(f"{counted(len(data.train), 'image')} of {counted(data.classes, 'class', 'classes')} to train on, "
              f"{len(data.val)} to evaluate on")
    if ranks.size > 1:
        ranks.log(f"{ranks.size} processes of {local_batch} images each; batch norms are synchronised")
    if recalibrated:
        ranks.log(f"before evaluations, batch norms' statistics are taken anew on {min(recalibrated, len(data.train))} "
                  "training images (model.recalibrate)")
    if steps > 1:
        ranks.log(f"accumulating {steps} parts of {local_batch // steps} images, which batch norms see one at a time")
