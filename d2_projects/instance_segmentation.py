"""Instance segmentation on data in COCO's layout: boxes, and masks where there are any."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from detectron2.data import DatasetMapper
from omegaconf import DictConfig
from torch import nn

from d2_projects.data.coco import CocoData, DataOptions, check, locate, registered
from d2_projects.data.pictures import PictureMapper
from d2_projects.evaluation import coco, gallery
from d2_projects.evaluation.outputs import COURSE, write_course
from d2_projects.evaluation.rehearsal import rehearse_evaluation
from d2_projects.evaluation.tta import augmented_detector, original_images
from d2_projects.options import called
from d2_projects.project import Names, Project
from spark.errors import UserError
from spark.utils.distributed import Ranks

CLASSES = "model.roi_heads.num_classes"
DETECTIONS = tuple(map(coco.detections_file, ("segm", "bbox")))  # the gallery shows masks where there are any
HEADLINE = ("/AP", "/AP50", "/AP75")
DECODED = 2  # version for data with images that Detectron2's own reader, of version 1, shows otherwise


class InstanceSegmentation(Project[CocoData]):
    """Mask R-CNN and its kin, measured by COCO's AP."""

    name, version = "coco_mask_rcnn", 1
    title = "detect"
    main_metric, unit = "bbox/AP", "AP (0-100)"
    results = ("bbox/", "segm/")
    outputs = (*DETECTIONS, coco.PER_CLASS, coco.CURVES, gallery.PAGE, gallery.SHEET, COURSE)
    data_options = DataOptions

    def check(self, data: Mapping[str, Any]) -> CocoData:
        """Read both annotation files and find what is wrong with them."""
        return check(locate(data))

    def version_for(self, data: CocoData) -> int:
        """Return DECODED where Detectron2's own reader would lead to other numbers."""
        return DECODED if data.read_otherwise else self.version

    def registered(self, data: CocoData) -> AbstractContextManager[Names]:
        """Register both splits."""
        return registered(data)

    def point_at(self, cfg: DictConfig, data: CocoData, names: Names) -> None:
        """Set the loaders' data sets, their reader (if it is Detectron2's), the classes and the form of masks."""
        cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names = names
        for loader in (cfg.dataloader.train, cfg.dataloader.test):
            if called(loader.mapper) is DatasetMapper:
                loader.mapper["_target_"] = PictureMapper
        cfg.model.roi_heads.num_classes = len(data.train.categories)
        if data.train.run_length:
            cfg.dataloader.train.mapper.instance_mask_format = "bitmask"

    def check_settings(self, cfg: DictConfig, by_hand: Collection[str], data: CocoData) -> None:
        """A number of classes that was set by hand must be the data's."""
        classes, categories = cfg.model.roi_heads.num_classes, len(data.train.categories)
        if CLASSES in by_hand and classes != categories:
            raise UserError(f"{CLASSES}={classes}, but '{data.name}' has {categories} categories; leave it out, and it "
                            "follows the data")

    def rehearse(self, cfg: DictConfig, model: nn.Module, ranks: Ranks) -> None:
        """Evaluate two validation images: the model on them, then their annotations as if they had been detected."""
        rehearse_evaluation(cfg, model, ranks)

    def with_tta(self, cfg: DictConfig, model: nn.Module) -> tuple[DictConfig, nn.Module]:
        """Detect at several scales and mirrored, and merge what is found."""
        return original_images(cfg.dataloader.test), augmented_detector(model, cfg)

    def known(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return what is known, such as "bbox/AP", "segm/APs" or "tta/bbox/AP50".

        COCO's code calls a number undefined (nan) where there are no objects of a size, which is left out; and also
        the AP of a detector that finds nothing. The data was checked to have objects, so that is 0: all were missed.
        """
        return {name: 0.0 if math.isnan(value) else value for name, value in metrics.items()
                if not math.isnan(value) or name.endswith(HEADLINE)}

    def headline(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return AP at all thresholds of IoU, at 0.5 and at 0.75."""
        return {name: value for name, value in metrics.items() if name.endswith(HEADLINE)}

    def draw(self, out: Path, data: CocoData, title: str, numbers: Mapping[str, float]) -> None:
        """Draw detections beside annotations; a recipe's own evaluator may have left none."""
        written = [out / name for name in DETECTIONS if (out / name).is_file()]
        if written:
            gallery.write_gallery(out, data.val.source, written[0], title, numbers)
        write_course(out, {"AP": ("bbox/AP", "segm/AP")})
