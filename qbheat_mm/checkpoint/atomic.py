"""Atomic writing: a file or folder appears complete or not at all. Nothing else in the project writes files."""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

PARTIAL = '.' + '[0-9a-f]' * 8 + '.partial'  # the pattern of what is added to a name while it is written


def _partial_of(path: Path) -> Path:
    return path.with_name(f'{path.name}.{secrets.token_hex(4)}.partial')


@contextmanager
def _on_error(remove: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(OSError):
            remove()
        raise


def atomic_write(path: str | Path, content: bytes) -> None:
    """Write a file atomically: ``path`` always holds the old content or the new.

    The content is written to a new file in the same folder, which is then renamed.

    Args:
        path: The file; its folder is created where necessary.
        content: What it holds.

    Raises:
        OSError: If it cannot be written, for example because the disk is full. An old file is left as it was.
    """
    path = Path(path)
    partial = _partial_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open('xb') as file, _on_error(partial.unlink):
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power failure may leave the new name without the content
            partial.replace(path)
    except OSError as error:
        raise OSError(
            error.errno,
            f'"{path}" cannot be written ({error.strerror}). Nothing of it was left, and the files that were there '
            'before are intact.',
        ) from error


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Write a folder atomically: yields a new folder beside ``path``, which is renamed to ``path`` at the end.

    After any exception the new folder is removed. So is what killed processes have left of the same ``path``.

    Args:
        path: The folder, whose parents are created where necessary. It must not exist when the block ends; to
            replace it, remove it as the last step within the block.

    Yields:
        The folder to write to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(glob.escape(path.name) + PARTIAL):
        with suppress(OSError), _lock(left) as abandoned:  # a process that still writes to it holds the lock
            if abandoned:
                shutil.rmtree(left)
    partial = _partial_of(path)
    partial.mkdir()
    with _on_error(lambda: shutil.rmtree(partial)), _lock(partial):
        yield partial
        partial.rename(path)


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock, which the system releases with the process; yields whether that is possible."""
    number = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except OSError:  # another process holds it, or the file system has no locks
            locked = False
        yield locked
    finally:
        os.close(number)


def damage(path: str | Path) -> str | None:
    """Describe the damage of a checkpoint file; None if every byte is as it was written.

    Nothing is unpickled: PyTorch's files are zip archives with a checksum for each entry, which torch.load does not
    compare.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        return f'{Path(path).stat().st_size} bytes, not a complete archive: {error}'
    return f'the checksum of its entry {broken} is wrong' if broken else None


@register_backend('atomic')
class AtomicBackend(LocalBackend):
    """mmengine's backend for local files with :func:`atomic_write`, for checkpoints."""

    def __init__(self) -> None:
        self._removals: list[str] | None = None

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a checkpoint atomically."""
        try:
            atomic_write(filepath, obj)
        except OSError as error:
            raise OSError(error.errno, f'{error.strerror} Once there is room, continue with --resume.') from error

    def remove(self, filepath: str | Path) -> None:
        """Remove a file, within :meth:`removing_last` at its end."""
        if self._removals is None:
            super().remove(filepath)
        else:
            self._removals.append(str(filepath))

    @contextmanager
    def removing_last(self) -> Iterator[None]:
        """Postpone removals within to the end, and drop them after an error."""
        self._removals = []
        try:
            yield
            removals = self._removals
        finally:
            self._removals = None
        for path in removals:
            super().remove(path)
