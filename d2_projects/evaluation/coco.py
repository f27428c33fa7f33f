"""COCO's box and mask AP, the same numbers by either of two backends, as a Detectron2 evaluator.

Numbers are COCO's: over all categories alike, at most 100 detections an image, 0 to 100. For LVIS's annotations too,
where this is the plain AP over its categories and not LVIS's federated one, which leaves out detections of categories
that nobody looked for in an image.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm

from d2_projects.evaluation.average_precision import Backend, Detection, Evaluation, Task, backend_classes, evaluate
from d2_projects.evaluation.figures import draw_precision_recall
from spark.utils.files import atomic_path, write_text

PER_CLASS = "per_class_ap.csv"
CURVES = "pr_curves.png"


class CocoMetrics(DatasetEvaluator):
    """Detectron2's evaluator of a data set that `d2_projects.data.coco.registered` knows.

    `evaluate` returns {"bbox": NUMBERS, "segm": NUMBERS} in the first process (nothing in others), and writes to
    `output_dir`: the detections of each task in COCO's results format, PER_CLASS and CURVES.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, backend: Backend = "auto") -> None:
        backend_classes(backend)  # fails before anything is computed
        self._split = MetadataCatalog.get(dataset_name).split
        self._output = None if output_dir is None else Path(output_dir)
        self._backend = backend
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self._found: dict[int, list[Detection]] = {}  # by image
        self._masks = False

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep what the model found on some images, masks as run lengths."""
        for record, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            found = instances_to_coco_json(instances, record["image_id"])
            for detection in found:
                detection["category_id"] = self._split.category_ids[detection["category_id"]]
            self._found[record["image_id"]] = found
            self._masks |= instances.has("pred_masks")

    def evaluate(self, img_ids: Collection[int] | None = None) -> dict[str, dict[str, float]]:
        """Gather the detections of all processes in the first, and evaluate them there.

        Args:
            img_ids: images to look at, as in Detectron2's COCOEvaluator; by default all.
        """
        comm.synchronize()  # some may have more to do; Detectron2's group for objects waits half an hour at most
        gathered = comm.gather((self._found, self._masks), dst=0)
        if not comm.is_main_process():
            return {}
        # Ordered by image, so that equal scores fall the same way however the images were shared out.
        by_image = {image: found for part, _ in gathered for image, found in part.items()}
        detections = [detection for image in sorted(by_image) for detection in by_image[image]]
        tasks: tuple[Task, ...] = ("bbox", "segm") if any(masks for _, masks in gathered) else ("bbox",)
        truth = self._split.source.read()
        if img_ids is not None:
            truth["images"] = [image for image in truth["images"] if image["id"] in img_ids]
            truth["annotations"] = [entry for entry in truth["annotations"] if entry["image_id"] in img_ids]
        evaluations = {task: evaluate(truth, detections, task, self._backend) for task in tasks}
        if self._output is not None:
            write_evaluation(self._output, evaluations, detections)
        return {task: evaluation.numbers() for task, evaluation in evaluations.items()}


def detections_file(task: str) -> str:
    """Return the name of the file with a task's detections."""
    return f"detections_{task}.json"


def write_evaluation(out: Path, evaluations: Mapping[Task, Evaluation], detections: list[Detection]) -> None:
    """Write the detections, so that anybody can evaluate them again, and what does not fit into a few numbers.

    There is a file of detections for each task: pycocotools takes a mask's area from its box where a box is given.
    """
    for task in evaluations:
        shape = "bbox" if task == "bbox" else "segmentation"
        results = [{key: detection[key] for key in ("image_id", "category_id", shape, "score")}
                   for detection in detections]
        write_text(out / detections_file(task), json.dumps(results))
    write_text(out / PER_CLASS, per_class(evaluations).to_csv(index=False, float_format="%.3f"))
    with atomic_path(out / CURVES) as temporary:
        temporary.write_bytes(draw_precision_recall(evaluations))


def per_class(evaluations: Mapping[Task, Evaluation]) -> pd.DataFrame:
    """Return a row for each category: its number of objects, and NUMBERS of each task."""
    first = next(iter(evaluations.values()))
    return pd.DataFrame([
        {"category": name, "objects": first.objects[index],
         **{f"{task}/{number}": value for task, evaluation in evaluations.items()
            for number, value in evaluation.numbers(index).items()}}
        for index, name in enumerate(first.categories)
    ])
