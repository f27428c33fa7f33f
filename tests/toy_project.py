"""A project that has nothing of detection: how bright is an image? No boxes, no classes, and metrics of other names."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from d2_projects.evaluation.outputs import COURSE, write_course
from d2_projects.project import Names, Project
from spark.errors import UserError
from spark.utils.distributed import Ranks
from spark.utils.files import write_text

SIDE = 32
RECIPE = '''
import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper, build_detection_test_loader, build_detection_train_loader
from detectron2.data import get_detection_dataset_dicts
from omegaconf import OmegaConf

from d2_projects.solver.schedule import steps
from toy_project import Brightness, BrightnessModel, Correct

project = L(Brightness)(tolerance=0.3)
data = OmegaConf.create({"shades": "nowhere"})
train = OmegaConf.create({"device": "cpu", "max_iter": 2, "eval_period": 1, "log_period": 1, "smoke": True})
_backbone = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model.backbone.bottom_up
model = L(BrightnessModel)(backbone=_backbone, levels=4)
model.backbone.stages.depth = 18
del model.backbone.stages.stride_in_1x1
model.backbone.stem.norm = model.backbone.stages.norm = "BN"
model.backbone.freeze_at = 0
_dataset = L(get_detection_dataset_dicts)(names="", filter_empty=False)
_mapper = L(DatasetMapper)(is_train=True, augmentations=[L(T.RandomFlip)()], image_format="RGB")
dataloader = OmegaConf.create({
    "train": L(build_detection_train_loader)(dataset=_dataset, mapper=_mapper, total_batch_size=2, num_workers=0),
    "test": L(build_detection_test_loader)(
        dataset=_dataset, mapper={**_mapper, "is_train": False, "augmentations": []}, num_workers=0),
    "evaluator": L(Correct)(tolerance="${project.tolerance}"),
}, flags={"allow_objects": True})
optimizer = model_zoo.get_config("common/optim.py").SGD
lr_multiplier = steps(train.max_iter, milestones=[1], gamma=0.1, warmup=0, warmup_factor=1.0)
'''


@dataclass
class Options:
    """Where the shades are."""

    shades: str = ""


@dataclass(frozen=True)
class Shades:
    """A folder of images that are called by their brightness; all are for training and for validation."""

    name: str
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ("shades are gray",)
    warnings: tuple[str, ...] = ()
    val_sha256: str = "of the shades"

    @property
    def summary(self) -> str:
        return f"{self.train_images} shades"

    @property
    def train_images(self) -> int:
        return len(self.files)

    @property
    def protocol(self) -> dict[str, Any]:
        return {"shades": [file.name for file in self.files]}


def make(folder: Path, count: int = 4) -> Path:
    """Write `count` images from black to white."""
    folder.mkdir()
    for value in np.linspace(0, 1, count):
        Image.new("RGB", (SIDE, SIDE), (round(255 * value),) * 3).save(folder / f"{value:.2f}.png")
    return folder


class Brightness(Project[Shades]):
    """Right is whoever is within a tolerance."""

    name, version = "toy_brightness", 3
    title = "shades"
    main_metric, unit = "shade/correct", "%"
    results = ("shade/",)
    outputs = ("found.txt", COURSE)
    data_options = Options

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance

    def check(self, data: Mapping[str, Any]) -> Shades:
        folder = Path(data["shades"])
        if not folder.is_dir():
            raise UserError(f"no shades in '{folder}'")
        return Shades(folder.name, tuple(sorted(folder.iterdir())))

    @contextmanager
    def registered(self, data: Shades) -> Iterator[Names]:
        records = [{"file_name": str(file), "image_id": number, "width": SIDE, "height": SIDE,
                    "shade": float(file.stem)} for number, file in enumerate(data.files)]
        DatasetCatalog.register("shades", lambda: records)
        try:
            yield "shades", "shades"
        finally:
            DatasetCatalog.remove("shades")

    def point_at(self, cfg: DictConfig, data: Shades, names: Names) -> None:
        cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names = names

    def check_settings(self, cfg: DictConfig, by_hand: Collection[str], data: Shades) -> None:
        if "model.levels" in by_hand and cfg.model.levels != len(data.files):
            raise UserError(f"model.levels={cfg.model.levels}, but there are {len(data.files)} shades")

    def rehearse(self, cfg: DictConfig, model: nn.Module, ranks: Ranks) -> None:
        evaluator = Correct(self.tolerance)
        evaluator.process([{"shade": 0.5}], [{"shade": 0.5}])
        if evaluator.evaluate()["shade"]["correct"] != 100:
            raise UserError("the evaluator does not know the truth")

    def with_tta(self, cfg: DictConfig, model: nn.Module) -> tuple[DictConfig, nn.Module]:
        return cfg.dataloader.test, Mirrored(model)

    def known(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if not math.isnan(value)}

    def headline(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return {self.main_metric: metrics[self.main_metric]}

    def draw(self, out: Path, data: Shades, title: str, numbers: Mapping[str, float]) -> None:
        write_text(out / "found.txt", f"{title}: {dict(numbers)}")
        write_course(out, {"% correct": (self.main_metric,)})


class BrightnessModel(nn.Module):
    """A backbone and one number."""

    def __init__(self, backbone: nn.Module, levels: int) -> None:
        super().__init__()
        self.backbone, self.levels = backbone, levels
        self.head = nn.LazyLinear(1)
        self(self._batch(torch.zeros(3, SIDE, SIDE)))

    @staticmethod
    def _batch(image: Tensor) -> list[dict[str, Any]]:
        return [{"image": image, "shade": 0.0}] * 2

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        device = next(self.backbone.parameters()).device
        images = torch.stack([record["image"] for record in batch]).to(device) / 255
        shades = self.head(next(reversed(self.backbone(images).values())).mean((2, 3)))[:, 0]
        if self.training:
            truth = torch.tensor([record["shade"] for record in batch], device=device)
            return {"loss_shade": (shades - truth).square().mean()}
        return [{"shade": float(shade)} for shade in shades]


class Mirrored(nn.Module):
    """The mean of an image and its mirror image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        mirrored = [{**record, "image": record["image"].flip(-1)} for record in batch]
        pairs = zip(self.model(batch), self.model(mirrored), strict=True)
        return [{"shade": (a["shade"] + b["shade"]) / 2} for a, b in pairs]


class Correct(DatasetEvaluator):
    """The share of images whose brightness is found; and a number that is never defined."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self.reset()

    def reset(self) -> None:
        self._right: list[bool] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        self._right += [abs(record["shade"] - found["shade"]) <= self._tolerance
                        for record, found in zip(inputs, outputs, strict=True)]

    def evaluate(self) -> dict[str, dict[str, float]]:
        return {"shade": {"correct": 100 * float(np.mean(self._right)), "undefined": math.nan}}
