"""Is a conversion right? Three properties that a correct sparse network must have, measured in float64.

*all visible*: with every patch visible, the sparse features are the dense ones.
*crop*: an image surrounded by masked patches has the dense features of the image alone, zero-padded.
*leakage*: what is in the masked patches changes nothing, and no layer puts anything into them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spark.backbones.pyramid import Pyramid, require_maps, require_pyramid
from spark.backbones.timm_pyramid import as_pyramid, build_pyramid
from spark.masking import enlarge, random_mask
from spark.sparse.convert import SparseLayer, sparsify
from spark.sparse.layers import rule_of
from spark.sparse.locate import first_deviation
from spark.sparse.rule import LayerRule, sparse_layers_of
from spark.sparse.state import VisiblePatches

TOLERANCE = 1e-9  # relative, in float64
MASK_RATIO = 0.5  # of the leakage check
PATCHES = (2, 4)  # sides of the test image; the larger one is tried if statistics of few positions amplify rounding

ExtraLayers = Mapping[type[nn.Module], LayerRule]
Network = TypeVar("Network", bound=nn.Module)


class Errors(NamedTuple):
    """Relative errors of the three checks, the largest over all feature maps, in train and in eval mode."""

    all_visible: float
    crop: float
    leakage: float


class Equivalence(NamedTuple):
    """What was measured, and with which engine.

    Attributes:
        engine: the one that was used.
        stood_back: why a faster engine was not used; "" if this is the fastest.
        errors: of the three checks.
        where: the layers between which the maps begin to be wrong; "" if they are right, or it is not known.
    """

    engine: str
    stood_back: str
    errors: Errors
    where: str = ""

    @property
    def holds(self) -> bool:
        """Whether all three errors are within rounding."""
        return all(error <= TOLERANCE for error in self.errors)


def verify(model: Pyramid | nn.Module | str, engine: str = "auto") -> Equivalence:
    """Check a network on the smallest image that gives a clear result; see `check_equivalence`."""
    for patches in PATCHES:
        result = check_equivalence(model, engine, patches=patches)
        if result.holds:
            return result
    return result._replace(where=_where(model))


def check_equivalence(
    model: Pyramid | nn.Module | str | Callable[[], Pyramid],
    engine: str = "auto",
    extra_layers: ExtraLayers | None = None,
    patches: int = 3,
    seed: int = 0,
) -> Equivalence:
    """Convert a network and measure the three errors on random weights, statistics and images.

    Args:
        model: a network's name (see `build_pyramid`); or a pyramid or a timm model, which stays as it is; or a
            function that makes a pyramid.
        engine: "compact", "masked" or "auto".
        extra_layers: rules for custom layers, by exact type, in addition to those that the network itself defines.
        patches: side of the test image in patches.

    Raises:
        UserError: the network is no pyramid, or has layers without sparse form.
    """
    dense = randomize(_without_draws(_built(model)), seed)
    extra_layers = sparse_layers_of(dense, extra_layers)
    sparse = copy.deepcopy(dense)
    channels_last = _channels_last(sparse, extra_layers)  # asked before conversion changes the layers' classes
    example = dense.example().double()
    visible = sparsify(sparse, example, engine, extra_layers)
    require_maps(dense, example)
    generator = torch.Generator().manual_seed(seed)
    side = patches * dense.strides[-1]
    image = torch.randn(2, dense.example().shape[1], side, side, dtype=torch.float64, generator=generator)
    worst = Errors(0.0, 0.0, 0.0)
    for training in (False, True):
        dense.train(training)
        sparse.train(training)
        with _InDouble():
            wanted = _features(dense, image)
            errors = (
                _all_visible(wanted, sparse, visible, image, patches),
                _crop(wanted, sparse, visible, image, patches),
                _leakage(sparse, visible, image, patches, channels_last, generator),
            )
        worst = Errors(*map(max, worst, errors))
    return Equivalence(visible.engine, visible.stood_back, worst)


def _where(model: Pyramid | nn.Module | str) -> str:
    """Say between which layers a conversion begins to be wrong."""
    dense = randomize(_without_draws(_built(model)))
    extra_layers = sparse_layers_of(dense, None)
    sparse = copy.deepcopy(dense)
    channels_last = _channels_last(sparse, extra_layers)
    example, patches = dense.example().double(), max(PATCHES)
    visible = sparsify(sparse, example, "masked", extra_layers)
    side = patches * dense.strides[-1]
    image = torch.randn(2, example.shape[1], side, side, generator=torch.Generator().manual_seed(0)).double()
    with _InDouble():
        return first_deviation(dense.eval(), sparse.eval(), visible, image, patches, channels_last)


def _built(model: Pyramid | nn.Module | str | Callable[[], Pyramid]) -> Any:
    """Return a network that may be modified."""
    if isinstance(model, nn.Module):
        pyramid: Any = as_pyramid(copy.deepcopy(model))
    elif isinstance(model, str):
        pyramid = build_pyramid(model)
    else:
        pyramid = model()  # type: ignore[operator]  # mypy: a Pyramid that is no module
    require_pyramid(pyramid)
    return pyramid


class _InDouble(TorchFunctionMode):
    """Keep `x.float()` in float64: some timm norms cast to float32, whose rounding would hide real errors."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return args[0] if function is Tensor.float else function(*args, **(kwargs or {}))


