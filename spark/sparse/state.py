"""The visible patches of the current batch: one object per encoder, shared by its layers.

Legend of shapes: B images of rows x columns patches, K of them visible in each image, N = B * K visible patches,
C channels, a map of H x W positions, of which a patch covers h x w.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from spark.masking import enlarge
from spark.sparse.patches import patch_ids, patches_per_image, put_patches, take_patches


class VisiblePatches:
    """Holds the current mask, and caches what layers derive from it, once per forward pass.

    Outside `use_mask(mask)` there is no mask, and sparse layers compute densely.

    Attributes:
        engine: how the layers that share this object compute, "masked" or "compact".
        stood_back: why a faster engine was not used; "" if this is the fastest.
        converted: how many layers there are by (class, rule's name).
        norms_of_vectors: whether batch norms inside gates see one vector per image; they need two images or more.
    """

    def __init__(self) -> None:
        self.engine = "masked"
        self.stood_back = ""
        self.converted: Counter[tuple[str, str]] = Counter()
        self.norms_of_vectors = False
        self._mask: Tensor | None = None
        self._per_image = 0
        self._derived: dict[object, Tensor] = {}

    @property
    def active(self) -> bool:
        """Whether a mask is set."""
        return self._mask is not None

    @property
    def mask(self) -> Tensor:
        """The mask: boolean [B, 1, rows, columns], True = visible."""
        if self._mask is None:
            raise RuntimeError("no mask is set; wrap the forward pass in `with visible.use_mask(mask):`")
        return self._mask

    @property
    def per_image(self) -> int:
        """K, how many patches are visible in each image.

        Raises:
            ValueError: the mask shows more patches of one image than of another.
        """
        if not self._per_image:
            self._per_image = patches_per_image(self.mask)
        return self._per_image

    @contextmanager
    def use_mask(self, mask: Tensor, per_image: int = 0) -> Iterator[None]:
        """Use `mask` (boolean [B, 1, rows, columns], True = visible) for the forward passes in the body.

        Pass `per_image`, the number of visible patches per image, if it is known. Otherwise it is read from the
        mask, which synchronizes the host with the device.
        """
        with self._holding(mask, per_image, {}):
            yield

    def reuse_mask(self) -> AbstractContextManager[None]:
        """Return a context manager that sets the current mask again, whenever it is entered."""
        return self._holding(self.mask, self._per_image, self._derived)

    @contextmanager
    def _holding(self, mask: Tensor, per_image: int, derived: dict[object, Tensor]) -> Iterator[None]:
        before = self._mask, self._per_image, self._derived
        self._mask, self._per_image, self._derived = mask, per_image, derived
        try:
            yield
        finally:
            self._mask, self._per_image, self._derived = before

    # Dense maps

    def at(self, height: int, width: int) -> Tensor:
        """Return the mask as boolean [B, 1, height, width], True at visible positions.

        Raises:
            ValueError: a map whose size is no multiple of the patch grid has no sparse meaning.
        """

        def scale() -> Tensor:
            self.patch_size(height, width)  # raises if the size is not a multiple of the grid
            return enlarge(self.mask, height, width)

        return self.cached(("mask", height, width), scale)

    def patch_size(self, height: int, width: int) -> tuple[int, int]:
        """Return how many positions of a dense map a patch covers, down and across.

        Raises:
            ValueError: a map whose size is no multiple of the patch grid has no sparse meaning.
        """
        rows, columns = self.mask.shape[-2:]
        if height % rows or width % columns:
            raise ValueError(f"a {height}x{width} map does not align with {rows}x{columns} patches")
        return height // rows, width // columns

    def hide(self, images: Tensor) -> Tensor:
        """Return the images [B, C, H, W] with zeros in their masked patches (even where there was a NaN)."""
        return images.masked_fill(~self.at(*images.shape[-2:]), 0)

    # Compact maps: visible patches as a batch, [N, C, h, w]

    @property
    def patch_ids(self) -> Tensor:
        """Which patches of the batch are visible: [N], indices into B * rows * columns, in order."""

        return self.cached("patch ids", lambda: patch_ids(self.mask, self.per_image))

    def take(self, x_BCHW: Tensor) -> Tensor:
        """Return the visible patches of a dense map as a batch: [B, C, H, W] -> [N, C, h, w]."""
        self.patch_size(*x_BCHW.shape[-2:])
        return take_patches(x_BCHW, self.patch_ids, *self.mask.shape[-2:])

    def put(self, x_NChw: Tensor) -> Tensor:
        """Return the dense map, zero in the holes: [N, C, h, w] -> [B, C, H, W]."""
        return put_patches(x_NChw, self.patch_ids, len(self.mask), *self.mask.shape[-2:])

    def lookup(self, h: int, w: int, down: Sequence[int], across: Sequence[int]) -> Tensor:
        """Return the indices of positions in and around each patch, in a compact map of h x w patches.

        Args:
            down: coordinates relative to a patch's top; negative or >= h ones lie in other patches.
            across: likewise, relative to its left.

        Returns:
            [N, len(down), len(across)], indices into the N * h * w positions of the compact map, and
            N * h * w itself where a position is masked or outside the image.
        """
        images, _, rows, columns = self.mask.shape
        device, patches = self.mask.device, images * self.per_image
        down_d, across_a = torch.tensor(down, device=device), torch.tensor(across, device=device)
        image_N = self.patch_ids // (rows * columns)
        row_Nd = (self.patch_ids // columns % rows)[:, None] + down_d.div(h, rounding_mode="floor")
        column_Na = (self.patch_ids % columns)[:, None] + across_a.div(w, rounding_mode="floor")
        inside_Nda = ((row_Nd >= 0) & (row_Nd < rows))[:, :, None] & ((column_Na >= 0) & (column_Na < columns))[:, None]
        patch_Nda = (
            image_N[:, None, None] * (rows * columns)
            + row_Nd.clamp(0, rows - 1)[:, :, None] * columns
            + column_Na.clamp(0, columns - 1)[:, None]
        )
        slots = torch.where(self.mask.flatten(), self.mask.flatten().cumsum(0) - 1, patches)
        slot_Nda = torch.where(inside_Nda, slots[patch_Nda], patches)
        within_da = down_d.remainder(h)[:, None] * w + across_a.remainder(w)
        return torch.where(slot_Nda < patches, slot_Nda * (h * w) + within_da, patches * h * w)

    # Both engines

    def enter(self, images: Tensor) -> Tensor:
        """Return the encoder's input for images [B, C, H, W], in the engine's layout."""
        return self.take(images) if self.engine == "compact" else self.hide(images)

    def leave(self, x: Tensor) -> Tensor:
        """Convert a feature map of the encoder to a dense one [B, C, H, W], zero in the holes."""
        return self.put(x) if self.engine == "compact" else x

    def cached(self, key: object, compute: Callable[[], Tensor]) -> Tensor:
        """Return what `compute` returns, computed once per mask."""
        if key not in self._derived:
            self._derived[key] = compute()
        return self._derived[key]
