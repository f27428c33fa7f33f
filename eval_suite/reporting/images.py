"""Pictures of a page: inside it, as far as that stays small, and beyond that beside it."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from spark.data.decode import UnreadableImageError, decode
from spark.errors import UserError
from spark.utils.files import open_regular

WIDTH = 1280  # pixels; wider ones are shrunk, and the original is a link away
QUALITY = 82  # of WebP
EMBEDDED_BYTES = 3 * 2**18  # of all pictures that travel inside the page
KINDS = {"svg": "image/svg+xml", "webp": "image/webp"}


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        caption: under it.
        source: a data URI, or its address beside the page.
        link: where the original is, or a page that shows more; "" for none.
    """

    caption: str
    source: str
    link: str = ""


class Album:
    """Takes the pictures of a page in their order; the first ones travel inside it.

    Args:
        folder: name of the folder beside the page.

    Attributes:
        beside: the pictures that do not fit into the page, by their names in that folder.
    """

    def __init__(self, folder: str) -> None:
        self._folder, self._left = folder, EMBEDDED_BYTES
        self.beside: dict[str, bytes] = {}

    def drawing(self, content: bytes, caption: str) -> Picture:
        """Take an SVG."""
        return Picture(caption, self._place(content, "svg"))

    def file(self, path: Path, caption: str, link: str) -> Picture:
        """Take an image file, which WebP makes small enough for a page of many.

        Raises:
            UserError: it is no whole image.
        """
        return Picture(caption, self._place(_as_webp(path), "webp"), link)

    def _place(self, content: bytes, kind: str) -> str:
        encoded = base64.b64encode(content).decode()
        if len(encoded) <= self._left:
            self._left -= len(encoded)
            return f"data:{KINDS[kind]};base64,{encoded}"
        name = f"{len(self.beside) + 1:04d}.{kind}"
        self.beside[name] = content
        return f"{self._folder}/{name}"


def by_number(path: Path) -> tuple[list[int], str]:
    """Order epoch_9 before epoch_10."""
    return [int(digits[:18]) for digits in re.findall(r"\d+", path.stem)], path.stem


def _as_webp(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            image = Image.fromarray(decode(file))
        if image.width > WIDTH:
            size = WIDTH, max(1, round(image.height * WIDTH / image.width))
            image = image.resize(size, Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        image.save(stream, "WEBP", quality=QUALITY)
    except OSError as error:
        raise UserError(f"picture '{path}' cannot be read: {error.strerror or error}") from None
    except (UnreadableImageError, ValueError) as error:  # the latter: WebP has no more than 16383 pixels
        raise UserError(f"picture '{path}' is damaged: {error}") from None
    return stream.getvalue()
