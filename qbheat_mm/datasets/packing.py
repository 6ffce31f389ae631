"""Making of packs, see ``packed``: resumable, complete or not there at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Sequence
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import BinaryIO

import numpy as np
from mmengine import ProgressBar
from mmengine.logging import print_log
from PIL import Image

from ..checkpoint import refuse_existing
from ..files import list_folders, open_file, read_file
from .image_folder import ImageFolderDataset
from .packed import HEADER, INDEX, MAGIC, PIXELS, VERSION, Pack, PackError, make_header, partial_folder
from .transforms.loading import decode_image, open_image

JOURNAL = 'journal.jsonl'  # of an unfinished pack: the task, and a line for each image that is done
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, a file system's or a process' limit of a file
CHUNK = 32  # images per worker between two entries


def pack_images(source: str | Path, out: str | Path, size: int | None = None, workers: int = 1) -> Pack:
    """Pack the images of a folder, or continue where the same call was interrupted.

    Everything is written beside ``out`` and renamed at the end.

    Args:
        source: Class folders, or any tree of images.
        out: The folder to make.
        size: Shorter side in pixels to which larger images are reduced; None keeps their sizes.
        workers: Threads that decode.

    Raises:
        FileExistsError: If ``out`` exists, or another folder in the place of the unfinished pack.
        PackError: If no image can be read, ``out`` lies in ``source``, another process writes the same pack, or the
            disk is full: then nothing of it is left.
    """
    source, out = Path(source), Path(out)
    refuse_existing(out)
    names, classes = list_names(source), list_folders(source)  # images beside the folders have no class
    if source.resolve() in out.resolve().parents:
        raise PackError(f'"{out}" lies in "{source}", where it would be a class; name a folder elsewhere.')
    check_space(source, names, out, size)
    partial = partial_folder(out)
    partial.mkdir(parents=True, exist_ok=True)
    if foreign := sorted({path.name for path in partial.iterdir()} - {JOURNAL, PIXELS, INDEX}):
        raise FileExistsError(f'"{partial}" holds {foreign[0]}, which no unfinished pack does; name another folder.')
    try:
        with (partial / JOURNAL).open('a+b') as journal:
            _lock(journal)
            task = dict(version=VERSION, size=size, source=_fingerprint(source, names, classes))
            records = _write_pixels(source, names, partial, journal, task, workers)
            _write_index(source, names, classes, partial, records)
            partial.rename(out)
            (out / JOURNAL).unlink()  # last: it is what an interrupted run continues from
    except OSError as error:
        if error.errno not in FULL:
            raise
        shutil.rmtree(partial, ignore_errors=True)
        raise PackError(
            f'"{out}" cannot be written ({error.strerror}); nothing of it was left. Free disk space, name another '
            'disk, or pack smaller images (--size).'
        ) from error
    return Pack(out)


def list_names(source: Path) -> list[str]:
    """The images below a folder as ImageFolderDataset lists them, by their path relative to it."""
    listed = ImageFolderDataset(data_root=str(source), with_label=False, pipeline=[])
    return [os.path.relpath(listed.get_data_info(i)['img_path'], source) for i in range(len(listed))]


def check_space(source: Path, names: Sequence[str], out: Path, size: int | None, sample: int = 64) -> None:
    """Refuse beforehand what does not fit the disk, judged by the sizes of some images.

    Raises:
        PackError: With what is needed and what is free.
    """
    sizes = []
    for name in names[:: max(len(names) // sample, 1)]:
        try:
            with open_file(source / name) as file, open_image(file) as image:
                sizes.append(3 * np.prod(_packed_size(image.size, size)))
        except Exception:  # Pillow's are of many types; the file is named when it is packed
            continue
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    done = partial_folder(out) / PIXELS
    free = shutil.disk_usage(folder).free + (done.stat().st_size if done.is_file() else 0)
    needed = np.mean(sizes or [0]) * len(names)
    if needed > free:
        raise PackError(
            f'"{out}" would take about {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free. Free disk space, name '
            'another disk, or pack smaller images (--size).'
        )


def _lock(journal: BinaryIO) -> None:
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PackError(f'Another process writes to "{Path(journal.name).parent}".') from None


def _write_pixels(
    source: Path, names: list[str], partial: Path, journal: BinaryIO, task: dict, workers: int
) -> list[dict]:
    """Append the pixels of the images that the journal lacks; returns a record of every image."""
    with (partial / PIXELS).open('ab') as pixels, ThreadPool(workers) as pool:
        records = _read_journal(journal, task, pixels.tell())
        pixels.truncate(_end(records))  # extends a new file by an empty header
        pixels.seek(0, os.SEEK_END)
        todo = iter(names[len(records) :])
        bar = ProgressBar(len(names) - len(records))
        while chunk := list(islice(todo, CHUNK * workers)):
            new = []
            for image in pool.imap(lambda name: _read_image(source / name, task['size']), chunk):
                new.append(_record(image))
                if not isinstance(image, str):
                    pixels.write(image)
            _sync(pixels)  # first: the journal names only what is on the disk
            _write_lines(journal, new)
            records += new
            bar.update(len(chunk))
    print()
    return records


def _read_journal(journal: BinaryIO, task: dict, size: int) -> list[dict]:
    """The records of the same task that was interrupted, up to the first damaged line; otherwise start one."""
    journal.seek(0)
    lines, whole = [], 0
    for line in journal:
        try:
            record = json.loads(line)
        except ValueError:  # never written before the machine lost its power
            break
        if not line.endswith(b'\n'):  # torn by a kill
            break
        lines.append(record)
        whole += len(line)
    if lines and lines[0] == task and _end(lines[1:]) <= size:
        journal.truncate(whole)
        return lines[1:]
    if lines:
        print_log(
            f'"{Path(journal.name).parent}" was begun with other images or another size, or is damaged: starting over.',
            logger='current',
            level=logging.WARNING,
        )
    journal.truncate(0)
    _write_lines(journal, [task])
    return []


def _fingerprint(source: Path, names: Sequence[str], classes: Sequence[str]) -> str:
    """A hash of the listing, which changes with any file."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for name in names:
        try:
            about = os.stat(source / name)
            state = (about.st_size, about.st_mtime_ns)
        except OSError:  # it is named as unreadable
            state = None
        digest.update(json.dumps([name, state]).encode())
    return digest.hexdigest()


