"""Linear probes and k-NN on frozen features, where the answer is known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from colored import write_folders
from paths import ROOT
from torch import Tensor

from eval_suite.classification import frozen as frozen_encoder
from eval_suite.classification.config import DataConfig
from eval_suite.classification.data import Data, Draw, LabeledImages, LabeledSample
from eval_suite.classification.frozen import LAST, LAST_TWO, FrozenEncoder, some_images
from eval_suite.classification.initialize import build_encoder
from eval_suite.classification.labeled import open_labeled
from eval_suite.classification.probe_config import EncoderConfig, ProbeConfig, ProbeTrainConfig
from eval_suite.classification.probing import HELD_OUT, VAL, Head, Heads, Probing, choose
from eval_suite.task import Work
from eval_suite.task_registry import find_task
from eval_suite.tasks import knn, linear_probe
from spark.backbones.timm_pyramid import dense_part
from spark.errors import UserError
from spark.formats.encoder import Encoder, EncoderInfo, save_encoder
from spark.formats.weights import read_weights
from spark.runs.metrics import read_metrics
from spark.runs.record import load_record
from spark.training.loop import LOSS
from spark.utils.distributed import Ranks

MODEL = "test_resnet"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("images"), train=12, val=3)


@pytest.fixture
def settings(images: Path, tmp_path: Path) -> list[str]:
    return [
        f"out={tmp_path}/run", "origin=smoke", "device=cpu", f"model.name={MODEL}", f"data.root={images}",
        "data.input_size=32", "data.workers=0",
    ]


PROBE = ["train.batch=8", "train.epochs=4", "train.base_lrs=[0.1,3]", "train.held_out=0.1"]


class Pixels:
    """Stands for a frozen encoder: the features are the color's channels, of which the coarsest map has one only."""

    widths: ClassVar[Mapping[str, int]] = {LAST: 1, LAST_TWO: 3}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        mean = images.mean((2, 3))
        return {LAST: mean[:, :1], LAST_TWO: mean}


