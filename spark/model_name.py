"""What a model's name tells by itself, before anything is imported to build it."""

from __future__ import annotations


def is_reference(name: str) -> bool:
    """Whether a model's name says where its class is; no timm name has a colon."""
    return ":" in name


def shown_name(name: str) -> str:
    """Return what to call a model where people read: of one's own network, `path/to/file.py:ClassName`, the class."""
    return name.rpartition(":")[2]
