"""Environment variables for config files, as they are.

mmengine's ``{{$NAME:default}}`` puts them into the text of the config, which quotes and backslashes break.
"""

from __future__ import annotations

import os


def read_env(name: str, default: str | int) -> str | int:
    """The value of an environment variable, of the type of ``default``, which an unset or empty one has.

    A ``~`` at its beginning, which a shell leaves in quotes and a container's settings as it is, is the home folder.

    Raises:
        ValueError: If it is not a number though ``default`` is one.
    """
    value = os.environ.get(name) or default
    try:
        return os.path.expanduser(value) if isinstance(default, str) else type(default)(value)
    except ValueError:
        raise ValueError(f'The environment variable {name}={value!r} is not a whole number.') from None
