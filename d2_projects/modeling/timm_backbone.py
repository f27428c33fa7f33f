"""Any timm network with a feature pyramid as a Detectron2 backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from timm.layers import LayerNorm2d, convert_sync_batchnorm, freeze_batch_norm_2d
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spark.backbones.timm_pyramid import build_timm, deepest_per_stride
from spark.errors import UserError

NORMS = ("", "BN", "SyncBN", "FrozenBN")
OUT_NORMS = ("", "LN")
RES2_TO_RES5 = ("res2", "res3", "res4", "res5")


class TimmBackbone(Backbone):
    """The feature maps of a timm network, named as those of Detectron2's ResNet: "res2" has stride 4, "res5" 32.

    `net` is the timm model with its own parameter names, without the layers that no returned map depends on (the
    classifier, a last norm): they would get no gradient, which DistributedDataParallel does not allow.

    Args:
        name: timm's.
        out_features: which maps are returned. "resN" is the deepest map of stride 2**N in the undilated network.
        drop_path_rate: probability that the last block is skipped in training.
        frozen_stages: how many of timm's coarse layer groups are not trained: 0 none, 1 the stem, 2 also the first
            stage, and so on. Their batch norms use the running statistics.
        output_stride: 16 or 8 dilates the last stages instead of striding them, where timm can. (Detectron2's FPN
            wants all strides to differ.)
        norm: what the batch norms of the network become: "SyncBN", "FrozenBN" (the running statistics, nothing
            trained), or "" and "BN": as they are.
        out_norm: "LN" puts a LayerNorm over the channels on each returned map, as detectors with ConvNeXt do;
            its parameters are trained from 1 and 0.
        options: more arguments of `timm.create_model`.

    Raises:
        UserError: there is no such network, it has no feature pyramid, or it lacks what is asked for.
    """

    def __init__(
        self,
        name: str,
        out_features: Sequence[str] = RES2_TO_RES5,
        drop_path_rate: float = 0.0,
        frozen_stages: int = 0,
        output_stride: int = 32,
        norm: str = "",
        out_norm: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if norm not in NORMS or out_norm not in OUT_NORMS:
            raise UserError(f"norm='{norm}', out_norm='{out_norm}': expected one of {NORMS} and of {OUT_NORMS}")
        options = dict(options or {})
        dilated = options if output_stride == 32 else {**options, "output_stride": output_stride}
        network = build_timm(name, 3, drop_path_rate, dilated, "model.backbone.bottom_up.drop_path_rate")
        levels = _levels(name, options)
        if absent := [feature for feature in out_features if feature not in levels]:
            raise UserError(f"timm's {name} has no feature map {', '.join(absent)}; it has {', '.join(levels)}")
        infos = {feature: _infos(network)[levels[feature]] for feature in out_features}
        self._out_features = sorted(out_features, key=lambda feature: levels[feature])
        self._out_feature_channels = {feature: info["num_chs"] for feature, info in infos.items()}
        self._out_feature_strides = {feature: info["reduction"] for feature, info in infos.items()}
        self._indices = [levels[feature] for feature in self._out_features]

        complete = set(network.state_dict())
        network.prune_intermediate_layers(self._indices, prune_norm=True, prune_head=True)
        self.pruned = frozenset(complete - set(network.state_dict()))  # names of tensors that a whole encoder has
        self.net: Any = _with_norm(network, norm, name)
        _freeze(self.net, frozen_stages, name)
        self.out_norms = nn.ModuleDict({
            feature: LayerNorm2d(self._out_feature_channels[feature], eps=1e-6) if out_norm else nn.Identity()
            for feature in self._out_features
        })

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """Return the maps [B, channels, H / stride, W / stride] by name."""
        maps = self.net.forward_intermediates(x_BCHW, indices=self._indices, intermediates_only=True)
        return {name: self.out_norms[name](map_) for name, map_ in zip(self._out_features, maps, strict=True)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each map."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }

    @property
    def size_divisibility(self) -> int:
        """The coarsest stride: images are padded to a multiple of it, so that each map is half the one before."""
        return max(self._out_feature_strides.values())

    @property
    def padding_constraints(self) -> dict[str, int]:
        """The same, as newer parts of Detectron2 ask for it."""
        return {"size_divisibility": self.size_divisibility}


def _infos(network: Any) -> list[dict[str, Any]]:
    return getattr(network.feature_info, "info", network.feature_info)


def _levels(name: str, options: Mapping[str, Any]) -> dict[str, int]:
    """Return the index of each map by its name, of the undilated network.

    Raises:
        UserError: it is no pyramid, or takes images of one size only.
    """
    with torch.device("meta"):
        network = build_timm(name, 3, 0.0, options)
    levels = {f"res{info['reduction'].bit_length() - 1}": index
              for index, info in deepest_per_stride(network.feature_info)}
    if len(levels) < 2:
        raise UserError(f"timm's {name} has no feature pyramid: all its maps have one stride")
    if network.pretrained_cfg.get("fixed_input_size"):
        raise UserError(f"timm's {name} takes images of one size only, which a detector's are not")
    return levels


def _with_norm(network: nn.Module, norm: str, name: str) -> nn.Module:
    if norm and not any(isinstance(module, _BatchNorm) for module in network.modules()):
        raise UserError(f"timm's {name} has no batch norm, which norm={norm} could be about; set norm=''")
    # These two keep the activation that timm's BatchNormAct2d includes.
    convert = {"SyncBN": convert_sync_batchnorm, "FrozenBN": freeze_batch_norm_2d}.get(norm)
    return convert(network) if convert else network


def _freeze(network: Any, stages: int, name: str) -> None:
    if not stages:
        return
    try:
        group_of = group_parameters(network, network.group_matcher(coarse=True), reverse=True)
    except (AttributeError, AssertionError):
        raise UserError(f"timm's {name} does not tell its stages; set frozen_stages=0") from None
    available = max(group_of.values()) + 1
    if not 0 <= stages <= available:
        raise UserError(f"frozen_stages={stages}: timm's {name} has {available}, the stem among them")
    frozen = {parameter for parameter, group in group_of.items() if group < stages}
    for parameter in frozen:
        network.get_parameter(parameter).requires_grad_(False)
    for path, module in list(network.named_modules()):
        if isinstance(module, _BatchNorm) and f"{path}.weight" in frozen:
            parent, _, child = path.rpartition(".")
            network.get_submodule(parent).add_module(child, freeze_batch_norm_2d(module))
