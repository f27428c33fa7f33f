"""Pictures for people: objects drawn on a photo, and a sheet of such photos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image
from pycocotools import mask as rle

from d2_projects.evaluation.matching import WRONG, Matches, encoded

GAP = 6  # pixels of white between the pictures of a sheet
TINT = 0.35  # how much of a mask's color covers the photo
COLORS = ("#ffc400", "#00c8ff", "#ff50a0", "#78e650", "#b478ff", "#ff7828")
DASHED = (0, (2.5, 2.5))  # as matplotlib wants it, in widths of the line
DPI = 72  # matplotlib's points are pixels then
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
    """Return the annotated objects of an image of this size (width, height); those that were missed are dashed."""
    found = set(matches.found_D.tolist())
    return [
        _shape(entry, size, names, names[entry["category_id"]] + (" (crowd)" if entry.get("iscrowd") else ""),
               dashed=index in matches.objects and index not in found)
        for index, entry in enumerate(entries)
    ]


def detected(
    detections: Sequence[dict[str, Any]], matches: Matches, size: tuple[int, int], names: dict[int, str]
) -> list[Shape]:
    """Return the detected objects of an image, the least sure first; those that are wrong are dashed."""
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
    """Return the image with `side` pixels on its longer edge, tinted masks, and a labeled box around each.

    Matplotlib draws; torchvision's helpers know neither dashed boxes nor outlines of masks and text.
    """
    scale = side / max(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    photo = image.convert("RGB").resize((width, height))
    axes.imshow(photo, extent=(0, image.width, image.height, 0), aspect="auto")
    for shape in shapes:
        _add(axes, shape, image.size, max(11, side / 26))
    axes.set(xlim=(0, image.width), ylim=(image.height, 0))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _add(axes: Axes, shape: Shape, size: tuple[int, int], font: float) -> None:
    """Draw one object: its mask below the boxes of all, its label above them."""
    color = COLORS[shape.category % len(COLORS)]
    if shape.mask is not None and shape.mask.any():
        _paint(axes, shape.mask, color)
    left, top, right, bottom = np.clip(shape.box, 0, (*size, *size))
    if left < right and top < bottom:
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=2,
                                 linestyle=DASHED if shape.dashed else "solid", zorder=2))
        axes.annotate(shape.label, (left, top), (3, -1), textcoords="offset points", color="white", fontsize=font,
                      va="top", path_effects=[withStroke(linewidth=2, foreground="black")], parse_math=False,
                      annotation_clip=False)


def _paint(axes: Axes, mask: np.ndarray, color: str) -> None:
    """Tint a mask and draw its outline; looking at its bounding box alone takes a fraction of the time."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = (np.arange(each[0] - 0.5, each[-1] + 2) for each in (columns, rows))  # middles of pixels, and one around
    closed = np.pad(mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1], 1)
    axes.contourf(x, y, closed, [0.5, 1.5], colors=[color], alpha=TINT)
    axes.contour(x, y, closed, [0.5], colors=[color], linewidths=1)


def sheet(pairs: Sequence[tuple[Image.Image, Image.Image]], side: int) -> Image.Image:
    """Arrange pairs of pictures, none larger than `side`, on white, two pairs to a line."""
    pitch = side + GAP
    canvas = Image.new("RGB", (4 * pitch + 3 * GAP, -(-len(pairs) // 2) * pitch + GAP), "white")
    for number, pair in enumerate(pairs):
        for column, picture in enumerate(pair):
            extra = GAP + number % 2 * 2 * GAP  # a wider gap between pairs than within
            canvas.paste(picture, (extra + (number % 2 * 2 + column) * pitch, GAP + number // 2 * pitch))
    return canvas
