"""Finding and reading files that others made."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mmengine.logging import print_log

from .text import join_names, printable

JUNK = ('__MACOSX', '@eaDir')  # copies and thumbnails by archivers and network drives, besides hidden files
PATIENCE = 10  # seconds between two reports of a listing
# Beginnings of files that are often found under another name: offset, bytes, what they are, and the remedy.
CONTENTS = (
    (
        0,
        b'version https://git-lfs',
        'a pointer of git-LFS, not the file itself',
        'run `git lfs pull` where it came from',
    ),
    (4, b'ftypheic', 'a HEIC photo', 'convert it to JPEG'),
    (4, b'ftypheix', 'a HEIC photo', 'convert it to JPEG'),
    (4, b'ftypmif1', 'a HEIF photo', 'convert it to JPEG'),
    (4, b'ftypmsf1', 'a HEIF photo', 'convert it to JPEG'),
    (4, b'ftypavi', 'an AVIF image', 'convert it to JPEG, or install a Pillow that reads AVIF'),
    (4, b'ftyp', 'a video or sound', 'extract its frames'),
    (0, b'\x1aE\xdf\xa3', 'a video', 'extract its frames'),
    (0, b'\xff\x0a', 'a JPEG XL image', 'convert it to JPEG'),
    (0, b'\0\0\0\x0cJXL ', 'a JPEG XL image', 'convert it to JPEG'),
    (0, b'%PDF', 'a PDF', 'export its images'),
    (0, b'PK\x03\x04', 'a zip archive', 'unpack it'),
    (0, b'\x1f\x8b', 'a gzip archive', 'unpack it'),
    (257, b'ustar', 'a tar archive', 'unpack it'),
    (0, b'7z\xbc\xaf', 'a 7z archive', 'unpack it'),
    (0, b'Rar!', 'a rar archive', 'unpack it'),
    (0, b'\x93NUMPY', 'an array of NumPy', 'save it as PNG'),
    (0, b'\x89HDF', 'an HDF5 file', 'save its images as PNG'),
    (128, b'DICM', 'a DICOM image', 'convert it to PNG'),
)
TEXTS = (  # the same of text, in lower case
    ('<!doctype html', 'an HTML page, perhaps the error of a server', 'download the file again'),
    ('<html', 'an HTML page, perhaps the error of a server', 'download the file again'),
    ('<svg', 'a vector drawing (SVG)', 'export it as PNG'),
)
CIRCLE = 'links to a folder that is listed anyway, or that contains them'


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


def describe_content(content: bytes) -> str:
    """What the beginning of a file that cannot be read looks like, with the remedy; empty if it is not known."""
    if not content.strip(b'\0'):
        return 'it is empty, or holds zeros alone; download or copy the file again'
    start = content[:512].decode(errors='ignore').lower()
    found = [(what, remedy) for offset, magic, what, remedy in CONTENTS if content.startswith(magic, offset)]
    found += [(what, remedy) for text, what, remedy in TEXTS if text in start]
    return f'it looks like {found[0][0]}; {found[0][1]}' if found else ''


def list_files(folder: str | Path, suffixes: tuple[str, ...]) -> list[str]:
    """Files at any depth below a folder by their endings (in lower case), as relative paths, sorted.

    The kind of a file comes with the listing of its folder where the file system tells it, so that a million files take
    seconds, also on a network disk. Longer listings report how far they are. Links are followed, and each folder is
    listed once, under its own path if it has one below ``folder``. Skipped and logged: hidden files and folders and
    other ``JUNK``, links in circles, broken links, FIFOs and the like, and folders that cannot be opened.

    Raises:
        OSError: If ``folder`` itself cannot be opened.
    """
    found: list[str] = []
    skipped: dict[str, list[str]] = defaultdict(list)
    progress = _Progress(folder)
    done = _ancestors(folder)
    folders = ['']  # relative, with a slash at the end
    links: list[str] = []
    while folders or links:
        current = folders.pop() if folders else links.pop(0)
        path = os.path.join(folder, current)
        try:
            entries = sorted(progress.watch(os.scandir(path)), key=lambda entry: entry.name)
            identity = _identity(path)
        except OSError as error:
            if not current:
                raise
            skipped[f'folders that cannot be opened ({error.strerror})'].append(current)
            continue
        if current and identity in done:
            skipped[CIRCLE].append(current)
            continue
        done.add(identity)
        for entry in entries:
            name = current + entry.name
            is_file = entry.name.lower().endswith(suffixes)
            if _is_dir(entry):
                kind = links if entry.is_symlink() else folders
                (skipped['hidden folders'] if is_junk(entry.name) else kind).append(f'{name}/')
            elif is_file and is_junk(entry.name):
                skipped['hidden files'].append(name)
            elif is_file:
                (found if _is_file(entry) else skipped['broken links, FIFOs or devices']).append(name)
    if skipped:
        kinds = '; '.join(f'{len(names)} {kind} ({join_names(names)})' for kind, names in skipped.items())
        print_log(f'"{printable(folder)}": skipped {kinds}', logger='current', level=logging.WARNING)
    return sorted(found)


def list_folders(folder: str | Path) -> list[str]:
    """Names of the folders directly in a folder that :func:`list_files` enters, sorted."""
    above = _ancestors(folder)
    entries = [entry for entry in os.scandir(folder) if _is_dir(entry) and not is_junk(entry.name)]
    return sorted(entry.name for entry in entries if _identity(entry.path) not in above)


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or made by a machine beside the user's own."""
    return name.startswith('.') or name in JUNK


def _identity(path: str | Path) -> tuple[int, int]:
    about = os.stat(path)
    return about.st_dev, about.st_ino


def _ancestors(folder: str | Path) -> set[tuple[int, int]]:
    """The identities of a folder and of those that contain it."""
    folder = Path(folder).resolve()
    return {_identity(path) for path in (folder, *folder.parents)}


def _is_dir(entry: os.DirEntry) -> bool:
    """As ``DirEntry.is_dir``, which raises an error for a link to itself."""
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry) -> bool:
    """As ``os.path.isfile``, which asks the disk about each file."""
    return os.path.isfile(entry) if entry.is_symlink() else entry.is_file()


class _Progress:
    """Counts what is listed below a folder, and logs the number from time to time."""

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.count, self.last = folder, 0, time.monotonic()

    def watch(self, entries: Iterator[os.DirEntry]) -> Iterator[os.DirEntry]:
        for entry in entries:
            self.count += 1
            if time.monotonic() - self.last >= PATIENCE:
                self.last = time.monotonic()
                text = f'"{printable(self.folder)}": {self.count} files and folders are listed, more to come'
                print_log(text, logger='current')
            yield entry
