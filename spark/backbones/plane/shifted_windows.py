"""What timm's transformers of shifted windows share as plane encoders: which windows a plane has, and who sees whom.

The network is built for whole pictures, with windows of k w tokens; a plane of cells of k x k patches has windows of w,
whose tokens came from a square of k w. So biases of attention, looked up at true offsets, are a part of those that
fine-tuning has: no tensor changes its shape, and nothing is interpolated.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional

from spark.backbones.plane.encoder import Latent, PlaneEncoder
from spark.backbones.plane.geometry import Layout, Positions, Whole
from spark.backbones.plane.position_bias import Offsets, offsets_within
from spark.backbones.plane.windows import apart, from_windows, shifted, to_windows
from spark.errors import RefusedError, UserError


class Windows(NamedTuple):
    """The windows of a map that blocks share.

    Attributes:
        window: rows and columns of one, in tokens.
        shift: of the map, down and across.
        offsets: where keys are as their queries see them, in tokens.
        apart: what is added to logits: [windows, 1, tokens, tokens]; None where the map is not shifted.
    """

    window: tuple[int, int]
    shift: tuple[int, int]
    offsets: Offsets
    apart: Tensor | None

    def bias(self, table_TH: Tensor) -> Tensor:
        """Return what is added to logits, given its values for the distinct offsets."""
        bias_BnhNN = self.offsets.look_up(table_TH)
        return bias_BnhNN if self.apart is None else bias_BnhNN + self.apart


class ShiftedWindows(PlaneEncoder):
    """A timm network of stages, each a merge and blocks that know their windows.

    Attributes:
        exact: whether a bias is known at whole offsets alone. The first stage that is coarser than a patch meets
            others, by less than a token; they are rounded down.
    """

    exact: bool = False

    def __init__(self, network: Any) -> None:
        self.network = network
        self.stride = network.patch_embed.patch_size[0]
        info = network.feature_info
        self.total_stride, self.width = info[-1]["reduction"], info[-1]["num_chs"]
        self.stem_width = info[0]["num_chs"]
        if any(block.attn.attn_drop.p for stage in self.stages for block in stage.blocks):
            raise RefusedError("attention here has no dropout; leave attn_drop_rate out of model.options")

    @property
    @abstractmethod
    def stages(self) -> Sequence[Any]:
        """The network's stages, with `downsample` and `blocks`, channels last."""

    @abstractmethod
    def block(self, block: Any, x_BHWC: Tensor, windows: Windows) -> Tensor:
        """Run a block."""

    @abstractmethod
    def last_norm(self, x_BHWC: Tensor) -> Tensor:
        """Normalize the last stage's tokens."""

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """Return the stem's tokens."""
        return self.network.patch_embed.proj(images_BCHW).permute(0, 2, 3, 1)

    def stem_norm(self, x_BHWC: Tensor) -> Tensor:
        """Normalize them, where the network does."""
        return self.network.patch_embed.norm(x_BHWC)

    def body(self, x_BHWC: Tensor, layout: Layout) -> Latent:
        """Return the last stage's tokens."""
        stride = self.stride
        for stage in self.stages:
            merged = stage.downsample(x_BHWC)
            stride *= x_BHWC.shape[1] // merged.shape[1]
            x_BHWC = merged
            seen: dict[tuple[int, int], Windows] = {}  # by shift: shared by the blocks
            for block in stage.blocks:
                shift = self._shift(block, stride, layout)
                if shift not in seen:
                    seen[shift] = self._windows(block, shift, x_BHWC, stride, layout)
                x_BHWC = self.block(block, x_BHWC, seen[shift])
        tokens = self.last_norm(x_BHWC)
        return Latent(tokens, tokens.new_zeros(len(tokens), 0, self.width))

    def check_size(self, height: int, width: int, cell: int, patch: int = 1) -> None:
        """Make sure that the plane is made of whole windows, and these of whole patches."""
        grid = height // self.stride, width // self.stride
        if grid != tuple(self.network.patch_embed.grid_size):
            made = "x".join(str(side * self.stride) for side in self.network.patch_embed.grid_size)
            raise UserError(f"the network was built for images of {made}, not {height}x{width}; set model.options."
                            f"img_size=[{height},{width}] or leave it out")
        plane = grid[0] // cell, grid[1] // cell
        windows = [stage.blocks[0].window_size for stage in self.stages]
        for number, window in enumerate(windows):
            if not _fits(window, plane, number, cell, patch // self.stride):
                sides = plane[0] >> number, plane[1] >> number
                raise UserError(
                    f"windows of {window[0]}x{window[1]} tokens at stride {self.stride << number} do not fit: one "
                    f"{cell}th of a side must be whole patches, and divide a plane of {sides[0]}x{sides[1]} tokens; "
                    + self._remedy(windows[0], plane, cell, patch // self.stride)
                )

    def _remedy(self, window: tuple[int, int], plane: tuple[int, int], cell: int, patch: int) -> str:
        """Name the window size that fits and is nearest to a given one; the larger of two."""
        sizes = sorted(range(cell, cell * max(plane) + 1, cell), key=lambda size: (abs(size - max(window)), -size))
        for size in sizes:
            built = [
                (min(size, plane[0] * cell >> number), min(size, plane[1] * cell >> number))
                for number in range(len(self.stages))
            ]
            if all(_fits(one, plane, number, cell, patch) for number, one in enumerate(built)):
                return f"set model.options.window_size={size}"
        return "choose another data.input_size, such as 256"

    def _shift(self, block: Any, stride: int, layout: Layout) -> tuple[int, int]:
        """Return by how much a map is shifted: by whole patches, so that windows span no more than those of pictures.

        A window whose half is less than a patch is not shifted at all.
        """
        inside = layout.inside(stride)
        down, across = (by // layout.cell // inside * inside for by in block.shift_size)
        return down, across

    def _windows(
        self, block: Any, shift: tuple[int, int], x_BHWC: Tensor, stride: int, layout: Layout
    ) -> Windows:
        window = block.window_size[0] // layout.cell, block.window_size[1] // layout.cell
        height, width = x_BHWC.shape[1:3]
        filled = height + -height % window[0], width + -width % window[1]
        positions, reach = self._positions(stride, filled, window, shift, layout, x_BHWC)
        places = to_windows(shifted(positions.rows_columns, shift), window)
        if layout.cell == 1 and not any(shift):
            places = places[:, :1]  # windows are all alike
        offsets = offsets_within(places, positions.per_token, reach, x_BHWC.dtype)
        strangers = apart(*filled, window, shift, offsets.distinct)[:, None] if any(shift) else None
        return Windows(window, shift, offsets, strangers)

    def _positions(
        self, stride: int, sides: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], layout: Layout,
        like: Tensor,
    ) -> tuple[Positions, tuple[int, int]]:
        """Return where tokens came from, and how far from each other those of a window can be."""
        positions = layout.positions(stride, *sides, like.device)
        if self.exact and positions.per_token > 1:  # a token's square is one of k x k: which one is left out
            whole = Whole().positions(stride, *sides, like.device).rows_columns * layout.cell
            return Positions(whole, 1), ((window[0] - 1) * layout.cell, (window[1] - 1) * layout.cell)
        down, across = (layout.reach(stride, side, by) for side, by in zip(window, shift, strict=True))
        return positions, (down, across)


def in_windows(x_BHWC: Tensor, windows: Windows) -> Tensor:
    """Shift a map, fill it up with zeros to whole windows, and split it: [B, windows, tokens, C]."""
    height, width = x_BHWC.shape[1:3]
    rows, columns = windows.window
    moved = shifted(x_BHWC, windows.shift)
    return to_windows(functional.pad(moved, (0, 0, 0, -width % columns, 0, -height % rows)), windows.window)


def out_of_windows(x_BnNC: Tensor, windows: Windows, height: int, width: int) -> Tensor:
    """Undo `in_windows`: [B, height, width, C]."""
    rows, columns = windows.window
    filled = from_windows(x_BnNC, windows.window, height + -height % rows, width + -width % columns)
    return shifted(filled[:, :height, :width], (-windows.shift[0], -windows.shift[1]))


def _fits(window: tuple[int, int], plane: tuple[int, int], stage: int, cell: int, patch: int) -> bool:
    """Whether a stage's windows of whole pictures have one on a plane of stem's tokens; `patch` is of these, too."""
    inside = max(1, patch >> stage)
    return all(
        of % cell == 0 and of // cell % inside == 0 and (side >> stage) % (of // cell) == 0
        for of, side in zip(window, plane, strict=True)
    )
