"""ConvNeXt's official naming (facebookresearch/ConvNeXt), which the original SparK uses too."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from spark.formats.naming import Conversion, rename

TO_TIMM = (
    (r"downsample_layers\.0\.(\d)\.(\w+)", r"stem.\1.\2"),
    (r"downsample_layers\.([1-3])\.(\d)\.(\w+)", r"stages.\1.downsample.\2.\3"),
    (r"stages\.(\d)\.(\d+)\.dwconv\.(\w+)", r"stages.\1.blocks.\2.conv_dw.\3"),
    (r"stages\.(\d)\.(\d+)\.pwconv([12])\.(\w+)", r"stages.\1.blocks.\2.mlp.fc\3.\4"),
    (r"stages\.(\d)\.(\d+)\.norm\.(\w+)", r"stages.\1.blocks.\2.norm.\3"),
    (r"stages\.(\d)\.(\d+)\.gamma", r"stages.\1.blocks.\2.gamma"),
    (r"norm\.(\w+)", r"head.norm.\1"),
    (r"head\.(weight|bias)", r"head.fc.\1"),
)


def recognised(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are in the official ConvNeXt naming."""
    return "downsample_layers.0.0.weight" in state


def to_timm(state: Mapping[str, Tensor]) -> Conversion:
    """Map official names to timm's."""
    return rename(state, TO_TIMM, source="official ConvNeXt naming")
