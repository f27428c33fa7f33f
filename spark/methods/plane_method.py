"""What methods share that mask the tokens of a transformer, and predict patches of pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from spark.backbones.plane.encoder import PlaneEncoder
from spark.backbones.plane.families import plane_encoder
from spark.backbones.timm_pyramid import TimmPyramid, build_sized, dense_part
from spark.config.pretrain import PretrainConfig
from spark.methods.base import Method, Output
from spark.methods.patch_targets import Patches
from spark.utils.weight_decay import decayed_by_shape


class Places(NamedTuple):
    """Where an image's patches are, counted along rows: of V visible ones and M hidden ones."""

    visible_BV: Tensor
    hidden_BM: Tensor

    @classmethod
    def of(cls, mask: Tensor, per_image: int) -> Places:
        """Read a mask [B, 1, rows, columns] of which every image shows `per_image` patches: each ascending."""
        # A stable sort instead of nonzero(): shapes do not depend on values.
        order = (mask == 0).flatten(1).to(torch.uint8).argsort(dim=1, stable=True)
        return cls(order[:, :per_image], order[:, per_image:])


class PlaneMethod(Method):
    """A masked image model around a network that is a plane encoder; masking and predicting are left to the method.

    Args:
        pyramid: the network.
        mask_ratio: share of the patches that training hides.
        patches: how they are predicted.

    Raises:
        RefusedError: the network cannot be a plane encoder.
    """

    def __init__(self, pyramid: TimmPyramid, mask_ratio: float, patches: Patches) -> None:
        super().__init__()
        self.encoder, self.mask_ratio, self.patches = pyramid, mask_ratio, patches
        self.plane.prepare()

    @property
    def plane(self) -> PlaneEncoder:
        """The network, as what encodes tokens."""
        return plane_encoder(self.encoder.network)

    def check_batch(self, images: int, grid: tuple[int, int], processes: int = 1) -> None:
        """Accept any: no norm looks across images."""

    def reconstruct(self, images: Tensor, output: Output) -> Tensor:
        """Return the prediction in the images' units, visible patches pasted (replaced ones, too)."""
        return self.patches.reconstruct(images, output.prediction, output.mask)

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the network's state, in its own naming."""
        return dense_part(self.encoder).state_dict()

    def decayed(self, name: str, parameter: nn.Parameter) -> bool:
        """Decay all but biases and vectors, as MAE does: tokens, too."""
        return decayed_by_shape(name, parameter)

    @property
    def trivial_loss(self) -> float | None:
        """The loss of predicting each patch's mean."""
        return self.patches.trivial_loss

    def describe(self) -> list[str]:
        """Say what of the network is not exact in this."""
        return self.plane.describe()


def network_of(config: PretrainConfig) -> tuple[TimmPyramid, tuple[int, int]]:
    """Build a run's network for the size of its images; return both.

    Raises:
        UserError: the network is unknown, or cannot be built so.
    """
    network, (height, width) = config.model, config.data.input_size
    size = (height, width)
    return build_sized(network.name, size, network.in_chans, network.drop_path, network.options), size
