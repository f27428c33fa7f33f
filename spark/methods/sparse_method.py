"""What methods share that encode what is visible with a sparse convolutional network, and draw the hidden patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from spark.backbones.pyramid import Pyramid, require_maps, require_pyramid
from spark.backbones.timm_pyramid import as_pyramid, dense_part
from spark.errors import UserError
from spark.masking import enlarge, random_mask, visible_count
from spark.methods.activation_checkpointing import checkpoint_activations
from spark.methods.base import Method, Output
from spark.methods.targets import normalize_patches
from spark.sparse.check import Equivalence, verify
from spark.sparse.convert import sparsify
from spark.sparse.layers import COMPOSITION
from spark.sparse.patches import patch_ids, put_patches, take_patches
from spark.sparse.rule import LayerRule


class SparseMethod(Method):
    """A masked image model around a convolutional network that is made sparse; decoding is left to the method.

    Args:
        backbone: the network as a feature pyramid, a timm model, or the name of a network (see `build_pyramid`). It is
            converted in place and keeps its parameter names.
        mask_ratio: share of patches that are hidden.
        engine: how the sparse encoder computes: "compact", "masked", or "auto" (the fastest that can).
        layers: rules for kinds of layers, by exact type, beside the general ones.
        mask_patch_size: side in pixels of the squares that are hidden: a multiple of the encoder's stride, None for
            the stride itself. Only masks become coarser. A patch is a square of one stride everywhere else, in the
            loss too: each one is normalized by its own mean and deviation, whatever it was hidden with.

    Raises:
        UserError: the network is no pyramid, or has layers without sparse form, or a size does not fit another.

    Attributes:
        rounding: of the number of visible patches.
        stride: of the encoder: a patch's side in pixels.
        visible: the state that the encoder's sparse layers share.
    """

    rounding: ClassVar[Callable[[float], int]] = round

    def __init__(
        self, backbone: Pyramid | nn.Module | str, mask_ratio: float, engine: str,
        layers: Mapping[type[nn.Module], LayerRule], mask_patch_size: int | None,
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
        self.in_chans: int = pyramid.example().shape[1]
        self.encoder = pyramid
        self.visible = sparsify(self.encoder, pyramid.example(), engine, layers)
        require_maps(self.encoder, pyramid.example())

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
        return visible_count(grid[0] * grid[1] // square**2, self.mask_ratio, type(self).rounding) * square**2

    def check_batch(self, images: int, grid: tuple[int, int], processes: int = 1) -> None:
        """Make sure that batch norms see two positions or more; UserError if they do not."""
        positions = self.visible_per_image(grid) * images
        if positions < 2 and any(isinstance(layer, _BatchNorm) for layer in self.modules()):
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
        square = self.mask_patch_size // self.stride
        return random_mask(batch, grid, ratio, generator, square, type(self).rounding).to(torch.uint8)

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
