"""Our own export: `encoder.safetensors` (dense backbone, timm naming) beside `encoder.json` (provenance)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from spark.backbones.options import require_own_options
from spark.errors import UserError
from spark.utils.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, INFO = "encoder.safetensors", "encoder.json"
CHECKSUM = "tensors_sha256"  # key of the description; exports of older versions have none


@dataclass(frozen=True)
class EncoderInfo:
    """What one must know to use an exported encoder."""

    model: str  # timm name, or path/to/file.py:ClassName of a user's own network
    in_chans: int
    input_size: tuple[int, int]  # height, width in pixels
    mean: tuple[float, ...]  # of images scaled to 0..1
    std: tuple[float, ...]
    method: str  # "spark", "supervised", "imported" (nobody said how it was trained)
    epochs: int | None
    config_hash: str | None
    code_version: str
    options: dict[str, Any] = field(default_factory=dict)  # more that timm.create_model, or the own class, was given
    recipe_hash: str | None = None  # of settings and images of the training but for its seed, which repetitions share
    resolved: dict[str, str] = field(default_factory=dict)  # what settings that say `auto` came to, by dotted key
    images_checksum: str | None = None  # of what the training images held, or a sample of them; unknown of older ones
    source: str | None = None  # of an own network: the file that its class came from, and the hash of its content


@dataclass(frozen=True)
class Encoder:
    """A dense backbone's weights in timm naming (or that of a user's own class), without a classification head."""

    state: dict[str, Tensor]
    info: EncoderInfo


def save_encoder(folder: Path, encoder: Encoder) -> Path:
    """Write both files atomically and return the path of the weights."""
    from spark.formats.writer import save_tensors  # imports torch, which takes seconds, and some want the names alone
    from spark.utils.state_dict import digest

    save_tensors(folder / WEIGHTS, encoder.state, {})
    write_json(folder / INFO, {**dataclasses.asdict(encoder.info), CHECKSUM: digest(encoder.state)})
    return folder / WEIGHTS


def is_export(path: Path) -> bool:
    """Whether this is where an export lies: a folder, or a `.safetensors` file with its description beside it."""
    return path.is_dir() or (path.suffix == ".safetensors" and path.with_suffix(".json").is_file())


def load_encoder(path: Path | str) -> Encoder:
    """Read an export, given its folder or its `.safetensors` file.

    Raises:
        UserError: a file is missing, damaged or not an export.
    """
    from safetensors.torch import load_file

    from spark.utils.state_dict import digest

    path = Path(path)
    weights = path / WEIGHTS if path.is_dir() else path
    info = weights.with_suffix(".json")
    for file in (weights, info):
        if not file.is_file():
            raise UserError(f"'{file}' does not exist; an exported encoder is {WEIGHTS} beside {INFO}")
    try:
        content = json.loads(info.read_text(encoding="utf-8"))
        for name in ("input_size", "mean", "std"):
            content[name] = tuple(content[name])
        expected = content.pop(CHECKSUM, None)
        description = EncoderInfo(**content)
        _check_types(description)
        require_own_options(description.options)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"'{info}' does not describe an exported encoder: {error}") from None
    try:
        state = load_file(weights)
    except SafetensorError as error:
        raise UserError(f"'{weights}' is truncated or not a safetensors file: {error}") from None
    if expected is not None and digest(state) != expected:
        raise UserError(f"the tensors in '{weights}' are not those that were exported ('{info}' has their checksum): "
                        "the file is damaged, or of another export; get both anew")
    return Encoder(state, description)


def _check_types(info: EncoderInfo) -> None:
    """Raise TypeError where a file that somebody edited says what cannot be."""

    def numbers(values: tuple[Any, ...]) -> bool:
        return len(values) > 0 and all(isinstance(value, int | float) for value in values)

    sound = {
        "model": isinstance(info.model, str),
        "in_chans": isinstance(info.in_chans, int),
        "input_size": len(info.input_size) == 2 and all(isinstance(side, int) for side in info.input_size),
        "options": isinstance(info.options, dict),
        "resolved": isinstance(info.resolved, dict),
        "mean": numbers(info.mean),
        "std": numbers(info.std),
    }
    if unsound := [name for name, holds in sound.items() if not holds]:
        raise TypeError(f"{unsound[0]}={getattr(info, unsound[0])!r}")
