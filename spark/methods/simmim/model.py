"""SimMIM: a token in place of what is hidden -> encode all -> one linear layer -> L1 loss (arXiv 2111.09886)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from spark.backbones.plane.geometry import Whole
from spark.backbones.timm_pyramid import TimmPyramid
from spark.errors import UserError
from spark.masking import enlarge, random_mask
from spark.methods.patch_targets import Patches
from spark.methods.plane_method import Places, PlaneMethod, network_of
from spark.methods.simmim.config import OFFICIAL, UM, SimMIMConfig

TOKEN_STD = 0.02


class Reading(NamedTuple):
    """What the two implementations do differently, beside their settings.

    Attributes:
        rounding: of the number of visible patches.
        initialize: the last layer.
        token_decays: whether weight decay applies to the mask token.
    """

    rounding: Callable[[float], int]
    initialize: Callable[[nn.Linear], None]
    token_decays: bool


def _xavier(layer: nn.Linear) -> None:
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)


READINGS: Mapping[str, Reading] = MappingProxyType({
    OFFICIAL: Reading(math.floor, nn.Linear.reset_parameters, token_decays=False),
    UM: Reading(math.ceil, _xavier, token_decays=True),
})


class SimMIM(PlaneMethod):
    """Masked modeling for any network whose stem makes tokens.

    Args:
        pyramid: the network.
        size: height and width of the images that it is mostly used at.
        mask_ratio: share of the patches that is hidden.
        patch_size: side of a patch in pixels: a multiple of the stem's stride.
        normalize_targets: predict patches normalized by their own mean and deviation.
        reading: a name in READINGS.

    Raises:
        RefusedError: the network cannot be masked so.
        UserError: a size does not fit another.

    Attributes:
        mask_token: stands in place of the stem's tokens of hidden patches, behind the stem's norm.
        head: predicts all pixels of the last tokens' squares: channel, row, column.
    """

    name = "simmim"

    def __init__(
        self, pyramid: TimmPyramid, size: tuple[int, int], *, mask_ratio: float = 0.6, patch_size: int = 32,
        normalize_targets: bool = False, reading: str = OFFICIAL,
    ) -> None:
        super().__init__(pyramid, mask_ratio, Patches(patch_size, pyramid.in_chans, normalize_targets))
        self._reading = READINGS[reading]
        plane = self.plane
        if patch_size % plane.stride:
            raise UserError(f"mask.patch_size={patch_size} must be a multiple of the stem's stride {plane.stride}")
        self.grid(*size)
        self.mask_token = nn.Parameter(torch.empty(1, 1, plane.stem_width))
        nn.init.trunc_normal_(self.mask_token, std=TOKEN_STD)
        self.head = nn.Linear(plane.width, plane.total_stride**2 * pyramid.in_chans)
        self._reading.initialize(self.head)

    @classmethod
    def from_config(cls, config: SimMIMConfig) -> SimMIM:
        """Build the model of a run.

        Raises:
            UserError: the network is unknown or refused, or a size does not fit another.
        """
        mask = config.mask
        return cls(
            *network_of(config),
            mask_ratio=mask.ratio, patch_size=mask.patch_size, normalize_targets=config.normalize_targets,
            reading=config.reading,
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of patches; UserError if the network or the patches do not fit the size."""
        unit = math.lcm(self.plane.total_stride, self.patches.size)
        if height % unit or width % unit:
            raise UserError(
                f"input size {height}x{width} is not divisible by {unit}, of the network's stride and mask.patch_size; "
                f"use e.g. {_rounded(height, unit)}x{_rounded(width, unit)}"
            )
        self.plane.check_size(height, width, cell=1)
        return self.patches.grid(height, width)

    def draw_mask(
        self, batch: int, grid: tuple[int, int], generator: torch.Generator | None = None,
        mask_ratio: float | None = None,
    ) -> Tensor:
        """Draw a mask: hidden patches anywhere."""
        ratio = self.mask_ratio if mask_ratio is None else mask_ratio
        return random_mask(batch, grid, ratio, generator, rounding=self._reading.rounding).to(torch.uint8)

    def encode(self, images: Tensor, mask: Tensor, per_image: int) -> list[Tensor]:
        """Return the last tokens behind the network's norm [B, h, w, C], and those without a place."""
        plane = self.plane
        x_BHWC = plane.stem_norm(plane.embed(images))
        visible = enlarge(mask != 0, *x_BHWC.shape[1:3]).permute(0, 2, 3, 1)
        x_BHWC = torch.where(visible, x_BHWC, self.mask_token.to(x_BHWC.dtype))
        return list(plane.body(x_BHWC, Whole()))

    def decode(self, features: list[Tensor], mask: Tensor, per_image: int) -> Tensor:
        """Return the prediction of all patches: [B, C, H, W]."""
        tokens_BhwC = features[0]
        return functional.pixel_shuffle(self.head(tokens_BhwC).permute(0, 3, 1, 2), self.plane.total_stride)

    def loss(self, prediction: Tensor, images: Tensor, mask: Tensor, per_image: int) -> Tensor:
        """Return the mean absolute error over the values of hidden patches."""
        hidden = Places.of(mask, per_image).hidden_BM
        return functional.l1_loss(self.patches.take(prediction, hidden), self.patches.target(images, hidden))

    def decayed(self, name: str, parameter: nn.Parameter) -> bool:
        """Decay as MAE does, but perhaps for the mask token."""
        return super().decayed(name, parameter) and (self._reading.token_decays or parameter is not self.mask_token)

    @property
    def trivial_loss(self) -> float | None:
        """None: how far values are from their mean, images decide."""
        return None


def _rounded(size: int, unit: int) -> int:
    return max(unit, round(size / unit) * unit)
