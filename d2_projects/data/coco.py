"""A data set in COCO's or LVIS's format: where it is, whether it is sound, and how Detectron2 gets to know it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from d2_projects.data.annotations import VAL_SHARE, Content, Source, check_keys, garbage_uncollected
from d2_projects.data.demo import DEMO, demo_detection
from d2_projects.data.lint import lint, lint_pair
from d2_projects.data.masks import compressed, valid_mask
from spark.config.values import Name, Part, Place
from spark.errors import UserError
from spark.utils.files import sha256
from spark.utils.printable import counted

SPLITS = ("train2017", "val2017")
ANNOTATED = "annotated"  # of a record: how many objects its image has, those without a mask included


@dataclass
class Pair:
    """Annotations and the folder of their images."""

    images: Name = ""
    annotations: Name = ""


@dataclass
class DataOptions(Pair):
    """A recipe's `data`: where it is; `locate` says which of these counts."""

    root: Place = "datasets/coco"  # a folder in COCO's layout, or "demo"
    val_share: Part = VAL_SHARE  # of the images, when `images` and `annotations` are for both
    train: Pair = field(default_factory=Pair)
    val: Pair = field(default_factory=Pair)


@dataclass(frozen=True)
class Sources:
    """The two halves of a data set, and what to call it."""

    name: str
    train: Source
    val: Source


@dataclass(frozen=True)
class CocoSplit:
    """One checked annotation file and its folder of images."""

    source: Source
    categories: tuple[str, ...]  # ordered by id
    category_ids: tuple[int, ...]
    images: int
    run_length: bool  # some mask is run-length encoded, which needs the mapper's bitmask format
    json_sha256: str  # of the file; and which part of it


@dataclass(frozen=True)
class CocoData:
    """The two splits of a data set; their categories agree."""

    name: str
    train: CocoSplit
    val: CocoSplit
    warnings: tuple[str, ...]  # what looks wrong, though training can do with it
    notes: tuple[str, ...]  # what is worth knowing
    read_otherwise: bool = False  # some images are shown otherwise by Detectron2's own reader

    @property
    def summary(self) -> str:
        """Its size in a line."""
        return (f"{self.train_images} training and {counted(self.val.images, 'validation image')}, "
                f"{counted(len(self.train.categories), 'category', 'categories')}")

    @property
    def train_images(self) -> int:
        """The length of an epoch."""
        return self.train.images

    @property
    def val_sha256(self) -> str:
        """The content of what is evaluated on."""
        return self.val.json_sha256

    @property
    def protocol(self) -> dict[str, Any]:
        """What two data sets must share for numbers to be comparable."""
        return {
            "train_images": self.train.images, "val_images": self.val.images, "categories": len(self.val.categories),
            "train_sha256": self.train.json_sha256, "val_sha256": self.val.json_sha256,
        }


def locate(data: Mapping[str, Any]) -> Sources:
    """Return where the data of a recipe's `data` node is.

    That is, the first of these which is set: `train` and `val` with `images` and `annotations` each; `images` and
    `annotations` alone, of which the share `val_share` is for validation; `root`, a folder in COCO's layout or "demo".
    As in Detectron2, a root "datasets/…" is below $DETECTRON2_DATASETS where that is set.

    Raises:
        UserError: one of the paths that belong together is not set; the demo cannot be made.
    """
    pairs = {f"data.{split}": data.get(split) or {} for split in ("train", "val")}
    if any(pair.get(key) for pair in pairs.values() for key in ("images", "annotations")):
        train, val = (_pair(where, pair) for where, pair in pairs.items())
        return Sources(f"{train.annotations} and {val.annotations}", train, val)
    if data.get("images") or data.get("annotations"):
        whole, share = _pair("data", data), data.get("val_share", VAL_SHARE)
        if not 0 < share < 1:
            raise UserError(f"data.val_share={share} must be above 0 and below 1")
        parts = (Source(whole.annotations, whole.images, part, share) for part in ("train", "val"))
        return Sources(str(whole.annotations), *parts)
    root = str(data["root"])
    datasets = os.environ.get("DETECTRON2_DATASETS")
    if datasets and root.startswith("datasets/"):
        root = os.path.join(datasets, root.removeprefix("datasets/"))
    return coco_layout(demo_detection() if root == DEMO else Path(root))


