"""The compact engine computes what the masked one defines: values, gradients, statistics, draws."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import timm.layers
import torch
from paths import ROOT
from timm.layers.grn import GlobalResponseNorm
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn
from torch.nn import functional

from spark.backbones.timm_pyramid import build_pyramid
from spark.errors import UserError
from spark.masking import random_mask
from spark.methods.spark.model import SparK
from spark.sparse import ENGINES, LayerRule, VisiblePatches, convolution, sparsify
from spark.sparse.check import randomize
from spark.sparse.convolution import convolve
from spark.sparse.patches import patch_ids, patches_per_image, put_patches, take_patches
from spark.sparse.rule import unchanged
from spark.sparse.window import misfit, windows_of

Numbers = dict[str, Tensor]

CIFAR = f"{ROOT / 'tools' / 'examples' / 'cifar_resnet.py'}:CifarResNet"
TOLERANCE = 1e-10  # of a tensor's norm, in float64
NOISE = 1e-5  # of the largest gradient's norm: what is smaller should be zero (a bias before a batch norm, say)


def masks(batch: int, grid: tuple[int, int], ratio: float, seed: int = 0) -> Tensor:
    return random_mask(batch, grid, ratio, torch.Generator().manual_seed(seed))


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_same(found: Numbers, wanted: Numbers, tolerance: float = TOLERANCE) -> None:
    """Compare by relative l2 error; gradients also with the largest of them."""
    assert found.keys() == wanted.keys()
    largest = max((value.norm().item() for name, value in wanted.items() if name.startswith("gradient")), default=0.0)
    wrong = {}
    for name, value in wanted.items():
        assert found[name].shape == value.shape, name
        size = max(value.double().norm().item(), NOISE * largest if name.startswith("gradient") else 0.0)
        error = (found[name].double() - value.double()).norm().item()
        if not error <= tolerance * size:
            wrong[name] = error / (size or 1)
    assert not wrong, f"{len(wrong)} of {len(wanted)}: {dict(itertools.islice(wrong.items(), 8))}"


# Whole models


def pair(
    name: str, in_chans: int = 3, drop_path: float = 0.0, options: dict[str, Any] | None = None, **settings: Any
) -> dict[str, SparK]:
    """Return a model in both engines, with the same random state."""
    models = {
        engine: SparK(build_pyramid(name, in_chans, drop_path, options), decoder_width=32, engine=engine, **settings)
        for engine in ENGINES
    }
    randomize(models["compact"])
    models["masked"].double().load_state_dict(models["compact"].state_dict())
    return models


def numbers(model: SparK, images: Tensor, mask: Tensor) -> Numbers:
    """Return everything that a step computes."""
    torch.manual_seed(0)  # what is drawn on the way
    output = model(images, mask)
    if mask.all():  # no masked patch, no loss
        result = {}
        sum((m * noise(*m.shape)).sum() for m in model.feature_maps(output)).backward()
    else:
        result = {"loss": output.loss, "prediction": output.prediction}
        output.loss.backward()
    result |= {f"map {number}": m for number, m in enumerate(model.feature_maps(output))}
    result |= {f"buffer {name}": buffer for name, buffer in model.named_buffers()}
    gradients = {f"gradient {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: tensor.detach() for name, tensor in (result | gradients).items()}


def assert_engines_agree(models: dict[str, SparK], images: Tensor, mask: Tensor) -> None:
    found, wanted = (numbers(models[engine], images, mask) for engine in ENGINES)
    assert sum(name.startswith("gradient") for name in wanted) > 50
    assert_same(found, wanted)


ONE_BLOCK_A_STAGE = {"layers": (1, 1, 1, 1)}  # as ResNets call it


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("resnet18", "mobilenetv2_100", "tf_efficientnet_b0", "convnextv2_atto")),
        *((name, ONE_BLOCK_A_STAGE) for name in ("resnet50d", "seresnet50", "resnet50_gn", "resnext50_32x4d")),
        ("resnet50", {"layers": (2, 1, 1, 1)}),
        *((name, {"depths": (1, 2, 1, 1)}) for name in ("convnext_tiny", "convnextv2_tiny")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_engines_agree(name: str, options: dict[str, Any]) -> None:
    assert_engines_agree(pair(name, options=options), noise(2, 3, 64, 96), masks(2, (2, 3), 0.5))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet18", {"options": {"output_stride": 16}}),
        ("resnet18", {"options": {"output_stride": 8}, "in_chans": 1}),
        ("convnext_atto", {"options": {"output_stride": 16}, "in_chans": 4}),
        ("mobilenetv2_050", {"options": {"output_stride": 16}, "mask_patch_size": 32}),
        ("convnext_zepto_rms", {}),
        (CIFAR, {}),
        (CIFAR, {"mask_patch_size": 16, "in_chans": 12}),
    ],
    ids=str,
)
def test_engines_agree_on_other_strides_levels_channels_and_masks(name: str, settings: dict[str, Any]) -> None:
    models = pair(name, **settings)
    generator = torch.Generator().manual_seed(0)
    mask = models["masked"].draw_mask(2, models["masked"].grid(64, 96), generator)
    assert_engines_agree(models, noise(2, settings.get("in_chans", 3), 64, 96), mask)


@pytest.fixture(scope="module")
def twins() -> Callable[[str], dict[str, SparK]]:
    """Return a function that returns fresh copies of both engines' models."""
    known: dict[str, dict[str, SparK]] = {}

    def copies(name: str) -> dict[str, SparK]:
        if name not in known:
            known[name] = pair(name)
        return copy.deepcopy(known[name])

    return copies


