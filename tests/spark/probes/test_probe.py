"""Classifiers on frozen features agree with the field's own, and the probe is fair to every image."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn import functional

from spark.backbones.timm_pyramid import build_pyramid
from spark.config.pretrain import PretrainConfig
from spark.errors import UserError
from spark.methods.registry import read_recipe
from spark.methods.spark.model import SparK
from spark.probes.features import evaluating, pooled_features
from spark.probes.knn import CHUNK, knn_predict
from spark.probes.linear import RIDGE, linear_predict
from spark.probes.probe import Probe
from spark.utils.distributed import Ranks

TRAIN, CLASSES, WIDTH = 90, 3, 6
CPU = Ranks(torch.device("cpu"))


def clusters(count: int, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return features around one centre for each class, off the origin as a network's are."""
    centers = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(count + 1)
    labels = torch.arange(count) % CLASSES
    return centers[labels] + noise * torch.randn(count, WIDTH, generator=generator) + 2, labels


@pytest.mark.parametrize("neighbours", [1, 7, TRAIN + 5])
def test_knn_is_scikit_learns(neighbours: int) -> None:
    bank, labels = clusters(TRAIN)
    queries, _ = clusters(CHUNK + 10)  # more than are compared at a time
    unit, unit_queries = functional.normalize(bank, dim=1), functional.normalize(queries, dim=1)
    wanted = KNeighborsClassifier(  # of vectors of length one, |a - b|² = 2 - 2 cos
        min(neighbours, TRAIN), weights=lambda distance: torch.exp((1 - torch.tensor(distance) ** 2 / 2) / 0.07).numpy()
    ).fit(unit, labels)
    found = knn_predict(bank, labels, queries, neighbours)
    assert found.tolist() == wanted.predict(unit_queries).tolist()


def test_a_lower_temperature_trusts_the_nearest_more() -> None:
    bank, labels = torch.tensor([[1.0, 0.0], [0.9, 0.45], [0.9, 0.5]]), torch.tensor([0, 1, 1])
    query = torch.tensor([[1.0, 0.05]])
    assert knn_predict(bank, labels, query, 3, temperature=0.01).item() == 0
    assert knn_predict(bank, labels, query, 3, temperature=10).item() == 1


def test_the_linear_probe_is_scikit_learns_ridge() -> None:
    train, labels = clusters(TRAIN)
    queries, _ = clusters(200)
    train[:, 0] = queries[:, 0] = 5  # a dead channel
    deviation, mean = torch.std_mean(train.double(), dim=0, correction=0)
    deviation[0] = 1
    one_hot = functional.one_hot(labels).double()
    ridge = Ridge(alpha=RIDGE * TRAIN, solver="cholesky").fit((train - mean) / deviation, one_hot)
    wanted = ridge.predict((queries - mean) / deviation).argmax(1)
    assert linear_predict(train, labels, queries).tolist() == wanted.tolist()


def test_modules_keep_their_own_modes() -> None:
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout()))
    network[1][0].eval()
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == [True, True, True, False, True]


def config(train: Path, *more: str) -> PretrainConfig:
    settings = [f"probe.train={train}", "out=unused", f"data.root={train}", "data.input_size=[64,64]", "data.workers=0"]
    return read_recipe(None, [*settings, *more])


class Shade(nn.Module):
    """An encoder whose only feature beside a constant is how bright an image is."""

    channels = (2,)

    def forward(self, x: Tensor) -> list[Tensor]:
        mean = x.mean(1, keepdim=True)
        return [torch.cat([mean, torch.ones_like(mean)], dim=1)]


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """Return a folder of dark and of bright pictures."""
    for number in range(20):
        for name, shade in (("bright", 220), ("dark", 20)):
            picture = tmp_path / "shades" / name / f"{number}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (70, 66), (shade + number,) * 3).save(picture)
    return tmp_path / "shades"


def test_what_tells_the_classes_is_found(shades: Path) -> None:
    assert Probe(config(shades), CPU, "float32").measure(Shade()) == {"knn": 100.0, "linear": 100.0}


def test_an_image_that_cannot_be_read_is_left_out(shades: Path, tmp_path: Path) -> None:
    val = Path(shutil.copytree(shades, tmp_path / "val"))
    for file in (val / "dark").iterdir():
        file.write_bytes(b"no image")
    probe = Probe(config(shades, f"probe.val={val}"), CPU, "float32")
    with pytest.warns(UserWarning, match=r"left out of the probe: image '.*dark.*' cannot be read"):
        assert probe.measure(Shade()) == {"knn": 100.0, "linear": 100.0}


def test_processes_share_the_images(shades: Path) -> None:
    """Three shares, put together, are all images, each once, and none of them is in both sets."""
    probes = [Probe(config(shades), Ranks(torch.device("cpu"), rank, 3), "float32") for rank in range(3)]
    parts = [[probe._features(Shade(), images) for probe in probes] for images in (probes[0]._train, probes[0]._val)]
    brightness = [sorted(torch.cat([features for features, _ in part])[:, 0].tolist()) for part in parts]
    assert [len(values) for values in brightness] == [32, 8]
    assert len(set(brightness[0] + brightness[1])) == 40


def test_at_most_so_many_images_are_looked_at(shades: Path) -> None:
    probe = Probe(config(shades, "probe.images=8"), CPU, "float32")
    assert [len(images) for images in (probe._train, probe._val)] == [8, 2]  # type: ignore[arg-type]
    probe = Probe(config(shades, "probe.images=8", f"probe.val={shades}"), CPU, "float32")
    assert [len(images) for images in (probe._train, probe._val)] == [8, 8]  # type: ignore[arg-type]


def test_an_encoder_made_sparse_gives_the_dense_features() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    encoder = build_pyramid("resnet18")
    wanted = pooled_features(encoder, images)
    assert pooled_features(SparK(encoder, decoder_width=32).encoder, images).equal(wanted)


def test_folders_that_do_not_fit_are_refused(shades: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder of class folders"):
        Probe(config(tmp_path / "none"), CPU, "float32")
    other = Path(shutil.copytree(shades, tmp_path / "other"))
    (other / "dark").rename(other / "dusk")
    with pytest.raises(UserError, match=r"has other class folders than"):
        Probe(config(shades, f"probe.val={other}"), CPU, "float32")
    with pytest.raises(UserError, match=r"probe\.val=.* needs probe\.train"):
        read_recipe(None, ["out=a", "data.root=b", "probe.val=c"])
