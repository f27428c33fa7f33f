"""A run leaves what it should, and being killed changes nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from spark.cli import main
from spark.errors import UserError
from spark.formats.reader import read
from spark.methods.registry import read_recipe
from spark.runs.checkpoint import load_latest, save_checkpoint
from spark.runs.metrics import read_metrics
from spark.training import loop
from spark.training import pretraining as train
from spark.training.run import pretrain

MAIN = "import sys; from spark.cli import main; sys.exit(main())"
PHOTOS = 12
EPOCHS, STEPS = 4, 3  # of these, 4 in a batch


def settings(pictures: Path, out: Path, *more: str) -> list[str]:
    return [
        f"data.root={pictures}", f"out={out}", "device=cpu", "model.name=resnet18", "model.drop_path=0.1",
        "data.input_size=[64,64]", "data.workers=1", "decoder.width=32", "train.batch=4", f"train.epochs={EPOCHS}",
        "train.warmup_epochs=1", "optimizer.base_lr=0.1", "train.checkpoint_minutes=0.00001",
        "train.picture_epochs=2", *more,
    ]  # fmt: skip


def run(pictures: Path, out: Path, *more: str) -> Path:
    return pretrain(read_recipe(None, settings(pictures, out, *more)))


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files but TensorBoard's."""
    files = (path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was never interrupted; tests leave it as it is."""
    return run(photos, tmp_path_factory.mktemp("runs") / "whole")


def test_a_run_leaves_its_results(finished: Path) -> None:
    files = set(content(finished))
    assert files == {
        "config.yaml", "metrics.jsonl", "curve.png", "encoder.safetensors", "encoder.json", "checkpoints/last.pt",
        "checkpoints/previous.pt", "reconstructions/epoch_00002.png", "reconstructions/epoch_00004.png",
    }  # fmt: skip
    assert list((finished / "tensorboard").iterdir())
    with Image.open(finished / "reconstructions" / "epoch_00004.png") as picture:
        assert picture.size == (3 * 68 + 4, 6 * 68 + 4)


def test_metrics_follow_the_schedule(finished: Path) -> None:
    records = read_metrics(finished)
    assert [record["step"] for record in records] == [3, 6, 9, 10, 12]  # epochs' ends and each tenth step
    assert records[-1]["epoch"] == EPOCHS
    peak = 0.1 * 4 / 256
    assert records[0]["lr"] == pytest.approx((0.005 + 0.995 * 2 / 3) * peak)
    assert records[-1]["lr"] == pytest.approx(0.001 * peak)
    assert records[-1]["weight_decay"] == pytest.approx(0.2)
    assert all(0.5 < record["loss"] < 2 and record["grad_norm"] > 0 for record in records)


def test_the_last_record_tells_how_different_features_are(finished: Path) -> None:
    """Earlier ones do not: to look at them would cost more than one per cent of such short epochs."""
    spread = {"feature_similarity", "effective_rank"}
    assert [record["step"] for record in read_metrics(finished) if spread & record.keys()] == [EPOCHS * STEPS]
    assert 1 < read_metrics(finished)[-1]["effective_rank"] < PHOTOS


def test_the_export_is_the_encoder_of_the_last_checkpoint(finished: Path) -> None:
    checkpoint = load_latest(finished / "checkpoints")
    assert checkpoint is not None
    assert checkpoint["step"] == EPOCHS * STEPS
    exported = load_file(finished / "encoder.safetensors")
    assert len(exported) == 120
    for name, tensor in exported.items():
        assert tensor.equal(checkpoint["model"][f"encoder.network.{name}"])
    info = read(finished).encoder.info
    assert (info.model, info.epochs, info.input_size, info.method) == ("resnet18", EPOCHS, (64, 64), "spark")


def test_a_checkpoint_reads_like_the_export(finished: Path) -> None:
    from_checkpoint = read(finished / "checkpoints" / "last.pt").encoder
    exported = read(finished).encoder
    assert from_checkpoint.info.model == exported.info.model
    assert from_checkpoint.state.keys() == exported.state.keys()
    assert all(tensor.equal(exported.state[name]) for name, tensor in from_checkpoint.state.items())


def test_resuming_a_finished_run_changes_nothing(finished: Path, photos: Path) -> None:
    before = content(finished)
    run(photos, finished)
    assert content(finished) == before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_run_ends_with_the_same_weights(workers: int, finished: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = [
        sys.executable, "-c", MAIN, "pretrain",
        str(empty_recipe(tmp_path)), *settings(photos, out, f"data.workers={workers}"),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    )
    moment = random.SystemRandom()
    kill_after, seen = moment.randint(1, 7), set()
    while process.poll() is None and len(seen) < kill_after:  # checkpoints, of which each step leaves one
        with contextlib.suppress(FileNotFoundError):  # between two renames
            seen.add((out / "checkpoints" / "last.pt").stat().st_mtime_ns)
        time.sleep(0.005)
    time.sleep(moment.uniform(0, 0.1))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it should not have finished before the kill"
    stopped_at = load_latest(out / "checkpoints")
    assert stopped_at is not None
    run(photos, out, f"data.workers={workers}")
    whole, resumed = load_latest(finished / "checkpoints"), load_latest(out / "checkpoints")
    assert whole is not None
    assert resumed is not None
    different = [name for name, tensor in whole["model"].items() if not tensor.equal(resumed["model"][name])]
    assert not different, f"after a kill at step {stopped_at['step']}"
    assert read_metrics(out) == read_metrics(finished)
    for name in ("encoder.safetensors", "reconstructions/epoch_00004.png"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_is_asked_to_stop_goes_on_exactly(
    number: signal.Signals, finished: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "asked"
    rare = "train.checkpoint_minutes=100"
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "pretrain", str(empty_recipe(tmp_path)), *settings(photos, out, rare)],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    while process.poll() is None and not (out / "checkpoints" / "last.pt").exists():
        time.sleep(0.005)
    os.killpg(process.pid, number)  # to the loader's workers too
    _, told = process.communicate(timeout=30)
    assert process.returncode == 75, told
    assert f"{out} was asked to stop and is saved" in told
    assert not (out / "encoder.safetensors").exists()
    assert (out / "stopped").read_text().startswith("saved after step ")
    run(photos, out, rare)
    assert not (out / "stopped").exists()
    assert (out / "encoder.safetensors").read_bytes() == (finished / "encoder.safetensors").read_bytes()
    assert read_metrics(out) == read_metrics(finished)


class StoppedError(Exception):
    """Instead of being killed."""


@contextlib.contextmanager
def stopping_at_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def stop_after_saving(folder: Path, state: dict) -> None:
        save_checkpoint(folder, state)
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", stop_after_saving)
        yield


def test_a_probe_changes_nothing(
    finished: Path, photos: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Losses and weights are those of the run without one, bit for bit; it may come and go between continuations."""
    out = run(photos, tmp_path / "probed", f"probe.train={pictures}", "probe.epochs=2")
    begins, *records = read_metrics(out)
    assert (begins["step"], begins.keys()) == (0, {"step", "epoch", "knn", "linear"})
    assert [record["step"] for record in records if "knn" in record] == [6, 12]
    probes = {"knn", "linear"}
    kept = [{name: value for name, value in record.items() if name not in probes} for record in records]
    assert kept == read_metrics(finished)
    assert (out / "encoder.safetensors").read_bytes() == (finished / "encoder.safetensors").read_bytes()
    assert f"loss {records[-1]['loss']:.4f}  knn {records[-1]['knn']:.1f} %" in capsys.readouterr().err
    run(photos, out)
    assert "is finished already" in capsys.readouterr().err


def test_every_step_is_a_place_to_go_on_from(
    finished: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop after each step in turn (in one process): the numbers stay those of the whole run."""
    out = tmp_path / "stopped"
    for _ in range(5):
        with stopping_at_a_checkpoint(monkeypatch), pytest.raises(StoppedError):
            run(photos, out, "data.workers=0")
    run(photos, out, "data.workers=0")
    assert (out / "encoder.safetensors").read_bytes() == (finished / "encoder.safetensors").read_bytes()
    assert read_metrics(out) == read_metrics(finished)


def test_a_run_goes_on_with_another_engine(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("train.epochs=2", "data.workers=0", "train.picture_epochs=2")
    wanted = read_metrics(run(photos, tmp_path / "compact", *few, "engine=compact"))
    out = tmp_path / "both"
    for _ in range(2):  # steps
        with stopping_at_a_checkpoint(monkeypatch), pytest.raises(StoppedError):
            run(photos, out, *few, "engine=masked")
    found = read_metrics(run(photos, out, *few, "engine=compact"))
    assert [record["step"] for record in found] == [3, 6]
    for record, right in zip(found, wanted, strict=True):
        assert record["loss"] == pytest.approx(right["loss"], rel=1e-5)
        assert record["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)
    info = [read(folder).encoder.info for folder in (out, tmp_path / "compact")]
    assert info[0].config_hash == info[1].config_hash


LN_NET = ("model.name=convnext_atto", "model.drop_path=0", "train.epochs=1", "train.warmup_epochs=0", "data.workers=0")


def gradients(photos: Path, out: Path, *more: str) -> dict[str, torch.Tensor]:
    """Return the gradients of a first step; the decoder's batch norms go by constants, to be no part of the matter."""
    training = train.Pretraining(read_recipe(None, settings(photos, out, *LN_NET, *more)))
    batch = next(iter(training.batches(first_step=0)))
    training._model.decoder.eval()
    training.step(batch, 0, lr=1e-4)
    return {name: p.grad for name, p in training._model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("how", ["train.device_batch=1", "train.device_batch=3", "train.accumulate=4"])
def test_accumulated_gradients_are_the_batchs(how: str, photos: Path, tmp_path: Path) -> None:
    whole, parts = gradients(photos, tmp_path), gradients(photos, tmp_path, how)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item() + 1e-7)


def test_the_log_says_what_batch_norms_see(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(photos, tmp_path / "run", *LN_NET, "train.device_batch=3")
    assert "accumulating 2 parts of 2 images; batch norms" in capsys.readouterr().err


def test_parts_that_do_not_fit_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.accumulate=3 does not divide the 4 images"):
        run(photos, tmp_path / "run", "train.accumulate=3")
    with pytest.raises(UserError, match=r"leaves 4 images at a time, more than train\.device_batch=2"):
        run(photos, tmp_path / "run", "train.accumulate=1", "train.device_batch=2")
    with pytest.raises(UserError, match=r"train\.accumulate=some must be auto or a positive number"):
        run(photos, tmp_path / "run", "train.accumulate=some")


def test_a_run_of_an_older_version_goes_on(photos: Path, tmp_path: Path) -> None:
    out = run(photos, tmp_path / "run", *LN_NET)
    lines = (out / "config.yaml").read_text().splitlines(keepends=True)
    (out / "config.yaml").write_text("".join(line for line in lines if "accumulate" not in line))
    run(photos, out, *LN_NET)


def test_another_configuration_is_refused_and_the_run_kept(finished: Path, photos: Path) -> None:
    before = content(finished)
    with pytest.raises(UserError, match=r"another configuration \(mask\.ratio was 0\.6, is 0\.5\).*resume=never"):
        run(photos, finished, "mask.ratio=0.5")
    assert content(finished) == before


def test_a_folder_that_lost_an_image_is_refused(photos: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(photos, out, "train.epochs=2", "data.workers=0")
    next(pictures.rglob("*.png")).unlink()
    with pytest.raises(UserError, match="does not hold the images that the run began with"):
        run(pictures, out, "train.epochs=2", "data.workers=0")


def test_never_resuming_starts_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    few = ("train.epochs=2", "data.workers=0", "train.picture_epochs=1")
    run(photos, out, *few)
    (out / "mine.txt").write_text("not the run's")
    first = (out / "encoder.safetensors").read_bytes()
    run(photos, out, *few, "resume=never", "seed=1")
    assert (out / "encoder.safetensors").read_bytes() != first
    assert (out / "mine.txt").exists()
    assert [record["step"] for record in read_metrics(out)] == [3, 6]


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"no longer finite .* lower optimizer\.base_lr"):
        run(photos, out, "optimizer.base_lr=1e6", "optimizer.name=adamw", "data.workers=0")
    saved = load_latest(out / "checkpoints")
    assert saved is None or saved["step"] < EPOCHS * STEPS
    assert not (out / "encoder.safetensors").exists()


def test_a_dry_run_tells_and_writes_nothing(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = empty_recipe(tmp_path)
    before = content(tmp_path)
    assert main(["pretrain", str(recipe), *settings(photos, tmp_path / "run"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "steps    12 (3 in each of 4 epochs, 4 images in a step)" in told
    assert all(word in told for word in ("images/s", "time ", "CPU-hours 0.0", "GiB in each process", "nothing was"))
    assert content(tmp_path) == before


@contextlib.contextmanager
def spoilt(monkeypatch: pytest.MonkeyPatch, batches: Collection[int]) -> Iterator[None]:
    """Let some of the batches, counted from 1, hold no numbers."""
    given = itertools.count(1)

    def normalize(*inputs: Any) -> torch.Tensor:
        images = real(*inputs)
        return images * torch.nan if next(given) in batches else images

    real = train.normalize
    with monkeypatch.context() as patch:
        patch.setattr(train, "normalize", normalize)
        yield


RARE = ("train.checkpoint_minutes=100", "train.picture_epochs=100", "data.workers=0")


def test_a_bad_step_is_left_out_and_counted(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with spoilt(monkeypatch, {5}):
        out = run(photos, tmp_path / "run", *RARE)
    assert [record.get("skipped", 0) for record in read_metrics(out)] == [0, 1, 1, 1, 1]
    assert all(0.5 < record["loss"] < 2 for record in read_metrics(out))
    saved = load_latest(out / "checkpoints")
    assert saved is not None
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())
    assert saved["skipped"] == 1


def test_repeated_bad_steps_stop_the_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with spoilt(monkeypatch, range(4, 10)), pytest.raises(UserError, match=r"near step 9; the last checkpoint is kept"):
        run(photos, tmp_path / "run", *RARE)
    saved = load_latest(tmp_path / "run" / "checkpoints")
    assert saved is not None
    assert saved["step"] == 3


def test_or_go_back_with_a_lower_learning_rate(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with spoilt(monkeypatch, range(4, 10)):
        out = run(photos, tmp_path / "run", *RARE, "train.on_divergence=rollback")
    assert "no longer finite near step 9: back to step 3, with 0.5 of the learning rate" in capsys.readouterr().err
    records = read_metrics(out)
    assert [record["step"] for record in records] == [3, 6, 9, 10, 12]
    assert records[-1]["lr"] == pytest.approx(0.5 * 0.001 * 0.1 * 4 / 256)
    with spoilt(monkeypatch, range(1, 100)), pytest.raises(UserError, match=r"near step 6, after 5 rollbacks"):
        run(photos, tmp_path / "hopeless", *RARE, "train.on_divergence=rollback")


def empty_recipe(folder: Path) -> Path:
    recipe = folder / "recipe.yaml"
    recipe.write_text("{}\n")
    return recipe