Twins = Callable[[str], dict[str, SparK]]


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
@pytest.mark.parametrize(
    ("batch", "grid", "ratio"),
    [
        (2, (3, 4), 0.25),
        (2, (4, 3), 0.6),
        (3, (2, 5), 0.9),  # one visible patch each
        (1, (3, 3), 0.6),
        (2, (1, 2), 0.5),  # a patch has itself as its row
    ],
)
def test_engines_agree_on_any_mask(
    name: str, batch: int, grid: tuple[int, int], ratio: float, twins: Twins
) -> None:
    images = noise(batch, 3, 32 * grid[0], 32 * grid[1])
    assert_engines_agree(twins(name), images, masks(batch, grid, ratio))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_engines_agree_in_eval_mode_on_one_patch(name: str, twins: Twins) -> None:
    models = twins(name)
    for model in models.values():
        model.eval()
    assert_engines_agree(models, noise(1, 3, 64, 96), masks(1, (2, 3), 0.9))


@pytest.mark.filterwarnings("ignore:var_mean")  # of the loss, which is over no patch
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_engines_agree_with_everything_visible(name: str, twins: Twins) -> None:
    assert_engines_agree(twins(name), noise(2, 3, 64, 96), torch.ones(2, 1, 2, 3, dtype=torch.bool))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_engines_agree_in_any_memory_format(name: str, twins: Twins) -> None:
    images, mask = noise(2, 3, 64, 96), masks(2, (2, 3), 0.5)
    wanted = numbers(twins(name)["masked"], images, mask)
    models = twins(name)
    for model in models.values():
        model.to(memory_format=torch.channels_last)
    for model in models.values():
        assert_same(numbers(model, images.contiguous(memory_format=torch.channels_last), mask), wanted)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_engines_draw_the_same_paths(name: str) -> None:
    models = pair(name, drop_path=0.5)
    images, mask = noise(3, 3, 64, 64), masks(3, (2, 2), 0.5)
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            losses.append(copy.deepcopy(models["masked"])(images, mask).loss)
    assert not losses[0].isclose(losses[1], rtol=1e-6), "nothing was drawn"
    assert_engines_agree(models, images, mask)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_half_precision_costs_no_engine_more(name: str) -> None:
    """Both engines round, each in its own order; neither may be farther from single precision."""
    models = {engine: model.float() for engine, model in pair(name).items()}
    images, mask = noise(2, 3, 64, 96).float(), masks(2, (2, 3), 0.5)
    single = gradients_by_part(models["masked"], images, mask, half=False)
    halves = {engine: gradients_by_part(model, images, mask, half=True) for engine, model in models.items()}
    for part, wanted in single.items():
        errors = {engine: ((found[part] - wanted).norm() / wanted.norm()).item() for engine, found in halves.items()}
        assert 1e-3 < errors["compact"] < 1.5 * errors["masked"] < 0.6, (part, errors)


