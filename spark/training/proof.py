"""A user's own network is proved before it is trained, as `spark check` proves it."""

from __future__ import annotations

import torch

from spark.backbones.timm_pyramid import build_pyramid
from spark.config.pretrain import PretrainConfig
from spark.errors import UserError
from spark.methods.registry import method_class


def prove_own(config: PretrainConfig) -> str:
    """Prove what the method makes of the network, at a small size; return the result in a line, "" if nothing is made.

    The random state stays as it is.

    Raises:
        UserError: the network is not converted correctly, or cannot be proved.
    """
    network = config.model
    remedy = f"see `spark check {network.name}`; check=false trains it regardless"
    with torch.random.fork_rng(devices=[]):
        pyramid = build_pyramid(network.name, network.in_chans, network.drop_path, network.options)
        try:
            results = method_class(config.method).verify(pyramid, None)
        except UserError:
            raise
        except Exception as error:  # whatever goes wrong in someone else's code
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"'{network.name}' cannot be proved at a small size ({reason}); {remedy}") from error
    if not results:
        return ""
    worst = max(max(result.errors) for result in results)
    if not all(result.holds for result in results):
        place = next((f", first {result.where}" for result in results if result.where), "")
        raise UserError(
            f"'{network.name}' is not converted correctly (relative error {worst:.1g}{place}): its forward mixes "
            "positions outside of layers, such as by functional pooling, or adds to hidden ones; use nn.Module "
            f"layers; {remedy}"
        )
    return f"{network.name}: proved, relative error {worst:.1g}"
