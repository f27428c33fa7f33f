"""Features of a frozen encoder, which never sees a mask here: its maps, averaged over positions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval_suite.classification.augment import val_transform
from eval_suite.classification.config import DataConfig
from eval_suite.classification.data import LabeledImages
from eval_suite.classification.labeled import LabeledSource
from eval_suite.classification.recalibration import batches_for_all, full_batches, recalibrate
from spark.backbones.batch_norms import carries_start
from spark.utils.device import autocast

LAST, LAST_TWO = "last", "last_two"
RECALIBRATION_BATCH = 256  # images
SAMPLE_SEED = 0  # of the images that statistics are taken over: the same for all runs


class FrozenEncoder:
    """An encoder in evaluation mode.

    Args:
        encoder: a pyramid.
        device: to compute on.
        precision: as for `spark.utils.device.autocast`.
    """

    def __init__(self, encoder: Any, device: torch.device, precision: str) -> None:
        self._encoder = encoder.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self._device, self._precision = device, precision
        channels = list(encoder.channels)
        self.widths = {LAST: channels[-1], LAST_TWO: sum(channels[-2:])}

    @property
    def carries_start(self) -> bool:
        """Whether its batch norms' statistics are not its own, but hold what they were before any training."""
        return carries_start(self._encoder)

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return features [B, width] in float32: of the coarsest map, and of the two coarsest side by side."""
        x = images_BCHW.to(self._device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        pooled = [map_.float().mean((2, 3)) for map_ in self._maps(x)[-2:]]
        return {LAST: pooled[-1], LAST_TWO: torch.cat(pooled, 1)}

    def _maps(self, x_BCHW: Tensor) -> Any:
        with autocast(self._device, self._precision):
            return self._encoder(x_BCHW)

    def recalibrate(self, images: LabeledImages, workers: int) -> None:
        """Take the running statistics of all batch norms anew, as plain averages over batches of these images.

        The batches are of one size, which no setting changes: it decides about the statistics. What is left over when
        they are filled is left out.
        """
        recalibrate([self._encoder], self._maps, full_batches(images, RECALIBRATION_BATCH, workers, self._device))

    def statistics(self, images: LabeledImages, batch: int, workers: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return mean and deviation [width] of each sort of features over these images."""
        parts = [self(x) for x in batches_for_all(images, batch, workers, self._device)]
        found = {}
        for name in self.widths:
            deviation, mean = torch.std_mean(torch.cat([part[name] for part in parts]).double(), 0, correction=0)
            found[name] = mean.float(), deviation.float()
        return found


def some_images(images: LabeledSource, count: int, data: DataConfig) -> LabeledImages:
    """Return about so many of the images, evenly over classes, mixed, and as they are evaluated."""
    share = min(count / len(images), 1)
    chosen = images.taking([max(1, round(share * there)) for there in images.counts().tolist()], SAMPLE_SEED)
    mixed = dataclasses.replace(chosen, indices=np.random.default_rng(SAMPLE_SEED).permutation(chosen.indices))
    return LabeledImages(mixed, val_transform(data), data.input_size, substitute=True)
