#!/usr/bin/env python
"""Make small, real data sets for the demo and the tests, from photos that pip has installed already.

    python tools/make_demo_data.py OUT [--seed 0]

Writes, in a few seconds and without a network:

    OUT/classification/{train,val}/<class>/*.jpg    gray patches of twelve photos, a class each
    OUT/pool/*.jpg                                  unlabelled crops to pre-train on
    OUT/detection/{train2017,val2017}/*.jpg         coins and handwritten digits on photos, in COCO's layout
    OUT/detection/annotations/instances_*.json

Every photo is cut once into a training part and a validation part; the training sets and the pool see only
the former, the validation sets only the latter. Coins and digits are likewise divided. The photos come with
scikit-image and scikit-learn, the digits with scikit-learn. The same seed gives the same files.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageEnhance
from pycocotools import mask as rle
from pycocotools.coco import COCO
from scipy import ndimage
from skimage.filters import threshold_local
from sklearn.datasets import load_digits

from spark.errors import UserError, exits_cleanly

VERSION = 2
MANIFEST = "demo_data.json"
Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")

VAL_SHARE = 0.3
CLASS_IMAGES = {"train": 32, "val": 16}  # for each class
CLASS_PIXELS = 96
POOL_IMAGES, POOL_PIXELS = 192, 128
DETECTION_IMAGES = {"train": 60, "val": 20}
CATEGORIES = ("coin", "digit")  # COCO ids 1, 2


@dataclass(frozen=True)
class Photo:
    """A photo inside an installed package, and the side of it that belongs to validation."""

    package: str
    file: str
    val_side: Literal["left", "right", "top", "bottom"]
    inset: float = 0.0  # share of each border that is dropped first

    def path(self) -> Path:
        """Return the file's path; UserError if the package is not installed or lacks it."""
        spec = importlib.util.find_spec(self.package)
        path = Path(spec.origin).parent / self.file if spec and spec.origin else None
        if path is None or not path.is_file():
            raise UserError(f"{self.package} has no file {self.file}: pip install --force-reinstall it")
        return path

    @cache  # noqa: B019 (a dozen photos, alive as long as the script)
    def part(self, split: Split) -> Image.Image:
        """Return the training or the validation part, RGB; the two share no pixel."""
        image = Image.open(self.path()).convert("RGB")
        width, height = image.size
        left, top = round(width * self.inset), round(height * self.inset)
        right, bottom = width - left, height - top
        cut_x, cut_y = round((right - left) * VAL_SHARE), round((bottom - top) * VAL_SHARE)
        val_box, train_box = {
            "left": ((left, top, left + cut_x, bottom), (left + cut_x, top, right, bottom)),
            "right": ((right - cut_x, top, right, bottom), (left, top, right - cut_x, bottom)),
            "top": ((left, top, right, top + cut_y), (left, top + cut_y, right, bottom)),
            "bottom": ((left, bottom - cut_y, right, bottom), (left, top, right, bottom - cut_y)),
        }[self.val_side]
        part = image.crop(val_box if split == "val" else train_box)
        shrink = min(1.0, 700 / max(image.size))  # so that patches of all photos show a like amount
        size = round(part.width * shrink), round(part.height * shrink)
        return part.resize(size, Image.Resampling.LANCZOS)


CLASSES = {
    "brick": Photo("skimage", "data/brick.png", "left"),
    "cat": Photo("skimage", "data/chelsea.png", "left"),
    "coffee": Photo("skimage", "data/coffee.png", "left"),
    "galaxies": Photo("skimage", "data/hubble_deep_field.jpg", "left"),
    "grass": Photo("skimage", "data/grass.png", "left"),
    "gravel": Photo("skimage", "data/gravel.png", "left"),
    "moon": Photo("skimage", "data/moon.png", "left"),
    "motorcycle": Photo("skimage", "data/motorcycle_left.png", "left"),
    "pagoda": Photo("sklearn", "datasets/images/china.jpg", "left"),
    "retina": Photo("skimage", "data/retina.jpg", "left", inset=0.15),
    "rocket": Photo("skimage", "data/rocket.jpg", "left"),
    "tissue": Photo("skimage", "data/ihc.png", "left"),
}
COINS = Photo("skimage", "data/coins.png", "bottom")
SCENES = (
    *CLASSES.values(),
    Photo("skimage", "data/astronaut.png", "left"),
    Photo("sklearn", "datasets/images/flower.jpg", "left"),
)


