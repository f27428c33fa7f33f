"""The gallery: which detections are right, which images are shown, and what the page says of them."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_coco
from PIL import Image
from random_coco import detection

from d2_projects.data.annotations import Source
from d2_projects.data.coco import check, coco_layout
from d2_projects.evaluation.gallery import Gallery, write_gallery
from d2_projects.evaluation.matching import IGNORED, WRONG, Matches, best_score, match
from d2_projects.evaluation.outputs import write_course
from d2_projects.evaluation.visualize import Shape, draw, sheet
from d2_projects.instance_segmentation import InstanceSegmentation

SIZE = (64, 64)


def entry(box: tuple[float, ...], category: int = 1, **fields: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": category, "bbox": list(box), **fields}


@pytest.mark.parametrize(("annotations", "detections", "found"), [
    ([entry((0, 0, 10, 10))], [entry((0, 0, 10, 6), score=0.9)], [0]),
    ([entry((0, 0, 10, 10))], [entry((0, 0, 10, 4), score=0.9)], [WRONG]),
    ([entry((0, 0, 10, 10))], [entry((0, 0, 10, 10), category=2, score=0.9)], [WRONG]),
    # The surer one takes the object, although the other covers it better.
    ([entry((0, 0, 10, 10))], [entry((0, 0, 10, 10), score=0.5), entry((0, 0, 10, 8), score=0.9)], [0, WRONG]),
    # Of two objects, the one that is covered better.
    ([entry((0, 0, 10, 6)), entry((0, 0, 10, 10))], [entry((0, 0, 10, 9), score=0.5)], [1]),
    # On a crowd, the share of the detection counts, and any number of them.
    ([entry((0, 0, 60, 60), iscrowd=1)], [entry((5, 5, 4, 4), score=0.5)] * 2, [IGNORED, IGNORED]),
    ([entry((0, 0, 60, 60), iscrowd=1), entry((5, 5, 4, 4))], [entry((5, 5, 4, 4), score=0.5)], [1]),
    ([], [entry((0, 0, 10, 10), score=0.5)], [WRONG]),
    ([entry((0, 0, 10, 10))], [], []),
    ([], [], []),
])
def test_matching(annotations: list[dict[str, Any]], detections: list[dict[str, Any]], found: list[int]) -> None:
    assert match(annotations, detections, 64, 64).found_D.tolist() == found


@pytest.mark.parametrize(("width", "found"), [(14, 0), (8, WRONG)])
def test_masks_are_compared_where_there_are_any(width: int, found: int) -> None:
    box = (0, 0, 20, 20)  # both boxes are the same
    part = entry(box, segmentation=[[0, 0, width, 0, width, 20, 0, 20]])
    assert match([part], [detection(1, 1, box, 0.9, SIZE)], *SIZE).found_D.tolist() == [found]


def matches(scores: list[float], found: list[int], objects: int) -> Matches:
    return Matches(np.arange(len(scores)), np.array(scores), np.array(found, int), tuple(range(objects)))


def test_f1_by_hand() -> None:
    each = matches([0.9, 0.8, 0.3, 0.2], [0, WRONG, 1, IGNORED], objects=3)
    assert each.counts(0.0) == (2, 1, 1)
    assert each.f1(0.0) == pytest.approx(4 / 6)
    assert each.counts(0.85) == (1, 2, 0)
    assert each.f1(0.95) == 0
    assert matches([], [], objects=0).f1(0.5) == 1
    assert matches([0.9], [WRONG], objects=0).f1(0.5) == 0


@pytest.mark.parametrize(("images", "score"), [
    ([matches([0.9, 0.8, 0.3], [0, WRONG, 1], 2)], 0.3),  # F1 2/3, 1/2, 4/5
    ([matches([0.9, 0.8, 0.3], [0, WRONG, WRONG], 1)], 0.9),
    ([matches([0.9], [0], 1), matches([0.5, 0.4], [0, WRONG], 1)], 0.5),
    ([matches([0.5, 0.5, 0.5], [0, WRONG, WRONG], 1)], 0.5),  # all or none of them
    ([matches([0.9], [WRONG], 1)], 0.5),
    ([matches([], [], 1)], 0.5),
    ([], 0.5),
])
def test_the_least_score_has_the_best_f1(images: list[Matches], score: float) -> None:
    assert best_score(images) == score


@pytest.fixture
def found(tmp_path: Path) -> tuple[Source, list[dict[str, Any]]]:
    """Nine images: the first is found whole, the second not at all, of the others the square alone."""
    source = coco_layout(tiny_coco.make(tmp_path / "coco", val=9)).val
    detections = [
        detection(entry["image_id"], entry["category_id"], entry["bbox"], 0.9, SIZE)
        for entry in source.read()["annotations"]
        if entry["image_id"] == 1 or (entry["image_id"] > 2 and entry["category_id"] == 3)
    ]
    return source, [*detections, detection(2, 3, (0, 0, 5, 5), 0.95, SIZE), detection(3, 3, (0, 0, 5, 5), 0.1, SIZE)]


def test_the_best_and_the_worst_are_chosen(found: tuple[Source, list[dict[str, Any]]]) -> None:
    gallery = Gallery(*found)
    assert gallery.least_score == 0.9
    chosen = gallery.sections(most=3)
    assert chosen["Best"][0] == 1
    assert chosen["Worst"][0] == 2
    assert len(set(chosen["Random"])) == 3
    assert chosen == gallery.sections(most=3)
    assert chosen["Random"] != gallery.sections(most=3, seed=1)["Random"]
    example = gallery.example(2, side=100)
    assert (example.found, example.missed, example.wrong, example.f1) == (0, 2, 1, 0)
    assert example.truth.size == example.output.size == (100, 100)
    assert gallery.example(3, 100).wrong == 0  # that one is not sure enough
    assert gallery.example(3, 100).f1 == pytest.approx(2 / 3)


def test_the_page_carries_its_pictures(found: tuple[Source, list[dict[str, Any]]], tmp_path: Path) -> None:
    source, detections = found
    file = tmp_path / "detections_segm.json"
    file.write_text(json.dumps(detections))
    write_gallery(tmp_path, source, file, "a <small> detector", {"bbox/AP": 12.345})
    page = (tmp_path / "detections.html").read_text()
    assert "a &lt;small&gt; detector" in page
    assert "<dt>bbox/AP</dt><dd>12.3</dd>" in page
    assert "at least 0.90" in page
    assert re.findall(r"<h2>(\w+)</h2>", page) == ["Best", "Worst", "Random"]
    images = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    assert len(images) == page.count("<img") == 3 * 6 * 2
    assert Image.open(io.BytesIO(base64.b64decode(images[0]))).size == (480, 480)
    assert "F1 1.00</b> · 2 found, 0 missed,\n0 wrong · 000000000001.jpg" in page
    assert "F1 0.00</b> · 0 found, 2 missed,\n1 wrong · 000000000002.jpg" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "prefers-color-scheme: dark" in page
    assert Image.open(tmp_path / "detections.png").width > 4 * 256
    assert {"detections.html", "detections.png", "detections_segm.json"} <= set(InstanceSegmentation.outputs)


def test_boxes_alone_are_shown_too(found: tuple[Source, list[dict[str, Any]]], tmp_path: Path) -> None:
    source, detections = found
    boxes = [{key: value for key, value in entry.items() if key != "segmentation"} for entry in detections]
    (tmp_path / "detections_bbox.json").write_text(json.dumps(boxes))
    write_gallery(tmp_path, source, tmp_path / "detections_bbox.json", "boxes", {})
    assert "F1 1.00</b> · 2 found" in (tmp_path / "detections.html").read_text()


def test_no_detections_no_gallery(coco: Path, tmp_path: Path) -> None:
    project, data = InstanceSegmentation(), check(coco)
    project.draw(tmp_path, data, "", {})
    assert not (tmp_path / "detections.html").exists()
    assert not (tmp_path / "curves.png").exists()
    (tmp_path / "detections_bbox.json").write_text("[]")  # a detector that found nothing
    project.draw(tmp_path, data, "", {})
    assert "0 found, 2 missed" in (tmp_path / "detections.html").read_text()


def test_the_course_of_a_run_is_drawn(tmp_path: Path) -> None:
    log = [{"step": step, "loss": 3 / step, "loss_cls": 1 / step, "lr": 1e-3} for step in range(1, 9)]
    log[-1]["bbox/AP"] = 1.0
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    write_course(tmp_path, {"AP": ("bbox/AP", "segm/AP")})
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_mask_is_tinted_where_it_is() -> None:
    mask = np.zeros((20, 40), np.uint8)
    mask[5:15, 10:30] = 1
    drawn = draw(Image.new("RGB", (40, 20)), [Shape((10, 5, 30, 15), mask, "", 0, False)], side=400)
    pixels = np.asarray(drawn).astype(int)
    assert drawn.size == (400, 200)
    assert (pixels[100, 200] > (60, 40, -1)).all()
    assert not pixels[20, 200].any()


@pytest.mark.parametrize(("dashed", "share"), [(False, 1), (True, 0.5)])
def test_what_is_not_matched_is_dashed(dashed: bool, share: float) -> None:
    drawn = draw(Image.new("RGB", (40, 20)), [Shape((10, 5, 30, 15), None, "", 0, dashed)], side=400)
    for lines in (np.asarray(drawn)[145:155, 100:300], np.asarray(drawn)[50:150, 295:305].swapaxes(0, 1)):
        assert (lines == (255, 196, 0)).all(-1).any(0).mean() == pytest.approx(share, abs=0.12)


def test_a_box_that_sticks_out_is_cut() -> None:
    shapes = [Shape((-5, -5, 500, 8), None, "far", 1, True), Shape((90, 90, 95, 95), None, "away", 1, False)]
    assert np.asarray(draw(Image.new("RGB", (20, 20)), shapes, side=20)).any()


def test_a_sheet_has_two_pairs_to_a_line() -> None:
    pair = (Image.new("RGB", (30, 20)),) * 2
    assert sheet([pair], 30).height < sheet([pair] * 3, 30).height == sheet([pair] * 4, 30).height


def test_a_label_is_no_formula() -> None:
    drawn = draw(Image.new("RGB", (40, 20)), [Shape((10, 5, 30, 15), None, r"$\undefined{ 5$", 0, False)], side=400)
    assert (np.asarray(drawn) == 255).all(-1).any()
