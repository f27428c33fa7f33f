"""What every pre-training method offers. Loop, images, probes, benchmark, export and studies know only this.

A method is a folder of this package: `config.py` with the dataclass of its settings, `model.py` with a class derived
from `Method`, and a line in `registry.py`.

Legend of shapes: B images of C channels, H x W pixels, of rows x columns patches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from spark.backbones.pyramid import Pyramid
from spark.errors import UserError
from spark.sparse.check import Equivalence
from spark.sparse.patches import patches_per_image
from spark.utils.weight_decay import decayed

if TYPE_CHECKING:
    from typing_extensions import Self


class Output(NamedTuple):
    """What a forward pass yields.

    Shapes:
        loss: scalar.
        prediction: [B, C, H, W], in the units of the method's targets (see `Method.reconstruct`).
        mask: [B, 1, rows, columns], as it was given, on the images' device.
        features: maps of the encoder, the finest first, as the method computes them.
    """

    loss: Tensor
    prediction: Tensor
    mask: Tensor
    features: Sequence[Tensor] = ()


class Method(nn.Module, ABC):
    """A masked image model around an encoder.

    A mask is one small integer tensor [B, 1, rows, columns]: 0 where a patch is hidden, 1 where it is visible, 2 where
    it is visible but replaced by a token. Every image shows equally many. Callers slice and chunk masks along B, and
    know no more of them.

    Attributes:
        name: as recipes, exports and records call the method.
        encoder: what is pre-trained: a Pyramid, and dense outside of `forward`.
        mask_ratio: share of the patches that training hides.
    """

    name: ClassVar[str]
    encoder: Any
    mask_ratio: float

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any) -> Self:
        """Build the model of a run; the one place that reads the settings that only this method has.

        Raises:
            UserError: the network or a setting is unsound.
        """

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the patches of an image.

        Raises:
            UserError: the size does not fit; the message names one that does.
        """

    @abstractmethod
    def check_batch(self, images: int, grid: tuple[int, int], processes: int = 1) -> None:
        """Make sure that so many images at a time are enough, as norms see them in each of the processes.

        Raises:
            UserError: they are too few.
        """

    @abstractmethod
    def draw_mask(
        self,
        batch: int,
        grid: tuple[int, int],
        generator: torch.Generator | None = None,
        mask_ratio: float | None = None,
    ) -> Tensor:
        """Draw the mask of a whole batch on the CPU: uint8 [batch, 1, *grid].

        Args:
            batch: number of images.
            grid: rows and columns.
            generator: without one, the CPU's default generator.
            mask_ratio: share of patches to hide; None: as in training.

        Raises:
            UserError: the ratio leaves nothing visible, or nothing hidden.
        """

    # A forward pass in its three parts. In each, nothing depends on the mask's values but what is computed on the
    # device: shapes follow from `per_image`, the number of patches that an image shows. So the parts can be compiled,
    # or captured as CUDA graphs.

    @abstractmethod
    def encode(self, images: Tensor, mask: Tensor, per_image: int) -> list[Tensor]:
        """Return the encoder's maps of what is visible of normalized images [B, C, H, W]."""

    @abstractmethod
    def decode(self, features: list[Tensor], mask: Tensor, per_image: int) -> Tensor:
        """Return the prediction [B, C, H, W]."""

    @abstractmethod
    def loss(self, prediction: Tensor, images: Tensor, mask: Tensor, per_image: int) -> Tensor:
        """Return how wrong the prediction is on hidden patches, a scalar: a mean over them."""

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Output:
        """Predict what is hidden of normalized images [B, C, H, W]; without a mask, one is drawn."""
        grid = self.grid(*images.shape[-2:])
        if mask is None:
            mask = self.draw_mask(len(images), grid)
        per_image = patches_per_image(mask != 0)  # while the mask is on the CPU: the device is never waited for
        mask = mask.to(images.device, non_blocking=True)
        features = self.encode(images, mask, per_image)
        prediction = self.decode(features, mask, per_image).to(images.dtype)  # not in autocast's half precision
        return Output(self.loss(prediction, images, mask, per_image), prediction, mask, features)

    @abstractmethod
    def reconstruct(self, images: Tensor, output: Output) -> Tensor:
        """Return the prediction in the images' units, what `output.mask` shows pasted: [B, C, H, W]."""

    @abstractmethod
    def encoder_state(self) -> dict[str, Tensor]:
        """Return the state of the dense encoder, in timm's naming or in that of the user's own class."""

    def decayed(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay applies to one of the method's parameters."""
        return decayed(name, parameter)

    @property
    def trivial_loss(self) -> float | None:
        """The loss of predicting each patch's mean; None where there is no such constant."""
        return None

    @property
    def engine(self) -> str:
        """How the encoder computes, where there is a choice, such as "compact"; else ""."""
        return ""

    @property
    def conversions(self) -> list[tuple[str, int, str]]:
        """What the method made of the network's layers: (class, how many, what became of them)."""
        return []

    def describe(self) -> list[str]:
        """Return lines for people on how steps are computed."""
        return []

    def compile(self, *args: Any, **options: Any) -> None:
        """Let torch.compile translate the three parts of the forward pass; `options` are its own."""
        for part in ("encode", "decode", "loss"):
            setattr(self, part, torch.compile(getattr(self, part), *args, **options))

    def checkpoint_activations(self) -> None:
        """Keep less of the encoder's forward pass in memory, and compute it a second time instead.

        Raises:
            UserError: the method, or this encoder, cannot.
        """
        raise UserError(f"the method {self.name} has no activation checkpointing; set train.recompute=false")

    @classmethod
    def verify(cls, model: Pyramid | nn.Module | str, engine: str | None) -> list[Equivalence]:
        """Prove for a network what the method makes of it; [] where nothing is converted.

        Args:
            model: the network, or its name.
            engine: that computes, where there is a choice; None: each that takes the network.

        Raises:
            RefusedError: the method cannot do with a layer of the network.
        """
        return []
