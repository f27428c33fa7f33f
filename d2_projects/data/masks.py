"""Masks of COCO annotations: whether they can be read at all, and where they lie.

They are checked before pycocotools sees them, which trusts run lengths: too many of them, and it runs for hours or
writes beside its arrays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pycocotools.mask

Size = tuple[int, int]  # height and width of an image
WANTED = "polygons or a run-length encoding"
ZERO, CONTINUED, NEGATIVE = 48, 32, 16  # of pycocotools' compressed form: groups of 5 bits, a character each
MOST_GROUPS = 7


def valid_mask(segmentation: Any) -> Any:
    """Return a mask without its polygons of fewer than three points; None if nothing is left."""
    if not isinstance(segmentation, list):
        return segmentation
    return [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0] or None


def compressed(mask: Any) -> Any:
    """Return a sound mask whose run lengths, if it has any, are in pycocotools' compressed form."""
    if isinstance(mask, dict) and isinstance(mask["counts"], list):
        return pycocotools.mask.frPyObjects(mask, *mask["size"])
    return mask


def numbers(values: Iterable[Any], count: int) -> np.ndarray:
    """Return so many numbers as an array, in a fraction of the time that a list of lists takes."""
    return np.fromiter(values, float, count)


def are_finite(values: Sequence[Any]) -> bool:
    """Tell whether all values are numbers that float64 holds."""
    try:
        return not set(map(type, values)) - {int, float} and bool(np.isfinite(numbers(values, len(values))).all())
    except OverflowError:
        return False


def unsound_masks(entries: Sequence[Any], sizes: Mapping[int, Size]) -> Iterator[str]:
    """Say what is wrong with masks that cannot be read: of each kind of fault the first, and how many there are.

    Args:
        entries: annotations.
        sizes: of the images, by id, as far as they are known.
    """
    found: dict[str, list[str]] = {}
    for index, entry in enumerate(entries if not _are_all_polygons(entries) else ()):
        mask = entry.get("segmentation") if isinstance(entry, dict) else None
        if mask is not None and (fault := _fault(mask, _size(entry, sizes))):
            name = f"annotation {entry['id']}" if type(entry.get("id")) is int else f"annotations[{index}]"
            kind, told = fault
            found.setdefault(kind, []).append(f"{name} has {told}")
    for those in found.values():
        yield those[0] + (f" (and {len(those) - 1:,} more such)" if len(those) > 1 else "")


def _size(entry: Mapping[str, Any], sizes: Mapping[int, Size]) -> Size | None:
    image = entry.get("image_id")
    return sizes.get(image) if type(image) is int else None


def _are_all_polygons(entries: Sequence[Any]) -> bool:
    """Tell quickly that nothing is wrong, for data with polygons alone."""
    if set(map(type, entries)) - {dict}:
        return False
    masks = [mask for entry in entries if (mask := entry.get("segmentation")) is not None]
    if set(map(type, masks)) - {list}:
        return False
    polygons = list(chain.from_iterable(masks))
    return (not set(map(type, polygons)) - {list} and not any(len(polygon) % 2 for polygon in polygons)
            and are_finite(list(chain.from_iterable(polygons))))


def _fault(mask: Any, size: Size | None) -> tuple[str, str] | None:
    """Return the kind of a mask's fault, and what it has."""
    if isinstance(mask, list) and all(isinstance(polygon, list) for polygon in mask):
        return _polygon_fault(mask)
    if isinstance(mask, dict) and _is_run_length(mask):
        return _run_length_fault(mask, size)
    return "form", f"segmentation {json.dumps(mask)[:40]}, which is not {WANTED}"


def _polygon_fault(polygons: list[list[Any]]) -> tuple[str, str] | None:
    for polygon in polygons:
        if not are_finite(polygon):
            return "numbers", (f"segmentation {json.dumps(polygons)[:40]}, which is not {WANTED}: its points are not "
                               "finite numbers")
        if len(polygon) % 2:
            return "odd", (f"a polygon of {len(polygon)} numbers, which are no pairs of x and y: repair it, "
                           "or leave it out")
    return None


def _is_run_length(mask: dict[str, Any]) -> bool:
    size, counts = mask.get("size"), mask.get("counts")
    return (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
            and (isinstance(counts, str) or (isinstance(counts, list) and all(type(count) is int for count in counts))))


def _run_length_fault(mask: dict[str, Any], size: Size | None) -> tuple[str, str] | None:
    height, width = mask["size"]
    if size is not None and (height, width) != size:
        return "size", (f"a mask of {width}x{height} pixels on an image of {size[1]}x{size[0]}; run lengths have "
                        "the size [height, width] of their image")
    counts = mask["counts"] if isinstance(mask["counts"], list) else run_lengths(mask["counts"])
    if counts is None:
        return "code", f"run lengths '{mask['counts'][:20]}', which are not in COCO's code: export the masks again"
    if min(counts, default=0) < 0 or sum(map(int, counts)) != height * width:
        return "counts", (f"run lengths that do not add up to the {height * width:,} pixels of its {width}x{height} "
                          "image: export the masks again")
    return None


def run_lengths(text: str) -> list[int] | None:
    """Return the numbers of pycocotools' compressed form; None if it is none."""
    if not text or not text.isascii():
        return None
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - ZERO
    if codes.min() < 0 or codes.max() >= 2 * CONTINUED or codes[-1] & CONTINUED:
        return None
    ends = np.flatnonzero((codes & CONTINUED) == 0)
    starts = np.append(0, ends[:-1] + 1)
    groups = ends - starts + 1
    if groups.max() > MOST_GROUPS:
        return None
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, groups))
    values = np.add.reduceat((codes & (CONTINUED - 1)) << shifts, starts)
    values -= np.where(codes[ends] & NEGATIVE, np.int64(1) << 5 * groups, 0)
    for first in (1, 2):  # each but the first three is the difference from the last but one
        values[first::2] = values[first::2].cumsum()
    counts: list[int] = values.tolist()
    return counts


def extents(masks: Sequence[Any]) -> np.ndarray:
    """Return [left, top, right, bottom] of sound masks [N, 4], in pixels; nan where there is none."""
    found_N4 = np.full((len(masks), 4), np.nan)
    valid = [valid_mask(mask) for mask in masks]
    rows = [row for row, mask in enumerate(valid) if isinstance(mask, list)]
    if rows:
        lengths = np.array([sum(map(len, valid[row])) for row in rows])
        values = chain.from_iterable(chain.from_iterable(valid[row] for row in rows))
        points = numbers(values, int(lengths.sum())).reshape(-1, 2)
        starts = np.append(0, lengths.cumsum()[:-1]) // 2
        found_N4[rows] = np.hstack([np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)])
    for row, mask in enumerate(valid):
        if isinstance(mask, dict):
            left, top, width, height = pycocotools.mask.toBbox(compressed(mask))
            found_N4[row] = (left, top, left + width, top + height) if width and height else np.nan
    return found_N4
