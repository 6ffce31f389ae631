"""Atomic writes of files and folders, and a check of checkpoint files for damage."""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

PARTIAL = f'.{"[0-9a-f]" * 8}.partial'  # pattern of the ending of temporary names


def temporary_path(path: Path) -> Path:
    """A name beside ``path`` that no other process uses."""
    return path.with_name(f'{path.name}.{secrets.token_hex(4)}.partial')


def atomic_write(path: str | Path, content: bytes) -> None:
    """Write a temporary file beside ``path`` and rename it: ``path`` holds the old content or the new, never a part.

    Raises:
        OSError: If the disk is full, or refuses otherwise; the temporary file is removed, an old file is left as it is.
    """
    path = Path(path)
    partial = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open('xb') as file:
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

    Temporary folders that killed processes left of the same ``path`` are removed first.

    Args:
        path: The folder to make.
        replace: Whether an existing folder is replaced.

    Raises:
        FileExistsError: If ``path`` exists and is not to be replaced.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise FileExistsError(f'"{path}" exists already; name another folder, or remove it.')
    for left in path.parent.glob(glob.escape(path.name) + PARTIAL):
        with suppress(OSError), _lock(left) as abandoned:
            if abandoned:
                shutil.rmtree(left)
    partial = temporary_path(path)
    partial.mkdir(parents=True)
    try:
        with _lock(partial):
            yield partial
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Lock a folder until the process ends; yields False if another process holds the lock, or there are no locks."""
    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
    except OSError:
        locked = False
    try:
        yield locked
    finally:
        os.close(number)


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
