"""The formats beside timm's, by the names that `spark convert` knows them by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from spark.formats import detectron2, mmpretrain, official_convnext, original_fcmae, original_spark, torchvision
from spark.formats.encoder import EncoderInfo
from spark.formats.naming import Conversion


class Format(Protocol):
    """What a module of this package offers for its format; `to_timm` and `from_timm` raise UserError."""

    TITLE: str
    USAGE: str  # how one loads what was written
    CAUTION: str  # what a file in the format leaves open, and what is assumed; or nothing

    def recognized(self, state: Mapping[str, Tensor]) -> bool:
        """Whether names are in the format and not in timm's."""
        ...

    def to_timm(self, state: Mapping[str, Tensor]) -> Conversion:
        """Map to timm's names."""
        ...

    def from_timm(self, state: Mapping[str, Tensor]) -> Conversion:
        """Map from timm's names."""
        ...

    def save(self, destination: Path, state: Mapping[str, Tensor], info: EncoderInfo) -> list[Path]:
        """Write a state in the format atomically; return the files."""
        ...


class WholeFormat(Protocol):
    """What the formats of whole pre-training models offer beside that; `to_ours` and `from_ours` raise UserError."""

    WHOLE: str  # what such a file is called
    METHOD: str  # of whose models they are

    def recognized(self, state: Mapping[str, Tensor]) -> bool:
        """Whether names are in the format."""
        ...

    def holds(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a whole model of ours is one for the format."""
        ...

    def to_ours(self, state: Mapping[str, Tensor]) -> Conversion:
        """Map to the names of our pre-training model."""
        ...

    def from_ours(self, state: Mapping[str, Tensor]) -> Conversion:
        """Map from them."""
        ...


FORMATS: Mapping[str, Format] = {
    "torchvision": torchvision,
    "detectron2": detectron2,
    "mmpretrain": mmpretrain,
    "official-convnext": official_convnext,
    "original-fcmae": original_fcmae,
    "original-spark": original_spark,
}
WHOLE_FORMATS: Mapping[str, WholeFormat] = {"original-fcmae": original_fcmae, "original-spark": original_spark}
"""Those that hold whole pre-training models, too."""
