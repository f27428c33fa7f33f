"""What was found out before, kept in the user's cache: a file that is not there, torn or altered tells nothing."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from spark.errors import UserError
from spark.utils.files import open_regular, write_text
from spark.utils.provenance import content_hash


def user_cache(name: str) -> Path:
    """Return the folder of the user's cache for things of a kind; it need not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spark-transfer" / name


def recall(file: Path) -> Any:
    """Return what was kept in a file; None if that is not there, or no longer what was written."""
    try:
        with open_regular(file) as opened:
            checksum, _, text = opened.read().decode("utf-8").partition("\n")
        return json.loads(text) if checksum == content_hash(text) else None
    except (OSError, ValueError):
        return None


def keep(file: Path, content: Any) -> None:
    """Keep what JSON can tell; a cache that cannot be written is no reason to stop."""
    text = json.dumps(content)
    with contextlib.suppress(UserError):
        write_text(file, f"{content_hash(text)}\n{text}")
