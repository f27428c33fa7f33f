"""COCO's average precision and recall, the same numbers by either of two backends."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pycocotools.mask

from d2_projects.data.annotations import Content
from d2_projects.data.masks import valid_mask
from spark.errors import UserError

Task = Literal["bbox", "segm"]
Backend = Literal["auto", "faster-coco-eval", "pycocotools"]
Detection = dict[str, Any]  # image_id, category_id (the data's), bbox [left, top, width, height], score, segmentation
THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))  # of IoU
AREAS = ("all", "small", "medium", "large")  # in pixels: below 32², from there to 96², above
MOST = (1, 10, 100)  # detections of an image that count
# What is averaged: precision or recall; over which thresholds, area and detections.
NUMBERS: dict[str, tuple[Literal["precision", "recall"], tuple[float, ...], str, int]] = {
    "AP": ("precision", THRESHOLDS, "all", 100),
    "AP50": ("precision", (0.5,), "all", 100),
    "AP75": ("precision", (0.75,), "all", 100),
    "APs": ("precision", THRESHOLDS, "small", 100),
    "APm": ("precision", THRESHOLDS, "medium", 100),
    "APl": ("precision", THRESHOLDS, "large", 100),
    "AR1": ("recall", THRESHOLDS, "all", 1),
    "AR10": ("recall", THRESHOLDS, "all", 10),
    "AR100": ("recall", THRESHOLDS, "all", 100),
    "ARs": ("recall", THRESHOLDS, "small", 100),
    "ARm": ("recall", THRESHOLDS, "medium", 100),
    "ARl": ("recall", THRESHOLDS, "large", 100),
}


@dataclass(frozen=True)
class Evaluation:
    """Precision and recall of one task. Entries are -1 where a category has no objects.

    Axes: T thresholds of IoU, R = 101 recalls, K categories by id, A areas, M most detections.
    """

    categories: tuple[str, ...]
    objects: tuple[int, ...]  # of each category, crowds aside
    precision_TRKAM: np.ndarray
    recall_TKAM: np.ndarray

    def numbers(self, category: int | None = None) -> dict[str, float]:
        """Return NUMBERS of all categories or of one (by its index), 0 to 100; nan where there are no objects."""
        return {name: self._mean(*selection, category) for name, selection in NUMBERS.items()}

    def precision(self, threshold: float) -> np.ndarray:
        """Return the precision [101 recalls, K] at one threshold of IoU; nan in categories without objects."""
        values_RK = self.precision_TRKAM[THRESHOLDS.index(threshold), :, :, 0, -1]
        return np.where(values_RK < 0, np.nan, values_RK)

    def _mean(
        self, kind: Literal["precision", "recall"], thresholds: tuple[float, ...], area: str, most: int,
        category: int | None,
    ) -> float:
        values = self.precision_TRKAM if kind == "precision" else self.recall_TKAM
        values = values[[THRESHOLDS.index(threshold) for threshold in thresholds]]
        values = values[..., AREAS.index(area), MOST.index(most)]
        values = values if category is None else values[..., category]
        defined = values[values > -1]
        return 100 * float(defined.mean()) if defined.size else float("nan")


def evaluate(truth: Content, detections: Iterable[Detection], task: Task, backend: Backend = "auto") -> Evaluation:
    """Compare detections with annotations.

    Args:
        truth: annotations in COCO's format.
        detections: in COCO's results format; those of "segm" need a run-length `segmentation`.
        task: whether boxes or masks are compared.
        backend: pycocotools is the reference; faster-coco-eval gives the same and takes a fraction of the time.
            "auto" takes the latter where it is installed.
    """
    coco_class, evaluator_class = backend_classes(backend)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        sides = []
        for content in (_objects(truth, task), _found(truth, detections, task)):
            coco = coco_class()
            coco.dataset = content
            coco.createIndex()
            sides.append(coco)
        evaluator = evaluator_class(*sides, iouType=task)
        evaluator.evaluate()
        evaluator.accumulate()
    counts = pd.Series([entry["category_id"] for entry in sides[0].dataset["annotations"] if not entry["iscrowd"]],
                       dtype=int).value_counts()
    ids = sorted(category["id"] for category in truth["categories"])
    names = {category["id"]: category["name"] for category in truth["categories"]}
    return Evaluation(
        categories=tuple(names[id_] for id_ in ids),
        objects=tuple(int(counts.get(id_, 0)) for id_ in ids),
        precision_TRKAM=np.asarray(evaluator.eval["precision"]),
        recall_TKAM=np.asarray(evaluator.eval["recall"]),
    )


def backend_classes(name: Backend) -> tuple[Any, Any]:
    """Return the backend's classes of a data set and of its evaluation; they have the same methods."""
    if name == "auto":
        name = "faster-coco-eval" if importlib.util.find_spec("faster_coco_eval") else "pycocotools"
    if name == "pycocotools":
        return _attribute("pycocotools.coco", "COCO"), _attribute("pycocotools.cocoeval", "COCOeval")
    if name == "faster-coco-eval":
        return _attribute("faster_coco_eval", "COCO"), _attribute("faster_coco_eval", "COCOeval_faster")
    raise UserError(f"backend={name}: expected auto, faster-coco-eval or pycocotools")


def _attribute(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        package = module.partition(".")[0].replace("_", "-")
        raise UserError(f"evaluation with {package} needs it installed: pip install {package}") from None


def _objects(truth: Content, task: Task) -> Content:
    """Return fresh annotations that a backend may change, numbered from 1: 0 would mean 'no match' to it."""
    entries = truth["annotations"]
    if task == "segm":
        entries = [{**entry, "segmentation": mask} for entry in entries
                   if (mask := valid_mask(entry.get("segmentation")))]
    return {
        "images": truth["images"],
        "categories": truth["categories"],
        "annotations": [
            {**{key: value for key, value in entry.items() if key != "ignore"}, "id": number,
             "iscrowd": entry.get("iscrowd", 0)}
            for number, entry in enumerate(entries, start=1)
        ],
    }


def _found(truth: Content, detections: Iterable[Detection], task: Task) -> Content:
    """Return detections as COCO's data set of results; their area is that of the box or the mask, by the task."""
    entries = []
    for number, detection in enumerate(detections, start=1):
        entry = {key: detection[key] for key in ("image_id", "category_id", "score")}
        if task == "bbox":
            area = detection["bbox"][2] * detection["bbox"][3]
            entry.update(bbox=detection["bbox"], area=area)
        else:
            mask = detection["segmentation"]
            entry.update(segmentation=mask, area=int(pycocotools.mask.area(mask)))
        entries.append({**entry, "id": number, "iscrowd": 0})
    return {"images": truth["images"], "categories": truth["categories"], "annotations": entries}
