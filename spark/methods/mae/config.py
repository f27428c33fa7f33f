"""The settings of MAE; the defaults are the paper's for ViT-B at 224 pixels, 800 epochs."""

from __future__ import annotations

from dataclasses import dataclass, field

from spark.config.pretrain import TrainConfig
from spark.config.values import Part
from spark.methods.mae_settings import DecoderConfig, MAESettings


@dataclass
class MaskConfig:
    """What is hidden: patches of the network's own size."""

    ratio: Part = 0.75  # of the L patches, L * (1 - ratio) stay, rounded down


@dataclass
class MAEConfig(MAESettings):
    """An MAE pre-training."""

    mask: MaskConfig = field(default_factory=MaskConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=800))

    def problems(self) -> list[str]:
        """Say what is wrong with the values, each in a line."""
        return super().problems() + self.decoder.problems()
