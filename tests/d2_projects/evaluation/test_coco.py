"""COCO's numbers: as computed by hand, and the same by both backends; the evaluator writes what it found."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import random_coco as synthetic
import torch
from detectron2.structures import Boxes, Instances

from d2_projects.data.annotations import Source
from d2_projects.data.coco import check, registered
from d2_projects.evaluation import coco as evaluation
from d2_projects.evaluation.average_precision import evaluate
from d2_projects.evaluation.coco import CocoMetrics
from spark.errors import UserError

Task = Literal["bbox", "segm"]
BACKENDS: tuple[evaluation.Backend, ...] = ("pycocotools", "faster-coco-eval")
TASKS: tuple[Task, ...] = ("bbox", "segm")


def objects(*boxes: tuple[float, float, float, float]) -> dict[str, Any]:
    return {
        "images": [{"id": 5, "width": 320, "height": 240, "file_name": "5.jpg"}],
        "categories": [{"id": 3, "name": "thing"}],
        "annotations": [
            {"id": number, "image_id": 5, "category_id": 3, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0,
             "segmentation": synthetic.detection(5, 3, box, 1)["segmentation"]}
            for number, box in enumerate(boxes)  # from 0, which pycocotools would take for 'no match'
        ],
    }


def found(*boxes: tuple[float, tuple[float, float, float, float]]) -> list[dict[str, Any]]:
    return [synthetic.detection(5, 3, box, score) for score, box in boxes]


LEFT, RIGHT, BELOW = (10, 10, 100, 50), (200, 10, 50, 100), (10, 150, 20, 20)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("task", TASKS)
class TestByHand:
    """Small cases with a known answer."""

    def test_a_wrong_detection_between_two_right_ones(self, task: Task, backend: evaluation.Backend) -> None:
        detections = found((0.9, LEFT), (0.8, BELOW), (0.7, RIGHT))
        numbers = evaluate(objects(LEFT, RIGHT), detections, task, backend).numbers()
        # Of 101 recalls, 0 to 0.5 are reached at precision 1, the other 50 at 2/3.
        assert [numbers["AP"], numbers["AP50"]] == pytest.approx([100 * (51 + 50 * 2 / 3) / 101] * 2)
        assert (numbers["AR1"], numbers["AR10"], numbers["AR100"]) == pytest.approx((50, 100, 100))
        assert numbers["APm"] == pytest.approx(100)  # the wrong one is small, and left out there
        assert np.isnan(numbers["APs"])  # there are no small objects
        assert np.isnan(numbers["ARl"])

    def test_an_overlap_counts_up_to_its_threshold(self, task: Task, backend: evaluation.Backend) -> None:
        left, top, width, height = LEFT
        shorter = (left, top, width * 0.62, height)  # IoU 0.62 passes 3 of the 10 thresholds
        result = evaluate(objects(LEFT), found((0.9, shorter)), task, backend)
        numbers = result.numbers()
        assert (numbers["AP"], numbers["AP50"], numbers["AP75"]) == pytest.approx((30, 100, 0))
        assert result.precision(0.5).shape == (101, 1)

    def test_an_object_is_found_once(self, task: Task, backend: evaluation.Backend) -> None:
        numbers = evaluate(objects(LEFT, RIGHT), found((0.9, LEFT), (0.8, LEFT), (0.7, RIGHT)), task, backend).numbers()
        assert numbers["AP"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)

    def test_what_lies_on_a_crowd_is_not_wrong(self, task: Task, backend: evaluation.Backend) -> None:
        truth = objects(LEFT, (190, 100, 120, 120))
        truth["annotations"][1]["iscrowd"] = 1
        detections = found((0.9, (200, 110, 20, 20)), (0.8, (250, 150, 20, 20)), (0.7, LEFT))
        result = evaluate(truth, detections, task, backend)
        assert result.numbers()["AP"] == pytest.approx(100)
        assert result.objects == (1,)

    def test_nothing_found_is_zero(self, task: Task, backend: evaluation.Backend) -> None:
        numbers = evaluate(objects(LEFT), [], task, backend).numbers()
        assert (numbers["AP"], numbers["AR100"]) == (0, 0)

    def test_a_category_without_objects_does_not_count(self, task: Task, backend: evaluation.Backend) -> None:
        truth = objects(LEFT)
        truth["categories"].insert(0, {"id": 9, "name": "other"})
        result = evaluate(truth, found((0.9, LEFT)), task, backend)
        assert result.numbers()["AP"] == pytest.approx(100)
        assert result.categories == ("thing", "other")  # by id
        assert np.isnan(result.numbers(1)["AP"])
        assert np.isnan(result.precision(0.5)[:, 1]).all()


def compared(truth: dict[str, Any], detections: list[dict[str, Any]], task: Task) -> evaluation.Evaluation:
    before = copy.deepcopy((truth, detections))
    ours, reference = (evaluate(truth, detections, task, backend) for backend in reversed(BACKENDS))
    assert (truth, detections) == before
    np.testing.assert_allclose(ours.precision_TRKAM, reference.precision_TRKAM, rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.recall_TKAM, reference.recall_TKAM, rtol=0, atol=1e-6)
    assert ours.numbers() == pytest.approx(reference.numbers(), abs=1e-6, nan_ok=True)
    return ours


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("task", TASKS)
def test_backends_agree_with_crowds_and_empty_images(task: Task, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = synthetic.random_truth(rng)
    detections = [entry for entry in synthetic.jittered(truth, rng) if entry["image_id"] % 5]  # none on every fifth
    assert sum(entry["iscrowd"] for entry in truth["annotations"]) > 10
    result = compared(truth, detections, task)
    assert 5 < result.numbers()["AP"] < 95
    assert result.objects[-1] > 0
    assert result.objects[2] == 0  # id 13


def test_backends_agree_on_the_demo(demo: Path) -> None:
    truth = Source(demo / "annotations" / "instances_val2017.json", demo / "val2017").read()
    detections = synthetic.jittered(truth, np.random.default_rng(0))
    for task in TASKS:
        assert 5 < compared(truth, detections, task).numbers()["AP"] < 95


def test_more_than_100_detections_of_an_image_are_cut() -> None:
    far = [(0.9, (200 + number % 10, 200, 20, 20)) for number in range(100)]
    assert compared(objects(LEFT), found(*far, (0.1, LEFT)), "bbox").numbers()["AR100"] == 0
    assert compared(objects(LEFT), found(*far[:99], (0.1, LEFT)), "bbox").numbers()["AR100"] == 100


def test_objects_without_a_mask_count_in_boxes_alone() -> None:
    truth = objects(LEFT, RIGHT)
    truth["annotations"][1]["segmentation"] = []
    assert [compared(truth, found((0.9, LEFT)), task).objects for task in TASKS] == [(2,), (1,)]


def test_a_backend_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match="pip install faster-coco-eval"):
        evaluate(objects(LEFT), [], "bbox", "faster-coco-eval")
    with pytest.raises(UserError, match="expected auto, faster-coco-eval or pycocotools"):
        evaluate(objects(LEFT), [], "bbox", "quick")  # type: ignore[arg-type]


def test_pycocotools_stands_in_where_the_faster_one_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *rest: None if name == "faster_coco_eval" else original(name, *rest))
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert evaluate(objects(LEFT), found((0.9, LEFT)), "bbox").numbers()["AP"] == pytest.approx(100)


def as_instances(entries: list[dict[str, Any]], classes: dict[int, int]) -> Instances:
    boxes = torch.tensor([entry["bbox"] for entry in entries]).reshape(-1, 4)
    masks = torch.zeros(len(entries), 64, 64, dtype=torch.bool)
    for mask, (left, top, width, height) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:top + height, left:left + width] = True
    return Instances(
        (64, 64), pred_boxes=Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)), pred_masks=masks,
        scores=torch.linspace(1, 0.5, len(entries)),
        pred_classes=torch.tensor([classes[entry["category_id"]] for entry in entries], dtype=torch.long),
    )


def test_the_evaluator_writes_what_anybody_can_evaluate_again(coco: Path, tmp_path: Path) -> None:
    data = check(coco)
    truth, out = data.val.source.read(), tmp_path / "out"
    with registered(data) as (_, name):
        evaluator = CocoMetrics(name, str(out))
        evaluator.reset()
        for image in (2, 1):  # in any order
            entries = [entry for entry in truth["annotations"] if entry["image_id"] == image]
            if image == 2:
                entries = entries[:1]  # the bar is missed
            output = {"instances": as_instances(entries, {3: 0, 7: 1})}
            evaluator.process([{"image_id": image}], [output])
        results = evaluator.evaluate()
        assert evaluator.evaluate(img_ids=[1])["bbox"]["AP"] == pytest.approx(100)
        evaluator.reset()
        assert evaluator.evaluate()["bbox"]["AP"] == 0
        assert CocoMetrics(name, None).evaluate()["bbox"]["AP"] == 0  # and nothing is written
    assert set(results) == {"bbox", "segm"}
    assert set(results["bbox"]) == {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm",
                                    "ARl"}
    assert results["bbox"]["AP"] == pytest.approx(100 * (1 + 51 / 101) / 2)  # of squares all, of bars one of two


def test_the_files_of_an_evaluation(coco: Path, tmp_path: Path) -> None:
    data = check(coco)
    truth, out = data.val.source.read(), tmp_path / "out"
    with registered(data) as (_, name):
        evaluator = CocoMetrics(name, str(out))
        entries = [entry for entry in truth["annotations"] if entry["image_id"] == 1]
        evaluator.process([{"image_id": 1}], [{"instances": as_instances(entries, {3: 0, 7: 1})}])
        results = evaluator.evaluate()
    for task in TASKS:
        content = json.loads((out / f"detections_{task}.json").read_text())
        assert {entry["category_id"] for entry in content} == {3, 7}  # the data's ids, not the model's
        assert evaluate(truth, content, task, "pycocotools").numbers() == pytest.approx(results[task], nan_ok=True)
    table = pd.read_csv(out / "per_class_ap.csv")
    assert table["category"].tolist() == ["square", "bar"]
    assert table["objects"].tolist() == [2, 2]
    assert table["segm/AP"].mean() == pytest.approx(results["segm"]["AP"], abs=1e-3)
    assert (out / "pr_curves.png").read_bytes().startswith(b"\x89PNG")

