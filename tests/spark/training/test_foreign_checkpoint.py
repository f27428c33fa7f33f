"""A checkpoint that is valid, but not the run's own, never ends in a traceback, nor is it gone on from."""

from __future__ import annotations

import json
import shutil
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from spark.cli import main
from spark.data.shards import read_index
from spark.data.source import open_source


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return a finished run's folder, and its command."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "photos").mkdir()
    for number in range(2):
        Image.new("RGB", (64, 64), (90 * number, 50, 200)).save(folder / "photos" / f"{number}.png")
    (folder / "recipe.yaml").write_text("{}")
    command = ["pretrain", str(folder / "recipe.yaml"),
               f"data.root={folder / 'photos'}", f"out={folder / 'run'}", "model.name=test_resnet",
               "data.input_size=[64,64]", "data.workers=0", "decoder.width=32", "train.epochs=2",
               "train.warmup_epochs=0", "train.batch=2", "device=cpu", "resume=auto"]  # fmt: skip
    assert main(command) == 0
    return folder / "run", command


def first(saved: dict[str, Any]) -> str:
    return next(name for name, value in saved["model"].items() if value.dim() > 1)


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a missing tensor": lambda saved: saved["model"].pop(first(saved)),
    "a tensor more": lambda saved: saved["model"].update(more=torch.zeros(3)),
    "another shape": lambda saved: saved["model"].update({first(saved): torch.zeros(3)}),
    "no tensor": lambda saved: saved["model"].update({first(saved): "text"}),
    "no model": lambda saved: saved.pop("model"),
    "a model that is none": lambda saved: saved.update(model=[1]),
    "no optimizer": lambda saved: saved.pop("optimizer"),
    "an empty optimizer": lambda saved: saved.update(optimizer={}),
    "moments of another shape": lambda saved: saved["optimizer"]["state"][0].update(exp_avg=torch.zeros(2, 9)),
    "moments missing": lambda saved: saved["optimizer"]["state"][0].pop("exp_avg"),
    "fewer parameters": lambda saved: saved["optimizer"]["param_groups"].pop(),
    "no step": lambda saved: saved.pop("step"),
    "a step beyond": lambda saved: saved.update(step=10**6),
    "a step that is none": lambda saved: saved.update(step="three"),
    "no losses": lambda saved: saved.pop("losses"),
    "no images": lambda saved: saved.pop("images"),
    "other settings": lambda saved: saved["settings"].update(seed=99),
    "settings that are none": lambda saved: saved.update(settings=3),
    "precision that is none": lambda saved: saved.update(resolved={"train.precision": None}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_refused_in_a_line(
    change: str, run: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, command = run
    last = folder / "checkpoints" / "last.pt"
    whole = last.read_bytes()
    for path in folder.glob("checkpoints/*"):
        if path != last:
            path.rename(tmp_path / path.name)
    saved = torch.load(last, weights_only=True)
    del saved["checksum"]
    CHANGES[change](saved)
    torch.save(saved, last)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert main(command) == 2
    finally:
        last.write_bytes(whole)
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("kind", ["shards", "a list"])
def test_images_whose_content_changed_are_told_from_those_that_the_run_began_with(
    kind: str, run: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, command = run
    photos = sorted((folder.parent / "photos").iterdir())
    root, damaged = tmp_path / "a.tar", tmp_path / "a.tar"
    if kind == "shards":
        with tarfile.open(root, "w") as tar:
            for photo in photos:
                tar.add(photo, photo.name)
        at = read_index(root)[0].offset + 60
    else:
        for photo in photos:
            shutil.copy(photo, tmp_path)
        root, damaged, at = tmp_path / "list.txt", tmp_path / photos[0].name, 60
        root.write_text("".join(f"{photo.name}\n" for photo in photos))
    command = [*command, f"data.root={root}", f"out={tmp_path / 'run'}"]
    assert main(command) == 0
    info = tmp_path / "run" / "encoder.json"
    told = json.loads(info.read_text())["images_checksum"]
    assert told == open_source(root).checksum
    content = bytearray(damaged.read_bytes())
    content[at] ^= 1
    damaged.write_bytes(content)
    assert main(command) == 0  # what is finished stays so
    assert json.loads(info.read_text())["images_checksum"] == told != open_source(root).checksum
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    saved = torch.load(last, weights_only=True)
    del saved["checksum"]
    saved["step"] = 1
    torch.save(saved, last)
    capsys.readouterr()
    assert main(command) == 2
    assert "the content of the images has changed since the run" in capsys.readouterr().err.splitlines()[-1]
    del saved["images_checksum"]
    torch.save(saved, last)
    assert main(command) == 0  # an older version's checkpoint
