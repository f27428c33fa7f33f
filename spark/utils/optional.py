"""Packages that only some users need."""

from __future__ import annotations

import importlib
from typing import Any

from spark.errors import UserError


def optional_package(name: str, purpose: str) -> Any:
    """Import a package that is not among the requirements.

    Args:
        name: of the package.
        purpose: what needs it, for the message.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{purpose} needs the package '{name}': pip install {name}") from None
