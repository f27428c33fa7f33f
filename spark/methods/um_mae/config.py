"""The settings of UM-MAE; the defaults are the paper's for Swin-T at 256 pixels, with two faults of its code mended."""

from __future__ import annotations

from dataclasses import dataclass, field

from spark.config.values import Decay, Part, Pixels, shown
from spark.errors import nearest
from spark.methods.mae_settings import DecoderConfig, MAESettings

POSITIONS, SAMPLINGS = ("true", "legacy"), ("independent", "pool")


@dataclass
class MaskConfig:
    """What is dropped, and what of the rest is replaced."""

    ratio: Part = 0.75  # 1 - 1/k**2: one patch of every k x k stays
    patch_size: Pixels = 16
    secondary: Decay = 0.25  # share of the kept patches that a token replaces


@dataclass
class UMMAEConfig(MAESettings):
    """A UM-MAE pre-training."""

    # independent: every cell's choice by itself; pool: as in the original, drawn without replacement from twice as many
    # as are needed.
    sampling: str = "independent"
    # true: each kept patch has its own position; legacy: as in the original, where most kept patches of a pyramid have
    # the position of another one.
    decoder_positions: str = "true"
    mask: MaskConfig = field(default_factory=MaskConfig)
    decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig(depth=2))

    def __post_init__(self) -> None:
        self.decoder_positions = self.decoder_positions.lower()  # YAML's true

    def problems(self) -> list[str]:
        """Say what is wrong with the values, each in a line."""
        choices = {"sampling": (self.sampling, SAMPLINGS), "decoder_positions": (self.decoder_positions, POSITIONS)}
        return super().problems() + self.decoder.problems() + [
            f"{name}={shown(value)} is not one of {', '.join(known)}.{nearest(value, known)}"
            for name, (value, known) in choices.items() if value not in known
        ]
