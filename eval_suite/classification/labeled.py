"""Images with classes, from class folders or tar shards, and subsets of them in which every class has its share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval_suite.classification.finetune_config import LabelsConfig
from spark.data.decode import UnreadableImageError, decode
from spark.data.file_list import FileSource
from spark.data.samplers import mixed_seed
from spark.data.shards import TarSource
from spark.data.source import ImageSource, open_source
from spark.errors import UserError
from spark.utils.provenance import content_hash

CLASS_FILE = ".cls"  # beside an image in a shard, as WebDataset packs them: the number of its class
SUBSET = 4  # keeps the seeds of subsets apart from those of `spark.data.samplers`


@dataclass(frozen=True)
class LabeledSource:
    """Some images of a source, with their classes.

    Attributes:
        source: of the images.
        classes: their names, in the order of the labels.
        labels: of all images of the source.
        indices: into the source, of the images that belong to this.
    """

    source: ImageSource
    classes: list[str]
    labels: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def label(self, index: int) -> int:
        """Return an image's class."""
        return int(self.labels[self.indices[index]])

    def name(self, index: int) -> str:
        """Say where an image is, for people."""
        return self.source.name(int(self.indices[index]))

    def load(self, index: int) -> Image.Image:
        """Return an image as RGB.

        Raises:
            UnreadableImageError: it cannot be read; the message says why.
        """
        try:
            with self.source.open(int(self.indices[index])) as file:
                return Image.fromarray(decode(file))
        except UnreadableImageError:
            raise
        except (OSError, ValueError) as error:
            raise UnreadableImageError(str(error)) from None

    def taking(self, counts: Sequence[int], seed: int) -> LabeledSource:
        """Return as many images of each class as `counts` says, chosen at random; more contain fewer."""
        by_class = self.indices[np.argsort(self.labels[self.indices], kind="stable")]
        members_of = np.split(by_class, np.cumsum(self.counts())[:-1])
        chosen = []
        for label, (members, count) in enumerate(zip(members_of, counts, strict=True)):
            order = np.random.default_rng(mixed_seed(seed, SUBSET, label)).permutation(len(members))
            chosen.append(members[order[:count]])
        return replace(self, indices=np.sort(np.concatenate(chosen)))

    def without(self, other: LabeledSource) -> LabeledSource:
        """Return the images that are not in another part of the same source."""
        return replace(self, indices=np.setdiff1d(self.indices, other.indices))

    def counts(self) -> np.ndarray:
        """Return the number of images of each class."""
        return np.bincount(self.labels[self.indices], minlength=len(self.classes))

    @property
    def identity(self) -> str:
        """A hash that tells these images from others, wherever they lie."""
        whole = len(self) == len(self.source)
        return self.source.identity if whole else content_hash([self.source.identity, self.indices.tolist()])

    @property
    def checksum(self) -> str | None:
        """A hash of the content of all images of the source, or of a sample of it."""
        return self.source.checksum


def open_labeled(root: str) -> LabeledSource:
    """Open class folders (`<class>/…/<image>`), shards that hold them, or shards with a `.cls` beside each image.

    Raises:
        UserError: there is nothing of the kind, or an image has no class.
    """
    if not Path(root).exists() and "{" not in root:
        raise UserError(f"'{root}' does not exist; data.root needs train/<class>/ and val/<class>/, or pass data.train "
                        "and data.val")
    source = open_source(root)
    if isinstance(source, TarSource) and (numbers := source.companions(CLASS_FILE)):
        names = [number.strip() for number in numbers]
    elif isinstance(source, TarSource):
        names = _outermost([source.member(index).parent.parts for index in range(len(source))],
                           [source.shard(index) for index in range(len(source))])
    elif isinstance(source, FileSource) and Path(root).is_dir():
        start = len(str(source.path(0))) - len(str(source.path(0).relative_to(root)))
        names = [source.name(index)[start:].rpartition("/")[0].partition("/")[0] for index in range(len(source))]
    else:
        raise UserError(f"'{root}' tells no classes; pass a folder of class folders, or tar shards")
    if "" in names:
        raise UserError(f"'{root}': image '{source.name(names.index(''))}' is in no class folder")
    classes = sorted(set(names), key=_natural)
    number_of = {name: number for number, name in enumerate(classes)}
    labels = np.array([number_of[name] for name in names], dtype=np.int32)
    return LabeledSource(source, classes, labels, np.arange(len(names)))


