"""Where data may be, what can be wrong with it in one clear line, and that it leaves no trace in Detectron2."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_coco
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from d2_projects.data.coco import ANNOTATED, Sources, check, locate, records, registered
from d2_projects.data.demo import recipe_and_overrides
from d2_projects.evaluation.gallery import write_gallery
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


def write_after(damage: Callable[[Path], None], old: str, new: str) -> Callable[[Path], None]:
    """Damage, then change the text of the file: for what Python would not write."""

    def both(root: Path) -> None:
        damage(root)
        file = root / "annotations" / "instances_train2017.json"
        file.write_text(file.read_text().replace(old, new))

    return both


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (shutil.rmtree, "data folder .* does not exist: pass data.root="),
    "no images": (lambda root: shutil.rmtree(root / "val2017"), "image folder .*val2017' does not exist"),
    "no json": (lambda root: shutil.rmtree(root / "annotations"), "annotation file .* does not exist"),
    "not json": (write("{"), "is not valid JSON"),
    "a list": (write("[]"), "is not a COCO annotation file: it has no list 'images'"),
    "other json": (write('{"images": [], "shapes": []}'), "has no images"),
    "no categories": (edited(lambda c: c["categories"].clear()), "has no categories"),
    "no annotations": (edited(lambda c: c["annotations"].clear()), "has no annotations"),
    "boxes only": (edited(lambda c: [a.pop("segmentation") for a in c["annotations"]]), "no object has a mask"),
    "lines for masks": (edited(lambda c: [a.update(segmentation=[[1, 2, 3, 4]]) for a in c["annotations"]]),
                        "no object has a mask"),
    "number for a name": (edited(lambda c: c["images"][0].update(file_name=5)),
                          r"images\[0\] has file_name 5, which is not a text"),
    "list for an id": (edited(lambda c: c["images"][1].update(id=[1])), r"images\[1\] has id \[1\], which"),
    "text for a width": (edited(lambda c: c["images"][0].update(width="a")), "width .* not a positive whole number"),
    "short box": (edited(lambda c: c["annotations"][0].update(bbox=[1])), "bbox .* not a list of four numbers"),
    "text in a box": (edited(lambda c: c["annotations"][0].update(bbox=[1, 2, 3, "4"])), "bbox .* four numbers"),
    "no area": (edited(lambda c: c["annotations"][0].pop("area")), r"annotations\[0\] has no area"),
    "text for a mask": (edited(lambda c: c["annotations"][0].update(segmentation="x")), 'segmentation "x", which'),
    "text in a mask": (edited(lambda c: c["annotations"][0].update(segmentation=[["x"]])), "is not polygons"),
    "not a number": (edited(lambda c: c["annotations"][2].update(area=float("nan"))), "NaN is no number in JSON"),
    "endless box": (write_after(edited(lambda c: c["annotations"][2].update(bbox=[0, 0, 98765, 1])), "98765", "1e999"),
                    r"annotations\[2\] has bbox .* not a list of four numbers"),
    "shares for pixels": (edited(lambda c: [a.update(bbox=[0.1, 0.1, 0.5, 0.5]) for a in c["annotations"]]),
                          "boxes must be in pixels, not in shares"),
    "corners for sizes": (edited(lambda c: [a.update(bbox=[30, 30, 60, 60]) for a in c["annotations"]]),
                          r"8 of 8 boxes stick out .*; COCO's boxes are \[left, top, width, height\]"),
    "another size": (edited(lambda c: c["images"][0].update(width=65)), "has 64x64 pixels, its annotation says 65x64"),
    "no image": (lambda root: (root / "train2017" / "000000000001.jpg").write_bytes(b"no"),
                   "000000000001.jpg' cannot be read"),
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
                  "1 of 4 images .* such as 000000000002.jpg"),
    "renamed": (edited(lambda c: c["categories"][0].update(name="rod")),
                "categories of .* differ: only training has 'rod'; only validation has 'bar'"),
    "renumbered": (edited(lambda c: [c["categories"][i].update(name=name) for i, name in enumerate(("square", "bar"))]),
                   "the same names in another order of ids, 'bar' and 'square' as number 1"),
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


def test_several_faults_are_told_at_once(coco: Path) -> None:
    for harm in ("lost file", "renamed"):
        DAMAGES[harm][0](coco)
    with pytest.raises(UserError, match=r"1 of 4 images .*; the categories of"):
        check(coco)


def test_all_faults_of_both_files_are_told_at_once(coco: Path) -> None:
    def harm(content: dict[str, Any]) -> None:
        del content["annotations"][0]["area"]
        content["annotations"][2]["category_id"] = 99
        content["annotations"][3]["category_id"] = 98
        content["annotations"][4]["segmentation"] = [[1, 2, 3, 4, 5, 6, 7]]
        content["images"][0]["id"] = content["images"][1]["id"]
        content["images"][1]["width"] = "a"

    edited(harm)(coco)
    DAMAGES["no images"][0](coco)
    with pytest.raises(UserError) as caught:
        check(coco)
    for part in (
        "annotations[0] has no area", "annotation 3 has the unknown category_id 99 (and 1 more such)",
        "annotation 5 has a polygon of 7 numbers", "2 images have the id 2", 'images[1] has width "a"',
        "val2017' does not exist",
    ):
        assert part in str(caught.value)


def test_crowds_may_be_true_and_false(coco: Path) -> None:
    before = records(check(coco).train)
    edited(lambda c: [entry.update(iscrowd=False) for entry in c["annotations"]])(coco)
    assert records(check(coco).train) == before
    edited(lambda c: c["annotations"][0].update(iscrowd=True))(coco)
    assert sum(entry["iscrowd"] for record in records(check(coco).train) for entry in record["annotations"]) == 1


@pytest.mark.parametrize("name", ["two\nlines.jpg", os.fsdecode(b"caf\xe9.jpg"), "tab\t.jpg"])
def test_strange_file_names_are_read_and_told(coco: Path, name: str, tmp_path: Path) -> None:
    (coco / "val2017" / "000000000001.jpg").rename(coco / "val2017" / name)
    file = coco / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text().replace("000000000001.jpg", json.dumps(name)[1:-1]))
    data = check(coco)
    (tmp_path / "detections.json").write_text("[]")
    write_gallery(tmp_path, data.val.source, tmp_path / "detections.json", "", {})
    (coco / "val2017" / name).unlink()
    with pytest.raises(UserError, match=r"1 of 2 images .* such as ") as caught:
        check(coco)
    assert str(caught.value).isprintable()
    pair = {"images": str(coco / "val2017"), "annotations": str(file), "val_share": 0.5}
    with pytest.raises(UserError):  # and not an error of encoding
        check(locate(pair))


HUGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "box": lambda c: c["annotations"][0].update(bbox=[0, 0, 10**400, 1]),
    "area": lambda c: c["annotations"][0].update(area=10**400),
    "id": lambda c: c["annotations"][0].update(id=2**63),
    "width": lambda c: c["images"][0].update(width=10**30),
    "file_name": lambda c: c["images"][0].update(file_name="a\0/b.jpg"),
}


@pytest.mark.parametrize("key", HUGE)
def test_numbers_that_no_computer_holds_are_refused(coco: Path, key: str) -> None:
    edited(HUGE[key])(coco)
    with pytest.raises(UserError, match=r"\[0\] has .*, which is not a"):
        check(coco)


def test_records_are_what_detectron2_loads_itself(coco: Path) -> None:
    edited(lambda c: c["annotations"][0].update(segmentation={"size": [64, 64], "counts": [100, 20, 3976]}))(coco)
    split = check(coco).train
    theirs = load_coco_json(str(split.source.annotations), str(split.source.images), "records")
    MetadataCatalog.remove("records")
    ours = records(split)
    assert [record.pop(ANNOTATED) for record in ours] == [len(record["annotations"]) for record in theirs]
    assert ours == theirs


def test_lvis_files_are_read(coco: Path) -> None:
    def as_lvis(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
            image.update(neg_category_ids=[3], not_exhaustive_category_ids=[])
        for entry in content["annotations"]:
            del entry["iscrowd"]
        for category in content["categories"]:
            category.update(synonyms=[category["name"]], frequency="c")

    before = check(coco).train
    edited(as_lvis)(coco)
    for folder in (coco, coco / "train2017"):  # LVIS's validation set is in two folders of COCO
        source = replace(before.source, images=folder)
        data = check(Sources("lvis", source, source))
        assert records(data.train) == [
            {**record, "file_name": str(coco / "train2017" / Path(record["file_name"]).name)}
            for record in records(before)
        ]


PAIR = {"images": "{root}/train2017", "annotations": "{root}/annotations/instances_train2017.json"}


def filled(data: dict[str, Any], root: Path) -> dict[str, Any]:
    return {key: filled(value, root) if isinstance(value, dict) else str(value).format(root=root)
            for key, value in data.items()}


@pytest.mark.parametrize(("data", "images"), [
    ({"root": "{root}"}, (4, 2)),
    ({"root": "elsewhere", "train": PAIR, "val": {key: text.replace("train", "val") for key, text in PAIR.items()}},
     (4, 2)),
])
def test_data_is_located(coco: Path, data: dict[str, Any], images: tuple[int, int]) -> None:
    found = check(locate(filled(data, coco)))
    assert (found.train.images, found.val.images) == images


def test_one_pair_is_divided_by_the_images_names(tmp_path: Path) -> None:
    root = tiny_coco.make(tmp_path, train=40)
    found = check(locate({**filled(PAIR, root), "val_share": 0.3}))
    names = [{record["file_name"] for record in records(split)} for split in (found.train, found.val)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 40
    assert 4 <= len(names[1]) <= 20
    assert found.train.json_sha256 != found.val.json_sha256
    assert not found.warnings
    edited(lambda c: c["images"].pop(0) and c["annotations"].__delitem__(slice(0, 2)))(root)
    fewer = records(check(locate({**filled(PAIR, root), "val_share": 0.3})).val)
    assert {record["file_name"] for record in fewer} <= names[1]


@pytest.mark.parametrize(("data", "message"), [
    ({"train": PAIR}, r"data\.val\.images is not set: data\.val\.images=FOLDER and data\.val\.annotations=FILE"),
    ({"images": "photos"}, r"data\.annotations is not set"),
    ({**PAIR, "val_share": 1.5}, r"data\.val_share=1\.5 must be above 0"),
    ({**PAIR, "val_share": 1e-9}, r"val_share=1e-09 leaves no image for val"),
])
def test_incomplete_sources_are_refused(coco: Path, data: dict[str, Any], message: str) -> None:
    numbers = {key: value for key, value in data.items() if isinstance(value, float)}
    with pytest.raises(UserError, match=message):
        check(locate({**filled(data, coco), **numbers}))


def test_detectron2s_folder_of_data_sets_is_used(coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(coco.parent))
    assert locate({"root": f"datasets/{coco.name}"}).train.images == coco / "train2017"
    assert locate({"root": str(coco)}).train.images == coco / "train2017"


def test_the_demo_is_made_once(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo.parents[2])
    before = demo.stat().st_mtime_ns
    found = check(locate({"root": "demo"}))
    assert (found.train.images, found.val.images, found.warnings) == (60, 20, ())
    assert demo.stat().st_mtime_ns == before


def test_a_demo_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *rest: None if name == "skimage" else original(name, *rest))
    with pytest.raises(UserError, match="photos inside scikit-image: pip install scikit-image"):
        locate({"root": "demo"})
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "demo").mkdir(parents=True)
    (tmp_path / "data" / "demo" / "mine.txt").touch()
    with pytest.raises(UserError, match=r"could not be made: 'data/demo' exists and is not demo data") as raised:
        locate({"root": "demo"})
    assert "\n" not in str(raised.value)


def test_the_demo_needs_no_recipe() -> None:
    recipe, overrides = recipe_and_overrides(["data=demo", "seed=3"])
    assert Path(recipe).is_file()
    assert overrides == ["data=demo", "seed=3"]
    assert recipe_and_overrides(["mine.py", "data=demo"]) == ("mine.py", ["data=demo"])
    with pytest.raises(UserError, match=r"name a recipe before 'seed=3': a file such as .*mask_rcnn_r50_fpn\.py"):
        recipe_and_overrides(["seed=3", "data=elsewhere"])