def coco_layout(root: Path) -> Sources:
    """Return the files of a folder with `train2017/`, `val2017/` and `annotations/instances_*.json`.

    Raises:
        UserError: there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"data folder '{root}' does not exist: pass data.root=FOLDER with {', '.join(SPLITS)} and "
                        "annotations in COCO's layout, or data=demo, or data.train.images, data.train.annotations, "
                        "data.val.images and data.val.annotations")
    return Sources(str(root), *(Source(root / "annotations" / f"instances_{split}.json", root / split)
                                for split in SPLITS))


@garbage_uncollected()
def check(data: Sources | Path) -> CocoData:
    """Read both annotation files, find what is wrong with them, and return what training must know.

    Args:
        data: where the data is; a folder is one in COCO's layout.

    Raises:
        UserError: one message with everything that is missing, is not COCO's format, or cannot be trained on.
    """
    sources = coco_layout(data) if isinstance(data, Path) else data
    halves, errors = [], []
    for source in (sources.train, sources.val):
        content, problems = _read(source)
        errors.extend(problems)
        if content:
            halves.append((source, content))
    findings = [lint(source, content) for source, content in halves]
    if len(halves) == 2:
        findings.append(lint_pair(*halves))
    errors.extend(error for finding in findings for error in finding.errors)
    if errors:
        raise UserError("; ".join(errors))
    train, val = (_describe(source, content) for source, content in halves)
    return CocoData(
        sources.name,
        train,
        val,
        tuple(warning for finding in findings for warning in finding.warnings),
        tuple(note for finding in findings for note in finding.notes),
        any(finding.read_otherwise for finding in findings),
    )


@contextmanager
def registered(data: CocoData) -> Iterator[tuple[str, str]]:
    """Register both splits with Detectron2 while the body runs; yield their names."""
    names = (f"{data.name}:train", f"{data.name}:val")
    try:
        for name, split in zip(names, (data.train, data.val), strict=True):
            _forget(name)
            DatasetCatalog.register(name, lambda split=split: records(split))
            MetadataCatalog.get(name).set(
                split=split,
                json_file=str(split.source.annotations),
                image_root=str(split.source.images),
                evaluator_type="coco",
                thing_classes=list(split.categories),
                thing_dataset_id_to_contiguous_id={id_: index for index, id_ in enumerate(split.category_ids)},
            )
        yield names
    finally:
        for name in names:
            _forget(name)


@garbage_uncollected()
def records(split: CocoSplit) -> list[dict[str, Any]]:
    """Return the images and their objects as Detectron2 wants them; objects without a mask are left out."""
    content = split.source.read()
    classes = {id_: index for index, id_ in enumerate(split.category_ids)}
    images = {
        image["id"]: {
            "file_name": str(split.source.images / image["file_name"]),
            "image_id": image["id"], "height": image["height"], "width": image["width"], "annotations": [],
            ANNOTATED: 0,
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    }
    for entry in content["annotations"]:
        images[entry["image_id"]][ANNOTATED] += not entry["iscrowd"]
        mask = valid_mask(entry.get("segmentation"))
        if mask:
            images[entry["image_id"]]["annotations"].append({
                "bbox": entry["bbox"], "bbox_mode": BoxMode.XYWH_ABS, "category_id": classes[entry["category_id"]],
                "iscrowd": entry["iscrowd"], "segmentation": compressed(mask),
            })
    return list(images.values())


def _forget(name: str) -> None:
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)


def _pair(where: str, pair: Mapping[str, Any]) -> Source:
    for key in ("images", "annotations"):
        if not pair.get(key):
            raise UserError(f"{where}.{key} is not set: {where}.images=FOLDER and {where}.annotations=FILE go together")
    return Source(Path(pair["annotations"]), Path(pair["images"]))


def _read(source: Source) -> tuple[Content | None, list[str]]:
    """Return annotations that are sound, or what is wrong with them."""
    if not source.images.is_dir():
        return None, [f"image folder '{source.images}' does not exist"]
    try:
        content = source.read()
    except UserError as error:
        return None, [str(error)]
    problems = check_keys(content, source.annotations)
    return (None, problems) if problems else (content, [])


def _describe(source: Source, content: Content) -> CocoSplit:
    categories = sorted(content["categories"], key=lambda category: category["id"])
    return CocoSplit(
        source=source,
        categories=tuple(category["name"] for category in categories),
        category_ids=tuple(category["id"] for category in categories),
        images=len(content["images"]),
        run_length=any(isinstance(entry.get("segmentation"), dict) and not entry["iscrowd"]
                       for entry in content["annotations"]),
        json_sha256=sha256(source.annotations) + (
            "" if source.part == "all" else f" {source.part} {source.val_share:g}"),
    )
