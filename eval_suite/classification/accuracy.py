"""Top-1 and top-5 accuracy of one or several classifiers, in one pass over the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eval_suite.classification.data import UNLABELED
from spark.data.unreadable import UnreadableFiles
from spark.utils.distributed import Ranks

if TYPE_CHECKING:
    from torchmetrics.classification import MulticlassAccuracy

TOP = (1, 5)
Batch = tuple[Tensor, Tensor, Tensor]  # images [B, 3, H, W], labels [B], unreadable [B]; see LabeledSample
Classifiers = Callable[[Tensor], Mapping[str, Tensor]]  # images [B, 3, H, W] -> logits [B, classes] by name


@torch.no_grad()
def accuracies(
    classify: Classifiers, batches: Iterable[Batch], classes: int, ranks: Ranks, unreadable: UnreadableFiles,
) -> dict[str, dict[int, float]]:
    """Return, for each classifier, top-k accuracy in percent by k, over the images of all processes.

    Top-5 of five classes or fewer says nothing, and is left out. Images that cannot be read do not count.

    Raises:
        UserError: more than one per cent of the images cannot be read.
    """
    from torchmetrics.classification import MulticlassAccuracy  # takes a second, which plans and dry runs can spare

    metrics: dict[str, dict[int, MulticlassAccuracy]] = {}
    for images, labels_of_any, missing in batches:
        unreadable.note(missing)
        readable = labels_of_any != UNLABELED
        known, labels = (part.to(ranks.device, non_blocking=True) for part in (readable, labels_of_any))
        found = classify(images.to(ranks.device, non_blocking=True))
        for name, logits in found.items():
            if name not in metrics:
                metrics[name] = {
                    k: MulticlassAccuracy(classes, top_k=k, average="micro", validate_args=False).to(ranks.device)
                    for k in TOP if k < classes or k == 1
                }
            for metric in metrics[name].values() if readable.any() else ():
                metric.update(logits.float()[known], labels[known])
    ranks.on_all(lambda: unreadable.judge(ranks.sum(len(unreadable.found))))
    return {
        name: {k: 100 * metric.compute().item() for k, metric in by_k.items()} for name, by_k in metrics.items()
    }
