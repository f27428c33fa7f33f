"""Fine-tuning in several processes, in parts, on few labels, of own networks, from other weights; and divergence."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from colored import write_folders
from paths import ROOT

from eval_suite.classification.data import LabeledSample
from eval_suite.classification.finetuning import Finetuning
from eval_suite.task import Work
from eval_suite.task_registry import find_task
from eval_suite.tasks import imagenet_finetune
from spark.errors import UserError
from spark.runs.metrics import read_metrics
from spark.runs.record import load_record
from spark.utils.signals import PostponedError

MODEL = "test_resnet"
OWN = f"{ROOT}/tools/examples/cifar_resnet.py:CifarResNet"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("images"), train=6, val=2)


@pytest.fixture
def recipe(images: Path, tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"""
out: {tmp_path}/run
origin: smoke
device: cpu
model: {{name: {MODEL}, drop_path: 0.0}}
data: {{root: {images}, input_size: 32, workers: 0}}
augment: {{mix_group: 4}}
optimizer: {{base_lr: 0.02}}
train: {{epochs: 2, warmup_epochs: 1, batch: 8, ema_decay: 0.5}}
""")
    return str(path)


def states(*runs: Path) -> list[dict[str, Any]]:
    return [torch.load(run / "checkpoints/last.pt", weights_only=True) for run in runs]


def test_two_processes_have_the_numbers_of_one(recipe: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    imagenet_finetune.finetune(recipe, [f"out={one}"])
    script = tmp_path / "main.py"
    script.write_text("import sys; from eval_suite.cli import main; sys.exit(main())")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "finetune", recipe, f"out={two}"], env=environment, capture_output=True,
                          text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{two}/result.json\n"
    assert done.stderr.count("2 processes of 4 images each; batch norms are synchronised") == 1
    first, second = (read_metrics(run) for run in (one, two))
    assert [record["loss"] for record in first] == pytest.approx([record["loss"] for record in second], rel=1e-5)
    for part in ("model", "ema"):
        alone, shared = (state[part] for state in states(one, two))
        for name, tensor in alone.items():
            torch.testing.assert_close(tensor, shared[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name)
    records = [load_record(run / "result.json") for run in (one, two)]
    assert records[0].protocol_id == records[1].protocol_id
    assert "2 processes of" in records[1].hardware


def test_parts_of_a_batch_add_up_to_it(recipe: str, tmp_path: Path) -> None:
    """Without batch norms, which see one part at a time."""
    runs = [tmp_path / "whole", tmp_path / "parts"]
    model = ["model.name=test_convnext", "optimizer.name=adamw", "optimizer.base_lr=0.003"]
    for run, parts in zip(runs, ([], ["train.device_batch=5"]), strict=True):
        imagenet_finetune.finetune(recipe, [f"out={run}", *model, *parts])
    first, second = (read_metrics(run) for run in runs)
    assert [record["loss"] for record in first] == pytest.approx([record["loss"] for record in second], rel=1e-5)
    with pytest.raises(UserError, match=r"cannot be split into equal parts .* each of whole pairs"):
        imagenet_finetune.finetune(recipe, ["train.device_batch=1", f"out={tmp_path}/other"])


def test_few_labels_are_balanced_recorded_and_comparable_over_seeds(recipe: str, tmp_path: Path) -> None:
    few = ["labels.per_class=3", "train.batch=8"]
    results = [imagenet_finetune.finetune(recipe, [*few, f"seed={seed}", f"out={tmp_path}/{seed}"]) for seed in (0, 1)]
    records = [load_record(result) for result in results if result]
    assert [record.task for record in records] == ["few_shot", "few_shot"]
    assert records[0].protocol_id == records[1].protocol_id
    assert records[0].protocol["labels"] == {"fraction": None, "per_class": 3, "seeds": [0, 1, 2, 3, 4]}
    named = [(tmp_path / str(seed) / "labelled_images.txt").read_text().splitlines() for seed in (0, 1)]
    assert named[0] != named[1]
    for names in named:
        assert sorted(Path(name).parent.name for name in names) == ["blue"] * 3 + ["green"] * 3 + ["red"] * 3
    with pytest.raises(UserError, match=r"seed=9 is not one of labels\.seeds"):
        imagenet_finetune.finetune(recipe, [*few, "seed=9"])
    other = imagenet_finetune.finetune(recipe, ["labels.seeds=[0,1]", *few, f"out={tmp_path}/other"])
    assert other
    assert load_record(other).protocol_id != records[0].protocol_id


def test_the_task_of_few_labels_needs_a_limit(recipe: str, tmp_path: Path) -> None:
    task = find_task("few_shot")
    with pytest.raises(UserError, match=r"needs labels\.fraction or labels\.per_class"):
        task.prepare(Work(recipe, tmp_path / "run"))
    work = Work(recipe, tmp_path / "run", {"labels.fraction": 0.5}, seed=2)
    whole = find_task("imagenet_finetune").prepare(Work(recipe, tmp_path / "run", seed=2))
    assert task.prepare(work).settings != whole.settings
    assert task.command(work)[:3] == ["spark-eval", "finetune", recipe]
    cost, of_all = (find_task(name).cost(work, 100) for name in ("few_shot", "imagenet_finetune"))
    assert cost
    assert of_all
    assert cost.flops == pytest.approx(of_all.flops / 2)


def test_an_own_network_is_fine_tuned(recipe: str, tmp_path: Path) -> None:
    # With 4 channels the backward pass crashed on an AMD processor; why is not known.
    own = [f"model.name={OWN}", "model.options={width: 8, blocks: 1}"]
    with pytest.raises(UserError, match=r"optimizer\.layer_decay must be 1"):
        imagenet_finetune.finetune(recipe, own)
    result = imagenet_finetune.finetune(recipe, [*own, "optimizer.layer_decay=1"])
    assert result
    record = load_record(result)
    assert record.model == OWN
    assert record.protocol["model"]["options"] == {"width": 8, "blocks": 1}


def test_a_run_does_not_go_on_with_another_source_of_its_own_network(recipe: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    code = Path(OWN.rpartition(":")[0]).read_text()
    file.write_text(code)
    own = [f"model.name={file}:CifarResNet", "model.options={width: 8, blocks: 1}", "optimizer.layer_decay=1"]
    result = imagenet_finetune.finetune(recipe, own)
    assert result
    before = result.read_bytes()
    file.write_text(code + "\n# edited\n")
    with pytest.raises(UserError, match=r"another source of the own network; pass another out=.*resume=never"):
        imagenet_finetune.finetune(recipe, own)
    file.write_text(code)
    imagenet_finetune.finetune(recipe, own)
    assert result.read_bytes() == before


def test_other_checkpoints_begin_it_too(recipe: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = timm.create_model("resnet18")
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    result = imagenet_finetune.finetune(recipe, [
        "model.name=resnet18", f"init={tmp_path}/resnet18.pth", "train.epochs=1", "train.warmup_epochs=0",
        "optimizer.base_lr=1e-9",
    ])
    assert result
    assert load_record(result).init.kind == "imported"
    trained = states(tmp_path / "run")[0]["model"]
    torch.testing.assert_close(trained["layer1.0.conv1.weight"], network.layer1[0].conv1.weight.detach())
    with pytest.raises(UserError, match=r"timm:resnet1x: unknown model"):
        imagenet_finetune.finetune(recipe, ["init=timm:resnet1x", f"out={tmp_path}/other"])


def test_a_request_to_stop_is_heeded_within_an_epoch(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    imagenet_finetune.finetune(recipe, [f"out={whole}"])
    step = Finetuning.step

    def told(self: Finetuning, batch: LabeledSample, number: int, lr: float) -> dict[str, Any]:
        if number == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, number, lr)

    monkeypatch.setattr(Finetuning, "step", told)
    with pytest.raises(PostponedError, match="the same command goes on with it"):
        imagenet_finetune.finetune(recipe, [f"out={parts}"])
    assert states(parts)[0]["step"] == 1
    assert states(parts)[0]["training_seconds"] > 0  # though no record was due
    imagenet_finetune.finetune(recipe, [f"out={parts}"])
    assert read_metrics(whole) == read_metrics(parts)


@pytest.mark.parametrize("bad", [1, 8], ids=["once", "from there on"])
def test_steps_without_finite_loss_are_left_out_or_stop_it(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    accumulate = Finetuning._accumulate_gradients

    def spoilt(self: Finetuning, images: torch.Tensor, labels: torch.Tensor, number: int) -> torch.Tensor:
        rate = max(group["lr"] for group in self._optimizer.param_groups)
        spoil = 3 <= number < 3 + bad and rate > 0.3 * self._config.learning_rate
        return accumulate(self, images * (torch.nan if spoil else 1), labels, number)

    monkeypatch.setattr(Finetuning, "_accumulate_gradients", spoilt)
    longer = ["train.epochs=8"]
    if bad == 1:
        imagenet_finetune.finetune(recipe, longer)
        assert read_metrics(tmp_path / "run")[-1]["skipped"] == 1
        assert all(torch.isfinite(tensor).all() for tensor in states(tmp_path / "run")[0]["model"].values())
        return
    with pytest.raises(UserError, match=r"no longer finite near step .*lower optimizer\.base_lr, or set precision="):
        imagenet_finetune.finetune(recipe, longer)
    imagenet_finetune.finetune(recipe, [*longer, "train.on_divergence=rollback"])
    assert states(tmp_path / "run")[0]["rollbacks"] == 2


def test_the_report_of_unreadable_images_names_them(recipe: str, images: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(images, copy)
    for number in range(3):  # of so few images as many as stop a run
        (copy / f"train/red/0{number}.png").write_bytes(b"not an image")
    with pytest.warns(UserWarning, match="unreadable image"), pytest.raises(UserError, match=r"red/0\d\.png"):
        imagenet_finetune.finetune(recipe, [f"data.root={copy}"])


@pytest.mark.gpu
def test_a_gpu_has_the_losses_of_the_cpu(recipe: str, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        imagenet_finetune.finetune(recipe, [f"out={tmp_path}/{device}", f"device={device}", "precision=float32"])
    first, second = (read_metrics(tmp_path / device) for device in ("cpu", "cuda"))
    assert [record["loss"] for record in first] == pytest.approx([record["loss"] for record in second], rel=1e-2)
    record = load_record(tmp_path / "cuda/result.json")
    assert record.peak_memory_mib
    assert record.hardware.startswith("1x ")
    imagenet_finetune.finetune(recipe, [f"out={tmp_path}/mixed", "device=cuda", "precision=auto"])


def test_a_run_goes_on_in_the_precision_that_it_began_in(recipe: str, tmp_path: Path) -> None:
    result = imagenet_finetune.finetune(recipe, ["precision=bfloat16"])
    assert result is not None
    record = load_record(result)
    assert record.resolved == {"precision": "bfloat16", "model.recalibrate": "2048"}
    assert record.protocol["precision"] == "bfloat16"  # it rounds more, so numbers are not comparable
    with pytest.raises(UserError, match=r"was begun in bfloat16; pass precision=bfloat16, another out="):
        imagenet_finetune.finetune(recipe, ["precision=float32"])
    result.unlink()  # as if it had been killed just before
    again = imagenet_finetune.finetune(recipe, [])  # auto holds
    assert again is not None
    assert load_record(again).protocol_id == record.protocol_id
    plain = imagenet_finetune.finetune(recipe, [f"out={tmp_path / 'plain'}"])
    assert plain is not None
    assert "precision" not in load_record(plain).protocol  # as in all records so far
