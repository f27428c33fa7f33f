"""A picture for people: annotated objects beside detected ones."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from omegaconf import DictConfig
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from torch import nn

from spark.files import atomic_path

CELL, GAP = 256, 6  # pixels: a picture's longer side, and the white between
COLOURS = ((255, 196, 0), (0, 200, 255), (255, 80, 160), (120, 230, 80), (180, 120, 255), (255, 120, 40))


@dataclass(frozen=True)
class Shape:
    """One object to draw: its mask [H, W], what to write on it, and which colour its category has."""

    mask: np.ndarray
    label: str
    category: int


def save_detections(
    cfg: DictConfig, model: nn.Module, destination: Path, pictures: int = 6, score: float = 0.3
) -> None:
    """Write a sheet with the first test pictures: left the annotation, right what the model finds.

    Detectron2 has a Visualizer, but it needs OpenCV, which nothing else here does.

    Args:
        cfg: the recipe, pointing at a registered data set.
        model: a trained model; it is put into evaluation mode.
        destination: the PNG to write.
        pictures: how many pictures at most.
        score: detections with less confidence (0..1) are left out.
    """
    metadata = MetadataCatalog.get(cfg.dataloader.test.dataset.names)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        coco = COCO(metadata.json_file)
    pairs = []
    for _, (record,) in zip(range(pictures), instantiate(cfg.dataloader.test), strict=False):
        image = Image.open(record["file_name"]).convert("RGB")
        with torch.no_grad():
            (found,) = model.eval()([record])
        pairs.append((draw(image, annotated(coco, record["image_id"], metadata.thing_classes)),
                      draw(image, detected(found["instances"], score, metadata.thing_classes))))
    with atomic_path(destination) as temporary:
        sheet(pairs).save(temporary)


def annotated(coco: COCO, image_id: int, names: list[str]) -> Iterator[Shape]:
    """Yield the annotated objects of a picture."""
    for entry in coco.imgToAnns[image_id]:
        name = coco.cats[entry["category_id"]]["name"]
        yield Shape(coco.annToMask(entry) > 0, name, names.index(name))


def detected(instances: object, score: float, names: list[str]) -> Iterator[Shape]:
    """Yield the objects of a Detectron2 `Instances` that are sure enough."""
    fields = (getattr(instances, name) for name in ("pred_masks", "scores", "pred_classes"))
    for mask, confidence, category in zip(*(field.cpu() for field in fields), strict=True):
        if confidence >= score:
            label = f"{names[int(category)]} {100 * float(confidence):.0f}%"
            yield Shape(mask.numpy() > 0, label, int(category))


def draw(image: Image.Image, shapes: Iterator[Shape]) -> Image.Image:
    """Return the picture, enlarged to CELL, with tinted masks and a labelled box around each."""
    scale = CELL / max(image.size)
    canvas = image.resize((round(image.width * scale), round(image.height * scale)))
    for shape in shapes:
        colour = COLOURS[shape.category % len(COLOURS)]
        stencil = Image.fromarray(shape.mask.astype(np.uint8) * 120).resize(canvas.size)
        canvas.paste(Image.new("RGB", canvas.size, colour), mask=stencil)
        box = stencil.getbbox()
        if box is not None:  # a mask may be empty
            pen = ImageDraw.Draw(canvas)
            pen.rectangle(box, outline=colour, width=2)
            pen.text((box[0] + 3, box[1] + 2), shape.label, fill="white", stroke_width=1, stroke_fill="black")
    return canvas


def sheet(pairs: list[tuple[Image.Image, Image.Image]]) -> Image.Image:
    """Arrange pairs of pictures on white, two pairs to a line."""
    pitch = CELL + GAP
    canvas = Image.new("RGB", (4 * pitch + 3 * GAP, -(-len(pairs) // 2) * pitch + GAP), "white")
    for number, pair in enumerate(pairs):
        for column, picture in enumerate(pair):
            extra = GAP + number % 2 * 2 * GAP  # a wider gap between pairs than within
            canvas.paste(picture, (extra + (number % 2 * 2 + column) * pitch, GAP + number // 2 * pitch))
    return canvas
