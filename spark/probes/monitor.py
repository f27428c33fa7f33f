"""Monitoring between epochs, besides the loss, without affecting the training."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

from torch import Tensor

from spark.config.pretrain import PretrainConfig
from spark.data.dataset import ImagePool
from spark.data.pixels import normalize
from spark.probes.collapse import spread_of
from spark.probes.features import pooled_features
from spark.probes.probe import Probe
from spark.utils.device import autocast
from spark.utils.distributed import Ranks

COLLAPSE_IMAGES = 64
COLLAPSE_COST = 0.01  # maximum extra images to process, as a fraction of the training images


class LearningMonitor:
    """Probes the encoder if the configuration asks for it, and always checks it for collapse.

    Args:
        config: configuration of the run.
        ranks: the processes.
        pool: the training images.
        epoch_images: images per epoch.
        precision: compute precision of the features, "float32" or "bfloat16".
    """

    def __init__(
        self, config: PretrainConfig, ranks: Ranks, pool: ImagePool, epoch_images: int, precision: str
    ) -> None:
        self._config, self._ranks, self._pool, self._precision = config, ranks, pool, precision
        self._probe = Probe(config, ranks, precision) if config.probe.train else None
        self._images = min(COLLAPSE_IMAGES, len(pool))
        self._collapse_epochs = math.ceil(self._images / (COLLAPSE_COST * epoch_images))
        self._collapsed = False
        self.status = ""  # result of the last probe, as text

    def look(self, encoder: Any, epochs_done: int, last: bool) -> dict[str, float]:
        """Evaluate after `epochs_done` epochs; return values by name. Call on all ranks; the main process gets them.

        Args:
            encoder: the sparse encoder; it is left as it was.
            epochs_done: 0 before the first step.
            last: whether training ends here.
        """
        found: dict[str, float] = {}
        if self._probe and (last or epochs_done % self._config.probe.epochs == 0):
            found = self._probe.measure(encoder)
            self.status = "".join(f"  {name} {accuracy:.1f} %" for name, accuracy in found.items())
        enough = self._images > 1 and epochs_done > 0
        if self._ranks.is_main and enough and (last or epochs_done % self._collapse_epochs == 0):
            found |= self._spread(encoder)
        return found

    @cached_property
    def _shown(self) -> Tensor:
        """The images for collapse detection, loaded once: reading them again would cost more than the check."""
        return self._pool.some(self._images)

    def _spread(self, encoder: Any) -> dict[str, float]:
        """Measure how much the features of some images differ, and warn when they collapse."""
        data, device = self._config.data, self._ranks.device
        images = normalize(self._shown, data.mean, data.std, device)
        with autocast(device, self._precision):
            spread = spread_of(pooled_features(encoder, images))
        if not self._collapsed:
            self._ranks.log(spread.warning())
        self._collapsed = spread.collapsed
        return {name: value for name, value in spread._asdict().items() if math.isfinite(value)}
