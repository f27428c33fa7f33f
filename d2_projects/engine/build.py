"""Parts of a recipe, built; what a part cannot be is its author's to hear, in a line."""

from __future__ import annotations

from typing import Any

from detectron2.config import instantiate

from spark.config.values import shown
from spark.errors import UserError
from spark.faults import fault


def build_part(name: str, description: Any) -> Any:
    """Return what a part of a recipe describes.

    Args:
        name: of the part, for messages.
        description: a LazyCall, or what holds some.

    Raises:
        UserError: it cannot be built.
    """
    try:
        return instantiate(description)
    except Exception as error:  # it may be anything that is raised in anybody's class
        if isinstance(error, UserError) or fault(error) is not None:
            raise
        reason = f"{type(error).__name__}: {shown(' '.join(str(error).split()), 300)}"
        raise UserError(f"the recipe's {name} cannot be built as it says: {reason}") from error
