"""UM-MAE: keep a patch of every cell -> push them together -> encode -> decode -> loss on the dropped patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from spark.backbones.plane.encoder import Latent
from spark.backbones.plane.geometry import Geometry
from spark.backbones.timm_pyramid import TimmPyramid
from spark.errors import UserError
from spark.methods.base import Output
from spark.methods.patch_targets import Patches
from spark.methods.plane_method import Places, PlaneMethod, network_of
from spark.methods.token_decoder import TOKEN_STD, TokenDecoder
from spark.methods.um_mae.config import UMMAEConfig
from spark.methods.um_mae.sampling import draw

LARGEST_CELL = 8


class UMMAE(PlaneMethod):
    """Masked modeling for a pyramid transformer.

    Args:
        pyramid: the network.
        size: height and width of the images that it is mostly used at.
        mask_ratio: 1 - 1/k**2, for cells of k x k patches of which one is kept.
        patch_size: side of a patch in pixels.
        secondary: share of the kept patches that a token replaces.
        pool: draw as the original does (see `spark.methods.um_mae.sampling`).
        legacy_positions: give kept patches the positions that the original gives them in its pyramids: of the kept
            patches in another order.
        normalize_targets: predict patches normalized by their own mean and deviation.
        decoder: width, depth and heads.
        recompute_decoder: compute the decoder's blocks a second time instead of keeping what they computed.

    Raises:
        UserError: the network cannot be masked so, or a size does not fit another.
    """

    name = "um_mae"

    def __init__(
        self, pyramid: TimmPyramid, size: tuple[int, int], *, mask_ratio: float = 0.75, patch_size: int = 16,
        secondary: float = 0.25, pool: bool = False, legacy_positions: bool = False, normalize_targets: bool = True,
        decoder: tuple[int, int, int] = (512, 2, 16), recompute_decoder: bool = False,
    ) -> None:
        super().__init__(pyramid, mask_ratio, Patches(patch_size, pyramid.in_chans, normalize_targets))
        self.cell, self.secondary, self._pool = cell_of(mask_ratio), secondary, pool
        plane = self.plane
        if patch_size % plane.stride or plane.total_stride % patch_size:
            raise UserError(
                f"mask.patch_size={patch_size} must be a multiple of the stem's stride {plane.stride} and divide the "
                f"network's total stride {plane.total_stride}"
            )
        expand = plane.total_stride // patch_size
        self._legacy_positions = legacy_positions and expand > 1  # the original's ViT has its tokens in one order
        grid = self.grid(*size)
        width, depth, heads = decoder
        self.decoder = TokenDecoder(plane.width, grid, self.patches.values, width, depth, heads, expand)
        self.decoder.recompute = recompute_decoder
        if secondary:
            self.vis_mask_token = nn.Parameter(torch.empty(1, 1, plane.stem_width))
            nn.init.normal_(self.vis_mask_token, std=TOKEN_STD)

    @classmethod
    def from_config(cls, config: UMMAEConfig) -> UMMAE:
        """Build the model of a run.

        Raises:
            UserError: the network is unknown or refused, or a size does not fit another.
        """
        mask, decoder = config.mask, config.decoder
        return cls(
            *network_of(config),
            mask_ratio=mask.ratio, patch_size=mask.patch_size, secondary=mask.secondary,
            pool=config.sampling == "pool", legacy_positions=config.decoder_positions == "legacy",
            normalize_targets=config.normalize_targets, decoder=(decoder.width, decoder.depth, decoder.heads),
            recompute_decoder=decoder.recompute,
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of patches; UserError if the plane of kept ones is not whole tokens and windows."""
        unit = self.cell * self.plane.total_stride
        if height % unit or width % unit:
            raise UserError(
                f"input size {height}x{width} is not divisible by {unit}, {self.cell} times the network's stride: the "
                f"kept patches must make a picture; use e.g. {_rounded(height, unit)}x{_rounded(width, unit)}"
            )
        self.plane.check_size(height, width, self.cell, self.patches.size)
        return self.patches.grid(height, width)

    def draw_mask(
        self, batch: int, grid: tuple[int, int], generator: torch.Generator | None = None,
        mask_ratio: float | None = None,
    ) -> Tensor:
        """Draw a mask: one kept patch in each cell, some of them replaced."""
        if mask_ratio is not None and cell_of(mask_ratio) != self.cell:
            raise UserError(f"the model was built for a mask ratio of {self.mask_ratio}, and has no other")
        return draw(batch, grid, self.cell, self.secondary, self._pool, generator)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Output:
        """Predict what is dropped of normalized images [B, C, H, W]; without a mask, one is drawn.

        Raises:
            ValueError: the mask does not show one patch of every cell.
        """
        if mask is not None and mask.device.type == "cpu":  # a mask on a device is never waited for
            shown = functional.avg_pool2d((mask != 0).float(), self.cell) * self.cell**2
            if not torch.equal(shown.round(), torch.ones_like(shown)):
                raise ValueError(f"a mask must show one patch of every cell of {self.cell}x{self.cell}")
        return super().forward(images, mask)

    def encode(self, images: Tensor, mask: Tensor, per_image: int) -> list[Tensor]:
        """Return the tokens of the plane behind the network's last norm [B, h, w, C], and those without a place."""
        geometry, plane = self._geometry(mask), self.plane
        x_BHWC = plane.embed(geometry.plane(images))  # pixels are gathered first: the stem never sees the rest
        if self.secondary:
            replaced = geometry.replaced_at(*x_BHWC.shape[1:3])[..., None]
            x_BHWC = torch.where(replaced, self.vis_mask_token.to(x_BHWC.dtype), x_BHWC)
        return list(plane.body(plane.stem_norm(x_BHWC), geometry))

    def decode(self, features: list[Tensor], mask: Tensor, per_image: int) -> Tensor:
        """Return the prediction of dropped patches, zero where patches are kept: [B, C, H, W]."""
        places, grid = self.places(mask), (mask.shape[2], mask.shape[3])
        values = self.decoder(Latent(*features), *places, grid)
        return self.patches.put(values, places.hidden_BM, grid)

    def loss(self, prediction: Tensor, images: Tensor, mask: Tensor, per_image: int) -> Tensor:
        """Return the mean squared error over the values of dropped patches."""
        dropped = self._geometry(mask).dropped
        return functional.mse_loss(self.patches.take(prediction, dropped), self.patches.target(images, dropped))

    def places(self, mask: Tensor) -> Places:
        """Return where the decoder has the kept patches, in the order of cells, and the dropped ones, along rows."""
        geometry = self._geometry(mask)
        kept = geometry.kept
        return Places(kept.sort(1).values if self._legacy_positions else kept, geometry.dropped)

    def _geometry(self, mask: Tensor) -> Geometry:
        return Geometry.of(mask, self.cell, self.patches.size)


def cell_of(mask_ratio: float) -> int:
    """Return the k of which a ratio is 1 - 1/k**2.

    Raises:
        UserError: there is none.
    """
    cell = round(1 / math.sqrt(1 - mask_ratio))
    if 2 <= cell <= LARGEST_CELL and math.isclose(1 - 1 / cell**2, mask_ratio, abs_tol=1e-3):
        return cell
    ratios = ", ".join(f"{1 - 1 / k**2:.4g}" for k in range(2, 5))
    raise UserError(f"mask.ratio={mask_ratio} is none that keeps one patch of every k x k: those are {ratios}, …")


def _rounded(size: int, unit: int) -> int:
    return max(unit, round(size / unit) * unit)
