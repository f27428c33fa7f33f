"""Pictures that travel inside a page."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

WIDTH = 1280  # pixels; wider ones are shrunk, and the original is a link away
QUALITY = 82  # of WebP


@dataclass(frozen=True)
class EmbeddedImage:
    """An image inside the page.

    Attributes:
        caption: under it.
        source: data URI.
        link: where the original is, or a page that shows more; "" for none.
    """

    caption: str
    source: str
    link: str = ""


def from_svg(drawing: bytes, caption: str) -> EmbeddedImage:
    """Return a drawing as an image for the page."""
    return EmbeddedImage(caption, _data_uri(drawing, "image/svg+xml"))


def from_file(path: Path, caption: str, link: str) -> EmbeddedImage | None:
    """Return an image file, which WebP makes small enough for a page of many; None if it is no whole image."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except OSError:
        return None
    if image.width > WIDTH:
        image = image.resize((WIDTH, max(1, round(image.height * WIDTH / image.width))), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=QUALITY)
    return EmbeddedImage(caption, _data_uri(stream.getvalue(), "image/webp"), link)


def by_number(path: Path) -> tuple[list[int], str]:
    """Order epoch_9 before epoch_10."""
    return [int(digits) for digits in re.findall(r"\d+", path.stem)], path.stem


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
