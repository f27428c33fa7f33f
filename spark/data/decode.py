"""What an encoded image shows, as a person would see it: upright, on white, with 8 bits.

Values of 16 bits are scaled by the range of their type (65535 becomes 255), not by that of the image: an image's
brightness is part of it. What uses only a small part of that range is better stretched before training.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from spark.utils.optional import optional_package

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels
NPY_MAGIC = b"\x93NUMPY"
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
SAMPLES_PER_PIXEL = 277  # TIFF's tag
WHITE = (255, 255, 255, 255)


class UnreadableImageError(ValueError):
    """An image that cannot be decoded, or has other channels than asked for; the message says why."""


def decode(file: BinaryIO, channels: int = 3) -> np.ndarray:
    """Read an image as uint8 [H, W, channels].

    Args:
        file: seekable; any format that Pillow knows, a TIFF of any number of bands, or a .npy array [H, W, C].
        channels: 1 is luminance, 3 RGB, 4 RGBA as stored; of other numbers, the file must have as many.

    Raises:
        UnreadableImageError: whatever is wrong with it.
    """
    try:
        magic = file.read(len(NPY_MAGIC))
        file.seek(0)
        if magic == NPY_MAGIC:
            return _bands(np.load(file, allow_pickle=False), channels)
        if magic[:4] in TIFF_MAGICS and _has_bands(file, channels):
            return _bands(_read_tiff(file), channels)
        with Image.open(file) as image:
            return _pixels(image, channels)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        raise UnreadableImageError("not an image in a known format") from None
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from None


def load_image(path: Path) -> Image.Image:
    """Read an image file as RGB.

    Raises:
        OSError: it cannot be opened.
        UnreadableImageError: it cannot be decoded.
    """
    with path.open("rb") as file:
        return Image.fromarray(decode(file))


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    """Return an image's values [H, W, channels] as a person sees them."""
    if channels not in MODES:
        raise UnreadableImageError(f"has {len(image.getbands())} channels, not {channels}")
    upright = _eight_bits(ImageOps.exif_transpose(image))
    if upright.has_transparency_data and channels != 4:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, WHITE), upright)
    pixels = np.array(upright.convert(MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray values to 8 bits; Pillow's own conversion would clip them to white."""
    if image.mode == "F":
        raise UnreadableImageError("floating-point pixels have no known range")
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray(_scaled(np.asarray(image).astype(np.int64)))


def _scaled(values: np.ndarray) -> np.ndarray:
    """Scale whole numbers of 16 bits to 8."""
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImageError("pixels have more than 16 bits")
    return ((values.astype(np.int64) + 128) // 257).astype(np.uint8)


def _has_bands(file: BinaryIO, channels: int) -> bool:
    """Tell whether a TIFF is to be read as bands, of which Pillow would drop some, or refuse all."""
    if channels != 4:
        return channels not in MODES
    try:
        with Image.open(file) as image:
            # Pillow shows three of four bands, if none is declared as transparency, and one of four pages.
            bands = image.tag_v2.get(SAMPLES_PER_PIXEL, 1) * image.n_frames  # type: ignore[attr-defined]
            return image.mode != "RGBA" and bands == channels
    except UnidentifiedImageError:
        return True
    finally:
        file.seek(0)


def _read_tiff(file: BinaryIO) -> np.ndarray:
    """Return a TIFF's bands as [H, W, C]; some programs write them one after the other, or a page each."""
    tifffile = optional_package("tifffile", "a TIFF of many bands")
    with tifffile.TiffFile(file) as tiff:
        series = tiff.series[0]
        array = series.asarray()
        return np.moveaxis(array, 0, -1) if array.ndim == 3 and series.axes[-1] != "S" else array


def _bands(array: np.ndarray, channels: int) -> np.ndarray:
    """Return an array's values as uint8 [H, W, channels]."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] != channels:
        raise UnreadableImageError(f"has the shape {list(array.shape)}, not [height, width, {channels}]")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.newbyteorder("=") != np.uint16:
        raise UnreadableImageError(f"has values of type {array.dtype}, neither uint8 nor uint16")
    return _scaled(array)
