"""Who owns a work dir: one training at a time, and none that starts anew over the checkpoints of another."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path
from typing import IO

from mmengine.logging import print_log

from .resume import own_checkpoints

LOCK = '.lock'
BUSY = (errno.EACCES, errno.EAGAIN)
_held: dict[Path, IO] = {}


class WorkDirError(OSError):
    """A work dir that a training cannot have."""


def claim(work_dir: str | Path, resume: bool) -> None:
    """Lock a work dir for the training of this process, until :func:`release` or the end of the process.

    The lock is advisory, and belongs to the process: it does not outlive it, also if the process is killed and its
    data loaders are not.

    Args:
        work_dir: Made where it does not exist.
        resume: Whether the training resumes what is there.

    Raises:
        WorkDirError: If another process trains in it, it holds checkpoints and is not resumed, or cannot be written to.
    """
    folder = Path(work_dir).resolve()
    if folder not in _held:
        _held[folder] = _lock(folder, work_dir)
    if not resume and (found := own_checkpoints(folder)):
        release(work_dir)
        raise WorkDirError(
            f'The work dir "{work_dir}" holds checkpoints of another training ({found[0].name}), which this one would '
            'overwrite. Continue that with --resume, or name another folder with --work-dir.'
        )


def release(work_dir: str | Path) -> None:
    """Let others have the work dir."""
    file = _held.pop(Path(work_dir).resolve(), None)
    if file is not None:
        file.close()


def _lock(folder: Path, name: str | Path) -> IO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open('a+')
    except OSError as error:
        what = 'is a file' if folder.is_file() else f'cannot be written to ({error.strerror})'
        raise WorkDirError(f'The work dir "{name}" {what}; name another folder with --work-dir.') from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock would be inherited by data loaders
    except OSError as error:
        if error.errno in BUSY:
            file.seek(0)
            holder = file.read(200).strip() or 'another process'
            file.close()
            raise WorkDirError(
                f'The work dir "{name}" is in use: {holder} trains in it. Wait for its end, or name another folder '
                'with --work-dir.'
            ) from error
        print_log(f'{folder} cannot be locked ({error.strerror}).', 'current', logging.WARNING)
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
    return file
