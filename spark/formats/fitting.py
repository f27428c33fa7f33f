"""An encoder's weights fitted to the network that they are for: of another grid or window, or a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor, nn

BIASES = ".relative_position_bias_table"


def fitted(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return a state whose tables of positions have the network's shapes; what does not fit otherwise stays as it is.

    A table of positions is interpolated to the network's grid (bicubic), one of relative biases to its windows. Where
    the network classifies tokens' mean behind a norm of its own (`fc_norm`), the encoder's last norm has no place and
    is left out.

    Args:
        state: by timm's names, or those of the network's class.
        network: a timm model.
    """
    own = network.state_dict()
    found = dict(state)
    if "fc_norm.weight" in own and "norm.weight" not in own:
        found = {name: tensor for name, tensor in found.items() if name.partition(".")[0] != "norm"}
    for name, tensor in found.items():
        if name in own and tensor.shape != own[name].shape:
            if name == "pos_embed":
                found[name] = _positions(tensor, own[name], network)
            elif name.endswith(BIASES):
                window = network.get_submodule(name.removesuffix(BIASES)).window_size
                found[name] = resize_rel_pos_bias_table(tensor, window, own[name].shape)
    return found


def _positions(table_1NC: Tensor, own_1NC: Tensor, network: Any) -> Tensor:
    """Interpolate a square table to the network's grid, if there is one."""
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if grid is None or table_1NC.ndim != 3 or table_1NC.shape[2] != own_1NC.shape[2]:
        return table_1NC
    prefix = own_1NC.shape[1] - grid[0] * grid[1]
    return resample_abs_pos_embed(table_1NC, list(grid), num_prefix_tokens=prefix)
