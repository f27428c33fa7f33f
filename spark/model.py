"""SparK: mask -> encode sparsely -> densify -> decode -> loss on the masked patches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from spark.backbones import TimmPyramid
from spark.decoder import UNetDecoder
from spark.densify import Densify, norm_like
from spark.errors import UserError
from spark.masking import random_mask
from spark.sparse import VisiblePatches, sparsify

EPSILON = 1e-6  # under the square root that normalises a patch


class SparKOutput(NamedTuple):
    """What a forward pass yields.

    Shapes:
        loss: scalar.
        features: sparse maps of the encoder, the finest first, zero in the holes.
        prediction: [B, C, H, W], each patch in its own normalised units.
        mask: boolean [B, 1, H / stride, W / stride], True where a patch was visible.
    """

    loss: Tensor
    features: list[Tensor]
    prediction: Tensor
    mask: Tensor


class SparK(nn.Module):
    """Masked image modelling for a convolutional network.

    Args:
        backbone: the network as a feature pyramid; it is converted in place and keeps its parameter names.
        mask_ratio: share of patches that are hidden.
        decoder_width: channels of the coarsest decoder level.
        engine: how the sparse encoder computes: "masked" or "auto".
    """

    def __init__(
        self, backbone: TimmPyramid, mask_ratio: float = 0.6, decoder_width: int = 768, engine: str = "auto"
    ) -> None:
        super().__init__()
        self.stride = backbone.strides[-1]
        self.mask_ratio = mask_ratio
        self.visible = VisiblePatches()
        in_chans = backbone.example().shape[1]

        norm = norm_like(backbone)  # asked before conversion changes the layers' classes
        self.encoder = backbone
        sparsify(self.encoder, self.visible, backbone.example(), engine)
        self.decoder = UNetDecoder(self.stride, decoder_width, in_chans)
        self.densify = nn.ModuleList()
        self._levels: list[int | None] = []  # for each decoder block, which densified map joins it
        maps = dict(zip(backbone.strides, backbone.channels, strict=True))
        for block, width in enumerate(self.decoder.widths):
            stride = self.stride >> block
            if stride not in maps:
                self._levels.append(None)
                continue
            self._levels.append(len(self.densify))
            level = Densify(maps[stride], width, kernel_size=1 if block == 0 else 3, norm=norm)
            sparsify(nn.Sequential(level.norm), self.visible, torch.zeros(1, maps[stride], 2, 2), engine)
            self.densify.append(level)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return how many patches an image has, down and across.

        Raises:
            UserError: the size is not divisible by the patch size.
        """
        if height % self.stride or width % self.stride:
            raise UserError(
                f"input size {height}x{width} is not divisible by the encoder's stride {self.stride}; "
                f"use e.g. {_rounded(height, self.stride)}x{_rounded(width, self.stride)}"
            )
        return height // self.stride, width // self.stride

    def forward(self, images: Tensor, mask: Tensor | None = None) -> SparKOutput:
        """Reconstruct the masked patches of normalised images [B, C, H, W].

        `mask` is boolean [B, 1, H / stride, W / stride], True = visible; without one it is drawn from the
        CPU's default generator.
        """
        grid = self.grid(*images.shape[-2:])
        if mask is None:
            mask = random_mask(len(images), grid, self.mask_ratio)
        mask = mask.to(images.device, non_blocking=True)
        with self.visible.showing(mask):
            features = self.encoder(self.visible.hide(images))
            coarsest_first = features[::-1]
            maps = [
                None if level is None else self.densify[level](coarsest_first[level], self.visible)
                for level in self._levels
            ]
        prediction = self.decoder(maps).to(images.dtype)  # the loss is not taken in autocast's half precision
        return SparKOutput(self._loss(prediction, images, mask), features, prediction, mask)

    def _loss(self, prediction: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """Squared error of the normalised patch, averaged over the masked patches of the batch."""
        target, _, _ = self._normalised_patches(images)
        error_BL = (self._patches(prediction) - target).square().mean(dim=2)
        hidden_BL = ~mask.flatten(1)
        return (error_BL * hidden_BL).sum() / hidden_BL.sum()

    def reconstruct(self, images: Tensor, output: SparKOutput) -> Tensor:
        """Return the predicted picture in the images' units, with the visible patches pasted: [B, C, H, W]."""
        _, mean, deviation = self._normalised_patches(images)
        patches = self._patches(output.prediction) * deviation + mean
        drawn = self._picture(patches, *images.shape[1:])
        visible = output.mask.repeat_interleave(self.stride, 2).repeat_interleave(self.stride, 3)
        return torch.where(visible, images, drawn)

    def _patches(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, L, stride^2 * C], the L patches row by row.

        A patch is contiguous in memory, which makes its sums both fast and accurate in float32.
        """
        side = self.stride
        split = images.unflatten(2, (-1, side)).unflatten(4, (-1, side))  # [B, C, rows, side, columns, side]
        return split.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def _picture(self, patches: Tensor, channels: int, height: int, width: int) -> Tensor:
        """[B, L, stride^2 * C] -> [B, C, H, W]; the inverse of `_patches`."""
        side = self.stride
        split = patches.unflatten(1, (height // side, width // side)).unflatten(3, (side, side, channels))
        return split.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def _normalised_patches(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return patches normalised by their own mean and (unbiased) deviation, and both of these."""
        patches = self._patches(images)
        variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
        deviation = (variance + EPSILON).sqrt()
        return (patches - mean) / deviation, mean, deviation


def build_spark(
    model: str,
    in_chans: int = 3,
    drop_path: float = 0.0,
    mask_ratio: float = 0.6,
    decoder_width: int = 768,
    engine: str = "auto",
) -> SparK:
    """Build SparK around a timm network by name."""
    return SparK(TimmPyramid(model, in_chans, drop_path), mask_ratio, decoder_width, engine)


def _rounded(size: int, stride: int) -> int:
    return max(stride, round(size / stride) * stride)
