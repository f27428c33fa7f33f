"""Other channels, shapes and patches from images to pictures: pre-train, export, load, reconstruct."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from spark.formats.encoder import load_encoder
from spark.methods.registry import read_recipe
from spark.runs.metrics import read_metrics
from spark.training.run import pretrain
from spark.visualize.reconstruct import visualize_reconstructions

HEIGHT, WIDTH = 64, 96


def write_images(folder: Path, channels: int) -> None:
    """Write smooth images, as gray or RGBA PNG or as arrays of bands."""
    folder.mkdir()
    random = np.random.RandomState(0)
    for number in range(8):
        coarse = random.randint(0, 256, (channels, 4, 4), dtype=np.uint8)
        bands = [Image.fromarray(band).resize((112, 80), Image.Resampling.BICUBIC) for band in coarse]
        if channels in (1, 4):
            Image.merge("L" if channels == 1 else "RGBA", bands).save(folder / f"{number}.png")
        else:
            np.save(folder / f"{number}.npy", np.dstack([np.asarray(band) for band in bands]))


@pytest.mark.parametrize(
    ("channels", "model", "stride", "patch"),
    [(1, "test_resnet", 32, None), (4, "test_convnext", 32, 32), (12, "test_efficientnet", 16, 32)],
)
def test_from_images_to_pictures(channels: int, model: str, stride: int, patch: int | None, tmp_path: Path) -> None:
    options = {} if stride == 32 else {"output_stride": stride}
    write_images(tmp_path / "images", channels)
    config = read_recipe(None,
        [
            f"data.root={tmp_path / 'images'}", f"out={tmp_path / 'run'}", "device=cpu", f"model.name={model}",
            f"model.options={options}", "model.drop_path=0", f"model.in_chans={channels}", "data.workers=0",
            f"data.input_size=[{HEIGHT},{WIDTH}]", f"data.mean={[0.5] * channels}", f"data.std={[0.25] * channels}",
            "decoder.width=32", f"mask.patch_size={patch or 'null'}", "train.batch=4", "train.epochs=2",
            "train.warmup_epochs=0", "train.picture_epochs=1", "optimizer.base_lr=0.1",
        ],
    )  # fmt: skip
    run = pretrain(config)
    assert [record["step"] for record in read_metrics(run)] == [2, 4]
    assert all(0.5 < record["loss"] < 2 for record in read_metrics(run))
    with Image.open(run / "reconstructions" / "epoch_00002.png") as picture:
        assert picture.size == (3 * (WIDTH + 4) + 4, 6 * (HEIGHT + 4) + 4)

    encoder = load_encoder(run)
    assert (encoder.info.in_chans, encoder.info.input_size) == (channels, (HEIGHT, WIDTH))
    network = timm.create_model(model, in_chans=channels, num_classes=0, **options)
    network.load_state_dict(dict(encoder.state))
    assert network(torch.rand(1, channels, HEIGHT, WIDTH)).isfinite().all()

    images = sorted((tmp_path / "images").iterdir())[:1]
    png, page = visualize_reconstructions(run, images, [0], [], tmp_path / "shown", "cpu")
    assert png.is_file()
    assert page.read_text().count("<img") == 4
