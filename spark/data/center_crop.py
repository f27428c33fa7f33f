"""An image as it is looked at rather than trained on: its middle, in the size that a network takes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from spark.data.decode import UnreadableImageError, decode
from spark.errors import UserError
from spark.utils.files import open_regular


def read_center(file: Path, channels: int, height: int, width: int) -> Tensor:
    """Return the largest centered part of that shape, resized: uint8 [channels, height, width].

    Raises:
        UserError: the image is missing or cannot be read.
    """
    try:
        with open_regular(file) as stream:
            pixels_CHW = torch.from_numpy(decode(stream, channels)).permute(2, 0, 1)
    except UnreadableImageError as error:
        raise UserError(f"image '{file}' cannot be read: {error}") from None
    except OSError as error:
        raise UserError(f"image '{file}' cannot be read: {error.strerror}") from None
    scale = max(height / pixels_CHW.shape[1], width / pixels_CHW.shape[2])
    covering_HW = [max(height, round(pixels_CHW.shape[1] * scale)), max(width, round(pixels_CHW.shape[2] * scale))]
    resized = functional.resize(pixels_CHW, covering_HW, interpolation=InterpolationMode.BICUBIC, antialias=True)
    return functional.center_crop(resized, [height, width])
