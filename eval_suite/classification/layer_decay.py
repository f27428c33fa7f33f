"""Layer-wise learning-rate decay: which layer a parameter belongs to, and its optimizer groups.

They are those of the SparK fine-tuning recipes (`tests/golden/finetune_layer_ids.json`): for ResNets by a rule of their
own, for ConvNeXts, and any other timm model, by the model's own grouping (`spark.backbones.layer_groups`). Those of MAE
and its relatives, `blocks`, are a setting: every block is a layer (`tests/golden/um/um_finetune_layer_ids.json`).
"""

from __future__ import annotations

import re
from typing import Any

from timm.models.resnet import ResNet
from torch import nn

from spark.backbones.layer_groups import block_layers, timm_layers
from spark.utils.weight_decay import decayed

STAGES, BLOCKS = LAYERS = ("stages", "blocks")  # what makes a layer
ONE_RATE = "pass optimizer.layer_decay=1"

# Residual blocks per layer, by the number of blocks in the stage; up to three blocks are one layer.
RESNET_BLOCKS_PER_LAYER = {1: 1, 2: 2, 3: 3, 4: 2, 6: 3, 8: 4, 23: 3, 24: 4, 36: 4}


def layer_ids(model: nn.Module, layers: str = STAGES) -> dict[str, int]:
    """Return each parameter's layer, from 0 (stem) to the last (classifier).

    Args:
        model: a classifier.
        layers: what makes a layer, one of LAYERS.

    Raises:
        UserError: the model has no known grouping.
    """
    if layers == BLOCKS:
        return block_layers(model, ONE_RATE)
    # Exact types: a subclass may add layers that these rules do not know.
    if type(model) is ResNet and all(len(stage) in RESNET_BLOCKS_PER_LAYER for stage in _stages(model)):
        return _resnet_layer_ids(model)
    return timm_layers(model, classifier_names(model), ONE_RATE)


def classifier_names(model: Any) -> tuple[str, ...]:
    """Return how the names of a timm classifier's own tensors begin, those that a feature extractor does without."""
    named = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    names = [named] if isinstance(named, str) else list(named)
    if isinstance(getattr(model, "fc_norm", None), nn.LayerNorm):  # in front of the classifier, and as new as it
        names.append("fc_norm")
    return tuple(f"{name.partition('.')[0]}." for name in names)


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float, layers: str = STAGES
) -> list[dict[str, Any]]:
    """Return optimizer groups with `lr_scale` = layer_decay ** (last layer - layer).

    A group's learning rate is the schedule's times its `lr_scale`. Biases and other one-dimensional parameters (norms,
    layer scale) get no weight decay; where each block is a layer, neither do the tables and tokens that the model
    names.
    """
    ids = layer_ids(model, layers) if layer_decay != 1 else dict.fromkeys(dict(model.named_parameters()), 0)
    spared = _spared(model) if layers == BLOCKS else frozenset()
    last = max(ids.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = decayed(name, parameter) and name not in spared
        group = groups.setdefault((ids[name], decays), {
            "params": [],
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": layer_decay ** (last - ids[name]),
        })
        group["params"].append(parameter)
    return list(groups.values())


def _spared(model: Any) -> frozenset[str]:
    """Return the parameters, beside vectors, that timm says should not decay: positions, class tokens, bias tables."""
    return frozenset(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else frozenset()


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
