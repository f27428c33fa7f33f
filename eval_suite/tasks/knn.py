"""Classify by the nearest neighbours in a frozen encoder's features, with nothing trained: `spark-eval knn RECIPE`.

Weighted k-NN by cosine similarity (see `spark.probes.knn`) on the coarsest map, averaged over positions. One process
does it; on a small data set it takes seconds.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from eval_suite.classification.augment import val_transform
from eval_suite.classification.backbone_cost import backbone_cost
from eval_suite.classification.data import UNLABELED, LabeledImages, plain_loader
from eval_suite.classification.frozen import LAST, FrozenEncoder, some_images
from eval_suite.classification.initialize import build_encoder, starting_weights
from eval_suite.classification.labeled import LabeledSource, checksums_of, identity_of, open_splits
from eval_suite.classification.probe_config import KnnConfig
from eval_suite.classification.run import Evaluation, prepared, run_evaluation
from eval_suite.task import Cost, Prepared, Task, Work
from spark.config.choices import SCRATCH
from spark.config.identity import PRECISION, without
from spark.config.recipe import load_recipe, save_resolved, to_yaml
from spark.data.unreadable import UnreadableFiles
from spark.errors import UserError
from spark.probes.knn import knn_predict
from spark.runs.folder import CONFIG, check_run_folder
from spark.runs.record import FILE_NAME as RESULT
from spark.runs.record import Metric, ResultRecord, load_record
from spark.utils.distributed import Ranks
from spark.utils.printable import counted
from spark.utils.provenance import content_hash
from spark.utils.signals import PostponedError, StopRequest

TASK, TASK_VERSION = "knn", 2  # 1 took recalibrated statistics over batches of a class each


class Knn(Task):
    """`spark-eval knn`."""

    name, version = TASK, TASK_VERSION
    purpose = "weighted k-nearest neighbours on frozen features, nothing trained; top-1 accuracy"

    def prepare(self, work: Work) -> Prepared:
        """Read the recipe; the protocol and the model decide, and of random weights the seed."""
        config = _read(work)
        known = prepared(config, config.model.name, 1, work)
        fixed = config.init != SCRATCH
        return dataclasses.replace(known, settings=without(known.settings, ("seed",))) if fixed else known

    def command(self, work: Work) -> list[str]:
        """Return `spark-eval knn RECIPE key=value …`."""
        return ["spark-eval", "knn", work.recipe, *work.overrides()]

    def cost(self, work: Work, images: int | None) -> Cost | None:
        """Count one forward pass over the images to look among."""
        config = _read(work)
        backbone = backbone_cost(config.model.name, config.data.input_size, config.model.options)
        if images is None or backbone is None:
            return None
        return Cost(backbone.flops * images, 0, "k-NN is one forward pass over the training images")


def knn(recipe: str | Path | None, overrides: Sequence[str] = ()) -> Path | None:
    """Classify and return the path of `result.json`.

    Raises:
        UserError: the recipe, the data or the initialisation is unsound, or there are several processes.
        PostponedError: a signal asked it to stop; it begins anew the next time.
    """
    config = load_recipe(KnnConfig, recipe, overrides)
    return run_evaluation(config, lambda evaluation: _classify(config, evaluation))


def _classify(config: KnnConfig, evaluation: Evaluation) -> ResultRecord | None:
    ranks, request = evaluation.ranks, evaluation.request
    if ranks.size > 1:
        raise UserError("k-NN runs in one process: start it without torchrun")
    started, out = time.monotonic(), Path(config.out)
    train, val = open_splits(config.data.train_root, config.data.val_root)
    start = starting_weights(config.init, config.model, config.data)
    encoder = FrozenEncoder(
        build_encoder(config.model, start, config.seed, config.data.input_size), ranks.device,
        evaluation.resolved["precision"],
    )
    evaluation = evaluation.recalibrating(config.model.recalibrate, lambda: encoder.carries_start)
    protocol = evaluation.protocol(identity_of(train, train, val))
    check_run_folder(out, config, config.resume == "never", (RESULT,))
    if (out / RESULT).is_file():
        return _unchanged(out, config, protocol, start.record.checkpoint_sha256)
    save_resolved(config, out / CONFIG)
    ranks.log(to_yaml(config))
    if evaluation.recalibrated:
        encoder.recalibrate(some_images(train, evaluation.recalibrated, config.data), config.data.workers)
    try:
        bank, known = _features(encoder, train, config, ranks, request)
        queries, wanted = _features(encoder, val, config, ranks, request)
    except PostponedError:
        return None
    metrics = {}
    for neighbours in config.neighbours:
        predicted = knn_predict(bank, known, queries, neighbours, config.temperature)
        metrics[f"top1_k{neighbours}"] = Metric(100 * (predicted == wanted).double().mean().item(), "%")
    seconds = time.monotonic() - started
    main = f"top1_k{config.neighbours[0]}"
    ranks.log(f"{counted(len(queries), 'image')} by {len(bank)}: {metrics[main].value:.2f} % top-1 in {seconds:.1f} s")
    return evaluation.record(
        task=TASK, task_version=TASK_VERSION, model=config.model.name, init=start.record,
        metrics=metrics, main_metric=main, protocol=protocol, checksums=checksums_of(train, val), epochs=0,
        wall_seconds=seconds, images_per_second=(len(bank) + len(queries)) / seconds, log=None, checkpoint=None,
    )


def _features(
    encoder: FrozenEncoder, images: LabeledSource, config: KnnConfig, ranks: Ranks, request: StopRequest
) -> tuple[Tensor, Tensor]:
    """Return features [N, D] and classes [N], on the device, of those images that can be read.

    Raises:
        UserError: more than one per cent cannot be read.
        PostponedError: it was asked to stop.
    """
    plain = LabeledImages(images, val_transform(config.data), config.data.input_size, substitute=False)
    unreadable = UnreadableFiles(images, spared=0)
    features, classes = [], []
    for pixels, labels, missing in plain_loader(plain, config.batch, config.data.workers, ranks):
        if request.received:
            raise PostponedError("k-NN was asked to stop")
        unreadable.note(missing)
        readable = labels != UNLABELED
        features.append(encoder(pixels)[LAST][readable.to(ranks.device)])
        classes.append(labels[readable])
    return torch.cat(features), torch.cat(classes).to(ranks.device)


def _unchanged(out: Path, config: KnnConfig, protocol: dict[str, object], weights: str | None) -> ResultRecord:
    """Return the record that is there.

    Raises:
        UserError: it is of another configuration, of other data or of another encoder.
    """
    record = load_record(out / RESULT)
    now = _identity(config.model.name, config.seed, protocol, weights)
    before = _identity(record.model, record.seed, record.protocol, record.init.checkpoint_sha256)
    if now != before:
        raise UserError(f"'{out}' holds the result of another configuration, other data or another encoder; pass "
                        "another out=…, or resume=never to replace it")
    return record


def _identity(model: str, seed: int, protocol: Mapping[str, object], weights: str | None) -> str:
    """Return a hash of what decides a result, whatever precision it was computed in: a finished one is left alone."""
    return content_hash([model, seed, without(protocol, (PRECISION,)), weights])


def _read(work: Work) -> KnnConfig:
    return load_recipe(KnnConfig, work.recipe, work.overrides())