def gradients_by_part(model: SparK, images: Tensor, mask: Tensor, half: bool) -> Numbers:
    """Return one vector of all gradients for each of encoder, densify and decoder."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = model(images, mask).loss
    loss.backward()
    gradients = [(name, p.grad.flatten()) for name, p in model.named_parameters() if p.grad is not None]
    return {part: torch.cat([gradient for name, gradient in gradients if name.startswith(part)])
            for part in ("encoder", "densify", "decoder")}


def test_weights_move_between_engines(twins: Twins) -> None:
    models = twins("resnet18")
    keys = {engine: [*model.state_dict()] for engine, model in models.items()}
    assert keys["compact"] == keys["masked"]
    other = SparK("resnet18", decoder_width=32, engine="compact").double()
    other.load_state_dict(models["masked"].state_dict())
    images, mask = noise(2, 3, 64, 64), masks(2, (2, 2), 0.5)
    assert_same(numbers(other, images, mask), numbers(models["masked"], images, mask))


def test_unequal_counts_are_refused(twins: Twins) -> None:
    mask = torch.tensor([[[[True, False], [False, False]]], [[[True, True], [False, False]]]])
    with pytest.raises(ValueError, match=r"same number of patches of every image, not \[1, 2\]"):
        twins("resnet18")["compact"](noise(2, 3, 64, 64), mask)


# One layer


def one_layer(
    layer: nn.Module, engine: str, x: Tensor, mask: Tensor, extra: dict[type[nn.Module], LayerRule] | None = None
) -> Numbers:
    """Return what a layer makes of a map, as a dense map, and all gradients."""
    network = nn.Sequential(copy.deepcopy(layer))
    visible = sparsify(network, torch.zeros_like(x), engine, extra)
    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    with visible.use_mask(mask):
        y = visible.leave(network(visible.enter(x)))
    (y * noise(*y.shape, seed=2)).sum().backward()
    result = {"y": y, "gradient x": x.grad} | {f"buffer {name}": buffer for name, buffer in network.named_buffers()}
    result |= {f"gradient {name}": parameter.grad for name, parameter in network.named_parameters()}
    return {name: tensor.detach() for name, tensor in result.items()}


def assert_layer_agrees(layer: nn.Module, x: Tensor, mask: Tensor) -> None:
    layer = randomize(copy.deepcopy(layer))
    found, wanted = (one_layer(layer, engine, x, mask) for engine in ENGINES)
    assert_same(found, wanted)


class ChannelsLast(nn.Module):
    """Show a map to a layer as [B, H, W, C]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4).eval(),
        timm.layers.BatchNormAct2d(4),
        timm.layers.LayerNorm2d(4),
        nn.GroupNorm(2, 4),
        timm.layers.GroupNormAct(4, num_groups=2),
        timm.layers.SEModule(4, rd_channels=2),
        timm.layers.EffectiveSEModule(4),
        GlobalResponseNorm(4, channels_last=False),
        timm.layers.DropPath(0.5),
        nn.GELU(),
        nn.MaxPool2d(3, 1, 1),
        nn.AvgPool2d(3, 1, 1),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_agree(layer: nn.Module, batch: int, patch: int) -> None:
    assert_layer_agrees(layer, noise(batch, 4, 3 * patch, 2 * patch), masks(batch, (3, 2), 0.5))


@pytest.mark.parametrize("layer", [GlobalResponseNorm(4), timm.layers.LayerNorm(4), nn.Linear(4, 4)])
def test_layers_that_see_channels_last_agree(layer: nn.Module) -> None:
    x, mask = noise(3, 4, 6, 4), masks(3, (3, 2), 0.5)
    shape_only = {ChannelsLast: LayerRule(unchanged, unchanged)}
    network = randomize(ChannelsLast(copy.deepcopy(layer)))
    found, wanted = (one_layer(network, engine, x, mask, shape_only) for engine in ENGINES)
    assert_same(found, wanted)


