"""The demo data: real photos that are installed already, valid, reproducible, and split without a leak."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from importlib.metadata import files
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from pycocotools.coco import COCO

from spark.errors import UserError

SCRIPT = ROOT / "tools" / "make_demo_data.py"
WHEELS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The script as a module (`tools` is not a package: another distribution owns that name)."""
    spec = importlib.util.spec_from_file_location("make_demo_data", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "data"
    assert tool.make(out, seed=0)
    return out


def digest(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.rglob("*")) if file.is_file()}


def test_every_photo_is_inside_a_wheel(tool: ModuleType) -> None:
    for photo in (*tool.SCENES, tool.COINS):
        recorded = {str(file) for file in files(WHEELS[photo.package]) or ()}
        assert f"{photo.package}/{photo.file}" in recorded


def test_photos_are_cut_into_two_disjoint_parts(tool: ModuleType) -> None:
    photo = tool.CLASSES["grass"]
    whole = np.asarray(Image.open(photo.path()).convert("RGB"))
    parts = [np.asarray(photo.part(split)) for split in ("val", "train")]
    # Together the parts are the photo, so no pixel is in both.
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_objects_of_train_and_val_differ(tool: ModuleType) -> None:
    for source in (tool.coins, tool.digits):
        train, val = ({cutout.gray.tobytes() + cutout.alpha.tobytes() for cutout in source(split)}
                      for split in ("train", "val"))
        assert len(train) > len(val) >= 6
        assert not train & val


def test_the_pool_never_reads_validation_parts(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = tool.Photo.part
    monkeypatch.setattr(tool.Photo, "part", lambda photo, split: seen.append(split) or original(photo, split))
    monkeypatch.setattr(tool, "POOL_IMAGES", 20)
    tool.make_pool(tmp_path, np.random.default_rng(0))
    assert set(seen) == {"train"}


def test_layout(data: Path, tool: ModuleType) -> None:
    for split, count in tool.CLASS_IMAGES.items():
        folders = sorted((data / "classification" / split).iterdir())
        assert [folder.name for folder in folders] == sorted(tool.CLASSES)
        assert {len(list(folder.glob("*.jpg"))) for folder in folders} == {count}
    pool = sorted((data / "pool").glob("*.jpg"))
    assert len(pool) == tool.POOL_IMAGES
    assert {Image.open(path).size for path in pool} == {(128, 128)}


@pytest.mark.parametrize(("split", "count"), [("train2017", 60), ("val2017", 20)])
def test_detection_annotations_are_true(data: Path, split: str, count: int) -> None:
    coco = COCO(str(data / "detection" / "annotations" / f"instances_{split}.json"))
    assert len(coco.imgs) == count
    assert {category["name"] for category in coco.cats.values()} == {"coin", "digit"}
    for image in coco.imgs.values():
        with Image.open(data / "detection" / split / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
        masks = [coco.annToMask(entry) for entry in coco.imgToAnns[image["id"]]]
        assert masks
        assert np.sum(masks, axis=0).max() == 1  # objects lie apart
    for entry in coco.anns.values():
        mask = coco.annToMask(entry)
        assert mask.sum() == entry["area"] > 0
        left, top, width, height = map(int, entry["bbox"])
        assert mask[top:top + height, left:left + width].sum() == entry["area"]


def test_the_same_seed_gives_the_same_files(tool: ModuleType, data: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    tool.make(again, seed=0)
    assert digest(again) == digest(data)
    tool.make(other, seed=1)
    assert digest(other / "pool") != digest(data / "pool")


def test_made_already_is_left_alone_and_another_seed_replaces_it(tool: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "data"
    assert tool.make(out, seed=0)
    (out / "pool" / "0000.jpg").unlink()
    assert not tool.make(out, seed=0)
    assert not (out / "pool" / "0000.jpg").exists()
    assert tool.make(out, seed=1)
    assert json.loads((out / tool.MANIFEST).read_text())["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_with_something_else_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not demo data"):
        tool.make(tmp_path, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
