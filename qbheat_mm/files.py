"""Reading files that others made."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: If it cannot be read, or is a FIFO or a device, for which a plain ``open`` may wait forever.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, 'Not a regular file', str(path))
    return os.fdopen(number, 'rb')


def read_file(path: str | Path, limit: int | None = None) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: If it cannot be read, is larger, or is not a regular file.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise OSError(errno.EFBIG, f'{size} bytes, at most {limit} are expected', str(path))
        return file.read()
