"""What is wrong, or odd, in COCO annotations: found in seconds, before hours of training."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import ExifTags, Image, UnidentifiedImageError

from d2_projects.data.annotations import Content, Source, printable
from d2_projects.data.masks import extents, numbers, valid_mask
from d2_projects.data.pictures import read_otherwise, read_picture
from spark.utils.files import sha256

SAMPLE = 32  # images of a split that are opened
MARGIN = 1.0  # pixels: exporters round, so a box may stick out that far
TOO_MANY = 0.2  # more boxes than this share stick out: they are not [left, top, width, height]
ALIKE, UNLIKE, NOWHERE = 0.75, 0.5, 0.1  # IoU of a mask's bounding box, read in some way, with the annotated box
SHARES = 2.0  # coordinates no larger are no pixels where the box is: some divide both by the shorter side


@dataclass
class Findings:
    """What a linter has to say about one annotation file."""

    where: str
    errors: list[str]
    warnings: list[str]
    notes: list[str]
    read_otherwise: bool = False  # see CocoData

    def warn(self, hits: np.ndarray, what: str, examples: Sequence[Any]) -> None:
        """Warn of the entries that `hits` marks, if there are any; `examples` says how each is called."""
        count = int(hits.sum())
        if count:
            self.warnings.append(f"{self.where}: {_of(hits)} {what}, such as {examples[int(hits.argmax())]}")


    def judge(self, hits: np.ndarray, what: str, remedy: str, examples: Sequence[Any]) -> None:
        """Warn of the entries that `hits` marks; more than TOO_MANY are an error."""
        if hits.mean() > TOO_MANY:
            self.errors.append(f"{self.where}: {_of(hits)} {what}, such as {examples[int(hits.argmax())]}; {remedy}")
        else:
            self.warn(hits, what, examples)


def _of(hits: np.ndarray) -> str:
    return f"{int(hits.sum()):,} of {len(hits):,}"


def lint(source: Source, content: Content) -> Findings:
    """Check annotations that `check_keys` has let pass; nothing is raised."""
    part = "" if source.part == "all" else f" ({source.part})"
    findings = Findings(f"'{source.annotations}'{part}", [], [], [])
    _lint_categories(content, findings)
    _lint_images(content, source.images, findings)
    objects = [entry for entry in content["annotations"] if not entry["iscrowd"]]
    if objects:
        _lint_boxes(content, objects, findings)
        _lint_masks(content, objects, findings)
    else:
        findings.errors.append(f"{findings.where} has no annotated objects besides crowds")
    return findings


def _lint_categories(content: Content, findings: Findings) -> None:
    names = {category["id"]: category["name"] for category in content["categories"]}
    ids = sorted(names)
    coco = {entry["id"]: entry["name"] for entry in COCO_CATEGORIES if entry["isthing"]}
    if set(names.values()) == set(coco.values()) and names != coco:
        findings.warnings.append(f"{findings.where} has COCO's 80 categories under other ids than COCO's (1 to 90 with "
                                 "gaps): its detections cannot be scored with COCO's own annotations")
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    if repeated:
        findings.warnings.append(f"{findings.where}: {len(repeated)} names belong to several categories, such as "
                                 f"'{repeated[0]}'")
    background = [name for name in names.values() if name.strip("_ ").lower() == "background"]
    if background:
        findings.warnings.append(f"{findings.where}: category '{background[0]}' is learnt as an object; the model has "
                                 "a background of its own")
    used = {entry["category_id"] for entry in content["annotations"] if not entry["iscrowd"]}
    findings.warn(np.array([identifier not in used for identifier in ids]), "categories have no object",
                  [f"'{names[identifier]}'" for identifier in ids])


def _lint_images(content: Content, folder: Path, findings: Findings) -> None:
    images = content["images"]
    files = [image["file_name"] for image in images]
    names = [printable(name) for name in files]
    missing = missing_files(folder, files)
    if missing.any():
        findings.errors.append(f"{_of(missing)} images of {findings.where} are not in '{folder}', such as "
                               f"{names[int(missing.argmax())]}")
    findings.warn(pd.Series(names).duplicated().to_numpy(), "images are listed twice", names)
    annotated = {entry["image_id"] for entry in content["annotations"]}
    bare = np.array([image["id"] not in annotated for image in images])
    if bare.any():
        findings.notes.append(f"{findings.where}: {_of(bare)} images have no annotation: training leaves them out, "
                              "evaluation counts what is found on them as wrong")
    present = [image for image, lost in zip(images, missing, strict=True) if not lost]
    for matter, count in read_otherwise([folder / image["file_name"] for image in present]).items():
        findings.read_otherwise = True
        findings.notes.append(f"{findings.where}: {count:,} of {len(images):,} images {matter}; they are seen as "
                              "in pre-training (on white, in 8 bits), which numbers of the task's version 1 were not")
    for image in present[:: max(1, -(-len(present) // SAMPLE))]:
        problem = _image_problem(folder / image["file_name"], image["width"], image["height"])
        if problem:
            findings.errors.append(problem)
            break


def missing_files(folder: Path, names: Sequence[str]) -> np.ndarray:
    """Return which names are no files below `folder`; each folder is listed once, which is fast on network disks."""
    parents = {parent: _listing(folder / parent) for parent in {os.path.dirname(name) for name in names}}
    return np.array([os.path.basename(name) not in parents[os.path.dirname(name)] for name in names], bool)


def _listing(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (OSError, ValueError):
        return set()


def _image_problem(path: Path, width: int, height: int) -> str | None:
    """Return why training would stop at this image, as far as its header tells."""
    try:
        with Image.open(path) as image:
            size = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # by a quarter
    except UnidentifiedImageError:  # Pillow is not all that the decoder has
        try:
            size, turned = read_picture(path).size, False
        except OSError as error:
            return str(error)
    except (OSError, Image.DecompressionBombError) as error:
        return f"image '{path}' cannot be read: {error}"
    if (size[::-1] if turned else size) != (width, height):
        return f"image '{path}' has {size[0]}x{size[1]} pixels, its annotation says {width}x{height}"
    return None


def _lint_boxes(content: Content, objects: list[Content], findings: Findings) -> None:
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    limits_N2 = np.array([sizes[entry["image_id"]] for entry in objects], float)
    boxes_N4 = numbers(chain.from_iterable(entry["bbox"] for entry in objects), 4 * len(objects)).reshape(-1, 4)
    called = _Called(objects)
    corner_N2, side_N2 = boxes_N4[:, :2], boxes_N4[:, 2:]
    if boxes_N4.max() <= 1 and limits_N2.max() > 1:
        findings.errors.append(f"{findings.where}: no box is larger than a pixel; boxes must be in pixels, not in "
                               "shares of the image")
        return
    flat = np.any(side_N2 <= 0, axis=1)
    findings.warn(flat, "boxes have no area, so nothing can match them", called)
    outside = np.any(corner_N2 + side_N2 <= 0, axis=1) | np.any(corner_N2 >= limits_N2, axis=1)
    findings.warn(outside & ~flat, "boxes are wholly outside their image", called)
    beyond = np.any((corner_N2 < -MARGIN) | (corner_N2 + side_N2 > limits_N2 + MARGIN), axis=1)
    if beyond.mean() > TOO_MANY:
        findings.errors.append(f"{findings.where}: {_of(beyond)} boxes stick out of their image, such as "
                               f"{called[int(beyond.argmax())]}; COCO's boxes are [left, top, width, height]")
    else:
        findings.warn(beyond & ~outside, f"boxes stick out of their image by more than {MARGIN:g} pixel; training "
                      "cuts them", called)
    keys = pd.DataFrame(boxes_N4).assign(
        image=[entry["image_id"] for entry in objects], category=[entry["category_id"] for entry in objects]
    )
    findings.warn(keys.duplicated().to_numpy(), "objects repeat the box and category of another", called)
    findings.warn(np.array([entry["id"] == 0 for entry in objects]), "objects have the id 0, which pycocotools takes "
                  "for 'no match' (here they are numbered anew)", called)


def _lint_masks(content: Content, objects: list[Content], findings: Findings) -> None:
    masks = [entry.get("segmentation") for entry in objects]
    called = _Called(objects)
    lacking = np.array([valid_mask(mask) is None for mask in masks])
    if lacking.all():
        findings.errors.append(f"{findings.where}: no object has a mask, which Mask R-CNN learns from")
        return
    findings.warn(lacking, "objects have no mask (no polygon of three points): they are not trained on, and count "
                  "in box AP alone", called)
    cut = np.array([isinstance(mask, list) and len(valid_mask(mask) or mask) < len(mask) for mask in masks])
    findings.warn(cut, "masks have a polygon of fewer than three points, which is left out", called)
    _lint_places(content, objects, extents(masks), findings)


def _lint_places(content: Content, objects: list[Content], masks_N4: np.ndarray, findings: Findings) -> None:
    """Find masks that are not where their images and boxes are."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    limits_N2 = np.array([sizes[entry["image_id"]] for entry in objects], float)
    boxes_N4 = numbers(chain.from_iterable(entry["bbox"] for entry in objects), 4 * len(objects)).reshape(-1, 4)
    boxes_N4 = np.hstack([boxes_N4[:, :2], boxes_N4[:, :2] + boxes_N4[:, 2:]])
    called = _Called(objects)
    fit = _iou(masks_N4, boxes_N4)
    unlike = fit < UNLIKE
    shares = unlike & np.all((masks_N4 >= 0) & (masks_N4 <= SHARES), axis=1)
    findings.judge(shares, "masks are in shares of the image",
                   "polygons must be in pixels: multiply them by the image's size", called)
    swapped = unlike & (_iou(masks_N4[:, [1, 0, 3, 2]], boxes_N4) > ALIKE)
    findings.judge(swapped, "masks fit their boxes only if x and y are swapped",
                   "polygons must be [x1, y1, x2, y2, …]", called)
    known = ~(shares | swapped)
    outside = known & (np.any(masks_N4[:, 2:] <= 0, axis=1) | np.any(masks_N4[:, :2] >= limits_N2, axis=1))
    findings.judge(outside, "masks are wholly outside their image",
                   "polygons must be in pixels of the image as it is", called)
    beyond = np.any((masks_N4[:, :2] < -MARGIN) | (masks_N4[:, 2:] > limits_N2 + MARGIN), axis=1)
    findings.judge(known & beyond & ~outside, f"masks stick out of their image by more than {MARGIN:g} pixel",
                   "polygons must be in pixels of the image as it is", called)
    elsewhere = known & ~beyond & (fit < NOWHERE)
    if elsewhere.mean() > TOO_MANY:  # a few may be objects of which little is seen
        findings.judge(elsewhere, "masks do not lie in their boxes", "both must be in pixels of the same image", called)


