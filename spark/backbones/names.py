"""What a model's name tells by itself, before anything is imported to build it."""

from __future__ import annotations

from collections.abc import Collection

from spark.errors import UserError, nearest


def is_reference(name: str) -> bool:
    """Whether a model's name says where its class is; no timm name has a colon."""
    return ":" in name


def require_trust(name: str, trust: Collection[str], named_by: str) -> None:
    """Raise UserError for a reference that a file names, not a person, unless a person says that its code may run.

    Args:
        name: of a model or a task, of whatever sort.
        trust: references whose code may run.
        named_by: what names it, for the message.
    """
    if is_reference(name) and name not in trust:
        raise UserError(f"{named_by} names '{name}', whose code would run: if you know it, pass --trust '{name}' "
                        f"(in Python trust=['{name}'])")


def shown_name(name: str) -> str:
    """Return what to call a model where people read: of one's own network, `path/to/file.py:ClassName`, the class."""
    return name.rpartition(":")[2]


def unknown_model(name: str) -> UserError:
    """Return what to tell whoever names a model that timm does not have."""
    import timm  # takes seconds

    hint = f" Name the class, too: {name}:ClassName" if name.endswith(".py") else nearest(name, timm.list_models())
    return UserError(f"unknown model '{name}'.{hint}")
