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

from d2_projects.data.masks import are_finite, unsound_masks
from spark.errors import UserError
from spark.utils.printable import printable

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

        Crowds that are marked by true and false become 1 and 0, and names can be printed.

        Raises:
            UserError: the file is missing, or has not COCO's three lists.
        """
        content = _read_json(self.annotations)
        self._name_images(content["images"])
        for entry in content["annotations"]:
            if isinstance(entry, dict):
                entry["iscrowd"] = _as_number(entry.get("iscrowd", 0))
        for category in content["categories"]:
            if isinstance(category, dict) and isinstance(category.get("name"), str):
                category["name"] = printable(category["name"])
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
    return are_finite(list(chain.from_iterable(values)))


def _are_whole(values: list[Any], least: int, bits: int) -> bool:
    return not _types(values) - {int} and all(least <= value < 2**bits for value in values)


WHOLE = Rule("a whole number", lambda values: _are_whole(values, -(2**63), 63))
SIDE = Rule("a positive whole number", lambda values: _are_whole(values, 1, 31))
TEXT = Rule("a text", lambda values: not _types(values) - {str} and all(text and "\0" not in text for text in values))
NUMBER = Rule("a number", are_finite)
BOX = Rule("a list of four numbers", _are_boxes)
# The keys that are read later, by us, Detectron2 or pycocotools. A mask may be absent; see `masks`.
RULES = {
    "images": {"id": WHOLE, "file_name": TEXT, "width": SIDE, "height": SIDE},
    "categories": {"id": WHOLE, "name": TEXT},
    "annotations": {"id": WHOLE, "image_id": WHOLE, "category_id": WHOLE, "bbox": BOX, "area": NUMBER,
                    "iscrowd": WHOLE},
}


def check_keys(content: Content, file: Path) -> list[str]:
    """Return what is wrong: entries without sound RULES, or an id of their own, or whose image or category is none.

    Of each kind of fault, the first entry is named and the others are counted.
    """
    told, unsound = [], set()
    for kind, rules in RULES.items():
        for key, problem in _unsound_keys(kind, content[kind], rules):
            told.append(problem)
            unsound.add((kind, key))
    for kind in RULES:
        if (kind, "id") not in unsound:
            identifier, count = Counter(entry["id"] for entry in content[kind]).most_common(1)[0]
            if count > 1:
                told.append(f"{count} {kind} have the id {identifier}")
    for key, kind in (("image_id", "images"), ("category_id", "categories")):
        if not unsound & {("annotations", key), ("annotations", "id"), (kind, "id")}:
            known = {entry["id"] for entry in content[kind]}
            lost = [entry for entry in content["annotations"] if entry[key] not in known]
            if lost:
                told.append(f"annotation {lost[0]['id']} has the unknown {key} {lost[0][key]}{_more(len(lost))}")
    known_sizes = not unsound & {("images", key) for key in ("id", "width", "height")}
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]} if known_sizes else {}
    told.extend(unsound_masks(content["annotations"], sizes))
    return [f"'{file}': {problem}" for problem in told]


def _unsound_keys(kind: str, entries: list[Any], rules: dict[str, Rule]) -> Iterator[tuple[str, str]]:
    """Yield the keys that not all entries have, or have a sound value of, and what the first of those has instead."""
    for key, rule in rules.items():
        absent = [index for index, entry in enumerate(entries) if not isinstance(entry, dict) or key not in entry]
        if absent:
            yield key, f"{kind}[{absent[0]}] has no {key}{_more(len(absent))}"
        present = dict.fromkeys(range(len(entries)))
        for index in absent:
            del present[index]
        if not rule.holds([entries[index][key] for index in present]):
            wrong = [index for index in present if not rule.holds([entries[index][key]])]
            first = wrong[0]
            yield key, _unsound(kind, first, key, entries[first][key], rule) + _more(len(wrong))


def _more(count: int) -> str:
    return f" (and {count - 1:,} more such)" if count > 1 else ""


def _unsound(kind: str, index: int, key: str, value: Any, rule: Rule) -> str:
    return f"{kind}[{index}] has {key} {json.dumps(value)[:40]}, which is not {rule.wanted}"


@garbage_uncollected()
def _read_json(file: Path) -> Content:
    """Read an annotation file that has COCO's three lists, none of them empty."""
    if not file.is_file():
        raise UserError(f"annotation file '{file}' does not exist")
    try:
        content = json.loads(file.read_bytes(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
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
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:6], "big") / 2**48


def _as_number(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value
