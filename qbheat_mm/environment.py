"""Environment variables for config files, as they are.

mmengine's ``{{$NAME:default}}`` puts them into the text of the config, which quotes and backslashes break.
"""

from __future__ import annotations

import os


def read_env(name: str, default: str | int) -> str | int:
    """The value of an environment variable, of the type of ``default``, which an unset or empty one has.

    Raises:
        ValueError: If it is not a number though ``default`` is one.
    """
    value = os.environ.get(name) or default
    try:
        return type(default)(value)
    except ValueError:
        raise ValueError(f'The environment variable {name}={value!r} is not a whole number.') from None
