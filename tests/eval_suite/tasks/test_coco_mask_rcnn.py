"""`spark-eval detect`: one record for one run, from scratch or from an encoder, and clear refusals."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import signal
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from tiny_coco import RECIPE, TINY

from eval_suite.cli import main
from eval_suite.task import Work
from eval_suite.tasks import coco_mask_rcnn
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


def test_a_number_of_classes_that_is_not_the_datas_is_refused(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"num_classes=7, but .* has 2 categories; leave it out"):
        coco_mask_rcnn.run(RECIPE, [*TINY, f"out={tmp_path / 'run'}", f"data.root={coco}",
                                    "model.roi_heads.num_classes=7"])
    assert not (tmp_path / "run").exists()


def test_the_number_of_gpus_decides_where_it_scales_the_recipe(tmp_path: Path) -> None:
    recipe = str(Path(RECIPE).with_name("mask_rcnn_r50_fpn.py"))
    of = {gpus: coco_mask_rcnn.CocoMaskRcnn().prepare(Work(recipe, tmp_path, gpus=gpus)) for gpus in (0, 1, 8)}
    assert of[0].settings == of[8].settings != of[1].settings
    assert of[1].length == 8 * of[8].length


def test_a_run_from_scratch_writes_one_record(coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = [*TINY, f"out={out}", f"data.root={coco}", "seed=3"]
    path = coco_mask_rcnn.run(RECIPE, arguments)
    assert sorted(tmp_path.rglob("result.json")) == [path] == [out / "result.json"]
    record = load_record(path)
    assert (record.task, record.model, record.origin, record.seed) == (
        "coco_mask_rcnn", "resnet18", "smoke", 3)
    assert record.init.kind == "scratch"
    sizes = ("AP", "AP50", "AP75", "APs", "AR1", "AR10", "AR100", "ARs")  # no object is larger than small
    assert set(record.metrics) == {f"{task}/{name}" for task in ("bbox", "segm") for name in sizes}
    assert all(0 <= metric.value <= 100 and metric.unit == "AP (0-100)" for metric in record.metrics.values())
    assert record.epochs == 1  # two iterations of two of four pictures
    assert record.protocol["train_images"] == 4
    assert [entry["step"] for entry in read_metrics(out) if "loss" in entry] == [1, 2]
    assert (out / "detections.png").stat().st_size > 1000
    assert (record.log, record.checkpoint) == ("metrics.jsonl", "checkpoints/last.pt")
    assert (out / record.checkpoint).is_file()
    assert record.wall_seconds > 0
    assert "seed: 3" in (out / "config.yaml").read_text()

    evaluated = coco_mask_rcnn.run(RECIPE, [*arguments, "eval_only=true"])
    assert evaluated == out / "evaluation.json"
    again = json.loads(evaluated.read_text())
    assert again["metrics"] == {name: metric.value for name, metric in record.metrics.items()}
    assert again["weights"] == str(out / record.checkpoint)

    before = path.stat().st_mtime_ns
    assert coco_mask_rcnn.run(RECIPE, arguments) == path
    assert path.stat().st_mtime_ns == before  # finished runs are left alone
    with pytest.raises(UserError, match="another seed; pass another out="):
        coco_mask_rcnn.run(RECIPE, [*arguments[:-1], "seed=4"])


def test_a_signal_stops_a_run_and_tells_the_scheduler(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from d2_projects.engine import trainer

    run_step = trainer.Trainer.run_step

    def signalled(self: trainer.Trainer) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        run_step(self)

    monkeypatch.setattr(trainer.Trainer, "run_step", signalled)
    out = tmp_path / "run"
    assert main(["detect", RECIPE, *TINY, f"out={out}", f"data.root={coco}"]) == 75
    assert "was asked to stop and is saved; the same command goes on with it" in capsys.readouterr().err
    assert [entry["step"] for entry in read_metrics(out)] == [1]
    assert not (out / "result.json").exists()


def test_of_processes_that_have_not_joined_the_first_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> None:
        raise UserError("a bad recipe")

    for rank, raised in (("0", UserError), ("1", SystemExit)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(raised):
            coco_mask_rcnn.said_once(wrong)


def test_an_encoder_gives_the_backbone_and_is_recorded(coco: Path, tmp_path: Path) -> None:
    encoder = export(tmp_path / "encoder")
    out = tmp_path / "run"
    # With a learning rate of nothing, what is saved at the end is what was loaded.
    path = coco_mask_rcnn.run(
        RECIPE, [*TINY, f"init={encoder}", f"out={out}", f"data.root={coco}", "optimizer.lr=0"])
    record = load_record(path)
    assert (record.init.kind, record.init.pretrained_epochs) == ("spark", 7)
    assert record.init.checkpoint_sha256
    saved = torch.load(out / (record.checkpoint or ""), weights_only=True)["model"]
    expected = load_encoder(encoder).state
    for ours, theirs in (("stem.conv1", "conv1"), ("res5.1.conv2", "layer4.1.conv2")):
        torch.testing.assert_close(saved[f"backbone.bottom_up.{ours}.weight"], expected[f"{theirs}.weight"])


def test_initialisation_and_seed_do_not_change_the_protocol(coco: Path, tmp_path: Path) -> None:
    from d2_projects.data.coco import check
    from d2_projects.engine.config import load

    def protocol(*overrides: str) -> dict[str, object]:
        return coco_mask_rcnn.protocol_of(load(RECIPE, [*TINY, *overrides]), check(coco))

    assert protocol() == protocol("seed=5", "init=elsewhere", f"out={tmp_path}", "data.root=/moved")
    assert protocol() != protocol("optimizer.lr=0.5")


@pytest.mark.parametrize(("model", "changes", "message"), [
    ("resnet34", {}, "is a resnet34, but .* has a resnet18"),
    ("resnet18", {"mean": (0.5, 0.5, 0.5)}, r"was trained with model.pixel_mean=\[127.5, 127.5, 127.5\]"),
])
def test_an_encoder_that_does_not_fit_is_refused(
    coco: Path, tmp_path: Path, model: str, changes: dict[str, tuple[float, ...]], message: str
) -> None:
    encoder = export(tmp_path / "encoder", model, **changes)
    with pytest.raises(UserError, match=message):
        coco_mask_rcnn.run(RECIPE, [*TINY, f"init={encoder}", f"out={tmp_path / 'run'}", f"data.root={coco}"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("override", "message"), [
    ("train.max_itr=3", "unknown key 'train.max_itr'. Did you mean train.max_iter"),
    ("train.max_iter=abc", "train.max_iter=abc: expected int"),
    ("train.max_iter=0", "train.max_iter must be at least 1"),
    ("resume=maybe", "expected auto or never"),
    ("eval_only=1", "expected true or false"),
    ("weights=best", "weights=… is what eval_only=true evaluates"),
    ("train.accumulate=0", "train.accumulate must be at least 1"),
    ("train.clip_grad_norm=-1", "train.clip_grad_norm must not be negative"),
    ("seed", "is not an override"),
    ("data.root=/nowhere", "data folder '/nowhere' does not exist"),
    ("init=/nowhere", "does not exist: give scratch, timm:NAME"),
])
def test_bad_overrides_are_one_line_and_write_nothing(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        coco_mask_rcnn.run(RECIPE, [f"out={tmp_path / 'run'}", override])
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("override", "message"), [
    ("train.device=abacus", "is not a device"),
    ("train.amp.enabled=true", "needs a CUDA device"),
])
def test_impossible_devices_leave_no_folder(coco: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        coco_mask_rcnn.run(RECIPE, [*TINY, f"data.root={coco}", f"out={tmp_path / 'run'}", override])
    assert not (tmp_path / "run").exists()


def test_a_removal_that_is_interrupted_leaves_no_checkpoint_to_another_run(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "last.pt").write_bytes(b"")
    (out / "identity.json").write_text("{}")
    removed: list[str] = []
    unlink, rmtree = Path.unlink, shutil.rmtree
    monkeypatch.setattr(Path, "unlink", lambda path, **options: removed.append(path.name) or unlink(path, **options))
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: removed.append(path.name) or rmtree(path, **options))
    coco_mask_rcnn.remove_run(out)
    assert removed.index("result.json") < removed.index("checkpoints") < removed.index("identity.json")
    assert removed[-1] == "identity.json"
    assert not list(out.iterdir())


def test_checkpoints_of_an_unknown_run_are_not_taken_up(coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "last.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"a run without identity\.json.* resume=never"):
        coco_mask_rcnn.run(RECIPE, [*TINY, f"data.root={coco}", f"out={out}"])
    assert not (out / "identity.json").exists()


def test_a_missing_recipe_names_its_neighbours() -> None:
    with pytest.raises(UserError, match=r"Did you mean .*mask_rcnn_r18_demo\.py"):
        coco_mask_rcnn.run(RECIPE.replace("demo", "dmo"), [])


def test_a_missing_detectron2_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *rest: None if name == "detectron2" else original(name, *rest))
    with pytest.raises(UserError, match=r"python tools/install_detectron2\.py"):
        coco_mask_rcnn.run(RECIPE, [])


def test_what_detectron2_provokes_is_kept_off_the_terminal(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("torch.fx._symbolic_trace")
    with warnings.catch_warnings(record=True) as seen, coco_mask_rcnn.quiet_detectron2():
        warnings.warn("The given NumPy array is not writable, and …", stacklevel=1)
        warnings.warn("another", stacklevel=1)
        logger.warning("is_fx_tracing will return true for both …")
    assert [str(warning.message) for warning in seen] == ["another"]
    logger.warning("heard again")
    assert caplog.messages == ["heard again"]


def test_a_detector_that_finds_nothing_has_an_ap_of_zero() -> None:
    names = [f"{task}/{name}" for task in ("bbox", "segm") for name in ("AP", "AP50", "AP75")]
    nothing = dict.fromkeys([*names, "bbox/APl"], float("nan"))  # no large objects: not a number of this data
    outcome = SimpleNamespace(metrics={**nothing, "bbox/AP50": 12.5}, best=None)
    values = {name: metric.value for name, metric in coco_mask_rcnn.metrics_of(outcome).items()}
    assert values == {**dict.fromkeys(names, 0.0), "bbox/AP50": 12.5}
