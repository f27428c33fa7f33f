"""The settings of SparK; the defaults are the paper's for ResNet-50 at 224 pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from spark.config.pretrain import PretrainConfig


@dataclass
class MaskConfig:
    """What is hidden."""

    ratio: float = 0.6
    patch_size: int | None = None  # side in pixels, a multiple of the encoder's total stride; null: that stride itself


@dataclass
class DecoderConfig:
    """The decoder."""

    width: int = 768


@dataclass
class SparKConfig(PretrainConfig):
    """A SparK pre-training."""

    FREE: ClassVar[frozenset[str]] = PretrainConfig.FREE | {"engine"}
    FREE_TO_CHANGE: ClassVar[frozenset[str]] = PretrainConfig.FREE_TO_CHANGE | FREE

    engine: str = "auto"  # compact: compute what is visible; masked: compute all; auto: the first that can
    mask: MaskConfig = field(default_factory=MaskConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def problems(self) -> list[str]:
        """Say what is wrong with the values, each in a line."""
        found = super().problems()
        positive = {
            "decoder.width": self.decoder.width,
            "mask.patch_size": 1 if self.mask.patch_size is None else self.mask.patch_size,
        }
        found += [f"{name}={value} must be positive" for name, value in positive.items() if value <= 0]
        if not 0 < self.mask.ratio < 1:
            found.append(f"mask.ratio={self.mask.ratio} must lie between 0 and 1")
        return found
