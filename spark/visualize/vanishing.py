"""`spark visualize vanishing`: dense convolution dissolves the mask pattern layer by layer, sparse keeps it.

The image of SparK's paper (section 3.1), for any network. Weights are random and biases zero, so that a position
is zero where nothing has reached it: a trained network's biases would hide the pattern in its first layer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor, nn

from spark.backbones.pyramid import Pyramid, require_pyramid
from spark.backbones.timm_pyramid import build_pyramid
from spark.backbones.tracing import blocks_of, modules_used
from spark.data.center_crop import read_center
from spark.masking import enlarge, random_mask
from spark.sparse.convert import sparsify
from spark.sparse.rule import sparse_layers_of
from spark.utils.files import atomic_path
from spark.utils.lock import sole_writer
from spark.utils.plots import COLORS, GRAY, encode, plain, quieten

FIRST, MAPS = 3, 8  # the first maps, where it happens, are all drawn, and this many altogether
SPARSE, DENSE = COLORS[:2]
FRAME = "#eceff1"


class Trace(NamedTuple):
    """A layer's map of activity under both kinds of convolution: mean absolute value over channels, [H, W]."""

    layer: str
    dense: Tensor
    sparse: Tensor


def visualize_vanishing(model: str, image: Path, out: Path, size: int, ratio: float, seed: int, engine: str) -> Path:
    """Draw the image; return its path.

    Args:
        model: timm name.
        image: file.
        out: folder.
        size: side of the input in pixels, rounded to whole patches.
        ratio: share of patches that are hidden.
        seed: of mask and weights.
        engine: "compact", "masked" or "auto".

    Raises:
        UserError: the model is not supported, or the image cannot be read.
    """
    torch.manual_seed(seed)
    network = build_pyramid(model)
    require_pyramid(network)
    reveal(network)
    patches = max(1, round(size / network.strides[-1]))
    side = patches * network.strides[-1]
    pixels = read_center(image, network.example().shape[1], side, side)
    mask = random_mask(1, (patches, patches), ratio, torch.Generator().manual_seed(seed))
    traces = trace(network, (pixels[None].double() + 1) / 256, mask, engine)  # + 1: black is not zero
    name = re.sub(r"[^\w.-]+", "-", model)  # of one's own, its path has slashes
    path = out / f"vanishing_{name}.png"
    with sole_writer(out), atomic_path(path) as temporary:
        temporary.write_bytes(draw(model, traces))
    return path


@torch.no_grad()
def trace(network: Pyramid, image: Tensor, mask: Tensor, engine: str = "auto") -> list[Trace]:
    """Run a network on a masked image [1, C, H, W], dense and then sparse (it is converted in place)."""
    masked = image * enlarge(mask, *image.shape[-2:])
    assert isinstance(network, nn.Module)
    paths = _places(network, network.example())
    network.double().eval()  # convolutions in float64 add up products: nothing but zero comes of zeros
    dense = _record(network, masked, paths)
    visible = sparsify(network, network.example().double(), engine, sparse_layers_of(network))
    with visible.use_mask(mask):
        sparse = {path: visible.leave(map_) for path, map_ in _record(network, visible.enter(masked), paths).items()}
    traces = [Trace("masked image", _activity(masked), _activity(masked))]
    for path, map_ in dense.items():
        if path in sparse and sparse[path].shape == map_.shape:  # else no map of the image
            traces.append(Trace(path.removeprefix("network."), _activity(map_), _activity(sparse[path])))
    return traces


def share(activity: Tensor) -> float:
    """Return the share of positions that are not zero."""
    return (activity != 0).double().mean().item()


