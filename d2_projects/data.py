"""A data set in COCO's layout, checked before anything is trained on it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from spark.errors import UserError
from spark.files import sha256

SPLITS = ("train2017", "val2017")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _is_segmentation(value: object) -> bool:
    if isinstance(value, dict):
        size, counts = value.get("size"), value.get("counts")
        return isinstance(size, list) and len(size) == 2 and all(map(_is_whole, size)) and (
            isinstance(counts, str) or _are_numbers(counts)
        )
    return isinstance(value, list) and bool(value) and all(map(_are_numbers, value))


# What a value must be, and how to tell.
_WHOLE: tuple[str, Callable[[Any], bool]] = ("a whole number", _is_whole)
_SIDE: tuple[str, Callable[[Any], bool]] = ("a positive whole number", lambda v: _is_whole(v) and v > 0)
_TEXT: tuple[str, Callable[[Any], bool]] = ("a text", lambda v: isinstance(v, str) and bool(v))
_BOX: tuple[str, Callable[[Any], bool]] = ("a list of four numbers", lambda v: _are_numbers(v) and len(v) == 4)
_MASK: tuple[str, Callable[[Any], bool]] = ("polygons or a run-length encoding", _is_segmentation)
# The keys that are read later, by us, Detectron2 or pycocotools.
KEYS = {
    "images": {"id": _WHOLE, "file_name": _TEXT, "width": _SIDE, "height": _SIDE},
    "categories": {"id": _WHOLE, "name": _TEXT},
    "annotations": {
        "id": _WHOLE, "image_id": _WHOLE, "category_id": _WHOLE, "bbox": _BOX, "area": ("a number", _is_number),
        "segmentation": _MASK,
    },
}


@dataclass(frozen=True)
class CocoSplit:
    """One checked annotation file and its folder of pictures."""

    json_file: Path
    image_folder: Path
    categories: tuple[str, ...]  # ordered by id
    images: int
    run_length: bool  # some mask is run-length encoded, which needs the mapper's bitmask format
    json_sha256: str


@dataclass(frozen=True)
class CocoData:
    """The two splits of a data set; their categories agree."""

    root: Path
    train: CocoSplit
    val: CocoSplit


def check(root: Path | str) -> CocoData:
    """Read the annotations of both splits under `root` and return what training must know.

    Expected are `train2017/`, `val2017/` and `annotations/instances_{train2017,val2017}.json`.

    Raises:
        UserError: something is missing, is not COCO's format, or cannot be trained on.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"data folder '{root}' does not exist: pass data.root=FOLDER with {', '.join(SPLITS)}"
                        " and annotations in COCO's layout")
    train, val = (_check_split(root, split) for split in SPLITS)
    if train.categories != val.categories:
        raise UserError(f"'{root}': the categories of {SPLITS[0]} and {SPLITS[1]} differ")
    return CocoData(root, train, val)


@contextmanager
def registered(data: CocoData) -> Iterator[tuple[str, str]]:
    """Register both splits with Detectron2 while the body runs; yield their names."""
    names = (f"{data.root.resolve()}:{SPLITS[0]}", f"{data.root.resolve()}:{SPLITS[1]}")
    try:
        for name, split in zip(names, (data.train, data.val), strict=True):
            _forget(name)
            register_coco_instances(name, {}, str(split.json_file), str(split.image_folder))
        yield names
    finally:
        for name in names:
            _forget(name)


def _forget(name: str) -> None:
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)


def _check_split(root: Path, split: str) -> CocoSplit:
    folder, file = root / split, root / "annotations" / f"instances_{split}.json"
    if not folder.is_dir():
        raise UserError(f"picture folder '{folder}' does not exist")
    content = _read(file)
    _check_annotations(content, file)
    missing = [image["file_name"] for image in content["images"]
               if not (folder / image["file_name"]).is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(content['images'])} pictures of '{file}' are not in "
                        f"'{folder}', such as {missing[0]}")
    return CocoSplit(
        json_file=file,
        image_folder=folder,
        categories=tuple(c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])),
        images=len(content["images"]),
        run_length=any(isinstance(entry["segmentation"], dict) for entry in _objects(content)),
        json_sha256=sha256(file),
    )


def _read(file: Path) -> dict[str, Any]:
    """Read an annotation file that has COCO's three lists, none of them empty."""
    if not file.is_file():
        raise UserError(f"annotation file '{file}' does not exist")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{file}' is not valid JSON: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"'{file}' is not a COCO annotation file: it has no list '{key}'")
        if not content[key]:
            raise UserError(f"'{file}' has no {key}")
    return content


def _check_annotations(content: dict[str, Any], file: Path) -> None:
    """Every entry has sound KEYS and an id of its own, and refers to a picture and a category that exist."""
    for kind, keys in KEYS.items():
        for index, entry in enumerate(content[kind]):
            absent = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if absent:
                raise UserError(f"'{file}': {kind}[{index}] has no {', '.join(absent)}")
            for key, (wanted, fits) in keys.items():
                if not fits(entry[key]):
                    shown = json.dumps(entry[key])[:40]
                    raise UserError(f"'{file}': {kind}[{index}] has {key} {shown}, which is not {wanted}")
        identifier, count = Counter(entry["id"] for entry in content[kind]).most_common(1)[0]
        if count > 1:
            raise UserError(f"'{file}': {count} {kind} have the id {identifier}")
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    for entry in content["annotations"]:
        for key, known in (("image_id", images), ("category_id", categories)):
            if entry[key] not in known:
                raise UserError(f"'{file}': annotation {entry['id']} has the unknown {key} {entry[key]}")
    if not any(True for _ in _objects(content)):
        raise UserError(f"'{file}' has no annotated objects besides crowds")


def _objects(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the annotations that are trained on and count in evaluation."""
    return (entry for entry in content["annotations"] if not entry.get("iscrowd"))
