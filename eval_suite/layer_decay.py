"""Layer-wise learning-rate decay: which layer a parameter belongs to, and its optimizer groups.

For timm ResNets and ConvNeXts the layers are those of the SparK fine-tuning recipes
(`tests/golden/finetune_layer_ids.json`); any other timm model uses its own `group_matcher`.
"""

from __future__ import annotations

import re
from typing import Any

from timm.models import group_parameters
from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from torch import nn

from spark.errors import UserError

# Residual blocks per layer, by the number of blocks in the stage; up to three blocks are one layer.
RESNET_BLOCKS_PER_LAYER = {1: 1, 2: 2, 3: 3, 4: 2, 6: 3, 8: 4, 23: 3, 24: 4, 36: 4}
CONVNEXT_BLOCKS_PER_LAYER = 3  # in the third stage; every other stage is one layer


def layer_ids(model: nn.Module) -> dict[str, int]:
    """Return each parameter's layer, from 0 (stem) to the last (classifier).

    Raises:
        UserError: the model has no known grouping.
    """
    # Exact types: a subclass may add layers that these rules do not know.
    if type(model) is ResNet and all(len(stage) in RESNET_BLOCKS_PER_LAYER for stage in _stages(model)):
        return _resnet_layer_ids(model)
    if type(model) is ConvNeXt:
        return _convnext_layer_ids(model)
    if hasattr(model, "group_matcher"):
        matcher: Any = model.group_matcher
        return group_parameters(model, matcher(coarse=False), reverse=True)
    raise UserError(
        f"{type(model).__name__} does not say which layers it has (no group_matcher); "
        "pass optimizer.layer_decay=1 to train all layers at one rate"
    )


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Return optimizer groups with `lr_scale` = layer_decay ** (last layer - layer).

    Timm's schedulers multiply the rate by `lr_scale`. Biases and other one-dimensional parameters (norms,
    layer scale) get no weight decay.
    """
    ids = layer_ids(model) if layer_decay != 1 else dict.fromkeys(dict(model.named_parameters()), 0)
    last = max(ids.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not name.endswith(".bias")
        group = groups.setdefault((ids[name], decays), {
            "params": [],
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": layer_decay ** (last - ids[name]),
        })
        group["params"].append(parameter)
    return list(groups.values())


def _stages(model: ResNet) -> list[nn.Sequential]:
    return [model.layer1, model.layer2, model.layer3, model.layer4]


def _resnet_layer_ids(model: ResNet) -> dict[str, int]:
    first, sizes, layer = {}, {}, 1
    for number, stage in enumerate(_stages(model), start=1):
        first[number], sizes[number] = layer, RESNET_BLOCKS_PER_LAYER[len(stage)]
        layer += -(-len(stage) // sizes[number])
    ids = {}
    for name, _ in model.named_parameters():
        block = re.match(r"layer(\d)\.(\d+)\.", name)
        if block:
            stage_number, index = map(int, block.groups())
            ids[name] = first[stage_number] + index // sizes[stage_number]
        else:
            ids[name] = layer if name.startswith("fc.") else 0
    return ids


def _convnext_layer_ids(model: ConvNeXt) -> dict[str, int]:
    last_stage = 3 + -(-len(model.stages[2].blocks) // CONVNEXT_BLOCKS_PER_LAYER)
    first = {0: 1, 1: 2, 2: 3, 3: last_stage}
    ids = {}
    for name, _ in model.named_parameters():
        stage = re.match(r"stages\.(\d)\.(?:blocks\.(\d+)\.)?", name)
        if stage:
            number, index = int(stage[1]), int(stage[2] or 0)  # a downsampling goes with its first block
            ids[name] = first[number] + (index // CONVNEXT_BLOCKS_PER_LAYER if number == 2 else 0)
        else:
            ids[name] = 0 if name.startswith("stem.") else last_stage + 1
    return ids