def draw(model: str, traces: Sequence[Trace]) -> bytes:
    """Draw maps of some layers, dense above sparse, and the shares of all layers below; PNG."""
    chosen = _chosen(traces)
    figure = Figure(figsize=(1.45 * len(chosen) + 0.6, 5.6), layout="constrained", dpi=130)
    figure.suptitle(f"{plain(model)}: where feature maps are not zero", fontsize=12, color=GRAY)
    parts: Any = figure.subfigures(2, 1, height_ratios=(3.5, 2))
    above, below = parts
    axes = above.subplots(2, len(chosen), squeeze=False)
    for column, number in enumerate(chosen):
        _draw_maps(axes[:, column], traces[number])
    for row, (name, color) in enumerate((("dense", DENSE), ("sparse", SPARSE))):
        axes[row, 0].set_ylabel(name, color=color, fontsize=12, fontweight="bold")
    _draw_shares(below.subplots(), traces, chosen)
    return encode(figure, "png")


def _draw_maps(axes: Any, traced: Trace) -> None:
    height, width = traced.dense.shape
    axes[0].set_title(f"{plain(traced.layer)}\n{height}×{width}", fontsize=8.5, color=GRAY)
    for axis, activity, color in zip(axes, (traced.dense, traced.sparse), (DENSE, SPARSE), strict=True):
        shades = LinearSegmentedColormap.from_list("", ["#ffffff", color, "#1d2329"])
        axis.imshow(shades(_strength(activity)) if activity.any() else np.ones((1, 1, 3)), interpolation="nearest")
        axis.set_xlabel(f"{share(activity):.0%}", fontsize=9, color=color)
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_color(FRAME)


def _draw_shares(axes: Any, traces: Sequence[Trace], chosen: Sequence[int]) -> None:
    for name, color in (("dense", DENSE), ("sparse", SPARSE)):
        shares = [100 * share(getattr(traced, name)) for traced in traces]
        axes.plot(shares, marker=".", color=color)
        end = (len(shares) - 1, shares[-1])
        axes.annotate(name, end, (6, -3), textcoords="offset points", color=color, fontsize=9)
    axes.set_ylim(0, 108)
    axes.set_ylabel("positions not zero, %", fontsize=8)
    quieten(axes)
    axes.set_xticks(chosen, [traces[number].layer.removesuffix(" image") for number in chosen], fontsize=7, rotation=20)


def _strength(activity: Tensor) -> np.ndarray:
    """Rank what is not zero between .3 and .9, so that the faintest trace is seen and none hides the others."""
    values = activity.numpy()
    strength = np.zeros_like(values)
    found = values[values != 0]
    strength[values != 0] = 0.3 + 0.6 * found.argsort().argsort() / max(1, found.size - 1)
    return strength


def _chosen(traces: Sequence[Trace]) -> list[int]:
    """Choose the layers to draw: the first few, then the last of each resolution, the coarsest preferred."""
    last = {traced.dense.shape: number for number, traced in enumerate(traces)}
    first = list(range(min(FIRST, len(traces))))
    rest = sorted(set(last.values()) - set(first))
    return first + rest[-(MAPS - len(first)) :]


def _places(network: nn.Module, example: Tensor) -> list[str]:
    """Return the paths of the layers to look behind: the first convolution, and the blocks or all convolutions."""
    used = modules_used(network, example)
    layers = {path: layer for path, layer in used.items() if isinstance(layer, nn.Conv2d)}
    convolutions = [path for path, layer in layers.items() if layer.kernel_size != (1, 1)]
    blocks = set(blocks_of(network))
    outside = [path for path in used if path in blocks]
    first = [path for path in convolutions[:1] if not any(path.startswith(f"{block}.") for block in outside)]
    return [*first, *outside] if outside else convolutions


def _record(network: nn.Module, x: Tensor, paths: Sequence[str]) -> dict[str, Tensor]:
    """Return, by path and in order of execution, the maps that layers return."""
    maps: dict[str, Tensor] = {}

    def remember(layer: nn.Module, _inputs: Any, output: Any, path: str) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            maps[path] = output

    hooks = [network.get_submodule(path).register_forward_hook(partial(remember, path=path)) for path in paths]
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def _activity(map_BCHW: Tensor) -> Tensor:
    return map_BCHW[0].abs().mean(0)


def reveal(network: Pyramid) -> None:
    """Set biases to zero, and to one what is zero by default, as residual branches would stay closed."""
    assert isinstance(network, nn.Module)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif not parameter.any():
            nn.init.ones_(parameter)
