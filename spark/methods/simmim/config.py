"""The settings of SimMIM; the defaults are the paper's for Swin-B and 100 epochs, but at 224 pixels, not 192."""

from __future__ import annotations

from dataclasses import dataclass, field

from spark.config.pretrain import ModelConfig, OptimizerConfig, PretrainConfig, TrainConfig
from spark.config.values import Part, Pixels, shown
from spark.errors import nearest

OFFICIAL, UM = "official", "um"


@dataclass
class MaskConfig:
    """What is hidden."""

    ratio: Part = 0.6  # of the L patches; made whole as the reading does
    patch_size: Pixels = 32


@dataclass
class SimMIMConfig(PretrainConfig):
    """A SimMIM pre-training."""

    # official: as its authors' code; um: as UM-MAE's repository implements it for comparison (there with patches of 16
    # pixels, a ratio of .75 and MAE's optimizer, which are settings of their own). They differ in how the number of
    # hidden patches is rounded, in the random weights of the last layer, and in whether weight decay applies to the
    # mask token.
    reading: str = OFFICIAL
    normalize_targets: bool = False  # predict patches normalized by their own mean and deviation
    mask: MaskConfig = field(default_factory=MaskConfig)
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig("swin_base_patch4_window7_224", drop_path=0.0)
    )
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig("adamw", 1e-4, [0.9, 0.999], 0.05, 0.05, 5.0, "simmim")
    )
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=100, warmup_epochs=10, batch=2048))

    def problems(self) -> list[str]:
        """Say what is wrong with the values, each in a line."""
        found = super().problems()
        if self.reading not in (OFFICIAL, UM):
            choices = (OFFICIAL, UM)
            found.append(f"reading={shown(self.reading)} is not one of {', '.join(choices)}."
                         f"{nearest(self.reading, choices)}")
        return found
