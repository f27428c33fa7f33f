"""Pictures of what a model has learnt to fill in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

from spark.data.pixels import denormalize
from spark.masking import enlarge
from spark.methods.base import Method
from spark.utils.files import atomic_path

GRAY = 0.5  # what a masked patch looks like in the image


@torch.no_grad()
def reconstruction_grid(
    model: Method, images: Tensor, mask: Tensor, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Draw a row per image: masked | reconstruction with the visible patches pasted | original.

    Args:
        model: left in the mode (train or eval) that it is in.
        images: normalised, [B, C, H, W]; see `displayable` for what is drawn of other channels than three.
        mask: [B, 1, rows, columns], as the model draws it.
        mean: of the normalisation.
        std: of the normalisation.

    Returns:
        One image [3, height, width] with values in 0..1.
    """
    was_training = model.training
    model.eval()
    output = model(images, mask)
    model.train(was_training)
    visible = enlarge(output.mask == 1, *images.shape[-2:])
    original, drawn = (denormalize(shown, mean, std) for shown in (images, model.reconstruct(images, output)))
    masked = torch.where(visible, original, GRAY)
    columns = displayable(torch.stack([masked, drawn, original], dim=1).flatten(0, 1))
    return make_grid(columns.float().cpu(), nrow=3, padding=4, pad_value=1.0)


def displayable(images: Tensor) -> Tensor:
    """Return the channels of images [B, C, H, W] that an image can show: the first three, or the first one as gray."""
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)


def save_image(image: Tensor, destination: Path) -> None:
    """Write an image [3, height, width] with values in 0..1 as PNG."""
    with atomic_path(destination) as temporary:
        to_pil_image(image).save(temporary)
