"""Packed images: decoded once, stored as uint8 in one file that all workers and processes read by memory map.

A pack is a folder of two files. ``images.bin`` has a header and then the pixels of every image, (H, W, 3) in BGR.
``index.json`` has the names, shapes, labels and checksums of the images. The header holds the SHA-256 of the index, so
that files of different packs are told apart without reading the pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS

from ..arguments import check_arguments
from ..text import join_names
from .transforms.views import draw_views

PIXELS, INDEX = 'images.bin', 'index.json'
MAGIC, VERSION = b'qbheat_mm images', 1
HEADER = 64  # bytes: the magic ones and a SHA-256, padded


class PackError(ValueError):
    """A pack that is damaged, foreign or cannot be written."""


def make_header(index: bytes) -> bytes:
    """The first bytes of the pixels that belong to an index."""
    return (MAGIC + hashlib.sha256(index).digest()).ljust(HEADER, b'\0')


def partial_folder(folder: Path) -> Path:
    """Where a pack lies until it is complete."""
    return folder.with_name(f'{folder.name}.packing')


class Pack:
    """The images of a pack.

    Args:
        folder: The folder that ``tools/dataset_converters/pack_images.py`` wrote.

    Raises:
        FileNotFoundError: If there is no pack.
        PackError: If its files are truncated, do not belong together, or are not a pack's.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / PIXELS
        content = self._read_index()
        size = self._check_header(make_header(content))
        index = json.loads(content)
        self.names: list[str] = index['names']
        self.classes: list[str] | None = index['classes']
        self.labels: list[int | None] = index['labels']
        self.unreadable: dict[str, str] = index['unreadable']
        self.checksums: list[int] = index['checksums']
        self.shapes: list[list[int]] = index['shapes']  # height, width
        self.digest = hashlib.sha256(content).hexdigest()
        sizes = 3 * np.prod(np.array(self.shapes, dtype=np.int64), axis=1)
        self._starts = HEADER + np.concatenate([[0], np.cumsum(sizes)])
        self._bytes: np.memmap | None = None
        if size != self._starts[-1]:
            raise PackError(
                f'"{self.path}" has {size} bytes and should have {self._starts[-1]}: it is truncated, or something was '
                'added. Copy it again, or pack again.'
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        """The image (H, W, 3), uint8, BGR: a read-only view of the file."""
        if self._bytes is None:
            self._bytes = np.memmap(self.path, mode='r')
        # A plain array: each view of a memmap costs as much as the draws of a crop.
        return np.ndarray((*self.shapes[index], 3), np.uint8, self._bytes.data, self._starts[index])

    def __getstate__(self) -> dict:
        """Without the memory map, which would be pickled with all its pixels; each process opens its own."""
        return vars(self) | dict(_bytes=None)

    def damaged(self) -> Iterator[str]:
        """Read every pixel and name the images whose checksum is wrong."""
        for index, name in enumerate(self.names):
            if zlib.crc32(self[index]) != self.checksums[index]:
                yield name

    def _read_index(self) -> bytes:
        try:
            content = (self.folder / INDEX).read_bytes()
        except OSError as error:
            partial = partial_folder(self.folder)
            hint = f' "{partial}" was interrupted; the same command continues it.' if partial.is_dir() else ''
            raise FileNotFoundError(
                f'There are no packed images in "{self.folder}" ({INDEX}: {error.strerror}). Make them with '
                f'tools/dataset_converters/pack_images.py.{hint}'
            ) from error
        name = f'"{self.folder / INDEX}"'
        try:
            index = json.loads(content)
            if index['format'] != MAGIC.decode():
                raise KeyError
            version = index['version']
        except (ValueError, KeyError, TypeError):
            raise PackError(f'{name} is not the index of packed images.') from None
        if version != VERSION:
            raise PackError(f'{name} has version {version}, this is for version {VERSION}. Pack again.')
        return content

    def _check_header(self, expected: bytes) -> int:
        """Compare the header of the pixels; returns the size of their file."""
        try:
            with self.path.open('rb') as file:
                header, size = file.read(HEADER), os.fstat(file.fileno()).st_size
        except OSError as error:
            raise PackError(
                f'"{self.path}" cannot be read ({error.strerror}). Copy it again, or pack again.'
            ) from error
        if not header.startswith(MAGIC):
            raise PackError(f'"{self.path}" is not a file of packed images.')
        if header != expected:
            raise PackError(
                f'"{self.path}" and "{INDEX}" beside it are not of the same pack, or one was changed. Copy both again.'
            )
        return size


@DATASETS.register_module()
class PackedImageDataset(CustomDataset):
    """Packed images in the place of ``ImageFolderDataset``, ``CustomDataset`` or ``ImageNet``.

    Only the ``type`` in a config changes, if the packs lie as the folders do: ``data_root/data_prefix`` is the folder
    of a pack. A loading step at the head of the pipeline is left out, since the images come decoded. Order, classes and
    labels are those of the folder.

    Args:
        split: As in mmpretrain's ImageNet: another name of ``data_prefix``.
        pipeline: As for files.
        device_crops: Draw the random augmentations of the pipeline here and leave them to ``ViewDataPreprocessor``;
            the loader needs ``collate_fn=dict(type='collate_views')``.
        **kwargs: As in mmpretrain's CustomDataset. ``ann_file`` chooses images and labels by name.
    """

    @check_arguments
    def __init__(self, split: str = '', pipeline: Sequence[dict] = (), device_crops: bool = False, **kwargs) -> None:
        if split:
            kwargs['data_prefix'] = kwargs.get('data_prefix') or split
        pipeline = without_loading(pipeline)
        super().__init__(pipeline=draw_views(pipeline) if device_crops else pipeline, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Open the pack and list its images.

        Raises:
            PackError: If the pack lacks labels or images that are asked for; see also :class:`Pack`.
        """
        self.pack = Pack(self.img_prefix or self.data_root)
        if self.test_mode and self.pack.unreadable:
            raise PackError(
                f'"{self.pack.folder}" lacks {len(self.pack.unreadable)} images that could not be read '
                f'({join_names(self.pack.unreadable)}), which would change the score. Replace or remove these files, '
                'and pack again.'
            )
        data_list, places = super().load_data_list(), {name: i for i, name in enumerate(self.pack.names)}
        for info in data_list:
            name = os.path.relpath(info['img_path'], self.img_prefix or '.')
            if name not in places:
                raise PackError(f'"{self.pack.folder}" has no image "{name}", which "{self.ann_file}" names.')
            info['pack_index'] = places[name]
        return data_list

    def _find_samples(self) -> list:
        """Names, with labels if they are asked for, in the order in which CustomDataset lists a folder."""
        pack = self.pack
        if not self.with_label:
            return sorted(pack.names)
        if pack.classes is None:
            raise PackError(f'"{pack.folder}" was packed from a folder without class folders: it has no labels.')
        if self.CLASSES is not None and len(self.CLASSES) != len(pack.classes):
            raise PackError(
                f'"{pack.folder}" has {len(pack.classes)} classes, and the config names {len(self.CLASSES)}.'
            )
        if self.CLASSES is None:
            self._metainfo['classes'] = tuple(pack.classes)
        labelled = ((name, label) for name, label in zip(pack.names, pack.labels) if label is not None)
        return sorted(labelled, key=lambda sample: sample[::-1])

    def prepare_data(self, idx: int) -> dict | None:
        """The image at ``idx`` through the pipeline."""
        info = self.get_data_info(idx)
        info['img'] = self.pack[info['pack_index']]
        info['img_shape'] = info['ori_shape'] = info['img'].shape[:2]
        return self.pipeline(info)


def without_loading(pipeline: Sequence[dict]) -> list[dict]:
    """A pipeline for images that are already decoded."""
    steps = []
    for step in pipeline:
        step = dict(step)
        kind = step['type'] if isinstance(step['type'], str) else step['type'].__name__
        kind = kind.rpartition('.')[2]
        if kind in ('LoadImage', 'LoadImageFromFile'):
            continue
        if kind == 'LoadReducedRandomResizedCrop':
            for option in ('ignore_empty', 'backend_args'):
                step.pop(option, None)
            step['type'] = 'TorchRandomResizedCrop'
        steps.append(step)
    return steps
