"""Pictures for detection, read by the one decoder, and which of them Detectron2's own reader shows otherwise.

Detectron2 drops transparency, so that a cut-out has whatever color lies below it (black, mostly), and clips more than
8 bits to white. Pre-training sees white paper and scaled values, and so must what is evaluated.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import check_image_size, convert_PIL_to_numpy
from detectron2.data.transforms import AugInput
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from spark.data.decode import SEPARATE, UnreadableImageError, decode
from spark.utils.files import open_regular

JPEG_MAGIC = b"\xff\xd8\xff"
READERS = 16  # threads: a network disk answers many questions at a time
TRANSPARENT, DEEP, OTHER = "are transparent", "have more than 8 bits", "are of a kind that Detectron2 cannot read"


class PictureMapper(DatasetMapper):
    """Detectron2's mapper, but for the reader."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Return an image and its objects as models want them; `dataset_dict` stays as it is.

        Raises:
            OSError: the image cannot be read.
            SizeMismatchError: it has another size than its annotation says.
        """
        record = copy.deepcopy(dataset_dict)
        pixels = convert_PIL_to_numpy(read_picture(Path(record["file_name"])), self.image_format)
        check_image_size(record, pixels)
        seen = AugInput(pixels)
        transforms = self.augmentations(seen)
        record["image"] = torch.as_tensor(np.ascontiguousarray(seen.image.transpose(2, 0, 1)))
        if self.is_train:
            self._transform_annotations(record, transforms, seen.image.shape[:2])
        else:
            record.pop("annotations", None)
        return record


def read_picture(path: Path) -> Image.Image:
    """Return an image in RGB as pre-training sees it.

    Raises:
        OSError: it cannot be read; the message names it.
    """
    try:
        with open_regular(path) as file:
            return Image.fromarray(decode(file))
    except UnreadableImageError as error:
        raise OSError(f"image '{path}' cannot be read: {error}") from None


def read_otherwise(paths: Sequence[Path]) -> Counter[str]:
    """Count the images that Detectron2's own reader shows otherwise, if it does at all, by what is the matter.

    Their headers tell; of a JPEG the first bytes do. Whether all of a transparent image is opaque after all is not
    asked. Files that cannot be read are left out.
    """
    with ThreadPoolExecutor(READERS) as readers:
        return Counter(matter for matter in readers.map(_matter, paths, chunksize=64) if matter)


def _matter(path: Path) -> str | None:
    try:
        with open_regular(path) as file:
            if file.read(len(JPEG_MAGIC)) == JPEG_MAGIC:
                return None
        with Image.open(path) as image:
            tags = getattr(image, "tag_v2", {})
            if image.has_transparency_data or image.mode in ("La", "RGBa"):
                return TRANSPARENT
            if image.mode.startswith(("I", "F")):
                return DEEP
            separate = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == SEPARATE
            return OTHER if separate and tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) > 1 else None
    except UnidentifiedImageError:
        return OTHER if _is_readable(path) else None
    except Exception:  # a damaged file can make Pillow raise anything
        return None


def _is_readable(path: Path) -> bool:
    try:
        read_picture(path)
    except OSError:
        return False
    return True
