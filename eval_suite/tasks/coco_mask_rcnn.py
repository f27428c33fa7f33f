"""Instance segmentation: Mask R-CNN on data in COCO's layout, from scratch or from an exported encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from d2_projects.compat import quiet_detectron2, require_detectron2
from eval_suite.task import Prepared, Task, Work
from spark.config.values import Place, wrong_value
from spark.errors import UserError


@dataclass(frozen=True)
class _Recipe:
    """What a study must know of a recipe that has been read."""

    protocol: str
    data: tuple[Path, ...]
    iterations: int


class CocoMaskRcnn(Task):
    """`spark-eval detect`."""

    name, version = "coco_mask_rcnn", 1  # those of the project, which needs Detectron2
    version_of_some: ClassVar[Mapping[str, int]] = {"images that Detectron2 alone reads otherwise": 2}
    purpose = "Mask R-CNN by Detectron2 on data in COCO's layout; box and mask AP"
    distributed = lazy_config = True

    def __init__(self) -> None:
        self._read: dict[tuple[Any, ...], _Recipe] = {}

    def prepare(self, work: Work) -> Prepared:
        """Read the recipe; the protocol and the seed decide.

        Recipes are programs of many files, and slow to read: runs that differ only in seed, initial weights and folder,
        none of which is in the protocol, share what was read.
        """
        if problems := list(wrong_value("init", work.init, Place)):
            raise UserError(f"{work.recipe}: {'; '.join(problems)}")
        shared = dataclasses.replace(work, seed=0, init=None, out=Path("unset"))
        key = (work.recipe, work.gpus, *shared.overrides())
        if key not in self._read:
            self._read[key] = self._read_recipe(work)
        recipe = self._read[key]
        return Prepared({"protocol": recipe.protocol, "seed": work.seed}, recipe.data, recipe.iterations, unit="step")

    def command(self, work: Work) -> list[str]:
        """Return `spark-eval detect RECIPE key=value …`."""
        return ["spark-eval", "detect", work.recipe, *work.overrides()]

    def _read_recipe(self, work: Work) -> _Recipe:
        require_detectron2()
        with quiet_detectron2():
            from d2_projects.engine.config import load
            from d2_projects.engine.initialize import backbone_of

            config, _ = load(work.recipe, work.overrides()).for_gpus(work.gpus)
            if config.project.name != self.name:
                raise UserError(f"recipe '{work.recipe}' is of the task {config.project.name}, not of {self.name}")
            backbone_of(config.cfg)  # refuses a recipe that no weights can be brought into
            return _Recipe(config.protocol_text(), _paths(config.cfg.data), config.cfg.train.max_iter)


def _paths(data: Mapping[str, Any]) -> tuple[Path, ...]:
    """Return the folders and files that tell the data of a recipe from others, whether they are there or not."""
    files = [pair.get("annotations") for pair in (data.get("train") or {}, data.get("val") or {}, data)]
    return tuple(Path(file) for file in files if file) or (Path(data["root"]),)
