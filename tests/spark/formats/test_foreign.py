"""Checkpoints as people have them: wrapped, averaged, gray, beside objects of others, or something else altogether."""

from __future__ import annotations

import argparse
import zipfile
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel

from spark.cli import main
from spark.errors import UserError
from spark.formats.reader import read


def resnet(**options: Any) -> torch.nn.Module:
    return timm.create_model("resnet18", **options)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_are_taken_off(prefix: str, tmp_path: Path) -> None:
    torch.save({f"{prefix}{key}": value for key, value in resnet().state_dict().items()}, tmp_path / "x.pth")
    assert read(tmp_path / "x.pth").encoder.info.model == "resnet18"


def test_compiled_parts_are_told_by_the_rest_of_their_names(tmp_path: Path) -> None:
    state = {key.replace("layer1.", "layer1._orig_mod."): value for key, value in resnet().state_dict().items()}
    torch.save(state, tmp_path / "x.pth")
    assert read(tmp_path / "x.pth").encoder.info.model == "resnet18"


def test_an_averaged_model_is_read(tmp_path: Path) -> None:
    torch.save(AveragedModel(resnet()).state_dict(), tmp_path / "swa.pth")
    assert read(tmp_path / "swa.pth").encoder.info.model == "resnet18"


@pytest.mark.parametrize("channels", [1, 4, 12])
def test_other_stems_are_read_with_their_channels(channels: int, tmp_path: Path) -> None:
    torch.save(resnet(in_chans=channels).state_dict(), tmp_path / "gray.pth")
    for model in (None, "resnet18"):
        info = read(tmp_path / "gray.pth", model).encoder.info
        assert (info.model, info.in_chans, len(info.mean)) == ("resnet18", channels, channels)
    assert main(["convert", str(tmp_path / "gray.pth"), str(tmp_path / "out"), "--to", "timm"]) == 0


def test_settings_beside_the_weights_are_left_out_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"epoch": 3, "arch": "resnet18", "state_dict": resnet().state_dict(), "args": argparse.Namespace(lr=0.1),
               "message_hub": {"loss": deque([np.float64(0.1)], maxlen=3)}}
    torch.save(content, tmp_path / "train.pth.tar")
    assert main(["convert", str(tmp_path / "train.pth.tar"), str(tmp_path / "out"), "--to", "timm"]) == 0
    printed = capsys.readouterr().out
    assert "left out args, message_hub: holds argparse.Namespace" in printed


class Own:
    pass


def test_objects_of_unknown_classes_are_named_and_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": resnet().state_dict(), "own": Own()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"objects other than tensors \(.*Own\).*torch\.save"):
        read(tmp_path / "x.pth")


def test_a_moving_average_is_mentioned_and_taken_when_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, average = resnet().state_dict(), resnet().state_dict()
    torch.save({"state_dict": raw, "state_dict_ema": average, "epoch": 1}, tmp_path / "x.pth")
    words = ["convert", str(tmp_path / "x.pth"), str(tmp_path / "out"), "--to", "timm"]
    assert main(words) == 0
    assert "'state_dict_ema' holds a moving average (EMA) of the weights, too: --ema" in capsys.readouterr().out
    assert read(tmp_path / "x.pth").encoder.state["conv1.weight"].equal(raw["conv1.weight"])
    assert read(tmp_path / "x.pth", ema=True).encoder.state["conv1.weight"].equal(average["conv1.weight"])
    torch.save(raw, tmp_path / "y.pth")
    with pytest.raises(UserError, match="leave out --ema"):
        read(tmp_path / "y.pth", ema=True)


def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path: Path) -> None:
    state = resnet().state_dict()
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "TorchScript.pth"))
    np.savez(tmp_path / "weights.npz", **{"a": np.ones(3)})
    save_file(state, tmp_path / "named.safetensors.pth")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>404</html>", encoding="utf-8")
    (tmp_path / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        archive.writestr("model.pth", b"")
    for name, kind in (
        ("TorchScript.pth", "a TorchScript program"), ("weights.npz", "a NumPy archive"), ("page.pth", "a web page"),
        ("named.safetensors.pth", "a safetensors file: name it"), ("lfs.pth", "a pointer of Git LFS"),
        ("many.zip", "a zip archive"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"is {kind}"):
            read(tmp_path / name)


@pytest.mark.parametrize(("to", "source", "destination"), [
    ("torchvision", "x.pth", "x.pth"), ("torchvision", "x.pth", "sub/../x.pth"), ("timm", "run", "run"),
    ("timm", "run/encoder.safetensors", "run"),
])  # fmt: skip
def test_a_source_is_not_its_own_destination(
    to: str, source: str, destination: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    torch.save(resnet().state_dict(), "x.pth")
    assert main(["convert", "x.pth", "run", "--to", "timm"]) == 0
    before = Path(source).stat().st_mtime_ns
    assert main(["convert", source, destination, "--to", to]) == 2
    assert "where the source itself lies" in capsys.readouterr().err
    assert Path(source).stat().st_mtime_ns == before


@pytest.mark.parametrize(("real", "said"), [("resnet18", "convnext_tiny"), ("convnext_tiny", "resnet50")])
def test_another_family_is_told_in_a_few_words(real: str, said: str, tmp_path: Path) -> None:
    torch.save(timm.create_model(real).state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"the checkpoint is a {real}, and no {said}"):
        read(tmp_path / "x.pth", said)
