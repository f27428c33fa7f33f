"""A collapsed encoder is told from one that only has not learnt yet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from spark.backbones.timm_pyramid import build_pyramid
from spark.data.dataset import ImagePool
from spark.methods.registry import read_recipe
from spark.probes.collapse import spread_of
from spark.probes.features import pooled_features
from spark.probes.monitor import LearningMonitor
from spark.utils.distributed import Ranks

IMAGES = PHOTOS = 32


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(IMAGES, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, 64, mode="bicubic")


def test_orthogonal_features_spread_most() -> None:
    spread = spread_of(torch.eye(IMAGES))
    assert spread.feature_similarity == pytest.approx(0)
    assert spread.effective_rank == pytest.approx(IMAGES - 1)


def test_the_length_of_features_does_not_matter() -> None:
    features = torch.randn(IMAGES, 9, generator=torch.Generator().manual_seed(0))
    stretched = features * torch.arange(1, IMAGES + 1)[:, None]
    assert spread_of(stretched) == pytest.approx(spread_of(features))


@pytest.mark.parametrize("model", ["resnet18", "convnext_atto", "efficientnet_b0", "regnety_002"])
def test_an_untrained_network_is_no_alarm(model: str, images: Tensor) -> None:
    torch.manual_seed(0)
    assert not spread_of(pooled_features(build_pyramid(model), images)).collapsed


@pytest.mark.parametrize("shift", [1e4, -1e4, torch.nan], ids=["constant", "dead", "not finite"])
def test_a_collapsed_network_is_an_alarm(shift: float, images: Tensor) -> None:
    torch.manual_seed(0)
    pyramid = build_pyramid("resnet18")
    assert isinstance(pyramid, torch.nn.Module)
    pyramid.get_submodule("network.layer4.1.bn2").bias.data.fill_(shift)  # type: ignore[union-attr, operator]
    spread = spread_of(pooled_features(pyramid, images))
    assert spread.collapsed
    assert spread.warning().startswith("warning: the encoder's features hardly differ between images (mean cosine")


def test_features_on_a_line_are_an_alarm() -> None:
    """Their similarity alone would not tell."""
    line = torch.linspace(-1, 1, IMAGES)[:, None] * torch.tensor([[1.0, 2.0, 3.0]])
    spread = spread_of(line)
    assert spread.feature_similarity < 0.1
    assert spread.collapsed


class Pixels(nn.Module):
    """An encoder whose features are an image's pixels, or, when it has `collapsed`, the same for all images."""

    channels = (3 * 16 * 16,)
    collapsed = False

    def forward(self, x: Tensor) -> list[Tensor]:
        pixels = x.flatten(1)[:, :, None, None]
        return [torch.ones_like(pixels) if self.collapsed else pixels]


def test_the_warning_comes_once_until_things_get_better(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = read_recipe(None, ["out=unused", f"data.root={photos}"])
    pool = ImagePool(photos, (16, 16))
    watch = LearningMonitor(config, Ranks(torch.device("cpu")), pool, epoch_images=100 * PHOTOS, precision="float32")
    encoder, warnings = Pixels(), []
    for epoch, encoder.collapsed in enumerate([False, True, True, False, True], start=1):
        found = watch.look(encoder, epoch, last=False)
        assert (found["feature_similarity"] > 0.99) == encoder.collapsed
        warnings.append(capsys.readouterr().err.count("may have collapsed"))
    assert warnings == [0, 1, 0, 0, 1]


@pytest.mark.parametrize(("epoch_images", "looks"), [(100 * PHOTOS, [1, 2, 3, 4]), (50 * PHOTOS, [2, 4]), (1, [4])])
def test_looking_costs_one_image_in_a_hundred(epoch_images: int, looks: list[int], photos: Path) -> None:
    config = read_recipe(None, ["out=unused", f"data.root={photos}"])
    watch = LearningMonitor(config, Ranks(torch.device("cpu")), ImagePool(photos, (16, 16)), epoch_images, "float32")
    assert [epoch for epoch in range(5) if watch.look(Pixels(), epoch, last=epoch == 4)] == looks
