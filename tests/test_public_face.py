"""What notebooks and own networks import is there by name, whatever has been imported before, and costs nothing."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from PIL import Image

import eval_suite
import spark

PACKAGES = (spark, eval_suite)


@pytest.fixture(scope="module", autouse=True)
def _every_submodule() -> None:
    """A submodule becomes an attribute of its package, and must take no public name's place."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there_and_no_modules(package: ModuleType) -> None:
    assert package.__all__
    for name in package.__all__:
        assert not isinstance(getattr(package, name), ModuleType), name
        assert name in dir(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_the_same_names(package: ModuleType) -> None:
    code = Path(str(package.__file__)).read_text()
    assert {line.rpartition(" as ")[2] for line in code.splitlines() if line.startswith("    from ")} == {
        *package.__all__}


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_takes_no_time(package: ModuleType) -> None:
    code = f"import sys, {package.__name__}; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        seconds.append(time.perf_counter() - started)
    bare = time.perf_counter()
    subprocess.run([sys.executable, "-c", ""], check=True)
    assert min(seconds) - (time.perf_counter() - bare) < 0.5  # a busy machine is allowed much; torch takes seconds


def test_spark_takes_a_name_a_model_of_timms_or_a_pyramid() -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=10)
    images = torch.randn(2, 3, 64, 64)
    for backbone in ("test_resnet", network, spark.build_pyramid("test_resnet")):
        model = spark.SparK(backbone, decoder_width=32)
        assert model(images).loss.isfinite()
    assert spark.SparK(timm.create_model("test_resnet", in_chans=1), decoder_width=32)(images[:, :1]).loss.isfinite()
    own = timm.create_model("test_resnet", num_classes=0)
    exported = spark.SparK(timm.create_model("test_resnet"), decoder_width=32).encoder_state()
    own.load_state_dict(exported)  # timm's names, no classifier


@pytest.mark.parametrize("model", ["test_resnet", timm.create_model("test_resnet")], ids=["name", "model"])
def test_a_network_is_checked(model: torch.nn.Module | str) -> None:
    results = spark.check_model(model)
    assert [result.engine for result in results] == ["compact", "masked"]
    assert all(result.holds for result in results)


def test_the_ten_lines_of_a_notebook(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (64, 64), (60 * number, 90, 200)).save(tmp_path / f"{number}.png")
    config = spark.read_recipe(None, [
        f"data.root={tmp_path}", f"out={tmp_path}/run", "model.name=test_resnet", "model.drop_path=0", "device=cpu",
        "data.input_size=[64,64]", "data.workers=0", "decoder.width=32", "train.batch=4", "train.epochs=1",
        "train.warmup_epochs=0",
    ])  # fmt: skip
    run = spark.pretrain(config)
    encoder = spark.load_encoder(run)
    assert encoder.info.method == "spark"
    model, _, step = spark.load_pretrained(run)
    assert step == 1
    assert all(tensor.equal(encoder.state[name]) for name, tensor in model.encoder_state().items())
