"""The picture of a run's course, and the bands that its loss is compared with."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from spark import curve
from spark.checkpoint import save_checkpoint
from spark.config import load_recipe, save_resolved
from spark.curve import Curve, draw_curve, loss_of_the_mean
from spark.formats.encoder import Encoder, EncoderInfo, save_encoder
from spark.loss_bands import TABLE, Band, band_key, band_of, find_band
from spark.metrics import MetricsLog
from spark.model import build_spark
from spark.pretrain_config import PretrainConfig

TOOL = Path(__file__).parents[2] / "tools" / "measure_loss_bands.py"


def records(shift: float = 0.0, **more: Any) -> list[dict[str, Any]]:
    """Return the records of 4 epochs of 10 steps, whose loss falls evenly from 1 + shift to .5 + shift."""
    return [
        {"step": step, "epoch": step / 10, "loss": 1 + shift - step / 80, "lr": 1e-3, **more} for step in range(1, 41)
    ]


def config(*overrides: str) -> PretrainConfig:
    return load_recipe(PretrainConfig, None, ["out=run", "data.root=photos", *overrides])


def size(picture: bytes | None) -> tuple[int, int]:
    assert picture is not None
    with Image.open(io.BytesIO(picture)) as image:
        return image.size


def test_the_level_of_the_mean_is_the_loss_of_drawing_it() -> None:
    """A decoder that draws nothing leaves each patch at its mean."""
    torch.manual_seed(0)
    spark = build_spark("resnet18", decoder_width=32).eval()
    for parameter in spark.decoder.parameters():
        torch.nn.init.zeros_(parameter)
    loss = spark(torch.randn(2, 3, 64, 64)).loss
    assert loss.item() == pytest.approx(loss_of_the_mean(32 * 32 * 3), rel=1e-5)


def test_each_panel_is_there_for_what_was_recorded() -> None:
    plain = size(draw_curve(records(), 0.99, None))
    probed = size(draw_curve(records(knn=30.0), 0.99, None))
    band = Band([1, 2], [0.8, 0.7], [0.9, 0.8], runs=3)
    all_there = size(draw_curve(records(knn=30.0, linear=40.0, skipped=1), 0.99, band))
    assert plain[0] == probed[0] == all_there[0]
    assert plain[1] < probed[1] < all_there[1]
    assert draw_curve([{"step": 0, "epoch": 0.0, "knn": 10.0}], 0.99, None) is None


def test_it_is_drawn_at_the_end_and_rarely_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(curve.time, "monotonic", lambda: now[0])
    with MetricsLog(tmp_path) as log:
        for record in records():
            log.write(**record)
    drawn = tmp_path / "curve.png"
    picture = Curve(tmp_path, 0.99, None)
    now[0] = 50
    picture.update(last=False)
    assert not drawn.exists()
    now[0] = 150
    picture.update(last=False)
    assert drawn.exists()
    drawn.unlink()
    picture.update(last=True)
    assert drawn.exists()


def test_a_band_reaches_from_the_lowest_run_to_the_highest() -> None:
    band = band_of([records(), records(0.1), records(0.05)])
    assert band.runs == 3
    for epoch, low, high in zip(band.epochs, band.low, band.high, strict=True):
        assert low == pytest.approx(1 - epoch / 8, abs=0.01)
        assert high - low == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("override", "same"),
    [("seed=3", True), ("out=other", True), ("engine=masked", True), ("data.workers=2", True), ("probe.epochs=3", True),
     ("train.batch=8", False), ("optimizer.base_lr=1", False), ("model.name=resnet18", False)],
)  # fmt: skip
def test_only_what_decides_about_the_loss_tells_bands_apart(override: str, same: bool) -> None:
    assert (band_key(config(override), "images") == band_key(config(), "images")) == same


def test_other_images_have_another_band() -> None:
    assert band_key(config(), "images") != band_key(config(), "others")


def finished(folder: Path, seed: int, shift: float, *overrides: str) -> Path:
    """Make what is read of a finished run."""
    settings = config(f"seed={seed}", *overrides)
    save_resolved(settings, folder / "config.yaml")
    save_checkpoint(folder / "checkpoints", {"images": "images", "config": dataclasses.asdict(settings)})
    info = EncoderInfo("resnet18", 3, (64, 64), (0.5,) * 3, (0.5,) * 3, "spark", 4, None, "0.1+abc")
    save_encoder(folder, Encoder({"weight": torch.zeros(1)}, info))
    with MetricsLog(folder) as log:
        for record in records(shift):
            log.write(**record)
    return folder


def test_runs_become_a_band_that_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("measure_loss_bands", TOOL)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    runs = [finished(tmp_path / str(seed), seed, seed / 10) for seed in (0, 1)]
    table = tmp_path / "bands.csv"
    for _ in range(2):  # the second time replaces what the first one wrote
        assert tool.main(["recipe.yaml", *map(str, runs), "--table", str(table)]) == 0
    assert len(table.read_text().splitlines()) == 41
    band = find_band(config("seed=7"), "images", table)
    assert band is not None
    assert band.runs == 2
    assert band.high[0] - band.low[0] == pytest.approx(0.1, abs=1e-3)
    assert find_band(config("train.batch=8"), "images", table) is None

    other = finished(tmp_path / "other", 5, 0.0, "train.batch=8")
    assert tool.main(["recipe.yaml", str(runs[0]), str(other), "--table", str(table)]) == 2
    assert "differ in more than their seeds" in capsys.readouterr().err
    assert tool.main(["recipe.yaml", str(runs[0]), str(runs[0]), "--table", str(table)]) == 2
    assert "each with a seed of its own" in capsys.readouterr().err


def test_without_measured_runs_there_is_no_band(tmp_path: Path) -> None:
    assert find_band(config(), "images", tmp_path / "none.csv") is None


def test_the_bands_that_come_along_are_sound() -> None:
    for _, band in pd.read_csv(TABLE).groupby("key"):
        assert band.epoch.is_monotonic_increasing
        assert ((band.low > 0) & (band.low <= band.high)).all()
        assert (band.runs >= 2).all()
        assert band.source.str.startswith("seeds 0").all()
