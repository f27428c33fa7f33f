"""Is it learning? Now and then, labeled images are classified by the encoder's features; training is not touched.

The features are those of the dense encoder in evaluation mode. Its batch norms' running statistics come from sparse
pre-training, over visible positions only. Taking them anew from 2000 dense images was tried on CIFAR-10 (two small
ResNets of 300 steps, and both as they began; 5000 images to fit, 1000 to ask): k-NN changed by -2 to +2 points, which
is chance, the linear probe by -8 to 0. So it is not done.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import DatasetFolder

from spark.config.pretrain import PretrainConfig
from spark.data.center_crop import read_center
from spark.data.pixels import normalize
from spark.data.source import image_suffixes
from spark.errors import UserError
from spark.probes.features import pooled_features
from spark.probes.knn import knn_predict
from spark.probes.linear import linear_predict
from spark.utils.device import autocast
from spark.utils.distributed import Ranks
from spark.utils.workers import keep_workers

SPLIT_OFF = 5  # without a validation folder, every n-th image is used for validation
BATCH = 128  # images at a time, as no gradient is kept
UNREADABLE = -1  # the class of an image that could not be read

Labeled = Dataset[tuple[Tensor, int]]  # uint8 [C, H, W], and the class


class LabeledFolder(DatasetFolder):
    """Center crops of a folder of class folders; an unreadable image is black and has the class `UNREADABLE`.

    Raises:
        UserError: it is not such a folder.
    """

    def __init__(self, root: str, size: tuple[int, int], channels: int) -> None:
        loader = partial(_read, channels=channels, size=size)
        try:
            super().__init__(root, loader, extensions=image_suffixes(channels))
        except (FileNotFoundError, NotADirectoryError) as error:
            reason = str(error).partition(" Supported")[0]
            raise UserError(f"'{root}' is not a folder of class folders with images: {reason}") from None
        self._blank = torch.zeros(channels, *size, dtype=torch.uint8)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image, uint8 [C, H, W], and its class."""
        path, label = self.samples[index]
        try:
            return self.loader(path), label
        except UserError as error:
            warnings.warn(f"left out of the probe: {error}", stacklevel=2)
            return self._blank, UNREADABLE


class Probe:
    """Two classifiers on frozen features, weighted k-NN and a linear one, refitted at each measurement.

    Args:
        config: configuration of the run; `probe.train` names a folder.
        ranks: the processes, which share the images.
        precision: compute precision of the features, "float32" or "bfloat16".

    Raises:
        UserError: a folder has no class folders, or the two have different classes.
    """

    def __init__(self, config: PretrainConfig, ranks: Ranks, precision: str) -> None:
        self._config, self._ranks, self._precision = config, ranks, precision
        height, width = config.data.input_size
        assert config.probe.train is not None
        train = LabeledFolder(config.probe.train, (height, width), config.model.in_chans)
        most, seed = config.probe.images, config.seed
        if config.probe.val is None:
            chosen = _some(range(len(train)), most + most // (SPLIT_OFF - 1), seed)
            self._train: Labeled = Subset(train, [index for n, index in enumerate(chosen) if n % SPLIT_OFF])
            self._val: Labeled = Subset(train, chosen[::SPLIT_OFF])
        else:
            val = LabeledFolder(config.probe.val, (height, width), config.model.in_chans)
            if val.classes != train.classes:
                raise UserError(f"'{config.probe.val}' has other class folders than '{config.probe.train}'")
            self._train = Subset(train, _some(range(len(train)), most, seed))
            self._val = Subset(val, _some(range(len(val)), most, seed))

    def measure(self, encoder: Any) -> dict[str, float]:
        """Return the accuracies "knn" and "linear", in %. Call on all ranks; all but the main process get {}."""
        shares = self._ranks.gather([self._features(encoder, images) for images in (self._train, self._val)])
        if not shares:
            return {}
        (train, labels), (val, wanted) = (_joined(parts) for parts in zip(*shares, strict=True))
        if not len(train) or not len(val):
            return {}  # no image could be read; warnings were logged
        knn = knn_predict(train, labels, val, self._config.probe.neighbours, self._config.probe.temperature)
        return {"knn": _accuracy(knn, wanted), "linear": _accuracy(linear_predict(train, labels, val), wanted)}

    def _features(self, encoder: Any, images: Labeled) -> tuple[Tensor, Tensor]:
        """Return features [N, D] and classes [N] of this process's share of the images."""
        config, ranks = self._config, self._ranks
        share = Subset(images, range(ranks.rank, len(images), ranks.size))  # type: ignore[arg-type]
        loader = keep_workers(DataLoader(share, BATCH, num_workers=config.data.workers))
        features, classes = [torch.empty(0, encoder.channels[-1])], [torch.empty(0, dtype=torch.long)]
        for batch, labels in loader:
            normal = normalize(batch, config.data.mean, config.data.std, ranks.device)
            with autocast(ranks.device, self._precision):
                features.append(pooled_features(encoder, normal).cpu())
            classes.append(labels)
        return torch.cat(features), torch.cat(classes)


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Concatenate the shares of all processes, without unreadable images."""
    features, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return features[labels != UNREADABLE], labels[labels != UNREADABLE]


def _read(path: str, channels: int, size: tuple[int, int]) -> Tensor:
    return read_center(Path(path), channels, *size)


def _some(indices: Sequence[int], most: int, seed: int) -> list[int]:
    """Choose a random subset: the first images of a folder sorted by class would be of one class."""
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed)).tolist()
    return [indices[index] for index in order[:most]]


def _accuracy(predicted: Tensor, labels: Tensor) -> float:
    return 100 * (predicted == labels).double().mean().item()
