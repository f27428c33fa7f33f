"""The style that charts share: quiet axes in gray, data in color; matplotlib without its global state."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from spark.utils.printable import printable

GRAY = "#60686f"  # on white
GRAY_ON_ANY = "#808890"  # legible on white and on near-black: for pictures with a transparent background
COLORS = ("#4c8eda", "#e0803c", "#3fa777", "#b86bc9", "#d05a5a", "#8a8f3c")


def plain(text: str) -> str:
    """Return a name as matplotlib takes it: `$` begins no formula, and all of it can be drawn."""
    return printable(text).replace("$", r"\$")


def quieten(axes: Any, color: str = GRAY, grid: bool = False) -> None:
    """Make axes step back behind their data: small gray labels, no box, and a faint grid if wanted."""
    axes.tick_params(colors=color, labelsize=8)
    axes.xaxis.label.set_color(color)
    axes.yaxis.label.set_color(color)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(color)
    if grid:
        axes.grid(color=color, alpha=0.25, linewidth=0.6)


def name_lines(place: Axes | Figure, lines: Mapping[str, Any], color: str = GRAY, **options: Any) -> Legend:
    """Name lines in a legend of axes or of a whole figure: all of them, also those whose name begins with `_`."""
    # Matplotlib leaves such lines out of the legends that it makes by itself, and older versions refuse their names.
    legend = place.legend(list(lines.values()), ["?"] * len(lines), frameon=False, labelcolor=color,
                          **{"fontsize": 8, **options})
    for text, name in zip(legend.get_texts(), lines, strict=True):
        text.set_text(plain(name))
    return legend


def encode(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    """Return a figure as a file's content; an SVG has a transparent background."""
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, transparent=kind == "svg")
    return _rounded(stream.getvalue()) if kind == "svg" else stream.getvalue()


def _rounded(svg: bytes) -> bytes:
    """Write an SVG's coordinates to a hundredth, which nobody sees, and which makes it half as long."""
    return re.sub(rb' (?:d|x|y)="[^"]*"', lambda place: re.sub(rb"(\.\d\d)\d+", rb"\1", place[0]), svg)
