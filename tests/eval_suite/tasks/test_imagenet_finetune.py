"""Fine-tuning end to end on a few generated images."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from eval_suite.classification.data import Draw, TrainSampler
from eval_suite.classification.finetune_config import FinetuneConfig
from eval_suite.classification.finetuning import Finetuning
from eval_suite.classification.initialize import build_classifier, starting_weights
from eval_suite.tasks import imagenet_finetune
from eval_suite.tasks.imagenet_finetune import open_data
from spark.errors import UserError
from spark.formats.encoder import Encoder, EncoderInfo, save_encoder
from spark.runs.metrics import read_metrics
from spark.runs.record import load_record
from spark.utils.distributed import Ranks

MODEL = "test_resnet"  # timm's tiny ResNet: a checkpoint is a megabyte
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 40-pixel images that differ in color: 16 to train, 8 to validate."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for label, color in (("blue", (30, 30, 200)), ("red", (200, 30, 30))):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(color + rng.normal(0, 40, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture
def recipe(images: Path, tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"""
out: {tmp_path}/run
origin: smoke
device: cpu
model: {{name: {MODEL}, drop_path: 0.1}}
data: {{root: {images}, input_size: 32, workers: 0}}
optimizer: {{base_lr: 0.02}}
train: {{epochs: 2, warmup_epochs: 1, batch: 8, ema_decay: 0.5}}
""")
    return str(path)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with recognisable weights, exported."""
    torch.manual_seed(7)
    state = {k: v for k, v in timm.create_model(MODEL).state_dict().items() if not k.startswith("fc.")}
    folder = tmp_path_factory.mktemp("encoder")
    save_encoder(folder, Encoder(state, encoder_info()))
    return folder


def encoder_info(model: str = MODEL, in_chans: int = 3, mean: tuple[float, ...] = MEAN) -> EncoderInfo:
    return EncoderInfo(model, in_chans, (64, 64), mean, STD, "spark", 5, "hash", "version")


def config_for(images: Path, **changes: str) -> FinetuneConfig:
    config = FinetuneConfig(out="unused", device="cpu", **changes)  # type: ignore[arg-type]
    config.model.name, config.train.batch = MODEL, 8
    config.data.root, config.data.input_size, config.data.workers = str(images), 32, 0
    return config


def test_record_says_what_was_measured(recipe: str, encoder: Path) -> None:
    result = imagenet_finetune.finetune(recipe, [f"init={encoder}", "seed=3"])
    record = load_record(result)
    assert (record.task, record.model, record.seed, record.epochs) == ("imagenet_finetune", MODEL, 3, 2)
    assert record.origin == "smoke"
    assert record.main_metric == "top1_last"
    assert record.metrics.keys() == {"top1_last", "top1_best", "top1_ema"}  # of two classes, top-5 says nothing
    assert record.init.kind == "spark"
    assert record.init.pretrained_epochs == 5
    assert record.init.checkpoint_sha256
    assert record.wall_seconds > 0
    log = read_metrics(result.parent)
    assert [(entry["step"], entry["epoch"]) for entry in log] == [(2, 1), (4, 2)]
    assert log[-1]["top1_last"] == record.metrics["top1_last"].value
    assert max(entry["top1_last"] for entry in log) == record.metrics["top1_best"].value


