"""What an encoded image shows, as a person would see it: upright, on white, with 8 bits.

Values of 16 bits are scaled by the range of their type (65535 becomes 255), not by that of the image: an image's
brightness is part of it. What uses only a small part of that range is better stretched before training.
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torchvision.io import decode_png

from spark.utils.optional import optional_package

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels
NPY_MAGIC = b"\x93NUMPY"
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
PNG_DEPTH = 24  # the byte of a PNG that holds its bits per sample
SEPARATE = 2  # the value of TIFF's planar configuration: one color after the other
# What Pillow calls a TIFF's samples: its colors, and what its alpha means (1 and 2; 0 is no alpha).
TIFF_MODES = {(1, 0): "L", (1, 1): "La", (1, 2): "LA", (3, 0): "RGB", (3, 1): "RGBa", (3, 2): "RGBA"}
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
        if magic[:4] in TIFF_MAGICS:
            return _decode_tiff(file, channels)
        with Image.open(file) as image:
            return _pixels(_keyed(image, file), channels)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        raise UnreadableImageError("not an image in a known format") from None
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from None


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    """Return an image's values [H, W, channels] as a person sees them."""
    if channels not in MODES:
        raise UnreadableImageError(f"has {len(image.getbands())} channels, not {channels}")
    upright = ImageOps.exif_transpose(_eight_bits(image))
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
    values = np.asarray(image).astype(np.int64)
    return _like(image, Image.fromarray(_scaled(65535 - values if _is_negative(image) else values)))


def _is_negative(image: Image.Image) -> bool:
    """Tell whether 0 is white in a TIFF, which Pillow heeds up to 8 bits only."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 and image.mode.startswith("I;16")


def _like(image: Image.Image, changed: Image.Image) -> Image.Image:
    """Return a changed image that still knows how its camera was held."""
    changed.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return changed


def _keyed(image: Image.Image, file: BinaryIO) -> Image.Image:
    """Make the transparent color of a gray or color PNG an alpha channel.

    The color is given in the file's own depth. Pillow compares it with pixels that it has brought to 8 bits.
    """
    if image.format != "PNG" or image.mode not in ("L", "I;16", "RGB") or "transparency" not in image.info:
        return image
    key = np.atleast_1d(image.info["transparency"])
    image.load()
    file.seek(0)
    content = file.read()
    depth = content[PNG_DEPTH]
    largest = 2**depth - 1
    if depth == 16 and image.mode == "RGB":  # of which Pillow has kept one byte
        stored = decode_png(torch.frombuffer(bytearray(content), dtype=torch.uint8)).permute(1, 2, 0).numpy()
    else:
        stored = np.asarray(image).reshape(image.height, image.width, -1)
        stored = stored // (255 // largest) if depth < 8 else stored
    opaque = (stored != key & largest).any(axis=2)
    colored = _eight_bits(_like(image, image.copy()))
    colored.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
    return colored


def _scaled(values: np.ndarray) -> np.ndarray:
    """Scale whole numbers of 16 bits to 8."""
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImageError("pixels have more than 16 bits")
    return ((values.astype(np.int64) + 128) // 257).astype(np.uint8)


def _decode_tiff(file: BinaryIO, channels: int) -> np.ndarray:
    """Read a TIFF: as bands, or as a person sees it; by Pillow if it can."""
    if _has_bands(file, channels):
        return _bands(_read_tiff(file), channels)
    if not _suits_pillow(file):
        return _pixels(_tiff_image(file), channels)
    with Image.open(file) as image:
        return _pixels(image, channels)


def _has_bands(file: BinaryIO, channels: int) -> bool:
    """Tell whether a TIFF is to be read as bands, of which Pillow would drop some, or refuse all."""
    if channels != 4:
        return channels not in MODES
    try:
        with Image.open(file) as image:
            # Pillow shows three of four bands, if none is declared as transparency, and one of four pages.
            bands = image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)  # type: ignore[attr-defined]
            pages = image.n_frames  # type: ignore[attr-defined]
            return image.mode != "RGBA" and bands * pages == channels
    except UnidentifiedImageError:
        return True
    finally:
        file.seek(0)


def _suits_pillow(file: BinaryIO) -> bool:
    """Tell whether Pillow reads a TIFF, and rightly: colors stored one after the other it may mix up."""
    try:
        with Image.open(file) as image:
            tags = image.tag_v2  # type: ignore[attr-defined]
            separate = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == SEPARATE
            deep = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8
            several = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) > 1
            return not (separate and several and (deep or TiffImagePlugin.EXTRASAMPLES in tags))
    except UnidentifiedImageError:
        return False
    finally:
        file.seek(0)


def _tiff_image(file: BinaryIO) -> Image.Image:
    """Return the first page of a TIFF that does not suit Pillow, gray or in color, with its transparency."""
    tifffile = optional_package("tifffile", "such a TIFF")
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages.first
        kind, depth = page.photometric.name, page.dtype
        colors = {"MINISWHITE": 1, "MINISBLACK": 1, "RGB": 3}.get(kind)
        if depth.kind == "f":
            raise UnreadableImageError("floating-point pixels have no known range")
        if colors is None or page.samplesperpixel > colors + 1:
            raise UnreadableImageError(f"a TIFF of {page.samplesperpixel} bands ({kind.lower()}, {depth})")
        values = page.asarray()
        if values.ndim == 2:
            values = values[:, :, None]
        elif page.planarconfig == SEPARATE:
            values = np.moveaxis(values, 0, -1)
        if kind == "MINISBLACK" and depth.itemsize > 2:  # as Pillow's, if they are no more than 16 bits
            values = _scaled(values)
        values = _bands(values, values.shape[2])
        if kind == "MINISWHITE":
            values[:, :, 0] = 255 - values[:, :, 0]
        alpha = int(page.extrasamples[0]) if page.extrasamples else 0
        kept = values[:, :, : colors + (alpha > 0)]
        image = Image.frombytes(TIFF_MODES[colors, alpha], values.shape[1::-1], kept.tobytes())
        orientation = page.tags.get(int(ExifTags.Base.Orientation))
        if orientation is not None:
            image.getexif()[ExifTags.Base.Orientation] = orientation.value
    return image


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
