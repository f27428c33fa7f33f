"""Images in a Hugging Face data set on disk: what `Dataset.save_to_disk` leaves, Arrow files with random access."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from spark.errors import UserError
from spark.utils.files import open_regular
from spark.utils.json_text import read_json
from spark.utils.optional import optional_package
from spark.utils.provenance import content_hash

Entry = TypeVar("Entry")
STATE, SPLITS = "state.json", "dataset_dict.json"
COLUMN, SPLIT = "image", "train"  # preferred where there are several


class ArrowSource:
    """The images of a data set, or of the training split of several.

    Args:
        folder: that `save_to_disk` wrote.

    Raises:
        UserError: `datasets` is not installed, or it is not clear which split or column to take.
    """

    def __init__(self, folder: Path) -> None:
        datasets = optional_package("datasets", f"'{folder}' is a Hugging Face data set: reading it")
        self._folder = _split(folder)
        try:
            rows = datasets.load_from_disk(str(self._folder))
        except Exception as error:
            raise UserError(f"data set '{self._folder}' cannot be loaded: {error}") from None
        self._column = _image_column(rows.features, datasets, self._folder)
        # The bytes as they are, without the labels. Other columns would be decoded with every image.
        rows = rows.select_columns([self._column]).cast_column(self._column, datasets.Image(decode=False))
        self._rows = rows.with_format(None)

    def __len__(self) -> int:
        return len(self._rows)

    def open(self, index: int) -> BinaryIO:
        """Return the encoded image, which is in the row or in a file that it names."""
        image = self._rows[index][self._column]
        if image is None:
            raise ValueError("the row has no image")
        return io.BytesIO(image["bytes"]) if image["bytes"] is not None else open_regular(image["path"])

    def name(self, index: int) -> str:
        """Return the folder and the row."""
        return f"{self._folder}[{index}]"

    @property
    def identity(self) -> str:
        """A hash of the fingerprint by which `datasets` knows the rows, their number, and the column."""
        return content_hash([_entry(self._folder / STATE, "_fingerprint", str), len(self), self._column])

    @property
    def checksum(self) -> None:
        """The fingerprint stands for the content."""


def is_arrow(folder: Path) -> bool:
    """Tell whether `save_to_disk` wrote this folder."""
    return (folder / SPLITS).is_file() or ((folder / STATE).is_file() and (folder / "dataset_info.json").is_file())


def _split(folder: Path) -> Path:
    """Return the folder of the split to train on."""
    if not (folder / SPLITS).is_file():
        return folder
    splits = [str(name) for name in _entry(folder / SPLITS, "splits", list)]
    if SPLIT not in splits and len(splits) != 1:
        raise UserError(f"'{folder}' has the splits {', '.join(splits)}; choose one by data.root={folder}/<split>")
    return folder / (SPLIT if SPLIT in splits else splits[0])


def _entry(file: Path, key: str, kind: type[Entry]) -> Entry:
    """Return what `save_to_disk` wrote under a key.

    Raises:
        UserError: the file is damaged.
    """
    content = read_json(file, "description of a data set")
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, kind):
        raise UserError(f"description of a data set '{file}' is damaged: it has no {key}")
    return value


def _image_column(features: Any, datasets: Any, folder: Path) -> str:
    """Return the column of images; failing that, one of bytes."""
    columns = [name for name, feature in features.items() if isinstance(feature, datasets.Image)] or [
        name for name, feature in features.items() if getattr(feature, "dtype", None) in ("binary", "large_binary")
    ]
    if len(columns) == 1 or COLUMN in columns:
        return COLUMN if COLUMN in columns else columns[0]
    found = f"several columns of images ({', '.join(columns)})" if columns else "no column of images"
    raise UserError(f"data set '{folder}' has {found}, among {', '.join(features)}; name the one to use '{COLUMN}'")
