"""A method is a class and a line: everything else works with it, without knowing it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eval_suite.task import Work
from eval_suite.task_registry import find_task
from spark.checks.model_summary import describe
from spark.cli import main
from spark.errors import UserError
from spark.formats.weights import read_weights
from spark.methods import registry
from spark.methods.base import Method
from spark.methods.load import load_pretrained
from spark.methods.registry import METHODS, Entry, default_config, method_class, read_recipe
from spark.runs.checkpoint import load_latest
from spark.runs.metrics import read_metrics
from spark.training import loop

PHOTOS = 12


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "METHODS", {**METHODS, "toy": Entry("toy_method:ToyConfig", "toy_method:Toy")})


def words(photos: Path, out: Path, *more: str) -> list[str]:
    return [
        "pretrain", str(photos.parent / "toy.yaml"), f"data.root={photos}", f"out={out}", "device=cpu",
        "model.name=test_resnet", "model.drop_path=0", "data.input_size=[64,64]", "data.workers=0", "train.batch=4",
        "train.epochs=2", "train.warmup_epochs=0", "train.picture_epochs=1", f"probe.train={photos.parent}", *more,
    ]  # fmt: skip


@pytest.fixture
def photos(pictures: Path) -> Path:
    (pictures / "toy.yaml").write_text("method: toy\n")
    return pictures / "a"


def test_it_pretrains_probes_draws_exports_and_is_left_alone_when_finished(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(words(photos, out)) == 0
    assert json.loads((out / "encoder.json").read_text())["method"] == "toy"
    assert read_weights(str(out), "test_resnet").record.kind == "toy"
    assert {"loss", "knn", "linear"} <= read_metrics(out)[-1].keys()
    assert (out / "reconstructions" / "epoch_00002.png").is_file()
    assert (out / "curve.png").is_file()  # though there is no constant to compare with
    model, config, step = load_pretrained(out)
    assert (type(model).__name__, config.method, step) == ("Toy", "toy", 2)
    exported = load_file(out / "encoder.safetensors")
    assert all(tensor.equal(exported[name]) for name, tensor in model.encoder_state().items())
    capsys.readouterr()
    assert main(words(photos, out)) == 0
    assert "is finished already" in capsys.readouterr().err
    assert main(["visualize", "reconstruct", str(out), str(photos), "--out", str(tmp_path / "drawn")]) == 0
    assert "pre-training (toy) with 50% of" in (tmp_path / "drawn" / "reconstruct.html").read_text()


def test_it_resumes_exactly(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(words(photos, tmp_path / "whole")) == 0
    step = loop.Training._record

    def killed(self: loop.Training, *arguments: object) -> str:
        if self.step == 2:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_record", killed)
        assert main(words(photos, tmp_path / "parts")) == 130
    assert main(words(photos, tmp_path / "parts")) == 0
    whole, parts = (load_file(tmp_path / name / "encoder.safetensors") for name in ("whole", "parts"))
    assert all(tensor.equal(parts[name]) for name, tensor in whole.items())
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")
    checkpoint = load_latest(tmp_path / "parts" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint["resolved"] == {"train.precision": "float32"}  # it has no engine to choose


def test_a_recipe_has_the_keys_of_its_method(photos: Path) -> None:
    recipe = photos.parent / "toy.yaml"
    places = ["out=x", "data.root=y"]
    assert read_recipe(recipe, [*places, "hidden=3"]).method == "toy"
    with pytest.raises(UserError, match=r"unknown key 'decoder\.width'"):
        read_recipe(recipe, [*places, "decoder.width=8"])
    with pytest.raises(UserError, match="hidden=4 must be 1, 2 or 3"):
        read_recipe(recipe, [*places, "hidden=4"])
    with pytest.raises(UserError, match="unknown key 'hidden'"):
        read_recipe(recipe, [*places, "method=spark", "hidden=3"])
    with pytest.raises(UserError, match=r"method=tyo is not one of spark, .*toy\. Did you mean toy"):
        read_recipe(recipe, [*places, "method=tyo"])


def test_it_is_sized_summarized_benchmarked_and_studied(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(photos, tmp_path / "run", "--dry-run")) == 0
    assert "method   toy, test_resnet" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    summary = describe(default_config("toy", "test_resnet", {"data.input_size": [64, 64]}))
    assert (summary.method, summary.engine, summary.mask_ratio) == ("toy", "", 0.5)
    assert summary.encoder_flops == summary.dense_flops
    assert method_class("toy").verify("test_resnet", None) == []
    bench = ["bench", "test_resnet", "--method", "toy", "--batch", "2", "--input-size", "64", "--rounds", "1",
             "--device", "cpu", "--out", str(tmp_path / "bench")]
    assert main(bench) == 0
    assert "| step " in next((tmp_path / "bench").glob("*.md")).read_text()
    assert main([*bench, "--mask-ratio", "0.5"]) == 2
    assert "method toy: Key 'mask' not in 'ToyConfig'" in capsys.readouterr().err
    work = Work(str(photos.parent / "toy.yaml"), tmp_path / "node", {"data.root": str(photos), "model.name": "x"})
    task = find_task("pretrain")
    ids = [task.prepare(Work(work.recipe, work.out, {**work.settings, **more})).settings
           for more in ({}, {"hidden": 3}, {"device": "cpu"})]
    assert ids[0] != ids[1]
    assert ids[0] == ids[2]
    assert ids[0]["method"] == "toy"


def test_what_it_cannot_do_is_one_line() -> None:
    model = method_class("toy").from_config(default_config("toy", "test_resnet", {}))
    assert isinstance(model, Method)
    with pytest.raises(UserError, match=r"the method toy has no activation checkpointing; set train\.recompute=false"):
        model.checkpoint_activations()
    output = model(torch.zeros(2, 3, 64, 64))
    assert set(output.mask.unique().tolist()) == {0, 1, 2}  # the loop knows no more of masks than their shape