@pytest.mark.parametrize("patch", [2, 4])
@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPool2d(2, 2),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(5, 1, 2),
        MaxPool2dSame(3, 2),
        nn.AvgPool2d(2, 2),
        nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(5, 1, 2, count_include_pad=False),
        timm.layers.AvgPool2dSame(2, 2),
        timm.layers.AvgPool2dSame(3, 2),
        timm.layers.AvgPool2dSame(2, 1, count_include_pad=False),
    ],
    ids=str,
)
def test_pooling_agrees(layer: nn.Module, patch: int) -> None:
    mask = masks(2, (3, 4), 0.4)
    assert_layer_agrees(layer, noise(2, 4, 3 * patch, 4 * patch) - 1, mask)  # mostly negative: zeros must not win


def test_max_pooling_that_overhangs_agrees_or_is_refused() -> None:
    with pytest.raises(UserError, match="does not map patches to patches"):
        sparsify(nn.Sequential(nn.MaxPool2d(3, 2, 1, ceil_mode=True)), torch.zeros(1, 4, 8, 8))


# Convolutions, by each way


def convolutions() -> list[nn.Conv2d]:
    """Return every kind of convolution that maps patches to patches."""
    found: list[nn.Conv2d] = []
    sizes = itertools.product((1, 2, 3, 5, 7), (1, 2, 4), (1, 2), (1, 2, 4))
    for kernel, stride, dilation, groups in sizes:
        if kernel == 1 and dilation > 1:
            continue
        options = {"stride": stride, "dilation": dilation, "groups": groups, "bias": groups != 2}
        reach = dilation * (kernel - 1)
        same = timm.layers.Conv2dSame(4, 8 if groups < 4 else 4, kernel, **options)
        symmetric = nn.Conv2d(4, 8 if groups < 4 else 4, kernel, padding=reach // 2, **options)
        found += [layer for layer in (same, symmetric) if misfit(layer) is None]
    found += [
        nn.Conv2d(4, 6, (1, 3), padding=(0, 1)),
        nn.Conv2d(4, 4, (7, 1), padding=(3, 0), groups=4),
        nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(1, 0)),
        nn.Conv2d(4, 6, 4, padding="same"),
        nn.Conv2d(4, 6, 4, stride=4, padding="valid"),
    ]
    return found


def by(way: str, layer: nn.Conv2d, x: Tensor, visible: VisiblePatches, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setattr(convolution, "choose", lambda *_: way)
    return convolve(x, layer.weight, layer.bias, windows_of(layer), layer.groups, visible)


def ways(layer: nn.Conv2d) -> list[str]:
    inside = ["plain"] if all(window.stays_inside for window in windows_of(layer)) else []
    return [*inside, "tiles", "map", *(["taps"] if layer.groups == 1 else [])]


def gradients_of(y: Tensor, *leaves: Tensor | None) -> Numbers:
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    found = torch.autograd.grad((y * noise(*y.shape, seed=3)).sum(), wanted)
    return {f"gradient {number}": gradient for number, gradient in enumerate(found)}


def with_patches(layers: list[nn.Conv2d]) -> list[tuple[nn.Conv2d, int]]:
    """Combine layers with the sizes of patches that their strides divide."""
    return [(layer, patch) for layer in layers for patch in (1, 2, 4, 8) if patch % max(layer.stride) == 0]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("layer", "patch"), with_patches(convolutions()), ids=str)
