"""Random annotations and detections in COCO's formats, with everything that evaluation must cope with."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as rle

WIDTH, HEIGHT = 320, 240
CATEGORY_IDS = (7, 2, 90, 13)  # neither in order nor without gaps


def jittered(truth: dict[str, Any], rng: np.random.Generator, extra: int = 2) -> list[dict[str, Any]]:
    """Return detections near most objects, at times of another category, and `extra` elsewhere on each image."""
    ids = [category["id"] for category in truth["categories"]]
    sizes = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    found = []
    for entry in truth["annotations"]:
        if rng.random() < 0.8:
            box = np.array(entry["bbox"]) + rng.normal(0, 0.08, 4) * np.tile(entry["bbox"][2:], 2)
            category = entry["category_id"] if rng.random() < 0.9 else rng.choice(ids)
            found.append(detection(entry["image_id"], category, box, rng.random(), sizes[entry["image_id"]]))
    for image in truth["images"]:
        for _ in range(extra):
            box = rng.uniform((0, 0, 8, 8), (image["width"] / 2, image["height"] / 2) * 2)
            found.append(detection(image["id"], rng.choice(ids), box, rng.random() / 2, sizes[image["id"]]))
    return found


def random_truth(rng: np.random.Generator, images: int = 40) -> dict[str, Any]:
    """Return annotations with polygons, crowds (compressed or not), ids from 0, and images without objects."""
    annotations: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        for _ in range(0 if image % 7 == 0 else int(rng.integers(1, 9))):
            size = np.exp(rng.uniform(2.2, 5.2, 2)).clip(8, (WIDTH - 2, HEIGHT - 2))
            corner = rng.uniform(0, (WIDTH, HEIGHT) - size)
            (left, top), (right, bottom) = corner, corner + size
            shape: Any = [[left, top, right, top, right, bottom, left + size[0] / 3, bottom]]
            crowd = int(rng.random() < 0.15)
            if crowd:
                shape = encode(shape, compressed=bool(rng.random() < 0.5))
            annotations.append({
                "id": len(annotations), "image_id": image, "category_id": int(rng.choice(CATEGORY_IDS[:3])),
                "bbox": [*corner.tolist(), *size.tolist()], "area": float(size.prod() * 5 / 6), "iscrowd": crowd,
                "segmentation": shape,
            })
    return {
        "images": [{"id": n, "width": WIDTH, "height": HEIGHT, "file_name": f"{n}.jpg"} for n in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": id_, "name": f"kind {id_}"} for id_ in CATEGORY_IDS],  # the last has no object
    }


def detection(
    image: int, category: int, box: Any, score: float, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> dict[str, Any]:
    """Return a detection [left, top, width, height] whose mask is its box; scores have ties."""
    left, top = (max(0.0, float(value)) for value in box[:2])
    width, height = max(1.0, min(float(box[2]), size[0] - left)), max(1.0, min(float(box[3]), size[1] - top))
    right, bottom = left + width, top + height
    mask = rle.merge(rle.frPyObjects([[left, top, right, top, right, bottom, left, bottom]], size[1], size[0]))
    mask["counts"] = mask["counts"].decode()
    return {"image_id": int(image), "category_id": int(category), "bbox": [left, top, width, height],
            "score": round(float(score), 2), "segmentation": mask}


def encode(polygons: list[list[float]], compressed: bool) -> dict[str, Any]:
    """Return polygons as run lengths, as text or as numbers."""
    encoded = rle.merge(rle.frPyObjects(polygons, HEIGHT, WIDTH))
    if compressed:
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    flat = rle.decode(encoded).flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size]).tolist()
    return {"size": encoded["size"], "counts": [0, *runs] if flat[0] else runs}
