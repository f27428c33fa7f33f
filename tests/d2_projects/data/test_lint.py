"""The linter: each oddity that training can live with is told, counted and shown; sound data is silent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from d2_projects.data.coco import check

Change = Callable[[dict[str, Any]], Any]


def edit(root: Path, change: Change, splits: tuple[str, ...] = ("train2017",)) -> None:
    for split in splits:
        file = root / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))


def test_sound_data_is_silent(coco: Path) -> None:
    data = check(coco)
    assert not data.warnings
    assert data.notes == ("category ids are 3 to 7 with gaps; the model numbers them 0 to 1",)


WARNINGS: dict[str, tuple[Change, str]] = {
    "no mask": (lambda c: c["annotations"][1].pop("segmentation"),
                "1 of 8 objects have no mask (no polygon of three points): they are not trained on"),
    "empty mask": (lambda c: c["annotations"][1].update(segmentation=[]), "1 of 8 objects have no mask"),
    "a line": (lambda c: c["annotations"][1].update(segmentation=[[1, 1, 2, 2]]), "1 of 8 objects have no mask"),
    "flat box": (lambda c: c["annotations"][2]["bbox"].__setitem__(2, 0), "1 of 8 boxes have no area"),
    "turned box": (lambda c: c["annotations"][2]["bbox"].__setitem__(3, -4), "1 of 8 boxes have no area"),
    "box outside": (lambda c: c["annotations"][3]["bbox"].__setitem__(0, 64),
                    "1 of 8 boxes are wholly outside their image, such as annotation 4 with the box [64"),
    "box sticks out": (lambda c: c["annotations"][3].update(bbox=[50, 50, 20, 10]),
                       "1 of 8 boxes stick out of their image by more than 1 pixel"),
    "repeated": (lambda c: c["annotations"].append({**c["annotations"][0], "id": 99}),
                 "1 of 9 objects repeat the box and category of another, such as annotation 99"),
    "id 0": (lambda c: c["annotations"][5].update(id=0), "1 of 8 objects have the id 0"),
    "unused category": (lambda c: [a.update(category_id=3) for a in c["annotations"]],
                        "1 of 2 categories have no object, such as 'bar'"),
    "image twice": (lambda c: c["images"][3].update(file_name=c["images"][0]["file_name"]),
                      "1 of 4 images are listed twice, such as 000000000001.jpg"),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_oddities_are_warned_of(coco: Path, name: str) -> None:
    change, message = WARNINGS[name]
    edit(coco, change)
    (warning,) = check(coco).warnings
    assert message in warning
    assert "instances_train2017.json'" in warning
    assert "\n" not in warning


@pytest.mark.parametrize(("left", "told"), [(-0.9, False), (25, False), (25.5, True), (-1.5, True)])
def test_a_pixel_outside_is_rounding(coco: Path, left: float, told: bool) -> None:
    edit(coco, lambda c: c["annotations"][0].update(bbox=[left, 10, 40, 10]))
    assert bool(check(coco).warnings) is told


def test_crowds_are_not_objects(coco: Path) -> None:
    edit(coco, lambda c: c["annotations"][0].update(
        iscrowd=1, bbox=[0, 0, 900, 900], segmentation={"size": [64, 64], "counts": [4096]}))
    data = check(coco)
    assert not data.warnings
    assert not data.train.run_length  # crowds are not trained on


def both(content: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> None:
    for category in content["categories"]:
        change(category)


@pytest.mark.parametrize(("ids", "note"), [
    ((1, 2), None),
    ((0, 1), "category ids are 0 to 1; the model numbers them 0 to 1"),
    ((2, 3), "category ids are 2 to 3; the model numbers them 0 to 1"),
    ((1, 90), "category ids are 1 to 90 with gaps; the model numbers them 0 to 1"),
])
def test_the_numbering_of_categories_is_told(coco: Path, ids: tuple[int, int], note: str | None) -> None:
    new = dict(zip((3, 7), ids, strict=True))

    def renumber(content: dict[str, Any]) -> None:
        for category in content["categories"]:
            category["id"] = new[category["id"]]
        for entry in content["annotations"]:
            entry["category_id"] = new[entry["category_id"]]

    edit(coco, renumber, ("train2017", "val2017"))
    data = check(coco)
    assert list(data.notes) == ([note] if note else [])
    assert not data.warnings
    edit(coco, lambda c: both(c, lambda category: category.update(id=category["id"] + 5)) or [
        a.update(category_id=a["category_id"] + 5) for a in c["annotations"]], ("val2017",))
    assert "same names under different ids" in check(coco).warnings[0]


def test_coco_under_other_ids_is_warned_of(coco: Path) -> None:
    names = [entry["name"] for entry in COCO_CATEGORIES if entry["isthing"]]

    def contiguous(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names, 1)]

    edit(coco, contiguous, ("train2017", "val2017"))
    assert sum("COCO's 80 categories under other ids" in warning for warning in check(coco).warnings) == 2


def test_background_and_repeated_names_are_warned_of(coco: Path) -> None:
    edit(coco, lambda c: both(c, lambda category: category.update(name="__background__")), ("train2017", "val2017"))
    told = "\n".join(check(coco).warnings)
    assert "category '__background__' is learnt as an object" in told
    assert "1 names belong to several categories, such as '__background__'" in told


def test_images_without_objects_are_noted(coco: Path) -> None:
    edit(coco, lambda c: c["annotations"].__delitem__(slice(0, 2)))
    assert any("1 of 4 images have no annotation" in note for note in check(coco).notes)


def test_training_images_in_validation_are_warned_of(coco: Path) -> None:
    shutil.copy(coco / "train2017" / "000000000002.jpg", coco / "val2017" / "000000000002.jpg")
    (warning,) = check(coco).warnings
    assert "1 of 2 validation images are training images too, such as " in warning
    shutil.copytree(coco / "train2017", coco / "val2017", dirs_exist_ok=True)
    annotations = coco / "annotations"
    shutil.copy(annotations / "instances_train2017.json", annotations / "instances_val2017.json")
    assert "4 of 4 validation images" in check(coco).warnings[0]


def test_an_image_turned_by_its_camera_has_the_turned_size(coco: Path) -> None:
    file = coco / "train2017" / "000000000001.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 64)).save(file, exif=exif)
    edit(coco, lambda c: c["images"][0].update(width=64, height=32) or [
        entry.update(bbox=[1, 1, 9, 9], segmentation=[[1, 1, 10, 1, 10, 10, 1, 10]]) for entry in c["annotations"][:2]])
    assert not check(coco).warnings