def test_heads_find_what_is_linearly_separable_and_nothing_else(images: Path) -> None:
    """Red is told from the others by its one channel; green and blue are not, and one that diverges disturbs nobody."""
    train = open_labeled(str(images / "train"))

    def plain(image: object) -> Tensor:
        return torch.tensor(image.resize((1, 1)).getpixel((0, 0))).float().view(3, 1, 1) / 255  # type: ignore[attr-defined]

    split = LabeledImages(train, plain, 1, substitute=False)
    config = ProbeConfig(train=ProbeTrainConfig(base_lrs=[1.0, 1e30], batch=36))
    config.data.workers = 0
    statistics = {LAST: (torch.full((1,), 0.4), torch.full((1,), 0.3)),
                  LAST_TWO: (torch.full((3,), 0.4), torch.full((3,), 0.3))}
    learner = Probing(
        config, Data(split, split, 3, {}), split, Pixels(), statistics, Ranks(CPU), {}, {}  # type: ignore[arg-type]
    )
    x = torch.stack([split[Draw(index)].image for index in range(36)])
    labels = torch.tensor([train.label(index) for index in range(36)])
    batch = LabeledSample(x, labels, torch.full((36,), -1))
    losses = [learner.step(batch, number, 1.0)[LOSS].item() for number in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    found = learner.evaluate()
    assert found[f"{VAL}/top1/{LAST_TWO}/lr=1"] == 100
    assert 60 < found[f"{VAL}/top1/{LAST}/lr=1"] < 90
    assert choose(learner.heads, found) == Head(LAST_TWO, 1.0)


def test_features_are_standardised_and_a_constant_one_is_left_out() -> None:
    heads = Heads([Head(LAST, 1.0)], {LAST: (torch.tensor([5.0, 1.0]), torch.tensor([2.0, 0.0]))}, classes=2)
    torch.nn.init.ones_(heads.linear[0].weight)  # type: ignore[arg-type]
    assert heads({LAST: torch.tensor([[9.0, 1.0]])})[f"{LAST}/lr=1"].tolist() == [[2.0, 2.0]]


def test_the_head_is_chosen_by_images_held_out_and_the_smaller_rate_wins_a_tie() -> None:
    heads = [Head(LAST, 0.1), Head(LAST, 1.0), Head(LAST, 10.0)]
    results = {f"{HELD_OUT}/top1/{head}": value for head, value in zip(heads, (70.0, 90.0, 90.0), strict=True)}
    assert choose(heads, results | {f"{VAL}/top1/{heads[0]}": 99.0}) == heads[1]


def test_a_probe_leaves_a_record_and_is_resumed_exactly(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(tmp_path)
    whole = linear_probe.probe(recipe, [*settings, *PROBE])
    assert whole
    record = load_record(whole)
    assert (record.task, record.origin, record.main_metric) == ("linear_probe", "smoke", "top1")
    assert record.metrics.keys() == {"top1", "top1_best", "top1_last", "top1_last_two"}
    assert record.metrics["top1_best"].value >= record.metrics["top1"].value
    assert record.protocol["dataset"]["train_images"] == 33  # one of twelve of each class is held out
    heads = json.loads((whole.parent / "heads.json").read_text())
    assert set(heads) == {f"{split}/top1/{features}/lr={lr}" for split in (HELD_OUT, VAL)
                          for features in (LAST, LAST_TWO) for lr in ("0.1", "3")}
    log = read_metrics(whole.parent)
    assert log[-1]["top1"] == record.metrics["top1"].value  # a curve for the report
    step = Probing.step

    def killed(self: Probing, batch: LabeledSample, number: int, lr: float) -> dict[str, Any]:
        if number == 6:
            raise KeyboardInterrupt
        return step(self, batch, number, lr)

    parts = [*settings, *PROBE, f"out={tmp_path}/parts", "train.checkpoint_minutes=0"]
    with monkeypatch.context() as patch:
        patch.setattr(Probing, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            linear_probe.probe(recipe, parts)
    again = linear_probe.probe(recipe, parts)
    assert again
    assert load_record(again).metrics == record.metrics
    assert read_metrics(again.parent) == read_metrics(whole.parent)


@pytest.mark.parametrize("model", [MODEL, f"{ROOT}/tools/examples/cifar_resnet.py:CifarResNet"])
def test_neighbours_by_colour(settings: list[str], tmp_path: Path, model: str) -> None:
    options = ["model.options={width: 4, blocks: 1}"] if ":" in model else []
    run = [*settings, f"model.name={model}", *options, "neighbours=[5,20]"]
    result = knn.knn(write(tmp_path), run)
    assert result
    record = load_record(result)
    assert (record.task, record.epochs, record.main_metric) == ("knn", 0, "top1_k5")
    assert record.metrics["top1_k5"].value > 80  # even random convolutions see colors; chance is 33
    assert knn.knn(write(tmp_path), run) == result
    with pytest.raises(UserError, match=r"result of another configuration, other data or another encoder"):
        knn.knn(write(tmp_path), [*run, "seed=1"])
    other = knn.knn(write(tmp_path), [*run, "seed=1", "resume=never"])
    assert other
    assert load_record(other).protocol_id == record.protocol_id


def test_recalibration_is_another_protocol_and_changes_batch_norms_only(
    settings: list[str], images: Path, tmp_path: Path
) -> None:
    encoder = build_encoder(EncoderConfig(MODEL), read_weights("scratch", MODEL), seed=0)
    before = {name: tensor.clone() for name, tensor in dense_part(encoder).state_dict().items()}
    frozen = FrozenEncoder(encoder, CPU, "float32")
    split = LabeledImages(open_labeled(str(images / "val")), lambda image: torch.rand(3, 32, 32) + 7, 32, False)
    frozen.recalibrate(split, workers=0)
    after = dense_part(encoder).state_dict()
    changed = {name.rpartition(".")[2] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    assert not any(module.training for module in encoder.modules())

    runs = {"plain": ["model.recalibrate=0"], "recalibrated": ["model.recalibrate=12"],
            "small": ["model.recalibrate=12", "batch=5"]}
    results = [knn.knn(write(tmp_path), [*settings, f"out={tmp_path}/{name}", *run]) for name, run in runs.items()]
    plain, recalibrated, small = (load_record(result) for result in results if result)
    assert (small.metrics, small.protocol_id) == (recalibrated.metrics, recalibrated.protocol_id)
    assert plain.protocol_id != recalibrated.protocol_id
    assert recalibrated.protocol["model"] == {"recalibrate": 12}


def test_recalibrated_statistics_are_those_of_all_images(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes lie one after the other, and a batch of one class varies less than all images do."""
    monkeypatch.setattr(frozen_encoder, "RECALIBRATION_BATCH", 12)
    train = open_labeled(str(images / "train"))
    sample = some_images(train, len(train), DataConfig(input_size=32))
    encoder = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    encoder.channels = [3, 3]  # type: ignore[assignment]
    FrozenEncoder(encoder, CPU, "float32").recalibrate(sample, workers=0)
    x = torch.stack([sample[Draw(index)].image for index in range(len(sample))])
    torch.testing.assert_close(encoder[0].running_var, x.var((0, 2, 3)), rtol=0.2, atol=0)  # type: ignore[arg-type]
    between_classes = x.mean((2, 3)).var(0)
    assert (between_classes > 0.5 * x.var((0, 2, 3))).any()  # what batches of one class would not see


def test_an_exported_encoder_gives_the_features(settings: list[str], tmp_path: Path) -> None:
    torch.manual_seed(7)
    network = dense_part(build_encoder(EncoderConfig(MODEL), read_weights("scratch", MODEL), seed=5))
    info = EncoderInfo(MODEL, 3, (64, 64), MEAN, STD, "spark", 5, "hash", "version", recipe_hash="recipe")
    save_encoder(tmp_path / "encoder", Encoder(dict(network.state_dict()), info))
    ours, same = (knn.knn(write(tmp_path), [*settings, f"out={tmp_path}/{name}", *init]) for name, init in (
        ("ours", [f"init={tmp_path}/encoder"]), ("same", ["seed=5"])))
    assert ours
    assert same
    assert load_record(ours).metrics == load_record(same).metrics
    assert load_record(ours).init.kind == "spark"
    assert load_record(ours).init.recipe_hash == "recipe"
    with pytest.raises(UserError, match=r"pass model\.name=test_resnet"):
        knn.knn(write(tmp_path), [*settings, f"init={tmp_path}/encoder", "model.name=resnet18", "resume=never"])


@pytest.mark.parametrize("name", ["linear_probe", "knn"])
def test_studies_know_these_tasks(name: str, settings: list[str], tmp_path: Path) -> None:
    task = find_task(name)
    values = dict(setting.split("=", 1) for setting in settings if not setting.startswith("out"))
    work = Work(write(tmp_path), tmp_path / "run", {**values, "data.input_size": 32, "data.workers": 0}, seed=3)
    prepared = task.prepare(work)
    assert prepared.settings["model_name"] == MODEL
    assert prepared.settings["seed"] == 3
    assert task.command(work)[:2] == ["spark-eval", "probe" if name == "linear_probe" else "knn"]
    cost = task.cost(work, 100)
    assert cost
    assert cost.flops > 0


def test_the_seed_decides_about_neighbours_of_random_features_alone(settings: list[str], tmp_path: Path) -> None:
    values = dict(setting.split("=", 1) for setting in settings if not setting.startswith("out"))

    def of(init: str, seed: int) -> Any:
        return find_task("knn").prepare(Work(write(tmp_path), tmp_path / "run", values, seed, init)).settings

    assert of("scratch", 1) != of("scratch", 2)
    assert of(str(tmp_path), 1) == of(str(tmp_path), 2)


def write(folder: Path) -> str:
    """Return a recipe without settings."""
    recipe = folder / "empty.yaml"
    recipe.write_text("{}\n")
    return str(recipe)
