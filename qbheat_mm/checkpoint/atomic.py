"""Files that are there whole or not at all, and how to tell."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

PARTIAL = '.partial'


def atomic_write(path: str | Path, content: bytes) -> None:
    """Write to a file beside ``path`` and rename it, so that ``path`` always holds the old content or the new.

    Raises:
        OSError: If the disk is full, or refuses otherwise; the partial file is removed and an old one is left.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open('wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name without the content
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise OSError(
            error.errno,
            f'"{path}" cannot be written ({error.strerror}). Nothing of it was left, and the files that were there '
            'before are whole. Once there is room, go on with --resume.',
        ) from error


@contextmanager
def atomic_dir(target: str | Path, replace: bool = False) -> Iterator[Path]:
    """Yield a new folder beside ``target`` and rename it at the end; an error removes it and leaves ``target``.

    Args:
        target: The folder to write.
        replace: Remove an existing ``target`` before the renaming.
    """
    target = Path(target)
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if replace:
            shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def damage(path: str | Path) -> str | None:
    """What is wrong with a checkpoint file; None where every byte is as it was written.

    Nothing in it is unpickled: PyTorch's files are zip archives, with a checksum for each entry (which torch.load does
    not compare).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        return f'{Path(path).stat().st_size} bytes, no whole archive: {error}'
    return f'the checksum of its entry {broken} is wrong' if broken else None


@register_backend('whole_files')
class WholeFilesBackend(LocalBackend):
    """mmengine's backend for local files, by :func:`atomic_write`."""

    def __init__(self) -> None:
        self._removals: list[str] | None = None

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write whole or not at all."""
        atomic_write(filepath, obj)

    def remove(self, filepath: str | Path) -> None:
        """Remove, or within :meth:`removing_last` remember to."""
        if self._removals is None:
            super().remove(filepath)
        else:
            self._removals.append(str(filepath))

    @contextmanager
    def removing_last(self) -> Iterator[None]:
        """Remove at the end, and nothing after an error, what is removed within."""
        self._removals = []
        try:
            yield
            removals = self._removals
        finally:
            self._removals = None
        for path in removals:
            super().remove(path)
