"""Masks that cannot be read are refused before pycocotools sees them; masks that lie elsewhere are noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import tiny_coco
from PIL import Image

from d2_projects.data.coco import check
from d2_projects.data.masks import extents, run_lengths
from d2_projects.evaluation.gallery import Gallery
from spark.errors import UserError

HEIGHT, WIDTH = 48, 64


@pytest.fixture
def oblong(tmp_path: Path) -> Path:
    """A data set whose images are wider than high."""
    root = tiny_coco.make(tmp_path / "coco")
    for split in ("train2017", "val2017"):
        content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
        for image in content["images"]:
            image.update(height=HEIGHT)
            color = "white" if split == "train2017" else "black"
            Image.new("RGB", (WIDTH, HEIGHT), color).save(root / split / image["file_name"])
        for number, entry in enumerate(content["annotations"]):
            left, top, right, bottom = 30 + number, 5, 60, 20
            entry.update(bbox=[left, top, right - left, bottom - top],
                         segmentation=[[left, top, right, top, right, bottom, left, bottom]])
        tiny_coco.write_annotations(root, split, content)
    return root


Change = Callable[[dict[str, Any]], Any]


def edit(root: Path, change: Change, only: int | None = None, split: str = "train2017") -> None:
    file = root / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    for entry in content["annotations"]:
        if only in (None, entry["id"]):
            change(entry)
    file.write_text(json.dumps(content))


def scaled(x: float, y: float) -> Callable[[dict[str, Any]], None]:
    def change(entry: dict[str, Any]) -> None:
        entry["segmentation"] = [[value * (y if place % 2 else x) for place, value in enumerate(polygon)]
                                 for polygon in entry["segmentation"]]

    return change


def swap(entry: dict[str, Any]) -> None:
    entry["segmentation"] = [np.array(polygon).reshape(-1, 2)[:, ::-1].ravel().tolist()
                             for polygon in entry["segmentation"]]


def shift(entry: dict[str, Any]) -> None:
    entry["segmentation"] = [[value + 100 for value in polygon] for polygon in entry["segmentation"]]


ELSEWHERE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "shares": (scaled(1 / WIDTH, 1 / HEIGHT), "in shares of the image"),
    "shares of one side": (scaled(1 / HEIGHT, 1 / HEIGHT), "in shares of the image"),
    "swapped": (swap, "only if x and y are swapped"),
    "outside": (shift, "wholly outside their image"),
    "of a larger image": (scaled(2, 2), "stick out of their image"),
}


@pytest.mark.parametrize("split", ["train2017", "val2017"])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_masks_that_lie_elsewhere(oblong: Path, name: str, split: str) -> None:
    change, message = ELSEWHERE[name]
    edit(oblong, change, only=2 if split == "train2017" else None, split=split)
    if split == "train2017":
        (warning,) = check(oblong).warnings
        assert "1 of 8 masks" in warning
        assert message in warning
        assert "such as annotation 2 with the box" in warning
    else:
        with pytest.raises(UserError, match=message) as caught:
            check(oblong)
        assert "polygons must be" in str(caught.value)


def test_masks_far_from_their_boxes(oblong: Path) -> None:
    edit(oblong, scaled(0.1, 0.3))
    with pytest.raises(UserError, match="8 of 8 masks do not lie in their boxes"):
        check(oblong)


def test_sound_masks_are_silent(oblong: Path) -> None:
    assert not check(oblong).warnings
    for split in ("train2017", "val2017"):
        edit(oblong, lambda entry: entry.update(segmentation=encoded(entry["segmentation"])), split=split)
    assert not check(oblong).warnings
    edit(oblong, lambda entry: entry["segmentation"].update(counts=run_lengths(entry["segmentation"]["counts"])))
    assert not check(oblong).warnings


def encoded(polygons: list[list[float]]) -> dict[str, Any]:
    mask = pycocotools.mask.merge(pycocotools.mask.frPyObjects(polygons, HEIGHT, WIDTH))
    return {"size": mask["size"], "counts": mask["counts"].decode()}


def lengths(counts: Any, size: list[Any] | None = None) -> dict[str, Any]:
    return {"size": size or [HEIGHT, WIDTH], "counts": counts}


PIXELS = HEIGHT * WIDTH
UNREADABLE: dict[str, tuple[Any, str]] = {
    "swapped size": (lengths([PIXELS], [WIDTH, HEIGHT]), "a mask of 48x64 pixels on an image of 64x48"),
    "no area": (lengths([0], [0, 0]), "is not polygons or a run-length encoding"),
    "too few": (lengths([10, 5]), "do not add up to the 3,072 pixels"),
    "too many": (lengths([10**12, 5]), "do not add up"),
    "endless": (lengths([10**400]), "do not add up"),
    "negative": (lengths([-1, PIXELS + 1]), "do not add up"),
    "a fraction": (lengths([1.5, 2]), "is not polygons or a run-length encoding"),
    "another sum": (lengths("52203"), "do not add up"),
    "torn": (lengths("oooooo"), "are not in COCO's code"),
    "long": (lengths("o" * 40 + "0"), "are not in COCO's code"),
    "nothing": (lengths(""), "are not in COCO's code"),
    "umlauts": (lengths("äöü"), "are not in COCO's code"),
    "below": (lengths("!!!"), "are not in COCO's code"),
    "odd": ([[1, 2, 3, 4, 5, 6, 7]], "a polygon of 7 numbers"),
    "endless point": ([[1, 2, 3, 4, 5, 10**400]], "not finite numbers"),
    "text": ([[1, 2, 3, 4, 5, "6"]], "not finite numbers"),
    "flat list": ([1, 2, 3, 4, 5, 6], "is not polygons"),
}


@pytest.mark.parametrize("crowd", [0, 1])
@pytest.mark.parametrize("split", ["train2017", "val2017"])
@pytest.mark.parametrize("name", UNREADABLE)
def test_masks_that_cannot_be_read_name_their_annotation(oblong: Path, name: str, split: str, crowd: int) -> None:
    mask, message = UNREADABLE[name]
    edit(oblong, lambda entry: entry.update(segmentation=mask, iscrowd=crowd), only=3, split=split)
    with pytest.raises(UserError, match=message) as caught:
        check(oblong)
    assert "annotation 3 has " in str(caught.value)


def test_pycocotools_code_is_read(oblong: Path) -> None:
    generator = np.random.default_rng(0)
    for density in (0, 0.01, 0.5, 0.99, 1):
        mask = (generator.random((300, 200)) < density).astype(np.uint8)
        code = pycocotools.mask.encode(np.asfortranarray(mask))
        counts = run_lengths(code["counts"].decode())
        assert counts is not None
        assert sum(counts) == mask.size
        assert sum(counts[1::2]) == mask.sum()
        assert pycocotools.mask.frPyObjects({"size": [300, 200], "counts": counts}, 300, 200) == code


def test_extents() -> None:
    polygon = [1.5, 2, 8, 2, 8, 9]
    found = extents([[polygon, [3, 3, 12, 3, 12, 4]], None, [[1, 1, 2, 2]], encoded([[4, 5, 10, 5, 10, 9, 4, 9]]),
                     lengths([PIXELS]), [polygon]])
    np.testing.assert_allclose(found[[0, 3, 5]], [[1.5, 2, 12, 9], [4, 5, 10, 9], [1.5, 2, 8, 9]])
    assert np.isnan(found[[1, 2, 4]]).all()


def test_short_polygons_are_left_out_everywhere(oblong: Path) -> None:
    for split in ("train2017", "val2017"):
        edit(oblong, lambda entry: entry["segmentation"].insert(0, [1, 2, 3, 4]), only=1, split=split)
    data = check(oblong)
    assert [warning.partition(": ")[2] for warning in data.warnings] == [
        f"1 of {count} masks have a polygon of fewer than three points, which is left out, such as annotation 1 with "
        "the box [30, 5, 30, 15]" for count in (8, 4)]
    assert Gallery(data.val.source, []).example(1, 64).missed == 2
