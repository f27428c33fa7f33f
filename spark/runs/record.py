"""The typed result record: one `result.json` for every finished evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from spark.errors import UserError
from spark.utils.files import write_json
from spark.utils.json_text import as_instance, read_json
from spark.utils.provenance import content_hash

# Incremented when a field changes its meaning or is removed. Adding a field does not change it, if the field's default
# means "unknown".
SCHEMA_VERSION = 1
FILE_NAME = "result.json"

Origin = Literal["measured", "smoke", "published"]


@dataclass(frozen=True)
class Metric:
    """One number with its unit and interpretation."""

    value: float
    unit: str  # "%" or "AP (0-100)"
    higher_is_better: bool = True


@dataclass(frozen=True)
class Initialization:
    """Where the backbone's weights came from."""

    kind: str  # scratch | spark | supervised
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    pretrained_epochs: int | None = None
    recipe_hash: str | None = None  # of the pre-training without its seed; shared by repetitions


@dataclass(frozen=True)
class ResultRecord:
    """What a run measured, and everything that decides whether two numbers may be compared.

    `protocol` holds the settings that define the task (data, epochs, augmentation, …, but neither seed
    nor initialization); its hash is the protocol id. `main_metric` names the entry of `metrics` that
    tables show.
    """

    task: str  # imagenet_finetune | coco_mask_rcnn
    task_version: int
    model: str
    init: Initialization
    metrics: dict[str, Metric]
    main_metric: str
    protocol: dict[str, Any]
    seed: int
    epochs: float
    origin: Origin
    code_version: str
    environment: dict[str, str]
    hardware: str
    wall_seconds: float
    images_per_second: float | None = None
    peak_memory_mib: float | None = None
    log: str | None = None
    checkpoint: str | None = None
    resolved: dict[str, str] = field(default_factory=dict)  # resolved values of `auto` settings, by dotted key
    checksums: dict[str, str] = field(default_factory=dict)  # of the images' content, or of a sample of it, by split
    schema_version: int = SCHEMA_VERSION
    protocol_id: str = field(default="")

    def __post_init__(self) -> None:
        if self.main_metric not in self.metrics:
            raise ValueError(f"main metric '{self.main_metric}' is not among {sorted(self.metrics)}")
        bad = [name for name, metric in self.metrics.items() if not math.isfinite(metric.value)]
        if bad:
            raise UserError(f"the run ended with non-finite metrics {', '.join(bad)}; no result is written")
        identity = content_hash(
            # Nested, so that no protocol setting can overwrite the task's name or version.
            {"task": self.task, "version": self.task_version, "protocol": self.protocol}
        )
        object.__setattr__(self, "protocol_id", identity)

    def save(self, run: Path) -> Path:
        """Write `result.json` into the run's folder and return its path."""
        destination = run / FILE_NAME
        write_json(destination, dataclasses.asdict(self))
        return destination


def load_record(path: Path) -> ResultRecord:
    """Read a record.

    Raises:
        UserError: the file is not a record of a schema version that this code reads.
    """
    content = read_json(path, "result record")
    if not isinstance(content, dict):
        raise UserError(f"result record '{path}' is damaged: it holds no fields")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(f"{path}: schema version {version} is not supported (expected {SCHEMA_VERSION})")
    try:
        record = as_instance(ResultRecord, content)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a result record: {error}") from None
    stored_protocol_id = content.get("protocol_id")
    if stored_protocol_id != record.protocol_id:
        raise UserError(f"{path}: its protocol id does not match its protocol; was the file edited by hand?")
    return record


def options_of(record: ResultRecord) -> Mapping[str, Any]:
    """Return the model options beyond its name, given to timm or a user's class; other options are another network."""
    options = setting_of(record, "model", "options")
    return options if isinstance(options, Mapping) else {}


def setting_of(record: ResultRecord, *names: str) -> Any:
    """Return a setting of the protocol, by the names on the way to it; None if there is no such setting."""
    return value_below(record.protocol, *names)


def value_below(settings: Any, *names: str) -> Any:
    """Return a value of nested mappings, by the names on the way to it; None if there is no such value."""
    for name in names:
        settings = settings.get(name) if isinstance(settings, Mapping) else None
    return settings
