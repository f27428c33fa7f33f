"""Any timm network as a feature pyramid, and any pyramid by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from spark.backbones.names import is_reference
from spark.backbones.own_network import build_own
from spark.backbones.pyramid import Pyramid
from spark.backbones.timm_model import create_timm
from spark.errors import UserError

Built = TypeVar("Built")
SCALES = 4
"""SparK decodes from strides 4, 8, 16, 32: the coarsest stride and three halvings. So a dilated network of stride 16 is
decoded from 2, 4, 8, 16, and one of stride 8 from 2, 4, 8: pixels themselves are never taken."""


class TimmPyramid(nn.Module):
    """The feature maps of a timm network, the finest first.

    `network` is the timm model with its own parameter names and without a classifier.

    Args:
        network: timm's name of it; or a model of timm's, which loses its classifier here.
        in_chans: channels of the images; None: 3, or those of the model.
        drop_path: probability of the last block.
        options: more arguments of `timm.create_model`, e.g. {"output_stride": 16} for a dilated network.

    Raises:
        UserError: there is no such network, or it returns no feature maps.

    Attributes:
        channels: of each map.
        in_chans: of the images.
        strides: of each map, relative to the image; the last one is the patch size.
        name: the timm name.
    """

    def __init__(
        self, network: str | nn.Module, in_chans: int | None = None, drop_path: float = 0.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(network, str):
            self.name, self.in_chans = network, 3 if in_chans is None else in_chans
            self.network = build_timm(network, self.in_chans, drop_path, options or {})
        else:
            self.name, self.in_chans = _name_and_channels(network)
            self.network = network
        levels = deepest_per_stride(self.network.feature_info)
        finest = max(2, levels[-1][1]["reduction"] >> (SCALES - 1))
        levels = [(index, level) for index, level in levels if level["reduction"] >= finest]
        self._indices = [index for index, _ in levels]
        self.channels: list[int] = [level["num_chs"] for _, level in levels]
        self._goes_on = _goes_on(self.network, levels[-1][1]["module"])
        if self._goes_on:
            self.channels[-1] = self.network.num_features
        self.strides: list[int] = [level["reduction"] for _, level in levels]

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """Return the maps [B, channels[i], H / strides[i], W / strides[i]]."""
        if not self._goes_on:
            return self.network.forward_intermediates(x_BCHW, indices=self._indices, intermediates_only=True)
        last, maps = self.network.forward_intermediates(x_BCHW, indices=self._indices)
        return [*maps[:-1], last]

    def example(self) -> Tensor:
        """Return a small input of zeros that runs through every level."""
        side = 2 * self.strides[-1]
        return torch.zeros(1, self.in_chans, side, side)


def build_pyramid(
    name: str, in_chans: int | None = None, drop_path: float = 0.0, options: Mapping[str, Any] | None = None
) -> Pyramid:
    """Build a timm network, or a user's own by `path/to/file.py:ClassName` or `package.module:ClassName`.

    Args:
        name: of either sort.
        in_chans: channels of the images; None: the network's default.
        drop_path: probability of the last block.
        options: more arguments of `timm.create_model`, or of the own network's constructor.

    Raises:
        UserError: there is no such network, or it cannot be built so.
    """
    if is_reference(name):
        return build_own(name, in_chans, drop_path, options)
    return TimmPyramid(name, in_chans, drop_path, options)


def build_sized(
    name: str, size: tuple[int, int], in_chans: int, drop_path: float, options: Mapping[str, Any]
) -> TimmPyramid:
    """Build a timm network for images of a size, which many transformers want to know.

    Args:
        name: timm's.
        size: height and width in pixels; `img_size` among the options goes before.
        in_chans: channels of the images.
        drop_path: probability of the last block.
        options: more arguments of `timm.create_model`.

    Raises:
        UserError: there is no such network, or it cannot be built so.
    """
    return for_size(lambda chosen: TimmPyramid(name, in_chans, drop_path, chosen), size, options)


def for_size(
    build: Callable[[Mapping[str, Any]], Built], size: int | tuple[int, int], options: Mapping[str, Any]
) -> Built:
    """Build a timm network for images of a size, if it takes one.

    Args:
        build: builds it, given options of `timm.create_model`; called a second time where there is no `img_size`.
        size: side, or height and width, in pixels.
        options: the others; `img_size` among them goes before.
    """
    try:
        return build({"img_size": size, **options})
    except UserError as error:
        if not (isinstance(error.__cause__, TypeError) and "img_size" in str(error.__cause__)):
            raise
    return build(options)


def as_pyramid(network: Pyramid | nn.Module | str) -> Any:
    """Return a network as a pyramid: one by its name, a model of timm's, or what is a pyramid already.

    Raises:
        UserError: it cannot be built, or is a timm model without feature maps.
    """
    if isinstance(network, str):
        return build_pyramid(network)
    timms = hasattr(network, "pretrained_cfg") and not hasattr(network, "strides")
    return TimmPyramid(network) if timms and isinstance(network, nn.Module) else network


def dense_part(pyramid: nn.Module) -> nn.Module:
    """Return whose weights are exported: timm's model itself, which knows nothing of the pyramid around it."""
    return pyramid.network if isinstance(pyramid, TimmPyramid) else pyramid


def build_timm(
    name: str, in_chans: int, drop_path: float, options: Mapping[str, Any], drop_path_key: str = "model.drop_path"
) -> Any:
    """Build a timm model that returns feature maps, without its classifier.

    Args:
        name: timm's.
        in_chans: channels of the images.
        drop_path: probability of the last block.
        options: more arguments of `timm.create_model`.
        drop_path_key: where a recipe sets the drop path, for the message.

    Raises:
        UserError: there is no such model, it returns no feature maps, it has no drop path and some is asked for, or
            timm cannot build it.
    """
    network = create_timm(
        name, in_chans=in_chans, drop_path=drop_path, options=options, drop_path_key=drop_path_key
    )
    if not hasattr(network, "forward_intermediates"):
        raise UserError(f"model '{name}' has no feature pyramid in this timm version")
    return network


def deepest_per_stride(feature_info: Any) -> list[tuple[int, dict[str, Any]]]:
    """Keep the deepest map of each stride, the finest first: [(index, {num_chs, reduction, module})]."""
    infos = feature_info.info if hasattr(feature_info, "info") else feature_info
    deepest = {info["reduction"]: (index, info) for index, info in enumerate(infos)}
    return [deepest[stride] for stride in sorted(deepest)]


def _name_and_channels(network: Any) -> tuple[str, int]:
    """Return the name of a timm model and the channels of its images, and take its classifier off."""
    name = network.pretrained_cfg.get("architecture") or type(network).__name__
    if not hasattr(network, "forward_intermediates"):
        raise UserError(f"model '{name}' has no feature pyramid in this timm version")
    network.reset_classifier(0)
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    return name, first.in_channels


def _goes_on(network: nn.Module, module: str) -> bool:
    """Whether layers follow the one that makes timm's last map, in the same sequence: GhostNet, ReXNet, DPN.

    They hold up to two thirds of the parameters, which would not be trained if the last map was taken before them.
    """
    sequence, _, name = module.rpartition(".")
    return bool(sequence) and list(dict(network.get_submodule(sequence).named_children()))[-1] != name
