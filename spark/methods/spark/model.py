"""SparK: mask -> encode sparsely -> densify -> decode -> loss on the masked patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from spark.backbones.pyramid import Pyramid, require_maps, require_pyramid
from spark.backbones.timm_pyramid import build_pyramid, dense_part
from spark.errors import UserError
from spark.masking import enlarge, random_mask, visible_count
from spark.methods.spark.activation_checkpointing import checkpoint_activations
from spark.methods.spark.decoder import UNetDecoder
from spark.methods.spark.densify import Densify, norm_like
from spark.methods.targets import normalize_patches
from spark.sparse.convert import join, sparsify
from spark.sparse.patches import patch_ids, patches_per_image, put_patches, take_patches
from spark.sparse.rule import LayerRule, sparse_layers_of


class SparKOutput(NamedTuple):
    """What a forward pass yields.

    Shapes:
        loss: scalar.
        features: maps of the encoder, the finest first, in its engine's layout (see `SparK.feature_maps`).
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
        engine: how the sparse encoder computes: "compact", "masked", or "auto" (the fastest that can).
        extra_layers: kinds of the user's own layers, by exact type, beside those that the network itself names.
        mask_patch_size: side in pixels of the squares that are hidden: a multiple of the encoder's stride, None for
            the stride itself. Only masks become coarser. A patch is a square of one stride everywhere else, in the
            loss too: each one is normalised by its own mean and deviation, whatever it was hidden with.

    Raises:
        UserError: the network is no pyramid, or has layers without sparse form, or a size does not fit another.
    """

    def __init__(
        self,
        backbone: Pyramid,
        mask_ratio: float = 0.6,
        decoder_width: int = 768,
        engine: str = "auto",
        extra_layers: Mapping[type[nn.Module], LayerRule] | None = None,
        mask_patch_size: int | None = None,
    ) -> None:
        super().__init__()
        require_pyramid(backbone)
        assert isinstance(backbone, nn.Module)
        self.stride = backbone.strides[-1]
        self.mask_ratio = mask_ratio
        self.mask_patch_size = self.stride if mask_patch_size is None else mask_patch_size
        if self.mask_patch_size < 1 or self.mask_patch_size % self.stride:
            raise UserError(
                f"mask.patch_size={mask_patch_size} is no multiple of the encoder's stride {self.stride}; "
                f"use e.g. {max(self.stride, _rounded(self.mask_patch_size, self.stride))}"
            )
        self.in_chans = in_chans = backbone.example().shape[1]

        norm = norm_like(backbone)  # asked before conversion changes the layers' classes
        extra_layers = sparse_layers_of(backbone, extra_layers)
        self.encoder: Any = backbone  # a pyramid and a module: no type says both
        self.visible = sparsify(self.encoder, backbone.example(), engine, extra_layers)
        require_maps(self.encoder, backbone.example())
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
            join(level.norm, self.visible, extra_layers)
            self.densify.append(level)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return how many patches an image has, down and across.

        Raises:
            UserError: the size is not divisible by the patch size, or by that of the mask.
        """
        unit = self.mask_patch_size
        if height % unit or width % unit:
            what = f"the encoder's stride {unit}" if unit == self.stride else f"mask.patch_size={unit}"
            raise UserError(
                f"input size {height}x{width} is not divisible by {what}; "
                f"use e.g. {_rounded(height, unit)}x{_rounded(width, unit)}"
            )
        return height // self.stride, width // self.stride

    def visible_per_image(self, grid: tuple[int, int], mask_ratio: float | None = None) -> int:
        """Return how many patches of an image a drawn mask shows, of the model's mask ratio or another one.

        Raises:
            UserError: none, or all.
        """
        square = self.mask_patch_size // self.stride
        ratio = self.mask_ratio if mask_ratio is None else mask_ratio
        return visible_count(grid[0] * grid[1] // square**2, ratio) * square**2

    def draw_mask(
        self,
        batch: int,
        grid: tuple[int, int],
        generator: torch.Generator | None = None,
        mask_ratio: float | None = None,
    ) -> Tensor:
        """Draw a mask [B, 1, *grid] on the CPU, True = visible, of the model's mask ratio or another one."""
        ratio = self.mask_ratio if mask_ratio is None else mask_ratio
        return random_mask(batch, grid, ratio, generator, self.mask_patch_size // self.stride)

    @property
    def trivial_loss(self) -> float:
        """The loss of predicting each patch's mean.

        A target has its patch's mean 0 and unbiased variance 1, so its mean square is (n - 1) / n for n values (pixels
        times channels). Patches of a single color have less: the target is 0 there.
        """
        return 1 - 1 / (self.stride**2 * self.in_chans)

    def dense_state(self) -> dict[str, Tensor]:
        """Return the state of the dense encoder, in timm's naming or in that of the user's own class."""
        return dense_part(self.encoder).state_dict()

    def forward(self, images: Tensor, mask: Tensor | None = None) -> SparKOutput:
        """Reconstruct the masked patches of normalised images [B, C, H, W].

        `mask` is boolean [B, 1, H / stride, W / stride], True = visible; without one it is drawn from the
        CPU's default generator.
        """
        grid = self.grid(*images.shape[-2:])
        if mask is None:
            mask = self.draw_mask(len(images), grid)
        per_image = patches_per_image(mask)  # while the mask is on the CPU: the device is never waited for
        mask = mask.to(images.device, non_blocking=True)
        features = self.encode(images, mask, per_image)
        prediction = self.decode(features, mask, per_image).to(images.dtype)  # not in autocast's half precision
        return SparKOutput(self.loss(prediction, images, mask, per_image), features, prediction, mask)

    # Below, nothing depends on the mask's values but what is computed on the device: shapes follow from `per_image`,
    # the number of visible patches of an image. So the three can be compiled, or captured as CUDA graphs.

    def encode(self, images: Tensor, mask: Tensor, per_image: int) -> list[Tensor]:
        """Return the encoder's maps, the finest first, in its engine's layout."""
        with self.visible.use_mask(mask, per_image):
            return self.encoder(self.visible.enter(images))

    def decode(self, features: list[Tensor], mask: Tensor, per_image: int) -> Tensor:
        """Fill the holes of the encoder's maps and draw the picture [B, C, H, W]."""
        coarsest_first = features[::-1]
        with self.visible.use_mask(mask, per_image):
            maps = [
                None if level is None else self.densify[level](coarsest_first[level], self.visible)
                for level in self._levels
            ]
        return self.decoder(maps)

    def loss(self, prediction: Tensor, images: Tensor, mask: Tensor, per_image: int) -> Tensor:
        """Squared error of the normalised patch (of one stride), averaged over the masked patches of the batch."""
        grid = mask.shape[-2:]
        hidden = patch_ids(~mask, grid.numel() - per_image)
        target, _, _ = normalize_patches(take_patches(images, hidden, *grid))
        # Every patch has the same number of pixels: the mean over patches of each one's mean is that over all.
        return functional.mse_loss(take_patches(prediction, hidden, *grid), target)

    def compile(self, **options: Any) -> None:
        """Let torch.compile translate encoder, decoder and loss; `options` are its own."""
        for part in ("encode", "decode", "loss"):
            setattr(self, part, torch.compile(getattr(self, part), **options))

    def checkpoint_activations(self) -> None:
        """Keep less of the encoder's forward pass in memory, and compute it a second time instead.

        Raises:
            UserError: the encoder is not made of blocks.
        """
        if not checkpoint_activations(self.encoder, self.visible):
            raise UserError("the encoder is not made of blocks that could be recomputed; set train.recompute=false")

    def feature_maps(self, output: SparKOutput) -> list[Tensor]:
        """Return the encoder's maps [B, channels, H / stride, W / stride], zero in the holes."""
        with self.visible.use_mask(output.mask):
            return [self.visible.leave(feature) for feature in output.features]

    def reconstruct(self, images: Tensor, output: SparKOutput) -> Tensor:
        """Return the predicted picture in the images' units, with the visible patches pasted: [B, C, H, W]."""
        grid = output.mask.shape[-2:]
        every = torch.arange(len(images) * grid.numel(), device=images.device)
        _, mean, deviation = normalize_patches(take_patches(images, every, *grid))
        patches = take_patches(output.prediction, every, *grid) * deviation + mean
        drawn = put_patches(patches, every, len(images), *grid)
        return torch.where(enlarge(output.mask, *images.shape[-2:]), images, drawn)


def build_spark(
    model: str,
    in_chans: int = 3,
    drop_path: float = 0.0,
    mask_ratio: float = 0.6,
    decoder_width: int = 768,
    engine: str = "auto",
    extra_layers: Mapping[type[nn.Module], LayerRule] | None = None,
    mask_patch_size: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> SparK:
    """Build SparK around a timm network by its name, or around a user's own (see `build_pyramid`)."""
    pyramid = build_pyramid(model, in_chans, drop_path, options)
    return SparK(pyramid, mask_ratio, decoder_width, engine, extra_layers, mask_patch_size)


def _rounded(size: int, stride: int) -> int:
    return max(stride, round(size / stride) * stride)
