"""Training goes on as if it had never stopped, alone or in two processes, and what cannot work fails at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.engine import HookBase
from omegaconf import DictConfig, OmegaConf
from paths import ROOT

from d2_projects.engine import train as training
from d2_projects.engine.checkpoints import BEST, best_of
from d2_projects.engine.evaluate import evaluate_only
from d2_projects.engine.processes import pick_device
from d2_projects.engine.train import Outcome, train
from d2_projects.instance_segmentation import InstanceSegmentation
from spark.errors import UserError
from spark.runs.checkpoint import LAST, PREVIOUS, load_file
from spark.runs.metrics import read_metrics
from spark.utils.distributed import Ranks
from spark.utils.signals import PostponedError, StopRequest

PROJECT = InstanceSegmentation()
RECIPE = ROOT / "d2_projects" / "mask_rcnn" / "mask_rcnn_r18_demo.py"
OVERRIDES = {  # of the demo's recipe, so that an iteration takes a tenth of a second
    "train.device": "cpu", "train.precise_bn_iter": 1, "train.log_period": 1, "train.checkpointer.period": 2,
    "dataloader.train.total_batch_size": 2, "dataloader.evaluator.output_dir": None,  # drawing takes longest
    **{f"dataloader.{split}.mapper.augmentations.0.{key}": 64
       for split in ("train", "test") for key in ("short_edge_length", "max_size")},
}


def tiny(**values: Any) -> DictConfig:
    cfg = LazyConfig.load(str(RECIPE))
    for key, value in OVERRIDES.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    for key, value in values.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    return cfg


@contextmanager
def pointed(cfg: DictConfig, coco: Path) -> Iterator[DictConfig]:
    data = PROJECT.check({"root": str(coco)})
    with PROJECT.registered(data) as names:
        PROJECT.point_at(cfg, data, names)
        yield cfg


def trained(cfg: DictConfig, coco: Path, run: Path, **options: Any) -> Outcome:
    with pointed(cfg, coco):
        return train(cfg, PROJECT, run, **options)


def losses(run: Path) -> list[tuple[int, float, float]]:
    return [(entry["step"], entry["loss"], entry["lr"]) for entry in read_metrics(run) if "loss" in entry]


class StopAfter(HookBase):
    """What a scheduler does: at some iteration, ask to stop or kill."""

    def __init__(self, iterations: int, number: signal.Signals) -> None:
        self._iterations, self._number = iterations, number

    def before_step(self) -> None:
        if self.trainer.iter + 1 == self._iterations:
            os.kill(os.getpid(), self._number)


def interrupted(monkeypatch: pytest.MonkeyPatch, iterations: int, number: signal.Signals) -> None:
    """Let the next trainings get a signal in this iteration."""

    class Trainer(training.Trainer):
        def register_hooks(self, hooks: list[HookBase]) -> None:
            super().register_hooks([*hooks, StopAfter(iterations, number)])

    monkeypatch.setattr(training, "Trainer", Trainer)


ITERATIONS = 6


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Outcome]:
    """A data set, and a run on it that was never interrupted."""
    import tiny_coco

    folder = tmp_path_factory.mktemp("whole")
    coco = tiny_coco.make(folder / "coco")
    return coco, folder / "run", trained(tiny(train__max_iter=ITERATIONS, train__eval_period=2), coco, folder / "run")


def assert_same(run: Path, outcome: Outcome, whole: tuple[Path, Path, Outcome]) -> None:
    """Not nearly the same: the same."""
    _, other, expected = whole
    assert [step for step, *_ in losses(run)] == list(range(1, ITERATIONS + 1))
    assert losses(run) == losses(other)
    assert outcome.metrics == pytest.approx(expected.metrics, rel=0, abs=0, nan_ok=True)
    ours, theirs = (load_file(folder / "checkpoints" / LAST) for folder in (run, other))
    assert ours["iterations"] == theirs["iterations"] == ITERATIONS
    for name, tensor in theirs["model"].items():
        torch.testing.assert_close(ours["model"][name], tensor, rtol=0, atol=0)
    for left, right in zip(ours["optimizer"]["state"].values(), theirs["optimizer"]["state"].values(), strict=True):
        for name, tensor in right.items():
            torch.testing.assert_close(left[name], tensor, rtol=0, atol=0)


def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    whole: tuple[Path, Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the 3rd iteration no checkpoint is due; precise statistics and evaluation come after the 2nd and 4th."""
    stopped_after = 3
    cfg, run = tiny(train__max_iter=ITERATIONS, train__eval_period=2), tmp_path / "run"
    with monkeypatch.context() as patch, StopRequest() as request:
        interrupted(patch, stopped_after, signal.SIGUSR1)
        with pytest.raises(PostponedError, match="asked to stop and is saved"):
            trained(cfg, whole[0], run, request=request)
    assert [step for step, *_ in losses(run)] == list(range(1, stopped_after + 1))
    assert "Exception" not in (run / "log.txt").read_text()
    assert_same(run, trained(cfg, whole[0], run), whole)


