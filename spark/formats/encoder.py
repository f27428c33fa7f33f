"""Our own export: `encoder.safetensors` (dense backbone, timm naming) beside `encoder.json` (provenance)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from spark.backbones.options import require_own_options
from spark.config.values import Channels, Level, Pixels, Place, Positive, wrong_values
from spark.errors import UserError
from spark.utils.files import write_json
from spark.utils.json_text import as_instance, read_json

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, INFO = "encoder.safetensors", "encoder.json"
CHECKSUM = "tensors_sha256"  # key of the description; exports of older versions have none


@dataclass(frozen=True)
class EncoderInfo:
    """What one must know to use an exported encoder."""

    model: Place  # timm name, or path/to/file.py:ClassName of a user's own network
    in_chans: Channels
    input_size: tuple[Pixels, Pixels]  # height, width in pixels
    mean: tuple[Level, ...]  # of images scaled to 0..1
    std: tuple[Positive, ...]
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
    description, expected = _described(info)
    try:
        state = load_file(weights)
    except SafetensorError as error:
        raise UserError(f"'{weights}' is truncated or not a safetensors file: {error}") from None
    if expected is not None and digest(state) != expected:
        raise UserError(f"the tensors in '{weights}' are not those that were exported ('{info}' has their checksum): "
                        "the file is damaged, or of another export; get both anew")
    return Encoder(state, description)


def _described(info: Path) -> tuple[EncoderInfo, Any]:
    """Return the description of an export, and the checksum of its tensors if it says one.

    Raises:
        UserError: the file is none, or tells of what cannot be.
    """
    content = read_json(info, "description of an export")
    expected = content.pop(CHECKSUM, None) if isinstance(content, dict) else None
    try:
        description = as_instance(EncoderInfo, content)
    except (ValueError, TypeError) as error:
        raise UserError(f"'{info}' does not describe an exported encoder: {error}") from None
    wrong = list(wrong_values(description))
    if not (description.mean and description.std):
        wrong.append("mean and std must be of at least one channel")
    if wrong:
        raise UserError(f"'{info}' does not describe an exported encoder: {'; '.join(wrong)}")
    require_own_options(description.options)
    return description, expected
