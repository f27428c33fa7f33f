"""Layer-wise learning-rate decay, for Detectron2's ResNets and for timm backbones."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from detectron2.solver.build import reduce_param_groups
from torch import nn

from d2_projects.modeling.timm_backbone import TimmBackbone
from spark.backbones.layer_groups import BLOCKS_PER_LAYER, timm_layers
from spark.errors import UserError
from spark.utils.weight_decay import decayed

RES4_BLOCKS = {18: 2, 34: 6, 50: 6, 101: 23, 152: 36}


def resnet_layer_decay(depth: int, decay: float) -> Callable[[str], float]:
    """Return the function parameter name -> learning-rate factor for a ResNet of this depth.

    Counted from the input, the layers are the stem, res2, res3, every three blocks of res4, res5; everything
    after the backbone has factor 1, and each layer before that has `decay` times the factor of the next. The
    factors equal SparK's for ResNet-50 and 101. For deeper networks the original counts too few layers, so
    that its last blocks learn faster than the heads; here the count follows the depth, and every factor is
    within [0, 1].

    It is meant for `lr_factor_func` of `detectron2.solver.build.get_default_optimizer_params`.

    Raises:
        ValueError: the depth is not a ResNet's, or the decay is outside [0, 1].
    """
    if depth not in RES4_BLOCKS:
        raise ValueError(f"depth {depth} is not one of {sorted(RES4_BLOCKS)}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay {decay} is outside [0, 1]")
    res5 = 3 + -(-RES4_BLOCKS[depth] // BLOCKS_PER_LAYER)

    def layer_of(name: str) -> int:
        if ".stem." in f".{name}":
            return 0
        found = re.search(r"(?:^|\.)res([2-5])\.(\d+)\.", name)  # a C4's res5 is in its heads
        if found is None:
            return res5 + 1
        stage, block = int(found[1]), int(found[2])
        return {2: 1, 3: 2, 4: 3 + block // BLOCKS_PER_LAYER, 5: res5}[stage]

    return lambda name: decay ** (res5 + 1 - layer_of(name))


def timm_parameter_groups(model: nn.Module, base_lr: float, decay: float = 1.0) -> list[dict[str, Any]]:
    """Return optimizer groups of a detector whose bottom-up network is a `TimmBackbone`.

    What is not in timm's network (FPN, heads) learns at `base_lr`, and each layer before that at `decay` times the
    rate of the next. Weight decay is the optimizer's own; one-dimensional parameters (norms, biases, layer scale)
    get none. It takes the place of `detectron2.solver.build.get_default_optimizer_params`.

    Raises:
        UserError: there is no `TimmBackbone`, or the decay is outside [0, 1].
    """
    prefix = next((name for name, module in model.named_modules() if isinstance(module, TimmBackbone)), None)
    if prefix is None:
        raise UserError("timm_parameter_groups needs a model with a TimmBackbone")
    if not 0 <= decay <= 1:
        raise UserError(f"optimizer.params.decay={decay} is outside [0, 1]")
    layer_of: dict[str, int] = {}
    if decay != 1:
        layers = timm_layers(model.get_submodule(f"{prefix}.net"), remedy="set optimizer.params.decay=1")
        layer_of = {f"{prefix}.net.{name}": layer for name, layer in layers.items()}
    last = max(layer_of.values(), default=-1) + 1
    return reduce_param_groups([
        {
            "params": [parameter],
            "lr": base_lr * decay ** (last - layer_of.get(name, last)),
            **({} if decayed(name, parameter) else {"weight_decay": 0.0}),
        }
        for name, parameter in model.named_parameters() if parameter.requires_grad
    ])
