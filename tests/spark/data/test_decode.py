"""Every kind of image loads as a person expects; FORMATS is the table of those tried."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import tifffile
from PIL import Image

from spark.data.decode import UnreadableImageError, decode

GRAY_16 = np.repeat(np.array([[0, 257 * 100, 65535]], dtype=np.uint16), 2, axis=0)
GRAY = (GRAY_16 // 257).astype(np.uint8)
COLOR = np.array([[[255, 0, 0], [0, 128, 255], [10, 20, 30]]] * 2, dtype=np.uint8)
COLOR_16 = COLOR.astype(np.uint16) * 257
ALPHA = np.array([[0, 255, 51]] * 2, dtype=np.uint8)
RGBA = np.dstack([COLOR, ALPHA])
ON_WHITE = np.array([[[255, 255, 255], [0, 128, 255], [206, 208, 210]]] * 2, dtype=np.uint8)
BANDS = np.random.RandomState(0).randint(0, 256, (5, 7, 12), dtype=np.uint8)

# Three colors that are the same in 8 bits, of which the first shall be transparent.
NEAR_16 = np.array([[[0x1234, 0x1200, 0x12FF], [0x1235, 0x1200, 0x12FF], [0x1200, 0x1234, 0x12FF]]] * 2, np.uint16)
FADED = np.array([[255, 100, 255]] * 2, dtype=np.uint8)  # GRAY with ALPHA, on white
TOGETHER = {"planarconfig": "contig", "extrasamples": ["unassalpha"]}
SEPARATE = {"planarconfig": "separate", "photometric": "rgb"}


def pillow(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def array(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    return pillow(Image.fromarray(pixels), kind, **options)


def palette(**options: object) -> bytes:
    return pillow(Image.fromarray(COLOR).convert("P", palette=Image.Palette.ADAPTIVE), "PNG", **options)


def png_16(pixels: np.ndarray, key: tuple[int, ...] = ()) -> bytes:
    """Write gray, RGB or RGBA of 16 bits, which Pillow cannot, maybe with a transparent color."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows, key)


