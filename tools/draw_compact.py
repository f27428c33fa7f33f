"""Draw the README's picture of the compact engine: python tools/draw_compact.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from skimage import data, transform

from spark.masking import random_mask
from spark.sparse.convolution import tiles
from spark.sparse.state import VisiblePatches
from spark.sparse.window import Window
from spark.utils.files import atomic_path

PICTURE = Path(__file__).resolve().parent / "figures" / "compact.png"
SIDE, PATCH, BORDER = 5, 32, 8  # patches across, and a patch's and a border's pixels
INK = "#30363c"
NOTHING = 0.85  # gray, for what the engine holds as zero


def main() -> None:
    """Compute the three panels with the engine itself, and write the picture."""
    photo = transform.resize(data.coffee()[40:400, 130:490], (SIDE * PATCH, SIDE * PATCH), anti_aliasing=True)
    image = torch.from_numpy(photo).permute(2, 0, 1)[None].float()
    mask = random_mask(1, (SIDE, SIDE), 0.6, torch.Generator().manual_seed(4))
    visible = VisiblePatches()
    windows = (Window(2 * BORDER + 1, 1, 1, BORDER, 2 * BORDER),) * 2
    with visible.use_mask(mask):
        hidden = torch.where(visible.at(*image.shape[-2:]), image, NOTHING)
        patches = visible.take(image)
        bordered = tiles(patches, windows, visible, fill=NOTHING)
    figure = Figure(figsize=(11.5, 3.7), layout="constrained", dpi=120)
    left, middle, right = figure.subplots(1, 3)
    _show(left, hidden[0], "1  what the encoder may see")
    for line in range(SIDE + 1):
        left.axhline(line * PATCH - 0.5, color="white", linewidth=0.6)
        left.axvline(line * PATCH - 0.5, color="white", linewidth=0.6)
    _show(middle, _stack(patches), "2  visible patches as a batch:\nmost layers run as they are")
    _show(right, _stack(bordered), "3  for k×k convolutions: with a border\nof visible neighbours, or zeros")
    _frame_patches(right, len(patches))
    with atomic_path(PICTURE) as temporary:
        figure.savefig(temporary, format="png")


def _stack(patches: torch.Tensor, columns: int = 5, gap: int = 6) -> torch.Tensor:
    """Lay patches [N, 3, h, w] out on white, row by row."""
    _, _, h, w = patches.shape
    rows = -(-len(patches) // columns)
    sheet = torch.ones(3, rows * (h + gap) - gap, columns * (w + gap) - gap)
    for number, patch in enumerate(patches):
        top, left = number // columns * (h + gap), number % columns * (w + gap)
        sheet[:, top : top + h, left : left + w] = patch
    return sheet


def _show(axes: Any, image: torch.Tensor, title: str) -> None:
    axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_axis_off()


def _frame_patches(axes: Any, count: int, columns: int = 5, gap: int = 6) -> None:
    side = PATCH + 2 * BORDER + gap
    for number in range(count):
        corner = number % columns * side + BORDER - 0.5, number // columns * side + BORDER - 0.5
        axes.add_patch(Rectangle(corner, PATCH, PATCH, fill=False, edgecolor="#ffd34d", linewidth=1.2))


if __name__ == "__main__":
    main()
