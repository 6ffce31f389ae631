"""Text for messages."""

from __future__ import annotations

from collections.abc import Iterable


def join_names(names: Iterable, limit: int = 8) -> str:
    """The first names with commas, and how many more there are: 'a, b and 3 more'."""
    names = [str(name) for name in names]
    return ', '.join(names[:limit]) + (f' and {len(names) - limit} more' if len(names) > limit else '')
