"""Which layer of a timm network a parameter belongs to, for learning rates that decay from layer to layer."""

from __future__ import annotations

from typing import Any

from timm.models import group_parameters

from spark.errors import UserError

BLOCKS_PER_LAYER = 3  # of the third of four stages, the long one
STAGES = 4


def timm_layers(
    network: Any, head: tuple[str, ...] = (), remedy: str = "train all layers at one rate"
) -> dict[str, int]:
    """Return the layer of each parameter of a timm network, counted from its stem, layer 0.

    A layer is a stage of the network, as timm groups it; of four stages, the third counts one layer for every three
    blocks. So it is in the detection recipes of ConvNeXt (6 layers for T, 12 for S and B), and in SparK's for ResNet.

    Args:
        network: with or without a classifier.
        head: how the names of the classifier's parameters begin; they are the layer after all others.
        remedy: for the message, where there are no layers.

    Raises:
        UserError: timm does not say which layers the network has.
    """
    _check_grouped(network, remedy)
    stages, blocks = (
        {
            name: group
            for name, group in group_parameters(network, network.group_matcher(coarse=coarse), reverse=True).items()
            if not name.startswith(head)
        }
        for coarse in (True, False)
    )
    layers = stages if max(stages.values()) != STAGES else _third_stage_split(stages, blocks)
    after = max(layers.values()) + 1
    return {name: layers.get(name, after) for name, _ in network.named_parameters()}


def block_layers(network: Any, remedy: str = "train all layers at one rate") -> dict[str, int]:
    """Return the layer of each parameter where every block is one: 0 for the stem, the last for what follows.

    So it is in the fine-tuning recipes of MAE and its relatives.

    Args:
        network: of timm, with or without a classifier.
        remedy: for the message, where there are no layers.

    Raises:
        UserError: timm does not say which layers the network has.
    """
    _check_grouped(network, remedy)
    layers: dict[str, int] = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    return {name: layers[name] for name, _ in network.named_parameters()}


def _check_grouped(network: Any, remedy: str) -> None:
    if not hasattr(network, "group_matcher"):
        raise UserError(f"nothing says which layers {type(network).__name__} has; {remedy}")


def _third_stage_split(stages: dict[str, int], blocks: dict[str, int]) -> dict[str, int]:
    """Let every few blocks of the third stage be a layer of their own."""
    first = min(block for name, block in blocks.items() if stages[name] == STAGES - 1)
    within = {name: (blocks[name] - first) // BLOCKS_PER_LAYER for name in stages if stages[name] == STAGES - 1}
    last = STAGES + max(within.values())
    return {name: last if stage == STAGES else stage + within.get(name, 0) for name, stage in stages.items()}
