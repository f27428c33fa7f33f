"""How lines look, and which of them are named: no more than can be told apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.lines import Line2D

from spark.utils.plots import COLORS, GRAY_ON_ANY

Look = Mapping[str, Any]  # matplotlib's options of a line
LOOKS: tuple[Look, ...] = tuple({"color": color, "linestyle": dash, "linewidth": 1.4}
                                for dash in ("-", "--") for color in COLORS)
GRAY: Look = {"color": GRAY_ON_ANY, "linestyle": "-", "linewidth": 0.7, "alpha": 0.5, "zorder": 1}


def looks_of(names: Iterable[str]) -> dict[str, Look]:
    """Return how the line of each name looks: the first ones stand out, and all that come after them are gray."""
    return dict(zip(names, itertools.chain(LOOKS, itertools.repeat(GRAY)), strict=False))


def legend_of(looks: Mapping[str, Look]) -> dict[str, Line2D]:
    """Return an example of each line that stands out, and one that says how many do not."""
    lines = {name: Line2D([], [], **look) for name, look in looks.items() if look is not GRAY}
    if more := len(looks) - len(lines):
        lines[f"{more} more, not named"] = Line2D([], [], **GRAY)
    return lines