def png(width: int, height: int, depth: int, kind: int, rows: bytes, key: tuple[int, ...] = ()) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    transparent = [(b"tRNS", struct.pack(f">{len(key)}H", *key))] if key else []
    chunks = [(b"IHDR", header), *transparent, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
              for name, data in chunks)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def npy(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


def turned(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    return array(COLOR, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


FORMATS: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {  # what is written, and what is seen
    "PNG gray": (lambda: array(GRAY), GRAY),
    "PNG gray, 16 bits": (lambda: array(GRAY_16), GRAY),
    "PNG black and white": (lambda: pillow(Image.fromarray(GRAY).convert("1", dither=0), "PNG"), (GRAY > 127) * 255),
    "PNG gray with alpha": (
        lambda: pillow(Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(ALPHA)]), "PNG"),
        np.array([[255, 100, 255]] * 2),
    ),
    "PNG color": (lambda: array(COLOR), COLOR),
    "PNG color, 16 bits": (lambda: png_16(COLOR_16), COLOR),
    "PNG RGBA, on white": (lambda: array(RGBA), ON_WHITE),
    "PNG RGBA, 16 bits, on white": (lambda: png_16(RGBA.astype(np.uint16) * 257), ON_WHITE),
    "PNG palette": (palette, COLOR),
    "PNG palette with a transparent color": (
        lambda: palette(transparency=Image.open(io.BytesIO(palette())).getpixel((1, 0))),
        np.where((COLOR == [0, 128, 255]).all(2, keepdims=True), 255, COLOR),
    ),
    "PNG color with a transparent color": (
        lambda: array(COLOR, transparency=(255, 0, 0)),
        np.where((COLOR == [255, 0, 0]).all(2, keepdims=True), 255, COLOR),
    ),
    "PNG turned by EXIF": (lambda: turned("PNG"), np.rot90(COLOR, -1)),
    "WebP": (lambda: array(COLOR, "WEBP", lossless=True), COLOR),
    "WebP turned by EXIF": (lambda: turned("WEBP"), np.rot90(COLOR, -1)),
    "WebP RGBA, on white": (lambda: array(RGBA, "WEBP", lossless=True, exact=True), ON_WHITE),
    "BMP": (lambda: array(COLOR, "BMP"), COLOR),
    "PPM": (lambda: array(COLOR, "PPM"), COLOR),
    "PGM, 16 bits": (lambda: array(GRAY_16, "PPM"), GRAY),
    "GIF, the first picture": (
        lambda: pillow(Image.fromarray(GRAY), "GIF", save_all=True, append_images=[Image.new("L", (3, 2))]), GRAY
    ),
    "TIFF gray": (lambda: array(GRAY, "TIFF"), GRAY),
    "TIFF gray, 16 bits": (lambda: array(GRAY_16, "TIFF"), GRAY),
    "TIFF gray, 16 bits, big-endian": (lambda: tiff(GRAY_16, byteorder=">"), GRAY),
    "TIFF color, 16 bits": (lambda: tiff(COLOR_16, photometric="rgb"), COLOR),
    "TIFF color, LZW": (lambda: array(COLOR, "TIFF", compression="tiff_lzw"), COLOR),
    "TIFF CMYK": (
        lambda: pillow(Image.fromarray(COLOR).convert("CMYK"), "TIFF"), COLOR
    ),
    "PNG gray, 16 bits, with a transparent gray": (
        lambda: png_16(NEAR_16[..., :1], key=(0x1234,)), np.array([[[255] * 3, [18] * 3, [18] * 3]] * 2)
    ),
    "PNG gray and alpha, 16 bits": (
        lambda: png_16(np.dstack([COLOR_16[..., :1], ALPHA.astype(np.uint16) * 257])),
        np.array([[[255] * 3, [0] * 3, [206] * 3]] * 2),
    ),
    "PNG color, 16 bits, with a transparent color": (
        lambda: png_16(NEAR_16, key=(0x1234, 0x1200, 0x12FF)), np.array([[[255] * 3, [18] * 3, [18] * 3]] * 2)
    ),
    "PNG gray, 4 bits, with a transparent gray": (
        lambda: png(4, 1, 4, 0, b"\0\x05\xaf", key=(5,)), np.array([[0, 255, 170, 255]])
    ),
    "PNG gray, 2 bits, with a transparent gray": (
        lambda: png(4, 1, 2, 0, b"\0\x1b", key=(1,)), np.array([[0, 255, 170, 255]])
    ),
    "PNG gray, 8 bits, with a transparent gray": (
        lambda: png(3, 1, 8, 0, b"\0\x05\x06\x07", key=(6,)), np.array([[5, 255, 7]])
    ),
    **{
        f"TIFF {name}, {order}": ((lambda write=write, order=order: tiff(*write[0], byteorder=order, **write[1])), seen)
        for order in "<>"
        for name, (write, seen) in {
            "white is zero": (((GRAY,), {"photometric": "miniswhite"}), 255 - GRAY),
            "white is zero, 1 bit": (((GRAY > 127,), {"photometric": "miniswhite"}), (GRAY <= 127) * 255),
            "white is zero, 16 bits": (((GRAY_16,), {"photometric": "miniswhite"}), 255 - GRAY),
            "white is zero, 16 bits, deflated": (
                ((GRAY_16,), {"photometric": "miniswhite", "compression": "zlib", "predictor": True}), 255 - GRAY
            ),
            "white is zero, 16 bits, turned": (
                ((GRAY_16,), {"photometric": "miniswhite", "extratags": [(274, 3, 1, 6, True)]}),
                np.rot90(255 - GRAY, -1),
            ),
            "gray and alpha": (((np.dstack([GRAY, ALPHA]),), {**TOGETHER, "photometric": "minisblack"}), FADED),
            "gray and alpha, 16 bits": (
                ((np.dstack([GRAY, ALPHA]).astype(np.uint16) * 257,), {**TOGETHER, "photometric": "minisblack"}), FADED
            ),
            "gray and alpha, 16 bits, white is zero": (
                ((np.dstack([255 - GRAY, ALPHA]).astype(np.uint16) * 257,), {**TOGETHER, "photometric": "miniswhite"}),
                FADED,
            ),
            "color after color": (((COLOR.transpose(2, 0, 1),), SEPARATE), COLOR),
            "color after color, 16 bits": (((COLOR_16.transpose(2, 0, 1),), SEPARATE), COLOR),
            "color after color, 16 bits, turned": (
                ((COLOR_16.transpose(2, 0, 1),), {**SEPARATE, "extratags": [(274, 3, 1, 6, True)]}),
                np.rot90(COLOR, -1),
            ),
            "color after color, with alpha": (
                ((RGBA.transpose(2, 0, 1),), {**SEPARATE, "extrasamples": ["unassalpha"]}), ON_WHITE
            ),
            "color after color, 16 bits, with alpha": (
                ((RGBA.transpose(2, 0, 1).astype(np.uint16) * 257,), {**SEPARATE, "extrasamples": ["unassalpha"]}),
                ON_WHITE,
            ),
            "color after color, with a band that is no alpha": (
                ((RGBA.transpose(2, 0, 1),), {**SEPARATE, "extrasamples": ["unspecified"]}), COLOR
            ),
            "RGBA, 16 bits": (
                ((RGBA.astype(np.uint16) * 257,), {"photometric": "rgb", "extrasamples": ["unassalpha"]}), ON_WHITE
            ),
            "the first of two pages, 16 bits": (
                ((np.stack([GRAY_16, GRAY_16[:, ::-1]]),), {"photometric": "miniswhite"}), 255 - GRAY
            ),
        }.items()
    },
    ".npy": (lambda: npy(COLOR), COLOR),
    ".npy, 16 bits": (lambda: npy(COLOR_16), COLOR),
}  # fmt: skip


CORNERS = np.kron(  # 16 x 32 pixels, each quarter of a gray of its own
    np.array([[[0] * 3, [80] * 3], [[160] * 3, [240] * 3]], dtype=np.uint8), np.ones((8, 16, 1), dtype=np.uint8)
)
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # what the eight values of EXIF's orientation ask for
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_kind_of_image_is_seen_as_rgb(name: str) -> None:
    write, expected = FORMATS[name]
    if expected.ndim == 2:
        expected = np.dstack([expected] * 3)
    pixels = decode(io.BytesIO(write()))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCbCr"])
def test_every_kind_of_jpeg_is_seen_as_rgb(mode: str) -> None:
    red = Image.new("RGB", (16, 16), (200, 40, 40)).convert(mode)
    pixels = decode(io.BytesIO(pillow(red, "JPEG", quality=100))).reshape(-1, 3)
    expected = np.asarray(Image.new(mode, (1, 1), red.getpixel((0, 0))).convert("RGB"))[0, 0]
    assert np.abs(pixels - expected.astype(int)).max() <= 3


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_jpeg_is_turned_and_mirrored_as_its_camera_says(orientation: int, progressive: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = array(CORNERS, "JPEG", quality=100, subsampling=0, exif=exif, progressive=progressive)
    seen, expected = decode(io.BytesIO(stored)), UPRIGHT[orientation](CORNERS)
    assert seen.shape == expected.shape
    assert np.abs(seen - expected.astype(int)).max() <= 3


# Other numbers of channels

LUMINANCE = np.asarray(Image.fromarray(COLOR).convert("L"))
CHANNELS: dict[str, tuple[int, Callable[[], bytes], np.ndarray]] = {
    "1 of color: luminance": (1, lambda: array(COLOR), LUMINANCE),
    "1 of gray, 16 bits": (1, lambda: array(GRAY_16), GRAY),
    "1 of RGBA, on white": (1, lambda: array(RGBA), np.asarray(Image.fromarray(ON_WHITE).convert("L"))),
    "1 of .npy [H, W]": (1, lambda: npy(GRAY), GRAY),
    "4 of RGBA: as stored": (4, lambda: array(RGBA), RGBA),
    "4 of color: opaque": (4, lambda: array(COLOR), np.dstack([COLOR, np.full((2, 3), 255)])),
    "4 of a TIFF with RGBA": (4, lambda: array(RGBA, "TIFF"), RGBA),
    "4 of a TIFF with RGB and infrared": (
        4, lambda: tiff(BANDS[..., :4], photometric="rgb", extrasamples=["unspecified"]), BANDS[..., :4]
    ),
    "4 of a TIFF of bands": (
        4, lambda: tiff(BANDS[..., :4], photometric="minisblack", planarconfig="contig"), BANDS[..., :4]
    ),
    "4 of a TIFF, a page each": (
        4, lambda: tiff(BANDS[..., :4].transpose(2, 0, 1), photometric="minisblack"), BANDS[..., :4]
    ),
    "4 of a TIFF in gray: opaque": (
        4, lambda: array(GRAY, "TIFF"), np.dstack([GRAY, GRAY, GRAY, np.full((2, 3), 255)])
    ),
    "12 of a TIFF, bands together": (
        12, lambda: tiff(BANDS, photometric="minisblack", planarconfig="contig"), BANDS
    ),
    "12 of a TIFF, band after band": (
        12, lambda: tiff(BANDS.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate"), BANDS
    ),
    "12 of a TIFF, a page each": (12, lambda: tiff(BANDS.transpose(2, 0, 1), photometric="minisblack"), BANDS),
    "12 of a TIFF, 16 bits, deflated": (
        12, lambda: tiff(BANDS.astype(np.uint16) * 257, planarconfig="contig", compression="zlib"), BANDS
    ),
    "12 of .npy": (12, lambda: npy(BANDS), BANDS),
    "2 of .npy, 16 bits, big-endian": (2, lambda: npy(BANDS[..., :2].astype(">u2") * 257), BANDS[..., :2]),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANNELS)
def test_other_numbers_of_channels(name: str) -> None:
    channels, write, expected = CHANNELS[name]
    pixels = decode(io.BytesIO(write()), channels)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected.reshape(*expected.shape[:2], channels))


# What cannot be read says why

NOISE = np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("content", "channels", "reason"),
    [
        (b"", 3, "not an image"),
        (b"<html>404</html>", 3, "not an image"),
        (array(NOISE)[:2000], 3, "truncated"),
        (array(NOISE, "JPEG")[:2000], 3, "truncated"),
        (array(NOISE, "WEBP")[:2000], 3, "Error"),
        (array(NOISE, "TIFF")[:2000], 3, "Error"),
        (array(np.ones((4, 4), np.float32), "TIFF"), 3, "no known range"),
        (array(np.full((4, 4), 70000, np.int32), "TIFF"), 3, "more than 16 bits"),
        (tiff(np.array([[0, np.nan]], np.float32)), 3, "no known range"),
        (tiff(np.array([[0, np.nan]])), 3, "no known range"),
        (tiff(np.ones((4, 4, 3), np.float32), photometric="rgb"), 3, "no known range"),
        (tiff(np.ones((4, 4, 4), np.uint16), photometric="separated", planarconfig="separate"), 3, "a TIFF of 4 b"),
        (npy(np.ones((4, 4, 3), np.float32)), 3, "float32, neither uint8 nor uint16"),
        (npy(BANDS.transpose(2, 0, 1)), 12, r"\[12, 5, 7\], not \[height, width, 12\]"),
        (npy(COLOR)[:90], 3, "."),
        (npy(np.array([{}])), 3, "pickle"),
        (array(COLOR), 12, "has 3 channels, not 12"),
        (tiff(BANDS, planarconfig="contig"), 5, r"\[5, 7, 12\], not \[height, width, 5\]"),
        (tiff(BANDS, planarconfig="contig"), 3, "."),
        (tiff(BANDS, planarconfig="contig")[:300], 12, "."),
    ],
)
def test_what_cannot_be_read_says_why(content: bytes, channels: int, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        decode(io.BytesIO(content), channels)
    assert "\n" not in str(caught.value)


def test_a_missing_tiff_reader_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO(tiff(BANDS, planarconfig="contig"))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UnreadableImageError, match="pip install tifffile"):
        decode(content, 12)
