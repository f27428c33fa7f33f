"""The networks of UM-MAE's cases, their generated weights, and what is seen of them on the way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from golden.compare import standard_normal
from golden.um_names import Rules, to_ours
from spark.backbones.plane.um_network import UMNetwork
from spark.backbones.timm_pyramid import TimmPyramid, build_sized
from spark.errors import UserError

SMALL = frozenset({"mask_token", "vis_mask_token", "cls_token", "pos_embed", "relative_position_bias_table"})
OURS = frozenset({"attn_mask", "relative_position_index"})  # fixed tables that our networks make themselves
NAMES = {"vit": "vit_base_patch16_224", "swin": "um_swin_tiny", "pvt": "um_pvt_small"}
OFFICIAL_SWIN = "swin_tiny_patch4_window7_224"
LEFT_OUT = frozenset({"family", "img_size", "patch_size"})


def build(arch: Mapping[str, Any], planes: int, official: bool) -> TimmPyramid:
    """Build a case's network; windows and reductions of a plane are one `planes`th of ours."""
    options = {key: value for key, value in arch.items() if key not in LEFT_OUT and not key.startswith("decoder_")}
    if official:
        del options["posmlp_dim"]
    if "window_size" in options:
        options["window_size"] *= planes
    if "sr_ratios" in options:
        options["sr_ratios"] = [ratio * planes for ratio in options["sr_ratios"]]
    size = (arch["img_size"], arch["img_size"])
    return build_sized(OFFICIAL_SWIN if official else NAMES[arch["family"]], size, 3, 0.0, options)


def generated(name: str, shape: list[int]) -> Tensor:
    """Generate the values of a tensor from its name."""
    n = standard_normal(name, shape).astype(np.float64)
    last = name.rpartition(".")[2]
    if last in SMALL:
        value = 0.02 * n
    elif last == "bias":
        value = 0.1 * n
    else:
        value = 1 + 0.1 * n if len(shape) == 1 else n / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def load(model: nn.Module, case: Mapping[str, Any], rules: Rules) -> None:
    """Give a model the case's weights; what is fixed there, ours must have already.

    Raises:
        UserError: the names do not fit.
    """
    shapes = {entry["name"]: entry["shape"] for entry in case["state"]}
    entries = {name: shape for name, shape in shapes.items() if name.rpartition(".")[2] not in OURS}
    fixed = to_ours({
        name: torch.empty(shape, device="meta") for name, shape in entries.items() if name in case["fixed"]
    }, rules)
    state = to_ours({
        name: generated(name, shape) for name, shape in entries.items() if name not in case["fixed"]
    }, rules)
    own = model.state_dict()
    missing = own.keys() - state.keys() - fixed.keys()
    if missing or not state.keys() <= own.keys():
        raise UserError(f"the case does not fit the model: missing {sorted(missing)[:5]}, "
                        f"unexpected {sorted(state.keys() - own.keys())[:5]}")
    model.load_state_dict(state, strict=False)


@contextmanager
def watched(network: Any) -> Iterator[list[Tensor]]:
    """Collect the first block's input and what each stage's last block yields; of a ViT, each block: [B, N, C]."""
    seen: list[Tensor] = []

    def note(tokens: Tensor) -> None:
        seen.append(tokens if tokens.ndim == 3 else tokens.flatten(1, 2))

    def note_input(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        note(inputs[0])

    def note_output(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        note(output)

    if isinstance(network, UMNetwork):
        last = [network.get_submodule(info["module"]) for info in network.feature_info]
        hooks = [network.blocks[0].register_forward_pre_hook(note_input)]
        hooks += [block.register_forward_hook(note_output) for block in last]
    elif hasattr(network, "layers"):  # timm's Swin: a stage's output is what the next one merges
        hooks = [part.register_forward_pre_hook(note_input)
                 for part in (*(stage.downsample for stage in network.layers), network.norm)]
    else:
        hooks = [network.blocks[0].register_forward_pre_hook(note_input)]
        hooks += [block.register_forward_hook(note_output) for block in network.blocks]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