def test_every_way_is_the_dense_convolution(layer: nn.Conv2d, patch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = randomize(copy.deepcopy(layer))
    mask, visible = masks(2, (2, 3), 0.5), VisiblePatches()
    x = noise(6, 4, patch, patch).requires_grad_()
    with visible.use_mask(mask):
        wanted = visible.take(layer(visible.put(x)))
        wanted_numbers = {"y": wanted} | gradients_of(wanted, x, *layer.parameters())
        for way in ways(layer):
            y = by(way, layer, x, visible, monkeypatch)
            assert_same({"y": y} | gradients_of(y, x, *layer.parameters()), wanted_numbers)


@pytest.mark.parametrize("way", ["tiles", "map", "taps"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_what_needs_no_gradient_gets_none(way: str, stride: int, frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = randomize(nn.Conv2d(4, 4, 3, stride, 1))
    x = noise(6, 4, 4, 4)
    for name, leaf in {"x": x, "weight": layer.weight, "bias": layer.bias}.items():
        leaf.requires_grad_(name != frozen)
    visible = VisiblePatches()
    with visible.use_mask(masks(2, (2, 3), 0.5)):
        wanted = visible.take(layer(visible.put(x)))
        y = by(way, layer, x, visible, monkeypatch)
        leaves = (x, layer.weight, layer.bias)
        assert_same({"y": y} | gradients_of(y, *leaves), {"y": wanted} | gradients_of(wanted, *leaves))


@pytest.mark.parametrize("way", ["plain", "tiles", "map", "taps"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_result_can_be_changed_in_place(
    way: str, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most networks' activations are in place, and some follow on a convolution."""
    layer = randomize(nn.Conv2d(4, 6, 2, 2)).to(memory_format=memory_format)
    x = noise(6, 4, 4, 4).contiguous(memory_format=memory_format).requires_grad_()
    visible = VisiblePatches()
    with visible.use_mask(masks(2, (2, 3), 0.5)):
        wanted = functional.relu(visible.take(layer(visible.put(x))))
        y = functional.relu(by(way, layer, x, visible, monkeypatch), inplace=True)
    leaves = (x, *layer.parameters())
    assert_same({"y": y} | gradients_of(y, *leaves), {"y": wanted} | gradients_of(wanted, *leaves))


@pytest.mark.parametrize("way", ["tiles", "map", "taps"])
def test_autocast_is_followed(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = randomize(nn.Conv2d(4, 4, 3, 1, 1)).float()
    x = noise(6, 4, 4, 4).float().requires_grad_()
    visible = VisiblePatches()
    with visible.use_mask(masks(2, (2, 3), 0.5)), torch.autocast("cpu", torch.bfloat16):
        wanted = visible.take(layer(visible.put(x)))
        y = by(way, layer, x, visible, monkeypatch)
        assert y.dtype == torch.bfloat16
        leaves = (x, *layer.parameters())
        found, right = gradients_of(y.float(), *leaves), gradients_of(wanted.float(), *leaves)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    assert_same({"y": y.float()} | found, {"y": wanted.float()} | right, tolerance=0.02)


def test_a_stride_that_does_not_divide_a_patch_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1))
    visible = sparsify(network, torch.zeros(1, 4, 6, 6), "compact")
    with (
        visible.use_mask(masks(2, (2, 2), 0.5)),
        pytest.raises(ValueError, match="stride of 2x2 does not divide a patch of 3x3"),
    ):
        network(visible.enter(noise(2, 4, 6, 6).float()))


# Patches


def random_patches(batch: int, rows: int, columns: int) -> tuple[VisiblePatches, Tensor]:
    return VisiblePatches(), masks(batch, (rows, columns), 0.5)


def test_visible_patches_are_numbered_in_order() -> None:
    mask = masks(3, (3, 4), 0.6)
    assert patch_ids(mask, 5).tolist() == mask.flatten().nonzero().flatten().tolist()
    assert patches_per_image(mask) == 5


def test_take_and_put_are_each_others_inverse() -> None:
    visible, mask = random_patches(2, 3, 2)
    x = noise(2, 5, 6, 8)
    with visible.use_mask(mask):
        patches = visible.take(x)
        assert patches.shape == (6, 5, 2, 4)
        assert visible.put(patches).equal(visible.hide(x))
        assert visible.take(visible.put(patches)).equal(patches)
        first = mask.flatten().nonzero()[0, 0].item()
        row, column = divmod(first, 2)
        assert patches[0].equal(x[0, :, 2 * row : 2 * row + 2, 4 * column : 4 * column + 4])
        with pytest.raises(ValueError, match="does not align"):
            visible.take(noise(2, 5, 7, 8))


def test_take_and_put_have_the_right_gradients() -> None:
    mask = masks(2, (2, 3), 0.5)
    ids = patch_ids(mask, 3)
    assert torch.autograd.gradcheck(lambda x: take_patches(x, ids, 2, 3), noise(2, 2, 4, 3).requires_grad_())
    assert torch.autograd.gradcheck(lambda x: put_patches(x, ids, 2, 2, 3), noise(6, 2, 2, 1).requires_grad_())


@pytest.mark.parametrize("way", ["tiles", "map", "taps"])
@pytest.mark.parametrize("stride", [1, 2])
def test_ways_have_the_right_gradients(way: str, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against finite differences, beside the dense convolution's gradients."""
    layer = randomize(nn.Conv2d(2, 2, 3, stride, 1))
    visible = VisiblePatches()
    with visible.use_mask(masks(1, (2, 2), 0.5)):
        assert torch.autograd.gradcheck(
            lambda x, *_: by(way, layer, x, visible, monkeypatch),
            (noise(2, 2, 2, 2).requires_grad_(), *layer.parameters()),
        )


@pytest.mark.parametrize(("h", "w"), [(1, 1), (2, 3), (4, 2)])
def test_positions_around_a_patch_are_found(h: int, w: int) -> None:
    batch, rows, columns = 2, 3, 4
    visible, mask = random_patches(batch, rows, columns)
    down, across = range(-2 * h - 1, 3 * h), [-w, 1, 0, w - 1, w, 2 * w]  # over more than one patch, in any order
    with visible.use_mask(mask):
        found = visible.lookup(h, w, down, across)
    places = itertools.product(range(batch), range(rows), range(columns))
    shown = [(image, row, column) for image, row, column in places if mask[image, 0, row, column]]
    numbers = {place: number for number, place in enumerate(shown)}
    assert found.shape == (len(shown), len(down), len(across))
    for number, (image, row, column) in enumerate(shown):
        for (i, d), (j, a) in itertools.product(enumerate(down), enumerate(across)):
            y, x = row * h + d, column * w + a
            neighbour = numbers.get((image, y // h, x // w))
            nothing = len(shown) * h * w
            expected = nothing if neighbour is None else neighbour * h * w + y % h * w + x % w
            assert found[number, i, j] == expected


def test_the_number_of_visible_patches_may_be_given() -> None:
    visible, mask = random_patches(2, 2, 2)
    with visible.use_mask(mask, per_image=2):
        assert visible.per_image == 2
        assert visible.patch_ids.tolist() == mask.flatten().nonzero().flatten().tolist()
    with visible.use_mask(mask):
        assert visible.per_image == 2


def test_a_mask_of_unequal_counts_is_refused() -> None:
    visible = VisiblePatches()
    mask = torch.tensor([[[[True, False]]], [[[True, True]]]])
    with visible.use_mask(mask), pytest.raises(ValueError, match=r"same number .* not \[1, 2\]"):
        visible.take(noise(2, 1, 2, 2))


# Which engine


@pytest.mark.parametrize(
    ("layer", "complaint"),
    [
        (nn.Conv2d(4, 4, 3), "kernel of 3.* stride 1 and padding 0 does not map patches to patches"),
        (nn.Conv2d(4, 4, 2, padding=1), "does not map patches to patches"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "pads with reflect values"),
        (nn.MaxPool2d(3, 1), "does not map patches to patches"),
        (nn.AvgPool2d(2, 1), "does not map patches to patches"),
    ],
    ids=str,
)
@pytest.mark.parametrize("engine", ENGINES)
def test_geometry_without_sparse_meaning_is_refused_by_path(layer: nn.Module, complaint: str, engine: str) -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(layer))
    with pytest.raises(UserError, match=rf"1\.0: {type(layer).__name__} .*{complaint}"):
        sparsify(network, torch.zeros(1, 4, 8, 8), engine)


def test_the_compact_engine_stands_back_where_it_has_no_rule() -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(nn.Tanhshrink()))

    only_masked = {nn.Tanhshrink: LayerRule(unchanged, None)}
    visible = sparsify(network(), torch.zeros(1, 4, 8, 8), "auto", only_masked)
    assert visible.engine == "masked"
    assert visible.stood_back == "the compact engine has no rule for 1.0: Tanhshrink"
    visible = sparsify(network(), torch.zeros(1, 4, 8, 8), "masked", only_masked)
    assert (visible.engine, visible.stood_back) == ("masked", "")
    with pytest.raises(UserError, match=r"no rule for 1\.0: Tanhshrink; pass engine=masked"):
        sparsify(network(), torch.zeros(1, 4, 8, 8), "compact", only_masked)
    both = {nn.Tanhshrink: LayerRule(unchanged, unchanged)}
    visible = sparsify(network(), torch.zeros(1, 4, 8, 8), "auto", both)
    assert (visible.engine, visible.stood_back) == ("compact", "")