def random_crop(
    image: Image.Image, scale: tuple[float, float], size: tuple[int, int], rng: Generator
) -> Image.Image:
    """Return a crop, perhaps mirrored, resized to `size` (width, height).

    Its longer side covers `scale` (from, to) pixels of the image, or as many as the image has.
    """
    share = rng.uniform(*scale) / max(size)
    share = min(share, image.width / size[0], image.height / size[1])
    width, height = int(size[0] * share), int(size[1] * share)
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    crop = image.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BICUBIC)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def save_jpeg(image: Image.Image, path: Path) -> None:
    """Write one picture, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95)


def without_color(image: Image.Image, rng: Generator) -> Image.Image:
    """Return the picture in gray with another brightness and contrast, still three channels."""
    gray = ImageEnhance.Brightness(image.convert("L")).enhance(rng.uniform(0.6, 1.4))
    return ImageEnhance.Contrast(gray).enhance(rng.uniform(0.6, 1.4)).convert("RGB")


def make_classification(root: Path, rng: Generator) -> None:
    """An ImageFolder of patches; a photo is a class, and its colors must not give it away."""
    for split in SPLITS:
        for name, photo in CLASSES.items():
            for index in range(CLASS_IMAGES[split]):
                patch = random_crop(photo.part(split), (56, 128), (CLASS_PIXELS, CLASS_PIXELS), rng)
                save_jpeg(without_color(patch, rng), root / split / name / f"{index:03d}.jpg")


def make_pool(root: Path, rng: Generator) -> None:
    """Unlabelled crops of the training parts only, so that nothing of validation leaks into pre-training."""
    sources = (*SCENES, COINS)
    for index in range(POOL_IMAGES):
        photo = sources[index % len(sources)]
        save_jpeg(random_crop(photo.part("train"), (80, 320), (POOL_PIXELS, POOL_PIXELS), rng),
                  root / f"{index:04d}.jpg")


@dataclass(frozen=True)
class Cutout:
    """An object to paste: category name, gray values and opacity, both [h, w] in 0..1."""

    category: str
    gray: np.ndarray
    alpha: np.ndarray


def coins(split: Split) -> Iterator[Cutout]:
    """Yield the coins of one part of the photo, segmented by a local threshold."""
    gray = np.asarray(COINS.part(split).convert("L"), dtype=float)
    above = ndimage.gaussian_filter(gray, 1) > threshold_local(gray, 101, offset=-12)
    filled = ndimage.binary_fill_holes(ndimage.binary_closing(above, iterations=2))
    labels, _ = ndimage.label(ndimage.binary_opening(filled, iterations=4))
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[rows, columns] == label
        touches_border = 0 in (rows.start, columns.start) or (rows.stop, columns.stop) == gray.shape
        if mask.sum() > 700 and not touches_border:
            alpha = ndimage.gaussian_filter(np.pad(mask, 2).astype(float), 0.7)
            yield Cutout("coin", np.pad(gray[rows, columns], 2, mode="edge") / 255, alpha)


def digits(split: Split) -> Iterator[Cutout]:
    """Yield handwritten digits; the last share of them, by other writers, is for validation."""
    images = load_digits().images / 16
    first_val = round(len(images) * (1 - VAL_SHARE))
    for image in images[first_val:] if split == "val" else images[:first_val]:
        padded = np.pad(image, 1)
        yield Cutout("digit", np.ones_like(padded), padded)


def transformed(cutout: Cutout, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw size, rotation and color; return colors [h, w, 3] and opacity [h, w], both in 0..1."""
    side = int(rng.integers(34, 72))
    angle = rng.uniform(0, 360) if cutout.category == "coin" else rng.uniform(-25, 25)

    def redraw(channel: np.ndarray) -> np.ndarray:
        picture = Image.fromarray((np.clip(channel, 0, 1) * 255).astype(np.uint8))
        size = (max(1, round(side * channel.shape[1] / max(channel.shape))),
                max(1, round(side * channel.shape[0] / max(channel.shape))))
        large = picture.resize(size, Image.Resampling.BICUBIC)
        return np.asarray(large.rotate(angle, Image.Resampling.BICUBIC, expand=True), dtype=float) / 255

    alpha = redraw(cutout.alpha)
    if cutout.category == "digit":
        alpha = np.clip((alpha - 0.25) * 2.5, 0, 1)  # the gray slopes of 8x8 digits become soft edges
        color = rng.uniform(0, 1, 3)
    else:
        color = np.array([1.0, rng.uniform(0.7, 1.0), rng.uniform(0.4, 1.0)])  # copper, gold, silver
    return redraw(cutout.gray)[..., None] * color, alpha


