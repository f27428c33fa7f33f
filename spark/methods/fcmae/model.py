"""FCMAE: mask -> encode sparsely -> fill the last map's holes -> a block -> loss on the masked patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

from spark.backbones.pyramid import Pyramid
from spark.backbones.timm_pyramid import as_pyramid, build_pyramid
from spark.backbones.tracing import output_of, parameters_reached
from spark.errors import UserError
from spark.methods.fcmae.batch_grn import OVER_BATCH
from spark.methods.fcmae.config import BATCH, IMAGE, NETWORK, ORIGINAL, FCMAEConfig
from spark.methods.fcmae.decoder import PatchDecoder
from spark.methods.fcmae.initialization import draw_as_the_original, draw_decoder
from spark.methods.sparse_method import SparseMethod
from spark.sparse.convert import freeze_unreached
from spark.sparse.rule import LayerRule, sparse_layers_of
from spark.utils.weight_decay import decayed_by_shape


class FCMAE(SparseMethod):
    """Masked image modeling for a convolutional network, ConvNeXt V2 or any other that is made sparse.

    Args:
        backbone: see `SparseMethod`; its last map alone is used.
        mask_ratio: share of patches that are hidden; the number of visible ones is rounded down.
        decoder_width: channels of the decoder's blocks.
        decoder_depth: number of them.
        engine: "compact", "masked", or "auto".
        grn: over what the encoder's global response norms go, IMAGE or BATCH.
        initialization: NETWORK or ORIGINAL.
        extra_layers: kinds of the user's own layers, by exact type, beside those that the network itself names.
        mask_patch_size: see `SparseMethod`.

    Raises:
        UserError: the network is no pyramid, or has layers without sparse form, or a size does not fit another.
    """

    name = "fcmae"
    rounding: ClassVar[Callable[[float], int]] = int

    def __init__(
        self,
        backbone: Pyramid | nn.Module | str,
        mask_ratio: float = 0.6,
        decoder_width: int = 512,
        decoder_depth: int = 1,
        engine: str = "auto",
        grn: str = IMAGE,
        initialization: str = NETWORK,
        extra_layers: Mapping[type[nn.Module], LayerRule] | None = None,
        mask_patch_size: int | None = None,
    ) -> None:
        pyramid = as_pyramid(backbone)
        layers = dict(sparse_layers_of(pyramid, extra_layers))
        if grn == BATCH:
            layers[GlobalResponseNorm] = OVER_BATCH
        super().__init__(pyramid, mask_ratio, engine, layers, mask_patch_size)
        if grn == BATCH and not _response_norms(self.encoder):
            raise UserError(f"grn={BATCH}, but the network has no global response norm; leave grn={IMAGE}")
        last = output_of(self.encoder, pyramid.example(), gradients=True)[-1]
        freeze_unreached(self.encoder, parameters_reached(last))
        self.decoder = PatchDecoder(pyramid.channels[-1], decoder_width, decoder_depth, self.stride, self.in_chans)
        if initialization == ORIGINAL:
            draw_as_the_original(self.encoder, self.decoder)
        else:
            draw_decoder(self.decoder)

    @classmethod
    def from_config(cls, config: FCMAEConfig) -> FCMAE:
        """Build the model of a run.

        Raises:
            UserError: the network is unknown or refused, or a size does not fit another.
        """
        network, mask, decoder = config.model, config.mask, config.decoder
        pyramid = build_pyramid(network.name, network.in_chans, network.drop_path, network.options)
        return cls(
            pyramid, mask.ratio, decoder.width, decoder.depth, config.engine, config.grn, config.initialization,
            mask_patch_size=mask.patch_size,
        )

    def encode(self, images: Tensor, mask: Tensor, per_image: int) -> list[Tensor]:
        """Return the encoder's last map, in its engine's layout."""
        return super().encode(images, mask, per_image)[-1:]

    def decode(self, features: list[Tensor], mask: Tensor, per_image: int) -> Tensor:
        """Fill the holes of the last map and draw the image [B, C, H, W]."""
        with self.visible.use_mask(mask.bool(), per_image):
            return self.decoder(features[-1], self.visible)

    def decayed(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay applies: in the original, to the mask token and to global response norms, too."""
        of_response_norms = (own for layer in _response_norms(self) for own in layer.parameters())
        return decayed_by_shape(name, parameter) or any(own is parameter for own in of_response_norms)


def _response_norms(network: nn.Module) -> list[nn.Module]:
    return [layer for layer in network.modules() if isinstance(layer, GlobalResponseNorm)]
