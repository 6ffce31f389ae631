"""Text for messages."""

from __future__ import annotations

from collections.abc import Iterable


def printable(text: object) -> str:
    """Text in one line of valid Unicode: line breaks, other control characters and half surrogates are escaped."""
    return ''.join(each if each.isprintable() else each.encode('unicode_escape').decode() for each in str(text))


def join_names(names: Iterable, limit: int = 8) -> str:
    """The first names with commas, and how many more there are: 'a, b and 3 more'."""
    names = list(names)
    return ', '.join(map(printable, names[:limit])) + (f' and {len(names) - limit} more' if len(names) > limit else '')
