"""A user's own network is proved before it is trained, and in a dry run; a refusal says where it goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from spark.cli import main
from spark.errors import UserError
from spark.methods.registry import read_recipe
from spark.training import dry_run
from spark.training.proof import prove_own

NETWORKS = """
import torch
import torch.nn.functional as F
from torch import nn


class Base(nn.Module):
    channels, strides = (4, 8), (4, 8)

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4), nn.ReLU())
        self.a = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.bias = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.places = nn.Parameter(torch.randn(1, 4, 8, 8))

    def mid(self, x):
        return x

    def forward(self, x):
        a = self.mid(self.a(self.stem(x)))
        return [a, self.b(a)]

    def example(self):
        return torch.randn(1, 3, 32, 32)


class Pool(Base):
    def mid(self, x): return F.avg_pool2d(x, 3, 1, 1)
class Excite(Base):
    def mid(self, x): return x * torch.sigmoid(x.mean((2, 3), keepdim=True))
class Roll(Base):
    def mid(self, x): return x + torch.roll(x, 1, -1)
class Bias(Base):
    def mid(self, x): return x + self.bias
class Places(Base):
    def mid(self, x): return x + F.interpolate(self.places, x.shape[-2:])
class Enlarged(Base):
    def mid(self, x): return F.interpolate(F.interpolate(x, scale_factor=2.0, mode="bilinear"), scale_factor=0.5)
class Sigmoid(Base):
    def mid(self, x): return torch.sigmoid(x)
class Late(Base):
    def forward(self, x): a, b = super().forward(x); return [a, b + b.mean((2, 3), keepdim=True)]
class Fixed(Base):
    def mid(self, x): return x + self.places
class Asserts(Base):
    def forward(self, x):
        assert x.shape[-1] == 32, "only 32 pixels"
        return super().forward(x)
class Nearest(Base):
    def mid(self, x): return F.interpolate(F.max_pool2d(x, 2), scale_factor=2.0)
class Exits(Base):
    def __init__(self): raise SystemExit(3)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(NETWORKS)
    return path


def proved(own: Path, name: str) -> str:
    return prove_own(read_recipe(None, ["out=x", "data.root=y", "model.drop_path=0", f"model.name={own}:{name}"]))


@pytest.mark.parametrize("name", ["Base", "Nearest"])
def test_what_is_right_is_proved(own: Path, name: str) -> None:
    assert "proved, relative error" in proved(own, name)


@pytest.mark.parametrize("name", ["Pool", "Excite", "Roll", "Bias", "Places", "Enlarged", "Sigmoid"])
def test_what_is_wrong_between_layers_is_placed(own: Path, name: str) -> None:
    where = r"is not converted correctly .*, first between a\.\d \(\w+\) and b\.0 \(Conv2d\)\): .*check=false"
    with pytest.raises(UserError, match=where):
        proved(own, name)


def test_what_is_wrong_at_the_end_is_placed(own: Path) -> None:
    with pytest.raises(UserError, match=r"first after b\.\d"):
        proved(own, "Late")


@pytest.mark.parametrize(
    ("name", "reason"), [("Fixed", "must match"), ("Asserts", "only 32 pixels"), ("Exits", "SystemExit: 3")]
)
def test_what_cannot_be_proved_is_one_error(own: Path, name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        proved(own, name)


SMALL = ["model.drop_path=0", "data.input_size=[32,32]", "decoder.width=32", "device=cpu", "data.workers=0"]


def test_a_dry_run_proves_too(
    pictures: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("train: {batch: 4, epochs: 1, warmup_epochs: 0}\n")
    words = ["pretrain", "--dry-run", "recipe.yaml", f"data.root={pictures}", "out=run", *SMALL]
    assert main([*words, f"model.name={own}:Pool"]) == 2
    assert "first between a." in capsys.readouterr().err
    assert main([*words, f"model.name={own}:Pool", "check=false"]) == 0
    assert "\ncheck " not in capsys.readouterr().out
    assert main([*words, f"model.name={own}:Base"]) == 0
    assert f"check    {own}:Base: proved, relative error" in capsys.readouterr().out


def test_a_dry_run_judges_steps_that_take_long_by_smaller_ones(
    pictures: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "PATIENCE", 0.0)
    monkeypatch.setattr(dry_run, "IMAGES", {"cpu": (1, 2)})
    monkeypatch.setattr(dry_run, "timed_step", None)
    Path("recipe.yaml").write_text("train: {batch: 4, epochs: 1, warmup_epochs: 0}\n")
    words = ["pretrain", "--dry-run", "recipe.yaml", f"data.root={pictures}", "out=run", *SMALL]
    assert main([*words, f"model.name={own}:Base"]) == 0
    assert "(judged by steps of up to 2 images, " in capsys.readouterr().out
