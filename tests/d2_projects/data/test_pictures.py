"""Detection sees the pixels that pre-training sees; data that this changes is told from data that it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import LazyCall, instantiate
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data.detection_utils import read_image
from omegaconf import OmegaConf
from PIL import Image
from tiny_coco import RECIPE, TINY

from d2_projects.data.coco import check, registered
from d2_projects.data.pictures import DEEP, OTHER, TRANSPARENT, PictureMapper, read_otherwise, read_picture
from d2_projects.engine.config import load
from d2_projects.engine.record import identity_of
from d2_projects.engine.run import run
from d2_projects.evaluation.gallery import Gallery
from d2_projects.instance_segmentation import InstanceSegmentation
from spark.errors import UserError
from spark.runs.record import Initialization, load_record

GRAY = np.arange(64 * 64).reshape(64, 64)
COLOR = np.stack([GRAY % 200, GRAY // 17 % 255, GRAY % 91], -1).astype(np.uint8)
COLORS = Image.fromarray(COLOR)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def transparent(mode: str) -> Image.Image:
    image = COLORS.convert(mode)
    image.putalpha(Image.fromarray((GRAY % 256).astype(np.uint8)))
    return image


# Name -> how it is written, and what is the matter with it.
PICTURES: dict[str, tuple[Callable[[Path], Any], str | None]] = {
    "color.jpg": (COLORS.save, None),
    "turned.jpg": (lambda path: COLORS.save(path, exif=turned()), None),
    "gray.jpg": (COLORS.convert("L").save, None),
    "cmyk.jpg": (COLORS.convert("CMYK").save, None),
    "color.png": (COLORS.save, None),
    "turned.png": (lambda path: COLORS.save(path, exif=turned()), None),
    "palette.png": (COLORS.quantize(50).save, None),
    "bits.png": (COLORS.convert("1").save, None),
    "color.webp": (lambda path: COLORS.save(path, lossless=True), None),
    "color.bmp": (COLORS.save, None),
    "color.tif": (COLORS.save, None),
    "cmyk.tif": (COLORS.convert("CMYK").save, None),
    "rgba.png": (transparent("RGB").save, TRANSPARENT),
    "la.png": (transparent("L").save, TRANSPARENT),
    "named.jpg": (lambda path: transparent("RGB").save(path, "PNG"), TRANSPARENT),
    "rgba.webp": (lambda path: transparent("RGB").save(path, lossless=True), TRANSPARENT),
    "palette_clear.png": (lambda path: COLORS.quantize(50).save(path, transparency=3), TRANSPARENT),
    "key.png": (lambda path: COLORS.save(path, transparency=tuple(COLOR[3, 3].tolist())), TRANSPARENT),
    "deep.png": (Image.fromarray((GRAY * 16).astype(np.uint16)).save, DEEP),
    "deep.tif": (Image.fromarray((GRAY * 16).astype(np.uint16)).save, DEEP),
    "array.npy": (lambda path: np.save(path, COLOR), OTHER),
}


@pytest.mark.parametrize("name", PICTURES)
def test_what_detectron2_shows_otherwise_is_known(tmp_path: Path, name: str) -> None:
    write, matter = PICTURES[name]
    path = tmp_path / name
    write(path)
    assert dict(read_otherwise([path])) == ({matter: 1} if matter else {})
    if matter != OTHER:
        assert np.array_equal(read_image(str(path), "RGB"), read_picture(path)) is (matter is None)


@pytest.mark.parametrize("format", ["RGB", "BGR", "L"])
def test_the_mapper_is_detectron2s_but_for_the_reader(coco: Path, format: str) -> None:
    arguments = {"augmentations": [], "image_format": format, "use_instance_mask": True}
    with registered(check(coco)) as (name, _):
        for training in (True, False):
            for record in DatasetCatalog.get(name):
                ours, theirs = (mapper(training, **arguments)(record) for mapper in (PictureMapper, DatasetMapper))
                assert ours.keys() == theirs.keys()
                assert (ours["image"] == theirs["image"]).all()
                if training:
                    assert (ours["instances"].gt_boxes.tensor == theirs["instances"].gt_boxes.tensor).all()
                    assert ours["instances"].gt_masks.polygons[0][0].tolist() == (
                        theirs["instances"].gt_masks.polygons[0][0].tolist())


def as_transparent(root: Path, splits: tuple[str, ...] = ("train2017", "val2017")) -> Path:
    """Make everything but the objects' upper left corner transparent, and black."""
    for split in splits:
        file = root / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text())
        for image in content["images"]:
            path = root / split / image["file_name"]
            image["file_name"] = path.with_suffix(".png").name
            Image.new("RGBA", (64, 64)).save(path.with_suffix(".png"))
        file.write_text(json.dumps(content))
    return root


def test_transparent_images_are_seen_on_white_by_training_and_evaluation(coco: Path) -> None:
    project, data = InstanceSegmentation(), check(as_transparent(coco))
    cfg = load(RECIPE, TINY).cfg
    with registered(data) as names:
        project.point_at(cfg, data, names)
        for loader in (cfg.dataloader.train, cfg.dataloader.test):
            mapper = instantiate(loader.mapper)
            assert (mapper(DatasetCatalog.get(loader.dataset.names)[0])["image"] == 255).all()
    assert np.asarray(Gallery(data.val.source, []).example(1, 64).output)[0, 0].tolist() == [255, 255, 255]


def test_a_mapper_of_ones_own_is_kept(coco: Path) -> None:
    class Own(DatasetMapper):
        pass

    cfg, data = load(RECIPE, TINY).cfg, check(coco)
    cfg.dataloader.train.mapper = LazyCall(Own)(**OmegaConf.to_container(cfg.dataloader.test.mapper))
    InstanceSegmentation().point_at(cfg, data, ("a", "b"))
    assert cfg.dataloader.train.mapper["_target_"] is Own


@pytest.mark.parametrize("splits", [("train2017",), ("val2017",), ()])
def test_only_data_with_such_images_has_another_version(coco: Path, splits: tuple[str, ...]) -> None:
    data = check(as_transparent(coco, splits))
    assert InstanceSegmentation().version_for(data) == (2 if splits else 1)
    told = [note for note in data.notes if "images are transparent; they are seen as in pre-training" in note]
    assert len(told) == len(splits)


def test_a_run_folder_of_the_old_version_is_told_from_one_of_the_new(coco: Path) -> None:
    config, init = load(RECIPE, TINY), Initialization("scratch")
    assert identity_of(config, check(coco), {}, init).keys() == {"protocol", "seed", "init"}  # as there were
    assert identity_of(config, check(as_transparent(coco)), {}, init)["task version"] == 2


@pytest.mark.slow
def test_the_version_is_recorded_and_a_run_of_the_old_one_is_not_continued(coco: Path, tmp_path: Path) -> None:
    arguments = [*TINY, f"out={tmp_path / 'run'}", f"data.root={as_transparent(coco)}"]
    path = run(RECIPE, arguments)
    assert path is not None
    assert load_record(path).task_version == 2
    identity = tmp_path / "run" / "identity.json"
    content = json.loads(identity.read_text())
    del content["task version"]  # as the old one has left it
    identity.write_text(json.dumps(content))
    with pytest.raises(UserError, match="holds a run with another task version; pass another out"):
        run(RECIPE, arguments)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(OSError, match=r"image '.*torn\.png' cannot be read"):
        read_picture(tmp_path / "torn.png")
    assert not read_otherwise([tmp_path / "torn.png", tmp_path / "absent.png"])
