"""Other strides, levels and channels than an ImageNet network's, and networks of a user's own."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from paths import ROOT
from safetensors.torch import load_file
from torch import Tensor, nn

from spark.backbones.own_network import build_own
from spark.backbones.timm_pyramid import TimmPyramid, build_pyramid
from spark.errors import UserError
from spark.formats.convert import convert
from spark.formats.encoder import Encoder, EncoderInfo, load_encoder, save_encoder
from spark.formats.reader import read
from spark.methods.registry import read_recipe
from spark.methods.spark.densify import norm_like
from spark.methods.spark.model import SparK
from spark.sparse import ENGINES, LayerRule
from spark.sparse.check import check_equivalence
from spark.sparse.rule import unchanged
from spark.training.run import pretrain
from spark.visualize.grid import reconstruction_grid

FILE = ROOT / "tools" / "examples" / "cifar_resnet.py"
CIFAR = f"{FILE}:CifarResNet"


class Toy(nn.Module):
    """Two levels, and an activation that nobody knows."""

    sparse_layers = {nn.Tanhshrink: LayerRule(unchanged, unchanged)}  # noqa: RUF012  # what a user would write

    def __init__(self, finest: int = 2) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 4, finest, finest), nn.Tanhshrink())
        self.coarse = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.channels, self.strides = [4, 8], [finest, 2 * finest]

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x)
        return [fine, self.coarse(fine)]

    def example(self) -> Tensor:
        return torch.zeros(1, 3, 4 * self.strides[0], 4 * self.strides[0])


# Which maps are decoded


@pytest.mark.parametrize(
    ("name", "options", "strides"),
    [
        ("resnet18", {}, [4, 8, 16, 32]),
        ("convnext_atto", {}, [4, 8, 16, 32]),
        ("vgg11_bn", {}, [4, 8, 16, 32]),  # it has maps at 1 and 2 as well
        ("hrnet_w18_small", {}, [4, 8, 16, 32]),
        ("selecsls60", {}, [8, 16, 32, 64]),
        ("resnet18", {"output_stride": 16}, [2, 4, 8, 16]),
        ("resnet18", {"output_stride": 8}, [2, 4, 8]),
        ("convnext_atto", {"output_stride": 16}, [4, 8, 16]),
    ],
)
def test_the_decoder_takes_the_coarsest_stride_and_three_halvings(
    name: str, options: dict[str, Any], strides: list[int]
) -> None:
    with torch.device("meta"):
        assert TimmPyramid(name, options=options).strides == strides


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "make",
    [
        lambda: TimmPyramid("resnet18", options={"output_stride": 16}),
        lambda: TimmPyramid("test_efficientnet", options={"output_stride": 8}),
        lambda: TimmPyramid("test_convnext", in_chans=12, options={"output_stride": 16}),
        lambda: TimmPyramid("test_resnet", in_chans=1),
        Toy,
        Toy(finest=4),
        CIFAR,
    ],
    ids=["resnet16", "efficientnet8", "convnext16", "gray", "factory", "object", "name"],
)
def test_other_pyramids_are_converted_exactly(make: Any, engine: str) -> None:
    found = check_equivalence(make, engine)
    assert found.engine == engine
    assert found.holds, found.errors


def test_a_pyramid_that_was_checked_is_as_it_was() -> None:
    toy = Toy()
    before = {name: tensor.clone() for name, tensor in toy.state_dict().items()}
    check_equivalence(toy)
    assert type(toy.coarse) is nn.Conv2d
    assert all(tensor.equal(before[name]) for name, tensor in toy.state_dict().items())


def test_every_level_is_filled_and_decoded() -> None:
    model = SparK(CIFAR, decoder_width=32)
    assert (model.stride, model.decoder.widths, len(model.densify)) == (8, [32, 16, 8], 3)
    output = model(torch.randn(2, 3, 32, 32))
    assert output.mask.shape == (2, 1, 4, 4)
    assert output.mask.flatten(1).sum(1).tolist() == [6, 6]
    output.loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("test_efficientnet_gn", nn.GroupNorm),
        ("poolformer_s12", nn.GroupNorm),
        ("efficientnet_b0", nn.BatchNorm2d),  # BatchNormAct2d
        ("convnext_zepto_rms", timm.layers.SimpleNorm2d),
        ("test_convnext2", timm.layers.LayerNorm2d),
        ("test_nfnet", nn.Identity),
    ],
)
def test_the_densify_norm_is_the_networks_own(name: str, norm: type[nn.Module]) -> None:
    with torch.device("meta"):
        assert type(norm_like(TimmPyramid(name))(24)) is norm


# timm's options


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"depth": 3}, r"timm cannot build 'resnet18' with model\.options=\{'depth': 3\}: .*'depth'"),
        ({"output_stride": 12}, "timm cannot build 'resnet18' with .*12"),
        ({"in_chans": 4}, "'in_chans'; set model.in_chans"),
        ({"pretrained": True}, "must not have 'pretrained'"),
    ],
)
def test_options_that_timm_does_not_take_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        TimmPyramid("resnet18", options=options)


def test_options_are_a_mapping_of_the_configuration() -> None:
    overrides = [
        "out=a", "data.root=b", "model.options={output_stride: 16}", "model.in_chans=1", "mask.patch_size=64",
        "data.mean=[0.5]", "data.std=[0.5]",
    ]  # fmt: skip
    config = read_recipe(None, overrides)
    assert (config.model.options, config.model.in_chans, config.mask.patch_size) == ({"output_stride": 16}, 1, 64)
    for wrong in ("model.in_chans=0", "mask.patch_size=-8"):
        with pytest.raises(UserError, match=f"^{wrong} must be at least 1$"):
            read_recipe(None, [*overrides, wrong])


# Channels


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("channels", [1, 2, 4, 12])
def test_any_number_of_channels_is_drawn_and_exported(channels: int, engine: str, tmp_path: Path) -> None:
    model = SparK(build_pyramid("test_resnet", channels), decoder_width=32, engine=engine)
    images, mask = torch.rand(2, channels, 64, 64), model.draw_mask(2, (2, 2))
    output = model(images, mask)
    assert output.prediction.shape == images.shape
    assert output.loss.isfinite()
    values = (0.5,) * channels
    picture = reconstruction_grid(model, images, mask, values, values)
    assert picture.shape == (3, 2 * 68 + 4, 3 * 68 + 4)
    original = picture[:, 4:68, 140:204]
    shown = images[0, :3] if channels >= 3 else images[0, :1].expand(3, -1, -1)
    torch.testing.assert_close(original, shown * 0.5 + 0.5)

    info = EncoderInfo("test_resnet", channels, (64, 64), values, values, "spark", 1, None, "none")
    save_encoder(tmp_path, Encoder(model.encoder_state(), info))
    found = load_encoder(tmp_path)
    network = timm.create_model(found.info.model, num_classes=0, in_chans=found.info.in_chans)
    network.load_state_dict(found.state)


def test_a_checkpoint_of_other_channels_and_options_is_read(tmp_path: Path) -> None:
    model = SparK(build_pyramid("test_resnet", 4, options={"stem_type": "deep"}), decoder_width=32)
    settings = {"name": "test_resnet", "in_chans": 4, "options": {"stem_type": "deep"}}
    torch.save({"model": model.state_dict(), "config": {"model": settings}}, tmp_path / "last.pt")
    info = read(tmp_path / "last.pt").encoder.info
    assert (info.in_chans, info.options) == (4, {"stem_type": "deep"})
    convert(tmp_path / "last.pt", tmp_path / "timm", "timm")
    assert load_encoder(tmp_path / "timm").info.options == {"stem_type": "deep"}


# The mask's own patches


def test_a_mask_of_larger_patches_hides_whole_squares() -> None:
    model = SparK(CIFAR, decoder_width=32, mask_patch_size=16)
    assert model.grid(32, 64) == (4, 8)
    assert model.visible_per_image((4, 8)) == 4 * round(8 * 0.4)
    mask = model.draw_mask(3, (4, 8), torch.Generator().manual_seed(0))
    squares = mask.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert squares.shape == (3, 1, 2, 4, 4)
    assert squares.all(-1).equal(squares.any(-1))
    assert squares.any(-1).flatten(1).sum(1).tolist() == [3, 3, 3]
    assert model(torch.randn(3, 3, 32, 64), mask).loss.isfinite()


def test_the_loss_normalises_patches_of_one_stride_whatever_hides_them() -> None:
    """A step of brightness between two patches that are hidden together is none to the loss."""
    model = SparK(CIFAR, decoder_width=32, mask_patch_size=16)
    images, mask = torch.randn(2, 3, 32, 32), model.draw_mask(2, (4, 4))
    brightness = torch.randn(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    prediction = torch.randn(2, 3, 32, 32)
    per_image = model.visible_per_image((4, 4))
    first = model.loss(prediction, images, mask, per_image)
    torch.testing.assert_close(model.loss(prediction, images + brightness, mask, per_image), first)


@pytest.mark.parametrize("size", [4, 12, 0, -8])
def test_a_mask_patch_that_is_no_multiple_of_the_stride_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=rf"mask\.patch_size={size} is no multiple of the encoder's stride 8; use e\.g"):
        SparK(CIFAR, decoder_width=32, mask_patch_size=size)


def test_an_image_must_be_made_of_whole_mask_patches() -> None:
    model = SparK(CIFAR, decoder_width=32, mask_patch_size=16)
    with pytest.raises(UserError, match=r"32x40 is not divisible by mask\.patch_size=16; use e\.g\. 32x32"):
        model.grid(32, 40)


# What is no pyramid


def changed(**members: Any) -> Callable[[], nn.Module]:
    """Return a function that makes a toy with other members."""

    def make() -> nn.Module:
        toy = Toy()
        for name, value in members.items():
            setattr(toy, name, value)
        return toy

    return make


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: TimmPyramid("convmixer_768_32"), "'convmixer_768_32' has a total stride of 7; .* power of two"),
        (lambda: Toy(finest=3), "'Toy' has a total stride of 6"),
        (changed(strides=[1, 4]), "'Toy' has a map at a stride of 1"),
        (changed(strides=[4, 2]), r"finest map first .* not \[4, 2\]"),
        (changed(strides=[2]), r"a stride and a number of channels for each map, not \[2\], \[4, 8\]"),
        (changed(channels=[4, 6]), "'Toy' returns a map of 1x8x2x2 where its channels and strides say 1x6x2x2"),
        (changed(strides=[2, 8]), "returns a map of 1x8x2x2 where its channels and strides say 1x8x1x1"),
        (changed(forward=lambda x: x), "must return a list of 2 maps, not Tensor"),
        (lambda: nn.Conv2d(3, 4, 3), "'Conv2d' lacks channels, strides, example; see `spark.Pyramid`"),
        (lambda: 18, "'int' is no torch.nn.Module"),
    ],
)
@pytest.mark.parametrize("use", [SparK, check_equivalence])
def test_what_is_no_pyramid_is_refused_in_one_line(make: Any, complaint: str, use: Any) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        use(make() if use is SparK else make)
    assert "\n" not in str(caught.value)


def test_a_layer_that_nobody_named_is_refused_by_path() -> None:
    with pytest.raises(UserError, match=r"fine\.1: Tanhshrink"):
        SparK(changed(sparse_layers={})(), decoder_width=32)


def test_layers_may_be_named_beside_those_of_the_network() -> None:
    toy = changed(sparse_layers={})()
    assert SparK(toy, decoder_width=32, extra_layers=Toy.sparse_layers).visible.engine == "compact"


# By reference


def test_an_own_network_is_built_with_what_it_takes() -> None:
    network: Any = build_pyramid(CIFAR, in_chans=4, options={"width": 8, "blocks": 1})
    assert list(network.channels) == [16, 32, 64]
    assert network.example().shape[1] == 4
    again: Any = build_pyramid(CIFAR)
    assert type(again) is type(network)
    assert again.in_chans == 3


def test_an_own_network_may_come_from_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_package_for_a_test").mkdir()
    (tmp_path / "own_package_for_a_test" / "layers.py").write_text("WIDTH = 8\n")
    code = FILE.read_text().replace("width: int = 32", "width: int = WIDTH")
    code = code.replace("import torch\n", "import torch\nfrom own_package_for_a_test.layers import WIDTH\n", 1)
    (tmp_path / "own_package_for_a_test" / "nets.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    network: Any = build_own("own_package_for_a_test.nets:CifarResNet")
    assert list(network.channels) == [16, 32, 64]
    assert sys.path == path


@pytest.mark.parametrize(
    ("reference", "arguments", "complaint"),
    [
        (f"{FILE.with_name('cifar.py')}:CifarResNet", {}, "cifar.py' does not exist; .*path/to/file.py:ClassName"),
        (f"{FILE}:CifarResnet", {}, "has no class 'CifarResnet'. Did you mean CifarResNet"),
        (f"{FILE}:CONTRAST_GATE", {}, "has no class 'CONTRAST_GATE'"),
        ("no_such_package.nets:Net", {}, "'no_such_package.nets' cannot be imported: ModuleNotFoundError"),
        (CIFAR, {"drop_path": 0.1}, r"no parameter drop_path; set model\.drop_path=0"),
        (CIFAR, {"options": {"depth": 3}}, r"cannot be built with \(depth=3\): TypeError: .*'depth'"),
        (f"{FILE}:ContrastGate", {"options": {"channels": 4}}, "'ContrastGate' lacks channels, strides, example"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused(reference: str, arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        build_pyramid(reference, **arguments)


def test_a_network_for_other_channels_says_so(tmp_path: Path) -> None:
    (tmp_path / "gray.py").write_text(
        f"import sys\nsys.path.insert(0, {str(FILE.parent)!r})\nfrom cifar_resnet import CifarResNet\n"
        "class Grey(CifarResNet):\n    def __init__(self): super().__init__(in_chans=1)\n"
    )
    with pytest.raises(UserError, match=r"takes images of 1 channels; set model\.in_chans=1"):
        build_pyramid(f"{tmp_path / 'gray.py'}:Grey", in_chans=3)
    sys.path.remove(str(FILE.parent))


def test_a_file_with_a_mistake_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import torch\nraise ValueError('oh')\n")
    with pytest.raises(UserError, match=r"broken.py' cannot be imported: ValueError: oh"):
        build_pyramid(f"{tmp_path / 'broken.py'}:Net")


@pytest.mark.parametrize("code", [0, 3])
def test_a_network_that_ends_python_is_told(code: int, tmp_path: Path) -> None:
    (tmp_path / "exit.py").write_text(f"import sys\nsys.exit({code})\n")
    with pytest.raises(UserError, match=rf"exit.py' cannot be imported: SystemExit: {code}"):
        build_pyramid(f"{tmp_path / 'exit.py'}:Net")
    (tmp_path / "late.py").write_text(
        f"import sys\nfrom torch import nn\nclass Net(nn.Module):\n    def __init__(self): sys.exit({code})\n"
    )
    with pytest.raises(UserError, match=rf"late.py:Net' cannot be built with \(\): SystemExit: {code}"):
        build_pyramid(f"{tmp_path / 'late.py'}:Net")


def test_an_own_network_is_pretrained_and_exported(pictures: Path, tmp_path: Path) -> None:
    overrides = [
        f"data.root={pictures}", f"out={tmp_path / 'run'}", "device=cpu", f"model.name={CIFAR}", "model.drop_path=0",
        "model.options={width: 8, blocks: 1}", "mask.patch_size=16", "data.input_size=[32,48]", "data.workers=0",
        "decoder.width=16", "train.batch=4", "train.epochs=1", "train.warmup_epochs=0",
    ]  # fmt: skip
    folder = pretrain(read_recipe(None, overrides))
    told = json.loads((folder / "encoder.json").read_text())
    assert told["model"] == CIFAR
    assert told["options"] == {"width": 8, "blocks": 1}
    assert told["source"].startswith(f"{FILE} (sha256 ")
    network: Any = build_own(CIFAR, options=told["options"])
    network.load_state_dict(load_file(folder / "encoder.safetensors"))
    with pytest.raises(UserError, match="is no timm model"):
        convert(folder, tmp_path / "timm", "timm")
    with pytest.raises(UserError, match="is no timm model"):
        convert(folder / "checkpoints" / "last.pt", tmp_path / "timm", "timm")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(record["loss"]) for record in records)


def small_run(pictures: Path, folder: Path, file: Path) -> list[str]:
    """Return the settings of a pre-training of a copy of the example network, in seconds."""
    return [
        f"data.root={pictures}", f"out={folder / 'run'}", "device=cpu", f"model.name={file}:CifarResNet",
        "model.drop_path=0", "model.options={width: 8, blocks: 1}", "mask.patch_size=16", "data.input_size=[32,48]",
        "data.workers=0", "decoder.width=16", "train.batch=4", "train.epochs=1", "train.warmup_epochs=0",
    ]  # fmt: skip


def test_a_run_does_not_go_on_with_another_source_of_its_network(pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FILE.read_text())
    overrides = small_run(pictures, tmp_path, file)
    folder = pretrain(read_recipe(None, overrides))
    told = (folder / "encoder.json").read_bytes()
    file.write_text(FILE.read_text() + "\n# edited\n")
    with pytest.raises(UserError, match=r"source of '.*mine\.py:CifarResNet' has changed.*restore it.*resume=never"):
        pretrain(read_recipe(None, overrides))
    assert (folder / "encoder.json").read_bytes() == told
    file.write_text(FILE.read_text())
    (folder / "encoder.json").unlink()  # as a run that was killed before its export
    pretrain(read_recipe(None, overrides))
    assert (folder / "encoder.json").read_bytes() == told


def test_helpers_beside_an_own_network_are_part_of_its_source(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "parts_of_a_test").mkdir()
    for name, code in (
        ("mine.py", "import torch\nfrom parts_of_a_test import widths\n" + FILE.read_text().split('"""', 2)[2].replace(
            "from __future__ import annotations\n", "", 1)),
        ("parts_of_a_test/__init__.py", ""), ("parts_of_a_test/widths.py", "from .deeper import WIDTH\n"),
        ("parts_of_a_test/deeper.py", "WIDTH = 8\n"), ("unused.py", ""),
    ):  # fmt: skip
        (tmp_path / name).write_text(code)
    overrides = small_run(pictures, tmp_path, tmp_path / "mine.py")
    folder = pretrain(read_recipe(None, overrides))
    assert "parts_of_a_test/deeper.py (sha256 " in json.loads((folder / "encoder.json").read_text())["source"]
    (tmp_path / "unused.py").write_text("# edited\n")
    pretrain(read_recipe(None, overrides))
    (tmp_path / "parts_of_a_test/deeper.py").write_text("WIDTH = 9\n")
    with pytest.raises(UserError, match=r"source of its module 'parts_of_a_test/deeper\.py' has changed"):
        pretrain(read_recipe(None, overrides))


