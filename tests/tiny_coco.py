"""A COCO data set that is made in milliseconds: bright squares and dark bars on noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from paths import ROOT
from PIL import Image

SIDE = 64
# A detector that is trained on it in seconds, and its overrides.
RECIPE = str(ROOT / "d2_projects" / "mask_rcnn" / "mask_rcnn_r18_demo.py")
TINY = [
    "train.max_iter=2", "train.precise_bn_iter=1", "train.log_period=1", "train.device=cpu",
    "dataloader.train.total_batch_size=2",
    *(f"dataloader.{split}.mapper.augmentations.0.short_edge_length=64" for split in ("train", "test")),
]


def make(root: Path, train: int = 4, val: int = 2) -> Path:
    """Write `train` and `val` images with two objects each, segmented by polygons; return `root`."""
    rng = np.random.default_rng(0)
    for split, count in (("train2017", train), ("val2017", val)):
        content: dict[str, Any] = {
            "images": [], "annotations": [],
            # As in COCO, category ids are neither consecutive nor in the order of the file.
            "categories": [{"id": 7, "name": "bar"}, {"id": 3, "name": "square"}],
        }
        for number in range(1, count + 1):
            image = rng.integers(90, 160, (SIDE, SIDE, 3)).astype(np.uint8)
            for category, (width, height), value in ((3, (20, 20), 250), (7, (40, 8), 10)):
                left = int(rng.integers(SIDE - width))
                top = int(rng.integers(24 - height // 2)) if category == 3 else int(rng.integers(44, 54))
                image[top:top + height, left:left + width] = value
                right, bottom = left + width, top + height
                content["annotations"].append({
                    "id": len(content["annotations"]) + 1, "image_id": number, "category_id": category,
                    "bbox": [left, top, width, height], "area": width * height, "iscrowd": 0,
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                })
            name = f"{number:012d}.jpg"
            content["images"].append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
            (root / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / split / name)
        write_annotations(root, split, content)
    return root


def write_annotations(root: Path, split: str, content: Any) -> Path:
    """Write one annotation file and return its path."""
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file
