"""Settings that MAE and its relatives share: AdamW without clipping, and a transformer that decodes patches."""

from __future__ import annotations

from dataclasses import dataclass, field

from spark.config.pretrain import DataConfig, ModelConfig, OptimizerConfig, PretrainConfig
from spark.config.values import Count, Width


@dataclass
class DecoderConfig:
    """The decoder."""

    width: Width = 512
    depth: Count = 8
    heads: Count = 16
    recompute: bool = False  # compute its blocks a second time instead of keeping what they computed

    def problems(self) -> list[str]:
        """Say what is wrong with the values."""
        if self.width % 4 or self.width % self.heads:
            return [f"decoder.width={self.width} must be a multiple of 4 and of decoder.heads={self.heads}"]
        return []


@dataclass
class MAESettings(PretrainConfig):
    """A pre-training as in MAE (arXiv 2111.06377)."""

    normalize_targets: bool = True  # predict patches normalized by their own mean and deviation
    model: ModelConfig = field(default_factory=lambda: ModelConfig(name="vit_base_patch16_224", drop_path=0.0))
    data: DataConfig = field(default_factory=lambda: DataConfig(min_scale=0.2))
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig("adamw", 1.5e-4, [0.9, 0.95], 0.05, 0.05, 0.0, "mae")
    )
