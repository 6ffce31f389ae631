"""Arguments of registered classes are checked where they are built, so that a message names the field and not a tensor.

Bounds stand in the annotations, as pydantic's: ``depth: Annotated[int, Field(ge=1, le=12)]``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, validate_call

STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)


def _names_type(config: dict) -> dict:
    if not isinstance(config.get('type'), (str, type)):
        raise ValueError('it names no type')
    return config


# Upper bounds keep typing errors from allocating memory, or starting processes, until the machine stops.
Size = Annotated[int, Field(gt=0, le=2**20)]
Depth = Annotated[int, Field(gt=0, le=100)]
Workers = Annotated[int, Field(ge=0, le=1000)]
FileName = Annotated[str, Field(min_length=1)]
Component = Annotated[dict, AfterValidator(_names_type)]  # config of a registered class
InitConfig = Component | list[Component] | None


def check_arguments(init: Callable) -> Callable:
    """Decorate an ``__init__``: its arguments must be as their annotations say, numbers finite.

    They are handed on as they are: pydantic would copy configs.

    Raises:
        ValueError: With the component, the field, its value and the reason.
    """

    @validate_call(config=STRICT)
    @functools.wraps(init)
    def check(*args, **kwargs) -> None:
        pass

    @functools.wraps(init)
    def checked(self, *args, **kwargs) -> None:
        try:
            check(self, *args, **kwargs)
        except ValidationError as error:
            raise ValueError(f'{type(self).__name__}: {_explain(error, inspect.signature(init))}') from None
        init(self, *args, **kwargs)

    return checked


def _explain(error: ValidationError, signature: inspect.Signature) -> str:
    """One line: each field with its value, and what is wrong with it."""
    reasons: dict[str, list[str]] = {}
    for each in error.errors(include_url=False):
        field, *inner = each['loc']
        field = field if isinstance(field, str) else list(signature.parameters)[field]
        field += ''.join(f'[{key}]' for key in inner if isinstance(key, int))
        if not each['type'].startswith('missing'):
            value = repr(each['input'])
            field += f'={value if len(value) <= 80 else value[:80] + "..."}'
        reasons.setdefault(field, []).append(each['msg'].removeprefix('Value error, '))
    return '; '.join(f'{field}: {" or ".join(each)}' for field, each in reasons.items())
