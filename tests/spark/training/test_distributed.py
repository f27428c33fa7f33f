"""Two processes have the numbers of one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import nn
from two_ranks import start_torchrun, torchrun

from spark.data.samplers import EpochSampler, ShareSampler
from spark.errors import UserError
from spark.methods.registry import read_recipe
from spark.runs.checkpoint import save_checkpoint
from spark.runs.metrics import read_metrics
from spark.sparse.synchronize import synchronize_batch_norms
from spark.training import loop
from spark.training.run import pretrain
from spark.utils.distributed import Ranks
from spark.utils.signals import EXIT_CODE

PHOTOS = 8  # one batch
STEPS = 10  # an epoch is one step here, so that each leaves its record


def settings(photos: Path, out: Path, *more: str) -> list[str]:
    return [
        f"data.root={photos}", f"out={out}", "device=cpu", "data.input_size=[64,64]", "data.workers=0",
        "model.drop_path=0", "decoder.width=32", "train.batch=8", f"train.epochs={STEPS}", "train.warmup_epochs=2",
        "optimizer.base_lr=0.003", "train.picture_epochs=100", *more,
    ]  # fmt: skip


def begin(config: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one process do the first step."""

    def stop_after_saving(folder: Path, state: dict) -> None:
        save_checkpoint(folder, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", stop_after_saving)
        with pytest.raises(KeyboardInterrupt):
            pretrain(read_recipe(None, config))


@pytest.mark.parametrize(
    ("model", "engine", "more"),
    [
        ("resnet18", "masked", "train.recompute=true"),  # batch norms that a rule hands what is visible
        ("regnetx_002", "compact", "begun alone"),  # batch norms that activate, too
        ("convnext_atto", "compact", ""),  # batch norms in the decoder only
    ],
)
def test_two_processes_have_the_losses_of_one(
    model: str, engine: str, more: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = (f"model.name={model}", f"engine={engine}")
    one, two = tmp_path / "one", tmp_path / "two"
    pretrain(read_recipe(None, settings(photos, one, *chosen)))
    config = settings(photos, two, *chosen, *([more] if "=" in more else []))
    if more == "begun alone":
        begin(config, monkeypatch)
    done = torchrun(tmp_path / "recipe.yaml", *config)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 processes of 4 images each; batch norms are synchronised") == 1
    assert ("it ran in 1 processes and goes on in 2" in done.stderr) == (more == "begun alone")
    records = read_metrics(two)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    for record, right in zip(records, read_metrics(one), strict=True):
        assert record["loss"] == pytest.approx(right["loss"], rel=1e-5), record["step"]
        assert record["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3), record["step"]


def test_processes_accumulate_and_probe(photos: Path, pictures: Path, tmp_path: Path) -> None:
    """Their parts are not those of one process, and with them what the decoder's batch norms see differs."""
    few = (
        "model.name=convnext_atto", "train.epochs=2", "train.warmup_epochs=0", "train.device_batch=2",
        f"probe.train={pictures}",
    )  # fmt: skip
    pretrain(read_recipe(None, settings(photos, tmp_path / "one", *few)))
    done = torchrun(tmp_path / "recipe.yaml", *settings(photos, tmp_path / "two", *few))
    assert done.returncode == 0, done.stderr
    (first, *records), (right_first, *right_records) = (read_metrics(tmp_path / name) for name in ("two", "one"))
    assert first == right_first  # the probe of the same weights
    assert {"knn", "linear"} <= first.keys() & records[-1].keys()
    for record, right in zip(records, right_records, strict=True):
        assert record["loss"] == pytest.approx(right["loss"], rel=0.02)
        assert record["grad_norm"] == pytest.approx(right["grad_norm"], rel=0.1)


def test_processes_name_what_each_could_not_read_and_stop_together(photos: Path, tmp_path: Path) -> None:
    """The file that no one but the second process has met yet is in the report; asked to stop, both save and end."""
    entries = [str(photos / f"{number % 8:02d}.png") for number in range(101)]
    firsts = ShareSampler(EpochSampler(101, 100, 1, seed=0), 100, Ranks(torch.device("cpu"), rank=1, size=2))
    entries[next(iter(firsts)).image] = str(tmp_path / "broken.png")
    (tmp_path / "broken.png").write_bytes(b"<html>404</html>")
    (tmp_path / "list.txt").write_text("\n".join(entries))
    out = tmp_path / "run"
    process = start_torchrun(
        tmp_path / "recipe.yaml", *settings(photos, out, "model.name=test_resnet", "decoder.width=32"),
        f"data.root={tmp_path / 'list.txt'}", "train.batch=100", "train.epochs=1000000",
    )  # fmt: skip
    while process.poll() is None and not (out / "checkpoints" / "last.pt").exists():
        time.sleep(0.01)
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode not in (0, EXIT_CODE), told  # torchrun has its own: hence the file
    assert (out / "stopped").read_text().startswith("saved after step ")
    assert (out / "unreadable_files.txt").read_text().startswith(f"{tmp_path / 'broken.png'}\tnot an image")


def test_an_error_is_said_once_and_ends_all(photos: Path, tmp_path: Path) -> None:
    done = torchrun(tmp_path / "recipe.yaml", *settings(photos, tmp_path / "run", "train.batch=7"))
    assert done.returncode != 0
    assert done.stderr.count("error: train.batch=7 cannot be shared equally by 2 processes; use e.g. 8") == 1
    assert not (tmp_path / "run").exists()


def test_a_batch_norm_that_cannot_be_synchronised_is_refused() -> None:
    with pytest.raises(UserError, match="1: BatchNorm3d cannot be synchronised"):
        synchronize_batch_norms(nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2)))