def compose(
    background: Image.Image, stock: dict[str, list[Cutout]], rng: Generator
) -> tuple[Image.Image, list[tuple[str, np.ndarray]]]:
    """Paste three to six objects apart from each other; return the picture and (category, mask [H, W])."""
    canvas = np.array(background, dtype=float) / 255
    taken = np.zeros((background.height, background.width), dtype=bool)
    objects: list[tuple[str, np.ndarray]] = []
    wanted, attempts = int(rng.integers(3, 7)), 30
    while len(objects) < wanted and attempts:
        attempts -= 1
        category = CATEGORIES[int(rng.integers(len(CATEGORIES)))]
        cutouts = stock[category]
        colors, alpha = transformed(cutouts[int(rng.integers(len(cutouts)))], rng)
        height, width = alpha.shape
        if height > background.height or width > background.width:
            continue
        top = int(rng.integers(background.height - height + 1))
        left = int(rng.integers(background.width - width + 1))
        window = (slice(top, top + height), slice(left, left + width))
        if (taken[window] & (alpha > 0)).any():
            continue
        canvas[window] = canvas[window] * (1 - alpha[..., None]) + colors * alpha[..., None]
        mask = np.zeros_like(taken)
        mask[window] = alpha > 0.5
        taken[window] |= alpha > 0
        objects.append((category, mask))
    return Image.fromarray((canvas * 255).round().astype(np.uint8)), objects


def annotation(mask: np.ndarray, **fields: Any) -> dict[str, Any]:
    """Return a COCO annotation with run-length segmentation for a mask [H, W]."""
    encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        **fields,
        "iscrowd": 0,
        "area": int(rle.area(encoded)),
        "bbox": rle.toBbox(encoded).tolist(),
        "segmentation": {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")},
    }


def make_detection(root: Path, rng: Generator) -> None:
    """A COCO instance-segmentation set in COCO's own layout and file names."""
    for split in SPLITS:
        folder = f"{split}2017"
        stock = {"coin": list(coins(split)), "digit": list(digits(split))}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(DETECTION_IMAGES[split]):
            size = (int(rng.integers(160, 193)), int(rng.integers(160, 193)))
            scene = SCENES[index % len(SCENES)].part(split)
            picture, objects = compose(random_crop(scene, (110, 240), size, rng), stock, rng)
            name = f"{index:012d}.jpg"
            save_jpeg(picture, root / folder / name)
            images.append({"id": index + 1, "file_name": name, "width": size[0], "height": size[1]})
            for category, mask in objects:
                annotations.append(annotation(
                    mask, id=len(annotations) + 1, image_id=index + 1,
                    category_id=CATEGORIES.index(category) + 1,
                ))
        categories = [{"id": number, "name": name} for number, name in enumerate(CATEGORIES, start=1)]
        content = {"info": {"description": "spark-transfer demo data", "version": VERSION},
                   "images": images, "annotations": annotations, "categories": categories}
        file = root / "annotations" / f"instances_{folder}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content), encoding="utf-8")
        verify(file)


def verify(file: Path) -> None:
    """Read the annotations as pycocotools does; every mask must have the stated area and box."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        coco = COCO(str(file))
    for entry in coco.anns.values():
        mask = coco.annToMask(entry)
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        if mask.sum() != entry["area"] or entry["bbox"] != box:
            raise AssertionError(f"{file}: annotation {entry['id']} disagrees with its mask")


def make(out: Path, seed: int) -> bool:
    """Make everything at `out`, whole or not at all; return False if it was there already.

    Raises:
        UserError: `out` holds something else, or a package lacks its photos.
    """
    identity = {"version": VERSION, "seed": seed}
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        manifest = out / MANIFEST
        if not manifest.is_file():
            raise UserError(f"'{out}' exists and is not demo data: choose another folder")
        if json.loads(manifest.read_text(encoding="utf-8")) == identity:
            return False
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        new = Path(temporary) / "new"
        for number, (name, maker) in enumerate(
            (("classification", make_classification), ("pool", make_pool), ("detection", make_detection))
        ):
            maker(new / name, np.random.default_rng([seed, number]))
        (new / MANIFEST).write_text(json.dumps(identity) + "\n", encoding="utf-8")
        if out.exists():
            shutil.move(out, Path(temporary) / "old")
        os.replace(new, out)
    return True


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to create")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    made = make(options.out, options.seed)
    print(f"demo data {'written to' if made else 'is there already:'} {options.out}")


if __name__ == "__main__":
    sys.exit(main())
