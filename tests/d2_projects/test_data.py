"""What can be wrong with a COCO folder is one clear line; a sound one leaves no trace in Detectron2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2_projects.data import check, registered
from spark.errors import UserError


def test_a_sound_data_set_is_described(coco: Path) -> None:
    data = check(coco)
    assert data.train.categories == ("square", "bar")  # ordered by id, as Detectron2 numbers them
    assert (data.train.images, data.val.images) == (4, 2)
    assert not data.train.run_length


def test_registration_ends_with_the_body_and_may_be_repeated(coco: Path) -> None:
    before = set(DatasetCatalog.list()), set(MetadataCatalog.list())
    for _ in range(2):
        with registered(check(coco)) as (train, val):
            records = DatasetCatalog.get(train)
            assert [len(records), len(DatasetCatalog.get(val))] == [4, 2]
            assert {entry["category_id"] for record in records for entry in record["annotations"]} == {0, 1}
            assert MetadataCatalog.get(train).thing_classes == ["square", "bar"]
    assert (set(DatasetCatalog.list()), set(MetadataCatalog.list())) == before


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        file = root / "annotations" / "instances_train2017.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return damage


def write(text: str) -> Callable[[Path], None]:
    return lambda root: (root / "annotations" / "instances_train2017.json").write_text(text) and None


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (shutil.rmtree, "data folder .* does not exist: pass data.root="),
    "no pictures": (lambda root: shutil.rmtree(root / "val2017"), "picture folder .*val2017' does not exist"),
    "no json": (lambda root: shutil.rmtree(root / "annotations"), "annotation file .* does not exist"),
    "not json": (write("{"), "is not valid JSON"),
    "a list": (write("[]"), "is not a COCO annotation file: it has no list 'images'"),
    "other json": (write('{"images": [], "shapes": []}'), "has no images"),
    "no categories": (edited(lambda c: c["categories"].clear()), "has no categories"),
    "no annotations": (edited(lambda c: c["annotations"].clear()), "has no annotations"),
    "boxes only": (edited(lambda c: c["annotations"][1].pop("segmentation")),
                   r"annotations\[1\] has no segmentation"),
    "number for a name": (edited(lambda c: c["images"][0].update(file_name=5)),
                          r"images\[0\] has file_name 5, which is not a text"),
    "list for an id": (edited(lambda c: c["images"][1].update(id=[1])), r"images\[1\] has id \[1\], which"),
    "text for a width": (edited(lambda c: c["images"][0].update(width="a")), "width .* not a positive whole number"),
    "short box": (edited(lambda c: c["annotations"][0].update(bbox=[1])), "bbox .* not a list of four numbers"),
    "text in a box": (edited(lambda c: c["annotations"][0].update(bbox=[1, 2, 3, "4"])), "bbox .* four numbers"),
    "no area": (edited(lambda c: c["annotations"][0].pop("area")), r"annotations\[0\] has no area"),
    "text for a mask": (edited(lambda c: c["annotations"][0].update(segmentation="x")), 'segmentation "x", which'),
    "text in a mask": (edited(lambda c: c["annotations"][0].update(segmentation=[["x"]])), "is not polygons"),
    "empty mask": (edited(lambda c: c["annotations"][2].update(segmentation=[])),
                   r"annotations\[2\] has segmentation \[\], which is not polygons or a run-length"),
    "half a run-length mask": (edited(lambda c: c["annotations"][0].update(segmentation={"size": [64, 64]})),
                               "is not polygons or a run-length"),
    "not an entry": (edited(lambda c: c["images"].append(3)), r"images\[4\] has no id"),
    "repeated image": (edited(lambda c: c["images"][1].update(id=1)), "2 images have the id 1"),
    "repeated annotation": (edited(lambda c: c["annotations"][1].update(id=1)), "2 annotations have the id 1"),
    "repeated category": (edited(lambda c: c["categories"][1].update(id=7)), "2 categories have the id 7"),
    "lost category": (edited(lambda c: c["categories"].pop()), "annotation 1 has the unknown category_id 3"),
    "lost image": (edited(lambda c: c["images"].pop()), "has the unknown image_id 4"),
    "crowds only": (edited(lambda c: [a.update(iscrowd=1) for a in c["annotations"]]),
                    "no annotated objects besides crowds"),
    "lost file": (lambda root: (root / "train2017" / "000000000002.jpg").unlink(),
                  "1 of 4 pictures .* such as 000000000002.jpg"),
    "renamed": (edited(lambda c: c["categories"][0].update(name="rod")), "categories of .* differ"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_clear_line(coco: Path, damage: str) -> None:
    harm, message = DAMAGES[damage]
    harm(coco)
    with pytest.raises(UserError, match=message) as raised:
        check(coco)
    assert "\n" not in str(raised.value)


def test_run_length_masks_are_noticed(coco: Path) -> None:
    edited(lambda c: c["annotations"][0].update(segmentation={"size": [64, 64], "counts": [4096]}))(coco)
    assert check(coco).train.run_length
