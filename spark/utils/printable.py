"""Text for people: names in one line, which may hold line ends and bytes that are no UTF-8; and numbers of things."""

from __future__ import annotations

import unicodedata

UNSEEN = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories: controls, halves of characters, ends of lines and paragraphs


def printable(text: str) -> str:
    """Return a text with escapes, such as `\\n`, in the place of what cannot be seen or is no character."""
    if text.isprintable():
        return text
    return "".join(ascii(sign)[1:-1] if unicodedata.category(sign) in UNSEEN else sign for sign in text)


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number of things in words, such as `1 thread` and `2,000 threads`.

    Args:
        number: of them.
        one: what one is called.
        several: what several are called, where that is not `one` with an s.
    """
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"
