"""Annotation files in COCO's or LVIS's format: reading them, and whether every entry has what is read later.

Everything is checked a column at a time, so that COCO's 860,000 annotations take seconds.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np

from spark.errors import UserError

Content = dict[str, Any]  # an annotation file
VAL_SHARE = 0.1  # of one pair of annotations and images


@contextmanager
def garbage_uncollected() -> Iterator[None]:
    """Switch Python's garbage collector off; also a decorator.

    An annotation file becomes millions of lists, of which none is garbage; to look for some takes as long again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class Source:
    """An annotation file, the folder of its images, and which of them are meant."""

    annotations: Path
    images: Path
    part: Literal["all", "train", "val"] = "all"
    val_share: float = VAL_SHARE  # of the images, where `part` is not "all"

    def read(self) -> Content:
        """Return the annotations, with what LVIS leaves out filled in (`file_name` and `iscrowd`).

        Raises:
            UserError: the file is missing, or has not COCO's three lists.
        """
        content = _read_json(self.annotations)
        self._name_images(content["images"])
        for entry in content["annotations"]:
            if isinstance(entry, dict):
                entry.setdefault("iscrowd", 0)
        return content if self.part == "all" else self._part_of(content)

    def _name_images(self, images: list[Any]) -> None:
        """Give LVIS's images, of which only the address is known, a name in the folder of COCO's or of one split."""
        nested: dict[str, bool] = {}
        for image in images:
            if isinstance(image, dict) and "file_name" not in image and isinstance(image.get("coco_url"), str):
                rest, _, name = image["coco_url"].rpartition("/")
                split = rest.rpartition("/")[2]
                if split not in nested:
                    nested[split] = bool(split) and (self.images / split).is_dir()
                image["file_name"] = f"{split}/{name}" if nested[split] else name

    def _part_of(self, content: Content) -> Content:
        """Return the images of this part, drawn by their names: more images leave the others where they are."""
        images = [image for image in content["images"] if isinstance(image, dict)
                  and (_fraction(str(image.get("file_name"))) < self.val_share) == (self.part == "val")]
        kept = {image["id"] for image in images if isinstance(image.get("id"), int)}
        if not kept:
            raise UserError(f"'{self.annotations}': data.val_share={self.val_share} leaves no image for {self.part}")
        annotations = [entry for entry in content["annotations"]
                       if isinstance(entry, dict) and entry.get("image_id") in kept]
        return {**content, "images": images, "annotations": annotations}


class Rule(NamedTuple):
    """What the values of a key must be."""

    wanted: str
    holds: Callable[[list[Any]], bool]  # for all of these values; JSON has no subclasses, so types are compared


def _types(values: Iterable[Any]) -> set[type]:
    return set(map(type, values))


def _are_boxes(values: list[Any]) -> bool:
    if _types(values) - {list} or set(map(len, values)) - {4} or _types(chain.from_iterable(values)) - {int, float}:
        return False
    return bool(np.isfinite(numbers(chain.from_iterable(values), 4 * len(values))).all())


def _are_masks(values: list[Any]) -> bool:
    polygons = [value for value in values if isinstance(value, list)]
    encoded = [value for value in values if isinstance(value, dict)]
    rows = list(chain.from_iterable(polygons))
    return (
        not _types(values) - {list, dict, type(None)}
        and not _types(rows) - {list}
        and not _types(chain.from_iterable(rows)) - {int, float}
        and all(map(_is_run_length, encoded))
    )


def _is_run_length(value: dict[str, Any]) -> bool:
    size, counts = value.get("size"), value.get("counts")
    return (
        isinstance(size, list) and len(size) == 2 and not _types(size) - {int}
        and (isinstance(counts, str) or (isinstance(counts, list) and not _types(counts) - {int}))
    )


WHOLE = Rule("a whole number", lambda values: not _types(values) - {int})
SIDE = Rule("a positive whole number", lambda values: not _types(values) - {int} and min(values, default=1) > 0)
TEXT = Rule("a text", lambda values: not _types(values) - {str} and all(values))
NUMBER = Rule("a number", lambda values: not _types(values) - {int, float})
BOX = Rule("a list of four numbers", _are_boxes)
MASK = Rule("polygons or a run-length encoding", _are_masks)
# The keys that are read later, by us, Detectron2 or pycocotools. A mask may be absent.
RULES = {
    "images": {"id": WHOLE, "file_name": TEXT, "width": SIDE, "height": SIDE},
    "categories": {"id": WHOLE, "name": TEXT},
    "annotations": {"id": WHOLE, "image_id": WHOLE, "category_id": WHOLE, "bbox": BOX, "area": NUMBER,
                    "iscrowd": WHOLE},
}


def check_keys(content: Content, file: Path) -> None:
    """Every entry has sound RULES and an id of its own, and refers to an image and a category that exist.

    Raises:
        UserError: naming the first entry that does not.
    """
    for kind, rules in RULES.items():
        entries = content[kind]
        for key, rule in rules.items():
            try:
                sound = rule.holds([entry[key] for entry in entries])
            except (KeyError, TypeError):
                sound = False
            if not sound:
                raise UserError(f"'{file}': {_culprit(kind, entries, rules)}")
        identifier, count = Counter(entry["id"] for entry in entries).most_common(1)[0]
        if count > 1:
            raise UserError(f"'{file}': {count} {kind} have the id {identifier}")
    masks = [entry.get("segmentation") for entry in content["annotations"]]
    if not MASK.holds(masks):
        index = next(index for index, mask in enumerate(masks) if not MASK.holds([mask]))
        raise UserError(f"'{file}': {_unsound('annotations', index, 'segmentation', masks[index], MASK)}")
    for key, kind in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in content[kind]}
        lost = next((entry for entry in content["annotations"] if entry[key] not in known), None)
        if lost is not None:
            raise UserError(f"'{file}': annotation {lost['id']} has the unknown {key} {lost[key]}")


def _culprit(kind: str, entries: list[Any], rules: dict[str, Rule]) -> str:
    """Return what is wrong with the first unsound entry."""
    for index, entry in enumerate(entries):
        absent = [key for key in rules if not isinstance(entry, dict) or key not in entry]
        if absent:
            return f"{kind}[{index}] has no {', '.join(absent)}"
        for key, rule in rules.items():
            if not rule.holds([entry[key]]):
                return _unsound(kind, index, key, entry[key], rule)
    raise AssertionError(f"no unsound entry among {kind}")


def _unsound(kind: str, index: int, key: str, value: Any, rule: Rule) -> str:
    return f"{kind}[{index}] has {key} {json.dumps(value)[:40]}, which is not {rule.wanted}"


def valid_mask(segmentation: Any) -> Any:
    """Return a mask without its polygons of fewer than three points; None if nothing is left."""
    if not isinstance(segmentation, list):
        return segmentation
    return [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0] or None


def numbers(values: Iterable[Any], count: int) -> np.ndarray:
    """Return so many numbers as an array, in a fraction of the time that a list of lists takes."""
    return np.fromiter(values, float, count)


@garbage_uncollected()
def _read_json(file: Path) -> Content:
    """Read an annotation file that has COCO's three lists, none of them empty."""
    if not file.is_file():
        raise UserError(f"annotation file '{file}' does not exist")
    try:
        content = json.loads(file.read_bytes(), parse_constant=_refuse)
    except ValueError as error:
        raise UserError(f"'{file}' is not valid JSON: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"'{file}' is not a COCO annotation file: it has no list '{key}'")
        if not content[key]:
            raise UserError(f"'{file}' has no {key}")
    return content


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _fraction(text: str) -> float:
    """Return a number in [0, 1) that is drawn by the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
