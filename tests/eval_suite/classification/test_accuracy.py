"""Accuracy counts what could be read, in all processes together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eval_suite.classification.accuracy import accuracies
from eval_suite.classification.data import UNLABELED
from spark.data.unreadable import UnreadableFiles
from spark.errors import UserError
from spark.utils.distributed import Ranks

CPU = torch.device("cpu")


class Images:
    """So many images, none of which can be named badly."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        return f"{index}.png"

    def load(self, index: int) -> None:
        """Read it; that it was unreadable before is not asked."""


class EightRanks(Ranks):
    """One process, as if seven others had found as many unreadable images."""

    def sum(self, count: int) -> int:
        return 8 * count


def first_is_right(images: Tensor) -> dict[str, Tensor]:
    return {"all": torch.eye(3)[torch.zeros(len(images), dtype=torch.long)]}


def batch(labels: list[int], unreadable: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(len(labels), 3, 1, 1), torch.tensor(labels), torch.tensor(unreadable)


@pytest.mark.filterwarnings("ignore:unreadable image")
def test_a_batch_without_one_readable_image_counts_for_nothing() -> None:
    batches = [batch([UNLABELED], [7]), batch([0, 1], [-1, -1]), batch([UNLABELED], [8])]
    found = accuracies(first_is_right, batches, 3, Ranks(CPU), UnreadableFiles(Images(1000)))
    assert found == {"all": {1: 50.0}}


@pytest.mark.filterwarnings("ignore:unreadable image")
def test_unreadable_images_of_all_processes_are_judged_together() -> None:
    batches = [batch([0, UNLABELED, UNLABELED], [-1, 5, 6])]
    unreadable = UnreadableFiles(Images(1000), spared=0)
    assert accuracies(first_is_right, batches, 3, Ranks(CPU), unreadable)
    with pytest.raises(UserError, match=r"16 of 1000 images cannot be read"):
        accuracies(first_is_right, batches, 3, EightRanks(CPU), unreadable)