def test_protocol_ignores_seed_initialisation_and_place_but_not_the_schedule(
    recipe: str, encoder: Path, images: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    one_epoch = ["train.epochs=1", "train.warmup_epochs=0"]
    first = imagenet_finetune.finetune(recipe, [*one_epoch, f"out={tmp_path}/a"])
    same = imagenet_finetune.finetune(
        recipe, [*one_epoch, f"out={tmp_path}/b", "seed=1", f"init={encoder}", f"data.root={moved}"]
    )
    other = imagenet_finetune.finetune(recipe, [*one_epoch, f"out={tmp_path}/c", "optimizer.base_lr=0.01"])
    identities = [load_record(path).protocol_id for path in (first, same, other)]
    assert identities[0] == identities[1] != identities[2]


@pytest.mark.parametrize("extra", [[], ["data.workers=1"]], ids=["in-process", "workers"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    imagenet_finetune.finetune(recipe, [f"out={whole}", *extra])

    step, calls = Finetuning.step, iter(range(100))

    def killed(self: Finetuning, *arguments: Any) -> torch.Tensor:
        if next(calls) == 3:  # in the middle of the second epoch
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Finetuning, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        imagenet_finetune.finetune(recipe, [f"out={parts}", "train.checkpoint_minutes=0", *extra])
    assert not (parts / "result.json").exists()
    imagenet_finetune.finetune(recipe, [f"out={parts}", *extra])

    states = [torch.load(run / "checkpoints/last.pt", weights_only=True) for run in (whole, parts)]
    for part in ("model", "ema"):
        assert states[0][part].keys() == states[1][part].keys()
        for name, tensor in states[0][part].items():
            assert torch.equal(tensor, states[1][part][name]), f"{part} {name}"
    assert read_metrics(whole) == read_metrics(parts)


def test_the_number_of_workers_changes_no_number(recipe: str, tmp_path: Path) -> None:
    runs = [tmp_path / workers for workers in "01"]
    for run in runs:
        options = ["augment.random_erasing=1", "augment.repeated_augmentation=2"]
        imagenet_finetune.finetune(recipe, [f"out={run}", f"data.workers={run.name}", *options])
    states = [torch.load(run / "checkpoints/last.pt", weights_only=True)["model"] for run in runs]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    assert read_metrics(runs[0]) == read_metrics(runs[1])


def test_augmentation_follows_from_seed_epoch_and_position_and_leaves_no_trace(images: Path) -> None:
    train = open_data(config_for(images)).train
    draws = list(TrainSampler(len(train), batch=8, epochs=2, seed=0))
    draws, later = draws[:16], draws[16:]
    assert list(TrainSampler(len(train), batch=8, epochs=2, seed=0, first_step=3)) == later[8:]
    assert len({draw.seed for draw in [*draws, *later]}) == len(draws) + len(later)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    first, other = train[draws[0]].image, train[Draw(draws[0].image, later[0].seed)].image
    assert torch.equal(first, train[draws[0]].image)
    assert not torch.equal(first, other)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_weights_are_loaded_and_the_average_starts_from_them(images: Path, encoder: Path) -> None:
    config = config_for(images, init=str(encoder))
    data = open_data(config)
    start = starting_weights(config.init, config.model, config.data)
    model = build_classifier(config.model, data.classes, start, seed=0)
    torch.manual_seed(7)
    exported = timm.create_model(MODEL).state_dict()
    ranks, resolved = Ranks(torch.device("cpu")), {"precision": "float32"}
    averaged = Finetuning(config, data, model, ranks, {}, resolved).state_dict()["ema"]
    assert torch.equal(model.state_dict()["layer3.0.conv2.weight"], exported["layer3.0.conv2.weight"])
    for name, tensor in model.state_dict().items():
        assert torch.equal(averaged[name], tensor), name


def test_it_learns(recipe: str) -> None:
    plain = ["augment.policy=none", "augment.mixup=0", "augment.cutmix=0", "augment.random_erasing=0"]
    adamw = ["optimizer.name=adamw", "optimizer.layer_decay=1", "train.loss=soft_target_ce"]
    result = imagenet_finetune.finetune(recipe, [*plain, *adamw, "optimizer.base_lr=0.1", "train.epochs=10"])
    log = read_metrics(result.parent)
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    assert load_record(result).metrics["top1_last"].value > 80  # chance is 50


@pytest.mark.parametrize(("info", "message"), [
    (encoder_info(model="resnet34"), "it is a resnet34"),
    (encoder_info(in_chans=1), "takes 1 channels"),
    (encoder_info(mean=(0.5, 0.5, 0.5)), "data.mean="),
])
def test_an_encoder_of_another_kind_is_refused(
    recipe: str, encoder: Path, tmp_path: Path, info: EncoderInfo, message: str
) -> None:
    shutil.copytree(encoder, tmp_path / "other")
    fields = {**info.__dict__}
    (tmp_path / "other" / "encoder.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=message):
        imagenet_finetune.finetune(recipe, [f"init={tmp_path}/other"])


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_only_the_head_may_be_missing(recipe: str, tmp_path: Path, change: str) -> None:
    state = {k: v for k, v in timm.create_model(MODEL).state_dict().items() if not k.startswith("fc.")}
    if change == "missing":
        del state["layer4.0.conv1.weight"]
    elif change == "unexpected":
        state["mask_token"] = torch.zeros(3)
    else:
        state["conv1.0.weight"] = torch.zeros(16, 3, 7, 7)
    save_encoder(tmp_path / "bad", Encoder(state, encoder_info()))
    with pytest.raises(UserError, match=r"layer4\.0\.conv1|mask_token|16x3x7x7 instead of 16x3x3x3"):
        imagenet_finetune.finetune(recipe, [f"init={tmp_path}/bad"])
    assert not (tmp_path / "run").exists()


def test_a_run_folder_of_another_configuration_is_not_continued(recipe: str) -> None:
    imagenet_finetune.finetune(recipe, ["train.epochs=1", "train.warmup_epochs=0"])
    with pytest.raises(UserError, match=r"train\.epochs was 1, is 2"):
        imagenet_finetune.finetune(recipe, [])
    imagenet_finetune.finetune(recipe, ["resume=never"])


def test_a_result_without_checkpoints_is_not_trained_over(recipe: str, tmp_path: Path) -> None:
    result = imagenet_finetune.finetune(recipe, [])
    before = {path: path.read_bytes() for path in result.parent.iterdir() if path.is_file()}
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match=r"holds a result, but its training's checkpoint is gone"):
        imagenet_finetune.finetune(recipe, ["seed=1"])
    assert {path: path.read_bytes() for path in result.parent.iterdir() if path.is_file()} == before
    imagenet_finetune.finetune(recipe, ["seed=1", "resume=never"])
    assert load_record(result).seed == 1


def test_a_finished_run_is_left_alone(recipe: str) -> None:
    result = imagenet_finetune.finetune(recipe, [])
    before = result.stat().st_mtime_ns
    assert imagenet_finetune.finetune(recipe, []) == result
    assert result.stat().st_mtime_ns == before


def test_other_data_in_the_place_of_a_runs_is_refused(recipe: str, images: Path, tmp_path: Path) -> None:
    imagenet_finetune.finetune(recipe, [])
    shutil.copytree(images, tmp_path / "copy")
    imagenet_finetune.finetune(recipe, [f"data.root={tmp_path}/copy"])  # the same files elsewhere
    (tmp_path / "copy/train/red/0.png").unlink()
    with pytest.raises(UserError, match=r"holds a run with other data; pass another out="):
        imagenet_finetune.finetune(recipe, [f"data.root={tmp_path}/copy"])


def test_another_encoder_in_the_place_of_a_runs_is_refused(recipe: str, tmp_path: Path) -> None:
    place = tmp_path / "encoder"
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = {k: v for k, v in timm.create_model(MODEL).state_dict().items() if not k.startswith("fc.")}
        save_encoder(place, Encoder(state, encoder_info()))
        if seed == 1:
            imagenet_finetune.finetune(recipe, [f"init={place}"])
    with pytest.raises(UserError, match=r"holds a run with another encoder; pass another out="):
        imagenet_finetune.finetune(recipe, [f"init={place}"])
    imagenet_finetune.finetune(recipe, [f"init={place}", "resume=never"])


def test_a_damaged_checkpoint_is_named(recipe: str, tmp_path: Path) -> None:
    imagenet_finetune.finetune(recipe, [])
    for checkpoint in (tmp_path / "run/checkpoints").iterdir():
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="the one before"), pytest.raises(UserError, match="no checkpoint is whole"):
        imagenet_finetune.finetune(recipe, [])


def test_images_are_read_as_in_pretraining(images: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(images, copy)
    gray = np.full((40, 40), 128 * 257, np.uint16)  # torchvision's loader would make it white
    Image.fromarray(gray).save(copy / "val/blue/0.png")
    image, label, _ = open_data(config_for(copy)).val[Draw(0)]
    assert label == 0
    expected = (128 / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(image.mean(dim=(1, 2)), expected, atol=1e-3, rtol=0)


@pytest.mark.filterwarnings("ignore:unreadable image")
def test_unreadable_images_stop_a_run_above_one_percent(recipe: str, images: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(images, copy)
    (copy / "val/red/0.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="1 of 8 images cannot be read"):
        imagenet_finetune.finetune(recipe, [f"data.root={copy}"])


@pytest.mark.parametrize(("override", "message"), [
    ("model.name=resnet81", "Did you mean"),
    ("model.name=resnet18.a1_in1K", r"cannot build 'resnet18\.a1_in1K'.*Invalid pretrained tag"),
    ("model.options={output_stride: 64}", "cannot build"),
    ("data.root=/nowhere", "does not exist"),
    ("train.batch=64", "exceeds the 16 images"),
    ("train.batch=7", "even"),
    ("optimizer.nme=lamb", "optimizer.name"),
    ("train.loss=mse", "bce, soft_target_ce"),
])
def test_bad_input_is_one_clear_message_and_leaves_nothing(
    recipe: str, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        imagenet_finetune.finetune(recipe, [override])
    assert not (tmp_path / "run").exists()
