"""Instance segmentation: Mask R-CNN on data in COCO's layout, from scratch or from an exported encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2_projects.compat import quiet_detectron2, require_detectron2
from eval_suite.task import Prepared, Task, Work
from spark.errors import UserError


class CocoMaskRcnn(Task):
    """`spark-eval detect`."""

    name, version = "coco_mask_rcnn", 1  # those of the project, which needs Detectron2
    purpose = "Mask R-CNN by Detectron2 on data in COCO's layout; box and mask AP"
    distributed = lazy_config = True

    def prepare(self, work: Work) -> Prepared:
        """Read the recipe; the protocol and the seed decide."""
        require_detectron2()
        with quiet_detectron2():
            from d2_projects.engine.config import load
            from d2_projects.engine.initialize import backbone_of

            config, _ = load(work.recipe, work.overrides()).for_gpus(work.gpus)
            if config.project.name != self.name:
                raise UserError(f"recipe '{work.recipe}' is of the task {config.project.name}, not of {self.name}")
            settings = {"protocol": config.protocol_text(), "seed": config.cfg.train.seed}
            backbone_of(config.cfg)  # refuses a recipe that no weights can be brought into
            iterations = config.cfg.train.max_iter
        return Prepared(settings, _paths(config.cfg.data), iterations, unit="step")

    def command(self, work: Work) -> list[str]:
        """Return `spark-eval detect RECIPE key=value …`."""
        return ["spark-eval", "detect", work.recipe, *work.overrides()]


def _paths(data: Mapping[str, Any]) -> tuple[Path, ...]:
    """Return the folders and files that tell the data of a recipe from others, whether they are there or not."""
    files = [pair.get("annotations") for pair in (data.get("train") or {}, data.get("val") or {}, data)]
    return tuple(Path(file) for file in files if file) or (Path(data["root"]),)
