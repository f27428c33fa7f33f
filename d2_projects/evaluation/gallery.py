"""A page of detections beside what was annotated: the best images, the worst, and some at random."""

from __future__ import annotations

import base64
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from d2_projects.data.annotations import Content, Source
from d2_projects.data.masks import valid_mask
from d2_projects.data.pictures import read_picture
from d2_projects.evaluation.matching import Matches, best_score, match
from d2_projects.evaluation.visualize import annotated, detected, draw, sheet
from spark.utils.files import atomic_path, write_text
from spark.utils.printable import printable
from spark.utils.provenance import code_version

PAGE, SHEET = "detections.html", "detections.png"
SECTION = 6  # images
SIDE, SHEET_SIDE = 480, 256  # pixels of an image's longer edge


@dataclass(frozen=True)
class Example:
    """One image of the page, drawn twice."""

    name: str
    f1: float
    found: int
    missed: int
    wrong: int
    truth: Image.Image
    output: Image.Image


class Gallery:
    """Annotations and detections of a data set, matched image by image."""

    def __init__(self, source: Source, detections: Sequence[dict[str, Any]]) -> None:
        content: Content = source.read()
        self._folder = source.images
        self.names = {category["id"]: category["name"]
                      for category in sorted(content["categories"], key=lambda category: category["id"])}
        self._images = {image["id"]: image for image in content["images"]}
        self._annotations = _by_image(map(_with_valid_mask, content["annotations"]))
        self._detections = _by_image(detections)
        self._matches = {
            id_: match(self._annotations[id_], self._detections[id_], image["height"], image["width"])
            for id_, image in self._images.items()
        }
        self.least_score = best_score(self._matches.values())

    def sections(self, most: int = SECTION, seed: int = 0) -> dict[str, list[int]]:
        """Return the ids of the images with the highest and the lowest F1, and of some at random, `most` each.

        Of images with the same F1, those with more objects come first: they say more.
        """
        f1 = {id_: each.f1(self.least_score) for id_, each in self._matches.items() if each.objects}
        objects = {id_: len(self._matches[id_].objects) for id_ in f1}
        chosen = np.random.default_rng(seed).permutation(sorted(self._images))[:most]
        return {
            "Best": sorted(f1, key=lambda id_: (-f1[id_], -objects[id_], id_))[:most],
            "Worst": sorted(f1, key=lambda id_: (f1[id_], -objects[id_], id_))[:most],
            "Random": [int(id_) for id_ in chosen],
        }

    def example(self, id_: int, side: int) -> Example:
        """Draw an image twice: with its annotations, and with the detections that are sure enough."""
        image, matches = self._images[id_], self._matches[id_]
        kept = matches.scores_D >= self.least_score
        sure = Matches(matches.order_D[kept], matches.scores_D[kept], matches.found_D[kept], matches.objects)
        photo = read_picture(self._folder / image["file_name"])
        size = image["width"], image["height"]
        found, missed, wrong = matches.counts(self.least_score)
        return Example(
            printable(image["file_name"]), matches.f1(self.least_score), found, missed, wrong,
            draw(photo, annotated(self._annotations[id_], sure, size, self.names), side),
            draw(photo, detected(self._detections[id_], sure, size, self.names), side),
        )


def write_gallery(
    out: Path, source: Source, detections: Path, title: str, numbers: Mapping[str, float]
) -> None:
    """Write PAGE, which carries its pictures inside, and SHEET, the random ones among them.

    Args:
        out: the run's folder.
        source: annotations and photos.
        detections: a file in COCO's results format, best with masks.
        title: of the page.
        numbers: to state beside the title, such as {"bbox/AP": 40.1}.
    """
    gallery = Gallery(source, json.loads(detections.read_bytes()))
    chosen = gallery.sections()
    drawn = {id_: gallery.example(id_, SIDE) for ids in chosen.values() for id_ in ids}
    environment = Environment(loader=PackageLoader("d2_projects"), autoescape=True, undefined=StrictUndefined)
    environment.filters["uri"] = _data_uri
    write_text(out / PAGE, environment.get_template("detections.html").render(
        title=title, numbers=numbers, least_score=gallery.least_score, code_version=code_version(),
        sections={name: [drawn[id_] for id_ in ids] for name, ids in chosen.items()},
    ))
    small = [gallery.example(id_, SHEET_SIDE) for id_ in chosen["Random"]]
    with atomic_path(out / SHEET) as temporary:
        sheet([(example.truth, example.output) for example in small], SHEET_SIDE).save(temporary)


def _by_image(entries: Iterable[dict[str, Any]]) -> defaultdict[int, list[dict[str, Any]]]:
    grouped = defaultdict(list)
    for entry in entries:
        grouped[entry["image_id"]].append(entry)
    return grouped


def _with_valid_mask(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "segmentation": valid_mask(entry.get("segmentation"))}


def _data_uri(drawing: Image.Image) -> str:
    stream = io.BytesIO()
    drawing.save(stream, "WEBP", quality=82)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
