"""Names as text that can be shown, in one line: file names may hold line ends, and bytes that are no UTF-8."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a text with escapes, such as `\\n`, in the place of what cannot be seen or is no character."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in text)
