"""Short trainings and frozen networks are evaluated with batch norms' statistics of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from colored import write_folders
from torch import Tensor, nn

from eval_suite.classification.finetuning import Finetuning
from eval_suite.classification.recalibration import recalibrate, statistics_put_back
from eval_suite.tasks import imagenet_finetune, knn, linear_probe
from spark.backbones.batch_norms import carries_start
from spark.errors import UserError
from spark.runs.metrics import read_metrics
from spark.runs.record import ResultRecord, load_record

MODEL = "test_resnet"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("images"), train=8, val=3)


@pytest.fixture
def settings(images: Path, tmp_path: Path) -> list[str]:
    return [f"out={tmp_path}/run", "origin=smoke", "device=cpu", f"model.name={MODEL}", f"data.root={images}",
            "data.input_size=32", "data.workers=0"]


@pytest.fixture
def finetune(settings: list[str], tmp_path: Path) -> Callable[..., ResultRecord]:
    """Fine-tune on solid colors for 9 steps, which makes them easy, and return the record."""
    plain = ["augment.policy=none", "augment.mixup=0", "augment.cutmix=0", "augment.random_erasing=0",
             "optimizer.name=adamw", "optimizer.layer_decay=1", "optimizer.base_lr=0.1", "train.loss=soft_target_ce",
             "model.drop_path=0", "train.epochs=3", "train.warmup_epochs=0", "train.batch=8", "train.ema_decay=0.5"]

    def run(name: str, *more: str) -> ResultRecord:
        result = imagenet_finetune.finetune(None, [*settings, *plain, f"out={tmp_path}/{name}", *more])
        assert result is not None
        return load_record(result)

    return run


def state(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints/last.pt", weights_only=True)


@pytest.mark.parametrize(("momentum", "steps", "carries"), [
    (0.1, 8, True), (0.1, 65, True), (0.1, 66, False), (0.01, 66, True), (0.01, 700, False),
    (None, 0, True), (None, 1, False), (0.0, 0, False),  # 0: kept as they are on purpose
])
def test_statistics_carry_their_start_for_so_many_steps(momentum: float | None, steps: int, carries: bool) -> None:
    assert carries_start(nn.Sequential(nn.BatchNorm2d(2, momentum=momentum)), steps) is carries


def test_a_frozen_network_tells_by_its_own_counts() -> None:
    norm = nn.BatchNorm2d(2)
    assert carries_start(norm)  # random
    norm.running_mean += 1
    assert not carries_start(norm)  # from elsewhere: nobody counted
    norm.num_batches_tracked += 8
    assert carries_start(norm)
    norm.num_batches_tracked += 60
    assert not carries_start(norm)
    assert not carries_start(nn.Sequential(nn.GroupNorm(1, 2), nn.BatchNorm2d(2, track_running_stats=False)))


def test_nothing_is_drawn_and_all_can_be_put_back() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3)).eval()
    x = torch.randn(64, 3, 4, 4) * 2 + 5
    random = torch.get_rng_state()
    with statistics_put_back([network]):
        recalibrate([network], network, [x[:32], x[32:]])
        norm = network[1]
        assert isinstance(norm, nn.BatchNorm2d)
        torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))
        assert norm.momentum == 0.1
        assert not any(module.training for module in network.modules())
    assert norm.running_mean is not None
    assert (norm.running_mean == 0).all()
    assert torch.equal(torch.get_rng_state(), random)


def test_a_short_finetuning_is_measured_with_its_own_statistics(
    finetune: Callable[..., ResultRecord], tmp_path: Path
) -> None:
    before, after = finetune("before", "model.recalibrate=false"), finetune("after")
    assert "recalibrate" not in before.protocol["model"]
    assert after.protocol["model"]["recalibrate"] == 2048
    assert after.protocol_id != before.protocol_id
    assert after.resolved["model.recalibrate"] == "2048"
    assert finetune("asked", "model.recalibrate=true").protocol_id == after.protocol_id
    losses = [[entry["loss"] for entry in read_metrics(tmp_path / run)] for run in ("before", "after")]
    assert losses[0] == losses[1]  # training goes on as if nothing had been
    first, second = state(tmp_path / "before"), state(tmp_path / "after")
    changed = {name.rpartition(".")[2] for name in first["model"]
               if not torch.equal(first["model"][name], second["model"][name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}  # what was evaluated is saved


def test_a_longer_one_is_measured_as_ever(finetune: Callable[..., ResultRecord]) -> None:
    auto, never = (finetune(value, f"model.recalibrate={value}", "train.epochs=22", "train.evaluate_epochs=22",
                            "data.input_size=32") for value in ("auto", "false"))
    assert (auto.protocol_id, auto.metrics) == (never.protocol_id, never.metrics)


def test_networks_without_batch_norms_are_left_alone(finetune: Callable[..., ResultRecord]) -> None:
    record = finetune("run", "model.name=test_convnext", "train.epochs=1")
    assert "recalibrate" not in record.protocol["model"]
    assert record.resolved["model.recalibrate"] == "0"


def test_a_resumed_short_run_equals_an_uninterrupted_one(
    finetune: Callable[..., ResultRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, step, calls = finetune("whole"), Finetuning.step, iter(range(100))

    def killed(self: Finetuning, *arguments: Any) -> dict[str, Tensor]:
        if next(calls) == 7:  # in the last epoch, after two evaluations
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Finetuning, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune("parts")
    parts = finetune("parts")
    assert (parts.metrics, parts.protocol_id) == (whole.metrics, whole.protocol_id)
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    first, second = state(tmp_path / "whole"), state(tmp_path / "parts")
    for part in ("model", "ema"):
        assert all(torch.equal(tensor, second[part][name]) for name, tensor in first[part].items())


def test_few_labels_are_no_exception(finetune: Callable[..., ResultRecord]) -> None:
    record = finetune("few", "labels.per_class=4", "train.batch=6")
    assert (record.task, record.protocol["model"]["recalibrate"]) == ("few_shot", 2048)


@pytest.mark.parametrize("verb", ["knn", "probe"])
def test_random_features_are_of_the_networks_own_statistics(settings: list[str], tmp_path: Path, verb: str) -> None:
    run = {"knn": knn.knn, "probe": linear_probe.probe}[verb]
    more = ["neighbours=[5]"] if verb == "knn" else [
        "train.batch=8", "train.epochs=1", "train.base_lrs=[0.1]", "train.held_out=0.2"]

    def record(name: str, *changes: str) -> ResultRecord:
        result = run(None, [*settings, *more, f"out={tmp_path}/{name}", *changes])
        assert result is not None
        return load_record(result)

    auto, asked, never = record("auto"), record("asked", "model.recalibrate=true"), record("no", "model.recalibrate=0")
    assert auto.resolved["model.recalibrate"] == "2048"
    assert never.resolved["model.recalibrate"] == "0"
    assert auto.metrics == asked.metrics
    # Each network with its own statistics: what follows from the weights alone is no other protocol, so gains over the
    # random start of pre-trainings that need it not can be told; taking them anew whatever they are is one.
    assert auto.protocol_id == never.protocol_id != asked.protocol_id
    assert run(None, [*settings, *more, f"out={tmp_path}/auto"]) == tmp_path / "auto/result.json"  # finished


@pytest.mark.parametrize("value", ["-1", "sometimes", "nan", "[1]"])
def test_what_is_no_value_is_refused(settings: list[str], value: str) -> None:
    for run in (knn.knn, linear_probe.probe, imagenet_finetune.finetune):
        with pytest.raises(UserError, match=r"model\.recalibrate"):
            run(None, [*settings, f"model.recalibrate={value}"])


def test_a_probe_that_an_earlier_version_began_goes_on_as_it_began(settings: list[str], tmp_path: Path) -> None:
    more = ["train.batch=8", "train.epochs=1", "train.base_lrs=[0.1]", "train.held_out=0.2"]
    linear_probe.probe(None, [*settings, *more, "model.recalibrate=false"])
    run = tmp_path / "run"
    (run / "result.json").unlink()
    content = state(run)
    del content["resolved"]["model.recalibrate"], content["checksum"]  # which came later, too
    torch.save(content, run / "checkpoints/last.pt")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("recalibrate: false", "recalibrate: 0"))
    linear_probe.probe(None, [*settings, *more])
    assert json.loads((run / "result.json").read_text())["resolved"]["model.recalibrate"] == "0"
