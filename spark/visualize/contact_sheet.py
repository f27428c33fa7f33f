"""A contact sheet: small images in captioned rows under named columns, pixel for pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

CELL = 128  # pixels: smaller images are enlarged by a whole number, so that their pixels stay square
GAP, HEADER, GUTTER = 8, 34, 176
TEXT, SOFT, PAGE = "#1d2329", "#5d6873", "#ffffff"
LINE = 19  # pixels from a caption's line to the next


class Row(NamedTuple):
    """Pictures of one size, and the lines that stand left of them, the most important one first."""

    caption: Sequence[str]
    images: Sequence[Image.Image]


def contact_sheet(columns: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """Draw the sheet; all images have the size of the first one."""
    width, height = (side * enlargement(rows[0].images[0].size) for side in rows[0].images[0].size)
    sheet = Image.new(
        "RGB", (GUTTER + len(columns) * (width + GAP) + GAP, HEADER + len(rows) * (height + GAP) + GAP), PAGE
    )
    draw = ImageDraw.Draw(sheet)
    bold, plain = ImageFont.load_default(15), ImageFont.load_default(13)
    for number, name in enumerate(columns):
        middle = GUTTER + number * (width + GAP) + width // 2
        draw.text((middle, HEADER // 2 + 2), name, fill=SOFT, font=plain, anchor="mm")
    for number, row in enumerate(rows):
        top = HEADER + number * (height + GAP)
        for line, text in enumerate(row.caption):
            font, color = (bold, TEXT) if line == 0 else (plain, SOFT)
            draw.text((2 * GAP, top + 4 + line * LINE), _fit(text, font, GUTTER - 3 * GAP), fill=color, font=font)
        for column, image in enumerate(row.images):
            resized = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(resized, (GUTTER + column * (width + GAP), top))
    return sheet


def enlargement(size: tuple[int, int]) -> int:
    """Return how many times an image of this size is enlarged."""
    return max(1, -(-CELL // min(size)))


def _fit(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """Shorten a text in its middle: a file's name tells most by its two ends."""
    shown, kept = text, len(text)
    while font.getlength(shown) > width and kept > 2:
        kept -= 1
        shown = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return shown
