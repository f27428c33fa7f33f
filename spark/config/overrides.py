"""Overrides as the command line gives them: `key=value`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spark.errors import UserError


def split_overrides(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield key and text of every override; of a key that comes again later, the last is meant to count.

    Raises:
        UserError: a word is no override; or one key stands twice in a row, which is what a shell makes of braces
            (`data.root=shards-{000..127}.tar`): the last shard would be taken for all.
    """
    before = None
    for override in overrides:
        key, separator, text = override.partition("=")
        key = key.strip()
        if not separator:
            raise UserError(f"'{override}' is not an override: write key=value")
        if key == before:
            raise UserError(
                f"'{key}' is given twice in a row, again as '{text}'; a value with braces must be quoted, "
                f"else the shell expands it: '{key}=…{{000..127}}…'"
            )
        before = key
        yield key, text
