"""`spark visualize vanishing`: dense maps fill up, sparse ones keep the mask, with both engines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from paths import ROOT
from PIL import Image

from spark.backbones.timm_pyramid import build_pyramid
from spark.cli import main
from spark.masking import random_mask
from spark.visualize.vanishing import reveal, share, trace

OWN = f"{ROOT}/tools/examples/cifar_resnet.py:CifarResNet"


@pytest.mark.parametrize("engine", ["compact", "masked"])
@pytest.mark.parametrize("model", ["resnet18", "convnext_atto", "regnety_002", "vgg11_bn", "densenet121", OWN])
def test_dense_fills_up_and_sparse_keeps_the_mask(model: str, engine: str) -> None:
    torch.manual_seed(0)
    network = build_pyramid(model)
    reveal(network)
    mask = random_mask(1, (4, 4), 0.6, torch.Generator().manual_seed(0))
    side = 4 * network.strides[-1]
    traces = trace(network, 1 - torch.rand(1, 3, side, side, dtype=torch.float64), mask, engine)
    assert traces[0].layer == "masked image"
    assert len(traces) > 4
    dense, sparse = ([share(getattr(traced, kind)) for traced in traces] for kind in ("dense", "sparse"))
    visible = mask.double().mean().item()
    assert dense[0] == visible
    assert dense[-1] == 1
    for traced, found in zip(traces, sparse, strict=True):
        height, width = traced.sparse.shape
        if height % 4 == 0:
            shown = mask[0, 0].repeat_interleave(height // 4, 0).repeat_interleave(width // 4, 1)
            assert not traced.sparse[~shown].any()
        assert visible - 0.05 <= found <= visible  # a ReLU may close a position by chance


def test_the_picture_does_not_depend_on_the_engine(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = []
    for engine in ("compact", "masked"):
        arguments = ["visualize", "vanishing", "resnet18", str(pictures / "a" / "00.png"), "--input-size", "130"]
        assert main([*arguments, "--engine", engine, "--out", str(tmp_path / engine)]) == 0
        drawn.append(tmp_path / engine / "vanishing_resnet18.png")
        assert str(drawn[-1]) in capsys.readouterr().out
    with Image.open(drawn[0]) as first, Image.open(drawn[1]) as second:
        assert first.size == second.size
        assert list(first.getdata()) == list(second.getdata())


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["resnet5O", "a/00.png"], "unknown model 'resnet5O'"),
        (["resnet18", "none.png"], "image 'none.png' cannot be read: No such file"),
        (["resnet18", "a/00.png", "--engine", "fast"], "unknown engine 'fast'"),
        (["resnet18", "a/00.png", "--mask-ratio", "1"], "--mask-ratio: 1.0 must be in (0, 1)"),
        (["resnet18", "a/00.png", "--input-size", "0"], "--input-size: 0 must be at least 1"),
        (["ghostnetv2_100", "a/00.png"], "GhostModuleV2"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], part: str, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pictures)
    assert main(["visualize", "vanishing", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert part in lines[0]
    assert not Path("runs").exists()