def test_an_evaluation_that_a_kill_prevented_is_made_up_for(
    whole: tuple[Path, Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is there, for it is saved first."""
    cfg, run = tiny(train__max_iter=ITERATIONS, train__eval_period=2), tmp_path / "run"

    def killed(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(cfg, whole[0], run)
    assert load_file(run / "checkpoints" / LAST)["iterations"] == 2
    trained(cfg, whole[0], run)
    assert losses(run) == [entry for entry in losses(whole[1]) if entry[0] != 2]  # its line would have come after
    evaluations, expected = (
        [(entry["step"], entry["bbox/AP"]) for entry in read_metrics(folder) if "bbox/AP" in entry]
        for folder in (run, whole[1])
    )
    assert evaluations == expected
    ours, theirs = (load_file(folder / "checkpoints" / BEST) for folder in (run, whole[1]))
    assert (ours["iterations"], ours["bbox/AP"]) == (theirs["iterations"], theirs["bbox/AP"])


def test_a_killed_run_goes_on_as_if_nothing_had_been(whole: tuple[Path, Path, Outcome], tmp_path: Path) -> None:
    run = tmp_path / "run"
    script = tmp_path / "killed.py"
    script.write_text(
        "import signal, sys\nfrom pathlib import Path\nimport pytest, torch, test_train as tests\n"
        "torch.set_num_threads(1)\nwith pytest.MonkeyPatch.context() as patch:\n"
        "    tests.interrupted(patch, 4, signal.SIGKILL)\n"
        f"    tests.trained(tests.tiny(train__max_iter={ITERATIONS}, train__eval_period=2), Path(sys.argv[1]), "
        "Path(sys.argv[2]))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))}
    killed = subprocess.run([sys.executable, str(script), str(whole[0]), str(run)], check=False, env=environment,
                            capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [step for step, *_ in losses(run)] == [1, 2, 3]
    outcome = trained(tiny(train__max_iter=ITERATIONS, train__eval_period=2), whole[0], run)
    assert_same(run, outcome, whole)


def test_the_best_state_is_kept_beside_the_last(whole: tuple[Path, Path, Outcome]) -> None:
    _, run, outcome = whole
    found = {entry["step"]: entry["bbox/AP"] for entry in read_metrics(run) if "bbox/AP" in entry}
    assert list(found) == [2, 4, 6]
    best = load_file(run / "checkpoints" / BEST)
    assert outcome.best == best["bbox/AP"] == max(found.values())
    assert found[best["iterations"]] == outcome.best
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == sorted([BEST, LAST, PREVIOUS])


@pytest.mark.parametrize(("content", "part"), [
    ({"model": {}, "iterations": 2}, "does not say its bbox/AP"), ({"bbox/AP": [1]}, "does not say its bbox/AP"),
    ([1], "holds a list"), (b"cut", "holds objects"), (b"PK", "is truncated"),
])  # fmt: skip
def test_a_best_state_without_its_metric_is_named(content: Any, part: str, tmp_path: Path) -> None:
    assert best_of(tmp_path, "bbox/AP") is None
    file = tmp_path / BEST
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(UserError, match=rf"best\.pt' .*{part}.*; remove it"):
        best_of(tmp_path, "bbox/AP")


@pytest.mark.parametrize("name", [LAST, BEST])
def test_a_checkpoint_has_the_metrics_that_were_measured(
    name: str, whole: tuple[Path, Path, Outcome], tmp_path: Path
) -> None:
    coco, run, outcome = whole
    with pointed(tiny(), coco) as cfg:
        metrics = evaluate_only(cfg, PROJECT, tmp_path / "out", run / "checkpoints" / name, Ranks(torch.device("cpu")))
    assert metrics["bbox/AP"] == (outcome.metrics["bbox/AP"] if name == LAST else outcome.best)


def test_test_time_augmentation_has_names_of_its_own(whole: tuple[Path, Path, Outcome], tmp_path: Path) -> None:
    coco, run, outcome = whole
    cfg = tiny(test__tta=True, test__tta_scales=[1.0, 1.5], dataloader__evaluator__output_dir="${train.output_dir}")
    with pointed(cfg, coco) as cfg:
        metrics = evaluate_only(cfg, PROJECT, tmp_path / "out", run / "checkpoints" / LAST, Ranks(torch.device("cpu")))
    assert metrics["segm/AP"] == outcome.metrics["segm/AP"]
    assert {"tta/bbox/AP", "tta/segm/AP50"} <= metrics.keys()
    assert metrics["tta/bbox/AP"] >= 0
    assert (tmp_path / "out" / "tta" / "detections_segm.json").is_file()


def test_a_finished_run_is_only_evaluated(whole: tuple[Path, Path, Outcome], tmp_path: Path) -> None:
    coco, run, outcome = whole
    again = trained(tiny(train__max_iter=ITERATIONS), coco, run)
    assert again.images_per_second is None
    assert again.metrics == pytest.approx(outcome.metrics, nan_ok=True)
    assert outcome.images_per_second is not None
    assert again.seconds > load_file(run / "checkpoints" / LAST)["clock"]["seconds"] > 0  # those of both


def test_accumulation_sees_the_same_images_in_parts(coco: Path, tmp_path: Path) -> None:
    cfg = tiny(train__max_iter=1, train__precise_bn_iter=1, train__accumulate=2, train__clip_grad_norm=1e-9,
               optimizer__weight_decay=0.0)
    outcome = trained(cfg, coco, tmp_path / "run")
    assert [step for step, *_ in losses(tmp_path / "run")] == [1]
    assert outcome.images_per_second is not None
    with pytest.raises(UserError, match=r"total_batch_size=2 cannot be shared equally by 1 process with train\."
                                        r"accumulate=4; use e\.g\. 4"):
        trained(tiny(train__accumulate=4), coco, tmp_path / "other")


def test_an_evaluation_that_cannot_work_fails_before_training(coco: Path, tmp_path: Path) -> None:
    with pointed(tiny(train__max_iter=2), coco) as cfg:
        cfg.model.roi_heads.num_classes = 5
        with pytest.raises(UserError, match=r"num_classes=5, but .* has 2 categories"):
            train(cfg, PROJECT, tmp_path / "run")
        cfg.model.roi_heads.num_classes = 2
        cfg.dataloader.evaluator.dataset_name = cfg.dataloader.train.dataset.names  # its images have the same ids
        with pytest.raises(UserError, match=r"gives the annotations themselves a bbox AP of .* instead of 100"):
            train(cfg, PROJECT, tmp_path / "run")
        cfg.dataloader.test.mapper.image_format = "CMY"
        with pytest.raises(UserError, match="evaluating two validation images fails with "):
            train(cfg, PROJECT, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_objects_without_masks_are_no_wrong_data_set(coco: Path, tmp_path: Path) -> None:
    """Detectron2 leaves them out of what it loads, but its metrics count them."""
    file = coco / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    boxes = [{**entry, "id": 1000 + entry["id"], "bbox": [1, 1, 9, 9], "area": 81} for entry in content["annotations"]]
    for entry in boxes:
        del entry["segmentation"]
    file.write_text(json.dumps({**content, "annotations": [*content["annotations"], *boxes]}))
    with pointed(tiny(train__max_iter=1), coco) as cfg:
        assert train(cfg, PROJECT, tmp_path / "run").images_per_second is not None


def test_an_infinite_loss_is_one_line_and_logged(coco: Path, tmp_path: Path) -> None:
    cfg = tiny(train__max_iter=4, optimizer__lr=1e30, lr_multiplier__warmup_factor=1.0)
    with pytest.raises(UserError, match=r"NaN.*Lower optimizer\.lr"):
        trained(cfg, coco, tmp_path / "run")
    assert "Exception during training" in (tmp_path / "run" / "log.txt").read_text()


def test_a_backbone_of_another_network_is_refused(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not fit the recipe's backbone"):
        trained(tiny(), coco, tmp_path, backbone={"stem.conv1.weight": torch.zeros(64, 3, 7, 7)})


def test_an_unreadable_image_is_one_line(coco: Path, tmp_path: Path) -> None:
    for file in (coco / "train2017").iterdir():
        file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(UserError, match="training stopped: ") as raised:
        trained(tiny(train__max_iter=2), coco, tmp_path / "run")
    assert "\n" not in str(raised.value)


def test_damaged_checkpoints_are_one_line(coco: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / LAST).write_bytes(b"torn")
    with (pytest.warns(UserWarning, match="truncated"),
          pytest.raises(UserError, match=r"no checkpoint is whole: .*last")):
        trained(tiny(), coco, tmp_path / "run")


def test_the_checkpoint_before_takes_a_damaged_ones_place(whole: tuple[Path, Path, Outcome], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole[1], run)
    last = run / "checkpoints" / LAST
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    with pytest.warns(UserWarning, match="trying the one before"):
        outcome = trained(tiny(train__max_iter=ITERATIONS, train__eval_period=2), whole[0], run)
    assert outcome.images_per_second is not None  # iterations 5 and 6 were repeated
    assert_same(run, outcome, whole)


def test_a_checkpoint_of_another_model_is_refused(whole: tuple[Path, Path, Outcome], tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    torch.save({"model": {}, "optimizer": {}}, run / "checkpoints" / LAST)
    with pytest.raises(UserError, match=r"\(resume=never starts again\) does not fit the recipe's model"):
        trained(tiny(), whole[0], run)


@pytest.mark.parametrize(("wanted", "message"), [("abacus", "is not a device"), ("meta", "is not supported")])
def test_impossible_devices_are_refused(wanted: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pick_device(wanted)
