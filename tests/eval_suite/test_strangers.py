"""Files of strangers (records, checkpoints, exports, run folders) name code, and none of it runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from synthetic import record, write_run

from eval_suite.cli import main as spark_eval
from spark.backbones.timm_pyramid import build_pyramid
from spark.cli import main as spark
from spark.config.pretrain import PretrainConfig
from spark.errors import UserError
from spark.formats.encoder import Encoder, EncoderInfo, load_encoder, save_encoder

TELLTALE = "import pathlib\npathlib.Path('executed').touch()\n"
POPEN = {"args": "touch executed", "shell": True}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text(TELLTALE + "from torch import nn\nclass Net(nn.Module): pass\n", encoding="utf-8")


def executed() -> bool:
    return Path("executed").exists()


@pytest.mark.parametrize("reference", ["subprocess:Popen", "os:_wrap_close", "torch.hub:tqdm"])
def test_only_networks_are_called(reference: str) -> None:
    with pytest.raises(UserError, match=r"is no torch\.nn\.Module"):
        build_pyramid(reference, options=POPEN)
    assert not executed()


def test_a_dry_run_calls_no_popen(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    Path("empty.yaml").touch()
    words = ["pretrain", "--dry-run", "empty.yaml", "out=x", "data.root=photos", "model.name=subprocess:Popen",
             "model.options={args: 'touch executed', shell: true}"]
    assert spark(words) == 2
    assert "is no torch.nn.Module" in capsys.readouterr().err
    assert not executed()


@pytest.mark.parametrize("model", ["subprocess:Popen", "evil.py:Net", "evil:Net"])
def test_a_report_runs_nothing_that_a_record_names(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    protocol = {"model": {"options": POPEN}, "options": POPEN}
    for seed, name in enumerate((model, "resnet18")):
        write_run(Path(f"runs/{seed}"), record(50 + seed, seed=seed, model=name, protocol=protocol))
    assert spark_eval(["report", "runs"]) == 0
    assert not executed()
    assert f"pass --trust '{model}'" in capsys.readouterr().out


def test_a_report_counts_what_it_is_told_to_trust(capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate(("evil.py:Net", "resnet18")):
        write_run(Path(f"runs/{seed}"), record(50 + seed, seed=seed, model=name))
    assert spark_eval(["report", "runs", "--trust", "evil.py:Net"]) == 0
    assert executed()


@pytest.mark.parametrize("name", ["subprocess:Popen", "evil.py:Net"])
def test_a_checkpoint_runs_nothing_that_it_names(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = dataclasses.asdict(PretrainConfig(out="x"))
    config["model"].update(name=name, options=POPEN)
    config["data"]["root"] = "photos"
    torch.save({"model": {}, "config": config, "step": 1, "optimizer": {}}, "last.pt")
    assert spark(["visualize", "reconstruct", "last.pt", "picture.png"]) == 2
    assert f"--trust '{name}'" in capsys.readouterr().err
    assert not executed()


def test_a_checkpoint_reads_no_variable_that_it_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD", "hunter2")
    config = dataclasses.asdict(PretrainConfig(out="x"))
    config["model"].update(name="${oc.env:PASSWORD}", options={"a": "${oc.env:PASSWORD}"})
    config["data"]["root"] = "photos"
    torch.save({"model": {}, "config": config, "step": 1, "optimizer": {}}, "last.pt")
    assert spark(["visualize", "reconstruct", "last.pt", "picture.png"]) == 2
    said = capsys.readouterr()
    assert "${oc.env:PASSWORD}" in said.err
    assert "hunter2" not in said.err + said.out


def test_diff_runs_nothing_that_a_run_names(capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("a", "b"):
        write_run(Path(folder), dataclasses.replace(record(50), task="evil.py:Net"))
        Path(folder, "config.yaml").write_text("model: {name: resnet18}\n", encoding="utf-8")
    assert spark_eval(["diff", "a", "b"]) == 2
    assert "--trust 'evil.py:Net'" in capsys.readouterr().err
    for folder in ("c", "d"):  # a pre-training, as its export tells
        Path(folder).mkdir()
        Path(folder, "encoder.json").write_text("{}", encoding="utf-8")
        Path(folder, "config.yaml").write_text(f"out: {folder}\nmodel: {{name: 'evil.py:Net'}}\n", encoding="utf-8")
    assert spark_eval(["diff", "c", "d"]) in (0, 1)
    assert not executed()
    assert spark_eval(["diff", "c", "d", "--trust", "evil.py:Net"]) in (0, 1)
    assert executed()


@pytest.mark.parametrize("options", [
    {"pretrained": True}, {"checkpoint_path": "x.pth"}, {"pretrained_cfg": {"url": "x"}},
    {"act_layer": "https://x.example/weights"}, {"cache_dir": "."},
])  # fmt: skip
def test_options_of_an_export_say_nothing_of_weights(options: dict[str, object]) -> None:
    info = EncoderInfo("resnet18", 3, (32, 32), (0.5,) * 3, (0.5,) * 3, "spark", 1, None, "0")
    save_encoder(Path("run"), Encoder({"a": torch.zeros(1)}, info))
    told = json.loads(Path("run/encoder.json").read_text(encoding="utf-8"))
    Path("run/encoder.json").write_text(json.dumps({**told, "options": options}), encoding="utf-8")
    with pytest.raises(UserError, match=r"model\.options must not"):
        load_encoder(Path("run"))
