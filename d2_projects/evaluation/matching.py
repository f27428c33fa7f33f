"""Which detections of an image are right: COCO's greedy matching at one IoU, and the F1 score that follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as rle

from d2_projects.data.masks import compressed

IOU = 0.5
WRONG, IGNORED = -1, -2


@dataclass(frozen=True)
class Matches:
    """What became of the detections and objects of one image. D detections, in order of falling score."""

    order_D: np.ndarray  # of the detections as they were given
    scores_D: np.ndarray
    found_D: np.ndarray  # the index of the object that a detection has found; WRONG; IGNORED where it lies on a crowd
    objects: tuple[int, ...]  # the indices of those that are to be found

    def counts(self, score: float) -> tuple[int, int, int]:
        """Return how many objects are found, are missed, and how many detections are wrong at this least score."""
        kept = self.found_D[self.scores_D >= score]
        found = int((kept >= 0).sum())
        return found, len(self.objects) - found, int((kept == WRONG).sum())

    def f1(self, score: float) -> float:
        """Return F1 = 2·found / (2·found + missed + wrong); 1 where nothing is to be found and nothing is."""
        found, missed, wrong = self.counts(score)
        return 2 * found / (2 * found + missed + wrong) if found + missed + wrong else 1.0


def match(
    annotations: Sequence[dict[str, Any]], detections: Sequence[dict[str, Any]], height: int, width: int
) -> Matches:
    """Match the detections of an image with its annotations, the surest first, each with the best that is left.

    Masks are compared where both have them, else boxes. A greedy match does not depend on later detections, so one
    matching serves every least score.

    Args:
        annotations: in COCO's format.
        detections: in COCO's results format.
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    scores = np.array([detection["score"] for detection in detections], float)
    order = np.argsort(-scores, kind="stable")
    crowd = np.array([bool(entry.get("iscrowd")) for entry in annotations], bool)
    iou_DG = _iou(annotations, [detections[index] for index in order], crowd, height, width)
    same_DG = np.array([detections[index]["category_id"] for index in order])[:, None] == np.array(
        [entry["category_id"] for entry in annotations])[None]
    close_DG = np.where(same_DG & (iou_DG >= IOU), iou_DG, 0.0)
    found_D = np.full(len(order), WRONG)
    free_G = ~crowd
    for row, close_G in enumerate(close_DG):
        candidates_G = close_G * free_G
        if candidates_G.any():
            found_D[row] = candidates_G.argmax()
            free_G[found_D[row]] = False
        elif (close_G * crowd).any():
            found_D[row] = IGNORED
    return Matches(order, scores[order], found_D, tuple(np.flatnonzero(~crowd).tolist()))


def best_score(matches: Iterable[Matches]) -> float:
    """Return the least score with the highest F1 over all images together; 0.5 if no detection is right."""
    everything = list(matches)
    scores = np.concatenate([each.scores_D for each in everything] or [np.empty(0)])
    found = np.concatenate([each.found_D for each in everything] or [np.empty(0, int)])
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], found[order]
    right, wrong = np.cumsum(found >= 0), np.cumsum(found == WRONG)
    objects = sum(len(each.objects) for each in everything)
    if not right.size or not right[-1]:
        return 0.5
    f1 = 2 * right / (right + wrong + objects)
    # Detections of one score come and go together, so only the last of each counts.
    last = np.append(scores[1:] != scores[:-1], True)
    return float(scores[np.where(last, f1, -1).argmax()])


def encoded(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Return polygons or run lengths in pycocotools' compressed form."""
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, height, width))
    return compressed(segmentation)


def _iou(
    annotations: Sequence[dict[str, Any]], detections: Sequence[dict[str, Any]], crowd: np.ndarray, height: int,
    width: int,
) -> np.ndarray:
    """Return IoU [D, G]; with a crowd, it is the share of the detection that lies on it."""
    if not annotations or not detections:
        return np.zeros((len(detections), len(annotations)))
    if all(entry.get("segmentation") for entry in (*annotations, *detections)):
        sides: list[Any] = [[encoded(entry["segmentation"], height, width) for entry in entries]
                 for entries in (detections, annotations)]
    else:
        sides = [np.array([entry["bbox"] for entry in entries], float) for entries in (detections, annotations)]
    return np.asarray(rle.iou(*sides, crowd.astype(np.uint8)))