def _iou(a_N4: np.ndarray, b_N4: np.ndarray) -> np.ndarray:
    """Return the IoU [N] of boxes [left, top, right, bottom]; nan where one is not known."""
    overlap = np.clip(np.minimum(a_N4[:, 2:], b_N4[:, 2:]) - np.maximum(a_N4[:, :2], b_N4[:, :2]), 0, None).prod(1)
    areas = [np.clip(box[:, 2:] - box[:, :2], 0, None).prod(1) for box in (a_N4, b_N4)]
    return np.asarray(overlap / np.maximum(areas[0] + areas[1] - overlap, 1e-9))


class _Called(Sequence[str]):
    """What an annotation is called in a message; made when asked for, since few are."""

    def __init__(self, objects: list[Content]) -> None:
        self._objects = objects

    def __len__(self) -> int:
        return len(self._objects)

    def __getitem__(self, index: Any) -> Any:
        entry = self._objects[index]
        return f"annotation {entry['id']} with the box {[round(value, 1) for value in entry['bbox']]}"


def lint_pair(train: tuple[Source, Content], val: tuple[Source, Content]) -> Findings:
    """Check what two splits have to do with each other."""
    findings = Findings("training and validation", [], [], [])
    categories = [sorted((category["id"], category["name"]) for category in content["categories"])
                  for _, content in (train, val)]
    ours, theirs = ([name for _, name in split] for split in categories)
    findings.notes.extend(_numbering([id_ for id_, _ in categories[0]]))
    if ours != theirs:
        findings.errors.append(f"the categories of {findings.where} differ: {_difference(ours, theirs)}")
    elif categories[0] != categories[1]:
        findings.warnings.append(f"the categories of {findings.where} have the same names under different ids; they "
                                 "are matched by their order")
    files = [[source.images / image["file_name"] for image in content["images"]] for source, content in (train, val)]
    shared = list(_shared_files(*files))
    if shared:
        findings.warnings.append(f"{len(shared):,} of {len(files[1]):,} validation images are training images "
                                 f"too, such as {printable(str(shared[0]))}")
    return findings


