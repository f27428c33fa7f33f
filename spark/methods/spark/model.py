"""SparK: mask -> encode sparsely -> densify -> decode -> loss on the masked patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spark.backbones.pyramid import Pyramid, require_maps, require_pyramid
from spark.backbones.timm_pyramid import as_pyramid, build_pyramid, dense_part
from spark.errors import UserError
from spark.masking import enlarge, random_mask, visible_count
from spark.methods.base import Method, Output
from spark.methods.spark.activation_checkpointing import checkpoint_activations
from spark.methods.spark.config import SparKConfig
from spark.methods.spark.decoder import UNetDecoder
from spark.methods.spark.densify import Densify, norm_like
from spark.methods.targets import normalize_patches
from spark.sparse.check import Equivalence, verify
from spark.sparse.convert import join, sparsify
from spark.sparse.layers import COMPOSITION
from spark.sparse.patches import patch_ids, put_patches, take_patches
from spark.sparse.rule import LayerRule, sparse_layers_of


class SparK(Method):
    """Masked image modeling for a convolutional network.

    Args:
        backbone: the network as a feature pyramid, a timm model, or the name of a network (see `build_pyramid`). It is
            converted in place and keeps its parameter names.
        mask_ratio: share of patches that are hidden.
        decoder_width: channels of the coarsest decoder level.
        engine: how the sparse encoder computes: "compact", "masked", or "auto" (the fastest that can).
        extra_layers: kinds of the user's own layers, by exact type, beside those that the network itself names.
        mask_patch_size: side in pixels of the squares that are hidden: a multiple of the encoder's stride, None for
            the stride itself. Only masks become coarser. A patch is a square of one stride everywhere else, in the
            loss too: each one is normalized by its own mean and deviation, whatever it was hidden with.

    Raises:
        UserError: the network is no pyramid, or has layers without sparse form, or a size does not fit another.
    """

    name = "spark"

    def __init__(
        self,
        backbone: Pyramid | nn.Module | str,
        mask_ratio: float = 0.6,
        decoder_width: int = 768,
        engine: str = "auto",
        extra_layers: Mapping[type[nn.Module], LayerRule] | None = None,
        mask_patch_size: int | None = None,
    ) -> None:
        super().__init__()
        pyramid: Any = as_pyramid(backbone)
        require_pyramid(pyramid)
        self.stride: int = pyramid.strides[-1]
        self.mask_ratio = mask_ratio
        self.mask_patch_size = self.stride if mask_patch_size is None else mask_patch_size
        if self.mask_patch_size < 1 or self.mask_patch_size % self.stride:
            raise UserError(
                f"mask.patch_size={mask_patch_size} is no multiple of the encoder's stride {self.stride}; "
                f"use e.g. {max(self.stride, _rounded(self.mask_patch_size, self.stride))}"
            )
        self.in_chans = in_chans = pyramid.example().shape[1]

        norm = norm_like(pyramid)  # asked before conversion changes the layers' classes
        extra_layers = sparse_layers_of(pyramid, extra_layers)
        self.encoder = pyramid
        self.visible = sparsify(self.encoder, pyramid.example(), engine, extra_layers)
        require_maps(self.encoder, pyramid.example())
        self.decoder = UNetDecoder(self.stride, decoder_width, in_chans)
        self.densify = nn.ModuleList()
        self._levels: list[int | None] = []  # for each decoder block, which densified map joins it
        maps = dict(zip(pyramid.strides, pyramid.channels, strict=True))
        for block, width in enumerate(self.decoder.widths):
            stride = self.stride >> block
            if stride not in maps:
                self._levels.append(None)
                continue
            self._levels.append(len(self.densify))
            level = Densify(maps[stride], width, kernel_size=1 if block == 0 else 3, norm=norm)
            join(level.norm, self.visible, extra_layers)
            self.densify.append(level)

    @classmethod
    def from_config(cls, config: SparKConfig) -> SparK:
        """Build the model of a run.

        Raises:
            UserError: the network is unknown or refused, or a size does not fit another.
        """
        network = config.model
        pyramid = build_pyramid(network.name, network.in_chans, network.drop_path, network.options)
        return cls(
            pyramid, config.mask.ratio, config.decoder.width, config.engine, mask_patch_size=config.mask.patch_size
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return how many patches an image has, down and across; UserError if it is not made of whole ones."""
        unit = self.mask_patch_size
        if height % unit or width % unit:
            what = f"the encoder's stride {unit}" if unit == self.stride else f"mask.patch_size={unit}"
            raise UserError(
                f"input size {height}x{width} is not divisible by {what}; "
                f"use e.g. {_rounded(height, unit)}x{_rounded(width, unit)}"
            )
        return height // self.stride, width // self.stride

    def visible_per_image(self, grid: tuple[int, int]) -> int:
        """Return how many patches of an image a drawn mask shows; UserError if that is none, or all."""
        square = self.mask_patch_size // self.stride
        return visible_count(grid[0] * grid[1] // square**2, self.mask_ratio) * square**2

    def check_batch(self, images: int, grid: tuple[int, int], processes: int = 1) -> None:
        """Make sure that batch norms see two positions or more; UserError if they do not."""
        if self.visible_per_image(grid) * images < 2:
            raise UserError("a batch norm needs two visible patches or more: "
                            "raise train.batch, train.device_batch or data.input_size")
        if self.visible.norms_of_vectors and images * processes < 2:
            raise UserError("the network has batch norms within gates, which need two images or more at a time: raise "
                            "train.batch or train.device_batch")

    def draw_mask(
        self,
        batch: int,
        grid: tuple[int, int],
        generator: torch.Generator | None = None,
        mask_ratio: float | None = None,
    ) -> Tensor:
        """Draw a mask, uint8 [batch, 1, *grid] on the CPU, of the model's mask ratio or another one."""
        ratio = self.mask_ratio if mask_ratio is None else mask_ratio
        return random_mask(batch, grid, ratio, generator, self.mask_patch_size // self.stride).to(torch.uint8)

    @property
    def trivial_loss(self) -> float:
        """The loss of predicting each patch's mean.

        A target has its patch's mean 0 and unbiased variance 1, so its mean square is (n - 1) / n for n values (pixels
        times channels). Patches of a single color have less: the target is 0 there.
        """
        return 1 - 1 / (self.stride**2 * self.in_chans)

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the state of the dense encoder, in timm's naming or in that of the user's own class."""
        return dense_part(self.encoder).state_dict()

    @property
    def engine(self) -> str:
        """How the sparse encoder computes."""
        return self.visible.engine

    @property
    def conversions(self) -> list[tuple[str, int, str]]:
        """What became of the network's layers, the most frequent first; blocks of layers are left out."""
        return [
            (layer, count, rule)
            for (layer, rule), count in self.visible.converted.most_common() if rule != COMPOSITION.name
        ]

    def describe(self) -> list[str]:
        """Say which engine computes, and why no faster one."""
        return [f"engine: {self.engine}" + (f" ({self.visible.stood_back})" if self.visible.stood_back else "")]

    def encode(self, images: Tensor, mask: Tensor, per_image: int) -> list[Tensor]:
        """Return the encoder's maps, the finest first, in its engine's layout."""
        with self.visible.use_mask(mask.bool(), per_image):
            return self.encoder(self.visible.enter(images))

    def decode(self, features: list[Tensor], mask: Tensor, per_image: int) -> Tensor:
        """Fill the holes of the encoder's maps and draw the image [B, C, H, W]."""
        coarsest_first = features[::-1]
        with self.visible.use_mask(mask.bool(), per_image):
            maps = [
                None if level is None else self.densify[level](coarsest_first[level], self.visible)
                for level in self._levels
            ]
        return self.decoder(maps)

    def loss(self, prediction: Tensor, images: Tensor, mask: Tensor, per_image: int) -> Tensor:
        """Squared error of the normalized patch (of one stride), averaged over the masked patches of the batch."""
        grid = mask.shape[-2:]
        hidden = patch_ids(~mask.bool(), grid.numel() - per_image)
        target, _, _ = normalize_patches(take_patches(images, hidden, *grid))
        # Every patch has the same number of pixels: the mean over patches of each one's mean is that over all.
        return functional.mse_loss(take_patches(prediction, hidden, *grid), target)

    def checkpoint_activations(self) -> None:
        """Keep less of the encoder's forward pass; UserError if the encoder is not made of blocks."""
        if not checkpoint_activations(self.encoder, self.visible):
            raise UserError("the encoder is not made of blocks that could be recomputed; set train.recompute=false")

    @classmethod
    def verify(cls, model: Pyramid | nn.Module | str, engine: str | None) -> list[Equivalence]:
        """Prove that the sparse network is the dense one on what is visible, for one engine or each that takes it."""
        results = [verify(model, engine or "auto")]
        if engine is None and results[0].engine != "masked":
            results.append(verify(model, "masked"))
        return results

    def feature_maps(self, output: Output) -> list[Tensor]:
        """Return the encoder's maps [B, channels, H / stride, W / stride], zero in the holes."""
        with self.visible.use_mask(output.mask.bool()):
            return [self.visible.leave(feature) for feature in output.features]

    def reconstruct(self, images: Tensor, output: Output) -> Tensor:
        """Return the predicted image in the images' units, with the visible patches pasted: [B, C, H, W]."""
        grid = output.mask.shape[-2:]
        every = torch.arange(len(images) * grid.numel(), device=images.device)
        _, mean, deviation = normalize_patches(take_patches(images, every, *grid))
        patches = take_patches(output.prediction, every, *grid) * deviation + mean
        drawn = put_patches(patches, every, len(images), *grid)
        return torch.where(enlarge(output.mask.bool(), *images.shape[-2:]), images, drawn)


def _rounded(size: int, stride: int) -> int:
    return max(stride, round(size / stride) * stride)
