"""What two runs, or a run and a recipe, differ in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from paths import ROOT
from synthetic import SCRATCH, SPARK, record

from eval_suite.classification.finetune_config import FinetuneConfig
from eval_suite.cli import main
from eval_suite.diff import DIFFERENT, SAME, Difference, differences, read_sides
from spark.config.recipe import load_recipe, save_resolved, with_values
from spark.runs.record import Initialization, load_record

RECIPES = ROOT / "configs"
RESNET50 = str(RECIPES / "finetune/resnet50.yaml")


def write_run(folder: Path, init: Initialization = SCRATCH, files: str = "a", **changes: object) -> str:
    """A run of the recipe for ResNet-50 with some settings changed, on data with some files."""
    config = load_recipe(FinetuneConfig, RESNET50, [f"out={folder}", "data.root=imagenet"])
    config = with_values(config, {key.replace("__", "."): value for key, value in changes.items()})
    save_resolved(config, folder / "config.yaml")
    protocol = {**config.protocol(), "dataset": {"files": files}}
    dataclasses.replace(record(50, init), protocol=protocol).save(folder)
    return str(folder)


def found(first: str, second: str, trust: tuple[str, ...] = ()) -> dict[str, Difference]:
    """Differences by the name of the setting."""
    return {difference.name: difference for difference in differences(*read_sides(first, second, trust))}


def test_runs_that_share_all_but_their_place_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    assert main(["diff", first, second]) == SAME
    assert "no setting differs" in capsys.readouterr().out


def test_every_setting_is_named_and_those_of_the_protocol_are_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_run(tmp_path / "a")
    second = write_run(tmp_path / "b", SPARK, "b", seed=3, data__workers=2, optimizer__base_lr=0.5)
    entries = found(first, second)
    assert entries["optimizer.base_lr"] == Difference("optimizer.base_lr", 0.002, 0.5, True)
    assert entries["dataset.files"].protocol  # other data is another protocol
    assert not any(entries[name].protocol for name in ("seed", "data.workers", "began_with.kind"))
    assert len([name for name in entries if not name.startswith("began_with")]) == 4
    marks = [entry.protocol for entry in entries.values()]
    assert marks == sorted(marks, reverse=True)  # those of the protocol come first
    assert main(["diff", first, second]) == DIFFERENT
    printed = capsys.readouterr().out
    assert "not comparable" in printed
    assert "optimizer.base_lr" in printed


def test_the_code_of_a_network_is_no_other_protocol(tmp_path: Path) -> None:
    """The model is a column of tables; its code belongs to it."""
    recipe, run = str(RECIPES / "finetune/cifar10_few.yaml"), write_run(tmp_path / "a", model__name="resnet18")
    assert "source" not in found(recipe, run)  # its code is not run
    entries = found(recipe, run, ("tools/examples/cifar_resnet.py:CifarResNet",))
    assert not entries["source"].protocol
    assert not entries["model.name"].protocol


def test_a_run_of_a_recipe_has_its_settings_wherever_it_ran(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", SPARK, data__workers=2)
    assert found(run, RESNET50) == {}
    entries = found(write_run(tmp_path / "b", train__epochs=30), RESNET50)
    assert entries == {"train.epochs": Difference("train.epochs", 30, 300, True)}


def test_what_auto_came_to_is_told_between_runs_and_is_no_difference_from_the_recipe(tmp_path: Path) -> None:
    short, old = write_run(tmp_path / "short"), write_run(tmp_path / "old")
    result = load_record(Path(short) / "result.json")
    model = {**result.protocol["model"], "recalibrate": 2048}
    dataclasses.replace(
        result, protocol={**result.protocol, "model": model}, resolved={"model.recalibrate": "2048"}).save(Path(short))
    assert found(short, old) == {
        "model.recalibrate": Difference("model.recalibrate", "auto (2048)", "auto", True)}
    assert found(short, RESNET50) == {}
    never = write_run(tmp_path / "never", model__recalibrate=False)
    assert "model.recalibrate" in found(short, never)


def test_what_an_older_run_did_not_know_is_as_the_defaults_say(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    config = tmp_path / "a/config.yaml"
    config.write_text(config.read_text().replace("  label_smoothing: 0.1\n", ""))
    assert found(run, RESNET50) == {}


def test_two_recipes_of_pre_training() -> None:
    entries = found(*(str(RECIPES / f"pretrain/{name}.yaml") for name in ("resnet50", "convnext_small")))
    assert entries["optimizer.betas"].protocol
    assert not entries["model.name"].protocol
    assert set(entries) == {"optimizer.betas", "model.name", "model.drop_path"}


def test_detectors_are_compared_down_to_the_entries_of_lists(tmp_path: Path) -> None:
    pytest.importorskip("detectron2")
    for name, size in (("a", 600), ("b", 800)):
        (tmp_path / name).mkdir()
        dataclasses.replace(record(50), task="coco_mask_rcnn", protocol={"recipe_hash": name}).save(tmp_path / name)
        (tmp_path / name / "config.yaml").write_text(
            f"train: {{output_dir: {name}, seed: {size}}}\n"
            f"dataloader: {{train: {{mapper: {{augmentations: [{{max_size: {size}}}]}}}}}}\n"
            "model: !!python/object:some.module.Shape {channels: 3}\n"
        )
    entries = found(str(tmp_path / "a"), str(tmp_path / "b"))
    assert {name: entry.protocol for name, entry in entries.items()} == {
        "dataloader.train.mapper.augmentations.0.max_size": True, "train.seed": False,
    }


@pytest.mark.parametrize(("first", "second", "complaint"), [
    (RESNET50, str(RECIPES / "pretrain/resnet50.yaml"), "nothing to compare"),
    (RESNET50, "nowhere.yaml", "does not exist"),
    (RESNET50, "{tmp}", "holds no run"),
])
def test_what_cannot_be_compared_is_one_line(
    first: str, second: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", first, second.format(tmp=tmp_path)]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b'{"schema_version": 1, "seed": NaN', b"\xff\xfe\x00", b"[1]", b"{}"])
def test_a_damaged_record_is_left_out_and_the_configurations_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b", train__epochs=7)
    (tmp_path / "b/result.json").write_bytes(content)
    assert main(["diff", first, second]) == DIFFERENT
    told = capsys.readouterr()
    assert "train.epochs" in told.out
    assert told.err.count("b/result.json") == 1
