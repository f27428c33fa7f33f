"""The geometry of a sliding window in one dimension: what a patch needs from its neighbours."""

from __future__ import annotations

from typing import NamedTuple

import timm.layers
from timm.layers.pool2d_same import MaxPool2dSame
from torch import nn


class Window(NamedTuple):
    """Output o looks at inputs o * stride - before + t * dilation, for t < kernel.

    Attributes:
        padding: zeros at both ends of the line together; `before` of them at its start.
    """

    kernel: int
    stride: int
    dilation: int
    before: int
    padding: int

    @property
    def reach(self) -> int:
        """How far apart a window's first and last input are."""
        return self.dilation * (self.kernel - 1)

    @property
    def after(self) -> int:
        """How many positions behind its last one a patch needs; negative if not even all of its own."""
        return self.reach - self.before - self.stride + 1

    def keeps_patches(self, ceil_mode: bool = False) -> bool:
        """Whether n * stride inputs give n outputs, so that patches stay patches."""
        missing = self.reach - self.padding - (self.stride - 1 if ceil_mode else 0)
        return 0 <= missing < self.stride

    @property
    def stays_inside(self) -> bool:
        """Whether no window of a patch looks into another one."""
        return self.before == 0 and self.after <= 0

    @property
    def transposed(self) -> Window:
        """The window by which the gradient looks back at the outputs, for stride 1."""
        return Window(self.kernel, 1, self.dilation, self.reach - self.before, self.padding)

    def tile(self, side: int) -> range:
        """The coordinates, relative to a patch of `side` positions, that its outputs look at."""
        return range(-self.before, side + max(self.after, 0))

    def taps(self, side: int) -> list[int]:
        """The coordinates that each output looks at, output by output: side / stride * kernel of them."""
        starts = range(-self.before, side - self.before, self.stride)
        return [start + t * self.dilation for start in starts for t in range(self.kernel)]


Windows = tuple[Window, Window]
"""Down and across."""


PADS_TO_SAME = (timm.layers.Conv2dSame, MaxPool2dSame, timm.layers.AvgPool2dSame)


def windows_of(layer: nn.Module) -> Windows:
    """Return the windows of a convolution or pooling layer."""
    same = isinstance(layer, PADS_TO_SAME) or layer.padding == "same"
    sizes = [_pair(getattr(layer, name, 1)) for name in ("kernel_size", "stride", "dilation")]
    windows = []
    for axis in (0, 1):
        kernel, stride, dilation = (size[axis] for size in sizes)
        if same:  # of an input that the stride divides
            padding = max(dilation * (kernel - 1) + 1 - stride, 0)
        else:
            padding = 0 if layer.padding == "valid" else 2 * _pair(layer.padding)[axis]
        windows.append(Window(kernel, stride, dilation, padding // 2, padding))
    return windows[0], windows[1]


def sizes_of(windows: Windows) -> tuple[list[int], list[int]]:
    """Return the kernel's and the stride's sizes, down and across."""
    return [window.kernel for window in windows], [window.stride for window in windows]


def misfit(layer: nn.Module) -> str | None:
    """Say why a layer's windows have no sparse meaning, if so."""
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return f"pads with {layer.padding_mode} values instead of zeros"
    for window in windows_of(layer):
        if not window.keeps_patches(getattr(layer, "ceil_mode", False)):
            return (
                f"a kernel of {window.kernel} with stride {window.stride} and padding {window.padding // 2} "
                "does not map patches to patches"
            )
    return None


def _pair(value: object) -> tuple[int, int]:
    return (value[0], value[-1]) if isinstance(value, tuple | list) else (value, value)  # type: ignore[return-value]
