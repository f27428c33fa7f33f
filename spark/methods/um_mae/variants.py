"""What benchmarks compare with UM-MAE's training step: SimMIM's, on the same network and with the same attention."""

from __future__ import annotations

import dataclasses

from spark.methods.plane_method import network_of
from spark.methods.simmim.config import UM
from spark.methods.simmim.model import SimMIM
from spark.methods.um_mae.config import UMMAEConfig
from spark.methods.um_mae.model import UMMAE
from spark.methods.variant import Variant


def variants(precision: str, compile: bool) -> list[Variant]:
    """Return SimMIM as UM-MAE's authors read it, UM-MAE, and UM-MAE that keeps less of its decoder."""
    return [
        Variant("simmim", build_simmim, precision=precision, compile=compile, baseline=True, own_weights=True),
        Variant("um_mae", UMMAE.from_config, precision=precision, compile=compile, own_weights=True),
        Variant(
            "um_mae, decoder recomputed", build_recomputing, precision=precision, compile=compile, own_weights=True
        ),
    ]


def build_simmim(config: UMMAEConfig) -> SimMIM:
    """Build SimMIM for the network, the images and the patches of a UM-MAE run."""
    mask = config.mask
    return SimMIM(*network_of(config), mask_ratio=mask.ratio, patch_size=mask.patch_size, reading=UM)


def build_recomputing(config: UMMAEConfig) -> UMMAE:
    """Build a run's model so that its decoder is computed a second time."""
    return UMMAE.from_config(dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, recompute=True)))