def open_splits(train_root: str, val_root: str) -> tuple[LabeledSource, LabeledSource]:
    """Open the images to train on and those to evaluate on.

    Raises:
        UserError: one of them is missing or has fewer than two classes, or they have other classes.
    """
    train, val = open_labeled(train_root), open_labeled(val_root)
    if len(train.classes) < 2:
        raise UserError(f"'{train_root}' has one class only, '{train.classes[0]}': there is nothing to tell apart")
    if train.classes != val.classes:
        different = sorted(set(train.classes) ^ set(val.classes))
        raise UserError(f"classes differ between '{train_root}' and '{val_root}': {', '.join(different[:5])}")
    return train, val


def identity_of(whole: LabeledSource, train: LabeledSource, val: LabeledSource) -> dict[str, Any]:
    """Return what distinguishes this data from other, JSON-like, wherever it lies.

    Args:
        whole: all images to train on that there are.
        train: those that are used; their number alone is told, as some seeds use others.
        val: images to evaluate on.
    """
    return {
        "classes": len(val.classes), "train_images": len(train), "val_images": len(val),
        "files": content_hash([whole.identity, val.identity]),
    }


def checksums_of(train: LabeledSource, val: LabeledSource) -> dict[str, str]:
    """Return hashes of what the images hold, by split, where there are such; names alone tell no damage."""
    found = {"train": train.checksum, "val": val.checksum}
    return {split: checksum for split, checksum in found.items() if checksum is not None}


def limited(images: LabeledSource, labels: LabelsConfig, seed: int) -> LabeledSource:
    """Return the images whose labels may be used: equally many of each class, or an equal share of each.

    Raises:
        UserError: a class has too few.
    """
    if not labels.limited:
        return images
    there = images.counts()
    if labels.per_class is not None:
        if there.min() < labels.per_class:
            poor = images.classes[int(there.argmin())]
            raise UserError(f"labels.per_class={labels.per_class}, but class '{poor}' has {there.min()} images only")
        return images.taking([labels.per_class] * len(there), seed)
    assert labels.fraction is not None
    return images.taking([max(1, round(count * labels.fraction)) for count in there.tolist()], seed)


def _outermost(folders: Sequence[tuple[str, ...]], shards: Sequence[Path]) -> list[str]:
    """Return the first folder of each path below what all have in common ('' if there is none), as class folders are.

    If all are in the same folder, that is the only class.

    Raises:
        UserError: these may be folders of shards as well as of classes.
    """
    levels = enumerate(zip(*folders, strict=False))
    depth = next((level for level, names in levels if len(set(names)) > 1), min(map(len, folders)))
    if set(map(len, folders)) == {depth}:
        depth = max(depth - 1, 0)
    names = ["".join(folder[depth : depth + 1]) for folder in folders]
    pairs = set(zip(names, shards, strict=True))
    each_its_own = len(pairs) == len(set(names)) == len(set(shards)) > 1
    if each_its_own and len({folder[depth + 1 : depth + 2] for folder in folders}) > 1:
        raise UserError(f"'{shards[0]}' and the other shards have one folder each, with several inside ('{names[0]}'): "
                        "do shards or classes lie in it? Pack the class folders themselves")
    return names


def _natural(name: str) -> tuple[int, str]:
    """Order class numbers as numbers, and names as names."""
    return (int(name), "") if re.fullmatch(r"\d+", name) else (-1, name)
