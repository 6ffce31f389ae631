"""Values of a config are checked where a component is built, so that a message names the field and not a tensor."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


def check_arguments(*positive: str) -> Callable:
    """Decorate an ``__init__``: its arguments must be of their annotated types, numbers finite, some positive.

    Args:
        *positive: Names of the numbers that must be larger than 0.

    Raises:
        ValueError: With the component, the field and its value.
    """

    def decorate(init: Callable) -> Callable:
        @functools.wraps(init)
        def checked(self, *args, **kwargs) -> None:
            component = type(self).__name__
            try:
                given = inspect.signature(init).bind(self, *args, **kwargs).arguments
            except TypeError as error:  # a field that is missing or unknown; Python names it
                raise ValueError(f'{component}: {error}') from error
            for name, kind in get_type_hints(init).items():
                if name not in given:
                    continue
                value = given[name]
                if not _fits(value, kind):
                    raise ValueError(f'{component}: {name}={_show(value)} is not of type {_name(kind)}.')
                if name in positive and isinstance(value, (int, float)) and value <= 0:
                    raise ValueError(f'{component}: {name}={value} must be larger than 0.')
            init(self, *args, **kwargs)

        return checked

    return decorate


def _fits(value, kind) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if kind is Any:
        return True
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if origin is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_fits(v, inner[0]) for v in value)
    return isinstance(value, origin or kind)


def _name(kind) -> str:
    if get_origin(kind) in (Union, UnionType):
        return ' or '.join(map(_name, get_args(kind)))
    if kind is NoneType:
        return 'None'
    return str(kind).removeprefix('collections.abc.') if get_args(kind) else kind.__name__


def _show(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + '...'
