"""MAE: hide most patches -> encode the rest as a set -> decode all -> loss on the hidden ones (arXiv 2111.06377)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from spark.backbones.plane.encoder import Latent
from spark.backbones.plane.families import plane_encoder
from spark.backbones.plane.set_encoder import SetEncoder
from spark.backbones.timm_pyramid import TimmPyramid
from spark.errors import RefusedError
from spark.masking import random_mask
from spark.methods.mae.config import MAEConfig
from spark.methods.patch_targets import Patches
from spark.methods.plane_method import Places, PlaneMethod, network_of
from spark.methods.token_decoder import TokenDecoder


class MAE(PlaneMethod):
    """Masked modeling for a transformer that takes any set of patches.

    Args:
        pyramid: the network.
        size: height and width of the images that it is mostly used at.
        mask_ratio: share of the patches that is hidden.
        normalize_targets: predict patches normalized by their own mean and deviation.
        decoder: width, depth and heads.
        recompute_decoder: compute the decoder's blocks a second time instead of keeping what they computed.

    Raises:
        RefusedError: the network takes whole pictures only.
        UserError: a size does not fit another.
    """

    name = "mae"

    def __init__(
        self, pyramid: TimmPyramid, size: tuple[int, int], *, mask_ratio: float = 0.75, normalize_targets: bool = True,
        decoder: tuple[int, int, int] = (512, 8, 16), recompute_decoder: bool = False,
    ) -> None:
        stride = set_encoder(pyramid).stride
        super().__init__(pyramid, mask_ratio, Patches(stride, pyramid.in_chans, normalize_targets))
        width, depth, heads = decoder
        self.decoder = TokenDecoder(self.plane.width, self.grid(*size), self.patches.values, width, depth, heads)
        self.decoder.recompute = recompute_decoder

    @classmethod
    def from_config(cls, config: MAEConfig) -> MAE:
        """Build the model of a run.

        Raises:
            UserError: the network is unknown or refused, or a size does not fit another.
        """
        decoder = config.decoder
        return cls(
            *network_of(config),
            mask_ratio=config.mask.ratio, normalize_targets=config.normalize_targets,
            decoder=(decoder.width, decoder.depth, decoder.heads), recompute_decoder=decoder.recompute,
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of patches; UserError if the network has no such grid."""
        grid = self.patches.grid(height, width)
        self.plane.check_size(height, width, cell=1)
        return grid

    def draw_mask(
        self, batch: int, grid: tuple[int, int], generator: torch.Generator | None = None,
        mask_ratio: float | None = None,
    ) -> Tensor:
        """Draw a mask: visible patches anywhere."""
        ratio = self.mask_ratio if mask_ratio is None else mask_ratio
        return random_mask(batch, grid, ratio, generator, rounding=math.floor).to(torch.uint8)

    def encode(self, images: Tensor, mask: Tensor, per_image: int) -> list[Tensor]:
        """Return the visible tokens behind the network's last norm [B, 1, V, C], and those without a place."""
        encoder = set_encoder(self.encoder)
        visible_BV = Places.of(mask, per_image).visible_BV
        row = self.patches.in_a_row(self.patches.take(images, visible_BV))  # the stem never sees the rest
        x_BNC = encoder.stem_norm(encoder.embed(row)).flatten(1, 2)
        latent = encoder.attend(x_BNC, visible_BV)
        return [latent.tokens[:, None], latent.prefix]

    def decode(self, features: list[Tensor], mask: Tensor, per_image: int) -> Tensor:
        """Return the prediction of hidden patches, zero where patches are visible: [B, C, H, W]."""
        places, grid = Places.of(mask, per_image), (mask.shape[2], mask.shape[3])
        values = self.decoder(Latent(*features), *places, grid)
        return self.patches.put(values, places.hidden_BM, grid)

    def loss(self, prediction: Tensor, images: Tensor, mask: Tensor, per_image: int) -> Tensor:
        """Return the mean squared error over the values of hidden patches."""
        hidden = Places.of(mask, per_image).hidden_BM
        return functional.mse_loss(self.patches.take(prediction, hidden), self.patches.target(images, hidden))


def set_encoder(pyramid: TimmPyramid) -> SetEncoder:
    """Return a network as what encodes sets of tokens.

    Raises:
        RefusedError: it takes whole pictures, or planes, only.
    """
    encoder = plane_encoder(pyramid.network)
    if isinstance(encoder, SetEncoder):
        return encoder
    raise RefusedError(
        f"{type(pyramid.network).__name__} does not take any set of patches, as MAE needs it; method=um_mae masks "
        "pyramids so that what is visible is a picture, method=simmim replaces what is hidden"
    )
