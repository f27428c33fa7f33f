"""The settings of FCMAE; the defaults are the paper's for ConvNeXt V2-T at 224 pixels, two of its faults mended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from spark.config.pretrain import DataConfig, ModelConfig, OptimizerConfig, PretrainConfig, TrainConfig
from spark.config.values import Count, Part, Pixels, Width, shown
from spark.errors import nearest

IMAGE, BATCH = "image", "batch"
NETWORK, ORIGINAL = "network", "original"


@dataclass
class MaskConfig:
    """What is hidden."""

    ratio: Part = 0.6  # of the L patches, L * (1 - ratio) stay, rounded down
    # Side in pixels, a multiple of the encoder's total stride; null: that stride itself.
    patch_size: Pixels | None = None


@dataclass
class DecoderConfig:
    """The decoder: blocks of ConvNeXt V2 on the last map."""

    width: Width = 512
    depth: Count = 1


@dataclass
class FCMAEConfig(PretrainConfig):
    """An FCMAE pre-training."""

    FREE: ClassVar[frozenset[str]] = PretrainConfig.FREE | {"engine"}
    FREE_TO_CHANGE: ClassVar[frozenset[str]] = PretrainConfig.FREE_TO_CHANGE | FREE

    engine: str = "auto"  # compact: compute what is visible; masked: compute all; auto: the first that can
    # Over what the encoder's global response norms take their norm. image: the visible positions of each image, as the
    # dense network does later. batch: as in the original, those of all images that a device computes at a time; then
    # results depend on how many these are.
    grn: str = IMAGE
    # network: the weights that the network's own class draws (ConvNeXt: a normal distribution of deviation .02, biases
    # 0), and such ones for the decoder. original: a deviation of 1 whatever the fan-in, for nearly all layers.
    initialization: str = NETWORK
    mask: MaskConfig = field(default_factory=MaskConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    model: ModelConfig = field(default_factory=lambda: ModelConfig(name="convnextv2_tiny", drop_path=0.0))
    data: DataConfig = field(default_factory=lambda: DataConfig(min_scale=0.2))
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig("adamw", 1.5e-4, [0.9, 0.95], 0.05, 0.05, 0.0, "mae")
    )
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=800))

    def problems(self) -> list[str]:
        """Say what is wrong with the values, each in a line."""
        choices = {"grn": (self.grn, (IMAGE, BATCH)), "initialization": (self.initialization, (NETWORK, ORIGINAL))}
        return super().problems() + [
            f"{name}={shown(value)} is not one of {', '.join(known)}.{nearest(value, known)}"
            for name, (value, known) in choices.items() if value not in known
        ]
