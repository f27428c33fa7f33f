"""The picture of a run's course, and the bands that its loss is compared with."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from spark.methods.spark.model import SparK
from spark.runs.metrics import MetricsLog
from spark.visualize import curve
from spark.visualize.curve import Curve, draw_curve


def records(shift: float = 0.0, **more: Any) -> list[dict[str, Any]]:
    """Return the records of 4 epochs of 10 steps, whose loss falls evenly from 1 + shift to .5 + shift."""
    return [
        {"step": step, "epoch": step / 10, "loss": 1 + shift - step / 80, "lr": 1e-3, **more} for step in range(1, 41)
    ]


def size(picture: bytes | None) -> tuple[int, int]:
    assert picture is not None
    with Image.open(io.BytesIO(picture)) as image:
        return image.size


def test_the_level_of_the_mean_is_the_loss_of_drawing_it() -> None:
    """A decoder that draws nothing leaves each patch at its mean."""
    torch.manual_seed(0)
    spark = SparK("resnet18", decoder_width=32).eval()
    for parameter in spark.decoder.parameters():
        torch.nn.init.zeros_(parameter)
    loss = spark(torch.randn(2, 3, 64, 64)).loss
    assert spark.trivial_loss == 1 - 1 / (32 * 32 * 3)
    assert loss.item() == pytest.approx(spark.trivial_loss, rel=1e-5)


def test_each_panel_is_there_for_what_was_recorded() -> None:
    plain = size(draw_curve(records(), 0.99))
    probed = size(draw_curve(records(knn=30.0), 0.99))
    all_there = size(draw_curve(records(knn=30.0, linear=40.0, skipped=1), 0.99))
    assert plain[0] == probed[0] == all_there[0]
    assert plain[1] < probed[1] < all_there[1]
    assert draw_curve([{"step": 0, "epoch": 0.0, "knn": 10.0}], 0.99) is None


def test_it_is_drawn_at_the_end_and_rarely_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(curve.time, "monotonic", lambda: now[0])
    with MetricsLog(tmp_path) as log:
        for record in records():
            log.write(**record)
    drawn = tmp_path / "curve.png"
    picture = Curve(tmp_path, 0.99)
    now[0] = 50
    picture.update(last=False)
    assert not drawn.exists()
    now[0] = 150
    picture.update(last=False)
    assert drawn.exists()
    drawn.unlink()
    picture.update(last=True)
    assert drawn.exists()