def _channels_last(network: nn.Module, extra_layers: ExtraLayers | None) -> set[str]:
    """Return the paths of the layers whose input is [B, H, W, C]."""
    rules = {path: rule_of(layer, extra_layers) for path, layer in network.named_modules()}
    return {path for path, rule in rules.items() if rule is not None and rule.channels_last}


def _all_visible(
    wanted: list[Tensor], sparse: nn.Module, visible: VisiblePatches, image: Tensor, patches: int
) -> float:
    mask = torch.ones(len(image), 1, patches, patches, dtype=torch.bool)
    return _error(_sparse_features(sparse, visible, image, mask), wanted)


def _crop(
    wanted: list[Tensor], sparse: nn.Module, visible: VisiblePatches, image: Tensor, patches: int
) -> float:
    """Place the image to the left of a masked half, and in the middle of a masked frame."""
    stride = image.shape[-1] // patches
    worst = 0.0
    for top, left, rows, columns in ((0, 0, patches, 2 * patches), (1, 1, patches + 2, patches + 2)):
        mask = torch.zeros(len(image), 1, rows, columns, dtype=torch.bool)
        mask[..., top : top + patches, left : left + patches] = True
        canvas = image.new_zeros(*image.shape[:2], rows * stride, columns * stride)
        canvas[_window(image, top * stride, left * stride)] = image
        found = _sparse_features(sparse, visible, canvas, mask)
        inside = []
        for map_, dense_map in zip(found, wanted, strict=True):
            scale = map_.shape[-1] / columns
            window = _window(dense_map, int(top * scale), int(left * scale))
            inside.append(map_[window])
            outside = map_.clone()
            outside[window] = 0
            worst = max(worst, outside.abs().max().item())
        worst = max(worst, _error(inside, wanted))
    return worst


def _leakage(
    sparse: nn.Module,
    visible: VisiblePatches,
    image: Tensor,
    patches: int,
    channels_last: set[str],
    generator: torch.Generator,
) -> float:
    """Change the masked pixels; where maps have holes, also check that every layer's output is zero there."""
    mask = random_mask(len(image), (patches, patches), MASK_RATIO, generator)
    hidden = ~enlarge(mask, *image.shape[-2:])
    noise = torch.randn(image.shape, dtype=image.dtype, generator=generator)
    changed = torch.where(hidden, noise, image)
    in_holes = [0.0]

    def look(layer: nn.Module, _inputs: Any, output: Tensor, channels_last: bool) -> None:
        output_BCHW = output.permute(0, 3, 1, 2) if channels_last else output
        in_holes.append(output_BCHW.masked_fill(visible.at(*output_BCHW.shape[-2:]), 0).abs().max().item())

    layers = {path: layer for path, layer in sparse.named_modules() if isinstance(layer, SparseLayer)}
    hooks = [
        layer.register_forward_hook(partial(look, channels_last=path in channels_last))
        for path, layer in layers.items()
        if visible.engine == "masked"  # a compact map has no holes
    ]
    first = _sparse_features(sparse, visible, image, mask)
    for hook in hooks:
        hook.remove()
    return max(_error(_sparse_features(sparse, visible, changed, mask), first), *in_holes)


def _sparse_features(sparse: nn.Module, visible: VisiblePatches, images: Tensor, mask: Tensor) -> list[Tensor]:
    """Return dense maps."""
    with torch.no_grad(), visible.use_mask(mask):
        return [visible.leave(map_) for map_ in sparse(visible.enter(images))]


def _features(dense: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return dense(images)


def _error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the largest relative l2 error over the maps; NaN counts as infinite."""
    errors = [((f - w).norm() / w.norm()).item() for f, w in zip(found, wanted, strict=True)]
    return max(math.inf if math.isnan(error) else error for error in errors)


def _window(small: Tensor, top: int, left: int) -> tuple[slice, ...]:
    height, width = small.shape[-2:]
    return (slice(None), slice(None), slice(top, top + height), slice(left, left + width))


def _without_draws(network: Any) -> Any:
    """Disable random draws in the forward pass (some models drop paths by default), so that two passes compare."""
    for layer in network.modules():
        for probability in {"drop_prob", "p"} & vars(layer).keys():
            setattr(layer, probability, 0.0)
    return network


def randomize(network: Network, seed: int = 0) -> Network:
    """Make a network float64 and give every parameter and running statistic a random value; return the network.

    The default initial values of 0 and 1 would hide mistakes.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(1 + 0.2 * noise.abs())
            elif tensor.ndim <= 1:
                tensor.add_(0.2 * noise)
            else:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
    return network.double()
