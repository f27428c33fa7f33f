"""The visible patches of the current batch: one object per encoder, shared by its layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


class VisiblePatches:
    """Holds the current mask, at the resolution of any feature map.

    Outside `showing(mask)` there is no mask, and sparse layers behave as the dense ones that they were.
    """

    def __init__(self) -> None:
        self._mask: Tensor | None = None
        self._scaled: dict[tuple[int, int], Tensor] = {}

    @property
    def active(self) -> bool:
        """Whether a mask is set."""
        return self._mask is not None

    @contextmanager
    def showing(self, mask: Tensor) -> Iterator[None]:
        """Use `mask` (boolean [B, 1, h, w], True = visible patch) for the forward passes in the body."""
        self._mask, self._scaled = mask, {}
        try:
            yield
        finally:
            self._mask, self._scaled = None, {}

    def at(self, height: int, width: int) -> Tensor:
        """Return the mask as boolean [B, 1, height, width], True at visible positions.

        Raises:
            ValueError: a map whose size is no multiple of the patch grid has no sparse meaning.
        """
        if self._mask is None:
            raise RuntimeError("no mask is set; wrap the forward pass in `with visible.showing(mask):`")
        if (height, width) not in self._scaled:
            rows, columns = self._mask.shape[-2:]
            if height % rows or width % columns:
                raise ValueError(f"a {height}x{width} map does not align with {rows}x{columns} patches")
            scaled = self._mask.repeat_interleave(height // rows, 2).repeat_interleave(width // columns, 3)
            self._scaled[height, width] = scaled
        return self._scaled[height, width]

    def hide(self, images: Tensor) -> Tensor:
        """Return the images [B, C, H, W] with zeros, whatever was there, in their masked patches."""
        return images.masked_fill(~self.at(*images.shape[-2:]), 0)
