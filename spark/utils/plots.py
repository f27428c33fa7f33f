"""The style that charts share: quiet axes in grey, data in colour; matplotlib without its global state."""

from __future__ import annotations

import io
from typing import Any, Literal

from matplotlib.figure import Figure

GREY = "#60686f"  # on white
GREY_ON_ANY = "#808890"  # legible on white and on near-black: for pictures with a transparent background
COLOURS = ("#4c8eda", "#e0803c", "#3fa777", "#b86bc9", "#d05a5a", "#8a8f3c")


def quieten(axes: Any, colour: str = GREY, grid: bool = False) -> None:
    """Make axes step back behind their data: small grey labels, no box, and a faint grid if wanted."""
    axes.tick_params(colors=colour, labelsize=8)
    axes.xaxis.label.set_color(colour)
    axes.yaxis.label.set_color(colour)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(colour)
    if grid:
        axes.grid(color=colour, alpha=0.25, linewidth=0.6)


def encode(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    """Return a figure as a file's content; an SVG has a transparent background."""
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, transparent=kind == "svg")
    return stream.getvalue()
