"""The ways to compute FCMAE's training step that benchmarks compare."""

from __future__ import annotations

from spark.methods.fcmae.model import FCMAE
from spark.methods.variant import Variant, with_engine


def variants(precision: str, compile: bool) -> list[Variant]:
    """Return the dense masked scheme, which the original's sparse library stands for on other devices, and ours."""
    return [
        Variant("masked", with_engine(FCMAE.from_config, "masked"), precision=precision, baseline=True),
        Variant("compact", with_engine(FCMAE.from_config, "compact"), precision=precision, compile=compile),
    ]
