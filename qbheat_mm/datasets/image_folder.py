"""Folders of images, some of which may be unreadable."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.logging import print_log
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..arguments import check_arguments
from ..files import list_files, list_folders
from ..text import join_names, printable

SPLITS = {'train', 'training', 'val', 'valid', 'validation', 'test', 'testing', 'dev', 'eval'}


@DATASETS.register_module()
class ImageFolderDataset(CustomDataset):
    """mmpretrain's CustomDataset for folders of images, with clear errors and tolerance for unreadable files.

    In training the next readable image replaces an unreadable one; ``SkippedImagesHook`` logs their number and names.
    In test mode (``test_mode=True``) an unreadable image is an error, because it would change the score.
    Use it with ``LoadImage(ignore_empty=True)``: OpenCV silently returns half of a truncated image.

    Args:
        with_label: Take the names of the sub-folders as classes. Defaults to True; pre-training says False.
        extensions: File extensions of images, in lower case.
        **kwargs: As in mmpretrain's CustomDataset.
    """

    MAX_SKIPS = 1000  # unreadable images in a row before training stops

    @check_arguments
    def __init__(self, *args, extensions: Sequence[str] = IMG_EXTENSIONS, **kwargs) -> None:
        super().__init__(*args, extensions=extensions, **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the images.

        Raises:
            FileNotFoundError: If the folder is missing.
            RuntimeError: If there is no image in it, or, with labels, no class folder.
        """
        folder = Path(self.img_prefix or self.data_root)
        remedy = 'Set DATA_ROOT=FOLDER, or `--cfg-options train_dataloader.dataset.data_root=FOLDER`.'
        if not folder.is_dir():
            raise FileNotFoundError(f'There is no folder "{folder}" to take images from. {remedy}')
        if not self.ann_file and self.with_label and not list_folders(folder):
            raise RuntimeError(f'The folder "{folder}" has no sub-folders, whose names would be the classes. {remedy}')
        if not self.ann_file:
            warn_of_splits(folder)
        data_list = super().load_data_list()
        if not data_list:
            endings = ', '.join(sorted(self.extensions))
            raise RuntimeError(
                f'There is no image in the folder "{folder}" (nor below it) that ends in {endings}. {remedy}'
            )
        # Shared memory: the workers mark unreadable images, the main process counts them.
        self.unreadable = torch.zeros(len(data_list), dtype=torch.uint8).share_memory_()
        return data_list

    def _find_samples(self) -> list:
        """Relative paths, with labels if there are any, in mmpretrain's order."""
        if not self.with_label:
            return list_files(self.img_prefix, self.extensions)
        classes = find_classes(self.img_prefix, self.extensions)
        if self.CLASSES is not None and len(self.CLASSES) != len(classes):
            raise ValueError(
                f'The folder "{self.img_prefix}" has {len(classes)} class folders ({join_names(classes)}), metainfo '
                f'names {len(self.CLASSES)} classes.'
            )
        self.folder_to_idx = {name: i for i, name in enumerate(classes)}
        self.empty_classes = [name for name, files in classes.items() if not files]
        if self.CLASSES is None:
            self._metainfo['classes'] = tuple(classes)
        if self.empty_classes:
            print_log(
                f'The folder "{self.img_prefix}" has class folders without an image: {join_names(self.empty_classes)}',
                logger='current',
                level=logging.WARNING,
            )
        return [(path, self.folder_to_idx[name]) for name, files in classes.items() for path in files]

    def __getitem__(self, idx: int) -> dict:
        """The sample at ``idx``, or in training the next readable one.

        Raises:
            IndexError: If there is no such index.
            RuntimeError: If ``MAX_SKIPS`` images in a row are unreadable; in test mode, if this one is.
        """
        total = len(self)
        if not -total <= idx < total:
            raise IndexError(f'There is no index {idx} in {total} images.')
        for step in range(min(total, self.MAX_SKIPS)):
            index = (idx + step) % total
            data = self.prepare_data(index)
            if data is not None:
                return data
            self.unreadable[index] = 1
            if self.test_mode:
                break
        first, cause = self.get_data_info(idx % total)['img_path'], self._cause(idx % total)
        reason = f'{type(cause).__name__}: {cause}'
        if self.test_mode:
            text = f'The image "{first}" cannot be read: {reason}'
        else:
            text = f'None of {step + 1} images in a row can be read, from "{first}" on: {reason}'
        raise RuntimeError(printable(text)) from cause

    def _cause(self, index: int) -> Exception:
        """Why the pipeline makes nothing of an image."""
        data = self.get_data_info(index)
        for transform in self.pipeline.transforms:
            transform = copy.copy(transform)
            if hasattr(transform, 'ignore_empty'):
                transform.ignore_empty = False
            try:
                data = transform(data)
            except Exception as error:
                return error.__cause__ or error
            if data is None:
                return ValueError(f'{type(transform).__name__} returned None')
        return ValueError('it can be read now')

    def skipped_images(self) -> list[str]:
        """Paths of the images that could not be read so far, in any process."""
        return [self.get_data_info(int(index))['img_path'] for index in self.unreadable.nonzero()]


def warn_of_splits(folder: str | Path) -> None:
    """Log if the folders in ``folder`` are training and validation data by their names, not classes."""
    names = list_folders(folder)
    if len(names) > 1 and {name.lower() for name in names} <= SPLITS:
        first = next((name for name in names if name.lower().startswith('train')), names[0])
        print_log(
            f'The folders in "{printable(folder)}" are called {join_names(names)}: if these are splits, not classes, '
            f'name one of them, for example "{printable(Path(folder, first))}". As it is, all of them are read.',
            logger='current',
            level=logging.WARNING,
        )


def find_image_folders(dataset: Dataset) -> list[ImageFolderDataset]:
    """The ``ImageFolderDataset`` in a dataset that may wrap others, each once."""
    if isinstance(dataset, ImageFolderDataset):
        return [dataset]
    inner = [getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or ())]
    found = [each for wrapped in inner if wrapped is not None for each in find_image_folders(wrapped)]
    return list({id(each): each for each in found}.values())


def scan_images(folder: str | Path) -> list[Path]:
    """Images at any depth below a folder, see :func:`list_files`."""
    return [Path(folder, name) for name in list_files(folder, IMG_EXTENSIONS)]


def find_classes(folder: str | Path, extensions: tuple[str, ...] = IMG_EXTENSIONS) -> dict[str, list[str]]:
    """The folders in ``folder``, sorted, and the relative paths of the images at any depth in each."""
    classes = {name: [] for name in list_folders(folder)}
    for path in list_files(folder, extensions):
        name = path.split('/', 1)[0]
        if name in classes:
            classes[name].append(path)
    return classes


def list_images(inputs) -> list:
    """The images of a folder, see :func:`scan_images`; a list as it is; anything else as a list of one.

    Raises:
        FileNotFoundError: If there is no image in the folder, or no such file.
    """
    if isinstance(inputs, (str, Path)) and Path(inputs).is_dir():
        if files := scan_images(inputs):
            return files
        raise FileNotFoundError(f'There is no image in "{inputs}" that ends in {", ".join(IMG_EXTENSIONS)}.')
    images = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    for image in images:
        if isinstance(image, (str, Path)) and not Path(image).is_file():
            raise FileNotFoundError(f'There is no image "{image}".')
    return images