def test_a_network_that_the_check_refuses_is_not_trained(pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "pooling.py"
    file.write_text(
        "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n"
        "class Net(nn.Module):\n    channels, strides = [4, 8], [4, 8]\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 8, 3, 2, 1)\n"
        "    def mix(self, x): return F.avg_pool2d(x, 3, 1, 1)\n"
        "    def forward(self, x):\n        a = self.mix(self.a(x))\n        return [a, self.b(a)]\n"
        "    def example(self): return torch.zeros(1, 3, 32, 32)\n"
        "class Rolled(Net):\n    def mix(self, x): return x + torch.roll(x, 1, -1)\n"
    )
    for name in ("Net", "Rolled"):
        overrides = [
            f"data.root={pictures}", f"out={tmp_path / name}", "device=cpu", f"model.name={file}:{name}",
            "model.drop_path=0", "mask.patch_size=16", "data.input_size=[32,48]", "data.workers=0", "decoder.width=16",
            "train.batch=4", "train.epochs=1", "train.warmup_epochs=0",
        ]  # fmt: skip
        with pytest.raises(UserError, match="check=false"):
            pretrain(read_recipe(None, overrides))
        assert not (tmp_path / name / "config.yaml").exists()
    assert (pretrain(read_recipe(None, [*overrides, "check=false"])) / "encoder.safetensors").is_file()
