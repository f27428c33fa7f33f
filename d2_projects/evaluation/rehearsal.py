"""The whole way of an evaluation in seconds, before hours of training: data set, model, evaluator fit together."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.evaluation import inference_context
from detectron2.structures import Instances
from omegaconf import DictConfig, OmegaConf
from torch import nn

from d2_projects.data.coco import ANNOTATED
from spark.errors import UserError
from spark.utils.distributed import Ranks

IMAGES = 2  # of each process
MOST_OBJECTS = 100  # of an image, that COCO's metrics look at
LEAST_AP = 50  # of annotations taken for detections, if all are: it should be 100


def rehearse_evaluation(cfg: DictConfig, model: nn.Module, ranks: Ranks) -> None:
    """Evaluate two validation images: the model on them, then their annotations as if they had been detected.

    Args:
        cfg: the recipe, pointing at a registered data set.
        model: in any state of training; it is left as it is.
        ranks: the processes; all of them must call this.

    Raises:
        UserError: something fails, or the evaluator does not recognize the annotations.
    """
    check_classes(cfg)
    try:
        found, best = _rehearse(cfg, model, ranks)
    except UserError:
        raise
    except Exception as error:  # whatever it is, it would happen after hours, too
        raise UserError(f"evaluating two validation images fails with {type(error).__name__}: {error}") from error
    if ranks.is_main and not found >= LEAST_AP * best:
        raise UserError(f"the evaluator gives the annotations themselves a bbox AP of {found:.1f} instead of 100: "
                        "its data set is not that of dataloader.test, or its category ids are others")


def check_classes(cfg: DictConfig) -> None:
    """Make sure that the model has as many classes as the data set.

    Raises:
        UserError: it has not.
    """
    has = OmegaConf.select(cfg, "model.roi_heads.num_classes")
    for split in ("train", "test"):
        name = cfg.dataloader[split].dataset.names
        classes = MetadataCatalog.get(name).thing_classes
        if has is not None and has != len(classes):
            raise UserError(f"model.roi_heads.num_classes={has}, but '{name}' has {len(classes)} categories")


def _rehearse(cfg: DictConfig, model: nn.Module, ranks: Ranks) -> tuple[float, float]:
    """Return the bounding-box AP (0-100) of annotations taken for detections, and the share of objects that are so.

    The former is known in the first process only. Of the latter lack those that have no mask, which Detectron2 does
    not load, and those beyond MOST_OBJECTS.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its tables
        mapper = instantiate(cfg.dataloader.test.mapper)
        evaluator = instantiate({**cfg.dataloader.evaluator, "output_dir": None})
        records = [record for record in instantiate(cfg.dataloader.test.dataset) if objects(record)]
        records = records[: IMAGES * ranks.size]
        mine, images = records[ranks.rank :: ranks.size], [record["image_id"] for record in records]
        evaluator.reset()
        with inference_context(model), torch.no_grad():
            for record in mine:
                inputs = [mapper(record)]
                evaluator.process(inputs, model(inputs))
        evaluator.evaluate(img_ids=images)
        evaluator.reset()
        for record in mine:
            evaluator.process([record], [{"instances": as_detected(record)}])
        results = evaluator.evaluate(img_ids=images)
    shown = sum(min(len(objects(record)), MOST_OBJECTS) for record in records)
    best = shown / max(1, sum(record.get(ANNOTATED, len(objects(record))) for record in records))
    return (float(results["bbox"]["AP"]) if ranks.is_main else 0.0), best


def objects(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the annotations of an image that are to be detected."""
    return [annotation for annotation in record["annotations"] if not annotation.get("iscrowd")]


def as_detected(record: dict[str, Any]) -> Instances:
    """Return an image's annotations as a detector's output that could not be better."""
    size = record["height"], record["width"]
    annotated = annotations_to_instances(objects(record), size, mask_format="bitmask")
    return Instances(
        size, pred_boxes=annotated.gt_boxes, pred_classes=annotated.gt_classes,
        pred_masks=annotated.gt_masks.tensor, scores=torch.ones(len(annotated)),
    )