def _numbering(ids: list[int]) -> Iterator[str]:
    """Say how category ids (sorted) become the model's numbers, where that is not by taking 1 away."""
    if ids != list(range(1, len(ids) + 1)):
        gaps = " with gaps" if ids[-1] - ids[0] >= len(ids) else ""
        yield f"category ids are {ids[0]} to {ids[-1]}{gaps}; the model numbers them 0 to {len(ids) - 1}"


def _difference(ours: list[str], theirs: list[str]) -> str:
    only = (("training", sorted(set(ours) - set(theirs))), ("validation", sorted(set(theirs) - set(ours))))
    told = [f"only {split} has {', '.join(map(repr, names[:3]))}{' …' if len(names) > 3 else ''}"
            for split, names in only if names]
    if told:
        return "; ".join(told)
    number = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    return f"the same names in another order of ids, '{ours[number]}' and '{theirs[number]}' as number {number + 1}"


def _shared_files(train: list[Path], val: list[Path]) -> Iterator[Path]:
    """Yield the validation images that are the same files, or files of the same name and content, in training.

    Many data sets number the images of each split from 0, so a name alone tells nothing. Of equal names in different
    folders, at most SAMPLE are compared.
    """
    named = {path.name: path for path in train}
    compared = 0
    for theirs in val:
        ours = named.get(theirs.name)
        if ours == theirs:
            yield theirs
        elif ours is not None and compared < SAMPLE and ours.is_file() and theirs.is_file():
            compared += 1
            if ours.stat().st_size == theirs.stat().st_size and sha256(ours) == sha256(theirs):
                yield theirs
