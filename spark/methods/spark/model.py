"""SparK: mask -> encode sparsely -> densify -> decode -> loss on the masked patches."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from spark.backbones.pyramid import Pyramid
from spark.backbones.timm_pyramid import as_pyramid, build_pyramid
from spark.methods.spark.config import SparKConfig
from spark.methods.spark.decoder import UNetDecoder
from spark.methods.spark.densify import Densify, norm_like
from spark.methods.sparse_method import SparseMethod
from spark.sparse.convert import join
from spark.sparse.rule import LayerRule, sparse_layers_of


class SparK(SparseMethod):
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
        pyramid = as_pyramid(backbone)
        layers = sparse_layers_of(pyramid, extra_layers)
        super().__init__(pyramid, mask_ratio, engine, layers, mask_patch_size)
        norm = norm_like(self.encoder)
        self.decoder = UNetDecoder(self.stride, decoder_width, self.in_chans)
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
            join(level.norm, self.visible, layers)
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

    def decode(self, features: list[Tensor], mask: Tensor, per_image: int) -> Tensor:
        """Fill the holes of the encoder's maps and draw the image [B, C, H, W]."""
        coarsest_first = features[::-1]
        with self.visible.use_mask(mask.bool(), per_image):
            maps = [
                None if level is None else self.densify[level](coarsest_first[level], self.visible)
                for level in self._levels
            ]
        return self.decoder(maps)
