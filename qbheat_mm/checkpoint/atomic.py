"""Atomic writes of files and folders, and a check of checkpoint files for damage."""

from __future__ import annotations

import glob
import logging
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import print_log

from ..text import join_names

PARTIAL = f'.{"[0-9a-f]" * 8}.partial'  # pattern of the ending of temporary names
ADDED = len('.01234567.partial')  # bytes
MAX_NAME = 255  # bytes of a file name in the file systems of Linux


def temporary_path(path: Path) -> Path:
    """A name beside ``path`` that no other process uses."""
    return path.with_name(f'{shorten_name(path.name, ADDED)}.{secrets.token_hex(4)}.partial')


def shorten_name(name: str, room: int) -> str:
    """As much of a file name as leaves room for some more bytes."""
    while len(os.fsencode(name)) > MAX_NAME - room:
        name = name[:-1]
    return name


def refuse_existing(path: str | Path) -> None:
    """Refuse to overwrite.

    Raises:
        FileExistsError: If there is anything at ``path``, a broken link included.
    """
    if os.path.lexists(path):
        raise FileExistsError(f'"{path}" exists already; name another, or remove it.')


def atomic_write(path: str | Path, content: bytes, replace: bool = True) -> None:
    """Write a temporary file beside ``path`` and rename it: ``path`` holds the old content or the new, never a part.

    Args:
        path: The file to write.
        content: What it shall hold.
        replace: Whether an existing file is replaced.

    Raises:
        FileExistsError: If ``path`` exists and is not to be replaced.
        OSError: If the disk is full, or refuses otherwise; the temporary file is removed, an old file is left as it is.
    """
    path = Path(path)
    partial = temporary_path(path)
    if not replace:
        refuse_existing(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open('xb') as file:  # fails, before anything is removed, where the name is taken
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the new name without the content
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            error.errno, f'"{path}" cannot be written ({error.strerror}). Files that were there before are unchanged.'
        ) from error


@contextmanager
def atomic_dir(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``path`` to fill, renamed to ``path`` at the end and removed after any error.

    Nothing else is removed: temporary folders that killed processes left are logged.

    Args:
        path: The folder to make.
        replace: Whether an existing folder is replaced.

    Raises:
        FileExistsError: If ``path`` exists and is not to be replaced.
    """
    path = Path(path)
    if not replace:
        refuse_existing(path)
    if left := sorted(path.parent.glob(glob.escape(shorten_name(path.name, ADDED)) + PARTIAL)):
        print_log(
            f'Temporary folders of other runs, to be removed where they were killed: {join_names(left)}',
            logger='current',
            level=logging.WARNING,
        )
    partial = temporary_path(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        if replace and path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def damage(path: str | Path) -> str | None:
    """Describe the damage of a checkpoint file; None if every byte is as it was written.

    Nothing is unpickled: PyTorch's files are zip archives with a checksum for each entry, which torch.load ignores.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        return f'{Path(path).stat().st_size} bytes, no complete archive: {error}'
    return f'the checksum of its entry {broken} is wrong' if broken else None


@register_backend('atomic')
class AtomicBackend(LocalBackend):
    """mmengine's backend for local files, for checkpoints: writes with :func:`atomic_write`."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write atomically.

        Raises:
            OSError: If the disk is full, with the remedy.
        """
        try:
            atomic_write(filepath, obj)
        except OSError as error:
            raise OSError(error.errno, f'{error.strerror} Free disk space, then continue with --resume.') from error