def _record(image: np.ndarray | str) -> dict:
    if isinstance(image, str):
        return dict(error=image)
    return dict(shape=image.shape[:2], checksum=zlib.crc32(image))


def _end(records: list[dict]) -> int:
    """The size of the file that holds these images."""
    return HEADER + sum(3 * record['shape'][0] * record['shape'][1] for record in records if 'shape' in record)


def _write_lines(file: BinaryIO, records: list[dict]) -> None:
    file.write(b''.join(json.dumps(record).encode() + b'\n' for record in records))
    _sync(file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _write_index(source: Path, names: list[str], classes: list[str], partial: Path, records: list[dict]) -> None:
    """Write the index, and its hash into the header of the pixels."""
    read = [(name, record) for name, record in zip(names, records) if 'shape' in record]
    unreadable = {name: record['error'] for name, record in zip(names, records) if 'error' in record}
    if not read:
        shutil.rmtree(partial)
        raise PackError(f'None of {len(names)} images in "{source}" can be read; of the first: {records[0]["error"]}.')
    number = {name: i for i, name in enumerate(classes)}
    content = dict(
        format=MAGIC.decode(),
        version=VERSION,
        channels='BGR',
        classes=classes or None,
        names=[name for name, _ in read],
        labels=[number.get(Path(name).parts[0]) for name, _ in read],
        shapes=[record['shape'] for _, record in read],
        checksums=[record['checksum'] for _, record in read],
        unreadable=unreadable,
    )
    index = json.dumps(content).encode()
    for name, place, data in ((INDEX, 'wb', index), (PIXELS, 'r+b', make_header(index))):
        with (partial / name).open(place) as file:
            file.write(data)
            _sync(file)


def _read_image(path: Path, size: int | None) -> np.ndarray | str:
    """The pixels (H, W, 3), or why there are none."""
    try:
        image = decode_image(read_file(path))
        packed = _packed_size(image.shape[1::-1], size)
        if packed != image.shape[1::-1]:
            # Pillow's filters treat the channels alike, in whatever order.
            image = np.asarray(Image.fromarray(image).resize(packed, Image.Resampling.LANCZOS))
        return np.ascontiguousarray(image)
    except Exception as error:  # Pillow raises errors of many types for malformed files
        return f'{type(error).__name__}: {error}'


def _packed_size(size: tuple[int, int], shorter: int | None) -> tuple[int, int]:
    """Width and height, reduced to a shorter side."""
    scale = (shorter or min(size)) / min(size)
    return tuple(size) if scale >= 1 else tuple(max(shorter, round(side * scale)) for side in size)
