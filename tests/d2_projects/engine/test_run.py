"""One record for one run, from scratch or from an encoder, the same by either command; and clear refusals."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from pathlib import Path

import pytest
import timm
import torch
from tiny_coco import RECIPE, TINY

from d2_projects import train_net
from d2_projects.engine import trainer
from d2_projects.engine.run import run, said_once
from eval_suite.cli import main
from spark.errors import UserError
from spark.formats.encoder import Encoder, EncoderInfo, load_encoder, save_encoder
from spark.runs.metrics import read_metrics
from spark.runs.record import load_record

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def export(folder: Path, model: str = "resnet18", **changes: tuple[float, ...]) -> Path:
    torch.manual_seed(1)
    state = timm.create_model(model, num_classes=0).state_dict()
    statistics = {**IMAGENET, **changes}
    info = EncoderInfo(model, 3, (64, 64), statistics["mean"], statistics["std"], "spark", 7, "abc", "test")
    save_encoder(folder, Encoder(state, info))
    return folder


def test_a_run_from_scratch_writes_one_record(coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = [*TINY, f"out={out}", f"data.root={coco}", "seed=3"]
    path = run(RECIPE, arguments)
    assert sorted(tmp_path.rglob("result.json")) == [path] == [out / "result.json"]
    record = load_record(path)
    assert (record.task, record.model, record.origin, record.seed) == (
        "coco_mask_rcnn", "resnet18", "smoke", 3)
    assert record.init.kind == "scratch"
    sizes = ("AP", "AP50", "AP75", "APs", "AR1", "AR10", "AR100", "ARs")  # no object is larger than small
    assert set(record.metrics) == {f"{task}/{name}" for task in ("bbox", "segm") for name in sizes}
    assert all(0 <= metric.value <= 100 and metric.unit == "AP (0-100)" for metric in record.metrics.values())
    assert record.epochs == 1  # two iterations of two of four images
    assert record.protocol["train_images"] == 4
    assert [entry["step"] for entry in read_metrics(out) if "loss" in entry] == [1, 2]
    assert (out / "detections.png").stat().st_size > 1000
    assert (record.log, record.checkpoint) == ("metrics.jsonl", "checkpoints/last.pt")
    assert (out / record.checkpoint).is_file()
    assert record.wall_seconds > 0
    assert "seed: 3" in (out / "config.yaml").read_text()

    evaluated = run(RECIPE, [*arguments, "eval_only=true"])
    assert evaluated == out / "evaluation.json"
    again = json.loads(evaluated.read_text())
    assert again["metrics"] == {name: metric.value for name, metric in record.metrics.items()}
    assert again["weights"] == str(out / record.checkpoint)

    before = path.stat().st_mtime_ns
    assert run(RECIPE, arguments) == path
    assert path.stat().st_mtime_ns == before  # finished runs are left alone
    with pytest.raises(UserError, match="another seed; pass another out="):
        run(RECIPE, [*arguments[:-1], "seed=4"])


def without_times(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if not line.startswith(
        ('  "wall_seconds"', '  "images_per_second"'))]


def test_both_commands_leave_the_same_result(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [RECIPE, *TINY, "data.root=coco", "out=run"]
    told = []
    for command in (train_net.main, lambda words: main(["detect", *words])):
        assert command(words) == 0
        told.append(capsys.readouterr().out)
        Path("run").rename(f"run{len(told)}")
    assert told[0] == told[1]
    assert without_times(Path("run1/result.json")) == without_times(Path("run2/result.json"))
    for name in ("metrics.jsonl", "config.yaml", "identity.json"):
        assert Path("run1", name).read_bytes() == Path("run2", name).read_bytes()


def test_a_signal_stops_a_run_and_tells_the_scheduler(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_step = trainer.Trainer.run_step

    def signalled(self: trainer.Trainer) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        run_step(self)

    monkeypatch.setattr(trainer.Trainer, "run_step", signalled)
    out = tmp_path / "run"
    assert train_net.main([RECIPE, *TINY, f"out={out}", f"data.root={coco}"]) == 75
    assert "was asked to stop and is saved; the same command goes on with it" in capsys.readouterr().err
    assert [entry["step"] for entry in read_metrics(out)] == [1]
    assert not (out / "result.json").exists()


def test_of_processes_that_have_not_joined_the_first_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> None:
        raise UserError("a bad recipe")

    for rank, raised in (("0", UserError), ("1", SystemExit)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(raised):
            said_once(wrong)


def test_an_encoder_gives_the_backbone_and_is_recorded(coco: Path, tmp_path: Path) -> None:
    encoder = export(tmp_path / "encoder")
    out = tmp_path / "run"
    # With a learning rate of nothing, what is saved at the end is what was loaded.
    path = run(
        RECIPE, [*TINY, f"init={encoder}", f"out={out}", f"data.root={coco}", "optimizer.lr=0"])
    record = load_record(path)
    assert (record.init.kind, record.init.pretrained_epochs) == ("spark", 7)
    assert record.init.checkpoint_sha256
    saved = torch.load(out / (record.checkpoint or ""), weights_only=True)["model"]
    expected = load_encoder(encoder).state
    for ours, theirs in (("stem.conv1", "conv1"), ("res5.1.conv2", "layer4.1.conv2")):
        torch.testing.assert_close(saved[f"backbone.bottom_up.{ours}.weight"], expected[f"{theirs}.weight"])


@pytest.mark.parametrize(("model", "changes", "message"), [
    ("resnet34", {}, "is a resnet34, but .* has a resnet18"),
    ("resnet18", {"mean": (0.5, 0.5, 0.5)}, r"was trained with model.pixel_mean=\[127.5, 127.5, 127.5\]"),
])
def test_an_encoder_that_does_not_fit_is_refused(
    coco: Path, tmp_path: Path, model: str, changes: dict[str, tuple[float, ...]], message: str
) -> None:
    encoder = export(tmp_path / "encoder", model, **changes)
    with pytest.raises(UserError, match=message):
        run(RECIPE, [*TINY, f"init={encoder}", f"out={tmp_path / 'run'}", f"data.root={coco}"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("override", "message"), [
    ("train.max_itr=3", "unknown key 'train.max_itr'. Did you mean train.max_iter"),
    ("train.max_iter=abc", "train.max_iter=abc: expected int"),
    ("train.max_iter=0", "train.max_iter=0 must be at least 1"),
    ("resume=maybe", "expected auto or never"),
    ("eval_only=1", "expected true or false"),
    ("weights=best", "weights=… is what eval_only=true evaluates"),
    ("train.accumulate=0", "train.accumulate=0 must be at least 1"),
    ("train.clip_grad_norm=-1", "train.clip_grad_norm=-1 must not be negative"),
    ("seed", "is not an override"),
    ("data.root=/nowhere", "data folder '/nowhere' does not exist"),
    ("init=/nowhere", "does not exist: give scratch, timm:NAME"),
])
def test_bad_overrides_are_one_line_and_write_nothing(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        run(RECIPE, [f"out={tmp_path / 'run'}", override])
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("override", "message"), [
    ("train.device=abacus", "is not a device"),
    ("train.amp.enabled=true", "needs a CUDA device"),
])
def test_impossible_devices_leave_no_folder(coco: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(RECIPE, [*TINY, f"data.root={coco}", f"out={tmp_path / 'run'}", override])
    assert not (tmp_path / "run").exists()


def test_a_missing_recipe_names_its_neighbors() -> None:
    with pytest.raises(UserError, match=r"Did you mean .*mask_rcnn_r18_demo\.py"):
        run(RECIPE.replace("demo", "dmo"), [])


def test_a_missing_detectron2_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *rest: None if name == "detectron2" else original(name, *rest))
    with pytest.raises(UserError, match=r"python tools/install_detectron2\.py"):
        run(RECIPE, [])
