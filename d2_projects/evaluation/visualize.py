"""Pictures for people: objects drawn on a photo, and a sheet of such photos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from pycocotools import mask as rle

from d2_projects.evaluation.matching import WRONG, Matches, encoded

GAP = 6  # pixels of white between the pictures of a sheet
TINT = 90  # of 255: how much of a mask's color covers the photo
DASH = 5  # pixels
COLORS = ((255, 196, 0), (0, 200, 255), (255, 80, 160), (120, 230, 80), (180, 120, 255), (255, 120, 40))
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Shape:
    """One object to draw, in the photo's own pixels."""

    box: Box
    mask: np.ndarray | None  # [H, W]
    label: str
    category: int  # its place among the categories: decides the color
    dashed: bool  # not matched: missed, or wrong


def annotated(
    entries: Sequence[dict[str, Any]], matches: Matches, size: tuple[int, int], names: dict[int, str]
) -> list[Shape]:
    """Return the annotated objects of a picture of this size (width, height); those that were missed are dashed."""
    found = set(matches.found_D.tolist())
    return [
        _shape(entry, size, names, names[entry["category_id"]] + (" (crowd)" if entry.get("iscrowd") else ""),
               dashed=index in matches.objects and index not in found)
        for index, entry in enumerate(entries)
    ]


def detected(
    detections: Sequence[dict[str, Any]], matches: Matches, size: tuple[int, int], names: dict[int, str]
) -> list[Shape]:
    """Return the detected objects of a picture, the least sure first; those that are wrong are dashed."""
    return [
        _shape(detections[index], size, names, f"{names[detections[index]['category_id']]} {100 * score:.0f}%",
               dashed=found == WRONG)
        for index, score, found in reversed(
            list(zip(matches.order_D, matches.scores_D, matches.found_D, strict=True)))
    ]


def _shape(entry: dict[str, Any], size: tuple[int, int], names: dict[int, str], label: str, dashed: bool) -> Shape:
    width, height = size
    mask = None
    if entry.get("segmentation"):
        run_lengths = encoded(entry["segmentation"], height, width)
        mask = rle.decode(run_lengths)
    left, top, wide, high = entry["bbox"] if "bbox" in entry else rle.toBbox(run_lengths).tolist()
    return Shape((left, top, left + wide, top + high), mask, label, list(names).index(entry["category_id"]), dashed)


def draw(image: Image.Image, shapes: Iterable[Shape], side: int) -> Image.Image:
    """Return the picture with `side` pixels on its longer edge, tinted masks, and a labeled box around each."""
    scale = side / max(image.size)
    canvas = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
    shapes = list(shapes)
    for shape in shapes:
        if shape.mask is not None:
            _paint(canvas, shape.mask, COLORS[shape.category % len(COLORS)])
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(max(11, side / 26))
    for shape in shapes:
        left, top, right, bottom = (value * scale for value in shape.box)
        box = (max(left, 0), max(top, 0), min(right, canvas.width - 1), min(bottom, canvas.height - 1))
        if box[0] < box[2] and box[1] < box[3]:
            _outline(pen, box, COLORS[shape.category % len(COLORS)], shape.dashed)
            pen.text((box[0] + 3, box[1] + 1), shape.label, "white", font, stroke_width=1, stroke_fill="black")
    return canvas


def _paint(canvas: Image.Image, mask: np.ndarray, color: tuple[int, int, int]) -> None:
    """Tint a mask, and draw its edge."""
    whole = Image.fromarray((mask > 0).astype(np.uint8) * 255).resize(canvas.size, Image.Resampling.NEAREST)
    edge = ImageChops.subtract(whole, whole.filter(ImageFilter.MinFilter(3)))
    paint = Image.new("RGB", canvas.size, color)
    canvas.paste(paint, mask=whole.point(lambda value: TINT if value else 0))
    canvas.paste(paint, mask=edge)


def _outline(pen: ImageDraw.ImageDraw, box: Box, color: tuple[int, int, int], dashed: bool) -> None:
    if not dashed:
        pen.rectangle(box, outline=color, width=2)
        return
    left, top, right, bottom = box
    for start, stop, line in (
        (left, right, lambda a, b: [(a, top, b, top), (a, bottom, b, bottom)]),
        (top, bottom, lambda a, b: [(left, a, left, b), (right, a, right, b)]),
    ):
        _dashes(pen, start, stop, line, color)


def _dashes(
    pen: ImageDraw.ImageDraw, start: float, stop: float, line: Callable[[float, float], list[Box]],
    color: tuple[int, int, int],
) -> None:
    """Draw every other piece of the two lines that `line` gives for a piece."""
    for begin in np.arange(start, stop, 2 * DASH):
        for segment in line(float(begin), min(float(begin) + DASH, stop)):
            pen.line(segment, fill=color, width=2)


def sheet(pairs: Sequence[tuple[Image.Image, Image.Image]], side: int) -> Image.Image:
    """Arrange pairs of pictures, none larger than `side`, on white, two pairs to a line."""
    pitch = side + GAP
    canvas = Image.new("RGB", (4 * pitch + 3 * GAP, -(-len(pairs) // 2) * pitch + GAP), "white")
    for number, pair in enumerate(pairs):
        for column, picture in enumerate(pair):
            extra = GAP + number % 2 * 2 * GAP  # a wider gap between pairs than within
            canvas.paste(picture, (extra + (number % 2 * 2 + column) * pitch, GAP + number // 2 * pitch))
    return canvas
