"""Folders of images, some of which may be unreadable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..arguments import check_arguments


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
        if not self.ann_file and self.with_label and not any(entry.is_dir() for entry in folder.iterdir()):
            raise RuntimeError(f'The folder "{folder}" has no sub-folders, whose names would be the classes. {remedy}')
        try:
            data_list = super().load_data_list()
        except RuntimeError as error:
            if 'Found 0 files' not in str(error):
                raise
            endings = ', '.join(sorted(self.extensions))
            raise RuntimeError(
                f'There is no image in the folder "{folder}" (nor below it) that ends in {endings}. {remedy}'
            ) from None
        # Shared memory: the workers mark unreadable images, the main process counts them.
        self.unreadable = torch.zeros(len(data_list), dtype=torch.uint8).share_memory_()
        return data_list

    def __getitem__(self, idx: int) -> dict:
        """The sample at ``idx``, or in training the next readable one.

        Raises:
            RuntimeError: If ``MAX_SKIPS`` images in a row are unreadable; in test mode, if this one is.
        """
        total = len(self)
        for step in range(min(total, self.MAX_SKIPS)):
            index = (idx + step) % total
            data = self.prepare_data(index)
            if data is not None:
                return data
            self.unreadable[index] = 1
            if self.test_mode:
                raise RuntimeError(f'The image "{self.get_data_info(index)["img_path"]}" cannot be read.')
        first = self.get_data_info(idx)['img_path']
        raise RuntimeError(f'None of {step + 1} images in a row can be read, from "{first}" on.')

    def skipped_images(self) -> list[str]:
        """Paths of the images that could not be read so far, in any process."""
        return [self.get_data_info(int(index))['img_path'] for index in self.unreadable.nonzero()]


def scan_images(folder: str | Path) -> list[Path]:
    """Images at any depth below a folder, by their extension, sorted by path."""
    return sorted(p for p in Path(folder).rglob('*') if p.suffix.lower() in IMG_EXTENSIONS and p.is_file())


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
