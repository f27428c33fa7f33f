"""The settings of SparK; the defaults are the paper's for ResNet-50 at 224 pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from spark.config.pretrain import PretrainConfig
from spark.config.values import Part, Pixels, Width


@dataclass
class MaskConfig:
    """What is hidden."""

    ratio: Part = 0.6
    # Side in pixels, a multiple of the encoder's total stride; null: that stride itself.
    patch_size: Pixels | None = None


@dataclass
class DecoderConfig:
    """The decoder."""

    width: Width = 768


@dataclass
class SparKConfig(PretrainConfig):
    """A SparK pre-training."""

    FREE: ClassVar[frozenset[str]] = PretrainConfig.FREE | {"engine"}
    FREE_TO_CHANGE: ClassVar[frozenset[str]] = PretrainConfig.FREE_TO_CHANGE | FREE

    engine: str = "auto"  # compact: compute what is visible; masked: compute all; auto: the first that can
    mask: MaskConfig = field(default_factory=MaskConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
