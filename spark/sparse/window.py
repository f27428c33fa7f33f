"""The geometry of a sliding window in one dimension: what a patch needs from its neighbors."""

from __future__ import annotations

from typing import Any, NamedTuple

import timm.layers
from timm.layers.pool2d_same import MaxPool2dSame
from timm.layers.std_conv import ScaledStdConv2dSame, StdConv2dSame
from torch import nn


class Window(NamedTuple):
    """Output o looks at inputs o * stride - before + t * dilation, for t < kernel.

    Attributes:
        padding: total zeros at both ends; `before` of them are at the start.
    """

    kernel: int
    stride: int
    dilation: int
    before: int
    padding: int

    @property
    def reach(self) -> int:
        """The distance between a window's first and last input."""
        return self.dilation * (self.kernel - 1)

    @property
    def after(self) -> int:
        """How many positions after its last one a patch needs; negative if it does not need all of its own."""
        return self.reach - self.before - self.stride + 1

    def keeps_patches(self, ceil_mode: bool = False) -> bool:
        """Whether n * stride inputs give n outputs, so that patches stay patches."""
        missing = self.reach - self.padding - (self.stride - 1 if ceil_mode else 0)
        return 0 <= missing < self.stride

    @property
    def stays_inside(self) -> bool:
        """Whether no window of a patch reaches into another patch."""
        return self.before == 0 and self.after <= 0

    @property
    def transposed(self) -> Window:
        """The window of the backward pass, from inputs to outputs, for stride 1."""
        return Window(self.kernel, 1, self.dilation, self.reach - self.before, self.padding)

    def tile(self, side: int) -> range:
        """The coordinates, relative to a patch of `side` positions, that its outputs read."""
        return range(-self.before, side + max(self.after, 0))

    def taps(self, side: int) -> list[int]:
        """The coordinates that each output reads, output by output: side / stride * kernel of them."""
        starts = range(-self.before, side - self.before, self.stride)
        return [start + t * self.dilation for start in starts for t in range(self.kernel)]


Windows = tuple[Window, Window]
"""Down and across."""


PADS_TO_SAME = (
    timm.layers.Conv2dSame, MaxPool2dSame, timm.layers.AvgPool2dSame, StdConv2dSame, ScaledStdConv2dSame
)


def windows_of(layer: nn.Module) -> Windows:
    """Return the windows of a convolution or pooling layer."""
    same = layer.padding == "same" or (isinstance(layer, PADS_TO_SAME) and getattr(layer, "same_pad", True))
    sizes = [_pair(getattr(layer, name, 1)) for name in ("kernel_size", "stride", "dilation")]
    windows = []
    for axis in (0, 1):
        kernel, stride, dilation = (size[axis] for size in sizes)
        if same:  # for an input size that is a multiple of the stride
            padding = max(dilation * (kernel - 1) + 1 - stride, 0)
        else:
            padding = 0 if layer.padding == "valid" else 2 * _pair(layer.padding)[axis]
        windows.append(Window(kernel, stride, dilation, padding // 2, padding))
    return windows[0], windows[1]


def blur_windows(layer: Any) -> Windows:
    """Return the windows of a blur pooling layer, which names its sizes differently."""
    window = Window(layer.filt_size, layer.stride, 1, layer.padding[0], 2 * layer.padding[0])
    return window, window


def after_padding(windows: Windows, left: int, right: int, top: int, bottom: int) -> Windows:
    """Return the windows of an unpadded layer relative to its input before a separate layer padded it."""
    down, across = windows
    return (
        down._replace(before=down.before + top, padding=down.padding + top + bottom),
        across._replace(before=across.before + left, padding=across.padding + left + right),
    )


def sizes_of(windows: Windows) -> tuple[list[int], list[int]]:
    """Return the kernel's and the stride's sizes, down and across."""
    return [window.kernel for window in windows], [window.stride for window in windows]


def counts_padding(layer: Any) -> bool:
    """Whether an average pooling layer divides by the whole window at the border of an image."""
    return layer.count_include_pad or isinstance(layer, timm.layers.AvgPool2dSame)  # its zeros are part of its input


def misfit(layer: nn.Module) -> str | None:
    """Return why a layer's windows have no sparse form, if so."""
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return f"pads with {layer.padding_mode} values instead of zeros"
    return windows_misfit(windows_of(layer), getattr(layer, "ceil_mode", False))


def windows_misfit(windows: Windows, ceil_mode: bool = False) -> str | None:
    """Return why windows do not map patches to patches, if so."""
    for window in windows:
        if not window.keeps_patches(ceil_mode):
            return (
                f"with a kernel of {window.kernel}, stride {window.stride} and padding {window.padding // 2} "
                "does not map patches to patches"
            )
    return None


def average_misfit(layer: Any) -> str | None:
    """The same for average pooling, whose divisors must be known."""
    if layer.divisor_override is not None:
        return "divides by a number of its own"
    if counts_padding(layer) and layer.ceil_mode and windows_misfit(windows_of(layer)):
        return "divides windows that reach over the border by less than their size"
    return misfit(layer)


def blur_misfit(layer: Any) -> str | None:
    """The same for blur pooling."""
    if layer.pad_mode != "constant":
        return f"pads with {layer.pad_mode.removesuffix('e')}ed values instead of zeros"
    return windows_misfit(blur_windows(layer))


def _pair(value: object) -> tuple[int, int]:
    return (value[0], value[-1]) if isinstance(value, tuple | list) else (value, value)  # type: ignore[return-value]
